/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: what they keep, for how long, and who must give way to whom. */
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
#include "plain_io.h"
#include "sched/seq.h"
#include "sched/session.h"
#include "sched_rig.h"

#define LEASE UINT64_C(1000000)

static const struct rig_config roomy = {
	.n_pages = 64, .n_slots = 8, .step_tokens = 128, .max_tokens = 2048, .queue_max = 16};

static uint64_t clock_usec;

static uint64_t clock_now(struct io *io)
{
	(void)io;
	return clock_usec;
}

/* A rig whose time stands still unless a test moves it. */
static struct rig *rig_at(const struct rig_config *cfg)
{
	static struct io_ops ops;
	struct rig *r = rig_new(cfg);

	ops = plain_io_ops;
	ops.now_usec = clock_now;
	r->io.ops = &ops;
	clock_usec = 1000;
	return r;
}

static uint64_t open_session(struct rig *r, uid_t uid)
{
	uint64_t id = 0;

	assert_int_equal(sched_open_session(r->sched, uid, LEASE, &id, NULL), 0);
	assert_true(id != 0);
	return id;
}

/* One sequence of @uid from begin to end. Return: prompt tokens it found. */
static uint32_t run(struct rig *r, uint64_t session, uid_t uid, uint32_t seed, uint32_t n_ids,
		    uint32_t max_tokens)
{
	struct rig_seq *q = calloc(1, sizeof(*q));
	struct sched_stats before, after;

	assert_non_null(q);
	sched_get_stats(r->sched, &before);
	r->session = session;
	assert_int_equal(rig_submit(r, q, uid, seed, n_ids, max_tokens), 0);
	r->session = 0;
	rig_run(r);
	assert_true(q->ended && q->why == SEQ_END_LENGTH);
	rig_expect(q);
	free(q);
	sched_get_stats(r->sched, &after);
	return (uint32_t)(after.cached_tokens - before.cached_tokens);
}

/* Sequences of many others, who fill the pool more than twice over. */
static void flood(struct rig *r, uint32_t n_pages)
{
	for (uint32_t seed = 5000; seed < 5000 + 2 * pool_n_pages(r->pool) / n_pages + 2; seed++)
		run(r, 0, seed, seed, n_pages * PAGE_TOKENS - 10, 5);
}

static uint32_t charged(const struct rig *r, uid_t uid)
{
	return (uint32_t)quota_used(r->quota, uid, QUOTA_PAGES);
}

static void kept_pages_outlive_a_flood_of_others_and_unkept_ones_do_not(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1);

	(void)state;
	assert_int_equal(run(r, id, 1, 1, 300, 4), 0);
	assert_int_equal(charged(r, 1), 4);
	run(r, 0, 1, 2, 300, 4);
	flood(r, 20);
	assert_int_equal(run(r, 0, 1, 2, 300, 4), 0);
	assert_int_equal(run(r, id, 1, 1, 300, 4), 4 * PAGE_TOKENS);
	/* Who is not in the session finds them just as well: they are in the index. */
	assert_int_equal(run(r, 0, 1, 1, 300, 4), 4 * PAGE_TOKENS);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	assert_int_equal(charged(r, 1), 0);
	rig_check(r);
	flood(r, 20);
	assert_int_equal(run(r, 0, 1, 1, 300, 4), 0);
	rig_free(r);
}

static void generated_pages_are_kept_and_serve_whom_they_always_served(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1);

	(void)state;
	run(r, id, 1, 1, 100, 100); /* page 0 is of the prompt, 1 and 2 are not */
	assert_int_equal(session_n_pages(r->sched), 3);
	assert_int_equal(run(r, id, 1, 1, 100, 100), PAGE_TOKENS);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	rig_free(r);
}

