#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do at most, for figures to be a share of. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** limit_read() - read every line of @data once; the return value keeps the loads alive. */
uint64_t limit_read(const uint64_t *data, size_t n);
/** limit_fma_avx2() - @n rounds of independent multiply-adds; returns their number of FLOP. */
double limit_fma_avx2(uint64_t n, float *sink);
double limit_fma_avx512(uint64_t n, float *sink);
/**
 * limit_int8_avx2() - @n rounds of products of bytes in registers; returns their number of operations
 * @direct: pmaddubsw and an addition of sixteen bits, all that 4-bit weights need most of the time;
 *          else pmaddwd to 32 bits with them, as 8-bit weights do
 */
double limit_int8_avx2(uint64_t n, bool direct);
/** limit_int8_vnni() - the same of vpdpbusd */
double limit_int8_vnni(uint64_t n);
