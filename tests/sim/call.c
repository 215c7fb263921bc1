/* SPDX-License-Identifier: Apache-2.0 */
#include "call.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "layout/page.h"
#include "worker/fake.h"

#define ATTEMPTS_MAX 100u
#define CANCEL_ENDS  (2 * SIM_SECOND) /* what was said before has come by then */

/* ---- sending ---- */

static void begin_choice(struct sim *s, struct call *c, struct call_choice *ch)
{
	oracle_init(&ch->at, s->domains[c->user]);
	ch->echo_at = ch->at;
	for (size_t i = 0; i < c->ids.n; i++)
		oracle_push(&ch->at, c->ids.id[i]);
}

/* Whether the answer goes on where it was: one choice, and something of it came. */
static bool resumes(const struct call *c)
{
	return c->begun && c->n == 1 && c->choices[0].n_tokens > 0;
}

static void fill_sampling(struct call *c, Dsd__Sampling *m, ProtobufCBinaryData stop[CALL_STOPS],
			  bool resume)
{
	const struct channel_params *p = &c->params;

	m->has_max_tokens = 1;
	m->max_tokens = c->max_tokens;
	m->has_min_tokens = p->min_tokens > 0;
	m->min_tokens = p->min_tokens;
	m->has_temperature = 1;
	m->temperature = p->temperature;
	m->has_seed = c->seeded && !resume;
	m->seed = p->seed;
	m->has_ignore_eos = p->ignore_eos > 0;
	m->ignore_eos = 1;
	m->has_n = c->n > 1;
	m->n = c->n;
	m->has_logprobs = c->logprobs >= 0;
	m->logprobs = (uint32_t)MAX(c->logprobs, 0);
	m->has_top_k = p->top_k > 0;
	m->top_k = p->top_k;
	m->has_echo = m->echo = c->echo && !resume;
	for (uint32_t i = 0; i < c->n_stops; i++)
		stop[i] = (ProtobufCBinaryData){c->stop_bytes[i], c->stop[i]};
	m->n_stop = c->n_stops;
	m->stop = stop;
}

void call_send_frame(struct sim *s, struct link *l, uint64_t id, Dsd__ClientFrame *frame)
{
	_cleanup_(freep) uint8_t *data = NULL;
	size_t n;
	int r;

	frame->id = id;
	r = wire_pack_frame(&frame->base, &data, &n);
	assert(r == 0);
	link_write(s, l, data, n);
}

