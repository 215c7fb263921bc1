/* SPDX-License-Identifier: Apache-2.0 */
/* tokenize: text or a chat message to token ids. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "prompt.h"
#include "session.h"
#include "verbs.h"

struct tokenize {
	struct dsc_request request;
	bool chat;
	const char *system;
};

#define SWITCH(bit) .set_offset = offsetof(struct tokenize, request.set), .bits = (bit)

static const struct arg_option options[] = {
	{"--chat", NULL, "the text is a message, rendered as for generate --chat", ARG_FLAG,
	 .offset = offsetof(struct tokenize, chat)},
	{"--system", "TEXT", "with --chat: the system message before it", ARG_STRING,
	 .offset = offsetof(struct tokenize, system)},
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct tokenize, request.model)},
	{"--add-bos", NULL, "put the begin token first", ARG_BITS, SWITCH(DSC_SET_ADD_BOS)},
	{"--parse-special", NULL, "control tokens written out in the text become their ids",
	 ARG_BITS, SWITCH(DSC_SET_PARSE_SPECIAL)},
};

static int print(const struct global *global, const struct dsc_choice *ch)
{
	struct json_object *o;

	if (global->json) {
		o = json_object_new_object();
		json_add(o, "ids", json_ids(ch ? ch->ids : NULL, ch ? ch->n_ids : 0));
		return out_json(o);
	}
	for (size_t i = 0; ch && i < ch->n_ids; i++)
		printf("%s%" PRIu32, i ? " " : "", ch->ids[i]);
	putchar('\n');
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct tokenize *t = data;
	struct dsc_message messages[2];
	struct dsc_result *result = NULL;
	struct dsc_stream *stream = NULL;
	struct session s;
	struct text text = {};
	size_t n = 0;
	int r;

	if (t->system && !t->chat)
		return say(STATUS_USAGE, "--system wants --chat");
	if (t->chat && t->request.set & DSC_SET_PARSE_SPECIAL)
		return say(STATUS_USAGE, "--parse-special and --chat at once");
	if (t->chat && t->request.set & DSC_SET_ADD_BOS)
		return say(STATUS_USAGE, "--add-bos and --chat at once");
	r = prompt_read(args, n_args, &text);
	if (r != 0)
		return r;
	t->request.size = sizeof(t->request);
	t->request.text = text.data;
	t->request.text_bytes = text.bytes;
	if (t->chat) {
		if (t->system)
			messages[n++] =
				(struct dsc_message){DSC_ROLE_SYSTEM, t->system, strlen(t->system)};
		messages[n++] = (struct dsc_message){DSC_ROLE_USER, text.data, text.bytes};
		t->request.prompt = DSC_PROMPT_CHAT;
		t->request.messages = messages;
		t->request.n_messages = n;
	}
	r = session_open(&s, global);
	if (r == 0) {
		r = dsc_tokenize(s.c, &t->request, &stream);
		r = session_collect(&s, r, stream, &result);
		if (r == 0)
			r = print(global, result->n_choices > 0 ? &result->choices[0] : NULL);
		dsc_result_free(result);
		session_close(&s);
	}
	free(text.data);
	return r;
}

const struct verb verb_tokenize = {
	.name = "tokenize",
	.arguments = "[TEXT...]",
	.summary = "Show the token ids of a text",
	.details = "Without TEXT, or with -, the text is standard input byte for byte.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct tokenize),
	.run = run,
};
