/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/request.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/passed.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "quota/quota.h"
#include "text/template.h"
#include "text/vocab.h"

static void refuse_degraded(struct conn *c, uint64_t id, const struct model *m)
{
	Dsd__Code code = model_refusal(m);

	conn_send_error(c, id, code, model_reason(m), code == DSD__CODE__CODE_RETRYABLE ? 1000 : 0);
}

struct request *request_new(struct conn *c, uint64_t id, const char *model_name,
			    void (*ready)(struct request *r))
{
	struct server *s = c->server;
	struct model *m = server_find_model(s, model_name);
	char text[384];

	if (!m) {
		snprintf(text, sizeof(text), "no model \"%.255s\": dsctl models lists them",
			 model_name ?: "");
		conn_send_error(c, id,
				s->n_models ? DSD__CODE__CODE_NOT_FOUND
					    : DSD__CODE__CODE_MODEL_INVALID,
				s->n_models ? text : "the daemon has no model", 0);
		s->count.failed++;
		return NULL;
	}
	if (model_state(m) == DSD__STATE__STATE_DEGRADED) {
		refuse_degraded(c, id, m);
		s->count.failed++;
		return NULL;
	}
	if (model_is_drained(m)) {
		conn_send_error(c, id, DSD__CODE__CODE_RETRYABLE,
				"the model is drained: it takes no new requests", 1000);
		s->count.failed++;
		return NULL;
	}
	if (s->stopping) {
		conn_send_error(c, id, DSD__CODE__CODE_RETRYABLE, "the daemon is stopping", 1000);
		s->count.failed++;
		return NULL;
	}
	return request_new_of(c, id, m, ready);
}

struct request *request_new_of(struct conn *c, uint64_t id, struct model *m,
			       void (*ready)(struct request *r))
{
	struct server *s = c->server;
	struct error err = {};
	struct request *r;
	int i;

	if (quota_charge(s->quota, c->uid, QUOTA_REQUESTS, 1, &err) < 0) {
		conn_send_error(c, id, DSD__CODE__CODE_RESOURCE_EXHAUSTED, err.text, 1000);
		s->count.failed++;
		return NULL;
	}
	r = io_alloc(s->io, sizeof(*r));
	i = r ? table_add(&s->requests, r, &r->generation) : -ENOMEM;
	if (i < 0) {
		quota_uncharge(s->quota, c->uid, QUOTA_REQUESTS, 1);
		free(r);
		conn_send_error(c, id, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
				"the daemon is out of memory", 1000);
		s->count.failed++;
		return NULL;
	}
	r->conn = c;
	r->id = id;
	r->number = ++s->n_requests;
	r->index = (uint32_t)i;
	r->server = s;
	r->model = m;
	r->ready = ready;
	r->arrived_usec = io_now_usec(s->io);
	r->deadline_usec = UINT64_MAX;
	r->input.passed = -EBADF;
	r->next = c->requests;
	if (r->next)
		r->next->prev = r;
	c->requests = r;
	c->n_requests++;
	return r;
}

/* The user's words do not stay in freed memory. */
static void input_done(struct request_input *in)
{
	if (in->text)
		explicit_bzero(in->text, in->n_text);
	free(in->text);
	free(in->messages);
	fd_close(in->passed);
	ids_done(&in->ids);
}

static void request_free(struct request *r)
{
	quota_uncharge(r->server->quota, r->uid, QUOTA_BYTES, r->n_bytes);
	table_remove(&r->server->requests, r->index);
	if (r->release)
		r->release(r);
	for (uint32_t i = 0; i < r->n_choices; i++)
		stop_free(r->choices[i].stop);
	input_done(&r->input);
	free(r->stop_text);
	ids_done(&r->resume_ids);
	vocab_unref(r->vocab);
	free(r);
}

/* Off the connection and its sequences; memory goes when no thread works on it. */
static void request_detach(struct request *r)
{
	struct conn *c = r->conn;

	assert(c);
	*(r->prev ? &r->prev->next : &c->requests) = r->next;
	if (r->next)
		r->next->prev = r->prev;
	c->n_requests--;
	quota_uncharge(r->server->quota, c->uid, QUOTA_REQUESTS, 1);
	r->uid = c->uid;
	r->conn = NULL;
	if (r->parked)
		model_unpark(r->model, r);
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].seq) {
			seq_cancel(r->choices[i].seq);
			r->choices[i].seq = NULL;
		}
	if (!r->encoding)
		request_free(r);
}

void request_end(struct request *r)
{
	request_detach(r);
}

