/* SPDX-License-Identifier: Apache-2.0 */
#include "requests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

void requests_done(struct requests *r)
{
	for (size_t i = 0; i < r->n; i++)
		free((char *)r->items[i].model);
	free(r->items);
	*r = (struct requests){};
}

/* Events go with the next one. */
static int keep(struct requests *r, const struct dsc_event *e)
{
	struct dsc_request_info *items;

	if (e->n_requests == 0)
		return 0;
	items = reallocarray(r->items, r->n + e->n_requests, sizeof(*items));
	if (!items)
		return -ENOMEM;
	r->items = items;
	for (size_t i = 0; i < e->n_requests; i++) {
		char *model = strdup(e->requests[i]->model);

		if (!model)
			return -ENOMEM;
		items[r->n] = *e->requests[i];
		items[r->n++].model = model;
	}
	return 0;
}

/* The daemon numbers requests as they come. */
static int by_number(const void *a, const void *b)
{
	const struct dsc_request_info *x = a, *y = b;

	return x->request < y->request ? -1 : x->request > y->request;
}

int requests_ask(struct session *s, struct requests *ret)
{
	struct dsc_stream *stream = NULL;
	struct requests list = {};
	const struct dsc_event *e;
	int r, error = 0;

	r = dsc_list(s->c, &stream);
	while (r >= 0 && (r = session_next(s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			error = e->error;
		if (e->type == DSC_EVENT_REQUESTS)
			error = keep(&list, e);
		r = error;
	}
	dsc_stream_free(stream);
	if (r < 0) {
		requests_done(&list);
		return r;
	}
	if (list.n > 0)
		qsort(list.items, list.n, sizeof(*list.items), by_number);
	*ret = list;
	return 0;
}

const char *activity_text(enum dsc_activity activity)
{
	switch (activity) {
	case DSC_ACTIVITY_ENCODING:
		return "encoding";
	case DSC_ACTIVITY_WAITING:
		return "waiting";
	case DSC_ACTIVITY_PREFILL:
		return "prefill";
	case DSC_ACTIVITY_DECODE:
		return "decode";
	case DSC_ACTIVITY_PAUSED:
		return "paused";
	case DSC_ACTIVITY_MODEL:
		return "model";
	}
	return "unknown";
}
