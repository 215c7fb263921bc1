/* SPDX-License-Identifier: Apache-2.0 */
/* chat: a conversation. Each turn sends all of it, and what came back becomes part of it.
 *
 * A turn is in the conversation whole or not at all: its question is taken out again if no answer came, and then
 * kept aside for /retry. An answer that Ctrl-C cut short counts as an answer if any of it was seen. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "answer.h"
#include "conversation.h"
#include "line.h"
#include "output.h"
#include "sampling.h"
#include "session.h"
#include "verbs.h"

struct chat {
	struct dsc_request request;
	const char *system;
	struct arg_list stop;

	struct session session;
	struct line_reader *lines;
	struct conversation talk;
	struct text dropped; /* the question of a turn that failed; data NULL: none */
	struct dsc_usage usage;
	enum dsc_finish
		finish; /* of the last turn; 0: it did not come to its end, or there was none */
	bool json, edits;
	bool screen; /* standard output is a terminal */
	bool leave;
};

static const struct arg_option options[] = {
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct chat, request.model)},
	{"--system", "TEXT", "the system message", ARG_STRING,
	 .offset = offsetof(struct chat, system)},
	SAMPLING_OPTIONS(struct chat, request),
	SAMPLING_STOP(struct chat, stop),
};

/* ---------------------------------------------------------------- what is said beside the answers */

/* Where a person reads it. */
static FILE *people(const struct chat *c)
{
	return c->edits && c->screen && !isatty(STDERR_FILENO) ? stdout : stderr;
}

/* For a person who looks on; a program is told nothing but failures. */
__attribute__((format(printf, 2, 3))) static void note(const struct chat *c, const char *fmt, ...)
{
	va_list ap;

	if (c->json || !isatty(fileno(people(c))))
		return;
	va_start(ap, fmt);
	vfprintf(people(c), fmt, ap);
	va_end(ap);
	fputc('\n', people(c));
}

/* ---------------------------------------------------------------- one turn */

struct answer {
	struct dsc_result *result;
	const char *text; /* without the space that some models begin with */
	size_t bytes;
	char last; /* byte that was printed; 0: none */
	bool begun, done;
};

/* Bytes at p that a terminal could take for a command: a control character other than newline and tab. */
static size_t control_bytes(const unsigned char *p, size_t left)
{
	if (p[0] == 0xc2 && left > 1 && p[1] >= 0x80 && p[1] < 0xa0)
		return 2;
	return (p[0] < 0x20 && p[0] != '\n' && p[0] != '\t') || p[0] == 0x7f;
}

static bool print_screen(const char *text, size_t n)
{
	size_t from = 0, i = 0;
	bool ok = true;

	while (i < n && ok) {
		size_t k = control_bytes((const unsigned char *)text + i, n - i);

		if (k == 0) {
			i++;
			continue;
		}
		ok = out_text(text + from, i - from) && out_text("?", 1);
		from = i += k;
	}
	return ok && out_text(text + from, n - from);
}

/* A piece as it comes. False: standard output is gone. */
static bool print_piece(const struct chat *c, struct answer *a, const char *text, size_t n)
{
	if (n > 0 && !a->begun) {
		a->begun = true;
		if (text[0] == ' ') {
			text++;
			n--;
		}
	}
	if (n == 0 || c->json)
		return true;
	a->last = text[n - 1];
	return c->screen ? print_screen(text, n) : out_text(text, n);
}

static int take_event(struct chat *c, struct answer *a, const struct dsc_event *e)
{
	if (e->type == DSC_EVENT_ERROR)
		return session_status(&c->session);
	if (dsc_result_add(a->result, e) < 0)
		return say(STATUS_FAILED, "out of memory");
	if (e->type == DSC_EVENT_DONE)
		a->done = true;
	if (e->type == DSC_EVENT_TEXT && !print_piece(c, a, e->text, e->text_bytes)) {
		c->leave = true; /* the end of the program says why */
		return STATUS_FAILED;
	}
	return STATUS_OK;
}

static void end_answer(const struct chat *c, const struct answer *a)
{
	bool nothing = !a->last && !a->done; /* an answer without words is a line all the same */

	if (!c->json && a->last != '\n' && !nothing)
		out_text("\n", 1);
}

/* What the daemon keeps of the conversation between two turns. Without it answers are the same, only later:
 * nothing is said of it. */
