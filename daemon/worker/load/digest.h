#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The model digest: BLAKE2b over named parts, each with its length, so that no two lists of parts
 * run together to the same bytes. */
#include <stddef.h>
#include <stdint.h>

#include <sodium/crypto_generichash.h>

struct digest {
	crypto_generichash_state state;
};

void digest_begin(struct digest *d);
void digest_add(struct digest *d, const char *part, const void *data, size_t n);
void digest_end(struct digest *d, uint8_t ret[32]);
