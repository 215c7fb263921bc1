#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of independent operations in registers: what limit_*.c, one file per instruction set, are made of. */
#include <stdbool.h>
#include <stdint.h>

#define LIMIT_CHAINS 12 /* more than latency times ports, wherever these were measured */

/* @n > 0 rounds of @op(0) to @op(11), each a string of instructions that add to vector register 0 to 11. They find
 * @x, a vector, as %1, and may use register 12. In assembly to the last jump: a compiler sees that all rounds do the
 * same, and keeps chains in memory. @n is used up. */
#define LIMIT_ROUNDS(n, x, op)                                                                     \
	__asm__ volatile("1:\n\t" op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9)      \
				 op(10) op(11) "dec %0\n\tjnz 1b"                                  \
			 : "+r"(n)                                                                 \
			 : "x"(x)                                                                  \
			 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",   \
			   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12")
