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

#define SIZE "%%ymm8"
#define FLIP "%%ymm9"
#define ONES "%%ymm10"

#define ZERO(c, r, h, k)                                                                           \
	"vpxor " C##c##0 ", " C##c##0 ", " C##c##0 "\n\t"                                          \
						   "vpxor " C##c##1 ", " C##c##1 ", " C##c##1 "\n\t"
/* Dword @k of half @h, as signed numbers; then added to the sum. */
#define WEIGHTS(h, k)                                                                              \
	"prefetcht0 2048*" #h "+64*" #k "(%[next])\n\t"                                            \
	"vpxor 128*" #k "+64*" #h "(%[w]), " FLIP ", " W0 "\n\t"                                   \
	"vpxor 128*" #k "+64*" #h "+32(%[w]), " FLIP ", " W1 "\n\t"
#define ADD(c, r, h, k)                                                                            \
	"vpbroadcastd 4*" #k "(%[x" #r "],%[at]), " X "\n\t"                                       \
	"vpabsb " X ", " SIZE "\n\t"                                                               \
	"vpsignb " X ", " W0 ", " Y "\n\t"                                                         \
	"vpsignb " X ", " W1 ", " X "\n\t"                                                         \
	"vpmaddubsw " Y ", " SIZE ", " Y "\n\t"                                                    \
	"vpmaddubsw " X ", " SIZE ", " X "\n\t"                                                    \
	"vpmaddwd " Y ", " ONES ", " Y "\n\t"                                                      \
	"vpmaddwd " X ", " ONES ", " X "\n\t"                                                      \
	"vpaddd " Y ", " C##c##0 ", " C##c##0 "\n\t"                                               \
					      "vpaddd " X ", " C##c##1 ", " C##c##1 "\n\t"
#define HALF(sums)                                                                                 \
	WEIGHTS(0, 0)                                                                              \
	sums(ADD, 0) WEIGHTS(0, 1) sums(ADD, 1) WEIGHTS(0, 2) sums(ADD, 2) WEIGHTS(0, 3)           \
		sums(ADD, 3)
#define TURN(sums, k) WEIGHTS(0, k) sums##_LEFT(ADD, k) WEIGHTS(1, k) sums##_RIGHT(ADD, k)
#define BOTH(sums)    TURN(sums, 0) TURN(sums, 1) TURN(sums, 2) TURN(sums, 3)
#define STORE(c, r, h, k)                                                                          \
	"vmovdqa " C##c##0 ", " AT_SUM(r, h, 0) "\n\t"                                             \
						"vmovdqa " C##c##1 ", " AT_SUM(r, h, 1) "\n\t"

ALWAYS void multiply(struct sums *sums, const struct q_row *const *rows, const uint8_t *w,
		     const uint8_t *next, const struct scales *scales, const uint32_t R)
{
	const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
	uint64_t at = 0;

	(void)scales;
#define MULTIPLY(columns, all)                                                                     \
	__asm__ volatile(                                                                          \
		"vmovdqa %[flip], " FLIP "\n\t"                                                    \
		"vmovdqa %[ones], " ONES                                                           \
		"\n\t" all(ZERO, 0) "1:\n\t" columns(all) "add $512, %[w]\n\t"                     \
							  "add $256, %[next]\n\t"                  \
							  "add $16, %[at]\n\t"                     \
							  "cmp $128, %[at]\n\t"                    \
							  "jne 1b\n\t" all(STORE, 0)               \
		: [w] "+&r"(w), [next] "+&r"(next), [at] "+&r"(at)                                 \
		: [sums] "r"(sums), [x0] "r"(rows[0]), [x1] "r"(rows[1]), [x2] "r"(rows[2]),       \
		  [x3] "r"(rows[3]), [flip] "m"(flip), [ones] "m"(ones)                            \
		: REGISTERS)
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
