#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 intrinsics that quant_vnni.c, mla_int8_vnni.c and mla_tile_*.c use, one lane after the other as Intel's pseudocode has them,
 * so that it can be compared with the reference where the CPU has none. Built under K_EMULATE_AVX512
 * for AVX2; the names of the 512-bit types and functions are taken over by macros. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
	uint8_t b[64];
} emu_i;
typedef struct {
	float f[16];
} emu_f;

/* Out of line, or every build with sanitizers takes minutes for this. */
#define EMU static __attribute__((noinline, unused))

#define EMU_LANES(type, n, expr)                                                                   \
	emu_i ret_;                                                                                \
	type x_[n], r_[n];                                                                         \
	memcpy(x_, &x, sizeof(x_));                                                                \
	for (int i = 0; i < (n); i++)                                                              \
		r_[i] = (type)(expr);                                                              \
	memcpy(&ret_, r_, sizeof(ret_));                                                           \
	return ret_
#define EMU_TWO(type, n, expr)                                                                     \
	type y_[n];                                                                                \
	memcpy(y_, &y, sizeof(y_));                                                                \
	EMU_LANES(type, n, expr)

EMU emu_i emu_load(const void *p)
{
	emu_i r;

	memcpy(&r, p, sizeof(r));
	return r;
}
EMU void emu_store(void *p, emu_i x)
{
	memcpy(p, &x, sizeof(x));
}
EMU emu_f emu_load_ps(const float *p)
{
	emu_f r;

	memcpy(&r, p, sizeof(r));
	return r;
}
EMU void emu_store_ps(float *p, emu_f x)
{
	memcpy(p, &x, sizeof(x));
}
/* Bytes whose bit of the mask is 0 are not read. */
EMU emu_i emu_maskz_load_8(uint64_t mask, const void *p)
{
	emu_i r;

	for (int i = 0; i < 64; i++)
		r.b[i] = mask >> i & 1 ? ((const uint8_t *)p)[i] : 0;
	return r;
}
EMU emu_i emu_set1_32(int32_t v)
{
	emu_i x = {{0}};

	EMU_LANES(int32_t, 16, v + 0 * x_[i]);
}
EMU emu_i emu_set1_16(int v)
{
	return emu_set1_32((int32_t)((uint32_t)(uint16_t)v * 0x10001u));
}
EMU emu_i emu_set1_8(int v)
{
	return emu_set1_32((int32_t)((uint32_t)(uint8_t)v * 0x1010101u));
}
EMU emu_i emu_set4_32(int32_t d, int32_t c, int32_t b, int32_t a)
{
	const int32_t v[4] = {a, b, c, d};
	emu_i x = {{0}};

	EMU_LANES(int32_t, 16, v[i % 4] + 0 * x_[i]);
}
EMU emu_i emu_and(emu_i x, emu_i y)
{
	EMU_TWO(uint32_t, 16, x_[i] & y_[i]);
}
EMU emu_i emu_or(emu_i x, emu_i y)
{
	EMU_TWO(uint32_t, 16, x_[i] | y_[i]);
}
EMU emu_i emu_add_8(emu_i x, emu_i y)
{
	EMU_TWO(uint8_t, 64, x_[i] + y_[i]);
}
EMU emu_i emu_mullo_16(emu_i x, emu_i y)
{
	EMU_TWO(uint16_t, 32, (uint32_t)x_[i] * y_[i]);
}
EMU emu_i emu_slli_32(emu_i x, unsigned n)
{
	EMU_LANES(uint32_t, 16, x_[i] << n);
}
EMU emu_i emu_srli_16(emu_i x, unsigned n)
{
	EMU_LANES(uint16_t, 32, x_[i] >> n);
}
EMU emu_i emu_srl_16(emu_i x, __m128i n)
{
	return emu_srli_16(x, (unsigned)_mm_cvtsi128_si32(n));
}
/* Within each 16 bytes; a high bit in the index gives 0. */
EMU emu_i emu_shuffle_8(emu_i x, emu_i y)
{
	EMU_TWO(uint8_t, 64, y_[i] & 0x80 ? 0 : x_[i / 16 * 16 + (y_[i] & 15)]);
}
EMU emu_i emu_widen_16(__m256i v)
{
	uint16_t w[16];
	emu_i x = {{0}};

	memcpy(w, &v, sizeof(w));
	EMU_LANES(uint32_t, 16, w[i] + 0 * x_[i]);
}
/* Four products of an unsigned byte and a signed one, added in 32 bits without saturation. */
EMU emu_i emu_dpbusd(emu_i sum, emu_i u, emu_i s)
{
	int32_t r[16];
	emu_i ret;

	memcpy(r, &sum, sizeof(r));
	for (int i = 0; i < 64; i++)
		r[i / 4] = (int32_t)((uint32_t)r[i / 4] +
				     (uint32_t)((int32_t)u.b[i] * (int8_t)s.b[i]));
	memcpy(&ret, r, sizeof(ret));
	return ret;
}
EMU emu_f emu_cast_ps(emu_i x)
{
	emu_f r;

	memcpy(&r, &x, sizeof(r));
	return r;
}
EMU emu_f emu_cvt_ps(emu_i x)
{
	int32_t v[16];
	emu_f r;

	memcpy(v, &x, sizeof(v));
	for (int i = 0; i < 16; i++)
		r.f[i] = (float)v[i];
	return r;
}
EMU emu_f emu_set1_ps(float v)
{
	emu_f r;

	for (int i = 0; i < 16; i++)
		r.f[i] = v;
	return r;
}
EMU emu_f emu_mul_ps(emu_f a, emu_f b)
{
	for (int i = 0; i < 16; i++)
		a.f[i] *= b.f[i];
	return a;
}
EMU emu_f emu_fmadd_ps(emu_f a, emu_f b, emu_f c)
{
	for (int i = 0; i < 16; i++)
		a.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
	return a;
}
EMU emu_i emu_srli_32(emu_i x, unsigned n)
{
	EMU_LANES(uint32_t, 16, x_[i] >> n);
}
/* Within each 16 bytes: words @half * 4 .. of x and y take turns. */
EMU emu_i emu_unpack_16(emu_i x, emu_i y, int half)
{
	EMU_TWO(uint16_t, 32,
		i % 2 ? y_[i / 8 * 8 + half * 4 + i % 8 / 2]
		      : x_[i / 8 * 8 + half * 4 + i % 8 / 2]);
}
EMU emu_i emu_unpacklo_16(emu_i x, emu_i y)
{
	return emu_unpack_16(x, y, 0);
}
EMU emu_i emu_unpackhi_16(emu_i x, emu_i y)
{
	return emu_unpack_16(x, y, 1);
}
/* The same with bytes @half * 8 .. of x and y. */
EMU emu_i emu_unpack_8(emu_i x, emu_i y, int half)
{
	EMU_TWO(uint8_t, 64,
		i % 2 ? y_[i / 16 * 16 + half * 8 + i % 16 / 2]
		      : x_[i / 16 * 16 + half * 8 + i % 16 / 2]);
}
EMU emu_i emu_unpacklo_8(emu_i x, emu_i y)
{
	return emu_unpack_8(x, y, 0);
}
EMU emu_i emu_unpackhi_8(emu_i x, emu_i y)
{
	return emu_unpack_8(x, y, 1);
}
EMU emu_i emu_permute_32(emu_i y, emu_i x)
{
	EMU_TWO(uint32_t, 16, x_[y_[i] & 15]);
}
EMU int32_t emu_reduce_add_32(emu_i x)
{
	uint32_t v[16], sum = 0;

	memcpy(v, &x, sizeof(v));
	for (int i = 0; i < 16; i++)
		sum += v[i];
	return (int32_t)sum;
}
EMU emu_f emu_permute2_ps(emu_f a, emu_i order, emu_f b)
{
	int32_t from[16];
	emu_f r;

	memcpy(from, &order, sizeof(from));
	for (int i = 0; i < 16; i++)
		r.f[i] = (from[i] & 16 ? b : a).f[from[i] & 15];
	return r;
}
EMU float emu_no_subnormal(float x)
{
	return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}
