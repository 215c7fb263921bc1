/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding with the tiny vocabulary and with random ones, against a plain restatement of the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/split.h"
#include "text/vocab.h"
#include "text_image.h"

struct fixture {
	struct text_image *t;
	struct vocab *v;
	struct encode_scratch *s;
};

static struct fixture open_tiny(enum image_splitter splitter)
{
	struct fixture f = {.t = text_image_tiny(splitter, IMAGE_RENDER_NONE)};

	assert_int_equal(vocab_new(&f.v, &f.t->im, NULL, NULL, NULL), 0);
	assert_int_equal(encode_scratch_new(&f.s), 0);
	return f;
}

static void close_tiny(struct fixture *f)
{
	vocab_unref(f->v);
	encode_scratch_free(f->s);
	text_image_free(f->t);
}

static uint32_t token(const struct fixture *f, const char *text)
{
	uint32_t id = vocab_find_token(f->v, text, strlen(text));

	assert_int_not_equal(id, IMAGE_NONE);
	return id;
}

static struct ids encode(const struct fixture *f, const void *text, size_t n, unsigned flags)
{
	struct ids ids = {};
	struct error err = {};

	if (encode_text(f->v, f->s, text, n, flags, &ids, &err) < 0)
		fail_msg("%s", err.text);
	return ids;
}

/* @text becomes the tokens named in @want, which are separated by '|'. */
static void expect_tokens(const struct fixture *f, const char *text, unsigned flags,
			  const char *want)
{
	struct ids ids = encode(f, text, strlen(text), flags);
	struct text_buf got = {};

	for (size_t i = 0; i < ids.n; i++) {
		if (i)
			assert_int_equal(text_buf_append(&got, "|", 1), 0);
		assert_int_equal(decode_bytes(f->v, &ids.id[i], 1, false, &got, NULL), 0);
	}
	assert_int_equal(text_buf_append(&got, "", 1), 0);
	assert_string_equal(got.data, want);
	text_buf_done(&got);
	ids_done(&ids);
}

static void expect_round_trip(const struct fixture *f, const void *text, size_t n)
{
	struct ids ids = encode(f, text, n, 0);
	struct text_buf out = {};

	assert_int_equal(decode_bytes(f->v, ids.id, ids.n, false, &out, NULL), 0);
	assert_int_equal(out.n, n);
	if (n)
		assert_memory_equal(out.data, text, n);
	text_buf_done(&out);
	ids_done(&ids);
}

static void encode_merges_lowest_rank_first(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);

	(void)state;
	expect_tokens(&f, "the", 0, "the");
	expect_tokens(&f, "they the", 0, "they| the");
	expect_tokens(&f, "aaaaaaa", 0, "aaaa|aaa");
	expect_tokens(&f, "aaaaa", 0, "aaaa|a");
	expect_tokens(&f, "", 0, "");
	close_tiny(&f);
}

static void encode_stops_merges_at_piece_borders(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);

	(void)state;
	/* "12" merges, but not across the border after the third digit. */
	expect_tokens(&f, "9912", 0, "9|9|1|2");
	expect_tokens(&f, "912", 0, "9|12");
	/* The last blank belongs to the word, so it does not merge with the one before it. */
	expect_tokens(&f, "  the", 0, " | the");
	expect_tokens(&f, "  ", 0, "  ");
	expect_tokens(&f, "  9", 0, "  |9");
	close_tiny(&f);
}

static void encode_matches_plain_added_tokens_longest_first(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);

	(void)state;
	expect_tokens(&f, "üüü", 0, "üü|ü");
	expect_tokens(&f, "Führer", 0, "F|ü|h|r|e|r");
	close_tiny(&f);
}

static void encode_never_makes_control_ids_of_text(void **state)
{
	static const char *const markers[] = {"<｜begin▁of▁sentence｜>",
					      "<｜end▁of▁sentence｜>",
					      "<｜User｜>",
					      "<｜Assistant｜>",
					      "<｜fim▁hole｜>",
					      "</think>",
					      "<|EOT|>"};
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);

	(void)state;
	for (size_t m = 0; m < N_ELEMENTS(markers); m++) {
		struct ids ids = encode(&f, markers[m], strlen(markers[m]), 0);

		assert_true(ids.n > 1);
		for (size_t i = 0; i < ids.n; i++)
			assert_false(vocab_is_control(f.v, ids.id[i]));
		ids_done(&ids);
		expect_round_trip(&f, markers[m], strlen(markers[m]));
		ids = encode(&f, markers[m], strlen(markers[m]), ENCODE_PARSE_SPECIAL);
		assert_int_equal(ids.n, 1);
		assert_int_equal(ids.id[0], token(&f, markers[m]));
		assert_true(vocab_is_control(f.v, ids.id[0]));
		ids_done(&ids);
	}
	close_tiny(&f);
}

