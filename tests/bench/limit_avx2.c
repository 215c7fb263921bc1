/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "limits.h"

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
