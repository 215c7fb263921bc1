/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/vocab.h"
#include "text/vocab_impl.h"
#include "text_image.h"

/* 256 byte tokens and nothing else, not finished. */
static struct text_image *bytes_without(enum image_splitter splitter, int missing)
{
	struct text_image *t = text_image_new(splitter);

	for (unsigned b = 0; b < 256; b++)
		text_image_token(t, &(uint8_t){(uint8_t)b}, (int)b == missing ? 0 : 1, 0);
	return t;
}

/* Finishes @t, expects vocab_new() to refuse it with @sentence, and frees it. */
static void expect_refused(struct text_image *t, const char *sentence)
{
	struct vocab *v = NULL;
	struct error err = {};

	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, &err), -EINVAL);
	assert_null(v);
	assert_non_null(strstr(err.text, sentence));
	text_image_free(t);
}

static void vocab_refuses_a_missing_byte_of_utf8(void **state)
{
	(void)state;
	expect_refused(bytes_without(IMAGE_SPLIT_V3, 'k'), "no token for the byte 0x6b");
	expect_refused(bytes_without(IMAGE_SPLIT_V2, 0xF4), "no token for the byte 0xf4");
}

static void vocab_accepts_missing_bytes_that_utf8_never_has(void **state)
{
	static const int bytes[] = {0xC0, 0xC1, 0xF5, 0xFF};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bytes); i++) {
		struct text_image *t = bytes_without(IMAGE_SPLIT_V2, bytes[i]);
		struct vocab *v;

		text_image_finish(t);
		assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
		assert_int_equal(v->byte_id[bytes[i]], IMAGE_NONE);
		vocab_unref(v);
		text_image_free(t);
	}
}

static void vocab_refuses_a_merge_that_is_not_its_parts(void **state)
{
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	uint32_t ab = text_image_token(t, "ab", 2, 0);

	(void)state;
	text_image_merge(t, 'b', 'a', ab);
	expect_refused(t, "merge 0: token 256 is not token 98 followed by token 97");

	t = bytes_without(IMAGE_SPLIT_V3, -1);
	ab = text_image_merge(t, 'a', 'b', IMAGE_NONE);
	text_image_merge(t, ab, ab, ab);
	expect_refused(t, "merge 1");

	/* An empty token would let a merge be undone and done for ever. */
	t = bytes_without(IMAGE_SPLIT_V3, -1);
	text_image_merge(t, 'a', text_image_token(t, "", 0, 0), 'a');
	expect_refused(t, "merge 0");
}

static void vocab_refuses_a_merge_into_a_control_token(void **state)
{
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	uint32_t marker = text_image_token(t, "<|", 2, IMAGE_TOKEN_ADDED);

	(void)state;
	text_image_merge(t, '<', '|', marker);
	expect_refused(t, "merge 0 makes the control token 256");
}

static void vocab_refuses_merges_chosen_to_collide(void **state)
{
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	unsigned n_merges = 0;

	(void)state;
	/* 600 merges make a table of 2,048 slots; these all belong into the first two. The left tokens are
	 * copies of one byte. */
	for (uint32_t left = 256; left < 2600; left++)
		assert_int_equal(text_image_token(t, "a", 1, 0), left);
	for (uint32_t left = 256; left < 2600 && n_merges < 600; left++)
		for (uint32_t right = 0; right < 256 && n_merges < 600; right++)
			if ((merge_hash(left, right) & 2047) <= 1) {
				text_image_merge(t, left, right, IMAGE_NONE);
				n_merges++;
			}
	assert_int_equal(n_merges, 600);
	expect_refused(t, "collides with");
}

static void vocab_refuses_an_added_token_past_the_limit(void **state)
{
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	char text[VOCAB_ADDED_LEN_MAX + 1];
	struct vocab *v;

	(void)state;
	memset(text, 'x', sizeof(text));
	text_image_token(t, text, sizeof(text), IMAGE_TOKEN_ADDED);
	expect_refused(t, "added token 256 has 129 bytes");
	t = bytes_without(IMAGE_SPLIT_V3, -1);
	text_image_token(t, text, sizeof(text) - 1, IMAGE_TOKEN_ADDED);
	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	vocab_unref(v);
	text_image_free(t);
}

