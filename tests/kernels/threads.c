/* SPDX-License-Identifier: Apache-2.0 */
#include "common.h"

#include <sched.h>

struct count {
	uint32_t calls[64], n_threads;
};

static void count_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct count *c = ctx;

	c->calls[thread]++;
	if (thread == 0)
		c->n_threads = n_threads;
}

static void note_cpu(void *ctx, uint32_t thread, uint32_t n_threads)
{
	int *seen = ctx;

	(void)n_threads;
	seen[thread] = sched_getcpu();
}

static void threads_run_every_part_once_before_they_join(void **state)
{
	static const uint32_t counts[] = {1, 2, 3, 8,
					  40}; /* the last ones more than CPUs: nobody spins */

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(counts); i++) {
		struct count c = {0};
		struct threads *t;

		assert_int_equal(threads_new(&t, counts[i], NULL), 0);
		assert_int_equal(threads_count(t), counts[i]);
		for (uint32_t round = 1; round <= 200; round++) {
			threads_run(t, UINT64_MAX, count_part, &c);
			for (uint32_t j = 0; j < 64; j++)
				assert_int_equal(c.calls[j], j < counts[i] ? round : 0);
		}
		assert_int_equal(c.n_threads, counts[i]);
		threads_free(t);
	}
}

static void threads_join_after_a_long_sleep(void **state)
{
	const struct timespec pause = {0, 5000000};
	struct count c = {0};
	struct threads *t;

	(void)state;
	assert_int_equal(threads_new(&t, 2, NULL), 0);
	for (uint32_t round = 1; round <= 5; round++) {
		nanosleep(&pause, NULL); /* long enough for the worker to stop spinning */
		threads_run(t, UINT64_MAX, count_part, &c);
		assert_int_equal(c.calls[1], round);
	}
	threads_free(t);
}

static void threads_run_where_they_are_pinned(void **state)
{
	cpu_set_t before, pinned;
	struct threads *t;
	uint16_t cpus[2];
	int n = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET(cpu, &before))
			cpus[n++] = (uint16_t)cpu;
	if (n == 1)
		cpus[1] = cpus[0];
	assert_int_equal(threads_new(&t, 2, cpus), 0);
	for (uint32_t round = 0; round < 100; round++) {
		int seen[2] = {-1, -1};

		threads_run(t, UINT64_MAX, note_cpu, seen);
		assert_int_equal(seen[0], cpus[0]);
		assert_int_equal(seen[1], cpus[1]);
	}
	threads_free(t);
	assert_int_equal(sched_getaffinity(0, sizeof(pinned), &pinned), 0);
	assert_int_equal(CPU_COUNT(&pinned), 1);
	assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

static void threads_share_covers_everything_once(void **state)
{
	static const uint32_t sizes[] = {0, 1, 5, 64, 1000, UINT32_MAX};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(sizes); i++)
		for (uint32_t n = 1; n <= 9; n++) {
			uint32_t at = 0, begin, end;

			for (uint32_t t = 0; t < n; t++, at = end) {
				threads_share(sizes[i], t, n, &begin, &end);
				assert_int_equal(begin, at);
				assert_true(end >= begin);
			}
			assert_int_equal(at, sizes[i]);
		}
}

struct taking {
	struct threads *t;
	uint32_t n, least;
	uint8_t *seen; /* [n] times */
	bool small;    /* a part smaller than @least that is not the last */
};

static void take_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct taking *j = ctx;
	uint32_t begin, end;

	(void)thread;
	(void)n_threads;
	while (threads_take(j->t, j->n, j->least, &begin, &end)) {
		if (end - begin < j->least && end != j->n)
			j->small = true;
		for (uint32_t i = begin; i < end; i++)
			j->seen[i]++;
	}
}

static void threads_take_everything_once_in_a_run(void **state)
{
	static const uint32_t sizes[] = {0, 1, 5, 64, 100000};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(sizes); i++)
		for (uint32_t n = 1; n <= 5; n++)
			for (uint64_t work = 0; work <= 1; work++) {
				struct taking j = {.n = sizes[i], .least = 3};

				assert_int_equal(threads_new(&j.t, n, NULL), 0);
				j.seen = calloc(j.n + 1, 1);
				for (uint32_t round = 1; round <= 3; round++) {
					threads_run(j.t, work ? UINT64_MAX : 0, take_part, &j);
					for (uint32_t k = 0; k < j.n; k++)
						assert_int_equal(j.seen[k], round);
				}
				assert_false(j.small);
				free(j.seen);
				threads_free(j.t);
			}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_run_every_part_once_before_they_join),
		cmocka_unit_test(threads_join_after_a_long_sleep),
		cmocka_unit_test(threads_run_where_they_are_pinned),
		cmocka_unit_test(threads_share_covers_everything_once),
		cmocka_unit_test(threads_take_everything_once_in_a_run),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
