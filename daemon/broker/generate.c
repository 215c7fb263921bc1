/* SPDX-License-Identifier: Apache-2.0 */
/* Generate: a request's input becomes n sequences, their tokens become events. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "broker/conn.h"
#include "broker/events.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "layout/image.h"
#include "pool/pool.h"

#define ECHO_PART 4096u        /* tokens of one Delta */
#define ECHO_TEXT (256u << 10) /* bytes, when it ends */

static void send_frame(struct request *r, Dsd__ServerFrame *frame)
{
	frame->id = r->id;
	conn_send(r->conn, frame);
}

static void send_started(struct request *r)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Started started = DSD__STARTED__INIT;
	const struct image_header *h = model_image(r->model)->h;

	started.request = r->number;
	started.seed = r->params.seed;
	started.model_digest = (ProtobufCBinaryData){sizeof(h->digest), (uint8_t *)h->digest};
	started.prompt_tokens = r->n_prompt;
	started.model = (char *)model_name(r->model);
	frame.msg_case = DSD__SERVER_FRAME__MSG_STARTED;
	frame.started = &started;
	send_frame(r, &frame);
}

static void send_done(struct request *r)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Done done = DSD__DONE__INIT;
	Dsd__Usage usage = DSD__USAGE__INIT;
	uint64_t now = io_now_usec(r->server->io);

	usage.prompt_tokens = r->n_prompt;
	usage.cached_tokens = r->n_cached;
	for (uint32_t i = 0; i < r->n_choices; i++)
		usage.completion_tokens += r->choices[i].n_tokens;
	if (r->first_token_usec) { /* else a resume that had all its tokens */
		usage.has_queue_usec = usage.has_prefill_usec = usage.has_decode_usec = 1;
		usage.queue_usec = r->started_usec - r->arrived_usec;
		usage.prefill_usec = r->first_token_usec - r->started_usec;
		usage.decode_usec = now - r->first_token_usec;
	}
	done.usage = &usage;
	frame.msg_case = DSD__SERVER_FRAME__MSG_DONE;
	frame.done = &done;
	send_frame(r, &frame);
}

/* @row: a token, NULL for none; @scored: its logprob is known */
static void send_delta(struct choice *c, const struct channel_result_row *row, bool scored,
		       const struct text_buf *text, Dsd__Finish finish)
{
	struct request *r = c->request;
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Delta delta = DSD__DELTA__INIT;
	struct event_logprob lp;
	Dsd__TokenLogprob *list = &lp.token;
	uint32_t id;

	delta.has_choice = c->index > 0;
	delta.choice = c->index;
	if (row) {
		id = row->token;
		delta.n_ids = 1;
		delta.ids = &id;
		if (r->want_logprobs) {
			event_logprob_init(&lp, row->token, scored ? row : NULL);
			delta.n_logprobs = 1;
			delta.logprobs = &list;
		}
	}
	if (text->n) {
		delta.has_text = 1;
		delta.text = (ProtobufCBinaryData){text->n, (uint8_t *)text->data};
	}
	delta.has_finish = finish != 0;
	delta.finish = finish ?: DSD__FINISH__FINISH_EOS;
	frame.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
	frame.delta = &delta;
	send_frame(r, &frame);
}

/* Echo: the answer begins with the prompt, token by token where their logprobs come with them. */
static void echo_token(struct choice *c, uint32_t id, const struct channel_result_row *row)
{
	struct channel_result_row first = {.token = id};
	struct text_buf text = {};

	if (decoder_push(&c->decoder, c->request->vocab, id, true, &text, NULL) == 0)
		send_delta(c, row ? row : &first, row != NULL, &text, 0);
	text_buf_done(&text);
}

static void on_prompt(void *ctx, const struct channel_result_row *row)
{
	const struct choice *c = ctx;

	if (row->position + 1 >= c->request->n_echoed)
		echo_token(ctx, row->token, row);
}

