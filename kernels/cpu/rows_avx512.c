/* SPDX-License-Identifier: Apache-2.0 */
#define K_SIMD_AVX512
#include "row_ops.h"

#include "quant_ops.h"

#define AVX512_OPS                                                                                 \
	.tile_f32 = linear_tile_f32_avx512, .tile_bf16 = linear_tile_bf16_avx512,                  \
	.limit_f32 = limit_f32_avx512, ROW_OPS, QUANT_OPS
#define VNNI_OPS                                                                                   \
	.tile_q8 = quant_tile_q8_vnni, .tile_q4 = quant_tile_q4_vnni,                              \
	.limit_int8 = limit_int8_vnni, .mla_queries_int8 = mla_queries_int8_fours,                 \
	.mla_scores_int8 = mla_scores_int8_vnni, .mla_values_int8 = mla_values_int8_vnni

const struct cpu_isa cpu_isa_avx512 = {
	.name = "cpu-avx512",
	AVX512_OPS,
	.tile_q8 = quant_tile_q8_avx2,
	.tile_q4 = quant_tile_q4_avx2,
	.limit_int8 = limit_int8_avx2,
	.mla_queries_int8 = mla_queries_int8_pairs,
	.mla_scores_int8 = mla_scores_int8_avx2,
	.mla_values_int8 = mla_values_int8_avx2,
	.mla_scores_bf16 = mla_scores_bf16_avx512,
	.mla_values_bf16 = mla_values_bf16_avx512,
	.limit_bf16 = limit_f32_avx512,
};

const struct cpu_isa cpu_isa_vnni = {
	.name = "cpu-avx512-vnni",
	AVX512_OPS,
	VNNI_OPS,
	.mla_scores_bf16 = mla_scores_bf16_avx512,
	.mla_values_bf16 = mla_values_bf16_avx512,
	.limit_bf16 = limit_f32_avx512,
};

const struct cpu_isa cpu_isa_bf16 = {
	.name = "cpu-avx512-vnni-bf16",
	AVX512_OPS,
	VNNI_OPS,
	.mla_scores_bf16 = mla_scores_bf16_bf16,
	.mla_values_bf16 = mla_values_bf16_bf16,
	.limit_bf16 = limit_bf16_bf16,
};
