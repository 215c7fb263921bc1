/* SPDX-License-Identifier: Apache-2.0 */
/* Scores and values of a tile of the cache, of the instruction set named on the command line: equal to the
 * scalar reference bit for bit, inside their outputs, and the reference near the formula in doubles.
 * "emulated" takes them from mla_tile_bf16.c over emulated intrinsics, "emulated512" from
 * mla_tile_avx512.c. */
#include "common.h"

#define GUARD 64u /* floats after an output */
#define FILL  123.5f

static struct cpu_isa tested; /* of main()'s argument */

enum numbers { RANDOM, LARGE, SMALL, MIXED, _NUMBERS_MAX };

/* One of bf16, as far from one as the rule of struct mla_tile lets it be. */
static uint16_t number(uint64_t *state, enum numbers kind)
{
	static const float large[] = {0x1p60f, -0x1p60f, 0x1.fep59f, 0.0f};
	static const float small[] = {MLA_SMALLEST, -MLA_SMALLEST, MLA_SMALLEST * 1.0078125f,
				      -MLA_SMALLEST * 1.5f, 0.0f};
	float x = uniform(state);
	uint32_t some = (uint32_t)(fabsf(x) * 1e6f);

	if (kind == LARGE)
		x = large[some % N_ELEMENTS(large)];
	else if (kind == SMALL)
		x = small[some % N_ELEMENTS(small)];
	else if (kind == MIXED)
		x *= ldexpf(1.0f, (int)(some % 80) - 40);
	return fabsf(x) < MLA_SMALLEST ? 0 : bf16_from_f32(x);
}

struct fixture {
	struct mla_tile t;
	uint16_t *rows;
	uint32_t *q;
	float *s, *acc, correction[MLA_HEADS];
};

static void *filled(size_t n)
{
	float *x = malloc((n + GUARD) * sizeof(*x));

	assert_non_null(x);
	for (size_t i = 0; i < n + GUARD; i++)
		x[i] = FILL;
	return x;
}

/* Rows that end where the memory does: reading past them is for the address sanitizer to see. */
static void fixture_init(struct fixture *f, uint32_t n_pos, uint32_t width, uint32_t n_cols,
			 uint32_t n_heads, enum numbers kind)
{
	uint64_t state = n_pos * 1000 + width * 10 + n_heads + kind;
	uint32_t n_pairs = width / 2;

	*f = (struct fixture){
		.rows = malloc((size_t)n_pos * width * sizeof(*f->rows)),
		.q = malloc((size_t)n_pairs * MLA_HEADS * sizeof(*f->q)),
		.s = filled((size_t)n_pos * MLA_HEADS),
		.acc = filled((size_t)n_heads * n_cols),
	};
	assert_true(f->rows && f->q);
	for (uint32_t i = 0; i < n_pos * width; i++)
		f->rows[i] = number(&state, kind);
	for (uint32_t i = 0; i < n_pairs * MLA_HEADS; i++)
		f->q[i] = number(&state, kind) | (uint32_t)number(&state, kind) << 16;
	for (uint32_t i = 0; i < n_pos * MLA_HEADS; i++)
		f->s[i] = bf16_to_f32(number(&state, kind)) * bf16_to_f32(number(&state, kind));
	for (uint32_t h = 0; h < MLA_HEADS; h++)
		f->correction[h] = h % 3 ? fabsf(uniform(&state)) : 0.0f;
	f->t = (struct mla_tile){
		.rows = f->rows,
		.row_step = width,
		.next = f->rows,
		.n_pos = n_pos,
		.n_pairs = n_pairs,
		.n_cols = n_cols,
		.n_heads = n_heads,
		.q = f->q,
		.s = f->s,
		.correction = f->correction,
		.acc = f->acc,
		.acc_step = n_cols,
	};
}

/* Weights of any numbers of bf16, sums of any floats. */
static void fixture_weigh(struct fixture *f, enum numbers kind)
{
	uint64_t state = f->t.n_pos + kind;

	for (uint32_t i = 0; i < f->t.n_pos * MLA_HEADS; i++)
		f->s[i] = fabsf(bf16_to_f32(number(&state, kind)));
	for (uint32_t i = 0; i < f->t.n_heads * f->t.n_cols; i++)
		f->acc[i] = uniform(&state);
}

static void fixture_done(struct fixture *f)
{
	for (uint32_t i = 0; i < GUARD; i++)
		assert_true(f->s[f->t.n_pos * MLA_HEADS + i] == FILL &&
			    f->acc[f->t.n_heads * f->t.n_cols + i] == FILL);
	free(f->rows);
	free(f->q);
	free(f->s);
	free(f->acc);
}

static const struct {
	uint32_t n_pos, width, n_cols, n_heads;
} shapes[] = {{64, 576, 512, 16}, {2, 576, 512, 16}, {62, 576, 512, 13}, {4, 32, 32, 1},
	      {6, 34, 32, 2},     {8, 64, 32, 3},    {10, 96, 64, 4},    {12, 66, 64, 5},
	      {14, 40, 32, 6},    {16, 64, 64, 7},   {18, 34, 32, 8},    {64, 72, 64, 9},
	      {60, 50, 32, 11},   {26, 32, 32, 12}};

