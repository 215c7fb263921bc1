/* SPDX-License-Identifier: Apache-2.0 */
/* The router: which experts a row goes to, and with what weight.
 *
 * Scores are f32 chains over ascending K like any product. Selection is stable: the higher score first,
 * the lower index on ties; a NaN counts as lowest and is counted in kernels.n_nan_scores. */
#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "cpu.h"

#define NORM_EPS 1e-20f /* as the published code guards the sum of the chosen weights */

struct route_job {
	struct cpu *c;
	const struct k_route *r;
	float *scores; /* [n_rows][n_experts]: logits in, then what the choice is made by */
	float *probs;  /* [n_rows][n_experts]: what the weights are taken from */
	uint32_t *ids; /* [n_rows][n_used] */
	float *weights;
	_Atomic uint64_t n_nan;
};

/* logits -> probabilities, in place */
static void score_row(const struct cpu_isa *isa, const struct k_route *r, float *x)
{
	float max = x[0], sum = 0.0f;

	if (r->sigmoid) { /* 1 / (1 + e^-x) */
		for (uint32_t e = 0; e < r->n_experts; e++)
			x[e] = -x[e];
		isa->exp(x, x, 0.0f, 1.0f, r->n_experts);
		for (uint32_t e = 0; e < r->n_experts; e++)
			x[e] = 1.0f / (1.0f + x[e]);
		return;
	}
	for (uint32_t e = 1; e < r->n_experts; e++)
		max = x[e] > max ? x[e] : max;
	isa->exp(x, x, max, 1.0f, r->n_experts);
	for (uint32_t e = 0; e < r->n_experts; e++)
		sum += x[e];
	for (uint32_t e = 0; e < r->n_experts; e++)
		x[e] /= sum;
}

static float group_score(const struct k_route *r, const float *scores, uint32_t group)
{
	uint32_t n = r->n_experts / r->n_group;
	float best = -INFINITY, second = -INFINITY;

	for (uint32_t e = group * n; e < (group + 1) * n; e++) {
		if (scores[e] > best) {
			second = best;
			best = scores[e];
		} else if (scores[e] > second) {
			second = scores[e];
		}
	}
	return r->group_top2 && n > 1 ? best + second : best;
}

/* Index of the largest, the lowest one on ties; *x becomes NaN so that it is not found again. */
static uint32_t take_best(float *x, uint32_t n)
{
	uint32_t best = n;

	for (uint32_t i = 0; i < n; i++)
		if (!isnan(x[i]) && (best == n || x[i] > x[best]))
			best = i;
	if (best < n)
		x[best] = NAN;
	return best;
}

/* Experts outside the best topk_group groups are not to be chosen. */
static void drop_groups(const struct k_route *r, float *scores)
{
	uint32_t n = r->n_experts / r->n_group;

	for (uint32_t dropped = r->topk_group; dropped < r->n_group; dropped++) {
		uint32_t worst = r->n_group;
		float worst_score = 0.0f;

		for (uint32_t g = 0; g < r->n_group; g++) {
			float score;

			if (isnan(scores[g * n])) /* gone already */
				continue;
			score = group_score(r, scores, g);
			if (worst == r->n_group || score <= worst_score) {
				worst = g;
				worst_score = score;
			}
		}
		for (uint32_t e = worst * n; worst < r->n_group && e < (worst + 1) * n; e++)
			scores[e] = NAN;
	}
}

static void choose_row(const struct route_job *j, uint32_t row)
{
	const struct k_route *r = j->r;
	float *scores = j->scores + (size_t)row * r->n_experts, sum = 0.0f;
	float *probs = j->probs + (size_t)row * r->n_experts;
	float *weights = j->weights + (size_t)row * r->n_used;
	uint32_t *ids = j->ids + (size_t)row * r->n_used;

	if (r->n_group > 1)
		drop_groups(r, scores);
	for (uint32_t i = 0; i < r->n_used; i++) {
		uint32_t e = take_best(scores, r->n_experts);

		ids[i] = e;
		weights[i] = probs[e];
		sum += probs[e];
	}
	for (uint32_t i = 0; i < r->n_used; i++) {
		if (r->norm_topk && r->n_used > 1)
			weights[i] /= sum + NORM_EPS;
		weights[i] *= r->scale;
	}
}

