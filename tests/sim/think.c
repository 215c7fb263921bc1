/* SPDX-License-Identifier: Apache-2.0 */
/* What a client asks: prompts that begin like others of its user, the options of a request, and what
 * becomes of one whose connection was lost or that is asked again. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "broker/model.h"
#include "call.h"
#include "text/template.h"
#include "worker/fake.h"

static void add_letters(struct sim *s, struct call *c, size_t n)
{
	for (; n > 0; n--)
		c->text[c->n_text++] = (uint8_t)('a' + sim_below(s, 26));
}

/* About as much as the pool holds for one sequence just now. */
static size_t huge_bytes(struct sim *s)
{
	const struct model *m = s->server.n_models ? s->server.models[0] : NULL;
	uint32_t room = m && model_sched(m) ? model_room(m) : 1000;

	return room - sim_between(s, 0, MIN(room, 400u));
}

/* Begins like another prompt of this user, ends in its own way. */
static void think_text(struct sim *s, struct call *c, size_t n_own)
{
	struct user *u = &s->users[c->user];
	const uint8_t *begin = u->documents[sim_below(s, DOCUMENTS)];
	size_t n = DOCUMENT_BYTES;

	if (sim_one_in(s, 4) && u->n_last) {
		begin = u->last;
		n = u->n_last;
		c->goes_on = true;
		/* What this turn adds is a page of its own. */
		n_own += sim_between(s, 64, 128);
	} else if (sim_one_in(s, 3)) {
		n = 0;
	} else if (sim_one_in(s, 8)) {
		n = (size_t)sim_below(s, n + 1);
	} else {
		/* About a page border, on either side of it. */
		n = 64 * (size_t)sim_between(s, 1, sim_one_in(s, 6) ? 24 : 6) - 2 + sim_below(s, 4);
	}
	if (c->huge) {
		n = MIN(n, n_own);
		n_own -= n;
	}
	c->text = malloc(n + n_own + 1);
	assert(c->text);
	memcpy(c->text, begin, n);
	c->n_text = n;
	add_letters(s, c, n_own);
}

static void think_chat(struct sim *s, struct call *c)
{
	struct message messages[CALL_MESSAGES];
	const uint8_t *at = c->text;

	c->n_messages = sim_one_in(s, 2) && c->n_text >= 3 ? 3 : 1;
	for (uint32_t i = 0; i < c->n_messages; i++) {
		size_t n =
			i + 1 < c->n_messages ? c->n_text / 3 : c->n_text - (size_t)(at - c->text);

		c->message_bytes[i] = (uint32_t)n;
		messages[i] = (struct message){i % 2 ? MESSAGE_ASSISTANT : MESSAGE_USER,
					       (const char *)at, n};
		at += n;
	}
	if (template_render(s->vocab, NULL, messages, c->n_messages, TEMPLATE_GENERATION_PROMPT,
			    &c->ids, NULL) < 0)
		sim_broken(s, "a chat of %u messages cannot be rendered", c->n_messages);
}

static void think_ids(struct call *c, bool bos)
{
	if (bos)
		ids_push(&c->ids, FAKE_BOS);
	for (size_t i = 0; i < c->n_text; i++)
		ids_push(&c->ids, c->text[i]);
}

/* Few letters, so that one may end where another does. */
static void think_stops(struct sim *s, struct call *c)
{
	c->n_stops = (uint32_t)sim_between(s, 1, CALL_STOPS);
	for (uint32_t k = 0; k < c->n_stops; k++) {
		c->stop_bytes[k] = (uint32_t)sim_between(s, 1, 3);
		for (uint32_t i = 0; i < c->stop_bytes[k]; i++)
			c->stop[k][i] = (uint8_t)(sim_one_in(s, 4) ? ' ' : 'a' + sim_below(s, 26));
	}
}

static void think_sampling(struct sim *s, struct call *c)
{
	struct channel_params *p = &c->params;

	c->n = sim_one_in(s, 20) ? (uint32_t)sim_between(s, 2, 5) : 1;
	/* In a conversation more are long: they end a page with what was generated. */
	c->max_tokens = (uint32_t)(sim_one_in(s, c->goes_on ? 4 : 12) ? sim_between(s, 1, 300)
								      : sim_between(s, 1, 30));
	p->temperature = sim_one_in(s, 2) ? 0 : 0.8f;
	c->seeded = sim_one_in(s, 2);
	p->seed = sim_random(s);
	p->min_tokens = sim_one_in(s, 8) ? (uint32_t)sim_below(s, c->max_tokens + 1) : 0;
	p->ignore_eos = sim_one_in(s, 8);
	c->logprobs = sim_one_in(s, 10) ? (int)sim_below(s, 21) : -1;
	c->reuse = sim_one_in(s, 3);
	c->priority = sim_one_in(s, 2) ? (uint32_t)sim_between(s, 1, 3) : 0;
	c->deadline_ms = sim_one_in(s, 400) ? (uint32_t)sim_between(s, 1, 5000) : 0;
	c->echo = sim_one_in(s, 10);
	if (sim_one_in(s, 6))
		think_stops(s, c);
	if (c->reuse)
		p->top_k = SIM_ANY_PATH;
	/* Twice: what the first of them leaves, the second finds, and behind it what this one left. */
	if (c->reuse && c->goes_on)
		c->n_repeats = 2;
	/* Seldom, and then two: so that workers die too often for a while. */
	if (sim_one_in(s, s->second_killer ? 8 : 6000)) {
		s->second_killer = !s->second_killer;
		p->top_k = SIM_KILLER;
		c->n = 1;
		c->reuse = false;
		s->count.faults[FAULT_KILLER]++;
	}
}

