#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the two quantised products in AVX2 have in common: how a tile goes by. Included by exactly
 * quant_q4_avx2.c and quant_q8_avx2.c; everything is static to them. They say before what a GROUP is, the LINES in it,
 * how many are a RUN (memory is asked for as much ahead), and which struct scales, with a float d[16] in it, belongs to
 * sixteen columns of one.
 *
 * Rows go by in blocks of up to BLOCK_ROWS. Where there are several, a run of groups stays in L1 while they pass;
 * one alone reads the weight once, straight through. Weights are unpacked on the way: to keep them
 * unpacked for the blocks to come costs as much as it saves.
 *
 * A block by sixteen columns of a group is one loop in assembly: given intrinsics, gcc 12 and clang 14 send
 * the accumulators through memory, at a third of the speed. The loop is short, for unrolled over the group it
 * is slower by a fifth: its instructions, decoded, no longer stay in their cache. */
#include <immintrin.h>
#include <stddef.h>

#include "cpu.h"
#include "quant.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK_ROWS 4u

/* Sums of a block by sixteen columns, over the groups so far and of one group. */
struct sums {
	float f[BLOCK_ROWS][16];
	int32_t i[BLOCK_ROWS][16];
};
_Static_assert(offsetof(struct sums, i) == 256 && sizeof(struct sums) == 512 &&
		       offsetof(struct q_row, a) == 0,
	       "the assembly says so");

/* Of both halves of a group, as multiply() wants them. */
ALWAYS void make_scales(struct scales ret[2], const GROUP *w);

/* sums->i = R rows by the lines at @w: one half's, whose scales and sums are here; one row or two by both
 * halves, whose scales and sums lie one behind the other. Asks for as many lines from @next on,
 * upwards like everything that reads memory. */
ALWAYS void multiply(struct sums *sums, const struct q_row *const *rows, const uint8_t *w,
		     const uint8_t *next, const struct scales *scales, const uint32_t R);

/* A sum is row @r by half @h of the columns, in the pair of accumulators @c: op(c, r, h, k) for all of them.
 * Rows by the half that is at hand, and one row or two by both. */
#define ROWS_3(op, k)     op(0, 0, 0, k) op(1, 1, 0, k) op(2, 2, 0, k)
#define ROWS_4(op, k)     ROWS_3(op, k) op(3, 3, 0, k)
#define ROW_LEFT(op, k)   op(0, 0, 0, k)
#define ROW_RIGHT(op, k)  op(1, 0, 1, k)
#define ROW(op, k)        ROW_LEFT(op, k) ROW_RIGHT(op, k)
#define PAIR_LEFT(op, k)  op(0, 0, 0, k) op(1, 1, 0, k)
#define PAIR_RIGHT(op, k) op(2, 0, 1, k) op(3, 1, 1, k)
#define PAIR(op, k)       PAIR_LEFT(op, k) PAIR_RIGHT(op, k)

/* For a line of what comes next. */
#define ASK(i) "prefetcht0 64*" #i "(%[next])\n\t"

/* The accumulators go to sums->i. */
#define STORE(c, r, h, k)                                                                          \
	"vmovdqa %[c" #c "0], 512*" #h "+256+64*" #r "(%[sums])\n\t"                               \
	"vmovdqa %[c" #c "1], 512*" #h "+288+64*" #r "(%[sums])\n\t"

/* Groups [first, first + n) of the tile. The first block makes the scales as it goes, for itself and the
 * others; one block alone may have more groups than there is room for. */
struct run {
	const struct q_tile *t;
	uint32_t first, n;
	const GROUP *w;             /* [n] */
	struct scales (*scales)[2]; /* [RUN] */
};

/* Half a row's sums come from y or go to it; the tile's last columns may be less than half. */
ALWAYS void sums_move(float *to, const float *from, uint32_t n_cols, uint32_t half)
{
	if (n_cols >= half * 16 + 16)
		__builtin_memcpy(to, from, 16 * sizeof(*to));
	else if (n_cols > half * 16)
		__builtin_memcpy(to, from, (n_cols - half * 16) * sizeof(*to));
}

