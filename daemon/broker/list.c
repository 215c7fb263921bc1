/* SPDX-License-Identifier: Apache-2.0 */
/* Who runs what: a user sees and ends its own requests, the administrative socket everybody's. */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"

#define LIST_PART 512u /* requests of one ListReply */

static bool may_see(const struct conn *c, const struct request *r)
{
	return r && r->conn && (c->admin || r->conn->uid == c->uid);
}

static Dsd__Activity activity_of(const struct request *r)
{
	Dsd__Activity best =
		r->is_admin ? DSD__ACTIVITY__ACTIVITY_MODEL : DSD__ACTIVITY__ACTIVITY_ENCODING;

	for (uint32_t i = 0; i < r->n_choices; i++) {
		const struct seq *q = r->choices[i].seq;
		Dsd__Activity a = DSD__ACTIVITY__ACTIVITY_WAITING;

		if (!q)
			continue;
		if (seq_is_paused(q))
			a = DSD__ACTIVITY__ACTIVITY_PAUSED;
		else if (seq_state(q) == SEQ_PREFILL)
			a = DSD__ACTIVITY__ACTIVITY_PREFILL;
		else if (seq_state(q) == SEQ_DECODE)
			a = DSD__ACTIVITY__ACTIVITY_DECODE;
		best = MAX(best, a);
	}
	return best;
}

static void describe(Dsd__Request *out, const struct request *r, uint64_t now)
{
	*out = (Dsd__Request)DSD__REQUEST__INIT;
	out->request = r->number;
	out->uid = r->conn->uid;
	out->pid = (uint32_t)r->conn->pid;
	out->model = (char *)model_name(r->model);
	out->activity = activity_of(r);
	out->prompt_tokens = r->n_prompt;
	out->cached_tokens = r->n_cached;
	for (uint32_t i = 0; i < r->n_choices; i++) {
		out->completion_tokens += r->choices[i].n_tokens;
		out->pages += r->choices[i].seq ? seq_n_pages(r->choices[i].seq) : 0;
	}
	out->age_usec = now - r->arrived_usec;
	out->has_priority = 1;
	out->priority = (Dsd__Priority)(DSD__PRIORITY__PRIORITY_INTERACTIVE + r->priority);
}

static void send_part(struct conn *c, uint64_t id, Dsd__Request **list, size_t n, bool last)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__ListReply reply = DSD__LIST_REPLY__INIT;

	reply.n_requests = n;
	reply.requests = list;
	reply.last = last;
	frame.id = id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_LIST;
	frame.list = &reply;
	conn_send(c, &frame);
}

void rpc_list(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct server *s = c->server;
	Dsd__Request part[LIST_PART], *list[LIST_PART];
	uint64_t now = io_now_usec(s->io);
	size_t n = 0;

	for (uint32_t i = 0; i < s->requests.n_alloc; i++) {
		const struct request *r = s->requests.items[i];

		if (!may_see(c, r))
			continue;
		if (n == LIST_PART) {
			send_part(c, frame->id, list, n, false);
			n = 0;
		}
		describe(&part[n], r, now);
		list[n] = &part[n];
		n++;
	}
	send_part(c, frame->id, list, n, true);
}

void rpc_cancel_request(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct server *s = c->server;
	Dsd__ServerFrame out = DSD__SERVER_FRAME__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;
	char text[96];

	for (uint32_t i = 0; i < s->requests.n_alloc; i++) {
		struct request *r = s->requests.items[i];
		struct model *m;

		/* What a user may not see is not there. */
		if (!may_see(c, r) || r->number != frame->cancel_request->request)
			continue;
		m = r->model;
		if (c->admin)
			log_event(EVENT_ADMINISTERED,
				  &(struct log_fields){.model = model_name(m),
						       .uid = &c->uid,
						       .request = r->number},
				  "request %llu of uid %u: cancelled by uid %u",
				  (unsigned long long)r->number, r->conn->uid, c->uid);
		request_fail(r, DSD__CODE__CODE_CANCELLED,
			     c->admin ? "cancelled by an administrator" : "cancelled by its user",
			     0);
		model_kick(m);
		out.id = frame->id;
		out.msg_case = DSD__SERVER_FRAME__MSG_ACK;
		out.ack = &ack;
		conn_send(c, &out);
		return;
	}
	snprintf(text, sizeof(text), "no request %llu: dsctl ps lists them",
		 (unsigned long long)frame->cancel_request->request);
	conn_send_error(c, frame->id, DSD__CODE__CODE_NOT_FOUND, text, 0);
}
