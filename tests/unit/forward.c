/* SPDX-License-Identifier: Apache-2.0 */
/* A small random model run through model_forward(), against the published formulas written
 * down once more in doubles, without a cache, without tiles and without absorption. */
#include "worker/model/forward.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

#define N_TOKENS 150u /* more than two pages, past the original YaRN context */
#define N_PAGES  16u

/* --- a random model ------------------------------------------------------------------------------ */

/* Every matrix twice: as published, for the reference, and packed. */
struct matrix {
	uint32_t n_mat, n_out, n_in;
	float *v;
};

struct reference_layer {
	struct matrix attn_norm, q, q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b, o, ffn_norm;
	struct matrix ffn_gate_up, ffn_down, gate, experts_gate_up, experts_down, shared_gate_up,
		shared_down;
	float *bias;
};

struct fixture {
	struct kernels *k;
	struct model m;
	struct matrix embed, norm, head;
	struct reference_layer *layers;
	uint64_t random;
	enum k_type type;
};

static float uniform(struct fixture *f)
{
	f->random = f->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (float)(f->random >> 40) / (float)(1 << 23) - 1.0f;
}

static int matrix_row(void *ctx, uint32_t row, float *ret)
{
	const struct matrix *a = ctx;

	memcpy(ret, a->v + (size_t)row * a->n_in, a->n_in * sizeof(*ret));
	return 0;
}

static struct k_weight *pack(struct fixture *f, struct matrix *a)
{
	struct k_source src = {a->n_mat, a->n_out, a->n_in, f->type, matrix_row, a};
	struct k_weight *w;

	assert_int_equal(f->k->weight_pack(f->k, &w, &src), 0);
	return w;
}

static struct k_weight *make(struct fixture *f, struct matrix *a, uint32_t n_mat, uint32_t n_out,
			     uint32_t n_in)
{
	float scale = n_out == 1 ? 0.3f : 1.7f / sqrtf((float)n_in);

	*a = (struct matrix){n_mat, n_out, n_in,
			     malloc((size_t)n_mat * n_out * n_in * sizeof(float))};
	for (size_t i = 0; i < (size_t)n_mat * n_out * n_in; i++)
		a->v[i] = uniform(f) * scale + (n_out == 1 ? 1.0f : 0.0f);
	return pack(f, a);
}

/* W_UK [H][rank, nope] and W_UV [H][v, rank] out of kv_b [H * (nope + v), rank]. */
static void split_kv_b(struct fixture *f, struct model_layer *y, const struct matrix *kv_b)
{
	const struct model_config *c = &f->m.cfg;
	struct matrix uk = {c->n_heads, c->rank, c->nope, NULL};
	struct matrix uv = {c->n_heads, c->v_head, c->rank, NULL};

	uk.v = malloc((size_t)c->n_heads * c->rank * c->nope * sizeof(float));
	uv.v = malloc((size_t)c->n_heads * c->rank * c->v_head * sizeof(float));
	for (uint32_t h = 0; h < c->n_heads; h++) {
		const float *rows = kv_b->v + (size_t)h * (c->nope + c->v_head) * c->rank;

		for (uint32_t r = 0; r < c->rank; r++)
			for (uint32_t i = 0; i < c->nope; i++)
				uk.v[((size_t)h * c->rank + r) * c->nope + i] =
					rows[i * c->rank + r];
		memcpy(uv.v + (size_t)h * c->v_head * c->rank, rows + c->nope * c->rank,
		       (size_t)c->v_head * c->rank * sizeof(float));
	}
	y->w_uk = pack(f, &uk);
	y->w_uv = pack(f, &uv);
	free(uk.v);
	free(uv.v);
}

