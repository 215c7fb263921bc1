/* SPDX-License-Identifier: Apache-2.0 */
/* Short questions: who runs what, how the daemon does, ending a request by its number; and what only an
 * administrator may do: publish, unpublish, evict. Each gets one answer; a verb of the other socket is
 * refused, and what a user may not see is not there. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "call.h"
#include "layout/page.h"
#include "worker/fake.h"

#define NAMES 3u /* of published prefixes */

/* A beginning of the document that all users have. */
static void think_prefix(struct sim *s, struct call *c)
{
	size_t n = 64 * (size_t)sim_between(s, 1, 12) - 2 + sim_below(s, 4);

	c->form = sim_one_in(s, 2) ? FORM_IDS : FORM_TEXT;
	c->text = malloc(n);
	assert(c->text);
	memcpy(c->text, s->users[0].documents[0], n);
	c->n_text = n;
	if (c->form == FORM_TEXT)
		ids_push(&c->ids, FAKE_BOS);
	for (size_t i = 0; i < n; i++)
		ids_push(&c->ids, c->text[i]);
	c->doomed_input = c->ids.n < PAGE_TOKENS;
}

/* Somebody's request: mostly one that may be ended, at times another user's, or none. */
static void think_target(struct sim *s, struct call *c)
{
	struct call *target = clients_any_call(s);

	c->target = target ? target->number : 1 + sim_below(s, 1000000);
	c->forbidden = target && !c->admin && target->user != c->user;
	if (target && !c->forbidden)
		target->cancelling = true;
}

void verb_init(struct sim *s, struct call *c)
{
	static const enum call_kind users[] = {CALL_LIST, CALL_STATS, CALL_MODELS,
					       CALL_CANCEL_NUMBER, CALL_CANCEL_NUMBER};
	static const enum call_kind admins[] = {CALL_LIST,    CALL_STATS,     CALL_MODELS,
						CALL_PUBLISH, CALL_PUBLISH,   CALL_PUBLISH,
						CALL_EVICT,   CALL_UNPUBLISH, CALL_CANCEL_NUMBER};

	c->kind = c->admin ? admins[sim_below(s, N_ELEMENTS(admins))]
			   : users[sim_below(s, N_ELEMENTS(users))];
	/* The tables of the two sockets are two: not even root publishes on the users' one. */
	if (sim_one_in(s, 20)) {
		c->forbidden = true;
		c->kind = c->admin ? CALL_OTHERS
				   : (enum call_kind)sim_between(s, CALL_PUBLISH, CALL_EVICT);
	}
	if (c->kind == CALL_PUBLISH)
		think_prefix(s, c);
	s->count.requests++;
}

void verb_send(struct sim *s, struct call *c, struct link *l)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__ListRequest list = DSD__LIST_REQUEST__INIT;
	Dsd__StatsRequest stats = DSD__STATS_REQUEST__INIT;
	Dsd__ModelsRequest models = DSD__MODELS_REQUEST__INIT;
	Dsd__CancelRequest cancel = DSD__CANCEL_REQUEST__INIT;
	Dsd__Publish publish = DSD__PUBLISH__INIT;
	Dsd__Unpublish unpublish = DSD__UNPUBLISH__INIT;
	Dsd__Evict evict = DSD__EVICT__INIT;
	Dsd__Detokenize detokenize = DSD__DETOKENIZE__INIT;
	Dsd__Ids ids = DSD__IDS__INIT;
	char name[16];

	snprintf(name, sizeof(name), "prefix %u", (unsigned)sim_below(s, NAMES));
	switch (c->kind) {
	case CALL_LIST:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_LIST;
		frame.list = &list;
		break;
	case CALL_STATS:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_STATS;
		frame.stats = &stats;
		break;
	case CALL_MODELS:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_MODELS;
		frame.models = &models;
		break;
	case CALL_CANCEL_NUMBER:
		think_target(s, c);
		cancel.request = c->target;
		frame.msg_case = DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST;
		frame.cancel_request = &cancel;
		break;
	case CALL_PUBLISH:
		publish.name = name;
		ids.n_ids = c->ids.n;
		ids.ids = c->ids.id;
		publish.prompt_case =
			c->form == FORM_IDS ? DSD__PUBLISH__PROMPT_IDS : DSD__PUBLISH__PROMPT_TEXT;
		if (c->form == FORM_IDS)
			publish.ids = &ids;
		else
			publish.text = (ProtobufCBinaryData){c->n_text, c->text};
		frame.msg_case = DSD__CLIENT_FRAME__MSG_PUBLISH;
		frame.publish = &publish;
		break;
	case CALL_OTHERS:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_DETOKENIZE;
		frame.detokenize = &detokenize;
		break;
	case CALL_UNPUBLISH:
		unpublish.name = name;
		frame.msg_case = DSD__CLIENT_FRAME__MSG_UNPUBLISH;
		frame.unpublish = &unpublish;
		break;
	default:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_EVICT;
		frame.evict = &evict;
	}
	call_send_frame(s, l, c->id, &frame);
}

