/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/rpc.h"

#include <stdio.h>

#include "base/cleanup.h"
#include "broker/conn.h"
#include "broker/request.h"
#include "broker/server.h"

enum when { BEFORE_HELLO, AFTER_HELLO };

struct rpc_method {
	rpc_handler handle;
	enum when when;
	bool is_request; /* takes an id until it ends */
};

static const struct rpc_method user_methods[] = {
	[DSD__CLIENT_FRAME__MSG_HELLO] = {rpc_hello, BEFORE_HELLO},
	[DSD__CLIENT_FRAME__MSG_GENERATE] = {rpc_generate, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_SCORE] = {rpc_score, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_TOKENIZE] = {rpc_tokenize, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_DETOKENIZE] = {rpc_detokenize, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_CANCEL] = {rpc_cancel, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_MODELS] = {rpc_models, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_STATS] = {rpc_stats, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_LIST] = {rpc_list, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST] = {rpc_cancel_request, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_SESSION_OPEN] = {rpc_session_open, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_SESSION_FORK] = {rpc_session_fork, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_SESSION_CLOSE] = {rpc_session_close, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_DRAIN] = {},
};

static const struct rpc_method admin_methods[] = {
	[DSD__CLIENT_FRAME__MSG_HELLO] = {rpc_hello, BEFORE_HELLO},
	[DSD__CLIENT_FRAME__MSG_CANCEL] = {rpc_cancel, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_MODELS] = {rpc_models, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_STATS] = {rpc_stats, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_LIST] = {rpc_list, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST] = {rpc_cancel_request, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_PUBLISH] = {rpc_publish, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_UNPUBLISH] = {rpc_unpublish, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_EVICT] = {rpc_evict, AFTER_HELLO},
	[DSD__CLIENT_FRAME__MSG_LOAD] = {rpc_load, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_UNLOAD] = {rpc_unload, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_RELOAD] = {rpc_reload, AFTER_HELLO, true},
	[DSD__CLIENT_FRAME__MSG_DRAIN] = {rpc_drain, AFTER_HELLO, true},
};
_Static_assert(N_ELEMENTS(user_methods) == N_ELEMENTS(admin_methods), "one length for both");

bool rpc_takes_descriptor(const Dsd__ClientFrame *frame)
{
	switch (frame->msg_case) {
	case DSD__CLIENT_FRAME__MSG_GENERATE:
		return frame->generate->prompt_case == DSD__GENERATE__PROMPT_PROMPT_FD;
	case DSD__CLIENT_FRAME__MSG_SCORE:
		return frame->score->prompt_case == DSD__SCORE__PROMPT_PROMPT_FD;
	case DSD__CLIENT_FRAME__MSG_TOKENIZE:
		return frame->tokenize->input_case == DSD__TOKENIZE__INPUT_PROMPT_FD;
	default:
		return false;
	}
}

void rpc_dispatch(struct conn *c, const Dsd__ClientFrame *frame)
{
	const struct rpc_method *m = NULL;
	char text[96];

	if ((size_t)frame->msg_case < N_ELEMENTS(user_methods))
		m = &(c->admin ? admin_methods : user_methods)[frame->msg_case];
	if (!m || !m->handle) {
		conn_send_error(c, frame->id, DSD__CODE__CODE_UNIMPLEMENTED,
				"the frame holds no message that this daemon knows on this socket",
				0);
		return;
	}
	if (m->when == BEFORE_HELLO && c->hello) {
		conn_fail(c, DSD__CODE__CODE_FAILED_PRECONDITION, "Hello was said already");
		return;
	}
	if (m->when == AFTER_HELLO && !c->hello) {
		conn_fail(c, DSD__CODE__CODE_FAILED_PRECONDITION, "the first frame must be Hello");
		return;
	}
	if (m->is_request) {
		c->server->count.requests++;
		if (frame->id == 0) {
			conn_fail(c, DSD__CODE__CODE_INVALID_ARGUMENT,
				  "a request with id 0: want another, 0 speaks of the connection");
			return;
		}
		if (request_find(c, frame->id)) {
			snprintf(text, sizeof(text),
				 "request %llu is still running: want another id",
				 (unsigned long long)frame->id);
			conn_fail(c, DSD__CODE__CODE_INVALID_ARGUMENT, text);
			return;
		}
		if (c->n_requests >= CONN_REQUESTS) {
			snprintf(text, sizeof(text),
				 "%u requests run on this connection: want fewer", c->n_requests);
			conn_send_error(c, frame->id, DSD__CODE__CODE_RESOURCE_EXHAUSTED, text,
					1000);
			return;
		}
	}
	m->handle(c, frame);
}

void rpc_send_ack(struct conn *c, uint64_t id, const uint64_t *count)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;

	ack.has_count = count != NULL;
	ack.count = count ? *count : 0;
	frame.id = id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_ACK;
	frame.ack = &ack;
	conn_send(c, &frame);
}
