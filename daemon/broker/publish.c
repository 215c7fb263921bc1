/* SPDX-License-Identifier: Apache-2.0 */
/* Administrative verbs on what is cached: publish, unpublish, evict. Every one is logged. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "layout/page.h"

static void send_ack(struct conn *c, uint64_t id, uint64_t count)
{
	rpc_send_ack(c, id, &count);
}

static void on_end(void *ctx, enum seq_end why)
{
	struct choice *choice = ctx;
	struct request *r = choice->request;

	choice->seq = NULL;
	if (why == SEQ_END_SCORED) {
		log_event(EVENT_ADMINISTERED,
			  &(struct log_fields){.model = model_name(r->model), .uid = &r->conn->uid},
			  "published \"%s\" in model %s: %u tokens, by uid %u", r->publish,
			  model_name(r->model), r->n_prompt, r->conn->uid);
		send_ack(r->conn, r->id, r->n_prompt);
		request_end(r);
	} else {
		request_fail_seq(r, why);
	}
}

static const struct seq_ops publish_ops = {.end = on_end};

static void publish_ready(struct request *r)
{
	uint32_t room = model_room(r->model);
	struct error err = {};
	struct seq_config cfg = {
		.ops = &publish_ops,
		.ctx = &r->choices[0],
		.uid = r->conn->uid,
		.ids = r->input.ids.id,
		.n_ids = (uint32_t)MIN(r->input.ids.n, (size_t)UINT32_MAX),
		.params = r->params,
		.priority = SEQ_NORMAL,
		.publish = r->publish,
	};
	int s = 0;

	r->n_prompt = cfg.params.n_prompt = cfg.n_ids;
	r->n_choices = 1;
	r->choices[0].request = r;
	if (cfg.n_ids < PAGE_TOKENS)
		s = error_set(&err, -EINVAL,
			      "the prefix has %u token%s: want at least a page of %u", cfg.n_ids,
			      cfg.n_ids == 1 ? "" : "s", PAGE_TOKENS);
	else if (cfg.n_ids > room)
		s = error_set(&err, -EINVAL, "the prefix has %u tokens: want at most %u", cfg.n_ids,
			      room);
	if (s == 0)
		s = sched_submit(model_sched(r->model), &cfg, &r->choices[0].seq, &err);
	if (s < 0)
		request_fail(r, request_code(s), error_text(&err, s), 0);
	else
		model_kick(r->model);
}

void rpc_publish(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Publish *p = frame->publish;
	struct request *r = request_new(c, frame->id, p->model, publish_ready);
	const char *why = "";
	int s = 0;

	if (!r)
		return;
	r->params = (struct channel_params){.top_p = 1, .repetition_penalty = 1};
	strcpy(r->publish, p->name); /* its range was checked */
	if (p->name[0] == 0) {
		s = -EINVAL;
		why = "publish.name: got nothing, want a name";
	}
	if (s == 0)
		switch (p->prompt_case) {
		case DSD__PUBLISH__PROMPT_TEXT:
			s = request_set_text(r, &p->text, false);
			r->input.encode_flags |= ENCODE_BOS;
			break;
		case DSD__PUBLISH__PROMPT_CHAT:
			s = request_set_chat(r, p->chat);
			r->input.is_open = true;
			break;
		case DSD__PUBLISH__PROMPT_IDS:
			s = request_set_ids(r, p->ids);
			break;
		default:
			s = -EINVAL;
			why = "publish.prompt: got nothing, want text, chat or ids";
		}
	if (s < 0)
		request_fail_input(r, s, why);
	else
		request_start(r);
}

/* The model of a verb that needs one that has run; tells the client where there is none. */
static struct sched *find_sched(struct conn *c, uint64_t id, const char *name)
{
	struct model *m = server_find_model(c->server, name);

	if (m && model_sched(m))
		return model_sched(m);
	conn_send_error(c, id, m ? DSD__CODE__CODE_FAILED_PRECONDITION : DSD__CODE__CODE_NOT_FOUND,
			m ? "the model is not loaded"
			  : "no model of that name: dsctl models lists them",
			0);
	return NULL;
}

void rpc_unpublish(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct sched *s = find_sched(c, frame->id, frame->unpublish->model);

	if (!s)
		return;
	if (sched_unpublish(s, frame->unpublish->name) < 0) {
		conn_send_error(c, frame->id, DSD__CODE__CODE_NOT_FOUND,
				"nothing is published under that name", 0);
		return;
	}
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.uid = &c->uid},
		  "unpublished \"%s\", by uid %u", frame->unpublish->name, c->uid);
	send_ack(c, frame->id, 1);
}

void rpc_evict(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct sched *s = find_sched(c, frame->id, frame->evict->model);
	uint32_t n;

	if (!s)
		return;
	n = sched_evict(s);
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.uid = &c->uid},
		  "evicted %u cached pages, by uid %u", n, c->uid);
	send_ack(c, frame->id, n);
}
