/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

#include "cpu.h"

#define FMA(i) "vfmadd231ps %1, %1, %%zmm" #i "\n\t"

double limit_f32_avx512(uint64_t n)
{
	double ops = 2.0 * 16 * LIMIT_CHAINS * (double)n;

	LIMIT_ROUNDS(n, _mm512_set1_ps(1.0f), FMA);
	return ops;
}
