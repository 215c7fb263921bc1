/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "limits.h"

#define CHAINS 12 /* more than latency times ports */

double limit_fma_avx512(uint64_t n, float *sink)
{
	__m512 x[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f),
			  sum = _mm512_setzero_ps();
	float f[16];

	for (int i = 0; i < CHAINS; i++)
		x[i] = _mm512_set1_ps((float)i);
	for (uint64_t r = 0; r < n; r++) {
#pragma GCC unroll 12
		for (int i = 0; i < CHAINS; i++)
			x[i] = _mm512_fmadd_ps(x[i], a, b);
	}
	for (int i = 0; i < CHAINS; i++)
		sum = _mm512_add_ps(sum, x[i]);
	_mm512_storeu_ps(f, sum);
	*sink = f[0];
	return 2.0 * 16 * CHAINS * (double)n;
}

#define DOT(n)        "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n\t"
#define CHAINS_OF(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)

double limit_int8_vnni(uint64_t n)
{
	for (uint64_t r = 0; r < n; r++)
		__asm__ volatile(CHAINS_OF(DOT)::
					 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
					   "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
	return 2.0 * 64 * CHAINS * (double)n;
}
