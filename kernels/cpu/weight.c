/* SPDX-License-Identifier: Apache-2.0 */
/* Packing: rows of a published matrix into panels (cpu.h draws them), and one row back out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

#define WIDTH_MAX (1u << 27) /* of n_in and n_out: far past any model, far below overflow */

static int weight_shape(struct k_weight *w, const struct k_source *src)
{
	uint64_t panels, cells, rows;

	if (src->n_mat == 0 || src->n_out == 0 || src->n_in == 0)
		return -EINVAL;
	if (src->n_out > WIDTH_MAX || src->n_in > WIDTH_MAX || src->type >= _K_TYPE_MAX)
		return -EINVAL;
	if (__builtin_mul_overflow((uint64_t)src->n_mat, src->n_out, &rows) || rows > UINT32_MAX)
		return -EINVAL;
	*w = (struct k_weight){
		.n_mat = src->n_mat,
		.n_out = src->n_out,
		.n_in = src->n_in,
		.panel = src->n_out == 1 ? 1 : PANEL,
		.type = src->type,
	};
	panels = weight_n_panels(w);
	cells = (uint64_t)w->n_in * w->panel;
	w->panel_bytes = cells * (w->panel > 1 && w->type == K_BF16 ? 2 : 4);
	w->panel_bytes = (w->panel_bytes + LINE - 1) / LINE * LINE;
	if (__builtin_mul_overflow(panels, w->panel_bytes, &w->matrix_bytes) ||
	    __builtin_mul_overflow(w->matrix_bytes, (uint64_t)w->n_mat, &w->bytes))
		return -EINVAL;
	return 0;
}

static void weight_put_row(struct k_weight *w, uint32_t mat, uint32_t row, const float *x)
{
	uint8_t *panel = (uint8_t *)weight_panel(w, mat, row / w->panel);
	uint32_t c = row % w->panel;

	if (w->panel == 1) {
		for (uint32_t k = 0; k < w->n_in; k++)
			((float *)panel)[k] =
				w->type == K_BF16 ? bf16_to_f32(bf16_from_f32(x[k])) : x[k];
	} else if (w->type == K_BF16) {
		uint16_t *p = (uint16_t *)panel + 2 * (c % 16) + c / 16;

		for (uint32_t k = 0; k < w->n_in; k++)
			p[(size_t)k * PANEL] = bf16_from_f32(x[k]);
	} else {
		for (uint32_t k = 0; k < w->n_in; k++)
			((float *)panel)[(size_t)k * PANEL + c] = x[k];
	}
}

static void weight_get_row(const struct k_weight *w, uint32_t row, float *ret)
{
	const uint8_t *panel = weight_panel(w, 0, row / w->panel);
	uint32_t c = row % w->panel;

	if (w->panel == 1) {
		memcpy(ret, panel, w->n_in * sizeof(float));
	} else if (w->type == K_BF16) {
		const uint16_t *p = (const uint16_t *)panel + 2 * (c % 16) + c / 16;

		for (uint32_t k = 0; k < w->n_in; k++)
			ret[k] = bf16_to_f32(p[(size_t)k * PANEL]);
	} else {
		for (uint32_t k = 0; k < w->n_in; k++)
			ret[k] = ((const float *)panel)[(size_t)k * PANEL + c];
	}
}

int cpu_weight_pack(struct kernels *k, struct k_weight **ret, const struct k_source *src)
{
	struct k_weight *w;
	float *row;
	int r;

	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	r = weight_shape(w, src);
	if (r < 0) {
		free(w);
		return r;
	}
	row = calloc(w->n_in, sizeof(*row));
	w->data = cpu_alloc(w->bytes);
	r = row && w->data ? 0 : -ENOMEM;
	for (uint32_t i = 0; r >= 0 && i < w->n_mat * w->n_out; i++) {
		r = src->read_row(src->ctx, i, row);
		if (r >= 0)
			weight_put_row(w, i / w->n_out, i % w->n_out, row);
	}
	free(row);
	if (r < 0) {
		cpu_weight_free(k, w);
		return r;
	}
	*ret = w;
	return 0;
}

void cpu_weight_free(struct kernels *k, struct k_weight *w)
{
	(void)k;
	if (!w)
		return;
	free(w->data);
	free(w);
}

uint64_t cpu_weight_bytes(const struct k_weight *w)
{
	return w->bytes;
}

struct embed_job {
	struct cpu *c;
	struct k_buffer *x;
	const struct k_weight *table;
};

static void embed_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct embed_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->c->step.n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++)
		weight_get_row(j->table, j->c->step.ids[r], buffer_row(j->x, r));
}

void cpu_embed(struct kernels *k, struct k_buffer *x, const struct k_weight *table)
{
	struct cpu *c = cpu_of(k);
	struct embed_job j = {c, x, table};

	for (uint32_t r = 0; r < c->step.n_rows; r++)
		if (c->step.ids[r] >= table->n_out) {
			c->failed = -EINVAL;
			return;
		}
	threads_run(c->threads, embed_part, &j);
}
