/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/decode.h"
#include "text/stop.h"

static struct stop *stop_of(const char *const *strings, size_t n)
{
	struct stop_string list[STOP_STRINGS_MAX];
	struct stop *s;

	for (size_t i = 0; i < n; i++)
		list[i] = (struct stop_string){strings[i], strlen(strings[i])};
	assert_int_equal(stop_new(&s, list, n, NULL), 0);
	return s;
}

static void expect_shown(const struct text_buf *out, const char *want)
{
	assert_int_equal(out->n, strlen(want));
	if (out->n)
		assert_memory_equal(out->data, want, out->n);
}

static void stop_cuts_text_before_the_string(void **state)
{
	static const struct {
		const char *stops[3];
		const char *text, *shown;
		int matched;
	} cases[] = {
		{{"STOP"}, "go on STOP here", "go on ", 0},
		{{"STOP"}, "go on STO", "go on STO", -1},
		{{"STOP"}, "STSTOP", "ST", 0},
		{{"aab"}, "aaaab", "aa", 0},
		{{"abcabd"}, "abcabcabd!", "abc", 0},
		{{"x"}, "x", "", 0},
		/* The match that is complete first wins, wherever it began. */
		{{"abcd", "bc"}, "abcd", "a", 1},
		/* Of those that end together the longest. */
		{{"c", "abc", "bc"}, "xabc", "x", 1},
		{{"\n\n", "User:"}, "a\nb\n\nUser:", "a\nb", 0},
		{{"日本"}, "今日は日本", "今日は", 0},
		{{NULL}, "nothing stops", "nothing stops", -1},
	};

	(void)state;
	/* Whole, and one byte at a time: the answer must not depend on how the text was cut. */
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		size_t n = strlen(cases[i].text), n_stops = 0;

		while (n_stops < 3 && cases[i].stops[n_stops])
			n_stops++;
		for (size_t chunk = 1; chunk <= n; chunk++) {
			struct stop *s = stop_of(cases[i].stops, n_stops);
			struct text_buf out = {};
			int matched = -1;

			for (size_t at = 0; at < n; at += chunk)
				assert_int_equal(stop_push(s, cases[i].text + at,
							   MIN(chunk, n - at), &out, &matched),
						 0);
			assert_int_equal(matched, cases[i].matched);
			assert_int_equal(stop_flush(s, &out), 0);
			expect_shown(&out, cases[i].shown);
			text_buf_done(&out);
			stop_free(s);
		}
	}
}

static void stop_holds_back_only_what_may_still_match(void **state)
{
	static const char *const stops[] = {"END.", "NDX"};
	static const struct {
		const char *text, *shown;
		size_t n_held;
	} steps[] = {
		{"tex", "tex", 0},        {"t E", "text ", 1},  {"N", "text ", 2},
		{"D", "text ", 3},        {"E", "text END", 1}, {"ND", "text END", 3},
		{"!", "text ENDEND!", 0},
	};
	struct stop *s = stop_of(stops, 2);
	struct text_buf out = {};
	int matched;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(steps); i++) {
		assert_int_equal(stop_push(s, steps[i].text, strlen(steps[i].text), &out, &matched),
				 0);
		assert_int_equal(matched, -1);
		expect_shown(&out, steps[i].shown);
		assert_int_equal(stop_held(s), steps[i].n_held);
	}
	/* "END" of "END." is held; X ends the other string, whose start is inside of what is held. */
	assert_int_equal(stop_push(s, "END", 3, &out, &matched), 0);
	assert_int_equal(stop_push(s, "X", 1, &out, &matched), 0);
	assert_int_equal(matched, 1);
	expect_shown(&out, "text ENDEND!E");
	text_buf_done(&out);
	stop_free(s);
}

static void stop_drops_all_text_after_a_match(void **state)
{
	static const char *const stops[] = {"no", "yes"};
	struct stop *s = stop_of(stops, 2);
	struct text_buf out = {};
	int matched;

	(void)state;
	assert_int_equal(stop_push(s, "a yes b no", 10, &out, &matched), 0);
	assert_int_equal(matched, 1);
	assert_int_equal(stop_push(s, "more no", 7, &out, &matched), 0);
	assert_int_equal(matched, 1);
	assert_int_equal(stop_held(s), 0);
	assert_int_equal(stop_flush(s, &out), 0);
	expect_shown(&out, "a ");
	/* Replayed from the start it says the same. */
	stop_reset(s);
	out.n = 0;
	assert_int_equal(stop_push(s, "a ye", 4, &out, &matched), 0);
	assert_int_equal(matched, -1);
	assert_int_equal(stop_push(s, "s", 1, &out, &matched), 0);
	assert_int_equal(matched, 1);
	expect_shown(&out, "a ");
	text_buf_done(&out);
	stop_free(s);
}

