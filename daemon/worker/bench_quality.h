#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What quantised weights cost in quality, against f32 weights of the same model. */
#include <stdint.h>

struct error;
struct files;
struct kernels_config;

struct bench_quality {
	const char *weights, *entry; /* how weights and cached rows are kept */
	uint32_t n_tokens;           /* compared */
	double kl;                   /* mean KL divergence in nats of the next token, from f32 */
	double top1; /* share of tokens where both find the same one the likeliest */
	uint64_t weight_bytes;
};

#define BENCH_QUALITY_MAX 4u /* weights in bf16, q8, q4; f32 weights over int8 entries */

/**
 * bench_quality_run() - compare next-token distributions over texts that the f32 model wrote itself
 *
 * The f32 model draws sequences at temperature 1; every precision, f32 too, then reads them on the
 * path that generated rows take. Cached rows have the entry that each would have by default, f32 or
 * bf16; the last kind has 8 bits there and nothing else rounded beside.
 *
 * Return: 0; as load_open() and load_pack().
 */
int bench_quality_run(struct bench_quality ret[static BENCH_QUALITY_MAX], const struct files *files,
		      const struct kernels_config *cpu, struct error *err);
