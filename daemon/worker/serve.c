/* SPDX-License-Identifier: Apache-2.0 */
/* One thread, one step at a time, in ring order. Waiting for a step: spin for a moment where there
 * are CPUs to spare, then raise `asleep`, look once more, and poll the wake socket together with the
 * control socket; its end is the worker's end. A result is complete before the tail that publishes
 * it, and its eventfd is written every time: the broker's loop counts on it. */
#include "worker/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "worker/batch.h"
#include "worker/clock.h"
#include "worker/control.h"
#include "worker/engine.h"

/* About 20 us: longer than a busy broker takes to queue the next step, shorter than anyone notices. */
#define SPIN_ROUNDS 2000

static int map_sealed(int fd, const char *what, uint64_t n_bytes, void **ret, struct error *err)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	void *p;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || !(seals & F_SEAL_GROW))
		return error_set(err, -EBADMSG,
				 "%s: want a memfd sealed against shrinking and growing", what);
	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %m", what);
	if ((uint64_t)st.st_size != n_bytes)
		return error_set(err, -EBADMSG, "%s: %lld bytes, want %llu", what,
				 (long long)st.st_size, (unsigned long long)n_bytes);
	p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return error_set(err, -errno, "mapping %s of %llu bytes: %m", what,
				 (unsigned long long)n_bytes);
	*ret = p;
	return 0;
}

static int check_channel_header(const struct serve *s, struct error *err)
{
	const struct channel_header *h = s->channel;
	const struct channel_shape *w = &s->shape;

	if (memcmp(h->magic, CHANNEL_MAGIC, sizeof(h->magic)) != 0)
		return error_set(err, -EBADMSG, "channel: wrong magic");
	if (h->n_slots != w->n_slots || h->max_rows != w->max_rows ||
	    h->max_pages != w->max_pages || h->max_tokens != w->max_tokens ||
	    h->slot_offset != w->slot_offset || h->slot_stride != w->slot_stride ||
	    h->step_offset != w->step_offset || h->step_stride != w->step_stride ||
	    h->result_offset != w->result_offset || h->result_stride != w->result_stride ||
	    h->total_bytes != w->total_bytes)
		return error_set(err, -EBADMSG, "channel: its header has not the announced shape");
	return 0;
}

