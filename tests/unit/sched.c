/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/sched.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "sched/seq.h"
#include "sched_rig.h"

static const struct rig_config roomy = {
	.n_pages = 64, .n_slots = 8, .step_tokens = 32, .max_tokens = 2048, .queue_max = 16};

/* Rows of @slot in the last step. */
static uint32_t rows_of(const struct rig *r, uint32_t slot)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->n_step_rows; i++)
		n += r->step[i].slot == slot;
	return n;
}

static struct sched_stats stats(const struct rig *r)
{
	struct sched_stats s;

	sched_get_stats(r->sched, &s);
	return s;
}

static void prompt_is_computed_in_chunks_then_token_by_token(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 70, 3), 0);
	assert_int_equal(seq_state(q.seq), SEQ_WAITING);
	assert_int_equal(seq_started_usec(q.seq), 0);
	sched_run(r->sched);
	assert_int_equal(seq_state(q.seq), SEQ_PREFILL);
	assert_true(seq_started_usec(q.seq) > 0);
	assert_true(rig_step(r));
	assert_int_equal(r->n_step_rows, 32);
	assert_true(rig_step(r));
	assert_int_equal(r->n_step_rows, 32);
	assert_int_equal(r->step[0].position, 32);
	assert_int_equal(q.n_out, 0);
	assert_true(rig_step(r));
	assert_int_equal(r->n_step_rows, 6);
	assert_int_equal(r->step[4].flags, 0);
	assert_int_equal(r->step[5].flags, CHANNEL_WANT_LOGITS);
	assert_int_equal(q.n_out, 1);
	assert_int_equal(seq_state(q.seq), SEQ_DECODE);
	assert_true(rig_step(r));
	assert_int_equal(r->n_step_rows, 1);
	assert_int_equal(r->step[0].path, CHANNEL_GENERATED);
	assert_true(rig_step(r));
	assert_true(q.ended);
	assert_int_equal(q.why, SEQ_END_LENGTH);
	assert_false(rig_step(r));
	rig_expect(&q);
	assert_int_equal(stats(r).prompt_tokens, 70);
	assert_int_equal(stats(r).generated_tokens, 3);
	assert_int_equal(stats(r).steps, 5);
	rig_free(r);
}

static void sequences_share_a_step_and_decodes_go_first(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[4];

	(void)state;
	assert_int_equal(rig_submit(r, &q[0], 1, 1, 100, 5), 0); /* long, oldest */
	for (uint32_t i = 1; i < 3; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, i + 1, 1, 50), 0);
	sched_run(r->sched);
	rig_step(r);
	/* One row of each short one, then the chunk of the long one, though it is older. */
	assert_int_equal(r->n_step_rows, 34);
	assert_int_equal(r->step[0].slot, 1);
	assert_int_equal(r->step[1].slot, 2);
	for (uint32_t i = 2; i < 34; i++)
		assert_int_equal(r->step[i].slot, 0);
	rig_run(r);
	for (uint32_t i = 0; i < 3; i++) {
		assert_true(q[i].ended);
		rig_expect(&q[i]);
	}
	rig_free(r);
}

static void long_prompt_delays_others_by_one_chunk_at_most(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq *q = calloc(3, sizeof(*q));

	(void)state;
	assert_int_equal(rig_submit(r, &q[0], 1, 1, 3, 200), 0);
	sched_run(r->sched);
	rig_step(r);
	assert_int_equal(q[0].n_out, 1);
	assert_int_equal(rig_submit(r, &q[1], 2, 2, 1500, 4), 0);
	assert_int_equal(rig_submit(r, &q[2], 3, 3, 1000, 4), 0);
	for (uint32_t step = 2; !q[1].ended || !q[2].ended; step++) {
		assert_true(rig_step(r));
		if (q[0].n_out < 200)
			assert_int_equal(q[0].n_out, step); /* a token in every step */
		assert_true(r->n_step_rows <= 32 + 3);
		assert_true(rows_of(r, 1) + rows_of(r, 2) <= 32 + 2);
	}
	rig_run(r);
	for (uint32_t i = 0; i < 3; i++)
		rig_expect(&q[i]);
	free(q);
	rig_free(r);
}

