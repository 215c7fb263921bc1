/* SPDX-License-Identifier: Apache-2.0 */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "layout/image.h"
#include "plain_io.h"

#define N_VOCAB 100u

static struct io plain = {.ops = &plain_io_ops};

/* The broker's end and what a worker sees of it through a mapping of its own. */
struct ends {
	struct channel *c;
	struct channel_shape shape;
	uint8_t *shared;
	struct error err;
};

static int set_up(void **state)
{
	struct ends *e = calloc(1, sizeof(*e));

	assert_non_null(e);
	assert_int_equal(channel_new(&e->c, &plain, 4, 16, 256, &e->err), 0);
	/* The worker computes the shape from the same numbers. */
	assert_int_equal(channel_shape_init(&e->shape, 4, 16, 256, NULL), 0);
	e->shared = mmap(NULL, e->shape.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			 channel_fd(e->c), 0);
	assert_ptr_not_equal(e->shared, MAP_FAILED);
	*state = e;
	return 0;
}

static int tear_down(void **state)
{
	struct ends *e = *state;

	munmap(e->shared, e->shape.total_bytes);
	channel_free(e->c);
	free(e);
	return 0;
}

static struct channel_header *header(struct ends *e)
{
	return (struct channel_header *)e->shared;
}

/* One step of @n rows: slot i, position 10 + i, all of them asked for. */
static uint64_t post(struct ends *e, uint32_t n)
{
	struct channel_row *rows = channel_begin_step(e->c);

	assert_non_null(rows);
	for (uint32_t i = 0; i < n; i++)
		rows[i] = (struct channel_row){.slot = i % 4,
					       .position = 10 + i,
					       .token = i,
					       .flags = CHANNEL_WANT_LOGITS,
					       .mask = UINT32_MAX};
	return channel_post_step(e->c, n);
}

/* The answer to step @i (from 0), good as it stands, not yet published. */
static struct channel_result_row *answer(struct ends *e, uint32_t i, uint32_t n)
{
	struct channel_result *res = channel_result(e->shared, &e->shape, i);
	struct channel_result_row *rows = channel_result_rows(res);

	*res = (struct channel_result){.seq = i + 1, .n_rows = n, .usec = 5};
	for (uint32_t k = 0; k < n; k++)
		rows[k] = (struct channel_result_row){
			.slot = k % 4, .position = 10 + k, .token = 7, .logprob = -0.5f};
	return rows;
}

static int publish_and_take(struct ends *e, uint32_t tail, struct channel_reply *ret)
{
	atomic_store(&header(e)->results.tail, tail);
	return channel_take_result(e->c, N_VOCAB, ret, &e->err);
}

static void shape_is_in_order_and_aligned(void **state)
{
	static const uint32_t numbers[][3] = {
		{1, 1, 1},
		{32, 512, 65536},
		{3, 7, 65},
		{CHANNEL_SLOTS_MAX, CHANNEL_ROWS_MAX, IMAGE_CONTEXT_MAX}};

	(void)state;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		const uint32_t *n = numbers[i];
		struct channel_shape s;

		assert_int_equal(channel_shape_init(&s, n[0], n[1], n[2], NULL), 0);
		assert_int_equal(s.max_pages, (n[2] + 63) / 64);
		assert_true(s.slot_offset >= sizeof(struct channel_header));
		assert_true(s.slot_stride >=
			    sizeof(struct channel_slot) + 4 * ((uint64_t)s.max_pages + n[2]));
		assert_int_equal(s.step_offset, s.slot_offset + n[0] * s.slot_stride);
		assert_true(s.step_stride >= sizeof(struct channel_step) +
						     sizeof(struct channel_row) * (uint64_t)n[1]);
		assert_int_equal(s.result_offset, s.step_offset + CHANNEL_DEPTH * s.step_stride);
		assert_true(s.result_stride >=
			    sizeof(struct channel_result) +
				    sizeof(struct channel_result_row) * (uint64_t)n[1]);
		assert_int_equal(s.total_bytes, s.result_offset + CHANNEL_DEPTH * s.result_stride);
		assert_int_equal((s.slot_offset | s.slot_stride | s.step_stride | s.result_stride) %
					 4096,
				 0);
	}
}

