/* SPDX-License-Identifier: Apache-2.0 */
/* The quantised products in AVX2. Up to four rows read the weight once, straight through; more go by
 * in blocks of six, over runs of K whose nibbles are unpacked first and stay in L1.
 *
 * pmaddubsw adds two products of bytes in sixteen bits. In q4 the nibble itself is the unsigned side: 8
 * times 2 products of 15 * 127 are 30480, so sixteen bits hold the sum over a Q_SUB, and one pmaddwd
 * takes it to 32 bits times s; o joins through the rows' sums. In q8 the row's sign goes over to the
 * weight, and 2 * 127 * 127 is 32258. Nothing saturates.
 *
 * The inner steps are assembly: given intrinsics, gcc 12 and clang 14 send the accumulators through
 * memory, at a third of the speed. A step is one dword of K (four numbers) of up to six rows, by two
 * vectors of eight columns; c[i] are the sums of (row, vectors) pair i. */
#include <immintrin.h>

#include "cpu.h"
#include "quant.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK_ROWS 6u
#define FLY_ROWS   4u
#define RUN        4u /* groups: 16 KB of bytes */
#define AHEAD      2u /* groups to ask for where none are unpacked */

struct sums {
	float f[BLOCK_ROWS][PANEL] __attribute__((aligned(32)));
};

/* What the assembly reads, for the compiler. */
struct sub_bytes {
	int8_t a[Q_SUB];
};
struct sub_lines {
	uint8_t line[8][128];
};

ALWAYS __m256i load(const void *p)
{
	return _mm256_loadu_si256(p);
}

ALWAYS __m256i pair(const int16_t *p)
{
	int32_t x;

	__builtin_memcpy(&x, p, sizeof(x));
	return _mm256_set1_epi32(x);
}

/* Part @i of @n of the group at @next, which will be read soon. */
ALWAYS void ask_for(const void *next, size_t group_bytes, uint32_t i, uint32_t n)
{
	size_t lines = (group_bytes / LINE + n - 1) / n;

	for (size_t k = i * lines; next && k < (i + 1) * lines; k++)
		_mm_prefetch((const char *)next + k * LINE, _MM_HINT_T0);
}

/* Eight u16 as dwords. */
ALWAYS __m256i widen(const uint16_t *p)
{
	return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}

ALWAYS void add_scaled(float *f, __m256i sum, const uint16_t *d, float row_d)
{
	__m256 w = _mm256_castsi256_ps(_mm256_slli_epi32(widen(d), 16));
	__m256 scale = _mm256_mul_ps(w, _mm256_set1_ps(row_d));

	_mm256_store_ps(f, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_load_ps(f)));
}

/* --- q4 ------------------------------------------------------------------------------------------- */

/* Dword @k of row @r times w0 and w1: into the pair @c, or added to it. */
#define FIRST(r, c, k)                                                                             \
	"vpbroadcastd 4*" #k "(%[a" #r "]), %[x]\n\t"                                              \
	"vpmaddubsw %[x], %[w0], %[c" #c "0]\n\t"                                                  \
	"vpmaddubsw %[x], %[w1], %[c" #c "1]\n\t"
#define NEXT(r, c, k)                                                                              \
	"vpbroadcastd 4*" #k "(%[a" #r "]), %[x]\n\t"                                              \
	"vpmaddubsw %[x], %[w0], %[y]\n\t"                                                         \
	"vpmaddubsw %[x], %[w1], %[x]\n\t"                                                         \
	"vpaddw %[y], %[c" #c "0], %[c" #c "0]\n\t"                                                \
	"vpaddw %[x], %[c" #c "1], %[c" #c "1]\n\t"

/* Unpacked: 64 bytes of one half in every 128. */
#define BYTES(k) "vmovdqa 128*" #k "(%[w]), %[w0]\n\tvmovdqa 32+128*" #k "(%[w]), %[w1]\n\t"
#define STEPS_6(op, k)                                                                             \
	BYTES(k) op(0, 0, k) op(1, 1, k) op(2, 2, k) op(3, 3, k) op(4, 4, k) op(5, 5, k)
#define STEPS_5(op, k) BYTES(k) op(0, 0, k) op(1, 1, k) op(2, 2, k) op(3, 3, k) op(4, 4, k)
#define STEPS_4(op, k) BYTES(k) op(0, 0, k) op(1, 1, k) op(2, 2, k) op(3, 3, k)
#define STEPS_3(op, k) BYTES(k) op(0, 0, k) op(1, 1, k) op(2, 2, k)
#define STEPS_2(op, k) BYTES(k) op(0, 0, k) op(1, 1, k)
#define STEPS_1(op, k) BYTES(k) op(0, 0, k)
#define SUB(steps)                                                                                 \
	steps(FIRST, 0) steps(NEXT, 1) steps(NEXT, 2) steps(NEXT, 3) steps(NEXT, 4) steps(NEXT, 5) \
		steps(NEXT, 6) steps(NEXT, 7)

