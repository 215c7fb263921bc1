/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/model/forward.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/error.h"

/* T: rows of the step. */
struct forward {
	const struct model *m;
	struct kernels *k;
	uint32_t max_rows, max_picks;
	struct k_mla mla;
	float *rope_cos, *rope_sin; /* [n_context, rope/2] */
	struct k_buffer *x;         /* [T, hidden]: the residual stream */
	struct k_buffer *normed;    /* [T, hidden] */
	struct k_buffer *delta;     /* [T, hidden]: what a half-layer adds */
	struct k_buffer *q_latent;  /* [T, q_lora_rank], where there is one */
	struct k_buffer *q;         /* [T, H * (nope + rope)] */
	struct k_buffer *kv;        /* [T, rank + rope] */
	struct k_buffer *attended;  /* [T, H * v_head] */
	struct k_buffer *logits;    /* [max_picks, n_vocab] */
	_Atomic uint32_t *progress;
};

static int forward_tables(struct forward *f)
{
	const struct model_config *c = &f->m->cfg;
	size_t n = (size_t)c->n_context * (c->rope / 2);

	f->rope_cos = malloc(n * sizeof(*f->rope_cos));
	f->rope_sin = malloc(n * sizeof(*f->rope_sin));
	if (!f->rope_cos || !f->rope_sin)
		return -ENOMEM;
	model_rope_tables(c, c->n_context, f->rope_cos, f->rope_sin);
	f->mla = (struct k_mla){
		.n_heads = c->n_heads,
		.nope = c->nope,
		.rope = c->rope,
		.v_head = c->v_head,
		.rank = c->rank,
		.scale = model_softmax_scale(c),
		.norm_eps = MODEL_LATENT_EPS,
		.n_positions = c->n_context,
		.rope_cos = f->rope_cos,
		.rope_sin = f->rope_sin,
	};
	return 0;
}

int forward_new(struct forward **ret, const struct model *m, uint32_t max_rows, uint32_t max_picks,
		struct error *err)
{
	_cleanup_(forward_freep) struct forward *f = NULL;
	const struct model_config *c = &m->cfg;
	int r;

	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	*f = (struct forward){.m = m, .k = m->k, .max_rows = max_rows, .max_picks = max_picks};
	const struct {
		struct k_buffer **buffer;
		uint32_t rows, width;
	} buffers[] = {
		{&f->x, max_rows, c->hidden},
		{&f->normed, max_rows, c->hidden},
		{&f->delta, max_rows, c->hidden},
		{&f->q_latent, max_rows, c->q_lora_rank > 0 ? c->q_lora_rank : 1},
		{&f->q, max_rows, c->n_heads * (c->nope + c->rope)},
		{&f->kv, max_rows, c->rank + c->rope},
		{&f->attended, max_rows, c->n_heads * c->v_head},
		{&f->logits, max_picks, c->n_vocab},
	};
	r = forward_tables(f);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < N_ELEMENTS(buffers); i++) {
		r = f->k->buffer_new(f->k, buffers[i].buffer, buffers[i].rows, buffers[i].width);
		if (r < 0)
			return error_set(err, r, "activations of %u rows by %u: %m",
					 buffers[i].rows, buffers[i].width);
	}
	*ret = TAKE_PTR(f);
	return 0;
}

struct forward *forward_free(struct forward *f)
{
	if (!f)
		return NULL;
	struct k_buffer *const buffers[] = {f->x, f->normed, f->delta,    f->q_latent,
					    f->q, f->kv,     f->attended, f->logits};

	for (uint32_t i = 0; i < N_ELEMENTS(buffers); i++)
		f->k->buffer_free(f->k, buffers[i]);
	free(f->rope_cos);
	free(f->rope_sin);
	free(f);
	return NULL;
}

