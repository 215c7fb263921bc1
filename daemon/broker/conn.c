/* SPDX-License-Identifier: Apache-2.0 */
/* Frames on a stream. Lengths are checked before anything is allocated for them; a violation is
 * answered with one Error frame and costs the connection, never more. A connection is freed when its
 * last operation is back, so no event ever finds half of one. */
#include "broker/conn.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "quota/quota.h"

/* What the kernel shows for a uid that has no number here. They would all share one cache. */
#define OVERFLOW_UID 65534u

static void conn_free(struct conn *c)
{
	assert(!c->requests && !c->receiving && !c->send_busy);
	quota_uncharge(c->server->quota, c->uid, QUOTA_CONNECTIONS, 1);
	table_remove(&c->server->conns, c->index);
	io_close(c->server->io, c->fd);
	fd_close(c->passed);
	free(c->body);
	free(c->sending.data);
	free(c->queued.data);
	free(c);
}

static void conn_maybe_free(struct conn *c)
{
	if (c->dead && !c->doomed && !c->dirty && !c->receiving && !c->send_busy)
		conn_free(c);
}

/* Inside a handler: somebody up the stack may hold a request of ours, so the end waits for the loop. */
static void conn_doom(struct conn *c)
{
	if (c->doomed)
		return;
	c->doomed = true;
	c->next_doomed = c->server->doomed;
	c->server->doomed = c;
}

void conn_reap(struct server *s)
{
	struct conn *c;

	while ((c = s->doomed)) {
		s->doomed = c->next_doomed;
		c->doomed = false;
		if (c->dead)
			conn_maybe_free(c);
		else
			conn_kill(c);
	}
}

void conn_kill(struct conn *c)
{
	if (c->dead)
		return;
	c->dead = c->closing = true;
	while (c->requests)
		request_cancel(c->requests);
	io_shutdown(c->server->io, c->fd);
	if (c->receiving || c->send_busy)
		io_cancel(c->server->io, c->fd);
	conn_maybe_free(c);
}

static void conn_set_deadline(struct conn *c, uint64_t usec)
{
	c->deadline_usec = io_now_usec(c->server->io) + usec;
	server_wake_at(c->server, c->deadline_usec);
}

static void refuse(struct io *io, int fd, Dsd__Code code, const char *text)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Error error = DSD__ERROR__INIT;
	_cleanup_(freep) uint8_t *data = NULL;
	size_t n;
	int r;

	error.code = code;
	error.message = (char *)text;
	frame.msg_case = DSD__SERVER_FRAME__MSG_ERROR;
	frame.error = &error;
	/* A fresh socket's buffer is empty: this does not block. */
	r = wire_pack_frame(&frame.base, &data, &n);
	if (r == 0)
		r = io_send_now(io, fd, data, n);
	if (r < 0)
		log_debug("refusing a connection: %s", strerror(-r));
	io_close(io, fd);
}

void conn_accept(struct server *s, int fd, bool admin)
{
	struct io_peer peer;
	struct error err = {};
	struct conn *c;
	int i;

	if (io_peer(s->io, fd, &peer) < 0) {
		refuse(s->io, fd, DSD__CODE__CODE_PERMISSION_DENIED,
		       "the kernel does not say who you are");
		return;
	}
	if (peer.uid == OVERFLOW_UID) {
		refuse(s->io, fd, DSD__CODE__CODE_PERMISSION_DENIED,
		       "uid 65534 (nobody) stands for every user of other user namespaces: "
		       "connect as a user of its own");
		return;
	}
	if (s->stopping) {
		refuse(s->io, fd, DSD__CODE__CODE_RETRYABLE, "the daemon is stopping");
		return;
	}
	if (s->conns.n_used >= s->cfg.conn_max) {
		refuse(s->io, fd, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
		       "the daemon takes no more connections");
		return;
	}
	if (quota_charge(s->quota, peer.uid, QUOTA_CONNECTIONS, 1, &err) < 0) {
		refuse(s->io, fd, DSD__CODE__CODE_RESOURCE_EXHAUSTED, error_text(&err, -EDQUOT));
		return;
	}
	c = io_alloc(s->io, sizeof(*c));
	i = c ? table_add(&s->conns, c, &c->generation) : -ENOMEM;
	if (i < 0) {
		quota_uncharge(s->quota, peer.uid, QUOTA_CONNECTIONS, 1);
		free(c);
		refuse(s->io, fd, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
		       "the daemon is out of memory");
		return;
	}
	c->server = s;
	c->index = (uint32_t)i;
	c->fd = fd;
	c->passed = -EBADF;
	c->uid = peer.uid;
	c->admin = admin;
	c->pid = peer.pid;
	conn_set_deadline(c, CONN_HELLO_USEC);
	s->count.connections++;
	if (io_recv(s->io, fd, tag_make(TAG_CONN_RECV, c->index, c->generation)) < 0) {
		conn_kill(c);
		return;
	}
	c->receiving = true;
}

