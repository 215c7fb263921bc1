/* SPDX-License-Identifier: Apache-2.0 */
/* Every inner kernel of the instruction set named on the command line: equal to the scalar reference
 * bit for bit, nothing written past its output, and the reference near the formula in doubles. */
#include "common.h"
#include "sample_math.h"

#define GUARD 64u /* floats after an output */
#define FILL  123.5f
#define ROWS  17u
#define K_MAX 600u
#define N_MAX 520u

static const struct variant *tested; /* of main()'s argument */

static void guard_fill(float *y, size_t n)
{
	for (size_t i = 0; i < n + GUARD; i++)
		y[i] = FILL;
}

static void guard_check(const float *y, size_t n)
{
	for (size_t i = n; i < n + GUARD; i++)
		assert_true(y[i] == FILL);
}

static const struct {
	uint32_t rows, cols, k;
} tile_shapes[] = {
	{1, 1, 1},  {1, 32, 64},  {2, 31, 7},   {3, 17, 129}, {4, 16, 33}, {5, 15, 65},
	{6, 32, 1}, {7, 32, 257}, {11, 9, 100}, {12, 32, 63}, {13, 8, 64}, {17, 32, 600},
};

/* Columns one past those asked for must stay: y rows here are exactly y_col + cols wide. */
static void tile_case(const struct cpu_isa *isa, bool bf16, uint32_t rows, uint32_t cols,
		      uint32_t n_k, bool accumulate, float *y)
{
	static float x[ROWS * K_MAX];
	static uint16_t w16[K_MAX * PANEL];
	static float w32[K_MAX * PANEL + LINE];
	const float *xs[ROWS];
	float *ys[ROWS];
	uint64_t state = rows * 1000 + cols * 10 + n_k;
	uint32_t y_col = 3, width = y_col + cols;

	for (uint32_t i = 0; i < rows * n_k; i++)
		x[i] = uniform(&state);
	for (uint32_t i = 0; i < n_k * PANEL; i++) {
		w32[i] = uniform(&state);
		w16[i] = bf16_from_f32(w32[i]);
	}
	guard_fill(y, (size_t)rows * width);
	for (uint32_t r = 0; r < rows; r++) {
		xs[r] = x + (rows - 1 - r) * n_k; /* in no particular order */
		ys[r] = y + r * width;
		for (uint32_t c = 0; c < cols; c++)
			ys[r][y_col + c] = uniform(&state);
	}
	struct tile t = {
		.x = xs,
		.y = ys,
		.x_step = 1,
		.w = bf16 ? (void *)w16 : (void *)w32,
		.w_step = PANEL,
		.n_rows = rows,
		.n_cols = cols,
		.n_k = n_k,
		.y_col = y_col,
		.accumulate = accumulate,
	};

	if (bf16)
		isa->tile_bf16(&t);
	else
		isa->tile_f32(&t);
	guard_check(y, (size_t)rows * width);
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t c = 0; c < y_col; c++)
			assert_true(ys[r][c] == FILL);
}

static void tile_bits_equal_scalar_and_stay_inside(void **state)
{
	static float want[ROWS * (PANEL + 3) + GUARD], got[ROWS * (PANEL + 3) + GUARD];

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(tile_shapes) * 4; i++) {
		uint32_t s = i / 4, rows = tile_shapes[s].rows, cols = tile_shapes[s].cols;
		bool bf16 = i & 1, accumulate = i & 2;

		tile_case(&cpu_isa_scalar, bf16, rows, cols, tile_shapes[s].k, accumulate, want);
		tile_case(tested->isa, bf16, rows, cols, tile_shapes[s].k, accumulate, got);
		assert_memory_equal(got, want, rows * (cols + 3) * sizeof(*got));
	}
}

/* The attention's use: strided x, more columns than a panel, rows of w further apart. */
static void tile_bits_equal_scalar_with_strides(void **state)
{
	static const uint32_t cols[] = {1, 5, 16, 33, 48, 100, 512};
	const uint32_t n_k = 64, w_step = N_MAX + 19, lanes = 16;
	float *x = random_array(1, n_k * lanes + 5, 1.0f),
	      *w = random_array(2, (size_t)n_k * w_step + LINE, 1.0f);
	static float want[16 * N_MAX + GUARD], got[16 * N_MAX + GUARD];

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(cols); i++)
		for (uint32_t rows = 1; rows <= lanes; rows++) {
			const float *xs[16];
			float *a[16], *b[16];
			struct tile t = {
				.x = xs,
				.x_first = 5,
				.x_step = lanes,
				.w = w,
				.w_step = w_step,
				.n_rows = rows,
				.n_cols = cols[i],
				.n_k = n_k - rows,
				.accumulate = true,
			};

			guard_fill(want, (size_t)rows * cols[i]);
			guard_fill(got, (size_t)rows * cols[i]);
			for (uint32_t r = 0; r < rows; r++) {
				xs[r] = x + r;
				a[r] = want + (size_t)r * cols[i];
				b[r] = got + (size_t)r * cols[i];
			}
			t.y = a;
			cpu_isa_scalar.tile_f32(&t);
			t.y = b;
			tested->isa->tile_f32(&t);
			assert_memory_equal(got, want,
					    ((size_t)rows * cols[i] + GUARD) * sizeof(*got));
			guard_check(got, (size_t)rows * cols[i]);
		}
	free(x);
	free(w);
}

