/* SPDX-License-Identifier: Apache-2.0 */
/* Making quantised rows and weights, over sixteen lanes like row_ops.h and included by the same three
 * files. In a weight a lane is a column, so that nothing is summed across a vector and every
 * instruction set finds the same scales. */
#include <math.h>

#include "quant.h"

#define SMALLEST 0x1p-100f /* below it a group counts as zeros: 127 / x is still a number */

/* To the nearest integer, ties to even; |x| < 2^22. */
static inline v16 v_round(v16 x)
{
	return v_sub(v_add(x, v_set(0x1.8p23f)), v_set(0x1.8p23f));
}

static inline v16 v_abs(v16 x)
{
	return v_max(x, v_sub(v_set(0.0f), x));
}

static inline v16 v_clamp(v16 x, float low, float high)
{
	return v_min(v_max(x, v_set(low)), v_set(high));
}

static void quantise_group(struct q_row *y, const float *x)
{
	v16 max = v_set(0.0f), odd = v_set(0.0f);
	float lanes[Q_GROUP], top, inverse;

	for (uint32_t i = 0; i < Q_GROUP; i += LANES) {
		max = v_max(v_abs(v_load(x + i)), max);
		odd = v_add(odd, v_sub(v_load(x + i), v_load(x + i))); /* 0, or NaN */
	}
	v_store(lanes, max);
	top = lanes[0];
	for (uint32_t i = 1; i < LANES; i++)
		top = lanes[i] > top ? lanes[i] : top;
	if (isnan(v_sum(odd)) || top < SMALLEST) {
		*y = (struct q_row){.d = isnan(v_sum(odd)) ? NAN : 0.0f};
		return;
	}
	inverse = 127.0f / top;
	for (uint32_t i = 0; i < Q_GROUP; i += LANES)
		v_store(lanes + i, v_round(v_mul(v_load(x + i), v_set(inverse))));
	for (uint32_t sub = 0; sub < Q_GROUP / Q_SUB; sub++) {
		int32_t sum = 0;

		for (uint32_t i = sub * Q_SUB; i < (sub + 1) * Q_SUB; i++) {
			int32_t a = (int32_t)lanes[i];

			y->a[i] = (int8_t)a;
			sum += a;
		}
		y->sums[sub / 2 + sub % 2 * 2] = (int16_t)sum;
	}
	y->d = top / 127.0f;
	y->unused = 0;
}

static void quantise(struct q_row *y, const float *x, uint32_t n)
{
	float last[Q_GROUP];

	for (; n >= Q_GROUP; n -= Q_GROUP, x += Q_GROUP)
		quantise_group(y++, x);
	if (n == 0)
		return;
	memset(last, 0, sizeof(last));
	memcpy(last, x, n * sizeof(*x));
	quantise_group(y, last);
}

/* Per lane: d as bf16, 1 / d, whether d is a number to divide by. */
struct lane_scale {
	float d[LANES], inverse[LANES];
	uint16_t bits[LANES];
};

static void lane_scale_set(struct lane_scale *s, uint32_t lane, uint16_t bits)
{
	s->bits[lane] = bits;
	s->d[lane] = bf16_to_f32(bits);
	s->inverse[lane] = s->d[lane] >= SMALLEST ? 1.0f / s->d[lane] : 0.0f;
}

/* NaN where a lane holds a number that is not finite, else its largest size. */
static v16 lane_sizes(const float *x)
{
	v16 max = v_set(0.0f), odd = v_set(0.0f);

	for (uint32_t k = 0; k < Q_GROUP; k++) {
		v16 v = v_load(x + k * PANEL);

		max = v_max(v_abs(v), max);
		odd = v_add(odd, v_sub(v, v));
	}
	return v_add(max, odd);
}

#define Q8_TRIES 3u /* d: the one that reaches the largest number, and the two bf16 below it */