static void hold_pages(struct chat *c)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;

	if (c->request.set & DSC_SET_SESSION ||
	    dsc_session_open(c->session.c, &c->request, &stream) < 0)
		return;
	while (session_next(&c->session, stream, &e) > 0)
		if (e->type == DSC_EVENT_SESSION) {
			c->request.session = e->session;
			c->request.set |= DSC_SET_SESSION;
		}
	dsc_stream_free(stream);
}

static void drop_pages(struct chat *c)
{
	struct dsc_stream *stream = NULL;

	if (!(c->request.set & DSC_SET_SESSION))
		return;
	c->request.set &= ~DSC_SET_SESSION;
	if (dsc_session_close(c->session.c, &c->request, &stream) == 0)
		dsc_stream_free(stream);
}

/* Sends the conversation and prints the answer as it comes. Return: 0 or an exit status after a sentence;
 * -ENOENT: the session has ended, nothing was said, and it can be asked again. */
static int ask(struct chat *c, struct answer *a)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	int r, status = STATUS_OK;

	c->request.messages = c->talk.messages;
	c->request.n_messages = c->talk.n;
	if (dsc_generate(c->session.c, &c->request, &stream) < 0)
		return session_status(&c->session);
	while (status == STATUS_OK && (r = session_next(&c->session, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR && e->code == DSC_CODE_NOT_FOUND &&
		    c->request.set & DSC_SET_SESSION) {
			c->request.set &= ~DSC_SET_SESSION;
			dsc_stream_free(stream);
			return -ENOENT;
		}
		if (e->type == DSC_EVENT_ERROR)
			end_answer(c, a); /* before the sentence */
		status = take_event(c, a, e);
	}
	if (status == STATUS_OK) {
		end_answer(c, a);
		if (r < 0)
			status = c->session.interrupted ? STATUS_INTERRUPTED
							: say(STATUS_FAILED, "%s", strerror(-r));
	}
	dsc_stream_free(stream);
	if (a->result->n_choices > 0) {
		a->text = a->result->choices[0].text;
		a->bytes = a->result->choices[0].text_bytes;
		if (a->bytes > 0 && a->text[0] == ' ') {
			a->text++;
			a->bytes--;
		}
	}
	return status;
}

static int print_json(const struct answer *a)
{
	struct json_object *o = json_object_new_object();

	json_add(o, "text", json_text(a->text, a->bytes));
	json_add(o, "finish", json_object_new_string(finish_text(a->result->choices[0].finish)));
	json_add(o, "usage", json_usage(&a->result->usage));
	json_add(o, "seed", json_object_new_uint64(a->result->seed));
	return out_json(o);
}

/* The answer becomes part of the conversation. Return: 0 or an exit status after a sentence. */
static int keep_answer(struct chat *c, const struct answer *a)
{
	if (conversation_add(&c->talk, DSC_ROLE_ASSISTANT, a->text, a->bytes) < 0)
		return say(STATUS_FAILED, "out of memory");
	if (!a->done) {
		note(c,
		     "(cancelled; what came stays in the conversation, /undo takes the turn out)");
		return c->edits ? STATUS_OK : STATUS_INTERRUPTED;
	}
	c->usage = a->result->usage;
	c->finish = a->result->choices[0].finish;
	if (c->json)
		return print_json(a);
	if (c->finish == DSC_FINISH_LENGTH)
		note(c, "(cut: max_tokens or the end of the context was reached)");
	return STATUS_OK;
}

static void drop_turn(struct chat *c, size_t n_before, struct text *question, int status)
{
	enum dsc_code code = dsc_code(c->session.c);

	conversation_truncate(&c->talk, n_before);
	c->dropped = *question;
	*question = (struct text){};
	if (status == STATUS_INTERRUPTED)
		note(c,
		     "(cancelled before an answer came; the turn is dropped, /retry asks again)");
	else if (status == STATUS_FAILED &&
		 (code == DSC_CODE_INVALID_ARGUMENT || code == DSC_CODE_FRAME_TOO_LARGE))
		note(c,
		     "(the turn is dropped; if the conversation has become too long, /clear forgets it)");
	else
		note(c, "(the turn is dropped; /retry asks again)");
}

