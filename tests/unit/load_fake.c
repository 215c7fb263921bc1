/* SPDX-License-Identifier: Apache-2.0 */
/* A real dsd-worker --fake behind a channel that this test owns. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "load_peer.h"

#define WORKER (*(const char **)*state)
#define BOS    256u
#define EOS    257u

static const uint32_t three_pages[] = {5, 2, 9};

static void start(struct peer *p, const char *worker)
{
	peer_start(p, worker, NULL, NULL);
	assert_true(peer_await_image(p));
	peer_open(p, 4, 32, 256, 16);
}

static struct channel_row row(uint32_t slot, uint32_t position, uint32_t token, uint32_t flags)
{
	return (struct channel_row){.slot = slot,
				    .position = position,
				    .token = token,
				    .flags = (uint16_t)flags,
				    .mask = UINT32_MAX};
}

/* "ab" after the begin token, then @n tokens, one step each. */
static void generate(struct peer *p, uint32_t slot, uint32_t *ret, uint32_t n)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};
	struct channel_row rows[3];

	for (uint32_t i = 0; i < 3; i++)
		rows[i] = row(slot, i, ids[i], i == 2 ? CHANNEL_WANT_LOGITS : 0);
	peer_step(p, rows, 3);
	for (uint32_t i = 0;; i++) {
		assert_int_equal(p->result.status, CHANNEL_OK);
		assert_int_equal(p->result.n_rows, 1);
		assert_int_equal(p->rows[0].slot, slot);
		assert_int_equal(p->rows[0].position, 2 + i);
		ret[i] = p->rows[0].token;
		if (i + 1 == n)
			return;
		rows[0] = row(slot, 3 + i, CHANNEL_FROM_LAST_SAMPLE, CHANNEL_WANT_LOGITS);
		rows[0].path = CHANNEL_GENERATED;
		peer_step(p, rows, 1);
	}
}

static void new_slot(struct peer *p, uint32_t slot, const uint32_t *pages)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};

	peer_slot(p, slot, pages, 3, ids, 3)->ignore_eos = 1;
	peer_slot_done(p, slot);
}

static void image_is_a_byte_vocabulary(void **state)
{
	struct peer p;

	start(&p, WORKER);
	assert_int_equal(p.image.h->n_vocab, 258);
	assert_int_equal(p.image.h->splitter, IMAGE_SPLIT_BYTES);
	assert_int_equal(p.image.h->bos, BOS);
	assert_int_equal(p.image.h->eos[0], EOS);
	assert_int_equal(p.image.h->n_context, 8192);
	assert_int_equal(p.geometry.stride, 4096);
	assert_int_equal(peer_stop(&p), 0);
}

static void context_follows_the_load_limit(void **state)
{
	struct control_msg load = {.n_context = 512, .entry = _PAGE_ENTRY_MAX};
	struct peer p;

	peer_start(&p, WORKER, NULL, &load);
	assert_true(peer_await_image(&p));
	assert_int_equal(p.image.h->n_context, 512);
	assert_int_equal(peer_stop(&p), 0);
}

static void same_sequence_gives_same_text_in_any_slot_and_pages(void **state)
{
	static const uint32_t other_pages[] = {1, 0, 3};
	uint32_t a[150], b[150];
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	new_slot(&p, 3, other_pages);
	generate(&p, 0, a, 150);
	generate(&p, 3, b, 150);
	assert_memory_equal(a, b, sizeof(a));
	for (uint32_t i = 0; i < 150; i++)
		assert_true(a[i] == ' ' || (a[i] >= 'a' && a[i] <= 'z'));
	assert_int_equal(peer_stop(&p), 0);
}