static void pack_q8_half(struct q8_group *w, uint32_t half, const float *x)
{
	float sizes[LANES], errors[LANES], best[LANES], lanes[LANES];
	struct lane_scale tried, chosen;

	v_store(sizes, lane_sizes(x));
	for (uint32_t try = 0; try < Q8_TRIES; try++) {
		v16 error = v_set(0.0f), d, inverse;

		for (uint32_t i = 0; i < LANES; i++) {
			float want = sizes[i] / 127.0f;
			uint16_t bits = bf16_from_f32(want);

			if (bf16_to_f32(bits) < want)
				bits++;
			if (!(want < SMALLEST) && !isnan(want))
				bits = (uint16_t)(bits - try);
			lane_scale_set(&tried, i, bits);
		}
		d = v_load(tried.d);
		inverse = v_load(tried.inverse);
		for (uint32_t k = 0; k < Q_GROUP; k++) {
			v16 v = v_load(x + k * PANEL);
			v16 q = v_clamp(v_round(v_clamp(v_mul(v, inverse), -1e6f, 1e6f)), -127.0f,
					127.0f);
			v16 e = v_fma(q, v_sub(v_set(0.0f), d), v);

			error = v_fma(e, e, error);
		}
		v_store(errors, error);
		for (uint32_t i = 0; i < LANES; i++)
			if (try == 0 || errors[i] < best[i]) {
				best[i] = errors[i];
				lane_scale_set(&chosen, i, tried.bits[i]);
			}
	}
	memcpy(w->d + half * LANES, chosen.bits, sizeof(chosen.bits));
	for (uint32_t k = 0; k < Q_GROUP; k++) {
		v16 v = v_mul(v_load(x + k * PANEL), v_load(chosen.inverse));

		v_store(lanes, v_clamp(v_round(v_clamp(v, -1e6f, 1e6f)), -127.0f, 127.0f));
		for (uint32_t i = 0; i < LANES; i++)
			w->u[k / 4][half][i * 4 + k % 4] = (uint8_t)(int32_t)(lanes[i] + 128.0f);
	}
}

static void pack_q8(struct q8_group *w, const float *x)
{
	pack_q8_half(w, 0, x);
	pack_q8_half(w, 1, x + LANES);
}

/* q4, in units of d: x / d + 128 = q s + o. For each of Q4_SCALES d and each Q_SUB: Q4_SPANS s near the
 * span of the numbers, for each of them Q4_OFFSETS o about the middle, and at last the o that the
 * rounding errors of the best ask for. 40 tries a number leave 7.14% of a Gaussian's root mean square
 * (8.28% of a Student t with 5 degrees); 288 tries 7.09% (8.21%). */
#define Q4_SCALES  4u
#define Q4_FIRST   0.95f /* of max / 127 */
#define Q4_STEP    0.07f
#define Q4_SPANS   3u
#define Q4_SHRINK  0.86f /* of the span: the smallest s tried */
#define Q4_OFFSETS 3u
#define Q4_SHIFT   0.35f /* of s */

struct sub_fit {
	v16 error, s, o; /* squared error, in units of d */
	v16 mean;        /* of t - q s: the o that the rounding would have liked */
};

/* @t: the numbers as x / d + 128. Returns the error; @ret_mean gets the mean of t - q s. */
static v16 fit_error(const float *t, v16 s, v16 inverse, v16 o, v16 *ret_mean)
{
	v16 error = v_set(0.0f), sum = v_set(0.0f), minus = v_sub(v_set(0.0f), s);

	for (uint32_t k = 0; k < Q_SUB; k++) {
		v16 v = v_load(t + k * LANES);
		v16 q = v_clamp(v_round(v_mul(v_sub(v, o), inverse)), 0.0f, 15.0f);
		v16 rest = v_fma(q, minus, v), e = v_sub(rest, o);

		sum = v_add(sum, rest);
		error = v_fma(e, e, error);
	}
	*ret_mean = v_mul(sum, v_set(1.0f / Q_SUB));
	return error;
}

static v16 fit_offset(v16 o, v16 s)
{
	v16 top = v_fma(s, v_set(-15.0f), v_set(255.0f));

	return v_min(v_max(v_round(o), v_set(0.0f)), top);
}

static void fit_try(struct sub_fit *best, const float *t, v16 s, v16 o)
{
	v16 mean, error;

	o = fit_offset(o, s);
	error = fit_error(t, s, v_div(v_set(1.0f), s), o, &mean);
	best->s = v_where_less(error, best->error, s, best->s);
	best->o = v_where_less(error, best->error, o, best->o);
	best->mean = v_where_less(error, best->error, mean, best->mean);
	best->error = v_where_less(error, best->error, error, best->error);
}

static struct sub_fit fit_sub(const float *x, v16 d_inverse)
{
	struct sub_fit best = {v_set(INFINITY), v_set(1.0f), v_set(128.0f), v_set(128.0f)};
	v16 low = v_set(INFINITY), high = v_set(-INFINITY), span;
	float t[Q_SUB * LANES];