/* Without logprobs in pieces of many tokens, each with the text that they make. */
static void echo_prompt(struct choice *c)
{
	struct request *r = c->request;
	const uint32_t *ids = r->input.ids.id;

	if (r->want_logprobs) {
		if (r->n_echoed == 0)
			echo_token(c, ids[0], NULL);
		return;
	}
	for (uint32_t i = r->n_echoed, n; i < r->n_prompt; i += n) {
		Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
		Dsd__Delta delta = DSD__DELTA__INIT;
		struct text_buf text = {};

		for (n = 0; i + n < r->n_prompt && n < ECHO_PART && text.n < ECHO_TEXT; n++)
			if (decoder_push(&c->decoder, r->vocab, ids[i + n], true, &text, NULL) < 0)
				break;
		n = MAX(n, 1u);
		delta.has_choice = c->index > 0;
		delta.choice = c->index;
		delta.n_ids = n;
		delta.ids = (uint32_t *)ids + i;
		delta.has_text = text.n > 0;
		delta.text = (ProtobufCBinaryData){text.n, (uint8_t *)text.data};
		frame.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
		frame.delta = &delta;
		send_frame(r, &frame);
		text_buf_done(&text);
	}
}

/* The last word of a choice was sent. May free the request. */
static void choice_over(struct choice *c)
{
	struct request *r = c->request;

	c->seq = NULL;
	if (--r->n_running > 0)
		return;
	send_done(r);
	request_end(r);
}

/* One sampled token into a choice's text. Return: index of a stop string that matched, or -1, -ENOMEM. */
static int choice_take(struct choice *c, uint32_t id, struct text_buf *ret_text)
{
	struct text_buf *piece = &c->request->server->piece;
	int matched = -1, r;

	piece->n = 0;
	r = decoder_push(&c->decoder, c->request->vocab, id, true, piece, NULL);
	if (r == 0)
		r = stop_push(c->stop, piece->data, piece->n, ret_text, &matched);
	return r < 0 ? -ENOMEM : matched;
}

static void on_token(void *ctx, const struct channel_result_row *row)
{
	struct choice *c = ctx;
	struct request *r = c->request;
	struct text_buf *text = &r->server->text;
	int matched;

	text->n = 0;
	c->n_tokens++;
	if (!r->first_token_usec) {
		r->first_token_usec = io_now_usec(r->server->io);
		r->started_usec = seq_started_usec(c->seq);
		r->n_cached = seq_cached_tokens(c->seq);
	}
	if (image_is_eos(model_image(r->model), row->token) && !r->params.ignore_eos)
		return; /* the end says the rest */
	matched = choice_take(c, row->token, text);
	if (matched == -ENOMEM) {
		request_fail(r, DSD__CODE__CODE_RESOURCE_EXHAUSTED, "the daemon is out of memory",
			     1000);
		return;
	}
	if (matched >= 0) {
		seq_cancel(c->seq);
		send_delta(c, row, true, text, DSD__FINISH__FINISH_STOP);
		choice_over(c);
	} else if (r->want_logprobs) {
		send_delta(c, row, true, text, 0);
	} else {
		conn_send_token(r->conn, &(struct wire_token){.id = r->id,
							      .choice = c->index,
							      .token = row->token,
							      .text = text->data,
							      .n_text = text->n});
	}
}

static void on_end(void *ctx, enum seq_end why)
{
	struct choice *c = ctx;
	struct request *r = c->request;
	struct text_buf piece = {}, text = {};
	int matched = -1;

	c->seq = NULL;
	switch (why) {
	case SEQ_END_EOS:
	case SEQ_END_LENGTH:
		/* What was held back is part of the answer after all. */
		if (decoder_flush(&c->decoder, &piece) == 0 &&
		    stop_push(c->stop, piece.data, piece.n, &text, &matched) == 0 && matched < 0)
			stop_flush(c->stop, &text);
		send_delta(c, NULL, false, &text,
			   matched >= 0         ? DSD__FINISH__FINISH_STOP
			   : why == SEQ_END_EOS ? DSD__FINISH__FINISH_EOS
						: DSD__FINISH__FINISH_LENGTH);
		choice_over(c);
		break;
	default:
		request_fail_seq(r, why);
	}
	text_buf_done(&piece);
	text_buf_done(&text);
}

static const struct seq_ops generate_ops = {.token = on_token, .prompt = on_prompt, .end = on_end};

/* What the request left open comes from generation_config.json, else it is the protocol's default. */
static void fill_defaults(struct request *r)
{
	const struct image_header *h = model_image(r->model)->h;
	const struct sampling_set *set = &r->sampling_set;

	if (!set->temperature)
		r->params.temperature =
			h->defaults & IMAGE_DEFAULT_TEMPERATURE ? h->temperature : 1;
	if (!set->top_p)
		r->params.top_p = h->defaults & IMAGE_DEFAULT_TOP_P ? h->top_p : 1;
	if (!set->top_k)
		r->params.top_k = h->defaults & IMAGE_DEFAULT_TOP_K ? h->top_k : 0;
	if (!set->seed)
		io_random(r->server->io, &r->params.seed, sizeof(r->params.seed));
}

