/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/synthetic.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static bool ends_with(const char *name, const char *tail)
{
	size_t n = strlen(name), k = strlen(tail);

	return n >= k && strcmp(name + n - k, tail) == 0;
}

void synthetic_init(struct synthetic_tensor *t, uint64_t seed, const char *name, uint64_t n_in)
{
	float unit = 1 / sqrtf((float)n_in);

	*t = (struct synthetic_tensor){.key = XXH3_64bits_withSeed(name, strlen(name), seed)};
	if (ends_with(name, "norm.weight")) {
		t->mean = 1;
		t->spread = 0.05f;
	} else if (ends_with(name, "embed_tokens.weight")) {
		t->spread = 1;
	} else if (ends_with(name, ".mlp.gate.weight")) {
		t->spread = 4 * unit;
	} else if (ends_with(name, "lm_head.weight")) {
		t->spread = 2 * unit;
	} else {
		t->spread = unit;
	}
}

/* The finaliser of splitmix64 over a counter. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Sum of two uniform 16-bit numbers: a triangle, near enough to a bell, exact in f32. Its standard
 * deviation is 65536 / sqrt(6). */
static float triangle(uint32_t bits)
{
	return (float)(int32_t)((bits & 0xffff) + (bits >> 16) - 0xffff);
}

void synthetic_fill(const struct synthetic_tensor *t, uint64_t first, uint64_t n, float *ret)
{
	const float unit = 2.4494897f / 65536 * t->spread;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t k = first + i;
		uint64_t x = mix(t->key + (k / 2 + 1) * UINT64_C(0x9e3779b97f4a7c15));

		ret[i] = t->mean + unit * triangle((uint32_t)(k % 2 ? x >> 32 : x));
	}
}
