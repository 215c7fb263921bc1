/* SPDX-License-Identifier: Apache-2.0 */
/* y = x W^T: the operation, and the scalar reference of the product it is made of.
 *
 * Threads share out panels of output columns; K is never split. So an element is one chain of fused
 * multiply-adds over ascending K for one row as for many, on one thread as on many. */
#include <assert.h>
#include <math.h>

#include "cpu.h"

static float panel_column(const struct tile *t, bool bf16, uint32_t k, uint32_t c)
{
	const uint16_t *w = t->w;

	if (!bf16)
		return ((const float *)t->w)[k * t->w_step + c];
	return bf16_to_f32(w[(size_t)k * PANEL + 2 * (c % 16) + c / 16]);
}

static void tile_scalar(const struct tile *t, bool bf16)
{
	for (uint32_t r = 0; r < t->n_rows; r++)
		for (uint32_t c = 0; c < t->n_cols; c++) {
			float *y = &t->y[r][t->y_col + c];
			float sum = t->accumulate ? *y : 0.0f;

			for (uint32_t k = 0; k < t->n_k; k++)
				sum = fmaf(t->x[r][k * t->x_step], panel_column(t, bf16, k, c),
					   sum);
			*y = sum;
		}
}

void linear_tile_f32_scalar(const struct tile *t)
{
	tile_scalar(t, false);
}

void linear_tile_bf16_scalar(const struct tile *t)
{
	tile_scalar(t, true);
}

void cpu_panel(const struct cpu_isa *isa, const struct k_weight *w, uint32_t mat, uint32_t panel,
	       struct tile *t)
{
	uint32_t col = panel * w->panel, left = w->n_out - col;

	t->w = weight_panel(w, mat, panel);
	t->w_step = PANEL;
	t->n_cols = left < w->panel ? left : w->panel;
	t->n_k = w->n_in;
	t->y_col = col;
	if (w->panel == 1) { /* a row in f32: nothing lies beside it that a wide load could read */
		t->w_step = 1;
		linear_tile_f32_scalar(t);
	} else if (w->type == K_BF16) {
		isa->tile_bf16(t);
	} else {
		isa->tile_f32(t);
	}
}

struct linear_job {
	struct cpu *c;
	float *const *y;
	const float *const *x;
	uint32_t n_rows;
	const struct k_weight *w;
};

static void linear_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct linear_job *j = ctx;
	uint32_t begin, end;

	threads_share(weight_n_panels(j->w), thread, n_threads, &begin, &end);
	for (uint32_t p = begin; p < end; p++) {
		struct tile t = {.x = j->x, .y = j->y, .x_step = 1, .n_rows = j->n_rows};

		cpu_panel(&j->c->isa, j->w, 0, p, &t);
	}
}

void cpu_linear(struct cpu *c, float *const *y, const float *const *x, uint32_t n_rows,
		const struct k_weight *w)
{
	struct linear_job j = {c, y, x, n_rows, w};

	threads_run(c->threads, linear_part, &j);
}

void cpu_linear_op(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		   const struct k_weight *w)
{
	struct cpu *c = cpu_of(k);
	uint32_t n_rows = c->step.n_rows;
	const float **xs;
	float **ys;

	assert(w->n_mat == 1 && w->n_in <= x->width && w->n_out <= y->width);
	assert(n_rows <= x->max_rows && n_rows <= y->max_rows && x->data != y->data);
	xs = cpu_scratch(c, SCRATCH_ROWS, 2 * (uint64_t)n_rows * sizeof(*xs));
	if (!xs)
		return;
	ys = (float **)(xs + n_rows);
	for (uint32_t r = 0; r < n_rows; r++) {
		xs[r] = buffer_row(x, r);
		ys[r] = buffer_row(y, r);
	}
	cpu_linear(c, ys, xs, n_rows, w);
}