/* ---- output ---- */

static void conn_flush(struct conn *c)
{
	if (c->send_busy || c->dead || c->doomed)
		return;
	if (c->sending_at == c->sending.n) {
		struct conn_buffer empty = c->sending;

		if (c->queued.n == 0) {
			if (c->closing)
				conn_doom(c);
			return;
		}
		if (empty.n_alloc > CONN_BUFFER_KEPT) {
			free(empty.data);
			empty = (struct conn_buffer){};
		}
		empty.n = 0;
		c->sending = c->queued;
		c->sending_at = 0;
		c->queued = empty;
	}
	if (io_send(c->server->io, c->fd, c->sending.data + c->sending_at,
		    c->sending.n - c->sending_at,
		    tag_make(TAG_CONN_SEND, c->index, c->generation)) < 0) {
		conn_doom(c);
		return;
	}
	c->send_busy = true;
}

static void conn_flush_later(struct conn *c)
{
	if (c->dirty)
		return;
	c->dirty = true;
	c->next_dirty = c->server->dirty;
	c->server->dirty = c;
}

void conn_flush_all(struct server *s)
{
	struct conn *c;

	/* Who is given up here may set others free to say something. */
	while (s->dirty || s->doomed) {
		while ((c = s->dirty)) {
			s->dirty = c->next_dirty;
			c->dirty = false;
			if (c->dead)
				conn_maybe_free(c);
			else
				conn_flush(c);
		}
		conn_reap(s);
	}
}

static size_t conn_backlog(const struct conn *c)
{
	return c->queued.n + c->sending.n - c->sending_at;
}

void conn_on_send(struct conn *c, const struct io_event *ev)
{
	c->send_busy = false;
	if (c->dead) {
		conn_maybe_free(c);
		return;
	}
	if (ev->res <= 0) {
		if (ev->res != -EPIPE && ev->res != -ECONNRESET && ev->res != 0)
			log_debug("sending to pid %d: %s", c->pid, strerror(-ev->res));
		conn_kill(c);
		return;
	}
	c->server->count.bytes_out += (uint64_t)ev->res;
	c->sending_at += (size_t)ev->res;
	c->stalled_usec = io_now_usec(c->server->io);
	if (c->congested && conn_backlog(c) < CONN_QUEUE_SOFT / 4) {
		c->congested = false;
		request_pause_all(c, false);
	}
	conn_flush_later(c);
}

static uint64_t stall_usec(const struct conn *c)
{
	return c->server->cfg.conn_stall_seconds * UINT64_C(1000000);
}

bool conn_has_output(const struct conn *c)
{
	return !c->dead && (c->send_busy || c->queued.n);
}

static int buffer_reserve(struct conn_buffer *b, size_t n)
{
	size_t want = MAX(b->n + n, 2 * b->n_alloc);
	uint8_t *p;

	if (b->n + n <= b->n_alloc)
		return 0;
	p = realloc(b->data, want);
	if (!p)
		return -ENOMEM;
	b->data = p;
	b->n_alloc = want;
	return 0;
}

/* Room for a frame of @n bytes, which queue_frame() then takes; NULL: the connection ends. */
static uint8_t *frame_room(struct conn *c, size_t n)
{
	if (conn_backlog(c) + n > CONN_QUEUE_HARD) {
		log_notice("pid %d reads nothing: %zu bytes wait for it", c->pid, conn_backlog(c));
		conn_doom(c);
		return NULL;
	}
	if (buffer_reserve(&c->queued, n) < 0) {
		conn_doom(c);
		return NULL;
	}
	return c->queued.data + c->queued.n;
}

