/* SPDX-License-Identifier: Apache-2.0 */
/* Text that anybody wrote, over small vocabularies: encoding, decoding, chat templates, stop strings.
 *
 *   byte 0: vocabulary (0 to 2: the tiny one of enum image_splitter; 3: merges from the input), and
 *           16: control tokens are parsed
 *   vocabulary 3: byte 1: number of merges, then two bytes for each: left and right
 *   the rest: the text */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/stop.h"
#include "text/template.h"
#include "text/utf8.h"
#include "text/vocab.h"
#include "text_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Kept from one input to the next. */
static struct text_image *tiny[_IMAGE_SPLIT_MAX];
static struct vocab *tiny_vocab[_IMAGE_SPLIT_MAX];

static void must(bool holds)
{
	if (!holds)
		abort();
}

static bool same(const struct text_buf *b, const void *p, size_t n)
{
	return b->n == n && (n == 0 || memcmp(b->data, p, n) == 0);
}

/* Every id a byte token: what any decoding of these bytes must show. */
static struct text_buf lossy(const struct vocab *bytes, const uint8_t *text, size_t n)
{
	struct decoder d = {};
	struct text_buf out = {};

	for (size_t i = 0; i < n; i++)
		must(decoder_push(&d, bytes, text[i], false, &out, NULL) == 0);
	must(decoder_flush(&d, &out) == 0);
	must(utf8_valid_prefix((const uint8_t *)out.data, out.n) == out.n);
	return out;
}

static void check_encoding(const struct vocab *v, const uint8_t *text, size_t n, unsigned flags)
{
	struct ids ids = {};
	struct text_buf back = {}, shown = {}, want = lossy(tiny_vocab[IMAGE_SPLIT_BYTES], text, n);

	must(encode_text(v, NULL, text, n, flags, &ids, NULL) == 0);
	for (size_t i = 0; i < ids.n; i++) {
		must(ids.id[i] < vocab_image(v)->h->n_vocab);
		must((flags & ENCODE_PARSE_SPECIAL) || !vocab_is_control(v, ids.id[i]));
	}
	must(decode_bytes(v, ids.id, ids.n, false, &back, NULL) == 0);
	must(same(&back, text, n));
	must(decode_text(v, ids.id, ids.n, false, &shown, NULL) == 0);
	must(same(&shown, want.data, want.n));
	ids_done(&ids);
	text_buf_done(&back);
	text_buf_done(&shown);
	text_buf_done(&want);
}

/* The merges of an image on one piece, in the plainest form. */
static void check_merges(const struct vocab *v, const uint8_t *text, size_t n)
{
	const struct image *im = vocab_image(v);
	struct ids got = {};
	uint32_t want[256];
	size_t n_want = n;

	for (size_t i = 0; i < n; i++)
		want[i] = text[i];
	for (uint32_t rank = 0; rank < im->h->n_merges;) {
		const struct image_merge *m = &im->merges[rank];
		size_t at = 0;

		while (at + 1 < n_want && (want[at] != m->left || want[at + 1] != m->right))
			at++;
		if (at + 1 >= n_want) {
			rank++;
			continue;
		}
		want[at] = m->result;
		n_want--;
		memmove(want + at + 1, want + at + 2, (n_want - at - 1) * sizeof(want[0]));
		rank = 0;
	}
	must(encode_text(v, NULL, text, n, 0, &got, NULL) == 0);
	must(got.n == n_want && (n == 0 || memcmp(got.id, want, n_want * sizeof(want[0])) == 0));
	ids_done(&got);
}

static bool has_pair(const struct text_image *t, uint32_t left, uint32_t right)
{
	for (uint32_t i = 0; i < t->n_merges; i++)
		if (t->merges[i].left == left && t->merges[i].right == right)
			return true;
	return false;
}

