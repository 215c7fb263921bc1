/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of int8 rows in AVX2: bytes are made numbers of 16 bits first, few at a time in L1, and
 * pmaddwd multiplies pairs of them; twelve accumulators.
 *
 * The loops are assembly, as in mla_tile_avx2.c: c[r] are the sums of position or head r, w0 and w1 what all of them
 * are multiplied by. */
#include <immintrin.h>

#include "cpu.h"

#define ALWAYS static inline __attribute__((always_inline))

#define BLOCK   6u  /* positions, or heads */
#define COLUMNS 64u /* of the values at a time: 8 KB of numbers */

#define SUMS                                                                                       \
	[c00] "=&x"(c[0][0]), [c01] "=&x"(c[0][1]), [c10] "=&x"(c[1][0]), [c11] "=&x"(c[1][1]),    \
		[c20] "=&x"(c[2][0]), [c21] "=&x"(c[2][1]), [c30] "=&x"(c[3][0]),                  \
		[c31] "=&x"(c[3][1]), [c40] "=&x"(c[4][0]), [c41] "=&x"(c[4][1]),                  \
		[c50] "=&x"(c[5][0]), [c51] "=&x"(c[5][1]), [w0] "=&x"(w0), [w1] "=&x"(w1),        \
		[x] "=&x"(x), [y] "=&x"(y)
#define ZERO(r)                                                                                    \
	"vpxor %[c" #r "0], %[c" #r "0], %[c" #r "0]\n\t"                                          \
	"vpxor %[c" #r "1], %[c" #r "1], %[c" #r "1]\n\t"
#define ZEROS ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5)
#define ADD(r, at)                                                                                 \
	"vpbroadcastd " at ", %[x]\n\t"                                                            \
	"vpmaddwd %[x], %[w0], %[y]\n\t"                                                           \
	"vpmaddwd %[x], %[w1], %[x]\n\t"                                                           \
	"vpaddd %[y], %[c" #r "0], %[c" #r "0]\n\t"                                                \
	"vpaddd %[x], %[c" #r "1], %[c" #r "1]\n\t"

/* As many as there are, up to sixteen bytes, and zeros. */
ALWAYS __m128i bytes(const uint8_t *p, uint32_t n)
{
	uint8_t some[16] = {};

	if (n >= sizeof(some))
		return _mm_loadu_si128((const __m128i *)p);
	__builtin_memcpy(some, p, n);
	return _mm_loadu_si128((const __m128i *)some);
}

/* y = y * a + sum * d, the latter rounded */
ALWAYS void add_scaled(float *y, __m256 a, __m256i sum, __m256 d)
{
	_mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_loadu_ps(y), a,
					    _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d)));
}

/* --- scores --------------------------------------------------------------------------------------- */

struct numbers {
	int16_t x[BLOCK][K_ENTRY_GROUP] __attribute__((aligned(32)));
};

_Static_assert(sizeof(struct numbers) == BLOCK * 256, "POSITION says so");

/* Pair @i of two. */
#define POSITION(r, i) ADD(r, "256*" #r "+4*" #i "(%[a])")
#define QUERIES(i)     "vmovdqu 64*" #i "(%[q]), %[w0]\n\tvmovdqu 32+64*" #i "(%[q]), %[w1]\n\t"
#define SCORES_1(i)    QUERIES(i) POSITION(0, i)
#define SCORES_2(i)    SCORES_1(i) POSITION(1, i)
#define SCORES_4(i)    SCORES_2(i) POSITION(2, i) POSITION(3, i)
#define SCORES_6(i)    SCORES_4(i) POSITION(4, i) POSITION(5, i)
#define SCORES(scores)                                                                             \
	ZEROS "1:\n\t"                                                                             \
	      "prefetcht0 (%[next])\n\t" scores(0) scores(1) "add $128, %[q]\n\t"                  \
							     "add $8, %[a]\n\t"                    \
							     "add $32, %[next]\n\t"                \
							     "dec %[n]\n\t"                        \
							     "jnz 1b\n\t"

/* @n numbers from @col on of R positions, and zeros up to the next sixteen. */
ALWAYS void widen(const struct mla_tile_int8 *t, uint32_t first, uint32_t col, uint32_t n,
		  const uint32_t R, struct numbers *ret)
{
	for (uint32_t r = 0; r < R; r++) {
		const uint8_t *row = t->rows + (first + r) * t->row_bytes + col;

#pragma GCC unroll 8
		for (uint32_t i = 0; i < n; i += 16)
			_mm256_store_si256((__m256i *)(ret->x[r] + i),
					   _mm256_cvtepi8_epi16(bytes(row + i, n - i)));
	}
}

