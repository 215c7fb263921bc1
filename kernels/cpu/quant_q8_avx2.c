/* SPDX-License-Identifier: Apache-2.0 */
/* The q8 product in AVX2. pmaddubsw wants one unsigned side: the row's sign goes over to the weight, and the two
 * products of 127 * 127 that it adds in sixteen bits are 32258. Nothing saturates; pmaddwd makes 32 bits of it. */
#include "quant.h"

#define GROUP struct q8_group
#define LINES u
#define RUN   4u /* groups: 16 KB */

struct scales {
	float d[16];
} __attribute__((aligned(64)));

#include "quant_avx2.h"

ALWAYS void make_scales(struct scales ret[2], const struct q8_group *w)
{
#pragma GCC unroll 4
	for (uint32_t i = 0; i < 4; i++)
		store(ret[i / 2].d + i % 2 * 8, floats(w->d + i * 8));
}

#define ZERO(c, r, h, k)                                                                           \
	"vpxor %[c" #c "0], %[c" #c "0], %[c" #c "0]\n\t"                                          \
	"vpxor %[c" #c "1], %[c" #c "1], %[c" #c "1]\n\t"
/* Dword @k of half @h, as signed numbers; then added to the sum. */
#define WEIGHTS(h, k)                                                                              \
	"vpxor 128*" #k "+64*" #h "(%[w]), %[flip], %[w0]\n\t"                                     \
	"vpxor 128*" #k "+64*" #h "+32(%[w]), %[flip], %[w1]\n\t"
#define ADD(c, r, h, k)                                                                            \
	"vpbroadcastd 4*" #k "(%[x" #r "],%[at]), %[x]\n\t"                                        \
	"vpabsb %[x], %[size]\n\t"                                                                 \
	"vpsignb %[x], %[w0], %[y]\n\t"                                                            \
	"vpsignb %[x], %[w1], %[x]\n\t"                                                            \
	"vpmaddubsw %[y], %[size], %[y]\n\t"                                                       \
	"vpmaddubsw %[x], %[size], %[x]\n\t"                                                       \
	"vpmaddwd %[y], %[ones], %[y]\n\t"                                                         \
	"vpmaddwd %[x], %[ones], %[x]\n\t"                                                         \
	"vpaddd %[y], %[c" #c "0], %[c" #c "0]\n\t"                                                \
	"vpaddd %[x], %[c" #c "1], %[c" #c "1]\n\t"
#define HALF(sums)                                                                                 \
	ASK(0)                                                                                     \
	WEIGHTS(0, 0)                                                                              \
	sums(ADD, 0) ASK(1) WEIGHTS(0, 1) sums(ADD, 1) ASK(2) WEIGHTS(0, 2) sums(ADD, 2) ASK(3)    \
		WEIGHTS(0, 3) sums(ADD, 3) "add $256, %[next]\n\t"
#define TURN(sums, k, left, right)                                                                 \
	ASK(left)                                                                                  \
	WEIGHTS(0, k) sums##_LEFT(ADD, k) ASK(right) WEIGHTS(1, k) sums##_RIGHT(ADD, k)
#define BOTH(sums)                                                                                 \
	TURN(sums, 0, 0, 1)                                                                        \
	TURN(sums, 1, 2, 3) TURN(sums, 2, 4, 5) TURN(sums, 3, 6, 7) "add $512, %[next]\n\t"

#define NEXT_FOUR                                                                                  \
	"add $512, %[w]\n\t"                                                                       \
	"add $16, %[at]\n\t"                                                                       \
	"cmp $128, %[at]\n\t"                                                                      \
	"jne 1b\n\t"

ALWAYS void multiply(struct sums *sums, const struct q_row *const *rows, const uint8_t *w,
		     const uint8_t *next, const struct scales *scales, const uint32_t R)
{
	const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
	__m256i c[BLOCK_ROWS][2], x, y, w0, w1, size;
	uint64_t at = 0;

	(void)scales;
#define MULTIPLY(columns, all)                                                                     \
	__asm__ volatile(                                                                          \
		all(ZERO, 0) "1:\n\t" columns(all) NEXT_FOUR all(STORE, 0)                         \
		: [c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]),                \
		  [c11] "=&x"(c[1][1]), [c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]),                \
		  [c30] "=&x"(c[3][0]), [c31] "=&x"(c[3][1]), [x] "=&x"(x), [y] "=&x"(y),          \
		  [w0] "=&x"(w0), [w1] "=&x"(w1), [size] "=&x"(size), [w] "+&r"(w),                \
		  [next] "+&r"(next), [at] "+&r"(at)                                               \
		: [sums] "r"(sums), [x0] "r"(rows[0]), [x1] "r"(rows[1]), [x2] "r"(rows[2]),       \
		  [x3] "r"(rows[3]), [flip] "x"(flip), [ones] "x"(ones)                            \
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

void quant_tile_q8_avx2(const struct q_tile *t)
{
	struct scales scales[RUN][2];

	tile(t, scales);
}
