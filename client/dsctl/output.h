#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What dsctl prints: sentences on standard error, data on standard output, tables and JSON. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <json-c/json.h>
#include <libsmartcols/libsmartcols.h>

/* Exit statuses; args.c tells them in --help, the man page in words. */
enum status {
	STATUS_OK = 0,
	STATUS_FAILED = 1, /* the request failed */
	STATUS_USAGE = 2,
	STATUS_CONNECT = 3, /* no daemon */
	STATUS_MODEL = 4,   /* the model is not ready, or could not be loaded */
	STATUS_INTERRUPTED = 130,
};

/** say() - "dsctl: ..." on standard error; gives back status, so that failing reads as one step. */
int say(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** out_finish() - the status, or 1 and a sentence where standard output could not be written. */
int out_finish(int status);
/** out_text() - bytes as they are, at once. False: they could not be written; out_finish() says so. */
bool out_text(const char *text, size_t n);
/** out_end_line() - a newline, if a terminal would otherwise stay in mid-line. */
void out_end_line(char last);

/** out_json() - print an object and a newline, and drop it. Return: 0, or 1 after a sentence. */
int out_json(struct json_object *o);
/** json_text() - a string in which bytes that are not UTF-8 became U+FFFD. NULL: out of memory. */
struct json_object *json_text(const char *text, size_t n);
struct json_object *json_real(double v);
/** json_add() - put a member into an object that owns it from then on. */
void json_add(struct json_object *o, const char *key, struct json_object *v);

/** hex_text() - digest as hexadecimal, at most n_hex digits; ret holds n_hex + 1. */
void hex_text(const uint8_t *data, size_t n, char *ret, size_t n_hex);
/** bytes_text() - "1.99 MB" */
void bytes_text(double bytes, char ret[static 16]);
/** count_text() - "15.7 G" */
void count_text(double n, char ret[static 16]);
/** duration_text() - "1.5 s", "3 min 4 s" */
void duration_text(uint64_t usec, char ret[static 32]);
const char *state_text(int state);

/** table_new() - columns by name, ended by NULL; a leading '>' aligns to the right. NULL: out of memory. */
struct libscols_table *table_new(const char *const *columns);
/** table_cell() - set one cell. */
void table_cell(struct libscols_line *line, size_t column, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
