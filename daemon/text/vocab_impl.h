#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of struct vocab, for the files of daemon/text that look things up in inner loops. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout/image.h"

#define MERGE_NONE UINT32_MAX /* rank of a pair that does not merge */

/* One slot of the open-addressed merge table; rank MERGE_NONE: empty. */
struct merge_slot {
	uint32_t left, right, rank, result;
};

/* Added tokens sorted by their bytes: those that share a prefix are neighbours, shorter ones first, so
 * that a walk through the text narrows a range and needs no other structure. */
struct matcher {
	uint32_t *ids;
	uint32_t n;
	uint32_t first
		[257]; /* tokens that start with byte b: ids[first[b]] to ids[first[b + 1] - 1] */
};

struct vocab {
	atomic_uint n_refs;
	struct image im;
	void (*release)(void *user);
	void *user;
	uint32_t byte_id[256]; /* IMAGE_NONE: no token is this byte */
	struct merge_slot *merges;
	uint32_t merge_mask;
	uint64_t *control;   /* bit set over ids */
	struct matcher text; /* added tokens that are not control tokens */
	struct matcher all;  /* added tokens */
};

/* 64-bit finaliser of MurmurHash3: every input bit reaches every output bit. */
static inline uint32_t merge_hash(uint32_t left, uint32_t right)
{
	uint64_t x = (uint64_t)left << 32 | right;

	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return (uint32_t)(x >> 32 ^ x);
}

/** vocab_merge() - the slot of a pair; its rank is MERGE_NONE when the pair does not merge. */
static inline const struct merge_slot *vocab_merge(const struct vocab *v, uint32_t left,
						   uint32_t right)
{
	uint32_t i = merge_hash(left, right) & v->merge_mask;

	while (v->merges[i].rank != MERGE_NONE &&
	       (v->merges[i].left != left || v->merges[i].right != right))
		i = (i + 1) & v->merge_mask;
	return &v->merges[i];
}

/**
 * vocab_match() - the leftmost added token in text[from..n), the longest of those that start there
 * @m: the matcher: v->text or v->all
 *
 * Return: its id, or IMAGE_NONE; where it starts and ends in @ret_start and @ret_end.
 * Time: O(n) in texts that are not made of beginnings of added tokens; at worst
 * O(n × VOCAB_ADDED_LEN_MAX).
 */
uint32_t vocab_match(const struct vocab *v, const struct matcher *m, const uint8_t *text,
		     size_t from, size_t n, size_t *ret_start, size_t *ret_end);
