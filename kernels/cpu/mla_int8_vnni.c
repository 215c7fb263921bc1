/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of int8 rows in AVX-512 with VNNI.
 *
 * VPDPBUSD has one unsigned side. In the scores it is the query, whose bytes are 128 too much, so that the cache's dwords
 * are operands where they lie; the accumulators start from -128 times the sum of the row's group. In the values
 * it is the weights, of four positions; the rows' bytes are made fours of positions first, few columns at a
 * time in L1. */
#ifndef K_EMULATE_AVX512 /* a test puts its own intrinsics before */
#include <immintrin.h>
#endif

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK   8u  /* positions, or heads */
#define COLUMNS 64u /* of the values at a time: 4 KB of fours */
#define AHEAD   48u /* bytes to ask for with every four numbers: 8 rows of V2 are 128 times 41 */

/* In assembly, or gcc 12 and clang 14 move the accumulators about. */
ALWAYS void dot(__m512i *sum, __m512i u, __m512i s)
{
#ifdef K_EMULATE_AVX512
	*sum = _mm512_dpbusd_epi32(*sum, u, s);
#else
	__asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(s));
#endif
}

/* The same by one dword of memory. */
ALWAYS void dot_four(__m512i *sum, __m512i u, const uint8_t *s)
{
#ifdef K_EMULATE_AVX512
	int32_t four;

	__builtin_memcpy(&four, s, sizeof(four));
	dot(sum, u, _mm512_set1_epi32(four));
#else
	struct bytes {
		uint8_t b[4];
	};

	__asm__("vpdpbusd %2%{1to16%}, %1, %0"
		: "+v"(*sum)
		: "v"(u), "m"(*(const struct bytes *)s));
#endif
}

/* As many as there are, up to 64, and zeros. */
ALWAYS __m512i bytes(const uint8_t *p, uint32_t n)
{
	return n >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((UINT64_C(1) << n) - 1, p);
}

/* --- scores --------------------------------------------------------------------------------------- */

/* -128 times the sum of @n numbers, up to K_ENTRY_GROUP. */
ALWAYS __m512i beginning(const uint8_t *c, uint32_t n)
{
	__m512i sum = _mm512_setzero_si512();

	for (uint32_t i = 0; i < n; i += 64)
		dot(&sum, _mm512_set1_epi8(1), bytes(c + i, n - i));
	return _mm512_set1_epi32(-128 * _mm512_reduce_add_epi32(sum));
}

/* R positions by all heads; @next will be read after it. */
ALWAYS void scores(const struct mla_tile_int8 *t, uint32_t first, const uint8_t *next,
		   const uint32_t R)
{
	const uint8_t *q = t->q, *c[BLOCK];
	__m512 s[BLOCK];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		c[r] = t->rows + (first + r) * t->row_bytes;
		s[r] = _mm512_setzero_ps();
	}
	for (uint32_t i = 0; i < t->rank; i += K_ENTRY_GROUP) {
		uint32_t n = cpu_entry_group(t->rank, i), g = i / K_ENTRY_GROUP;
		__m512 q_d = _mm512_loadu_ps(t->q_d + g * MLA_HEADS);
		__m512i sum[BLOCK];

#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++)
			sum[r] = beginning(c[r] + i, n);
		for (uint32_t j = i; j < i + n; j += 4, q += 64, next += AHEAD) {
			__m512i four = _mm512_loadu_si512(q);

			__builtin_prefetch(next);
#pragma GCC unroll 8
			for (uint32_t r = 0; r < R; r++)
				dot_four(&sum[r], four, c[r] + j);
		}
#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			__m512 d = _mm512_mul_ps(q_d, _mm512_set1_ps(mla_row_d(t, first + r, g)));

			s[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), d, s[r]);
		}
	}
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		_mm512_storeu_ps(t->s + (first + r) * MLA_HEADS, s[r]);
}

void mla_scores_int8_vnni(const struct mla_tile_int8 *t)
{
	uint32_t p = 0;

	for (; p + BLOCK < t->n_pos; p += BLOCK)
		scores(t, p, t->rows + (p + BLOCK) * t->row_bytes, BLOCK);
	if (p + BLOCK == t->n_pos) {
		scores(t, p, t->next, BLOCK);
		return;
	}
	for (; p + 4 <= t->n_pos; p += 4)
		scores(t, p, t->next, 4);
	for (; p < t->n_pos; p++)
		scores(t, p, t->next, 1);
}

