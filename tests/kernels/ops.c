/* SPDX-License-Identifier: Apache-2.0 */
/* Operations through the table, with the instruction set named on the command line: near the formulas in
 * doubles, and the same bits for a row alone, in a batch, on one thread and on three. */
#include <errno.h>

#include "common.h"

static uint32_t cpu_mask; /* of main()'s argument */

/* Sums of n numbers of size 1 in f32, relative to the sum of the sizes. */
#define TOLERANCE(n) ((n)*0x1p-24 + 1e-6)

static const struct {
	uint32_t n_out, n_in;
} linear_shapes[] = {{1, 1}, {1, 300}, {31, 65}, {32, 64}, {33, 1}, {100, 257}, {130, 600}};

/* What a quantised row counts in where number @j is: a number is off by half of it at most. */
static double row_step(const float *x, uint32_t n, uint32_t j)
{
	uint32_t first = j / Q_GROUP * Q_GROUP;
	double max = 0;

	for (uint32_t i = first; i < n && i < first + Q_GROUP; i++)
		max = fmax(max, fabs(x[i]));
	return max / 127;
}

static void linear_is_near_doubles_for_every_shape_and_type(void **state)
{
	static const uint64_t bits[_K_TYPE_MAX] = {32, 16, 8, 4};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(linear_shapes) * 4; i++) {
		uint32_t n_out = linear_shapes[i / 4].n_out, n_in = linear_shapes[i / 4].n_in,
			 rows = 7;
		enum k_type type = all_types[i % 4];
		struct kernels *k = kernels_for(cpu_mask, 2);
		struct matrix a = matrix_random(i, 1, n_out, n_in), kept = matrix_kept(&a, type);
		float *x = random_array(i + 99, (size_t)rows * n_in, 1.0f);
		float *y = malloc((size_t)rows * n_out * sizeof(*y));
		struct k_weight *w = matrix_pack(k, &a, type);
		struct k_buffer *bx = buffer_of(k, x, rows, n_in),
				*by = buffer_of(k, NULL, rows, n_out);
		struct plain_step s;

		plain_begin(k, &s, rows);
		k->linear(k, by, bx, w);
		assert_int_equal(k->step_end(k), 0);
		k->download(k, y, by, 0, rows);
		for (uint32_t r = 0; r < rows; r++)
			for (uint32_t o = 0; o < n_out; o++) {
				double sum = 0, size = 0, step = 0;

				for (uint32_t j = 0; j < n_in; j++) {
					double p = (double)x[r * n_in + j] * kept.v[o * n_in + j];

					sum += p;
					size += fabs(p);
					if (type >= K_Q8 && n_out > 1)
						step += row_step(x + r * n_in, n_in, j) *
							fabs(kept.v[o * n_in + j]);
				}
				assert_true(fabs(y[r * n_out + o] - sum) <=
					    TOLERANCE(n_in) * (size + step) + step / 2);
			}
		assert_true(k->weight_bytes(w) >= (uint64_t)n_out * n_in * bits[type] / 8);
		k->weight_free(k, w);
		k->buffer_free(k, bx);
		k->buffer_free(k, by);
		k->free(k);
		free(a.v);
		free(kept.v);
		free(x);
		free(y);
	}
}

/* Rows alone, in batches of 2 to 70, on 1 and 3 threads, against the scalar table on one thread. */
static void linear_bits_depend_on_the_row_alone(void **state)
{
	static const uint32_t batches[] = {1,  2,  3,  4,  5,  6,  7,  8,  9, 10,
					   11, 12, 13, 14, 15, 16, 17, 33, 70};
	const uint32_t n_out = 300, n_in = 601, max_rows = 70; /* K goes by in three runs */

	(void)state;
	for (uint32_t t = 0; t < N_ELEMENTS(all_types); t++) {
		enum k_type type = all_types[t];
		struct kernels *ref = kernels_for(0, 1);
		struct matrix a = matrix_random(t, 1, n_out, n_in);
		float *x = random_array(7, (size_t)max_rows * n_in, 1.0f);
		float *want = malloc((size_t)max_rows * n_out * sizeof(*want));
		float *got = malloc((size_t)max_rows * n_out * sizeof(*got));
		struct k_weight *w = matrix_pack(ref, &a, type);
		struct k_buffer *bx = buffer_of(ref, x, max_rows, n_in);
		struct k_buffer *by = buffer_of(ref, NULL, max_rows, n_out);
		struct plain_step s;

		plain_begin(ref, &s, max_rows);
		ref->linear(ref, by, bx, w);
		ref->download(ref, want, by, 0, max_rows);
		for (uint32_t threads = 1; threads <= 3; threads += 2) {
			struct kernels *k = kernels_for(cpu_mask, threads);

			for (uint32_t i = 0; i < N_ELEMENTS(batches); i++) {
				uint32_t n = batches[i], first = max_rows - n;

				k->upload(k, bx, 0, x + (size_t)first * n_in, n);
				plain_begin(k, &s, n);
				k->linear(k, by, bx, w);
				k->download(k, got, by, 0, n);
				assert_memory_equal(got, want + (size_t)first * n_out,
						    n * n_out * sizeof(*got));
			}
			k->free(k);
		}
		ref->weight_free(ref, w);
		ref->buffer_free(ref, bx);
		ref->buffer_free(ref, by);
		ref->free(ref);
		free(a.v);
		free(x);
		free(want);
		free(got);
	}
}

