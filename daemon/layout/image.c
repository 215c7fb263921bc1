/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/image.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/page.h"

/* What a section must be: inside the file, aligned, and of exactly so many elements. */
static int check_section(const struct image_section *s, const char *name, size_t n_bytes,
			 uint64_t want_bytes, struct error *err)
{
	if (s->offset % 8 || s->offset < sizeof(struct image_header) || s->offset > n_bytes ||
	    s->bytes > n_bytes - s->offset)
		return error_set(
			err, -EINVAL, "image section %s: [%llu, +%llu) is not inside %zu bytes",
			name, (unsigned long long)s->offset, (unsigned long long)s->bytes, n_bytes);
	if (s->bytes != want_bytes)
		return error_set(err, -EINVAL, "image section %s: %llu bytes, want %llu", name,
				 (unsigned long long)s->bytes, (unsigned long long)want_bytes);
	return 0;
}

static int check_range(const char *name, uint64_t got, uint64_t min, uint64_t max,
		       struct error *err)
{
	if (got < min || got > max)
		return error_set(err, -EINVAL, "image field %s: %llu, want %llu to %llu", name,
				 (unsigned long long)got, (unsigned long long)min,
				 (unsigned long long)max);
	return 0;
}

static int check_header(const struct image_header *h, size_t n_bytes, struct error *err)
{
	const struct {
		const char *name;
		uint64_t got, min, max;
	} ranges[] = {
		{"version", h->version, IMAGE_VERSION, IMAGE_VERSION},
		{"header_bytes", h->header_bytes, sizeof(*h), sizeof(*h)},
		{"total_bytes", h->total_bytes, n_bytes, n_bytes},
		{"n_vocab", h->n_vocab, 1, IMAGE_VOCAB_MAX},
		{"n_context", h->n_context, 1, IMAGE_CONTEXT_MAX},
		{"n_layers", h->n_layers, 1, IMAGE_LAYERS_MAX},
		{"n_heads", h->n_heads, 1, 4096},
		{"hidden", h->hidden, 1, 1u << 20},
		{"kv_lora_rank", h->kv_lora_rank, 1, 1u << 16},
		{"qk_nope", h->qk_nope, 1, 1u << 16},
		{"qk_rope", h->qk_rope, 1, 1u << 16},
		{"v_head", h->v_head, 1, 1u << 16},
		{"entry", h->entry, 0, _PAGE_ENTRY_MAX - 1},
		{"splitter", h->splitter, 0, _IMAGE_SPLIT_MAX - 1},
		{"renderer", h->renderer, 0, _IMAGE_RENDER_MAX - 1},
		{"add_bos", h->add_bos, 0, 1},
		{"n_eos", h->n_eos, 0, IMAGE_EOS_MAX},
		{"n_merges", h->n_merges, 0, IMAGE_MERGES_MAX},
		{"n_added", h->n_added, 0, IMAGE_ADDED_MAX},
	};
	const struct {
		const char *name;
		uint32_t id;
	} ids[] = {
		{"bos", h->bos},
		{"token_user", h->token_user},
		{"token_assistant", h->token_assistant},
		{"fim_begin", h->fim_begin},
		{"fim_hole", h->fim_hole},
		{"fim_end", h->fim_end},
		{"think_begin", h->think_begin},
		{"think_end", h->think_end},
	};
	int r;

	for (size_t i = 0; i < N_ELEMENTS(ranges); i++) {
		r = check_range(ranges[i].name, ranges[i].got, ranges[i].min, ranges[i].max, err);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < N_ELEMENTS(ids); i++)
		if (ids[i].id != IMAGE_NONE && ids[i].id >= h->n_vocab)
			return error_set(err, -EINVAL, "image id %s: %u, want less than %u",
					 ids[i].name, ids[i].id, h->n_vocab);
	for (uint32_t i = 0; i < h->n_eos; i++)
		if (h->eos[i] >= h->n_vocab)
			return error_set(err, -EINVAL, "image end token %u: want less than %u",
					 h->eos[i], h->n_vocab);
	if (h->add_bos && h->bos == IMAGE_NONE)
		return error_set(err, -EINVAL, "image wants a begin token and names none");
	if (h->renderer == IMAGE_RENDER_V3 &&
	    (h->token_user == IMAGE_NONE || h->token_assistant == IMAGE_NONE))
		return error_set(err, -EINVAL, "image has the V3 renderer and not its control ids");
	if (h->splitter == IMAGE_SPLIT_BYTES && (h->n_merges || h->n_added))
		return error_set(err, -EINVAL, "image has a byte vocabulary with merges");
	if (memchr(h->arch, 0, sizeof(h->arch)) == NULL)
		return error_set(err, -EINVAL, "image architecture name has no end");
	if (((h->defaults & IMAGE_DEFAULT_TEMPERATURE) &&
	     !(isfinite(h->temperature) && h->temperature >= 0 && h->temperature <= 100)) ||
	    ((h->defaults & IMAGE_DEFAULT_TOP_P) && !(h->top_p > 0 && h->top_p <= 1)))
		return error_set(err, -EINVAL, "image sampling defaults are out of range");
	return 0;
}

