#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A file of packed weights, so that a model is quantised once and mapped from then on.
 *
 *   │ header │ hash of chunk 0 .. n-1 │ zeros to PACKED_ALIGN │ data: one weight behind the other │
 *
 * The data are what kernels pack, in the order in which the worker asks for weights. Which they are, of
 * which shape and where, follows from the model's configuration alone and is not written down: `plan` is a
 * hash of that list, and who maps a file must come to the same one. `content` stands for the numbers that
 * were packed.
 *
 * A worker fills the file, hashes included; the broker, which alone has the key, adds the MAC over header
 * and hashes, and gives no file without a good one to a worker. The worker compares the hashes. So neither
 * believes a disk, and no worker can make a file for another model's files than those it was given.
 * Numbers are in the machine's own byte order: a file is for the host that made it. */
#include <stdint.h>

#include "base/hash.h"

struct error;

#define PACKED_MAGIC      "dsdpack"
#define PACKED_VERSION    1u    /* also of what kernels pack: tests/kernels/quant.c pins that */
#define PACKED_ALIGN      4096u /* of the data in the file, so that they can be mapped */
#define PACKED_CHUNK      (4u << 20) /* bytes of data with one hash; the last chunk may be shorter */
#define PACKED_DATA_MAX   (UINT64_C(1) << 42)
#define PACKED_HASH_BYTES 32u

struct packed_header {
	char magic[8];
	uint32_t version, _pad;
	uint64_t data_bytes;
	uint8_t plan[PACKED_HASH_BYTES];
	uint8_t content[PACKED_HASH_BYTES];
	uint8_t mac[HASH_MAC_BYTES];
	/* uint64_t hash[n_chunks]: XXH3 */
};

/* Where everything is: follows from the number of data bytes. */
struct packed_shape {
	uint32_t n_chunks;
	uint64_t data_bytes;
	uint64_t hashes_end; /* header and hashes: what the MAC covers */
	uint64_t data_offset, total_bytes;
};
/** packed_shape_init() - Return: 0; -EINVAL for no data or more than PACKED_DATA_MAX. */
int packed_shape_init(struct packed_shape *s, uint64_t data_bytes, struct error *err);

/**
 * packed_check() - a header against the size of its file
 * @h: a copy: nothing else may write to it
 * Return: 0 and its shape; -EBADMSG with a sentence.
 */
int packed_check(struct packed_shape *ret, const struct packed_header *h, uint64_t file_bytes,
		 struct error *err);
/**
 * packed_read() - header and hashes of a file, checked as above
 * @ret: free() it; as many bytes as ret_shape->hashes_end
 * Return: 0; -EBADMSG with a sentence, also where the file is none or cannot be read; -ENOMEM.
 */
int packed_read(struct packed_header **ret, struct packed_shape *ret_shape, int fd,
		struct error *err);
static inline uint64_t *packed_hashes(struct packed_header *h)
{
	return (uint64_t *)(h + 1);
}
