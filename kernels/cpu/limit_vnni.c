/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

#include "cpu.h"

#define DOT(i) "vpdpbusd %1, %1, %%zmm" #i "\n\t"

double limit_int8_vnni(uint64_t n, bool direct)
{
	double ops = 2.0 * 64 * LIMIT_CHAINS * (double)n;

	(void)direct;
	LIMIT_ROUNDS(n, _mm512_set1_epi8(1), DOT);
	return ops;
}
