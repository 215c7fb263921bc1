/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of int8 rows: the scalar reference, and the forms of the queries. */
#include <math.h>
#include <string.h>

#include "cpu.h"

void mla_queries_int8_pairs(void *ret, const struct q_row *x, uint32_t rank)
{
	uint32_t n_groups = cpu_entry_groups(rank), *q = ret;

	for (uint32_t i = 0; i < rank; i += 2)
		for (uint32_t h = 0; h < MLA_HEADS; h++) {
			const int8_t *a = x[h * n_groups + i / Q_GROUP].a + i % Q_GROUP;

			*q++ = (uint16_t)a[0] | (uint32_t)(uint16_t)a[1] << 16;
		}
}

void mla_queries_int8_fours(void *ret, const struct q_row *x, uint32_t rank)
{
	uint32_t n_groups = cpu_entry_groups(rank), *q = ret;

	for (uint32_t i = 0; i < rank; i += 4)
		for (uint32_t h = 0; h < MLA_HEADS; h++) {
			memcpy(q, x[h * n_groups + i / Q_GROUP].a + i % Q_GROUP, sizeof(*q));
			*q++ ^= 0x80808080;
		}
}

static int32_t low(uint32_t pair)
{
	return (int16_t)(uint16_t)pair;
}

static int32_t high(uint32_t pair)
{
	return (int16_t)(uint16_t)(pair >> 16);
}

static float score(const struct mla_tile_int8 *t, uint32_t p, uint32_t h)
{
	const int8_t *c = (const int8_t *)t->rows + p * t->row_bytes;
	const uint32_t *q = t->q;
	float s = 0.0f;

	for (uint32_t i = 0; i < t->rank; i += K_ENTRY_GROUP) {
		uint32_t n = cpu_entry_group(t->rank, i), g = i / K_ENTRY_GROUP;
		int32_t sum = 0;

		for (uint32_t j = i; j < i + n; j += 2) {
			uint32_t pair = q[j / 2 * MLA_HEADS + h];

			sum += low(pair) * c[j] + high(pair) * c[j + 1];
		}
		s = fmaf((float)sum, t->q_d[g * MLA_HEADS + h] * mla_row_d(t, p, g), s);
	}
	return s;
}

void mla_scores_int8_scalar(const struct mla_tile_int8 *t)
{
	for (uint32_t p = 0; p < t->n_pos; p++)
		for (uint32_t h = 0; h < MLA_HEADS; h++)
			t->s[p * MLA_HEADS + h] = score(t, p, h);
}

void mla_values_int8_scalar(const struct mla_tile_int8 *t)
{
	for (uint32_t h = 0; h < t->n_heads; h++)
		for (uint32_t col = 0; col < t->rank; col++) {
			uint32_t g = col / K_ENTRY_GROUP;
			float *acc = t->acc + h * t->acc_step + col;
			int32_t sum = 0;

			for (uint32_t p = 0; p < t->n_pos; p++)
				sum += (int32_t)(t->w[g][p / 4][h] >> p % 4 * 8 & 0xff) *
				       (int8_t)t->rows[p * t->row_bytes + col];
			*acc = fmaf(*acc, t->correction[h], (float)sum * t->w_d[g][h]);
		}
}
