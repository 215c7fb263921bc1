/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/tensors.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "worker/load/config.h"
#include "worker/load/weights.h"

struct visiting {
	tensor_visitor visit;
	void *ctx;
	struct error *err;
	int r; /* of the first that failed; the rest is skipped */
};

static void __attribute__((format(printf, 5, 6)))
want(struct visiting *v, uint64_t rows, uint64_t columns, const char *meaning, const char *name,
     ...)
{
	struct tensor_want w = {.meaning = meaning};
	char text[TENSOR_NAME_MAX];
	va_list ap;

	if (v->r < 0)
		return;
	va_start(ap, name);
	vsnprintf(text, sizeof(text), name, ap);
	va_end(ap);
	w.name = text;
	if (rows)
		w.dims[w.n_dims++] = rows;
	w.dims[w.n_dims++] = columns;
	v->r = v->visit(v->ctx, &w, v->err);
}

static void want_attention(struct visiting *v, const struct model_config *m, uint32_t l)
{
	uint64_t q = (uint64_t)m->n_heads * (m->nope + m->rope);
	uint64_t kv = (uint64_t)m->n_heads * (m->nope + m->v_head);

	if (m->q_lora_rank == 0) {
		want(v, q, m->hidden, "n_heads x (qk_nope + qk_rope), hidden",
		     "model.layers.%u.self_attn.q_proj.weight", l);
	} else {
		want(v, m->q_lora_rank, m->hidden, "q_lora_rank, hidden",
		     "model.layers.%u.self_attn.q_a_proj.weight", l);
		want(v, 0, m->q_lora_rank, "q_lora_rank",
		     "model.layers.%u.self_attn.q_a_layernorm.weight", l);
		want(v, q, m->q_lora_rank, "n_heads x (qk_nope + qk_rope), q_lora_rank",
		     "model.layers.%u.self_attn.q_b_proj.weight", l);
	}
	want(v, (uint64_t)m->rank + m->rope, m->hidden, "kv_lora_rank + qk_rope, hidden",
	     "model.layers.%u.self_attn.kv_a_proj_with_mqa.weight", l);
	want(v, 0, m->rank, "kv_lora_rank", "model.layers.%u.self_attn.kv_a_layernorm.weight", l);
	want(v, kv, m->rank, "n_heads x (qk_nope + v_head), kv_lora_rank",
	     "model.layers.%u.self_attn.kv_b_proj.weight", l);
	want(v, m->hidden, (uint64_t)m->n_heads * m->v_head, "hidden, n_heads x v_head",
	     "model.layers.%u.self_attn.o_proj.weight", l);
}

static void want_mlp(struct visiting *v, const char *prefix, uint64_t inter, uint64_t hidden,
		     const char *up, const char *down)
{
	want(v, inter, hidden, up, "%sgate_proj.weight", prefix);
	want(v, inter, hidden, up, "%sup_proj.weight", prefix);
	want(v, hidden, inter, down, "%sdown_proj.weight", prefix);
}

static void want_ffn(struct visiting *v, const struct model_config *m, uint32_t l)
{
	char prefix[TENSOR_NAME_MAX];

	if (!model_layer_is_moe(m, l)) {
		snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.", l);
		want_mlp(v, prefix, m->inter, m->hidden, "intermediate_size, hidden",
			 "hidden, intermediate_size");
		return;
	}
	want(v, m->n_experts, m->hidden, "n_routed_experts, hidden",
	     "model.layers.%u.mlp.gate.weight", l);
	for (uint32_t e = 0; e < m->n_experts && v->r >= 0; e++) {
		snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.experts.%u.", l, e);
		want_mlp(v, prefix, m->moe_inter, m->hidden, "moe_intermediate_size, hidden",
			 "hidden, moe_intermediate_size");
	}
	if (m->n_shared == 0)
		return;
	snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.shared_experts.", l);
	want_mlp(v, prefix, (uint64_t)m->n_shared * m->moe_inter, m->hidden,
		 "n_shared_experts x moe_intermediate_size, hidden",
		 "hidden, n_shared_experts x moe_intermediate_size");
}

