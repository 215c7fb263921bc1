#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient against a daemon that each test plays itself, on the other end of a socketpair. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dsclient.h"
#include "wire.h"

struct peer {
	struct dsc *c;
	int fd;
	struct wire_arena arena; /* of the last frame received */
};

/** peer_new() - connected; the client's Hello has come. peer_hello() answers it. */
struct peer peer_new(void);
void peer_done(struct peer *p);
void peer_send_bytes(struct peer *p, const void *data, size_t n);
void peer_send(struct peer *p, const Dsd__ServerFrame *frame);
/** peer_receive() - the client's next frame, which passes the range check; good until the one after it. */
Dsd__ClientFrame *peer_receive(struct peer *p);
bool peer_has_more(struct peer *p);

/* What a daemon says of request @id. */
void peer_hello(struct peer *p);
void peer_started(struct peer *p, uint64_t id, uint64_t seed);
/* Two ids, 40 + @choice and 41, with @text; @text NULL: none. @finish 0: it goes on. */
void peer_delta(struct peer *p, uint64_t id, uint32_t choice, const char *text, int finish);
void peer_finished(struct peer *p, uint64_t id);
void peer_error(struct peer *p, uint64_t id, int code, const char *message);

/** generate() - start a Generate, and take it off the wire. */
struct dsc_stream *generate(struct peer *p, uint64_t *ret_id);
/** next() - the next event, which is a @want. */
const struct dsc_event *next(struct dsc_stream *s, enum dsc_event_type want);
/** ended() - no event is left. */
void ended(struct dsc_stream *s);