void request_cancel(struct request *r)
{
	struct model *m = r->model;

	r->server->count.cancelled++;
	request_detach(r);
	model_kick(m); /* pages may be free for others now */
}

void request_fail(struct request *r, Dsd__Code code, const char *text, uint32_t retry_after_ms)
{
	struct conn *c = r->conn;
	uint64_t id = r->id;
	char copy[ERROR_TEXT_MAX]; /* the sentence may be the request's own */

	snprintf(copy, sizeof(copy), "%s", text);
	r->server->count.failed++;
	request_detach(r);
	conn_send_error(c, id, code, copy, retry_after_ms);
}

void request_fail_seq(struct request *r, enum seq_end why)
{
	switch (why) {
	case SEQ_END_NUMBERS:
		request_fail(r, DSD__CODE__CODE_MODEL_FAULT,
			     "the model computed numbers that are none", 0);
		break;
	case SEQ_END_QUARANTINED:
		log_event(EVENT_REQUEST_QUARANTINED,
			  &(struct log_fields){.model = model_name(r->model),
					       .uid = &r->conn->uid,
					       .request = r->number},
			  "request %llu of uid %u: two workers died computing it, no third will",
			  (unsigned long long)r->number, r->conn->uid);
		request_fail(r, DSD__CODE__CODE_MODEL_FAULT,
			     "two workers died computing this request: it is not tried again", 0);
		break;
	case SEQ_END_EXHAUSTED:
		request_fail(r, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
			     "the pool has no pages left for this request (pool.size)", 1000);
		break;
	default:
		request_fail(r, DSD__CODE__CODE_RETRYABLE,
			     "the model went away, or its worker refused a step of this request",
			     1000);
	}
}

/* What a request holds of its user's words is its user's to account for. -EDQUOT, with a sentence. */
static int charge_bytes(struct request *r, size_t n)
{
	int e = quota_charge(r->server->quota, r->conn->uid, QUOTA_BYTES, n, &r->encode_error);

	if (e == 0)
		r->n_bytes += n;
	return e;
}

int request_set_text(struct request *r, const ProtobufCBinaryData *text, bool parse_special)
{
	int e = charge_bytes(r, text->len);

	if (e < 0)
		return e;
	r->input.text = malloc(text->len + 1);
	if (!r->input.text)
		return -ENOMEM;
	if (text->len > 0)
		memcpy(r->input.text, text->data, text->len);
	r->input.n_text = text->len;
	r->input.encode_flags = parse_special ? ENCODE_PARSE_SPECIAL : 0;
	return 0;
}

int request_set_suffix(struct request *r, const ProtobufCBinaryData *suffix)
{
	int e = charge_bytes(r, suffix->len);
	uint8_t *p;

	if (e < 0)
		return e;
	p = realloc(r->input.text, r->input.n_text + suffix->len + 1);
	if (!p)
		return -ENOMEM;
	if (suffix->len)
		memcpy(p + r->input.n_text, suffix->data, suffix->len);
	r->input.text = p;
	r->input.n_prefix = r->input.n_text;
	r->input.n_text += suffix->len;
	r->input.has_suffix = true;
	return 0;
}

int request_set_chat(struct request *r, const Dsd__Chat *chat)
{
	static const uint8_t roles[] = {
		[DSD__ROLE__ROLE_SYSTEM] = MESSAGE_SYSTEM,
		[DSD__ROLE__ROLE_USER] = MESSAGE_USER,
		[DSD__ROLE__ROLE_ASSISTANT] = MESSAGE_ASSISTANT,
	};
	struct request_input *in = &r->input;
	size_t n = 0;
	int e;

	for (size_t i = 0; i < chat->n_messages; i++)
		n += chat->messages[i]->text.len;
	e = charge_bytes(r, n);
	if (e < 0)
		return e;
	in->text = malloc(n + 1);
	in->messages = calloc(chat->n_messages + 1, sizeof(*in->messages));
	if (!in->text || !in->messages)
		return -ENOMEM;
	for (size_t i = 0; i < chat->n_messages; i++) {
		const Dsd__Message *m = chat->messages[i];

		in->messages[i].role = roles[m->role];
		in->messages[i].n = (uint32_t)m->text.len;
		if (m->text.len > 0) /* else there may be no data at all */
			memcpy(in->text + in->n_text, m->text.data, m->text.len);
		in->n_text += m->text.len;
	}
	in->n_messages = (uint32_t)chat->n_messages;
	in->is_chat = true;
	return 0;
}

