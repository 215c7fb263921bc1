/* SPDX-License-Identifier: Apache-2.0 */
#define K_SIMD_AVX512
#include "row_ops.h"

const struct cpu_isa cpu_isa_avx512 = {
	.name = "cpu-avx512",
	.tile_f32 = linear_tile_f32_avx512,
	.tile_bf16 = linear_tile_bf16_avx512,
	ROW_OPS,
};
