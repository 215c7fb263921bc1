/* SPDX-License-Identifier: Apache-2.0 */
/* Quantised rows and weights, and the scalar reference of their products. */
#include "quant.h"

#include <math.h>

#include "cpu.h"

static float tile_element(const struct q_tile *t, bool q4, uint32_t r, uint32_t c, float sum)
{
	for (uint32_t g = 0; g < t->n_groups; g++) {
		const struct q_row *x = t->x[r] + t->first + g;
		const struct q4_group *w4 = (const struct q4_group *)t->w + g;
		const struct q8_group *w8 = (const struct q8_group *)t->w + g;
		int32_t dot = 0;

		for (uint32_t k = 0; k < Q_GROUP; k++)
			dot += ((int32_t)(q4 ? q4_at(w4, k, c) : q8_at(w8, k, c)) - 128) * x->a[k];
		sum = fmaf((float)dot, bf16_to_f32(q4 ? w4->d[c] : w8->d[c]) * x->d, sum);
	}
	return sum;
}

static void tile_scalar(const struct q_tile *t, bool q4)
{
	for (uint32_t r = 0; r < t->n_rows; r++)
		for (uint32_t c = 0; c < t->n_cols; c++) {
			float *y = &t->y[r][t->y_col + c];

			*y = tile_element(t, q4, r, c, t->accumulate ? *y : 0.0f);
		}
}

void quant_tile_q8_scalar(const struct q_tile *t)
{
	tile_scalar(t, false);
}

void quant_tile_q4_scalar(const struct q_tile *t)
{
	tile_scalar(t, true);
}
