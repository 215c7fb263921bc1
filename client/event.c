/* SPDX-License-Identifier: Apache-2.0 */
/* From frames to events. An event and everything it points at is one allocation: first the room is
 * counted by room_*(), then filled by put_*() in the same order, each piece rounded up to 8 bytes.
 * put_*() stop at the end of the room, so a miscount is an assertion and never an overrun. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---------------------------------------------------------------- one allocation */

struct room {
	uint8_t *at, *end;
};

static size_t room_for(size_t bytes)
{
	return (bytes + 7) & ~(size_t)7;
}

static size_t room_for_string(const char *s)
{
	return s ? room_for(strlen(s) + 1) : 0;
}

static void *put(struct room *r, const void *data, size_t bytes)
{
	uint8_t *at = r->at;

	assert(room_for(bytes) <= (size_t)(r->end - r->at));
	if (data && bytes > 0)
		memcpy(at, data, bytes);
	r->at += room_for(bytes);
	return at;
}

/* The room was zeroed, so a byte more is the terminating NUL. */
static const char *put_bytes(struct room *r, ProtobufCBinaryData b)
{
	char *at = put(r, NULL, b.len + 1);

	if (b.len > 0)
		memcpy(at, b.data, b.len);
	return at;
}

static const char *put_string(struct room *r, const char *s)
{
	return s ? put(r, s, strlen(s) + 1) : NULL;
}

static struct event_node *node_new(enum dsc_event_type type, size_t extra, struct room *ret)
{
	size_t bytes = room_for(sizeof(struct event_node)) + extra;
	struct event_node *node = calloc(1, bytes);

	if (!node)
		return NULL;
	node->bytes = bytes;
	node->event.type = type;
	ret->at = (uint8_t *)node + room_for(sizeof(struct event_node));
	ret->end = (uint8_t *)node + bytes;
	return node;
}

static void append(struct dsc_stream *s, struct event_node *node)
{
	*s->last = node;
	s->last = &node->next;
	s->c->queued += node->bytes;
	if (node->event.type == DSC_EVENT_DONE || node->event.type == DSC_EVENT_ERROR)
		s->ended = true;
}

/* ---------------------------------------------------------------- ends */

int event_errno(enum dsc_code code)
{
	switch (code) {
	case DSC_CODE_INVALID_ARGUMENT:
		return -EINVAL;
	case DSC_CODE_NOT_FOUND:
		return -ENOENT;
	case DSC_CODE_FAILED_PRECONDITION:
		return -EPERM;
	case DSC_CODE_RESOURCE_EXHAUSTED:
		return -EBUSY;
	case DSC_CODE_RETRYABLE:
		return -ECONNRESET;
	case DSC_CODE_CANCELLED:
		return -ECANCELED;
	case DSC_CODE_DEADLINE_EXCEEDED:
		return -ETIME;
	case DSC_CODE_MODEL_INVALID:
		return -ENOEXEC;
	case DSC_CODE_FRAME_TOO_LARGE:
		return -EMSGSIZE;
	case DSC_CODE_MALFORMED:
		return -EPROTO;
	case DSC_CODE_UNIMPLEMENTED:
		return -EOPNOTSUPP;
	case DSC_CODE_PERMISSION_DENIED:
		return -EACCES;
	case DSC_CODE_NONE:
	case DSC_CODE_MODEL_FAULT:
	case DSC_CODE_INTERNAL:
		break;
	}
	return -EIO; /* also codes of a later daemon */
}

int event_error(struct dsc_stream *s, int error, enum dsc_code code, uint32_t retry_after_ms,
		const char *message)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_ERROR, room_for_string(message), &room);

	if (!node) {
		s->ended = true;
		return -ENOMEM;
	}
	node->event.error = error;
	node->event.code = code;
	node->event.retry_after_ms = retry_after_ms;
	node->event.message = put_string(&room, message);
	append(s, node);
	return 0;
}