static int failing_row(void *ctx, uint32_t row, float *ret)
{
	(void)ctx;
	ret[0] = 1.0f;
	return row == 3 ? -EIO : 0;
}

static void weight_pack_refuses_shapes_and_passes_read_errors_on(void **state)
{
	struct kernels *k = kernels_for(cpu_mask, 1);
	struct matrix a = matrix_random(1, 1, 4, 4);
	const struct {
		struct k_source src;
		int want;
	} cases[] = {
		{{0, 4, 4, K_F32, matrix_row, &a}, -EINVAL},
		{{1, 0, 4, K_F32, matrix_row, &a}, -EINVAL},
		{{1, 4, 0, K_F32, matrix_row, &a}, -EINVAL},
		{{1, 4, 4, _K_TYPE_MAX, matrix_row, &a}, -EINVAL},
		{{1, 1u << 28, 4, K_F32, matrix_row, &a}, -EINVAL},
		{{UINT32_MAX, 4, 4, K_F32, matrix_row, &a}, -EINVAL},
		{{1, 4, 4, K_F32, failing_row, NULL}, -EIO},
		{{1, 4, 4, K_F32, NULL, NULL}, -EINVAL},
		{{1, 4, 4, K_F32, matrix_row, &a, (void *)(uintptr_t)8}, -EINVAL},
	};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(cases); i++) {
		struct k_weight *w = NULL;

		assert_int_equal(k->weight_pack(k, &w, &cases[i].src), cases[i].want);
		assert_null(w);
	}
	free(a.v);
	k->free(k);
}

/* Packed into memory of the caller, and taken from there once more: the same bytes, the same rows. */
static void a_weight_lies_where_it_was_told_to(void **state)
{
	static const uint32_t ids[] = {0, 69, 33};

	(void)state;
	for (enum k_type type = 0; type < _K_TYPE_MAX; type++) {
		struct kernels *k = kernels_for(cpu_mask, 2);
		struct matrix a = matrix_random(type, 1, 70, 200);
		struct k_source src = {1, 70, 200, type, matrix_row, &a};
		struct k_weight *w[3] = {matrix_pack(k, &a, type)}, *copy = NULL;
		float got[3][3 * 200];
		uint64_t bytes;
		uint8_t *memory, *before;

		assert_int_equal(kernels_cpu_weight_bytes(&src, &bytes), 0);
		assert_int_equal(bytes % K_MEMORY_ALIGN, 0);
		memory = aligned_alloc(K_MEMORY_ALIGN, bytes);
		before = malloc(bytes);
		assert_true(memory && before);
		memset(memory, 0, bytes);
		src.memory = memory;
		assert_int_equal(k->weight_pack(k, &w[1], &src), 0);
		assert_int_equal(k->weight_bytes(w[1]), bytes);
		memcpy(before, memory, bytes);
		src.read_row = NULL;
		assert_int_equal(k->weight_pack(k, &w[2], &src), 0);
		for (uint32_t i = 0; i < N_ELEMENTS(w); i++) {
			struct k_buffer *x = buffer_of(k, NULL, 3, 200);
			struct plain_step s;

			plain_begin(k, &s, 3);
			memcpy(s.ids, ids, sizeof(ids));
			k->embed(k, x, w[i]);
			assert_int_equal(k->step_end(k), 0);
			k->download(k, got[i], x, 0, 3);
			k->buffer_free(k, x);
		}
		assert_memory_equal(got[0], got[1], sizeof(got[0]));
		assert_memory_equal(got[0], got[2], sizeof(got[0]));
		assert_int_equal(k->weight_copy(k, &copy, w[2]), 0);
		for (uint32_t i = 0; i < N_ELEMENTS(w); i++)
			k->weight_free(k, w[i]);
		assert_memory_equal(memory, before, bytes); /* not given back, not written */
		k->weight_free(k, copy);                    /* memory of its own again */
		free(memory);
		free(before);
		free(a.v);
		k->free(k);
	}
}