/* A memfd with every seal, of the prompt's ids or of its text. */
static int prompt_memfd(const struct call *c, Dsd__PromptFd *ret)
{
	bool ids = c->form == FORM_IDS;
	const void *data = ids ? (const void *)c->ids.id : c->text;
	size_t n = ids ? c->ids.n * sizeof(*c->ids.id) : c->n_text;
	int fd = memfd_create("prompt", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || write(fd, data, n) != (ssize_t)n ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		abort();
	ret->kind = ids ? DSD__PROMPT_KIND__PROMPT_KIND_IDS : DSD__PROMPT_KIND__PROMPT_KIND_TEXT;
	ret->bytes = (uint32_t)n;
	return fd;
}

/* The prompt beside the frame. */
static void send_passed(struct sim *s, struct call *c, struct link *l, Dsd__ClientFrame *frame)
{
	Dsd__PromptFd p = DSD__PROMPT_FD__INIT;
	_cleanup_(freep) uint8_t *data = NULL;
	int fd = prompt_memfd(c, &p);
	size_t n;

	frame->generate->prompt_case = DSD__GENERATE__PROMPT_PROMPT_FD;
	frame->generate->prompt_fd = &p;
	frame->id = c->id;
	if (wire_pack_frame(&frame->base, &data, &n) < 0)
		abort();
	link_write_with(s, l, data, n, fd);
	s->count.acts[ACT_DESCRIPTOR]++;
}

static void send_generate(struct sim *s, struct call *c, struct link *l)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Sampling sampling = DSD__SAMPLING__INIT;
	Dsd__Resume resume = DSD__RESUME__INIT;
	Dsd__Chat chat = DSD__CHAT__INIT;
	Dsd__Ids ids = DSD__IDS__INIT;
	Dsd__Message message[CALL_MESSAGES], *messages[CALL_MESSAGES];
	_cleanup_(freep) uint32_t *came = NULL;
	ProtobufCBinaryData stop[CALL_STOPS];
	uint8_t *at = c->text;
	bool again = c->again = resumes(c);

	assert(again || c->first_choice == 0);
	frame.msg_case = DSD__CLIENT_FRAME__MSG_GENERATE;
	frame.generate = &g;
	g.sampling = &sampling;
	fill_sampling(c, &sampling, stop, again);
	g.has_priority = c->priority > 0;
	g.priority = (Dsd__Priority)c->priority;
	g.has_reuse_generated = g.reuse_generated = c->reuse;
	g.has_deadline_ms = c->deadline_ms > 0;
	g.deadline_ms = c->deadline_ms;
	c->over = c->sure = false;
	if (c->session && c->session->id) {
		session_look(s, c, c->session);
		g.has_session = 1;
		g.session = c->session->id;
		c->session->touched = s->now;
	}
	switch (c->form) {
	case FORM_TEXT:
		g.prompt_case = DSD__GENERATE__PROMPT_TEXT;
		g.text = (ProtobufCBinaryData){c->n_text, c->text};
		break;
	case FORM_CHAT:
		g.prompt_case = DSD__GENERATE__PROMPT_CHAT;
		g.chat = &chat;
		chat.n_messages = c->n_messages;
		chat.messages = messages;
		for (uint32_t i = 0; i < c->n_messages; i++) {
			message[i] = (Dsd__Message)DSD__MESSAGE__INIT;
			message[i].role = i % 2 ? DSD__ROLE__ROLE_ASSISTANT : DSD__ROLE__ROLE_USER;
			message[i].text = (ProtobufCBinaryData){c->message_bytes[i], at};
			at += c->message_bytes[i];
			messages[i] = &message[i];
		}
		break;
	case FORM_IDS:
		g.prompt_case = DSD__GENERATE__PROMPT_IDS;
		g.ids = &ids;
		ids.n_ids = c->ids.n;
		ids.ids = c->ids.id;
	}
	if (again) {
		struct call_choice *ch = &c->choices[0];

		came = calloc(ch->n_tokens, sizeof(*came));
		assert(came);
		for (uint32_t i = 0; i < ch->n_tokens; i++)
			came[i] = ch->text[i];
		resume.n_generated_ids = ch->n_tokens;
		resume.generated_ids = came;
		resume.seed = c->params.seed;
		resume.has_choice = c->first_choice > 0;
		resume.choice = c->first_choice;
		resume.model_digest = (ProtobufCBinaryData){sizeof(c->digest), c->digest};
		g.resume = &resume;
		s->count.resumed++;
	}
	for (uint32_t i = 0; i < c->n && !again; i++) {
		struct call_choice *ch = &c->choices[i];

		*ch = (struct call_choice){.text = ch->text};
		begin_choice(s, c, ch);
	}
	if (c->passed && l->passed < 0)
		send_passed(s, c, l, &frame);
	else
		call_send_frame(s, l, c->id, &frame);
}

static void send_others(struct sim *s, struct call *c, struct link *l)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Score score = DSD__SCORE__INIT;
	Dsd__Tokenize tokenize = DSD__TOKENIZE__INIT;
	Dsd__Detokenize detokenize = DSD__DETOKENIZE__INIT;
	Dsd__Ids ids = DSD__IDS__INIT;
	ProtobufCBinaryData text = {c->n_text, c->text};

	ids.n_ids = c->ids.n;
	ids.ids = c->ids.id;
	c->n_came = 0;
	switch (c->kind) {
	case CALL_SCORE:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_SCORE;
		frame.score = &score;
		score.prompt_case =
			c->form == FORM_TEXT ? DSD__SCORE__PROMPT_TEXT : DSD__SCORE__PROMPT_IDS;
		if (c->form == FORM_TEXT)
			score.text = text;
		else
			score.ids = &ids;
		score.has_logprobs = c->logprobs >= 0;
		score.logprobs = (uint32_t)MAX(c->logprobs, 0);
		oracle_init(&c->choices[0].at, s->domains[c->user]);
		break;
	case CALL_TOKENIZE:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_TOKENIZE;
		frame.tokenize = &tokenize;
		tokenize.input_case = DSD__TOKENIZE__INPUT_TEXT;
		tokenize.text = text;
		tokenize.has_add_bos = tokenize.add_bos = c->add_bos;
		break;
	default:
		frame.msg_case = DSD__CLIENT_FRAME__MSG_DETOKENIZE;
		frame.detokenize = &detokenize;
		detokenize.ids = &ids;
	}
	call_send_frame(s, l, c->id, &frame);
}