static int event_done(struct dsc_stream *s, const Dsd__Usage *usage, uint64_t count)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_DONE, 0, &room);

	if (!node)
		return -ENOMEM;
	if (usage)
		node->event.usage = (struct dsc_usage){
			.prompt_tokens = usage->prompt_tokens,
			.cached_tokens = usage->cached_tokens,
			.completion_tokens = usage->completion_tokens,
			.queue_usec = usage->queue_usec,
			.prefill_usec = usage->prefill_usec,
			.decode_usec = usage->decode_usec,
		};
	node->event.count = count;
	append(s, node);
	return 0;
}

/* ---------------------------------------------------------------- generate, score, tokens */

static int event_started(struct dsc_stream *s, const Dsd__Started *m)
{
	struct room room;
	struct event_node *node =
		node_new(DSC_EVENT_STARTED,
			 room_for(m->model_digest.len + 1) + room_for_string(m->model), &room);

	if (!node)
		return -ENOMEM;
	node->event.request = m->request;
	node->event.seed = m->seed;
	node->event.prompt_tokens = m->prompt_tokens;
	node->event.digest = (const uint8_t *)put_bytes(&room, m->model_digest);
	node->event.digest_bytes = m->model_digest.len;
	node->event.model = put_string(&room, m->model);
	append(s, node);
	return 0;
}

static size_t room_for_tokens(Dsd__TokenLogprob *const *tokens, size_t n)
{
	size_t bytes = room_for(n * sizeof(struct dsc_token));

	for (size_t i = 0; i < n; i++)
		bytes += room_for(tokens[i]->n_top * sizeof(struct dsc_logprob));
	return bytes;
}

static const struct dsc_token *put_tokens(struct room *room, Dsd__TokenLogprob *const *tokens,
					  size_t n)
{
	struct dsc_token *out = put(room, NULL, n * sizeof(*out));

	for (size_t i = 0; i < n; i++) {
		const Dsd__TokenLogprob *t = tokens[i];
		struct dsc_logprob *top = put(room, NULL, t->n_top * sizeof(*top));

		for (size_t k = 0; k < t->n_top; k++)
			top[k] = (struct dsc_logprob){t->top[k]->id, t->top[k]->logprob};
		out[i] = (struct dsc_token){
			.id = t->id,
			.logprob = t->logprob,
			.has_logprob = t->has_logprob != 0,
			.top = top,
			.n_top = (uint32_t)t->n_top,
		};
	}
	return out;
}

/* Any piece of an answer: text, ids and log-probabilities, each of which may be empty. */
static int event_piece(struct dsc_stream *s, enum dsc_event_type type, uint32_t choice,
		       ProtobufCBinaryData text, const uint32_t *ids, size_t n_ids,
		       Dsd__TokenLogprob *const *tokens, size_t n_tokens)
{
	struct room room;
	struct event_node *node = node_new(type,
					   room_for(text.len + 1) + room_for(n_ids * sizeof(*ids)) +
						   room_for_tokens(tokens, n_tokens),
					   &room);

	if (!node)
		return -ENOMEM;
	node->event.choice = choice;
	node->event.text = put_bytes(&room, text);
	node->event.text_bytes = text.len;
	node->event.ids = put(&room, ids, n_ids * sizeof(*ids));
	node->event.n_ids = n_ids;
	node->event.tokens = put_tokens(&room, tokens, n_tokens);
	node->event.n_tokens = n_tokens;
	append(s, node);
	return 0;
}

static int event_finished(struct dsc_stream *s, uint32_t choice, enum dsc_finish finish)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_FINISHED, 0, &room);

	if (!node)
		return -ENOMEM;
	node->event.choice = choice;
	node->event.finish = finish;
	append(s, node);
	return 0;
}

static int event_delta(struct dsc_stream *s, const Dsd__Delta *d)
{
	int r = 0;

	if (d->text.len || d->n_ids || d->n_logprobs || !d->has_finish)
		r = event_piece(s, DSC_EVENT_TEXT, d->choice, d->text, d->ids, d->n_ids,
				d->logprobs, d->n_logprobs);
	if (r == 0 && d->has_finish)
		r = event_finished(s, d->choice, (enum dsc_finish)d->finish);
	return r;
}