static void shape_past_its_limits_is_refused(void **state)
{
	static const uint32_t bad[][3] = {
		{0, 1, 1}, {CHANNEL_SLOTS_MAX + 1, 1, 1}, {1, 0, 1}, {1, CHANNEL_ROWS_MAX + 1, 1},
		{1, 1, 0}, {1, 1, IMAGE_CONTEXT_MAX + 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct channel_shape s;
		struct error err = {};

		assert_int_equal(channel_shape_init(&s, bad[i][0], bad[i][1], bad[i][2], &err),
				 -EINVAL);
		assert_non_null(strstr(err.text, "want 1 to"));
	}
}

static void header_says_the_shape_that_both_compute(void **state)
{
	struct ends *e = *state;
	const struct channel_header *h = header(e);

	assert_memory_equal(h->magic, CHANNEL_MAGIC, 8);
	assert_int_equal(h->n_slots, 4);
	assert_int_equal(h->max_rows, 16);
	assert_int_equal(h->max_tokens, 256);
	assert_int_equal(h->max_pages, e->shape.max_pages);
	assert_int_equal(h->slot_offset, e->shape.slot_offset);
	assert_int_equal(h->slot_stride, e->shape.slot_stride);
	assert_int_equal(h->step_offset, e->shape.step_offset);
	assert_int_equal(h->step_stride, e->shape.step_stride);
	assert_int_equal(h->result_offset, e->shape.result_offset);
	assert_int_equal(h->result_stride, e->shape.result_stride);
	assert_int_equal(h->total_bytes, e->shape.total_bytes);
	assert_memory_equal(channel_get_shape(e->c), &e->shape, sizeof(e->shape));
	assert_int_equal(fcntl(channel_fd(e->c), F_GET_SEALS),
			 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

static void slot_generation_is_odd_while_written(void **state)
{
	struct ends *e = *state;
	const struct channel_slot *seen = channel_slot(e->shared, &e->shape, 2);
	struct channel_slot *s = channel_begin_slot(e->c, 2);
	uint64_t g = atomic_load(&seen->generation);

	assert_int_equal(g % 2, 1);
	channel_slot_pages(s)[e->shape.max_pages - 1] = 11;
	channel_slot_ids(s, &e->shape)[255] = 12;
	channel_end_slot(e->c, 2);
	assert_int_equal(atomic_load(&seen->generation), g + 1);
	assert_int_equal(channel_slot_pages((void *)seen)[e->shape.max_pages - 1], 11);
	assert_int_equal(channel_slot_ids((void *)seen, &e->shape)[255], 12);
	channel_begin_slot(e->c, 2);
	assert_int_equal(atomic_load(&seen->generation), g + 2);
	channel_end_slot(e->c, 2);
}

static void steps_arrive_and_are_bounded_by_depth(void **state)
{
	struct ends *e = *state;
	struct channel_reply reply;

	for (uint32_t i = 0; i < CHANNEL_DEPTH; i++) {
		const struct channel_step *step = channel_step(e->shared, &e->shape, i);

		assert_int_equal(post(e, i + 1), i + 1);
		assert_int_equal(step->seq, i + 1);
		assert_int_equal(step->n_rows, i + 1);
		assert_int_equal(channel_step_rows((void *)step)[i].position, 10 + i);
		assert_int_equal(atomic_load(&header(e)->steps.tail), i + 1);
		assert_int_equal(channel_in_flight(e->c), i + 1);
	}
	assert_null(channel_begin_step(e->c));
	answer(e, 0, 1);
	assert_int_equal(publish_and_take(e, 1, &reply), 1);
	assert_non_null(channel_begin_step(e->c));
	assert_int_equal(atomic_load(&header(e)->results.head), 1);
}

static void sleeping_worker_is_woken_once(void **state)
{
	struct ends *e = *state;
	char n[8];
	int fd = channel_wake_fd(e->c);

	fcntl(fd, F_SETFL, O_NONBLOCK);
	post(e, 1);
	assert_int_equal(read(fd, n, sizeof(n)), -1); /* it was awake */
	atomic_store(&header(e)->steps.asleep, 1);
	post(e, 1);
	assert_int_equal(read(fd, n, sizeof(n)), 1);
	assert_int_equal(atomic_load(&header(e)->steps.asleep), 0);
}

static void a_worker_cannot_make_the_broker_wait(void **state)
{
	struct ends *e = *state;
	int wake = channel_wake_fd(e->c), result = channel_result_eventfd(e->c);
	uint64_t one = 1;

	/* It never reads, fills what it can, and turns everything it holds to blocking. */
	fcntl(wake, F_SETFL, 0);
	fcntl(result, F_SETFL, 0);
	for (unsigned i = 0; i < 100000; i++) {
		struct channel_reply reply;

		atomic_store(&header(e)->steps.asleep, 1);
		post(e, 1);
		answer(e, i, 1);
		assert_int_equal(publish_and_take(e, i + 1, &reply), 1);
	}
	assert_int_equal(write(result, &one, sizeof(one)), sizeof(one));
	channel_clear_result(e->c);
	channel_clear_result(e->c); /* empty and blocking: does not wait */
}

static void result_is_taken_once_as_written(void **state)
{
	struct ends *e = *state;
	struct channel_result_row *rows;
	struct channel_reply reply;

	assert_int_equal(channel_take_result(e->c, N_VOCAB, &reply, &e->err), 0);
	post(e, 3);
	assert_int_equal(channel_take_result(e->c, N_VOCAB, &reply, &e->err), 0);
	rows = answer(e, 0, 3);
	rows[2].n_top = CHANNEL_TOP_MAX;
	for (uint32_t i = 0; i < CHANNEL_TOP_MAX; i++)
		rows[2].top[i] = (struct channel_top){i, -1};
	assert_int_equal(publish_and_take(e, 1, &reply), 1);
	assert_int_equal(reply.seq, 1);
	assert_int_equal(reply.usec, 5);
	assert_int_equal(reply.status, CHANNEL_OK);
	assert_int_equal(reply.n_rows, 3);
	assert_int_equal(reply.rows[1].position, 11);
	assert_int_equal(reply.rows[2].top[19].id, 19);
	/* The worker's later changes are not seen: this is a copy. */
	rows[1].position = 99;
	assert_int_equal(reply.rows[1].position, 11);
	assert_int_equal(channel_take_result(e->c, N_VOCAB, &reply, &e->err), 0);
}

static void rows_without_flags_get_no_answer(void **state)
{
	struct ends *e = *state;
	struct channel_row *rows = channel_begin_step(e->c);
	struct channel_reply reply;

	for (uint32_t i = 0; i < 3; i++)
		rows[i] = (struct channel_row){.slot = 1, .position = i, .mask = UINT32_MAX};
	rows[2].flags = CHANNEL_WANT_LOGITS;
	channel_post_step(e->c, 3);
	*answer(e, 0, 1) = (struct channel_result_row){.slot = 1, .position = 2};
	assert_int_equal(publish_and_take(e, 1, &reply), 1);
	assert_int_equal(reply.n_rows, 1);
}

static void failed_step_has_no_rows(void **state)
{
	struct ends *e = *state;
	struct channel_reply reply;

	post(e, 2);
	answer(e, 0, 2)[0].token = N_VOCAB; /* nobody looks at it */
	channel_result(e->shared, &e->shape, 0)->status = CHANNEL_BAD_STEP;
	assert_int_equal(publish_and_take(e, 1, &reply), 1);
	assert_int_equal(reply.status, CHANNEL_BAD_STEP);
	assert_int_equal(reply.n_rows, 0);
}

static void break_seq(struct channel_result *res, struct channel_result_row *rows)
{
	(void)rows;
	res->seq = 2;
}
static void break_status(struct channel_result *res, struct channel_result_row *rows)
{
	(void)rows;
	res->status = _CHANNEL_STATUS_MAX;
}
static void break_few(struct channel_result *res, struct channel_result_row *rows)
{
	(void)rows;
	res->n_rows = 1;
}
static void break_many(struct channel_result *res, struct channel_result_row *rows)
{
	(void)rows;
	res->n_rows = 3;
}
static void break_huge(struct channel_result *res, struct channel_result_row *rows)
{
	(void)rows;
	res->status = CHANNEL_BAD_STEP;
	res->n_rows = UINT32_MAX;
}
static void break_slot(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].slot = 4;
}
static void break_other_slot(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].slot = 0; /* it exists, but was asked for at another position */
}
static void break_position(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[0].position = 11;
}
static void break_token(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].token = N_VOCAB;
}
static void break_nan(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].logprob = NAN;
}
static void break_infinite(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[0].logprob = -INFINITY;
}
static void break_positive(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[0].logprob = 1;
}
static void break_n_top(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].n_top = CHANNEL_TOP_MAX + 1;
}
static void break_top_id(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].n_top = 1;
	rows[1].top[0].id = N_VOCAB;
}
static void break_top_logprob(struct channel_result *res, struct channel_result_row *rows)
{
	(void)res;
	rows[1].n_top = 1;
	rows[1].top[0].logprob = NAN;
}