/* R positions by all heads; @next will be read after it. */
ALWAYS void scores(const struct mla_tile_int8 *t, uint32_t first, const uint8_t *next,
		   const uint32_t R)
{
	const uint8_t *q = t->q;
	float *s = t->s + first * MLA_HEADS;
	struct numbers rows;

	for (uint32_t i = 0; i < t->rank; i += K_ENTRY_GROUP) {
		uint32_t numbers = cpu_entry_group(t->rank, i), g = i / K_ENTRY_GROUP;
		const float *q_d = t->q_d + g * MLA_HEADS;
		const int16_t *a = rows.x[0];
		uint64_t n = numbers / 4;
		__m256i c[BLOCK][2], w0, w1, x, y;

		if (numbers == K_ENTRY_GROUP)
			widen(t, first, i, K_ENTRY_GROUP, R, &rows);
		else
			widen(t, first, i, numbers, R, &rows);
#define MULTIPLY(text)                                                                             \
	__asm__(text                                                                               \
		: SUMS, [a] "+&r"(a), [q] "+&r"(q), [next] "+&r"(next), [n] "+&r"(n)               \
		:                                                                                  \
		: "memory", "cc")
		switch (R) {
		case 6:
			MULTIPLY(SCORES(SCORES_6));
			break;
		case 4:
			MULTIPLY(SCORES(SCORES_4));
			break;
		case 2:
			MULTIPLY(SCORES(SCORES_2));
			break;
		case 1:
			MULTIPLY(SCORES(SCORES_1));
			break;
		}
#undef MULTIPLY
#pragma GCC unroll 6
		for (uint32_t r = 0; r < R; r++)
#pragma GCC unroll 2
			for (uint32_t half = 0; half < 2; half++) {
				float *to = s + r * MLA_HEADS + half * 8;
				__m256 d =
					_mm256_mul_ps(_mm256_loadu_ps(q_d + half * 8),
						      _mm256_set1_ps(mla_row_d(t, first + r, g)));
				__m256 sum = i > 0 ? _mm256_loadu_ps(to) : _mm256_setzero_ps();

				_mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c[r][half]),
								     d, sum));
			}
	}
}

void mla_scores_int8_avx2(const struct mla_tile_int8 *t)
{
	uint32_t p = 0;

	for (; p + BLOCK < t->n_pos; p += BLOCK)
		scores(t, p, t->rows + (p + BLOCK) * t->row_bytes, BLOCK);
	if (p + BLOCK == t->n_pos) {
		scores(t, p, t->next, BLOCK);
		return;
	}
	for (; p + 4 <= t->n_pos; p += 4)
		scores(t, p, t->next, 4);
	for (; p + 2 <= t->n_pos; p += 2)
		scores(t, p, t->next, 2);
	if (p < t->n_pos)
		scores(t, p, t->next, 1);
}

/* --- values --------------------------------------------------------------------------------------- */

/* Pairs of positions, the first and third of four and then the others: of COLUMNS columns of the rows, and of the heads'
 * weights. */
struct pairs {
	int16_t rows[K_TILE_POSITIONS / 2][COLUMNS][2] __attribute__((aligned(32)));
	uint32_t w[K_TILE_POSITIONS / 2][MLA_HEADS] __attribute__((aligned(32)));
};

_Static_assert(COLUMNS * 4 == 256 && MLA_HEADS * 4 == 64, "HEAD and HEADS_n say so");

/* Pair @i of two. */
#define HEAD(r, i) ADD(r, "4*" #r "+64*" #i "(%[w])")
#define ROWS(i)    "vmovdqa 256*" #i "(%[v]), %[w0]\n\tvmovdqa 32+256*" #i "(%[v]), %[w1]\n\t"
#define HEADS_1(i) ROWS(i) HEAD(0, i)
#define HEADS_2(i) HEADS_1(i) HEAD(1, i)
#define HEADS_3(i) HEADS_2(i) HEAD(2, i)
#define HEADS_4(i) HEADS_3(i) HEAD(3, i)
#define HEADS_5(i) HEADS_4(i) HEAD(4, i)
#define HEADS_6(i) HEADS_5(i) HEAD(5, i)
#define VALUES(heads)                                                                              \
	ZEROS "1:\n\t" heads(0) heads(1) "add $512, %[v]\n\t"                                      \
					 "add $128, %[w]\n\t"                                      \
					 "dec %[n]\n\t"                                            \
					 "jnz 1b\n\t"

