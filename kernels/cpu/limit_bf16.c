/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

#include "cpu.h"

#define DOT(i) "vdpbf16ps %1, %1, %%zmm" #i "\n\t"

/* Pairs of 1.0. */
double limit_bf16_bf16(uint64_t n)
{
	double ops = 2.0 * 32 * LIMIT_CHAINS * (double)n;

	LIMIT_ROUNDS(n, _mm512_set1_epi16(0x3f80), DOT);
	return ops;
}
