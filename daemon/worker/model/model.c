/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/model/model.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/error.h"

#define WIDTH_MAX (1u << 24) /* of any product of two widths: no arithmetic below can wrap */

static int check_width(uint64_t n, const char *what, struct error *err)
{
	if (n > 0 && n <= WIDTH_MAX)
		return 0;
	return error_set(err, -EINVAL, "%s is %llu: want 1 to %u", what, (unsigned long long)n,
			 WIDTH_MAX);
}

static int check_attention(const struct model_config *c, struct error *err)
{
	uint64_t per_head;
	int r;

	if (c->n_heads == 0 || c->n_heads > 1024 || c->nope > 4096 || c->rope > 4096 ||
	    c->v_head > 4096)
		return error_set(
			err, -EINVAL,
			"%u heads of %u + %u, values of %u: want 1 to 1024 heads of at most 4096",
			c->n_heads, c->nope, c->rope, c->v_head);
	if (c->nope == 0 || c->v_head == 0 || c->rope == 0 || c->rope % 2 != 0)
		return error_set(
			err, -EINVAL,
			"heads of %u + %u, values of %u: want none 0 and the rotary part even",
			c->nope, c->rope, c->v_head);
	per_head = (uint64_t)c->nope + (c->rope > c->v_head ? c->rope : c->v_head);
	r = check_width(c->n_heads * per_head, "heads times head width", err);
	if (r < 0)
		return r;
	return check_width(c->rank, "kv_lora_rank", err);
}

static int check_experts(const struct model_config *c, struct error *err)
{
	const struct k_route *r = &c->route;
	uint32_t n_group = r->n_group;

	if (c->n_experts > 65536 || c->n_used == 0 || c->n_used > c->n_experts ||
	    c->n_used > K_EXPERTS_USED_MAX)
		return error_set(err, -EINVAL,
				 "%u experts of which %u are used: want 1 to %u of at most 65536",
				 c->n_experts, c->n_used, K_EXPERTS_USED_MAX);
	if (c->moe_freq == 0)
		return error_set(err, -EINVAL, "moe_layer_freq is 0: want at least 1");
	if (n_group == 0 || c->n_experts % n_group != 0 || r->topk_group == 0 ||
	    r->topk_group > n_group ||
	    (uint64_t)r->topk_group * (c->n_experts / n_group) < c->n_used)
		return error_set(
			err, -EINVAL,
			"%u experts in %u groups, %u groups and %u experts chosen: want equal groups, and "
			"experts enough in the chosen ones",
			c->n_experts, n_group, r->topk_group, c->n_used);
	if (c->n_shared > 1024)
		return error_set(err, -EINVAL, "%u shared experts: want at most 1024", c->n_shared);
	return check_width((uint64_t)c->moe_inter * (c->n_shared > 0 ? c->n_shared : 1) * 2,
			   "twice the width of an expert", err);
}

int model_init(struct model *m, const struct model_config *cfg, struct kernels *k,
	       struct error *err)
{
	struct model_config c = *cfg;
	bool dense = c.n_experts == 0 || c.first_dense > 0 || c.moe_freq > 1;
	int r;

	c.route.n_experts = c.n_experts;
	c.route.n_used = c.n_used;
	c.route.bias = NULL;
	r = check_width(c.hidden, "hidden_size", err);
	if (r >= 0)
		r = check_width(c.n_vocab, "vocab_size", err);
	if (r >= 0)
		r = check_width(c.n_context, "the context", err);
	if (r >= 0)
		r = check_attention(&c, err);
	if (r >= 0 && dense)
		r = check_width((uint64_t)c.inter * 2, "twice intermediate_size", err);
	if (r >= 0 && c.n_experts > 0)
		r = check_experts(&c, err);
	if (r >= 0 && (c.n_layers == 0 || c.n_layers > 4096))
		r = error_set(err, -EINVAL, "%u layers: want 1 to 4096", c.n_layers);
	if (r >= 0 && c.q_lora_rank > WIDTH_MAX)
		r = check_width(c.q_lora_rank, "q_lora_rank", err);
	if (r < 0)
		return r;
	*m = (struct model){.cfg = c, .k = k, .n_built = c.n_layers};
	m->layers = calloc(c.n_layers, sizeof(*m->layers));
	return m->layers ? 0 : -ENOMEM;
}

#define LAYER_WEIGHTS 19u

static void layer_weights(struct model_layer *y, struct k_weight **ret[static LAYER_WEIGHTS])
{
	struct k_weight **const weights[LAYER_WEIGHTS] = {
		&y->attn_norm,
		&y->q,
		&y->q_a,
		&y->q_a_norm,
		&y->q_b,
		&y->kv_a,
		&y->kv_a_norm,
		&y->kv_b,
		&y->w_uk,
		&y->w_uv,
		&y->o,
		&y->ffn_norm,
		&y->ffn_gate_up,
		&y->ffn_down,
		&y->gate,
		&y->experts_gate_up,
		&y->experts_down,
		&y->shared_gate_up,
		&y->shared_down,
	};

	memcpy(ret, weights, sizeof(weights));
}

uint32_t model_packed_min(const struct model_config *c)
{
	uint32_t min = c->n_experts > 0 ? c->first_dense + c->moe_freq : 1;

	return min < c->n_layers ? min : c->n_layers;
}