static void attention(struct forward *f, uint32_t l)
{
	const struct model_layer *y = &f->m->layers[l];
	struct kernels *k = f->k;

	k->rmsnorm(k, f->normed, f->x, y->attn_norm, (float)f->m->cfg.rms_eps);
	if (y->q_a) {
		k->linear(k, f->q_latent, f->normed, y->q_a);
		k->rmsnorm(k, f->q_latent, f->q_latent, y->q_a_norm, MODEL_LATENT_EPS);
		k->linear(k, f->q, f->q_latent, y->q_b);
	} else {
		k->linear(k, f->q, f->normed, y->q);
	}
	k->linear(k, f->kv, f->normed, y->kv_a);
	k->mla_append(k, f->q, f->kv, y->kv_a_norm, &f->mla, l);
	k->mla_prefill(k, f->attended, f->q, y->kv_b, &f->mla, l);
	k->mla_decode(k, f->attended, f->q, y->w_uk, y->w_uv, &f->mla, l);
	k->linear(k, f->delta, f->attended, y->o);
	k->add(k, f->x, f->delta);
}

static void feed_forward(struct forward *f, uint32_t l)
{
	const struct model_layer *y = &f->m->layers[l];
	struct k_route route = f->m->cfg.route;
	struct kernels *k = f->k;

	k->rmsnorm(k, f->normed, f->x, y->ffn_norm, (float)f->m->cfg.rms_eps);
	if (!model_layer_is_moe(&f->m->cfg, l)) {
		k->ffn(k, f->delta, f->normed, y->ffn_gate_up, y->ffn_down);
		k->add(k, f->x, f->delta);
		return;
	}
	route.bias = y->route_bias;
	k->route(k, f->normed, y->gate, &route);
	if (!y->shared_gate_up) {
		k->experts(k, f->x, f->normed, y->experts_gate_up, y->experts_down);
		return;
	}
	k->ffn(k, f->delta, f->normed, y->shared_gate_up, y->shared_down);
	k->experts(k, f->delta, f->normed, y->experts_gate_up, y->experts_down);
	k->add(k, f->x, f->delta);
}

static int forward_check(const struct forward *f, const struct k_step *step,
			 const struct k_pool *pool, struct error *err)
{
	const struct model_config *c = &f->m->cfg;

	if (step->n_rows == 0 || step->n_rows > f->max_rows)
		return error_set(err, -EINVAL, "a step of %u rows: want 1 to %u", step->n_rows,
				 f->max_rows);
	if (pool->n_streams < c->n_layers)
		return error_set(err, -EINVAL,
				 "a pool of %u streams: want one for each of %u layers",
				 pool->n_streams, c->n_layers);
	for (uint32_t i = 0; i < step->n_rows; i++) {
		if (step->ids[i] >= c->n_vocab)
			return error_set(err, -EINVAL, "id %u in row %u: want below %u",
					 step->ids[i], i, c->n_vocab);
		if (step->positions[i] >= c->n_context)
			return error_set(err, -EINVAL, "position %u in row %u: want below %u",
					 step->positions[i], i, c->n_context);
	}
	return 0;
}

void forward_set_progress(struct forward *f, _Atomic uint32_t *n)
{
	f->progress = n;
}

int model_forward(struct forward *f, const struct k_step *step, const struct k_pool *pool,
		  struct error *err)
{
	struct kernels *k = f->k;
	int r;

	r = forward_check(f, step, pool, err);
	if (r < 0)
		return r;
	r = k->step_begin(k, step, pool);
	if (r < 0)
		return error_set(err, r,
				 "a step of %u rows in %u segments contradicts itself or the pool",
				 step->n_rows, step->n_segments);
	k->embed(k, f->x, f->m->embed);
	for (uint32_t l = 0; l < f->m->cfg.n_layers; l++) {
		attention(f, l);
		feed_forward(f, l);
		if (f->progress)
			atomic_fetch_add_explicit(f->progress, 1, memory_order_relaxed);
	}
	r = k->step_end(k);
	if (r < 0)
		return error_set(err, r, "a step of %u rows: %m", step->n_rows);
	return 0;
}

struct k_buffer *forward_logits(struct forward *f, const uint32_t *picks, uint32_t n_picks)
{
	f->k->logits(f->k, f->logits, f->x, picks, n_picks, f->m->norm, (float)f->m->cfg.rms_eps,
		     f->m->head);
	return f->logits;
}
