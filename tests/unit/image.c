/* SPDX-License-Identifier: Apache-2.0 */
/* Every field of an image against its range: one good image, one change at a time. */
#include "layout/image.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/page.h"

#define N_VOCAB 260u

static const struct image_merge good_merges[] = {{'a', 'b', 256}, {256, 'c', 257}};
static const uint32_t good_added[] = {258};

/* Bytes, "ab", "abc", "<x>" (added), "<s>"; two layers of 16 + 16 in bf16. */
static void build(struct image_builder *b)
{
	static const char *const words[] = {"ab", "abc", "<x>", "<s>"};
	struct image_header *h = &b->h;
	struct image_stream streams[2];
	uint32_t offset[N_VOCAB + 1] = {};
	uint8_t bytes[512], flags[N_VOCAB] = {};
	int r;

	assert_int_equal(image_builder_init(b), 0);
	for (uint32_t id = 0; id < N_VOCAB; id++) {
		size_t n = id < 256 ? 1 : strlen(words[id - 256]);

		if (id < 256)
			bytes[id] = (uint8_t)id;
		else
			memcpy(bytes + offset[id], words[id - 256], n);
		offset[id + 1] = offset[id] + (uint32_t)n;
	}
	flags[258] = IMAGE_TOKEN_ADDED;
	flags[259] = IMAGE_TOKEN_SPECIAL;
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
	h->bos = 259;
	h->n_eos = 1;
	h->eos[0] = 259;
	h->n_merges = N_ELEMENTS(good_merges);
	h->n_added = N_ELEMENTS(good_added);
	for (uint32_t i = 0; i < 2; i++)
		streams[i] = (struct image_stream){i, 64};
	r = image_append(b, &h->token_offset, offset, sizeof(offset));
	r |= image_append(b, &h->token_bytes, bytes, offset[N_VOCAB]);
	r |= image_append(b, &h->token_flags, flags, sizeof(flags));
	r |= image_append(b, &h->merges, good_merges, sizeof(good_merges));
	r |= image_append(b, &h->added, good_added, sizeof(good_added));
	r |= image_append(b, &h->streams, streams, sizeof(streams));
	assert_int_equal(r, 0);
}

/* The bytes of a finished good image, on the heap. */
static uint8_t *good_image(size_t *ret_n)
{
	struct image_builder b;
	struct error err = {};
	uint8_t *p;
	int fd;

	build(&b);
	fd = image_finish(&b, &err);
	if (fd < 0)
		fail_msg("%s", err.text);
	close(fd);
	p = malloc(b.n_bytes);
	assert_non_null(p);
	memcpy(p, b.data, b.n_bytes);
	*ret_n = b.n_bytes;
	image_builder_done(&b);
	return p;
}

static void good_image_is_a_view_of_what_was_written(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n);
	uint32_t len;

	(void)state;
	assert_int_equal(image_open(&im, p, n, NULL), 0);
	assert_int_equal(im.n_streams, 2);
	assert_memory_equal(image_token(&im, 257, &len), "abc", 3);
	assert_int_equal(len, 3);
	assert_memory_equal(im.merges, good_merges, sizeof(good_merges));
	assert_int_equal(im.added[0], 258);
	assert_int_equal(im.token_flags[259], IMAGE_TOKEN_SPECIAL);
	assert_true(image_is_eos(&im, 259));
	assert_false(image_is_eos(&im, 0));
	free(p);
}

static void finished_image_is_sealed(void **state)
{
	struct image_builder b;
	struct image im;
	uint8_t *p;
	int fd;

	(void)state;
	build(&b);
	fd = image_finish(&b, NULL);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GET_SEALS),
			 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	p = mmap(NULL, b.n_bytes, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(image_open(&im, p, b.n_bytes, NULL), 0);
	munmap(p, b.n_bytes);
	close(fd);
	image_builder_done(&b);
}

#define H(f) offsetof(struct image_header, f)