/* Asks a question, whose text is taken over. Return: 0 or an exit status after a sentence. */
static int turn(struct chat *c, struct text question)
{
	struct answer a = {.result = dsc_result_new(), .text = ""};
	size_t n_before = c->talk.n;
	int r = 0;

	free(c->dropped.data);
	c->dropped = (struct text){};
	c->finish = 0;
	if (!a.result ||
	    conversation_add(&c->talk, DSC_ROLE_USER, question.data, question.bytes) < 0)
		r = say(STATUS_FAILED, "out of memory");
	if (r == 0)
		r = session_renew(&c->session);
	if (r == 0) {
		hold_pages(c);
		r = ask(c, &a);
	}
	if (r == -ENOENT)
		r = ask(c, &a); /* without; the next turn opens another */
	if (r == 0 && a.result->n_choices == 0)
		r = say(STATUS_FAILED, "the daemon ended the request without an answer");
	/* The last word may have come before Ctrl-C was heard of. */
	if (a.done || (r == STATUS_INTERRUPTED && a.bytes > 0))
		r = keep_answer(c, &a);
	else
		drop_turn(c, n_before, &question, r);
	free(question.data);
	dsc_result_free(a.result);
	return r;
}

/* ---------------------------------------------------------------- commands */

struct command {
	const char *name, *arguments, *help;
	/* Return: 0 or an exit status after a sentence. */
	int (*run)(struct chat *c, char *arguments);
};

static int run_help(struct chat *c, char *arguments);

static int run_clear(struct chat *c, char *arguments)
{
	(void)arguments;
	conversation_clear(&c->talk);
	drop_pages(c);
	free(c->dropped.data);
	c->dropped = (struct text){};
	note(c, "(the conversation is forgotten)");
	return STATUS_OK;
}

static int run_system(struct chat *c, char *arguments)
{
	if (conversation_set_system(&c->talk, arguments, strlen(arguments)) < 0)
		return say(STATUS_FAILED, "out of memory");
	note(c, *arguments ? "(the system message is set)" : "(there is no system message now)");
	return STATUS_OK;
}

/* The last question; the conversation is shortened to what was before it. */
static int take_last(struct chat *c, struct text *ret)
{
	size_t last = conversation_last(&c->talk);
	struct text copy;

	if (last == c->talk.n)
		return say(STATUS_FAILED, "there is no turn yet");
	copy.bytes = c->talk.messages[last].text_bytes;
	copy.data = malloc(copy.bytes + 1);
	if (!copy.data)
		return say(STATUS_FAILED, "out of memory");
	memcpy(copy.data, c->talk.messages[last].text, copy.bytes);
	conversation_truncate(&c->talk, last);
	*ret = copy;
	return STATUS_OK;
}

static int run_retry(struct chat *c, char *arguments)
{
	struct text question = c->dropped;
	int r = STATUS_OK;

	(void)arguments;
	c->dropped = (struct text){};
	if (!question.data)
		r = take_last(c, &question);
	return r == STATUS_OK ? turn(c, question) : r;
}

static int run_undo(struct chat *c, char *arguments)
{
	struct text question = {};
	int r = take_last(c, &question);

	(void)arguments;
	if (r != STATUS_OK)
		return r;
	free(c->dropped.data);
	c->dropped = (struct text){};
	free(question.data);
	note(c, "(the last turn is forgotten)");
	return STATUS_OK;
}

static bool is_set(const struct chat *c, const struct arg_option *o)
{
	return *(const uint64_t *)((const uint8_t *)c + o->set_offset) & o->bits;
}

static void print_setting(const struct chat *c, const struct arg_option *o)
{
	const void *at = (const uint8_t *)c + o->offset;
	FILE *f = people(c);

	fprintf(f, "  %-20s ", o->name + strlen("--"));
	if (!is_set(c, o))
		fprintf(f, "%s\n", o->kind == ARG_BITS ? "off" : "default");
	else if (o->kind == ARG_BITS)
		fprintf(f, "on\n");
	else if (o->kind == ARG_FLOAT)
		fprintf(f, "%g\n", (double)*(const float *)at);
	else if (o->kind == ARG_U64)
		fprintf(f, "%" PRIu64 "\n", *(const uint64_t *)at);
	else
		fprintf(f, "%u\n", *(const uint32_t *)at);
}

/* The option of a name, in which _ stands for - as well; NULL: none, or not one to be set. */
static const struct arg_option *find_setting(const char *name)
{
	for (size_t i = 0; i < N_OPTIONS(options); i++) {
		const char *a = options[i].name + strlen("--"), *b = name;

		if (!options[i].bits)
			continue;
		for (; *a && (*a == *b || (*a == '-' && *b == '_')); a++)
			b++;
		if (!*a && !*b)
			return &options[i];
	}
	return NULL;
}

