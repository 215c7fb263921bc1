/* SPDX-License-Identifier: Apache-2.0 */
/* The q4 product in AVX2. pmaddubsw adds two products of bytes in sixteen bits, and the nibble itself is the
 * unsigned side: 8 times 2 products of 15 * 127 are 30480, so sixteen bits hold the sum over a Q_SUB, and
 * one pmaddwd takes it to 32 bits times s; o joins through the rows' sums. Nothing saturates. */
#include "quant.h"

#define GROUP struct q4_group
#define LINES q
#define RUN   8u /* groups: 18 KB */

struct scales {
	int16_t s[4][32];          /* by Q_SUB; a column has it twice */
	int16_t even[32], odd[32]; /* o - 128 of Q_SUB 0 and 2, and of 1 and 3 */
	float d[16];
} __attribute__((aligned(64)));

#include "quant_avx2.h"

_Static_assert(sizeof(struct scales) == 448, "the assembly says so");

ALWAYS void make_scales(struct scales ret[2], const struct q4_group *w)
{
	const __m256i nibble = _mm256_set1_epi16(15), low = _mm256_set1_epi16(0xff),
		      middle = _mm256_set1_epi16(128);

#pragma GCC unroll 4
	for (uint32_t i = 0; i < 4; i++) {
		struct scales *to = &ret[i / 2];
		uint32_t at = i % 2 * 16;
		__m256i s = widen(w->s + i * 8), o = load(w->o[i * 8]);

		s = _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
#pragma GCC unroll 4
		for (uint32_t sub = 0; sub < 4; sub++)
			store(to->s[sub] + at,
			      _mm256_and_si256(_mm256_srli_epi16(s, (int)sub * 4), nibble));
		store(to->even + at, _mm256_sub_epi16(_mm256_and_si256(o, low), middle));
		store(to->odd + at, _mm256_sub_epi16(_mm256_srli_epi16(o, 8), middle));
		store(to->d + at / 2, floats(w->d + i * 8));
	}
}

/* What the offsets make of the rows' sums. */
ALWAYS void begin(struct sums *sums, const struct q_row *const *rows, const struct scales *s,
		  const uint32_t R)
{
#pragma GCC unroll 4
	for (uint32_t r = 0; r < R; r++) {
		int32_t pairs[2];
		__m256i even, odd;

		__builtin_memcpy(pairs, rows[r]->sums, sizeof(pairs));
		even = _mm256_set1_epi32(pairs[0]);
		odd = _mm256_set1_epi32(pairs[1]);
#pragma GCC unroll 2
		for (uint32_t v = 0; v < 16; v += 8)
			store(sums->i[r] + v,
			      _mm256_add_epi32(_mm256_madd_epi16(even, load(s->even + 2 * v)),
					       _mm256_madd_epi16(odd, load(s->odd + 2 * v))));
	}
}

/* Dword @k of a Q_SUB by w0 and w1: into the sum, or added to it. */
#define FIRST(c, r, h, k)                                                                          \
	"vpbroadcastd 4*" #k "(%[x" #r "],%[at]), %[x]\n\t"                                        \
	"vpmaddubsw %[x], %[w0], %[c" #c "0]\n\t"                                                  \
	"vpmaddubsw %[x], %[w1], %[c" #c "1]\n\t"
#define NEXT(c, r, h, k)                                                                           \
	"vpbroadcastd 4*" #k "(%[x" #r "],%[at]), %[x]\n\t"                                        \
	"vpmaddubsw %[x], %[w0], %[y]\n\t"                                                         \
	"vpmaddubsw %[x], %[w1], %[x]\n\t"                                                         \
	"vpaddw %[y], %[c" #c "0], %[c" #c "0]\n\t"                                                \
	"vpaddw %[x], %[c" #c "1], %[c" #c "1]\n\t"

/* Line @t of half @h: dword 2t low and 2t + 1 high. */
#define LOW(h, t)                                                                                  \
	"vmovdqu 128*" #t "+64*" #h "(%[w]), %[n0]\n\t"                                            \
	"vmovdqu 128*" #t "+64*" #h "+32(%[w]), %[n1]\n\t"                                         \
	"vpand %[n0], %[mask], %[w0]\n\t"                                                          \
	"vpand %[n1], %[mask], %[w1]\n\t"
#define HIGH                                                                                       \
	"vpsrlw $4, %[n0], %[n0]\n\t"                                                              \
	"vpsrlw $4, %[n1], %[n1]\n\t"                                                              \
	"vpand %[n0], %[mask], %[w0]\n\t"                                                          \
	"vpand %[n1], %[mask], %[w1]\n\t"