static void vocab_knows_control_tokens(void **state)
{
	struct text_image *t = text_image_tiny(IMAGE_SPLIT_V3, IMAGE_RENDER_V3);
	static const struct {
		const char *text;
		bool control;
	} cases[] = {
		{"<｜begin▁of▁sentence｜>", true}, /* special */
		{"<|EOT|>", true},                 /* special, ASCII bars */
		{"<｜User｜>", true},              /* named by the image */
		{"<｜fim▁hole｜>", true},          /* looks like one */
		{"</think>", true},                /* named by the image */
		{"ü", false},
		{"the", false},
	};
	struct vocab *v;

	(void)state;
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		uint32_t id = vocab_find_token(v, cases[i].text, strlen(cases[i].text));

		assert_int_not_equal(id, IMAGE_NONE);
		assert_int_equal(vocab_is_control(v, id), cases[i].control);
	}
	assert_true(vocab_is_control(v, t->im.h->n_vocab - 1)); /* unused */
	assert_true(vocab_is_control(v, t->im.h->n_vocab));
	assert_true(vocab_is_control(v, UINT32_MAX));
	assert_int_equal(vocab_find_token(v, "no such token", 13), IMAGE_NONE);
	assert_int_equal(vocab_find_token(v, "", 0), IMAGE_NONE);
	vocab_unref(v);
	text_image_free(t);
}

static void count_call(void *user)
{
	++*(int *)user;
}

static void vocab_releases_its_image_with_the_last_reference(void **state)
{
	struct text_image *t = text_image_tiny(IMAGE_SPLIT_V3, IMAGE_RENDER_NONE);
	struct text_image *bad = bytes_without(IMAGE_SPLIT_V3, 'x');
	struct vocab *v;
	int n_calls = 0;

	(void)state;
	assert_int_equal(vocab_new(&v, &t->im, count_call, &n_calls, NULL), 0);
	assert_ptr_equal(vocab_ref(v), v);
	assert_null(vocab_unref(v));
	assert_int_equal(n_calls, 0);
	assert_null(vocab_unref(v));
	assert_int_equal(n_calls, 1);
	assert_null(vocab_unref(NULL));
	text_image_finish(bad);
	assert_int_equal(vocab_new(&v, &bad->im, count_call, &n_calls, NULL), -EINVAL);
	assert_int_equal(n_calls, 1);
	text_image_free(bad);
	text_image_free(t);
}

static void vocab_uses_the_last_rank_of_a_pair_given_twice(void **state)
{
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	uint32_t ab = text_image_merge(t, 'a', 'b', IMAGE_NONE);
	struct vocab *v;

	(void)state;
	text_image_merge(t, 'b', 'c', IMAGE_NONE);
	text_image_merge(t, 'a', 'b', ab);
	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	assert_int_equal(vocab_merge(v, 'a', 'b')->rank, 2);
	assert_int_equal(vocab_merge(v, 'b', 'c')->rank, 1);
	assert_int_equal(vocab_merge(v, 'c', 'b')->rank, MERGE_NONE);
	vocab_unref(v);
	text_image_free(t);
}

static void match_finds_the_leftmost_longest(void **state)
{
	static const char *const added[] = {"ab", "abcd", "abcx", "b", "bcde", "zzz"};
	static const struct {
		const char *text, *want;
		size_t start;
	} cases[] = {
		{"abcd", "abcd", 0},  {"abce", "ab", 0}, {"xabc", "ab", 1},
		{"abcdx", "abcd", 0}, {"bcdf", "b", 0},  {"zzbcde", "bcde", 2},
		{"..zzz", "zzz", 2},  {"a", NULL, 0},    {"zz", NULL, 0},
		{"abcabcx", "ab", 0}, {"\xFF", NULL, 0}, {"", NULL, 0},
	};
	struct text_image *t = bytes_without(IMAGE_SPLIT_V3, -1);
	struct vocab *v;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(added); i++)
		text_image_token(t, added[i], strlen(added[i]), IMAGE_TOKEN_ADDED);
	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		size_t start = 0, end = 0;
		uint32_t id = vocab_match(v, &v->text, (const uint8_t *)cases[i].text, 0,
					  strlen(cases[i].text), &start, &end);

		if (!cases[i].want) {
			assert_int_equal(id, IMAGE_NONE);
			continue;
		}
		assert_int_equal(id, vocab_find_token(v, cases[i].want, strlen(cases[i].want)));
		assert_int_equal(start, cases[i].start);
		assert_int_equal(end, start + strlen(cases[i].want));
	}
	vocab_unref(v);
	text_image_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vocab_refuses_a_missing_byte_of_utf8),
		cmocka_unit_test(vocab_accepts_missing_bytes_that_utf8_never_has),
		cmocka_unit_test(vocab_refuses_a_merge_that_is_not_its_parts),
		cmocka_unit_test(vocab_refuses_a_merge_into_a_control_token),
		cmocka_unit_test(vocab_refuses_merges_chosen_to_collide),
		cmocka_unit_test(vocab_refuses_an_added_token_past_the_limit),
		cmocka_unit_test(vocab_knows_control_tokens),
		cmocka_unit_test(vocab_releases_its_image_with_the_last_reference),
		cmocka_unit_test(vocab_uses_the_last_rank_of_a_pair_given_twice),
		cmocka_unit_test(match_finds_the_leftmost_longest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
