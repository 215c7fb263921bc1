/* SPDX-License-Identifier: Apache-2.0 */
/* What is checked here needs no weights. Where two published implementations read a value in two ways
 * and no published model has it (norm_topk_prob with deepseek_v2), it is refused. */
#include "worker/load/config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/json.h"

#define FILE_NAME   "config.json"
#define WIDTH_MAX   65536u /* of a head, the latent, an expert */
#define HIDDEN_MAX  (1u << 20)
#define HEADS_MAX   4096u
#define EXPERTS_MAX 4096u
#define THETA_MAX   1e12
#define YARN_MAX    1e6

static int refuse_if(bool bad, const struct json_place *p, const char *key, struct error *err,
		     const char *want)
{
	return bad ? json_refuse(p, key, err, "%s", want) : 0;
}

static int read_model_type(struct load_config *c, const struct json_place *p, struct error *err)
{
	static const char *const later[] = {"deepseek_v3", "deepseek_v32", "kimi_k2",
					    "glm4_moe_lite"};
	const char *type;
	int r;

	r = json_get_string(p, "model_type", JSON_REQUIRED, &type, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < N_ELEMENTS(later); i++)
		if (strcmp(type, later[i]) == 0) {
			snprintf(c->arch, sizeof(c->arch), "%s", type);
			return error_set(err, -EOPNOTSUPP,
					 FILE_NAME
					 ": model_type: %s is known but not supported yet, want "
					 "deepseek_v2",
					 type);
		}
	if (strcmp(type, "deepseek_v2") != 0) {
		json_refuse(p, "model_type", err, "deepseek_v2");
		return -EOPNOTSUPP;
	}
	snprintf(c->arch, sizeof(c->arch), "%s", type);
	return 0;
}

static int read_widths(struct model_config *m, const struct json_place *p, struct error *err)
{
	const struct {
		const char *key;
		uint32_t *ret, min, max;
		enum json_need need;
	} fields[] = {
		{"hidden_size", &m->hidden, 1, HIDDEN_MAX, JSON_REQUIRED},
		{"num_hidden_layers", &m->n_layers, 1, IMAGE_LAYERS_MAX, JSON_REQUIRED},
		{"vocab_size", &m->n_vocab, 1, IMAGE_VOCAB_MAX, JSON_REQUIRED},
		{"max_position_embeddings", &m->n_context, 1, IMAGE_CONTEXT_MAX, JSON_REQUIRED},
		{"num_attention_heads", &m->n_heads, 1, HEADS_MAX, JSON_REQUIRED},
		{"kv_lora_rank", &m->rank, 1, WIDTH_MAX, JSON_REQUIRED},
		{"q_lora_rank", &m->q_lora_rank, 1, WIDTH_MAX, JSON_OPTIONAL},
		{"qk_nope_head_dim", &m->nope, 1, WIDTH_MAX, JSON_REQUIRED},
		{"qk_rope_head_dim", &m->rope, 2, WIDTH_MAX, JSON_REQUIRED},
		{"v_head_dim", &m->v_head, 1, WIDTH_MAX, JSON_REQUIRED},
		{"intermediate_size", &m->inter, 1, HIDDEN_MAX, JSON_REQUIRED},
	};
	uint32_t n_kv_heads;
	int r;

	for (size_t i = 0; i < N_ELEMENTS(fields); i++) {
		r = json_get_u32(p, fields[i].key, fields[i].need, fields[i].min, fields[i].max,
				 fields[i].ret, err);
		if (r < 0)
			return r;
	}
	n_kv_heads = m->n_heads;
	r = json_get_u32(p, "num_key_value_heads", JSON_OPTIONAL, m->n_heads, m->n_heads,
			 &n_kv_heads, err);
	if (r < 0)
		return r;
	r = refuse_if(m->rope % 2, p, "qk_rope_head_dim", err, "an even number");
	if (r < 0)
		return r;
	return json_get_number(p, "rms_norm_eps", JSON_REQUIRED, 1e-12, 1, &m->rms_eps, err);
}

