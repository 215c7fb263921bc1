/* SPDX-License-Identifier: Apache-2.0 */
/* What dsctl top makes of two looks at the counters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "rates.h"
#include "screen.h"

static void rates_are_of_the_time_between_two_looks(void **state)
{
	struct dsc_model_stats before = {.name = "a",
					 .steps = 10,
					 .rows = 100,
					 .prompt_tokens = 1000,
					 .cached_tokens = 500,
					 .generated_tokens = 50,
					 .worker_usec = 7000000};
	struct dsc_model_stats now = before;
	struct rates r;

	(void)state;
	now.steps += 4;
	now.rows += 10;
	now.prompt_tokens += 30;
	now.cached_tokens += 90;
	now.generated_tokens += 5;
	now.worker_usec += 500000;
	r = rates_of_model(&now, &before, 2);
	assert_true(r.steps == 2 && r.rows == 2.5);
	assert_true(r.prompt == 15 && r.cached == 45 && r.generated == 2.5);
	assert_true(r.hit_rate == 0.75 && r.worker == 0.25);
	r = rates_of_model(&now, NULL, 2);
	assert_true(r.steps == 7 && r.generated == 27.5);
}

static void nothing_that_happened_has_no_hit_rate(void **state)
{
	struct dsc_model_stats now = {.name = "a", .prompt_tokens = 5};
	struct rates r = rates_of_model(&now, &now, 1);

	(void)state;
	assert_true(r.hit_rate < 0 && r.rows == 0 && r.steps == 0);
	assert_true(hit_rate(0, 0) < 0);
	assert_true(hit_rate(7, 0) == 0);
	assert_true(hit_rate(0, 7) == 1);
}

static void counters_of_another_daemon_begin_at_zero(void **state)
{
	struct dsc_model_stats before = {.name = "a", .generated_tokens = 1000000, .steps = 9};
	struct dsc_model_stats now = {.name = "a", .generated_tokens = 40, .steps = 2};
	struct dsc_stats_reply old = {.broker_cpu_usec = 9000000},
			       new = {.broker_cpu_usec = 1000000};
	struct rates r = rates_of_model(&now, &before, 2);

	(void)state;
	assert_true(r.generated == 20 && r.steps == 1);
	assert_true(rates_of_broker(&new, &old, 2) == 0.5);
	assert_true(rates_of_broker(&old, &new, 2) == 4);
	assert_true(rates_of_broker(&new, NULL, 4) == 0.25);
}

static void a_worker_is_never_busier_than_the_time(void **state)
{
	struct dsc_model_stats before = {.name = "a"}, now = {.name = "a", .worker_usec = 3000000};

	(void)state;
	assert_true(rates_of_model(&now, &before, 2).worker == 1);
}

static void every_page_is_in_one_state(void **state)
{
	struct dsc_model_stats m = {
		.pages_total = 100, .pages_used = 30, .pages_published = 10, .pages_cached = 25};
	uint32_t pages[PAGE_STATES];

	(void)state;
	pool_map(&m, pages);
	assert_int_equal(pages[PAGE_IN_USE], 20);
	assert_int_equal(pages[PAGE_PUBLISHED], 10);
	assert_int_equal(pages[PAGE_CACHED], 25);
	assert_int_equal(pages[PAGE_FREE], 45);
	m.pages_published = m.pages_cached = 200; /* a daemon that is wrong costs no overflow */
	pool_map(&m, pages);
	assert_int_equal(pages[PAGE_IN_USE], 0);
	assert_int_equal(pages[PAGE_FREE], 0);
}

static void models_are_found_by_name(void **state)
{
	struct dsc_model_stats a = {.name = "a"}, b = {.name = "b"};
	const struct dsc_model_stats *models[] = {&a, &b};
	struct dsc_stats_reply st = {.models = models, .n_models = 2};

	(void)state;
	assert_ptr_equal(find_model(&st, "b"), &b);
	assert_null(find_model(&st, "c"));
	assert_null(find_model(NULL, "a"));
}

static void a_bar_is_divided_as_its_parts_are(void **state)
{
	static const struct {
		uint32_t parts[3];
		const char *want;
	} cases[] = {
		{{5, 3, 2}, "#####===++"},   {{0, 0, 7}, "++++++++++"},
		{{0, 0, 0}, "          "},   {{1, 0, 1}, "#####+++++"},
		{{1, 0, 999}, "++++++++++"}, {{UINT32_MAX, UINT32_MAX, 0}, "#####====="},
	};
	char bar[11];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		screen_bar(cases[i].parts, "#=+", 3, bar, 10);
		assert_string_equal(bar, cases[i].want);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rates_are_of_the_time_between_two_looks),
		cmocka_unit_test(nothing_that_happened_has_no_hit_rate),
		cmocka_unit_test(counters_of_another_daemon_begin_at_zero),
		cmocka_unit_test(a_worker_is_never_busier_than_the_time),
		cmocka_unit_test(every_page_is_in_one_state),
		cmocka_unit_test(models_are_found_by_name),
		cmocka_unit_test(a_bar_is_divided_as_its_parts_are),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