static void embed_returns_the_rows_of_the_table(void **state)
{
	const uint32_t n_vocab = 71, hidden = 45, n = 5;
	static const uint32_t ids[] = {0, 70, 31, 32, 31};

	(void)state;
	for (uint32_t t = 0; t < 2; t++) { /* quant.c has the other types */
		enum k_type type = all_types[t];
		struct kernels *k = kernels_for(cpu_mask, 2);
		struct matrix a = matrix_random(3, 1, n_vocab, hidden);
		struct k_weight *w = matrix_pack(k, &a, type);
		struct k_buffer *x = buffer_of(k, NULL, n, hidden);
		float got[5 * 45];
		struct plain_step s;

		plain_begin(k, &s, n);
		memcpy(s.ids, ids, sizeof(ids));
		k->embed(k, x, w);
		assert_int_equal(k->step_end(k), 0);
		k->download(k, got, x, 0, n);
		for (uint32_t i = 0; i < n * hidden; i++)
			assert_true(got[i] == matrix_at(&a, type, 0, ids[i / hidden], i % hidden));
		plain_begin(k, &s, n);
		s.ids[2] = n_vocab;
		k->embed(k, x, w);
		assert_int_equal(k->step_end(k), -EINVAL);
		k->weight_free(k, w);
		k->buffer_free(k, x);
		k->free(k);
		free(a.v);
	}
}

static void rmsnorm_takes_only_the_columns_of_its_weight(void **state)
{
	struct kernels *k = kernels_for(cpu_mask, 1);
	struct matrix a = matrix_random(4, 1, 1, 19);
	float *x = random_array(5, 3 * 27, 2.0f), y[3 * 27];
	struct k_weight *w = matrix_pack(k, &a, K_F32);
	struct k_buffer *bx = buffer_of(k, x, 3, 27);
	struct plain_step s;

	(void)state;
	plain_begin(k, &s, 3);
	k->rmsnorm(k, bx, bx, w, 0.25f);
	k->download(k, y, bx, 0, 3);
	for (uint32_t r = 0; r < 3; r++) {
		double sum = 0;

		for (uint32_t i = 0; i < 19; i++)
			sum += (double)x[r * 27 + i] * x[r * 27 + i];
		for (uint32_t i = 0; i < 19; i++)
			assert_true(fabs(y[r * 27 + i] -
					 x[r * 27 + i] / sqrt(sum / 19 + 0.25) * a.v[i]) < 1e-6);
		for (uint32_t i = 19; i < 27; i++)
			assert_true(y[r * 27 + i] == x[r * 27 + i]);
	}
	k->weight_free(k, w);
	k->buffer_free(k, bx);
	k->free(k);
	free(a.v);
	free(x);
}

/* --- the router ---------------------------------------------------------------------------------- */

/* Experts that @n ids name, which is also what the kernels count. */
static uint32_t distinct(const uint32_t *ids, uint32_t n)
{
	uint32_t ret = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t before = 0;

		while (ids[before] != ids[i])
			before++;
		ret += before == i;
	}
	return ret;
}

/* Route rows whose logits are given, through an identity gate. */
static uint64_t route_logits(const float *logits, uint32_t rows, const struct k_route *r,
			     uint32_t *ids, float *weights)
{
	struct kernels *k = kernels_for(cpu_mask, 1);
	struct matrix eye = {1, r->n_experts, r->n_experts, NULL};
	uint64_t n_nan;
	struct k_buffer *x = buffer_of(k, logits, rows, r->n_experts);
	struct plain_step s;
	struct k_weight *w;

	eye.v = calloc((size_t)r->n_experts * r->n_experts, sizeof(float));
	for (uint32_t i = 0; i < r->n_experts; i++)
		eye.v[i * r->n_experts + i] = 1.0f;
	w = matrix_pack(k, &eye, K_F32);
	plain_begin(k, &s, rows);
	k->route(k, x, w, r);
	assert_int_equal(k->step_end(k), 0);
	k->routed(k, ids, weights);
	n_nan = k->n_nan_scores;
	assert_int_equal(k->n_routed, distinct(ids, rows * r->n_used));
	k->route(k, x, w, r);
	assert_int_equal(k->n_routed, 2 * distinct(ids, rows * r->n_used));
	k->weight_free(k, w);
	k->buffer_free(k, x);
	k->free(k);
	free(eye.v);
	return n_nan;
}

