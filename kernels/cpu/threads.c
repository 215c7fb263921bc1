/* SPDX-License-Identifier: Apache-2.0 */
/* Fork-join over a generation counter.
 *
 * threads_run() publishes a function, raises `generation` and joins in; workers wait for the counter to
 * move, run, and count themselves out of `n_left`. Both waits spin for some ten microseconds (a step
 * forks several hundred times, nearly back to back) and then sleep on a futex. With more threads than
 * CPUs nobody spins: the CPU spun on is the one the awaited thread needs. */
#include "threads.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORK_MIN                                                                                   \
	(1u << 18)  /* some ten microseconds of one thread; a fork costs a few at its best */
#define SPINS 4000u /* of one pause instruction: 10 to 100 microseconds, by CPU */

struct word { /* a futex on a line of its own */
	_Atomic uint32_t value;
	_Atomic uint32_t sleepers;
} __attribute__((aligned(64)));

struct threads {
	struct word generation;
	struct word n_left;
	struct word taken; /* units of this run */
	threads_fn fn;
	void *ctx;
	_Atomic bool stop;
	uint32_t spins;
	uint32_t n; /* with the caller */
	uint32_t n_started;
	struct worker {
		struct threads *team;
		uint32_t thread;
		int cpu; /* -1: any */
		pthread_t id;
	} workers[];
};

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

/* Wait until @w differs from @old (@want_zero: until it is 0), and return what it is then. */
static uint32_t word_wait(struct word *w, uint32_t spins, uint32_t old, bool want_zero)
{
	for (;;) {
		uint32_t v = atomic_load_explicit(&w->value, memory_order_acquire);

		if (want_zero ? v == 0 : v != old)
			return v;
		if (spins > 0) {
			spins--;
			pause_cpu();
			continue;
		}
		/* Sequentially consistent on both sides: either the waker sees the sleeper, or the
		 * sleeper's futex call sees the new value. */
		atomic_fetch_add(&w->sleepers, 1);
		if (atomic_load(&w->value) == v)
			syscall(SYS_futex, &w->value, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
		atomic_fetch_sub(&w->sleepers, 1);
	}
}

static void word_wake(struct word *w)
{
	if (atomic_load(&w->sleepers) > 0)
		syscall(SYS_futex, &w->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void pin(int cpu)
{
	cpu_set_t *set = CPU_ALLOC((size_t)cpu + 1);
	size_t bytes = CPU_ALLOC_SIZE((size_t)cpu + 1);

	if (!set)
		return;
	CPU_ZERO_S(bytes, set);
	CPU_SET_S((size_t)cpu, bytes, set);
	sched_setaffinity(0, bytes, set);
	CPU_FREE(set);
}

static void *worker_main(void *arg)
{
	struct worker *me = arg;
	struct threads *t = me->team;
	uint32_t seen = 0;

	if (me->cpu >= 0)
		pin(me->cpu);
	for (;;) {
		seen = word_wait(&t->generation, t->spins, seen, false);
		if (atomic_load_explicit(&t->stop, memory_order_relaxed))
			return NULL;
		t->fn(t->ctx, me->thread, t->n);
		if (atomic_fetch_sub(&t->n_left.value, 1) == 1)
			word_wake(&t->n_left);
	}
}

uint32_t threads_cpus(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1; /* more CPUs than the set has bits */
	return CPU_COUNT(&set) > 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

int threads_new(struct threads **ret, uint32_t n, const uint16_t *cpus)
{
	struct threads *t;
	size_t bytes = sizeof(*t) + n * sizeof(t->workers[0]);

	t = aligned_alloc(64, (bytes + 63) / 64 * 64);
	if (!t)
		return -ENOMEM;
	*t = (struct threads){.n = n, .spins = cpus || n <= threads_cpus() ? SPINS : 0};
	if (cpus)
		pin(cpus[0]);
	for (uint32_t i = 0; i + 1 < n; i++) {
		int r;

		t->workers[i] =
			(struct worker){.team = t, .thread = i + 1, .cpu = cpus ? cpus[i + 1] : -1};
		r = pthread_create(&t->workers[i].id, NULL, worker_main, &t->workers[i]);
		if (r != 0) {
			threads_free(t);
			return -r;
		}
		t->n_started++;
	}
	*ret = t;
	return 0;
}

struct threads *threads_free(struct threads *t)
{
	if (!t)
		return NULL;
	atomic_store(&t->stop, true);
	atomic_fetch_add(&t->generation.value, 1);
	word_wake(&t->generation);
	for (uint32_t i = 0; i < t->n_started; i++)
		pthread_join(t->workers[i].id, NULL);
	free(t);
	return NULL;
}

uint32_t threads_count(const struct threads *t)
{
	return t->n;
}

void threads_run(struct threads *t, uint64_t work, threads_fn fn, void *ctx)
{
	atomic_store_explicit(&t->taken.value, 0, memory_order_relaxed);
	if (t->n == 1 || work < WORK_MIN) {
		fn(ctx, 0, 1);
		return;
	}
	t->fn = fn;
	t->ctx = ctx;
	atomic_store_explicit(&t->n_left.value, t->n - 1, memory_order_relaxed);
	atomic_fetch_add(&t->generation.value, 1);
	word_wake(&t->generation);
	fn(ctx, 0, t->n);
	word_wait(&t->n_left, t->spins, 0, true);
}

bool threads_take(struct threads *t, uint32_t n, uint32_t least, uint32_t *ret_begin,
		  uint32_t *ret_end)
{
	uint32_t begin = atomic_load_explicit(&t->taken.value, memory_order_relaxed), part;

	do {
		if (begin >= n)
			return false;
		part = (n - begin) / (2 * t->n);
		if (part < least)
			part = n - begin < least ? n - begin : least;
	} while (!atomic_compare_exchange_weak_explicit(
		&t->taken.value, &begin, begin + part, memory_order_relaxed, memory_order_relaxed));
	*ret_begin = begin;
	*ret_end = begin + part;
	return true;
}
