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

#define SESSION_SLACK                                                                              \
	(5 * SIM_SECOND) /* what a client knows of a session's last use is so old at most */
#define NAMES       3u   /* of published prefixes */
#define NO_NUMBER   (UINT64_C(1) << 40) /* no request has it */
#define ABSENT_ENDS (10 * SIM_SECOND)   /* after a load what was said before it has come */

/* A beginning of the document that all users have. */
static void think_prefix(struct sim *s, struct call *c)
{
	size_t n = 64 * (size_t)sim_between(s, 1, 16) - 2 + sim_below(s, 4);

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

/* Somebody comes who needs what is about to be published away. */
static void call_for_huge(struct sim *s)
{
	struct call *huge = malloc(sizeof(*huge));

	assert(huge);
	call_init(s, huge, (uint32_t)sim_below(s, SIM_USERS), CALL_HUGE);
	sim_push(s, sim_below(s, SIM_SECOND / 4),
		 (struct entry){.kind = ENTRY_CONNECT, .arg = huge});
}

/* Somebody's request: mostly one that may be ended, at times another user's, or none. */
static void think_target(struct sim *s, struct call *c)
{
	struct call *target = clients_any_call(s);

	c->target = target ? target->number : NO_NUMBER + sim_below(s, 1000000);
	c->forbidden = target && !c->admin && target->user != c->user;
	if (target && !c->forbidden)
		target->cancelling = true;
}

/* ---- sessions ---- */

struct user_session *session_pick(struct sim *s, uint32_t user)
{
	struct user_session *x = &s->users[user].sessions[sim_below(s, SESSIONS)];

	return x->id ? x : NULL;
}

/* It cannot be there once its lease has ended with nobody in it; it must be there until then, but that a
 * model that is loaded anew has none. */
void session_look(struct sim *s, struct call *c, const struct user_session *x)
{
	uint32_t others = x->running - (c->session == x && c->kind == CALL_GENERATE);

	c->over = others == 0 && s->now > x->touched + x->lease_usec + SESSION_SLACK;
	c->sure = s->now + SESSION_SLACK < x->used + x->lease_usec &&
		  s->renewed_until < x->opened && s->now >= s->absent_until;
}

static void think_session(struct sim *s, struct call *c)
{
	struct user_session *x = session_pick(s, c->user);
	uint32_t other = (uint32_t)sim_below(s, SIM_USERS);

	c->lease_usec = sim_one_in(s, 2) ? sim_between(s, 1, 900) * SIM_SECOND
					 : sim_between(s, 1000, 60000) * 1000;
	c->kind = CALL_SESSION_OPEN;
	if (sim_one_in(s, 8) && other != c->user) {
		/* Another user's is none. */
		x = session_pick(s, other);
		c->forbidden = x != NULL;
	}
	if (!x || (!c->forbidden && (x->running || sim_one_in(s, 3))))
		return;
	c->kind = sim_one_in(s, 2) ? CALL_SESSION_FORK : CALL_SESSION_CLOSE;
	c->target = x->id;
	c->session = x;
	session_look(s, c, x);
	if (c->forbidden)
		return;
	if (c->kind == CALL_SESSION_CLOSE)
		x->id = 0;
	else
		x->touched = s->now;
}

/* What a session verb sends, at once after it was thought of. */
static bool fill_session_verb(const struct call *c, Dsd__ClientFrame *frame, Dsd__SessionOpen *open,
			      Dsd__SessionFork *fork, Dsd__SessionClose *close)
{
	switch (c->kind) {
	case CALL_SESSION_OPEN:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_OPEN;
		frame->session_open = open;
		open->has_lease_ms = 1;
		open->lease_ms = (uint32_t)(c->lease_usec / 1000);
		return true;
	case CALL_SESSION_FORK:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_FORK;
		frame->session_fork = fork;
		fork->session = c->target;
		return true;
	case CALL_SESSION_CLOSE:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_CLOSE;
		frame->session_close = close;
		close->session = c->target;
		return true;
	default:
		return false;
	}
}

static bool on_session(struct sim *s, struct call *c, const Dsd__SessionReply *r)
{
	struct user_session *x = &s->users[c->user].sessions[sim_below(s, SESSIONS)];

	if (c->kind == CALL_SESSION_OPEN && r->lease_ms != c->lease_usec / 1000)
		return false;
	if (c->kind != CALL_SESSION_OPEN &&
	    (c->kind != CALL_SESSION_FORK || c->forbidden || c->over || r->session == c->target))
		return false;
	s->count.acts[c->kind == CALL_SESSION_OPEN ? ACT_SESSION_OPEN : ACT_SESSION_FORK]++;
	/* One that is forgotten ends with its lease. */
	if (x->running == 0)
		*x = (struct user_session){.id = r->session,
					   .lease_usec = r->lease_ms * UINT64_C(1000),
					   .opened = s->now,
					   .used = c->since,
					   .touched = s->now};
	return r->session != 0;
}

void verb_init(struct sim *s, struct call *c)
{
	static const enum call_kind users[] = {
		CALL_LIST,          CALL_STATS,        CALL_MODELS,       CALL_CANCEL_NUMBER,
		CALL_CANCEL_NUMBER, CALL_SESSION_OPEN, CALL_SESSION_OPEN, CALL_SESSION_OPEN};
	static const enum call_kind admins[] = {
		CALL_LIST,    CALL_STATS, CALL_MODELS,    CALL_PUBLISH,       CALL_PUBLISH,
		CALL_PUBLISH, CALL_EVICT, CALL_UNPUBLISH, CALL_CANCEL_NUMBER, CALL_RELOAD};

	c->kind = c->admin ? admins[sim_below(s, N_ELEMENTS(admins))]
			   : users[sim_below(s, N_ELEMENTS(users))];
	if (c->admin && sim_one_in(s, 30))
		c->kind = sim_one_in(s, 2)   ? CALL_RELOAD
			  : sim_one_in(s, 2) ? CALL_DRAIN
					     : CALL_UNLOAD;
	if (c->admin && (s->drained || s->unloaded))
		c->kind = s->unloaded ? CALL_LOAD : CALL_UNDRAIN;
	c->drain = sim_one_in(s, 4);
	/* The tables of the two sockets are two: not even root publishes on the users' one. */
	if (sim_one_in(s, 20) && !s->drained && !s->unloaded) {
		c->forbidden = true;
		c->kind = c->admin ? CALL_OTHERS
				   : (enum call_kind)sim_between(s, CALL_PUBLISH, CALL_LOAD);
	}
	if (c->kind == CALL_PUBLISH)
		think_prefix(s, c);
	if (c->kind == CALL_SESSION_OPEN)
		think_session(s, c);
	s->count.requests++;
}

/* Somebody must end what this one begins, should it go meanwhile. */
static void call_for_another(struct sim *s)
{
	if (s->admin_called)
		return;
	s->admin_called = true;
	sim_push(s, sim_between(s, SIM_SECOND, 10 * SIM_SECOND),
		 (struct entry){.kind = ENTRY_ADMIN, .index = 1});
}

static void fill_model_verb(struct sim *s, struct call *c, Dsd__ClientFrame *frame,
			    Dsd__Reload *reload, Dsd__Drain *drain, Dsd__Unload *unload,
			    Dsd__Load *load)
{
	switch (c->kind) {
	case CALL_RELOAD:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_RELOAD;
		frame->reload = reload;
		reload->has_drain = reload->drain = c->drain;
		break;
	case CALL_DRAIN:
	case CALL_UNDRAIN:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_DRAIN;
		frame->drain = drain;
		drain->has_undo = drain->undo = c->kind == CALL_UNDRAIN;
		if (!c->forbidden)
			s->drained = c->kind == CALL_DRAIN;
		break;
	case CALL_UNLOAD:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_UNLOAD;
		frame->unload = unload;
		unload->model = (char *)"fake";
		if (!c->forbidden) {
			s->unloaded = true;
			s->drained = false;
			s->absent_until = UINT64_MAX;
		}
		break;
	default:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_LOAD;
		frame->load = load;
		load->path = (char *)"fake";
	}
	if (!c->forbidden && c->kind != CALL_DRAIN && c->kind != CALL_UNDRAIN)
		s->renewed_until = s->now + 3 * SIM_MINUTE;
	if (!c->forbidden && (s->drained || s->unloaded))
		call_for_another(s);
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
	Dsd__Reload reload = DSD__RELOAD__INIT;
	Dsd__Drain drain = DSD__DRAIN__INIT;
	Dsd__Unload unload = DSD__UNLOAD__INIT;
	Dsd__Load load = DSD__LOAD__INIT;
	Dsd__SessionOpen open = DSD__SESSION_OPEN__INIT;
	Dsd__SessionFork fork = DSD__SESSION_FORK__INIT;
	Dsd__SessionClose close = DSD__SESSION_CLOSE__INIT;
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
		if (!c->forbidden && sim_one_in(s, 3))
			call_for_huge(s);
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
	case CALL_EVICT:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_EVICT;
		frame.evict = &evict;
		break;
	default:
		if (fill_session_verb(c, &frame, &open, &fork, &close))
			break;
		fill_model_verb(s, c, &frame, &reload, &drain, &unload, &load);
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
	if (st->connections > s->server.cfg.conn_max || st->n_models > 1)
		return false;
	if (st->n_models == 0)
		return s->now < s->absent_until;
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
	case CALL_SESSION_CLOSE:
		s->count.acts[ACT_SESSION_CLOSE]++;
		return !c->over && !c->forbidden;
	case CALL_RELOAD:
		s->count.acts[ACT_RELOAD]++;
		return true;
	case CALL_DRAIN:
		s->count.acts[ACT_DRAIN]++;
		return true;
	case CALL_UNDRAIN:
		return true;
	case CALL_UNLOAD:
		s->count.acts[ACT_UNLOAD]++;
		return true;
	case CALL_LOAD:
		s->count.acts[ACT_LOAD]++;
		s->unloaded = false;
		s->absent_until = s->now + ABSENT_ENDS;
		return true;
	default:
		return false;
	}
}

