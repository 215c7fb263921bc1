/* SPDX-License-Identifier: Apache-2.0 */
#include "args.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

#define NAME_COLUMN 30 /* of --help */

static const struct arg_option global_options[] = {
	{"--socket", "PATH", "the daemon's socket; default $DSD_SOCKET, else /run/dsd/dsd.sock",
	 ARG_STRING, .offset = offsetof(struct global, socket)},
	{"--admin-socket", "PATH",
	 "for administration; default $DSD_ADMIN_SOCKET, else admin.sock beside the other",
	 ARG_STRING, .offset = offsetof(struct global, admin_socket)},
	{"--json", NULL, "one JSON object on standard output, for programs", ARG_FLAG,
	 .offset = offsetof(struct global, json)},
	{"--no-resume", NULL,
	 "a daemon that goes away ends the request, instead of being waited for", ARG_FLAG,
	 .offset = offsetof(struct global, no_resume)},
	{"--help", NULL, "this text", ARG_FLAG, .offset = offsetof(struct global, help)},
	{"--version", NULL, "the version of dsctl", ARG_FLAG,
	 .offset = offsetof(struct global, version)},
};
#define N_GLOBAL (sizeof(global_options) / sizeof(global_options[0]))

/* ---------------------------------------------------------------- numbers */

bool args_u64(const char *text, uint64_t *ret)
{
	uint64_t v = 0;

	if (!*text)
		return false;
	for (const char *p = text; *p; p++) {
		if (*p < '0' || *p > '9')
			return false;
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return false;
	}
	*ret = v;
	return true;
}

bool args_u32(const char *text, uint32_t *ret)
{
	uint64_t v;

	if (!args_u64(text, &v) || v > UINT32_MAX)
		return false;
	*ret = (uint32_t)v;
	return true;
}

bool args_float(const char *text, double *ret)
{
	char *end;
	double v;

	if (!*text || text[strspn(text, "0123456789.eE+-")] != 0)
		return false;
	v = strtod(text, &end);
	if (*end || end == text || !isfinite(v))
		return false;
	*ret = v;
	return true;
}

/* ---------------------------------------------------------------- help */

static void print_options(const struct arg_option *options, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char left[64];

		snprintf(left, sizeof(left), options[i].kind == ARG_WAIT ? "%s [%s]" : "%s %s",
			 options[i].name, options[i].value ? options[i].value : "");
		printf("  %-*s%s\n", NAME_COLUMN, left, options[i].help);
	}
}

static void print_help(const struct verb *const *verbs, size_t n_verbs)
{
	printf("usage: dsctl [OPTIONS] VERB [OPTIONS] [ARGUMENTS]\n\nTalks to dsd, the DeepSeek inference "
	       "daemon.\n\nVerbs:\n");
	for (size_t i = 0; i < n_verbs; i++)
		printf("  %-*s%s\n", NAME_COLUMN, verbs[i]->name, verbs[i]->summary);
	printf("\nOptions, before or after the verb:\n");
	print_options(global_options, N_GLOBAL);
	printf("\nExit status: 0 done; 1 the request failed; 2 the command line is wrong; 3 cannot connect;\n"
	       "4 the model is not ready or could not be loaded; 130 interrupted.\n"
	       "`dsctl VERB --help` tells more.\n");
}

static void print_verb_help(const struct verb *verb)
{
	printf("usage: dsctl %s [OPTIONS]%s%s\n\n%s.\n", verb->name, *verb->arguments ? " " : "",
	       verb->arguments, verb->summary);
	if (verb->details)
		printf("\n%s\n", verb->details);
	if (verb->n_options > 0)
		printf("\nOptions:\n");
	print_options(verb->options, verb->n_options);
	printf("\nGlobal options:\n");
	print_options(global_options, N_GLOBAL);
}

/* ---------------------------------------------------------------- typing errors */

#define WORD_MAX 32

/* Edits that turn one word into the other, a swap of neighbours counted as one. */
static size_t distance(const char *a, const char *b)
{
	size_t d[WORD_MAX + 1][WORD_MAX + 1], na = strlen(a), nb = strlen(b);

	if (na > WORD_MAX || nb > WORD_MAX)
		return SIZE_MAX;
	for (size_t i = 0; i <= na; i++) {
		for (size_t j = 0; j <= nb; j++) {
			size_t best;

			if (i == 0 || j == 0) {
				d[i][j] = i + j;
				continue;
			}
			best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
			if (best > d[i - 1][j] + 1)
				best = d[i - 1][j] + 1;
			if (best > d[i][j - 1] + 1)
				best = d[i][j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
			    best > d[i - 2][j - 2] + 1)
				best = d[i - 2][j - 2] + 1;
			d[i][j] = best;
		}
	}
	return d[na][nb];
}

