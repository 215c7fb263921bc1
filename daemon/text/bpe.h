#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair encoding of one piece: merge the adjacent pair of lowest rank, the leftmost of equals, until
 * no pair merges.
 *
 * Long pieces use a queue of runs: a run is a list of positions, from left to right, whose pairs have
 * one rank, and a heap holds the runs by (rank, first position). In a vocabulary as trainers make them
 * new pairs have higher ranks than the pair being merged, so each rank is one run and the heap stays
 * small; in any other the runs get shorter, down to one position each, and the result is the same. */
#include <stddef.h>
#include <stdint.h>

struct ids;
struct vocab;

/* Kept between pieces; zero it to start, bpe_scratch_done() to end. One thread at a time. */
struct bpe_scratch {
	void *memory; /* of the arrays below, for n_alloc symbols */
	size_t n_alloc;
	uint32_t *
		open_run; /* by rank: the run that new positions join, or NONE; all NONE between pieces */
	uint32_t n_ranks;
};
void bpe_scratch_done(struct bpe_scratch *s);
/** bpe_scratch_trim() - give back what only a very long piece needed. */
void bpe_scratch_trim(struct bpe_scratch *s);

/**
 * bpe_encode() - append the ids of one piece
 * @id: @n > 0 ids of its bytes (or other symbols); overwritten. n <= ENCODE_TEXT_MAX
 *
 * Return: 0 or -ENOMEM (ids may have been appended).  Time: O(n log n).
 */
int bpe_encode(const struct vocab *v, struct bpe_scratch *s, uint32_t *id, size_t n,
	       struct ids *ret);