static void seed_and_choice_change_sampled_text(void **state)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};
	uint32_t text[3][20];
	struct peer p;

	start(&p, WORKER);
	for (uint32_t i = 0; i < 3; i++) {
		struct channel_params *params = peer_slot(&p, 0, three_pages, 3, ids, 3);

		params->temperature = 1;
		params->ignore_eos = 1;
		params->seed = i == 1 ? 8 : 7;
		params->choice = i == 2;
		peer_slot_done(&p, 0);
		generate(&p, 0, text[i], 20);
	}
	assert_memory_not_equal(text[0], text[1], sizeof(text[0]));
	assert_memory_not_equal(text[0], text[2], sizeof(text[0]));
	assert_int_equal(peer_stop(&p), 0);
}

static void two_steps_may_be_queued(void **state)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};
	uint32_t alone[3];
	struct channel_row first = row(0, 0, BOS, 0), rows[3], next;
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	generate(&p, 0, alone, 3);
	new_slot(&p, 0, three_pages);
	peer_step(&p, &first, 1);
	for (uint32_t i = 1; i < 3; i++)
		rows[i - 1] = row(0, i, ids[i], i == 2 ? CHANNEL_WANT_LOGITS : 0);
	peer_queue(&p, rows, 2);
	for (uint32_t i = 3; i < 5; i++) {
		next = row(0, i, CHANNEL_FROM_LAST_SAMPLE, CHANNEL_WANT_LOGITS);
		peer_queue(&p, &next, 1);
	}
	for (uint32_t i = 0; i < 3; i++) {
		peer_take(&p);
		assert_int_equal(p.result.status, CHANNEL_OK);
		assert_int_equal(p.rows[0].token, alone[i]);
	}
	assert_int_equal(peer_stop(&p), 0);
}

static void prompt_logprob_is_that_of_the_next_id(void **state)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};
	struct channel_row rows[3];
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	for (uint32_t i = 0; i < 3; i++)
		rows[i] = row(0, i, ids[i],
			      i < 2 ? CHANNEL_WANT_PROMPT_LOGPROB : CHANNEL_WANT_LOGITS);
	peer_step(&p, rows, 3);
	assert_int_equal(p.result.n_rows, 3);
	assert_int_equal(p.rows[0].token, 'a');
	assert_int_equal(p.rows[1].token, 'b');
	assert_true(p.rows[0].logprob < 0 && p.rows[0].logprob >= -3);
	assert_int_equal(p.rows[2].position, 2);
	assert_int_equal(peer_stop(&p), 0);
}

static void alternatives_descend_from_the_greedy_token(void **state)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'};
	struct channel_row rows[3];
	struct peer p;

	start(&p, WORKER);
	peer_slot(&p, 0, three_pages, 3, ids, 3)->n_top = 20;
	peer_slot_done(&p, 0);
	for (uint32_t i = 0; i < 3; i++)
		rows[i] = row(0, i, ids[i], i == 2 ? CHANNEL_WANT_LOGITS : 0);
	peer_step(&p, rows, 3);
	assert_int_equal(p.rows[0].n_top, 20);
	assert_int_equal(p.rows[0].top[0].id, p.rows[0].token);
	for (uint32_t i = 1; i < 20; i++)
		assert_true(p.rows[0].top[i].logprob <= p.rows[0].top[i - 1].logprob);
	assert_int_equal(peer_stop(&p), 0);
}

/* One wrong byte in a page that the sequence wrote is a foreign page. */
static void foreign_page_shows_in_the_next_step(void **state)
{
	uint32_t text[100];
	struct channel_row next;

	for (uint32_t row_of_page = 0; row_of_page < 2; row_of_page++) {
		struct peer p;

		start(&p, WORKER);
		new_slot(&p, 0, three_pages);
		generate(&p, 0, text, 100);
		/* Rows 0..101 are written: 64 in page 5, 38 in page 2. */
		page_row(p.pool, &p.geometry, row_of_page ? 2 : 5, row_of_page,
			 row_of_page ? 37 : 63)[9] ^= 1;
		next = row(0, 102, CHANNEL_FROM_LAST_SAMPLE, CHANNEL_WANT_LOGITS);
		peer_step(&p, &next, 1);
		assert_int_equal(p.result.status, CHANNEL_BAD_STEP);
		assert_int_equal(p.result.n_rows, 0);
		assert_int_equal(peer_stop(&p), 0);
	}
}

