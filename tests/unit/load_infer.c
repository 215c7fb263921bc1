/* SPDX-License-Identifier: Apache-2.0 */
/* A real dsd-worker with made-up weights behind a channel that this test owns. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "load_peer.h"

#define WORKER   (*(const char **)*state)
#define N_PROMPT 70 /* past a page */

static const char config[] =
	"{\"model_type\": \"deepseek_v2\", \"vocab_size\": 320, \"hidden_size\": 64,\n"
	" \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"q_lora_rank\": null,\n"
	" \"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8,\n"
	" \"v_head_dim\": 16, \"intermediate_size\": 96, \"moe_intermediate_size\": 32,\n"
	" \"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"n_shared_experts\": 1,\n"
	" \"first_k_dense_replace\": 1, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000,\n"
	" \"max_position_embeddings\": 512, \"eos_token_id\": 257, \"bos_token_id\": 256,\n"
	" \"dsd_synthetic\": %d}\n";

/* A directory with a config.json of its own; remove_model() takes it away. */
static char *make_model(int seed)
{
	char *dir = strdup("/tmp/dsd-load-XXXXXX"), path[64];
	FILE *f;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/config.json", dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fprintf(f, config, seed);
	assert_int_equal(fclose(f), 0);
	return dir;
}

static void remove_model(char *dir)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/config.json", dir);
	unlink(path);
	rmdir(dir);
	free(dir);
}

static void start(struct peer *p, const char *worker, int seed, enum control_weights weights)
{
	struct control_msg load = {.weights = weights,
				   .entry = _PAGE_ENTRY_MAX,
				   .cpu_mask = UINT32_MAX,
				   .n_threads = 2};
	char *dir = make_model(seed);

	peer_start(p, worker, dir, &load);
	if (!peer_await_image(p))
		fail_msg("%s", p->failed);
	peer_open(p, 4, 128, 256, 16);
	remove_model(dir);
}

static void make_prompt(uint32_t *ids)
{
	for (uint32_t i = 0; i < N_PROMPT; i++)
		ids[i] = i ? (i * 37 + 11) % 256 : 256;
}

static struct channel_params *new_slot(struct peer *p, uint32_t slot, uint32_t first_page)
{
	uint32_t ids[N_PROMPT], pages[4];

	make_prompt(ids);
	for (uint32_t i = 0; i < 4; i++)
		pages[i] = first_page + 3 - i;
	return peer_slot(p, slot, pages, 4, ids, N_PROMPT);
}

static struct channel_row row(uint32_t slot, uint32_t position, uint32_t token, uint32_t flags)
{
	return (struct channel_row){.slot = slot,
				    .position = position,
				    .token = token,
				    .flags = (uint16_t)flags,
				    .mask = UINT32_MAX};
}

/* Prefill in chunks of @chunk, then decode: @n tokens. */
static void generate(struct peer *p, uint32_t slot, uint32_t chunk, uint32_t *ret,
		     float *ret_logprob, uint32_t n)
{
	struct channel_row rows[N_PROMPT];
	uint32_t ids[N_PROMPT];

	make_prompt(ids);
	for (uint32_t i = 0; i < N_PROMPT; i++)
		rows[i] = row(slot, i, ids[i], i == N_PROMPT - 1 ? CHANNEL_WANT_LOGITS : 0);
	for (uint32_t i = 0; i < N_PROMPT; i += chunk) {
		peer_step(p, rows + i, MIN(chunk, N_PROMPT - i));
		assert_int_equal(p->result.status, CHANNEL_OK);
	}
	for (uint32_t i = 0;; i++) {
		assert_int_equal(p->result.status, CHANNEL_OK);
		assert_int_equal(p->result.n_rows, 1);
		assert_int_equal(p->rows[0].position, N_PROMPT - 1 + i);
		ret[i] = p->rows[0].token;
		ret_logprob[i] = p->rows[0].logprob;
		if (i + 1 == n)
			return;
		rows[0] = row(slot, N_PROMPT + i, CHANNEL_FROM_LAST_SAMPLE, CHANNEL_WANT_LOGITS);
		rows[0].path = CHANNEL_GENERATED;
		peer_step(p, rows, 1);
	}
}

