/* SPDX-License-Identifier: Apache-2.0 */
/* generate: text as it comes, or one JSON object at the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "prompt.h"
#include "sampling.h"
#include "session.h"
#include "verbs.h"

struct generate {
	struct dsc_request request;
	bool raw, chat;
	const char *system, *suffix, *ids, *priority;
	struct arg_list stop, bias;
};

#define NUMBER(field, bit) SAMPLING_NUMBER(struct generate, request, field, bit)
#define SWITCH(bit)        .set_offset = offsetof(struct generate, request.set), .bits = (bit)
#define FIELD(field)       .offset = offsetof(struct generate, field)

static const struct arg_option options[] = {
	{"--raw", NULL, "the prompt is text to go on with (default)", ARG_FLAG, FIELD(raw)},
	{"--chat", NULL, "the prompt is a message to answer", ARG_FLAG, FIELD(chat)},
	{"--system", "TEXT", "with --chat: the system message before it", ARG_STRING,
	 FIELD(system)},
	{"--suffix", "TEXT", "fill in what comes between prompt and TEXT", ARG_STRING,
	 FIELD(suffix)},
	{"--ids", "LIST", "token ids as the prompt, verbatim: 1,2,3", ARG_STRING, FIELD(ids)},
	{"--model", "NAME", "default: the first one", ARG_STRING, FIELD(request.model)},
	SAMPLING_OPTIONS(struct generate, request),
	{"--logit-bias", "ID=X", "add X to the logit of a token; may be repeated", ARG_LIST,
	 FIELD(bias)},
	SAMPLING_STOP(struct generate, stop),
	{"--n", "N", "so many choices", ARG_U32, NUMBER(n, DSC_SET_N)},
	{"--echo", NULL, "the answer begins with the prompt", ARG_BITS, SWITCH(DSC_SET_ECHO)},
	{"--logprobs", "K", "with --json: log-probabilities of each token and the K best", ARG_U32,
	 NUMBER(logprobs, DSC_SET_LOGPROBS)},
	{"--parse-special", NULL, "control tokens written out in the prompt become their ids",
	 ARG_BITS, SWITCH(DSC_SET_PARSE_SPECIAL)},
	{"--session", "ID", "find what the last request in it computed, and leave it for the next",
	 ARG_U64, NUMBER(session, DSC_SET_SESSION)},
	{"--priority", "CLASS", "interactive, normal or batch", ARG_STRING, FIELD(priority)},
};

/* ---------------------------------------------------------------- the request */

/* What the request points at. */
struct parts {
	struct text prompt;
	struct dsc_message messages[2];
	uint32_t *ids;
	struct dsc_bias *bias;
};

static void parts_done(struct parts *p)
{
	free(p->prompt.data);
	free(p->ids);
	free(p->bias);
}

static int take_ids(struct generate *g, struct parts *p, size_t n_args)
{
	struct text text = {(char *)g->ids, strlen(g->ids)};
	size_t n = 0;
	int r;

	if (n_args > 0 || g->chat || g->suffix || g->request.set & DSC_SET_PARSE_SPECIAL)
		return say(STATUS_USAGE,
			   "--ids is the whole prompt: want no text, --chat, --suffix or "
			   "--parse-special with it");
	r = prompt_ids("--ids", &text, &p->ids, &n);
	if (r != 0)
		return r;
	g->request.prompt = DSC_PROMPT_IDS;
	g->request.ids = p->ids;
	g->request.n_ids = n;
	return 0;
}

static int take_prompt(struct generate *g, struct parts *p, char **args, size_t n_args)
{
	size_t n = 0;
	int r;

	if (g->raw && g->chat)
		return say(STATUS_USAGE, "--raw and --chat at once");
	if (g->system && !g->chat)
		return say(STATUS_USAGE, "--system wants --chat");
	if (g->suffix && g->chat)
		return say(STATUS_USAGE, "--suffix and --chat at once");
	if (g->chat && g->request.set & DSC_SET_PARSE_SPECIAL)
		return say(STATUS_USAGE, "--parse-special and --chat at once");
	if (g->ids)
		return take_ids(g, p, n_args);
	r = prompt_read(args, n_args, &p->prompt);
	if (r != 0)
		return r;
	if (!g->chat) {
		g->request.text = p->prompt.data;
		g->request.text_bytes = p->prompt.bytes;
		return 0;
	}
	if (g->system)
		p->messages[n++] =
			(struct dsc_message){DSC_ROLE_SYSTEM, g->system, strlen(g->system)};
	p->messages[n++] = (struct dsc_message){DSC_ROLE_USER, p->prompt.data, p->prompt.bytes};
	g->request.prompt = DSC_PROMPT_CHAT;
	g->request.messages = p->messages;
	g->request.n_messages = n;
	return 0;
}