/* --- values --------------------------------------------------------------------------------------- */

/* A dword for each of COLUMNS columns of four positions. */
struct fours {
	uint32_t rows[MLA_FOURS][COLUMNS] __attribute__((aligned(64)));
};

/* @n columns of four rows, and zeros. */
ALWAYS void four_rows(uint32_t *ret, const uint8_t *const row[4], uint32_t n)
{
	/* Dwords so that the unpacking, which keeps to 128 bits, leaves columns in order. */
	static const int32_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
	const __m512i to = _mm512_loadu_si512(order);
	__m512i a = _mm512_permutexvar_epi32(to, bytes(row[0], n));
	__m512i b = _mm512_permutexvar_epi32(to, bytes(row[1], n));
	__m512i c = _mm512_permutexvar_epi32(to, bytes(row[2], n));
	__m512i d = _mm512_permutexvar_epi32(to, bytes(row[3], n));
	__m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);

	_mm512_storeu_si512(ret, _mm512_unpacklo_epi16(ab, cd));
	_mm512_storeu_si512(ret + 16, _mm512_unpackhi_epi16(ab, cd));
	ab = _mm512_unpackhi_epi8(a, b);
	cd = _mm512_unpackhi_epi8(c, d);
	_mm512_storeu_si512(ret + 32, _mm512_unpacklo_epi16(ab, cd));
	_mm512_storeu_si512(ret + 48, _mm512_unpackhi_epi16(ab, cd));
}

/* Past the last position any will do, for it weighs 0. */
static void four_columns(const struct mla_tile_int8 *t, uint32_t col, uint32_t n, struct fours *f)
{
	const uint8_t *first = t->rows + col, *last = first + (t->n_pos - 1) * t->row_bytes;

	for (uint32_t i = 0; i < t->n_pos; i += 4) {
		const uint8_t *row[4];

		for (uint32_t j = 0; j < 4; j++) {
			row[j] = i + j < t->n_pos ? first + (i + j) * t->row_bytes : last;
			__builtin_prefetch(row[j] + COLUMNS);
		}
		four_rows(f->rows[i / 4], row, n);
	}
}

/* R heads by MLA_COLUMNS columns: those of @f from @from on. */
ALWAYS void values(const struct mla_tile_int8 *t, const struct fours *f, uint32_t head,
		   uint32_t col, uint32_t from, const uint32_t R)
{
	const uint32_t g = col / K_ENTRY_GROUP;
	__m512i sum[BLOCK][2];

#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++)
		sum[r][0] = sum[r][1] = _mm512_setzero_si512();
	for (uint32_t i = 0; i < (t->n_pos + 3) / 4; i++) {
		const uint32_t *w = t->w[g][i] + head;
		__m512i a = _mm512_loadu_si512(f->rows[i] + from);
		__m512i b = _mm512_loadu_si512(f->rows[i] + from + 16);

#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			__m512i x = _mm512_set1_epi32((int32_t)w[r]);

			dot(&sum[r][0], x, a);
			dot(&sum[r][1], x, b);
		}
	}
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		__m512 correction = _mm512_set1_ps(t->correction[head + r]);
		__m512 d = _mm512_set1_ps(t->w_d[g][head + r]);
		float *acc = t->acc + (head + r) * t->acc_step + col;

#pragma GCC unroll 2
		for (uint32_t i = 0; i < 2; i++, acc += 16)
			_mm512_storeu_ps(
				acc,
				_mm512_fmadd_ps(_mm512_loadu_ps(acc), correction,
						_mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][i]), d)));
	}
}

void mla_values_int8_vnni(const struct mla_tile_int8 *t)
{
	struct fours f;

	for (uint32_t col = 0; col < t->rank; col += MLA_COLUMNS) {
		uint32_t head = 0;

		if (col % COLUMNS == 0)
			four_columns(t, col, t->rank - col, &f);
		for (; head + BLOCK <= t->n_heads; head += BLOCK)
			values(t, &f, head, col, col % COLUMNS, BLOCK);
		for (; head + 4 <= t->n_heads; head += 4)
			values(t, &f, head, col, col % COLUMNS, 4);
		for (; head < t->n_heads; head++)
			values(t, &f, head, col, col % COLUMNS, 1);
	}
}
