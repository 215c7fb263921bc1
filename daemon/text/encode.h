#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Text to token ids: added tokens, then the pre-tokeniser's pieces, then merges by rank.
 *
 * Texts are bytes. Bytes that are not UTF-8 are kept: each is a piece of its own, so that
 * decode_bytes() of the ids gives back the text, whatever it was. */
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct error;
struct vocab;

/* A growing array of ids; zero it to start, ids_done() to end. */
struct ids {
	uint32_t *id;
	size_t n, n_alloc;
};
void ids_done(struct ids *a);
/** ids_append() - put @n ids at the end. Return: 0 or -ENOMEM (unchanged). */
int ids_append(struct ids *a, const uint32_t *id, size_t n);
/** ids_push() - put one id at the end. */
static inline int ids_push(struct ids *a, uint32_t id)
{
	if (a->n == a->n_alloc)
		return ids_append(a, &id, 1);
	a->id[a->n++] = id;
	return 0;
}

/* Working memory of encode_text(), kept between calls so that the next one allocates nothing.
 * One thread at a time; may be used with any vocabulary. NULL is accepted wherever it is wanted. */
struct encode_scratch;
int encode_scratch_new(struct encode_scratch **ret);
struct encode_scratch *encode_scratch_free(struct encode_scratch *s);
DEFINE_CLEANUP(struct encode_scratch *, encode_scratch_free);

#define ENCODE_TEXT_MAX  (1u << 30) /* bytes of one text */
#define ENCODE_PIECE_MAX (4u << 20) /* of one piece (a "word"): what bounds working memory */

/* flags */
/* Every added token matches, control tokens too, as Hugging Face's tokenizers do. Only for text whose
 * author may write control ids: never for the parts of a chat. */
#define ENCODE_PARSE_SPECIAL 1u
/* The begin token first, if the model wants one (image add_bos) and the ids do not start with it. */
#define ENCODE_BOS 2u

/**
 * encode_text() - append the ids of a text
 * @s:     scratch, or NULL for one of its own
 * @text:  @n bytes, any; may be NULL when @n is 0
 * @ret:   ids are appended; unchanged on failure
 *
 * Source: Hugging Face `tokenizers`, split behaviour "Isolated".
 * Memory: linear in @n (at most 32 bytes a byte of the longest piece, and 4 to 8 for each id).
 *
 * Return: 0. -EILSEQ: a byte that the vocabulary has no token for; the sentence names the byte and
 *         its position. -E2BIG: more than ENCODE_TEXT_MAX bytes, or ENCODE_PIECE_MAX of one
 *         piece. -ENOMEM.
 * Thread: any; one per scratch.  Time: O(n log n).
 */
int encode_text(const struct vocab *v, struct encode_scratch *s, const void *text, size_t n,
		unsigned flags, struct ids *ret, struct error *err);
