/* SPDX-License-Identifier: Apache-2.0 */
/* bench: how fast a model runs on this machine, measured by the worker binary. */
#include <stddef.h>

#include "output.h"
#include "verbs.h"
#include "worker.h"

struct bench {
	const char *shape, *quant, *entry, *prompt, *gen, *context, *parallel, *threads, *cpu_mask,
		*memory, *price;
	bool quality;
};

static const struct arg_option options[] = {
	{"--shape", "NAME",
	 "deepseek-v2-lite (default), deepseek-v2, deepseek-v3, a config.json or a model directory",
	 ARG_STRING, .offset = offsetof(struct bench, shape)},
	{"--quant", "TYPE", "weights: f32, bf16, q8 or q4 (default)", ARG_STRING,
	 .offset = offsetof(struct bench, quant)},
	{"--entry", "TYPE", "cache: f32, bf16 or int8; default: f32 for f32 weights, else bf16",
	 ARG_STRING, .offset = offsetof(struct bench, entry)},
	{"--prompt", "N", "tokens of the prompt; default 512, 0: none", ARG_STRING,
	 .offset = offsetof(struct bench, prompt)},
	{"--gen", "N", "tokens of each generating stream; default 32, 0: none", ARG_STRING,
	 .offset = offsetof(struct bench, gen)},
	{"--context", "N,...", "tokens already cached, beside none at all; default 4096",
	 ARG_STRING, .offset = offsetof(struct bench, context)},
	{"--parallel", "P,...", "streams that generate together; default 1,8,16", ARG_STRING,
	 .offset = offsetof(struct bench, parallel)},
	{"--threads", "N", "default: one for each core", ARG_STRING,
	 .offset = offsetof(struct bench, threads)},
	{"--cpu-mask", "N",
	 "instruction sets allowed: 1 AVX2, 2 AVX-512, 4 VNNI, 8 BF16, added up; default: all",
	 ARG_STRING, .offset = offsetof(struct bench, cpu_mask)},
	{"--memory", "MIB", "for weights and cache; default: what is available", ARG_STRING,
	 .offset = offsetof(struct bench, memory)},
	{"--price-per-hour", "P", "of this machine: shows what a million tokens cost", ARG_STRING,
	 .offset = offsetof(struct bench, price)},
	{"--quality", NULL, "compare bf16, q8, q4 and an int8 cache with f32 instead", ARG_FLAG,
	 .offset = offsetof(struct bench, quality)},
};

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct bench *b = data;
	char *argv[2 * N_OPTIONS(options) + 4] = {NULL, (char *)"--bench"};
	size_t n = 2;

	if (n_args > 0)
		return say(STATUS_USAGE, "bench: unexpected argument '%s'", args[0]);
	for (size_t i = 0; i < N_OPTIONS(options); i++) {
		const char *value;

		if (options[i].kind != ARG_STRING)
			continue;
		value = *(const char *const *)((const char *)b + options[i].offset);
		if (!value)
			continue;
		argv[n++] = (char *)options[i].name;
		argv[n++] = (char *)value;
	}
	if (b->quality)
		argv[n++] = (char *)"--quality";
	if (global->json)
		argv[n++] = (char *)"--json";
	return worker_exec(argv);
}

const struct verb verb_bench = {
	.name = "bench",
	.arguments = "",
	.summary = "Measure how fast a model runs here, and how near to what the machine can do",
	.details =
		"Needs no daemon; dsd-worker does the work. A shape gets made-up weights. One whose weights\n"
		"do not fit is built with as many layers as do, and they are used in turn.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct bench),
	.run = run,
};
