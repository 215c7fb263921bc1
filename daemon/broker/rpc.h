#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* From a checked frame to its handler: one table, preconditions as columns. Thread: broker. */
#include <stdbool.h>

#include "broker/proto.h"

struct conn;

void rpc_dispatch(struct conn *c, const Dsd__ClientFrame *frame);
/** rpc_takes_descriptor() - the frame names a descriptor that comes with it. */
bool rpc_takes_descriptor(const Dsd__ClientFrame *frame);

/* Handlers; each answers or starts a request that will. The frame dies when they return. */
typedef void (*rpc_handler)(struct conn *c, const Dsd__ClientFrame *frame);
void rpc_hello(struct conn *c, const Dsd__ClientFrame *frame);          /* info.c */
void rpc_models(struct conn *c, const Dsd__ClientFrame *frame);         /* info.c */
void rpc_stats(struct conn *c, const Dsd__ClientFrame *frame);          /* info.c */
void rpc_generate(struct conn *c, const Dsd__ClientFrame *frame);       /* generate.c */
void rpc_score(struct conn *c, const Dsd__ClientFrame *frame);          /* score.c */
void rpc_tokenize(struct conn *c, const Dsd__ClientFrame *frame);       /* tokenize.c */
void rpc_detokenize(struct conn *c, const Dsd__ClientFrame *frame);     /* tokenize.c */
void rpc_cancel(struct conn *c, const Dsd__ClientFrame *frame);         /* request.c */
void rpc_list(struct conn *c, const Dsd__ClientFrame *frame);           /* list.c */
void rpc_cancel_request(struct conn *c, const Dsd__ClientFrame *frame); /* list.c */
void rpc_session_open(struct conn *c, const Dsd__ClientFrame *frame);   /* session.c */
void rpc_session_fork(struct conn *c, const Dsd__ClientFrame *frame);   /* session.c */
void rpc_session_close(struct conn *c, const Dsd__ClientFrame *frame);  /* session.c */
void rpc_publish(struct conn *c, const Dsd__ClientFrame *frame);        /* publish.c */
void rpc_unpublish(struct conn *c, const Dsd__ClientFrame *frame);      /* publish.c */
void rpc_evict(struct conn *c, const Dsd__ClientFrame *frame);          /* publish.c */
void rpc_load(struct conn *c, const Dsd__ClientFrame *frame);           /* admin.c */
void rpc_unload(struct conn *c, const Dsd__ClientFrame *frame);         /* admin.c */
void rpc_reload(struct conn *c, const Dsd__ClientFrame *frame);         /* admin.c */
void rpc_drain(struct conn *c, const Dsd__ClientFrame *frame);          /* admin.c */

/** rpc_send_ack() - the answer of a verb that did what was asked; @count: NULL for none. */
void rpc_send_ack(struct conn *c, uint64_t id, const uint64_t *count);