static bool is_eventfd(int fd)
{
	struct stat st;

	/* Neither a file nor a socket nor a pipe: an anonymous inode has no type. */
	return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

static bool is_socket(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

int serve_open(struct serve *ret, struct control_in *in, const struct engine *engine,
	       struct error *err)
{
	const struct page_geometry *g = &engine->limits.geometry;
	struct serve s = SERVE_NULL;
	void *pool;
	int r;

	if (in->msg.type != CONTROL_CHANNEL || in->n_fds != 4)
		return error_set(err, -EBADMSG,
				 "control message %u with %u descriptors: want %u with 4",
				 in->msg.type, in->n_fds, CONTROL_CHANNEL);
	if (in->msg.total == 0 || in->msg.total >= PAGE_NONE)
		return error_set(err, -EBADMSG, "a pool of %llu pages: want 1 to %u",
				 (unsigned long long)in->msg.total, PAGE_NONE - 1);
	if (in->msg.max_tokens > engine->limits.n_context)
		return error_set(err, -EBADMSG,
				 "a channel for sequences of %u tokens: the model has %u",
				 in->msg.max_tokens, engine->limits.n_context);
	if (!is_socket(in->fds[2]) || !is_eventfd(in->fds[3]))
		return error_set(err, -EBADMSG, "a channel without its wake-ups");
	r = channel_shape_init(&s.shape, in->msg.n_slots, in->msg.max_rows, in->msg.max_tokens,
			       err);
	if (r < 0)
		return r;
	r = map_sealed(in->fds[0], "channel", s.shape.total_bytes, &s.channel, err);
	if (r < 0)
		return r;
	s.channel_bytes = s.shape.total_bytes;
	r = check_channel_header(&s, err);
	if (r < 0)
		goto fail;
	s.n_pages = (uint32_t)in->msg.total;
	r = map_sealed(in->fds[1], "pool-data", g->stride * s.n_pages, &pool, err);
	if (r < 0)
		goto fail;
	s.pool = pool;
	s.pool_bytes = g->stride * s.n_pages;
	madvise(s.pool, s.pool_bytes, MADV_HUGEPAGE); /* a hint: without it only the TLB suffers */
	s.wake = TAKE_FD(in->fds[2]);
	s.result_event = TAKE_FD(in->fds[3]);
	*ret = s;
	return 0;
fail:
	serve_done(&s);
	return r;
}

void serve_done(struct serve *s)
{
	if (s->channel)
		munmap(s->channel, s->channel_bytes);
	if (s->pool)
		munmap(s->pool, s->pool_bytes);
	fd_close(s->wake);
	fd_close(s->result_event);
	*s = SERVE_NULL;
}

_Atomic uint32_t *serve_progress(const struct serve *s)
{
	return &((struct channel_header *)s->channel)->progress;
}

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* How many steps are waiting; more than fit is a broken ring. */
static int n_waiting(struct channel_ring *ring, uint32_t head, struct error *err)
{
	uint32_t n = atomic_load_explicit(&ring->tail, memory_order_acquire) - head;

	if (n > CHANNEL_DEPTH)
		return error_set(err, -EBADMSG, "step ring holds %u steps: want at most %u", n,
				 CHANNEL_DEPTH);
	return (int)n;
}

/* Sleeps until the wake socket or the control socket says something, or @timeout_ms went by.
 * Return: 1; 0 where the broker has gone. */
static int sleep_once(const struct serve *s, int control_fd, int timeout_ms, struct error *err)
{
	struct pollfd p[] = {
		{.fd = control_fd, .events = POLLIN},
		{.fd = s->wake, .events = POLLIN},
	};
	char n[64];

	if (poll(p, timeout_ms < 0 ? 2 : 1, timeout_ms) < 0)
		return errno == EINTR ? 1 : error_set(err, -errno, "waiting for steps: %m");
	/* Nothing is said on the socket while serving, so whatever comes is its end. */
	if (p[0].revents)
		return 0;
	if (p[1].revents & POLLIN && read(s->wake, n, sizeof(n)) < 0 && errno != EAGAIN)
		return error_set(err, -errno, "reading the wake socket: %m");
	return 1;
}

/* Return: 1 when there is a step at @head; 0 where the broker has gone. */
static int wait_step(struct serve *s, int control_fd, uint32_t head, bool spin, struct error *err)
{
	struct channel_ring *ring = &((struct channel_header *)s->channel)->steps;
	int r;

	for (int i = 0; spin && i < SPIN_ROUNDS; i++) {
		r = n_waiting(ring, head, err);
		if (r != 0)
			return r < 0 ? r : 1;
		relax();
	}
	for (;;) {
		/* Sequentially consistent on both sides: either we see the step or the broker sees
		 * that we sleep. */
		atomic_store(&ring->asleep, 1);
		atomic_thread_fence(memory_order_seq_cst);
		r = n_waiting(ring, head, err);
		if (r == 0)
			r = sleep_once(s, control_fd, -1, err);
		else if (r > 0)
			r = 2;
		atomic_store(&ring->asleep, 0);
		if (r != 1)
			return r == 2 ? 1 : r;
	}
}

/* A broker that has not read CHANNEL_DEPTH results yet. Return: 1 when there is room; 0: it has gone. */
static int wait_room(struct serve *s, int control_fd, uint32_t tail, struct error *err)
{
	struct channel_ring *ring = &((struct channel_header *)s->channel)->results;
	int r;

	for (;;) {
		uint32_t n = tail - atomic_load_explicit(&ring->head, memory_order_acquire);

		if (n < CHANNEL_DEPTH)
			return 1;
		if (n > CHANNEL_DEPTH)
			return error_set(err, -EBADMSG, "result ring: %u results were never made",
					 n);
		r = sleep_once(s, control_fd, 1, err);
		if (r <= 0)
			return r;
	}
}

/* One step from ring entry @head; @rows is scratch for max_rows answers. */
static int answer(struct serve *s, uint32_t head, uint32_t tail, struct batch *b,
		  struct engine *engine, struct channel_result_row *rows, struct error *err)
{
	struct channel_header *h = s->channel;
	struct channel_result *out = channel_result(s->channel, &s->shape, tail);
	uint64_t begin = clock_usec(), one = 1;
	struct channel_result head_out;
	struct engine_step step;
	int r;

	r = batch_read(b, s->channel, head, &step, err);
	/* The slots and the entry may change as soon as the broker sees this. */
	atomic_store_explicit(&h->steps.head, head + 1, memory_order_release);
	atomic_fetch_add_explicit(&h->progress, 1, memory_order_relaxed);
	if (r == 0)
		r = engine->step(engine->ctx, &step, rows, err);
	if (r < 0 && r != -EBADMSG)
		return r;
	if (r < 0)
		log_warning("step %llu: %s", (unsigned long long)step.seq, error_text(err, r));
	for (uint32_t i = 0; r == 0 && i < step.n_wants; i++)
		if (step.wants[i].given == UINT32_MAX)
			/* No token: the sequence ends, but a queued step may name its sample. */
			batch_note_sample(b, rows[i].slot, rows[i].position + 1,
					  rows[i].token == CHANNEL_NO_TOKEN ? 0 : rows[i].token);
	head_out = (struct channel_result){
		.seq = step.seq,
		.status = r == 0 ? CHANNEL_OK : CHANNEL_BAD_STEP,
		.n_rows = r == 0 ? step.n_wants : 0,
		.usec = clock_usec() - begin,
	};
	memcpy(out, &head_out, sizeof(head_out));
	memcpy(channel_result_rows(out), rows, sizeof(*rows) * head_out.n_rows);
	atomic_store(&h->results.tail, tail + 1);
	if (write(s->result_event, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return error_set(err, -errno, "writing the result eventfd: %m");
	return 0;
}

int serve_run(struct serve *s, int control_fd, bool spin, struct engine *engine, struct error *err)
{
	struct channel_header *h = s->channel;
	_cleanup_(batch_freep) struct batch *b = NULL;
	_cleanup_(freep) struct channel_result_row *rows = NULL;
	uint32_t head = atomic_load(&h->steps.head), tail = atomic_load(&h->results.tail);
	int r;

	r = batch_new(&b, &s->shape, engine->limits.n_vocab, s->n_pages);
	if (r < 0)
		return r;
	rows = calloc(s->shape.max_rows, sizeof(*rows));
	if (!rows)
		return -ENOMEM;
	for (;; head++, tail++) {
		r = wait_room(s, control_fd, tail, err);
		if (r <= 0)
			return r;
		r = wait_step(s, control_fd, head, spin, err);
		if (r <= 0)
			return r;
		r = answer(s, head, tail, b, engine, rows, err);
		if (r < 0)
			return r;
	}
}
