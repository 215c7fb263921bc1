#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Options of dsctl: one table per verb, from which both the parser and --help work, so that they cannot
 * disagree. Options are long, `--name VALUE` or `--name=VALUE`, before or after arguments; `--` ends them. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum arg_kind {
	ARG_FLAG,   /* bool */
	ARG_BITS,   /* no value: or's bits into the uint64_t at set_offset */
	ARG_STRING, /* const char * */
	ARG_LIST,   /* struct arg_list; may be given more than once */
	ARG_U32,    /* uint32_t, and bits */
	ARG_U64,    /* uint64_t, and bits */
	ARG_FLOAT,  /* float, and bits */
	ARG_WAIT,   /* struct arg_wait: an optional number of seconds */
};

struct arg_list {
	const char **items;
	size_t n;
};

struct arg_wait {
	bool given;
	bool has_seconds;
	double seconds;
};

struct arg_option {
	const char *name;  /* with its dashes */
	const char *value; /* what --help calls its value; NULL: it has none */
	const char *help;
	enum arg_kind kind;
	size_t offset;     /* of the variable in the verb's struct */
	size_t set_offset; /* of the uint64_t that bits go into */
	uint64_t bits;     /* 0: nothing goes there */
};

/* What every verb gets. */
struct global {
	const char *socket, *admin_socket;
	bool json;
	bool no_resume;
	bool help;
	bool version;
};

struct verb {
	const char *name;
	const char *arguments; /* as --help shows them */
	const char *summary;
	const char *details; /* further paragraphs of --help; NULL: none */
	const struct arg_option *options;
	size_t n_options;
	size_t options_bytes; /* of the verb's struct, which starts zeroed */
	/* Returns the exit status. */
	int (*run)(const struct global *global, void *options, char **args, size_t n_args);
};

/**
 * args_run() - parse a command line and run its verb
 *
 * Return: exit status; what is wrong with the line was said on standard error.
 */
int args_run(const struct verb *const *verbs, size_t n_verbs, int argc, char **argv);

/**
 * args_store() - put one value where its option says
 * @name:  what to call it in a sentence
 * @base:  the verb's struct
 * @value: NULL where the option has none
 *
 * Return: 0, or an exit status after a sentence; the variable is as it was then.
 */
int args_store(const struct arg_option *option, const char *name, void *base, const char *value);

/* Strict numbers: all of the text, digits only, no sign but a float's. False: it is none, or out of range. */
bool args_u32(const char *text, uint32_t *ret);
bool args_u64(const char *text, uint64_t *ret);
bool args_float(const char *text, double *ret);
