/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass against what transformers computed (README.md), for every instruction set of this
 * CPU; and weights kept in fewer bits against f32.
 *
 *   golden DIR [SHAPE...]           DIR holds a folder for each shape
 *   golden --quality DIR SHAPE IDS  weights in fewer bits against f32, over the texts of the file IDS: at
 *                                   most 256 ids in each line
 *
 * Lines that begin with "figure:" are for tests/claims. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rig.h"

#define N_POSITIONS       256u /* of every shape here */
#define LOGPROB_TOLERANCE 1e-3
/* Naive and absorbed attention sum in other orders: README, decode_vs_prefill. */
#define DECODE_TOLERANCE 1e-4
/* What taking YaRN's factor out of the softmax scale must cost at least; README: it costs over 0.4. */
#define SCALE_NOTICED 0.1
/* How far from f32 the other ways to keep weights may be. Set from measurement, as the worst of the shapes
 * had it; these models are random and narrow, where rounding costs far more than in a trained one. */
static const struct kept {
	enum control_weights weights;
	const char *name;
	double kl_mean_max, top1_min;
	bool int8_entry; /* and the rows that are compared take the generated path */
} all_kept[] = {
	{CONTROL_WEIGHTS_BF16, "bf16", 0.02, 0.93},           /* 8.2e-3, 0.955 */
	{CONTROL_WEIGHTS_Q8, "q8", 0.2, 0.82},                /* 0.103, 0.860 */
	{CONTROL_WEIGHTS_Q4, "q4", 1.4, 0.45},                /* 0.907, 0.493 */
	{CONTROL_WEIGHTS_F32, "int8-entry", 0.1, 0.93, true}, /* 5.2e-2, 0.940 */
};

struct golden {
	const char *dir, *shape;
	const char *texts; /* --quality: the file of ids */
	struct json_object *json;
	uint32_t ids[N_POSITIONS], n_prompt, n_greedy, n_inputs, n_vocab;
};

/* One run over all inputs: logits [n_inputs, n_vocab], experts as the rig keeps them. */
struct run {
	float *logits;
	uint32_t *experts;
};

static struct json_object *member(const struct golden *g, const char *key)
{
	struct json_object *m = NULL;

	if (!json_object_object_get_ex(g->json, key, &m))
		fail_msg("%s/golden.json has no %s", g->shape, key);
	return m;
}

static double number(struct json_object *list, size_t i)
{
	return json_object_get_double(json_object_array_get_idx(list, i));
}

static void golden_open(struct golden *g)
{
	char path[600];
	struct json_object *prompt, *greedy;

	snprintf(path, sizeof(path), "%s/%s/golden.json", g->dir, g->shape);
	g->json = json_object_from_file(path);
	if (!g->json)
		fail_msg("%s cannot be read", path);
	prompt = member(g, "prompt_ids");
	greedy = member(g, "greedy_ids");
	g->n_prompt = (uint32_t)json_object_array_length(prompt);
	g->n_greedy = (uint32_t)json_object_array_length(greedy);
	g->n_inputs = g->n_prompt + g->n_greedy - 1;
	g->n_vocab = (uint32_t)json_object_array_length(member(g, "last_logits"));
	assert_in_range(g->n_prompt, 129,
			N_POSITIONS); /* past two pages and past the original YaRN length */
	assert_in_range(g->n_inputs, g->n_prompt, N_POSITIONS);
	for (uint32_t i = 0; i < g->n_inputs; i++)
		g->ids[i] = (uint32_t)(i < g->n_prompt ? number(prompt, i)
						       : number(greedy, i - g->n_prompt));
}

static void golden_rig_kept(const struct golden *g, struct rig *r, enum control_weights weights,
			    bool int8_entry, uint32_t isa)
{
	const struct rig_options o = {.weights = weights,
				      .int8_entry = int8_entry,
				      .cpu_mask = isa,
				      .n_threads = 1,
				      .n_pages = N_POSITIONS / PAGE_TOKENS,
				      .watch_experts = true};
	char path[600];
	struct error err = {};
	int e;

	snprintf(path, sizeof(path), "%s/%s", g->dir, g->shape);
	e = rig_open(r, path, NULL, &o, &err);
	if (e < 0)
		fail_msg("%s: %s", path, error_text(&err, e));
	if (!g->json)
		return;
	assert_int_equal(r->model.cfg.n_vocab, g->n_vocab);
	assert_int_equal(r->model.cfg.n_context, N_POSITIONS);
}

