/* SPDX-License-Identifier: Apache-2.0 */
/* Rows without adjustments are drawn where they are. The others are downloaded, adjusted and drawn
 * from a second buffer; then every row is looked up once in the untouched logits for its logprobs. */
#include "worker/sampler.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

_Static_assert(CHANNEL_TOP_MAX <= K_TOP_MAX, "the channel asks for no more than kernels give");

/* Finite, and far enough down that no temperature or penalty brings it back. */
#define LOGIT_BANNED  (-1e30f)
#define GREEDY_BELOW  1e-5f      /* temperatures that vLLM takes for 0 */
#define LOGPROB_FLOOR (-9999.0f) /* for what has no probability: JSON has no infinity */

struct sampler {
	struct kernels *k;
	uint32_t n_vocab, n_eos, max_rows;
	uint8_t *banned;
	uint32_t *eos;
	struct k_buffer *adjusted; /* [max_rows, n_vocab] */
	float *row;                /* [n_vocab] */
	uint32_t *counts;          /* [n_vocab], all 0 between calls: uses among generated ids */
	bool *bad;                 /* [max_rows]: no id was left to draw */
	bool *seen;                /* [n_vocab], all false between calls: among all ids */
	struct k_sample *how, *how_adjusted;
	struct k_sampled *drawn;
	uint32_t *row_of; /* adjusted row -> want, from the first */
};

struct sampler *sampler_free(struct sampler *s)
{
	if (!s)
		return NULL;
	if (s->adjusted)
		s->k->buffer_free(s->k, s->adjusted);
	free(s->banned);
	free(s->eos);
	free(s->row);
	free(s->counts);
	free(s->seen);
	free(s->bad);
	free(s->how);
	free(s->how_adjusted);
	free(s->drawn);
	free(s->row_of);
	free(s);
	return NULL;
}

int sampler_new(struct sampler **ret, struct kernels *k, const struct sampler_config *cfg,
		struct error *err)
{
	_cleanup_(sampler_freep) struct sampler *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	*s = (struct sampler){
		.k = k, .n_vocab = cfg->n_vocab, .n_eos = cfg->n_eos, .max_rows = cfg->max_rows};
	s->banned = calloc(cfg->n_vocab, sizeof(*s->banned));
	s->eos = calloc((size_t)cfg->n_eos + 1, sizeof(*s->eos));
	s->row = calloc(cfg->n_vocab, sizeof(*s->row));
	s->counts = calloc(cfg->n_vocab, sizeof(*s->counts));
	s->seen = calloc(cfg->n_vocab, sizeof(*s->seen));
	s->bad = calloc(cfg->max_rows, sizeof(*s->bad));
	s->how = calloc(cfg->max_rows, sizeof(*s->how));
	s->how_adjusted = calloc(cfg->max_rows, sizeof(*s->how_adjusted));
	s->drawn = calloc(cfg->max_rows, sizeof(*s->drawn));
	s->row_of = calloc(cfg->max_rows, sizeof(*s->row_of));
	if (!s->banned || !s->eos || !s->row || !s->counts || !s->seen || !s->bad || !s->how ||
	    !s->how_adjusted || !s->drawn || !s->row_of)
		return -ENOMEM;
	r = k->buffer_new(k, &s->adjusted, cfg->max_rows, cfg->n_vocab);
	if (r < 0)
		return error_set(err, r, "buffer of %u x %u logits: %m", cfg->max_rows,
				 cfg->n_vocab);
	memcpy(s->banned, cfg->banned, cfg->n_vocab);
	if (cfg->n_eos)
		memcpy(s->eos, cfg->eos, sizeof(*s->eos) * cfg->n_eos);
	*ret = TAKE_PTR(s);
	return 0;
}

/* How many tokens were generated before the one that a row at the end of @n_ids ids draws. */
static uint32_t n_generated(const struct channel_params *p, uint32_t n_ids)
{
	return n_ids - MIN(n_ids, p->n_prompt);
}

static bool ends_are_banned(const struct sampler *s, const struct channel_params *p, uint32_t n_ids)
{
	return s->n_eos && (p->ignore_eos || n_generated(p, n_ids) < p->min_tokens);
}