static int take_bias(const char *text, struct dsc_bias *ret)
{
	const char *equals = strchr(text, '=');
	char id[16];
	double v;

	if (equals && (size_t)(equals - text) < sizeof(id)) {
		memcpy(id, text, (size_t)(equals - text));
		id[equals - text] = 0;
		if (args_u32(id, &ret->id) && args_float(equals + 1, &v)) {
			ret->bias = (float)v;
			return 0;
		}
	}
	return say(STATUS_USAGE, "--logit-bias: got '%s', want ID=NUMBER", text);
}

static int take_lists(struct generate *g, struct parts *p)
{
	int r = sampling_set_stop(&g->request, &g->stop);

	if (r != 0)
		return r;
	p->bias = calloc(g->bias.n + 1, sizeof(*p->bias));
	if (!p->bias)
		return say(STATUS_FAILED, "out of memory");
	for (size_t i = 0; i < g->bias.n; i++) {
		r = take_bias(g->bias.items[i], &p->bias[i]);
		if (r != 0)
			return r;
	}
	g->request.logit_bias = p->bias;
	g->request.n_logit_bias = g->bias.n;
	return 0;
}

static int take_priority(struct generate *g)
{
	if (!g->priority)
		return 0;
	g->request.priority = priority_from_text(g->priority);
	if (!g->request.priority)
		return say(STATUS_USAGE, "--priority: got '%s', want interactive, normal or batch",
			   g->priority);
	g->request.set |= DSC_SET_PRIORITY;
	return 0;
}

/* ---------------------------------------------------------------- the answer */

/* The first choice as it comes; the others, which come at the same time, after it, each on lines of its
 * own. */
static int print_text(struct session *s, struct dsc_stream *stream)
{
	struct dsc_result *others = dsc_result_new();
	const struct dsc_event *e;
	char last = '\n';
	int r, status = STATUS_OK;

	if (!others)
		return say(STATUS_FAILED, "out of memory");
	while (status == STATUS_OK && (r = session_next(s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR) {
			status = session_status(s);
		} else if (e->type == DSC_EVENT_TEXT && e->choice == 0 && e->text_bytes > 0) {
			if (!out_text(e->text, e->text_bytes))
				status = STATUS_FAILED;
			last = e->text[e->text_bytes - 1];
		} else if (e->choice > 0 && dsc_result_add(others, e) < 0) {
			status = say(STATUS_FAILED, "out of memory");
		}
	}
	if (status == STATUS_OK && r < 0)
		status = s->interrupted ? STATUS_INTERRUPTED
					: say(STATUS_FAILED, "%s", strerror(-r));
	for (size_t i = 1; i < others->n_choices; i++) {
		const struct dsc_choice *ch = &others->choices[i];

		if (last != '\n')
			out_text("\n", 1);
		out_text(ch->text, ch->text_bytes);
		last = ch->text_bytes > 0 ? ch->text[ch->text_bytes - 1] : '\n';
	}
	out_end_line(last);
	dsc_result_free(others);
	return status;
}

static int send(const struct global *global, const struct generate *g)
{
	struct dsc_result *result = NULL;
	struct dsc_stream *stream = NULL;
	struct session s;
	int r;

	r = session_open(&s, global);
	if (r != 0)
		return r;
	r = dsc_generate(s.c, &g->request, &stream);
	if (global->json) {
		r = session_collect(&s, r, stream, &result);
		if (r == 0)
			r = result->n_choices > 0
				    ? out_json(json_answer(result,
							   g->request.set & DSC_SET_LOGPROBS))
				    : say(STATUS_FAILED,
					  "the daemon ended the request without beginning it");
	} else {
		r = r < 0 ? session_status(&s) : print_text(&s, stream);
	}
	dsc_result_free(result);
	session_close(&s);
	return r;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct generate *g = data;
	struct parts p = {};
	int r = 0;

	g->request.size = sizeof(g->request);
	if ((g->request.set & DSC_SET_LOGPROBS) && !global->json)
		r = say(STATUS_USAGE, "--logprobs wants --json");
	if (r == 0)
		r = take_priority(g);
	if (r == 0)
		r = take_lists(g, &p);
	if (r == 0)
		r = take_prompt(g, &p, args, n_args);
	if (g->suffix) {
		g->request.suffix = g->suffix;
		g->request.suffix_bytes = strlen(g->suffix);
	}
	if (r == 0)
		r = send(global, g);
	parts_done(&p);
	free((void *)g->request.stop);
	return r;
}

const struct verb verb_generate = {
	.name = "generate",
	.arguments = "[PROMPT...]",
	.summary = "Generate text",
	.details =
		"Without PROMPT, or with -, the prompt is standard input byte for byte. Standard output\n"
		"is the answer alone, as it comes. Ctrl-C cancels. What is not given comes from the model's\n"
		"generation_config.json.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct generate),
	.run = run,
};