int request_set_ids(struct request *r, const Dsd__Ids *ids)
{
	int e = charge_bytes(r, ids->n_ids * sizeof(*ids->ids));

	if (e < 0)
		return e;
	r->input.is_ids = true;
	return ids_append(&r->input.ids, ids->ids, ids->n_ids);
}

int request_set_prompt_fd(struct request *r, const Dsd__PromptFd *p, bool parse_special)
{
	_cleanup_(fd_closep) int fd = conn_take_passed(r->conn);
	struct request_input *in = &r->input;
	int e;

	if (fd < 0)
		return error_set(&r->encode_error, -EINVAL,
				 "prompt_fd: no descriptor came with the frame");
	e = passed_check(fd, p->bytes, &r->encode_error);
	if (e == 0)
		e = charge_bytes(r, p->bytes);
	if (e < 0)
		return e;
	if (p->kind == DSD__PROMPT_KIND__PROMPT_KIND_IDS) {
		if (p->bytes % sizeof(*in->ids.id) != 0)
			return error_set(&r->encode_error, -EINVAL,
					 "prompt_fd.bytes: got %u, want 4 for each id", p->bytes);
		in->is_ids = true;
		in->ids.id = malloc(p->bytes);
		in->ids.n = in->ids.n_alloc = in->ids.id ? p->bytes / sizeof(*in->ids.id) : 0;
		if (!in->ids.id)
			return -ENOMEM;
	} else {
		in->text = malloc(p->bytes + 1u);
		if (!in->text)
			return -ENOMEM;
		in->n_text = p->bytes;
		in->encode_flags = parse_special ? ENCODE_PARSE_SPECIAL : 0;
	}
	in->n_passed = p->bytes;
	in->passed = TAKE_FD(fd);
	return 0;
}

static int copy_passed(struct request_input *in, struct error *err)
{
	int r = passed_copy(in->passed, in->is_ids ? (void *)in->ids.id : in->text, in->n_passed,
			    err);

	in->passed = fd_close(in->passed);
	return r;
}

static int encode_chat(const struct vocab *v, struct request_input *in, struct error *err)
{
	_cleanup_(freep) struct message *messages = calloc(in->n_messages + 1u, sizeof(*messages));
	const char *text = (const char *)in->text;

	if (!messages)
		return -ENOMEM;
	for (uint32_t i = 0; i < in->n_messages; i++) {
		messages[i] = (struct message){in->messages[i].role, text, in->messages[i].n};
		text += in->messages[i].n;
	}
	return template_render(v, NULL, messages, in->n_messages,
			       in->is_open ? 0 : TEMPLATE_GENERATION_PROMPT, &in->ids, err);
}

/* begin, prefix, hole, suffix, end. The model goes on with what fills the hole. */
static int encode_fim(const struct vocab *v, struct request_input *in, struct error *err)
{
	const struct image_header *h = vocab_image(v)->h;
	struct ids *ids = &in->ids;
	unsigned flags = in->encode_flags & ~ENCODE_BOS;
	int r = 0;

	if (h->fim_begin == IMAGE_NONE || h->fim_hole == IMAGE_NONE || h->fim_end == IMAGE_NONE)
		return error_set(
			err, -EOPNOTSUPP,
			"generate.suffix: this model has no tokens for filling in the middle");
	if ((in->encode_flags & ENCODE_BOS) && h->add_bos)
		r = ids_push(ids, h->bos);
	if (r == 0)
		r = ids_push(ids, h->fim_begin);
	if (r == 0)
		r = encode_text(v, NULL, in->text, in->n_prefix, flags, ids, err);
	if (r == 0)
		r = ids_push(ids, h->fim_hole);
	if (r == 0)
		r = encode_text(v, NULL, in->text + in->n_prefix, in->n_text - in->n_prefix, flags,
				ids, err);
	return r < 0 ? r : ids_push(ids, h->fim_end);
}

/* Any thread; the request stays where it is until request_on_encoded(). */
static void encode(void *arg)
{
	struct request *r = arg;
	struct request_input *in = &r->input;
	const struct image_header *h = vocab_image(r->vocab)->h;

	r->encode_result = in->passed >= 0 ? copy_passed(in, &r->encode_error) : 0;
	if (r->encode_result < 0 || in->is_ids)
		return;
	if (in->is_chat) {
		r->encode_result = encode_chat(r->vocab, in, &r->encode_error);
	} else if (in->has_suffix) {
		r->encode_result = encode_fim(r->vocab, in, &r->encode_error);
	} else {
		if (in->force_bos && !(in->encode_flags & ENCODE_BOS) && h->bos != IMAGE_NONE)
			r->encode_result = ids_push(&in->ids, h->bos);
		if (r->encode_result == 0)
			r->encode_result =
				encode_text(r->vocab, NULL, in->text, in->n_text, in->encode_flags,
					    &in->ids, &r->encode_error);
	}
}