static void a_lease_ends_in_time_and_each_use_begins_it_anew(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1), other = open_session(r, 1);
	struct rig_seq *q = calloc(1, sizeof(*q));

	(void)state;
	run(r, id, 1, 1, 300, 4);
	run(r, other, 1, 2, 300, 4);
	clock_usec = 1000 + LEASE / 2;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), 1000 + LEASE);
	run(r, id, 1, 1, 300, 4);
	clock_usec = 1000 + LEASE - 1;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), 1000 + LEASE);
	assert_true(sched_has_session(r->sched, 1, other));
	clock_usec = 1000 + LEASE;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), 1000 + LEASE / 2 + LEASE);
	assert_false(sched_has_session(r->sched, 1, other));
	assert_true(sched_has_session(r->sched, 1, id));
	assert_int_equal(charged(r, 1), 4);
	rig_check(r);

	/* While a sequence runs in it, however long, it does not end; then the lease begins. */
	r->session = id;
	assert_int_equal(rig_submit(r, q, 1, 1, 300, 4), 0);
	clock_usec += 10 * LEASE;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), clock_usec + LEASE);
	rig_run(r);
	assert_true(q->ended);
	clock_usec += LEASE;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), UINT64_MAX);
	assert_false(sched_has_session(r->sched, 1, id));
	assert_int_equal(charged(r, 1), 0);
	free(q);
	rig_free(r);
}

static void a_fork_has_the_same_pages_and_its_own_end(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1), fork = 0, lease = 0;

	(void)state;
	run(r, id, 1, 1, 300, 4);
	assert_int_equal(pool_n_available(r->pool), 60);
	assert_int_equal(sched_fork_session(r->sched, 1, id, &fork, &lease, NULL), 0);
	assert_true(fork != 0 && fork != id && lease == LEASE);
	assert_int_equal(pool_n_available(r->pool), 60); /* references, no copies */
	assert_int_equal(charged(r, 1), 8);
	rig_check(r);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	assert_int_equal(pool_n_available(r->pool), 60);
	flood(r, 20);
	assert_int_equal(run(r, fork, 1, 1, 300, 4), 4 * PAGE_TOKENS);
	assert_int_equal(sched_close_session(r->sched, 1, fork), 0);
	assert_int_equal(sched_close_session(r->sched, 1, fork), -ENOENT);
	assert_int_equal(charged(r, 1), 0);
	rig_free(r);
}

static void another_users_session_is_none(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1), fork = 0, lease;
	struct error err = {};

	(void)state;
	run(r, id, 1, 1, 300, 4);
	assert_false(sched_has_session(r->sched, 2, id));
	assert_int_equal(sched_close_session(r->sched, 2, id), -ENOENT);
	assert_int_equal(sched_fork_session(r->sched, 2, id, &fork, &lease, &err), -ENOENT);
	assert_int_equal(run(r, id, 2, 1, 300, 4), 0); /* runs, in none */
	assert_int_equal(charged(r, 2), 0);
	assert_int_equal(charged(r, 1), 4);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	rig_free(r);
}

static void sessions_hold_half_of_the_pool_at_the_most(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t ids[3], fork, lease;
	struct error err = {};

	(void)state;
	for (int i = 0; i < 3; i++)
		ids[i] = open_session(r, 1);
	run(r, ids[0], 1, 1, 1000, 4); /* 15 pages each */
	run(r, ids[1], 1, 2, 1000, 4);
	assert_int_equal(session_n_pages(r->sched), 30);
	assert_int_equal(sched_fork_session(r->sched, 1, ids[0], &fork, &lease, &err), -EAGAIN);
	assert_non_null(strstr(err.text, "15 more would be more than half"));
	run(r, ids[2], 1, 3, 1000, 4); /* of these, the first ones */
	assert_int_equal(session_n_pages(r->sched), 32);
	flood(r, 20);
	assert_int_equal(run(r, ids[2], 1, 3, 1000, 4), 2 * PAGE_TOKENS);
	for (int i = 0; i < 3; i++)
		assert_int_equal(sched_close_session(r->sched, 1, ids[i]), 0);
	rig_free(r);
}

static void a_user_has_so_many_sessions(void **state)
{
	struct rig *r = rig_at(&roomy);
	struct error err = {};
	uint64_t id, fork, lease;

	(void)state;
	for (uint32_t i = 0; i < SCHED_SESSIONS_PER_UID; i++)
		id = open_session(r, 1);
	assert_int_equal(sched_open_session(r->sched, 1, LEASE, &id, &err), -EAGAIN);
	assert_non_null(strstr(err.text, "64 sessions: want fewer than 64"));
	assert_int_equal(sched_fork_session(r->sched, 1, id, &fork, &lease, &err), -EAGAIN);
	open_session(r, 2);
	rig_check(r);
	sched_on_tick(r->sched, clock_usec + LEASE);
	assert_int_equal(sched_open_session(r->sched, 1, LEASE, &id, &err), 0);
	rig_free(r);
}

