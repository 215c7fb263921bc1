/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

#define CHAINS 12 /* more than latency times ports */

double limit_fma_avx2(uint64_t n, float *sink)
{
	__m256 x[CHAINS], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f),
			  sum = _mm256_setzero_ps();
	float f[8];

	for (int i = 0; i < CHAINS; i++)
		x[i] = _mm256_set1_ps((float)i);
	for (uint64_t r = 0; r < n; r++) {
#pragma GCC unroll 12
		for (int i = 0; i < CHAINS; i++)
			x[i] = _mm256_fmadd_ps(x[i], a, b);
	}
	for (int i = 0; i < CHAINS; i++)
		sum = _mm256_add_ps(sum, x[i]);
	_mm256_storeu_ps(f, sum);
	*sink = f[0];
	return 2.0 * 8 * CHAINS * (double)n;
}

/* In assembly, or the compiler sees that every round does the same. */
#define DIRECT(n)                                                                                  \
	"vpmaddubsw %%ymm15, %%ymm14, %%ymm12\n\tvpaddw %%ymm12, %%ymm" #n ", %%ymm" #n "\n\t"
#define WIDE(n)                                                                                    \
	"vpmaddubsw %%ymm15, %%ymm14, %%ymm12\n\tvpmaddwd %%ymm13, %%ymm12, %%ymm12\n\t"           \
	"vpaddd %%ymm12, %%ymm" #n ", %%ymm" #n "\n\t"
#define CHAINS_OF(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define CLOBBERS                                                                                   \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",   \
		"xmm11", "xmm12"

double limit_int8_avx2(uint64_t n, bool direct)
{
	for (uint64_t r = 0; r < n; r++)
		if (direct)
			__asm__ volatile(CHAINS_OF(DIRECT)::: CLOBBERS);
		else
			__asm__ volatile(CHAINS_OF(WIDE)::: CLOBBERS);
	return 2.0 * 32 * CHAINS * (double)n;
}