static bool has_penalty(const struct channel_params *p)
{
	return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

static bool needs_adjusting(const struct sampler *s, const struct channel_params *p, uint32_t n_ids)
{
	return p->n_bias || has_penalty(p) || ends_are_banned(s, p, n_ids);
}

/* Each id once, however often it came: the second loop forgets what it has dealt with. */
static void penalize(struct sampler *s, const struct channel_params *p, const uint32_t *ids,
		     uint32_t n_ids, float *logits)
{
	for (uint32_t i = 0; i < n_ids; i++) {
		s->seen[ids[i]] = true;
		s->counts[ids[i]] += i >= p->n_prompt;
	}
	for (uint32_t i = 0; i < n_ids; i++) {
		uint32_t id = ids[i];

		if (!s->seen[id])
			continue;
		logits[id] = logits[id] < 0 ? logits[id] * p->repetition_penalty
					    : logits[id] / p->repetition_penalty;
		logits[id] -= p->frequency_penalty * (float)s->counts[id];
		logits[id] -= s->counts[id] ? p->presence_penalty : 0;
		s->seen[id] = false;
		s->counts[id] = 0;
	}
}

void sampler_adjust(struct sampler *s, const struct channel_params *p, const uint32_t *ids,
		    uint32_t n_ids, float *logits)
{
	if (ends_are_banned(s, p, n_ids))
		for (uint32_t i = 0; i < s->n_eos; i++)
			logits[s->eos[i]] = LOGIT_BANNED;
	for (uint32_t i = 0; i < p->n_bias; i++)
		logits[p->bias[i].id] += p->bias[i].bias;
	if (has_penalty(p))
		penalize(s, p, ids, n_ids, logits);
}

static struct k_sample make_how(const struct channel_params *p, uint32_t position)
{
	return (struct k_sample){
		.temperature = p->temperature < GREEDY_BELOW ? 0 : p->temperature,
		.top_p = p->top_p,
		.min_p = p->min_p,
		.top_k = p->top_k,
		.seed = p->seed,
		.choice = p->choice,
		.position = position,
		.n_top = p->n_top,
		.given = UINT32_MAX,
	};
}

static int sample(struct sampler *s, const struct k_buffer *logits, uint32_t n,
		  const struct k_sample *how, struct error *err)
{
	int r = s->k->sample(s->k, logits, n, s->n_vocab, s->banned, how, s->drawn);

	/* -EDOM: some rows have no token, and say so. */
	return r < 0 && r != -EDOM ? error_set(err, r, "sampling %u rows: %m", n) : 0;
}

/* Draws the rows that need it from adjusted logits; what came out is then `given` to the others. */
static int draw_adjusted(struct sampler *s, const struct k_buffer *logits,
			 const struct engine_step *step, uint32_t first, uint32_t n,
			 struct error *err)
{
	uint32_t n_adjusted = 0;
	int r;

	for (uint32_t i = 0; i < n; i++) {
		const struct engine_want *w = &step->wants[first + i];
		const struct engine_sequence *q = &step->sequences[w->sequence];
		uint32_t n_ids = step->k.positions[w->row] + 1;

		if (w->given != UINT32_MAX || !needs_adjusting(s, q->params, n_ids))
			continue;
		s->k->download(s->k, s->row, logits, i, 1);
		sampler_adjust(s, q->params, q->ids, n_ids, s->row);
		s->k->upload(s->k, s->adjusted, n_adjusted, s->row, 1);
		s->how_adjusted[n_adjusted] = s->how[i];
		s->how_adjusted[n_adjusted].n_top = 0;
		s->row_of[n_adjusted++] = i;
	}
	if (n_adjusted == 0)
		return 0;
	r = sample(s, s->adjusted, n_adjusted, s->how_adjusted, err);
	if (r < 0)
		return r;
	for (uint32_t j = 0; j < n_adjusted; j++) {
		s->how[s->row_of[j]].given = s->drawn[j].id;
		s->bad[s->row_of[j]] = s->drawn[j].id == K_ID_NONE;
	}
	return 0;
}

int sampler_run(struct sampler *s, const struct k_buffer *logits, const struct engine_step *step,
		uint32_t first, uint32_t n, struct channel_result_row *ret, struct error *err)
{
	int r;

	for (uint32_t i = 0; i < n; i++) {
		const struct engine_want *w = &step->wants[first + i];

		s->how[i] = make_how(step->sequences[w->sequence].params,
				     step->k.positions[w->row] + 1);
		s->how[i].given = w->given;
		s->bad[i] = false;
	}
	r = draw_adjusted(s, logits, step, first, n, err);
	if (r < 0)
		return r;
	r = sample(s, logits, n, s->how, err);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++) {
		const struct engine_want *w = &step->wants[first + i];
		const struct k_sampled *d = &s->drawn[i];

		ret[i] = (struct channel_result_row){
			.slot = step->sequences[w->sequence].slot,
			.position = step->k.positions[w->row],
			.token = CHANNEL_NO_TOKEN,
		};
		if (s->bad[i] || d->id == K_ID_NONE)
			continue;
		ret[i] = (struct channel_result_row){
			.slot = ret[i].slot,
			.position = ret[i].position,
			.token = d->id,
			.logprob = fmaxf(d->logprob, LOGPROB_FLOOR),
			.n_top = MIN(d->n_top, CHANNEL_TOP_MAX),
		};
		for (uint32_t t = 0; t < ret[i].n_top; t++)
			ret[i].top[t] = (struct channel_top){
				.id = d->top[t].id,
				.logprob = fmaxf(d->top[t].logprob, LOGPROB_FLOOR)};
	}
	return 0;
}
