/* SPDX-License-Identifier: Apache-2.0 */
/* image_open() on hostile images, then everything that its header says is safe after a success.
 *
 * Byte 0 of the input is even: the rest is the image. Odd: the rest is a list of 8-byte changes
 * (u16 where, u8 width and place, u8 how, u32 value) to an image that is good. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "layout/image.h"
#include "layout/page.h"

#define N_VOCAB 262u

static void must(bool ok)
{
	if (!ok)
		abort();
}

/* The 256 bytes, three merges, one added token, begin and end; two layers. */
static uint8_t *good_image(size_t *ret_n)
{
	static const struct image_merge merges[] = {
		{'a', 'b', 256}, {256, 'c', 257}, {'d', 'e', 258}};
	static const char *const words[] = {"ab", "abc", "de", "<added>", "<begin>", "<end>"};
	static const uint32_t added[] = {259};
	struct image_stream streams[2];
	struct image_builder b;
	uint32_t offset[N_VOCAB + 1] = {};
	uint8_t bytes[512], flags[N_VOCAB] = {};
	struct image_header *h = &b.h;
	uint8_t *ret;
	int r;

	must(image_builder_init(&b) == 0);
	for (uint32_t id = 0; id < N_VOCAB; id++) {
		size_t n = id < 256 ? 1 : strlen(words[id - 256]);
		uint8_t byte = (uint8_t)id;

		memcpy(bytes + offset[id], id < 256 ? (const void *)&byte : words[id - 256], n);
		offset[id + 1] = offset[id] + (uint32_t)n;
	}
	flags[259] = IMAGE_TOKEN_ADDED;
	flags[260] = flags[261] = IMAGE_TOKEN_SPECIAL;
	strcpy(h->arch, "deepseek_v2");
	h->n_vocab = N_VOCAB;
	h->n_context = 4096;
	h->n_layers = 2;
	h->n_heads = 2;
	h->hidden = h->kv_lora_rank = h->qk_nope = h->qk_rope = h->v_head = 16;
	h->entry = PAGE_ENTRY_BF16;
	h->splitter = IMAGE_SPLIT_V2;
	h->renderer = IMAGE_RENDER_V2;
	h->add_bos = 1;
	h->n_eos = 1;
	h->bos = 260;
	h->eos[0] = 261;
	h->n_merges = N_ELEMENTS(merges);
	h->n_added = N_ELEMENTS(added);
	h->defaults = IMAGE_DEFAULT_TEMPERATURE | IMAGE_DEFAULT_TOP_P;
	h->temperature = 0.6f;
	h->top_p = 0.95f;
	for (uint32_t i = 0; i < 2; i++)
		streams[i] = (struct image_stream){i, page_entry_row_bytes(h->entry, 16, 16)};
	r = image_append(&b, &h->token_offset, offset, sizeof(offset));
	r |= image_append(&b, &h->token_bytes, bytes, offset[N_VOCAB]);
	r |= image_append(&b, &h->token_flags, flags, sizeof(flags));
	r |= image_append(&b, &h->merges, merges, sizeof(merges));
	r |= image_append(&b, &h->added, added, sizeof(added));
	r |= image_append(&b, &h->streams, streams, sizeof(streams));
	must(r == 0);
	b.n_bytes = ALIGN_UP(b.n_bytes, (size_t)8);
	memcpy(h->magic, IMAGE_MAGIC, sizeof(h->magic));
	h->version = IMAGE_VERSION;
	h->header_bytes = sizeof(*h);
	h->total_bytes = b.n_bytes;
	memcpy(b.data, h, sizeof(*h));
	/* Exactly as long as it says, so that a sanitizer sees the first byte past it. */
	ret = malloc(b.n_bytes);
	must(ret != NULL);
	memcpy(ret, b.data, b.n_bytes);
	*ret_n = b.n_bytes;
	image_builder_done(&b);
	return ret;
}

static void change(uint8_t *image, size_t n, const uint8_t how[8])
{
	unsigned width = 1u << (how[2] & 3);
	size_t range =
		how[2] & 4 ? n : sizeof(struct image_header); /* most of what matters is there */
	size_t at;
	uint64_t v = 0, value = 0;
	uint16_t where;
	uint32_t low;

	memcpy(&where, how, sizeof(where));
	memcpy(&low, how + 4, sizeof(low));
	value = how[2] & 8 ? (uint64_t)(int32_t)low : low; /* also numbers near 2^64 */
	at = where % (range / width) * width;
	memcpy(&v, image + at, width);
	switch (how[3] % 3) {
	case 0:
		v = value;
		break;
	case 1:
		v += value;
		break;
	default:
		v ^= value;
	}
	memcpy(image + at, &v, width);
}

static uint64_t walk(const struct image *im)
{
	const struct image_header *h = im->h;
	uint64_t sum = strlen(h->arch);
	uint32_t n;

	for (uint32_t id = 0; id < h->n_vocab; id++) {
		const uint8_t *p = image_token(im, id, &n);

		must(n <= IMAGE_TOKEN_LEN_MAX);
		for (uint32_t i = 0; i < n; i++)
			sum += p[i];
		sum += im->token_flags[id] + image_is_eos(im, id);
	}
	for (uint32_t i = 0; i < h->n_merges; i++) {
		must(im->merges[i].result < h->n_vocab);
		sum += *image_token(im, im->merges[i].left, &n) + n;
		sum += *image_token(im, im->merges[i].right, &n) + n;
	}
	for (uint32_t i = 0; i < h->n_added; i++)
		sum += *image_token(im, im->added[i], &n) + n;
	for (uint32_t i = 0; i < im->n_streams; i++)
		sum += im->streams[i].layer;
	for (uint32_t i = 0; i < h->n_eos; i++)
		must(h->eos[i] < h->n_vocab);
	must(h->bos == IMAGE_NONE ? !h->add_bos : h->bos < h->n_vocab);
	return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct page_geometry *g = malloc(sizeof(*g));
	struct image im;
	uint8_t *image;
	size_t n_image;

	must(g != NULL);
	if (n > 0 && (data[0] & 1)) {
		image = good_image(&n_image);
		for (size_t at = 1; at + 8 <= n; at += 8)
			change(image, n_image, data + at);
	} else {
		n_image = n > 0 ? n - 1 : 0;
		image = malloc(n_image);
		must(image || n_image == 0);
		memcpy(image, data + (n > 0), n_image);
	}
	if (image_open(&im, image, n_image, NULL) == 0) {
		volatile uint64_t sum = walk(&im);

		(void)sum;
		if (page_geometry_init(g, im.streams, im.n_streams, NULL) == 0)
			must(g->stride % PAGE_ALIGN == 0 &&
			     g->stride <= PAGE_STRIDE_MAX + PAGE_ALIGN &&
			     g->stride >= g->token_bytes * PAGE_TOKENS);
	}
	free(image);
	free(g);
	return 0;
}