static bool is_right_list(const struct call *c, const Dsd__ListReply *list)
{
	for (size_t i = 0; i < list->n_requests; i++)
		if (!c->admin && list->requests[i]->uid != SIM_UID + c->user)
			return false;
	return true;
}

static bool is_right_stats(struct sim *s, const Dsd__StatsReply *st)
{
	bool right = st->n_models == 1 && st->connections <= s->server.cfg.conn_max;

	if (!right)
		return false;
	return st->models[0]->pages_used <= st->models[0]->pages_total &&
	       st->models[0]->running <= s->server.cfg.sched_slots &&
	       st->models[0]->waiting <= s->server.cfg.sched_queue + s->server.cfg.sched_slots;
}

static bool on_ack(struct sim *s, struct call *c, const Dsd__Ack *ack)
{
	struct call *target;

	switch (c->kind) {
	case CALL_CANCEL_NUMBER:
		s->count.acts[ACT_CANCEL_NUMBER]++;
		target = clients_find_call(s, c->target);
		if (target)
			target->cancelled = true;
		return !c->forbidden;
	case CALL_PUBLISH:
		s->count.acts[ACT_PUBLISH]++;
		return !c->doomed_input && ack->count == c->ids.n;
	case CALL_UNPUBLISH:
		s->count.acts[ACT_UNPUBLISH]++;
		return true;
	case CALL_EVICT:
		s->count.acts[ACT_EVICT]++;
		return true;
	default:
		return false;
	}
}

static bool on_refusal(struct sim *s, const struct call *c, const Dsd__Error *e)
{
	switch (e->code) {
	case DSD__CODE__CODE_UNIMPLEMENTED:
		s->count.acts[ACT_FORBIDDEN] += c->forbidden;
		return c->forbidden;
	case DSD__CODE__CODE_NOT_FOUND:
		return c->kind == CALL_CANCEL_NUMBER || c->kind == CALL_UNPUBLISH;
	case DSD__CODE__CODE_INVALID_ARGUMENT:
		return c->kind == CALL_PUBLISH && c->doomed_input;
	case DSD__CODE__CODE_RESOURCE_EXHAUSTED:
	case DSD__CODE__CODE_RETRYABLE:
		return c->kind == CALL_PUBLISH;
	case DSD__CODE__CODE_MODEL_FAULT:
		return c->kind == CALL_PUBLISH && s->n_deaths >= c->deaths + 2;
	case DSD__CODE__CODE_FAILED_PRECONDITION: /* before the first worker is there */
		return (c->kind == CALL_UNPUBLISH || c->kind == CALL_EVICT) && s->count.steps == 0;
	default:
		return false;
	}
}

bool verb_on_frame(struct sim *s, struct call *c, const Dsd__ServerFrame *frame)
{
	bool right = false, over = true;

	switch (frame->msg_case) {
	case DSD__SERVER_FRAME__MSG_LIST:
		right = c->kind == CALL_LIST && is_right_list(c, frame->list);
		over = frame->list->last;
		s->count.acts[ACT_LIST] += over;
		break;
	case DSD__SERVER_FRAME__MSG_STATS:
		right = c->kind == CALL_STATS && is_right_stats(s, frame->stats);
		s->count.acts[ACT_STATS]++;
		break;
	case DSD__SERVER_FRAME__MSG_MODELS:
		right = c->kind == CALL_MODELS && frame->models->n_models == 1;
		s->count.acts[ACT_MODELS]++;
		break;
	case DSD__SERVER_FRAME__MSG_ACK:
		right = on_ack(s, c, frame->ack) &&
			(!c->forbidden || c->kind == CALL_CANCEL_NUMBER);
		break;
	case DSD__SERVER_FRAME__MSG_ERROR:
		right = on_refusal(s, c, frame->error);
		break;
	default:
		break;
	}
	if (!right)
		sim_broken(s, "verb %d%s: a frame of kind %d%s%s", (int)c->kind,
			   c->forbidden ? ", which is not for this socket" : "",
			   (int)frame->msg_case,
			   frame->msg_case == DSD__SERVER_FRAME__MSG_ERROR ? ": " : "",
			   frame->msg_case == DSD__SERVER_FRAME__MSG_ERROR ? frame->error->message
									   : "");
	return over;
}
