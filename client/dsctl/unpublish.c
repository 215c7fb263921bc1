/* SPDX-License-Identifier: Apache-2.0 */
/* unpublish: a prefix is nobody's any more. */
#include <string.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct unpublish {
	const char *model;
};

static const struct arg_option options[] = {
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct unpublish, model)},
};

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct unpublish *u = data;
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	struct session s;
	int r;

	if (n_args != 1)
		return say(STATUS_USAGE, "unpublish: got %zu names, want one", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_unpublish(s.c, args[0], u->model, &stream);
	r = session_done(&s, r, stream, NULL);
	session_close(&s);
	if (r != STATUS_OK || !global->json)
		return r;
	o = json_object_new_object();
	json_add(o, "name", json_text(args[0], strlen(args[0])));
	return out_json(o);
}

const struct verb verb_unpublish = {
	.name = "unpublish",
	.arguments = "NAME",
	.summary = "Forget a published prefix",
	.details = "For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct unpublish),
	.run = run,
};