/* A resumed request goes on with the tokens it has: prompt rows stay prompt rows. */
static int apply_resume(struct request *r, struct error *err)
{
	const struct image_header *h = model_image(r->model)->h;

	if (!r->is_resume)
		return 0;
	if (memcmp(r->resume_digest, h->digest, sizeof(h->digest)) != 0)
		return error_set(err, -ESTALE,
				 "generate.resume.model_digest is of another model than \"%s\"",
				 model_name(r->model));
	if (r->n_echoed > r->n_prompt || (r->echo && r->resume_ids.n && r->n_echoed < r->n_prompt))
		return error_set(err, -EINVAL,
				 "generate.resume.echoed: got %u of a prompt of %u tokens, and %zu "
				 "generated ids behind it",
				 r->n_echoed, r->n_prompt, r->resume_ids.n);
	for (size_t i = 0; i < r->resume_ids.n; i++)
		if (r->resume_ids.id[i] >= h->n_vocab)
			return error_set(
				err, -EINVAL,
				"generate.resume.generated_ids[%zu]: got %u, want less than %u", i,
				r->resume_ids.id[i], h->n_vocab);
	return ids_append(&r->input.ids, r->resume_ids.id, r->resume_ids.n);
}

/* Text and stop state as they were after the tokens that a resumed client has. */
static int replay_choice(struct choice *c, struct error *err)
{
	struct request *r = c->request;
	struct text_buf text = {};
	int s = 0, matched;

	for (size_t k = 0; k < r->n_echoed && s == 0; k++) {
		text.n = 0;
		s = decoder_push(&c->decoder, r->vocab, r->input.ids.id[k], true, &text, err);
	}
	for (size_t k = r->n_prompt; s == 0 && k < r->input.ids.n; k++, c->n_tokens++) {
		text.n = 0;
		matched = choice_take(c, r->input.ids.id[k], &text);
		if (matched >= 0)
			s = error_set(err, -EINVAL, "generate.resume is past a stop string");
		else if (matched == -ENOMEM)
			s = -ENOMEM;
	}
	text_buf_done(&text);
	return s;
}

static int choice_init(struct request *r, uint32_t i, struct error *err)
{
	struct choice *c = &r->choices[i];
	int s;

	c->request = r;
	c->index = i;
	s = stop_new(&c->stop, r->stops, r->n_stops, err);
	return s < 0 ? s : replay_choice(c, err);
}

static int submit_choice(struct request *r, uint32_t i, struct error *err)
{
	const struct image_header *h = model_image(r->model)->h;
	struct choice *c = &r->choices[i];
	struct seq_config cfg = {
		.ops = &generate_ops,
		.ctx = c,
		.uid = r->conn->uid,
		.ids = r->input.ids.id,
		.n_ids = (uint32_t)r->input.ids.n,
		.params = r->params,
		.max_tokens = r->max_tokens,
		.prompt_logprobs = r->echo && r->want_logprobs,
		.eos = h->eos,
		.n_eos = h->n_eos,
		.priority = r->priority,
		.reuse_generated = r->reuse_generated,
		.session = r->session,
		.leader = i > 0 ? r->choices[0].seq : NULL,
	};
	int s;

	cfg.params.choice = r->first_choice + i;
	if (r->n_echoed == r->n_prompt)
		cfg.prompt_logprobs = false; /* they were told */
	s = choice_init(r, i, err);
	if (s < 0)
		return s;
	s = sched_submit(model_sched(r->model), &cfg, &c->seq, err);
	if (s == 0) {
		r->n_running++;
		if (r->echo)
			echo_prompt(c);
		seq_pause(c->seq, r->conn->congested);
	}
	return s;
}