static void golden_rig(const struct golden *g, struct rig *r, enum control_weights weights,
		       uint32_t isa)
{
	golden_rig_kept(g, r, weights, false, isa);
}

/* Positions [first, end) in steps of at most @chunk rows. */
static void run_rows(const struct golden *g, struct rig *r, uint32_t first, uint32_t end,
		     uint32_t chunk, bool generated, struct run *run)
{
	static const uint32_t pages[] = {2, 0, 3, 1};
	uint32_t positions[N_POSITIONS];

	for (uint32_t i = 0; i < N_POSITIONS; i++)
		positions[i] = i;
	for (uint32_t at = first; at < end; at += chunk) {
		uint32_t n = MIN(chunk, end - at);
		const struct k_segment segment = {
			.n_rows = n, .first_pos = at, .generated = generated, .pages = pages};
		const struct k_step step = {.n_rows = n,
					    .n_segments = 1,
					    .ids = g->ids + at,
					    .positions = positions + at,
					    .segments = &segment};
		struct error err = {};
		int e = rig_run(r, &step, run->logits + (size_t)at * g->n_vocab, &err);

		if (e < 0)
			fail_msg("%s: position %u: %s", g->shape, at, error_text(&err, e));
	}
	if (r->experts)
		run->experts = r->experts;
}

static void run_new(const struct golden *g, struct run *run)
{
	*run = (struct run){.logits = calloc((size_t)N_POSITIONS * g->n_vocab, sizeof(float))};
	assert_non_null(run->logits);
}

static const float *row(const struct golden *g, const struct run *run, uint32_t position)
{
	return run->logits + (size_t)position * g->n_vocab;
}

static double logsumexp(const float *x, uint32_t n)
{
	double top = x[0], sum = 0;

	for (uint32_t i = 1; i < n; i++)
		top = fmax(top, x[i]);
	for (uint32_t i = 0; i < n; i++)
		sum += exp(x[i] - top);
	return top + log(sum);
}

static double logprob(const struct golden *g, const struct run *run, uint32_t position, uint32_t id)
{
	const float *x = row(g, run, position);

	return x[id] - logsumexp(x, g->n_vocab);
}

static uint32_t best(const struct golden *g, const struct run *run, uint32_t position)
{
	const float *x = row(g, run, position);
	uint32_t b = 0;

	for (uint32_t i = 1; i < g->n_vocab; i++)
		if (x[i] > x[b])
			b = i;
	return b;
}

/* Not a number counts as endlessly far: fmax() would drop it. */
static void worse(double *worst, double difference)
{
	difference = fabs(difference);
	if (!(difference <= *worst))
		*worst = isnan(difference) ? INFINITY : difference;
}

static double prompt_difference(const struct golden *g, const struct run *run)
{
	struct json_object *want = member(g, "prompt_logprobs");
	double worst = 0;

	assert_int_equal(json_object_array_length(want), g->n_prompt - 1);
	for (uint32_t i = 0; i + 1 < g->n_prompt; i++)
		worse(&worst, logprob(g, run, i, g->ids[i + 1]) - number(want, i));
	return worst;
}

/* The best ids of some positions, and the whole distribution of the last prompt row. */
static double top_difference(const struct golden *g, const struct run *run)
{
	struct json_object *at = member(g, "top_positions"), *ids = member(g, "top_ids"),
			   *want = member(g, "top_logprobs"), *last = member(g, "last_logits");
	size_t top_n = (size_t)json_object_get_int(member(g, "top_n"));
	size_t n = json_object_array_length(at);
	double worst = 0, lse = json_object_get_double(member(g, "last_logsumexp"));

	assert_true(n > 0 && top_n == 5);
	for (size_t i = 0; i < n * top_n; i++)
		worse(&worst,
		      logprob(g, run, (uint32_t)number(at, i / top_n), (uint32_t)number(ids, i)) -
			      number(want, i));
	for (uint32_t id = 0; id < g->n_vocab; id++)
		worse(&worst, logprob(g, run, g->n_prompt - 1, id) - (number(last, id) - lse));
	return worst;
}