/* Sums of n products of numbers up to 1 in f32: |error| <= n * 2^-24 * sum |x w| <= n^2 2^-24. */
static void tile_reference_is_near_doubles(void **state)
{
	const uint32_t n_k = 600;
	float *x = random_array(3, n_k, 1.0f), *w = random_array(4, (size_t)n_k * PANEL, 1.0f),
	      y[PANEL];
	const float *xs[] = {x};
	float *ys[] = {y};
	struct tile t = {.x = xs,
			 .y = ys,
			 .x_step = 1,
			 .w = w,
			 .w_step = PANEL,
			 .n_rows = 1,
			 .n_cols = PANEL,
			 .n_k = n_k};

	(void)state;
	cpu_isa_scalar.tile_f32(&t);
	for (uint32_t c = 0; c < PANEL; c++) {
		double sum = 0, size = 0;

		for (uint32_t i = 0; i < n_k; i++) {
			sum += (double)x[i] * w[i * PANEL + c];
			size += fabs((double)x[i] * w[i * PANEL + c]);
		}
		assert_true(fabs(y[c] - sum) <= n_k * 0x1p-24 * size);
	}
	free(x);
	free(w);
}

static void rows_bits_equal_scalar_and_stay_inside(void **state)
{
	static const uint32_t lengths[] = {1, 7, 15, 16, 17, 31, 48, 333, 512};
	static float want[N_MAX + GUARD], got[N_MAX + GUARD];
	float *x = random_array(5, N_MAX, 9.0f), *w = random_array(6, N_MAX, 2.0f);
	uint16_t *b16 = malloc(N_MAX * sizeof(*b16));

	(void)state;
	for (uint32_t i = 0; i < N_MAX; i++)
		b16[i] = (uint16_t)(i * 40503u); /* every kind of number, NaN too */
	const struct cpu_isa *isa[] = {&cpu_isa_scalar, tested->isa};

	for (uint32_t i = 0; i < N_ELEMENTS(lengths); i++)
		for (uint32_t op = 0; op < 8; op++) {
			uint32_t n = lengths[i];

			for (uint32_t s = 0; s < 2; s++) {
				float *y = s ? got : want;

				guard_fill(y, n);
				memcpy(y, w, n * sizeof(*y));
				switch (op) {
				case 0:
					isa[s]->rmsnorm(y, x, w, n, 1e-6f);
					break;
				case 1:
					isa[s]->add(y, x, n);
					break;
				case 2:
					isa[s]->blend(y, x, 0.3f, 1.7f, n);
					break;
				case 3:
					isa[s]->scale(y, 0.7f, n);
					break;
				case 4:
					isa[s]->divide(y, 3.3f, n);
					break;
				case 5:
					isa[s]->swiglu(y, x, n);
					break;
				case 6:
					isa[s]->exp(y, x, 5.0f, 0.7f, n);
					break;
				case 7:
					isa[s]->load_bf16(y, b16, n);
					break;
				}
				guard_check(y, n);
			}
			assert_memory_equal(got, want, n * sizeof(*got));
		}
	free(x);
	free(w);
	free(b16);
}

static void exp_is_within_two_ulp_everywhere(void **state)
{
	double worst = 0;

	(void)state;
	for (uint32_t u = 0; u < UINT32_MAX - 4099;
	     u += 4099) { /* a million numbers of every size and sign */
		float x = k_from_bits(u), y = k_expf(x);
		double want = exp((double)x), ulp;

		if (isnan(x)) {
			assert_true(isnan(y));
			continue;
		}
		if (want > 0x1.ffffffp+127) {
			assert_true(y == INFINITY);
			continue;
		}
		ulp = want < 0x1p-126 ? 0x1p-149 : ldexp(1, ilogb(want) - 23);
		worst = fmax(worst, fabs(y - want) / ulp);
	}
	assert_true(worst < 2);
	assert_true(k_expf(0.0f) == 1.0f && k_expf(-0.0f) == 1.0f);
	assert_true(k_expf(-INFINITY) == 0.0f && k_expf(INFINITY) == INFINITY);
}

