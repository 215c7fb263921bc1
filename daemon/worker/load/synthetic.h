#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Made-up weights: every number is a function of (seed, tensor name, index) alone, so any part can be
 * made at any time, in any order, and every machine makes the same. */
#include <stdint.h>

/* How the numbers of a tensor lie: `mean` plus noise of standard deviation `spread`. */
struct synthetic_tensor {
	uint64_t key;
	float mean, spread;
};

/**
 * synthetic_init() - for the tensor @name with rows of @n_in numbers
 *
 * Norms lie near 1, embeddings have spread 1, projections 1/sqrt(n_in) so that widths do not blow
 * up or drown what goes through them, the router four and the head twice that so that choices differ.
 */
void synthetic_init(struct synthetic_tensor *t, uint64_t seed, const char *name, uint64_t n_in);
/** synthetic_fill() - numbers [first, first + n) of the tensor. */
void synthetic_fill(const struct synthetic_tensor *t, uint64_t first, uint64_t n, float *ret);
