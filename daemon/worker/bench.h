#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* `dsd-worker --bench ...`: how fast a model runs here, beside what this machine could do at most. */
#include <stdbool.h>
#include <stdint.h>

#include "layout/channel.h"
#include "layout/page.h"

struct error;

#define BENCH_LIST_MAX 16u

struct bench_list {
	uint32_t n, items[BENCH_LIST_MAX];
};

struct bench_options {
	const char *shape; /* a name of bench_shape.h, a config.json or a model directory */
	enum control_weights weights;
	enum page_entry entry;           /* of the cache; _PAGE_ENTRY_MAX: what fits the weights */
	uint32_t prompt, gen, n_threads; /* tokens; 0 threads: one for each core */
	uint32_t cpu_mask;               /* instruction sets allowed */
	struct bench_list contexts, parallel;
	double price_per_hour; /* 0: none */
	uint64_t memory_bytes; /* for weights and cache; 0: what is available */
	bool json, quality;
};

/**
 * bench_parse() - the words behind --bench
 * Return: 0; -EINVAL with the sentence.
 */
int bench_parse(struct bench_options *ret, int n, char **words, struct error *err);
/** bench_weights_name() - as --quant has it. */
const char *bench_weights_name(enum control_weights weights);
/**
 * bench_run() - measure, and print a table or one JSON object on standard output
 * Return: 0; -errno with the sentence: no such shape, no memory, a model this version does not run.
 */
int bench_run(const struct bench_options *o, struct error *err);
