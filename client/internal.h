#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the library's own files share: a connection, its streams, and the queue between them.
 *
 *   dsclient.c  the connection: bytes in, frames to streams, bytes out
 *   request.c   struct dsc_request -> ClientFrame
 *   event.c     ServerFrame -> events in one allocation each
 *   stream.c    the public calls on streams
 *   resume.c    what streams need to go on after the connection was lost
 *   collect.c   events -> a whole answer
 *
 * A frame is unpacked when it arrives and turned into events that own their memory, so nothing of
 * protobuf-c outlives dsc_process(). A stream knows its connection and the connection its streams; the
 * daemon's frames find a stream by id, and ids are never used twice on a connection. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dsclient.h"
#include "wire.h"

#define DSC_TEXT_MAX    600 /* a sentence: the daemon's 512 bytes and what we put before it */
#define DSC_QUEUE_MAX   (16u << 20) /* bytes of events nobody has taken yet */
#define DSC_UNSENT_MAX  (8u << 20)  /* bytes the daemon has not taken yet */
#define DSC_KEPT_MAX    (64u << 20) /* bytes of requests kept to be sent again */
#define DSC_HELLO_ID    1
#define DSC_PATIENCE_MS 30000

/* One event, everything it points at behind it in the same allocation. */
struct event_node {
	struct event_node *next;
	size_t bytes; /* of the allocation */
	struct dsc_event event;
};

enum stream_kind {
	STREAM_GENERATE,
	STREAM_SCORE,
	STREAM_TOKENIZE,
	STREAM_DETOKENIZE,
	STREAM_MODELS,
	STREAM_STATS,
	STREAM_LIST,
	STREAM_CANCEL_REQUEST,
	STREAM_PUBLISH,
	STREAM_UNPUBLISH,
	STREAM_EVICT,
	STREAM_LOAD,
	STREAM_UNLOAD,
	STREAM_RELOAD,
	STREAM_DRAIN,
	STREAM_SESSION_OPEN,
	STREAM_SESSION_FORK,
	STREAM_SESSION_CLOSE
};

/* What a call asks for; what its kind does not read is 0. */
struct ask {
	enum stream_kind kind;
	const struct dsc_request *request;
	const char *name;  /* publish, unpublish, load */
	const char *model; /* unpublish, evict, unload, reload, drain */
	const char *path;  /* load */
	unsigned flags;    /* reload, drain */
	uint64_t number;   /* cancel_request */
};

struct resume;

struct dsc_stream {
	struct dsc *c;
	struct dsc_stream *next; /* of the connection's streams */
	uint64_t id;             /* of the first of its requests on the wire */
	struct resume *resume;   /* NULL: it ends with its connection */
	enum stream_kind kind;
	bool ended; /* its last event is in the queue or was taken */
	struct event_node *first, **last;
	struct event_node *taken; /* what the caller looks at */
};

struct buffer {
	uint8_t *data;
	size_t start, end, size; /* bytes: content is [start, end) */
};

/* A descriptor that goes out with the first byte of its frame, in a call that sends bytes of no other. */
struct passed {
	struct passed *next;
	uint64_t start, end; /* of the frame, in bytes ever put into dsc.out */
	int fd;
};

/* Without a descriptor a connection has ended (failed says why), or is being made again. */
struct dsc {
	int fd;
	int failed; /* negative errno: why it has ended */
	enum dsc_code failed_code;
	uint64_t next_id;
	struct dsc_stream *streams;
	size_t queued; /* bytes of all streams' events that were not taken */
	struct buffer in, out;
	uint64_t sent;         /* bytes ever taken out of `out` */
	struct passed *passed; /* that were not sent yet, in order */
	bool hello;            /* answered, by this daemon or one before it */
	bool greeted;          /* by the one that the descriptor leads to */
	enum dsc_state state;
	char version[65];
	enum dsc_code code; /* of the last failure */
	char text[DSC_TEXT_MAX];

	char *path;  /* to connect to again; NULL: the connection is not made again */
	size_t kept; /* bytes of requests in streams' resume */
	int patience_ms;
	bool wanted;        /* dsc_ping() waits for a connection */
	int64_t outage_ms;  /* when we began to connect again; -1: we do not */
	int64_t attempt_ms; /* when to try next */
	int backoff_ms;
};

