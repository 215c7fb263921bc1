/* SPDX-License-Identifier: Apache-2.0 */
/* The worker may write any bytes into the memfd at any time. So: where things are comes from our own
 * shape, never from the header; of the rings we read the worker's two counters, once, and compare
 * them with our own; a result is copied out before it is checked, and only the copy is used. */
#include "channel/channel.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/io.h"

struct asked {
	uint32_t slot, position;
};

struct channel {
	struct io *io;
	struct channel_shape shape;
	int fd, result_event;
	int wake[2]; /* ours, the worker's */
	uint8_t *base;
	uint32_t n_posted, n_taken; /* our own counts: steps posted, results taken */
	uint64_t seq;               /* number of the last step */
	uint64_t seq_of[CHANNEL_DEPTH];
	uint32_t rows_of[CHANNEL_DEPTH];
	struct channel_row *rows; /* of the step being built: ours, the worker gets a copy */
	struct asked *asked;      /* CHANNEL_DEPTH * max_rows: the rows whose answer we want */
	struct channel_result_row *copy;
};

int channel_new(struct channel **ret, struct io *io, uint32_t n_slots, uint32_t max_rows,
		uint32_t max_tokens, struct error *err)
{
	_cleanup_(channel_freep) struct channel *c = io_alloc(io, sizeof(*c));
	struct channel_header *h;
	int r;

	if (!c)
		return -ENOMEM;
	*c = (struct channel){
		.io = io, .fd = -EBADF, .result_event = -EBADF, .wake = {-EBADF, -EBADF}};
	r = channel_shape_init(&c->shape, n_slots, max_rows, max_tokens, err);
	if (r < 0)
		return r;
	c->fd = io_memfd(io, "dsd-channel", c->shape.total_bytes,
			 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	if (c->fd < 0)
		return error_set(err, c->fd, "memfd of a channel of %llu bytes: %m",
				 (unsigned long long)c->shape.total_bytes);
	c->base = io_map(io, c->fd, c->shape.total_bytes, true);
	if (!c->base)
		return error_set(err, -errno, "mapping a channel: %m");
	/* Not an eventfd: whoever holds one can fill it and make it blocking, and then writing to it
	 * blocks us. A send can be told not to wait, whatever the peer does to its end. */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, c->wake) < 0)
		return error_set(err, -errno, "socketpair of a channel: %m");
	c->result_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->result_event < 0)
		return error_set(err, -errno, "eventfd of a channel: %m");
	c->rows = io_alloc(io, (size_t)max_rows * sizeof(*c->rows));
	c->asked = io_alloc(io, (size_t)CHANNEL_DEPTH * max_rows * sizeof(*c->asked));
	c->copy = io_alloc(io, (size_t)max_rows * sizeof(*c->copy));
	if (!c->rows || !c->asked || !c->copy)
		return -ENOMEM;
	h = (struct channel_header *)c->base;
	memcpy(h->magic, CHANNEL_MAGIC, sizeof(h->magic));
	h->version = 1;
	h->n_slots = n_slots;
	h->max_rows = max_rows;
	h->max_pages = c->shape.max_pages;
	h->max_tokens = max_tokens;
	h->slot_offset = c->shape.slot_offset;
	h->slot_stride = c->shape.slot_stride;
	h->step_offset = c->shape.step_offset;
	h->step_stride = c->shape.step_stride;
	h->result_offset = c->shape.result_offset;
	h->result_stride = c->shape.result_stride;
	h->total_bytes = c->shape.total_bytes;
	*ret = TAKE_PTR(c);
	return 0;
}

struct channel *channel_free(struct channel *c)
{
	if (!c)
		return NULL;
	if (c->base)
		io_unmap(c->io, c->base, c->shape.total_bytes);
	fd_close(c->fd);
	fd_close(c->wake[0]);
	fd_close(c->wake[1]);
	fd_close(c->result_event);
	free(c->rows);
	free(c->asked);
	free(c->copy);
	free(c);
	return NULL;
}

const struct channel_shape *channel_get_shape(const struct channel *c)
{
	return &c->shape;
}

int channel_fd(const struct channel *c)
{
	return c->fd;
}

int channel_wake_fd(const struct channel *c)
{
	return c->wake[1];
}

void channel_clear_result(struct channel *c)
{
	uint64_t count;
	struct iovec iov = {&count, sizeof(count)};

	/* The worker may have made it blocking, and empty: this does not wait even so. */
	preadv2(c->result_event, &iov, 1, -1, RWF_NOWAIT);
}

int channel_result_eventfd(const struct channel *c)
{
	return c->result_event;
}

struct channel_slot *channel_begin_slot(struct channel *c, uint32_t slot)
{
	struct channel_slot *s;

	assert(slot < c->shape.n_slots);
	s = channel_slot(c->base, &c->shape, slot);
	atomic_fetch_or_explicit(&s->generation, 1, memory_order_acq_rel);
	return s;
}

struct channel_slot *channel_peek_slot(struct channel *c, uint32_t slot)
{
	assert(slot < c->shape.n_slots);
	return channel_slot(c->base, &c->shape, slot);
}

