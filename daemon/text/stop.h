#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Stop strings in a stream of text: what may be shown now, and whether the stream has ended.
 *
 * Text is matched byte by byte, wherever tokens were cut. The longest suffix that a stop string could
 * still grow from is held back; the rest is passed on at once. The first match to be completed wins,
 * among those that end at the same byte the longest; the stop string and all behind it are dropped.
 * The state is a function of the text pushed so far: replaying the text (or the ids behind it)
 * rebuilds it. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct error;
struct text_buf;

#define STOP_STRINGS_MAX 16
#define STOP_LEN_MAX     256 /* bytes of one stop string */

struct stop_string {
	const char *text;
	size_t n;
};

/* The strings of one request and the state of one stream. One thread at a time. */
struct stop;

/**
 * stop_new() - prepare the strings of a request
 * @n: 0 to STOP_STRINGS_MAX strings, each UTF-8 of 1 to STOP_LEN_MAX bytes; copied
 *
 * Return: 0, -EINVAL, -ENOMEM.
 */
int stop_new(struct stop **ret, const struct stop_string *strings, size_t n, struct error *err);
struct stop *stop_free(struct stop *s);
DEFINE_CLEANUP(struct stop *, stop_free);

/**
 * stop_push() - match the next text of the stream (whole characters, as a decoder gives them)
 * @out:         appended: the text that may be shown; on a match, all that comes before it
 * @ret_matched: index of the string that matched, or -1
 *
 * After a match the stream is over: further text is dropped, and the same index is returned.
 * Return: 0 or -ENOMEM (state and @out unchanged).
 */
int stop_push(struct stop *s, const char *text, size_t n, struct text_buf *out, int *ret_matched);
/** stop_flush() - the stream ended without a match: append what was held back. Return: 0, -ENOMEM. */
int stop_flush(struct stop *s, struct text_buf *out);
/** stop_held() - bytes held back just now, < STOP_LEN_MAX. */
size_t stop_held(const struct stop *s);
/** stop_reset() - as after stop_new(), with the same strings. */
void stop_reset(struct stop *s);