/** dsc_fail() - note a sentence and give back r, so that failing reads as one step. */
int dsc_fail(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/** dsc_end() - the connection is of no more use: close it, end every open stream with this error. */
int dsc_end(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/** dsc_lost() - the same where the daemon only went away: streams that can go on wait for another connection.
 * Return: 0: it is made again. */
int dsc_lost(struct dsc *c, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/** dsc_send() - buffer a frame and send what the socket takes. The request of a stream is kept as well. */
int dsc_send(struct dsc *c, const Dsd__ClientFrame *frame);
/** dsc_put() - buffer a frame, and a copy of the descriptor that goes with it (negative: none); -errno. */
int dsc_put(struct dsc *c, const void *bytes, size_t n, int fd);
/** dsc_find() - the stream that a request of this id is of, NULL: none; *ret_part: which of its requests. */
struct dsc_stream *dsc_find(const struct dsc *c, uint64_t id, uint32_t *ret_part);
/** dsc_connect_path() - a new connected socket or negative errno; @flags of socket(2). */
int dsc_connect_path(const char *path, int flags);
int dsc_send_hello(struct dsc *c);
/** dsc_send_fd() - the same with a descriptor, of which the connection makes its own copy. */
int dsc_send_fd(struct dsc *c, const Dsd__ClientFrame *frame, int fd);
/** dsc_sleep() - poll the connection once; 0 something happened, -ETIMEDOUT, -EINTR. */
int dsc_sleep(struct dsc *c, int timeout_ms);
int64_t dsc_now_ms(void);
/** dsc_left_ms() - what is left of a timeout, for poll(2); -1 stays -1. */
int dsc_left_ms(int64_t deadline_ms, int timeout_ms);

/** event_from_frame() - append the events a frame means for this stream; -EPROTO: it means nothing here. */
int event_from_frame(struct dsc_stream *s, const Dsd__ServerFrame *frame);
/** event_error() - append the last event of a stream that failed; out of memory leaves it without. */
int event_error(struct dsc_stream *s, int error, enum dsc_code code, uint32_t retry_after_ms,
		const char *message);
/** event_errno() - the errno that stands for a code of the daemon. */
int event_errno(enum dsc_code code);

/** request_send() - check, pack and send a request under that id. */
int request_send(struct dsc *c, uint64_t id, const struct ask *ask);

/* resume.c. A stream's `resume` may be NULL in all of these. */

/**
 * resume_keep() - keep a stream's request
 * @bytes: as packed; taken where 1 is returned
 * @fd:    that goes with it, of which a copy is kept; negative: none
 * @sent:  it is on its way; false: it goes out once there is a connection
 *
 * Return: 1. 0: it is not one that is kept. -EAGAIN, with a sentence: too much is kept. -ENOMEM.
 */
int resume_keep(struct dsc_stream *s, const Dsd__ClientFrame *frame, uint8_t *bytes, size_t n,
		int fd, bool sent);
void resume_free(struct dsc_stream *s);
/** resume_n_parts() - requests on the wire that the stream has: its ids are s->id and the next so many. */
uint32_t resume_n_parts(const struct dsc_stream *s);
/**
 * resume_filter() - note what a frame says, and make it what the caller shall see
 * Return: 1: events are to be made of it, 0: nothing is. -ENOMEM.
 */
int resume_filter(struct dsc_stream *s, uint32_t part, Dsd__ServerFrame *frame);
/** resume_lost() - the connection is gone; the stream waits, or ends with this. */
void resume_lost(struct dsc_stream *s, int error, const char *text);
/** resume_cancel() - the caller wants no more of it; false: the stream has ended by that. */
bool resume_cancel(struct dsc_stream *s);
/** resume_tick() - deadlines, and another connection when it is time. Return: 0, or why there is none. */
int resume_tick(struct dsc *c);
/** resume_send() - put the requests that wait behind what is to be sent. */
void resume_send(struct dsc *c);
/** resume_greeted() - the daemon has answered Hello. */
void resume_greeted(struct dsc *c);
/** resume_timeout() - milliseconds until resume_tick() or resume_send() have something to do; -1: never. */
int resume_timeout(const struct dsc *c);