/* R heads by sixteen columns: those of @p from @from on. */
ALWAYS void values(const struct mla_tile_int8 *t, const struct pairs *p, uint32_t head,
		   uint32_t col, uint32_t from, const uint32_t R)
{
	const int16_t *v = p->rows[0][from];
	const uint32_t *w = p->w[0] + head;
	const float *w_d = t->w_d[col / K_ENTRY_GROUP];
	__m256i c[BLOCK][2], w0, w1, x, y;
	uint64_t n = (t->n_pos + 3) / 4;

#define MULTIPLY(text)                                                                             \
	__asm__(text : SUMS, [v] "+&r"(v), [w] "+&r"(w), [n] "+&r"(n) : : "memory", "cc")
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
		__m256 correction = _mm256_broadcast_ss(t->correction + head + r);
		__m256 d = _mm256_broadcast_ss(w_d + head + r);
		float *acc = t->acc + (head + r) * t->acc_step + col;

		add_scaled(acc, correction, c[r][0], d);
		add_scaled(acc + 8, correction, c[r][1], d);
	}
}

static void values_block(const struct mla_tile_int8 *t, const struct pairs *p, uint32_t head,
			 uint32_t n, uint32_t col, uint32_t from)
{
	switch (n) {
	case 6:
		values(t, p, head, col, from, 6);
		break;
	case 5:
		values(t, p, head, col, from, 5);
		break;
	case 4:
		values(t, p, head, col, from, 4);
		break;
	case 3:
		values(t, p, head, col, from, 3);
		break;
	case 2:
		values(t, p, head, col, from, 2);
		break;
	case 1:
		values(t, p, head, col, from, 1);
		break;
	}
}

static void pair_weights(const struct mla_tile_int8 *t, uint32_t group, struct pairs *p)
{
	const __m256i even = _mm256_set1_epi32((int)0x00ff00ff);

	for (uint32_t i = 0; i < (t->n_pos + 3) / 4; i++)
		for (uint32_t h = 0; h < MLA_HEADS; h += 8) {
			__m256i four = _mm256_loadu_si256((const __m256i *)(t->w[group][i] + h));
			__m256i odd = _mm256_and_si256(_mm256_srli_epi16(four, 8), even);

			four = _mm256_and_si256(four, even);
			_mm256_store_si256((__m256i *)(p->w[2 * i] + h), four);
			_mm256_store_si256((__m256i *)(p->w[2 * i + 1] + h), odd);
		}
}

/* Columns of the rows @a and @b as pairs: @n of them, and zeros up to the next sixteen. */
ALWAYS void pair_rows(int16_t (*ret)[2], const uint8_t *a, const uint8_t *b, uint32_t n)
{
	_mm_prefetch((const char *)a + COLUMNS, _MM_HINT_T0);
	_mm_prefetch((const char *)b + COLUMNS, _MM_HINT_T0);
	for (uint32_t i = 0; i < n; i += 16) {
		__m128i x = bytes(a + i, n - i), y = bytes(b + i, n - i);
		__m256i *to = (__m256i *)ret[i];

		_mm256_store_si256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)));
		_mm256_store_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y)));
	}
}

/* Past the last position any will do, for it weighs 0. */
ALWAYS void pair_columns(const struct mla_tile_int8 *t, uint32_t col, uint32_t n, struct pairs *p)
{
	const uint8_t *first = t->rows + col, *last = first + (t->n_pos - 1) * t->row_bytes;

	for (uint32_t i = 0; i < t->n_pos; i += 4) {
		const uint8_t *row[4];

		for (uint32_t j = 0; j < 4; j++)
			row[j] = i + j < t->n_pos ? first + (i + j) * t->row_bytes : last;
		pair_rows(p->rows[i / 2], row[0], row[2], n);
		pair_rows(p->rows[i / 2 + 1], row[1], row[3], n);
	}
}

void mla_values_int8_avx2(const struct mla_tile_int8 *t)
{
	uint32_t n_blocks = (t->n_heads + BLOCK - 1) / BLOCK;
	struct pairs pairs;

	for (uint32_t col = 0; col < t->rank; col += COLUMNS) {
		uint32_t n_cols = t->rank - col < COLUMNS ? t->rank - col : COLUMNS;

		if (col % K_ENTRY_GROUP == 0)
			pair_weights(t, col / K_ENTRY_GROUP, &pairs);
		if (n_cols == COLUMNS)
			pair_columns(t, col, COLUMNS, &pairs);
		else
			pair_columns(t, col, n_cols, &pairs);
		for (uint32_t i = 0; i < n_cols; i += 16)
			for (uint32_t b = 0; b < n_blocks; b++) {
				uint32_t head = t->n_heads * b / n_blocks;
				uint32_t n = t->n_heads * (b + 1) / n_blocks - head;

				values_block(t, &pairs, head, n, col + i, i);
			}
	}
}
