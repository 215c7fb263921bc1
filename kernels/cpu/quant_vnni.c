/* SPDX-License-Identifier: Apache-2.0 */
/* The quantised products in AVX-512 with VNNI: up to eight rows by a panel, 16 accumulators.
 *
 * VPDPBUSD takes the weight as its unsigned side and adds in 32 bits without saturation; the 128 that
 * every byte has too much is where the accumulators start from, -128 times the sum of the row's group.
 * q4 is made into the bytes of q8 first: of one run of K that then stays in L1, or on the way where
 * rows are few. */
#ifndef K_EMULATE_AVX512 /* a test puts its own intrinsics before */
#include <immintrin.h>
#endif

#include "cpu.h"
#include "quant.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK_ROWS 8u
#define FLY_ROWS   16u /* up to so many unpacking twice is cheaper than going through memory */
#define RUN        4u  /* groups: 16 KB of bytes */

struct sums {
	float f[BLOCK_ROWS][PANEL] __attribute__((aligned(64)));
};

/* gcc 12 and clang 14 move and spill the accumulators around the intrinsic. */
ALWAYS void dot(__m512i *sum, __m512i u, __m512i s)
{
#ifdef K_EMULATE_AVX512
	*sum = _mm512_dpbusd_epi32(*sum, u, s);
#else
	__asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(s));
#endif
}

ALWAYS void step(__m512i c[][2], __m512i w0, __m512i w1, const struct q_row *const x[], uint32_t k,
		 const uint32_t R)
{
#pragma GCC unroll 8
	for (uint32_t r = 0; r < R; r++) {
		int32_t four;
		__m512i a;

		__builtin_memcpy(&four, x[r]->a + 4 * k, sizeof(four));
		a = _mm512_set1_epi32(four);
		dot(&c[r][0], w0, a);
		dot(&c[r][1], w1, a);
	}
}

/* @next: lines wanted after this, one for every two dwords; NULL: none. */
ALWAYS void group_bytes(__m512i c[][2], const uint8_t (*u)[2][64], const struct q_row *const x[],
			const uint8_t *next, const uint32_t R)
{
#pragma GCC unroll 2
	for (uint32_t k = 0; k < Q_GROUP / 4; k++) {
		if (next && k % 2 == 0)
			__builtin_prefetch(next + k * 32);
		step(c, _mm512_loadu_si512(u[k][0]), _mm512_loadu_si512(u[k][1]), x, k, R);
	}
}

/* s of sixteen columns in both halves of their dword, o in its four bytes. */
struct sub_scale {
	__m512i s, o;
};

ALWAYS struct sub_scale sub_scale(const struct q4_group *w, uint32_t half, uint32_t sub)
{
	const __m512i first = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
	__m512i s = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(w->s + half * 16)));

	s = _mm512_or_si512(s, _mm512_slli_epi32(s, 16));
	s = _mm512_srl_epi16(s, _mm_cvtsi32_si128((int)sub * 4));
	return (struct sub_scale){
		.s = _mm512_and_si512(s, _mm512_set1_epi16(15)),
		.o = _mm512_shuffle_epi8(_mm512_loadu_si512(w->o[half * 16]),
					 _mm512_add_epi8(first, _mm512_set1_epi8((char)sub))),
	};
}

/* q s + o: 15 * 15 + 30 and the like, the products of both bytes of a word at once. */
ALWAYS __m512i bytes_of(__m512i q, struct sub_scale t)
{
	q = _mm512_and_si512(q, _mm512_set1_epi8(15));
	return _mm512_add_epi8(_mm512_mullo_epi16(q, t.s), t.o);
}

ALWAYS void group_nibbles(__m512i c[][2], const struct q4_group *w, const struct q_row *const x[],
			  const uint32_t R)
{
#pragma GCC unroll 1
	for (uint32_t sub = 0; sub < Q_GROUP / Q_SUB; sub++) {
		struct sub_scale a = sub_scale(w, 0, sub), b = sub_scale(w, 1, sub);

#pragma GCC unroll 2
		for (uint32_t t = sub * 4; t < sub * 4 + 4; t++) {
			__m512i q0 = _mm512_loadu_si512(w->q[t][0]);
			__m512i q1 = _mm512_loadu_si512(w->q[t][1]);

			step(c, bytes_of(q0, a), bytes_of(q1, b), x, 2 * t, R);
			step(c, bytes_of(_mm512_srli_epi16(q0, 4), a),
			     bytes_of(_mm512_srli_epi16(q1, 4), b), x, 2 * t + 1, R);
		}
	}
}

static void unpack(uint8_t (*u)[2][64], const struct q4_group *w)
{
	for (uint32_t sub = 0; sub < Q_GROUP / Q_SUB; sub++)
		for (uint32_t half = 0; half < 2; half++) {
			struct sub_scale a = sub_scale(w, half, sub);

			for (uint32_t t = sub * 4; t < sub * 4 + 4; t++) {
				__m512i q = _mm512_loadu_si512(w->q[t][half]);

				_mm512_storeu_si512(u[2 * t][half], bytes_of(q, a));
				_mm512_storeu_si512(u[2 * t + 1][half],
						    bytes_of(_mm512_srli_epi16(q, 4), a));
			}
		}
}

