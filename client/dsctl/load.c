/* SPDX-License-Identifier: Apache-2.0 */
/* load: one more model is served. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

struct load {
	const char *name;
};

static const struct arg_option options[] = {
	{"--name", "NAME", "to be called so; default: as the directory is", ARG_STRING,
	 .offset = offsetof(struct load, name)},
};

/* The daemon stands in a directory of its own. Return: 0, or an exit status after a sentence. */
static int absolute(const char *path, char ret[static PATH_MAX])
{
	char here[PATH_MAX] = "";
	int n;

	if (*path != '/' && !getcwd(here, sizeof(here)))
		return say(STATUS_FAILED, "load: where am I? %s", strerror(errno));
	n = snprintf(ret, PATH_MAX, "%s%s%s", here, *here ? "/" : "", path);
	if (n >= PATH_MAX)
		return say(STATUS_USAGE, "load: a path of %d bytes, want less than %d", n,
			   PATH_MAX);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct load *load = data;
	struct dsc_stream *stream = NULL;
	char path[PATH_MAX];
	struct json_object *o;
	struct session s;
	int r;

	if (n_args != 1)
		return say(STATUS_USAGE, "load: got %zu directories, want one", n_args);
	r = absolute(args[0], path);
	if (r == 0)
		r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_load(s.c, path, load->name, &stream);
	r = session_done(&s, r, stream, NULL);
	session_close(&s);
	if (r != STATUS_OK || !global->json)
		return r;
	o = json_object_new_object();
	json_add(o, "path", json_text(path, strlen(path)));
	return out_json(o);
}

const struct verb verb_load = {
	.name = "load",
	.arguments = "DIRECTORY",
	.summary = "Serve one more model",
	.details =
		"Until the daemon ends; the models of its configuration come back without being asked for. Waits until the\n"
		"model can generate. For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct load),
	.run = run,
};
