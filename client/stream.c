/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: a queue of events each, filled by the connection, emptied by the caller. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static bool is_idle(const struct dsc *c)
{
	for (const struct dsc_stream *s = c->streams; s; s = s->next)
		if (!s->ended)
			return false;
	return true;
}

static int start(struct dsc *c, const struct ask *ask, struct dsc_stream **ret)
{
	struct dsc_stream *s;
	int r;

	if (c->failed)
		return c->failed;
	if (c->path && is_idle(c))
		dsc_process(c); /* a daemon that left meanwhile is noticed before it is asked */
	s = calloc(1, sizeof(*s));
	if (!s)
		return dsc_fail(c, -ENOMEM, DSC_CODE_NONE, "out of memory for a request");
	s->c = c;
	s->kind = ask->kind;
	s->last = &s->first;
	s->id = c->next_id;
	s->next = c->streams;
	c->streams = s;
	r = request_send(c, s->id, ask);
	if (r < 0) {
		c->streams = s->next;
		resume_free(s);
		free(s);
		return r;
	}
	c->next_id++;
	*ret = s;
	return 0;
}

int dsc_generate(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_GENERATE, .request = request}, ret);
}

int dsc_score(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_SCORE, .request = request}, ret);
}

int dsc_tokenize(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_TOKENIZE, .request = request}, ret);
}

int dsc_detokenize(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_DETOKENIZE, .request = request}, ret);
}

int dsc_models(struct dsc *c, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_MODELS}, ret);
}

int dsc_stats(struct dsc *c, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_STATS}, ret);
}

int dsc_list(struct dsc *c, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_LIST}, ret);
}

int dsc_cancel_request(struct dsc *c, uint64_t request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_CANCEL_REQUEST, .number = request}, ret);
}

int dsc_publish(struct dsc *c, const char *name, const struct dsc_request *request,
		struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_PUBLISH, .request = request, .name = name},
		     ret);
}

int dsc_unpublish(struct dsc *c, const char *name, const char *model, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_UNPUBLISH, .name = name, .model = model}, ret);
}

int dsc_evict(struct dsc *c, const char *model, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_EVICT, .model = model}, ret);
}

int dsc_load(struct dsc *c, const char *path, const char *name, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_LOAD, .path = path, .name = name}, ret);
}

int dsc_unload(struct dsc *c, const char *model, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_UNLOAD, .model = model}, ret);
}

int dsc_reload(struct dsc *c, const char *model, unsigned flags, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_RELOAD, .model = model, .flags = flags}, ret);
}

int dsc_drain(struct dsc *c, const char *model, unsigned flags, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_DRAIN, .model = model, .flags = flags}, ret);
}

int dsc_session_open(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_SESSION_OPEN, .request = request}, ret);
}

int dsc_session_fork(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_SESSION_FORK, .request = request}, ret);
}

int dsc_session_close(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret)
{
	return start(c, &(struct ask){.kind = STREAM_SESSION_CLOSE, .request = request}, ret);
}

int dsc_next(struct dsc_stream *s, const struct dsc_event **ret)
{
	struct event_node *node = s->first;

	if (!node)
		return s->ended ? 0 : -EAGAIN;
	s->first = node->next;
	if (!s->first)
		s->last = &s->first;
	s->c->queued -= node->bytes;
	free(s->taken);
	s->taken = node;
	if (node->event.type == DSC_EVENT_ERROR)
		dsc_fail(s->c, 0, node->event.code, "%s", node->event.message);
	*ret = &node->event;
	return 1;
}

int dsc_wait(struct dsc_stream *s, const struct dsc_event **ret, int timeout_ms)
{
	int64_t deadline = dsc_now_ms() + timeout_ms;
	int r;

	for (;;) {
		r = dsc_next(s, ret);
		if (r != -EAGAIN)
			return r;
		if (s->c->queued >= DSC_QUEUE_MAX)
			return dsc_fail(
				s->c, -ENOBUFS, DSC_CODE_NONE,
				"%zu bytes of other streams' events wait to be taken, want less than %u",
				s->c->queued, DSC_QUEUE_MAX);
		r = dsc_sleep(s->c, dsc_left_ms(deadline, timeout_ms));
		if (r < 0)
			return r;
		dsc_process(s->c); /* if the connection ended, the stream has its event */
	}
}

int dsc_cancel(struct dsc_stream *s)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Cancel cancel = DSD__CANCEL__INIT;
	int r = 0;

	if (s->ended || !resume_cancel(s))
		return 0;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_CANCEL;
	frame.cancel = &cancel;
	for (uint32_t i = 0; i < resume_n_parts(s) && r == 0; i++) {
		cancel.target = s->id + i;
		frame.id = s->c->next_id++;
		r = dsc_send(s->c, &frame);
	}
	return r;
}

static void node_free(struct dsc_stream *s, struct event_node *node)
{
	s->c->queued -= node->bytes;
	free(node);
}

void dsc_stream_free(struct dsc_stream *s)
{
	if (!s)
		return;
	dsc_cancel(s);
	for (struct dsc_stream **p = &s->c->streams; *p; p = &(*p)->next) {
		if (*p != s)
			continue;
		*p = s->next;
		break;
	}
	while (s->first) {
		struct event_node *node = s->first;

		s->first = node->next;
		node_free(s, node);
	}
	free(s->taken);
	resume_free(s);
	free(s);
}