static void queue_frame(struct conn *c, size_t n)
{
	c->queued.n += n;
	if (!c->congested && conn_backlog(c) > CONN_QUEUE_SOFT) {
		c->congested = true;
		c->stalled_usec = io_now_usec(c->server->io);
		server_wake_at(c->server, c->stalled_usec + stall_usec(c));
		request_pause_all(c, true);
	}
	conn_flush_later(c);
}

void conn_send(struct conn *c, const Dsd__ServerFrame *frame)
{
	uint8_t *room;
	size_t n;

	if (c->dead || c->doomed)
		return;
	if (wire_frame_bytes(&frame->base, &n) < 0) {
		log_warning("a frame of kind %d is too large", (int)frame->msg_case);
		conn_doom(c);
		return;
	}
	room = frame_room(c, n);
	if (!room)
		return;
	wire_put_frame(&frame->base, n, room);
	queue_frame(c, n);
}

void conn_send_token(struct conn *c, const struct wire_token *token)
{
	size_t n = wire_token_bytes(token);
	uint8_t *room = c->dead || c->doomed ? NULL : frame_room(c, n);

	if (!room)
		return;
	wire_put_token(token, room);
	queue_frame(c, n);
}

void conn_send_error(struct conn *c, uint64_t id, Dsd__Code code, const char *text,
		     uint32_t retry_after_ms)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Error error = DSD__ERROR__INIT;

	error.code = code;
	error.message = (char *)text;
	error.has_retry_after_ms = retry_after_ms > 0;
	error.retry_after_ms = retry_after_ms;
	frame.id = id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_ERROR;
	frame.error = &error;
	conn_send(c, &frame);
}

void conn_fail(struct conn *c, Dsd__Code code, const char *text)
{
	if (c->closing)
		return;
	c->server->count.protocol_errors++;
	log_info("connection of pid %d, uid %u ends: %s", c->pid, c->uid, text);
	while (c->requests)
		request_cancel(c->requests);
	conn_set_deadline(c, CONN_FRAME_USEC); /* to read the reason */
	c->closing = true;
	conn_send_error(c, 0, code, text, 0);
}

/* ---- input ---- */

