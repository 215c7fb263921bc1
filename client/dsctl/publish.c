/* SPDX-License-Identifier: Apache-2.0 */
/* publish: a prefix that every user's prompts find in the pool. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "prompt.h"
#include "session.h"
#include "verbs.h"

struct publish {
	struct dsc_request request;
	bool chat;
	const char *ids;
};

static const struct arg_option options[] = {
	{"--chat", NULL, "the text is the system message that conversations begin with", ARG_FLAG,
	 .offset = offsetof(struct publish, chat)},
	{"--ids", "LIST", "token ids instead of a text, verbatim: 1,2,3", ARG_STRING,
	 .offset = offsetof(struct publish, ids)},
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct publish, request.model)},
};

static int publish(const struct global *global, const char *name, const struct publish *p)
{
	struct dsc_stream *stream = NULL;
	struct json_object *o;
	uint64_t n_tokens = 0;
	struct session s;
	int r;

	r = session_open_admin(&s, global);
	if (r != 0)
		return r;
	r = dsc_publish(s.c, name, &p->request, &stream);
	r = session_done(&s, r, stream, &n_tokens);
	session_close(&s);
	if (r != STATUS_OK)
		return r;
	if (!global->json) {
		printf("%s: %" PRIu64 " tokens published\n", name, n_tokens);
		return STATUS_OK;
	}
	o = json_object_new_object();
	json_add(o, "name", json_text(name, strlen(name)));
	json_add(o, "tokens", json_object_new_uint64(n_tokens));
	return out_json(o);
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct publish *p = data;
	struct dsc_message system = {.role = DSC_ROLE_SYSTEM};
	struct text text = {};
	uint32_t *ids = NULL;
	int r;

	if (n_args == 0)
		return say(STATUS_USAGE, "publish: want a name for the prefix");
	if (p->ids && (n_args > 1 || p->chat))
		return say(STATUS_USAGE,
			   "--ids is the whole prefix: want no text or --chat with it");
	p->request.size = sizeof(p->request);
	if (p->ids) {
		text = (struct text){(char *)p->ids, strlen(p->ids)};
		r = prompt_ids("--ids", &text, &ids, &p->request.n_ids);
		text.data = NULL;
		p->request.prompt = DSC_PROMPT_IDS;
		p->request.ids = ids;
	} else {
		r = prompt_read(args + 1, n_args - 1, &text);
		p->request.text = system.text = text.data;
		p->request.text_bytes = system.text_bytes = text.bytes;
	}
	if (p->chat) {
		p->request.prompt = DSC_PROMPT_CHAT;
		p->request.messages = &system;
		p->request.n_messages = 1;
	}
	if (r == 0)
		r = publish(global, args[0], p);
	free(text.data);
	free(ids);
	return r;
}

const struct verb verb_publish = {
	.name = "publish",
	.arguments = "NAME [TEXT...]",
	.summary = "Let every user's prompts find a prefix in the pool",
	.details =
		"The prefix is computed once and kept, also when the pool is short. Publishing a NAME again\n"
		"replaces it. Without TEXT, or with -, the text is standard input byte for byte. For root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct publish),
	.run = run,
};
