#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Packed weights in a file of layout/packed.h: one that an earlier start filled is mapped, an empty one is
 * filled through its mapping, so that the weights are in memory once. All hashes are compared before the
 * first weight is used: reading once through a file that is in the page cache costs less than a second for
 * 10 GB, and a worker then never meets damage in the middle of a step.
 *
 * A file that is cut short, or whose disk fails, while it is mapped ends the worker by SIGBUS; the broker
 * tells so, drops the file and starts another. Thread: one, which forks. */
#include <stdint.h>

#include "layout/packed.h"
#include "worker/load/load.h"

struct error;
struct kernels;

struct packed {
	uint8_t *map; /* the whole file; NULL: none */
	struct packed_shape shape;
};

/* What the file must be, as the model's configuration has it. */
struct packed_want {
	uint8_t plan[PACKED_HASH_BYTES];
	uint64_t data_bytes;
};

/**
 * packed_map() - what an earlier start filled
 * @fd:          read-only; not needed after the return
 * @k:           whose threads compare; NULL: the caller alone
 * @ret_content: of what was packed
 *
 * Return: 0. -EBADMSG: the file does not prove itself, with a sentence. What @progress returned.
 */
int packed_map(struct packed *ret, int fd, const struct packed_want *want, struct kernels *k,
	       load_progress progress, void *ctx, uint8_t ret_content[PACKED_HASH_BYTES],
	       struct error *err);
/**
 * packed_make() - room in an empty file
 * Return: 0; -ENOSPC, -EOPNOTSUPP and the like with a sentence: pack without a file.
 */
int packed_make(struct packed *ret, int fd, const struct packed_want *want, struct error *err);
/**
 * packed_finish() - all weights are there: hashes and header, and everything onto the disk
 *
 * The mapping can only be read from here on.
 *
 * Return: 0; -EIO where the disk does not take it; what @progress returned.
 */
int packed_finish(struct packed *p, const struct packed_want *want,
		  const uint8_t content[PACKED_HASH_BYTES], struct kernels *k,
		  load_progress progress, void *ctx, struct error *err);
void packed_done(struct packed *p);
/** packed_data() - packed_want.data_bytes of weights, K_MEMORY_ALIGN aligned. */
static inline uint8_t *packed_data(const struct packed *p)
{
	return p->map + p->shape.data_offset;
}