/* The second of a pair first; subnormal numbers are zeros, going in and coming out. */
EMU emu_f emu_dpbf16(emu_f sum, emu_i x, emu_i y)
{
	uint32_t a[16], b[16];

	memcpy(a, &x, sizeof(a));
	memcpy(b, &y, sizeof(b));
	for (int i = 0; i < 32; i++) {
		uint32_t p = i % 2 ? a[i / 2] << 16 : a[i / 2] & 0xffff0000;
		uint32_t q = i % 2 ? b[i / 2] << 16 : b[i / 2] & 0xffff0000;
		float u, v;

		memcpy(&u, &p, sizeof(u));
		memcpy(&v, &q, sizeof(v));
		sum.f[i / 2] = emu_no_subnormal(fmaf(emu_no_subnormal(u), emu_no_subnormal(v),
						     emu_no_subnormal(sum.f[i / 2])));
	}
	return sum;
}

#define __m512i                emu_i
#define __m512                 emu_f
#define _mm512_loadu_si512     emu_load
#define _mm512_storeu_si512    emu_store
#define _mm512_loadu_ps        emu_load_ps
#define _mm512_storeu_ps       emu_store_ps
#define _mm512_set1_epi32      emu_set1_32
#define _mm512_set1_epi16      emu_set1_16
#define _mm512_set1_epi8       emu_set1_8
#define _mm512_set4_epi32      emu_set4_32
#define _mm512_and_si512       emu_and
#define _mm512_or_si512        emu_or
#define _mm512_add_epi8        emu_add_8
#define _mm512_mullo_epi16     emu_mullo_16
#define _mm512_slli_epi32      emu_slli_32
#define _mm512_srli_epi16      emu_srli_16
#define _mm512_srl_epi16       emu_srl_16
#define _mm512_shuffle_epi8    emu_shuffle_8
#define _mm512_cvtepu16_epi32  emu_widen_16
#define _mm512_dpbusd_epi32    emu_dpbusd
#define _mm512_castsi512_ps    emu_cast_ps
#define _mm512_cvtepi32_ps     emu_cvt_ps
#define _mm512_set1_ps         emu_set1_ps
#define _mm512_mul_ps          emu_mul_ps
#define _mm512_fmadd_ps        emu_fmadd_ps
#define _mm512_srli_epi32      emu_srli_32
#define _mm512_unpacklo_epi16  emu_unpacklo_16
#define _mm512_unpackhi_epi16  emu_unpackhi_16
#define _mm512_permutex2var_ps emu_permute2_ps
#define _mm512_setzero_ps()    emu_set1_ps(0.0f)

#define _mm512_setzero_si512()   emu_set1_32(0)
#define _mm512_maskz_loadu_epi8  emu_maskz_load_8
#define _mm512_unpacklo_epi8     emu_unpacklo_8
#define _mm512_unpackhi_epi8     emu_unpackhi_8
#define _mm512_permutexvar_epi32 emu_permute_32
#define _mm512_reduce_add_epi32  emu_reduce_add_32
