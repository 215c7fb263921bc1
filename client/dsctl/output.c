/* SPDX-License-Identifier: Apache-2.0 */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

int say(int status, const char *fmt, ...)
{
	va_list ap;

	fputs("dsctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return status;
}

int out_finish(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	return say(status == STATUS_OK ? STATUS_FAILED : status,
		   "standard output could not be written in full");
}

bool out_text(const char *text, size_t n)
{
	return fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0;
}

void out_end_line(char last)
{
	if (last != '\n' && isatty(STDOUT_FILENO))
		putchar('\n');
}

/* ---------------------------------------------------------------- JSON */

int out_json(struct json_object *o)
{
	const char *text = o ? json_object_to_json_string_ext(
				       o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE)
			     : NULL;

	if (text) {
		puts(text);
		fflush(stdout); /* a program may wait for it before it says the next thing */
	}
	json_object_put(o);
	return text ? STATUS_OK : say(STATUS_FAILED, "out of memory");
}

/* Length of the UTF-8 character at p, 0 where there is none. */
static size_t character(const unsigned char *p, size_t left)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t n;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	if (p[0] == 0xe0)
		low = 0xa0;
	if (p[0] == 0xed)
		high = 0x9f;
	if (p[0] == 0xf0)
		low = 0x90;
	if (p[0] == 0xf4)
		high = 0x8f;
	for (size_t i = 1; i < n; i++, low = 0x80, high = 0xbf)
		if (i >= left || p[i] < low || p[i] > high)
			return 0;
	return n;
}

struct json_object *json_text(const char *text, size_t n)
{
	char *clean = malloc(n * strlen(REPLACEMENT) + 1);
	struct json_object *o;
	size_t at = 0;

	if (!clean)
		return NULL;
	for (size_t i = 0; i < n;) {
		size_t k = character((const unsigned char *)text + i, n - i);

		if (k == 0) {
			memcpy(clean + at, REPLACEMENT, strlen(REPLACEMENT));
			at += strlen(REPLACEMENT);
			i++;
			continue;
		}
		memcpy(clean + at, text + i, k);
		at += k;
		i += k;
	}
	o = at <= INT32_MAX ? json_object_new_string_len(clean, (int)at) : NULL;
	free(clean);
	return o;
}

/* Nine digits give a float back exactly. */
struct json_object *json_real(double v)
{
	char text[32];

	snprintf(text, sizeof(text), "%.9g", v);
	return json_object_new_double_s(v, text);
}

void json_add(struct json_object *o, const char *key, struct json_object *v)
{
	json_object_object_add(o, key, v);
}

/* ---------------------------------------------------------------- numbers for people */

void hex_text(const uint8_t *data, size_t n, char *ret, size_t n_hex)
{
	size_t at = 0;

	for (size_t i = 0; i < n && at + 2 <= n_hex; i++, at += 2)
		snprintf(ret + at, 3, "%02x", data[i]);
	ret[at] = 0;
}

static void scaled(double v, const char *unit, char ret[static 16])
{
	static const char *const prefix[] = {"", "k", "M", "G", "T", "P", "E"};
	size_t i = 0;

	while (v >= 1000 && i + 1 < sizeof(prefix) / sizeof(prefix[0])) {
		v /= 1000;
		i++;
	}
	snprintf(ret, 16, i == 0 ? "%.0f%s%s%s" : "%.3g%s%s%s", v, *prefix[i] || *unit ? " " : "",
		 prefix[i], unit);
}

void bytes_text(double bytes, char ret[static 16])
{
	scaled(bytes, "B", ret);
}

void count_text(double n, char ret[static 16])
{
	scaled(n, "", ret);
}

void duration_text(uint64_t usec, char ret[static 32])
{
	uint64_t s = usec / 1000000;

	if (s >= 86400)
		snprintf(ret, 32, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	else if (s >= 3600)
		snprintf(ret, 32, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else if (s >= 60)
		snprintf(ret, 32, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	else
		snprintf(ret, 32, "%" PRIu64 ".%" PRIu64 " s", s, usec / 100000 % 10);
}

const char *state_text(int state)
{
	static const char *const names[] = {"unknown", "loading", "ready", "degraded", "idle"};

	return state > 0 && state < (int)(sizeof(names) / sizeof(names[0])) ? names[state]
									    : names[0];
}

/* ---------------------------------------------------------------- tables */

struct libscols_table *table_new(const char *const *columns)
{
	struct libscols_table *table = scols_new_table();

	if (!table)
		return NULL;
	for (; *columns; columns++) {
		bool right = **columns == '>';

		if (!scols_table_new_column(table, *columns + right, 0,
					    right ? SCOLS_FL_RIGHT : 0)) {
			scols_unref_table(table);
			return NULL;
		}
	}
	return table;
}

void table_cell(struct libscols_line *line, size_t column, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (text && scols_line_refer_data(line, column, text) != 0)
		free(text);
}
