/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of bf16 rows in AVX-512 without its BF16: heads on lanes, numbers made into f32
 * on the way. */
#include "mla_tile_512.h"

ALWAYS __m512 high(__m512i pair)
{
	return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

ALWAYS __m512 low(__m512i pair)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}

ALWAYS void dot(__m512 *sum, __m512i x, const void *pair)
{
	__m512i y;
	int32_t both;

	__builtin_memcpy(&both, pair, sizeof(both));
	y = _mm512_set1_epi32(both);
	*sum = _mm512_fmadd_ps(high(y), high(x), *sum);
	*sum = _mm512_fmadd_ps(low(y), low(x), *sum);
}

void mla_scores_bf16_avx512(const struct mla_tile *t)
{
	scores_all(t);
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
	add_values(t, head, col, R, acc, order);
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
