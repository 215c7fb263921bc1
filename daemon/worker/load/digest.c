/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/digest.h"

#include <string.h>

void digest_begin(struct digest *d)
{
	crypto_generichash_init(&d->state, NULL, 0, 32);
}

void digest_add(struct digest *d, const char *part, const void *data, size_t n)
{
	uint64_t lengths[2] = {strlen(part), n};

	crypto_generichash_update(&d->state, (const void *)lengths, sizeof(lengths));
	crypto_generichash_update(&d->state, (const void *)part, strlen(part));
	crypto_generichash_update(&d->state, data, n);
}

void digest_end(struct digest *d, uint8_t ret[32])
{
	crypto_generichash_final(&d->state, ret, 32);
}
