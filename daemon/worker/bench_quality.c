/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/bench_quality.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/channel.h"
#include "layout/image.h"
#include "layout/page.h"
#include "worker/load/load.h"
#include "worker/model/forward.h"

#define N_SEQUENCES 4u
#define N_TOKENS    PAGE_TOKENS /* of each: one page */
#define N_PICKS     16u

/* One precision of the model. */
struct subject {
	struct load *load;
	struct kernels *k;
	struct model model;
	struct forward *forward;
	struct page_geometry geometry;
	struct k_pool pool;
	uint32_t n_vocab, start; /* the first token of a sequence */
	uint64_t weight_bytes;
};

static void subject_done(struct subject *s)
{
	forward_free(s->forward);
	model_done(&s->model);
	if (s->k)
		s->k->free(s->k);
	load_free(s->load);
	free(s->pool.data);
}

static int subject_open(struct subject *s, const struct files *files,
			const struct kernels_config *cpu, enum control_weights weights,
			enum page_entry entry, struct error *err)
{
	const struct load_options options = {
		.weights = weights, .entry = entry, .n_context = N_TOKENS};
	struct image_stream streams[IMAGE_LAYERS_MAX];
	const struct model_config *m;
	struct load_facts facts;
	int r;

	r = load_open(&s->load, files, &options, err);
	if (r < 0)
		return r;
	facts = load_get_facts(s->load);
	m = &facts.config->m;
	if (m->n_context < N_TOKENS)
		return error_set(err, -EINVAL, "a context of %u tokens: quality is measured on %u",
				 m->n_context, N_TOKENS);
	s->n_vocab = m->n_vocab;
	s->start = facts.config->bos == IMAGE_NONE ? 0 : facts.config->bos;
	for (uint32_t l = 0; l < m->n_layers; l++)
		streams[l] = (struct image_stream){
			l, page_entry_row_bytes(facts.entry, m->rank, m->rope)};
	r = page_geometry_init(&s->geometry, streams, m->n_layers, err);
	if (r < 0)
		return r;
	s->pool = (struct k_pool){
		.data = calloc(1, s->geometry.stride),
		.stride = s->geometry.stride,
		.n_pages = 1,
		.stream_offset = s->geometry.offset,
		.n_streams = s->geometry.n_streams,
		.row_bytes = s->geometry.row_bytes[0],
		.entry = (enum k_entry)facts.entry,
	};
	r = s->pool.data ? kernels_cpu_new(&s->k, cpu) : -ENOMEM;
	r = r ?: load_pack(s->load, s->k, NULL, NULL, &s->model, &s->weight_bytes, err);
	return r ?: forward_new(&s->forward, &s->model, N_TOKENS, N_PICKS, err);
}

/* Rows [first, first + n) of the one sequence there is. */
static int step(struct subject *s, const uint32_t *ids, uint32_t first, uint32_t n, bool generated,
		struct error *err)
{
	static const uint32_t page = 0;
	uint32_t positions[N_TOKENS];
	const struct k_segment segment = {0, n, first, generated, &page};
	const struct k_step k = {n, 1, ids + first, positions, &segment};

	for (uint32_t i = 0; i < n; i++)
		positions[i] = first + i;
	return model_forward(s->forward, &k, &s->pool, err);
}

/* A sequence that the model draws by itself. */
static int write_text(struct subject *s, uint32_t number, uint32_t ids[static N_TOKENS],
		      struct error *err)
{
	static const uint32_t first = 0;
	_cleanup_(freep) uint8_t *banned = calloc(s->n_vocab, 1);
	struct k_sampled drawn;
	int r;

	if (!banned)
		return -ENOMEM;
	ids[0] = s->start;
	for (uint32_t i = 0; i + 1 < N_TOKENS; i++) {
		const struct k_sample how = {.temperature = 1,
					     .top_p = 1,
					     .seed = number + 1,
					     .position = i + 1,
					     .given = K_ID_NONE};

		r = step(s, ids, i, 1, true, err);
		if (r < 0)
			return r;
		r = s->k->sample(s->k, forward_logits(s->forward, &first, 1), 1, s->n_vocab, banned,
				 &how, &drawn);
		if (r < 0)
			return error_set(err, r, "sampling: %m");
		ids[i + 1] = drawn.id;
	}
	return 0;
}