/* Packed: lines t hold dword 2t low and 2t + 1 high, at byte @h of the first half. */
#define NIBBLES(h, t)                                                                              \
	"vmovdqu " #h "+128*" #t "(%[w]), %[n0]\n\t"                                               \
	"vmovdqu " #h "+32+128*" #t "(%[w]), %[n1]\n\t"                                            \
	"vpand %[n0], %[mask], %[w0]\n\t"                                                          \
	"vpand %[n1], %[mask], %[w1]\n\t"
#define HIGH                                                                                       \
	"vpsrlw $4, %[n0], %[n0]\n\t"                                                              \
	"vpsrlw $4, %[n1], %[n1]\n\t"                                                              \
	"vpand %[n0], %[mask], %[w0]\n\t"                                                          \
	"vpand %[n1], %[mask], %[w1]\n\t"
#define FLY_4(op, t, lo, hi)                                                                       \
	NIBBLES(0, t)                                                                              \
	op(0, 0, lo) op(1, 1, lo) op(2, 2, lo) op(3, 3, lo) HIGH NEXT(0, 0, hi) NEXT(1, 1, hi)     \
		NEXT(2, 2, hi) NEXT(3, 3, hi)
#define FLY_3(op, t, lo, hi)                                                                       \
	NIBBLES(0, t)                                                                              \
	op(0, 0, lo) op(1, 1, lo) op(2, 2, lo) HIGH NEXT(0, 0, hi) NEXT(1, 1, hi) NEXT(2, 2, hi)
#define FLY_2(op, t, lo, hi)                                                                       \
	NIBBLES(0, t)                                                                              \
	op(0, 0, lo) op(1, 1, lo) HIGH NEXT(0, 0, hi) NEXT(1, 1, hi) NIBBLES(64, t) op(0, 2, lo)   \
		op(1, 3, lo) HIGH NEXT(0, 2, hi) NEXT(1, 3, hi)
#define FLY_1(op, t, lo, hi)                                                                       \
	NIBBLES(0, t)                                                                              \
	op(0, 0, lo) HIGH NEXT(0, 0, hi) NIBBLES(64, t) op(0, 1, lo) HIGH NEXT(0, 1, hi)
#define FLY_SUB(fly) fly(FIRST, 0, 0, 1) fly(NEXT, 1, 2, 3) fly(NEXT, 2, 4, 5) fly(NEXT, 3, 6, 7)

#define READS(r) [a##r] "r"(a[r]), "m"(*(const struct sub_bytes *)a[r])

/* The sums of a Q_SUB in sixteen bits. @w: line of its first dword and of the half. */
ALWAYS void sub_bytes(__m256i c[BLOCK_ROWS][2], const uint8_t *w, const int8_t *const *a,
		      const uint32_t R)
{
	__m256i x, y, w0, w1;

#define MULTIPLY(text)                                                                             \
	__asm__(text                                                                               \
		: [c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]),                \
		  [c11] "=&x"(c[1][1]), [c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]),                \
		  [c30] "=&x"(c[3][0]), [c31] "=&x"(c[3][1]), [c40] "=&x"(c[4][0]),                \
		  [c41] "=&x"(c[4][1]), [c50] "=&x"(c[5][0]), [c51] "=&x"(c[5][1]), [x] "=&x"(x),  \
		  [y] "=&x"(y), [w0] "=&x"(w0), [w1] "=&x"(w1)                                     \
		: [w] "r"(w), [a0] "r"(a[0]), [a1] "r"(a[1]), [a2] "r"(a[2]), [a3] "r"(a[3]),      \
		  [a4] "r"(a[4]), [a5] "r"(a[5])                                                   \
		: "memory")
	switch (R) {
	case 6:
		MULTIPLY(SUB(STEPS_6));
		break;
	case 5:
		MULTIPLY(SUB(STEPS_5));
		break;
	case 4:
		MULTIPLY(SUB(STEPS_4));
		break;
	case 3:
		MULTIPLY(SUB(STEPS_3));
		break;
	case 2:
		MULTIPLY(SUB(STEPS_2));
		break;
	case 1:
		MULTIPLY(SUB(STEPS_1));
		break;
	}
#undef MULTIPLY
}

