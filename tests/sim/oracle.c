/* SPDX-License-Identifier: Apache-2.0 */
/* Source: the essay of daemon/worker/fake.c. */
#include "oracle.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/cleanup.h"
#include "worker/fake.h"

#define END_ONE_IN 64u

static void hash(const void *data, size_t n, uint64_t seed, uint64_t ret[2])
{
	XXH128_hash_t h = XXH3_128bits_withSeed(data, n, seed);

	ret[0] = h.low64;
	ret[1] = h.high64;
}

void oracle_init(struct oracle *o, const uint8_t domain[16])
{
	uint64_t h[2];

	hash(domain, 16, 0, h);
	*o = (struct oracle){.lo = h[0], .hi = h[1]};
}

void oracle_push(struct oracle *o, uint32_t id)
{
	struct {
		uint64_t lo, hi;
		uint32_t id, position;
	} in = {o->lo, o->hi, id, o->position};
	uint64_t h[2];

	hash(&in, sizeof(in), 1, h);
	*o = (struct oracle){.lo = h[0], .hi = h[1], .position = o->position + 1};
}

static uint32_t likeliest(const uint64_t h[2], bool may_end)
{
	uint32_t k = (uint32_t)(h[0] % 32);

	if (may_end && h[1] % END_ONE_IN == 0)
		return FAKE_EOS;
	return k < 26 ? 'a' + k : ' ';
}

uint32_t oracle_next(const struct oracle *o, const struct channel_params *p)
{
	uint32_t n_generated = o->position - MIN(o->position, p->n_prompt);
	uint64_t h[2] = {o->lo, o->hi};
	struct {
		uint64_t lo, hi, seed;
		uint32_t choice, position;
	} in = {o->lo, o->hi, p->seed, p->choice, o->position};

	if (p->temperature > 0)
		hash(&in, sizeof(in), 100, h);
	return likeliest(h, !p->ignore_eos && n_generated >= p->min_tokens);
}

float oracle_logprob(const struct oracle *o, uint32_t id)
{
	uint64_t h[2] = {o->lo, o->hi}, k[2];

	if (id == likeliest(h, true))
		return -0.25f;
	hash(h, sizeof(h), 1000 + id, k);
	return -1.0f - (float)(k[0] % 1024) / 512.0f;
}