static void every_header_field_has_its_range(void **state)
{
	static const struct {
		size_t offset;
		uint32_t value;
		const char *says;
	} bad[] = {
		{0, 0, "magic"},
		{H(version), 0, "version"},
		{H(version), 2, "version"},
		{H(header_bytes), sizeof(struct image_header) - 8, "header_bytes"},
		{H(header_bytes), sizeof(struct image_header) + 8, "header_bytes"},
		{H(total_bytes), 8, "total_bytes"},
		{H(total_bytes) + 4, 1, "total_bytes"},
		{H(n_vocab), 0, "n_vocab"},
		{H(n_vocab), IMAGE_VOCAB_MAX + 1, "n_vocab"},
		{H(n_vocab), N_VOCAB + 1, ""},
		{H(n_vocab), N_VOCAB - 1, ""},
		{H(n_context), 0, "n_context"},
		{H(n_context), IMAGE_CONTEXT_MAX + 1, "n_context"},
		{H(n_layers), 0, "n_layers"},
		{H(n_layers), IMAGE_LAYERS_MAX + 1, "n_layers"},
		{H(n_layers), 3, "3 layers"},
		{H(n_heads), 0, "n_heads"},
		{H(n_heads), 4097, "n_heads"},
		{H(hidden), 0, "hidden"},
		{H(hidden), (1u << 20) + 1, "hidden"},
		{H(kv_lora_rank), 0, "kv_lora_rank"},
		{H(kv_lora_rank), (1u << 16) + 1, "kv_lora_rank"},
		{H(kv_lora_rank), 32, "stream 0"},
		{H(qk_nope), 0, "qk_nope"},
		{H(qk_nope), (1u << 16) + 1, "qk_nope"},
		{H(qk_rope), 0, "qk_rope"},
		{H(qk_rope), (1u << 16) + 1, "qk_rope"},
		{H(v_head), 0, "v_head"},
		{H(v_head), (1u << 16) + 1, "v_head"},
		{H(entry), _PAGE_ENTRY_MAX, "entry"},
		{H(entry), PAGE_ENTRY_F32, "stream 0"},
		{H(entry), PAGE_ENTRY_INT8, "stream 0"},
		{H(splitter), _IMAGE_SPLIT_MAX, "splitter"},
		{H(splitter), IMAGE_SPLIT_BYTES, "merges"},
		{H(renderer), _IMAGE_RENDER_MAX, "renderer"},
		{H(renderer), IMAGE_RENDER_V3, "control ids"},
		{H(add_bos), 2, "add_bos"},
		{H(n_eos), IMAGE_EOS_MAX + 1, "n_eos"},
		{H(eos), N_VOCAB, "end token"},
		{H(bos), N_VOCAB, "bos"},
		{H(bos), IMAGE_NONE, "begin token"},
		{H(token_user), N_VOCAB, "token_user"},
		{H(token_assistant), N_VOCAB, "token_assistant"},
		{H(fim_begin), N_VOCAB, "fim_begin"},
		{H(fim_hole), N_VOCAB, "fim_hole"},
		{H(fim_end), N_VOCAB, "fim_end"},
		{H(think_begin), N_VOCAB, "think_begin"},
		{H(think_end), N_VOCAB, "think_end"},
		{H(n_merges), IMAGE_MERGES_MAX + 1, "n_merges"},
		{H(n_merges), 3, "merges"},
		{H(n_added), IMAGE_ADDED_MAX + 1, "n_added"},
		{H(n_added), 0, "added"},
	};
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n), *copy = malloc(n);

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
		struct error err = {};

		memcpy(copy, p, n);
		memcpy(copy + bad[i].offset, &bad[i].value, sizeof(bad[i].value));
		if (image_open(&im, copy, n, &err) != -EINVAL)
			fail_msg("row %zu (offset %zu = %u) was taken", i, bad[i].offset,
				 bad[i].value);
		if (!strstr(err.text, bad[i].says))
			fail_msg("row %zu: \"%s\" does not say \"%s\"", i, err.text, bad[i].says);
	}
	free(copy);
	free(p);
}

static void sampling_defaults_have_ranges_where_present(void **state)
{
	static const struct {
		uint32_t defaults;
		float temperature, top_p;
		int want;
	} rows[] = {
		{0, NAN, NAN, 0},
		{IMAGE_DEFAULT_TEMPERATURE, 0, 0, 0},
		{IMAGE_DEFAULT_TEMPERATURE, 100, 0, 0},
		{IMAGE_DEFAULT_TEMPERATURE, -0.1f, 0, -EINVAL},
		{IMAGE_DEFAULT_TEMPERATURE, 100.1f, 0, -EINVAL},
		{IMAGE_DEFAULT_TEMPERATURE, NAN, 0, -EINVAL},
		{IMAGE_DEFAULT_TEMPERATURE, INFINITY, 0, -EINVAL},
		{IMAGE_DEFAULT_TOP_P, 0, 1, 0},
		{IMAGE_DEFAULT_TOP_P, 0, 0, -EINVAL},
		{IMAGE_DEFAULT_TOP_P, 0, 1.01f, -EINVAL},
		{IMAGE_DEFAULT_TOP_P, 0, NAN, -EINVAL},
	};
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n);
	struct image_header *h = (struct image_header *)p;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
		h->defaults = rows[i].defaults;
		h->temperature = rows[i].temperature;
		h->top_p = rows[i].top_p;
		assert_int_equal(image_open(&im, p, n, NULL), rows[i].want);
	}
	free(p);
}