static void route_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct route_job *j = ctx;
	const struct k_route *r = j->r;
	uint32_t begin, end;

	threads_share(j->c->step.n_rows, thread, n_threads, &begin, &end);
	for (uint32_t row = begin; row < end; row++) {
		float *scores = j->scores + (size_t)row * r->n_experts;
		float *probs = j->probs + (size_t)row * r->n_experts;
		uint64_t n_nan = 0;

		score_row(&j->c->isa, r, scores);
		memcpy(probs, scores, r->n_experts * sizeof(*probs));
		for (uint32_t e = 0; e < r->n_experts; e++) {
			if (r->bias)
				scores[e] += r->bias[e];
			if (isnan(scores[e])) {
				scores[e] = -INFINITY;
				n_nan++;
			}
		}
		if (n_nan > 0)
			atomic_fetch_add(&j->n_nan, n_nan);
		choose_row(j, row);
	}
}

/* How many experts are somebody's. */
static uint32_t count_chosen(const struct route_job *j)
{
	uint32_t n_pairs = j->c->step.n_rows * j->r->n_used, n = 0;
	uint8_t *seen = (uint8_t *)j->scores; /* the choice is made */

	memset(seen, 0, j->r->n_experts);
	for (uint32_t i = 0; i < n_pairs; i++) {
		n += !seen[j->ids[i]];
		seen[j->ids[i]] = 1;
	}
	return n;
}

void cpu_route(struct kernels *k, const struct k_buffer *x, const struct k_weight *gate,
	       const struct k_route *r)
{
	struct cpu *c = cpu_of(k);
	uint32_t n_rows = c->step.n_rows;
	uint64_t cells = (uint64_t)n_rows * r->n_experts, used = (uint64_t)n_rows * r->n_used;
	struct route_job j = {.c = c, .r = r};
	const float **xs;
	float **ys;

	assert(gate->n_out == r->n_experts && gate->n_in <= x->width && r->n_used <= r->n_experts);
	assert(r->n_group <= 1 || (r->n_experts % r->n_group == 0 &&
				   r->topk_group * (r->n_experts / r->n_group) >= r->n_used));
	c->routed.n_rows = 0;
	xs = cpu_scratch(c, SCRATCH_ROWS, 2 * (uint64_t)n_rows * sizeof(*xs));
	j.scores = cpu_scratch(c, SCRATCH_ROUTE_SCORES, 2 * cells * sizeof(float));
	j.ids = cpu_scratch(c, SCRATCH_ROUTE_IDS, used * sizeof(*j.ids));
	j.weights = cpu_scratch(c, SCRATCH_ROUTE_WEIGHTS, used * sizeof(*j.weights));
	if (!xs || !j.scores || !j.ids || !j.weights)
		return;
	j.probs = j.scores + cells;
	ys = (float **)(xs + n_rows);
	for (uint32_t i = 0; i < n_rows; i++) {
		xs[i] = buffer_row(x, i);
		ys[i] = j.scores + (size_t)i * r->n_experts;
	}
	cpu_linear(c, ys, xs, n_rows, gate);
	threads_run(c->threads, cells * 8, route_part, &j); /* exponentials, a sort */
	k->n_nan_scores += j.n_nan;
	k->n_routed += count_chosen(&j);
	c->routed.n_rows = n_rows;
	c->routed.n_used = r->n_used;
	c->routed.n_experts = r->n_experts;
}

void cpu_routed(struct kernels *k, uint32_t *ret_ids, float *ret_weights)
{
	struct cpu *c = cpu_of(k);
	size_t n = (size_t)c->routed.n_rows * c->routed.n_used;

	memcpy(ret_ids, c->scratch[SCRATCH_ROUTE_IDS].data, n * sizeof(*ret_ids));
	memcpy(ret_weights, c->scratch[SCRATCH_ROUTE_WEIGHTS].data, n * sizeof(*ret_weights));
}