static void make_layer(struct fixture *f, uint32_t l)
{
	const struct model_config *c = &f->m.cfg;
	struct model_layer *y = &f->m.layers[l];
	struct reference_layer *r = &f->layers[l];
	uint32_t d = c->nope + c->rope;

	y->attn_norm = make(f, &r->attn_norm, 1, 1, c->hidden);
	if (c->q_lora_rank > 0) {
		y->q_a = make(f, &r->q_a, 1, c->q_lora_rank, c->hidden);
		y->q_a_norm = make(f, &r->q_a_norm, 1, 1, c->q_lora_rank);
		y->q_b = make(f, &r->q_b, 1, c->n_heads * d, c->q_lora_rank);
	} else {
		y->q = make(f, &r->q, 1, c->n_heads * d, c->hidden);
	}
	y->kv_a = make(f, &r->kv_a, 1, c->rank + c->rope, c->hidden);
	y->kv_a_norm = make(f, &r->kv_a_norm, 1, 1, c->rank);
	y->kv_b = make(f, &r->kv_b, 1, c->n_heads * (c->nope + c->v_head), c->rank);
	split_kv_b(f, y, &r->kv_b);
	y->o = make(f, &r->o, 1, c->hidden, c->n_heads * c->v_head);
	y->ffn_norm = make(f, &r->ffn_norm, 1, 1, c->hidden);
	if (!model_layer_is_moe(c, l)) {
		y->ffn_gate_up = make(f, &r->ffn_gate_up, 1, 2 * c->inter, c->hidden);
		y->ffn_down = make(f, &r->ffn_down, 1, c->hidden, c->inter);
		return;
	}
	y->gate = make(f, &r->gate, 1, c->n_experts, c->hidden);
	y->experts_gate_up =
		make(f, &r->experts_gate_up, c->n_experts, 2 * c->moe_inter, c->hidden);
	y->experts_down = make(f, &r->experts_down, c->n_experts, c->hidden, c->moe_inter);
	if (c->n_shared > 0) {
		uint32_t inter = c->n_shared * c->moe_inter;

		y->shared_gate_up = make(f, &r->shared_gate_up, 1, 2 * inter, c->hidden);
		y->shared_down = make(f, &r->shared_down, 1, c->hidden, inter);
	}
	if (c->route.sigmoid) {
		y->route_bias = malloc(c->n_experts * sizeof(float));
		r->bias = y->route_bias;
		for (uint32_t e = 0; e < c->n_experts; e++)
			r->bias[e] = uniform(f) * 0.2f;
	}
}

static void fixture_init(struct fixture *f, const struct model_config *cfg, enum k_type type,
			 uint32_t n_threads, uint32_t cpu_mask)
{
	struct kernels_config kc = {n_threads, cpu_mask};
	struct error err = {};

	*f = (struct fixture){.random = 42, .type = type};
	assert_int_equal(kernels_cpu_new(&f->k, &kc), 0);
	assert_int_equal(model_init(&f->m, cfg, f->k, &err), 0);
	f->layers = calloc(cfg->n_layers, sizeof(*f->layers));
	f->m.embed = make(f, &f->embed, 1, cfg->n_vocab, cfg->hidden);
	for (uint32_t l = 0; l < cfg->n_layers; l++)
		make_layer(f, l);
	f->m.norm = make(f, &f->norm, 1, 1, cfg->hidden);
	f->m.head = make(f, &f->head, 1, cfg->n_vocab, cfg->hidden);
}

static void fixture_done(struct fixture *f)
{
	for (uint32_t l = 0; l < f->m.cfg.n_layers; l++) {
		struct reference_layer *r = &f->layers[l];
		struct matrix *all[] = {&r->attn_norm,
					&r->q,
					&r->q_a,
					&r->q_a_norm,
					&r->q_b,
					&r->kv_a,
					&r->kv_a_norm,
					&r->kv_b,
					&r->o,
					&r->ffn_norm,
					&r->ffn_gate_up,
					&r->ffn_down,
					&r->gate,
					&r->experts_gate_up,
					&r->experts_down,
					&r->shared_gate_up,
					&r->shared_down};

		for (uint32_t i = 0; i < N_ELEMENTS(all); i++)
			free(all[i]->v);
	}
	free(f->layers);
	free(f->embed.v);
	free(f->norm.v);
	free(f->head.v);
	model_done(&f->m);
	f->k->free(f->k);
}

static const struct model_config lite = {
	/* as V2-Lite: one query projection, greedy softmax router, shared experts, YaRN */
	.n_layers = 3,       .hidden = 48,
	.n_vocab = 70,       .n_context = 256,
	.rms_eps = 1e-6,     .n_heads = 3,
	.nope = 12,          .rope = 8,
	.v_head = 20,        .rank = 24,
	.rope_theta = 10000, .yarn = {true, 8, 32, 1, 0.707, 0.707, 32},
	.inter = 36,         .n_experts = 6,
	.n_used = 2,         .n_shared = 2,
	.moe_inter = 20,     .first_dense = 1,
	.moe_freq = 1,       .route = {.n_group = 1, .topk_group = 1, .scale = 1.0f},
};
static const struct model_config grouped = {
	/* as V2: query latents, group-limited greedy router, a large scale; nope and v swapped in size */
	.n_layers = 2,
	.hidden = 33,
	.n_vocab = 41,
	.n_context = 200,
	.rms_eps = 1e-5,
	.n_heads = 17,
	.nope = 9,
	.rope = 6,
	.v_head = 5,
	.rank = 19,
	.q_lora_rank = 23,
	.rope_theta = 50000,
	.yarn = {true, 4, 32, 1, 1.0, 1.0, 64},
	.inter = 31,
	.n_experts = 12,
	.n_used = 3,
	.n_shared = 1,
	.moe_inter = 17,
	.first_dense = 1,
	.moe_freq = 1,
	.route = {.n_group = 4, .topk_group = 2, .scale = 4.0f},
};
static const struct model_config sigmoid = {
	/* as V3: biased sigmoid router with top-2 groups, normalised; no YaRN, no shared expert */
	.n_layers = 2,
	.hidden = 40,
	.n_vocab = 64,
	.n_context = 200,
	.rms_eps = 1e-5,
	.n_heads = 2,
	.nope = 16,
	.rope = 16,
	.v_head = 32,
	.rank = 32,
	.q_lora_rank = 20,
	.rope_theta = 10000,
	.inter = 24,
	.n_experts = 8,
	.n_used = 3,
	.n_shared = 0,
	.moe_inter = 16,
	.first_dense = 0,
	.moe_freq = 1,
	.route = {.n_group = 4,
		  .topk_group = 2,
		  .sigmoid = true,
		  .group_top2 = true,
		  .norm_topk = true,
		  .scale = 2.5f},
};
static const struct model_config *const configs[] = {&lite, &grouped, &sigmoid};