static void stop_refuses_strings_out_of_range(void **state)
{
	static char long_text[STOP_LEN_MAX + 1];
	struct stop_string many[STOP_STRINGS_MAX + 1];
	struct stop *s = NULL;
	struct error err = {};

	(void)state;
	memset(long_text, 'x', sizeof(long_text));
	for (size_t i = 0; i < N_ELEMENTS(many); i++)
		many[i] = (struct stop_string){long_text, STOP_LEN_MAX};
	assert_int_equal(stop_new(&s, many, STOP_STRINGS_MAX + 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "17 stop strings"));
	many[1].n = STOP_LEN_MAX + 1;
	assert_int_equal(stop_new(&s, many, 2, &err), -EINVAL);
	assert_non_null(strstr(err.text, "stop string 1 has 257 bytes"));
	many[1].n = 0;
	assert_int_equal(stop_new(&s, many, 2, &err), -EINVAL);
	many[1] = (struct stop_string){"\xA9", 1};
	assert_int_equal(stop_new(&s, many, 2, &err), -EINVAL);
	assert_non_null(strstr(err.text, "not UTF-8"));
	assert_null(s);
	many[1].text = "y";
	assert_int_equal(stop_new(&s, many, STOP_STRINGS_MAX, &err), 0);
	stop_free(s);
	assert_int_equal(stop_new(&s, NULL, 0, &err), 0);
	stop_free(s);
}

/* What the header says, by looking at the whole text. */
static int search_plainly(const char *const *stops, size_t n, const char *text, size_t *ret_shown)
{
	for (size_t end = 1; end <= strlen(text); end++) {
		int best = -1;

		for (size_t i = 0; i < n; i++) {
			size_t len = strlen(stops[i]);

			if (len <= end && memcmp(text + end - len, stops[i], len) == 0 &&
			    (best < 0 || len > strlen(stops[best])))
				best = (int)i;
		}
		if (best >= 0) {
			*ret_shown = end - strlen(stops[best]);
			return best;
		}
	}
	*ret_shown = strlen(text);
	return -1;
}

static void stop_agrees_with_a_search_of_the_whole_text(void **state)
{
	uint64_t seed = 1;
	int n_matched = 0;

	(void)state;
	for (int round = 0; round < 3000; round++) {
		char strings[4][12], text[61];
		const char *stops[4];
		struct text_buf out = {};
		struct stop *s;
		size_t n_shown;
		int want, got = -1;

		/* Letters of an alphabet of two, so that prefixes and borders abound. */
		for (int i = 0; i < 5; i++) {
			char *p = i < 4 ? strings[i] : text;
			size_t n = i < 4 ? 7 + (size_t)round % 5 : 60;

			for (size_t k = 0; k < n; k++) {
				seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
				p[k] = (char)('a' + (seed >> 63));
			}
			p[n] = 0;
			if (i < 4)
				stops[i] = strings[i];
		}
		want = search_plainly(stops, 4, text, &n_shown);
		s = stop_of(stops, 4);
		for (size_t at = 0; at < 60; at++)
			assert_int_equal(stop_push(s, text + at, 1, &out, &got), 0);
		assert_int_equal(stop_flush(s, &out), 0);
		assert_int_equal(got < 0, want < 0);
		/* Equal strings may both be named. */
		if (want >= 0)
			assert_string_equal(stops[got], stops[want]);
		assert_int_equal(out.n, n_shown);
		if (n_shown)
			assert_memory_equal(out.data, text, n_shown);
		n_matched += want >= 0;
		text_buf_done(&out);
		stop_free(s);
	}
	assert_in_range(n_matched, 300, 2900);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stop_cuts_text_before_the_string),
		cmocka_unit_test(stop_holds_back_only_what_may_still_match),
		cmocka_unit_test(stop_drops_all_text_after_a_match),
		cmocka_unit_test(stop_refuses_strings_out_of_range),
		cmocka_unit_test(stop_agrees_with_a_search_of_the_whole_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