static void end_token_ends_and_is_delivered(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;

	(void)state;
	r->eos_one_in = 5;
	assert_int_equal(rig_submit(r, &q, 1, 7, 10, 400), 0);
	rig_run(r);
	assert_true(q.ended);
	assert_int_equal(q.why, SEQ_END_EOS);
	assert_true(q.n_out < 400);
	rig_expect(&q);
	rig_free(r);
}

static void prompt_is_scored_position_by_position(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, one;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 7, 130, 0), 0);
	assert_int_equal(rig_submit(r, &one, 1, 8, 1, 0), 0);
	rig_run(r);
	assert_true(q.ended && one.ended);
	assert_int_equal(q.why, SEQ_END_SCORED);
	assert_int_equal(one.why, SEQ_END_SCORED);
	assert_int_equal(q.n_prompt_rows, 129);
	assert_int_equal(q.n_out, 0);
	rig_free(r);
}

static void cancel_in_flight_keeps_pages_until_the_result(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;
	uint32_t n_held;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 64, 10), 0);
	sched_run(r->sched);
	n_held = 64 - pool_n_available(r->pool);
	assert_true(n_held >= 1);
	rig_cancel(&q);
	rig_check(r);
	assert_int_equal(64 - pool_n_available(r->pool), n_held);
	assert_int_equal(quota_used(r->quota, 1, QUOTA_PAGES), n_held);
	while (rig_step(r))
		;
	assert_int_equal(pool_n_available(r->pool), 64);
	assert_int_equal(quota_used(r->quota, 1, QUOTA_PAGES), 0);
	assert_int_equal(q.n_out, 0);
	assert_false(q.ended);
	assert_int_equal(stats(r).running, 0);
	rig_free(r);
}

static void cancel_while_waiting_is_immediate(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 64, 10), 0);
	rig_cancel(&q);
	assert_int_equal(stats(r).waiting, 0);
	rig_free(r);
}

static struct rig_seq *victim;

static void cancel_victim(struct rig_seq *q)
{
	(void)q;
	if (victim->seq)
		rig_cancel(victim);
}

/* A cancelled sequence that had no slot stayed in the queue for good when a callback cancelled it. */
static void callback_may_cancel_a_waiting_sequence(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, waits;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 1), 0);
	sched_run(r->sched);
	assert_int_equal(rig_submit(r, &waits, 1, 2, 5, 5), 0);
	seq_pause(waits.seq, true);
	victim = &waits;
	q.on_token = cancel_victim;
	rig_run(r);
	assert_true(q.ended);
	assert_int_equal(waits.n_out, 0);
	assert_int_equal(stats(r).waiting, 0);
	assert_int_equal(stats(r).running, 0);
	rig_free(r);
}

static void callback_may_cancel_its_own_and_other_running_sequences(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, other;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 10), 0);
	assert_int_equal(rig_submit(r, &other, 1, 2, 5, 10), 0);
	victim = &other;
	q.on_token = cancel_victim;
	rig_run(r);
	assert_int_equal(q.n_out, 10);
	assert_int_equal(other.n_out, 0);
	rig_expect(&q);
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 10), 0);
	victim = &q;
	q.on_token = cancel_victim;
	rig_run(r);
	assert_int_equal(q.n_out, 1);
	assert_false(q.ended);
	rig_free(r);
}

static struct rig_seq follower;

static void fail_all(struct rig_seq *q)
{
	sched_fail_all(q->rig->sched);
}

static void callback_may_fail_all_and_the_worker_may_be_gone_then(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[3], later;

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		rig_submit(r, &q[i], 1, i, 4, 20);
	q[1].on_token = fail_all;
	sched_run(r->sched);
	while (!q[1].ended)
		assert_true(rig_step(r));
	for (uint32_t i = 0; i < 3; i++) {
		assert_true(q[i].ended);
		assert_int_equal(q[i].why, SEQ_END_FAILED);
	}
	sched_requeue_all(r->sched);
	rig_new_worker(r);
	rig_check(r);
	assert_int_equal(stats(r).running, 0);
	rig_submit(r, &later, 1, 7, 4, 3);
	sched_run(r->sched);
	rig_run(r);
	rig_expect(&later);
	rig_free(r);
}

static void submit_follower(struct rig_seq *q)
{
	if (q->n_out == 1)
		assert_int_equal(rig_submit(q->rig, &follower, 1, 9, 5, 5), 0);
}