static void name_without_end_is_refused(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n);

	(void)state;
	memset(((struct image_header *)p)->arch, 'x', 32);
	assert_int_equal(image_open(&im, p, n, NULL), -EINVAL);
	free(p);
}

static void sections_lie_inside_aligned_and_of_their_size(void **state)
{
	static const size_t sections[] = {H(token_offset), H(token_bytes), H(token_flags),
					  H(merges),       H(added),       H(streams)};
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n), *copy = malloc(n);

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(sections); i++) {
		struct image_section *s = (struct image_section *)(copy + sections[i]);
		const uint64_t offsets[] = {0,
					    8,
					    sizeof(struct image_header) - 8,
					    n + 8,
					    UINT64_MAX - 7,
					    n & ~UINT64_C(7),
					    UINT64_C(1) << 32};
		uint64_t good;

		for (size_t k = 0; k < N_ELEMENTS(offsets); k++) {
			memcpy(copy, p, n);
			s->offset = offsets[k];
			assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
		}
		memcpy(copy, p, n);
		s->offset += 4;
		assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
		memcpy(copy, p, n);
		good = s->bytes;
		for (uint64_t bytes = good - 1; bytes <= good + 1; bytes += 2) {
			s->bytes = bytes;
			assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
		}
		s->bytes = UINT64_MAX;
		assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
		s->bytes = 0;
		assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
	}
	free(copy);
	free(p);
}

static void image_cut_anywhere_is_refused(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n);

	(void)state;
	for (size_t cut = 0; cut < n; cut++) {
		/* With the length it claims and with the true one. */
		uint8_t *part = malloc(cut + 1);

		memcpy(part, p, cut);
		assert_int_equal(image_open(&im, part, cut, NULL), -EINVAL);
		if (cut >= sizeof(struct image_header)) {
			((struct image_header *)part)->total_bytes = cut;
			if (cut < n - 8) /* the last bytes are alignment */
				assert_int_equal(image_open(&im, part, cut, NULL), -EINVAL);
		}
		free(part);
	}
	free(p);
}

static void ids_inside_sections_are_below_n_vocab(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n), *copy = malloc(n);
	const struct image_header *h = (const struct image_header *)p;

	(void)state;
	for (size_t word = 0; word < sizeof(good_merges) / 4; word++) {
		memcpy(copy, p, n);
		((uint32_t *)(copy + h->merges.offset))[word] = N_VOCAB;
		assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
	}
	memcpy(copy, p, n);
	*(uint32_t *)(copy + h->added.offset) = N_VOCAB;
	assert_int_equal(image_open(&im, copy, n, NULL), -EINVAL);
	free(copy);
	free(p);
}

static void tokens_ascend_and_fill_their_section(void **state)
{
	static const struct {
		uint32_t index, value;
	} bad[] = {
		{0, 1},       {10, 8},         {10, 12},   {10, UINT32_MAX},
		{N_VOCAB, 0}, {N_VOCAB, 1000}, {259, 258}, /* the added token becomes empty */
	};
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n), *copy = malloc(n);
	const struct image_header *h = (const struct image_header *)p;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
		memcpy(copy, p, n);
		((uint32_t *)(copy + h->token_offset.offset))[bad[i].index] = bad[i].value;
		if (image_open(&im, copy, n, NULL) != -EINVAL)
			fail_msg("offset %u = %u was taken", bad[i].index, bad[i].value);
	}
	free(copy);
	free(p);
}