/* Natural logarithms of the softmax of every row: [N_TOKENS, n_vocab]. */
static int read_text(struct subject *s, const uint32_t ids[static N_TOKENS], float *ret,
		     struct error *err)
{
	int r = step(s, ids, 0, N_TOKENS, true, err);

	for (uint32_t i = 0; r >= 0 && i < N_TOKENS; i += N_PICKS) {
		uint32_t picks[N_PICKS];

		for (uint32_t j = 0; j < N_PICKS; j++)
			picks[j] = i + j;
		s->k->download(s->k, ret + (size_t)i * s->n_vocab,
			       forward_logits(s->forward, picks, N_PICKS), 0, N_PICKS);
	}
	for (uint32_t i = 0; r >= 0 && i < N_TOKENS; i++) {
		float *row = ret + (size_t)i * s->n_vocab, max = row[0];
		double sum = 0;

		for (uint32_t v = 0; v < s->n_vocab; v++)
			max = row[v] > max ? row[v] : max;
		for (uint32_t v = 0; v < s->n_vocab; v++)
			sum += exp((double)row[v] - max);
		for (uint32_t v = 0; v < s->n_vocab; v++)
			row[v] -= max + (float)log(sum);
	}
	return r;
}

static void compare(struct bench_quality *q, const float *want, const float *got, uint32_t n_vocab)
{
	uint32_t best = 0, best_got = 0;
	double kl = 0;

	for (uint32_t v = 0; v < n_vocab; v++) {
		kl += exp((double)want[v]) * ((double)want[v] - (double)got[v]);
		best = want[v] > want[best] ? v : best;
		best_got = got[v] > got[best_got] ? v : best_got;
	}
	q->n_tokens++;
	q->kl += (kl - q->kl) / q->n_tokens;
	q->top1 += ((best == best_got) - q->top1) / q->n_tokens;
}

int bench_quality_run(struct bench_quality ret[static BENCH_QUALITY_MAX], const struct files *files,
		      const struct kernels_config *cpu, struct error *err)
{
	static const struct {
		enum control_weights weights;
		const char *name;
		enum page_entry entry;
	} kinds[BENCH_QUALITY_MAX] = {{CONTROL_WEIGHTS_BF16, "bf16", PAGE_ENTRY_BF16},
				      {CONTROL_WEIGHTS_Q8, "q8", PAGE_ENTRY_BF16},
				      {CONTROL_WEIGHTS_Q4, "q4", PAGE_ENTRY_BF16},
				      {CONTROL_WEIGHTS_F32, "f32", PAGE_ENTRY_INT8}};
	_cleanup_(freep) float *want = NULL, *got = NULL;
	uint32_t ids[N_SEQUENCES][N_TOKENS];
	size_t text = 0;
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i <= BENCH_QUALITY_MAX; i++) { /* f32 first */
		_cleanup_(subject_done) struct subject s = {};

		r = subject_open(&s, files, cpu, i ? kinds[i - 1].weights : CONTROL_WEIGHTS_F32,
				 i ? kinds[i - 1].entry : PAGE_ENTRY_F32, err);
		if (r >= 0 && i == 0) {
			text = (size_t)N_TOKENS * s.n_vocab;
			want = calloc(N_SEQUENCES * text, sizeof(*want));
			got = calloc(text, sizeof(*got));
			r = want && got ? 0 : -ENOMEM;
		}
		if (i > 0)
			ret[i - 1] =
				(struct bench_quality){.weights = kinds[i - 1].name,
						       .entry = page_entry_name(kinds[i - 1].entry),
						       .weight_bytes = s.weight_bytes};
		for (uint32_t q = 0; r >= 0 && q < N_SEQUENCES; q++) {
			if (i == 0)
				r = write_text(&s, q, ids[q], err);
			r = r ?: read_text(&s, ids[q], i ? got : want + q * text, err);
			for (uint32_t t = 0; r >= 0 && i > 0 && t < N_TOKENS; t++)
				compare(&ret[i - 1], want + q * text + (size_t)t * s.n_vocab,
					got + (size_t)t * s.n_vocab, s.n_vocab);
		}
	}
	return r;
}
