#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model as plain data: hyperparameters and packed weights, filled by worker/load, read by forward.
 *
 * Names are those of the published configurations: nope, rope, v_head are head widths (dn, dr, dv), rank is kv_lora_rank
 * (c). Weights belong to the kernels that packed them; model_done() gives them back. */
#include <stdbool.h>
#include <stdint.h>

#include "kernels.h"

struct error;

#define MODEL_LATENT_EPS                                                                           \
	1e-6f /* of q_a_layernorm and kv_a_layernorm, whatever rms_eps says (§2.1) */

struct model_yarn {
	bool on; /* false: plain RoPE, and nothing below counts */
	double factor, beta_fast, beta_slow;
	double mscale, mscale_all_dim; /* 0: absent */
	uint32_t original_context;
};

/* As config.json has it, absent keys already replaced by their defaults (§1.1). */
struct model_config {
	uint32_t n_layers, hidden, n_vocab;
	uint32_t n_context; /* positions served; at most what the file allows */
	double rms_eps;

	uint32_t n_heads, nope, rope, v_head, rank;
	uint32_t q_lora_rank; /* 0: queries come from one projection */
	double rope_theta;
	struct model_yarn yarn;

	uint32_t inter;     /* width of a dense FFN */
	uint32_t n_experts; /* 0: every layer is dense */
	uint32_t n_used, n_shared, moe_inter;
	uint32_t first_dense, moe_freq; /* layer l is MoE: l >= first_dense and l % moe_freq == 0 */
	struct k_route route;           /* .bias stays NULL here: it is the layer's */
};

/* Shapes are [n_out, n_in]; H = n_heads. Which pointers are NULL follows from the config. */
struct model_layer {
	struct k_weight *attn_norm; /* [1, hidden] */
	struct k_weight *q;         /* [H*(nope+rope), hidden]; q_lora_rank 0 only */
	struct k_weight *q_a;       /* [q_lora_rank, hidden]; else these three */
	struct k_weight *q_a_norm;  /* [1, q_lora_rank] */
	struct k_weight *q_b;       /* [H*(nope+rope), q_lora_rank] */
	struct k_weight *kv_a;      /* [rank+rope, hidden] */
	struct k_weight *kv_a_norm; /* [1, rank] */
	struct k_weight *kv_b;      /* [H*(nope+v_head), rank]: the naive path */
	struct k_weight *w_uk;      /* H matrices [rank, nope]: key rows of kv_b, transposed */
	struct k_weight *w_uv;      /* H matrices [v_head, rank]: value rows of kv_b */
	struct k_weight *o;         /* [hidden, H*v_head] */
	struct k_weight *ffn_norm;  /* [1, hidden] */

	struct k_weight *ffn_gate_up; /* [2*inter, hidden], gate rows first; dense layers only */
	struct k_weight *ffn_down;    /* [hidden, inter] */

	struct k_weight *gate;            /* the router: [n_experts, hidden]; MoE layers only */
	float *route_bias;                /* [n_experts] on the heap, or NULL */
	struct k_weight *experts_gate_up; /* n_experts matrices [2*moe_inter, hidden] */
	struct k_weight *experts_down;    /* n_experts matrices [hidden, moe_inter] */
	struct k_weight *shared_gate_up;  /* [2*n_shared*moe_inter, hidden]; n_shared > 0 only */
	struct k_weight *shared_down;     /* [hidden, n_shared*moe_inter] */
};

struct model {
	struct model_config cfg;
	struct kernels *k;          /* that packed the weights; not owned */
	struct k_weight *embed;     /* [n_vocab, hidden] */
	struct model_layer *layers; /* [n_layers] on the heap */
	uint32_t n_built;      /* layers with weights of their own: n_layers, or model_cycle()'s */
	struct k_weight *norm; /* [1, hidden] */
	struct k_weight *head; /* [n_vocab, hidden]; may be the same as embed when tied */
	void *map; /* where they all lie, if not in memory of their own; NULL: they do not */
	uint64_t map_bytes;
};

static inline bool model_layer_is_moe(const struct model_config *c, uint32_t layer)
{
	return c->n_experts > 0 && layer >= c->first_dense && layer % c->moe_freq == 0;
}

/**
 * model_init() - an empty model with its array of layers, every pointer NULL
 * Return: 0; -ENOMEM; -EINVAL for a config no forward pass exists for (a width of 0, an odd rope,
 *         more experts used than there are, ...), with the sentence.
 */
int model_init(struct model *m, const struct model_config *cfg, struct kernels *k,
	       struct error *err);
/**
 * model_cycle() - fill up a model of which the first @n_packed layers are there
 *
 * Layers up to @n_built get copies of the packed ones of their kind, in turn; those behind take the
 * weights of built ones. The same work as the model's own weights, and no model that means anything.
 *
 * Return: 0; -ENOMEM.
 */
int model_cycle(struct model *m, uint32_t n_packed, uint32_t n_built);
/** model_packed_min() - the fewest layers that have every kind there is. */
uint32_t model_packed_min(const struct model_config *c);
/** model_done() - give back weights and layers; half-filled and zeroed models are fine. */
void model_done(struct model *m);

/** model_softmax_scale() - (nope+rope)^-0.5 with YaRN's mscale_all_dim squared (§2.4). */
float model_softmax_scale(const struct model_config *c);
/**
 * model_rope_tables() - cosines and sines of every position
 * @ret_cos, @ret_sin: [n_positions, rope/2]
 *
 * Angles are float products of a float frequency, as every reference has them (§2.3); YaRN's scalars
 * are doubles. Source: transformers modeling_rope_utils, _compute_yarn_parameters.
 */
void model_rope_tables(const struct model_config *c, uint32_t n_positions, float *ret_cos,
		       float *ret_sin);
