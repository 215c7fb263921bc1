#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* JSON files of a model: json-c's incremental parser, kept strict, and getters that say what was got
 * and what was wanted ("config.json: kv_lora_rank: got "abc", want an integer from 1 to 65536"). */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <json-c/json_object.h>
#include <json-c/linkhash.h>

#include "base/cleanup.h"

struct error;

#define JSON_DEPTH_MAX 32
#define JSON_MEMORY_MAX                                                                            \
	(512u << 20) /* of the values of one file; DeepSeek-V3's tokenizer takes 52 MB */

static inline void json_unref(struct json_object *o)
{
	json_object_put(o);
}
DEFINE_CLEANUP(struct json_object *, json_unref);

/**
 * json_parse() - the one object that @data is
 * @file: name for the sentence
 *
 * UTF-8, at most JSON_DEPTH_MAX deep, nothing behind it but white space, no 0 bytes, and nothing that
 * would take more than JSON_MEMORY_MAX: three bytes of a file make an object of 800.
 * Return: 0; -EBADMSG with the byte where it went wrong; -ENOMEM.
 */
int json_parse(struct json_object **ret, const char *file, const void *data, size_t n,
	       struct error *err);

/* An object somewhere in a file; @path is what stands before a key in a sentence ("", "a.b."). */
struct json_place {
	const char *file, *path;
	struct json_object *object;
};

/** json_get() - the member, NULL where it is absent or null. */
struct json_object *json_get(const struct json_place *p, const char *key);

/* The getters. With `required` an absent or null member is an error, else it leaves *ret as it is.
 * Return: 0; -EINVAL with the sentence. */
enum json_need { JSON_OPTIONAL, JSON_REQUIRED };
int json_get_u64(const struct json_place *p, const char *key, enum json_need need, uint64_t min,
		 uint64_t max, uint64_t *ret, struct error *err);
int json_get_u32(const struct json_place *p, const char *key, enum json_need need, uint32_t min,
		 uint32_t max, uint32_t *ret, struct error *err);
int json_get_number(const struct json_place *p, const char *key, enum json_need need, double min,
		    double max, double *ret, struct error *err);
int json_get_bool(const struct json_place *p, const char *key, enum json_need need, bool *ret,
		  struct error *err);
/* @ret lives as long as the object. A string with a 0 in it is refused. */
int json_get_string(const struct json_place *p, const char *key, enum json_need need,
		    const char **ret, struct error *err);
int json_get_object(const struct json_place *p, const char *key, enum json_need need,
		    struct json_object **ret, struct error *err);
int json_get_array(const struct json_place *p, const char *key, enum json_need need,
		   struct json_object **ret, struct error *err);

/** json_refuse() - "FILE: PATHkey: got VALUE, want WANT"; returns -EINVAL. */
int json_refuse(const struct json_place *p, const char *key, struct error *err, const char *want,
		...) __attribute__((format(printf, 4, 5)));
