/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of bf16 rows in AVX-512 without its BF16: heads on lanes, numbers made into f32
 * on the way. */
#ifndef K_EMULATE_AVX512 /* a test puts its own intrinsics before */
#include <immintrin.h>
#endif

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK 8u /* positions, or heads */

ALWAYS __m512 high(__m512i pair)
{
	return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

ALWAYS __m512 low(__m512i pair)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}

/* R positions by all heads; @next will be read after it. */
ALWAYS void scores(const struct mla_tile *t, uint32_t first, const uint8_t *next, const uint32_t R)
{
	const uint16_t *k[BLOCK];
	__m512 acc[BLOCK];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		k[r] = t->rows + (first + r) * t->row_step;
		acc[r] = _mm512_setzero_ps();
	}
	for (uint32_t i = 0; i < t->n_pairs; i++) {
		__m512i q = _mm512_loadu_si512(t->q + (size_t)i * MLA_HEADS);

		if (i % 2 == 0)
			__builtin_prefetch(next + (size_t)i * 32);
#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			__m512i x;
			int32_t pair;

			__builtin_memcpy(&pair, k[r] + 2 * (size_t)i, sizeof(pair));
			x = _mm512_set1_epi32(pair);
			acc[r] = _mm512_fmadd_ps(high(x), high(q), acc[r]);
			acc[r] = _mm512_fmadd_ps(low(x), low(q), acc[r]);
		}
	}
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		_mm512_storeu_ps(t->s + (first + r) * MLA_HEADS, acc[r]);
}

void mla_scores_bf16_avx512(const struct mla_tile *t)
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

/* R heads by a line of every row. */
ALWAYS void values(const struct mla_tile *t, uint32_t head, uint32_t col, const uint32_t R)
{
	static const int32_t order[2][16] = {
		{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23},
		{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31},
	};
	const float *w = t->s + head;
	__m512 acc[BLOCK][2];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		acc[r][0] = acc[r][1] = _mm512_setzero_ps();
	for (uint32_t p = 0; p < t->n_pos; p += 2)
#pragma GCC unroll 2
		for (uint32_t i = 2; i-- > 0;) {
			const uint16_t *v = t->rows + (p + i) * t->row_step + col;
			__m512i pairs = _mm512_loadu_si512(v);
			__m512 even = low(pairs), odd = high(pairs);

			if (head == 0)
				__builtin_prefetch(v + MLA_COLUMNS);
#pragma GCC unroll 8
			for (uint32_t r = 0; r < R; r++) {
				__m512 x = _mm512_set1_ps(w[(p + i) * MLA_HEADS + r]);

				acc[r][0] = _mm512_fmadd_ps(x, even, acc[r][0]);
				acc[r][1] = _mm512_fmadd_ps(x, odd, acc[r][1]);
			}
		}
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

void mla_values_bf16_avx512(const struct mla_tile *t)
{
	for (uint32_t col = 0; col < t->n_cols; col += MLA_COLUMNS) {
		uint32_t head = 0;

		for (; head + BLOCK <= t->n_heads; head += BLOCK)
			values(t, head, col, BLOCK);
		for (; head + 4 <= t->n_heads; head += 4)
			values(t, head, col, 4);
		for (; head < t->n_heads; head++)
			values(t, head, col, 1);
	}
}
