/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#include <immintrin.h>

#include "cpu.h"

#define FMA(i) "vfmadd231ps %1, %1, %%ymm" #i "\n\t"
#define DIRECT(i)                                                                                  \
	"vpmaddubsw %1, %1, %%ymm12\n\t"                                                           \
	"vpaddw %%ymm12, %%ymm" #i ", %%ymm" #i "\n\t"
#define WIDE(i)                                                                                    \
	"vpmaddubsw %1, %1, %%ymm12\n\t"                                                           \
	"vpmaddwd %1, %%ymm12, %%ymm12\n\t"                                                        \
	"vpaddd %%ymm12, %%ymm" #i ", %%ymm" #i "\n\t"

double limit_f32_avx2(uint64_t n)
{
	double ops = 2.0 * 8 * LIMIT_CHAINS * (double)n;

	LIMIT_ROUNDS(n, _mm256_set1_ps(1.0f), FMA);
	return ops;
}

double limit_int8_avx2(uint64_t n, bool direct)
{
	double ops = 2.0 * 32 * LIMIT_CHAINS * (double)n;

	if (direct)
		LIMIT_ROUNDS(n, _mm256_set1_epi8(1), DIRECT);
	else
		LIMIT_ROUNDS(n, _mm256_set1_epi8(1), WIDE);
	return ops;
}