static void callback_may_submit(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 10), 0);
	q.on_token = submit_follower;
	rig_run(r);
	assert_true(q.ended && follower.ended);
	rig_expect(&q);
	rig_expect(&follower);
	rig_free(r);
}

static void youngest_is_preempted_and_gives_the_same_tokens(void **state)
{
	/* Three sequences of up to 4 pages in a pool of 6. */
	const struct rig_config tight = {
		.n_pages = 6, .n_slots = 4, .step_tokens = 64, .max_tokens = 256, .queue_max = 8};
	struct rig *r = rig_new(&tight);
	struct rig_seq q[3];

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(rig_submit(r, &q[i], i, i, 60, 180), 0);
	sched_run(r->sched);
	while (stats(r).preemptions == 0)
		assert_true(rig_step(r));
	/* The oldest ran on; the youngest lost its pages. */
	assert_int_equal(seq_state(q[2].seq), SEQ_PREEMPTED);
	assert_int_equal(seq_state(q[0].seq), SEQ_DECODE);
	rig_run(r);
	for (uint32_t i = 0; i < 3; i++) {
		assert_true(q[i].ended);
		assert_int_equal(q[i].n_out, 180);
		rig_expect(&q[i]);
	}
	rig_free(r);
}

/* It left its slot and came back behind the other: that makes it no younger. */
static void who_comes_back_is_as_old_as_before(void **state)
{
	const struct rig_config tight = {
		.n_pages = 6, .n_slots = 4, .step_tokens = 64, .max_tokens = 256, .queue_max = 8};
	struct rig *r = rig_new(&tight);
	struct rig_seq q[2];

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(rig_submit(r, &q[i], i, i, 60, 180), 0);
	sched_run(r->sched);
	assert_true(rig_step(r));
	seq_pause(q[0].seq, true);
	while (seq_state(q[0].seq) != SEQ_PREEMPTED)
		assert_true(rig_step(r));
	seq_pause(q[0].seq, false);
	while (stats(r).preemptions == 0)
		assert_true(rig_step(r));
	assert_int_equal(seq_state(q[1].seq), SEQ_PREEMPTED);
	rig_run(r);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(q[i].n_out, 180);
		rig_expect(&q[i]);
	}
	rig_free(r);
}

/* Whoever came first within one priority. */
static void urgent_sequences_are_admitted_first(void **state)
{
	const struct rig_config one = {
		.n_pages = 8, .n_slots = 1, .step_tokens = 64, .max_tokens = 256, .queue_max = 8};
	static const enum seq_priority priorities[] = {SEQ_BATCH, SEQ_NORMAL, SEQ_INTERACTIVE,
						       SEQ_NORMAL};
	static const uint32_t order[] = {2, 1, 3, 0};
	struct rig *r = rig_new(&one);
	struct rig_seq q[4];

	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		r->priority = priorities[i];
		assert_int_equal(rig_submit(r, &q[i], 1, i, 5, 5), 0);
	}
	sched_run(r->sched);
	for (uint32_t i = 0; i < 4; i++) {
		while (!q[order[i]].ended)
			assert_true(rig_step(r));
		for (uint32_t k = i + 1; k < 4; k++)
			assert_int_equal(q[order[k]].n_out, 0);
	}
	rig_free(r);
}

/* The batch job is the older one, and gives way all the same. */
static void least_urgent_is_preempted_however_old(void **state)
{
	const struct rig_config tight = {
		.n_pages = 6, .n_slots = 4, .step_tokens = 64, .max_tokens = 256, .queue_max = 8};
	struct rig *r = rig_new(&tight);
	struct rig_seq batch, q[2];

	(void)state;
	r->priority = SEQ_BATCH;
	assert_int_equal(rig_submit(r, &batch, 1, 1, 60, 180), 0);
	sched_run(r->sched);
	assert_true(rig_step(r));
	r->priority = SEQ_INTERACTIVE;
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, 2 + i, 60, 100), 0);
	while (!q[0].ended || !q[1].ended) {
		assert_true(rig_step(r));
		for (uint32_t i = 0; i < 2; i++)
			assert_true(q[i].ended || seq_state(q[i].seq) != SEQ_PREEMPTED);
	}
	assert_true(stats(r).preemptions > 0);
	assert_false(batch.ended);
	rig_run(r);
	assert_true(batch.ended);
	rig_expect(&batch);
	rig_free(r);
}

