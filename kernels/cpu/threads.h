#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A fork-join team: the caller and n - 1 workers run one function, then all are done. */
#include <stdbool.h>
#include <stdint.h>

struct threads;

/* @thread is 0 for the caller, up to @n_threads - 1. */
typedef void (*threads_fn)(void *ctx, uint32_t thread, uint32_t n_threads);

/**
 * threads_new() - n >= 1; 1 makes no thread
 * @cpus: [n] where each runs, the calling thread on the first; NULL: where the system puts them
 *
 * A CPU that is no longer allowed leaves its thread where it is.
 *
 * Return: 0; -ENOMEM; -errno of thread creation.
 */
int threads_new(struct threads **ret, uint32_t n, const uint16_t *cpus);
struct threads *threads_free(struct threads *t);
uint32_t threads_count(const struct threads *t);
/**
 * threads_run() - fork and join
 * @work: multiply-adds, or numbers touched, in all: the caller does alone what is not worth a fork
 * Thread: one caller, never from inside @fn.
 */
void threads_run(struct threads *t, uint64_t work, threads_fn fn, void *ctx);
/**
 * threads_take() - the next of [0, @n) that no thread has taken: [*ret_begin, *ret_end)
 * @least: not fewer, while there are as many
 *
 * For work that neighbours on the machine may slow down on one thread more than on another: parts are half a thread's
 * share of what is left, long ones first, so that memory is read in long runs and all end together.
 *
 * Return: whether there was any left.
 * Thread: any, from inside the function that threads_run() runs; one @n for a run.
 */
bool threads_take(struct threads *t, uint32_t n, uint32_t least, uint32_t *ret_begin,
		  uint32_t *ret_end);
/** threads_cpus() - CPUs this process may run on, at least 1. */
uint32_t threads_cpus(void);

/* The contiguous share of [0, n) that belongs to @thread: [ret_begin, ret_end). */
static inline void threads_share(uint32_t n, uint32_t thread, uint32_t n_threads,
				 uint32_t *ret_begin, uint32_t *ret_end)
{
	*ret_begin = (uint32_t)((uint64_t)n * thread / n_threads);
	*ret_end = (uint32_t)((uint64_t)n * (thread + 1) / n_threads);
}