/* A model that was coming did not come: a worker died, refused a step or had no numbers. */
static bool may_fail(const struct sim *s, const struct call *c)
{
	return c->kind >= CALL_RELOAD && c->kind <= CALL_LOAD &&
	       (s->n_deaths > c->deaths || s->now < s->absent_until ||
		s->count.faults[FAULT_STEP_REFUSED] || s->count.faults[FAULT_NO_NUMBERS]);
}

static bool on_refusal(struct sim *s, const struct call *c, const Dsd__Error *e)
{
	/* It is still not there, or not the same any more. */
	if (!c->forbidden && c->kind == CALL_LOAD)
		call_for_another(s);
	switch (e->code) {
	case DSD__CODE__CODE_UNIMPLEMENTED:
		s->count.acts[ACT_FORBIDDEN] += c->forbidden;
		return c->forbidden;
	case DSD__CODE__CODE_NOT_FOUND:
		if (c->kind == CALL_SESSION_FORK || c->kind == CALL_SESSION_CLOSE) {
			s->count.acts[ACT_SESSION_OVER] += c->over || c->forbidden;
			return !c->sure || c->forbidden || s->now < s->absent_until;
		}
		return c->kind == CALL_CANCEL_NUMBER || c->kind == CALL_UNPUBLISH ||
		       s->now < s->absent_until;
	case DSD__CODE__CODE_INVALID_ARGUMENT:
		if (c->kind != CALL_LOAD)
			return c->kind == CALL_PUBLISH && c->doomed_input;
		/* Another administrator was faster, or is about to be. */
		if (server_find_model(&s->server, "fake")) {
			s->unloaded = false;
			s->absent_until = s->now + ABSENT_ENDS;
		}
		return true;
	case DSD__CODE__CODE_RESOURCE_EXHAUSTED:
		return c->kind == CALL_PUBLISH || c->kind == CALL_SESSION_OPEN ||
		       c->kind == CALL_SESSION_FORK || c->kind >= CALL_RELOAD;
	case DSD__CODE__CODE_RETRYABLE:
		return c->kind == CALL_PUBLISH || may_fail(s, c);
	case DSD__CODE__CODE_MODEL_INVALID:
		return s->now < s->absent_until || may_fail(s, c);
	case DSD__CODE__CODE_MODEL_FAULT:
		return (c->kind == CALL_PUBLISH && s->n_deaths >= c->deaths + 2) || may_fail(s, c);
	case DSD__CODE__CODE_FAILED_PRECONDITION: /* its first worker is not there yet */
		return (c->kind == CALL_UNPUBLISH || c->kind == CALL_EVICT ||
			c->kind == CALL_SESSION_OPEN) &&
		       (s->count.steps == 0 || s->now < s->absent_until ||
			s->now < s->renewed_until);
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
		right = c->kind == CALL_MODELS &&
			(frame->models->n_models == 1 ||
			 (frame->models->n_models == 0 && s->now < s->absent_until));
		s->count.acts[ACT_MODELS]++;
		break;
	case DSD__SERVER_FRAME__MSG_SESSION:
		right = on_session(s, c, frame->session);
		break;
	case DSD__SERVER_FRAME__MSG_PROGRESS:
		right = c->kind >= CALL_RELOAD && c->kind <= CALL_LOAD && !c->forbidden;
		over = false;
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
