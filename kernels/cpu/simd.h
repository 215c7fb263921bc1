#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats, whatever the instruction set: what row_ops.h is written in.
 *
 * The includer defines K_SIMD_AVX512 or K_SIMD_AVX2, or neither for the scalar reference. All three
 * round alike, operation by operation, so that one source gives the same bits three times. Include
 * it from one .c file per instruction set and from no header: nothing else sees these flags. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(K_SIMD_AVX512) || defined(K_SIMD_AVX2)
#include <immintrin.h>
#endif

#include "sample_math.h"

#define LANES 16u

#if defined(K_SIMD_AVX512)

typedef __m512 v16;

static inline v16 v_load(const float *p)
{
	return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, v16 x)
{
	_mm512_storeu_ps(p, x);
}
static inline v16 v_set(float x)
{
	return _mm512_set1_ps(x);
}
static inline v16 v_add(v16 a, v16 b)
{
	return _mm512_add_ps(a, b);
}
static inline v16 v_sub(v16 a, v16 b)
{
	return _mm512_sub_ps(a, b);
}
static inline v16 v_mul(v16 a, v16 b)
{
	return _mm512_mul_ps(a, b);
}
static inline v16 v_div(v16 a, v16 b)
{
	return _mm512_div_ps(a, b);
}
static inline v16 v_fma(v16 a, v16 b, v16 c)
{
	return _mm512_fmadd_ps(a, b, c);
}
/* a > b ? a : b, so b where either is NaN */
static inline v16 v_max(v16 a, v16 b)
{
	return _mm512_max_ps(a, b);
}
static inline v16 v_min(v16 a, v16 b)
{
	return _mm512_min_ps(a, b);
}
/* @x where i < n[lane], else @other */
static inline v16 v_where_below(uint32_t i, const uint32_t n[LANES], v16 x, v16 other)
{
	__mmask16 m = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(n), _mm512_set1_epi32((int)i));

	return _mm512_mask_blend_ps(m, other, x);
}
/* a < b ? x : y */
static inline v16 v_where_less(v16 a, v16 b, v16 x, v16 y)
{
	return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
/* p * 2^(bits of t - bits of the magic number), as k_expf() does it */
static inline v16 v_scale_exp(v16 p, v16 t)
{
	__m512i i = _mm512_sub_epi32(_mm512_castps_si512(t),
				     _mm512_set1_epi32((int)k_bits(K_EXP_MAGIC)));
	__m512i half = _mm512_srai_epi32(i, 1), bias = _mm512_set1_epi32(127);
	__m512i rest = _mm512_sub_epi32(i, half);

	p = v_mul(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23)));
	return v_mul(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(rest, bias), 23)));
}
static inline v16 v_load_bf16(const uint16_t *p)
{
	__m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));

	return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
static inline void v_store_bytes(uint32_t *p, const v16 x[4])
{
	__m512i a = _mm512_cvtps_epi32(x[0]), b = _mm512_slli_epi32(_mm512_cvtps_epi32(x[1]), 8);
	__m512i c = _mm512_slli_epi32(_mm512_cvtps_epi32(x[2]), 16);
	__m512i d = _mm512_slli_epi32(_mm512_cvtps_epi32(x[3]), 24);

	_mm512_storeu_si512(p, _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)));
}

#elif defined(K_SIMD_AVX2)

typedef struct {
	__m256 a, b;
} v16;