static void image_tells_the_synthetic_geometry(void **state)
{
	struct peer p;

	start(&p, WORKER, 1, CONTROL_WEIGHTS_AUTO);
	assert_string_equal(p.image.h->arch, "deepseek_v2");
	assert_int_equal(p.image.h->n_vocab, 320);
	assert_int_equal(p.image.h->splitter, IMAGE_SPLIT_BYTES);
	assert_int_equal(p.image.h->entry, PAGE_ENTRY_BF16);
	assert_int_equal(p.image.h->bos, 256);
	assert_int_equal(p.image.h->eos[0], 257);
	assert_int_equal(p.image.token_flags[300], 0);
	assert_int_equal(p.geometry.token_bytes, 2 * 2 * (32 + 8));
	assert_true(p.image.h->weight_bytes > 2 * (uint64_t)320 * 64 * 2);
	assert_int_equal(peer_stop(&p), 0);
}

static void f32_weights_take_f32_pages(void **state)
{
	struct peer p;

	start(&p, WORKER, 1, CONTROL_WEIGHTS_F32);
	assert_int_equal(p.image.h->entry, PAGE_ENTRY_F32);
	assert_int_equal(peer_stop(&p), 0);
}

static void digest_follows_seed_and_precision(void **state)
{
	uint8_t digests[4][32];
	struct peer p;

	for (int i = 0; i < 4; i++) {
		start(&p, WORKER, i == 2 ? 2 : 1,
		      i == 3 ? CONTROL_WEIGHTS_F32 : CONTROL_WEIGHTS_BF16);
		memcpy(digests[i], p.image.h->digest, 32);
		assert_int_equal(peer_stop(&p), 0);
	}
	assert_memory_equal(digests[0], digests[1], 32);
	assert_memory_not_equal(digests[0], digests[2], 32);
	assert_memory_not_equal(digests[0], digests[3], 32);
}

static void text_does_not_depend_on_chunks_pages_or_slot(void **state)
{
	static const uint32_t chunks[] = {N_PROMPT, 1, 7, 64};
	uint32_t want[40], got[40];
	float want_logprob[40], got_logprob[40];

	for (int w = CONTROL_WEIGHTS_F32; w <= CONTROL_WEIGHTS_Q4; w++) {
		struct peer p;

		start(&p, WORKER, 3, w);
		for (uint32_t i = 0; i < N_ELEMENTS(chunks); i++) {
			struct channel_params *params = new_slot(&p, i, 3 * i);

			params->ignore_eos = 1;
			params->temperature = 0.9f;
			params->seed = 5;
			peer_slot_done(&p, i);
			generate(&p, i, chunks[i], i ? got : want, i ? got_logprob : want_logprob,
				 40);
			if (i) {
				assert_memory_equal(got, want, sizeof(want));
				assert_memory_equal(got_logprob, want_logprob,
						    sizeof(want_logprob));
			}
		}
		assert_int_equal(peer_stop(&p), 0);
	}
}

static void prompt_logprobs_agree_with_samples(void **state)
{
	struct channel_row rows[N_PROMPT + 1];
	uint32_t ids[N_PROMPT + 1], token;
	float logprob;
	struct channel_slot *slot;
	struct peer p;

	start(&p, WORKER, 3, CONTROL_WEIGHTS_F32);
	new_slot(&p, 0, 0);
	peer_slot_done(&p, 0);
	generate(&p, 0, N_PROMPT, &token, &logprob, 1);
	/* The same prompt with that token behind it: its logprob as a prompt's is that of the draw. */
	new_slot(&p, 1, 4)->n_top = 3;
	slot = channel_slot(p.channel, &p.shape, 1);
	channel_slot_ids(slot, &p.shape)[N_PROMPT] = token;
	slot->n_ids = N_PROMPT + 1;
	peer_slot_done(&p, 1);
	make_prompt(ids);
	ids[N_PROMPT] = token;
	for (uint32_t i = 0; i <= N_PROMPT; i++)
		rows[i] = row(1, i, ids[i],
			      i >= 50 && i < N_PROMPT ? CHANNEL_WANT_PROMPT_LOGPROB : 0);
	peer_step(&p, rows, N_PROMPT + 1);
	assert_int_equal(p.result.status, CHANNEL_OK);
	assert_int_equal(p.result.n_rows, N_PROMPT - 50);
	assert_int_equal(p.rows[0].token, ids[51]);
	assert_int_equal(p.rows[N_PROMPT - 51].token, token);
	assert_true(p.rows[N_PROMPT - 51].logprob == logprob);
	assert_int_equal(p.rows[0].n_top, 3);
	assert_int_equal(p.rows[N_PROMPT - 51].top[0].id, token);
	assert_int_equal(peer_stop(&p), 0);
}