/* Letters a to h and what the merges before have made, put together as the input says. */
static void check_own_merges(const uint8_t *data, size_t n)
{
	struct text_image *t = text_image_new(IMAGE_SPLIT_V3);
	size_t n_merges = n ? MIN((size_t)data[0], (n - 1) / 2) : 0;
	struct vocab *v;
	uint8_t text[256];
	size_t n_text = 0;

	for (unsigned b = 0; b < 256; b++)
		text_image_token(t, &(uint8_t){(uint8_t)b}, 1, 0);
	for (size_t i = 0; i < n_merges; i++) {
		uint32_t pick[2];
		uint32_t n_bytes = 0;

		for (int k = 0; k < 2; k++) {
			uint32_t x = data[1 + 2 * i + k] % (t->n_tokens - 248);

			pick[k] = x < 8 ? 'a' + x : 248 + x;
			n_bytes += t->offset[pick[k] + 1] - t->offset[pick[k]];
		}
		if (n_bytes <= 64 && !has_pair(t, pick[0], pick[1]))
			text_image_merge(t, pick[0], pick[1], IMAGE_NONE);
	}
	text_image_finish(t);
	must(vocab_new(&v, &t->im, NULL, NULL, NULL) == 0);
	/* Letters only: one piece. */
	for (size_t i = 1 + 2 * n_merges; i < n && n_text < sizeof(text); i++)
		text[n_text++] = (uint8_t)('a' + data[i] % 8);
	check_merges(v, text, n_text);
	vocab_unref(v);
	text_image_free(t);
}

/* Whatever the messages say, the control tokens are those of the template. */
static void check_template(const struct vocab *v, const uint8_t *text, size_t n)
{
	const char *p = (const char *)text;
	size_t third = n / 3;
	const struct message chat[] = {{MESSAGE_SYSTEM, p, third},
				       {MESSAGE_USER, p + third, third},
				       {MESSAGE_ASSISTANT, p + 2 * third, n - 2 * third}};
	struct ids ids = {};
	size_t n_control = 0;

	must(template_render(v, NULL, chat, 3, TEMPLATE_GENERATION_PROMPT, &ids, NULL) == 0);
	for (size_t i = 0; i < ids.n; i++)
		n_control += vocab_is_control(v, ids.id[i]);
	must(n_control == 5); /* B U A E A */
	ids_done(&ids);
}

/* Pushed whole or in bytes: the same text is shown, and the same string stops it. */
static void check_stop(const char *text, size_t n)
{
	size_t n_stop = MIN(n, (size_t)3);
	struct stop_string strings[] = {{text, n_stop}, {"\n\n", 2}, {"aab", 3}};
	struct text_buf whole = {}, cut = {};
	int by_whole = -1, by_cut = -1;
	struct stop *s;

	/* The text has the first string at its start; the stream begins behind its first byte. */
	if (n_stop == 0 || stop_new(&s, strings, 3, NULL) < 0)
		return;
	must(stop_push(s, text + 1, n - 1, &whole, &by_whole) == 0);
	must(stop_flush(s, &whole) == 0);
	stop_reset(s);
	for (size_t i = 1; i < n; i++)
		must(stop_push(s, text + i, 1, &cut, &by_cut) == 0);
	must(stop_flush(s, &cut) == 0);
	must(by_whole == by_cut && same(&whole, cut.data, cut.n));
	must(by_whole >= 0 || whole.n == n - 1);
	text_buf_done(&whole);
	text_buf_done(&cut);
	stop_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	unsigned kind, flags;

	for (int k = 0; k < _IMAGE_SPLIT_MAX && !tiny[k]; k++) {
		tiny[k] =
			text_image_tiny((enum image_splitter)k,
					k == IMAGE_SPLIT_V3 ? IMAGE_RENDER_V3 : IMAGE_RENDER_NONE);
		must(vocab_new(&tiny_vocab[k], &tiny[k]->im, NULL, NULL, NULL) == 0);
	}
	if (n == 0)
		return 0;
	kind = data[0] & 3;
	flags = data[0] & 16 ? ENCODE_PARSE_SPECIAL : 0;
	data++;
	n--;
	if (kind == _IMAGE_SPLIT_MAX) {
		check_own_merges(data, n);
		return 0;
	}
	check_encoding(tiny_vocab[kind], data, n, flags);
	check_stop((const char *)data, n);
	if (kind == IMAGE_SPLIT_V3)
		check_template(tiny_vocab[kind], data, n);
	return 0;
}