static void tile_bits_equal_scalar_and_stay_inside(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes) * _NUMBERS_MAX; i++) {
		uint32_t at = i / _NUMBERS_MAX;
		enum numbers kind = i % _NUMBERS_MAX;
		struct fixture want, got;

		fixture_init(&want, shapes[at].n_pos, shapes[at].width, shapes[at].n_cols,
			     shapes[at].n_heads, kind);
		fixture_init(&got, shapes[at].n_pos, shapes[at].width, shapes[at].n_cols,
			     shapes[at].n_heads, kind);
		cpu_isa_scalar.mla_scores_bf16(&want.t);
		tested.mla_scores_bf16(&got.t);
		assert_memory_equal(got.s, want.s,
				    (size_t)want.t.n_pos * MLA_HEADS * sizeof(*got.s));
		fixture_weigh(&want, kind);
		fixture_weigh(&got, kind);
		cpu_isa_scalar.mla_values_bf16(&want.t);
		tested.mla_values_bf16(&got.t);
		assert_memory_equal(got.acc, want.acc,
				    (size_t)want.t.n_heads * want.t.n_cols * sizeof(*got.acc));
		fixture_done(&want);
		fixture_done(&got);
	}
}

/* 1e-5 of the sum of sizes: 576 roundings of 2^-24 of what there is so far. */
static void tile_reference_is_near_doubles(void **state)
{
	struct fixture f;
	float *acc, before[64 * MLA_HEADS];

	(void)state;
	fixture_init(&f, 64, 576, 512, 16, RANDOM);
	memcpy(before, f.s, sizeof(before));
	cpu_isa_scalar.mla_scores_bf16(&f.t);
	for (uint32_t p = 0; p < 64; p += 7)
		for (uint32_t h = 0; h < MLA_HEADS; h++) {
			double want = before[p * MLA_HEADS + h], size = fabs(want);

			for (uint32_t d = 0; d < 576; d++) {
				double x = (double)bf16_to_f32(f.rows[p * 576 + d]) *
					   bf16_to_f32((uint16_t)(f.q[d / 2 * MLA_HEADS + h] >>
								  (d % 2 * 16)));

				want += x;
				size += fabs(x);
			}
			assert_true(fabs(f.s[p * MLA_HEADS + h] - want) < 1e-5 * size);
		}
	fixture_weigh(&f, RANDOM);
	acc = malloc(sizeof(*acc) * 16 * 512);
	memcpy(acc, f.acc, sizeof(*acc) * 16 * 512);
	cpu_isa_scalar.mla_values_bf16(&f.t);
	for (uint32_t h = 0; h < 16; h++)
		for (uint32_t c = 0; c < 512; c += 11) {
			double want = (double)acc[h * 512 + c] * f.correction[h];
			double size = fabs(want);

			for (uint32_t p = 0; p < 64; p++) {
				double x = (double)f.s[p * MLA_HEADS + h] *
					   bf16_to_f32(f.rows[p * 576 + c]);

				want += x;
				size += fabs(x);
			}
			assert_true(fabs(f.acc[h * 512 + c] - want) < 1e-5 * size);
		}
	free(acc);
	fixture_done(&f);
}

/* A NaN or infinity of a row or a weight comes out where it belongs, and nowhere else. */
static void tile_keeps_what_is_not_finite_in_its_place(void **state)
{
	struct fixture f;

	(void)state;
	fixture_init(&f, 8, 64, 64, 5, RANDOM);
	f.rows[3 * 64 + 17] = 0x7fc0;
	tested.mla_scores_bf16(&f.t);
	for (uint32_t p = 0; p < 8; p++)
		for (uint32_t h = 0; h < MLA_HEADS; h++)
			assert_int_equal(isnan(f.s[p * MLA_HEADS + h]) != 0, p == 3);
	f.rows[3 * 64 + 17] = 0x3f80;
	fixture_weigh(&f, RANDOM);
	f.s[2 * MLA_HEADS + 4] = NAN;
	f.rows[6 * 64 + 33] = 0x7f80;
	tested.mla_values_bf16(&f.t);
	for (uint32_t h = 0; h < 5; h++)
		for (uint32_t c = 0; c < 64; c++)
			assert_int_equal(isfinite(f.acc[h * 64 + c]) != 0, h != 4 && c != 33);
	fixture_done(&f);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tile_bits_equal_scalar_and_stay_inside),
		cmocka_unit_test(tile_reference_is_near_doubles),
		cmocka_unit_test(tile_keeps_what_is_not_finite_in_its_place),
	};
	const char *name = argc > 1 ? argv[1] : "scalar";
	const struct variant *v = variant_named(strncmp(name, "emulated", 8) == 0 ? "avx2" : name);

	if (!v)
		return EXIT_SKIPPED;
	tested = *v->isa;
#ifdef K_HAVE_X86
	if (strcmp(name, "emulated") == 0) {
		void mla_scores_bf16_emulated(const struct mla_tile *t);
		void mla_values_bf16_emulated(const struct mla_tile *t);

		tested.mla_scores_bf16 = mla_scores_bf16_emulated;
		tested.mla_values_bf16 = mla_values_bf16_emulated;
	} else if (strcmp(name, "emulated512") == 0) {
		void mla_scores_bf16_emulated512(const struct mla_tile *t);
		void mla_values_bf16_emulated512(const struct mla_tile *t);

		tested.mla_scores_bf16 = mla_scores_bf16_emulated512;
		tested.mla_values_bf16 = mla_values_bf16_emulated512;
	}
#endif
	return cmocka_run_group_tests(tests, NULL, NULL);
}