void call_send(struct sim *s, struct call *c, struct link *l, uint64_t id)
{
	c->id = id;
	c->since = s->now;
	c->due = 0;
	c->waiting = c->cancelling = c->cancelled = c->no_numbers = false;
	c->number = c->cancel_at = 0;
	c->deaths = s->n_deaths;
	c->attempts++;
	if (c->kind >= CALL_LIST) {
		verb_send(s, c, l);
		return;
	}
	if (c->kind == CALL_GENERATE)
		send_generate(s, c, l);
	else
		send_others(s, c, l);
	c->started = false;
	/* Some change their mind, at any moment. */
	if (sim_one_in(s, 25))
		c->due = s->now + sim_below(s, sim_one_in(s, 2) ? 100000 : 3 * SIM_SECOND);
}

/* ---- what comes ---- */

/* Bytes of the longest stop string that the text ends with; 0: of none. */
static uint32_t holds_stop(const struct call *c, const struct call_choice *ch)
{
	uint32_t most = 0;

	for (uint32_t i = 0; i < c->n_stops; i++) {
		uint32_t n = c->stop_bytes[i];

		if (n > most && ch->n_tokens >= n &&
		    memcmp(ch->text + ch->n_tokens - n, c->stop[i], n) == 0)
			most = n;
	}
	return most;
}

static bool is_right_logprob(const struct call *c, const struct oracle *o, uint32_t id,
			     const Dsd__TokenLogprob *lp)
{
	return lp->id == id && lp->has_logprob && lp->logprob == oracle_logprob(o, id) &&
	       lp->n_top == (size_t)c->logprobs;
}

static void take_echo(struct sim *s, struct call *c, struct call_choice *ch, uint32_t id,
		      const Dsd__TokenLogprob *lp)
{
	bool first = ch->n_echoed == 0;

	if (id != c->ids.id[ch->n_echoed] || ch->n_tokens ||
	    (lp && (first ? lp->id != id || lp->has_logprob
			  : !is_right_logprob(c, &ch->echo_at, id, lp))))
		sim_broken(s, "request %llu: echo of token %u", (unsigned long long)c->id,
			   ch->n_echoed);
	oracle_push(&ch->echo_at, id);
	ch->n_echoed++;
}

/* The prompt's own bytes; control tokens show nothing. */
static void take_echo_text(struct sim *s, struct call *c, struct call_choice *ch,
			   const ProtobufCBinaryData *text)
{
	size_t at = 0;
	uint32_t i = ch->n_echo_text;

	for (; i < ch->n_echoed; i++) {
		if (c->ids.id[i] >= FAKE_BOS)
			continue;
		if (at == text->len || text->data[at] != c->ids.id[i])
			break;
		at++;
	}
	if (i < ch->n_echoed || at < text->len)
		sim_broken(s, "request %llu: echo says another text", (unsigned long long)c->id);
	ch->n_echo_text = ch->n_echoed;
}

static void take_token(struct sim *s, struct call *c, struct call_choice *ch, uint32_t choice,
		       uint32_t id, const Dsd__TokenLogprob *lp)
{
	struct channel_params p = c->params;
	uint32_t want;

	p.choice = c->first_choice + choice;
	want = oracle_next(&ch->at, &p);
	if (id != want || ch->n_tokens == c->max_tokens || ch->over || holds_stop(c, ch)) {
		sim_broken(s, "request %llu, choice %u, token %u of %u%s: got %u, want %u",
			   (unsigned long long)c->id, choice, ch->n_tokens, c->max_tokens,
			   ch->over ? ", after its end" : "", id, want);
		ch->over = true;
		return;
	}
	if (lp && !is_right_logprob(c, &ch->at, id, lp))
		sim_broken(s, "request %llu, token %u: log-probability of %u",
			   (unsigned long long)c->id, ch->n_tokens, lp->id);
	ch->text[ch->n_tokens++] = (uint8_t)id;
	oracle_push(&ch->at, id);
	s->count.tokens++;
}