static int check_vocab(const struct image *im, struct error *err)
{
	const struct image_header *h = im->h;

	if (im->token_offset[0] != 0 || im->token_offset[h->n_vocab] != h->token_bytes.bytes)
		return error_set(err, -EINVAL, "image tokens do not fill their section");
	for (uint32_t i = 0; i < h->n_vocab; i++)
		if (im->token_offset[i + 1] < im->token_offset[i] ||
		    im->token_offset[i + 1] - im->token_offset[i] > IMAGE_TOKEN_LEN_MAX)
			return error_set(err, -EINVAL, "image token %u runs from %u to %u", i,
					 im->token_offset[i], im->token_offset[i + 1]);
	for (uint32_t i = 0; i < h->n_merges; i++)
		if (im->merges[i].left >= h->n_vocab || im->merges[i].right >= h->n_vocab ||
		    im->merges[i].result >= h->n_vocab)
			return error_set(err, -EINVAL, "image merge %u names an id past %u", i,
					 h->n_vocab);
	for (uint32_t i = 0; i < h->n_added; i++) {
		uint32_t n;

		if (im->added[i] >= h->n_vocab)
			return error_set(err, -EINVAL,
					 "image added token %u is id %u, want less than %u", i,
					 im->added[i], h->n_vocab);
		image_token(im, im->added[i], &n);
		if (n == 0)
			return error_set(err, -EINVAL, "image added token %u is empty",
					 im->added[i]);
	}
	return 0;
}

int image_open(struct image *ret, const void *data, size_t n_bytes, struct error *err)
{
	const uint8_t *p = data;
	const struct image_header *h = data;
	struct image im = {.h = h};
	uint32_t row_bytes;
	int r;

	if (n_bytes < sizeof(*h) || n_bytes > IMAGE_BYTES_MAX || (uintptr_t)p % 8)
		return error_set(err, -EINVAL, "an image of %zu bytes: want %zu to %u", n_bytes,
				 sizeof(*h), IMAGE_BYTES_MAX);
	if (memcmp(h->magic, IMAGE_MAGIC, sizeof(h->magic)) != 0)
		return error_set(err, -EINVAL, "not a model image: wrong magic");
	r = check_header(h, n_bytes, err);
	if (r < 0)
		return r;
	if (h->streams.bytes % sizeof(struct image_stream) ||
	    h->streams.bytes / sizeof(struct image_stream) > PAGE_STREAMS_MAX ||
	    h->streams.bytes == 0)
		return error_set(err, -EINVAL, "image has %llu bytes of streams",
				 (unsigned long long)h->streams.bytes);
	im.n_streams = (uint32_t)(h->streams.bytes / sizeof(struct image_stream));
	const struct {
		const char *name;
		const struct image_section *s;
		uint64_t want;
	} sections[] = {
		{"token_offset", &h->token_offset, sizeof(uint32_t) * ((uint64_t)h->n_vocab + 1)},
		{"token_bytes", &h->token_bytes, h->token_bytes.bytes},
		{"token_flags", &h->token_flags, h->n_vocab},
		{"merges", &h->merges, sizeof(struct image_merge) * (uint64_t)h->n_merges},
		{"added", &h->added, sizeof(uint32_t) * (uint64_t)h->n_added},
		{"streams", &h->streams, sizeof(struct image_stream) * (uint64_t)im.n_streams},
	};
	for (size_t i = 0; i < N_ELEMENTS(sections); i++) {
		r = check_section(sections[i].s, sections[i].name, n_bytes, sections[i].want, err);
		if (r < 0)
			return r;
	}
	im.token_offset = (const void *)(p + h->token_offset.offset);
	im.token_bytes = p + h->token_bytes.offset;
	im.token_flags = p + h->token_flags.offset;
	im.merges = (const void *)(p + h->merges.offset);
	im.added = (const void *)(p + h->added.offset);
	im.streams = (const void *)(p + h->streams.offset);
	r = check_vocab(&im, err);
	if (r < 0)
		return r;

	/* The first n_layers streams are the layers' latent rows; drafters and indexers may follow. */
	row_bytes = page_entry_row_bytes(h->entry, h->kv_lora_rank, h->qk_rope);
	if (im.n_streams < h->n_layers || row_bytes == 0)
		return error_set(err, -EINVAL, "image has %u streams of %s entries for %u layers",
				 im.n_streams, page_entry_name(h->entry), h->n_layers);
	for (uint32_t i = 0; i < h->n_layers; i++)
		if (im.streams[i].layer != i || im.streams[i].bytes_per_token != row_bytes)
			return error_set(
				err, -EINVAL, "image stream %u: layer %u, %u bytes, want %u", i,
				im.streams[i].layer, im.streams[i].bytes_per_token, row_bytes);
	*ret = im;
	return 0;
}