static void encode_adds_bos_once(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);
	uint32_t bos = f.t->im.h->bos;
	struct ids ids = encode(&f, "the", 3, ENCODE_BOS);
	const char *with = "<｜begin▁of▁sentence｜>the";

	(void)state;
	assert_int_equal(ids.n, 2);
	assert_int_equal(ids.id[0], bos);
	/* Appending: what was there before stays, and does not count as this text's begin token. */
	assert_int_equal(encode_text(f.v, f.s, "aa", 2, ENCODE_BOS, &ids, NULL), 0);
	assert_int_equal(ids.n, 4);
	assert_int_equal(ids.id[2], bos);
	ids_done(&ids);
	ids = encode(&f, with, strlen(with), ENCODE_BOS | ENCODE_PARSE_SPECIAL);
	assert_int_equal(ids.n, 2);
	assert_int_equal(ids.id[0], bos);
	ids_done(&ids);
	ids = encode(&f, NULL, 0, ENCODE_BOS);
	assert_int_equal(ids.n, 1);
	assert_int_equal(ids.id[0], bos);
	ids_done(&ids);
	close_tiny(&f);
}

static void encode_without_scratch_is_the_same(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);
	struct ids with = encode(&f, "they say: the 12", 16, 0), without = {};

	(void)state;
	assert_int_equal(encode_text(f.v, NULL, "they say: the 12", 16, 0, &without, NULL), 0);
	assert_int_equal(with.n, without.n);
	assert_memory_equal(with.id, without.id, with.n * sizeof(with.id[0]));
	ids_done(&with);
	ids_done(&without);
	close_tiny(&f);
}

static void encode_keeps_bytes_that_are_not_utf8(void **state)
{
	static const char *const texts[] = {
		"\xFF",         "a\x80z",       "\xC3(",    "\xE2\x82",         "th\xC3\xA9\xC3",
		"\xF0\x9F\xA6", "\xED\xA0\x80", "\xC0\xAF", "\xF4\x90\x80\x80", "the\xFEthe",
		" \x80 ",       "1\xE9.",
	};

	(void)state;
	for (int k = IMAGE_SPLIT_BYTES; k < _IMAGE_SPLIT_MAX; k++) {
		struct fixture f = open_tiny((enum image_splitter)k);
		uint8_t all[512];

		for (unsigned i = 0; i < sizeof(all); i++)
			all[i] = (uint8_t)(i < 256 ? i : 7 * i);
		expect_round_trip(&f, all, sizeof(all));
		for (size_t i = 0; i < N_ELEMENTS(texts); i++)
			expect_round_trip(&f, texts[i], strlen(texts[i]));
		close_tiny(&f);
	}
}

static void encode_takes_an_invalid_byte_for_a_piece(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);

	(void)state;
	expect_tokens(&f,
		      "aa\xC3"
		      "aa",
		      0, "aa|\xC3|aa");
	/* C3 A9 merges where it is a character only. */
	expect_tokens(&f, "\xC3\xA9", 0, "\xC3\xA9");
	expect_tokens(&f, "\xE0\xC3\xA9\xA9", 0, "\xE0|\xC3\xA9|\xA9");
	close_tiny(&f);
}

static void encode_maps_bytes_to_ids_in_a_byte_vocabulary(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_BYTES);
	struct ids ids = encode(&f, "a\0\xFF", 3, 0);

	(void)state;
	assert_int_equal(ids.n, 3);
	assert_int_equal(ids.id[0], 'a');
	assert_int_equal(ids.id[1], 0);
	assert_int_equal(ids.id[2], 0xFF);
	ids_done(&ids);
	close_tiny(&f);
}

