/* SPDX-License-Identifier: Apache-2.0 */
/* session: have the daemon keep what a conversation computed until its next request. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct keep {
	struct dsc_request request;
	uint32_t lease;
	uint64_t set;
};

static const struct arg_option options[] = {
	{"--lease", "SECONDS", "open: how long it keeps what nobody uses; 1 to 3600, default 300",
	 ARG_U32, .offset = offsetof(struct keep, lease), .set_offset = offsetof(struct keep, set),
	 .bits = DSC_SET_LEASE_MS},
	{"--model", "NAME", "open: default: the first one", ARG_STRING,
	 .offset = offsetof(struct keep, request.model)},
};

typedef int (*starter)(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);

static int send(const struct global *global, const struct keep *k, starter start)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	uint64_t id = 0;
	char text[24];
	struct session s;
	int r, status;

	status = session_open(&s, global);
	if (status != 0)
		return status;
	if (start(s.c, &k->request, &stream) < 0)
		status = session_status(&s);
	while (status == 0 && (r = session_next(&s, stream, &e)) != 0) {
		if (r < 0 || e->type == DSC_EVENT_ERROR)
			status = session_status(&s);
		else if (e->type == DSC_EVENT_SESSION)
			id = e->session;
	}
	session_close(&s);
	if (status != 0 || id == 0)
		return status;
	snprintf(text, sizeof(text), "%" PRIu64, id);
	if (global->json) {
		struct json_object *o = json_object_new_object();

		/* Text: many readers of JSON keep 53 bits of a number. */
		json_add(o, "session", json_object_new_string(text));
		return out_json(o);
	}
	puts(text);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct keep *k = data;
	const char *verb = n_args > 0 ? args[0] : "";
	bool open = strcmp(verb, "open") == 0, fork = strcmp(verb, "fork") == 0;

	k->request.size = sizeof(k->request);
	if (!open && !fork && strcmp(verb, "close") != 0)
		return say(STATUS_USAGE, "session: got '%s', want open, fork ID or close ID", verb);
	if (n_args != (open ? 1u : 2u))
		return say(STATUS_USAGE,
			   open ? "session open: want no further arguments"
				: "session %s: want one ID",
			   verb);
	if (!open && !args_u64(args[1], &k->request.session))
		return say(STATUS_USAGE, "session %s: got '%s', want an ID that open printed", verb,
			   args[1]);
	if (k->set && (k->lease < 1 || k->lease > 3600))
		return say(STATUS_USAGE, "--lease: got %u, want 1 to 3600", k->lease);
	k->request.set = k->set;
	k->request.lease_ms = k->lease * 1000;
	return send(global, k,
		    open   ? dsc_session_open
		    : fork ? dsc_session_fork
			   : dsc_session_close);
}

const struct verb verb_session = {
	.name = "session",
	.arguments = "open|fork ID|close ID",
	.summary = "Keep what a conversation has computed until its next request",
	.details =
		"open and fork print an ID for `generate --session`. A request in a session leaves what it computed\n"
		"with the daemon until the lease ends, and the next one that begins alike need not wait for it. Each\n"
		"use begins the lease anew. It is yours, whatever connection you use; only speed depends on it.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct keep),
	.run = run,
};