static void paused_sequence_takes_no_part_and_resumes(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, other;
	uint32_t n;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 30), 0);
	assert_int_equal(rig_submit(r, &other, 1, 2, 5, 30), 0);
	sched_run(r->sched);
	rig_step(r);
	seq_pause(q.seq, true);
	for (unsigned i = 0; i < CHANNEL_DEPTH; i++) /* what is in flight is still delivered */
		rig_step(r);
	n = q.n_out;
	rig_run(r);
	assert_int_equal(q.n_out, n);
	assert_true(other.ended);
	seq_pause(q.seq, false);
	rig_run(r);
	assert_true(q.ended);
	rig_expect(&q);
	rig_expect(&other);
	rig_free(r);
}

static void held_sequences_start_one_at_a_time_and_started_ones_go_on(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq a, b, c;

	(void)state;
	rig_submit(r, &a, 1, 1, 8, 12);
	rig_submit(r, &b, 2, 2, 8, 4);
	sched_run(r->sched);
	rig_step(r);
	sched_hold_new(r->sched, true);
	rig_submit(r, &c, 3, 3, 8, 4);
	seq_pause(b.seq, true);
	while (seq_state(b.seq) != SEQ_PREEMPTED)
		rig_step(r);
	seq_pause(b.seq, false);
	while (!b.ended) {
		assert_int_equal(seq_state(c.seq), SEQ_WAITING);
		assert_true(rig_step(r));
	}
	while (!a.ended) {
		assert_int_equal(seq_state(c.seq), SEQ_WAITING);
		assert_true(rig_step(r));
	}
	rig_run(r); /* nothing else runs: it may */
	assert_true(c.ended);
	rig_expect(&a);
	rig_expect(&b);
	rig_expect(&c);
	rig_free(r);
}

static void a_hold_that_ends_lets_all_in(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq a, b;

	(void)state;
	sched_hold_new(r->sched, true);
	rig_submit(r, &a, 1, 1, 8, 20);
	rig_submit(r, &b, 2, 2, 8, 4);
	sched_run(r->sched);
	rig_step(r);
	assert_int_equal(seq_state(b.seq), SEQ_WAITING);
	sched_hold_new(r->sched, false);
	rig_step(r);
	assert_int_not_equal(seq_state(b.seq), SEQ_WAITING);
	rig_run(r);
	rig_expect(&a);
	rig_expect(&b);
	rig_free(r);
}

static void full_queue_refuses(void **state)
{
	const struct rig_config small = {
		.n_pages = 8, .n_slots = 1, .step_tokens = 16, .max_tokens = 256, .queue_max = 2};
	struct rig *r = rig_new(&small);
	struct rig_seq q[4];

	(void)state;
	assert_int_equal(rig_submit(r, &q[0], 1, 0, 5, 5), 0);
	sched_run(r->sched);
	assert_int_equal(rig_submit(r, &q[1], 1, 1, 5, 5), 0);
	assert_int_equal(rig_submit(r, &q[2], 1, 2, 5, 5), 0);
	assert_int_equal(rig_submit(r, &q[3], 1, 3, 5, 5), -EAGAIN);
	rig_run(r);
	for (uint32_t i = 0; i < 3; i++) {
		assert_true(q[i].ended);
		rig_expect(&q[i]);
	}
	rig_free(r);
}

static void what_can_never_fit_is_refused(void **state)
{
	const struct rig_config small = {
		.n_pages = 2, .n_slots = 1, .step_tokens = 16, .max_tokens = 256, .queue_max = 2};
	struct rig *r = rig_new(&small);
	struct rig_seq q;
	uint32_t bad_id = RIG_VOCAB;
	struct seq_config cfg = {.ids = &bad_id, .n_ids = 1, .params.n_prompt = 1, .max_tokens = 1};
	struct seq *seq = NULL;
	struct error err = {};

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 0, 5), -EINVAL);
	assert_int_equal(rig_submit(r, &q, 1, 1, 200, 57), -EINVAL); /* past the context */
	assert_int_equal(rig_submit(r, &q, 1, 1, 100, 29), -EINVAL); /* past the pool */
	assert_int_equal(rig_submit(r, &q, 1, 1, 1, UINT32_MAX), -EINVAL);
	assert_int_equal(sched_submit(r->sched, &cfg, &seq, &err), -EINVAL);
	assert_non_null(strstr(err.text, "want less than 1000"));
	assert_null(seq);
	assert_int_equal(rig_submit(r, &q, 1, 1, 100, 28), 0); /* exactly the pool */
	rig_run(r);
	assert_int_equal(q.n_out, 28);
	rig_expect(&q);
	rig_free(r);
}

