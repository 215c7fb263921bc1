/* SPDX-License-Identifier: Apache-2.0 */
/* reload: a model's files are loaded anew. */
#include <stdbool.h>
#include <string.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct reload {
	bool drain;
};

static const struct arg_option options[] = {
	{"--drain", NULL,
	 "end the running worker first, for want of memory; requests wait meanwhile", ARG_FLAG,
	 .offset = offsetof(struct reload, drain)},
};

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct reload *reload = data;
	const char *model = n_args > 0 ? args[0] : NULL;
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	struct session s;
	int r;

	if (n_args > 1)
		return say(STATUS_USAGE, "reload: got %zu models, want one or none", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_reload(s.c, model, reload->drain ? DSC_RELOAD_DRAIN : 0, &stream);
	r = session_done(&s, r, stream, NULL);
	session_close(&s);
	if (r != STATUS_OK || !global->json)
		return r;
	o = json_object_new_object();
	json_add(o, "model", model ? json_text(model, strlen(model)) : NULL);
	return out_json(o);
}

const struct verb verb_reload = {
	.name = "reload",
	.arguments = "[MODEL]",
	.summary = "Load a model's files anew",
	.details =
		"Default: those of the first model. The new worker starts beside the running one and takes the requests\n"
		"that come when it is ready; the running one finishes its own. Files that cannot be loaded leave it\n"
		"serving. For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct reload),
	.run = run,
};