static void route_takes_the_best_in_order_and_the_lower_index_on_ties(void **state)
{
	static const float logits[] = {1, 3, 2, 3, -1, 2, 0, 0.5f};
	const struct k_route r = {
		.n_experts = 8, .n_used = 4, .n_group = 1, .topk_group = 1, .scale = 1.5f};
	double sum = 0;
	uint32_t ids[4];
	float weights[4];

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		sum += exp(logits[i]);
	assert_int_equal(route_logits(logits, 1, &r, ids, weights), 0);
	assert_int_equal(ids[0], 1);
	assert_int_equal(ids[1], 3);
	assert_int_equal(ids[2], 2);
	assert_int_equal(ids[3], 5);
	for (uint32_t i = 0; i < 4; i++)
		assert_true(fabs(weights[i] - 1.5 * exp(logits[ids[i]]) / sum) < 1e-6);
}

static void route_group_limit_uses_best_or_two_best(void **state)
{
	/* groups of 4: bests 5, 4, 4.5; sums of two 5, 7.9, 4.5 */
	static const float logits[] = {5, 0, 0, 0, 4, 3.9f, 0, 0, 4.5f, 0, 0, 0};
	struct k_route r = {
		.n_experts = 12, .n_used = 2, .n_group = 3, .topk_group = 1, .scale = 1};
	float bias[12] = {0}, weights[2], sum = 0;
	uint32_t ids[2];

	(void)state;
	route_logits(logits, 1, &r, ids, weights);
	assert_int_equal(ids[0], 0); /* softmax, best: group 0, and its lowest index next */
	assert_int_equal(ids[1], 1);
	r.sigmoid = r.group_top2 = r.norm_topk = true;
	r.bias = bias;
	route_logits(logits, 1, &r, ids, weights);
	assert_int_equal(ids[0], 4);
	assert_int_equal(ids[1], 5);
	sum = weights[0] + weights[1];
	assert_true(fabsf(sum - 1.0f) < 1e-6f);
	/* A bias chooses but does not weigh. */
	bias[11] = 3.0f;
	r.scale = 2.5f;
	route_logits(logits, 1, &r, ids, weights);
	assert_int_equal(ids[0], 11);
	assert_int_equal(ids[1], 8);
	assert_true(fabs(weights[0] / weights[1] - 0.5 * (1 + exp(-4.5))) < 1e-5);
	assert_true(fabs(weights[0] + weights[1] - 2.5) < 1e-5);
}

static void route_keeps_topk_groups_on_ties_by_lower_index(void **state)
{
	static const float logits[] = {1, 1, 1, 1, 1, 1};
	const struct k_route r = {
		.n_experts = 6, .n_used = 4, .n_group = 3, .topk_group = 2, .scale = 1};
	uint32_t ids[4];
	float weights[4];

	(void)state;
	route_logits(logits, 1, &r, ids, weights);
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(ids[i], i);
}

static void route_counts_nan_as_lowest(void **state)
{
	const float logits[] = {NAN, 1, 2,
				3}; /* the softmax makes all of them NaN: index order is left */
	const struct k_route r = {
		.n_experts = 4, .n_used = 2, .n_group = 1, .topk_group = 1, .scale = 1};
	uint32_t ids[2];
	float weights[2];

	(void)state;
	assert_int_equal(route_logits(logits, 1, &r, ids, weights), 4);
	assert_int_equal(ids[0], 0);
	assert_int_equal(ids[1], 1);
	assert_true(isnan(weights[0])); /* it will not pass for a number further on */
}

/* --- feed-forward -------------------------------------------------------------------------------- */

static double at(const struct matrix *a, uint32_t mat, uint32_t out, uint32_t in)
{
	return a->v[((size_t)mat * a->n_out + out) * a->n_in + in];
}

