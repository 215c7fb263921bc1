/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/model/cost.h"

#include <stddef.h>

#include "worker/model/model.h"

struct walk {
	const struct model *m;
	const struct cost_step *s;
	struct cost cost;
};

/* @part of the bytes of @w are read, and @n of its numbers are multiplied in all. */
static void use(struct walk *k, const struct k_weight *w, double part, double n)
{
	k->cost.bytes += part * (double)k->m->k->weight_bytes(w);
	*(k->s->quantised ? &k->cost.ops_int8 : &k->cost.ops_float) += 2 * n;
}

static void use_norm(struct walk *k, const struct k_weight *w)
{
	k->cost.bytes += (double)k->m->k->weight_bytes(w);
}

static void use_attention(struct walk *k, const struct model_layer *y)
{
	const struct model_config *c = &k->m->cfg;
	const struct cost_step *s = k->s;
	double rows = s->n_rows, heads = c->n_heads, rank = c->rank, hidden = c->hidden;
	double q = heads * (c->nope + c->rope), kv = heads * (c->nope + c->v_head) * rank;

	use_norm(k, y->attn_norm);
	if (y->q_a) {
		use(k, y->q_a, 1, rows * c->q_lora_rank * hidden);
		use_norm(k, y->q_a_norm);
		use(k, y->q_b, 1, rows * q * c->q_lora_rank);
	} else {
		use(k, y->q, 1, rows * q * hidden);
	}
	use(k, y->kv_a, 1, rows * (rank + c->rope) * hidden);
	use_norm(k, y->kv_a_norm);
	if (s->generated) {
		use(k, y->w_uk, 1, rows * heads * c->nope * rank);
		use(k, y->w_uv, 1, rows * heads * c->v_head * rank);
		k->cost.ops_float += 2 * heads * c->rope * s->seen;
		*(s->int8_latents ? &k->cost.ops_int8 : &k->cost.ops_float) +=
			2 * heads * 2 * rank * s->seen;
	} else {
		use(k, y->kv_b, 1, s->cached * kv);
		k->cost.ops_float += 2 * heads * (c->nope + c->rope + c->v_head) * s->seen;
	}
	k->cost.bytes += (s->cached + rows) * s->row_bytes;
	use(k, y->o, 1, rows * hidden * heads * c->v_head);
}

static void use_mlp(struct walk *k, const struct model_layer *y, bool moe)
{
	const struct model_config *c = &k->m->cfg;
	double rows = k->s->n_rows, hidden = c->hidden, read;

	use_norm(k, y->ffn_norm);
	if (!moe) {
		use(k, y->ffn_gate_up, 1, rows * 2 * c->inter * hidden);
		use(k, y->ffn_down, 1, rows * hidden * c->inter);
		return;
	}
	use_norm(k, y->gate);
	k->cost.ops_float += 2 * rows * c->n_experts * hidden;
	read = k->cost.experts / c->n_experts;
	use(k, y->experts_gate_up, read, rows * c->n_used * 2 * c->moe_inter * hidden);
	use(k, y->experts_down, read, rows * c->n_used * hidden * c->moe_inter);
	if (!y->shared_gate_up)
		return;
	use(k, y->shared_gate_up, 1, rows * c->n_shared * 2 * c->moe_inter * hidden);
	use(k, y->shared_down, 1, rows * c->n_shared * hidden * c->moe_inter);
}

struct cost model_cost(const struct model *m, const struct cost_step *s)
{
	struct walk k = {.m = m, .s = s};
	double hidden = m->cfg.hidden, n_vocab = m->cfg.n_vocab;
	uint32_t n_moe = 0;

	for (uint32_t l = 0; l < m->cfg.n_layers; l++)
		n_moe += model_layer_is_moe(&m->cfg, l);
	k.cost.experts = n_moe ? (double)s->n_routed / n_moe : 0;
	k.cost.bytes += s->n_rows * (double)m->k->weight_bytes(m->embed) / n_vocab;
	for (uint32_t l = 0; l < m->cfg.n_layers; l++) {
		use_attention(&k, &m->layers[l]);
		use_mlp(&k, &m->layers[l], model_layer_is_moe(&m->cfg, l));
	}
	if (s->n_wants > 0) {
		use_norm(&k, m->norm);
		use(&k, m->head, 1, s->n_wants * n_vocab * hidden);
	}
	return k.cost;
}