int tensors_visit(const struct load_config *c, tensor_visitor visit, void *ctx, struct error *err)
{
	const struct model_config *m = &c->m;
	struct visiting v = {visit, ctx, err, 0};

	want(&v, m->n_vocab, m->hidden, "vocab_size, hidden", "model.embed_tokens.weight");
	for (uint32_t l = 0; l < m->n_layers && v.r >= 0; l++) {
		want(&v, 0, m->hidden, "hidden", "model.layers.%u.input_layernorm.weight", l);
		want_attention(&v, m, l);
		want(&v, 0, m->hidden, "hidden", "model.layers.%u.post_attention_layernorm.weight",
		     l);
		want_ffn(&v, m, l);
	}
	want(&v, 0, m->hidden, "hidden", "model.norm.weight");
	if (!c->tied)
		want(&v, m->n_vocab, m->hidden, "vocab_size, hidden", "lm_head.weight");
	return v.r;
}

static int check_one(void *ctx, const struct tensor_want *want, struct error *err)
{
	struct weights_entry *e = weights_find(ctx, want->name);
	const struct st_tensor *t;
	char got_shape[128], want_shape[128];

	st_shape_text(want_shape, sizeof(want_shape), want->dims, want->n_dims);
	if (!e)
		return error_set(err, -EINVAL, "%s: missing, want %s (%s)", want->name, want_shape,
				 want->meaning);
	t = e->tensor;
	if (t->n_dims != want->n_dims ||
	    memcmp(t->dims, want->dims, sizeof(t->dims[0]) * t->n_dims) != 0)
		return error_set(err, -EINVAL, "%s: shape %s, want %s (%s)", want->name,
				 st_shape_text(got_shape, sizeof(got_shape), t->dims, t->n_dims),
				 want_shape, want->meaning);
	if (t->dtype != ST_F32 && t->dtype != ST_BF16)
		return error_set(err, -EOPNOTSUPP, "%s: %s, want F32 or BF16", want->name,
				 st_dtype_name(t->dtype));
	e->wanted = true;
	return 0;
}

/* "model.layers.N." with N >= n_layers: a drafter. */
static bool is_later_layer(const char *name, uint32_t n_layers)
{
	static const char prefix[] = "model.layers.";
	char *end;
	unsigned long l;

	if (strncmp(name, prefix, sizeof(prefix) - 1) != 0 ||
	    !isdigit((unsigned char)name[sizeof(prefix) - 1]))
		return false;
	l = strtoul(name + sizeof(prefix) - 1, &end, 10);
	return *end == '.' && l >= n_layers;
}

static bool is_ignored(const struct load_config *c, const char *name)
{
	static const char tail[] = ".rotary_emb.inv_freq";
	size_t n = strlen(name);

	return (n >= sizeof(tail) - 1 && strcmp(name + n - (sizeof(tail) - 1), tail) == 0) ||
	       is_later_layer(name, c->m.n_layers) ||
	       (c->tied && strcmp(name, "lm_head.weight") == 0);
}

int tensors_check(const struct load_config *c, struct weights *w, struct error *err)
{
	struct weights_entry *entries;
	char shown[260];
	uint32_t n;
	int r;

	if (weights_are_synthetic(w))
		return 0;
	r = tensors_visit(c, check_one, w, err);
	if (r < 0)
		return r;
	entries = weights_entries(w, &n);
	for (uint32_t i = 0; i < n; i++)
		if (!entries[i].wanted && !is_ignored(c, entries[i].name))
			return error_set(err, -EINVAL, "%s: this model has no such tensor",
					 log_escape(shown, sizeof(shown), entries[i].name,
						    strlen(entries[i].name)));
	return 0;
}

static int count_one(void *ctx, const struct tensor_want *want, struct error *err)
{
	uint64_t *n = ctx;

	(void)err;
	*n += want->dims[0] * (want->n_dims > 1 ? want->dims[1] : 1);
	return 0;
}

void tensors_count(const struct load_config *c, uint64_t *ret_params, uint64_t *ret_active)
{
	const struct model_config *m = &c->m;
	uint64_t n = 0, idle = 0;

	tensors_visit(c, count_one, &n, NULL);
	*ret_params = n;
	/* Experts that were not chosen, and the rows of the embedding that were not asked for. */
	for (uint32_t l = 0; l < m->n_layers; l++)
		if (model_layer_is_moe(m, l))
			idle += 3ull * (m->n_experts - m->n_used) * m->moe_inter * m->hidden;
	if (!c->tied)
		idle += (uint64_t)(m->n_vocab - 1) * m->hidden;
	*ret_active = n - idle;
}