/* No lease makes anybody wait: the one used the longest ago gives its pages first, and keeps its place. */
static void when_the_pool_is_short_the_longest_idle_gives_way_before_any_sequence(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t first = open_session(r, 1), second = open_session(r, 2);
	struct sched_stats st;

	(void)state;
	run(r, first, 1, 1, 1000, 4);
	clock_usec += 10;
	run(r, second, 2, 2, 1000, 4);
	assert_int_equal(session_n_pages(r->sched), 30);
	clock_usec += 10;
	run(r, 0, 3, 3, 48 * PAGE_TOKENS - 64 * 17, 4); /* 31 pages: all fit */
	assert_int_equal(session_n_pages(r->sched), 30);
	{
		struct rig_seq *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));

		assert_int_equal(rig_submit(r, a, 3, 4, 1500, 20), 0); /* 24 pages each */
		assert_int_equal(rig_submit(r, b, 3, 5, 1500, 20), 0);
		rig_run(r);
		assert_true(a->ended && a->why == SEQ_END_LENGTH);
		assert_true(b->ended && b->why == SEQ_END_LENGTH);
		rig_expect(a);
		rig_expect(b);
		free(a);
		free(b);
	}
	sched_get_stats(r->sched, &st);
	assert_int_equal(st.preemptions, 0);
	assert_int_equal(charged(r, 1), 0);
	assert_int_equal(charged(r, 2), 15);
	assert_true(sched_has_session(r->sched, 1, first));
	assert_int_equal(run(r, second, 2, 2, 1000, 4), 15 * PAGE_TOKENS);
	run(r, first, 1, 1, 1000, 4);
	assert_int_equal(charged(r, 1), 15);
	/* One that wants nearly all of it. */
	run(r, 0, 3, 6, 2000, 40);
	run(r, 0, 3, 7, 2000, 40);
	sched_on_tick(r->sched, clock_usec + LEASE);
	rig_free(r);
}

static void what_came_to_nothing_leaves_what_was_kept(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1);
	struct rig_seq *q = calloc(1, sizeof(*q));

	(void)state;
	run(r, id, 1, 1, 300, 4);
	r->session = id;
	assert_int_equal(rig_submit(r, q, 1, 2, 300, 4), 0);
	rig_cancel(q);
	assert_int_equal(session_n_pages(r->sched), 4);
	/* One that was cancelled later keeps what it had. */
	assert_int_equal(rig_submit(r, q, 1, 3, 500, 4), 0);
	sched_run(r->sched);
	rig_step(r); /* 128 rows */
	rig_cancel(q);
	rig_run(r);
	assert_int_equal(run(r, id, 1, 3, 500, 4) % PAGE_TOKENS, 0);
	assert_true(session_n_pages(r->sched) == 7);
	/* Closed while a sequence runs in it. */
	assert_int_equal(rig_submit(r, q, 1, 4, 300, 4), 0);
	sched_run(r->sched);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	rig_run(r);
	assert_true(q->ended);
	assert_int_equal(charged(r, 1), 0);
	free(q);
	rig_free(r);
}

/* Two that compute the same rows at once seal two pages, of which the index knows one: that one is kept. */
static void of_two_equal_pages_the_one_that_can_be_found_is_kept(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1);
	struct rig_seq *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));

	(void)state;
	assert_int_equal(rig_submit(r, a, 1, 1, 100, 1), 0);
	r->session = id;
	assert_int_equal(rig_submit(r, b, 1, 1, 100, 50), 0);
	r->session = 0;
	rig_run(r);
	assert_true(a->ended && b->ended);
	assert_int_equal(session_n_pages(r->sched), 2);
	flood(r, 20);
	assert_int_equal(run(r, id, 1, 1, 100, 4), PAGE_TOKENS);
	assert_int_equal(sched_close_session(r->sched, 1, id), 0);
	free(a);
	free(b);
	rig_free(r);
}

