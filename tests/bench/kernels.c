/* SPDX-License-Identifier: Apache-2.0 */
/* Products and attention at the shapes of DeepSeek-V2-Lite, each as a share of what this machine can
 * do, measured in the same loop: reading memory (one row) or multiplying (many).
 *
 *   bench-kernels [THREADS [CPU_MASK]]
 *
 * Weights are cold: matrices are used in turn, 300 MB of them. Figures are medians of ROUNDS. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/cpu.h"
#include "kernels.h"
#include "limit.h"

#define ROUNDS     7
#define COLD_BYTES (300u << 20)

struct bench {
	struct kernels *k;
	struct limits *limits;
};

/* One thread is timed by its own CPU clock, so that neighbours on the machine do not count; several
 * can only be timed by the wall. */
static double now(const struct bench *b)
{
	struct timespec t;

	clock_gettime(b->k->n_threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double median(double *x)
{
	qsort(x, ROUNDS, sizeof(*x), compare);
	return x[ROUNDS / 2];
}

static double limit_bytes(struct bench *b)
{
	double t = now(b), bytes = limits_read(b->limits);

	return bytes / (now(b) - t);
}

static double limit_flop(struct bench *b, enum k_type type)
{
	double t = now(b);
	double n = type >= K_Q8 ? limits_int8(b->limits, type) : limits_float(b->limits, type);

	return n / (now(b) - t);
}

static int some_row(void *ctx, uint32_t row, float *ret)
{
	const uint32_t *n = ctx;

	for (uint32_t i = 0; i < *n; i++)
		ret[i] = (float)((row * 31 + i * 17) % 64) / 64.0f - 0.5f;
	return 0;
}

static struct k_weight *weight(struct bench *b, uint32_t n_mat, uint32_t n_out, uint32_t n_in,
			       enum k_type type)
{
	struct k_source src = {n_mat, n_out, n_in, type, some_row, &n_in};
	struct k_weight *w = NULL;

	if (b->k->weight_pack(b->k, &w, &src) < 0)
		exit(1);
	return w;
}

/* Quantising is work; a copy is as cold as the first. */
static struct k_weight *weight_copy(struct bench *b, const struct k_weight *w)
{
	struct k_weight *ret = NULL;

	if (b->k->weight_copy(b->k, &ret, w) < 0)
		exit(1);
	return ret;
}

static struct k_buffer *buffer(struct bench *b, uint32_t rows, uint32_t width)
{
	float *x = calloc((size_t)rows * width, sizeof(*x));
	struct k_buffer *ret = NULL;

	if (!x || b->k->buffer_new(b->k, &ret, rows, width) < 0)
		exit(1);
	for (size_t i = 0; i < (size_t)rows * width; i++)
		x[i] = (float)(i % 97) / 97.0f - 0.5f;
	b->k->upload(b->k, ret, 0, x, rows);
	free(x);
	return ret;
}

/* A step of @rows generated or prompt rows behind @context positions. */
struct bench_step {
	struct k_step step;
	struct k_segment seg;
	struct k_pool pool;
	uint64_t offset;
	uint32_t *ids, *positions, *pages;
};

static void step_init(struct bench_step *s, uint32_t rows, uint32_t context, bool generated,
		      enum k_entry entry, uint32_t row_bytes)
{
	uint32_t n_pages = (context + rows + K_TILE_POSITIONS - 1) / K_TILE_POSITIONS;

	*s = (struct bench_step){0};
	s->ids = calloc(rows, sizeof(*s->ids));
	s->positions = calloc(rows, sizeof(*s->positions));
	s->pages = calloc(n_pages, sizeof(*s->pages));
	s->pool = (struct k_pool){
		.stride = (uint64_t)K_TILE_POSITIONS * row_bytes,
		.n_pages = n_pages,
		.stream_offset = &s->offset,
		.n_streams = 1,
		.row_bytes = row_bytes,
		.entry = entry,
	};
	s->pool.data = calloc(n_pages, s->pool.stride);
	if (!s->ids || !s->positions || !s->pages || !s->pool.data)
		exit(1);
	for (uint32_t i = 0; i < n_pages; i++)
		s->pages[i] = i;
	for (uint32_t i = 0; i < rows; i++)
		s->positions[i] = context + i;
	for (size_t i = 0; i < n_pages * s->pool.stride / 2; i++)
		((uint16_t *)s->pool.data)[i] = bf16_from_f32((float)(i % 89) / 89.0f - 0.5f);
	s->seg = (struct k_segment){0, rows, context, generated, s->pages};
	s->step = (struct k_step){rows, 1, s->ids, s->positions, &s->seg};
}

static void step_done(struct bench_step *s)
{
	free(s->ids);
	free(s->positions);
	free(s->pages);
	free(s->pool.data);
}

static void bench_linear(struct bench *b, enum k_type type, uint32_t rows, uint32_t n_out,
			 uint32_t n_in)
{
	static const char *const names[_K_TYPE_MAX] = {"f32", "bf16", "q8", "q4"};
	struct k_source shape = {.n_mat = 1, .n_out = n_out, .n_in = n_in, .type = type};
	uint64_t bytes = 0;
	uint32_t n = kernels_cpu_weight_bytes(&shape, &bytes) < 0
			     ? 0
			     : (uint32_t)(COLD_BYTES / bytes) + 1;
	struct k_weight **w = calloc(n, sizeof(*w));
	struct k_buffer *x = buffer(b, rows, n_in), *y = buffer(b, rows, n_out);
	double speed[ROUNDS], share[ROUNDS];
	struct bench_step s;

	if (!w)
		exit(1);
	for (uint32_t i = 0; i < n; i++)
		w[i] = i ? weight_copy(b, w[0]) : weight(b, 1, n_out, n_in, type);
	step_init(&s, rows, 0, false, K_ENTRY_BF16, 32);
	b->k->step_begin(b->k, &s.step, &s.pool);
	for (uint32_t r = 0; r < ROUNDS; r++) {
		uint32_t use = rows < 16 ? n : 1 + n * 16 / (rows * 16);
		double limit = rows < 4 ? limit_bytes(b) : limit_flop(b, type), t = now(b);

		for (uint32_t i = 0; i < use; i++)
			b->k->linear(b->k, y, x, w[i]);
		t = now(b) - t;
		speed[r] = (rows < 4 ? (double)bytes : 2.0 * rows * n_out * n_in) * use / t;
		share[r] = speed[r] / limit;
	}
	printf("linear %-4s M=%-3u %ux%u  %7.1f %s  %3.0f%% of limit\n", names[type], rows, n_out,
	       n_in, median(speed) * 1e-9, rows < 4 ? "GB/s" : "GOP/s", median(share) * 100);
	for (uint32_t i = 0; i < n; i++)
		b->k->weight_free(b->k, w[i]);
	free(w);
	b->k->buffer_free(b->k, x);
	b->k->buffer_free(b->k, y);
	step_done(&s);
}

/* One layer of V2-Lite's attention: 16 heads, 128 + 64, values of 128, latents of 512. */
static void bench_attention(struct bench *b, bool generated, enum k_entry entry, uint32_t rows,
			    uint32_t context)
{
	static const struct {
		const char *name;
		uint32_t row_bytes;
	} entries[] = {{"f32", 2304}, {"bf16", 1152}, {"int8", 656}};
	struct k_mla m = {16, 128, 64, 128, 512, 0.1147f, 1e-6f, context + rows, NULL, NULL};
	struct k_weight *kv_b = weight(b, 1, 16 * 256, 512, K_BF16);
	struct k_weight *uk = weight(b, 16, 512, 128, K_BF16),
			*uv = weight(b, 16, 128, 512, K_BF16);
	struct k_buffer *q = buffer(b, rows, 16 * 192), *out = buffer(b, rows, 16 * 128);
	double seconds[ROUNDS], share[ROUNDS], flop;
	double seen = (double)rows * (context + (rows + 1) / 2.0);
	struct bench_step s;

	if (generated)
		flop = 2.0 * 16 * (seen * 1088 + (double)rows * 512 * 256);
	else
		flop = 2.0 * 16 * (seen * 320 + (double)(context + rows) * 512 * 256);
	step_init(&s, rows, context, generated, entry, entries[entry].row_bytes);
	b->k->step_begin(b->k, &s.step, &s.pool);
	for (uint32_t r = 0; r < ROUNDS; r++) {
		double limit = limit_flop(b, entry == K_ENTRY_F32 ? K_F32 : K_BF16), t = now(b);

		if (generated)
			b->k->mla_decode(b->k, out, q, uk, uv, &m, 0);
		else
			b->k->mla_prefill(b->k, out, q, kv_b, &m, 0);
		seconds[r] = now(b) - t;
		share[r] = flop / seconds[r] / limit;
	}
	printf("%s %-4s rows=%-3u context=%-5u  %8.3f ms/layer  %3.0f%% of limit\n",
	       generated ? "mla_decode " : "mla_prefill", entries[entry].name, rows, context,
	       median(seconds) * 1e3, median(share) * 100);
	b->k->weight_free(b->k, kv_b);
	b->k->weight_free(b->k, uk);
	b->k->weight_free(b->k, uv);
	b->k->buffer_free(b->k, q);
	b->k->buffer_free(b->k, out);
	step_done(&s);
}

int main(int argc, char **argv)
{
	static const uint32_t rows[] = {1, 2, 4, 8, 16, 64, 256};
	struct kernels_config cfg = {
		.n_threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : 0,
		.cpu_mask = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : UINT32_MAX,
	};
	struct bench b = {};

	if (kernels_cpu_new(&b.k, &cfg) < 0 || limits_new(&b.limits, &cfg) < 0)
		return 1;
	printf("%s, %u threads: reads %.1f GB/s, multiplies %.1f GFLOP/s, bf16 %.1f, int8 %.1f GOP/s, with q4 %.1f\n",
	       b.k->name, b.k->n_threads, limit_bytes(&b) * 1e-9, limit_flop(&b, K_F32) * 1e-9,
	       limit_flop(&b, K_BF16) * 1e-9, limit_flop(&b, K_Q8) * 1e-9,
	       limit_flop(&b, K_Q4) * 1e-9);
	for (uint32_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		bench_linear(&b, K_BF16, rows[i], 2816, 2048);
		bench_linear(&b, K_F32, rows[i], 2816, 2048);
		bench_linear(&b, K_Q8, rows[i], 2816, 2048);
		bench_linear(&b, K_Q4, rows[i], 2816, 2048);
	}
	for (enum k_entry e = K_ENTRY_F32; e <= K_ENTRY_INT8; e++) {
		bench_attention(&b, true, e, 1, 1024);
		bench_attention(&b, true, e, 1, 4096);
		bench_attention(&b, true, e, 8, 4096);
	}
	bench_attention(&b, false, K_ENTRY_BF16, 256, 0);
	bench_attention(&b, false, K_ENTRY_BF16, 512, 4096);
	limits_free(b.limits);
	b.k->free(b.k);
	return 0;
}
