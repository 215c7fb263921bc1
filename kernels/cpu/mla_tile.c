/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of bf16 rows: the scalar reference. */
#include <math.h>

#include "cpu.h"

static float high(uint32_t pair)
{
	return bf16_to_f32((uint16_t)(pair >> 16));
}

static float low(uint32_t pair)
{
	return bf16_to_f32((uint16_t)pair);
}

void mla_scores_bf16_scalar(const struct mla_tile *t)
{
	for (uint32_t p = 0; p < t->n_pos; p++)
		for (uint32_t h = 0; h < MLA_HEADS; h++) {
			float sum = t->s[p * MLA_HEADS + h];

			for (uint32_t i = 0; i < t->n_pairs; i++) {
				const uint16_t *k = t->rows + p * t->row_step + 2 * i;
				uint32_t q = t->q[i * MLA_HEADS + h];

				sum = fmaf(bf16_to_f32(k[1]), high(q), sum);
				sum = fmaf(bf16_to_f32(k[0]), low(q), sum);
			}
			t->s[p * MLA_HEADS + h] = sum;
		}
}

void mla_values_bf16_scalar(const struct mla_tile *t)
{
	for (uint32_t h = 0; h < t->n_heads; h++)
		for (uint32_t c = 0; c < t->n_cols; c++) {
			float *acc = t->acc + h * t->acc_step + c, sum = 0.0f;
			const float *w = t->s + h;

			for (uint32_t p = 0; p < t->n_pos; p += 2) {
				const uint16_t *v = t->rows + p * t->row_step + c;

				sum = fmaf(w[(p + 1) * MLA_HEADS], bf16_to_f32(v[t->row_step]),
					   sum);
				sum = fmaf(w[p * MLA_HEADS], bf16_to_f32(v[0]), sum);
			}
			*acc = fmaf(*acc, t->correction[h], sum);
		}
}