static void prompt_logprobs_are_told_once_though_rows_are_computed_twice(void **state)
{
	const struct rig_config tight = {
		.n_pages = 8, .n_slots = 4, .step_tokens = 64, .max_tokens = 512, .queue_max = 16};
	struct rig *r = rig_new(&tight);
	struct rig_seq a, b;

	(void)state;
	assert_int_equal(rig_submit(r, &a, 1, 1, 320, 0), 0);
	sched_run(r->sched);
	rig_step(r);
	rig_step(r);
	assert_true(a.n_prompt_rows > 0);
	seq_pause(a.seq, true);
	rig_run(r);
	assert_int_equal(rig_submit(r, &b, 1, 2, 450, 0), 0);
	rig_run(r);
	assert_true(b.ended); /* on pages that were a's */
	seq_pause(a.seq, false);
	rig_run(r);
	assert_true(a.ended);
	assert_int_equal(a.n_prompt_rows, 319);
	rig_free(r);
}

static void follower_outlives_its_leader(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq a, b;

	(void)state;
	assert_int_equal(rig_submit(r, &a, 1, 1, 10, 2), 0);
	assert_int_equal(rig_submit(r, &b, 1, 1, 10, 50), 0);
	b.seq->leader = a.seq;
	sched_run(r->sched);
	while (!a.ended)
		assert_true(rig_step(r));
	assert_false(b.ended);
	seq_pause(b.seq, true);
	rig_run(r);
	seq_pause(b.seq, false); /* it goes back into the queue, where leaders are looked at */
	rig_run(r);
	assert_true(b.ended);
	rig_expect(&b);
	rig_free(r);
}

static void who_cannot_have_its_pages_ends_and_lets_others_run(void **state)
{
	const struct rig_config tight = {
		.n_pages = 8, .n_slots = 4, .step_tokens = 64, .max_tokens = 512, .queue_max = 16};
	struct rig *r = rig_new(&tight);
	struct rig_seq big, small;
	page_id held[5];
	uint8_t domain[16] = {1};

	(void)state;
	assert_int_equal(rig_submit(r, &big, 1, 1, 320, 10), 0);
	assert_int_equal(rig_submit(r, &small, 2, 2, 10, 5), 0);
	for (unsigned i = 0; i < N_ELEMENTS(held);
	     i++) /* as what is published after that holds them */
		assert_int_equal(pool_take_page(r->pool, domain, &held[i]), 0);
	sched_run(r->sched);
	while (rig_work(r))
		assert_int_equal(sched_take_results(r->sched, NULL), 0);
	assert_true(big.ended && small.ended);
	assert_int_equal(big.why, SEQ_END_EXHAUSTED);
	assert_int_equal(small.why, SEQ_END_LENGTH);
	for (unsigned i = 0; i < N_ELEMENTS(held); i++)
		pool_unref_page(r->pool, held[i]);
	rig_free(r);
}

static void a_row_without_a_token_ends_its_sequence_alone(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, neighbour;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 5), 0);
	assert_int_equal(rig_submit(r, &neighbour, 1, 2, 5, 5), 0);
	sched_run(r->sched);
	r->no_token_row = true;
	rig_step(r);
	assert_true(q.ended);
	assert_int_equal(q.why, SEQ_END_NUMBERS);
	assert_int_equal(q.n_out, 0);
	rig_run(r);
	assert_true(neighbour.ended);
	rig_expect(&neighbour);
	rig_free(r);
}

static void a_step_that_the_worker_refused_ends_what_was_in_it(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q, later;

	(void)state;
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 5), 0);
	sched_run(r->sched);
	assert_int_equal(rig_submit(r, &later, 1, 2, 5, 5), 0);
	r->status = CHANNEL_BAD_STEP;
	rig_step(r);
	assert_true(q.ended);
	assert_int_equal(q.why, SEQ_END_FAILED);
	assert_int_equal(q.n_out, 0);
	r->status = CHANNEL_OK;
	rig_run(r);
	assert_true(later.ended);
	rig_expect(&later);
	rig_free(r);
}