static void swiglu_doubles(double *y, const struct matrix *gu, const struct matrix *down,
			   uint32_t mat, const float *x)
{
	double h[128];
	uint32_t inter = down->n_in;

	for (uint32_t i = 0; i < 2 * inter; i++) {
		h[i] = 0;
		for (uint32_t j = 0; j < gu->n_in; j++)
			h[i] += at(gu, mat, i, j) * x[j];
	}
	for (uint32_t i = 0; i < inter; i++)
		h[i] = h[i] / (1 + exp(-h[i])) * h[inter + i];
	for (uint32_t o = 0; o < down->n_out; o++) {
		y[o] = 0;
		for (uint32_t i = 0; i < inter; i++)
			y[o] += at(down, mat, o, i) * h[i];
	}
}

#define HIDDEN   37u
#define INTER    21u
#define EXPERTS  5u
#define USED     3u
#define FFN_ROWS 300u /* two passes */

struct ffn_case {
	struct matrix gate, gu, down;
	float *x, *y;
};

static void experts_run(const struct ffn_case *c, uint32_t first, uint32_t rows, uint32_t mask,
			uint32_t threads, enum k_type type, uint32_t *ids, float *weights,
			float *out)
{
	const struct k_route r = {
		.n_experts = EXPERTS, .n_used = USED, .n_group = 1, .topk_group = 1, .scale = 1.3f};
	struct kernels *k = kernels_for(mask, threads);
	struct matrix gate = c->gate, gu = c->gu, down = c->down;
	struct k_weight *wg = matrix_pack(k, &gate, K_F32), *wgu = matrix_pack(k, &gu, type);
	struct k_weight *wd = matrix_pack(k, &down, type);
	struct k_buffer *x = buffer_of(k, c->x + (size_t)first * HIDDEN, rows, HIDDEN);
	struct k_buffer *y = buffer_of(k, c->y + (size_t)first * HIDDEN, rows, HIDDEN);
	struct plain_step s;

	plain_begin(k, &s, rows);
	k->route(k, x, wg, &r);
	k->experts(k, y, x, wgu, wd);
	assert_int_equal(k->step_end(k), 0);
	k->routed(k, ids, weights);
	k->download(k, out, y, 0, rows);
	k->weight_free(k, wg);
	k->weight_free(k, wgu);
	k->weight_free(k, wd);
	k->buffer_free(k, x);
	k->buffer_free(k, y);
	k->free(k);
}

static void experts_are_near_doubles_and_bits_depend_on_the_row_alone(void **state)
{
	struct ffn_case c = {
		.gate = matrix_random(1, 1, EXPERTS, HIDDEN),
		.gu = matrix_random(2, EXPERTS, 2 * INTER, HIDDEN),
		.down = matrix_random(3, EXPERTS, HIDDEN, INTER),
		.x = random_array(4, FFN_ROWS * HIDDEN, 2.0f),
		.y = random_array(5, FFN_ROWS * HIDDEN, 2.0f),
	};
	static float all[FFN_ROWS * HIDDEN], some[FFN_ROWS * HIDDEN], weights[FFN_ROWS * USED];
	static uint32_t ids[FFN_ROWS * USED];

	(void)state;
	for (uint32_t t = 0; t < N_ELEMENTS(all_types); t++) {
		enum k_type type = all_types[t];
		struct matrix gu = matrix_kept(&c.gu, type), down = matrix_kept(&c.down, type);
		/* Quantised rows: numbers up to 2 in 127 steps, HIDDEN of them against weights of size
		 * 1 / sqrt(HIDDEN), with some factor to spare for what swiglu() and down make of it. */
		double tolerance = type >= K_Q8 ? 0.1 : 1e-5;

		experts_run(&c, 0, FFN_ROWS, 0, 1, type, ids, weights,
			    all); /* scalar, one thread */
		for (uint32_t r = 0; r < FFN_ROWS; r++) {
			double want[HIDDEN], part[HIDDEN];

			for (uint32_t o = 0; o < HIDDEN; o++)
				want[o] = c.y[r * HIDDEN + o];
			for (uint32_t i = 0; i < USED; i++) {
				swiglu_doubles(part, &gu, &down, ids[r * USED + i],
					       c.x + r * HIDDEN);
				for (uint32_t o = 0; o < HIDDEN; o++)
					want[o] += (double)weights[r * USED + i] * part[o];
			}
			for (uint32_t o = 0; o < HIDDEN; o++)
				assert_true(fabs(all[r * HIDDEN + o] - want[o]) < tolerance);
		}
		experts_run(&c, 0, FFN_ROWS, cpu_mask, 3, type, ids, weights, some);
		assert_memory_equal(some, all, sizeof(all));
		for (uint32_t n = 1; n <= 17; n += 4) {
			experts_run(&c, 100, n, cpu_mask, 1, type, ids, weights, some);
			assert_memory_equal(some, all + 100 * HIDDEN, n * HIDDEN * sizeof(*some));
		}
		free(gu.v);
		free(down.v);
	}
	free(c.gate.v);
	free(c.gu.v);
	free(c.down.v);
	free(c.x);
	free(c.y);
}

