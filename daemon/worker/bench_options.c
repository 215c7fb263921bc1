/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"

static const char *const names[_CONTROL_WEIGHTS_MAX] = {
	[CONTROL_WEIGHTS_F32] = "f32",
	[CONTROL_WEIGHTS_BF16] = "bf16",
	[CONTROL_WEIGHTS_Q8] = "q8",
	[CONTROL_WEIGHTS_Q4] = "q4",
};

const char *bench_weights_name(enum control_weights weights)
{
	return names[weights];
}

static int parse_u32(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *ret,
		     struct error *err)
{
	char *end;
	unsigned long long x = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || x < min || x > max)
		return error_set(err, -EINVAL, "%s: got '%s', want a whole number from %u to %u",
				 name, text, min, max);
	*ret = (uint32_t)x;
	return 0;
}

static int parse_list(const char *name, const char *text, uint32_t min, uint32_t max,
		      struct bench_list *ret, struct error *err)
{
	_cleanup_(freep) char *copy = strdup(text);
	char *rest = copy;
	int r = copy ? 0 : -ENOMEM;

	ret->n = 0;
	while (r >= 0 && rest) {
		char *item = strsep(&rest, ",");

		if (ret->n == BENCH_LIST_MAX)
			return error_set(err, -EINVAL, "%s: want at most %u numbers", name,
					 BENCH_LIST_MAX);
		r = parse_u32(name, item, min, max, &ret->items[ret->n++], err);
	}
	return r;
}

static int parse_weights(const char *text, enum control_weights *ret, struct error *err)
{
	for (uint32_t i = 0; i < _CONTROL_WEIGHTS_MAX; i++) {
		if (!names[i] || strcmp(text, names[i]) != 0)
			continue;
		*ret = (enum control_weights)i;
		return 0;
	}
	return error_set(err, -EINVAL, "--quant: got '%s', want f32, bf16, q8 or q4", text);
}

static int parse_entry(const char *text, enum page_entry *ret, struct error *err)
{
	for (enum page_entry e = 0; e < _PAGE_ENTRY_MAX; e++) {
		if (strcmp(text, page_entry_name(e)) != 0)
			continue;
		*ret = e;
		return 0;
	}
	return error_set(err, -EINVAL, "--entry: got '%s', want f32, bf16 or int8", text);
}

static int parse_price(const char *text, double *ret, struct error *err)
{
	char *end;

	*ret = strtod(text, &end);
	if (text[strspn(text, "0123456789.")] || !*text || *end)
		return error_set(err, -EINVAL, "--price-per-hour: got '%s', want a number", text);
	return 0;
}

static int parse_value(struct bench_options *o, const char *name, const char *value,
		       struct error *err)
{
	const uint32_t tokens_max = 1u << 20;
	uint32_t mib;
	int r;

	if (strcmp(name, "--shape") == 0) {
		o->shape = value;
		return 0;
	}
	if (strcmp(name, "--quant") == 0)
		return parse_weights(value, &o->weights, err);
	if (strcmp(name, "--entry") == 0)
		return parse_entry(value, &o->entry, err);
	if (strcmp(name, "--prompt") == 0)
		return parse_u32(name, value, 0, tokens_max, &o->prompt, err);
	if (strcmp(name, "--gen") == 0)
		return parse_u32(name, value, 0, tokens_max, &o->gen, err);
	if (strcmp(name, "--threads") == 0)
		return parse_u32(name, value, 1, 1024, &o->n_threads, err);
	if (strcmp(name, "--cpu-mask") == 0)
		return parse_u32(name, value, 0, UINT32_MAX, &o->cpu_mask, err);
	if (strcmp(name, "--context") == 0)
		return parse_list(name, value, 0, tokens_max, &o->contexts, err);
	if (strcmp(name, "--parallel") == 0)
		return parse_list(name, value, 1, 1024, &o->parallel, err);
	if (strcmp(name, "--price-per-hour") == 0)
		return parse_price(value, &o->price_per_hour, err);
	if (strcmp(name, "--memory") == 0) {
		r = parse_u32(name, value, 1, UINT32_MAX, &mib, err);
		o->memory_bytes = r < 0 ? 0 : (uint64_t)mib << 20;
		return r;
	}
	return error_set(err, -EINVAL, "--bench: unknown option '%s'", name);
}

int bench_parse(struct bench_options *ret, int n, char **words, struct error *err)
{
	struct bench_options o = {
		.shape = "deepseek-v2-lite",
		.weights = CONTROL_WEIGHTS_Q4,
		.entry = _PAGE_ENTRY_MAX,
		.prompt = 512,
		.cpu_mask = UINT32_MAX,
		.gen = 32,
		.contexts = {1, {4096}},
		.parallel = {3, {1, 8, 16}},
	};
	int r;

	for (int i = 0; i < n; i++) {
		if (strcmp(words[i], "--json") == 0) {
			o.json = true;
		} else if (strcmp(words[i], "--quality") == 0) {
			o.quality = true;
		} else if (i + 1 == n) {
			return error_set(err, -EINVAL, "%s: want a value", words[i]);
		} else {
			r = parse_value(&o, words[i], words[i + 1], err);
			if (r < 0)
				return r;
			i++;
		}
	}
	*ret = o;
	return 0;
}