static void make_ids(const struct model_config *c, uint32_t *ids, uint32_t n, uint32_t salt)
{
	for (uint32_t i = 0; i < n; i++)
		ids[i] = (i * 7919u + salt * 104729u + i * i * 31u) % c->n_vocab;
}

/* --- the formulas in doubles --------------------------------------------------------------------- */

static void matvec(double *y, const struct matrix *a, uint32_t mat, const double *x)
{
	const float *w = a->v + (size_t)mat * a->n_out * a->n_in;

	for (uint32_t o = 0; o < a->n_out; o++) {
		y[o] = 0;
		for (uint32_t i = 0; i < a->n_in; i++)
			y[o] += (double)w[(size_t)o * a->n_in + i] * x[i];
	}
}

static void norm(double *y, const double *x, const struct matrix *w, uint32_t n, double eps)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	for (uint32_t i = 0; i < n; i++)
		y[i] = x[i] / sqrt(sum / n + eps) * w->v[i];
}

static double reference_frequency(const struct model_config *c, uint32_t i)
{
	const struct model_yarn *y = &c->yarn;
	double p = pow(c->rope_theta, 2.0 * i / c->rope), low, high, ramp;

	if (!y->on)
		return 1 / p;
	low = floor(c->rope * log(y->original_context / (y->beta_fast * 2 * M_PI)) / 2 /
		    log(c->rope_theta));
	high = ceil(c->rope * log(y->original_context / (y->beta_slow * 2 * M_PI)) / 2 /
		    log(c->rope_theta));
	low = low < 0 ? 0 : low;
	high = high > c->rope - 1 ? c->rope - 1 : high;
	ramp = (i - low) / (high - low);
	ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
	return ramp / (y->factor * p) + (1 - ramp) / p;
}

static void rope(const struct model_config *c, double *x, uint32_t pos)
{
	for (uint32_t i = 0; i < c->rope / 2; i++) {
		double t = pos * reference_frequency(c, i), a = x[2 * i], b = x[2 * i + 1];

		x[2 * i] = a * cos(t) - b * sin(t);
		x[2 * i + 1] = a * sin(t) + b * cos(t);
	}
}

static void mlp(double *y, const struct matrix *gate_up, const struct matrix *down, uint32_t mat,
		const double *x)
{
	double h[512];
	uint32_t inter = down->n_in;

	matvec(h, gate_up, mat, x);
	for (uint32_t i = 0; i < inter; i++)
		h[i] = h[i] / (1 + exp(-h[i])) * h[inter + i];
	matvec(y, down, mat, h);
}

static uint32_t best_of(const double *x, const bool *gone, uint32_t n)
{
	uint32_t best = n;

	for (uint32_t i = 0; i < n; i++)
		if (!gone[i] && (best == n || x[i] > x[best]))
			best = i;
	return best;
}

