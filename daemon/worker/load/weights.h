#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* All tensors of a model by name, from one safetensors file, from shards with their index, or made up
 * from a seed; and their numbers as f32, read upwards through one window. */
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "worker/load/safetensors.h"

struct digest;
struct error;
struct files;

#define WEIGHTS_INDEX_NAME  "model.safetensors.index.json"
#define WEIGHTS_INDEX_MAX   (64u << 20) /* bytes */
#define WEIGHTS_HEADERS_MAX (64u << 20) /* bytes, of all files together */

struct weights_entry {
	const char *name;
	const struct safetensors *st;
	const struct st_tensor *tensor;
	uint8_t hash[16]; /* of the bytes, once they were all read */
	bool wanted, hashed;
};

struct weights; /* opaque */

bool weights_are_there(const struct files *files);
/**
 * weights_open() - headers of all files, checked
 * Return: 0. -ENOENT: no safetensors file. -EBADMSG: a header or the index is malformed. -EINVAL: the
 *         index names what is not there, or there are several files and no index.
 */
int weights_open(struct weights **ret, const struct files *files, struct error *err);
/** weights_synthetic() - tensors of any name and shape, from @seed. Return: 0 or -ENOMEM. */
int weights_synthetic(struct weights **ret, uint64_t seed);
struct weights *weights_free(struct weights *w);
DEFINE_CLEANUP(struct weights *, weights_free);

bool weights_are_synthetic(const struct weights *w);
/* Entries by name; none where they are synthetic. */
struct weights_entry *weights_entries(struct weights *w, uint32_t *ret_n);
struct weights_entry *weights_find(struct weights *w, const char *name);

/**
 * weights_read() - numbers [first, first + n) of tensor @name with rows of @n_in
 *
 * Meant for ascending reads of one tensor after the other. A tensor that is read from its first
 * number to its last gets its hash on the way.
 *
 * Return: 0; -EINVAL for a range or type the tensor has not; as file_read().
 */
int weights_read(struct weights *w, const char *name, uint64_t n_in, uint64_t first, uint64_t n,
		 float *ret, struct error *err);

/** weights_digest() - headers of all files and the hashes of the tensors that were read. */
void weights_digest(struct weights *w, struct digest *d);