bool image_is_eos(const struct image *im, uint32_t id)
{
	for (uint32_t i = 0; i < im->h->n_eos; i++)
		if (im->h->eos[i] == id)
			return true;
	return false;
}

int image_builder_init(struct image_builder *b)
{
	*b = (struct image_builder){.n_bytes = sizeof(struct image_header), .n_alloc = 1u << 16};
	b->h.bos = b->h.token_user = b->h.token_assistant = IMAGE_NONE;
	b->h.fim_begin = b->h.fim_hole = b->h.fim_end = IMAGE_NONE;
	b->h.think_begin = b->h.think_end = IMAGE_NONE;
	b->data = calloc(1, b->n_alloc);
	return b->data ? 0 : -ENOMEM;
}

void image_builder_done(struct image_builder *b)
{
	free(b->data);
	*b = (struct image_builder){};
}

int image_append(struct image_builder *b, struct image_section *section, const void *data, size_t n)
{
	size_t at = ALIGN_UP(b->n_bytes, (size_t)8);

	if (n > IMAGE_BYTES_MAX - at)
		return -E2BIG;
	if (at + n + 8 > b->n_alloc) {
		size_t want = MAX(2 * b->n_alloc, at + n + 8);
		uint8_t *p = realloc(b->data, want);

		if (!p)
			return -ENOMEM;
		memset(p + b->n_alloc, 0, want - b->n_alloc);
		b->data = p;
		b->n_alloc = want;
	}
	if (n)
		memcpy(b->data + at, data, n);
	*section = (struct image_section){.offset = at, .bytes = n};
	b->n_bytes = at + n;
	return 0;
}

int image_finish(struct image_builder *b, struct error *err)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	struct image im;
	int r;

	b->n_bytes = ALIGN_UP(b->n_bytes, (size_t)8);
	memcpy(b->h.magic, IMAGE_MAGIC, sizeof(b->h.magic));
	b->h.version = IMAGE_VERSION;
	b->h.header_bytes = sizeof(b->h);
	b->h.total_bytes = b->n_bytes;
	memcpy(b->data, &b->h, sizeof(b->h));
	r = image_open(&im, b->data, b->n_bytes, err);
	if (r < 0)
		return r;
	fd = memfd_create("dsd-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return error_set(err, -errno, "memfd_create for a model image: %m");
	for (size_t at = 0; at < b->n_bytes;) {
		ssize_t n = write(fd, b->data + at, b->n_bytes - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EIO, "writing a model image: %m");
		at += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return error_set(err, -errno, "sealing a model image: %m");
	return TAKE_FD(fd);
}