static void reference_moe(const struct model_config *c, const struct reference_layer *r, double *y,
			  const double *x)
{
	uint32_t per_group = c->n_experts / c->route.n_group, chosen[32];
	double p[64], by[64], groups[64], part[512], sum = 0;
	bool gone[64], group_gone[64] = {false};

	matvec(p, &r->gate, 0, x);
	for (uint32_t e = 0; e < c->n_experts; e++)
		sum += exp(p[e]);
	for (uint32_t e = 0; e < c->n_experts; e++) {
		p[e] = c->route.sigmoid ? 1 / (1 + exp(-p[e])) : exp(p[e]) / sum;
		by[e] = p[e] + (r->bias ? r->bias[e] : 0);
		gone[e] = true;
	}
	for (uint32_t g = 0; g < c->route.n_group; g++) {
		double first = -1e9, second = -1e9;

		for (uint32_t e = g * per_group; e < (g + 1) * per_group; e++) {
			second = by[e] > first ? first : by[e] > second ? by[e] : second;
			first = by[e] > first ? by[e] : first;
		}
		groups[g] = c->route.group_top2 ? first + second : first;
	}
	for (uint32_t i = 0; i < c->route.topk_group; i++) {
		uint32_t g = best_of(groups, group_gone, c->route.n_group);

		group_gone[g] = true;
		for (uint32_t e = g * per_group; e < (g + 1) * per_group; e++)
			gone[e] = false;
	}
	sum = 0;
	for (uint32_t i = 0; i < c->n_used; i++) {
		chosen[i] = best_of(by, gone, c->n_experts);
		gone[chosen[i]] = true;
		sum += p[chosen[i]];
	}
	memset(y, 0, c->hidden * sizeof(*y));
	for (uint32_t i = 0; i < c->n_used; i++) {
		double w = p[chosen[i]] / (c->route.norm_topk ? sum : 1) * c->route.scale;

		mlp(part, &r->experts_gate_up, &r->experts_down, chosen[i], x);
		for (uint32_t d = 0; d < c->hidden; d++)
			y[d] += w * part[d];
	}
	if (c->n_shared == 0)
		return;
	mlp(part, &r->shared_gate_up, &r->shared_down, 0, x);
	for (uint32_t d = 0; d < c->hidden; d++)
		y[d] += part[d];
}

/* Softmax attention of the last of @n positions over all of them; q [H][nope+rope], caches in doubles. */
static void reference_attend(const struct model_config *c, double *out, const double *q,
			     const double *kvb, const double *k_rope, uint32_t n)
{
	uint32_t d = c->nope + c->rope, e = c->nope + c->v_head;
	double scale = 1 / sqrt(d), w[N_TOKENS], m = 1;

	if (c->yarn.on)
		m = 0.1 * c->yarn.mscale_all_dim * log(c->yarn.factor) + 1;
	for (uint32_t h = 0; h < c->n_heads; h++) {
		double max = -1e300, sum = 0;

		for (uint32_t j = 0; j < n; j++) {
			const double *key = kvb + ((size_t)j * c->n_heads + h) * e;

			w[j] = 0;
			for (uint32_t i = 0; i < c->nope; i++)
				w[j] += q[h * d + i] * key[i];
			for (uint32_t i = 0; i < c->rope; i++)
				w[j] += q[h * d + c->nope + i] * k_rope[j * c->rope + i];
			w[j] *= scale * m * m;
			max = w[j] > max ? w[j] : max;
		}
		for (uint32_t j = 0; j < n; j++)
			sum += w[j] = exp(w[j] - max);
		for (uint32_t i = 0; i < c->v_head; i++) {
			out[h * c->v_head + i] = 0;
			for (uint32_t j = 0; j < n; j++)
				out[h * c->v_head + i] +=
					w[j] / sum *
					kvb[((size_t)j * c->n_heads + h) * e + c->nope + i];
		}
	}
}

/* logits [n][n_vocab] */
static void reference_forward(const struct fixture *f, const uint32_t *ids, uint32_t n,
			      double *logits)
{
	const struct model_config *c = &f->m.cfg;
	double *x = calloc((size_t)n * c->hidden, sizeof(*x));
	double *kvb = calloc((size_t)n * c->n_heads * (c->nope + c->v_head), sizeof(*kvb));
	double *k_rope = calloc((size_t)n * c->rope, sizeof(*k_rope));
	double a[512], q[1024], qa[256], kv[512], o[1024], y[512];

	for (uint32_t t = 0; t < n; t++)
		for (uint32_t d = 0; d < c->hidden; d++)
			x[t * c->hidden + d] = f->embed.v[(size_t)ids[t] * c->hidden + d];
	for (uint32_t l = 0; l < c->n_layers; l++) {
		const struct reference_layer *r = &f->layers[l];

		for (uint32_t t = 0; t < n; t++) {
			double *xt = x + t * c->hidden;

			norm(a, xt, &r->attn_norm, c->hidden, c->rms_eps);
			if (c->q_lora_rank > 0) {
				matvec(qa, &r->q_a, 0, a);
				norm(qa, qa, &r->q_a_norm, c->q_lora_rank, 1e-6);
				matvec(q, &r->q_b, 0, qa);
			} else {
				matvec(q, &r->q, 0, a);
			}
			for (uint32_t h = 0; h < c->n_heads; h++)
				rope(c, q + h * (c->nope + c->rope) + c->nope, t);
			matvec(kv, &r->kv_a, 0, a);
			norm(kv, kv, &r->kv_a_norm, c->rank, 1e-6);
			rope(c, kv + c->rank, t);
			memcpy(k_rope + t * c->rope, kv + c->rank, c->rope * sizeof(*kv));
			matvec(kvb + (size_t)t * c->n_heads * (c->nope + c->v_head), &r->kv_b, 0,
			       kv);
			reference_attend(c, o, q, kvb, k_rope, t + 1);
			matvec(y, &r->o, 0, o);
			for (uint32_t d = 0; d < c->hidden; d++)
				xt[d] += y[d];
			norm(a, xt, &r->ffn_norm, c->hidden, c->rms_eps);
			if (model_layer_is_moe(c, l))
				reference_moe(c, r, y, a);
			else
				mlp(y, &r->ffn_gate_up, &r->ffn_down, 0, a);
			for (uint32_t d = 0; d < c->hidden; d++)
				xt[d] += y[d];
		}
	}
	for (uint32_t t = 0; t < n; t++) {
		norm(a, x + t * c->hidden, &f->norm, c->hidden, c->rms_eps);
		matvec(logits + (size_t)t * c->n_vocab, &f->head, 0, a);
	}
	free(x);
	free(kvb);
	free(k_rope);
}

