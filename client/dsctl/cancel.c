/* SPDX-License-Identifier: Apache-2.0 */
/* cancel: end requests by the daemon's numbers. */
#include <stdbool.h>
#include <stdint.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct cancel {
	bool all;
};

static const struct arg_option options[] = {
	{"--all", NULL, "anybody's, over the administrative socket", ARG_FLAG,
	 .offset = offsetof(struct cancel, all)},
};

/* One that is not there does not keep the others. */
static int cancel_each(struct session *s, char **args, size_t n_args, struct json_object *done)
{
	int status = STATUS_OK;

	for (size_t i = 0; i < n_args && !s->interrupted; i++) {
		struct dsc_stream *stream = NULL;
		uint64_t request = 0;
		int r;

		args_u64(args[i], &request); /* looked at before */
		r = dsc_cancel_request(s->c, request, &stream);
		r = session_done(s, r, stream, NULL);
		if (r == STATUS_OK)
			json_object_array_add(done, json_object_new_uint64(request));
		else
			status = r;
	}
	return status;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct cancel *cancel = data;
	struct json_object *o, *done;
	struct session s;
	uint64_t request;
	int r;

	if (n_args == 0)
		return say(STATUS_USAGE,
			   "cancel: want the number of a request; `dsctl ps` lists them");
	for (size_t i = 0; i < n_args; i++)
		if (!args_u64(args[i], &request))
			return say(STATUS_USAGE,
				   "cancel: got '%s', want the number of a request; `dsctl ps` "
				   "lists them",
				   args[i]);
	r = cancel->all ? session_open_admin(&s, global) : session_open(&s, global);
	if (r != 0)
		return r;
	o = json_object_new_object();
	done = json_object_new_array();
	r = cancel_each(&s, args, n_args, done);
	json_add(o, "cancelled", done);
	if (global->json)
		out_json(o);
	else
		json_object_put(o);
	session_close(&s);
	return r;
}

const struct verb verb_cancel = {
	.name = "cancel",
	.arguments = "REQUEST...",
	.summary = "End requests",
	.details =
		"REQUEST is the daemon's number, which ps shows and generate --json tells. Who waits for the\n"
		"answer gets CANCELLED.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct cancel),
	.run = run,
};