static void impossible_results_are_refused_with_a_sentence(void **state)
{
	static void (*const breaks[])(struct channel_result *, struct channel_result_row *) = {
		break_seq,      break_status,     break_few,      break_many,   break_huge,
		break_slot,     break_other_slot, break_position, break_token,  break_nan,
		break_infinite, break_positive,   break_n_top,    break_top_id, break_top_logprob,
	};

	for (size_t i = 0; i < sizeof(breaks) / sizeof(breaks[0]); i++) {
		struct channel_reply reply;
		struct ends *e = *state;
		struct channel_result_row *rows;

		post(e, 2);
		rows = answer(e, 0, 2);
		answer(e, 0, 2);
		breaks[i](channel_result(e->shared, &e->shape, 0), rows);
		if (publish_and_take(e, 1, &reply) != -EBADMSG)
			fail_msg("row %zu was taken", i);
		assert_non_null(strstr(e->err.text, "the worker answered"));
		assert_int_equal(channel_in_flight(e->c), 1);
		tear_down(state);
		set_up(state);
	}
}

static void counts_that_cannot_be_are_refused(void **state)
{
	static const uint32_t tails[] = {2, 1000, UINT32_MAX, 0x80000000u};

	for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		struct ends *e = *state;
		struct channel_reply reply;

		post(e, 1);
		answer(e, 0, 1);
		assert_int_equal(publish_and_take(e, tails[i], &reply), -EBADMSG);
		assert_non_null(strstr(e->err.text, "results to 1 steps"));
		tear_down(state);
		set_up(state);
	}
}

