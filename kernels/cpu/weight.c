/* SPDX-License-Identifier: Apache-2.0 */
/* Packing: rows of a published matrix into panels (cpu.h draws them), and one row back out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

#define WIDTH_MAX (1u << 27) /* of n_in and n_out: far past any model, far below overflow */

static uint64_t group_bytes(const struct k_weight *w)
{
	return w->type == K_Q8 ? sizeof(struct q8_group) : sizeof(struct q4_group);
}

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
	if (weight_is_quantised(w))
		w->panel_bytes = q_groups(w->n_in) * group_bytes(w);
	else
		w->panel_bytes = cells * (w->panel > 1 && w->type == K_BF16 ? 2 : 4);
	w->panel_bytes = (w->panel_bytes + LINE - 1) / LINE * LINE;
	if (__builtin_mul_overflow(panels, w->panel_bytes, &w->matrix_bytes) ||
	    __builtin_mul_overflow(w->matrix_bytes, (uint64_t)w->n_mat, &w->bytes))
		return -EINVAL;
	return 0;
}

int kernels_cpu_weight_bytes(const struct k_source *src, uint64_t *ret)
{
	struct k_weight w;
	int r = weight_shape(&w, src);

	if (r == 0)
		*ret = w.bytes;
	return r;
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

static void get_quantised_row(const struct k_weight *w, const uint8_t *panel, uint32_t c,
			      float *ret)
{
	for (uint32_t k = 0; k < w->n_in; k++) {
		const uint8_t *group = panel + k / Q_GROUP * group_bytes(w);
		const struct q8_group *w8 = (const void *)group;
		const struct q4_group *w4 = (const void *)group;
		bool q8 = w->type == K_Q8;
		uint32_t u = q8 ? q8_at(w8, k % Q_GROUP, c) : q4_at(w4, k % Q_GROUP, c);

		ret[k] = bf16_to_f32(q8 ? w8->d[c] : w4->d[c]) * (float)((int32_t)u - 128);
	}
}

static void weight_get_row(const struct k_weight *w, uint32_t row, float *ret)
{
	const uint8_t *panel = weight_panel(w, 0, row / w->panel);
	uint32_t c = row % w->panel;

	if (w->panel == 1) {
		memcpy(ret, panel, w->n_in * sizeof(float));
	} else if (weight_is_quantised(w)) {
		get_quantised_row(w, panel, c, ret);
	} else if (w->type == K_BF16) {
		const uint16_t *p = (const uint16_t *)panel + 2 * (c % 16) + c / 16;

		for (uint32_t k = 0; k < w->n_in; k++)
			ret[k] = bf16_to_f32(p[(size_t)k * PANEL]);
	} else {
		for (uint32_t k = 0; k < w->n_in; k++)
			ret[k] = ((const float *)panel)[(size_t)k * PANEL + c];
	}
}

/* One panel, K ascending in f32 with zeros past the end, into groups. */
struct quantise_panel {
	const struct cpu *c;
	const struct k_weight *w;
	const float *x; /* [q_groups * Q_GROUP][PANEL] */
	uint8_t *panel;
};

static void quantise_panel_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct quantise_panel *j = ctx;
	uint32_t begin, end;

	threads_share(q_groups(j->w->n_in), thread, n_threads, &begin, &end);
	for (uint32_t g = begin; g < end; g++) {
		const float *x = j->x + (size_t)g * Q_GROUP * PANEL;
		void *to = j->panel + g * group_bytes(j->w);

		if (j->w->type == K_Q8)
			j->c->isa.pack_q8(to, x);
		else
			j->c->isa.pack_q4(to, x);
	}
}

/* A panel of rows at a time is held in f32. */
static int pack_quantised(struct cpu *c, struct k_weight *w, const struct k_source *src, float *row)
{
	size_t bytes = (size_t)q_groups(w->n_in) * Q_GROUP * PANEL * sizeof(float);
	uint32_t n_panels = weight_n_panels(w);
	float *x = cpu_alloc(bytes);
	int r = x ? 0 : -ENOMEM;

	for (uint32_t p = 0; r >= 0 && p < w->n_mat * n_panels; p++) {
		uint32_t mat = p / n_panels, first = p % n_panels * PANEL;
		struct quantise_panel j = {c, w, x, (uint8_t *)weight_panel(w, mat, p % n_panels)};

		memset(x, 0, bytes);
		for (uint32_t i = 0; r >= 0 && i < PANEL && first + i < w->n_out; i++) {
			r = src->read_row(src->ctx, mat * w->n_out + first + i, row);
			for (uint32_t k = 0; r >= 0 && k < w->n_in; k++)
				x[(size_t)k * PANEL + i] = row[k];
		}
		if (r >= 0)
			threads_run(c->threads, UINT64_MAX, quantise_panel_part, &j);
	}
	free(x);
	return r;
}

static int pack_rows(struct k_weight *w, const struct k_source *src, float *row)
{
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < w->n_mat * w->n_out; i++) {
		r = src->read_row(src->ctx, i, row);
		if (r >= 0)
			weight_put_row(w, i / w->n_out, i % w->n_out, row);
	}
	return r;
}

static int fill(struct cpu *c, struct k_weight *w, const struct k_source *src)
{
	float *row = calloc(w->n_in, sizeof(*row));
	int r = -ENOMEM;

	if (row)
		r = weight_is_quantised(w) ? pack_quantised(c, w, src, row)
					   : pack_rows(w, src, row);
	free(row);
	return r;
}

int cpu_weight_pack(struct kernels *k, struct k_weight **ret, const struct k_source *src)
{
	struct k_weight *w;
	int r;

	if ((uintptr_t)src->memory % K_MEMORY_ALIGN || (!src->read_row && !src->memory))
		return -EINVAL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	r = weight_shape(w, src);
	if (r < 0) {
		free(w);
		return r;
	}
	w->borrowed = src->memory != NULL;
	w->data = src->memory ?: cpu_alloc(w->bytes);
	r = w->data ? 0 : -ENOMEM;
	if (r == 0 && src->read_row)
		r = fill(cpu_of(k), w, src);
	if (r < 0) {
		cpu_weight_free(k, w);
		return r;
	}
	*ret = w;
	return 0;
}

int cpu_weight_copy(struct kernels *k, struct k_weight **ret, const struct k_weight *w)
{
	struct k_weight *copy = malloc(sizeof(*copy));

	(void)k;
	if (!copy)
		return -ENOMEM;
	*copy = *w;
	copy->borrowed = false;
	copy->data = cpu_alloc(w->bytes);
	if (!copy->data) {
		free(copy);
		return -ENOMEM;
	}
	memcpy(copy->data, w->data, w->bytes);
	*ret = copy;
	return 0;
}

void cpu_weight_free(struct kernels *k, struct k_weight *w)
{
	(void)k;
	if (!w)
		return;
	if (!w->borrowed)
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
	threads_run(c->threads, (uint64_t)c->step.n_rows * table->n_in, embed_part, &j);
}
