#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Quantised weights and rows: what their bytes mean. One layout for every instruction set.
 *
 * A panel of PANEL columns is groups of Q_GROUP numbers of K, ascending; columns past n_out and numbers
 * past n_in are zero. Lines of 64 bytes hold four numbers of K of sixteen columns, the two halves of
 * the columns take turns, so that a reader walks strictly upwards: two streams half a panel apart
 * get half the memory bandwidth.
 *
 *   q8: w = d * (u - 128)               u 1..255                           8.125 bits a number
 *   q4: w = d * (q * s + o - 128)       q 0..15, s 1..15, o + 15 s <= 255   4.5 bits a number
 *
 * d is one bf16 of a column and group, s and o are of a column and Q_SUB numbers. q * s + o is a byte, so
 * an unpacked q4 group is a q8 one: whichever way an instruction set multiplies, it gets the same integer.
 *
 * A row of activations is groups too: a = round(x / d), d = max |x| / 127 in f32, whatever product
 * it goes into. A product's element is one chain over ascending groups,
 *
 *   y = fma((float)sum over the group of (w / d) * a, d of the column * d of the row, y)
 *
 * whose sums are exact integers below 2^24. So its bits depend on neither the batch, the tile, the
 * number of threads nor the instruction set. */
#include <stdbool.h>
#include <stdint.h>

#define Q_GROUP 128u /* of K: one d */
#define Q_SUB   32u  /* of K: one s and o */

struct q8_group {
	uint16_t d[32];       /* bf16, by column */
	uint8_t u[32][2][64]; /* [k / 4][column / 16][column % 16 * 4 + k % 4] */
};

struct q4_group {
	uint16_t d[32];       /* bf16, by column */
	uint16_t s[32];       /* by column; bits 4i .. 4i + 3 are s of numbers 32i .. 32i + 31 */
	uint8_t o[32][4];     /* by column and Q_SUB */
	uint8_t q[16][2][64]; /* as u[k / 8], k % 8 < 4 low and the others high in their byte */
};

_Static_assert(sizeof(struct q8_group) == 4160 && sizeof(struct q4_group) == 2304, "no padding");

/* Q_GROUP numbers of a row. A row with a number that is not finite has d NaN, and so has its product. */
struct q_row {
	int8_t a[Q_GROUP];
	int16_t sums
		[4]; /* of a by Q_SUB, in the order 0, 2, 1, 3: pairs for pmaddwd beside o's bytes */
	float d;
	uint32_t unused; /* rows stand an odd number of half-lines apart */
};

/* y[r][c] (+)= the product above, for one panel. */
struct q_tile {
	const struct q_row *const *x; /* [n_rows] */
	float *const *y;              /* [n_rows]; columns y_col .. y_col + n_cols are written */
	const void *w;                /* q8_group or q4_group of k = first * Q_GROUP */
	uint32_t first, n_groups;     /* of x */
	uint32_t n_rows, n_cols, y_col;
	bool accumulate; /* go on from what y holds */
};

static inline uint32_t q_groups(uint32_t n_in)
{
	return (n_in + Q_GROUP - 1) / Q_GROUP;
}
static inline uint32_t q8_at(const struct q8_group *w, uint32_t k, uint32_t c)
{
	return w->u[k / 4][c / 16][c % 16 * 4 + k % 4];
}
/* The byte of q8_at(), of a q4 group. */
static inline uint32_t q4_at(const struct q4_group *w, uint32_t k, uint32_t c)
{
	uint32_t byte = w->q[k / 8][c / 16][c % 16 * 4 + k % 4];
	uint32_t q = k % 8 < 4 ? byte & 15 : byte >> 4;

	return q * (w->s[c] >> k / Q_SUB * 4 & 15) + w->o[c][k / Q_SUB];
}

/* The products, in quant.c (the reference) and beside it. */
void quant_tile_q8_scalar(const struct q_tile *t);
void quant_tile_q4_scalar(const struct q_tile *t);
void quant_tile_q8_avx2(const struct q_tile *t);
void quant_tile_q4_avx2(const struct q_tile *t);
void quant_tile_q8_vnni(const struct q_tile *t);
void quant_tile_q4_vnni(const struct q_tile *t);