/* The group's integers times both scales, onto the floats. */
ALWAYS void sums_scale(struct sums *sums, const struct q_row *const *rows, const float *d,
		       const uint32_t R)
{
#pragma GCC unroll 4
	for (uint32_t r = 0; r < R; r++)
#pragma GCC unroll 2
		for (uint32_t v = 0; v < 16; v += 8) {
			__m256i sum = _mm256_load_si256((const __m256i *)(sums->i[r] + v));
			__m256 scale = _mm256_mul_ps(_mm256_load_ps(d + v),
						     _mm256_broadcast_ss(&rows[r]->d));

			_mm256_store_ps(sums->f[r] + v,
					_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale,
							_mm256_load_ps(sums->f[r] + v)));
		}
}

ALWAYS void block(const struct run *run, uint32_t row, const uint32_t R)
{
	const struct q_tile *t = run->t;
	const struct q_row *rows[BLOCK_ROWS];
	struct sums sums[2] __attribute__((aligned(32)));

	for (uint32_t half = 0; half < 2; half++)
		for (uint32_t r = 0; r < R; r++)
			if (t->accumulate || run->first > 0)
				sums_move(sums[half].f[r], t->y[row + r] + t->y_col + half * 16,
					  t->n_cols, half);
			else
				__builtin_memset(sums[half].f[r], 0, sizeof(sums[half].f[r]));
	for (uint32_t r = 0; r < BLOCK_ROWS; r++)
		rows[r] = t->x[row + (r < R ? r : 0)] + t->first + run->first;
	for (uint32_t g = 0; g < run->n; g++) {
		const GROUP *w = &run->w[g], *next = row == 0 ? w + RUN : w;
		struct scales *scales = run->scales[g % RUN];

		for (uint32_t i = 0; row == 0 && i < offsetof(GROUP, LINES); i += LINE)
			_mm_prefetch((const char *)next + i, _MM_HINT_T0);
		if (row == 0)
			make_scales(scales, w);
		multiply(&sums[0], rows, w->LINES[0][0], next->LINES[0][0], &scales[0], R);
		if (R > 2)
			multiply(&sums[1], rows, w->LINES[0][1],
				 next->LINES[0][0] + sizeof(w->LINES) / 2, &scales[1], R);
		for (uint32_t half = 0; half < 2; half++)
			sums_scale(&sums[half], rows, scales[half].d, R);
		for (uint32_t r = 0; r < BLOCK_ROWS; r++)
			rows[r]++;
	}
	for (uint32_t half = 0; half < 2; half++)
		for (uint32_t r = 0; r < R; r++)
			sums_move(t->y[row + r] + t->y_col + half * 16, sums[half].f[r], t->n_cols,
				  half);
}

static void block_of(const struct run *run, uint32_t row, uint32_t n_rows)
{
	switch (n_rows) {
	case 4:
		block(run, row, 4);
		break;
	case 3:
		block(run, row, 3);
		break;
	case 2:
		block(run, row, 2);
		break;
	case 1:
		block(run, row, 1);
		break;
	}
}

/* @scales: room for RUN groups. */
ALWAYS void tile(const struct q_tile *t, struct scales (*scales)[2])
{
	uint32_t n_blocks = (t->n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
	uint32_t step = n_blocks > 1 ? RUN : t->n_groups;

	for (uint32_t g = 0; g < t->n_groups; g += step) {
		struct run run = {
			.t = t,
			.first = g,
			.n = t->n_groups - g < step ? t->n_groups - g : step,
			.w = (const GROUP *)t->w + g,
			.scales = scales,
		};

		for (uint32_t b = 0; b < n_blocks; b++) {
			uint32_t row = t->n_rows * b / n_blocks;

			block_of(&run, row, t->n_rows * (b + 1) / n_blocks - row);
		}
	}
}

ALWAYS __m256i load(const void *p)
{
	return _mm256_loadu_si256(p);
}

ALWAYS void store(void *p, __m256i x)
{
	_mm256_store_si256(p, x);
}

/* Eight u16 as dwords. */
ALWAYS __m256i widen(const uint16_t *p)
{
	return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}

/* Eight bf16 as f32. */
ALWAYS __m256i floats(const uint16_t *p)
{
	return _mm256_slli_epi32(widen(p), 16);
}
