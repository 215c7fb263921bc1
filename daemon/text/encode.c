/* SPDX-License-Identifier: Apache-2.0 */
#include "text/encode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/bpe.h"
#include "text/split.h"
#include "text/utf8.h"
#include "text/vocab.h"
#include "text/vocab_impl.h"

struct encode_scratch {
	struct bpe_scratch bpe;
};

/* What stays the same through one encode_text(). */
struct job {
	const struct vocab *v;
	struct encode_scratch *s;
	const uint8_t *text;
	struct ids *ids;
	struct error *err;
};

void ids_done(struct ids *a)
{
	free(a->id);
	*a = (struct ids){};
}

int ids_append(struct ids *a, const uint32_t *id, size_t n)
{
	if (n > a->n_alloc - a->n) {
		size_t want = MAX(2 * a->n_alloc, (size_t)16);
		uint32_t *p;

		if (n > SIZE_MAX / 4 - a->n)
			return -ENOMEM;
		want = MAX(want, a->n + n);
		p = reallocarray(a->id, want, sizeof(*p));
		if (!p)
			return -ENOMEM;
		a->id = p;
		a->n_alloc = want;
	}
	if (n)
		memcpy(a->id + a->n, id, n * sizeof(*id));
	a->n += n;
	return 0;
}

int encode_scratch_new(struct encode_scratch **ret)
{
	struct encode_scratch *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	*ret = s;
	return 0;
}

struct encode_scratch *encode_scratch_free(struct encode_scratch *s)
{
	if (!s)
		return NULL;
	bpe_scratch_done(&s->bpe);
	free(s);
	return NULL;
}

/* text[from..to), each byte its own id. */
static int encode_each_byte(const struct job *j, size_t from, size_t to)
{
	for (size_t at = from; at < to; at++) {
		uint32_t id = j->v->byte_id[j->text[at]];
		int r;

		if (id == IMAGE_NONE)
			return error_set(
				j->err, -EILSEQ,
				"byte 0x%02x at position %zu: the vocabulary has no token for it",
				j->text[at], at);
		r = ids_push(j->ids, id);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Well-formed text[from..to); vocab_new() has seen to it that each of its bytes has a token. */
static int encode_utf8(const struct job *j, size_t from, size_t to)
{
	struct split split;
	size_t piece, piece_end;

	split_init(&split, j->v->im.h->splitter, j->text + from, to - from);
	while (split_next(&split, &piece, &piece_end)) {
		int r;

		if (piece_end - piece > ENCODE_PIECE_MAX)
			return error_set(j->err, -E2BIG,
					 "%zu bytes from position %zu make one piece: want at most "
					 "%u without a border between words",
					 piece_end - piece, from + piece, ENCODE_PIECE_MAX);
		r = bpe_encode(j->v, &j->s->bpe, j->text + from + piece, piece_end - piece, j->ids);
		if (r < 0)
			return r;
	}
	return 0;
}

/* text[from..to) without added tokens. Well-formed stretches are encoded as texts of their own; the bytes
 * between them are pieces of one byte. */
static int encode_plain(const struct job *j, size_t from, size_t to)
{
	if (j->v->im.h->splitter == IMAGE_SPLIT_BYTES)
		return encode_each_byte(j, from, to);
	while (from < to) {
		size_t valid_end = from + utf8_valid_prefix(j->text + from, to - from);
		size_t bad_end = valid_end;
		int r;

		while (bad_end < to && !utf8_step(j->text + bad_end, to - bad_end).valid)
			bad_end++;
		r = encode_utf8(j, from, valid_end);
		if (r == 0)
			r = encode_each_byte(j, valid_end, bad_end);
		if (r < 0)
			return r;
		from = bad_end;
	}
	return 0;
}

static int encode_parts(const struct job *j, const struct matcher *m, size_t n)
{
	size_t at = 0;

	while (at < n) {
		size_t start = n, end = n;
		uint32_t id = vocab_match(j->v, m, j->text, at, n, &start, &end);
		int r = encode_plain(j, at, id == IMAGE_NONE ? n : start);

		if (r == 0 && id != IMAGE_NONE)
			r = ids_push(j->ids, id);
		if (r < 0)
			return r;
		at = id == IMAGE_NONE ? n : end;
	}
	return 0;
}

/* The begin token goes before the ids from @n_before on, unless it is there already. */
static int insert_bos(struct ids *ids, size_t n_before, uint32_t bos)
{
	int r;

	if (ids->n > n_before && ids->id[n_before] == bos)
		return 0;
	r = ids_push(ids, bos);
	if (r < 0)
		return r;
	memmove(ids->id + n_before + 1, ids->id + n_before,
		(ids->n - 1 - n_before) * sizeof(ids->id[0]));
	ids->id[n_before] = bos;
	return 0;
}

int encode_text(const struct vocab *v, struct encode_scratch *s, const void *text, size_t n,
		unsigned flags, struct ids *ret, struct error *err)
{
	_cleanup_(encode_scratch_freep) struct encode_scratch *own = NULL;
	const struct image_header *h = v->im.h;
	size_t n_before = ret->n;
	int r;

	if (n > ENCODE_TEXT_MAX)
		return error_set(err, -E2BIG, "a text of %zu bytes: want at most %u", n,
				 ENCODE_TEXT_MAX);
	if (!s) {
		r = encode_scratch_new(&own);
		if (r < 0)
			return r;
		s = own;
	}
	r = encode_parts(&(struct job){v, s, text, ret, err},
			 flags & ENCODE_PARSE_SPECIAL ? &v->all : &v->text, n);
	bpe_scratch_trim(&s->bpe);
	if (r == 0 && (flags & ENCODE_BOS) && h->add_bos)
		r = insert_bos(ret, n_before, h->bos);
	if (r < 0)
		ret->n = n_before;
	return r;
}