static void ffn_is_near_doubles_over_several_passes(void **state)
{
	struct matrix gu = matrix_random(2, 1, 2 * INTER, HIDDEN),
		      down = matrix_random(3, 1, HIDDEN, INTER);
	struct matrix kept_gu = matrix_kept(&gu, K_BF16), kept_down = matrix_kept(&down, K_BF16);
	float *x = random_array(4, FFN_ROWS * HIDDEN, 2.0f);
	static float got[FFN_ROWS * HIDDEN];
	struct kernels *k = kernels_for(cpu_mask, 2);
	struct k_weight *wgu = matrix_pack(k, &gu, K_BF16), *wd = matrix_pack(k, &down, K_BF16);
	struct k_buffer *bx = buffer_of(k, x, FFN_ROWS, HIDDEN),
			*by = buffer_of(k, NULL, FFN_ROWS, HIDDEN);
	struct plain_step s;

	(void)state;
	plain_begin(k, &s, FFN_ROWS);
	k->ffn(k, by, bx, wgu, wd);
	assert_int_equal(k->step_end(k), 0);
	k->download(k, got, by, 0, FFN_ROWS);
	for (uint32_t r = 0; r < FFN_ROWS; r++) {
		double want[HIDDEN];

		swiglu_doubles(want, &kept_gu, &kept_down, 0, x + r * HIDDEN);
		for (uint32_t o = 0; o < HIDDEN; o++)
			assert_true(fabs(got[r * HIDDEN + o] - want[o]) < 1e-5);
	}
	k->weight_free(k, wgu);
	k->weight_free(k, wd);
	k->buffer_free(k, bx);
	k->buffer_free(k, by);
	k->free(k);
	free(gu.v);
	free(down.v);
	free(kept_gu.v);
	free(kept_down.v);
	free(x);
}

static void copy_pages_copies_whole_pages(void **state)
{
	struct kernels *k = kernels_for(cpu_mask, 1);
	uint8_t data[4 * 96];
	const struct k_pool pool = {.data = data, .stride = 96, .n_pages = 4};
	static const uint32_t dst[] = {3, 1, 2}, src[] = {0, 0, 2};

	(void)state;
	for (uint32_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i / 96);
	k->copy_pages(k, &pool, dst, src, 3);
	for (uint32_t i = 0; i < 96; i++) {
		assert_int_equal(data[i], 0);
		assert_int_equal(data[96 + i], 0);
		assert_int_equal(data[192 + i], 2);
		assert_int_equal(data[288 + i], 0);
	}
	k->free(k);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(linear_is_near_doubles_for_every_shape_and_type),
		cmocka_unit_test(linear_bits_depend_on_the_row_alone),
		cmocka_unit_test(weight_pack_refuses_shapes_and_passes_read_errors_on),
		cmocka_unit_test(a_weight_lies_where_it_was_told_to),
		cmocka_unit_test(embed_returns_the_rows_of_the_table),
		cmocka_unit_test(rmsnorm_takes_only_the_columns_of_its_weight),
		cmocka_unit_test(route_takes_the_best_in_order_and_the_lower_index_on_ties),
		cmocka_unit_test(route_group_limit_uses_best_or_two_best),
		cmocka_unit_test(route_keeps_topk_groups_on_ties_by_lower_index),
		cmocka_unit_test(route_counts_nan_as_lowest),
		cmocka_unit_test(experts_are_near_doubles_and_bits_depend_on_the_row_alone),
		cmocka_unit_test(ffn_is_near_doubles_over_several_passes),
		cmocka_unit_test(copy_pages_copies_whole_pages),
	};
	const struct variant *v = variant_named(argc > 1 ? argv[1] : "scalar");

	if (!v)
		return EXIT_SKIPPED;
	cpu_mask = v->needs;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