static void generate_ready(struct request *r)
{
	const struct image_header *h = model_image(r->model)->h;
	uint32_t room = model_room(r->model);
	struct error err = {};
	int s = 0;

	r->n_prompt = (uint32_t)MIN(r->input.ids.n, (size_t)UINT32_MAX);
	fill_defaults(r);
	if (r->n_prompt == 0)
		s = error_set(&err, -EINVAL, "the prompt has no tokens: want at least one");
	else if (r->n_prompt >= room)
		s = error_set(&err, -EINVAL, "the prompt has %u tokens: want fewer than %u (%s)",
			      r->n_prompt, room,
			      room == h->n_context ? "the context" : "what the pool holds");
	if (s == 0)
		s = apply_resume(r, &err);
	if (s == 0) {
		uint32_t most = room - r->n_prompt;

		r->params.n_prompt = r->n_prompt;
		r->max_tokens = r->max_tokens ? MIN(r->max_tokens, most) : most;
		if (r->input.ids.n > r->n_prompt + r->max_tokens)
			s = error_set(&err, -EINVAL,
				      "generate.resume has %zu generated ids: want at most %u",
				      r->resume_ids.n, r->max_tokens);
	}
	for (uint32_t i = 0; i < r->params.n_bias && s == 0; i++)
		if (r->params.bias[i].id >= h->n_vocab)
			s = error_set(
				&err, -EINVAL,
				"generate.sampling.logit_bias[%u].id: got %u, want less than %u", i,
				r->params.bias[i].id, h->n_vocab);
	if (s < 0) {
		request_fail(r, request_code(s), error_text(&err, s), 0);
		return;
	}
	send_started(r);
	if (r->input.ids.n == r->n_prompt + r->max_tokens) {
		/* Only the last word was lost: there is nothing to compute. */
		s = choice_init(r, 0, &err);
		if (s == 0) {
			r->n_running = 1;
			on_end(&r->choices[0], SEQ_END_LENGTH);
			return;
		}
	}
	for (uint32_t i = 0; i < r->n_choices && s == 0; i++)
		s = submit_choice(r, i, &err);
	if (s < 0) {
		request_fail(r, request_code(s), error_text(&err, s), s == -EAGAIN ? 1000 : 0);
		return;
	}
	model_kick(r->model);
}

static int take_stops(struct request *r, const Dsd__Sampling *s)
{
	size_t n = 0, at = 0;

	for (size_t i = 0; i < s->n_stop; i++)
		n += s->stop[i].len;
	r->stop_text = malloc(n + 1);
	if (!r->stop_text)
		return -ENOMEM;
	for (size_t i = 0; i < s->n_stop; i++) {
		if (s->stop[i].len)
			memcpy(r->stop_text + at, s->stop[i].data, s->stop[i].len);
		r->stops[i] = (struct stop_string){(char *)r->stop_text + at, s->stop[i].len};
		at += s->stop[i].len;
	}
	r->n_stops = (uint32_t)s->n_stop;
	return 0;
}

static int take_sampling(struct request *r, const Dsd__Sampling *s)
{
	struct channel_params *p = &r->params;
	struct sampling_set *set = &r->sampling_set;

	*p = (struct channel_params){.top_p = 1, .repetition_penalty = 1};
	r->n_choices = 1;
	if (!s)
		return 0;
	if (s->has_min_tokens && s->has_max_tokens && s->min_tokens > s->max_tokens)
		return error_set(
			&r->encode_error, -EINVAL,
			"generate.sampling.min_tokens: got %u, want at most max_tokens, %u",
			s->min_tokens, s->max_tokens);
	r->max_tokens = s->has_max_tokens ? s->max_tokens : 0;
	p->min_tokens = s->has_min_tokens ? s->min_tokens : 0;
	if ((set->temperature = s->has_temperature))
		p->temperature = s->temperature;
	if ((set->top_k = s->has_top_k))
		p->top_k = s->top_k;
	if ((set->top_p = s->has_top_p))
		p->top_p = s->top_p;
	if (s->has_min_p)
		p->min_p = s->min_p;
	if ((set->seed = s->has_seed))
		p->seed = s->seed;
	if (s->has_repetition_penalty)
		p->repetition_penalty = s->repetition_penalty;
	if (s->has_presence_penalty)
		p->presence_penalty = s->presence_penalty;
	if (s->has_frequency_penalty)
		p->frequency_penalty = s->frequency_penalty;
	p->ignore_eos = s->has_ignore_eos && s->ignore_eos;
	if (s->has_n)
		r->n_choices = s->n;
	r->echo = s->has_echo && s->echo;
	r->want_logprobs = s->has_logprobs;
	p->n_top = s->has_logprobs ? s->logprobs : 0;
	p->n_bias = (uint32_t)s->n_logit_bias;
	for (size_t i = 0; i < s->n_logit_bias; i++) {
		p->bias[i].id = s->logit_bias[i]->id;
		p->bias[i].bias = s->logit_bias[i]->bias;
	}
	return take_stops(r, s);
}

