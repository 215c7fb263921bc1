/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenize and Detokenize: the text module over the wire, in parts that fit a frame. */
#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "text/vocab.h"

#define TOKENIZE_PART   65536u      /* ids of one TokenizeReply */
#define DETOKENIZE_PART 524288u     /* bytes of one DetokenizeReply */
#define DETOKENIZE_MAX  (15u << 20) /* bytes of one answer: what a connection's queue holds */
#define TOKENIZE_MAX                                                                               \
	(4u << 20) /* ids of one answer: 3 bytes each, what a connection's queue holds */

static void tokenize_ready(struct request *r)
{
	const struct ids *ids = &r->input.ids;
	size_t at = 0;

	if (ids->n > TOKENIZE_MAX) {
		char why[96];

		snprintf(why, sizeof(why), "the text has %zu tokens: want at most %u", ids->n,
			 TOKENIZE_MAX);
		request_fail(r, DSD__CODE__CODE_INVALID_ARGUMENT, why, 0);
		return;
	}
	do {
		Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
		Dsd__TokenizeReply reply = DSD__TOKENIZE_REPLY__INIT;

		reply.n_ids = MIN(ids->n - at, (size_t)TOKENIZE_PART);
		reply.ids = ids->id + at;
		at += reply.n_ids;
		reply.last = at == ids->n;
		frame.id = r->id;
		frame.msg_case = DSD__SERVER_FRAME__MSG_TOKENIZE;
		frame.tokenize = &reply;
		conn_send(r->conn, &frame);
	} while (at < ids->n);
	request_end(r);
}

void rpc_tokenize(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Tokenize *t = frame->tokenize;
	struct request *r = request_new(c, frame->id, t->model, tokenize_ready);
	const char *why = "";
	int s;

	if (!r)
		return;
	switch (t->input_case) {
	case DSD__TOKENIZE__INPUT_TEXT:
		s = request_set_text(r, &t->text, t->has_parse_special && t->parse_special);
		r->input.force_bos = t->has_add_bos && t->add_bos;
		break;
	case DSD__TOKENIZE__INPUT_CHAT:
		if ((t->has_parse_special && t->parse_special) || (t->has_add_bos && t->add_bos)) {
			s = -EINVAL;
			why = "tokenize.parse_special and add_bos go with a text";
			break;
		}
		s = request_set_chat(r, t->chat);
		break;
	case DSD__TOKENIZE__INPUT_PROMPT_FD:
		if (t->prompt_fd->kind != DSD__PROMPT_KIND__PROMPT_KIND_TEXT) {
			s = -EINVAL;
			why = "tokenize.prompt_fd.kind: got IDS, want TEXT";
			break;
		}
		s = request_set_prompt_fd(r, t->prompt_fd,
					  t->has_parse_special && t->parse_special);
		r->input.force_bos = t->has_add_bos && t->add_bos;
		break;
	default:
		s = -EINVAL;
		why = "tokenize.input: got nothing, want text, chat or prompt_fd";
	}
	if (s < 0)
		request_fail_input(r, s, why);
	else
		request_start(r);
}

static void send_text(struct conn *c, uint64_t id, const struct text_buf *text)
{
	size_t at = 0;

	do {
		Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
		Dsd__DetokenizeReply reply = DSD__DETOKENIZE_REPLY__INIT;

		reply.has_text = 1;
		reply.text.len = MIN(text->n - at, (size_t)DETOKENIZE_PART);
		reply.text.data = (uint8_t *)text->data + at;
		at += reply.text.len;
		reply.last = at == text->n;
		frame.id = id;
		frame.msg_case = DSD__SERVER_FRAME__MSG_DETOKENIZE;
		frame.detokenize = &reply;
		conn_send(c, &frame);
	} while (at < text->n);
}

/* Bytes of the text of @n ids, as far as @max. */
static size_t text_bytes(const struct vocab *v, const uint32_t *ids, size_t n, size_t max)
{
	const struct image *im = vocab_image(v);
	size_t sum = 0;

	for (size_t i = 0; i < n && sum <= max; i++) {
		uint32_t n_token = 0;

		if (ids[i] < im->h->n_vocab) /* else decoding says so */
			image_token(im, ids[i], &n_token);
		sum += n_token;
	}
	return sum;
}

/* Ids of one frame decode at memory speed: on the loop. The ids wait in a request while a model loads. */
static void detokenize_ready(struct request *r)
{
	struct text_buf text = {};
	struct error err = {};
	struct conn *c = r->conn;
	uint64_t id = r->id;
	int s;

	/* A few bytes of ids may stand for a thousand times as much text. */
	if (text_bytes(r->vocab, r->input.ids.id, r->input.ids.n, DETOKENIZE_MAX) > DETOKENIZE_MAX)
		s = error_set(&err, -EINVAL, "the text has more than %u bytes: want at most that",
			      DETOKENIZE_MAX);
	else
		s = decode_bytes(r->vocab, r->input.ids.id, r->input.ids.n, r->skip_special, &text,
				 &err);
	if (s < 0) {
		request_fail(r,
			     s == -ENOMEM ? DSD__CODE__CODE_RESOURCE_EXHAUSTED
					  : DSD__CODE__CODE_INVALID_ARGUMENT,
			     error_text(&err, s), 0);
	} else {
		request_end(r);
		send_text(c, id, &text);
	}
	text_buf_done(&text);
}

void rpc_detokenize(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Detokenize *d = frame->detokenize;
	static const Dsd__Ids none = DSD__IDS__INIT;
	struct request *r = request_new(c, frame->id, d->model, detokenize_ready);
	int s;

	if (!r)
		return;
	r->skip_special = d->has_skip_special && d->skip_special;
	s = request_set_ids(r, d->ids ?: &none);
	if (s < 0)
		request_fail_input(r, s, "");
	else
		request_start(r);
}
