/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hash.h"

#include <errno.h>

#include <sodium.h>

int hash_init(void)
{
	return sodium_init() < 0 ? -EIO : 0;
}

void hash_mac(uint8_t ret[HASH_MAC_BYTES], const uint8_t key[HASH_KEY_BYTES],
	      const struct hash_part *parts, size_t n_parts)
{
	crypto_generichash_state st;

	crypto_generichash_init(&st, key, HASH_KEY_BYTES, HASH_MAC_BYTES);
	for (size_t i = 0; i < n_parts; i++) {
		uint64_t n = parts[i].n;

		crypto_generichash_update(&st, (const uint8_t *)&n, sizeof(n));
		crypto_generichash_update(&st, parts[i].data, n);
	}
	crypto_generichash_final(&st, ret, HASH_MAC_BYTES);
}

void hash_hex(char *ret, const uint8_t *bytes, size_t n)
{
	sodium_bin2hex(ret, 2 * n + 1, bytes, n);
}
