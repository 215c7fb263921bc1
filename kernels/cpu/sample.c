/* SPDX-License-Identifier: Apache-2.0 */
/* Logits to tokens. The order of the filters is vLLM's: temperature, min_p,
 * top_k, top_p, then one draw by inverse distribution in the order of ids.
 *
 * Weights are e^((l - max) / t) as 40-bit fixed point (sample_math.h), so every sum is an integer and
 * comes out the same in any order and on any device. Filters find their threshold by radix selection
 * on the logit's bits instead of sorting. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "cpu.h"
#include "sample_math.h"

#define GREEDY_BELOW 1e-5f /* temperature: as vLLM */
#define DROPPED      -1.0f /* in p[]: banned or filtered out */

struct row {
	const float *logits; /* [n] */
	float *p;            /* [n]: weight in [0, 1], or DROPPED */
	uint32_t n;
	const uint8_t *banned;
	float max;
	double log_sum; /* of the softmax's denominator, relative to max */
};

/* Unsigned order = order of finite floats (with -0 below 0). */
static uint32_t order_key(float x)
{
	uint32_t u = k_bits(x);

	return u & 0x80000000 ? ~u : u | 0x80000000;
}

static bool allowed(const struct row *r, uint32_t id)
{
	return id < r->n && !(r->banned && r->banned[id]);
}

static int row_init(struct row *r, const struct cpu_isa *isa)
{
	uint64_t total = 0;
	bool any = false;

	for (uint32_t i = 0; i < r->n; i++) {
		if (!isfinite(r->logits[i]))
			return -EDOM;
		if (!allowed(r, i) || (any && r->logits[i] <= r->max))
			continue;
		r->max = r->logits[i];
		any = true;
	}
	if (!any)
		return -EDOM;
	isa->exp(r->p, r->logits, r->max, 1.0f, r->n);
	for (uint32_t i = 0; i < r->n; i++)
		if (allowed(r, i))
			total += k_fixed(r->p[i]);
	r->log_sum = log((double)total / (double)K_FIXED_ONE);
	return 0;
}

static float row_logprob(const struct row *r, uint32_t id)
{
	if (!allowed(r, id))
		return -INFINITY;
	return (float)((double)r->logits[id] - (double)r->max - r->log_sum);
}

static uint32_t row_greedy(const struct row *r)
{
	for (uint32_t i = 0;; i++) /* row_init() found it */
		if (allowed(r, i) && r->logits[i] == r->max)
			return i;
}

static void row_top(const struct row *r, uint32_t n_top, struct k_sampled *ret)
{
	ret->n_top = 0;
	for (uint32_t i = 0; n_top > 0 && i < r->n; i++) {
		uint32_t at = ret->n_top;

		if (!allowed(r, i))
			continue;
		if (at == n_top) {
			if (r->logits[i] <= r->logits[ret->top[at - 1].id])
				continue;
			at--;
		} else {
			ret->n_top++;
		}
		for (; at > 0 && r->logits[i] > r->logits[ret->top[at - 1].id]; at--)
			ret->top[at] = ret->top[at - 1];
		ret->top[at].id = i;
	}
	for (uint32_t i = 0; i < ret->n_top; i++)
		ret->top[i].logprob = row_logprob(r, ret->top[i].id);
}

/* What an id counts for: 1 under top_k, its weight under top_p. */
static uint64_t measure(const struct row *r, uint32_t i, bool by_weight)
{
	if (r->p[i] < 0.0f)
		return 0;
	return by_weight ? k_fixed(r->p[i]) : 1;
}

/* The largest key whose ids and those above it measure @want together; 0 if all do not. ret_above: the
 * measure of those strictly above it. */
static uint32_t select_key(const struct row *r, bool by_weight, uint64_t want, uint64_t *ret_above)
{
	uint32_t prefix = 0;
	uint64_t above = 0;

	for (int shift = 24; shift >= 0; shift -= 8) {
		uint64_t bins[256] = {0};
		uint32_t bin = 256;

		for (uint32_t i = 0; i < r->n; i++) {
			uint32_t key = order_key(r->logits[i]);

			if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))
				bins[key >> shift & 0xff] += measure(r, i, by_weight);
		}
		while (bin > 0 && above + bins[bin - 1] < want)
			above += bins[--bin];
		if (bin == 0) {
			*ret_above = above;
			return 0;
		}
		prefix |= (bin - 1) << shift;
	}
	*ret_above = above;
	return prefix;
}

static void keep_top_k(struct row *r, uint32_t k)
{
	uint64_t above;
	uint32_t key = select_key(r, false, k, &above);

	for (uint32_t i = 0; i < r->n; i++)
		if (order_key(r->logits[i]) < key)
			r->p[i] = DROPPED;
}

