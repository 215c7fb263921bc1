/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions over the wire; sched/session.h says what they are. */
#include <errno.h>

#include "base/error.h"
#include "base/io.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"

#define LEASE_DEFAULT_MS 300000u

static const char no_session[] =
	"no session of that id: its lease has ended, or its model was unloaded meanwhile";

static void send_session(struct conn *c, uint64_t id, uint64_t session, uint64_t lease_usec)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__SessionReply reply = DSD__SESSION_REPLY__INIT;

	/* Each use puts the end off; who looks too early looks again. */
	server_wake_at(c->server, io_now_usec(c->server->io) + lease_usec);
	reply.session = session;
	reply.lease_ms = (uint32_t)(lease_usec / 1000);
	frame.id = id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_SESSION;
	frame.session = &reply;
	conn_send(c, &frame);
}

static void refuse(struct conn *c, uint64_t id, int r, const struct error *err)
{
	conn_send_error(c, id, r == -EDQUOT ? DSD__CODE__CODE_RESOURCE_EXHAUSTED : request_code(r),
			error_text(err, r), 1000);
}

void rpc_session_open(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__SessionOpen *o = frame->session_open;
	struct model *m = server_find_model(c->server, o->model);
	uint64_t lease = (o->has_lease_ms ? o->lease_ms : LEASE_DEFAULT_MS) * UINT64_C(1000);
	struct error err = {};
	uint64_t session;
	int r;

	if (!m || !model_sched(m)) {
		conn_send_error(c, frame->id,
				m ? DSD__CODE__CODE_FAILED_PRECONDITION : DSD__CODE__CODE_NOT_FOUND,
				m ? "the model is not loaded"
				  : "no model of that name: dsctl models lists them",
				m ? 1000 : 0);
		return;
	}
	r = sched_open_session(model_sched(m), c->uid, lease, &session, &err);
	if (r < 0)
		refuse(c, frame->id, r, &err);
	else
		send_session(c, frame->id, session, lease);
}

void rpc_session_fork(struct conn *c, const Dsd__ClientFrame *frame)
{
	uint64_t from = frame->session_fork->session, session, lease;
	struct model *m = server_find_session(c->server, c->uid, from);
	struct error err = {};
	int r;

	if (!m) {
		conn_send_error(c, frame->id, DSD__CODE__CODE_NOT_FOUND, no_session, 0);
		return;
	}
	r = sched_fork_session(model_sched(m), c->uid, from, &session, &lease, &err);
	if (r < 0)
		refuse(c, frame->id, r, &err);
	else
		send_session(c, frame->id, session, lease);
}

void rpc_session_close(struct conn *c, const Dsd__ClientFrame *frame)
{
	uint64_t session = frame->session_close->session;
	struct model *m = server_find_session(c->server, c->uid, session);
	Dsd__ServerFrame reply = DSD__SERVER_FRAME__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;

	if (!m || sched_close_session(model_sched(m), c->uid, session) < 0) {
		conn_send_error(c, frame->id, DSD__CODE__CODE_NOT_FOUND, no_session, 0);
		return;
	}
	reply.id = frame->id;
	reply.msg_case = DSD__SERVER_FRAME__MSG_ACK;
	reply.ack = &ack;
	conn_send(c, &reply);
}

bool request_set_session(struct request *r, uint64_t session, bool must)
{
	if (server_find_session(r->server, r->conn->uid, session) != r->model) {
		if (!must)
			return true;
		request_fail(r, DSD__CODE__CODE_NOT_FOUND, no_session, 0);
		return false;
	}
	r->session = session;
	return true;
}