static void what_the_worker_writes_into_a_step_changes_no_check(void **state)
{
	struct ends *e = *state;
	struct channel_row *seen = channel_step_rows(channel_step(e->shared, &e->shape, 0));
	struct channel_row *rows = channel_begin_step(e->c);
	struct channel_reply reply;

	rows[0] = (struct channel_row){.slot = 1, .position = 3, .flags = CHANNEL_WANT_LOGITS};
	/* Before it is posted and after. */
	memset(seen, 0xff, 16 * sizeof(*seen));
	channel_post_step(e->c, 1);
	assert_int_equal(seen[0].slot, 1);
	memset(seen, 0xff, 16 * sizeof(*seen));
	*answer(e, 0, 1) = (struct channel_result_row){.slot = 1, .position = 3};
	assert_int_equal(publish_and_take(e, 1, &reply), 1);
}

static void many_steps_wrap_the_rings(void **state)
{
	struct ends *e = *state;

	for (uint32_t i = 0; i < 10000; i++) {
		struct channel_reply reply;

		post(e, i % 16 + 1);
		answer(e, i, i % 16 + 1);
		assert_int_equal(publish_and_take(e, i + 1, &reply), 1);
		assert_int_equal(reply.seq, i + 1);
		assert_int_equal(reply.n_rows, i % 16 + 1);
	}
	assert_int_equal(channel_in_flight(e->c), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shape_is_in_order_and_aligned),
		cmocka_unit_test(shape_past_its_limits_is_refused),
		TEST(header_says_the_shape_that_both_compute),
		TEST(slot_generation_is_odd_while_written),
		TEST(steps_arrive_and_are_bounded_by_depth),
		TEST(sleeping_worker_is_woken_once),
		TEST(a_worker_cannot_make_the_broker_wait),
		TEST(result_is_taken_once_as_written),
		TEST(rows_without_flags_get_no_answer),
		TEST(failed_step_has_no_rows),
		TEST(impossible_results_are_refused_with_a_sentence),
		TEST(counts_that_cannot_be_are_refused),
		TEST(what_the_worker_writes_into_a_step_changes_no_check),
		TEST(many_steps_wrap_the_rings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