/* All the instruction sets at the ends of the range, not only at ordinary numbers. */
static void exp_bits_equal_scalar_at_the_ends(void **state)
{
	float x[] = {0,       -0.0f,  -INFINITY, INFINITY, NAN,     88.7f,
		     88.8f,   89.5f,  -87.3f,    -87.4f,   -103.9f, -104.1f,
		     -105.5f, -1e30f, 1e30f,     1e-40f,   -1e-40f, 0.34657f};
	float want[N_ELEMENTS(x)], got[N_ELEMENTS(x)];

	(void)state;
	cpu_isa_scalar.exp(want, x, 0.0f, 1.0f, N_ELEMENTS(x));
	assert_true(want[2] == 0.0f && want[3] == INFINITY && isnan(want[4]));
	tested->isa->exp(got, x, 0.0f, 1.0f, N_ELEMENTS(x));
	for (uint32_t i = 0; i < N_ELEMENTS(x); i++)
		assert_true(k_bits(got[i]) == k_bits(want[i]) || (isnan(got[i]) && isnan(want[i])));
}

struct softmax_state {
	float s[K_TILE_POSITIONS * 32], max[32], sum[32], correction[32];
};

/* Two tiles of 64 and @last positions; lane l sees l % last + 1 of the last tile. */
static void softmax_run(const struct cpu_isa *isa, struct softmax_state *a, float *scores,
			uint32_t last, bool bf16)
{
	uint32_t n_valid[32];

	for (uint32_t l = 0; l < 32; l++) {
		a->max[l] = -INFINITY;
		a->sum[l] = 0.0f;
	}
	for (uint32_t tile = 0; tile < 2; tile++) {
		uint32_t n = tile == 0 ? K_TILE_POSITIONS : last;
		struct softmax_tile t = {a->s,          n,   32, n_valid, 0.37f, a->max, a->sum,
					 a->correction, bf16};

		for (uint32_t l = 0; l < 32; l++)
			n_valid[l] = tile == 0 ? n : l % n + 1;
		memcpy(a->s, scores + tile * sizeof(a->s) / sizeof(float), n * 32 * sizeof(float));
		isa->softmax_tile(&t);
	}
}

static void softmax_bits_equal_scalar_and_sums_are_right(void **state)
{
	static const uint32_t lasts[] = {1, 2, 31, 63, 64};
	float *scores = random_array(8, 2 * K_TILE_POSITIONS * 32, 30.0f);
	static struct softmax_state want, got;

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(lasts); i++) {
		softmax_run(&cpu_isa_scalar, &want, scores, lasts[i], false);
		for (uint32_t l = 0; l < 32; l++) {
			double max = -1e30, sum = 0;

			for (uint32_t j = 0; j <= K_TILE_POSITIONS + l % lasts[i]; j++)
				max = fmax(max, 0.37f * (double)scores[j * 32 + l]);
			for (uint32_t j = 0; j <= K_TILE_POSITIONS + l % lasts[i]; j++)
				sum += exp(0.37f * (double)scores[j * 32 + l] - max);
			assert_true(fabs(want.max[l] - max) < 1e-5);
			assert_true(fabs(want.sum[l] / sum - 1) < 1e-5);
			for (uint32_t j = l % lasts[i] + 1; j < lasts[i]; j++)
				assert_true(want.s[j * 32 + l] ==
					    0.0f); /* unseen: exactly nothing */
		}
		softmax_run(tested->isa, &got, scores, lasts[i], false);
		assert_memory_equal(&got, &want, sizeof(want));
	}
	free(scores);
}

/* What is summed is what comes out: numbers of bf16, none near the subnormal ones. */
static void softmax_of_bf16_is_the_other_rounded(void **state)
{
	float *scores = random_array(10, 2 * K_TILE_POSITIONS * 32, 150.0f);
	static struct softmax_state exact, want, got;
	bool small = false;

	(void)state;
	softmax_run(&cpu_isa_scalar, &exact, scores, 64, false);
	softmax_run(&cpu_isa_scalar, &want, scores, 64, true);
	for (uint32_t l = 0; l < 32; l++) {
		double sum = 0;

		for (uint32_t j = 0; j < K_TILE_POSITIONS; j++) {
			float w = want.s[j * 32 + l], x = exact.s[j * 32 + l];

			assert_true(bf16_to_f32(bf16_from_f32(w)) == w);
			if (x < MLA_SMALLEST)
				assert_true(w == 0.0f);
			else
				assert_true(fabsf(w - x) <= x * 0x1p-8f);
			small |= x > 0 && x < MLA_SMALLEST;
			sum += w;
		}
		assert_true(fabs(want.sum[l] - exact.sum[l]) <= exact.sum[l] * 0x1p-8f);
		assert_true(want.sum[l] >= sum * (1 - 1e-6));
	}
	assert_true(small);
	softmax_run(tested->isa, &got, scores, 64, true);
	assert_memory_equal(&got, &want, sizeof(want));
	free(scores);
}

