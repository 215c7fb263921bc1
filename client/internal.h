#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the library's own files share: a connection, its streams, and the queue between them.
 *
 *   dsclient.c  the connection: bytes in, frames to streams, bytes out
 *   request.c   struct dsc_request -> ClientFrame
 *   event.c     ServerFrame -> events in one allocation each
 *   stream.c    the public calls on streams
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

#define DSC_TEXT_MAX   600 /* a sentence: the daemon's 512 bytes and what we put before it */
#define DSC_QUEUE_MAX  (16u << 20) /* bytes of events nobody has taken yet */
#define DSC_UNSENT_MAX (8u << 20)  /* bytes the daemon has not taken yet */
#define DSC_HELLO_ID   1

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
	STREAM_DRAIN
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

struct dsc_stream {
	struct dsc *c;
	struct dsc_stream *next; /* of the connection's streams */
	uint64_t id;
	enum stream_kind kind;
	bool ended; /* its last event is in the queue or was taken */
	struct event_node *first, **last;
	struct event_node *taken; /* what the caller looks at */
};

struct buffer {
	uint8_t *data;
	size_t start, end, size; /* bytes: content is [start, end) */
};

struct dsc {
	int fd;     /* negative once the connection has ended */
	int failed; /* negative errno: why it has */
	enum dsc_code failed_code;
	uint64_t next_id;
	struct dsc_stream *streams;
	size_t queued; /* bytes of all streams' events that were not taken */
	struct buffer in, out;
	bool hello; /* answered */
	enum dsc_state state;
	char version[65];
	enum dsc_code code; /* of the last failure */
	char text[DSC_TEXT_MAX];
};

/** dsc_fail() - note a sentence and give back r, so that failing reads as one step. */
int dsc_fail(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/** dsc_end() - the connection is of no more use: close it, end every open stream with this error. */
int dsc_end(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/** dsc_send() - buffer a frame and send what the socket takes. */
int dsc_send(struct dsc *c, const Dsd__ClientFrame *frame);
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
