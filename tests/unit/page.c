/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/page.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "layout/image.h"

static struct page_geometry g; /* too large for a stack */

static void row_bytes_follow_the_entry(void **state)
{
	(void)state;
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_F32, 512, 64), 2304);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_BF16, 512, 64), 1152);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 512, 64), 656);
	assert_int_equal(page_entry_row_bytes(PAGE_ENTRY_INT8, 500, 64), 0); /* no whole scales */
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(row_bytes_follow_the_entry),
		cmocka_unit_test(streams_lie_one_after_the_other),
		cmocka_unit_test(stride_of_v2_lite_in_bf16),
		cmocka_unit_test(impossible_pages_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