static void token_of_more_than_its_limit_is_refused(void **state)
{
	static const uint8_t bytes[IMAGE_TOKEN_LEN_MAX + 1 + 255];

	(void)state;
	for (uint32_t extra = 0; extra < 2; extra++) {
		struct image_builder b;
		uint32_t offset[257] = {};
		struct error err = {};
		int fd;

		build(&b);
		for (uint32_t i = 0; i < 256; i++)
			offset[i + 1] = i + IMAGE_TOKEN_LEN_MAX + extra;
		b.h.n_vocab = 256;
		b.h.splitter = IMAGE_SPLIT_BYTES;
		b.h.n_merges = b.h.n_added = b.h.n_eos = b.h.add_bos = 0;
		b.h.bos = IMAGE_NONE;
		assert_int_equal(image_append(&b, &b.h.token_offset, offset, sizeof(offset)), 0);
		assert_int_equal(image_append(&b, &b.h.token_bytes, bytes, offset[256]), 0);
		assert_int_equal(image_append(&b, &b.h.token_flags, bytes, 256), 0);
		assert_int_equal(image_append(&b, &b.h.merges, NULL, 0), 0);
		assert_int_equal(image_append(&b, &b.h.added, NULL, 0), 0);
		fd = image_finish(&b, &err);
		assert_int_equal(fd >= 0, extra == 0);
		if (extra)
			assert_non_null(strstr(err.text, "token 0 runs from 0 to 4097"));
		fd_close(fd);
		image_builder_done(&b);
	}
}

static void streams_are_the_layers_in_order(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n);
	const struct image_header *h = (const struct image_header *)p;
	struct image_stream *streams = (struct image_stream *)(p + h->streams.offset);

	(void)state;
	streams[1].layer = 0;
	assert_int_equal(image_open(&im, p, n, NULL), -EINVAL);
	streams[1].layer = 1;
	streams[1].bytes_per_token = 60;
	assert_int_equal(image_open(&im, p, n, NULL), -EINVAL);
	streams[1].bytes_per_token = 64;
	assert_int_equal(image_open(&im, p, n, NULL), 0);
	free(p);
}

static void image_at_an_odd_address_is_refused(void **state)
{
	struct image im;
	size_t n;
	uint8_t *p = good_image(&n), *shifted = malloc(n + 8);

	(void)state;
	memcpy(shifted + 4, p, n);
	assert_int_equal(image_open(&im, shifted + 4, n, NULL), -EINVAL);
	free(shifted);
	free(p);
}

/* The published shapes: V2-Lite's cache is 14.1% of MHA's in bf16, 8.0% with int8 latents; V2's and V3's 1.8%. */
static void image_knows_what_other_attention_would_cache(void **state)
{
	static const struct {
		uint32_t layers, heads;
		enum page_entry entry;
		uint64_t kv, mha, gqa8;
		double of_mha;
	} known[] = {
		{27, 16, PAGE_ENTRY_BF16, 31104, 221184, 110592, 14.1},
		{27, 16, PAGE_ENTRY_INT8, 17712, 221184, 110592, 8.0},
		{60, 128, PAGE_ENTRY_BF16, 69120, 3932160, 245760, 1.8},
		{61, 128, PAGE_ENTRY_BF16, 70272, 3997696, 249856, 1.8},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		const struct image_header h = {.n_layers = known[i].layers,
					       .n_heads = known[i].heads,
					       .qk_nope = 128,
					       .v_head = 128};
		uint64_t kv = (uint64_t)h.n_layers * page_entry_row_bytes(known[i].entry, 512, 64);

		assert_int_equal(kv, known[i].kv);
		assert_int_equal(image_mha_bytes(&h), known[i].mha);
		assert_int_equal(image_gqa8_bytes(&h), known[i].gqa8);
		assert_true(fabs(100.0 * (double)kv / (double)known[i].mha - known[i].of_mha) <
			    0.05);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_image_is_a_view_of_what_was_written),
		cmocka_unit_test(finished_image_is_sealed),
		cmocka_unit_test(every_header_field_has_its_range),
		cmocka_unit_test(sampling_defaults_have_ranges_where_present),
		cmocka_unit_test(name_without_end_is_refused),
		cmocka_unit_test(sections_lie_inside_aligned_and_of_their_size),
		cmocka_unit_test(image_cut_anywhere_is_refused),
		cmocka_unit_test(ids_inside_sections_are_below_n_vocab),
		cmocka_unit_test(tokens_ascend_and_fill_their_section),
		cmocka_unit_test(token_of_more_than_its_limit_is_refused),
		cmocka_unit_test(streams_are_the_layers_in_order),
		cmocka_unit_test(image_at_an_odd_address_is_refused),
		cmocka_unit_test(image_knows_what_other_attention_would_cache),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
