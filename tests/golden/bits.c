/* SPDX-License-Identifier: Apache-2.0 */
/* The bits of a row do not depend on its company: random sequences are run alone, then in random
 * batches under every chunk size, on one thread and on two; the logits of every row must hash alike.
 *
 *   bits DIR N SEED [SHAPE...]   N compositions for each chunk size, kernel, type and thread count
 *
 * A shape is its published config.json with a longer context and made-up weights. Exit status 1 where
 * a hash differs. Lines that begin with "figure:" are for tests/claims. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rig.h"

#define N_CONTEXT   704u
#define N_SEQUENCES 5u
#define SEQ_PAGES   (N_CONTEXT / PAGE_TOKENS)
#define N_PAGES     (N_SEQUENCES * SEQ_PAGES)
#define MIXED       0u /* another chunk size for each take */

static const uint32_t chunk_sizes[] = {1, 7, 64, 100, 512, MIXED};

struct sequence {
	uint32_t n_prompt, n_all; /* rows past n_prompt are generated ones */
	uint32_t ids[N_CONTEXT];
	uint64_t hash[N_CONTEXT]; /* of the row's logits when it ran alone */
	uint32_t pages[SEQ_PAGES], at;
};

struct bits {
	struct sequence seqs[N_SEQUENCES];
	struct rig rig;
	uint64_t random;
	float *logits; /* [RIG_ROWS_MAX, n_vocab] */
	uint64_t n_rows, n_wrong;
	/* The step being built. */
	uint32_t n, n_segments, ids[RIG_ROWS_MAX], positions[RIG_ROWS_MAX];
	struct k_segment segments[RIG_ROWS_MAX];
	struct sequence *owner[RIG_ROWS_MAX];
};

/* xorshift64*: below @n. */
static uint32_t draw(struct bits *b, uint32_t n)
{
	b->random ^= b->random >> 12;
	b->random ^= b->random << 25;
	b->random ^= b->random >> 27;
	return (uint32_t)((b->random * UINT64_C(2685821657736338717)) >> 32) % n;
}

static void make_sequences(struct bits *b, uint32_t n_vocab, bool with_long)
{
	for (uint32_t i = 0; i < N_SEQUENCES; i++) {
		struct sequence *s = &b->seqs[i];

		/* One longer than the longest chunk, the others of all lengths; short ones alone where
		 * scalar code is only sampled. */
		s->n_prompt =
			i == 0 && with_long ? 513 + draw(b, 40) : 1 + draw(b, with_long ? 130 : 70);
		s->n_all = s->n_prompt + draw(b, 12);
		for (uint32_t k = 0; k < s->n_all; k++)
			s->ids[k] = draw(b, n_vocab);
	}
}

static void deal_pages(struct bits *b)
{
	uint32_t pages[N_PAGES];

	for (uint32_t i = 0; i < N_PAGES; i++) {
		uint32_t at = draw(b, i + 1);

		pages[i] = pages[at];
		pages[at] = i;
	}
	for (uint32_t i = 0; i < N_SEQUENCES; i++)
		memcpy(b->seqs[i].pages, pages + i * SEQ_PAGES, sizeof(b->seqs[i].pages));
}

/* Up to @n next rows of @s into the step, all on one path. */
static void take_rows(struct bits *b, struct sequence *s, uint32_t n)
{
	bool generated = s->at >= s->n_prompt;

	n = MIN(n, generated ? 1 : s->n_prompt - s->at);
	n = MIN(n, RIG_ROWS_MAX - b->n);
	if (n == 0 || s->at == s->n_all)
		return;
	b->segments[b->n_segments++] = (struct k_segment){.first_row = b->n,
							  .n_rows = n,
							  .first_pos = s->at,
							  .generated = generated,
							  .pages = s->pages};
	for (uint32_t i = 0; i < n; i++, b->n++, s->at++) {
		b->ids[b->n] = s->ids[s->at];
		b->positions[b->n] = s->at;
		b->owner[b->n] = s;
	}
}