/* A part of an answer in parts; the last one ends the request. */
static int event_part(struct dsc_stream *s, int r, bool last)
{
	return r == 0 && last ? event_done(s, NULL, 0) : r;
}

/* ---------------------------------------------------------------- models, stats */

static size_t room_for_models(const Dsd__ModelsReply *m)
{
	size_t bytes = room_for(m->n_models * sizeof(void *));

	for (size_t i = 0; i < m->n_models; i++) {
		const Dsd__Model *x = m->models[i];

		bytes += room_for(sizeof(struct dsc_model)) + room_for(x->digest.len + 1);
		bytes += room_for_string(x->name) + room_for_string(x->reason) +
			 room_for_string(x->arch);
		bytes += room_for_string(x->kv_entry) + room_for_string(x->stage);
	}
	return bytes;
}

static const struct dsc_model *put_model(struct room *room, const Dsd__Model *x)
{
	struct dsc_model *m = put(room, NULL, sizeof(*m));

	*m = (struct dsc_model){
		.name = put_string(room, x->name),
		.state = (enum dsc_state)x->state,
		.reason = put_string(room, x->reason),
		.digest = (const uint8_t *)put_bytes(room, x->digest),
		.digest_bytes = x->digest.len,
		.arch = put_string(room, x->arch),
		.context = x->context,
		.vocab = x->vocab,
		.layers = x->layers,
		.experts = x->experts,
		.experts_used = x->experts_used,
		.params = x->params,
		.params_active = x->params_active,
		.weight_bytes = x->weight_bytes,
		.kv_bytes_per_token = x->kv_bytes_per_token,
		.mha_bytes_per_token = x->mha_bytes_per_token,
		.gqa8_bytes_per_token = x->gqa8_bytes_per_token,
		.kv_entry = put_string(room, x->kv_entry),
		.progress = x->progress,
		.stage = put_string(room, x->stage),
		.chat = x->chat,
	};
	return m;
}

static int event_models(struct dsc_stream *s, const Dsd__ModelsReply *m)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_MODELS, room_for_models(m), &room);
	const struct dsc_model **models;

	if (!node)
		return -ENOMEM;
	models = put(&room, NULL, m->n_models * sizeof(*models));
	for (size_t i = 0; i < m->n_models; i++)
		models[i] = put_model(&room, m->models[i]);
	node->event.models = models;
	node->event.n_models = m->n_models;
	append(s, node);
	return event_done(s, NULL, 0);
}

static const struct dsc_model_stats *put_model_stats(struct room *room, const Dsd__ModelStats *x)
{
	struct dsc_model_stats *m = put(room, NULL, sizeof(*m));

	*m = (struct dsc_model_stats){
		.name = put_string(room, x->name),
		.pages_total = x->pages_total,
		.pages_used = x->pages_used,
		.running = x->running,
		.waiting = x->waiting,
		.steps = x->steps,
		.rows = x->rows,
		.prompt_tokens = x->prompt_tokens,
		.generated_tokens = x->generated_tokens,
		.cached_tokens = x->cached_tokens,
		.worker_usec = x->worker_usec,
		.worker_pid = x->worker_pid,
		.pages_cached = x->pages_cached,
		.preemptions = x->preemptions,
		.pages_published = x->pages_published,
		.worker_starts = x->worker_starts,
		.worker_deaths = x->worker_deaths,
		.kv_bytes_per_token = x->kv_bytes_per_token,
		.mha_bytes_per_token = x->mha_bytes_per_token,
		.gqa8_bytes_per_token = x->gqa8_bytes_per_token,
		.params = x->params,
		.params_active = x->params_active,
	};
	return m;
}