static void take_finish(struct sim *s, struct call *c, struct call_choice *ch, uint32_t choice,
			Dsd__Finish finish)
{
	struct channel_params p = c->params;
	uint32_t want_text = ch->n_tokens;
	bool right = false;

	p.choice = c->first_choice + choice;
	switch (finish) {
	case DSD__FINISH__FINISH_EOS:
		ch->ended_by_token = true;
		right = oracle_next(&ch->at, &p) == FAKE_EOS && !holds_stop(c, ch);
		break;
	case DSD__FINISH__FINISH_LENGTH:
		/* Or at the end of what the pool holds or the context takes, both whole pages. */
		right = (ch->n_tokens == c->max_tokens ||
			 (c->huge && (c->ids.n + ch->n_tokens) % PAGE_TOKENS == 0)) &&
			!holds_stop(c, ch);
		break;
	case DSD__FINISH__FINISH_STOP:
		right = holds_stop(c, ch);
		want_text -= holds_stop(c, ch);
		s->count.acts[ACT_STOP]++;
		break;
	default:
		break;
	}
	if (!right || ch->over || ch->n_text != want_text)
		sim_broken(
			s, "request %llu, choice %u: finish %d after %u tokens, %u bytes of text",
			(unsigned long long)c->id, choice, (int)finish, ch->n_tokens, ch->n_text);
	ch->over = true;
}

static void on_delta(struct sim *s, struct call *c, const Dsd__Delta *d)
{
	uint32_t choice = d->has_choice ? d->choice : 0;
	struct call_choice *ch = &c->choices[choice % CALL_CHOICES];

	/* It has run: what was only begun may have been refused, and leaves its session as it was. */
	if (c->session && d->n_ids)
		c->session->used = MAX(c->session->used, c->since);
	if (choice >= c->n || !c->started || c->kind != CALL_GENERATE ||
	    (c->logprobs >= 0 && d->n_logprobs != d->n_ids)) {
		sim_broken(s, "request %llu: a piece of choice %u out of turn",
			   (unsigned long long)c->id, choice);
		return;
	}
	if (c->echo && !c->again && ch->n_echoed < c->ids.n) {
		for (size_t i = 0; i < d->n_ids && ch->n_echoed < c->ids.n; i++)
			take_echo(s, c, ch, d->ids[i], c->logprobs >= 0 ? d->logprobs[i] : NULL);
		take_echo_text(s, c, ch, &d->text);
		if (d->has_finish)
			sim_broken(s, "request %llu: ends in its echo", (unsigned long long)c->id);
		return;
	}
	for (size_t i = 0; i < d->n_ids; i++)
		take_token(s, c, ch, choice, d->ids[i], c->logprobs >= 0 ? d->logprobs[i] : NULL);
	if (d->has_text) {
		if (ch->n_text + d->text.len > ch->n_tokens ||
		    memcmp(ch->text + ch->n_text, d->text.data, d->text.len) != 0)
			sim_broken(s, "request %llu, choice %u: text that its tokens do not say",
				   (unsigned long long)c->id, choice);
		else
			ch->n_text += (uint32_t)d->text.len;
	}
	if (d->has_finish)
		take_finish(s, c, ch, choice, d->finish);
	else if (holds_stop(c, ch))
		sim_broken(s, "request %llu: went on after its stop string",
			   (unsigned long long)c->id);
}

