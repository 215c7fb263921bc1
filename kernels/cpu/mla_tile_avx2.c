/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of bf16 rows in AVX2: twelve accumulators, and numbers made into f32 on the
 * way, by a shift or a mask on the ports that multiply-adds leave free.
 *
 * The loops are assembly: given intrinsics, gcc 12 sends accumulators through memory, at two thirds of
 * the speed. c[r] are the sums of position or head r, w0 and w1 what all of them are multiplied by. */
#include <immintrin.h>

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK 6u /* positions, or heads */

#define SUMS                                                                                       \
	[c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]), [c11] "=&x"(c[1][1]),    \
		[c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]), [c30] "=&x"(c[3][0]),                  \
		[c31] "=&x"(c[3][1]), [c40] "=&x"(c[4][0]), [c41] "=&x"(c[4][1]),                  \
		[c50] "=&x"(c[5][0]), [c51] "=&x"(c[5][1]), [w0] "=&x"(w0), [w1] "=&x"(w1),        \
		[x] "=&x"(x)
#define ZERO(r)                                                                                    \
	"vxorps %[c" #r "0], %[c" #r "0], %[c" #r "0]\n\t"                                         \
	"vxorps %[c" #r "1], %[c" #r "1], %[c" #r "1]\n\t"
#define ZEROS ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5)
#define BEGIN(r)                                                                                   \
	"vmovups 64*" #r "(%[s]), %[c" #r "0]\n\t"                                                 \
	"vmovups 32+64*" #r "(%[s]), %[c" #r "1]\n\t"
#define ADD(r)                                                                                     \
	"vfmadd231ps %[x], %[w0], %[c" #r "0]\n\t"                                                 \
	"vfmadd231ps %[x], %[w1], %[c" #r "1]\n\t"

/* --- scores --------------------------------------------------------------------------------------- */

/* The second numbers of a pair, and the first. */
#define SECOND(r, at) "vpbroadcastd " at ", %[x]\n\tvpand %[mask], %[x], %[x]\n\t" ADD(r)
#define FIRST(r, at)  "vpbroadcastd " at ", %[x]\n\tvpslld $16, %[x], %[x]\n\t" ADD(r)

#define BEGIN_2    BEGIN(0) BEGIN(1)
#define BEGIN_4    BEGIN_2 BEGIN(2) BEGIN(3)
#define BEGIN_6    BEGIN_4 BEGIN(4) BEGIN(5)
#define ROWS_2(op) op(0, "(%[a])") op(1, "(%[a],%[step])")
#define ROWS_4(op) ROWS_2(op) op(2, "(%[a],%[step],2)") op(3, "(%[b])")
#define ROWS_6(op) ROWS_4(op) op(4, "(%[b],%[step])") op(5, "(%[b],%[step],2)")
#define SCORES(rows)                                                                               \
	"1:\n\t"                                                                                   \
	"prefetcht0 (%[next])\n\t"                                                                 \
	"vpand (%[q]), %[mask], %[w0]\n\t"                                                         \
	"vpand 32(%[q]), %[mask], %[w1]\n\t" rows(SECOND) "vmovdqu (%[q]), %[w0]\n\t"              \
							  "vmovdqu 32(%[q]), %[w1]\n\t"            \
							  "vpslld $16, %[w0], %[w0]\n\t"           \
							  "vpslld $16, %[w1], %[w1]\n\t" rows(     \
								  FIRST) "add $64, %[q]\n\t"       \
									 "add $32, %[next]\n\t"    \
									 "add $4, %[a]\n\t"        \
									 "add $4, %[b]\n\t"        \
									 "dec %[n]\n\t"            \
									 "jnz 1b\n\t"

/* R positions by all heads; @next will be read after it. */
ALWAYS void scores(const struct mla_tile *t, uint32_t first, const uint8_t *next, const uint32_t R)
{
	const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
	const uint16_t *a = t->rows + first * t->row_step, *b = a + (R > 3 ? 3 : 0) * t->row_step;
	const uint32_t *q = t->q;
	float *s = t->s + first * MLA_HEADS;
	__m256 c[BLOCK][2], w0, w1, x;
	uint64_t n = t->n_pairs;

#define MULTIPLY(text)                                                                             \
	__asm__(text                                                                               \
		: SUMS, [a] "+&r"(a), [b] "+&r"(b), [q] "+&r"(q), [next] "+&r"(next), [n] "+&r"(n) \
		: [s] "r"(s), [step] "r"(2 * t->row_step), [mask] "x"(mask)                        \
		: "memory", "cc")
	switch (R) {
	case 6:
		MULTIPLY(BEGIN_6 SCORES(ROWS_6));
		break;
	case 4:
		MULTIPLY(BEGIN_4 SCORES(ROWS_4));
		break;
	case 2:
		MULTIPLY(BEGIN_2 SCORES(ROWS_2));
		break;
	}
#undef MULTIPLY
#pragma GCC unroll 6
	for (uint32_t r = 0; r < R; r++) {
		_mm256_storeu_ps(s + r * MLA_HEADS, c[r][0]);
		_mm256_storeu_ps(s + r * MLA_HEADS + 8, c[r][1]);
	}
}