	for (uint32_t k = 0; k < Q_SUB; k++) {
		/* A d much too small would leave the range in which v_round() works. */
		v16 v = v_clamp(v_fma(v_load(x + k * PANEL), d_inverse, v_set(128.0f)), -1e4f,
				1e4f);

		low = v_min(v, low);
		high = v_max(v, high);
		v_store(t + k * LANES, v);
	}
	span = v_mul(v_sub(high, low), v_set(Q4_SHRINK / 15.0f));
	for (uint32_t i = 0; i < Q4_SPANS; i++) {
		v16 s = v_clamp(v_round(v_add(span, v_set((float)i))), 1.0f, 15.0f);
		v16 centre = v_fma(s, v_set(-7.5f), v_mul(v_add(low, high), v_set(0.5f)));

		for (uint32_t j = 0; j < Q4_OFFSETS; j++) {
			float shift = Q4_SHIFT * ((float)j - (float)(Q4_OFFSETS - 1) / 2.0f);

			fit_try(&best, t, s, v_fma(s, v_set(shift), centre));
		}
	}
	fit_try(&best, t, best.s, best.mean);
	return best;
}

static void pack_q4_half(struct q4_group *w, uint32_t half, const float *x)
{
	float sizes[LANES], errors[LANES], best[LANES], s[4][LANES], o[4][LANES];
	struct lane_scale tried, chosen;

	v_store(sizes, lane_sizes(x));
	for (uint32_t try = 0; try < Q4_SCALES; try++) {
		float try_s[4][LANES], try_o[4][LANES];
		v16 error = v_set(0.0f);

		for (uint32_t i = 0; i < LANES; i++)
			lane_scale_set(&tried, i,
				       bf16_from_f32(sizes[i] / 127.0f *
						     (Q4_FIRST + Q4_STEP * (float)try)));
		for (uint32_t sub = 0; sub < 4; sub++) {
			struct sub_fit fit =
				fit_sub(x + sub * Q_SUB * PANEL, v_load(tried.inverse));

			error = v_add(error, fit.error);
			v_store(try_s[sub], fit.s);
			v_store(try_o[sub], fit.o);
		}
		v_store(errors, v_mul(error, v_mul(v_load(tried.d), v_load(tried.d))));
		for (uint32_t i = 0; i < LANES; i++) {
			if (try > 0 && !(errors[i] < best[i]))
				continue;
			best[i] = errors[i];
			lane_scale_set(&chosen, i, tried.bits[i]);
			for (uint32_t sub = 0; sub < 4; sub++) {
				s[sub][i] = try_s[sub][i];
				o[sub][i] = try_o[sub][i];
			}
		}
	}
	memcpy(w->d + half * LANES, chosen.bits, sizeof(chosen.bits));
	memset(w->s + half * LANES, 0, LANES * sizeof(w->s[0]));
	for (uint32_t sub = 0; sub < 4; sub++)
		for (uint32_t i = 0; i < LANES; i++) {
			w->s[half * LANES + i] |= (uint16_t)((uint32_t)s[sub][i] << (4 * sub));
			w->o[half * LANES + i][sub] = (uint8_t)o[sub][i];
		}
	for (uint32_t k = 0; k < Q_GROUP; k++) {
		uint32_t sub = k / Q_SUB;
		v16 t = v_fma(v_load(x + k * PANEL), v_load(chosen.inverse), v_set(128.0f));
		v16 q = v_mul(v_sub(v_clamp(t, -1e4f, 1e4f), v_load(o[sub])),
			      v_div(v_set(1.0f), v_load(s[sub])));
		uint8_t *to = w->q[k / 8][half];
		float lanes[LANES];

		v_store(lanes, v_clamp(v_round(q), 0.0f, 15.0f));
		for (uint32_t i = 0; i < LANES; i++) {
			uint8_t *byte = &to[i * 4 + k % 4];
			uint8_t n = (uint8_t)(int32_t)lanes[i];

			*byte = k % 8 < 4 ? n : (uint8_t)(*byte | n << 4);
		}
	}
}

static void pack_q4(struct q4_group *w, const float *x)
{
	pack_q4_half(w, 0, x);
	pack_q4_half(w, 1, x + LANES);
}

#define QUANT_OPS .quantise = quantise, .pack_q8 = pack_q8, .pack_q4 = pack_q4
