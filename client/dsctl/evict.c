/* SPDX-License-Identifier: Apache-2.0 */
/* evict: what is cached and in nobody's use goes. */
#include <inttypes.h>
#include <stdio.h>

#include "output.h"
#include "session.h"
#include "verbs.h"

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	uint64_t n_pages = 0;
	struct session s;
	int r;

	(void)data;
	if (n_args > 1)
		return say(STATUS_USAGE, "evict: got %zu models, want one or none", n_args);
	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_evict(s.c, n_args > 0 ? args[0] : NULL, &stream);
	r = session_done(&s, r, stream, &n_pages);
	session_close(&s);
	if (r != STATUS_OK)
		return r;
	if (!global->json) {
		printf("%" PRIu64 " pages evicted\n", n_pages);
		return STATUS_OK;
	}
	o = json_object_new_object();
	json_add(o, "pages", json_object_new_uint64(n_pages));
	return out_json(o);
}

const struct verb verb_evict = {
	.name = "evict",
	.arguments = "[MODEL]",
	.summary = "Forget what is cached and in nobody's use",
	.details = "Of MODEL; default: of the first one. What is published stays. For root.",
	.run = run,
};
