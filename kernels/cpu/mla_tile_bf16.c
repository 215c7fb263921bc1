/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of bf16 rows with VDPBF16PS: a pair of the cache by a pair of sixteen queries, or
 * the pairs that two positions' rows make by those of their weights. */
#include "mla_tile_512.h"

/* In assembly, or gcc 12 moves the accumulators about. */
ALWAYS void dot(__m512 *sum, __m512i x, const void *pair)
{
#ifdef K_EMULATE_AVX512
	int32_t y;

	__builtin_memcpy(&y, pair, sizeof(y));
	*sum = emu_dpbf16(*sum, x, _mm512_set1_epi32(y));
#else
	struct bytes {
		uint8_t b[4];
	};

	__asm__("vdpbf16ps %2%{1to16%}, %1, %0"
		: "+v"(*sum)
		: "v"(x), "m"(*(const struct bytes *)pair));
#endif
}

void mla_scores_bf16_bf16(const struct mla_tile *t)
{
	scores_all(t);
}

/* R heads by a line of every row. @w: [n_pos / 2][MLA_HEADS] pairs. */
ALWAYS void values(const struct mla_tile *t, const uint32_t *w, uint32_t head, uint32_t col,
		   const uint32_t R)
{
	/* A 128-bit lane of the low halves has columns 0..3 of its eight, of the high ones 4..7. */
	static const int32_t order[2][16] = {
		{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23},
		{8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31},
	};
	__m512 acc[BLOCK][2];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		acc[r][0] = acc[r][1] = _mm512_setzero_ps();
	for (uint32_t p = 0; p < t->n_pos; p += 2) {
		const uint16_t *v = t->rows + p * t->row_step + col;
		__m512i a = _mm512_loadu_si512(v), b = _mm512_loadu_si512(v + t->row_step);
		__m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);

		if (head == 0) {
			__builtin_prefetch(v + MLA_COLUMNS);
			__builtin_prefetch(v + t->row_step + MLA_COLUMNS);
		}
#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			const uint32_t *pair = w + p / 2 * MLA_HEADS + head + r;

			dot(&acc[r][0], low, pair);
			dot(&acc[r][1], high, pair);
		}
	}
	add_values(t, head, col, R, acc, order);
}

void mla_values_bf16_bf16(const struct mla_tile *t)
{
	uint32_t w[K_TILE_POSITIONS / 2 * MLA_HEADS] __attribute__((aligned(64)));

	for (uint32_t p = 0; p < t->n_pos; p += 2) {
		const float *s = t->s + p * MLA_HEADS;
		__m512i first = _mm512_srli_epi32(_mm512_loadu_si512(s), 16);
		__m512i second = _mm512_and_si512(_mm512_loadu_si512(s + MLA_HEADS),
						  _mm512_set1_epi32((int)0xffff0000));

		_mm512_storeu_si512(w + p / 2 * MLA_HEADS, _mm512_or_si512(first, second));
	}
	for (uint32_t col = 0; col < t->n_cols; col += MLA_COLUMNS) {
		uint32_t head = 0;

		for (; head + BLOCK <= t->n_heads; head += BLOCK)
			values(t, w, head, col, BLOCK);
		for (; head + 4 <= t->n_heads; head += 4)
			values(t, w, head, col, 4);
		for (; head < t->n_heads; head++)
			values(t, w, head, col, 1);
	}
}