static void on_done(struct sim *s, struct call *c, const Dsd__Usage *u)
{
	struct user *user = &s->users[c->user];
	uint32_t n = 0;
	size_t k;

	for (uint32_t i = 0; i < c->n; i++) {
		n += c->choices[i].n_tokens + c->choices[i].ended_by_token;
		if (!c->choices[i].over)
			sim_broken(s, "request %llu: choice %u has no end",
				   (unsigned long long)c->id, i);
	}
	if (u->prompt_tokens != c->ids.n || u->completion_tokens != n ||
	    (u->cached_tokens % 64 && !c->again) || u->cached_tokens + !c->again > u->prompt_tokens)
		sim_broken(s,
			   "request %llu: %u prompt tokens of %zu, %u cached, %u generated of %u",
			   (unsigned long long)c->id, u->prompt_tokens, c->ids.n, u->cached_tokens,
			   u->completion_tokens, n);
	if (c->cancelled || c->no_numbers || c->params.top_k == SIM_KILLER)
		sim_broken(s, "request %llu: ended well, which cannot be",
			   (unsigned long long)c->id);
	s->count.prompt += u->prompt_tokens;
	s->count.cached += u->cached_tokens;
	s->count.acts[ACT_GENERATE]++;
	s->count.acts[ACT_CHAT] += c->form == FORM_CHAT;
	s->count.acts[ACT_CHOICES] += c->n > 1;
	s->count.acts[ACT_LOGPROBS] += c->logprobs >= 0;
	s->count.acts[c->logprobs >= 0 ? ACT_ECHO_LOGPROBS : ACT_ECHO] += c->echo && !c->again;
	s->count.acts[ACT_RESUME] += c->again;
	s->count.acts[ACT_RESUME_CHOICE] += c->first_choice > 0;
	s->count.acts[ACT_SESSION_USE] += c->session != NULL;
	s->count.acts[ACT_REUSE] += c->reuse && u->cached_tokens > 0;
	/* The next turn of this conversation, which goes on for a while before another one begins. */
	if (!c->goes_on && user->n_last && user->n_last < DOCUMENT_BYTES * 3 / 4 &&
	    !sim_one_in(s, 6))
		return;
	k = MIN(c->n_text, (size_t)DOCUMENT_BYTES - c->choices[0].n_tokens);
	memcpy(user->last, c->text, k);
	memcpy(user->last + k, c->choices[0].text, c->choices[0].n_tokens);
	user->n_last = k + c->choices[0].n_tokens;
}

static void on_started(struct sim *s, struct call *c, const Dsd__Started *st)
{
	if (c->started || c->kind != CALL_GENERATE || st->prompt_tokens != c->ids.n ||
	    st->model_digest.len != sizeof(c->digest) || c->doomed_input ||
	    ((c->seeded || c->again) && st->seed != c->params.seed))
		sim_broken(s, "request %llu: started as another one", (unsigned long long)c->id);
	c->started = c->begun = true;
	if (c->session && c->over)
		sim_broken(s, "request %llu: runs in a session whose lease has ended",
			   (unsigned long long)c->id);
	c->params.seed = st->seed;
	c->number = st->request;
	memcpy(c->digest, st->model_digest.data, MIN(st->model_digest.len, sizeof(c->digest)));
}

static void on_score(struct sim *s, struct call *c, const Dsd__ScoreReply *r)
{
	struct oracle *o = &c->choices[0].at;

	for (size_t i = 0; i < r->n_tokens && c->n_came < c->ids.n; i++, c->n_came++) {
		const Dsd__TokenLogprob *t = r->tokens[i];

		if (t->id != c->ids.id[c->n_came] || (bool)t->has_logprob != (c->n_came > 0) ||
		    (t->has_logprob && t->logprob != oracle_logprob(o, t->id)))
			sim_broken(s, "request %llu: score of token %u", (unsigned long long)c->id,
				   c->n_came);
		oracle_push(o, t->id);
		s->count.scored++;
	}
	if (r->last && c->n_came != c->ids.n)
		sim_broken(s, "request %llu: %u of %zu tokens scored", (unsigned long long)c->id,
			   c->n_came, c->ids.n);
	s->count.acts[ACT_SCORE] += r->last;
}

static void on_tokenized(struct sim *s, struct call *c, const Dsd__TokenizeReply *r)
{
	if (c->kind != CALL_TOKENIZE || c->n_came + r->n_ids > c->ids.n ||
	    (r->n_ids && memcmp(c->ids.id + c->n_came, r->ids, r->n_ids * sizeof(*r->ids)) != 0) ||
	    (r->last && c->n_came + r->n_ids != c->ids.n))
		sim_broken(s, "request %llu: other ids", (unsigned long long)c->id);
	s->count.acts[ACT_TOKENIZE] += r->last;
	c->n_came += (uint32_t)r->n_ids;
}

static void on_detokenized(struct sim *s, struct call *c, const Dsd__DetokenizeReply *r)
{
	size_t n = r->has_text ? r->text.len : 0;

	if (c->kind != CALL_DETOKENIZE || c->n_came + n > c->n_text ||
	    (n && memcmp(c->text + c->n_came, r->text.data, n) != 0) ||
	    (r->last && c->n_came + n != c->n_text))
		sim_broken(s, "request %llu: another text", (unsigned long long)c->id);
	s->count.acts[ACT_DETOKENIZE] += r->last;
	c->n_came += (uint32_t)n;
}

