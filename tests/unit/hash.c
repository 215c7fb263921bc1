/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <sodium.h>

#include "base/cleanup.h"

static const uint8_t key_a[HASH_KEY_BYTES] = {1}, key_b[HASH_KEY_BYTES] = {2};

static void mac_is_keyed_blake2b_of_lengths_and_parts(void **state)
{
	const struct hash_part parts[] = {{"ab", 2}, {"", 0}, {"c", 1}};
	static const uint8_t text[] = "\2\0\0\0\0\0\0\0ab\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0c";
	uint8_t got[HASH_MAC_BYTES], want[HASH_MAC_BYTES];

	(void)state;
	hash_mac(got, key_a, parts, N_ELEMENTS(parts));
	assert_int_equal(crypto_generichash(want, sizeof(want), text, sizeof(text) - 1, key_a,
					    sizeof(key_a)),
			 0);
	assert_memory_equal(got, want, sizeof(want));
}

static void mac_differs_by_key_and_by_where_parts_end(void **state)
{
	const struct hash_part lists[][2] = {
		{{"ab", 2}, {"c", 1}},
		{{"a", 1}, {"bc", 2}},
		{{"abc", 3}, {"", 0}},
		{{"", 0}, {"abc", 3}},
	};
	uint8_t macs[N_ELEMENTS(lists) + 2][HASH_MAC_BYTES];

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(lists); i++)
		hash_mac(macs[i], key_a, lists[i], 2);
	hash_mac(macs[N_ELEMENTS(lists)], key_b, lists[0], 2);
	hash_mac(macs[N_ELEMENTS(lists) + 1], key_a, lists[0], 1);
	for (size_t i = 0; i < N_ELEMENTS(macs); i++)
		for (size_t k = 0; k < i; k++)
			assert_memory_not_equal(macs[i], macs[k], HASH_MAC_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mac_is_keyed_blake2b_of_lengths_and_parts),
		cmocka_unit_test(mac_differs_by_key_and_by_where_parts_end),
	};

	if (hash_init() < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
