/* SPDX-License-Identifier: Apache-2.0 */
/* y = x W^T: the operation, and the scalar reference of the product it is made of.
 *
 * Threads share out panels of output columns; K is never split. So an element is one chain of fused
 * multiply-adds over ascending K for one row as for many, on one thread as on many. Where the weight
 * is quantised (quant.h), the rows are quantised first, once. */
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
				sum = fmaf(t->x[r][t->x_first + k * t->x_step],
					   panel_column(t, bf16, k, c), sum);
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

/* With many rows K goes by in runs: the piece of a panel stays in L1 while the rows pass, and the rows'
 * pieces of x in L2 while a few panels pass. Between runs an element waits in y, which loses
 * nothing. Fewer rows read each panel straight through. */
#define RUN_ROWS        4u
#define RUN_K           256u
#define RUN_PANELS      4u
#define RUN_PANELS_ROWS 32u /* from so many rows on; fewer wait for memory, and read it upwards */

static void panel_run(const struct cpu_isa *isa, const struct k_weight *w, const uint8_t *data,
		      uint32_t col, uint32_t first, uint32_t n, struct tile *t)
{
	uint32_t left = w->n_out - col;

	t->x_first = first;
	t->n_k = n;
	t->w_step = PANEL;
	t->n_cols = left < PANEL ? left : PANEL;
	t->y_col = col;
	t->accumulate = first > 0;
	if (w->type == K_BF16) {
		t->w = (const uint16_t *)data + (size_t)first * PANEL;
		isa->tile_bf16(t);
	} else {
		t->w = (const float *)data + (size_t)first * PANEL;
		isa->tile_f32(t);
	}
}

/* The one row of a norm or the like, in f32: nothing lies beside it that a wide load could read. */
static void single_row(const struct k_weight *w, uint32_t mat, struct tile *t)
{
	t->w = weight_panel(w, mat, 0);
	t->w_step = 1;
	t->n_cols = 1;
	t->n_k = w->n_in;
	linear_tile_f32_scalar(t);
}

static void quantised_product(const struct cpu_isa *isa, float *const *y,
			      const struct q_row *const *x, uint32_t n_rows,
			      const struct k_weight *w, uint32_t mat, uint32_t first, uint32_t end)
{
	struct q_tile t = {.x = x, .y = y, .n_groups = q_groups(w->n_in), .n_rows = n_rows};

	for (; first < end; first++) {
		uint32_t left = w->n_out - first * PANEL;

		t.w = weight_panel(w, mat, first);
		t.y_col = first * PANEL;
		t.n_cols = left < PANEL ? left : PANEL;
		if (w->type == K_Q8)
			isa->tile_q8(&t);
		else
			isa->tile_q4(&t);
	}
}

void cpu_product(const struct cpu_isa *isa, float *const *y, struct operand x, uint32_t n_rows,
		 const struct k_weight *w, uint32_t mat, uint32_t first, uint32_t end)
{
	struct tile t = {.x = x.x, .y = y, .x_step = 1, .n_rows = n_rows};
	uint32_t run = n_rows < RUN_ROWS ? w->n_in : RUN_K;
	uint32_t group = n_rows < RUN_PANELS_ROWS ? 1 : RUN_PANELS;

	if (w->panel == 1) {
		if (first < end)
			single_row(w, mat, &t);
		return;
	}
	if (weight_is_quantised(w)) {
		quantised_product(isa, y, x.q, n_rows, w, mat, first, end);
		return;
	}
	for (; first < end; first += group) {
		uint32_t stop = end - first < group ? end : first + group;

		for (uint32_t k = 0; k < w->n_in; k += run)
			for (uint32_t p = first; p < stop; p++)
				panel_run(isa, w, weight_panel(w, mat, p), p * PANEL, k,
					  w->n_in - k < run ? w->n_in - k : run, &t);
	}
}

struct q_row **cpu_quantised_rows(struct cpu *c, uint32_t n, uint32_t n_in)
{
	uint64_t groups = q_groups(n_in);
	struct q_row *data = cpu_scratch(c, SCRATCH_QUANTISED, n * groups * sizeof(*data));
	struct q_row **rows = cpu_scratch(c, SCRATCH_QUANTISED_ROWS, n * sizeof(*rows));

	if (!data || !rows)
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		rows[i] = data + i * groups;
	return rows;
}

struct quantise_job {
	struct cpu *c;
	struct q_row **y;
	const float *const *x;
	uint32_t n_rows, n_in;
};

static void quantise_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct quantise_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++)
		j->c->isa.quantise(j->y[r], j->x[r], j->n_in);
}

bool cpu_operand(struct cpu *c, struct operand *ret, const float *const *x, uint32_t n_rows,
		 const struct k_weight *w)
{
	struct quantise_job j = {.c = c, .x = x, .n_rows = n_rows, .n_in = w->n_in};

	*ret = (struct operand){.x = x};
	if (!weight_is_quantised(w))
		return true;
	j.y = cpu_quantised_rows(c, n_rows, w->n_in);
	if (!j.y)
		return false;
	threads_run(c->threads, (uint64_t)n_rows * w->n_in * 16, quantise_part, &j);
	ret->q = (const struct q_row *const *)j.y;
	return true;
}

struct linear_job {
	struct cpu *c;
	float *const *y;
	struct operand x;
	uint32_t n_rows;
	const struct k_weight *w;
};

static void linear_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct linear_job *j = ctx;
	uint32_t begin, end;

	(void)thread;
	(void)n_threads;
	while (threads_take(j->c->threads, weight_n_panels(j->w), PANELS_MIN, &begin, &end))
		cpu_product(&j->c->isa, j->y, j->x, j->n_rows, j->w, 0, begin, end);
}

void cpu_linear(struct cpu *c, float *const *y, const float *const *x, uint32_t n_rows,
		const struct k_weight *w)
{
	struct linear_job j = {.c = c, .y = y, .n_rows = n_rows, .w = w};

	if (cpu_operand(c, &j.x, x, n_rows, w))
		threads_run(c->threads, weight_work(w, n_rows), linear_part, &j);
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
