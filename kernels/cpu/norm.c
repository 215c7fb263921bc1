/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that go row by row: RMS norm, residual addition. */
#include <assert.h>

#include "cpu.h"

struct row_job {
	struct cpu *c;
	struct k_buffer *y;
	const struct k_buffer *x;
	const struct k_weight *w;
	float eps;
};

static void rmsnorm_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct row_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->c->step.n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++)
		j->c->isa.rmsnorm(buffer_row(j->y, r), buffer_row(j->x, r),
				  (const float *)j->w->data, j->w->n_in, j->eps);
}

void cpu_rmsnorm(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		 const struct k_weight *w, float eps)
{
	struct row_job j = {cpu_of(k), y, x, w, eps};

	assert(w->panel == 1 && w->n_in <= x->width && w->n_in <= y->width);
	threads_run(j.c->threads, (uint64_t)j.c->step.n_rows * w->n_in, rmsnorm_part, &j);
}

static void add_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct row_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->c->step.n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++)
		j->c->isa.add(buffer_row(j->y, r), buffer_row(j->x, r), j->y->width);
}

void cpu_add(struct kernels *k, struct k_buffer *x, const struct k_buffer *y)
{
	struct row_job j = {.c = cpu_of(k), .y = x, .x = y};

	assert(x->width == y->width);
	threads_run(j.c->threads, (uint64_t)j.c->step.n_rows * x->width, add_part, &j);
}
