#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the two forms of mla_tile.c over 512 bits have in common. Included by exactly mla_tile_avx512.c and
 * mla_tile_bf16.c; everything is static to them. */
#ifndef K_EMULATE_AVX512 /* a test puts its own intrinsics before */
#include <immintrin.h>
#endif

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK 8u /* positions, or heads */

/* Sixteen queries' pair @x by the one @pair of a row, onto *sum: the second product first. */
ALWAYS void dot(__m512 *sum, __m512i x, const void *pair);

/* R positions by all heads; @next will be read after it. */
ALWAYS void scores(const struct mla_tile *t, uint32_t first, const uint8_t *next, const uint32_t R)
{
	const uint16_t *k[BLOCK];
	__m512 acc[BLOCK];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		k[r] = t->rows + (first + r) * t->row_step;
		acc[r] = _mm512_loadu_ps(t->s + (first + r) * MLA_HEADS);
	}
	for (uint32_t i = 0; i < t->n_pairs; i++) {
		__m512i q = _mm512_loadu_si512(t->q + (size_t)i * MLA_HEADS);

		if (i % 2 == 0)
			__builtin_prefetch(next + (size_t)i * 32);
#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++)
			dot(&acc[r], q, k[r] + 2 * (size_t)i);
	}
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		_mm512_storeu_ps(t->s + (first + r) * MLA_HEADS, acc[r]);
}

ALWAYS void scores_all(const struct mla_tile *t)
{
	uint32_t p = 0;

	for (; p + BLOCK < t->n_pos; p += BLOCK)
		scores(t, p, (const uint8_t *)(t->rows + (p + BLOCK) * t->row_step), BLOCK);
	switch (t->n_pos - p) { /* an even number */
	case 8:
		scores(t, p, t->next, 8);
		break;
	case 6:
		scores(t, p, t->next, 6);
		break;
	case 4:
		scores(t, p, t->next, 4);
		break;
	case 2:
		scores(t, p, t->next, 2);
		break;
	}
}

/* R heads' columns out of @acc, in the @order that puts them right, onto what is there. */
ALWAYS void add_values(const struct mla_tile *t, uint32_t head, uint32_t col, const uint32_t R,
		       __m512 acc[BLOCK][2], const int32_t order[2][16])
{
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		__m512 correction = _mm512_set1_ps(t->correction[head + r]);
		float *y = t->acc + (head + r) * t->acc_step + col;

#pragma GCC unroll 2
		for (uint32_t i = 0; i < 2; i++)
			_mm512_storeu_ps(
				y + 16 * i,
				_mm512_fmadd_ps(_mm512_loadu_ps(y + 16 * i), correction,
						_mm512_permutex2var_ps(acc[r][0],
								       _mm512_loadu_si512(order[i]),
								       acc[r][1])));
	}
}