/* A page that comes back as a cached prefix is read whole. */
static void half_written_page_shows_when_it_is_attached(void **state)
{
	uint32_t text[100], ids[103] = {BOS, 'a', 'b'};
	struct channel_row next;
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	generate(&p, 0, text, 100);
	memcpy(ids + 3, text, sizeof(text));
	for (uint32_t i = 0; i < 2; i++) {
		peer_slot(&p, 1, three_pages, 3, ids, 103)->ignore_eos = 1;
		peer_slot_done(&p, 1);
		if (i == 1)
			memset(page_row(p.pool, &p.geometry, 5, 1, 20), 0, 8);
		next = row(1, 102, ids[102], CHANNEL_WANT_LOGITS);
		peer_step(&p, &next, 1);
		assert_int_equal(p.result.status, i == 0 ? CHANNEL_OK : CHANNEL_BAD_STEP);
	}
	assert_int_equal(peer_stop(&p), 0);
}

static void page_of_another_domain_shows(void **state)
{
	uint32_t text[100], ids[103] = {BOS, 'a', 'b'};
	struct channel_row next;
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	generate(&p, 0, text, 100);
	memcpy(ids + 3, text, sizeof(text));
	peer_slot(&p, 1, three_pages, 3, ids, 103);
	channel_slot(p.channel, &p.shape, 1)->domain[3] ^= 1;
	peer_slot_done(&p, 1);
	next = row(1, 102, ids[102], CHANNEL_WANT_LOGITS);
	peer_step(&p, &next, 1);
	assert_int_equal(p.result.status, CHANNEL_BAD_STEP);
	assert_int_equal(peer_stop(&p), 0);
}

static void bad_steps_are_refused_and_the_next_is_answered(void **state)
{
	static const uint32_t ids[] = {BOS, 'a', 'b'}, far_pages[] = {5, 2, 16};
	struct channel_row good[3];
	struct {
		const char *name;
		uint32_t n;
		struct channel_row rows[4];
	} bad[] = {
		{"slot past the last", 1, {row(4, 0, BOS, 0)}},
		{"position past the channel", 1, {row(0, 256, BOS, 0)}},
		{"position past the pages", 1, {row(0, 192, BOS, 0)}},
		{"id past the vocabulary", 1, {row(0, 0, 258, 0)}},
		{"no sample yet", 1, {row(1, 3, CHANNEL_FROM_LAST_SAMPLE, 0)}},
		{"ids missing", 1, {row(0, 4, 'c', 0)}},
		{"descending", 2, {row(0, 1, 'a', 0), row(0, 0, BOS, 0)}},
		{"slot in two places",
		 3,
		 {row(0, 0, BOS, 0), row(1, 0, BOS, 0), row(0, 1, 'a', 0)}},
		{"unknown flag", 1, {row(0, 0, BOS, 4)}},
		{"both answers", 1, {row(0, 0, BOS, 3)}},
		{"no next id", 1, {row(0, 2, 'b', CHANNEL_WANT_PROMPT_LOGPROB)}},
		{"unused slot", 1, {row(2, 0, BOS, 0)}},
		{"page past the pool", 1, {row(3, 130, BOS, 0)}},
		{"no rows", 0, {row(0, 0, BOS, 0)}},
	};
	struct peer p;

	start(&p, WORKER);
	new_slot(&p, 0, three_pages);
	new_slot(&p, 1, three_pages);
	new_slot(&p, 3, far_pages);
	for (uint32_t i = 0; i < 3; i++)
		good[i] = row(0, i, ids[i], i == 2 ? CHANNEL_WANT_LOGITS : 0);
	for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
		peer_step(&p, bad[i].rows, bad[i].n);
		if (p.result.status != CHANNEL_BAD_STEP)
			fail_msg("%s: status %u", bad[i].name, p.result.status);
		peer_step(&p, good, 3);
		assert_int_equal(p.result.status, CHANNEL_OK);
	}
	assert_int_equal(peer_stop(&p), 0);
}