static int read_yarn(struct model_yarn *y, const struct json_place *p, uint32_t n_context,
		     struct error *err)
{
	bool truncate = true;
	int r;

	y->on = true;
	y->beta_fast = 32;
	y->beta_slow = 1;
	y->original_context = n_context;
	r = json_get_number(p, "factor", JSON_REQUIRED, 1, YARN_MAX, &y->factor, err);
	r = r
		    ?: json_get_u32(p, "original_max_position_embeddings", JSON_OPTIONAL, 1,
				    IMAGE_CONTEXT_MAX, &y->original_context, err);
	r = r ?: json_get_number(p, "beta_fast", JSON_OPTIONAL, 1e-3, YARN_MAX, &y->beta_fast, err);
	r = r ?: json_get_number(p, "beta_slow", JSON_OPTIONAL, 1e-3, YARN_MAX, &y->beta_slow, err);
	r = r ?: json_get_number(p, "mscale", JSON_OPTIONAL, 0, 100, &y->mscale, err);
	r = r
		    ?: json_get_number(p, "mscale_all_dim", JSON_OPTIONAL, 0, 100,
				       &y->mscale_all_dim, err);
	r = r ?: json_get_bool(p, "truncate", JSON_OPTIONAL, &truncate, err);
	if (r < 0)
		return r;
	if (!truncate)
		return json_refuse(p, "truncate", err, "true");
	if (json_get(p, "attention_factor"))
		return json_refuse(p, "attention_factor", err, "none (it follows from mscale)");
	return 0;
}

/* Two spellings: rope_theta beside rope_scaling {type | rope_type}, or both in rope_parameters. */
static int read_rope(struct model_config *m, const struct json_place *p, struct error *err)
{
	struct json_place q = {.file = p->file};
	const char *key, *type = NULL;
	bool interleave = true;
	int r;

	m->rope_theta = 10000;
	r = json_get_bool(p, "rope_interleave", JSON_OPTIONAL, &interleave, err);
	r = r ?: refuse_if(!interleave, p, "rope_interleave", err, "true");
	r = r
		    ?: json_get_number(p, "rope_theta", JSON_OPTIONAL, 1.001, THETA_MAX,
				       &m->rope_theta, err);
	r = r ?: json_get_object(p, "rope_parameters", JSON_OPTIONAL, &q.object, err);
	if (r < 0)
		return r;
	q.path = "rope_parameters.";
	if (!q.object) {
		r = json_get_object(p, "rope_scaling", JSON_OPTIONAL, &q.object, err);
		if (r < 0 || !q.object)
			return r;
		q.path = "rope_scaling.";
	}
	r = json_get_number(&q, "rope_theta", JSON_OPTIONAL, 1.001, THETA_MAX, &m->rope_theta, err);
	key = json_get(&q, "rope_type") ? "rope_type" : "type";
	r = r ?: json_get_string(&q, key, JSON_REQUIRED, &type, err);
	if (r < 0)
		return r;
	if (strcmp(type, "default") == 0)
		return 0;
	if (strcmp(type, "yarn") != 0) {
		json_refuse(&q, key, err, "yarn or default");
		return -EOPNOTSUPP;
	}
	return read_yarn(&m->yarn, &q, m->n_context, err);
}