static void dead_worker_fails_all_and_a_new_one_serves(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[3];

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, i, 100, 5), 0);
	sched_run(r->sched);
	rig_cancel(&q[1]);
	sched_fail_all(r->sched);
	rig_check(r);
	assert_true(q[0].ended && q[2].ended && !q[1].ended);
	assert_int_equal(q[0].why, SEQ_END_FAILED);
	assert_int_equal(pool_n_available(r->pool), 64);
	rig_new_worker(r);
	assert_int_equal(rig_submit(r, &q[0], 1, 1, 100, 5), 0);
	rig_run(r);
	assert_true(q[0].ended);
	rig_expect(&q[0]);
	rig_free(r);
}

static void a_new_worker_goes_on_where_the_dead_one_was(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[4], scored;

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, i, 70 + i, 80), 0);
	assert_int_equal(rig_submit(r, &scored, 1, 9, 300, 0), 0);
	sched_run(r->sched);
	for (uint32_t death = 0; death < 30; death++) {
		/* Now and then the worker had answered, and nobody had read it yet. */
		for (uint32_t i = 0; i < 5 + death % 3; i++)
			rig_step(r);
		if (death % 2)
			rig_work(r);
		sched_requeue_all(r->sched);
		rig_check(r);
		assert_int_equal(stats(r).running, 0);
		rig_new_worker(r);
		sched_run(r->sched);
	}
	rig_run(r);
	for (uint32_t i = 0; i < 4; i++) {
		assert_true(q[i].ended && q[i].why != SEQ_END_QUARANTINED);
		rig_expect(&q[i]);
	}
	assert_true(scored.ended);
	rig_expect(&scored);
	assert_int_equal(stats(r).prompt_tokens < 2 * (70 + 71 + 72 + 73 + 300), true);
	rig_free(r);
}

static void who_kills_two_workers_is_quarantined_alone(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[3];
	uint32_t deaths = 0;

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, i, 100, 20), 0);
	sched_run(r->sched);
	/* The worker dies whenever a step holds row 105 of the second one. */
	for (uint32_t i = 0; !q[0].ended || !q[1].ended || !q[2].ended; i++) {
		assert_true(i < 1000);
		if (rig_next_step_holds(r, &q[1], 105)) {
			deaths++;
			sched_requeue_all(r->sched);
			rig_new_worker(r);
			sched_run(r->sched);
		} else {
			rig_step(r);
		}
	}
	assert_int_equal(deaths, 2);
	assert_int_equal(q[1].why, SEQ_END_QUARANTINED);
	assert_int_equal(q[1].n_out, 6);
	for (uint32_t i = 0; i < 3; i++)
		rig_expect(&q[i]);
	assert_true(q[0].why != SEQ_END_QUARANTINED && q[2].why != SEQ_END_QUARANTINED);
	rig_free(r);
}

static void a_suspect_is_not_let_go_as_somebody_new(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[2];

	(void)state;
	assert_int_equal(rig_submit(r, &q[0], 1, 0, 100, 20), 0);
	sched_run(r->sched);
	assert_true(rig_next_step_holds(r, &q[0], 0));
	sched_requeue_all(r->sched);
	assert_int_equal(rig_submit(r, &q[1], 1, 1, 100, 20), 0);
	sched_fail_unsuspected(r->sched);
	assert_int_equal(q[1].why, SEQ_END_FAILED);
	assert_true(!q[0].ended);
	rig_new_worker(r);
	sched_run(r->sched);
	assert_true(rig_next_step_holds(r, &q[0], 0));
	sched_requeue_all(r->sched);
	assert_true(q[0].ended);
	assert_int_equal(q[0].why, SEQ_END_QUARANTINED);
	rig_free(r);
}

/* Three suspects that lost their pages to somebody urgent, who waits for them: together they want more than
 * there is. */
