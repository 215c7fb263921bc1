/* SPDX-License-Identifier: Apache-2.0 */
/* The products of linear.c in AVX-512: up to twelve rows by 32 columns (24 accumulators, two vectors
 * of weights, one broadcast). A block has V vectors of sixteen columns, the last possibly masked. */
#include <immintrin.h>

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS __mmask16 columns_mask(uint32_t n_cols, uint32_t col)
{
	uint32_t left = n_cols > col ? n_cols - col : 0;

	return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

ALWAYS void block(const struct tile *t, uint32_t row, uint32_t col, const bool bf16,
		  const uint32_t R, const uint32_t V)
{
	__m512 acc[12][2], w[2];
	__mmask16 mask[2];
	const float *x[12];
	size_t at = t->x_first;

#pragma GCC unroll 2
	for (uint32_t v = 0; v < V; v++)
		mask[v] = columns_mask(t->n_cols, col + 16 * v);
#pragma GCC unroll 12
	for (uint32_t r = 0; r < R; r++) {
		const float *y = t->y[row + r] + t->y_col + col;

		x[r] = t->x[row + r];
#pragma GCC unroll 2
		for (uint32_t v = 0; v < V; v++)
			acc[r][v] = t->accumulate ? _mm512_maskz_loadu_ps(mask[v], y + 16 * v)
						  : _mm512_setzero_ps();
	}
	if (bf16) {
		const uint16_t *p = t->w;

		for (uint32_t k = 0; k < t->n_k; k++, p += PANEL, at += t->x_step) {
			__m512i pair = _mm512_loadu_si512(p);

			w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
			w[1] = _mm512_castsi512_ps(
				_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
#pragma GCC unroll 12
			for (uint32_t r = 0; r < R; r++) {
				__m512 b = _mm512_set1_ps(x[r][at]);

#pragma GCC unroll 2
				for (uint32_t v = 0; v < V; v++)
					acc[r][v] = _mm512_fmadd_ps(b, w[v], acc[r][v]);
			}
		}
	} else {
		const float *p = (const float *)t->w + col;

		for (uint32_t k = 0; k < t->n_k; k++, p += t->w_step, at += t->x_step) {
#pragma GCC unroll 2
			for (uint32_t v = 0; v < V; v++)
				w[v] = _mm512_loadu_ps(p + 16 * v);
#pragma GCC unroll 12
			for (uint32_t r = 0; r < R; r++) {
				__m512 b = _mm512_set1_ps(x[r][at]);

#pragma GCC unroll 2
				for (uint32_t v = 0; v < V; v++)
					acc[r][v] = _mm512_fmadd_ps(b, w[v], acc[r][v]);
			}
		}
	}
#pragma GCC unroll 12
	for (uint32_t r = 0; r < R; r++) {
		float *y = t->y[row + r] + t->y_col + col;

#pragma GCC unroll 2
		for (uint32_t v = 0; v < V; v++)
			_mm512_mask_storeu_ps(y + 16 * v, mask[v], acc[r][v]);
	}
}

ALWAYS void columns(const struct tile *t, uint32_t col, const bool bf16, const uint32_t V)
{
	uint32_t row = 0;

	for (; row + 12 <= t->n_rows; row += 12)
		block(t, row, col, bf16, 12, V);
	if (row + 8 <= t->n_rows) {
		block(t, row, col, bf16, 8, V);
		row += 8;
	}
	if (row + 4 <= t->n_rows) {
		block(t, row, col, bf16, 4, V);
		row += 4;
	}
	switch (t->n_rows - row) {
	case 3:
		block(t, row, col, bf16, 3, V);
		break;
	case 2:
		block(t, row, col, bf16, 2, V);
		break;
	case 1:
		block(t, row, col, bf16, 1, V);
		break;
	}
}

void linear_tile_f32_avx512(const struct tile *t)
{
	uint32_t col = 0;

	for (; col + 16 < t->n_cols; col += 32)
		columns(t, col, false, 2);
	if (col < t->n_cols)
		columns(t, col, false, 1);
}

void linear_tile_bf16_avx512(const struct tile *t)
{
	columns(t, 0, true, 2);
}