/* Runs what was taken; @keep: these are the hashes, else they must be. */
static int run_step(struct bits *b, bool keep, struct error *err)
{
	size_t n_vocab = b->rig.model.cfg.n_vocab;
	const struct k_step step = {.n_rows = b->n,
				    .n_segments = b->n_segments,
				    .ids = b->ids,
				    .positions = b->positions,
				    .segments = b->segments};
	int r = rig_run(&b->rig, &step, b->logits, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < b->n; i++) {
		uint64_t *want = &b->owner[i]->hash[b->positions[i]];
		uint64_t got = XXH3_64bits(b->logits + i * n_vocab, n_vocab * sizeof(float));

		if (keep)
			*want = got;
		b->n_rows += !keep;
		b->n_wrong += got != *want;
	}
	b->n = b->n_segments = 0;
	return 0;
}

static int run_alone(struct bits *b, struct error *err)
{
	int r = 0;

	deal_pages(b);
	for (uint32_t i = 0; i < N_SEQUENCES && r == 0; i++) {
		struct sequence *s = &b->seqs[i];

		for (s->at = 0; s->at < s->n_all && r == 0;) {
			take_rows(b, s, RIG_ROWS_MAX);
			r = run_step(b, true, err);
		}
	}
	return r;
}

/* One random composition: which sequences run in a step, in which order, is drawn anew each step. */
static int run_together(struct bits *b, uint32_t chunk, struct error *err)
{
	/* The long one is for the long chunk: in short ones its keys would be expanded over and over. */
	uint32_t first = chunk == 512 ? 0 : 1, n_left = N_SEQUENCES;
	int r;

	deal_pages(b);
	memset(b->rig.pool.data, 0xff,
	       b->rig.pool.stride * N_PAGES); /* NaN: what is read was written */
	for (uint32_t i = 0; i < N_SEQUENCES; i++)
		b->seqs[i].at = 0;
	while (n_left > 0) {
		uint32_t order[N_SEQUENCES];

		n_left = 0;
		for (uint32_t i = 0; i < N_SEQUENCES; i++) {
			uint32_t at = draw(b, i + 1);

			order[i] = order[at];
			order[at] = i;
		}
		for (uint32_t i = 0; i < N_SEQUENCES; i++) {
			struct sequence *s = &b->seqs[order[i]];

			if (order[i] < first)
				continue;
			if (draw(b, 3) > 0 || (b->n == 0 && i + 1 == N_SEQUENCES))
				take_rows(b, s, chunk == MIXED ? 1 + draw(b, 300) : chunk);
			n_left += s->at < s->n_all;
		}
		if (b->n == 0)
			continue;
		r = run_step(b, false, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static char *make_config(const char *dir, const char *shape, uint32_t seed)
{
	char path[600], *text;
	struct json_object *o, *scaling;

	snprintf(path, sizeof(path), "%s/%s/config.json", dir, shape);
	o = json_object_from_file(path);
	if (!o || !json_object_object_get_ex(o, "rope_scaling", &scaling)) {
		json_object_put(o);
		return NULL;
	}
	json_object_object_add(o, "dsd_synthetic", json_object_new_int64(seed));
	json_object_object_add(o, "max_position_embeddings", json_object_new_int64(N_CONTEXT));
	json_object_object_add(scaling, "factor", json_object_new_double(N_CONTEXT / 64.0));
	text = strdup(json_object_to_json_string(o));
	json_object_put(o);
	return text;
}

static const struct kind {
	enum control_weights weights;
	bool int8_entry;
	const char *name;
} kinds[] = {
	{CONTROL_WEIGHTS_F32, false, "f32"},
	{CONTROL_WEIGHTS_BF16, false, "bf16"},
	{CONTROL_WEIGHTS_Q8, false, "q8"},
	{CONTROL_WEIGHTS_Q4, false, "q4"},
	{CONTROL_WEIGHTS_BF16, true, "bf16-int8-entry"},
};

static int run_kind(struct bits *b, const char *config, const char *shape, uint32_t isa,
		    const struct kind *kind, uint32_t n, struct error *err)
{
	uint64_t hash = 0, n_steps = 0;
	int r = 0;

	b->n_rows = b->n_wrong = 0;
	for (uint32_t n_threads = 1; n_threads <= 2 && r == 0; n_threads++) {
		const struct rig_options o = {.weights = kind->weights,
					      .int8_entry = kind->int8_entry,
					      .cpu_mask = isa,
					      .n_threads = n_threads,
					      .n_pages = N_PAGES};
		char name[64] = "";

		r = rig_open(&b->rig, NULL, config, &o, err);
		if (r == 0 && n_threads == 1) {
			free(b->logits);
			b->logits = calloc((size_t)RIG_ROWS_MAX * b->rig.model.cfg.n_vocab,
					   sizeof(float));
			make_sequences(b, b->rig.model.cfg.n_vocab, n > 1 || isa != 0);
			r = b->logits ? run_alone(b, err) : -ENOMEM;
		}
		for (uint32_t c = 0; c < N_ELEMENTS(chunk_sizes) && r == 0; c++)
			for (uint32_t i = 0; i < n && r == 0; i++, n_steps++)
				r = run_together(b, chunk_sizes[c], err);
		if (r == 0)
			snprintf(name, sizeof(name), "%s", b->rig.k->name);
		rig_done(&b->rig);
		if (r < 0 || n_threads == 1)
			continue;
		for (uint32_t i = 0; i < N_SEQUENCES; i++)
			hash = XXH3_64bits_withSeed(b->seqs[i].hash,
						    b->seqs[i].n_all * sizeof(uint64_t), hash);
		printf("figure: shape=%s isa=%s weights=%s compositions=%llu rows=%llu differ=%llu "
		       "hash=%016llx\n",
		       shape, name, kind->name, (unsigned long long)n_steps,
		       (unsigned long long)b->n_rows, (unsigned long long)b->n_wrong,
		       (unsigned long long)hash);
		fflush(stdout);
	}
	return r;
}

int main(int argc, char **argv)
{
	static const char *const all[] = {"v2-lite-tiny", "v2-tiny",   "v2-x16",
					  "v2-vdim",      "v2-dense2", "v2-freq2"};
	uint32_t isas[RIG_ISA_MAX], n_isas = rig_isas(isas);
	uint32_t n_shapes = argc > 4 ? (uint32_t)argc - 4 : N_ELEMENTS(all);
	_cleanup_(freep) struct bits *b = calloc(1, sizeof(*b));
	uint64_t n_rows = 0, n_wrong = 0;

	if (argc < 4 || !b) {
		fputs("usage: bits DIR N SEED [SHAPE...]\n", stderr);
		return 2;
	}
	for (uint32_t s = 0; s < n_shapes; s++) {
		const char *shape = argc > 4 ? argv[4 + s] : all[s];
		uint32_t seed = (uint32_t)strtoul(argv[3], NULL, 10);
		_cleanup_(freep) char *config = make_config(argv[1], shape, seed);

		if (!config) {
			fprintf(stderr, "%s/%s/config.json cannot be read\n", argv[1], shape);
			return 2;
		}
		for (uint32_t k = 0; k < N_ELEMENTS(kinds) * n_isas; k++) {
			struct error err = {};
			int r;

			b->random =
				(((uint64_t)seed << 32) | (s + 1)) * UINT64_C(0x9E3779B97F4A7C15);
			r = run_kind(b, config, shape, isas[k / N_ELEMENTS(kinds)],
				     &kinds[k % N_ELEMENTS(kinds)],
				     (uint32_t)strtoul(argv[2], NULL, 10), &err);
			if (r < 0) {
				fprintf(stderr, "%s: %s\n", shape, error_text(&err, r));
				free(b->logits);
				return 2;
			}
			n_rows += b->n_rows;
			n_wrong += b->n_wrong;
		}
	}
	free(b->logits);
	printf("%llu rows compared, %llu differ\n", (unsigned long long)n_rows,
	       (unsigned long long)n_wrong);
	return n_wrong > 0 || n_rows == 0;
}