static int event_stats(struct dsc_stream *s, const Dsd__StatsReply *m)
{
	struct room room;
	struct event_node *node;
	struct dsc_stats_reply *stats;
	const struct dsc_model_stats **models;
	size_t bytes = room_for(sizeof(*stats)) + room_for(m->n_models * sizeof(*models)) +
		       room_for_string(m->version) + room_for_string(m->io_backend);

	for (size_t i = 0; i < m->n_models; i++)
		bytes += room_for(sizeof(struct dsc_model_stats)) +
			 room_for_string(m->models[i]->name);
	node = node_new(DSC_EVENT_STATS, bytes, &room);
	if (!node)
		return -ENOMEM;
	stats = put(&room, NULL, sizeof(*stats));
	models = put(&room, NULL, m->n_models * sizeof(*models));
	for (size_t i = 0; i < m->n_models; i++)
		models[i] = put_model_stats(&room, m->models[i]);
	*stats = (struct dsc_stats_reply){
		.uptime_usec = m->uptime_usec,
		.state = (enum dsc_state)m->state,
		.version = put_string(&room, m->version),
		.io_backend = put_string(&room, m->io_backend),
		.connections = m->connections,
		.connections_total = m->connections_total,
		.requests_total = m->requests_total,
		.requests_failed = m->requests_failed,
		.requests_cancelled = m->requests_cancelled,
		.protocol_errors = m->protocol_errors,
		.bytes_in = m->bytes_in,
		.bytes_out = m->bytes_out,
		.models = models,
		.n_models = m->n_models,
		.broker_cpu_usec = m->broker_cpu_usec,
	};
	node->event.stats = stats;
	append(s, node);
	return event_done(s, NULL, 0);
}

/* ---------------------------------------------------------------- requests under way */

static int event_requests(struct dsc_stream *s, const Dsd__ListReply *m)
{
	size_t bytes = room_for(m->n_requests * sizeof(void *));
	const struct dsc_request_info **list;
	struct event_node *node;
	struct room room;

	for (size_t i = 0; i < m->n_requests; i++)
		bytes += room_for(sizeof(**list)) + room_for_string(m->requests[i]->model);
	node = node_new(DSC_EVENT_REQUESTS, bytes, &room);
	if (!node)
		return -ENOMEM;
	list = put(&room, NULL, m->n_requests * sizeof(*list));
	for (size_t i = 0; i < m->n_requests; i++) {
		const Dsd__Request *x = m->requests[i];
		struct dsc_request_info *r = put(&room, NULL, sizeof(*r));

		*r = (struct dsc_request_info){
			.request = x->request,
			.uid = x->uid,
			.pid = x->pid,
			.model = put_string(&room, x->model),
			.activity = (enum dsc_activity)x->activity,
			.priority = x->has_priority ? (enum dsc_priority)x->priority : 0,
			.prompt_tokens = x->prompt_tokens,
			.cached_tokens = x->cached_tokens,
			.completion_tokens = x->completion_tokens,
			.pages = x->pages,
			.age_usec = x->age_usec,
		};
		list[i] = r;
	}
	node->event.requests = list;
	node->event.n_requests = m->n_requests;
	append(s, node);
	return 0;
}

static int event_session(struct dsc_stream *s, const Dsd__SessionReply *m)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_SESSION, 0, &room);

	if (!node)
		return -ENOMEM;
	node->event.session = m->session;
	node->event.lease_ms = m->lease_ms;
	append(s, node);
	return event_done(s, NULL, 0);
}

/* ---------------------------------------------------------------- which frame answers what */

static int event_progress(struct dsc_stream *s, const Dsd__Progress *m)
{
	struct room room;
	struct event_node *node = node_new(DSC_EVENT_PROGRESS, room_for_string(m->stage), &room);

	if (!node)
		return -ENOMEM;
	node->event.stage = put_string(&room, m->stage);
	node->event.progress = m->done;
	append(s, node);
	return 0;
}

/* Ack, Progress and SessionReply answer several kinds, each other frame one. */
static bool takes_progress(enum stream_kind kind)
{
	return kind == STREAM_LOAD || kind == STREAM_UNLOAD || kind == STREAM_RELOAD ||
	       kind == STREAM_DRAIN;
}