ALWAYS void add_scaled(float *f, __m512i sum, const uint16_t *d, float row_d)
{
	__m512i bits = _mm512_slli_epi32(
		_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)d)), 16);
	__m512 scale = _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(row_d));

	_mm512_storeu_ps(f, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_loadu_ps(f)));
}

/* Where the bytes of a run are, and what follows it. */
struct source {
	uint32_t first, n;             /* groups of the tile */
	const uint8_t (*bytes)[2][64]; /* q4: unpacked, or NULL */
	const uint8_t *next;           /* packed bytes of the run after it, or NULL */
	size_t n_next;
};

ALWAYS void rows_run(const struct q_tile *t, uint32_t row, const struct source *s, const bool q4,
		     const uint32_t R)
{
	size_t at =
		(size_t)row / BLOCK_ROWS * s->n * 16 * 64; /* lines that rows before asked for */
	struct sums f;

	for (uint32_t r = 0; r < R; r++) {
		const float *y = t->y[row + r] + t->y_col;

		if (t->accumulate || s->first > 0)
			__builtin_memcpy(f.f[r], y, t->n_cols * sizeof(*y));
		else
			__builtin_memset(f.f[r], 0, sizeof(f.f[r]));
	}
	for (uint32_t i = 0; i < s->n; i++, at += 16 * 64) {
		const struct q4_group *w4 = (const struct q4_group *)t->w + s->first + i;
		const struct q8_group *w8 = (const struct q8_group *)t->w + s->first + i;
		const uint16_t *d = q4 ? w4->d : w8->d;
		const struct q_row *x[BLOCK_ROWS];
		__m512i c[BLOCK_ROWS][2];

#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			const int16_t *sums;

			x[r] = t->x[row + r] + t->first + s->first + i;
			sums = x[r]->sums;
			c[r][0] = c[r][1] =
				_mm512_set1_epi32(-128 * (sums[0] + sums[1] + sums[2] + sums[3]));
		}
		if (q4 && !s->bytes)
			group_nibbles(c, w4, x, R);
		else
			group_bytes(c, q4 ? s->bytes + i * 32 : w8->u, x,
				    s->next && at + 16 * 64 <= s->n_next ? s->next + at : NULL, R);
#pragma GCC unroll 8
		for (uint32_t r = 0; r < R; r++) {
			add_scaled(f.f[r], c[r][0], d, x[r]->d);
			add_scaled(f.f[r] + 16, c[r][1], d + 16, x[r]->d);
		}
	}
	for (uint32_t r = 0; r < R; r++)
		__builtin_memcpy(t->y[row + r] + t->y_col, f.f[r], t->n_cols * sizeof(float));
}

ALWAYS void all_rows(const struct q_tile *t, const struct source *s, const bool q4)
{
	uint32_t row = 0;

	for (; row + 8 <= t->n_rows; row += 8)
		rows_run(t, row, s, q4, 8);
	switch (t->n_rows - row) {
	case 7:
		rows_run(t, row, s, q4, 7);
		break;
	case 6:
		rows_run(t, row, s, q4, 6);
		break;
	case 5:
		rows_run(t, row, s, q4, 5);
		break;
	case 4:
		rows_run(t, row, s, q4, 4);
		break;
	case 3:
		rows_run(t, row, s, q4, 3);
		break;
	case 2:
		rows_run(t, row, s, q4, 2);
		break;
	case 1:
		rows_run(t, row, s, q4, 1);
		break;
	}
}

void quant_tile_q4_vnni(const struct q_tile *t)
{
	const struct q4_group *w = t->w;
	uint8_t bytes[RUN * 32][2][64] __attribute__((aligned(64)));
	struct source s = {.n = t->n_groups};

	if (t->n_rows <= FLY_ROWS) {
		all_rows(t, &s, true);
		return;
	}
	s.bytes = (const uint8_t(*)[2][64])bytes;
	for (; s.first < t->n_groups; s.first += RUN) {
		uint32_t left = t->n_groups - s.first;

		s.n = left < RUN ? left : RUN;
		s.next = left > RUN ? (const uint8_t *)(w + s.first + RUN) : NULL;
		s.n_next = (left > 2 * RUN ? RUN : left > RUN ? left - RUN : 0) * sizeof(*w);
		for (uint32_t i = 0; i < s.n; i++)
			unpack(bytes + i * 32, w + s.first + i);
		all_rows(t, &s, true);
	}
}

void quant_tile_q8_vnni(const struct q_tile *t)
{
	uint32_t run = t->n_rows <= FLY_ROWS ? t->n_groups : RUN;
	struct source s = {.n = t->n_groups};

	for (; s.first < t->n_groups; s.first += run) {
		s.n = t->n_groups - s.first < run ? t->n_groups - s.first : run;
		all_rows(t, &s, false);
	}
}
