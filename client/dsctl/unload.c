/* SPDX-License-Identifier: Apache-2.0 */
/* unload: a model goes. */
#include <string.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const char *model = n_args > 0 ? args[0] : NULL;
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	struct session s;
	int r;

	(void)data;
	if (n_args != 1)
		return say(STATUS_USAGE, "unload: got %zu models, want one", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_unload(s.c, model, &stream);
	r = session_done(&s, r, stream, NULL);
	session_close(&s);
	if (r != STATUS_OK || !global->json)
		return r;
	o = json_object_new_object();
	json_add(o, "model", model ? json_text(model, strlen(model)) : NULL);
	return out_json(o);
}

const struct verb verb_unload = {
	.name = "unload",
	.arguments = "MODEL",
	.summary = "Serve a model no more",
	.details = "Its requests finish, new ones are refused, then worker and pool go. For root.",
	.run = run,
};