/* --- running the model --------------------------------------------------------------------------- */

struct run {
	struct fixture *f;
	struct forward *fwd;
	struct k_pool pool;
	uint64_t stream_offset[8];
};

static void run_init(struct run *r, struct fixture *f, enum k_entry entry)
{
	const struct model_config *c = &f->m.cfg;
	struct error err = {};

	*r = (struct run){.f = f};
	r->pool = (struct k_pool){
		.n_pages = N_PAGES,
		.n_streams = c->n_layers,
		.stream_offset = r->stream_offset,
		.entry = entry,
		.row_bytes = (c->rank + c->rope) * (entry == K_ENTRY_BF16 ? 2 : 4),
	};
	for (uint32_t l = 0; l < c->n_layers; l++)
		r->stream_offset[l] = (uint64_t)l * K_TILE_POSITIONS * r->pool.row_bytes;
	r->pool.stride = (uint64_t)c->n_layers * K_TILE_POSITIONS * r->pool.row_bytes + 64;
	r->pool.data = malloc(N_PAGES * r->pool.stride);
	memset(r->pool.data, 0xff, N_PAGES * r->pool.stride); /* NaN in every row nobody wrote */
	assert_int_equal(forward_new(&r->fwd, &f->m, 200, 200, &err), 0);
}

static void run_done(struct run *r)
{
	forward_free(r->fwd);
	free(r->pool.data);
}

/* Rows of one sequence in a step of several. */
struct piece {
	const uint32_t *ids; /* of the sequence, from position 0 */
	uint32_t first_pos, n_rows;
	bool generated;
	const uint32_t *pages;
	float *logits; /* [n_rows][n_vocab], or NULL */
};

static int run_step(struct run *r, const struct piece *pieces, uint32_t n_pieces)
{
	uint32_t ids[200], positions[200], picks[200], n = 0;
	struct k_segment segments[32];
	struct k_step step = {0, n_pieces, ids, positions, segments};
	struct error err = {};
	int e;

	for (uint32_t p = 0; p < n_pieces; p++) {
		segments[p] = (struct k_segment){n, pieces[p].n_rows, pieces[p].first_pos,
						 pieces[p].generated, pieces[p].pages};
		for (uint32_t i = 0; i < pieces[p].n_rows; i++, n++) {
			positions[n] = pieces[p].first_pos + i;
			ids[n] = pieces[p].ids[positions[n]];
			picks[n] = n;
		}
	}
	step.n_rows = n;
	e = model_forward(r->fwd, &step, &r->pool, &err);
	if (e < 0)
		return e;
	struct k_buffer *logits = forward_logits(r->fwd, picks, n);

	n = 0;
	for (uint32_t p = 0; p < n_pieces; n += pieces[p++].n_rows)
		if (pieces[p].logits)
			r->f->k->download(r->f->k, pieces[p].logits, logits, n, pieces[p].n_rows);
	return 0;
}

/* All tokens of a sequence alone: prompt in chunks, the rest one generated row at a time. */
static void run_alone(struct run *r, const uint32_t *ids, uint32_t n, uint32_t n_prompt,
		      uint32_t chunk, const uint32_t *pages, float *logits)
{
	for (uint32_t at = 0; at < n;) {
		uint32_t rows = at < n_prompt ? MIN(chunk, n_prompt - at) : 1;
		struct piece p = {ids,   at,
				  rows,  at >= n_prompt,
				  pages, logits + (size_t)at * r->f->m.cfg.n_vocab};

		assert_int_equal(run_step(r, &p, 1), 0);
		at += rows;
	}
}