static void sessions_go_with_their_scheduler(void **state)
{
	struct rig *r = rig_at(&roomy);
	uint64_t id = open_session(r, 1);

	(void)state;
	run(r, id, 1, 1, 300, 4);
	sched_set_channel(r->sched, NULL);
	r->sched = sched_free(r->sched);
	assert_int_equal(pool_n_available(r->pool), 64);
	assert_int_equal(charged(r, 1), 0);
	rig_free(r);
}

/* ---- soak ---- */

#define SOAK_SEQS     10u
#define SOAK_SESSIONS 12u

static uint64_t soak_x = 4;

static uint32_t soak_random(uint32_t n)
{
	soak_x = soak_x * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (uint32_t)(soak_x >> 33) % n;
}

static void random_sessions_keep_every_invariant(void **state)
{
	static const struct rig_config tight = {
		.n_pages = 14, .n_slots = 4, .step_tokens = 64, .max_tokens = 512, .queue_max = 6};
	struct rig *r = rig_at(&tight);
	struct rig_seq *q = calloc(SOAK_SEQS, sizeof(*q));
	uint64_t ids[SOAK_SESSIONS] = {}, lease;
	unsigned n_forks = 0, n_runs = 0, n_short = 0;

	(void)state;
	for (uint32_t i = 0; i < SOAK_SEQS; i++)
		q[i].rig = r;
	for (unsigned op = 0; op < 40000; op++) {
		struct rig_seq *one = &q[soak_random(SOAK_SEQS)];
		uint32_t i = soak_random(SOAK_SESSIONS), before = session_n_pages(r->sched);
		uid_t uid = i % 3;

		clock_usec += soak_random(LEASE / 100);
		switch (soak_random(12)) {
		case 0:
			if (!sched_has_session(r->sched, uid, ids[i]))
				ids[i] = open_session(r, uid);
			break;
		case 1:
			n_forks += sched_fork_session(r->sched, uid, ids[i],
						      &ids[(i + 3) % SOAK_SESSIONS], &lease,
						      NULL) == 0;
			break;
		case 2:
			if (soak_random(8) == 0)
				sched_close_session(r->sched, uid, ids[i]);
			break;
		case 3:
			sched_on_tick(r->sched, clock_usec);
			break;
		case 4:
		case 5:
			if (one->seq)
				break;
			rig_expect(one);
			r->session = ids[i];
			if (rig_submit(r, one, uid, soak_random(6), soak_random(300) + 1,
				       soak_random(100) + 1) < 0)
				*one = (struct rig_seq){.rig = r};
			n_runs++;
			break;
		case 6:
			if (one->seq && soak_random(8) == 0)
				rig_cancel(one);
			break;
		default:
			rig_step(r);
			sched_run(r->sched);
			n_short += session_n_pages(r->sched) < before;
		}
		rig_check(r);
	}
	rig_run(r);
	for (uint32_t i = 0; i < SOAK_SEQS; i++) {
		assert_null(q[i].seq);
		rig_expect(&q[i]);
	}
	assert_true(n_forks > 100 && n_runs > 500 && n_short > 100);
	clock_usec += LEASE;
	assert_int_equal(sched_on_tick(r->sched, clock_usec), UINT64_MAX);
	free(q);
	rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kept_pages_outlive_a_flood_of_others_and_unkept_ones_do_not),
		cmocka_unit_test(generated_pages_are_kept_and_serve_whom_they_always_served),
		cmocka_unit_test(a_lease_ends_in_time_and_each_use_begins_it_anew),
		cmocka_unit_test(a_fork_has_the_same_pages_and_its_own_end),
		cmocka_unit_test(another_users_session_is_none),
		cmocka_unit_test(sessions_hold_half_of_the_pool_at_the_most),
		cmocka_unit_test(a_user_has_so_many_sessions),
		cmocka_unit_test(
			when_the_pool_is_short_the_longest_idle_gives_way_before_any_sequence),
		cmocka_unit_test(what_came_to_nothing_leaves_what_was_kept),
		cmocka_unit_test(of_two_equal_pages_the_one_that_can_be_found_is_kept),
		cmocka_unit_test(sessions_go_with_their_scheduler),
		cmocka_unit_test(random_sessions_keep_every_invariant),
	};

	if (hash_init() < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
