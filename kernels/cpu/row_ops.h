/* SPDX-License-Identifier: Apache-2.0 */
/* The small inner kernels, written once over sixteen lanes (simd.h) and compiled per instruction
 * set: rows.c is the scalar reference, rows_avx2.c and rows_avx512.c the others. Included by exactly
 * those three; everything is static to them. */
#include <math.h>

#include "cpu.h"
#include "simd.h"

/* The sum of squares is LANES chains and a fixed tree. */
static void rmsnorm(float *y, const float *x, const float *w, uint32_t n, float eps)
{
	v16 sum = v_set(0.0f), r;
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		sum = v_fma(v_load(x + i), v_load(x + i), sum);
	if (i < n) {
		v16 tail = v_load_n(x + i, n - i, 0.0f);

		sum = v_fma(tail, tail, sum);
	}
	r = v_set(1.0f / sqrtf(v_sum(sum) / (float)n + eps));
	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_mul(v_load(w + i), v_mul(v_load(x + i), r)));
	if (i < n)
		v_store_n(
			y + i,
			v_mul(v_load_n(w + i, n - i, 0.0f), v_mul(v_load_n(x + i, n - i, 0.0f), r)),
			n - i);
}

static void add(float *y, const float *x, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_add(v_load(y + i), v_load(x + i)));
	for (; i < n; i++)
		y[i] += x[i];
}

static void blend(float *y, const float *x, float a, float b, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_fma(v_load(x + i), v_set(a), v_mul(v_load(y + i), v_set(b))));
	for (; i < n; i++)
		y[i] = fmaf(x[i], a, y[i] * b);
}

static void scale(float *y, float a, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_mul(v_load(y + i), v_set(a)));
	for (; i < n; i++)
		y[i] *= a;
}

static void divide(float *y, float a, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_div(v_load(y + i), v_set(a)));
	for (; i < n; i++)
		y[i] /= a;
}

static inline v16 silu(v16 z)
{
	return v_div(z, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), z))));
}

static void swiglu(float *gate, const float *up, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(gate + i, v_mul(silu(v_load(gate + i)), v_load(up + i)));
	if (i < n)
		v_store_n(
			gate + i,
			v_mul(silu(v_load_n(gate + i, n - i, 0.0f)), v_load_n(up + i, n - i, 0.0f)),
			n - i);
}

static void exp_row(float *y, const float *x, float max, float t, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_exp(v_div(v_sub(v_load(x + i), v_set(max)), v_set(t))));
	if (i < n)
		v_store_n(y + i,
			  v_exp(v_div(v_sub(v_load_n(x + i, n - i, max), v_set(max)), v_set(t))),
			  n - i);
}

/* To the eight bits of a bf16 number; 0 <= x <= 1 or NaN. Source: Dekker, "A floating-point technique for
 * extending the available precision" (1971). */
static inline v16 to_bf16(v16 x)
{
	v16 t = v_mul(x, v_set(0x1.0001p16f)), upper = v_sub(t, v_sub(t, x));

	return v_where_less(x, v_set(MLA_SMALLEST), v_set(0.0f), upper);
}

static void softmax_tile(const struct softmax_tile *a)
{
	const v16 hidden = v_set(-INFINITY);

	for (uint32_t lane = 0; lane < a->n_lanes; lane += LANES) {
		const uint32_t *n_valid = a->n_valid + lane;
		v16 old = v_load(a->max + lane), max = old, correction, sum;

		for (uint32_t j = 0; j < a->n_pos; j++) {
			float *s = a->s + j * a->n_lanes + lane;
			v16 x = v_mul(v_load(s), v_set(a->scale));

			x = v_where_below(j, n_valid, x, hidden);
			max = v_max(
				x,
				max); /* a NaN score leaves the maximum, and comes out as NaN below */
			v_store(s, x);
		}
		correction = v_exp(v_sub(old, max));
		sum = v_mul(v_load(a->sum + lane), correction);
		for (uint32_t j = 0; j < a->n_pos; j++) {
			float *s = a->s + j * a->n_lanes + lane;
			v16 p = v_exp(v_sub(v_load(s), max));

			if (a->bf16)
				p = to_bf16(p);
			sum = v_add(sum, p);
			v_store(s, p);
		}
		v_store(a->max + lane, max);
		v_store(a->sum + lane, sum);
		v_store(a->correction + lane, correction);
	}
}

/* All heads' weights at a position times d of its row. */
static inline v16 tile_weight(const struct mla_tile_int8 *t, uint32_t pos, uint32_t group)
{
	_Static_assert(MLA_HEADS == LANES, "a lane is a head");

	return v_mul(v_load(t->s + pos * MLA_HEADS), v_set(mla_row_d(t, pos, group)));
}

#define LIGHTEST 0x1p-100f /* below it a tile's weights are none: 255 / x is still a number */

static void mla_weights_int8(const struct mla_tile_int8 *t)
{
	for (uint32_t g = 0; g < cpu_entry_groups(t->rank); g++) {
		const v16 zero = v_set(0.0f), least = v_set(LIGHTEST), most = v_set(255.0f);
		v16 max = zero, sum = zero, inverse;

		for (uint32_t p = 0; p < t->n_pos; p++) {
			v16 w = tile_weight(t, p, g);

			max = v_max(w, max);
			sum = v_add(sum, w);
		}
		max = v_add(max, v_sub(sum, sum)); /* NaN where a weight is not finite */
		inverse = v_where_less(max, least, zero, v_div(most, max));
		v_store(t->w_d[g], v_where_less(max, least, zero, v_div(max, most)));
		for (uint32_t p = 0; p < t->n_pos; p += 4) {
			v16 x[4] = {zero, zero, zero, zero}; /* and where a weight is NaN */

			for (uint32_t i = 0; i < 4 && p + i < t->n_pos; i++)
				x[i] = v_max(v_mul(tile_weight(t, p + i, g), inverse), zero);
			v_store_bytes(t->w[g][p / 4], x);
		}
	}
}

static void load_bf16(float *y, const uint16_t *x, uint32_t n)
{
	uint32_t i;

	for (i = 0; i + LANES <= n; i += LANES)
		v_store(y + i, v_load_bf16(x + i));
	for (; i < n; i++)
		y[i] = bf16_to_f32(x[i]);
}

/* Plain C: each instruction set's compiler makes its own of it, and nothing is summed. */
static void load_int8(uint16_t *y, const uint8_t *row, uint32_t rank, uint32_t rope)
{
	const uint8_t *scales = row + rank, *end = scales + cpu_entry_groups(rank) * sizeof(float);

	for (uint32_t i = 0; i < rank; i += K_ENTRY_GROUP) {
		const int8_t *x = (const int8_t *)row + i;
		uint32_t n = cpu_entry_group(rank, i);
		float scale;

		memcpy(&scale, scales + i / K_ENTRY_GROUP * sizeof(scale), sizeof(scale));
		for (uint32_t j = 0; j < n; j++) {
			uint32_t u = k_bits((float)x[j] * scale);

			y[i + j] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
		}
	}
	memcpy(y + rank, end, rope * sizeof(*y));
}

#define ROW_OPS                                                                                    \
	.rmsnorm = rmsnorm, .add = add, .blend = blend, .scale = scale, .divide = divide,          \
	.swiglu = swiglu, .exp = exp_row, .softmax_tile = softmax_tile, .load_bf16 = load_bf16,    \
	.load_int8 = load_int8, .mla_weights_int8 = mla_weights_int8