static int read_groups(struct model_config *m, const struct json_place *p, struct error *err)
{
	struct k_route *route = &m->route;
	const char *method = "greedy";
	int r;

	route->n_group = route->topk_group = 1;
	r = json_get_string(p, "topk_method", JSON_OPTIONAL, &method, err);
	if (r < 0)
		return r;
	if (strcmp(method, "greedy") == 0)
		return 0;
	if (strcmp(method, "group_limited_greedy") != 0) {
		json_refuse(p, "topk_method", err, "greedy or group_limited_greedy");
		return -EOPNOTSUPP;
	}
	r = json_get_u32(p, "n_group", JSON_OPTIONAL, 1, m->n_experts, &route->n_group, err);
	r = r
		    ?: refuse_if(m->n_experts % route->n_group, p, "n_group", err,
				 "a divisor of n_routed_experts");
	r = r
		    ?: json_get_u32(p, "topk_group", JSON_OPTIONAL, 1, route->n_group,
				    &route->topk_group, err);
	return r
		       ?: refuse_if(m->n_used > m->n_experts / route->n_group * route->topk_group,
				    p, "num_experts_per_tok", err,
				    "at most the experts of topk_group groups");
}

static int read_experts(struct model_config *m, const struct json_place *p, struct error *err)
{
	const char *scoring = "softmax";
	double scale = 1;
	bool norm_topk = false;
	int r;

	m->moe_freq = 1;
	r = json_get_u32(p, "n_routed_experts", JSON_OPTIONAL, 1, EXPERTS_MAX, &m->n_experts, err);
	if (r < 0 || m->n_experts == 0)
		return r;
	r = json_get_u32(p, "num_experts_per_tok", JSON_REQUIRED, 1,
			 MIN(m->n_experts, K_EXPERTS_USED_MAX), &m->n_used, err);
	r = r ?: json_get_u32(p, "n_shared_experts", JSON_OPTIONAL, 0, 1024, &m->n_shared, err);
	r = r
		    ?: json_get_u32(p, "moe_intermediate_size", JSON_REQUIRED, 1, WIDTH_MAX,
				    &m->moe_inter, err);
	r = r
		    ?: json_get_u32(p, "first_k_dense_replace", JSON_OPTIONAL, 0, m->n_layers,
				    &m->first_dense, err);
	r = r
		    ?: json_get_u32(p, "moe_layer_freq", JSON_OPTIONAL, 1, m->n_layers,
				    &m->moe_freq, err);
	r = r ?: json_get_string(p, "scoring_func", JSON_OPTIONAL, &scoring, err);
	r = r ?: refuse_if(strcmp(scoring, "softmax") != 0, p, "scoring_func", err, "softmax");
	r = r ?: json_get_bool(p, "norm_topk_prob", JSON_OPTIONAL, &norm_topk, err);
	r = r ?: refuse_if(norm_topk, p, "norm_topk_prob", err, "false for deepseek_v2");
	r = r ?: json_get_number(p, "routed_scaling_factor", JSON_OPTIONAL, 1e-6, 1e6, &scale, err);
	r = r ?: read_groups(m, p, err);
	if (r < 0)
		return r;
	m->route.n_experts = m->n_experts;
	m->route.n_used = m->n_used;
	m->route.scale = (float)scale;
	return 0;
}

/* An id, a list of ids, or nothing. */
static int read_eos(const struct json_place *p, uint32_t n_vocab, uint32_t *ret_n, uint32_t *ret,
		    struct error *err)
{
	struct json_object *o = json_get(p, "eos_token_id");
	size_t n;

	*ret_n = 0;
	if (!o)
		return 0;
	if (!json_object_is_type(o, json_type_array)) {
		int r = json_get_u32(p, "eos_token_id", JSON_REQUIRED, 0, n_vocab - 1, ret, err);

		*ret_n = r == 0;
		return r;
	}
	n = json_object_array_length(o);
	if (n > IMAGE_EOS_MAX)
		return json_refuse(p, "eos_token_id", err, "at most %u ids", IMAGE_EOS_MAX);
	for (size_t i = 0; i < n; i++) {
		struct json_object *id = json_object_array_get_idx(o, i);
		int64_t x = json_object_is_type(id, json_type_int) ? json_object_get_int64(id) : -1;

		if (x < 0 || x >= n_vocab)
			return error_set(err, -EINVAL,
					 "%s: eos_token_id: element %zu is no id below %u", p->file,
					 i, n_vocab);
		ret[i] = (uint32_t)x;
	}
	*ret_n = (uint32_t)n;
	return 0;
}