/* The same from nibbles, up to FLY_ROWS rows; two rows and one do both halves. */
ALWAYS void sub_nibbles(__m256i c[FLY_ROWS][2], const uint8_t *w, const int8_t *const *a,
			const uint32_t R)
{
	const __m256i mask = _mm256_set1_epi8(15);
	__m256i x, y, w0, w1, n0, n1;

#define MULTIPLY(text)                                                                             \
	__asm__(text                                                                               \
		: [c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]),                \
		  [c11] "=&x"(c[1][1]), [c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]),                \
		  [c30] "=&x"(c[3][0]), [c31] "=&x"(c[3][1]), [x] "=&x"(x), [y] "=&x"(y),          \
		  [w0] "=&x"(w0), [w1] "=&x"(w1), [n0] "=&x"(n0), [n1] "=&x"(n1)                   \
		: [mask] "x"(mask), [w] "r"(w), [a0] "r"(a[0]), [a1] "r"(a[1]), [a2] "r"(a[2]),    \
		  [a3] "r"(a[3])                                                                   \
		: "memory")
	switch (R) {
	case 4:
		MULTIPLY(FLY_SUB(FLY_4));
		break;
	case 3:
		MULTIPLY(FLY_SUB(FLY_3));
		break;
	case 2:
		MULTIPLY(FLY_SUB(FLY_2));
		break;
	case 1:
		MULTIPLY(FLY_SUB(FLY_1));
		break;
	}
#undef MULTIPLY
}

/* Pairs (row, vectors) of a block: two rows and one, read as nibbles, take both halves at once. */
ALWAYS uint32_t n_halves(bool unpacked, uint32_t R)
{
	return !unpacked && R <= 2 ? 2 : 1;
}

/* One group, R rows by one half of the columns from @half on, or both. @bytes: the nibbles, unpacked. */
ALWAYS void group_q4(struct sums *f, const struct q_row *const x[], const struct q4_group *w,
		     const uint8_t (*bytes)[2][64], const void *next, const uint32_t half,
		     const uint32_t R)
{
	const uint32_t H = n_halves(bytes, R);
	const __m256i low = _mm256_set1_epi16(0xff), middle = _mm256_set1_epi16(128);
	__m256i sum[BLOCK_ROWS][2];
	const int8_t *a[BLOCK_ROWS];

#pragma GCC unroll 4
	for (uint32_t v = 0; v < 2 * H; v++) {
		__m256i o = load(w->o[half * 16 + v * 8]);
		__m256i even = _mm256_sub_epi16(_mm256_and_si256(o, low), middle);
		__m256i odd = _mm256_sub_epi16(_mm256_srli_epi16(o, 8), middle);

#pragma GCC unroll 6
		for (uint32_t r = 0; r < R; r++)
			sum[v / 2 * R + r][v % 2] =
				_mm256_add_epi32(_mm256_madd_epi16(even, pair(x[r]->sums)),
						 _mm256_madd_epi16(odd, pair(x[r]->sums + 2)));
	}
#pragma GCC unroll 1
	for (uint32_t sub = 0; sub < Q_GROUP / Q_SUB; sub++) {
		__m256i c[BLOCK_ROWS][2];

#pragma GCC unroll 6
		for (uint32_t r = 0; r < BLOCK_ROWS; r++)
			a[r] = x[r < R ? r : 0]->a + sub * Q_SUB;
		ask_for(next, sizeof(*w), half * 4 + sub, 8 / H);
		if (bytes)
			sub_bytes(c, bytes[sub * 8][half], a, R);
		else
			sub_nibbles(c, w->q[sub * 4][half], a, R);
#pragma GCC unroll 4
		for (uint32_t v = 0; v < 2 * H; v++) {
			__m256i s = widen(w->s + half * 16 + v * 8);

			s = _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
			s = _mm256_srl_epi16(s, _mm_cvtsi32_si128((int)sub * 4));
			s = _mm256_and_si256(s, _mm256_set1_epi16(15));
#pragma GCC unroll 6
			for (uint32_t r = 0; r < R; r++) {
				__m256i *to = &sum[v / 2 * R + r][v % 2];

				*to = _mm256_add_epi32(
					*to, _mm256_madd_epi16(c[v / 2 * R + r][v % 2], s));
			}
		}
	}
#pragma GCC unroll 4
	for (uint32_t v = 0; v < 2 * H; v++)
#pragma GCC unroll 6
		for (uint32_t r = 0; r < R; r++)
			add_scaled(f->f[r] + half * 16 + v * 8, sum[v / 2 * R + r][v % 2],
				   w->d + half * 16 + v * 8, x[r]->d);
}

/* --- q8 ------------------------------------------------------------------------------------------- */