static const uint32_t pages_a[] = {5, 2, 11, 7}, pages_b[] = {0, 9, 3, 1},
		      pages_c[] = {14, 4, 8, 6};

static double largest_difference(const float *a, const double *b, size_t n)
{
	double max = 0;

	for (size_t i = 0; i < n; i++)
		max = fmax(max, isnan(a[i]) ? INFINITY : fabs(a[i] - b[i]));
	return max;
}

static void forward_prefill_equals_dense_reference(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(configs); i++) {
		const struct model_config *c = configs[i];
		double *want = malloc((size_t)N_TOKENS * c->n_vocab * sizeof(*want));
		float *got = malloc((size_t)N_TOKENS * c->n_vocab * sizeof(*got));
		uint32_t ids[N_TOKENS];
		struct fixture f;
		struct run r;

		fixture_init(&f, c, K_F32, 1, UINT32_MAX);
		run_init(&r, &f, K_ENTRY_F32);
		make_ids(c, ids, N_TOKENS, i);
		reference_forward(&f, ids, N_TOKENS, want);
		run_alone(&r, ids, N_TOKENS, N_TOKENS, N_TOKENS, pages_a, got);
		assert_true(largest_difference(got, want, (size_t)N_TOKENS * c->n_vocab) < 1e-4);
		run_done(&r);
		fixture_done(&f);
		free(want);
		free(got);
	}
}

static void forward_decode_with_cache_equals_dense_reference(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(configs); i++) {
		const struct model_config *c = configs[i];
		double *want = malloc((size_t)N_TOKENS * c->n_vocab * sizeof(*want));
		float *got = malloc((size_t)N_TOKENS * c->n_vocab * sizeof(*got));
		uint32_t ids[N_TOKENS];
		struct fixture f;
		struct run r;

		fixture_init(&f, c, K_F32, 1, UINT32_MAX);
		run_init(&r, &f, K_ENTRY_F32);
		make_ids(c, ids, N_TOKENS, i);
		reference_forward(&f, ids, N_TOKENS, want);
		run_alone(&r, ids, N_TOKENS, 13, 13, pages_b, got);
		assert_true(largest_difference(got, want, (size_t)N_TOKENS * c->n_vocab) < 1e-4);
		run_done(&r);
		fixture_done(&f);
		free(want);
		free(got);
	}
}

static void forward_bits_do_not_depend_on_chunks(void **state)
{
	static const uint32_t chunks[] = {1, 7, 64, 100};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(configs); i++) {
		const struct model_config *c = configs[i];
		size_t bytes = (size_t)N_TOKENS * c->n_vocab * sizeof(float);
		float *want = malloc(bytes), *got = malloc(bytes);
		uint32_t ids[N_TOKENS];
		struct fixture f;

		fixture_init(&f, c, K_BF16, 1, UINT32_MAX);
		make_ids(c, ids, N_TOKENS, i);
		for (uint32_t j = 0; j < N_ELEMENTS(chunks); j++) {
			struct run r;

			run_init(&r, &f, K_ENTRY_BF16);
			run_alone(&r, ids, N_TOKENS, N_TOKENS, N_TOKENS, pages_a, want);
			run_alone(&r, ids, N_TOKENS, N_TOKENS, chunks[j], pages_b, got);
			assert_memory_equal(got, want, bytes);
			run_done(&r);
		}
		fixture_done(&f);
		free(want);
		free(got);
	}
}

/* Three sequences in one batch, prompts of odd chunks beside generated rows. */
static void forward_bits_do_not_depend_on_the_batch(void **state)
{
	static const uint32_t *const pages[] = {pages_a, pages_b, pages_c};
	static const uint32_t n_prompt[] = {80, 3, 129}, chunk[] = {11, 3, 40};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(configs); i++) {
		const struct model_config *c = configs[i];
		size_t bytes = (size_t)N_TOKENS * c->n_vocab * sizeof(float);
		uint32_t ids[3][N_TOKENS], at[3] = {0}, done = 0;
		float *want[3], *got[3];
		struct fixture f;
		struct run alone, together;

		fixture_init(&f, c, K_BF16, 1, UINT32_MAX);
		run_init(&alone, &f, K_ENTRY_BF16);
		run_init(&together, &f, K_ENTRY_BF16);
		for (uint32_t s = 0; s < 3; s++) {
			want[s] = malloc(bytes);
			got[s] = malloc(bytes);
			make_ids(c, ids[s], N_TOKENS, s);
			run_alone(&alone, ids[s], N_TOKENS, n_prompt[s], 200, pages_a, want[s]);
		}
		while (done < 3) {
			struct piece pieces[3];
			uint32_t n = 0;

			for (uint32_t s = 0; s < 3; s++) {
				uint32_t left = at[s] < n_prompt[s]
							? MIN(chunk[s], n_prompt[s] - at[s])
							: 1;

				if (at[s] == N_TOKENS)
					continue;
				pieces[n++] = (struct piece){
					ids[s],   at[s],
					left,     at[s] >= n_prompt[s],
					pages[s], got[s] + (size_t)at[s] * c->n_vocab};
				at[s] += left;
				done += at[s] == N_TOKENS;
			}
			assert_int_equal(run_step(&together, pieces, n), 0);
		}
		for (uint32_t s = 0; s < 3; s++) {
			assert_memory_equal(got[s], want[s], bytes);
			free(want[s]);
			free(got[s]);
		}
		run_done(&alone);
		run_done(&together);
		fixture_done(&f);
	}
}

