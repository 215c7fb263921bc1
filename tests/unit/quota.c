/* SPDX-License-Identifier: Apache-2.0 */
#include "quota/quota.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static struct quota *new_quota(uint64_t connections, uint64_t requests, uint64_t pages)
{
	const uint64_t limits[_QUOTA_MAX] = {
		[QUOTA_CONNECTIONS] = connections,
		[QUOTA_REQUESTS] = requests,
		[QUOTA_PAGES] = pages,
	};
	struct quota *q = NULL;

	assert_int_equal(quota_new(&q, limits), 0);
	return q;
}

static void charge_past_the_limit_is_refused_and_charges_nothing(void **state)
{
	struct quota *q = new_quota(10, 1, 0);
	struct error err = {};

	(void)state;
	assert_int_equal(quota_charge(q, 7, QUOTA_CONNECTIONS, 9, &err), 0);
	assert_int_equal(quota_charge(q, 7, QUOTA_CONNECTIONS, 2, &err), -EDQUOT);
	assert_string_equal(err.text, "this user holds 9 connections of at most 10");
	assert_int_equal(quota_used(q, 7, QUOTA_CONNECTIONS), 9);
	assert_int_equal(quota_charge(q, 7, QUOTA_CONNECTIONS, 1, &err), 0);
	assert_int_equal(quota_charge(q, 7, QUOTA_CONNECTIONS, 0, &err), 0);
	assert_int_equal(quota_charge(q, 7, QUOTA_PAGES, 1, &err), -EDQUOT);
	assert_int_equal(quota_total(q, QUOTA_PAGES), 0);
	quota_free(q);
}

static void charge_near_two_to_the_64_does_not_wrap(void **state)
{
	struct quota *q = new_quota(UINT64_MAX - 1, UINT64_MAX, UINT64_MAX);

	(void)state;
	assert_int_equal(quota_charge(q, 1, QUOTA_CONNECTIONS, UINT64_MAX, NULL), -EDQUOT);
	assert_int_equal(quota_charge(q, 1, QUOTA_CONNECTIONS, UINT64_MAX - 1, NULL), 0);
	assert_int_equal(quota_charge(q, 1, QUOTA_CONNECTIONS, 2, NULL), -EDQUOT);
	assert_int_equal(quota_used(q, 1, QUOTA_CONNECTIONS), UINT64_MAX - 1);
	quota_free(q);
}

static void users_and_kinds_are_apart(void **state)
{
	struct quota *q = new_quota(2, 2, 2);

	(void)state;
	assert_int_equal(quota_charge(q, 0, QUOTA_REQUESTS, 2, NULL), 0);
	assert_int_equal(quota_charge(q, UINT32_MAX, QUOTA_REQUESTS, 2, NULL), 0);
	assert_int_equal(quota_charge(q, 0, QUOTA_PAGES, 2, NULL), 0);
	assert_int_equal(quota_used(q, 0, QUOTA_CONNECTIONS), 0);
	assert_int_equal(quota_used(q, 5, QUOTA_REQUESTS), 0);
	assert_int_equal(quota_total(q, QUOTA_REQUESTS), 4);
	quota_uncharge(q, 0, QUOTA_REQUESTS, 1);
	assert_int_equal(quota_charge(q, UINT32_MAX, QUOTA_REQUESTS, 1, NULL), -EDQUOT);
	assert_int_equal(quota_charge(q, 0, QUOTA_REQUESTS, 1, NULL), 0);
	quota_free(q);
}

static void ten_thousand_users_keep_what_they_hold(void **state)
{
	struct quota *q = new_quota(UINT64_MAX, 100, UINT64_MAX);
	uint64_t total = 0;

	(void)state;
	/* Uids that agree in their low bits and uids that do not. */
	for (uint32_t i = 0; i < 10000; i++) {
		uid_t uid = i % 2 ? i : i << 16;

		assert_int_equal(quota_charge(q, uid, QUOTA_REQUESTS, i % 101, NULL), 0);
		total += i % 101;
	}
	assert_int_equal(quota_total(q, QUOTA_REQUESTS), total);
	for (uint32_t i = 0; i < 10000; i++) {
		uid_t uid = i % 2 ? i : i << 16;

		assert_int_equal(quota_used(q, uid, QUOTA_REQUESTS), i % 101);
		quota_uncharge(q, uid, QUOTA_REQUESTS, i % 101);
	}
	assert_int_equal(quota_total(q, QUOTA_REQUESTS), 0);
	quota_free(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(charge_past_the_limit_is_refused_and_charges_nothing),
		cmocka_unit_test(charge_near_two_to_the_64_does_not_wrap),
		cmocka_unit_test(users_and_kinds_are_apart),
		cmocka_unit_test(ten_thousand_users_keep_what_they_hold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