#define STEP(sums, op, h, t, low, high) LOW(h, t) sums(op, low) HIGH sums(NEXT, high)
#define HALF(sums)                                                                                 \
	ASK(0)                                                                                     \
	STEP(sums, FIRST, 0, 0, 0, 1)                                                              \
	ASK(1)                                                                                     \
	STEP(sums, NEXT, 0, 1, 2, 3)                                                               \
	ASK(2)                                                                                     \
	STEP(sums, NEXT, 0, 2, 4, 5) ASK(3) STEP(sums, NEXT, 0, 3, 6, 7) "add $256, %[next]\n\t"
#define BOTH(sums)                                                                                 \
	ASK(0)                                                                                     \
	STEP(sums##_LEFT, FIRST, 0, 0, 0, 1)                                                       \
	ASK(1)                                                                                     \
	STEP(sums##_RIGHT, FIRST, 1, 0, 0, 1)                                                      \
	ASK(2)                                                                                     \
	STEP(sums##_LEFT, NEXT, 0, 1, 2, 3)                                                        \
	ASK(3)                                                                                     \
	STEP(sums##_RIGHT, NEXT, 1, 1, 2, 3)                                                       \
	ASK(4)                                                                                     \
	STEP(sums##_LEFT, NEXT, 0, 2, 4, 5)                                                        \
	ASK(5)                                                                                     \
	STEP(sums##_RIGHT, NEXT, 1, 2, 4, 5)                                                       \
	ASK(6)                                                                                     \
	STEP(sums##_LEFT, NEXT, 0, 3, 6, 7)                                                        \
	ASK(7) STEP(sums##_RIGHT, NEXT, 1, 3, 6, 7) "add $512, %[next]\n\t"

/* A Q_SUB's sum times s joins the group's. */
#define JOIN(c, r, h, k)                                                                           \
	"vpmaddwd 448*" #h "(%[scales]), %[c" #c "0], %[c" #c "0]\n\t"                             \
	"vpmaddwd 448*" #h "+32(%[scales]), %[c" #c "1], %[c" #c "1]\n\t"                          \
	"vpaddd 512*" #h "+256+64*" #r "(%[sums]), %[c" #c "0], %[c" #c "0]\n\t"                   \
	"vpaddd 512*" #h "+288+64*" #r "(%[sums]), %[c" #c "1], %[c" #c "1]\n\t" STORE(c, r, h, k)

#define NEXT_SUB                                                                                   \
	"add $512, %[w]\n\t"                                                                       \
	"add $64, %[scales]\n\t"                                                                   \
	"add $32, %[at]\n\t"                                                                       \
	"cmp $128, %[at]\n\t"                                                                      \
	"jne 1b\n\t"

ALWAYS void multiply(struct sums *sums, const struct q_row *const *rows, const uint8_t *w,
		     const uint8_t *next, const struct scales *scales, const uint32_t R)
{
	const __m256i mask = _mm256_set1_epi8(15);
	__m256i c[BLOCK_ROWS][2], x, y, w0, w1, n0, n1;
	uint64_t at = 0;

	begin(&sums[0], rows, &scales[0], R);
	if (R <= 2)
		begin(&sums[1], rows, &scales[1], R);
#define MULTIPLY(columns, all)                                                                     \
	__asm__ volatile(                                                                          \
		"1:\n\t" columns(all) all(JOIN, 0) NEXT_SUB                                        \
		: [c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]),                \
		  [c11] "=&x"(c[1][1]), [c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]),                \
		  [c30] "=&x"(c[3][0]), [c31] "=&x"(c[3][1]), [x] "=&x"(x), [y] "=&x"(y),          \
		  [w0] "=&x"(w0), [w1] "=&x"(w1), [n0] "=&x"(n0), [n1] "=&x"(n1), [w] "+&r"(w),    \
		  [next] "+&r"(next), [scales] "+&r"(scales), [at] "+&r"(at)                       \
		: [sums] "r"(sums), [x0] "r"(rows[0]), [x1] "r"(rows[1]), [x2] "r"(rows[2]),       \
		  [x3] "r"(rows[3]), [mask] "x"(mask)                                              \
		: "memory", "cc")
	switch (R) {
	case 4:
		MULTIPLY(HALF, ROWS_4);
		break;
	case 3:
		MULTIPLY(HALF, ROWS_3);
		break;
	case 2:
		MULTIPLY(BOTH, PAIR);
		break;
	case 1:
		MULTIPLY(BOTH, ROW);
		break;
	}
#undef MULTIPLY
}

void quant_tile_q4_avx2(const struct q_tile *t)
{
	struct scales scales[RUN][2];

	tile(t, scales);
}