/* A resumed request recomputes its generated rows many at a time. */
static void forward_bits_of_resumed_rows_equal_first_run(void **state)
{
	size_t bytes = (size_t)N_TOKENS * lite.n_vocab * sizeof(float);
	float *want = malloc(bytes), *got = malloc(bytes);
	uint32_t ids[N_TOKENS];
	struct fixture f;
	struct run r;

	(void)state;
	fixture_init(&f, &lite, K_BF16, 1, UINT32_MAX);
	run_init(&r, &f, K_ENTRY_BF16);
	make_ids(&lite, ids, N_TOKENS, 3);
	run_alone(&r, ids, N_TOKENS, 20, 20, pages_a, want);
	struct piece prompt = {ids, 0, 20, false, pages_b, got};
	struct piece rest = {ids,  20,      N_TOKENS - 20,
			     true, pages_b, got + (size_t)20 * lite.n_vocab};

	assert_int_equal(run_step(&r, &prompt, 1), 0);
	assert_int_equal(run_step(&r, &rest, 1), 0);
	assert_memory_equal(got, want, bytes);
	run_done(&r);
	fixture_done(&f);
	free(want);
	free(got);
}

static void forward_bits_do_not_depend_on_threads_or_instructions(void **state)
{
	static const struct {
		uint32_t threads, mask;
	} ways[] = {{1, 0}, {1, K_CPU_AVX2}, {1, UINT32_MAX}, {2, UINT32_MAX}, {5, K_CPU_AVX2}};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(configs); i++) {
		const struct model_config *c = configs[i];
		size_t bytes = (size_t)N_TOKENS * c->n_vocab * sizeof(float);
		float *want = malloc(bytes), *got = malloc(bytes);
		uint32_t ids[N_TOKENS];

		make_ids(c, ids, N_TOKENS, i);
		for (uint32_t j = 0; j < N_ELEMENTS(ways); j++) {
			struct fixture f;
			struct run r;

			fixture_init(&f, c, K_BF16, ways[j].threads, ways[j].mask);
			run_init(&r, &f, K_ENTRY_BF16);
			run_alone(&r, ids, N_TOKENS, 100, 100, pages_a, j == 0 ? want : got);
			if (j > 0)
				assert_memory_equal(got, want, bytes);
			run_done(&r);
			fixture_done(&f);
		}
		free(want);
		free(got);
	}
}

static void forward_rejects_steps_outside_model_and_pool(void **state)
{
	uint32_t ids[] = {1, 2, 3}, pages[] = {0}, bad_pages[] = {N_PAGES},
		 bad_ids[] = {1, lite.n_vocab};
	uint32_t positions[] = {0, 1, 2}, late[] = {lite.n_context, lite.n_context + 1};
	uint32_t many_pages[8] = {0};
	struct k_segment seg = {0, 2, 0, false, pages}, gap = {1, 2, 1, false, pages};
	struct k_segment outside = {0, 2, 0, false, bad_pages};
	struct k_segment beyond = {0, 2, lite.n_context, false, many_pages};
	struct error err = {};
	struct fixture f;
	struct run r;

	(void)state;
	fixture_init(&f, &lite, K_F32, 1, UINT32_MAX);
	run_init(&r, &f, K_ENTRY_F32);
	const struct k_step bad[] = {
		{0, 0, ids, positions, &seg},     {201, 1, ids, positions, &seg},
		{3, 1, ids, positions, &seg},     {2, 1, bad_ids, positions, &seg},
		{2, 1, ids, late, &beyond},       {2, 1, ids, positions, &gap},
		{2, 1, ids, positions, &outside}, {2, 1, ids, positions + 1, &seg},
		{1, 1, ids, positions, &seg},
	};
	const struct k_step good = {2, 1, ids, positions, &seg};

	for (uint32_t i = 0; i < N_ELEMENTS(bad); i++) {
		err.text[0] = '\0';
		assert_int_equal(model_forward(r.fwd, &bad[i], &r.pool, &err), -EINVAL);
		assert_string_not_equal(err.text, "");
	}
	assert_int_equal(model_forward(r.fwd, &good, &r.pool, &err), 0);
	r.pool.entry = K_ENTRY_INT8;
	assert_int_equal(model_forward(r.fwd, &good, &r.pool, &err), -EINVAL);
	r.pool.entry = K_ENTRY_BF16; /* rows have the bytes of f32 */
	assert_int_equal(model_forward(r.fwd, &good, &r.pool, &err), -EINVAL);
	run_done(&r);
	fixture_done(&f);
}

