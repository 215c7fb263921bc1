/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

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
