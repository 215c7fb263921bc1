#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair encoding of one piece: merge the adjacent pair of lowest rank, the leftmost of equals, until
 * no pair merges.
 *
 * Long pieces use a queue that holds only pairs whose neighbours would not be merged before them. The
 * pair to be merged next is always one of those; and a run of equal symbols, the worst case of a queue
 * of all pairs, has one at a time. */
#include <stddef.h>
#include <stdint.h>

struct ids;
struct vocab;

/* Kept between pieces; zero it to start, bpe_scratch_done() to end. One thread at a time. */
struct bpe_scratch {
	uint64_t *memory; /* BPE_BYTES_PER_BYTE for each of n_alloc bytes of a piece */
	size_t n_alloc;
};
#define BPE_BYTES_PER_BYTE 32 /* of which 8 are always touched */

void bpe_scratch_done(struct bpe_scratch *s);
/** bpe_scratch_trim() - give back what only a very long piece needed. */
void bpe_scratch_trim(struct bpe_scratch *s);

/**
 * bpe_encode() - append the ids of one piece
 * @text: @n bytes, 0 < n <= ENCODE_PIECE_MAX, each of which has a token in @v
 *
 * Return: 0 or -ENOMEM (ids may have been appended).  Time: O(n log n).
 */
int bpe_encode(const struct vocab *v, struct bpe_scratch *s, const uint8_t *text, size_t n,
	       struct ids *ret);