static void model_init_refuses_shapes_without_a_forward(void **state)
{
	static const struct {
		size_t offset;
		uint32_t value;
	} bad[] = {
		{offsetof(struct model_config, hidden), 0},
		{offsetof(struct model_config, n_layers), 0},
		{offsetof(struct model_config, n_layers), 5000},
		{offsetof(struct model_config, rope), 7},
		{offsetof(struct model_config, n_heads), 0},
		{offsetof(struct model_config, rank), 1u << 25},
		{offsetof(struct model_config, n_used), 13},
		{offsetof(struct model_config, n_used), 7}, /* two groups of three */
		{offsetof(struct model_config, n_experts), 13},
		{offsetof(struct model_config, moe_freq), 0},
		{offsetof(struct model_config, inter), 0},
	};
	struct kernels_config kc = {1, 0};
	struct kernels *k;

	(void)state;
	assert_int_equal(kernels_cpu_new(&k, &kc), 0);
	for (uint32_t i = 0; i < N_ELEMENTS(bad); i++) {
		struct model_config c = grouped;
		struct error err = {};
		struct model m;

		memcpy((char *)&c + bad[i].offset, &bad[i].value, sizeof(bad[i].value));
		assert_int_equal(model_init(&m, &c, k, &err), -EINVAL);
		assert_string_not_equal(err.text, "");
	}
	k->free(k);
}

/* Figures of the published configurations. */
static void model_yarn_has_published_frequencies_and_scales(void **state)
{
	static const struct {
		uint32_t i;
		double inverse;
	} known[] = {{11, 0.0390069266},   {12, 0.0268793601},   {16, 0.0055},
		     {20, 0.000790569415}, {22, 0.000177827941}, {23, 3.33380358e-05},
		     {31, 3.33380358e-06}};
	struct model_config c = {.nope = 128,
				 .rope = 64,
				 .rope_theta = 10000,
				 .yarn = {true, 40, 32, 1, 0.707, 0.707, 4096}};
	float cos_[2 * 32], sin_[2 * 32];

	(void)state;
	model_rope_tables(&c, 2, cos_, sin_);
	for (uint32_t i = 0; i < N_ELEMENTS(known); i++) {
		double angle = atan2(sin_[32 + known[i].i], cos_[32 + known[i].i]);

		assert_true(fabs(angle / known[i].inverse - 1) < 1e-6);
		assert_true(cos_[known[i].i] == 1.0f && sin_[known[i].i] == 0.0f);
	}
	assert_true(fabs(model_softmax_scale(&c) - 0.1147213868) < 1e-8);
	c.yarn.mscale = c.yarn.mscale_all_dim = 1.0;
	assert_true(fabs(model_softmax_scale(&c) - 0.1352337789) < 1e-8);
	c.yarn.on = false;
	assert_true(fabs(model_softmax_scale(&c) - 0.0721687836) < 1e-8);
	/* beta_fast = beta_slow: a step (Kimi-K2) */
	c.rope_theta = 50000;
	c.yarn = (struct model_yarn){true, 32, 1, 1, 1, 1, 4096};
	model_rope_tables(&c, 2, cos_, sin_);
	assert_true(fabs(atan2(sin_[32 + 19], cos_[32 + 19]) * pow(50000, 19 / 32.0) - 1) < 1e-6);
	assert_true(fabs(atan2(sin_[32 + 20], cos_[32 + 20]) * 32 * pow(50000, 20 / 32.0) - 1) <
		    1e-6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forward_prefill_equals_dense_reference),
		cmocka_unit_test(forward_decode_with_cache_equals_dense_reference),
		cmocka_unit_test(forward_bits_do_not_depend_on_chunks),
		cmocka_unit_test(forward_bits_do_not_depend_on_the_batch),
		cmocka_unit_test(forward_bits_of_resumed_rows_equal_first_run),
		cmocka_unit_test(forward_bits_do_not_depend_on_threads_or_instructions),
		cmocka_unit_test(forward_rejects_steps_outside_model_and_pool),
		cmocka_unit_test(model_init_refuses_shapes_without_a_forward),
		cmocka_unit_test(model_yarn_has_published_frequencies_and_scales),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
