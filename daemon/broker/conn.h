#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One client connection: bytes to frames, frames out. The peer's uid is the kernel's word, taken once
 * at accept; nothing a message says can change it. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "broker/proto.h"

struct io_event;
struct request;
struct server;

#define CONN_QUEUE_SOFT  (256u << 10) /* above it the connection's sequences pause */
#define CONN_QUEUE_HARD  (16u << 20)  /* above it the connection ends: replies nobody reads */
#define CONN_BUFFER_KEPT 4096u        /* a larger one is freed when it is empty */
#define CONN_REQUESTS    1024u        /* in flight on one connection */
#define CONN_HELLO_USEC  2000000u     /* from accept to Hello */
#define CONN_FRAME_USEC  5000000u     /* from a frame's first byte to its last */

struct conn {
	struct server *server;
	uint32_t index, generation;
	int fd;
	uid_t uid;
	pid_t pid;
	bool admin;   /* came through the administrative socket */
	bool hello;   /* was said */
	bool closing; /* no more input; what is queued is still sent */
	bool doomed;  /* conn_kill() is due when the handlers have returned */
	bool dead;    /* the descriptor is shut down; freed when no operation is left */
	bool receiving, send_busy;
	bool congested;         /* above CONN_QUEUE_SOFT */
	uint64_t stalled_usec;  /* congested: when the peer last read */
	uint64_t deadline_usec; /* of what is half done; 0: nothing is */

	/* Input: a header, then a body whose length was checked before it was allocated. */
	uint8_t header[WIRE_HEADER_BYTES];
	uint32_t n_header;
	uint8_t *body;
	uint32_t body_bytes, n_body;
	int passed; /* descriptor that came with the frame that is half here or being handled */

	/* Output: one buffer is with the kernel, the other fills; then they change places. */
	struct conn_buffer {
		uint8_t *data;
		size_t n, n_alloc;
	} sending, queued;
	size_t sending_at;
	bool dirty; /* conn_flush() is due when the events at hand are dealt with */

	struct conn *next_dirty, *next_doomed;
	struct request *requests; /* list */
	uint32_t n_requests;
};

/** conn_accept() - a new connection on @fd, which is ours from now on; refusals are told and closed. */
void conn_accept(struct server *s, int fd, bool admin);
void conn_on_recv(struct conn *c, const struct io_event *ev);
void conn_on_send(struct conn *c, const struct io_event *ev);
/** conn_on_tick() - deadlines of half-done things. Return: the next one, UINT64_MAX for none. */
uint64_t conn_on_tick(struct conn *c, uint64_t now);
/** conn_has_output() - something waits until the peer reads. */
bool conn_has_output(const struct conn *c);
/** conn_take_passed() - the descriptor that came with the frame being handled; -EBADF: none did. */
int conn_take_passed(struct conn *c);
/** conn_send() - queue a frame. A frame that does not fit ends the connection. */
void conn_send(struct conn *c, const Dsd__ServerFrame *frame);
/** conn_send_token() - queue the frame of a token. */
void conn_send_token(struct conn *c, const struct wire_token *token);
/** conn_send_error() - an Error frame for request @id; 0: for the connection. */
void conn_send_error(struct conn *c, uint64_t id, Dsd__Code code, const char *text,
		     uint32_t retry_after_ms);
/** conn_fail() - tell the peer why and end the connection once that is sent. */
void conn_fail(struct conn *c, Dsd__Code code, const char *text);
/** conn_flush_all() - hand to the kernel what was queued; the loop calls it before it waits, so that what
 * one step says to a connection goes out as one piece. */
void conn_flush_all(struct server *s);
/** conn_reap() - end the connections that handlers gave up; the loop calls it between events. */
void conn_reap(struct server *s);
/** conn_kill() - end the connection now; its requests are cancelled. May free @c: use it no more. */
void conn_kill(struct conn *c);