#define WEIGHTS(h, k)                                                                              \
	"vpxor " #h "+128*" #k "(%[w]), %[flip], %[w0]\n\t"                                        \
	"vpxor " #h "+32+128*" #k "(%[w]), %[flip], %[w1]\n\t"
#define SIGNED(r, c, k)                                                                            \
	"vpbroadcastd 4*" #k "(%[a" #r "]), %[x]\n\t"                                              \
	"vpabsb %[x], %[size]\n\t"                                                                 \
	"vpsignb %[x], %[w0], %[y]\n\t"                                                            \
	"vpsignb %[x], %[w1], %[x]\n\t"                                                            \
	"vpmaddubsw %[y], %[size], %[y]\n\t"                                                       \
	"vpmaddubsw %[x], %[size], %[x]\n\t"                                                       \
	"vpmaddwd %[y], %[ones], %[y]\n\t"                                                         \
	"vpmaddwd %[x], %[ones], %[x]\n\t"                                                         \
	"vpaddd %[y], %[c" #c "0], %[c" #c "0]\n\t"                                                \
	"vpaddd %[x], %[c" #c "1], %[c" #c "1]\n\t"
#define SIGNED_4(k) WEIGHTS(0, k) SIGNED(0, 0, k) SIGNED(1, 1, k) SIGNED(2, 2, k) SIGNED(3, 3, k)
#define SIGNED_3(k) WEIGHTS(0, k) SIGNED(0, 0, k) SIGNED(1, 1, k) SIGNED(2, 2, k)
#define SIGNED_2(k)                                                                                \
	WEIGHTS(0, k)                                                                              \
	SIGNED(0, 0, k) SIGNED(1, 1, k) WEIGHTS(64, k) SIGNED(0, 2, k) SIGNED(1, 3, k)
#define SIGNED_1(k)    WEIGHTS(0, k) SIGNED(0, 0, k) WEIGHTS(64, k) SIGNED(0, 1, k)
#define SIGNED_SUB(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)

/* Adds the sums of a Q_SUB in 32 bits. @w: line of its first dword and of the half. */
ALWAYS void sub_signed(__m256i c[FLY_ROWS][2], const uint8_t *w, const int8_t *const *a,
		       const uint32_t R)
{
	const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
	__m256i x, y, w0, w1, size;

#define MULTIPLY(text)                                                                             \
	__asm__(text                                                                               \
		: [c00] "+x"(c[0][0]), [c01] "+x"(c[0][1]), [c10] "+x"(c[1][0]),                   \
		  [c11] "+x"(c[1][1]), [c20] "+x"(c[2][0]), [c21] "+x"(c[2][1]),                   \
		  [c30] "+x"(c[3][0]), [c31] "+x"(c[3][1]), [x] "=&x"(x), [y] "=&x"(y),            \
		  [w0] "=&x"(w0), [w1] "=&x"(w1), [size] "=&x"(size)                               \
		: [flip] "x"(flip), [ones] "x"(ones), [w] "r"(w), [a0] "r"(a[0]), [a1] "r"(a[1]),  \
		  [a2] "r"(a[2]), [a3] "r"(a[3])                                                   \
		: "memory")
	switch (R) {
	case 4:
		MULTIPLY(SIGNED_SUB(SIGNED_4));
		break;
	case 3:
		MULTIPLY(SIGNED_SUB(SIGNED_3));
		break;
	case 2:
		MULTIPLY(SIGNED_SUB(SIGNED_2));
		break;
	case 1:
		MULTIPLY(SIGNED_SUB(SIGNED_1));
		break;
	}
#undef MULTIPLY
}

