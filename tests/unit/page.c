/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/page.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"

static struct page_geometry g; /* too large for a stack */

static void row_bytes_follow_the_entry(void **state)
{
	(void)state;
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_F32, 512, 64), 2304);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_BF16, 512, 64), 1152);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 512, 64), 656);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 500, 64), 644);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 64, 32), 132);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 510, 64), 0); /* scales aslant */
	assert_int_equal(page_entry_row_bytes(_PAGE_ENTRY_MAX, 512, 64), 0);
	assert_string_equal(page_entry_name(PAGE_ENTRY_INT8), "int8");
	assert_string_equal(page_entry_name(_PAGE_ENTRY_MAX), "unknown");
}

static void streams_lie_one_after_the_other(void **state)
{
	const struct image_stream streams[] = {{0, 100}, {1, 100}, {2, 4}};
	static uint8_t pool[4 * 16384];

	(void)state;
	assert_int_equal(page_geometry_init(&g, streams, 3, NULL), 0);
	assert_int_equal(g.n_streams, 3);
	assert_int_equal(g.offset[0], 0);
	assert_int_equal(g.offset[1], 6400);
	assert_int_equal(g.offset[2], 12800);
	assert_int_equal(g.token_bytes, 204);
	assert_int_equal(g.stride, 16384); /* 13,056 rounded up to 4,096 */
	assert_ptr_equal(page_row(pool, &g, 3, 1, 5), pool + 3 * 16384 + 6400 + 500);
}

static void stride_of_v2_lite_in_bf16(void **state)
{
	struct image_stream streams[27];

	(void)state;
	for (uint32_t i = 0; i < 27; i++)
		streams[i] = (struct image_stream){i, 1152};
	assert_int_equal(page_geometry_init(&g, streams, 27, NULL), 0);
	assert_int_equal(g.stride, 1990656);
	assert_int_equal(g.token_bytes, 31104);
}

static void impossible_pages_are_refused(void **state)
{
	static struct image_stream many[PAGE_STREAMS_MAX + 1];
	const struct image_stream odd = {0, 6}, none = {0, 0}, huge = {0, 1u << 30};
	const struct image_stream edge[] = {{0, PAGE_STRIDE_MAX / PAGE_TOKENS}, {1, 4}};
	struct error err = {};

	(void)state;
	for (uint32_t i = 0; i <= PAGE_STREAMS_MAX; i++)
		many[i] = (struct image_stream){i, 4};
	assert_int_equal(page_geometry_init(&g, many, 0, &err), -EINVAL);
	assert_int_equal(page_geometry_init(&g, many, PAGE_STREAMS_MAX + 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "1025 streams"));
	assert_int_equal(page_geometry_init(&g, many, PAGE_STREAMS_MAX, &err), 0);
	assert_int_equal(page_geometry_init(&g, &odd, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "multiple of 4"));
	assert_int_equal(page_geometry_init(&g, &none, 1, &err), -EINVAL);
	assert_int_equal(page_geometry_init(&g, &huge, 1, &err), -EINVAL);
	assert_int_equal(page_geometry_init(&g, edge, 1, &err), 0);
	assert_int_equal(g.stride, PAGE_STRIDE_MAX);
	assert_int_equal(page_geometry_init(&g, edge, 2, &err), -EINVAL);
}

static void geometry_id_differs_by_every_row_size(void **state)
{
	const struct image_stream streams[] = {{0, 8}, {1, 4}}, swapped[] = {{0, 4}, {1, 8}};
	uint32_t id;

	(void)state;
	assert_int_equal(page_geometry_init(&g, streams, 2, NULL), 0);
	id = page_geometry_id(&g);
	assert_int_equal(page_geometry_id(&g), id);
	assert_int_equal(page_geometry_init(&g, swapped, 2, NULL), 0);
	assert_int_not_equal(page_geometry_id(&g), id);
	assert_int_equal(page_geometry_init(&g, streams, 1, NULL), 0);
	assert_int_not_equal(page_geometry_id(&g), id);
}