static int take_resume(struct request *r, const Dsd__Resume *resume, const char **ret_why)
{
	if (!resume)
		return 0;
	if (resume->model_digest.len != sizeof(r->resume_digest)) {
		*ret_why = "generate.resume.model_digest: want 32 bytes";
		return -EINVAL;
	}
	if (resume->echoed > 0 && !r->echo) {
		*ret_why = "generate.resume.echoed goes with sampling.echo";
		return -EINVAL;
	}
	if (r->n_choices > 1) {
		*ret_why = "generate.resume goes with one choice: resume each on its own";
		return -EINVAL;
	}
	r->is_resume = true;
	memcpy(r->resume_digest, resume->model_digest.data, sizeof(r->resume_digest));
	r->params.seed = resume->seed;
	r->sampling_set.seed = true;
	r->first_choice = resume->has_choice ? resume->choice : 0;
	r->n_echoed = resume->has_echoed ? resume->echoed : 0;
	return ids_append(&r->resume_ids, resume->generated_ids, resume->n_generated_ids);
}

static bool is_text(const Dsd__Generate *g)
{
	return g->prompt_case == DSD__GENERATE__PROMPT_TEXT ||
	       (g->prompt_case == DSD__GENERATE__PROMPT_PROMPT_FD &&
		g->prompt_fd->kind == DSD__PROMPT_KIND__PROMPT_KIND_TEXT);
}

void rpc_generate(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Generate *g = frame->generate;
	struct model *m = g->has_session && !g->model
				  ? server_find_session(c->server, c->uid, g->session)
				  : NULL;
	struct request *r = request_new(c, frame->id, m ? model_name(m) : g->model, generate_ready);
	const char *why = "";
	int s;

	/* A daemon that was started anew knows no session; a stream goes on without. */
	if (!r || (g->has_session && !request_set_session(r, g->session, !g->resume)))
		return;
	if (g->has_deadline_ms) {
		r->deadline_usec = r->arrived_usec + g->deadline_ms * UINT64_C(1000);
		server_wake_at(c->server, r->deadline_usec);
	}
	r->priority = SEQ_NORMAL;
	if (g->has_priority)
		r->priority =
			(enum seq_priority)(g->priority - DSD__PRIORITY__PRIORITY_INTERACTIVE);
	r->reuse_generated = g->has_reuse_generated && g->reuse_generated;
	s = take_sampling(r, g->sampling);
	if (s == 0)
		s = take_resume(r, g->resume, &why);
	if (s == 0 && g->has_suffix && !is_text(g)) {
		s = -EINVAL;
		why = "generate.suffix goes with a text";
	}
	if (s == 0 && g->has_parse_special && g->parse_special && !is_text(g)) {
		s = -EINVAL;
		why = "generate.parse_special goes with a text";
	}
	if (s == 0)
		switch (g->prompt_case) {
		case DSD__GENERATE__PROMPT_TEXT:
			if (g->text.len == 0) {
				s = -EINVAL;
				why = "generate.text: got 0 bytes, want at least one";
				break;
			}
			s = request_set_text(r, &g->text, g->has_parse_special && g->parse_special);
			r->input.encode_flags |= ENCODE_BOS;
			if (s == 0 && g->has_suffix)
				s = request_set_suffix(r, &g->suffix);
			break;
		case DSD__GENERATE__PROMPT_CHAT:
			s = request_set_chat(r, g->chat);
			break;
		case DSD__GENERATE__PROMPT_IDS:
			s = request_set_ids(r, g->ids);
			break;
		case DSD__GENERATE__PROMPT_PROMPT_FD:
			s = request_set_prompt_fd(r, g->prompt_fd,
						  g->has_parse_special && g->parse_special);
			r->input.encode_flags |= ENCODE_BOS;
			if (s == 0 && g->has_suffix)
				s = request_set_suffix(r, &g->suffix);
			break;
		default:
			s = -EINVAL;
			why = "generate.prompt: got nothing, want text, chat, ids or prompt_fd";
		}
	if (s < 0) {
		request_fail_input(r, s, why);
		return;
	}
	request_start(r);
}
