#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What a step must read and multiply at least, for figures to be a share of a limit.
 *
 * Every weight that is used is read once a step, every cached row that is seen once for its sequence.
 * Which experts a step uses is up to its tokens; the caller says how many they were. */
#include <stdbool.h>
#include <stdint.h>

struct model;

struct cost_step {
	uint32_t n_rows, n_wants; /* wants: rows that go through the head */
	bool generated;           /* all rows are; else all are prompt rows of one sequence */
	double seen;              /* positions attended to, summed over the rows */
	double cached;            /* cached positions that are read, summed over the sequences */
	uint64_t n_routed;        /* experts that rows went to, summed over the layers */
	uint32_t row_bytes;       /* of one position in one layer */
	bool quantised;           /* the weights are q8 or q4 */
	bool int8_latents;        /* so are the cache's */
};

struct cost {
	double bytes;
	double experts;   /* read, by the mean of the layers that have some */
	double ops_int8;  /* products of quantised weights and latents; a multiply-add is two */
	double ops_float; /* all others: other attention, the router, f32 and bf16 weights */
};

struct cost model_cost(const struct model *m, const struct cost_step *s);