static void header_that_differs_is_refused_by_the_name_of_the_field(void **state)
{
	static struct pool_header want, h;
	static const struct {
		const char *name;
		size_t at;
	} fields[] = {
		{"magic", offsetof(struct pool_header, magic)},
		{"version", offsetof(struct pool_header, version)},
		{"header_bytes", offsetof(struct pool_header, header_bytes)},
		{"record_bytes", offsetof(struct pool_header, record_bytes)},
		{"page_tokens", offsetof(struct pool_header, page_tokens)},
		{"n_pages", offsetof(struct pool_header, n_pages)},
		{"entry", offsetof(struct pool_header, entry)},
		{"geometry", offsetof(struct pool_header, geometry)},
		{"stride", offsetof(struct pool_header, stride)},
		{"token_bytes", offsetof(struct pool_header, token_bytes)},
		{"boot_id", offsetof(struct pool_header, boot_id)},
		{"model", offsetof(struct pool_header, model)},
		{"_pad", offsetof(struct pool_header, _pad)},
	};

	(void)state;
	want = (struct pool_header){.version = 2, .n_pages = 5, .stride = 4096};
	for (size_t i = 0; i < N_ELEMENTS(fields); i++) {
		struct error err = {};
		char word[64];

		h = want;
		h.attempts = 1; /* these three are not compared */
		h.adopted_usec = 2;
		h.mac[0] = 3;
		assert_int_equal(pool_header_check(&h, &want, &err), 0);
		((uint8_t *)&h)[fields[i].at]++;
		assert_int_equal(pool_header_check(&h, &want, &err), -EBADMSG);
		snprintf(word, sizeof(word), "pool header: %s is ", fields[i].name);
		if (strncmp(err.text, word, strlen(word)) != 0)
			fail_msg("\"%s\" does not begin with \"%s\"", err.text, word);
	}
}

static struct page_record good_record(void)
{
	struct page_record rec = {
		.magic = PAGE_RECORD_MAGIC,
		.generation = 6,
		.state = PAGE_COMMITTED,
		.page = 3,
		.geometry = 77,
		.model = {9},
		.first_pos = 128,
		.n_tokens = PAGE_TOKENS,
		.ids = {[63] = 99},
	};

	return rec;
}

static int check_record(const struct page_record *rec, struct error *err)
{
	static const uint8_t model[16] = {9};
	const struct page_expect want = {.page = 3, .geometry = 77, .n_vocab = 100, .model = model};

	return page_record_check(rec, &want, err);
}

static void record_that_cannot_be_is_refused_by_the_name_of_the_field(void **state)
{
	struct page_record rec = good_record();
	struct error err = {};

	(void)state;
	assert_int_equal(check_record(&rec, &err), 0);
#define REFUSED(change, name)                                                                      \
	do {                                                                                       \
		rec = good_record();                                                               \
		change;                                                                            \
		assert_int_equal(check_record(&rec, &err), -EBADMSG);                              \
		assert_non_null(strstr(err.text, "record 3: " name));                              \
	} while (0)
	REFUSED(rec.magic ^= 1, "magic is ");
	REFUSED(rec.generation++, "generation 7 is odd");
	REFUSED(rec.state = PAGE_SEALED, "state is 2: want 3");
	REFUSED(rec.state = 1u << 31, "state is ");
	REFUSED(rec.flags = PAGE_FLAG_GENERATED, "flags is 1: want 0");
	REFUSED(rec.flags = 2, "flags is 2");
	REFUSED(rec.page = 4, "page is 4: want 3");
	REFUSED(rec.geometry++, "geometry is 78");
	REFUSED(rec.model[15]++, "model is another");
	REFUSED(rec.first_pos = 129, "first_pos is 129: want 128");
	REFUSED(rec.first_pos = UINT32_MAX - 63, "first_pos is ");
	REFUSED(rec.n_tokens = 63, "n_tokens is 63: want 64");
	REFUSED(rec.ids[63] = 100, "ids[63] is 100: want less than 100");
	REFUSED(rec.ids[0] = UINT32_MAX, "ids[0] is ");
	REFUSED(rec.n_prompt = 150, "flags is 0: want 1");
	REFUSED(rec.n_prompt = 192; rec.flags = 1, "n_prompt is 192: want less than 192");
	REFUSED(rec.first_pos = 0; rec.parent[0] = 1, "parent of a first page");
	REFUSED(rec._pad[0] = 1, "bytes behind its end");
	REFUSED(rec._pad[sizeof(rec._pad) - 1] = 1, "bytes behind its end");
#undef REFUSED
	rec = good_record();
	rec.n_prompt = 191;
	rec.flags = PAGE_FLAG_GENERATED;
	assert_int_equal(check_record(&rec, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(row_bytes_follow_the_entry),
		cmocka_unit_test(streams_lie_one_after_the_other),
		cmocka_unit_test(stride_of_v2_lite_in_bf16),
		cmocka_unit_test(impossible_pages_are_refused),
		cmocka_unit_test(geometry_id_differs_by_every_row_size),
		cmocka_unit_test(header_that_differs_is_refused_by_the_name_of_the_field),
		cmocka_unit_test(record_that_cannot_be_is_refused_by_the_name_of_the_field),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
