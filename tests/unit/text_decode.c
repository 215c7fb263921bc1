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
#include "text/encode.h"
#include "text/utf8.h"
#include "text/vocab.h"
#include "text_image.h"

#define R "\xEF\xBF\xBD" /* U+FFFD */

static struct text_image *image;
static struct vocab *vocab;

static int open_vocab(void **state)
{
	(void)state;
	image = text_image_tiny(IMAGE_SPLIT_V3, IMAGE_RENDER_NONE);
	return vocab_new(&vocab, &image->im, NULL, NULL, NULL);
}

static int close_vocab(void **state)
{
	(void)state;
	vocab_unref(vocab);
	text_image_free(image);
	return 0;
}

static uint32_t token(const char *text)
{
	uint32_t id = vocab_find_token(vocab, text, strlen(text));

	assert_int_not_equal(id, IMAGE_NONE);
	return id;
}

/* Ill-formed bytes and what they are shown as. Source: The Unicode Standard §3.9, tables 3-8 to 3-11, and
 * the like. */
static const struct {
	const char *bytes, *text;
} lossy[] = {
	{"", ""},
	{"plain", "plain"},
	{"\xC3\xA9\xE6\x97\xA5\xF0\x9F\xA6\x99", "é日🦙"},
	{"\x80", R},
	{"a\xFFz", "a" R "z"},
	{"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", R R R R R R R R "A"},
	{"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", R R R R R R R R "A"},
	{"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", R R R R R "A" R R "B"},
	{"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", R R R R "A"},
	{"\xE2\x82", R},
	{"\xF0\x9F\xA6", R},
	{"\xF0\x9F\xA6z", R "z"},
	{"\xF0\x9F\xC3\xA9", R "é"},
	{"\xC3\xC3\xA9", R "é"},
};

static void decoder_shows_ill_formed_bytes_by_maximal_subparts(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(lossy); i++) {
		struct decoder d = {};
		struct text_buf out = {};

		/* One byte a token: every character is cut everywhere. */
		for (const char *p = lossy[i].bytes; *p; p++) {
			assert_int_equal(decoder_push(&d, vocab, (uint8_t)*p, true, &out, NULL), 0);
			assert_int_equal(utf8_valid_prefix((uint8_t *)out.data, out.n), out.n);
		}
		assert_int_equal(decoder_flush(&d, &out), 0);
		assert_int_equal(out.n, strlen(lossy[i].text));
		if (out.n)
			assert_memory_equal(out.data, lossy[i].text, out.n);
		assert_int_equal(d.n_tail, 0);
		text_buf_done(&out);
	}
}

static void decoder_never_splits_a_character(void **state)
{
	static const uint32_t llama[] = {0xF0, 0x9F, 0xA6, 0x99};
	struct decoder d = {};
	struct text_buf out = {};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(decoder_push(&d, vocab, llama[i], true, &out, NULL), 0);
		assert_int_equal(out.n, 0);
		assert_int_equal(d.n_tail, i + 1);
	}
	assert_int_equal(decoder_push(&d, vocab, llama[3], true, &out, NULL), 0);
	assert_int_equal(out.n, 4);
	assert_memory_equal(out.data, "🦙", 4);
	/* A token that ends what another began, and goes on. */
	out.n = 0;
	assert_int_equal(decoder_push(&d, vocab, 0xC3, true, &out, NULL), 0);
	assert_int_equal(decoder_push(&d, vocab, token("the"), true, &out, NULL), 0);
	assert_int_equal(out.n, 6);
	assert_memory_equal(out.data, R "the", 6);
	text_buf_done(&out);
}

