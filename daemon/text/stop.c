/* SPDX-License-Identifier: Apache-2.0 */
/* One Knuth-Morris-Pratt automaton for each string. An automaton's state is how long a prefix of its
 * string the text ends with; the largest of them is how much is held back, and what is held back is
 * just that prefix, so no text is kept. */
#include "text/stop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/decode.h"
#include "text/utf8.h"

struct pattern {
	uint16_t n;
	uint16_t state;              /* bytes of the string that the text ends with, < n */
	uint16_t fail[STOP_LEN_MAX]; /* fail[i]: the next shorter border of the first i + 1 bytes */
	uint8_t bytes[STOP_LEN_MAX];
};

struct stop {
	int matched; /* index, or -1 */
	size_t n_patterns;
	struct pattern pattern[];
};

static void pattern_init(struct pattern *p, const char *text, size_t n)
{
	uint16_t k = 0;

	p->n = (uint16_t)n;
	memcpy(p->bytes, text, n);
	for (size_t i = 1; i < n; i++) {
		while (k > 0 && p->bytes[i] != p->bytes[k])
			k = p->fail[k - 1];
		if (p->bytes[i] == p->bytes[k])
			k++;
		p->fail[i] = k;
	}
}

static void pattern_step(struct pattern *p, uint8_t byte)
{
	while (p->state > 0 && byte != p->bytes[p->state])
		p->state = p->fail[p->state - 1];
	if (byte == p->bytes[p->state])
		p->state++;
}

/* The pattern that holds back most; NULL when nothing is held. */
static const struct pattern *longest(const struct stop *s)
{
	const struct pattern *best = NULL;

	for (size_t i = 0; i < s->n_patterns; i++)
		if (s->pattern[i].state > (best ? best->state : 0))
			best = &s->pattern[i];
	return best;
}

int stop_new(struct stop **ret, const struct stop_string *strings, size_t n, struct error *err)
{
	struct stop *s;

	if (n > STOP_STRINGS_MAX)
		return error_set(err, -EINVAL, "%zu stop strings: want at most %d", n,
				 STOP_STRINGS_MAX);
	for (size_t i = 0; i < n; i++) {
		if (strings[i].n == 0 || strings[i].n > STOP_LEN_MAX)
			return error_set(err, -EINVAL,
					 "stop string %zu has %zu bytes: want 1 to %d", i,
					 strings[i].n, STOP_LEN_MAX);
		if (utf8_valid_prefix((const uint8_t *)strings[i].text, strings[i].n) !=
		    strings[i].n)
			return error_set(err, -EINVAL, "stop string %zu is not UTF-8", i);
	}
	s = calloc(1, sizeof(*s) + n * sizeof(s->pattern[0]));
	if (!s)
		return -ENOMEM;
	s->n_patterns = n;
	for (size_t i = 0; i < n; i++)
		pattern_init(&s->pattern[i], strings[i].text, strings[i].n);
	stop_reset(s);
	*ret = s;
	return 0;
}

struct stop *stop_free(struct stop *s)
{
	free(s);
	return NULL;
}

void stop_reset(struct stop *s)
{
	s->matched = -1;
	for (size_t i = 0; i < s->n_patterns; i++)
		s->pattern[i].state = 0;
}

size_t stop_held(const struct stop *s)
{
	const struct pattern *held = longest(s);

	return held && s->matched < 0 ? held->state : 0;
}

/* One byte more; the index of the longest string that it completes, or -1. */
static int step_all(struct stop *s, uint8_t byte)
{
	int best = -1;

	for (size_t i = 0; i < s->n_patterns; i++) {
		struct pattern *p = &s->pattern[i];

		pattern_step(p, byte);
		if (p->state == p->n && (best < 0 || p->n > s->pattern[best].n))
			best = (int)i;
	}
	return best;
}

int stop_push(struct stop *s, const char *text, size_t n, struct text_buf *out, int *ret_matched)
{
	const struct pattern *held = longest(s);
	size_t n_held = held ? held->state : 0;
	size_t n_taken = 0;
	int r;

	if (s->matched < 0 && n > 0) {
		/* All that is not yet shown goes out: the held prefix and the text up to a match. What
		 * is then held, or is the stop string, is taken off the end again. */
		r = text_buf_reserve(out, n_held + n);
		if (r < 0)
			return r;
		if (held)
			memcpy(out->data + out->n, held->bytes, n_held);
		while (n_taken < n && s->matched < 0)
			s->matched = step_all(s, (uint8_t)text[n_taken++]);
		memcpy(out->data + out->n + n_held, text, n_taken);
		out->n += n_held + n_taken;
		out->n -= s->matched < 0 ? stop_held(s) : s->pattern[s->matched].n;
	}
	*ret_matched = s->matched;
	return 0;
}

int stop_flush(struct stop *s, struct text_buf *out)
{
	const struct pattern *held = s->matched < 0 ? longest(s) : NULL;
	int r = held ? text_buf_append(out, held->bytes, held->state) : 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < s->n_patterns; i++)
		s->pattern[i].state = 0;
	return 0;
}
