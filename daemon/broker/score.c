/* SPDX-License-Identifier: Apache-2.0 */
/* Score: one sequence that samples nothing; its prompt rows' log-probabilities go out in parts. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "broker/conn.h"
#include "broker/events.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "layout/image.h"

#define SCORE_PART 64u /* tokens of one ScoreReply */

struct score {
	uint32_t n;
	struct event_logprob part[SCORE_PART];
	Dsd__TokenLogprob *list[SCORE_PART];
};

static void send_part(struct request *r, bool last)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__ScoreReply reply = DSD__SCORE_REPLY__INIT;
	struct score *sc = r->score;

	for (uint32_t i = 0; i < sc->n; i++)
		sc->list[i] = &sc->part[i].token;
	reply.n_tokens = sc->n;
	reply.tokens = sc->list;
	reply.last = last;
	frame.id = r->id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_SCORE;
	frame.score = &reply;
	conn_send(r->conn, &frame);
	sc->n = 0;
}

static void add(struct request *r, uint32_t id, const struct channel_result_row *row)
{
	if (r->score->n == SCORE_PART)
		send_part(r, false);
	event_logprob_init(&r->score->part[r->score->n++], id, row);
}

static void on_prompt(void *ctx, const struct channel_result_row *row)
{
	struct choice *c = ctx;
	struct request *r = c->request;

	add(r, r->input.ids.id[row->position + 1], row);
}

static void on_end(void *ctx, enum seq_end why)
{
	struct choice *c = ctx;
	struct request *r = c->request;

	c->seq = NULL;
	if (why == SEQ_END_SCORED) {
		send_part(r, true);
		request_end(r);
	} else {
		request_fail_seq(r, why);
	}
}

static const struct seq_ops score_ops = {.prompt = on_prompt, .end = on_end};

static void score_ready(struct request *r)
{
	uint32_t room = model_room(r->model);
	struct error err = {};
	struct seq_config cfg = {
		.ops = &score_ops,
		.ctx = &r->choices[0],
		.uid = r->conn->uid,
		.ids = r->input.ids.id,
		.n_ids = (uint32_t)MIN(r->input.ids.n, (size_t)UINT32_MAX),
		.params = r->params,
		.prompt_logprobs = true,
	};
	int s = 0;

	cfg.params.n_prompt = cfg.n_ids;
	if (cfg.n_ids == 0)
		s = error_set(&err, -EINVAL, "the text has no tokens: want at least one");
	else if (cfg.n_ids > room)
		s = error_set(&err, -EINVAL, "the text has %u tokens: want at most %u", cfg.n_ids,
			      room);
	r->n_choices = 1;
	r->choices[0].request = r;
	r->score = s == 0 ? io_alloc(r->server->io, sizeof(*r->score)) : NULL;
	if (s == 0 && !r->score)
		s = -ENOMEM;
	if (s == 0)
		s = sched_submit(model_sched(r->model), &cfg, &r->choices[0].seq, &err);
	if (s < 0) {
		request_fail(r, request_code(s), error_text(&err, s), s == -EAGAIN ? 1000 : 0);
		return;
	}
	seq_pause(r->choices[0].seq, r->conn->congested);
	add(r, r->input.ids.id[0], NULL);
	model_kick(r->model);
}

static void score_release(struct request *r)
{
	free(r->score);
}

void rpc_score(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Score *q = frame->score;
	struct request *r = request_new(c, frame->id, q->model, score_ready);
	const char *why = "";
	int s;

	if (!r)
		return;
	r->release = score_release;
	r->params = (struct channel_params){.top_p = 1, .repetition_penalty = 1};
	r->params.n_top = q->has_logprobs ? q->logprobs : 0;
	switch (q->prompt_case) {
	case DSD__SCORE__PROMPT_TEXT:
		s = request_set_text(r, &q->text, q->has_parse_special && q->parse_special);
		r->input.force_bos = true;
		break;
	case DSD__SCORE__PROMPT_IDS:
		s = request_set_ids(r, q->ids);
		break;
	case DSD__SCORE__PROMPT_PROMPT_FD:
		s = request_set_prompt_fd(r, q->prompt_fd,
					  q->has_parse_special && q->parse_special);
		r->input.force_bos = true;
		break;
	default:
		s = -EINVAL;
		why = "score.prompt: got nothing, want text, ids or prompt_fd";
	}
	if (s == 0 && r->input.is_ids && q->has_parse_special && q->parse_special) {
		s = -EINVAL;
		why = "score.parse_special goes with a text";
	}
	if (s < 0)
		request_fail_input(r, s, why);
	else
		request_start(r);
}
