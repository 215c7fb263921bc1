/* SPDX-License-Identifier: Apache-2.0 */
/* The products of linear.c in AVX2: up to three rows by 32 columns (few rows: one pass over the
 * weight, which is what decoding waits for), or up to six rows by 16 (many: twelve accumulators, the
 * most that sixteen registers hold beside two of weights and one broadcast).
 *
 * A block has V vectors of eight columns. In f32 vector v starts at column 8v of the block; in bf16
 * two vectors come out of one load, eight columns apart from eight others (cpu.h), so vector v starts
 * at first_column(). */
#include <immintrin.h>

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS uint32_t first_column(bool bf16, uint32_t v)
{
	return bf16 ? v % 2 * 16 + v / 2 * 8 : v * 8;
}

/* Eight columns of y, of which @n exist. */
ALWAYS __m256 load_columns(const float *y, uint32_t n)
{
	float f[8] = {0};

	if (n >= 8)
		return _mm256_loadu_ps(y);
	for (uint32_t i = 0; i < n; i++)
		f[i] = y[i];
	return _mm256_loadu_ps(f);
}

ALWAYS void store_columns(float *y, __m256 x, uint32_t n)
{
	float f[8];

	if (n >= 8) {
		_mm256_storeu_ps(y, x);
		return;
	}
	_mm256_storeu_ps(f, x);
	for (uint32_t i = 0; i < n; i++)
		y[i] = f[i];
}

ALWAYS uint32_t columns_left(uint32_t n_cols, uint32_t col)
{
	return n_cols > col ? n_cols - col : 0;
}

#define AHEAD 16u /* rows of K */

/* R rows from @row on by V vectors from column @col on (bf16: V = 4, or one pair at col 0 or 8). */
ALWAYS void block(const struct tile *t, uint32_t row, uint32_t col, const bool bf16,
		  const uint32_t R, const uint32_t V)
{
	size_t at = t->x_first;
	__m256 acc[6][4], w[4];
	const float *x[6];

#pragma GCC unroll 6
	for (uint32_t r = 0; r < R; r++) {
		x[r] = t->x[row + r];
#pragma GCC unroll 4
		for (uint32_t v = 0; v < V; v++) {
			uint32_t c = col + first_column(bf16, v);

			acc[r][v] = t->accumulate ? load_columns(t->y[row + r] + t->y_col + c,
								 columns_left(t->n_cols, c))
						  : _mm256_setzero_ps();
		}
	}
	if (bf16) {
		const uint16_t *p = (const uint16_t *)t->w + 2 * col;

		for (uint32_t k = 0; k < t->n_k; k++, p += PANEL, at += t->x_step) {
#pragma GCC unroll 2
			for (uint32_t v = 0; v < V; v += 2) {
				__m256i pair = _mm256_loadu_si256((const __m256i *)(p + v * 8));

				w[v] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
				w[v + 1] = _mm256_castsi256_ps(
					_mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000)));
			}
#pragma GCC unroll 6
			for (uint32_t r = 0; r < R; r++) {
				__m256 b = _mm256_broadcast_ss(x[r] + at);

#pragma GCC unroll 4
				for (uint32_t v = 0; v < V; v++)
					acc[r][v] = _mm256_fmadd_ps(b, w[v], acc[r][v]);
			}
		}
	} else {
		const float *p = (const float *)t->w + col;

		for (uint32_t k = 0; k < t->n_k; k++, p += t->w_step, at += t->x_step) {
			if (V == 2) { /* reads every other line: ask for both */
				_mm_prefetch((const char *)(p + AHEAD * t->w_step), _MM_HINT_T0);
				_mm_prefetch((const char *)(p + AHEAD * t->w_step + 16),
					     _MM_HINT_T0);
			}
#pragma GCC unroll 4
			for (uint32_t v = 0; v < V; v++)
				w[v] = _mm256_loadu_ps(p + v * 8);
#pragma GCC unroll 6
			for (uint32_t r = 0; r < R; r++) {
				__m256 b = _mm256_broadcast_ss(x[r] + at);

#pragma GCC unroll 4
				for (uint32_t v = 0; v < V; v++)
					acc[r][v] = _mm256_fmadd_ps(b, w[v], acc[r][v]);
			}
		}
	}
#pragma GCC unroll 6
	for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
		for (uint32_t v = 0; v < V; v++) {
			uint32_t c = col + first_column(bf16, v);

			store_columns(t->y[row + r] + t->y_col + c, acc[r][v],
				      columns_left(t->n_cols, c));
		}
	}
}

/* All rows by 16 columns: bf16 has its pairs at 0 and 8, f32 its vectors at 0 and 16. */
ALWAYS void narrow(const struct tile *t, uint32_t col, const bool bf16)
{
	uint32_t row = 0;

	for (; row + 6 <= t->n_rows; row += 6)
		block(t, row, col, bf16, 6, 2);
	switch (t->n_rows - row) {
	case 5:
		block(t, row, col, bf16, 5, 2);
		break;
	case 4:
		block(t, row, col, bf16, 4, 2);
		break;
	case 3:
		block(t, row, col, bf16, 3, 2);
		break;
	case 2:
		block(t, row, col, bf16, 2, 2);
		break;
	case 1:
		block(t, row, col, bf16, 1, 2);
		break;
	}
}

ALWAYS void wide(const struct tile *t, uint32_t col, const bool bf16)
{
	switch (t->n_rows) {
	case 1:
		block(t, 0, col, bf16, 1, 4);
		return;
	case 2:
		block(t, 0, col, bf16, 2, 4);
		return;
	case 3:
		block(t, 0, col, bf16, 3, 4);
		return;
	}
	narrow(t, col, bf16);
	narrow(t, col + (bf16 ? 8 : 16), bf16);
}

void linear_tile_f32_avx2(const struct tile *t)
{
	uint32_t col = 0;

	for (; col + 16 < t->n_cols; col += 32)
		wide(t, col, false);
	if (col < t->n_cols)
		narrow(t, col, false);
}

void linear_tile_bf16_avx2(const struct tile *t)
{
	wide(t, 0, true);
}