/* ceil(p * total), exactly; p in (0, 1). */
static uint64_t share_of(float p, uint64_t total)
{
	int exponent;
	uint64_t mantissa = (uint64_t)ldexpf(frexpf(p, &exponent), 24);
	unsigned __int128 product = (unsigned __int128)mantissa * total;
	int shift = 24 - exponent;

	if (shift >= 127)
		return product > 0;
	return (uint64_t)((product + (((unsigned __int128)1 << shift) - 1)) >> shift);
}

/* The smallest set of best ids that holds p of the weight: the one that crosses p stays. */
static void keep_top_p(struct row *r, float p)
{
	uint64_t total = 0, want, before;
	uint32_t key;

	for (uint32_t i = 0; i < r->n; i++)
		total += measure(r, i, true);
	want = p > 0.0f ? share_of(p, total) : 1;
	key = select_key(r, true, want, &before);
	for (uint32_t i = 0; i < r->n; i++) {
		uint32_t own = order_key(r->logits[i]);

		if (own == key && before < want) /* ties: the lower ids */
			before += measure(r, i, true);
		else if (own <= key)
			r->p[i] = DROPPED;
	}
}

static uint32_t row_draw(struct row *r, const struct cpu_isa *isa, const struct k_sample *how)
{
	uint64_t total = 0, point;
	uint32_t last = 0;

	isa->exp(r->p, r->logits, r->max, how->temperature, r->n);
	for (uint32_t i = 0; i < r->n; i++) /* the best id has 1, so that this is min_p of it */
		if (!allowed(r, i) || (r->p[i] < how->min_p && r->p[i] < 1.0f))
			r->p[i] = DROPPED;
	if (how->top_k > 0 && how->top_k < r->n)
		keep_top_k(r, how->top_k);
	if (how->top_p < 1.0f)
		keep_top_p(r, how->top_p);
	for (uint32_t i = 0; i < r->n; i++)
		total += measure(r, i, true);
	point = (uint64_t)((unsigned __int128)k_draw_bits(how->seed, how->choice, how->position) *
				   total >>
			   64);
	for (uint32_t i = 0; i < r->n; i++) {
		uint64_t w = measure(r, i, true);

		if (w == 0)
			continue;
		last = i;
		if (point < w)
			break;
		point -= w;
	}
	return last;
}

struct sample_job {
	struct cpu *c;
	const struct k_buffer *logits;
	uint32_t n, n_valid;
	const uint8_t *banned;
	const struct k_sample *how;
	struct k_sampled *ret;
	float *p;    /* [n_threads][n_valid] */
	int *status; /* [n] */
};

static int sample_row(const struct sample_job *j, uint32_t i, float *p)
{
	const struct k_sample *how = &j->how[i];
	struct k_sampled *ret = &j->ret[i];
	struct row r = {
		.logits = buffer_row(j->logits, i),
		.p = p,
		.n = j->n_valid,
		.banned = j->banned,
	};
	int err = row_init(&r, &j->c->isa);

	if (err < 0) {
		*ret = (struct k_sampled){.id = K_ID_NONE, .logprob = NAN};
		return err;
	}
	row_top(&r, how->n_top < K_TOP_MAX ? how->n_top : K_TOP_MAX, ret);
	if (how->given != K_ID_NONE)
		ret->id = how->given;
	else if (how->temperature >= GREEDY_BELOW)
		ret->id = row_draw(&r, &j->c->isa, how);
	else
		ret->id = row_greedy(&r);
	ret->logprob = row_logprob(&r, ret->id);
	return 0;
}

static void sample_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct sample_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->n, thread, n_threads, &begin, &end);
	for (uint32_t i = begin; i < end; i++)
		j->status[i] = sample_row(j, i, j->p + (size_t)thread * j->n_valid);
}

int cpu_sample(struct kernels *k, const struct k_buffer *logits, uint32_t n, uint32_t n_valid,
	       const uint8_t *banned, const struct k_sample *how, struct k_sampled *ret)
{
	struct cpu *c = cpu_of(k);
	struct sample_job j = {c, logits, n, n_valid, banned, how, ret, NULL, NULL};

	if (c->failed < 0)
		return c->failed;
	if (n > logits->max_rows || n_valid > logits->width || n_valid >= 1u << 24)
		return -EINVAL;
	j.p = cpu_scratch(c, SCRATCH_SAMPLE,
			  (uint64_t)c->n_threads * n_valid * sizeof(*j.p) + n * sizeof(*j.status));
	if (!j.p)
		return -ENOMEM;
	j.status = (int *)(j.p + (size_t)c->n_threads * n_valid);
	threads_run(c->threads, (uint64_t)n * n_valid, sample_part, &j);
	for (uint32_t i = 0; i < n; i++)
		if (j.status[i] < 0)
			return j.status[i];
	return 0;
}
