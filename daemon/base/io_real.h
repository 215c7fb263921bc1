#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the real backends share: peers, clock, chance, memory, processes (io_real.c), and the threads that
 * run offloaded work (io_work.c). */
#include "base/io.h"

int io_real_peer(struct io *io, int fd, struct io_peer *ret);
int io_real_send_now(struct io *io, int fd, const void *data, size_t n);
void io_real_shutdown(struct io *io, int fd);
void io_real_close(struct io *io, int fd);
uint64_t io_real_now_usec(struct io *io);
uint64_t io_real_cpu_usec(struct io *io);
void io_real_random(struct io *io, void *ret, size_t n);
int io_real_memfd(struct io *io, const char *name, uint64_t n_bytes, unsigned seals);
void *io_real_map(struct io *io, int fd, uint64_t n_bytes, bool writable);
void io_real_unmap(struct io *io, void *p, uint64_t n_bytes);
void *io_real_alloc(struct io *io, size_t n);
int io_real_spawn(struct io *io, const struct io_spawn *what, pid_t *ret_pid);
int io_real_reap(struct io *io, int pidfd, int *ret_status);
void io_real_kill(struct io *io, int pidfd, int signal);

/* A signal, or completions that were the backend's own to mend, are no reason to return. */
static inline int io_real_wait(int (*once)(struct io *, struct io_event *, unsigned, uint64_t),
			       struct io *io, struct io_event *ret, unsigned max,
			       uint64_t deadline_usec)
{
	int n;

	do
		n = once(io, ret, max, deadline_usec);
	while (n == 0 && io_real_now_usec(io) < deadline_usec);
	return n;
}

/* What both tables end with. */
#define IO_REAL_OPS                                                                                \
	.peer = io_real_peer, .send_now = io_real_send_now, .shutdown = io_real_shutdown,          \
	.close = io_real_close, .now_usec = io_real_now_usec, .cpu_usec = io_real_cpu_usec,        \
	.random = io_real_random, .memfd = io_real_memfd, .map = io_real_map,                      \
	.unmap = io_real_unmap, .alloc = io_real_alloc, .spawn = io_real_spawn,                    \
	.reap = io_real_reap, .kill = io_real_kill

/* A few threads, a queue in and a list out; the eventfd becomes readable when something is done. */
struct io_workers;
int io_workers_new(struct io_workers **ret, unsigned n_threads);
struct io_workers *io_workers_free(struct io_workers *w); /* waits for what is running */
int io_workers_fd(const struct io_workers *w);
int io_workers_add(struct io_workers *w, io_work_fn fn, void *arg, uint64_t tag);
/** io_workers_done() - takes one finished tag. Return: false where there is none. */
bool io_workers_done(struct io_workers *w, uint64_t *ret_tag);
