/* SPDX-License-Identifier: Apache-2.0 */
/* The scalar reference of every inner kernel: what the others must equal, bit for bit. */
#include "row_ops.h"

#include "quant_ops.h"

const struct cpu_isa cpu_isa_scalar = {
	.name = "cpu-scalar",
	.tile_f32 = linear_tile_f32_scalar,
	.tile_bf16 = linear_tile_bf16_scalar,
	.tile_q8 = quant_tile_q8_scalar,
	.tile_q4 = quant_tile_q4_scalar,
	.mla_scores_bf16 = mla_scores_bf16_scalar,
	.mla_values_bf16 = mla_values_bf16_scalar,
	.limit_f32 = limit_f32_scalar,
	.limit_bf16 = limit_f32_scalar,
	.limit_int8 = limit_int8_scalar,
	.mla_queries_int8 = mla_queries_int8_pairs,
	.mla_scores_int8 = mla_scores_int8_scalar,
	.mla_values_int8 = mla_values_int8_scalar,
	ROW_OPS,
	QUANT_OPS,
};