static void encode_names_the_byte_without_a_token(void **state)
{
	struct text_image *t = text_image_new(IMAGE_SPLIT_BYTES);
	struct vocab *v;
	struct ids ids = {};
	struct error err = {};

	(void)state;
	for (unsigned b = 0; b < 100; b++)
		text_image_token(t, &(uint8_t){(uint8_t)b}, 1, 0);
	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	assert_int_equal(ids_push(&ids, 7), 0);
	assert_int_equal(encode_text(v, NULL, "ab_", 3, 0, &ids, &err), 0);
	assert_int_equal(encode_text(v, NULL, "ab_ac", 5, 0, &ids, &err), 0);
	assert_int_equal(ids.n, 9);
	assert_int_equal(encode_text(v, NULL, "ab\xC3", 3, 0, &ids, &err), -EILSEQ);
	assert_non_null(strstr(err.text, "byte 0xc3 at position 2"));
	assert_int_equal(ids.n, 9);
	ids_done(&ids);
	vocab_unref(v);
	text_image_free(t);
}

static void encode_refuses_a_text_past_the_limit(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);
	struct ids ids = {};
	struct error err = {};

	(void)state;
	/* The length alone decides; nothing is read. */
	assert_int_equal(encode_text(f.v, f.s, "", (size_t)ENCODE_TEXT_MAX + 1, 0, &ids, &err),
			 -E2BIG);
	assert_int_equal(encode_text(f.v, f.s, "", SIZE_MAX, 0, &ids, &err), -E2BIG);
	assert_int_equal(ids.n, 0);
	close_tiny(&f);
}

/* What bounds the working memory of a text that somebody else made. */
static void encode_refuses_a_piece_past_the_limit(void **state)
{
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);
	const size_t n = ENCODE_PIECE_MAX + 3;
	char *text = malloc(n);
	struct ids ids = {};
	struct error err = {};

	(void)state;
	assert_non_null(text);
	memset(text, 'a', n);
	text[1] = '\n'; /* "a", the line's end, and ENCODE_PIECE_MAX + 1 bytes */
	assert_int_equal(encode_text(f.v, f.s, text, n, 0, &ids, &err), -E2BIG);
	assert_non_null(strstr(err.text, "4194305 bytes from position 2 make one piece"));
	assert_int_equal(ids.n, 0);
	assert_int_equal(encode_text(f.v, f.s, text, n - 1, 0, &ids, &err), 0);
	ids_done(&ids);
	free(text);
	close_tiny(&f);
}

/* The published patterns, piece by piece: '|' shows the cuts. */
static void expect_pieces(enum image_splitter kind, const char *text, const char *want)
{
	struct text_buf got = {};
	struct split s;
	size_t from, to, at = 0;

	split_init(&s, kind, (const uint8_t *)text, strlen(text));
	while (split_next(&s, &from, &to)) {
		assert_int_equal(from, at);
		assert_true(to > from);
		if (at)
			assert_int_equal(text_buf_append(&got, "|", 1), 0);
		assert_int_equal(text_buf_append(&got, text + from, to - from), 0);
		at = to;
	}
	assert_int_equal(at, strlen(text));
	assert_int_equal(text_buf_append(&got, "", 1), 0);
	assert_string_equal(got.data, want);
	text_buf_done(&got);
}

static void split_v3_cuts_as_the_published_patterns(void **state)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{"", ""},
		{"1234567", "123|456|7"},
		{"a1b", "a|1|b"},
		{"½²³４x", "½²³|４|x"},
		{"Hello world", "Hello| world"},
		{"a  b", "a| | b"},
		{"a  ", "a|  "},
		{"a  1", "a|  |1"},
		{"a \n\n b", "a| \n\n| b"},
		{"\n \n  \t", "\n \n|  \t"},
		{"\r\n\r\nx", "\r\n\r\n|x"},
		{"don't 'tis", "don|'t| '|tis"},
		{"a.b !?\n\nc", "a|.b| !?\n\n|c"},
		{"!!a", "!!|a"},
		{"(a)", "(a|)"},
		{"$é", "$|é"},
		{"\te\u0301!", "\te\u0301|!"},
		{"\u0301\u0301a", "\u0301\u0301a"},
		{"\x01\x02"
		 "ab\x03",
		 "\x01|\x02"
		 "ab|\x03"},
		{"\u00A0x \u3000y", "\u00A0x| |\u3000y"},
		{"你好，世界", "你好|，|世界"},
		{"abc日本語テスト・カナー", "abc|日本語テスト|・|カナー"},
		{"か゛き", "か|゛|き"},
		{"  日", "  |日"},
		{"日 a", "日| a"},
		{"\u2028\u2029z", "\u2028|\u2029z"},
		{"한국어 ไทย", "한국어| ไทย"},
		{"a\u200Db", "a|\u200Db"},
		{"+1-2", "+|1|-|2"},
		{" 1", " |1"},
		{"\v\f\xC2\x85x", "\v\f|\xC2\x85x"},
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(cases); i++)
		expect_pieces(IMAGE_SPLIT_V3, cases[i].text, cases[i].want);
}