static inline v16 v_load(const float *p)
{
	return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v_store(float *p, v16 x)
{
	_mm256_storeu_ps(p, x.a);
	_mm256_storeu_ps(p + 8, x.b);
}
static inline v16 v_set(float x)
{
	return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v_add(v16 x, v16 y)
{
	return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
static inline v16 v_sub(v16 x, v16 y)
{
	return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
static inline v16 v_mul(v16 x, v16 y)
{
	return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
static inline v16 v_div(v16 x, v16 y)
{
	return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
static inline v16 v_fma(v16 x, v16 y, v16 z)
{
	return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v_max(v16 x, v16 y)
{
	return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
static inline v16 v_min(v16 x, v16 y)
{
	return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
static inline __m256 v_where_below_8(uint32_t i, const uint32_t *n, __m256 x, __m256 other)
{
	__m256i m = _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)n),
				       _mm256_set1_epi32((int)i));

	return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(m));
}
static inline v16 v_where_below(uint32_t i, const uint32_t n[LANES], v16 x, v16 other)
{
	return (v16){v_where_below_8(i, n, x.a, other.a), v_where_below_8(i, n + 8, x.b, other.b)};
}
static inline v16 v_where_less(v16 a, v16 b, v16 x, v16 y)
{
	return (v16){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
		     _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
static inline __m256 v_scale_exp_8(__m256 p, __m256 t)
{
	__m256i i = _mm256_sub_epi32(_mm256_castps_si256(t),
				     _mm256_set1_epi32((int)k_bits(K_EXP_MAGIC)));
	__m256i half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
	__m256i rest = _mm256_sub_epi32(i, half);

	p = _mm256_mul_ps(p,
			  _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
	return _mm256_mul_ps(
		p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
static inline v16 v_scale_exp(v16 p, v16 t)
{
	return (v16){v_scale_exp_8(p.a, t.a), v_scale_exp_8(p.b, t.b)};
}
static inline __m256 v_load_bf16_8(const uint16_t *p)
{
	__m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));

	return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
static inline v16 v_load_bf16(const uint16_t *p)
{
	return (v16){v_load_bf16_8(p), v_load_bf16_8(p + 8)};
}
static inline __m256i v_bytes_8(__m256 a, __m256 b, __m256 c, __m256 d)
{
	__m256i low =
		_mm256_or_si256(_mm256_cvtps_epi32(a), _mm256_slli_epi32(_mm256_cvtps_epi32(b), 8));
	__m256i high = _mm256_or_si256(_mm256_slli_epi32(_mm256_cvtps_epi32(c), 16),
				       _mm256_slli_epi32(_mm256_cvtps_epi32(d), 24));

	return _mm256_or_si256(low, high);
}
static inline void v_store_bytes(uint32_t *p, const v16 x[4])
{
	_mm256_storeu_si256((__m256i *)p, v_bytes_8(x[0].a, x[1].a, x[2].a, x[3].a));
	_mm256_storeu_si256((__m256i *)(p + 8), v_bytes_8(x[0].b, x[1].b, x[2].b, x[3].b));
}

#else /* the scalar reference */

typedef struct {
	float f[LANES];
} v16;

#define V_LANES(expr)                                                                              \
	v16 r_;                                                                                    \
	for (uint32_t i_ = 0; i_ < LANES; i_++)                                                    \
		r_.f[i_] = (expr);                                                                 \
	return r_

static inline v16 v_load(const float *p)
{
	V_LANES(p[i_]);
}
static inline void v_store(float *p, v16 x)
{
	memcpy(p, x.f, sizeof(x.f));
}
static inline v16 v_set(float x)
{
	V_LANES(x);
}
static inline v16 v_add(v16 a, v16 b)
{
	V_LANES(a.f[i_] + b.f[i_]);
}
static inline v16 v_sub(v16 a, v16 b)
{
	V_LANES(a.f[i_] - b.f[i_]);
}
static inline v16 v_mul(v16 a, v16 b)
{
	V_LANES(a.f[i_] * b.f[i_]);
}
static inline v16 v_div(v16 a, v16 b)
{
	V_LANES(a.f[i_] / b.f[i_]);
}
static inline v16 v_fma(v16 a, v16 b, v16 c)
{
	V_LANES(fmaf(a.f[i_], b.f[i_], c.f[i_]));
}
static inline v16 v_max(v16 a, v16 b)
{
	V_LANES(a.f[i_] > b.f[i_] ? a.f[i_] : b.f[i_]);
}
static inline v16 v_min(v16 a, v16 b)
{
	V_LANES(a.f[i_] < b.f[i_] ? a.f[i_] : b.f[i_]);
}
static inline v16 v_where_less(v16 a, v16 b, v16 x, v16 y)
{
	V_LANES(a.f[i_] < b.f[i_] ? x.f[i_] : y.f[i_]);
}
static inline v16 v_where_below(uint32_t i, const uint32_t n[LANES], v16 x, v16 other)
{
	V_LANES(i < n[i_] ? x.f[i_] : other.f[i_]);
}
static inline v16 v_load_bf16(const uint16_t *p)
{
	V_LANES(k_from_bits((uint32_t)p[i_] << 16));
}
/* To each lane's dword the nearest integers, ties to even, of four vectors' 0 to 255, the first in the low byte. */
static inline void v_store_bytes(uint32_t *p, const v16 x[4])
{
	for (uint32_t lane = 0; lane < LANES; lane++) {
		p[lane] = 0;
		for (uint32_t i = 0; i < 4; i++)
			p[lane] |= (uint32_t)nearbyintf(x[i].f[lane]) << (8 * i);
	}
}

#endif

/* Fewer than LANES numbers: the other lanes read @fill and are not written. */
static inline v16 v_load_n(const float *p, uint32_t n, float fill)
{
	float f[LANES];

	for (uint32_t i = 0; i < LANES; i++)
		f[i] = i < n ? p[i] : fill;
	return v_load(f);
}
static inline void v_store_n(float *p, v16 x, uint32_t n)
{
	float f[LANES];

	v_store(f, x);
	memcpy(p, f, n * sizeof(*f));
}

/* A fixed tree: lane i and i + 8, then i + 4, i + 2, i + 1. */
static inline float v_sum(v16 x)
{
	float f[LANES];

	v_store(f, x);
	for (uint32_t half = LANES / 2; half > 0; half /= 2)
		for (uint32_t i = 0; i < half; i++)
			f[i] += f[i + half];
	return f[0];
}

static inline v16 v_exp(v16 x)
{
#if defined(K_SIMD_AVX512) || defined(K_SIMD_AVX2)
	v16 t, n, r, g;

	x = v_max(v_set(K_EXP_MIN), x);
	x = v_min(v_set(K_EXP_MAX), x);
	t = v_fma(x, v_set(K_EXP_LOG2E), v_set(K_EXP_MAGIC));
	n = v_sub(t, v_set(K_EXP_MAGIC));
	r = v_fma(n, v_set(-K_EXP_LN2HI), x);
	r = v_fma(n, v_set(-K_EXP_LN2LO), r);
	g = v_fma(v_set(K_EXP_G4), r, v_set(K_EXP_G3));
	g = v_fma(g, r, v_set(K_EXP_G2));
	g = v_fma(g, r, v_set(K_EXP_G1));
	g = v_fma(g, r, v_set(K_EXP_G0));
	return v_scale_exp(v_fma(r, v_fma(r, g, v_set(1.0f)), v_set(1.0f)), t);
#else
	V_LANES(k_expf(x.f[i_]));
#endif
}