static void bad_parameters_are_refused(void **state)
{
	static const uint32_t ids[] = {BOS};
	struct channel_row first = row(0, 0, BOS, CHANNEL_WANT_LOGITS);
	struct peer p;

	start(&p, WORKER);
	for (uint32_t i = 0; i < 8; i++) {
		struct channel_params *params = peer_slot(&p, 0, three_pages, 3, ids, 1);

		switch (i) {
		case 0:
			params->temperature = -1;
			break;
		case 1:
			params->temperature = __builtin_nanf("");
			break;
		case 2:
			params->top_p = 0;
			break;
		case 3:
			params->n_top = CHANNEL_TOP_MAX + 1;
			break;
		case 4:
			params->n_bias = CHANNEL_BIAS_MAX + 1;
			break;
		case 5:
			params->n_bias = 1;
			params->bias[0].id = 258;
			break;
		case 6:
			params->n_prompt = 0;
			break;
		case 7:
			params->repetition_penalty = 0;
			break;
		}
		peer_slot_done(&p, 0);
		peer_step(&p, &first, 1);
		assert_int_equal(p.result.status, CHANNEL_BAD_STEP);
	}
	assert_int_equal(peer_stop(&p), 0);
}

/* A ring that claims more steps than it holds is no ring. */
static void broken_ring_ends_the_worker_with_a_sentence(void **state)
{
	struct peer p;
	uint64_t one = 1;
	int status;

	start(&p, WORKER);
	atomic_store(&((struct channel_header *)p.channel)->steps.tail, CHANNEL_DEPTH + 1);
	assert_int_equal(write(p.step_event, &one, sizeof(one)), sizeof(one));
	assert_false(peer_await_image(&p));
	assert_non_null(strstr(p.failed, "step ring holds 5 steps"));
	status = peer_stop(&p);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

static void worker_leaves_when_the_socket_ends_before_load(void **state)
{
	struct peer p;

	peer_start(&p, WORKER, NULL, NULL);
	assert_int_equal(peer_stop(&p), 0);
}

int main(int argc, char **argv)
{
	const char *worker = argc > 1 ? argv[1] : NULL;
	struct CMUnitTest tests[] = {
		cmocka_unit_test(image_is_a_byte_vocabulary),
		cmocka_unit_test(context_follows_the_load_limit),
		cmocka_unit_test(same_sequence_gives_same_text_in_any_slot_and_pages),
		cmocka_unit_test(seed_and_choice_change_sampled_text),
		cmocka_unit_test(two_steps_may_be_queued),
		cmocka_unit_test(prompt_logprob_is_that_of_the_next_id),
		cmocka_unit_test(alternatives_descend_from_the_greedy_token),
		cmocka_unit_test(foreign_page_shows_in_the_next_step),
		cmocka_unit_test(half_written_page_shows_when_it_is_attached),
		cmocka_unit_test(page_of_another_domain_shows),
		cmocka_unit_test(bad_steps_are_refused_and_the_next_is_answered),
		cmocka_unit_test(bad_parameters_are_refused),
		cmocka_unit_test(broken_ring_ends_the_worker_with_a_sentence),
		cmocka_unit_test(worker_leaves_when_the_socket_ends_before_load),
	};

	for (size_t i = 0; i < N_ELEMENTS(tests); i++)
		tests[i].initial_state = &worker;
	if (!worker)
		return 77;
	return cmocka_run_group_tests_name("load_fake", tests, NULL, NULL);
}