static void split_v2_cuts_as_the_published_patterns(void **state)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{"", ""},
		{"1234", "1|2|3|4"},
		{"Hello world", "Hello| world"},
		{"a  b", "a| | b"},
		{"a  ", "a|  "},
		{"\n\n", "\n|\n"},
		{"\r\n x", "\r|\n| x"},
		{"über", "ü|ber"},
		{"a.b !?", "a|.|b| !?"},
		{"don't", "don|'|t"},
		{"нещо на", "нещо| на"},
		{"x 你好", "x| |你好"},
		{"你好，世界", "你好|，|世界"},
		{"한국어", "한국어"},
		{"，\u3000", "，|\u3000"},
		{"½x", "½|x"},
		{"\t\t=", "\t|\t="},
		{"🚀 (n)", "🚀| (|n|)"},
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(cases); i++)
		expect_pieces(IMAGE_SPLIT_V2, cases[i].text, cases[i].want);
}

static uint32_t plain_rank(const struct image *im, uint32_t left, uint32_t right)
{
	for (uint32_t r = 0; r < im->h->n_merges; r++)
		if (im->merges[r].left == left && im->merges[r].right == right)
			return r;
	return IMAGE_NONE;
}

/* The rule of byte-pair encoding in the plainest form: look at every pair, merge the best, start again. */
static void merge_plainly(const struct image *im, struct ids *ids)
{
	uint32_t *rank = calloc(ids->n, sizeof(*rank));

	assert_non_null(rank);
	for (size_t i = 0; i + 1 < ids->n; i++)
		rank[i] = plain_rank(im, ids->id[i], ids->id[i + 1]);
	while (ids->n > 1) {
		size_t best = 0;

		for (size_t i = 1; i + 1 < ids->n; i++)
			if (rank[i] < rank[best])
				best = i;
		if (rank[best] == IMAGE_NONE)
			break;
		ids->id[best] = im->merges[rank[best]].result;
		ids->n--;
		for (size_t i = best + 1; i < ids->n; i++) {
			ids->id[i] = ids->id[i + 1];
			rank[i - 1] = rank[i];
		}
		if (best + 1 < ids->n)
			rank[best] = plain_rank(im, ids->id[best], ids->id[best + 1]);
		if (best > 0)
			rank[best - 1] = plain_rank(im, ids->id[best - 1], ids->id[best]);
	}
	free(rank);
}

static uint32_t next_random(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (uint32_t)(*seed >> 33);
}

static bool has_pair(const struct text_image *t, uint32_t left, uint32_t right)
{
	for (uint32_t i = 0; i < t->n_merges; i++)
		if (t->merges[i].left == left && t->merges[i].right == right)
			return true;
	return false;
}

/* Merges of random tokens in random order: tokens that are used before they are made, made in several
 * ways, or never made. */
static struct text_image *random_vocabulary(uint64_t *seed, unsigned n_letters, unsigned n_merges)
{
	struct text_image *t = text_image_new(IMAGE_SPLIT_V3);

	for (unsigned b = 0; b < 256; b++)
		text_image_token(t, &(uint8_t){(uint8_t)b}, 1, 0);
	for (unsigned i = 0; i < n_merges; i++) {
		uint32_t pick[2];

		for (int k = 0; k < 2; k++) {
			uint32_t x = next_random(seed) % (n_letters + t->n_tokens - 256);

			pick[k] = x < n_letters ? 'a' + x : 256 + x - n_letters;
		}
		if (t->offset[pick[0] + 1] - t->offset[pick[0]] +
				    (t->offset[pick[1] + 1] - t->offset[pick[1]]) <=
			    12 &&
		    !has_pair(t, pick[0], pick[1])) {
			uint32_t at = t->n_tokens,
				 id = text_image_merge(t, pick[0], pick[1], IMAGE_NONE);

			/* One token for one text, however many merges make it. */
			for (uint32_t old = 0; old < at; old++) {
				uint32_t n = t->offset[old + 1] - t->offset[old];

				if (n == t->offset[id + 1] - t->offset[id] &&
				    memcmp(t->bytes + t->offset[old], t->bytes + t->offset[id],
					   n) == 0)
					t->merges[t->n_merges - 1].result = old;
			}
		}
	}
	for (uint32_t i = t->n_merges; i > 1; i--) {
		uint32_t j = next_random(seed) % i;
		struct image_merge m = t->merges[i - 1];

		t->merges[i - 1] = t->merges[j];
		t->merges[j] = m;
	}
	text_image_finish(t);
	return t;
}

