/* SPDX-License-Identifier: Apache-2.0 */
/* A worker in f32 against what transformers computed (tests/golden/README.md): files in, logprobs out. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "base/cleanup.h"
#include "load_peer.h"

#define CHUNK 64u

struct golden {
	const char *worker, *dir;
	const char *shape;
	double worst; /* largest |difference| of a logprob seen */
};

static struct json_object *member(struct json_object *o, const char *key)
{
	struct json_object *m = NULL;

	assert_true(json_object_object_get_ex(o, key, &m));
	return m;
}

static double number(struct json_object *list, uint32_t i)
{
	return json_object_get_double(json_object_array_get_idx(list, i));
}

static void compare(struct golden *g, double got, double want)
{
	g->worst = fmax(g->worst, fabs(got - want));
}

/* Prompt in chunks: every prompt logprob, and the first draw. */
static uint32_t prefill(struct golden *g, struct peer *p, struct json_object *o)
{
	struct json_object *ids = member(o, "prompt_ids"), *want = member(o, "prompt_logprobs");
	uint32_t n_prompt = (uint32_t)json_object_array_length(ids);
	struct channel_row rows[CHUNK];

	for (uint32_t at = 0; at < n_prompt; at += CHUNK) {
		uint32_t n = MIN(CHUNK, n_prompt - at);

		for (uint32_t i = 0; i < n; i++)
			rows[i] = (struct channel_row){
				.position = at + i,
				.token = (uint32_t)number(ids, at + i),
				.flags = at + i + 1 < n_prompt ? CHANNEL_WANT_PROMPT_LOGPROB
							       : CHANNEL_WANT_LOGITS,
				.mask = UINT32_MAX,
			};
		peer_step(p, rows, n);
		assert_int_equal(p->result.status, CHANNEL_OK);
		assert_int_equal(p->result.n_rows, n);
		for (uint32_t i = 0; i < n && at + i + 1 < n_prompt; i++)
			compare(g, p->rows[i].logprob, number(want, at + i));
		p->rows[0] = p->rows[n - 1];
	}
	return n_prompt;
}

static void shape_agrees_with_transformers(void **state)
{
	struct golden *g = *state;
	struct control_msg load = {.weights = CONTROL_WEIGHTS_F32,
				   .entry = _PAGE_ENTRY_MAX,
				   .cpu_mask = UINT32_MAX,
				   .n_threads = 2};
	static const uint32_t pages[] = {3, 1, 0, 2};
	char dir[512], path[600];
	struct json_object *o, *ids, *logprobs, *margins;
	uint32_t prompt[256], n_prompt, n_greedy;
	struct peer p;

	snprintf(dir, sizeof(dir), "%s/%s", g->dir, g->shape);
	snprintf(path, sizeof(path), "%s/golden.json", dir);
	o = json_object_from_file(path);
	assert_non_null(o);
	peer_start(&p, g->worker, dir, &load);
	if (!peer_await_image(&p))
		fail_msg("%s", p.failed);
	peer_open(&p, 1, CHUNK, 256, 4);
	ids = member(o, "prompt_ids");
	n_prompt = (uint32_t)json_object_array_length(ids);
	assert_in_range(n_prompt, 65, 255);
	for (uint32_t i = 0; i < n_prompt; i++)
		prompt[i] = (uint32_t)number(ids, i);
	peer_slot(&p, 0, pages, 4, prompt, n_prompt);
	peer_slot_done(&p, 0);

	prefill(g, &p, o);
	ids = member(o, "greedy_ids");
	logprobs = member(o, "greedy_logprobs");
	margins = member(o, "greedy_margins");
	n_greedy = (uint32_t)json_object_array_length(ids);
	for (uint32_t i = 0; i < n_greedy; i++) {
		struct channel_row row = {.position = n_prompt + i,
					  .token = CHANNEL_FROM_LAST_SAMPLE,
					  .path = CHANNEL_GENERATED,
					  .flags = CHANNEL_WANT_LOGITS,
					  .mask = UINT32_MAX};

		/* A narrower lead may fall either way, and what follows is another text then. */
		if (number(margins, i) <= 1e-3)
			break;
		assert_int_equal(p.rows[0].token, (uint32_t)number(ids, i));
		compare(g, p.rows[0].logprob, number(logprobs, i));
		if (i + 1 == n_greedy)
			break;
		peer_step(&p, &row, 1);
		assert_int_equal(p.result.status, CHANNEL_OK);
	}
	print_message("%s: largest difference %.2e\n", g->shape, g->worst);
	assert_true(g->worst <= 1e-3);
	json_object_put(o);
	assert_int_equal(peer_stop(&p), 0);
}

int main(int argc, char **argv)
{
	static const char *const shapes[] = {"v2-lite-tiny", "v2-lite-bf16", "v2-tiny",
					     "v2-x16",       "v2-vdim",      "v2-dense2",
					     "v2-freq2",     "v2-sharded"};
	struct CMUnitTest tests[N_ELEMENTS(shapes)];
	struct golden goldens[N_ELEMENTS(shapes)];

	if (argc < 3)
		return 77;
	for (size_t i = 0; i < N_ELEMENTS(shapes); i++) {
		goldens[i] = (struct golden){.worker = argv[1], .dir = argv[2], .shape = shapes[i]};
		tests[i] = (struct CMUnitTest){.name = shapes[i],
					       .test_func = shape_agrees_with_transformers,
					       .initial_state = &goldens[i]};
	}
	return cmocka_run_group_tests_name("load_golden", tests, NULL, NULL);
}