void call_init(struct sim *s, struct call *c, uint32_t user, enum call_size size)
{
	*c = (struct call){.used = true, .user = user, .n = 1, .logprobs = -1};
	if (size == CALL_VERB || (size == CALL_ANY && sim_one_in(s, 20))) {
		c->admin = size == CALL_VERB;
		verb_init(s, c);
		return;
	}
	if (size == CALL_ANY && sim_one_in(s, 25))
		c->kind = CALL_SCORE;
	else if (size == CALL_ANY && sim_one_in(s, 25))
		c->kind = sim_one_in(s, 2) ? CALL_TOKENIZE : CALL_DETOKENIZE;
	if (c->kind == CALL_TOKENIZE && sim_one_in(s, 3)) {
		think_text(s, c, (size_t)sim_between(s, 8000, 20000)); /* on another thread */
	} else if (c->kind == CALL_GENERATE && size == CALL_ANY && sim_one_in(s, 500)) {
		think_text(s, c, 6000);
		c->doomed_input = true;
	} else if (size == CALL_HUGE ||
		   (c->kind == CALL_GENERATE && size == CALL_ANY && sim_one_in(s, 300))) {
		c->huge = true;
		think_text(s, c, huge_bytes(s));
	} else {
		think_text(s, c,
			   (size_t)(sim_one_in(s, 8) ? sim_between(s, 64, 200)
						     : sim_between(s, 1, 40)));
	}
	c->form = (enum call_form)(sim_one_in(s, 3) ? FORM_IDS : FORM_TEXT);
	if (c->kind == CALL_GENERATE && !c->doomed_input && sim_one_in(s, 4))
		c->form = FORM_CHAT;
	if (c->kind == CALL_TOKENIZE)
		c->form = FORM_TEXT;
	c->add_bos = sim_one_in(s, 2);
	if (c->form == FORM_CHAT)
		think_chat(s, c);
	else
		think_ids(c, c->form == FORM_TEXT &&
				     (c->kind == CALL_GENERATE || c->kind == CALL_SCORE ||
				      (c->kind == CALL_TOKENIZE && c->add_bos)));
	if (c->kind == CALL_SCORE)
		c->logprobs = sim_one_in(s, 2) ? (int)sim_below(s, 4) : -1;
	if (c->kind == CALL_GENERATE)
		think_sampling(s, c);
	if (c->huge)
		c->priority = DSD__PRIORITY__PRIORITY_BATCH; /* everybody goes before it */
	if (size == CALL_FLOOD) {
		c->n = CALL_CHOICES;
		c->max_tokens = (uint32_t)sim_between(s, 150, 300);
		c->logprobs = 20;
		c->params.ignore_eos = true;
		c->params.min_tokens = c->n_stops = c->deadline_ms = c->params.top_k = 0;
		c->n_repeats = 0;
		c->reuse = c->echo = false;
	}
	c->passed = c->kind == CALL_GENERATE && c->form != FORM_CHAT && sim_one_in(s, 40);
	if (c->kind == CALL_GENERATE && size == CALL_ANY && sim_one_in(s, 3)) {
		c->session = session_pick(s, user);
		if (c->session)
			c->session->running++;
	}
	c->params.n_prompt = (uint32_t)c->ids.n;
	for (uint32_t i = 0; i < c->n; i++) {
		c->choices[i].text = malloc(c->max_tokens + 1);
		assert(c->choices[i].text);
	}
	s->count.requests++;
}

void call_done(struct sim *s, struct call *c)
{
	if (c->session && c->kind == CALL_GENERATE) {
		c->session->running--;
		c->session->touched = s->now;
	}
	for (uint32_t i = 0; i < CALL_CHOICES; i++)
		free(c->choices[i].text);
	free(c->text);
	ids_done(&c->ids);
	*c = (struct call){};
}

static void *copy_of(const void *p, size_t n)
{
	void *copy = malloc(n + 1);

	assert(copy);
	if (n)
		memcpy(copy, p, n);
	return copy;
}

struct call *call_heir(const struct call *c, uint32_t k)
{
	const struct call_choice *ch = &c->choices[k];
	struct call *heir;

	if (c->kind != CALL_GENERATE || !c->begun || k >= c->n || ch->n_tokens == 0 || ch->over ||
	    ch->n_tokens == c->max_tokens)
		return NULL;
	heir = copy_of(c, sizeof(*c));
	heir->text = copy_of(c->text, c->n_text);
	heir->ids = (struct ids){};
	if (ids_append(&heir->ids, c->ids.id, c->ids.n) < 0)
		abort();
	memset(heir->choices, 0, sizeof(heir->choices));
	heir->choices[0] = *ch;
	heir->choices[0].text = copy_of(ch->text, c->max_tokens);
	heir->first_choice += k;
	heir->n = 1;
	if (heir->session)
		heir->session->running++;
	return heir;
}

bool call_repeat(struct sim *s, struct call *c)
{
	if (c->n_repeats == 0)
		return false;
	c->n_repeats--;
	c->begun = c->reuse = false;
	c->params.top_k = 0;
	c->first_choice = c->attempts = 0;
	if (c->session)
		c->session->touched = s->now;
	s->count.requests++;
	s->count.acts[ACT_REPEAT]++;
	return true;
}