static void consider(const char *got, const char *candidate, const char **best,
		     size_t *best_distance)
{
	size_t d = distance(got, candidate);

	if (d >= *best_distance)
		return;
	*best = candidate;
	*best_distance = d;
}

/* An option that was cut short: what begins so, if it is one alone. */
static void consider_beginning(const char *got, const char *candidate, const char **ret, int *n)
{
	if (strncmp(got, candidate, strlen(got)) == 0) {
		*ret = candidate;
		++*n;
	}
}

static int unknown_verb(const struct verb *const *verbs, size_t n_verbs, const char *got)
{
	const char *best = NULL;
	size_t d = 3;

	for (size_t i = 0; i < n_verbs; i++)
		consider(got, verbs[i]->name, &best, &d);
	if (best)
		return say(STATUS_USAGE, "unknown verb '%s'; did you mean '%s'?", got, best);
	return say(STATUS_USAGE, "unknown verb '%s'; `dsctl --help` lists them", got);
}

static int unknown_option(const struct verb *verb, const char *got)
{
	const char *best = NULL, *begun = NULL;
	size_t d = 4;
	int n_begun = 0;

	for (size_t i = 0; i < N_GLOBAL; i++) {
		consider(got, global_options[i].name, &best, &d);
		consider_beginning(got, global_options[i].name, &begun, &n_begun);
	}
	for (size_t i = 0; verb && i < verb->n_options; i++) {
		consider(got, verb->options[i].name, &best, &d);
		consider_beginning(got, verb->options[i].name, &begun, &n_begun);
	}
	if (n_begun == 1)
		best = begun;
	if (best)
		return say(STATUS_USAGE, "unknown option '%s'; did you mean '%s'?", got, best);
	if (!verb)
		return say(STATUS_USAGE,
			   "unknown option '%s' before the verb; `dsctl --help` lists them", got);
	return say(STATUS_USAGE, "unknown option '%s'; `dsctl %s --help` lists them", got,
		   verb->name);
}

/* ---------------------------------------------------------------- parsing */

struct line {
	const struct verb *verb; /* NULL before it is known */
	struct global global;
	void *options; /* the verb's struct */
	char **argv;
	int argc, at;
};

/* Finds `name` (n bytes) in a table. */
static const struct arg_option *find(const struct arg_option *options, size_t n_options,
				     const char *name, size_t n)
{
	for (size_t i = 0; i < n_options; i++)
		if (strlen(options[i].name) == n && memcmp(options[i].name, name, n) == 0)
			return &options[i];
	return NULL;
}

static int want_value(const char *name, const char *got, const char *want)
{
	return say(STATUS_USAGE, "%s: got '%s', want %s", name, got, want);
}

/* Which numbers an option takes, the daemon says; here is what it can be sent. */
static int want_whole(const char *name, const char *got)
{
	bool digits = *got && got[strspn(got, "0123456789")] == 0;

	return want_value(name, got, digits ? "a smaller number" : "a whole number");
}

static int add_item(struct arg_list *list, const char *item)
{
	const char **items = realloc(list->items, (list->n + 1) * sizeof(*items));

	if (!items)
		return say(STATUS_FAILED, "out of memory");
	list->items = items;
	items[list->n++] = item;
	return 0;
}

static int store_value(const struct arg_option *o, const char *name, void *at, const char *value)
{
	double v;

	switch (o->kind) {
	case ARG_FLAG:
		*(bool *)at = true;
		return 0;
	case ARG_BITS:
		return 0;
	case ARG_STRING:
		*(const char **)at = value;
		return 0;
	case ARG_LIST:
		return add_item(at, value);
	case ARG_U32:
		return args_u32(value, at) ? 0 : want_whole(name, value);
	case ARG_U64:
		return args_u64(value, at) ? 0 : want_whole(name, value);
	case ARG_FLOAT:
		if (!args_float(value, &v) || !isfinite((float)v))
			return want_value(name, value, "a number");
		*(float *)at = (float)v;
		return 0;
	case ARG_WAIT:
		*(struct arg_wait *)at = (struct arg_wait){.given = true};
		if (!value)
			return 0;
		if (!args_float(value, &v) || v < 0 || v > 1e6)
			return want_value(name, value, "seconds from 0 to 1000000");
		((struct arg_wait *)at)->has_seconds = true;
		((struct arg_wait *)at)->seconds = v;
		return 0;
	}
	return 0;
}