static void decoder_hides_special_tokens_only_when_asked(void **state)
{
	uint32_t ids[] = {'a', token("<｜begin▁of▁sentence｜>"), token("<｜User｜>"), 'b'};
	struct text_buf out = {};

	(void)state;
	assert_int_equal(decode_text(vocab, ids, N_ELEMENTS(ids), true, &out, NULL), 0);
	/* User is a control token, but not special: Hugging Face shows it, too. */
	assert_int_equal(out.n, strlen("a<｜User｜>b"));
	assert_memory_equal(out.data, "a<｜User｜>b", out.n);
	out.n = 0;
	assert_int_equal(decode_text(vocab, ids, N_ELEMENTS(ids), false, &out, NULL), 0);
	assert_int_equal(out.n, strlen("a<｜begin▁of▁sentence｜><｜User｜>b"));
	assert_memory_equal(out.data, "a<｜begin▁of▁sentence｜><｜User｜>b", out.n);
	text_buf_done(&out);
}

static void decoder_joins_bytes_across_a_hidden_token(void **state)
{
	uint32_t ids[] = {0xC3, image->im.h->bos, 0xA9};
	struct text_buf out = {};

	(void)state;
	assert_int_equal(decode_text(vocab, ids, N_ELEMENTS(ids), true, &out, NULL), 0);
	assert_int_equal(out.n, 2);
	assert_memory_equal(out.data, "é", 2);
	text_buf_done(&out);
}

static void decode_refuses_an_id_past_the_vocabulary(void **state)
{
	uint32_t n_vocab = image->im.h->n_vocab;
	uint32_t ids[] = {'a', 0xC3, n_vocab};
	struct decoder d = {};
	struct text_buf out = {};
	struct error err = {};

	(void)state;
	assert_int_equal(text_buf_append(&out, "x", 1), 0);
	assert_int_equal(decode_text(vocab, ids, 3, true, &out, &err), -EINVAL);
	assert_non_null(strstr(err.text, "the vocabulary ends at"));
	assert_int_equal(out.n, 1);
	assert_int_equal(decode_bytes(vocab, ids, 3, true, &out, &err), -EINVAL);
	assert_int_equal(out.n, 1);
	assert_int_equal(decoder_push(&d, vocab, 0xC3, true, &out, &err), 0);
	assert_int_equal(decoder_push(&d, vocab, UINT32_MAX, true, &out, &err), -EINVAL);
	assert_int_equal(d.n_tail, 1);
	assert_int_equal(out.n, 1);
	text_buf_done(&out);
}

static void decode_shows_nothing_for_unused_rows(void **state)
{
	uint32_t ids[] = {'a', image->im.h->n_vocab - 1, 'b'};
	struct text_buf out = {};

	(void)state;
	assert_true(image->im.token_flags[ids[1]] & IMAGE_TOKEN_UNUSED);
	assert_int_equal(decode_text(vocab, ids, 3, true, &out, NULL), 0);
	assert_int_equal(out.n, 2);
	text_buf_done(&out);
}

static void decoder_copy_goes_on_by_itself(void **state)
{
	struct decoder d = {}, copy;
	struct text_buf out = {};

	(void)state;
	assert_int_equal(decoder_push(&d, vocab, 0xC3, true, &out, NULL), 0);
	copy = d;
	assert_int_equal(decoder_push(&copy, vocab, 0xA8, true, &out, NULL), 0);
	assert_int_equal(decoder_push(&d, vocab, 0xA9, true, &out, NULL), 0);
	assert_int_equal(out.n, 4);
	assert_memory_equal(out.data, "èé", 4);
	text_buf_done(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(decoder_shows_ill_formed_bytes_by_maximal_subparts),
		cmocka_unit_test(decoder_never_splits_a_character),
		cmocka_unit_test(decoder_hides_special_tokens_only_when_asked),
		cmocka_unit_test(decoder_joins_bytes_across_a_hidden_token),
		cmocka_unit_test(decode_refuses_an_id_past_the_vocabulary),
		cmocka_unit_test(decode_shows_nothing_for_unused_rows),
		cmocka_unit_test(decoder_copy_goes_on_by_itself),
	};

	return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
