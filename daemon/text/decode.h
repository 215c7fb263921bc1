#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Token ids to text: streaming UTF-8 that never splits a character, and the exact bytes.
 *
 * A token's bytes may end in the middle of a character. The decoder keeps the undecoded tail, at most
 * 3 bytes that are the start of a well-formed sequence; bytes that can never become one are shown as
 * U+FFFD, one for each maximal subpart (Unicode §3.9; as Rust's and Hugging Face's lossy decoding).
 * The text of a stream does not depend on where its tokens were cut. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct vocab;

/* Growing text (not 0-terminated); zero it to start, text_buf_done() to end, n = 0 to reuse. */
struct text_buf {
	char *data;
	size_t n, n_alloc;
};
void text_buf_done(struct text_buf *b);
/** text_buf_reserve() - make room for @n more bytes. Return: 0 or -ENOMEM (unchanged). */
int text_buf_reserve(struct text_buf *b, size_t n);
/** text_buf_append() - put @n bytes at the end. Return: 0 or -ENOMEM (unchanged). */
int text_buf_append(struct text_buf *b, const void *data, size_t n);

/* State of one stream, plain data: zero it to start, copy it to fork. */
struct decoder {
	uint8_t tail[3];
	uint8_t n_tail;
};

/**
 * decoder_push() - append what one more token lets be shown
 * @id:           any value; one past the vocabulary is -EINVAL
 * @skip_special: tokens with IMAGE_TOKEN_SPECIAL show nothing
 *
 * At most 3 * (IMAGE_TOKEN_LEN_MAX + 3) bytes are appended: UTF-8, whole characters.
 * Return: 0, -EINVAL, -ENOMEM (state and @out unchanged).  Thread: any, one per decoder.
 */
int decoder_push(struct decoder *d, const struct vocab *v, uint32_t id, bool skip_special,
		 struct text_buf *out, struct error *err);
/** decoder_flush() - the stream ended: a tail that is left becomes U+FFFD. Return: 0 or -ENOMEM. */
int decoder_flush(struct decoder *d, struct text_buf *out);

/**
 * decode_bytes() - append the exact bytes of @n ids
 *
 * decode_bytes(encode_text(x)) = x for any bytes x that encode. The result need not be UTF-8.
 * Return: 0, -EINVAL (an id past the vocabulary), -ENOMEM; @out is unchanged then.  Thread: any.
 */
int decode_bytes(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special,
		 struct text_buf *out, struct error *err);
/** decode_text() - decode_bytes() made UTF-8, as a decoder pushed with every id and flushed gives. */
int decode_text(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special,
		struct text_buf *out, struct error *err);