static void a_suspect_takes_its_pages_from_those_who_wait_for_it(void **state)
{
	const struct rig_config tight = {
		.n_pages = 8, .n_slots = 4, .step_tokens = 512, .max_tokens = 512, .queue_max = 16};
	struct rig *r = rig_new(&tight);
	struct rig_seq first, pair[2], urgent;

	(void)state;
	r->priority = SEQ_NORMAL;
	assert_int_equal(rig_submit(r, &first, 1, 1, 250, 3), 0);
	sched_run(r->sched);
	sched_requeue_all(r->sched); /* its worker died */
	seq_pause(first.seq, true);
	rig_new_worker(r);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(rig_submit(r, &pair[i], 1, 2 + i, 250, 3), 0);
	sched_run(r->sched);
	assert_true(rig_next_step_holds(r, &pair[0], 249) && rig_next_step_holds(r, &pair[1], 249));
	sched_requeue_all(r->sched); /* and theirs */
	seq_pause(first.seq, false);
	r->priority = SEQ_INTERACTIVE;
	assert_int_equal(rig_submit(r, &urgent, 1, 4, 500, 3), 0);
	rig_new_worker(r);
	rig_run(r);
	assert_true(first.ended && pair[0].ended && pair[1].ended && urgent.ended);
	rig_expect(&first);
	rig_expect(&pair[0]);
	rig_expect(&pair[1]);
	rig_expect(&urgent);
	assert_int_equal(first.n_out, 3);
	assert_int_equal(pair[0].n_out, 3);
	assert_int_equal(pair[1].n_out, 3);
	assert_int_equal(urgent.n_out, 3);
	rig_free(r);
}

static void without_a_worker_sequences_wait(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q;

	(void)state;
	sched_set_channel(r->sched, NULL);
	assert_int_equal(rig_submit(r, &q, 1, 1, 5, 5), 0);
	sched_run(r->sched);
	assert_int_equal(stats(r).waiting, 1);
	sched_set_channel(r->sched, r->channel);
	rig_run(r);
	assert_true(q.ended);
	rig_expect(&q);
	rig_free(r);
}

static void rows_of_others_are_never_answered(void **state)
{
	struct rig *r = rig_new(&roomy);
	struct rig_seq q[2];
	struct channel_result *res;
	struct error err = {};

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(rig_submit(r, &q[i], 1, i, 5, 5), 0);
	sched_run(r->sched);
	rig_work(r);
	/* Two tokens for the first, none for the second. */
	res = channel_result(r->shared, &r->shape, 0);
	channel_result_rows(res)[1].slot = 0;
	channel_result_rows(res)[1].position = 5;
	assert_int_equal(sched_take_results(r->sched, &err), -EBADMSG);
	assert_int_equal(q[0].n_out, 0);
	sched_fail_all(r->sched);
	assert_true(q[0].ended && q[1].ended);
	rig_new_worker(r);
	rig_free(r);
}

struct soak {
	struct rig *r;
	struct rig_seq *q;
	uint64_t x;
	unsigned n_ended, n_cancelled;
};

#define SOAK_SEQS 12u

static uint32_t soak_random(struct soak *s, uint32_t n)
{
	s->x = s->x * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (uint32_t)(s->x >> 33) % n;
}

static struct soak *soaking;

static void soak_token(struct rig_seq *q)
{
	struct rig_seq *other = &soaking->q[soak_random(soaking, SOAK_SEQS)];

	if (soak_random(soaking, 200) == 0 && q->seq)
		rig_cancel(q);
	if (soak_random(soaking, 200) == 0 && other->seq)
		rig_cancel(other);
}

static void soak_one(struct soak *s)
{
	struct rig_seq *q = &s->q[soak_random(s, SOAK_SEQS)];

	switch (soak_random(s, 16)) {
	case 0:
	case 1:
		if (q->seq)
			break;
		rig_expect(q);
		s->n_ended += q->ended;
		s->n_cancelled += q->rig && !q->ended;
		/* Its cancelled predecessor may still be in a step: another context keeps them apart. */
		if (rig_submit(s->r, q, soak_random(s, 3), soak_random(s, 1000),
			       soak_random(s, 200) + 1,
			       soak_random(s, 4) ? soak_random(s, 150) + 1 : 0) < 0)
			*q = (struct rig_seq){};
		else
			q->on_token = soak_token;
		break;
	case 2:
		if (q->seq && soak_random(s, 4) == 0)
			rig_cancel(q);
		break;
	case 3:
		if (q->seq)
			seq_pause(q->seq, soak_random(s, 4) == 0);
		break;
	case 4:
		sched_run(s->r->sched);
		break;
	case 5:
		if (soak_random(s, 300) == 0) {
			sched_fail_all(s->r->sched);
			rig_new_worker(s->r);
		}
		break;
	default:
		rig_step(s->r);
	}
	rig_check(s->r);
}