/* Ids that lose although the margin is wide, and the largest difference of the winners' logprobs. */
static uint32_t greedy_misses(const struct golden *g, const struct run *run, double *worst)
{
	struct json_object *ids = member(g, "greedy_ids"), *want = member(g, "greedy_logprobs"),
			   *margins = member(g, "greedy_margins");
	uint32_t n = 0;

	for (uint32_t i = 0; i < g->n_greedy; i++) {
		uint32_t id = (uint32_t)number(ids, i), position = g->n_prompt - 1 + i;

		n += number(margins, i) > LOGPROB_TOLERANCE && best(g, run, position) != id;
		worse(worst, logprob(g, run, position, id) - number(want, i));
	}
	return n;
}

static bool same_set(const uint32_t *got, struct json_object *want, size_t at, uint32_t k)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < k; i++)
		for (uint32_t j = 0; j < k; j++)
			n += got[i] == (uint32_t)number(want, at + j);
	return n == k; /* the ids of both sides are different among themselves */
}

static uint32_t expert_misses(const struct golden *g, const struct rig *r, uint32_t *ret_n)
{
	struct json_object *want = member(g, "expert_ids"), *gaps = member(g, "router_gaps");
	uint32_t k = r->model.cfg.n_used, n_layers = (uint32_t)json_object_array_length(want);
	uint32_t n = 0;

	assert_int_equal(json_object_get_int(member(g, "experts_per_token")), k);
	assert_int_equal(n_layers, r->n_routed);
	for (uint32_t l = 0; l < n_layers; l++)
		for (uint32_t p = 0; p < g->n_inputs; p++) {
			if (number(json_object_array_get_idx(gaps, l), p) < 1e-5)
				continue;
			++*ret_n;
			n += !same_set(r->experts + ((size_t)l * N_POSITIONS + p) * k,
				       json_object_array_get_idx(want, l), (size_t)p * k, k);
		}
	return n;
}

/* Largest |difference| of any logprob of positions [first, end). */
static double run_difference(const struct golden *g, const struct run *a, const struct run *b,
			     uint32_t first, uint32_t end)
{
	double worst = 0;

	for (uint32_t p = first; p < end; p++) {
		double la = logsumexp(row(g, a, p), g->n_vocab),
		       lb = logsumexp(row(g, b, p), g->n_vocab);

		for (uint32_t i = 0; i < g->n_vocab; i++)
			worse(&worst, (row(g, a, p)[i] - la) - (row(g, b, p)[i] - lb));
	}
	return worst;
}

/* Prompt in chunks of @chunk, then the greedy continuation one by one on the generated path. */
static void run_request(const struct golden *g, struct rig *r, uint32_t chunk, struct run *run)
{
	run_rows(g, r, 0, g->n_prompt, chunk, false, run);
	run_rows(g, r, g->n_prompt, g->n_inputs, 1, true, run);
}

static void f32_is_the_published_implementation(void **state)
{
	static const uint32_t chunks[] = {1, 7, 64, 100};
	struct golden *g = *state;
	uint32_t isas[RIG_ISA_MAX], n_isas = rig_isas(isas);

	golden_open(g);
	for (uint32_t i = 0; i < n_isas; i++) {
		struct run request, prefill, chunked;
		double prompt, top, greedy = 0, decode;
		uint32_t n_ids, n_experts = 0, n_chosen, n_bits = 0, n_chunkings = 0;
		struct rig r;

		golden_rig(g, &r, CONTROL_WEIGHTS_F32, isas[i]);
		run_new(g, &request);
		run_new(g, &prefill);
		run_new(g, &chunked);
		run_request(g, &r, N_POSITIONS, &request);
		prompt = prompt_difference(g, &request);
		top = top_difference(g, &request);
		n_ids = greedy_misses(g, &request, &greedy);
		n_chosen = expert_misses(g, &r, &n_experts);
		for (uint32_t c = 0; c < N_ELEMENTS(chunks); c++) {
			/* Small chunks expand all keys again for each: the fastest kernels do those. */
			if (chunks[c] < PAGE_TOKENS && i + 1 < n_isas)
				continue;
			n_chunkings++;
			run_request(g, &r, chunks[c], &chunked);
			n_bits += memcmp(chunked.logits, request.logits,
					 (size_t)g->n_inputs * g->n_vocab * sizeof(float)) != 0;
		}
		run_rows(g, &r, 0, g->n_inputs, N_POSITIONS, false, &prefill);
		decode = run_difference(g, &request, &prefill, g->n_prompt, g->n_inputs);
		print_message(
			"figure: shape=%s isa=%s positions=%u prompt=%.2e top=%.2e greedy=%.2e "
			"ids_wrong=%u/%u experts_wrong=%u/%u chunkings_differ=%u/%u "
			"decode_prefill=%.2e\n",
			g->shape, r.k->name, g->n_inputs, prompt, top, greedy, n_ids, g->n_greedy,
			n_chosen, n_experts, n_bits, n_chunkings, decode);
		assert_true(prompt <= LOGPROB_TOLERANCE && top <= LOGPROB_TOLERANCE &&
			    greedy <= LOGPROB_TOLERANCE);
		assert_true(decode <= DECODE_TOLERANCE);
		assert_true(n_experts > 0);
		assert_int_equal(n_ids + n_chosen + n_bits, 0);
		free(request.logits);
		free(prefill.logits);
		free(chunked.logits);
		rig_done(&r);
	}
	json_object_put(g->json);
}

