/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_rounds.h"

#define CHAINS 12 /* more than latency times ports */

/* In assembly, or the compiler sees that every round does the same. */
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
