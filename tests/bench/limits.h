#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do at most, for figures to be a share of. */
#include <stddef.h>
#include <stdint.h>

/** limit_read() - read every line of @data once; the return value keeps the loads alive. */
uint64_t limit_read(const uint64_t *data, size_t n);
/** limit_fma_avx2() - @n rounds of independent multiply-adds; returns their number of FLOP. */
double limit_fma_avx2(uint64_t n, float *sink);
double limit_fma_avx512(uint64_t n, float *sink);