/* Encodes @n random letters both ways; returns how many symbols the merges have saved. */
static size_t check_random_piece(const struct text_image *t, const struct vocab *v,
				 struct encode_scratch *s, uint64_t *seed, unsigned n_letters,
				 size_t n)
{
	struct ids want = {}, got = {};
	char *text = malloc(n);
	size_t n_saved;

	assert_non_null(text);
	for (size_t k = 0; k < n; k++) {
		text[k] = (char)('a' + next_random(seed) % n_letters);
		assert_int_equal(ids_push(&want, (uint8_t)text[k]), 0);
	}
	merge_plainly(&t->im, &want);
	assert_int_equal(encode_text(v, s, text, n, 0, &got, NULL), 0);
	assert_int_equal(got.n, want.n);
	assert_memory_equal(got.id, want.id, want.n * sizeof(want.id[0]));
	n_saved = n - got.n;
	ids_done(&want);
	ids_done(&got);
	free(text);
	return n_saved;
}

static void encode_equals_the_plain_rule_for_any_merges(void **state)
{
	uint64_t seed = 1;
	size_t n_saved = 0;

	(void)state;
	for (int round = 0; round < 60; round++) {
		unsigned n_letters = 1 + next_random(&seed) % 4;
		struct text_image *t = random_vocabulary(&seed, n_letters, 60);
		struct encode_scratch *s;
		struct vocab *v;

		assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
		assert_int_equal(encode_scratch_new(&s), 0);
		/* Both sides of the border between the short and the long way; and pieces long enough
		 * for the queue to be sorted first. */
		for (int i = 0; i < 20; i++)
			n_saved += check_random_piece(t, v, s, &seed, n_letters,
						      1 + next_random(&seed) % (i % 2 ? 40 : 300));
		if (round % 20 == 0)
			n_saved += check_random_piece(t, v, s, &seed, 3, 16000);
		encode_scratch_free(s);
		vocab_unref(v);
		text_image_free(t);
	}
	assert_true(n_saved > 30000);
}

static void encode_long_pieces_round_trip(void **state)
{
	static const char *const patterns[] = {"a",   "^",   "7", " ", "\n",   "ab",
					       "the", " \n", "é", "ü", "\xFF", "日"};
	struct fixture f = open_tiny(IMAGE_SPLIT_V3);
	size_t n = 1u << 17;
	char *text = malloc(n);

	(void)state;
	assert_non_null(text);
	for (size_t p = 0; p < N_ELEMENTS(patterns); p++) {
		size_t n_pattern = strlen(patterns[p]), n_used = n / n_pattern * n_pattern;

		for (size_t i = 0; i < n_used; i++)
			text[i] = patterns[p][i % n_pattern];
		expect_round_trip(&f, text, n_used);
	}
	/* Quarters of "aaaa", and nothing else. */
	memset(text, 'a', n);
	struct ids ids = encode(&f, text, n, 0);

	assert_int_equal(ids.n, n / 4);
	for (size_t i = 0; i < ids.n; i++)
		assert_int_equal(ids.id[i], token(&f, "aaaa"));
	ids_done(&ids);
	free(text);
	close_tiny(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(encode_merges_lowest_rank_first),
		cmocka_unit_test(encode_stops_merges_at_piece_borders),
		cmocka_unit_test(encode_matches_plain_added_tokens_longest_first),
		cmocka_unit_test(encode_never_makes_control_ids_of_text),
		cmocka_unit_test(encode_adds_bos_once),
		cmocka_unit_test(encode_without_scratch_is_the_same),
		cmocka_unit_test(encode_keeps_bytes_that_are_not_utf8),
		cmocka_unit_test(encode_takes_an_invalid_byte_for_a_piece),
		cmocka_unit_test(encode_maps_bytes_to_ids_in_a_byte_vocabulary),
		cmocka_unit_test(encode_names_the_byte_without_a_token),
		cmocka_unit_test(encode_refuses_a_text_past_the_limit),
		cmocka_unit_test(encode_refuses_a_piece_past_the_limit),
		cmocka_unit_test(split_v3_cuts_as_the_published_patterns),
		cmocka_unit_test(split_v2_cuts_as_the_published_patterns),
		cmocka_unit_test(encode_equals_the_plain_rule_for_any_merges),
		cmocka_unit_test(encode_long_pieces_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