/* The greedy token is biased away; its place in the logprobs stays. */
static void bias_changes_the_draw_and_not_the_logprobs(void **state)
{
	uint32_t plain, biased;
	float plain_logprob, biased_logprob;
	struct channel_params *params;
	struct peer p;

	start(&p, WORKER, 3, CONTROL_WEIGHTS_F32);
	new_slot(&p, 0, 0)->n_top = 2;
	peer_slot_done(&p, 0);
	generate(&p, 0, N_PROMPT, &plain, &plain_logprob, 1);
	assert_int_equal(p.rows[0].top[0].id, plain);
	params = new_slot(&p, 0, 0);
	params->n_top = 2;
	params->n_bias = 1;
	params->bias[0].id = plain;
	params->bias[0].bias = -100;
	peer_slot_done(&p, 0);
	generate(&p, 0, N_PROMPT, &biased, &biased_logprob, 1);
	assert_int_not_equal(biased, plain);
	assert_int_equal(p.rows[0].top[0].id, plain);
	assert_true(p.rows[0].top[0].logprob == plain_logprob);
	assert_int_equal(p.rows[0].top[1].id, biased);
	assert_true(p.rows[0].top[1].logprob == biased_logprob);
	assert_int_equal(peer_stop(&p), 0);
}

/* A bias that makes the end token certain, and the parameters that forbid it. */
static void end_token_waits_for_min_tokens(void **state)
{
	uint32_t tokens[4];
	float logprobs[4];

	for (uint32_t i = 0; i < 2; i++) {
		struct channel_params *params;
		struct peer p;

		start(&p, WORKER, 3, CONTROL_WEIGHTS_BF16);
		params = new_slot(&p, 0, 0);
		params->n_bias = 1;
		params->bias[0].id = 257;
		params->bias[0].bias = 1000;
		params->min_tokens = 2;
		params->ignore_eos = i;
		peer_slot_done(&p, 0);
		generate(&p, 0, N_PROMPT, tokens, logprobs, 4);
		assert_int_not_equal(tokens[0], 257);
		assert_int_not_equal(tokens[1], 257);
		if (i == 0)
			assert_int_equal(tokens[2], 257);
		else
			assert_int_not_equal(tokens[3], 257);
		assert_int_equal(peer_stop(&p), 0);
	}
}

static void repetition_penalty_forbids_what_came_before(void **state)
{
	uint32_t tokens[30];
	float logprobs[30];
	struct channel_params *params;
	struct peer p;

	start(&p, WORKER, 3, CONTROL_WEIGHTS_BF16);
	params = new_slot(&p, 0, 0);
	params->ignore_eos = 1;
	params->presence_penalty = 100;
	peer_slot_done(&p, 0);
	generate(&p, 0, N_PROMPT, tokens, logprobs, 30);
	for (uint32_t i = 0; i < 30; i++)
		for (uint32_t k = 0; k < i; k++)
			assert_int_not_equal(tokens[i], tokens[k]);
	assert_int_equal(peer_stop(&p), 0);
}

static void broken_config_is_a_sentence(void **state)
{
	char *dir = make_model(1), path[64];
	struct peer p;
	int fd;

	snprintf(path, sizeof(path), "%s/config.json", dir);
	fd = open(path, O_WRONLY);
	assert_int_equal(ftruncate(fd, 100), 0);
	close(fd);
	peer_start(&p, WORKER, dir, NULL);
	assert_false(peer_await_image(&p));
	assert_string_equal(p.failed, "config.json: ends at byte 100 in the middle of the JSON");
	assert_int_equal(peer_stop(&p), 256);
	remove_model(dir);
}

int main(int argc, char **argv)
{
	const char *worker = argc > 1 ? argv[1] : NULL;
	struct CMUnitTest tests[] = {
		cmocka_unit_test(image_tells_the_synthetic_geometry),
		cmocka_unit_test(f32_weights_take_f32_pages),
		cmocka_unit_test(digest_follows_seed_and_precision),
		cmocka_unit_test(text_does_not_depend_on_chunks_pages_or_slot),
		cmocka_unit_test(prompt_logprobs_agree_with_samples),
		cmocka_unit_test(bias_changes_the_draw_and_not_the_logprobs),
		cmocka_unit_test(end_token_waits_for_min_tokens),
		cmocka_unit_test(repetition_penalty_forbids_what_came_before),
		cmocka_unit_test(broken_config_is_a_sentence),
	};

	for (size_t i = 0; i < N_ELEMENTS(tests); i++)
		tests[i].initial_state = &worker;
	if (!worker)
		return 77;
	return cmocka_run_group_tests_name("load_infer", tests, NULL, NULL);
}
