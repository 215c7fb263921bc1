/* SPDX-License-Identifier: Apache-2.0 */
/* drain: a model takes no new requests. */
#include <stdbool.h>
#include <string.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct drain {
	bool undo;
};

static const struct arg_option options[] = {
	{"--undo", NULL, "take requests again", ARG_FLAG, .offset = offsetof(struct drain, undo)},
};

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct drain *drain = data;
	const char *model = n_args > 0 ? args[0] : NULL;
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	struct session s;
	int r;

	if (n_args > 1)
		return say(STATUS_USAGE, "drain: got %zu models, want one or none", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_drain(s.c, model, drain->undo ? DSC_DRAIN_UNDO : 0, &stream);
	r = session_done(&s, r, stream, NULL);
	session_close(&s);
	if (r != STATUS_OK || !global->json)
		return r;
	o = json_object_new_object();
	json_add(o, "model", model ? json_text(model, strlen(model)) : NULL);
	return out_json(o);
}

const struct verb verb_drain = {
	.name = "drain",
	.arguments = "[MODEL]",
	.summary = "Refuse new requests and wait for those under way",
	.details =
		"Default: of the first model. Who is refused is told that it can be tried again (RETRYABLE). For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct drain),
	.run = run,
};
