/* SPDX-License-Identifier: Apache-2.0 */
/* reload: models' files are loaded anew. */
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

/* The names of the models that the daemon has, as a JSON array. Return: 0, or an exit status after a sentence. */
static int all_models(struct session *s, struct json_object *ret)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	int r = dsc_models(s->c, &stream), status = STATUS_OK;

	if (r < 0)
		return session_status(s);
	while ((r = session_next(s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			status = session_status(s);
		for (size_t i = 0; e->type == DSC_EVENT_MODELS && i < e->n_models; i++)
			json_object_array_add(
				ret, json_text(e->models[i]->name, strlen(e->models[i]->name)));
	}
	return s->interrupted ? STATUS_INTERRUPTED : status;
}

static int reload_one(struct session *s, const char *model, bool drain)
{
	struct dsc_stream *stream = NULL;
	int r = dsc_reload(s->c, model, drain ? DSC_RELOAD_DRAIN : 0, &stream);

	return session_done(s, r, stream, NULL);
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct reload *reload = data;
	struct json_object *names, *done, *o;
	struct session s;
	int r, status = STATUS_OK;

	if (n_args > 1)
		return say(STATUS_USAGE, "reload: got %zu models, want one or none", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	names = json_object_new_array();
	done = json_object_new_array();
	if (n_args == 1)
		json_object_array_add(names, json_text(args[0], strlen(args[0])));
	else
		status = all_models(&s, names);
	/* One after the other: beside the running workers there is never more than one that comes. */
	for (size_t i = 0; i < json_object_array_length(names) && !s.interrupted; i++) {
		struct json_object *name = json_object_array_get_idx(names, i);

		r = reload_one(&s, json_object_get_string(name), reload->drain);
		if (r == STATUS_OK)
			json_object_array_add(done, json_object_get(name));
		else if (status == STATUS_OK)
			status = r;
	}
	session_close(&s);
	json_object_put(names);
	if (!global->json) {
		json_object_put(done);
		return status;
	}
	o = json_object_new_object();
	json_add(o, "models", done);
	r = out_json(o);
	return status != STATUS_OK ? status : r;
}

const struct verb verb_reload = {
	.name = "reload",
	.arguments = "[MODEL]",
	.summary = "Load a model's files anew",
	.details =
		"Default: of every model, one after the other. The new worker starts beside the running one and takes the\n"
		"requests that come when it is ready; the running one finishes its own. Files that cannot be loaded leave it\n"
		"serving. For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct reload),
	.run = run,
};