static int run_set(struct chat *c, char *arguments)
{
	char *value = arguments + strcspn(arguments, " \t="), name[64];
	const struct arg_option *o;

	if (!*arguments) {
		for (size_t i = 0; i < N_OPTIONS(options); i++)
			if (options[i].bits)
				print_setting(c, &options[i]);
		return STATUS_OK;
	}
	if (*value)
		*value++ = 0;
	value += strspn(value, " \t=");
	o = find_setting(arguments);
	if (!o)
		return say(STATUS_FAILED, "/set: there is no '%s'; /set alone lists what there is",
			   arguments);
	if (!*value)
		return say(STATUS_FAILED, "/set %s: want a value, or default", arguments);
	snprintf(name, sizeof(name), "/set %s", arguments);
	if (strcmp(value, "default") == 0 || (o->kind == ARG_BITS && strcmp(value, "off") == 0)) {
		*(uint64_t *)((uint8_t *)c + o->set_offset) &= ~o->bits;
		return STATUS_OK;
	}
	if (o->kind == ARG_BITS && strcmp(value, "on") != 0)
		return say(STATUS_FAILED, "%s: got '%s', want on or off", name, value);
	return args_store(o, name, c, value) == 0 ? STATUS_OK : STATUS_FAILED;
}

static int run_stats(struct chat *c, char *arguments)
{
	const struct dsc_usage *u = &c->usage;

	(void)arguments;
	if (!c->finish)
		return say(STATUS_FAILED, "/stats: %s",
			   conversation_last(&c->talk) == c->talk.n && !c->dropped.data
				   ? "there is no turn yet"
				   : "the last turn did not come to its end");
	fprintf(people(c), "prompt_tokens=%u cached_tokens=%u completion_tokens=%u",
		u->prompt_tokens, u->cached_tokens, u->completion_tokens);
	/* The first token belongs to the prompt's time. */
	if (u->completion_tokens > 1 && u->decode_usec > 0)
		fprintf(people(c), " tokens/s=%.1f",
			(u->completion_tokens - 1) * 1e6 / (double)u->decode_usec);
	fprintf(people(c), " first_token_ms=%.1f finish=%s\n",
		(double)(u->queue_usec + u->prefill_usec) / 1e3, finish_text(c->finish));
	return STATUS_OK;
}

static int run_quit(struct chat *c, char *arguments)
{
	(void)arguments;
	c->leave = true;
	return STATUS_OK;
}

static const struct command commands[] = {
	{"/help", "", "this text", run_help},
	{"/clear", "", "forget the conversation, but not the system message", run_clear},
	{"/system", " [TEXT]", "set the system message; without TEXT: have none", run_system},
	{"/retry", "", "ask the last question again", run_retry},
	{"/undo", "", "forget the last turn", run_undo},
	{"/set", " [NAME VALUE]",
	 "as in /set temperature 0.5; VALUE default: the model's; alone: list", run_set},
	{"/stats", "", "tokens and speed of the last turn", run_stats},
	{"/quit", "", "leave", run_quit},
};

static int run_help(struct chat *c, char *arguments)
{
	FILE *f = people(c);

	(void)arguments;
	for (size_t i = 0; i < N_OPTIONS(commands); i++) {
		char left[32];

		snprintf(left, sizeof(left), "%s%s", commands[i].name, commands[i].arguments);
		fprintf(f, "  %-22s%s\n", left, commands[i].help);
	}
	fprintf(f, "A line that ends in \\ goes on in the next; // begins a message with /.\n"
		   "Ctrl-C cancels an answer, or drops what was typed; Ctrl-D leaves.\n");
	return STATUS_OK;
}

static int run_command(struct chat *c, char *text)
{
	size_t n = strcspn(text, " \t\n"), end;
	char *arguments = text + n + strspn(text + n, " \t\n");

	end = strlen(arguments);
	while (end > 0 && isspace((unsigned char)arguments[end - 1]))
		arguments[--end] = 0;
	for (size_t i = 0; i < N_OPTIONS(commands); i++)
		if (strlen(commands[i].name) == n && memcmp(commands[i].name, text, n) == 0)
			return commands[i].run(c, arguments);
	return say(STATUS_FAILED,
		   "unknown command '%.*s'; /help lists them, // begins a message with /",
		   (int)(n < 64 ? n : 64), text);
}

/* ---------------------------------------------------------------- the conversation */

static bool is_blank(const struct text *t)
{
	for (size_t i = 0; i < t->bytes; i++)
		if (!isspace((unsigned char)t->data[i]))
			return false;
	return true;
}

