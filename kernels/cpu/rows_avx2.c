/* SPDX-License-Identifier: Apache-2.0 */
#define K_SIMD_AVX2
#include "row_ops.h"

#include "quant_ops.h"

const struct cpu_isa cpu_isa_avx2 = {
	.name = "cpu-avx2",
	.tile_f32 = linear_tile_f32_avx2,
	.tile_bf16 = linear_tile_bf16_avx2,
	.tile_q8 = quant_tile_q8_avx2,
	.tile_q4 = quant_tile_q4_avx2,
	.mla_scores_bf16 = mla_scores_bf16_avx2,
	.mla_values_bf16 = mla_values_bf16_avx2,
	.limit_f32 = limit_f32_avx2,
	.limit_bf16 = limit_f32_avx2,
	.limit_int8 = limit_int8_avx2,
	.mla_queries_int8 = mla_queries_int8_pairs,
	.mla_scores_int8 = mla_scores_int8_avx2,
	.mla_values_int8 = mla_values_int8_avx2,
	ROW_OPS,
	QUANT_OPS,
};