void channel_end_slot(struct channel *c, uint32_t slot)
{
	struct channel_slot *s = channel_slot(c->base, &c->shape, slot);

	atomic_fetch_add_explicit(&s->generation, 1, memory_order_release);
}

uint32_t channel_in_flight(const struct channel *c)
{
	return c->n_posted - c->n_taken;
}

uint32_t channel_progress(const struct channel *c)
{
	struct channel_header *h = (void *)c->base;

	return atomic_load_explicit(&h->progress, memory_order_relaxed) + c->n_taken;
}

struct channel_row *channel_begin_step(struct channel *c)
{
	if (channel_in_flight(c) >= CHANNEL_DEPTH)
		return NULL;
	return c->rows;
}

uint64_t channel_post_step(struct channel *c, uint32_t n_rows)
{
	struct channel_header *h = (struct channel_header *)c->base;
	struct channel_step *step = channel_step(c->base, &c->shape, c->n_posted);
	uint32_t i = c->n_posted % CHANNEL_DEPTH;
	struct asked *asked = c->asked + (size_t)i * c->shape.max_rows;

	assert(n_rows > 0 && n_rows <= c->shape.max_rows && channel_in_flight(c) < CHANNEL_DEPTH);
	step->seq = ++c->seq;
	step->n_rows = n_rows;
	c->seq_of[i] = c->seq;
	c->rows_of[i] = 0;
	for (uint32_t k = 0; k < n_rows; k++)
		if (c->rows[k].flags)
			asked[c->rows_of[i]++] =
				(struct asked){c->rows[k].slot, c->rows[k].position};
	memcpy(channel_step_rows(step), c->rows, n_rows * sizeof(*c->rows));
	c->n_posted++;
	atomic_store_explicit(&h->steps.tail, c->n_posted, memory_order_release);
	/* Order against the worker's "asleep, then look at tail once more". */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_exchange_explicit(&h->steps.asleep, 0, memory_order_acq_rel))
		send(c->wake[0], "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* full: it is being woken */
	return c->seq;
}

static bool logprob_ok(float x)
{
	return isfinite(x) && x <= 1e-3f;
}

static int check_rows(const struct channel *c, uint32_t n, uint32_t n_vocab, struct error *err)
{
	const struct asked *asked =
		c->asked + (size_t)(c->n_taken % CHANNEL_DEPTH) * c->shape.max_rows;

	for (uint32_t i = 0; i < n; i++) {
		const struct channel_result_row *row = &c->copy[i];

		if (row->slot != asked[i].slot || row->position != asked[i].position ||
		    (row->token >= n_vocab && (row->token != CHANNEL_NO_TOKEN || row->n_top)) ||
		    row->n_top > CHANNEL_TOP_MAX || !logprob_ok(row->logprob))
			return error_set(err, -EBADMSG,
					 "the worker answered with slot %u, position %u, token %u",
					 row->slot, row->position, row->token);
		for (uint32_t k = 0; k < row->n_top; k++)
			if (row->top[k].id >= n_vocab || !logprob_ok(row->top[k].logprob))
				return error_set(err, -EBADMSG, "the worker answered with token %u",
						 row->top[k].id);
	}
	return 0;
}

int channel_take_result(struct channel *c, uint32_t n_vocab, struct channel_reply *ret,
			struct error *err)
{
	struct channel_header *h = (struct channel_header *)c->base;
	uint32_t tail = atomic_load_explicit(&h->results.tail, memory_order_acquire);
	uint32_t i = c->n_taken % CHANNEL_DEPTH;
	struct channel_result *shared;
	struct channel_result res;
	int r;

	if (tail == c->n_taken)
		return 0;
	if (tail - c->n_taken > channel_in_flight(c))
		return error_set(err, -EBADMSG, "the worker counts %u results to %u steps", tail,
				 c->n_posted);
	shared = channel_result(c->base, &c->shape, c->n_taken);
	res = *shared;
	atomic_signal_fence(memory_order_seq_cst); /* one read: the copy is what is checked */
	if (res.seq != c->seq_of[i] || res.status >= _CHANNEL_STATUS_MAX ||
	    res.n_rows > c->shape.max_rows ||
	    (res.status == CHANNEL_OK && res.n_rows != c->rows_of[i]))
		return error_set(
			err, -EBADMSG,
			"the worker answered step %llu, status %u, %u rows; want step %llu, %u rows",
			(unsigned long long)res.seq, res.status, res.n_rows,
			(unsigned long long)c->seq_of[i], c->rows_of[i]);
	if (res.status != CHANNEL_OK)
		res.n_rows = 0;
	memcpy(c->copy, channel_result_rows(shared), res.n_rows * sizeof(*c->copy));
	r = check_rows(c, res.n_rows, n_vocab, err);
	if (r < 0)
		return r;
	c->n_taken++;
	atomic_store_explicit(&h->results.head, c->n_taken, memory_order_release);
	*ret = (struct channel_reply){
		.seq = res.seq,
		.usec = res.usec,
		.status = res.status,
		.n_rows = res.n_rows,
		.rows = c->copy,
	};
	return 1;
}