static void try_again(struct sim *s, struct call *c, const Dsd__Error *e)
{
	uint64_t ms = e->has_retry_after_ms ? e->retry_after_ms : 100;

	/* Until now it may have run. */
	if (c->session)
		c->session->touched = s->now;
	c->waiting = true;
	c->due = s->now + ms * 1000 + sim_below(s, 500000);
	s->count.retried++;
}

/* All that was asked for came, only the last word did not. */
static bool lacks_nothing(const struct call *c)
{
	return c->n == 1 && c->choices[0].n_tokens == c->max_tokens;
}

static void on_error(struct sim *s, struct call *c, const Dsd__Error *e, bool lenient)
{
	bool right = lenient;

	switch (e->code) {
	case DSD__CODE__CODE_RETRYABLE:
	case DSD__CODE__CODE_RESOURCE_EXHAUSTED:
		right = c->attempts < ATTEMPTS_MAX &&
			!(c->no_numbers && e->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED);
		s->count.refused += e->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED;
		if (c->huge && e->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED)
			break;
		if (right && !c->cancelling && !lacks_nothing(c))
			try_again(s, c, e);
		break;
	case DSD__CODE__CODE_NOT_FOUND:
		if (c->session && !c->sure) {
			right = true;
			s->count.acts[ACT_SESSION_OVER] += c->over;
			c->session->id = 0;
		}
		right |= s->now < s->absent_until;
		break;
	case DSD__CODE__CODE_MODEL_INVALID:
		right |= s->now < s->absent_until;
		break;
	case DSD__CODE__CODE_MODEL_FAULT:
		/* Two workers died in a step of it, or its logits were none. */
		right |= s->n_deaths >= c->deaths + 2 ||
			 ++s->n_no_numbers <= s->count.faults[FAULT_NO_NUMBERS];
		break;
	case DSD__CODE__CODE_CANCELLED:
		right |= c->cancelling || c->cancelled;
		break;
	case DSD__CODE__CODE_DEADLINE_EXCEEDED:
		s->count.faults[FAULT_DEADLINE]++;
		right |= c->deadline_ms > 0;
		break;
	case DSD__CODE__CODE_INVALID_ARGUMENT:
		right |= c->doomed_input || c->huge;
		break;
	default:
		break;
	}
	if (!right || (c->cancelled && e->code != DSD__CODE__CODE_CANCELLED))
		sim_broken(s, "request %llu: error %d: %s", (unsigned long long)c->id, (int)e->code,
			   e->message);
}

bool call_on_frame(struct sim *s, struct call *c, const Dsd__ServerFrame *frame, bool lenient)
{
	if (c->kind >= CALL_LIST)
		return verb_on_frame(s, c, frame);
	if (c->cancel_at && s->now > c->cancel_at + CANCEL_ENDS && !lenient)
		sim_broken(s, "request %llu: speaks long after it was cancelled",
			   (unsigned long long)c->id);
	switch (frame->msg_case) {
	case DSD__SERVER_FRAME__MSG_STARTED:
		on_started(s, c, frame->started);
		return false;
	case DSD__SERVER_FRAME__MSG_DELTA:
		on_delta(s, c, frame->delta);
		return false;
	case DSD__SERVER_FRAME__MSG_DONE:
		on_done(s, c, frame->done->usage);
		return true;
	case DSD__SERVER_FRAME__MSG_SCORE:
		on_score(s, c, frame->score);
		return frame->score->last;
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
		on_tokenized(s, c, frame->tokenize);
		return frame->tokenize->last;
	case DSD__SERVER_FRAME__MSG_DETOKENIZE:
		on_detokenized(s, c, frame->detokenize);
		return frame->detokenize->last;
	case DSD__SERVER_FRAME__MSG_ERROR:
		on_error(s, c, frame->error, lenient);
		return !c->waiting;
	default:
		sim_broken(s, "request %llu: a frame of kind %d", (unsigned long long)c->id,
			   (int)frame->msg_case);
		return true;
	}
}
