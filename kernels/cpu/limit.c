/* SPDX-License-Identifier: Apache-2.0 */
#include "limit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

#define ROUNDS 1000000u /* some milliseconds */
#define CHAINS 8        /* of the scalar forms */

struct limits {
	struct threads *threads;
	const struct cpu_isa *isa;
	enum k_type type;  /* of the round under way */
	uint64_t *memory;  /* LIMITS_READ_BYTES */
	struct sink *done; /* [n_threads] */
};

/* What each thread did, and a value that keeps the work alive; a line each. */
struct sink {
	double n;
	uint64_t value;
	uint8_t pad[LINE - sizeof(double) - sizeof(uint64_t)];
};

static uint64_t read_all(const uint64_t *data, size_t n)
{
	uint64_t sum[8] = {0};

	for (size_t i = 0; i + 8 <= n; i += 8) {
		__builtin_prefetch(data + i + 512);
		for (int j = 0; j < 8; j++)
			sum[j] ^= data[i + j];
	}
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

double limit_f32_scalar(uint64_t n)
{
	float x[CHAINS] = {1, 2, 3, 4, 5, 6, 7, 8};

	for (uint64_t r = 0; r < n; r++)
		for (int i = 0; i < CHAINS; i++)
			x[i] = x[i] * 0.999f + 0.001f;
	__asm__ volatile("" ::"m"(x)); /* somebody wants it */
	return 2.0 * CHAINS * (double)n;
}

double limit_int8_scalar(uint64_t n, bool direct)
{
	int32_t sum[CHAINS] = {0};

	(void)direct;
	for (uint64_t r = 0; r < n; r++)
		for (int i = 0; i < CHAINS; i++)
			sum[i] += (int8_t)(r + (uint64_t)i) * (int8_t)(r >> 8);
	__asm__ volatile("" ::"m"(sum));
	return 2.0 * CHAINS * (double)n;
}

static void read_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct limits *l = ctx;
	uint32_t begin, end;

	(void)n_threads;
	while (threads_take(l->threads, LIMITS_READ_BYTES / LINE, 1, &begin, &end)) {
		size_t n = (size_t)(end - begin) * (LINE / sizeof(*l->memory));

		l->done[thread].n += (double)(end - begin) * LINE;
		l->done[thread].value ^=
			read_all(l->memory + (size_t)begin * (LINE / sizeof(*l->memory)), n);
	}
}

static void float_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct limits *l = ctx;
	double (*limit)(uint64_t n) = l->type == K_F32 ? l->isa->limit_f32 : l->isa->limit_bf16;
	uint32_t begin, end;

	while (threads_take(l->threads, n_threads * ROUNDS, 1, &begin, &end))
		l->done[thread].n += limit(end - begin);
}

static void int8_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct limits *l = ctx;
	uint32_t begin, end;

	while (threads_take(l->threads, n_threads * ROUNDS, 1, &begin, &end))
		l->done[thread].n += l->isa->limit_int8(end - begin, l->type == K_Q4);
}

static double run(struct limits *l, threads_fn part)
{
	double sum = 0;

	for (uint32_t i = 0; i < threads_count(l->threads); i++)
		l->done[i].n = 0;
	threads_run(l->threads, UINT64_MAX, part, l);
	for (uint32_t i = 0; i < threads_count(l->threads); i++)
		sum += l->done[i].n;
	return sum;
}

int limits_new(struct limits **ret, const struct kernels_config *cfg)
{
	struct limits *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->isa = cpu_isa_pick(cfg->cpu_mask);
	r = cpu_threads_new(&l->threads, cfg);
	if (r >= 0) {
		l->memory = cpu_alloc(LIMITS_READ_BYTES);
		l->done = calloc(threads_count(l->threads), sizeof(*l->done));
		if (!l->memory || !l->done)
			r = -ENOMEM;
	}
	if (r < 0) {
		limits_free(l);
		return r;
	}
	memset(l->memory, 1, LIMITS_READ_BYTES);
	*ret = l;
	return 0;
}

struct limits *limits_free(struct limits *l)
{
	if (!l)
		return NULL;
	threads_free(l->threads);
	free(l->memory);
	free(l->done);
	free(l);
	return NULL;
}

double limits_read(struct limits *l)
{
	return run(l, read_part);
}

double limits_float(struct limits *l, enum k_type type)
{
	l->type = type;
	return run(l, float_part);
}

double limits_int8(struct limits *l, enum k_type type)
{
	l->type = type;
	return run(l, int8_part);
}