static bool takes_ack(enum stream_kind kind)
{
	return takes_progress(kind) || kind == STREAM_CANCEL_REQUEST || kind == STREAM_PUBLISH ||
	       kind == STREAM_UNPUBLISH || kind == STREAM_EVICT || kind == STREAM_SESSION_CLOSE;
}

int event_from_frame(struct dsc_stream *s, const Dsd__ServerFrame *f)
{
	/* Messages after the last field this library knows arrive as NOT_SET. */
	static const unsigned kind_of[] = {
		[DSD__SERVER_FRAME__MSG_STARTED] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_DELTA] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_DONE] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_SCORE] = STREAM_SCORE,
		[DSD__SERVER_FRAME__MSG_TOKENIZE] = STREAM_TOKENIZE,
		[DSD__SERVER_FRAME__MSG_DETOKENIZE] = STREAM_DETOKENIZE,
		[DSD__SERVER_FRAME__MSG_MODELS] = STREAM_MODELS,
		[DSD__SERVER_FRAME__MSG_STATS] = STREAM_STATS,
		[DSD__SERVER_FRAME__MSG_LIST] = STREAM_LIST,
	};
	const ProtobufCBinaryData none = {};

	if (f->msg_case == DSD__SERVER_FRAME__MSG__NOT_SET)
		return 0;
	if (f->msg_case == DSD__SERVER_FRAME__MSG_ERROR)
		return event_error(s, event_errno((enum dsc_code)f->error->code),
				   (enum dsc_code)f->error->code, f->error->retry_after_ms,
				   f->error->message);
	if (f->msg_case == DSD__SERVER_FRAME__MSG_ACK && takes_ack(s->kind))
		return event_done(s, NULL, f->ack->count);
	if (f->msg_case == DSD__SERVER_FRAME__MSG_PROGRESS && takes_progress(s->kind))
		return event_progress(s, f->progress);
	if (f->msg_case == DSD__SERVER_FRAME__MSG_SESSION &&
	    (s->kind == STREAM_SESSION_OPEN || s->kind == STREAM_SESSION_FORK))
		return event_session(s, f->session);
	/* An answer of another kind, or one that a later daemon gives. */
	if (f->msg_case == DSD__SERVER_FRAME__MSG_HELLO ||
	    (size_t)f->msg_case >= sizeof(kind_of) / sizeof(kind_of[0]) ||
	    kind_of[f->msg_case] != s->kind)
		return -EPROTO;
	switch (f->msg_case) {
	case DSD__SERVER_FRAME__MSG_STARTED:
		return event_started(s, f->started);
	case DSD__SERVER_FRAME__MSG_DELTA:
		return event_delta(s, f->delta);
	case DSD__SERVER_FRAME__MSG_DONE:
		return event_done(s, f->done->usage, 0);
	case DSD__SERVER_FRAME__MSG_SCORE:
		return event_part(s,
				  event_piece(s, DSC_EVENT_TOKENS, 0, none, NULL, 0,
					      f->score->tokens, f->score->n_tokens),
				  f->score->last);
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
		return event_part(s,
				  event_piece(s, DSC_EVENT_TOKENS, 0, none, f->tokenize->ids,
					      f->tokenize->n_ids, NULL, 0),
				  f->tokenize->last);
	case DSD__SERVER_FRAME__MSG_DETOKENIZE:
		return event_part(
			s, event_piece(s, DSC_EVENT_TEXT, 0, f->detokenize->text, NULL, 0, NULL, 0),
			f->detokenize->last);
	case DSD__SERVER_FRAME__MSG_MODELS:
		return event_models(s, f->models);
	case DSD__SERVER_FRAME__MSG_STATS:
		return event_stats(s, f->stats);
	case DSD__SERVER_FRAME__MSG_LIST:
		return event_part(s, event_requests(s, f->list), f->list->last);
	default:
		return -EPROTO;
	}
}