static void take_frame(struct conn *c, const uint8_t *data, uint32_t n)
{
	struct wire_arena arena = WIRE_ARENA_NULL;
	char text[WIRE_TEXT_MAX];
	Dsd__ClientFrame *frame;

	if (wire_arena_init(&arena, n) < 0) {
		conn_fail(c, DSD__CODE__CODE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
		return;
	}
	frame = wire_unpack_client(data, n, &arena);
	if (!frame) {
		wire_unpack_text(&arena, n, text);
		conn_fail(c, DSD__CODE__CODE_MALFORMED, text);
	} else if (c->passed >= 0 && !rpc_takes_descriptor(frame)) {
		conn_fail(c, DSD__CODE__CODE_MALFORMED,
			  "a descriptor came with a frame that takes none");
	} else if (wire_check(&frame->base, text) < 0) {
		conn_send_error(c, frame->id, DSD__CODE__CODE_INVALID_ARGUMENT, text, 0);
	} else {
		rpc_dispatch(c, frame);
	}
	wire_arena_done(&arena);
	fd_close(conn_take_passed(c)); /* where nobody took it */
	/* This frame is whole; the time for the next one begins with its first byte. */
	if (c->hello && !c->closing)
		c->deadline_usec = 0;
}

/* A descriptor comes with the last byte of what was received with it, and so belongs to the frame that
 * byte is of: the kernel puts a piece with a descriptor behind earlier ones, and nothing behind it. */
static void adopt_passed(struct conn *c, int *arrived)
{
	if (c->passed < 0)
		c->passed = TAKE_FD(*arrived);
	else if (*arrived >= 0)
		conn_fail(c, DSD__CODE__CODE_MALFORMED,
			  "a second descriptor came with a frame: want one");
}

int conn_take_passed(struct conn *c)
{
	return TAKE_FD(c->passed);
}

/* Takes from @data what the current header or body still lacks; @arrived: came with the last of @data's
 * bytes. Return: bytes taken. */
static size_t take_bytes(struct conn *c, const uint8_t *data, size_t n, int *arrived)
{
	uint32_t want;
	char text[128];
	size_t k;

	if (c->n_header < WIRE_HEADER_BYTES) {
		k = MIN(n, (size_t)(WIRE_HEADER_BYTES - c->n_header));
		memcpy(c->header + c->n_header, data, k);
		c->n_header += (uint32_t)k;
		if (c->n_header < WIRE_HEADER_BYTES)
			return k;
		want = wire_frame_length(c->header);
		if (want == 0 || want > WIRE_FRAME_MAX) {
			snprintf(text, sizeof(text), "a frame of %u bytes: want 1 to %u", want,
				 WIRE_FRAME_MAX);
			conn_fail(c,
				  want ? DSD__CODE__CODE_FRAME_TOO_LARGE
				       : DSD__CODE__CODE_MALFORMED,
				  text);
			return k;
		}
		c->body_bytes = want;
		c->n_body = 0;
		return k;
	}
	if (c->n_body == 0 && n >= c->body_bytes) { /* whole: no copy */
		k = c->body_bytes;
		c->n_header = 0;
		if (k == n)
			adopt_passed(c, arrived);
		if (!c->closing)
			take_frame(c, data, c->body_bytes);
		return k;
	}
	if (!c->body) {
		c->body = io_alloc(c->server->io, c->body_bytes);
		if (!c->body) {
			conn_fail(c, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
				  "the daemon is out of memory");
			return n;
		}
	}
	k = MIN(n, (size_t)(c->body_bytes - c->n_body));
	memcpy(c->body + c->n_body, data, k);
	c->n_body += (uint32_t)k;
	if (c->n_body == c->body_bytes) {
		_cleanup_(freep) uint8_t *body = TAKE_PTR(c->body);

		c->n_header = 0;
		if (k == n)
			adopt_passed(c, arrived);
		if (!c->closing)
			take_frame(c, body, c->body_bytes);
	}
	return k;
}

void conn_on_recv(struct conn *c, const struct io_event *ev)
{
	_cleanup_(fd_closep) int arrived = ev->fd;
	size_t at = 0;

	if (ev->last)
		c->receiving = false;
	if (c->dead) {
		conn_maybe_free(c);
		return;
	}
	if (ev->res <= 0) {
		/* The peer is gone, or will write no more: its streams end either way. */
		conn_kill(c);
		return;
	}
	c->server->count.bytes_in += (uint64_t)ev->res;
	if (ev->truncated && !c->closing)
		conn_fail(c, DSD__CODE__CODE_MALFORMED,
			  "more than one descriptor came at once: want one");
	while (at < (size_t)ev->res && !c->closing && !c->doomed)
		at += take_bytes(c, ev->data + at, (size_t)ev->res - at, &arrived);
	if (!c->closing && !c->doomed && arrived >= 0)
		adopt_passed(c, &arrived);
	if (c->closing)
		return;
	/* A deadline runs from the first byte of a frame, and from accept to Hello. */
	if (c->n_header == 0)
		c->deadline_usec = c->hello ? 0 : c->deadline_usec;
	else if (c->deadline_usec == 0)
		conn_set_deadline(c, CONN_FRAME_USEC);
}

/* A reader that stopped reading: its sequences paused long ago, now they end. */
static uint64_t stall_tick(struct conn *c, uint64_t now)
{
	if (!c->congested)
		return UINT64_MAX;
	if (now < c->stalled_usec + stall_usec(c))
		return c->stalled_usec + stall_usec(c);
	c->congested = false;
	conn_fail(c, DSD__CODE__CODE_CANCELLED,
		  "nothing was read for too long: conn.stall_seconds");
	return c->deadline_usec;
}

uint64_t conn_on_tick(struct conn *c, uint64_t now)
{
	uint64_t next;

	if (c->dead || c->doomed)
		return UINT64_MAX;
	next = c->closing ? UINT64_MAX : stall_tick(c, now);
	if (c->deadline_usec == 0 || c->dead || c->doomed)
		return next;
	if (now < c->deadline_usec)
		return MIN(next, c->deadline_usec);
	if (c->closing) {
		conn_kill(c);
		return UINT64_MAX;
	}
	conn_fail(c, DSD__CODE__CODE_DEADLINE_EXCEEDED,
		  c->hello ? "a frame was begun and not finished within 5 seconds"
			   : "no Hello within 2 seconds");
	return c->dead || c->doomed ? UINT64_MAX : c->deadline_usec;
}