/* The layer of the same kind, among the first @n, that stands in for layer @l. */
static const struct model_layer *stand_in(const struct model *m, uint32_t n, uint32_t l)
{
	uint32_t first = m->cfg.n_experts > 0 ? m->cfg.first_dense : 0;
	uint32_t freq = m->cfg.n_experts > 0 ? m->cfg.moe_freq : 1;

	while (l >= n)
		l -= (n - first) / freq * freq;
	return &m->layers[l];
}

static int copy_layer(struct model *m, struct model_layer *ret, const struct model_layer *from)
{
	struct model_layer copy = *from;
	struct k_weight **weights[LAYER_WEIGHTS];
	int r = 0;

	*ret = (struct model_layer){};
	layer_weights(&copy, weights);
	for (uint32_t i = 0; i < LAYER_WEIGHTS; i++) {
		struct k_weight *w = TAKE_PTR(*weights[i]);

		if (w && r >= 0)
			r = m->k->weight_copy(m->k, weights[i], w);
	}
	if (from->route_bias)
		copy.route_bias = malloc(m->cfg.n_experts * sizeof(*copy.route_bias));
	if (copy.route_bias)
		memcpy(copy.route_bias, from->route_bias,
		       m->cfg.n_experts * sizeof(*copy.route_bias));
	else if (from->route_bias)
		r = -ENOMEM;
	*ret = copy;
	return r;
}

int model_cycle(struct model *m, uint32_t n_packed, uint32_t n_built)
{
	int r = 0;

	for (uint32_t l = n_packed; r >= 0 && l < n_built; l++)
		r = copy_layer(m, &m->layers[l], stand_in(m, n_packed, l));
	m->n_built = n_built;
	for (uint32_t l = n_built; l < m->cfg.n_layers; l++)
		m->layers[l] = *stand_in(m, n_built, l);
	return r;
}

void model_done(struct model *m)
{
	if (!m->k)
		return;
	if (m->head != m->embed)
		m->k->weight_free(m->k, m->head);
	m->k->weight_free(m->k, m->embed);
	m->k->weight_free(m->k, m->norm);
	for (uint32_t l = 0; m->layers && l < m->n_built; l++) {
		struct model_layer *y = &m->layers[l];
		struct k_weight **weights[LAYER_WEIGHTS];

		layer_weights(y, weights);
		for (uint32_t i = 0; i < LAYER_WEIGHTS; i++)
			m->k->weight_free(m->k, *weights[i]);
		free(y->route_bias);
	}
	free(m->layers);
	if (m->map)
		munmap(m->map, m->map_bytes);
	*m = (struct model){};
}

/* Source: transformers modeling_rope_utils, yarn_get_mscale. */
static double yarn_mscale(double factor, double mscale)
{
	return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

float model_softmax_scale(const struct model_config *c)
{
	double scale = 1.0 / sqrt((double)c->nope + c->rope);
	double mscale = 1.0;

	if (c->yarn.on && c->yarn.mscale_all_dim != 0.0)
		mscale = yarn_mscale(c->yarn.factor, c->yarn.mscale_all_dim);
	return (float)(scale * mscale * mscale);
}

/* The dimension whose wave turns @turns times over the original context. */
static double yarn_dimension(const struct model_config *c, double turns)
{
	return c->rope * log(c->yarn.original_context / (turns * 2.0 * M_PI)) /
	       (2.0 * log(c->rope_theta));
}

static float inverse_frequency(const struct model_config *c, uint32_t i)
{
	float p = powf((float)c->rope_theta, (float)(2 * i) / (float)c->rope);
	float extra = 1.0f / p, inter = 1.0f / ((float)c->yarn.factor * p), ramp, mask;
	double low, high;

	if (!c->yarn.on)
		return extra;
	low = fmax(floor(yarn_dimension(c, c->yarn.beta_fast)), 0.0);
	high = fmin(ceil(yarn_dimension(c, c->yarn.beta_slow)), c->rope - 1.0);
	if (low == high)
		high += 0.001;
	ramp = ((float)i - (float)low) / (float)(high - low);
	ramp = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
	mask = 1.0f - ramp;
	return inter * (1.0f - mask) + extra * mask;
}

void model_rope_tables(const struct model_config *c, uint32_t n_positions, float *ret_cos,
		       float *ret_sin)
{
	const struct model_yarn *y = &c->yarn;
	uint32_t n = c->rope / 2;
	float factor = 1.0f;

	if (y->on && y->mscale != 0.0 && y->mscale_all_dim != 0.0)
		factor = (float)(yarn_mscale(y->factor, y->mscale) /
				 yarn_mscale(y->factor, y->mscale_all_dim));
	else if (y->on)
		factor = (float)yarn_mscale(y->factor, 1.0);
	for (uint32_t i = 0; i < n; i++) {
		float inv = inverse_frequency(c, i);

		for (uint32_t pos = 0; pos < n_positions; pos++) {
			float angle = (float)pos * inv;

			ret_cos[(size_t)pos * n + i] = cosf(angle) * factor;
			ret_sin[(size_t)pos * n + i] = sinf(angle) * factor;
		}
	}
}
