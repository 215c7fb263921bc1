/* SPDX-License-Identifier: Apache-2.0 */
#include "text/decode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/utf8.h"
#include "text/vocab.h"

void text_buf_done(struct text_buf *b)
{
	free(b->data);
	*b = (struct text_buf){};
}

int text_buf_reserve(struct text_buf *b, size_t n)
{
	size_t want = MAX(2 * b->n_alloc, (size_t)64);
	char *p;

	if (n <= b->n_alloc - b->n)
		return 0;
	if (n > SIZE_MAX / 2 - b->n)
		return -ENOMEM;
	want = MAX(want, b->n + n);
	p = realloc(b->data, want);
	if (!p)
		return -ENOMEM;
	b->data = p;
	b->n_alloc = want;
	return 0;
}

int text_buf_append(struct text_buf *b, const void *data, size_t n)
{
	int r = text_buf_reserve(b, n);

	if (r < 0)
		return r;
	if (n)
		memcpy(b->data + b->n, data, n);
	b->n += n;
	return 0;
}

/* The bytes that a token contributes; 0 bytes for a hidden one. */
static int token_bytes(const struct vocab *v, uint32_t id, bool skip_special, const uint8_t **ret,
		       uint32_t *ret_n, struct error *err)
{
	const struct image *im = vocab_image(v);

	if (id >= im->h->n_vocab)
		return error_set(err, -EINVAL, "token id %u: the vocabulary ends at %u", id,
				 im->h->n_vocab - 1);
	*ret = image_token(im, id, ret_n);
	if (skip_special && (im->token_flags[id] & IMAGE_TOKEN_SPECIAL))
		*ret_n = 0;
	return 0;
}

/* Takes well-formed characters and replacements out of p[0..n) and returns how many bytes are left at
 * the end as the start of a character. @out has room. */
static size_t take_characters(const uint8_t *p, size_t n, struct text_buf *out)
{
	size_t at = 0;

	while (at < n) {
		size_t n_valid = utf8_valid_prefix(p + at, n - at);
		struct utf8_step s;

		memcpy(out->data + out->n, p + at, n_valid);
		out->n += n_valid;
		at += n_valid;
		if (at == n)
			break;
		s = utf8_step(p + at, n - at);
		if (s.cut)
			break;
		memcpy(out->data + out->n, UTF8_REPLACEMENT, UTF8_REPLACEMENT_N);
		out->n += UTF8_REPLACEMENT_N;
		at += s.n;
	}
	return n - at;
}

int decoder_push(struct decoder *d, const struct vocab *v, uint32_t id, bool skip_special,
		 struct text_buf *out, struct error *err)
{
	uint8_t bytes[sizeof(d->tail) + IMAGE_TOKEN_LEN_MAX];
	const uint8_t *token;
	size_t n, n_tail;
	uint32_t n_token;
	int r;

	r = token_bytes(v, id, skip_special, &token, &n_token, err);
	if (r < 0)
		return r;
	if (n_token == 0)
		return 0;
	n = d->n_tail + (size_t)n_token;
	r = text_buf_reserve(out, UTF8_REPLACEMENT_N * n);
	if (r < 0)
		return r;
	memcpy(bytes, d->tail, d->n_tail);
	memcpy(bytes + d->n_tail, token, n_token);
	n_tail = take_characters(bytes, n, out);
	memcpy(d->tail, bytes + n - n_tail, n_tail);
	d->n_tail = (uint8_t)n_tail;
	return 0;
}

int decoder_flush(struct decoder *d, struct text_buf *out)
{
	int r = 0;

	/* The tail is one maximal subpart by construction. */
	if (d->n_tail)
		r = text_buf_append(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_N);
	if (r < 0)
		return r;
	*d = (struct decoder){};
	return 0;
}

int decode_bytes(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special,
		 struct text_buf *out, struct error *err)
{
	size_t n_before = out->n;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *token;
		uint32_t n_token;
		int r = token_bytes(v, ids[i], skip_special, &token, &n_token, err);

		if (r == 0)
			r = text_buf_append(out, token, n_token);
		if (r < 0) {
			out->n = n_before;
			return r;
		}
	}
	return 0;
}

int decode_text(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special,
		struct text_buf *out, struct error *err)
{
	struct decoder d = {};
	size_t n_before = out->n;
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = decoder_push(&d, v, ids[i], skip_special, out, err);
	if (r == 0)
		r = decoder_flush(&d, out);
	if (r < 0)
		out->n = n_before;
	return r;
}