/* Return: 0 or an exit status after a sentence. */
static int take_message(struct chat *c, struct text message)
{
	int r = STATUS_OK;

	if (is_blank(&message)) {
		free(message.data);
		return r;
	}
	if (message.data[0] != '/')
		return turn(c, message);
	if (message.bytes > 1 && message.data[1] == '/') {
		memmove(message.data, message.data + 1, message.bytes--);
		return turn(c, message);
	}
	r = run_command(c, message.data);
	free(message.data);
	return r;
}

static void greet_model(const struct chat *c, const struct dsc_model *m)
{
	if (m->state == DSC_STATE_DEGRADED)
		note(c, "%s could not be loaded: %s", m->name, m->reason ? m->reason : "");
	else if (m->state == DSC_STATE_LOADING)
		note(c, "%s is being loaded; the first answer waits for it. /help tells more.",
		     m->name);
	else if (!m->chat)
		note(c, "%s has no chat template that dsd knows; `dsctl models` lists the models.",
		     m->name);
	else
		note(c, "%s, context of %u tokens. /help tells more.", m->name, m->context);
}

/* Tells a person whom they speak to. */
static void greet(struct chat *c)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;

	if (!c->edits || dsc_models(c->session.c, &stream) < 0)
		return;
	while (session_next(&c->session, stream, &e) > 0) {
		for (size_t i = 0; e->type == DSC_EVENT_MODELS && i < e->n_models; i++) {
			if (c->request.model && strcmp(c->request.model, e->models[i]->name) != 0)
				continue;
			greet_model(c, e->models[i]);
			break;
		}
	}
	dsc_stream_free(stream);
}

static int read_failed(struct chat *c, int r)
{
	if (r == -EMSGSIZE)
		return say(STATUS_FAILED, "a message of more than %u bytes was left out",
			   LINE_BYTES_MAX);
	c->leave = true;
	return say(STATUS_FAILED, "reading standard input: %s", strerror(-r));
}

/* A person sees what failed and goes on; what is fed to the program leaves with the first failure's status,
 * and not before its end. */
static int converse(struct chat *c)
{
	int first = STATUS_OK;

	greet(c);
	while (!c->leave) {
		struct text message = {};
		int r = line_read(c->lines, &message);

		if (r == 0)
			break;
		if (r == -EINTR && c->edits)
			continue;
		if (r == -EINTR)
			return STATUS_INTERRUPTED;
		r = r < 0 ? read_failed(c, r) : take_message(c, message);
		if (r == STATUS_INTERRUPTED && !c->edits)
			return r;
		if (r != STATUS_OK && first == STATUS_OK && !c->edits)
			first = r;
	}
	return first;
}

static int open_chat(struct chat *c, const struct global *global)
{
	int r;

	if (c->system && conversation_set_system(&c->talk, c->system, strlen(c->system)) < 0)
		return say(STATUS_FAILED, "out of memory");
	r = session_open(&c->session, global);
	if (r != 0)
		return r;
	r = line_reader_new(&c->lines, STDIN_FILENO, c->session.signal_fd);
	if (r < 0)
		return say(STATUS_FAILED, "cannot use the terminal: %s", strerror(-r));
	c->edits = line_reader_edits(c->lines);
	return converse(c);
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct chat *c = data;
	int r;

	if (n_args > 0)
		return say(STATUS_USAGE,
			   "chat: got '%s', want no arguments: messages come from standard input",
			   args[0]);
	r = sampling_set_stop(&c->request, &c->stop);
	if (r != 0)
		return r;
	c->request.size = sizeof(c->request);
	c->request.prompt = DSC_PROMPT_CHAT;
	c->session.signal_fd = -EBADF;
	c->json = global->json;
	c->screen = isatty(STDOUT_FILENO);
	r = open_chat(c, global);
	line_reader_free(c->lines);
	if (c->session.c)
		drop_pages(c);
	session_close(&c->session);
	conversation_done(&c->talk);
	free(c->dropped.data);
	free((void *)c->request.stop);
	return r;
}

const struct verb verb_chat = {
	.name = "chat",
	.arguments = "",
	.summary = "Hold a conversation",
	.details =
		"On a terminal lines are edited, and called back by the arrow keys; /help lists commands. Ctrl-C\n"
		"cancels an answer, Ctrl-D leaves. Else each line of standard input is a message, and standard\n"
		"output has the answers alone. Nothing is written to disk. What is not given comes from the\n"
		"model's generation_config.json.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct chat),
	.run = run,
};