int args_store(const struct arg_option *option, const char *name, void *base, const char *value)
{
	int r = store_value(option, name, (uint8_t *)base + option->offset, value);

	if (r == 0 && option->bits)
		*(uint64_t *)((uint8_t *)base + option->set_offset) |= option->bits;
	return r;
}

/* One option at line->at, and its value. */
static int parse_option(struct line *line)
{
	const char *arg = line->argv[line->at++], *value = strchr(arg, '=');
	size_t n = value ? (size_t)(value - arg) : strlen(arg);
	const struct arg_option *o = NULL;
	void *base = line->options;
	double seconds;

	if (value)
		value++;
	if (line->verb)
		o = find(line->verb->options, line->verb->n_options, arg, n);
	if (!o) {
		o = find(global_options, N_GLOBAL, strcmp(arg, "-h") == 0 ? "--help" : arg,
			 strcmp(arg, "-h") == 0 ? 6 : n);
		base = &line->global;
	}
	if (!o)
		return unknown_option(line->verb, arg);
	if (!o->value && value)
		return say(STATUS_USAGE, "%s takes no value, got '%s'", o->name, value);
	if (o->value && !value && line->at < line->argc) {
		/* A number of seconds may be left out, and what follows is then something else. */
		if (o->kind != ARG_WAIT || args_float(line->argv[line->at], &seconds))
			value = line->argv[line->at++];
	}
	if (o->value && !value && o->kind != ARG_WAIT)
		return say(STATUS_USAGE, "%s: want a value: %s %s", o->name, o->name, o->value);
	if (base == &line->global && o->kind == ARG_STRING && !*value)
		return want_value(o->name, value, "a path");
	return args_store(o, o->name, base, value);
}

static bool is_option(const char *arg)
{
	return arg[0] == '-' && arg[1] != 0;
}

/* Everything after the verb; arguments are moved to the front of argv. */
static int parse_rest(struct line *line, size_t *ret_n_args)
{
	size_t n = 0;
	bool ended = false;
	int r;

	while (line->at < line->argc) {
		char *arg = line->argv[line->at];

		if (!ended && strcmp(arg, "--") == 0) {
			ended = true;
			line->at++;
		} else if (!ended && is_option(arg)) {
			r = parse_option(line);
			if (r != 0)
				return r;
		} else {
			line->argv[n++] = arg;
			line->at++;
		}
	}
	*ret_n_args = n;
	return 0;
}

static int run_verb(struct line *line)
{
	const struct verb *verb = line->verb;
	size_t n_args = 0;
	int r;

	line->options = calloc(1, verb->options_bytes ? verb->options_bytes : 1);
	if (!line->options)
		return say(STATUS_FAILED, "out of memory");
	r = parse_rest(line, &n_args);
	if (r == 0 && line->global.help)
		print_verb_help(verb);
	else if (r == 0 && line->global.version)
		printf("dsctl %s\n", DSCTL_VERSION);
	else if (r == 0)
		r = verb->run(&line->global, line->options, line->argv, n_args);
	for (size_t i = 0; i < verb->n_options; i++)
		if (verb->options[i].kind == ARG_LIST)
			free(((struct arg_list *)((uint8_t *)line->options +
						  verb->options[i].offset))
				     ->items);
	free(line->options);
	return r;
}

int args_run(const struct verb *const *verbs, size_t n_verbs, int argc, char **argv)
{
	struct line line = {.argv = argv, .argc = argc, .at = 1};
	int r;

	while (line.at < argc && is_option(argv[line.at])) {
		r = parse_option(&line);
		if (r != 0)
			return r;
	}
	if (line.at < argc) {
		for (size_t i = 0; i < n_verbs && !line.verb; i++)
			if (strcmp(verbs[i]->name, argv[line.at]) == 0)
				line.verb = verbs[i];
		if (!line.verb)
			return unknown_verb(verbs, n_verbs, argv[line.at]);
		line.at++;
		return run_verb(&line);
	}
	if (line.global.help) {
		print_help(verbs, n_verbs);
		return 0;
	}
	if (line.global.version) {
		printf("dsctl %s\n", DSCTL_VERSION);
		return 0;
	}
	return say(STATUS_USAGE, "want a verb; `dsctl --help` lists them");
}
