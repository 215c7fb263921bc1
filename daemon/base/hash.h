#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Keyed hashes over parts: page chains, domains and tags. libsodium's generichash (BLAKE2b). */
#include <stddef.h>
#include <stdint.h>

#define HASH_KEY_BYTES 32
#define HASH_MAC_BYTES 16

struct hash_part {
	const void *data;
	size_t n;
};

/** hash_init() - once at start, before any other call. Return: 0 or -EIO. */
int hash_init(void);
/** hash_mac() - 128-bit MAC of the parts, each preceded by its length so that no two lists collide. */
void hash_mac(uint8_t ret[HASH_MAC_BYTES], const uint8_t key[HASH_KEY_BYTES],
	      const struct hash_part *parts, size_t n_parts);
/** hash_hex() - @n bytes as 2n digits and a 0, for names of files */
void hash_hex(char *ret, const uint8_t *bytes, size_t n);
