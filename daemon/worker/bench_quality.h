#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What quantised weights cost in quality, against f32 weights of the same model. */
#include <stdint.h>

struct error;
struct files;
struct kernels_config;

struct bench_quality {
	const char *weights;
	uint32_t n_tokens; /* compared */
	double kl;         /* mean KL divergence in nats of the next token, from f32 */
	double top1;       /* share of tokens where both find the same one the likeliest */
	uint64_t weight_bytes;
};

#define BENCH_QUALITY_MAX 3u /* bf16, q8, q4 */

/**
 * bench_quality_run() - compare next-token distributions over texts that the f32 model wrote itself
 *
 * The f32 model draws sequences at temperature 1; every precision, f32 too, then reads them as prompts.
 * Cached rows have the entry that each would have by default: f32, and bf16 for all others.
 *
 * Return: 0; as load_open() and load_pack().
 */
int bench_quality_run(struct bench_quality ret[static BENCH_QUALITY_MAX], const struct files *files,
		      const struct kernels_config *cpu, struct error *err);
