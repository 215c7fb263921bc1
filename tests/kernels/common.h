#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tests share: variants of this CPU, random numbers, guarded arrays. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "cpu/cpu.h"
#include "kernels.h"

#define N_ELEMENTS(a) (sizeof(a) / sizeof((a)[0]))

struct variant {
	const char *name;
	uint32_t needs;
	const struct cpu_isa *isa;
};

/* Every instruction set there is a table for, the reference first. */
static const struct variant variants[] = {
	{"scalar", 0, &cpu_isa_scalar},
#ifdef K_HAVE_X86
	{"avx2", K_CPU_AVX2, &cpu_isa_avx2},
	{"avx512", K_CPU_AVX512, &cpu_isa_avx512},
	{"vnni", K_CPU_AVX512 | K_CPU_VNNI, &cpu_isa_vnni},
	{"bf16", K_CPU_AVX512 | K_CPU_VNNI | K_CPU_BF16, &cpu_isa_bf16},
#endif
};

#define EXIT_SKIPPED 77

/* NULL, and a line that says why, where this CPU cannot run it. */
static inline const struct variant *variant_named(const char *name)
{
	for (uint32_t i = 0; i < N_ELEMENTS(variants); i++) {
		const struct variant *v = &variants[i];

		if (strcmp(v->name, name) != 0)
			continue;
		if ((kernels_cpu_detect() & v->needs) == v->needs)
			return v;
		break;
	}
	printf("skipped: this CPU does not have %s\n", name);
	return NULL;
}

/* Uniform in [-1, 1). */
static inline float uniform(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (float)(*state >> 40) / (float)(1 << 23) - 1.0f;
}

static inline float *random_array(uint64_t seed, size_t n, float scale)
{
	float *x = malloc(n * sizeof(*x));
	uint64_t state = seed * 7919 + 1;

	assert_non_null(x);
	for (size_t i = 0; i < n; i++)
		x[i] = uniform(&state) * scale;
	return x;
}

/* Matrices as published, handed over row by row. */
struct matrix {
	uint32_t n_mat, n_out, n_in;
	float *v;
};

static inline int matrix_row(void *ctx, uint32_t row, float *ret)
{
	const struct matrix *a = ctx;

	memcpy(ret, a->v + (size_t)row * a->n_in, a->n_in * sizeof(*ret));
	return 0;
}

static inline struct matrix matrix_random(uint64_t seed, uint32_t n_mat, uint32_t n_out,
					  uint32_t n_in)
{
	return (struct matrix){
		n_mat, n_out, n_in,
		random_array(seed, (size_t)n_mat * n_out * n_in, 1.0f / sqrtf((float)n_in))};
}

static inline struct k_weight *matrix_pack(struct kernels *k, struct matrix *a, enum k_type type)
{
	struct k_source src = {a->n_mat, a->n_out, a->n_in, type, matrix_row, a};
	struct k_weight *w = NULL;

	assert_int_equal(k->weight_pack(k, &w, &src), 0);
	return w;
}

/* The matrix's number as a packed weight of K_F32 or K_BF16 has it. */
static inline double matrix_at(const struct matrix *a, enum k_type type, uint32_t mat, uint32_t out,
			       uint32_t in)
{
	float x = a->v[((size_t)mat * a->n_out + out) * a->n_in + in];

	return type == K_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x;
}

static inline struct k_buffer *buffer_of(struct kernels *k, const float *x, uint32_t rows,
					 uint32_t width)
{
	struct k_buffer *b = NULL;

	assert_int_equal(k->buffer_new(k, &b, rows, width), 0);
	if (x)
		k->upload(k, b, 0, x, rows);
	return b;
}

static inline struct kernels *kernels_for(uint32_t cpu_mask, uint32_t n_threads)
{
	struct kernels_config cfg = {n_threads, cpu_mask};
	struct kernels *k = NULL;

	assert_int_equal(kernels_cpu_new(&k, &cfg), 0);
	return k;
}

/* A step of rows at positions 0, 1, ... in one page-less pool: for operations without a cache. */
struct plain_step {
	struct k_step step;
	struct k_segment seg;
	struct k_pool pool;
	uint32_t ids[512], positions[512], pages[8];
};

static inline void plain_begin(struct kernels *k, struct plain_step *s, uint32_t n_rows)
{
	*s = (struct plain_step){.pool = {.n_pages = 1}};
	for (uint32_t i = 0; i < n_rows; i++)
		s->positions[i] = i;
	s->seg = (struct k_segment){0, n_rows, 0, false, s->pages};
	s->step = (struct k_step){n_rows, 1, s->ids, s->positions, &s->seg};
	assert_int_equal(k->step_begin(k, &s->step, &s->pool), 0);
}

static const enum k_type all_types[] = {K_F32, K_BF16, K_Q8, K_Q4};

/* The matrix as a packed weight of @type has it; columns are quantised each for itself, so that it
 * does not matter which matrix of a weight a row is in. */
static inline struct matrix matrix_kept(const struct matrix *a, enum k_type type)
{
	struct kernels *k = kernels_for(0, 1);
	uint32_t n = a->n_mat * a->n_out, chunk = 512;
	struct matrix one = {1, n, a->n_in, a->v}, ret = *a;
	struct k_weight *w = matrix_pack(k, &one, a->n_out == 1 && type >= K_Q8 ? K_F32 : type);
	struct k_buffer *x = buffer_of(k, NULL, chunk, a->n_in);

	ret.v = malloc((size_t)n * a->n_in * sizeof(*ret.v));
	assert_non_null(ret.v);
	for (uint32_t first = 0; first < n; first += chunk) {
		uint32_t rows = n - first < chunk ? n - first : chunk;
		struct plain_step s;

		plain_begin(k, &s, rows);
		for (uint32_t i = 0; i < rows; i++)
			s.ids[i] = first + i;
		k->embed(k, x, w);
		assert_int_equal(k->step_end(k), 0);
		k->download(k, ret.v + (size_t)first * a->n_in, x, 0, rows);
	}
	k->weight_free(k, w);
	k->buffer_free(k, x);
	k->free(k);
	return ret;
}