static void softmax_scale_has_the_yarn_factor(void **state)
{
	struct golden *g = *state;
	double with, without, right, wrong;
	struct run run;
	struct rig r;

	golden_open(g);
	with = json_object_get_double(member(g, "softmax_scale"));
	without = json_object_get_double(member(g, "softmax_scale_without_mscale"));
	golden_rig(g, &r, CONTROL_WEIGHTS_F32, UINT32_MAX);
	run_new(g, &run);
	assert_true(fabs(model_softmax_scale(&r.model.cfg) - with) <= 1e-6 * with);
	assert_true(with > 1.1 * without);
	/* The instrument first: forcing the right scale changes nothing ... */
	r.scale = (float)with;
	run_request(g, &r, N_POSITIONS, &run);
	right = prompt_difference(g, &run);
	/* ... and the wrong one is noticed, in prompt rows and in generated ones. */
	r.scale = (float)without;
	run_request(g, &r, N_POSITIONS, &run);
	wrong = prompt_difference(g, &run);
	print_message("figure: shape=%s scale=%.6f without=%.6f prompt=%.2e prompt_without=%.2e\n",
		      g->shape, with, without, right, wrong);
	assert_true(right <= LOGPROB_TOLERANCE);
	assert_true(wrong >= SCALE_NOTICED);
	free(run.logits);
	rig_done(&r);
	json_object_put(g->json);
}

/* KL(a || b) of one position, in nats. */
static double divergence(const struct golden *g, const struct run *a, const struct run *b,
			 uint32_t p)
{
	const float *x = row(g, a, p), *y = row(g, b, p);
	double lx = logsumexp(x, g->n_vocab), ly = logsumexp(y, g->n_vocab), sum = 0;

	for (uint32_t i = 0; i < g->n_vocab; i++)
		sum += exp(x[i] - lx) * ((x[i] - lx) - (y[i] - ly));
	return sum;
}

static void closeness(const struct golden *g, const struct kept *kept, uint32_t isa)
{
	double kl_mean = 0, kl_max = 0, agreed = 0;
	struct run exact, rounded;
	struct rig f32, other;

	golden_rig(g, &f32, CONTROL_WEIGHTS_F32, isa);
	golden_rig_kept(g, &other, kept->weights, kept->int8_entry, isa);
	assert_int_equal(other.pool.entry, kept->int8_entry ? K_ENTRY_INT8 : K_ENTRY_BF16);
	run_new(g, &exact);
	run_new(g, &rounded);
	run_rows(g, &f32, 0, g->n_prompt, N_POSITIONS, kept->int8_entry, &exact);
	run_rows(g, &other, 0, g->n_prompt, N_POSITIONS, kept->int8_entry, &rounded);
	for (uint32_t p = 0; p < g->n_prompt; p++) {
		double kl = divergence(g, &exact, &rounded, p);

		kl_mean += kl / g->n_prompt;
		worse(&kl_max, kl);
		agreed += best(g, &exact, p) == best(g, &rounded, p) ? 1.0 / g->n_prompt : 0;
	}
	print_message("figure: shape=%s isa=%s kept=%s kl_mean=%.2e kl_max=%.2e top1=%.4f "
		      "positions=%u\n",
		      g->shape, other.k->name, kept->name, kl_mean, kl_max, agreed, g->n_prompt);
	assert_true(kl_max > 0); /* else both ran in the same precision */
	if (g->json) {
		assert_true(kl_mean <= kept->kl_mean_max);
		assert_true(agreed >= kept->top1_min);
	}
	free(exact.logits);
	free(rounded.logits);
	rig_done(&f32);
	rig_done(&other);
}