void request_fail_input(struct request *r, int e, const char *why)
{
	if (e == -EINVAL)
		request_fail(r, DSD__CODE__CODE_INVALID_ARGUMENT,
			     why[0] ? why : r->encode_error.text, 0);
	else
		request_fail(r, DSD__CODE__CODE_RESOURCE_EXHAUSTED,
			     e == -EDQUOT ? r->encode_error.text : "the daemon is out of memory",
			     1000);
}

Dsd__Code request_code(int r)
{
	switch (r) {
	case -EAGAIN:
	case -ENOMEM:
		return DSD__CODE__CODE_RESOURCE_EXHAUSTED;
	case -EOPNOTSUPP:
	case -ESTALE:
		return DSD__CODE__CODE_FAILED_PRECONDITION;
	default:
		return DSD__CODE__CODE_INVALID_ARGUMENT;
	}
}

/* The model's worker went away in between, or came back with another vocabulary: as one that comes now. */
static void begin_again(struct request *r)
{
	r->vocab = vocab_unref(r->vocab);
	if (!r->input.is_ids)
		r->input.ids.n = 0;
	request_unpark(r);
}

static void encoded(struct request *r)
{
	if (r->encode_result < 0)
		request_fail(r, request_code(r->encode_result),
			     error_text(&r->encode_error, r->encode_result), 0);
	else if (model_state(r->model) != DSD__STATE__STATE_READY ||
		 model_vocab(r->model) != r->vocab)
		begin_again(r);
	else
		r->ready(r);
}

void request_on_encoded(struct request *r)
{
	r->encoding = false;
	if (!r->conn)
		request_free(r);
	else
		encoded(r);
}

void request_proceed(struct request *r)
{
	r->parked = false;
	r->ready(r);
}

void request_unpark(struct request *r)
{
	Dsd__Code code = model_refusal(r->model);

	r->parked = false;
	if (model_state(r->model) == DSD__STATE__STATE_DEGRADED)
		request_fail(r, code, model_reason(r->model),
			     code == DSD__CODE__CODE_RETRYABLE ? 1000 : 0);
	else
		request_start(r);
}

void request_start(struct request *r)
{
	struct io *io = r->server->io;

	if (model_state(r->model) == DSD__STATE__STATE_LOADING ||
	    model_state(r->model) == DSD__STATE__STATE_IDLE) {
		r->parked = true;
		model_park(r->model, r);
		return;
	}
	r->vocab = vocab_ref(model_vocab(r->model));
	if (r->input.passed >= 0 || (!r->input.is_ids && r->input.n_text > REQUEST_INLINE_TEXT)) {
		r->encoding = true;
		if (io_work(io, encode, r, tag_make(TAG_REQUEST, r->index, r->generation)) == 0)
			return;
		r->encoding = false;
	}
	encode(r);
	encoded(r);
}

uint64_t request_on_tick(struct request *r, uint64_t now)
{
	struct model *m = r->model;

	if (!r->conn || r->deadline_usec == UINT64_MAX)
		return UINT64_MAX;
	if (now < r->deadline_usec)
		return r->deadline_usec;
	request_fail(r, DSD__CODE__CODE_DEADLINE_EXCEEDED, "the request's deadline has passed", 0);
	model_kick(m);
	return UINT64_MAX;
}

struct request *request_find(const struct conn *c, uint64_t id)
{
	for (struct request *r = c->requests; r; r = r->next)
		if (r->id == id)
			return r;
	return NULL;
}

void request_pause_all(struct conn *c, bool paused)
{
	for (struct request *r = c->requests; r; r = r->next)
		for (uint32_t i = 0; i < r->n_choices; i++)
			if (r->choices[i].seq)
				seq_pause(r->choices[i].seq, paused);
	if (paused)
		return;
	for (struct request *r = c->requests; r; r = r->next)
		model_kick(r->model);
}

void rpc_cancel(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct request *r = request_find(c, frame->cancel->target);
	struct model *m;
	uint64_t id;

	if (!r)
		return; /* it ended meanwhile: its own last frame says so */
	m = r->model;
	id = r->id;
	c->server->count.cancelled++;
	request_detach(r);
	conn_send_error(c, id, DSD__CODE__CODE_CANCELLED, "cancelled by the client", 0);
	model_kick(m);
}