int load_config_parse(struct load_config *ret, const void *data, size_t n, struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *root = NULL;
	struct json_place p = {.file = FILE_NAME, .path = ""};
	struct load_config c = {.bos = IMAGE_NONE};
	const char *act = "silu";
	bool bias = false;
	int r;

	r = json_parse(&root, FILE_NAME, data, n, err);
	if (r < 0)
		return r;
	p.object = root;
	r = read_model_type(&c, &p, err);
	if (r < 0)
		return r;
	if (json_get(&p, "quantization_config")) {
		json_refuse(&p, "quantization_config", err, "none (F32 or BF16 weights)");
		return -EOPNOTSUPP;
	}
	r = json_get_bool(&p, "attention_bias", JSON_OPTIONAL, &bias, err);
	r = r ?: refuse_if(bias, &p, "attention_bias", err, "false");
	r = r ?: json_get_string(&p, "hidden_act", JSON_OPTIONAL, &act, err);
	r = r ?: refuse_if(strcmp(act, "silu") != 0, &p, "hidden_act", err, "silu");
	r = r ?: json_get_bool(&p, "tie_word_embeddings", JSON_OPTIONAL, &c.tied, err);
	r = r ?: read_widths(&c.m, &p, err);
	r = r ?: read_rope(&c.m, &p, err);
	r = r ?: read_experts(&c.m, &p, err);
	r = r ?: json_get_u32(&p, "bos_token_id", JSON_OPTIONAL, 0, c.m.n_vocab - 1, &c.bos, err);
	r = r ?: read_eos(&p, c.m.n_vocab, &c.n_eos, c.eos, err);
	if (r < 0)
		return r;
	c.synthetic = json_get(&p, "dsd_synthetic");
	r = json_get_u64(&p, "dsd_synthetic", JSON_OPTIONAL, 0, INT64_MAX, &c.synthetic_seed, err);
	if (r < 0)
		return r;
	*ret = c;
	return 0;
}

int load_generation_parse(struct load_generation *ret, const void *data, size_t n, uint32_t n_vocab,
			  struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *root = NULL;
	struct json_place p = {.file = "generation_config.json", .path = ""};
	struct load_generation g = {};
	double temperature = -1, top_p = -1;
	uint32_t top_k = UINT32_MAX;
	bool sample = true;
	int r;

	r = json_parse(&root, p.file, data, n, err);
	if (r < 0)
		return r;
	p.object = root;
	r = json_get_number(&p, "temperature", JSON_OPTIONAL, 0, 100, &temperature, err);
	r = r ?: json_get_number(&p, "top_p", JSON_OPTIONAL, 1e-6, 1, &top_p, err);
	r = r ?: json_get_u32(&p, "top_k", JSON_OPTIONAL, 0, IMAGE_VOCAB_MAX, &top_k, err);
	r = r ?: json_get_bool(&p, "do_sample", JSON_OPTIONAL, &sample, err);
	r = r ?: read_eos(&p, n_vocab, &g.n_eos, g.eos, err);
	if (r < 0)
		return r;
	if (!sample && json_get(&p, "do_sample"))
		temperature = 0; /* published as greedy */
	if (temperature >= 0) {
		g.defaults |= IMAGE_DEFAULT_TEMPERATURE;
		g.temperature = (float)temperature;
	}
	if (top_p > 0) {
		g.defaults |= IMAGE_DEFAULT_TOP_P;
		g.top_p = (float)top_p;
	}
	if (top_k != UINT32_MAX) {
		g.defaults |= IMAGE_DEFAULT_TOP_K;
		g.top_k = top_k;
	}
	*ret = g;
	return 0;
}