static void random_operations_keep_every_invariant(void **state)
{
	static const struct rig_config tight = {
		.n_pages = 14, .n_slots = 5, .step_tokens = 48, .max_tokens = 512, .queue_max = 6};
	struct soak s = {.r = rig_new(&tight), .q = calloc(SOAK_SEQS, sizeof(*s.q)), .x = 20};
	struct sched_stats st;

	(void)state;
	soaking = &s;
	s.r->eos_one_in = 100;
	for (uint32_t i = 0; i < SOAK_SEQS; i++)
		s.q[i].rig = s.r;
	for (unsigned op = 0; op < 100000; op++)
		soak_one(&s);
	st = stats(s.r);
	for (uint32_t i = 0; i < SOAK_SEQS; i++)
		if (s.q[i].seq)
			seq_pause(s.q[i].seq, false);
	rig_run(s.r);
	for (uint32_t i = 0; i < SOAK_SEQS; i++) {
		assert_null(s.q[i].seq); /* all of them came to an end */
		rig_expect(&s.q[i]);
	}
	/* The soak was of the kind that it is meant to be. */
	assert_true(s.n_ended > 500 && s.n_cancelled > 100 && st.preemptions > 50);
	rig_free(s.r);
	free(s.q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(prompt_is_computed_in_chunks_then_token_by_token),
		cmocka_unit_test(sequences_share_a_step_and_decodes_go_first),
		cmocka_unit_test(long_prompt_delays_others_by_one_chunk_at_most),
		cmocka_unit_test(end_token_ends_and_is_delivered),
		cmocka_unit_test(prompt_is_scored_position_by_position),
		cmocka_unit_test(cancel_in_flight_keeps_pages_until_the_result),
		cmocka_unit_test(cancel_while_waiting_is_immediate),
		cmocka_unit_test(callback_may_cancel_a_waiting_sequence),
		cmocka_unit_test(callback_may_cancel_its_own_and_other_running_sequences),
		cmocka_unit_test(callback_may_fail_all_and_the_worker_may_be_gone_then),
		cmocka_unit_test(callback_may_submit),
		cmocka_unit_test(youngest_is_preempted_and_gives_the_same_tokens),
		cmocka_unit_test(who_comes_back_is_as_old_as_before),
		cmocka_unit_test(urgent_sequences_are_admitted_first),
		cmocka_unit_test(least_urgent_is_preempted_however_old),
		cmocka_unit_test(paused_sequence_takes_no_part_and_resumes),
		cmocka_unit_test(held_sequences_start_one_at_a_time_and_started_ones_go_on),
		cmocka_unit_test(a_hold_that_ends_lets_all_in),
		cmocka_unit_test(full_queue_refuses),
		cmocka_unit_test(what_can_never_fit_is_refused),
		cmocka_unit_test(prompt_logprobs_are_told_once_though_rows_are_computed_twice),
		cmocka_unit_test(follower_outlives_its_leader),
		cmocka_unit_test(who_cannot_have_its_pages_ends_and_lets_others_run),
		cmocka_unit_test(a_row_without_a_token_ends_its_sequence_alone),
		cmocka_unit_test(a_step_that_the_worker_refused_ends_what_was_in_it),
		cmocka_unit_test(dead_worker_fails_all_and_a_new_one_serves),
		cmocka_unit_test(a_new_worker_goes_on_where_the_dead_one_was),
		cmocka_unit_test(who_kills_two_workers_is_quarantined_alone),
		cmocka_unit_test(a_suspect_is_not_let_go_as_somebody_new),
		cmocka_unit_test(a_suspect_takes_its_pages_from_those_who_wait_for_it),
		cmocka_unit_test(without_a_worker_sequences_wait),
		cmocka_unit_test(rows_of_others_are_never_answered),
		cmocka_unit_test(random_operations_keep_every_invariant),
	};

	if (hash_init() < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
