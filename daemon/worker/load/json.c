/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/json.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <json-c/json_tokener.h>

#include "base/error.h"
#include "base/log.h"

static inline void json_tokener_unref(struct json_tokener *t)
{
	json_tokener_free(t);
}
DEFINE_CLEANUP(struct json_tokener *, json_tokener_unref);

/* At most what json-c makes of the text, with malloc()'s share (0.16, measured): 800 bytes for an object, 160
 * for an array, 160 for a member and 96 for an element, and the strings. An escape in a string hides no quote. */
static uint64_t tree_bytes(const char *text, size_t n)
{
	uint64_t bytes = n;
	bool inside = false; /* a string */

	for (size_t i = 0; i < n; i++) {
		switch (text[i]) {
		case '"':
			inside = !inside;
			break;
		case '\\':
			i++;
			break;
		case '{':
			bytes += inside ? 0 : 800;
			break;
		case '[':
		case ':':
			bytes += inside ? 0 : 160;
			break;
		case ',':
			bytes += inside ? 0 : 96;
			break;
		default:
			break;
		}
	}
	return bytes;
}

int json_parse(struct json_object **ret, const char *file, const void *data, size_t n,
	       struct error *err)
{
	_cleanup_(json_tokener_unrefp) struct json_tokener *t = json_tokener_new_ex(JSON_DEPTH_MAX);
	_cleanup_(json_unrefp) struct json_object *o = NULL;
	const char *text = data, *nul = memchr(data, 0, n);
	size_t at;

	if (!t)
		return -ENOMEM;
	if (n > INT_MAX / 2)
		return error_set(err, -EBADMSG, "%s: %zu bytes, want at most %d", file, n,
				 INT_MAX / 2);
	if (nul)
		return error_set(err, -EBADMSG, "%s: byte %zu is 0", file, (size_t)(nul - text));
	if (tree_bytes(text, n) > JSON_MEMORY_MAX)
		return error_set(err, -EBADMSG,
				 "%s: its values would take %llu MB of memory, want at most %u",
				 file, (unsigned long long)(tree_bytes(text, n) >> 20),
				 JSON_MEMORY_MAX >> 20);
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS |
					  JSON_TOKENER_VALIDATE_UTF8);
	o = json_tokener_parse_ex(t, text, (int)n);
	at = json_tokener_get_parse_end(t);
	switch (json_tokener_get_error(t)) {
	case json_tokener_success:
		break;
	case json_tokener_continue:
		return error_set(err, -EBADMSG, "%s: ends at byte %zu in the middle of the JSON",
				 file, n);
	default:
		return error_set(err, -EBADMSG, "%s: byte %zu: %s", file, at,
				 json_tokener_error_desc(json_tokener_get_error(t)));
	}
	for (; at < n; at++)
		if (!strchr(" \t\r\n", text[at]))
			return error_set(err, -EBADMSG, "%s: byte %zu: something after the JSON",
					 file, at);
	if (!json_object_is_type(o, json_type_object))
		return error_set(err, -EBADMSG, "%s: want a JSON object", file);
	*ret = TAKE_PTR(o);
	return 0;
}

struct json_object *json_get(const struct json_place *p, const char *key)
{
	struct json_object *o = NULL;

	return json_object_object_get_ex(p->object, key, &o) ? o : NULL;
}

/* Short and printable, whatever the file has there. */
static void describe(struct json_object *o, char *buf, size_t n)
{
	const char *text;

	switch (json_object_get_type(o)) {
	case json_type_null:
		snprintf(buf, n, "nothing");
		return;
	case json_type_object:
		snprintf(buf, n, "an object");
		return;
	case json_type_array:
		snprintf(buf, n, "an array of %zu", json_object_array_length(o));
		return;
	default:
		text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
		log_escape(buf, n, text ? text : "", text ? strlen(text) : 0);
	}
}

int json_refuse(const struct json_place *p, const char *key, struct error *err, const char *want,
		...)
{
	char got[260], wanted[160];
	va_list ap;

	describe(json_get(p, key), got, sizeof(got));
	va_start(ap, want);
	vsnprintf(wanted, sizeof(wanted), want, ap);
	va_end(ap);
	return error_set(err, -EINVAL, "%s: %s%s: got %s, want %s", p->file, p->path, key, got,
			 wanted);
}

int json_get_u64(const struct json_place *p, const char *key, enum json_need need, uint64_t min,
		 uint64_t max, uint64_t *ret, struct error *err)
{
	struct json_object *o = json_get(p, key);
	uint64_t x;

	if (!o && need == JSON_OPTIONAL)
		return 0;
	/* A negative number reads as 0 with ERANGE; past 64 bits it saturates, and no range here
	 * reaches that far. */
	x = o ? json_object_get_uint64(o) : 0;
	if (!json_object_is_type(o, json_type_int) || json_object_get_int64(o) < 0 || x < min ||
	    x > max)
		return json_refuse(p, key, err, "an integer from %llu to %llu",
				   (unsigned long long)min, (unsigned long long)max);
	*ret = x;
	return 0;
}

int json_get_u32(const struct json_place *p, const char *key, enum json_need need, uint32_t min,
		 uint32_t max, uint32_t *ret, struct error *err)
{
	uint64_t x = *ret;
	int r = json_get_u64(p, key, need, min, max, &x, err);

	if (r < 0)
		return r;
	*ret = (uint32_t)x;
	return 0;
}

int json_get_number(const struct json_place *p, const char *key, enum json_need need, double min,
		    double max, double *ret, struct error *err)
{
	struct json_object *o = json_get(p, key);
	double x;

	if (!o && need == JSON_OPTIONAL)
		return 0;
	x = json_object_get_double(o);
	if ((!json_object_is_type(o, json_type_double) && !json_object_is_type(o, json_type_int)) ||
	    !(x >= min && x <= max))
		return json_refuse(p, key, err, "a number from %g to %g", min, max);
	*ret = x;
	return 0;
}

int json_get_bool(const struct json_place *p, const char *key, enum json_need need, bool *ret,
		  struct error *err)
{
	struct json_object *o = json_get(p, key);

	if (!o && need == JSON_OPTIONAL)
		return 0;
	if (!json_object_is_type(o, json_type_boolean))
		return json_refuse(p, key, err, "true or false");
	*ret = json_object_get_boolean(o);
	return 0;
}

int json_get_string(const struct json_place *p, const char *key, enum json_need need,
		    const char **ret, struct error *err)
{
	struct json_object *o = json_get(p, key);

	if (!o && need == JSON_OPTIONAL)
		return 0;
	if (!json_object_is_type(o, json_type_string) ||
	    strlen(json_object_get_string(o)) != (size_t)json_object_get_string_len(o))
		return json_refuse(p, key, err, "a string");
	*ret = json_object_get_string(o);
	return 0;
}

static int get_typed(const struct json_place *p, const char *key, enum json_need need,
		     enum json_type type, struct json_object **ret, struct error *err)
{
	struct json_object *o = json_get(p, key);

	if (!o && need == JSON_OPTIONAL)
		return 0;
	if (!json_object_is_type(o, type))
		return json_refuse(p, key, err, type == json_type_array ? "an array" : "an object");
	*ret = o;
	return 0;
}

int json_get_object(const struct json_place *p, const char *key, enum json_need need,
		    struct json_object **ret, struct error *err)
{
	return get_typed(p, key, need, json_type_object, ret, err);
}

int json_get_array(const struct json_place *p, const char *key, enum json_need need,
		   struct json_object **ret, struct error *err)
{
	return get_typed(p, key, need, json_type_array, ret, err);
}