ALWAYS void group_q8(struct sums *f, const struct q_row *const x[], const struct q8_group *w,
		     const void *next, const uint32_t half, const uint32_t R)
{
	const uint32_t H = n_halves(false, R);
	__m256i c[FLY_ROWS][2];
	const int8_t *a[FLY_ROWS];

#pragma GCC unroll 4
	for (uint32_t i = 0; i < FLY_ROWS; i++)
		c[i][0] = c[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
	for (uint32_t sub = 0; sub < Q_GROUP / Q_SUB; sub++) {
#pragma GCC unroll 4
		for (uint32_t r = 0; r < FLY_ROWS; r++)
			a[r] = x[r < R ? r : 0]->a + sub * Q_SUB;
		ask_for(next, sizeof(*w), half * 4 + sub, 8 / H);
		sub_signed(c, w->u[sub * 8][half], a, R);
	}
#pragma GCC unroll 4
	for (uint32_t v = 0; v < 2 * H; v++)
#pragma GCC unroll 4
		for (uint32_t r = 0; r < R; r++)
			add_scaled(f->f[r] + half * 16 + v * 8, c[v / 2 * R + r][v % 2],
				   w->d + half * 16 + v * 8, x[r]->d);
}

/* --- tiles ---------------------------------------------------------------------------------------- */

/* Groups [first, first + n) of the tile, R rows from @row on. */
ALWAYS void rows_run(const struct q_tile *t, uint32_t row, uint32_t first, uint32_t n,
		     const uint8_t (*bytes)[2][64], const bool q4, const uint32_t R)
{
	struct sums f;

	for (uint32_t r = 0; r < R; r++) {
		const float *y = t->y[row + r] + t->y_col;

		if (t->accumulate || first > 0)
			__builtin_memcpy(f.f[r], y, t->n_cols * sizeof(*y));
		else
			__builtin_memset(f.f[r], 0, sizeof(f.f[r]));
	}
	for (uint32_t g = first; g < first + n; g++) {
		const struct q_row *x[BLOCK_ROWS];

#pragma GCC unroll 6
		for (uint32_t r = 0; r < R; r++)
			x[r] = t->x[row + r] + t->first + g;
#pragma GCC unroll 1
		for (uint32_t half = 0; half < 2; half += n_halves(bytes, R)) {
			const struct q4_group *w4 = (const struct q4_group *)t->w + g;
			const struct q8_group *w8 = (const struct q8_group *)t->w + g;
			bool ask = row == 0; /* past the last group is the next panel */

			if (q4)
				group_q4(&f, x, w4, bytes ? bytes + (g - first) * 32 : NULL,
					 ask ? w4 + (bytes ? RUN : AHEAD) : NULL, half, R);
			else
				group_q8(&f, x, w8, ask ? w8 + AHEAD : NULL, half, R);
		}
	}
	for (uint32_t r = 0; r < R; r++)
		__builtin_memcpy(t->y[row + r] + t->y_col, f.f[r], t->n_cols * sizeof(float));
}

/* The rows from @row on, at most FLY_ROWS. */
ALWAYS void last_rows(const struct q_tile *t, uint32_t row, uint32_t first, uint32_t n,
		      const bool q4)
{
	switch (t->n_rows - row) {
	case 4:
		rows_run(t, row, first, n, NULL, q4, 4);
		break;
	case 3:
		rows_run(t, row, first, n, NULL, q4, 3);
		break;
	case 2:
		rows_run(t, row, first, n, NULL, q4, 2);
		break;
	case 1:
		rows_run(t, row, first, n, NULL, q4, 1);
		break;
	}
}

static void unpack(uint8_t (*bytes)[2][64], const struct q4_group *w)
{
	const __m256i nibble = _mm256_set1_epi8(15);

	for (uint32_t i = 0; i < 16; i++)
		for (uint32_t j = 0; j < 4; j++) {
			uint32_t half = j / 2, at = j % 2 * 32;
			__m256i x = load(w->q[i][half] + at);

			_mm256_store_si256((__m256i *)(bytes[2 * i][half] + at),
					   _mm256_and_si256(x, nibble));
			_mm256_store_si256((__m256i *)(bytes[2 * i + 1][half] + at),
					   _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
		}
}

void quant_tile_q4_avx2(const struct q_tile *t)
{
	const struct q4_group *w = t->w;
	uint8_t bytes[RUN * 32][2][64] __attribute__((aligned(64)));

	if (t->n_rows <= FLY_ROWS) {
		last_rows(t, 0, 0, t->n_groups, true);
		return;
	}
	for (uint32_t g = 0; g < t->n_groups; g += RUN) {
		uint32_t n = t->n_groups - g < RUN ? t->n_groups - g : RUN, row = 0;

		for (uint32_t i = 0; i < n; i++)
			unpack(bytes + i * 32, w + g + i);
		for (; row + 6 <= t->n_rows; row += 6)
			rows_run(t, row, g, n, bytes, true, 6);
		if (t->n_rows - row == 5)
			rows_run(t, row, g, n, bytes, true, 5);
		else
			last_rows(t, row, g, n, true);
	}
}

void quant_tile_q8_avx2(const struct q_tile *t)
{
	uint32_t run = t->n_rows <= FLY_ROWS ? t->n_groups : RUN;

	for (uint32_t g = 0; g < t->n_groups; g += run) {
		uint32_t n = t->n_groups - g < run ? t->n_groups - g : run, row = 0;

		for (; row + 4 <= t->n_rows; row += 4)
			rows_run(t, row, g, n, NULL, false, 4);
		last_rows(t, row, g, n, false);
	}
}
