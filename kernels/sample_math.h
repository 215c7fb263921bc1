#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic that must come out equal on every device: the exponential, its fixed point, Philox.
 *
 * C and CUDA compile this very text. Only IEEE additions, multiplications and explicit fused
 * multiply-adds occur, and the files that use it are compiled without contraction (nvcc:
 * -fmad=false is not needed, since no product here feeds a sum outside fmaf()). */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define K_INLINE static __device__ inline
#else
#define K_INLINE static inline
#endif

/* e^x = 2^n e^r, r in [-ln2/2, ln2/2], e^r = 1 + r (1 + r g(r)); g is the polynomial of degree 4 with
 * the smallest relative error of e^r (3.1e-9, from a Remez exchange), coefficients rounded to f32. */
#define K_EXP_MIN   -105.0f /* e^x rounds to 0 from here on down */
#define K_EXP_MAX   89.0f   /* and overflows from here on up */
#define K_EXP_LOG2E 0x1.715476p+0f
#define K_EXP_MAGIC 0x1.8p+23f /* adding it rounds to an integer, in the low mantissa bits */
#define K_EXP_LN2HI 0x1.62e43p-1f
#define K_EXP_LN2LO -0x1.05c61p-29f
#define K_EXP_G0    0x1.fffffcp-2f
#define K_EXP_G1    0x1.555492p-3f
#define K_EXP_G2    0x1.5558f2p-5f
#define K_EXP_G3    0x1.123a2p-7f
#define K_EXP_G4    0x1.6a23ccp-10f

K_INLINE uint32_t k_bits(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof(u));
	return u;
}

K_INLINE float k_from_bits(uint32_t u)
{
	float x;

	memcpy(&x, &u, sizeof(x));
	return x;
}

/* e^x within 1 ulp; -inf gives 0, +inf inf, NaN NaN, and 0 gives 1 exactly. */
K_INLINE float k_expf(float x)
{
	float t, n, r, g, p;
	uint32_t i, half;

	x = K_EXP_MIN > x ? K_EXP_MIN : x; /* a NaN passes both */
	x = K_EXP_MAX < x ? K_EXP_MAX : x;
	t = fmaf(x, K_EXP_LOG2E, K_EXP_MAGIC);
	n = t - K_EXP_MAGIC;
	r = fmaf(n, -K_EXP_LN2HI, x);
	r = fmaf(n, -K_EXP_LN2LO, r);
	g = fmaf(K_EXP_G4, r, K_EXP_G3);
	g = fmaf(g, r, K_EXP_G2);
	g = fmaf(g, r, K_EXP_G1);
	g = fmaf(g, r, K_EXP_G0);
	p = fmaf(r, fmaf(r, g, 1.0f), 1.0f);
	/* 2^n in two factors, so that neither leaves the normal range */
	i = k_bits(t) - k_bits(K_EXP_MAGIC);
	half = (uint32_t)((int32_t)i >> 1);
	return p * k_from_bits((half + 127) << 23) * k_from_bits((i - half + 127) << 23);
}

/* Probabilities as integers: sums are exact in any order. 2^40 stands for 1, so that 2^24 ids fit in
 * 64 bits; below 2^-40 of the best id a token is never drawn. */
#define K_FIXED_ONE (UINT64_C(1) << 40)

/* p in [0, 1]; exact but for the bits below 2^-40, which are cut. */
K_INLINE uint64_t k_fixed(float p)
{
	uint32_t u = k_bits(p);
	int32_t exponent = (int32_t)(u >> 23) - 127;
	uint64_t mantissa = (u & 0x7fffff) | 0x800000;
	int32_t shift = exponent - 23 + 40; /* of the mantissa, to the left */

	if (shift <= -24)
		return 0;
	return shift >= 0 ? mantissa << shift : mantissa >> -shift;
}

/* Philox4x32-10. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). */
K_INLINE void k_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t ret[4])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
	uint32_t k0 = key[0], k1 = key[1];

	for (int round = 0; round < 10; round++) {
		uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;

		c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
		c1 = (uint32_t)b;
		c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
		c3 = (uint32_t)a;
		k0 += 0x9e3779b9u;
		k1 += 0xbb67ae85u;
	}
	ret[0] = c0;
	ret[1] = c1;
	ret[2] = c2;
	ret[3] = c3;
}

/* The 64 random bits of one draw. */
K_INLINE uint64_t k_draw_bits(uint64_t seed, uint32_t choice, uint32_t position)
{
	const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
	const uint32_t counter[4] = {position, choice, 0, 0};
	uint32_t r[4];

	k_philox(key, counter, r);
	return (uint64_t)r[1] << 32 | r[0];
}