static void kept_weights_stay_close_to_f32(void **state)
{
	struct golden *g = *state;
	uint32_t isas[RIG_ISA_MAX], n_isas = rig_isas(isas);

	golden_open(g);
	for (uint32_t i = 0; i < n_isas; i++)
		for (uint32_t k = 0; k < N_ELEMENTS(all_kept); k++)
			closeness(g, &all_kept[k], isas[i]);
	json_object_put(g->json);
}

static void quality(void **state)
{
	struct golden *g = *state;
	char line[N_POSITIONS * 12];
	FILE *f = fopen(g->texts, "re");
	struct rig r;

	if (!f)
		fail_msg("%s cannot be read", g->texts);
	golden_rig(g, &r, CONTROL_WEIGHTS_F32, UINT32_MAX);
	g->n_vocab = r.model.cfg.n_vocab;
	assert_true(r.model.cfg.n_context >= N_POSITIONS);
	rig_done(&r);
	while (fgets(line, sizeof(line), f)) {
		char *end = line;

		for (g->n_prompt = 0; g->n_prompt < N_POSITIONS && *end != '\n' && *end;
		     g->n_prompt++)
			g->ids[g->n_prompt] = (uint32_t)strtoul(end, &end, 10);
		for (size_t k = 0; k < N_ELEMENTS(all_kept); k++)
			closeness(g, &all_kept[k], UINT32_MAX);
	}
	fclose(f);
}

int main(int argc, char **argv)
{
	static const char *const all[] = {"v2-lite-tiny", "v2-lite-bf16", "v2-tiny",  "v2-x16",
					  "v2-vdim",      "v2-dense2",    "v2-freq2", "v2-sharded"};
	static const struct {
		const char *name;
		CMUnitTestFunction run;
	} what[] = {
		{"f32_is_the_published_implementation", f32_is_the_published_implementation},
		{"softmax_scale_has_the_yarn_factor", softmax_scale_has_the_yarn_factor},
		{"kept_weights_stay_close_to_f32", kept_weights_stay_close_to_f32},
	};
	struct CMUnitTest tests[N_ELEMENTS(all) * N_ELEMENTS(what)];
	struct golden goldens[N_ELEMENTS(all)];
	char names[N_ELEMENTS(all) * N_ELEMENTS(what)][80];
	size_t n_shapes = argc > 2 ? (size_t)argc - 2 : N_ELEMENTS(all), n = 0;

	if (argc == 5 && strcmp(argv[1], "--quality") == 0) {
		struct golden g = {.dir = argv[2], .shape = argv[3], .texts = argv[4]};
		const struct CMUnitTest one[] = {
			{.name = "quality", .test_func = quality, .initial_state = &g}};

		return _cmocka_run_group_tests("quality", one, 1, NULL, NULL);
	}
	if (argc < 2 || argv[1][0] == '-' || n_shapes > N_ELEMENTS(all)) {
		fputs("usage: golden DIR [SHAPE...]\n       golden --quality DIR SHAPE IDS\n",
		      stderr);
		return 2;
	}
	for (size_t i = 0; i < n_shapes; i++) {
		goldens[i] =
			(struct golden){.dir = argv[1], .shape = argc > 2 ? argv[2 + i] : all[i]};
		for (size_t k = 0; k < N_ELEMENTS(what); k++, n++) {
			snprintf(names[n], sizeof(names[n]), "%s_of_%s", what[k].name,
				 goldens[i].shape);
			tests[n] = (struct CMUnitTest){.name = names[n],
						       .test_func = what[k].run,
						       .initial_state = &goldens[i]};
		}
	}
	return _cmocka_run_group_tests("golden", tests, n, NULL, NULL);
}
