#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of independent operations in registers, one file per instruction set; each returns how many
 * operations @n rounds were. */
#include <stdbool.h>
#include <stdint.h>

double limit_fma_avx2(uint64_t n, float *sink);
double limit_fma_avx512(uint64_t n, float *sink);
/* @direct: pmaddubsw and an addition of sixteen bits; else pmaddwd to 32 bits between them. */
double limit_int8_avx2(uint64_t n, bool direct);
double limit_int8_vnni(uint64_t n); /* vpdpbusd */