/* A NaN score must reach the output of its lane, and no other lane. */
static void softmax_keeps_a_nan_in_its_lane(void **state)
{
	float *scores = random_array(9, 2 * K_TILE_POSITIONS * 32, 1.0f);
	static struct softmax_state a;

	(void)state;
	scores[40 * 32 + 21] = NAN;
	for (uint32_t bf16 = 0; bf16 < 2; bf16++) {
		softmax_run(tested->isa, &a, scores, 64, bf16);
		for (uint32_t l = 0; l < 32; l++)
			assert_int_equal(isnan(a.sum[l]) != 0, l == 21);
	}
	free(scores);
}

/* Any bytes in; the scales of two groups and a bit, of every size. */
static void int8_rows_come_out_as_scalar_has_them(void **state)
{
	static const uint32_t ranks[] = {4, 36, 64, 128, 132, 300, 512};
	static const float scales[] = {0.01f, 0.0f, 0x1p-50f, 1e30f, NAN};
	enum { ROPE = 6, MOST = 512 + 4 * 4 + 2 * ROPE };

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(ranks); i++) {
		uint32_t rank = ranks[i], n_scales = (rank + 127) / 128;
		uint16_t want[512 + ROPE + GUARD], got[512 + ROPE + GUARD];
		uint8_t row[MOST];

		for (uint32_t j = 0; j < MOST; j++)
			row[j] = (uint8_t)(j * 37 + i);
		for (uint32_t g = 0; g < n_scales; g++)
			memcpy(row + rank + 4 * g, &scales[(g + i) % N_ELEMENTS(scales)], 4);
		memset(want, 0x5a, sizeof(want));
		memset(got, 0x5a, sizeof(got));
		cpu_isa_scalar.load_int8(want, row, rank, ROPE);
		tested->isa->load_int8(got, row, rank, ROPE);
		for (uint32_t j = 0; j < rank; j++) {
			float x =
				(float)(int8_t)row[j] * scales[(j / 128 + i) % N_ELEMENTS(scales)];

			assert_true(isnan(x) ? isnan(bf16_to_f32(want[j]))
					     : want[j] == bf16_from_f32(x));
		}
		assert_memory_equal(want + rank, row + rank + 4 * n_scales, 2 * ROPE);
		for (uint32_t j = rank + ROPE; j < N_ELEMENTS(want); j++)
			assert_int_equal(want[j], 0x5a5a);
		assert_memory_equal(got, want, sizeof(want));
	}
}

static void bf16_rounds_to_nearest_even(void **state)
{
	static const struct {
		uint32_t f32;
		uint16_t bf16;
	} known[] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82},
		     {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0xbf818000, 0xbf82},
		     {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0x7f800001, 0x7fc0},
		     {0xff800000, 0xff80}, {0x00000001, 0x0000}, {0x80000000, 0x8000}};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(known); i++)
		assert_int_equal(bf16_from_f32(k_from_bits(known[i].f32)), known[i].bf16);
	for (uint32_t u = 0; u <= UINT16_MAX; u++)
		if (!isnan(bf16_to_f32((uint16_t)u)))
			assert_int_equal(bf16_from_f32(bf16_to_f32((uint16_t)u)), u);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tile_bits_equal_scalar_and_stay_inside),
		cmocka_unit_test(tile_bits_equal_scalar_with_strides),
		cmocka_unit_test(tile_reference_is_near_doubles),
		cmocka_unit_test(rows_bits_equal_scalar_and_stay_inside),
		cmocka_unit_test(exp_is_within_two_ulp_everywhere),
		cmocka_unit_test(exp_bits_equal_scalar_at_the_ends),
		cmocka_unit_test(softmax_bits_equal_scalar_and_sums_are_right),
		cmocka_unit_test(softmax_of_bf16_is_the_other_rounded),
		cmocka_unit_test(softmax_keeps_a_nan_in_its_lane),
		cmocka_unit_test(int8_rows_come_out_as_scalar_has_them),
		cmocka_unit_test(bf16_rounds_to_nearest_even),
	};

	tested = variant_named(argc > 1 ? argv[1] : "scalar");
	if (!tested)
		return EXIT_SKIPPED;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
