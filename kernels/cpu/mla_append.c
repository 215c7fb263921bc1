/* SPDX-License-Identifier: Apache-2.0 */
/* What a new token leaves in the cache, and its rotated query. Source: DeepSeek-V2 (adjacent
 * pairs, one rounding, to the entry's format) and §3. */
#include "mla.h"

struct append_job {
	struct cpu *c;
	struct k_buffer *q, *kv;
	const struct k_weight *norm;
	const struct k_mla *m;
	uint32_t stream;
};

static void rotate(float *x, const float *cos, const float *sin, uint32_t n)
{
	for (uint32_t i = 0; i < n / 2; i++) {
		float a = x[2 * i], b = x[2 * i + 1];

		x[2 * i] = a * cos[i] - b * sin[i];
		x[2 * i + 1] = a * sin[i] + b * cos[i];
	}
}

/* The latents in 8 bits, by groups. */
static void append_int8(const struct append_job *j, uint8_t *entry, const float *kv)
{
	const struct k_mla *m = j->m;
	uint8_t *scales = entry + m->rank;
	uint16_t *rope = (uint16_t *)(scales + cpu_entry_groups(m->rank) * sizeof(float));

	for (uint32_t i = 0; i < m->rank; i += K_ENTRY_GROUP) {
		uint32_t n = cpu_entry_group(m->rank, i);
		struct q_row q;

		mla_quantise(j->c, &q, kv + i, n);
		memcpy(entry + i, q.a, n);
		memcpy(scales + i / K_ENTRY_GROUP * sizeof(q.d), &q.d, sizeof(q.d));
	}
	for (uint32_t i = 0; i < m->rope; i++)
		rope[i] = mla_bf16(kv[m->rank + i]);
}

static void append_row(const struct append_job *j, uint32_t row, const struct k_segment *s)
{
	const struct k_mla *m = j->m;
	uint32_t pos = j->c->step.positions[row], width = m->rank + m->rope;
	const float *cos = m->rope_cos + (size_t)pos * (m->rope / 2);
	const float *sin = m->rope_sin + (size_t)pos * (m->rope / 2);
	uint8_t *entry = mla_pool_row(&j->c->pool, s->pages, pos, j->stream);
	float *q = buffer_row(j->q, row), *kv = buffer_row(j->kv, row);

	for (uint32_t h = 0; h < m->n_heads; h++)
		rotate(q + h * (m->nope + m->rope) + m->nope, cos, sin, m->rope);
	j->c->isa.rmsnorm(kv, kv, (const float *)j->norm->data, m->rank, m->norm_eps);
	rotate(kv + m->rank, cos, sin, m->rope);
	switch (j->c->pool.entry) {
	case K_ENTRY_F32:
		memcpy(entry, kv, width * sizeof(*kv));
		break;
	case K_ENTRY_BF16:
		for (uint32_t i = 0; i < width; i++)
			((uint16_t *)entry)[i] = mla_bf16(kv[i]);
		break;
	case K_ENTRY_INT8:
		append_int8(j, entry, kv);
		break;
	}
}

static void append_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct append_job *j = ctx;
	const struct k_segment *s = j->c->step.segments;
	uint32_t begin, end;

	threads_share(j->c->step.n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++) {
		while (r >= s->first_row + s->n_rows)
			s++;
		append_row(j, r, s);
	}
}

void cpu_mla_append(struct kernels *k, struct k_buffer *q, struct k_buffer *kv,
		    const struct k_weight *norm, const struct k_mla *m, uint32_t stream)
{
	struct append_job j = {cpu_of(k), q, kv, norm, m, stream};

	assert(norm->panel == 1 && norm->n_in == m->rank && kv->width >= m->rank + m->rope);
	assert(q->width >= m->n_heads * (m->nope + m->rope));
	if (!mla_pool_fits(j.c, m, stream))
		return;
	for (uint32_t r = 0; r < j.c->step.n_rows; r++)
		if (j.c->step.positions[r] >= m->n_positions) {
			j.c->failed = -EINVAL;
			return;
		}
	threads_run(j.c->threads, (uint64_t)j.c->step.n_rows * (q->width + kv->width), append_part,
		    &j);
}