void mla_scores_bf16_avx2(const struct mla_tile *t)
{
	uint32_t p = 0;

	for (; p + BLOCK < t->n_pos; p += BLOCK)
		scores(t, p, (const uint8_t *)(t->rows + (p + BLOCK) * t->row_step), BLOCK);
	switch (t->n_pos - p) { /* an even number */
	case 6:
		scores(t, p, t->next, 6);
		break;
	case 4:
		scores(t, p, t->next, 4);
		break;
	case 2:
		scores(t, p, t->next, 2);
		break;
	}
}

/* --- values --------------------------------------------------------------------------------------- */

#define WEIGHT(r, at) "vbroadcastss " at "+4*" #r "(%[s]), %[x]\n\t" ADD(r)
#define HEADS_1(at)   WEIGHT(0, at)
#define HEADS_2(at)   HEADS_1(at) WEIGHT(1, at)
#define HEADS_3(at)   HEADS_2(at) WEIGHT(2, at)
#define HEADS_4(at)   HEADS_3(at) WEIGHT(3, at)
#define HEADS_5(at)   HEADS_4(at) WEIGHT(4, at)
#define HEADS_6(at)   HEADS_5(at) WEIGHT(5, at)
/* Even columns of a row's sixteen into w0, odd ones into w1. */
#define COLUMNS(at)                                                                                \
	"vmovdqu " at ", %[w0]\n\t"                                                                \
	"vpand %[w0], %[mask], %[w1]\n\t"                                                          \
	"vpslld $16, %[w0], %[w0]\n\t"
#define VALUES(heads)                                                                              \
	"1:\n\t"                                                                                   \
	"prefetcht0 64(%[v],%[step])\n\t" COLUMNS("(%[v],%[step])")                                \
		heads("64") "prefetcht0 64(%[v])\n\t" COLUMNS("(%[v])")                            \
			heads("0") "lea (%[v],%[step],2), %[v]\n\t"                                \
				   "add $128, %[s]\n\t"                                            \
				   "sub $2, %[n]\n\t"                                              \
				   "jnz 1b\n\t"

_Static_assert(MLA_HEADS * sizeof(float) == 64, "BEGIN, HEADS_n and VALUES say so");

/* R heads by sixteen columns. */
ALWAYS void values(const struct mla_tile *t, uint32_t head, uint32_t col, const uint32_t R)
{
	const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
	const uint16_t *v = t->rows + col;
	const float *s = t->s + head;
	__m256 c[BLOCK][2], w0, w1, x;
	uint64_t n = t->n_pos;

#define MULTIPLY(text)                                                                             \
	__asm__(ZEROS text                                                                         \
		: SUMS, [v] "+&r"(v), [s] "+&r"(s), [n] "+&r"(n)                                   \
		: [step] "r"(2 * t->row_step), [mask] "x"(mask)                                    \
		: "memory", "cc")
	switch (R) {
	case 6:
		MULTIPLY(VALUES(HEADS_6));
		break;
	case 5:
		MULTIPLY(VALUES(HEADS_5));
		break;
	case 4:
		MULTIPLY(VALUES(HEADS_4));
		break;
	case 3:
		MULTIPLY(VALUES(HEADS_3));
		break;
	case 2:
		MULTIPLY(VALUES(HEADS_2));
		break;
	case 1:
		MULTIPLY(VALUES(HEADS_1));
		break;
	}
#undef MULTIPLY
#pragma GCC unroll 6
	for (uint32_t r = 0; r < R; r++) {
		__m256 a = _mm256_unpacklo_ps(c[r][0], c[r][1]); /* columns 0..3, 8..11 */
		__m256 b = _mm256_unpackhi_ps(c[r][0], c[r][1]); /* 4..7, 12..15 */
		__m256 correction = _mm256_broadcast_ss(t->correction + head + r);
		float *y = t->acc + (head + r) * t->acc_step + col;

		_mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_loadu_ps(y), correction,
						    _mm256_permute2f128_ps(a, b, 0x20)));
		_mm256_storeu_ps(y + 8, _mm256_fmadd_ps(_mm256_loadu_ps(y + 8), correction,
							_mm256_permute2f128_ps(a, b, 0x31)));
	}
}

static void values_block(const struct mla_tile *t, uint32_t head, uint32_t n, uint32_t col)
{
	switch (n) {
	case 6:
		values(t, head, col, 6);
		break;
	case 5:
		values(t, head, col, 5);
		break;
	case 4:
		values(t, head, col, 4);
		break;
	case 3:
		values(t, head, col, 3);
		break;
	case 2:
		values(t, head, col, 2);
		break;
	case 1:
		values(t, head, col, 1);
		break;
	}
}

/* A line of every row at a time, for all heads. */
void mla_values_bf16_avx2(const struct mla_tile *t)
{
	uint32_t n_blocks = (t->n_heads + BLOCK - 1) / BLOCK;

	for (uint32_t col = 0; col < t->n_cols; col += MLA_COLUMNS)
		for (uint32_t b = 0; b < n_blocks; b++) {
			uint32_t head = t->n_heads * b / n_blocks;
			uint32_t n = t->n_heads * (b + 1) / n_blocks - head;

			values_block(t, head, n, col);
			values_block(t, head, n, col + 16);
		}
}
