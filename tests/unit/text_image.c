/* SPDX-License-Identifier: Apache-2.0 */
#include "text_image.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "layout/page.h"

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void *grow(void *p, size_t n, size_t size)
{
	/* Capacity is the next power of two, so a step happens only when n reaches one. */
	if (n == 0 || (n & (n - 1)) == 0) {
		p = reallocarray(p, n ? 2 * n : 1, size);
		must(p != NULL);
	}
	return p;
}

struct text_image *text_image_new(enum image_splitter splitter)
{
	struct text_image *t = calloc(1, sizeof(*t));
	struct image_header *h;

	must(t && image_builder_init(&t->b) == 0);
	h = &t->b.h;
	strcpy(h->arch, "test");
	h->splitter = splitter;
	h->n_context = 4096;
	h->n_layers = h->n_heads = 1;
	h->hidden = h->kv_lora_rank = h->qk_nope = h->qk_rope = h->v_head = 16;
	h->entry = PAGE_ENTRY_F32;
	t->offset = calloc(1, sizeof(uint32_t));
	must(t->offset != NULL);
	return t;
}

struct text_image *text_image_free(struct text_image *t)
{
	if (!t)
		return NULL;
	image_builder_done(&t->b);
	free(t->offset);
	free(t->bytes);
	free(t->flags);
	free(t->merges);
	free(t->added);
	free(t);
	return NULL;
}

uint32_t text_image_token(struct text_image *t, const void *bytes, size_t n, unsigned flags)
{
	uint32_t at = t->offset[t->n_tokens];

	for (size_t i = 0; i < n; i++) {
		t->bytes = grow(t->bytes, at + i, 1);
		t->bytes[at + i] = ((const uint8_t *)bytes)[i];
	}
	t->offset = grow(t->offset, t->n_tokens + 1, sizeof(uint32_t));
	t->offset[t->n_tokens + 1] = at + (uint32_t)n;
	t->flags = grow(t->flags, t->n_tokens, 1);
	t->flags[t->n_tokens] = (uint8_t)flags;
	if (flags & IMAGE_TOKEN_ADDED) {
		t->added = grow(t->added, t->n_added, sizeof(uint32_t));
		t->added[t->n_added++] = t->n_tokens;
	}
	return t->n_tokens++;
}

uint32_t text_image_merge(struct text_image *t, uint32_t left, uint32_t right, uint32_t result)
{
	if (result == IMAGE_NONE) {
		uint32_t n_left = t->offset[left + 1] - t->offset[left];
		uint32_t n_right = t->offset[right + 1] - t->offset[right];
		uint8_t bytes[2 * IMAGE_TOKEN_LEN_MAX];

		must(n_left + n_right <= IMAGE_TOKEN_LEN_MAX);
		memcpy(bytes, t->bytes + t->offset[left], n_left);
		memcpy(bytes + n_left, t->bytes + t->offset[right], n_right);
		result = text_image_token(t, bytes, n_left + n_right, 0);
	}
	t->merges = grow(t->merges, t->n_merges, sizeof(struct image_merge));
	t->merges[t->n_merges++] = (struct image_merge){left, right, result};
	return result;
}

const struct image *text_image_finish(struct text_image *t)
{
	struct image_header *h = &t->b.h;
	struct image_stream stream = {
		.bytes_per_token = page_entry_row_bytes(h->entry, h->kv_lora_rank, h->qk_rope),
	};
	int r = 0, fd;

	h->n_vocab = t->n_tokens;
	h->n_merges = t->n_merges;
	h->n_added = t->n_added;
	r |= image_append(&t->b, &h->token_offset, t->offset, (t->n_tokens + 1) * sizeof(uint32_t));
	r |= image_append(&t->b, &h->token_bytes, t->bytes, t->offset[t->n_tokens]);
	r |= image_append(&t->b, &h->token_flags, t->flags, t->n_tokens);
	r |= image_append(&t->b, &h->merges, t->merges, t->n_merges * sizeof(struct image_merge));
	r |= image_append(&t->b, &h->added, t->added, t->n_added * sizeof(uint32_t));
	r |= image_append(&t->b, &h->streams, &stream, sizeof(stream));
	must(r == 0);
	fd = image_finish(&t->b, NULL);
	must(fd >= 0);
	close(fd);
	must(image_open(&t->im, t->b.data, t->b.n_bytes, NULL) == 0);
	return &t->im;
}

static void add_bytes(struct text_image *t)
{
	for (unsigned b = 0; b < 256; b++) {
		uint8_t byte = (uint8_t)b;

		text_image_token(t, &byte, 1, 0);
	}
}

static uint32_t add_text(struct text_image *t, const char *text, unsigned flags)
{
	return text_image_token(t, text, strlen(text), flags | IMAGE_TOKEN_ADDED);
}

struct text_image *text_image_tiny(enum image_splitter splitter, enum image_renderer renderer)
{
	struct text_image *t = text_image_new(splitter);
	struct image_header *h = &t->b.h;

	add_bytes(t);
	h->renderer = renderer;
	h->add_bos = 1;
	if (splitter == IMAGE_SPLIT_BYTES) {
		h->bos = text_image_token(t, "", 0, IMAGE_TOKEN_SPECIAL);
		h->eos[h->n_eos++] = text_image_token(t, "", 0, IMAGE_TOKEN_SPECIAL);
		text_image_finish(t);
		return t;
	}
	uint32_t th = text_image_merge(t, 't', 'h', IMAGE_NONE);
	uint32_t he = text_image_merge(t, 'h', 'e', IMAGE_NONE);
	uint32_t the = text_image_merge(t, th, 'e', IMAGE_NONE);
	uint32_t aa = text_image_merge(t, 'a', 'a', IMAGE_NONE);
	uint32_t newlines = text_image_merge(t, '\n', '\n', IMAGE_NONE);
	uint32_t spaces = text_image_merge(t, ' ', ' ', IMAGE_NONE);

	/* Made in two ways, the second after it is used: ranks that do not grow with the tokens. */
	text_image_merge(t, ' ', the, IMAGE_NONE);
	text_image_merge(t, the, 'y', IMAGE_NONE);
	text_image_merge(t, 't', he, the);
	text_image_merge(t, aa, aa, IMAGE_NONE);
	text_image_merge(t, aa, 'a', IMAGE_NONE);
	text_image_merge(t, newlines, newlines, IMAGE_NONE);
	text_image_merge(t, spaces, spaces, IMAGE_NONE);
	text_image_merge(t, '1', '2', IMAGE_NONE);
	text_image_merge(t, 0xC3, 0xA9, IMAGE_NONE);
	text_image_merge(t, ':', '\n', IMAGE_NONE);
	h->bos = add_text(t, "<｜begin▁of▁sentence｜>", IMAGE_TOKEN_SPECIAL);
	h->eos[h->n_eos++] = add_text(t, "<｜end▁of▁sentence｜>", IMAGE_TOKEN_SPECIAL);
	h->token_user = add_text(t, "<｜User｜>", 0);
	h->token_assistant = add_text(t, "<｜Assistant｜>", 0);
	h->fim_hole = add_text(t, "<｜fim▁hole｜>", 0);
	h->think_end = add_text(t, "</think>", 0);
	add_text(t, "<|EOT|>", IMAGE_TOKEN_SPECIAL);
	add_text(t, "ü", 0);
	add_text(t, "üü", 0);
	text_image_token(t, "", 0, IMAGE_TOKEN_UNUSED);
	text_image_finish(t);
	return t;
}
