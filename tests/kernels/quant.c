/* SPDX-License-Identifier: Apache-2.0 */
/* Quantised products, rows and weights of the instruction set named on the command line: equal to the
 * scalar reference bit for bit, inside their outputs, and the reference what the format says.
 * "emulated" takes its products from quant_vnni.c over emulated intrinsics. */
#include "common.h"

#define GUARD    64u /* floats after an output */
#define FILL     123.5f
#define ROWS     37u
#define GROUPS   9u
#define Y_COL    3u
#define N_GAUSS  12u /* uniform numbers of a normal one */
#define Y_FLOATS (ROWS * (PANEL + Y_COL) + GUARD)

static struct cpu_isa tested; /* of main()'s argument */

/* --- products --------------------------------------------------------------------------------------- */

enum extreme { RANDOM, LARGEST, SMALLEST, ALTERNATING, _EXTREME_MAX };

struct product {
	union {
		struct q8_group q8[GROUPS];
		struct q4_group q4[GROUPS];
	} w;
	struct q_row rows[ROWS][GROUPS];
	const struct q_row *x[ROWS];
};

static uint32_t draw(uint64_t *state, uint32_t n)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(*state >> 33) % n;
}

static void fill_q4(struct q4_group *w, enum extreme e, uint64_t *state)
{
	for (uint32_t c = 0; c < PANEL; c++) {
		w->d[c] = bf16_from_f32(0.001f + 0.01f * (uniform(state) + 1.0f));
		w->s[c] = 0;
		for (uint32_t sub = 0; sub < 4; sub++) {
			uint32_t s = e == RANDOM ? 1 + draw(state, 15) : 15;

			w->s[c] |= (uint16_t)(s << 4 * sub);
			w->o[c][sub] = (uint8_t)(e == RANDOM    ? draw(state, 256 - 15 * s)
						 : e == LARGEST ? 30
								: 0);
		}
	}
	for (uint32_t i = 0; i < sizeof(w->q); i++)
		((uint8_t *)w->q)[i] = (uint8_t)(e == RANDOM        ? draw(state, 256)
						 : e == LARGEST     ? 0xff
						 : e == ALTERNATING ? (i % 2 ? 0xff : 0)
								    : 0);
}

static void fill_q8(struct q8_group *w, enum extreme e, uint64_t *state)
{
	for (uint32_t c = 0; c < PANEL; c++)
		w->d[c] = bf16_from_f32(0.001f + 0.01f * (uniform(state) + 1.0f));
	for (uint32_t i = 0; i < sizeof(w->u); i++)
		((uint8_t *)w->u)[i] = (uint8_t)(e == RANDOM        ? 1 + draw(state, 255)
						 : e == LARGEST     ? 255
						 : e == ALTERNATING ? (i % 2 ? 255 : 1)
								    : 1);
}

static void fill_row(struct q_row *x, enum extreme e, uint64_t *state)
{
	*x = (struct q_row){.d = 0.01f + uniform(state) / 128};
	for (uint32_t k = 0; k < Q_GROUP; k++) {
		x->a[k] = (int8_t)(e == RANDOM                 ? (int)draw(state, 255) - 127
				   : e == ALTERNATING && k % 2 ? -127
				   : e == SMALLEST             ? -127
							       : 127);
		x->sums[k / 32 / 2 + k / 32 % 2 * 2] =
			(int16_t)(x->sums[k / 32 / 2 + k / 32 % 2 * 2] + x->a[k]);
	}
}

static struct product *product_new(bool q4, enum extreme e, uint64_t seed)
{
	struct product *p = aligned_alloc(LINE, (sizeof(*p) + LINE - 1) / LINE * LINE);
	uint64_t state = seed * 31 + e;

	assert_non_null(p);
	for (uint32_t g = 0; g < GROUPS; g++) {
		if (q4)
			fill_q4(&p->w.q4[g], e, &state);
		else
			fill_q8(&p->w.q8[g], e, &state);
		for (uint32_t r = 0; r < ROWS;
		     r++) /* every kind of row against every kind of weight */
			fill_row(&p->rows[r][g], (enum extreme)((e + r) % _EXTREME_MAX), &state);
	}
	for (uint32_t r = 0; r < ROWS; r++)
		p->x[r] = p->rows[ROWS - 1 - r]; /* in no particular order */
	return p;
}

struct span {
	uint32_t rows, cols, first, n_groups;
	bool accumulate;
};

static void product_run(const struct cpu_isa *isa, const struct product *p, bool q4,
			const struct span *s, float *y)
{
	uint32_t width = s->cols + Y_COL;
	uint64_t state = 5;
	float *ys[ROWS];
	struct q_tile t = {
		.x = p->x,
		.y = ys,
		.w = q4 ? (void *)&p->w.q4[s->first] : (void *)&p->w.q8[s->first],
		.first = s->first,
		.n_groups = s->n_groups,
		.n_rows = s->rows,
		.n_cols = s->cols,
		.y_col = Y_COL,
		.accumulate = s->accumulate,
	};

	for (uint32_t i = 0; i < Y_FLOATS; i++)
		y[i] = FILL;
	for (uint32_t r = 0; r < s->rows; r++) {
		ys[r] = y + r * width;
		for (uint32_t c = 0; c < s->cols; c++)
			ys[r][Y_COL + c] = uniform(&state);
	}
	(q4 ? isa->tile_q4 : isa->tile_q8)(&t);
	for (uint32_t i = s->rows * width; i < Y_FLOATS; i++)
		assert_true(y[i] == FILL);
	for (uint32_t r = 0; r < s->rows; r++)
		for (uint32_t c = 0; c < Y_COL; c++)
			assert_true(ys[r][c] == FILL);
}

static void products_equal_scalar_and_stay_inside(void **state)
{
	static const struct span spans[] = {
		{1, 32, 0, 1, false},  {1, 1, 0, 3, true},    {2, 31, 0, 9, false},
		{3, 17, 2, 5, true},   {4, 32, 0, 4, false},  {5, 9, 0, 5, false},
		{6, 32, 0, 8, true},   {7, 32, 1, 7, false},  {8, 15, 0, 9, false},
		{9, 32, 0, 2, true},   {10, 32, 0, 9, false}, {11, 5, 0, 9, false},
		{12, 32, 0, 5, false}, {16, 32, 0, 9, true},  {17, 32, 0, 9, false},
		{23, 31, 0, 6, true},  {25, 32, 3, 6, false}, {37, 32, 0, 9, true},
	};
	static float want[Y_FLOATS], got[Y_FLOATS];

	(void)state;
	for (uint32_t e = 0; e < _EXTREME_MAX * 2; e++) {
		bool q4 = e % 2;
		struct product *p = product_new(q4, (enum extreme)(e / 2), 1);

		for (uint32_t i = 0; i < N_ELEMENTS(spans); i++) {
			product_run(&cpu_isa_scalar, p, q4, &spans[i], want);
			product_run(&tested, p, q4, &spans[i], got);
			assert_memory_equal(got, want, sizeof(want));
		}
		free(p);
	}
}

/* Against the numbers the bytes stand for; the only rounding is one of f32 for each group. */
static void scalar_product_is_the_formula(void **state)
{
	const struct span s = {.rows = 4, .cols = PANEL, .n_groups = GROUPS};
	static float y[Y_FLOATS];

	(void)state;
	for (uint32_t e = 0; e < _EXTREME_MAX * 2; e++) {
		bool q4 = e % 2;
		struct product *p = product_new(q4, (enum extreme)(e / 2), 2);

		product_run(&cpu_isa_scalar, p, q4, &s, y);
		for (uint32_t r = 0; r < s.rows; r++)
			for (uint32_t c = 0; c < PANEL; c++) {
				double sum = 0, size = 0;

				for (uint32_t k = 0; k < GROUPS * Q_GROUP; k++) {
					const struct q4_group *w4 = &p->w.q4[k / Q_GROUP];
					const struct q8_group *w8 = &p->w.q8[k / Q_GROUP];
					const struct q_row *x = p->x[r] + k / Q_GROUP;
					uint32_t i = k % Q_GROUP, at = c % 16 * 4 + i % 4;
					uint32_t byte = q4 ? w4->q[i / 8][c / 16][at] : 0;
					uint32_t q = i / 4 % 2 ? byte / 16 : byte % 16;
					double w;
					int u;

					if (q4) {
						u = (int)(q * ((w4->s[c] >> i / 32 * 4) % 16)) +
						    w4->o[c][i / 32];
						w = bf16_to_f32(w4->d[c]) * (u - 128.0);
					} else {
						u = w8->u[i / 4][c / 16][at];
						w = bf16_to_f32(w8->d[c]) * (u - 128.0);
					}
					sum += w * x->a[i] * (double)x->d;
					size += fabs(w * x->a[i] * (double)x->d);
				}
				assert_true(fabs(y[r * (PANEL + Y_COL) + Y_COL + c] - sum) <=
					    3 * GROUPS * 0x1p-24 * size + 1e-30);
			}
		free(p);
	}
}

/* --- rows ------------------------------------------------------------------------------------------- */

static void quantised_rows_are_within_half_a_step(void **state)
{
	static const uint32_t lengths[] = {1, 31, 127, 128, 129, 300, 512};
	struct q_row want[5], got[5];
	float *x = random_array(4, 512, 3.0f);

	(void)state;
	x[140] = 1e30f; /* its group's others are nothing beside it */
	x[256] = 0.0f;
	for (uint32_t i = 384; i < 512; i++)
		x[i] = i % 2 ? 1e-39f : -1e-31f; /* too small to divide by */
	for (uint32_t l = 0; l < N_ELEMENTS(lengths); l++) {
		uint32_t n = lengths[l];

		memset(want, 0x55, sizeof(want));
		memset(got, 0x55, sizeof(got));
		cpu_isa_scalar.quantise(want, x, n);
		tested.quantise(got, x, n);
		assert_memory_equal(got, want, sizeof(want));
		assert_int_equal(got[q_groups(n)].unused, 0x55555555);
		for (uint32_t k = 0; k < q_groups(n) * Q_GROUP; k++) {
			const struct q_row *q = &got[k / Q_GROUP];
			float value = k < n ? x[k] : 0.0f;

			assert_true(fabs(value - (double)q->a[k % Q_GROUP] * q->d) <=
				    q->d * 0.5001 + 1e-30);
			assert_true(q->a[k % Q_GROUP] >= -127);
		}
		for (uint32_t sub = 0; sub < 4; sub++) {
			int sum = 0;

			for (uint32_t k = 0; k < Q_SUB; k++)
				sum += got[0].a[sub * Q_SUB + k];
			assert_int_equal(got[0].sums[sub / 2 + sub % 2 * 2], sum);
		}
	}
	free(x);
}

static void a_row_that_is_not_finite_says_so(void **state)
{
	static const float odd[] = {NAN, INFINITY, -INFINITY};
	float x[2 * Q_GROUP] = {1.0f};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(odd); i++) {
		struct q_row y[2];

		x[77] = odd[i];
		tested.quantise(y, x, 2 * Q_GROUP);
		assert_true(isnan(y[0].d));
		assert_true(y[1].d == 0.0f);
		for (uint32_t k = 0; k < Q_GROUP; k++)
			assert_int_equal(y[0].a[k], 0);
	}
}

/* --- weights ---------------------------------------------------------------------------------------- */

/* [Q_GROUP][PANEL]; columns of every size, one of zeros, one constant, one with a NaN. */
static float *panel_new(uint64_t seed)
{
	float *x = random_array(seed, Q_GROUP * PANEL, 1.0f);
	uint64_t state = seed;

	for (uint32_t k = 0; k < Q_GROUP; k++)
		for (uint32_t c = 0; c < PANEL; c++) {
			float *v = &x[k * PANEL + c], sum = 0;

			for (uint32_t i = 0; i < N_GAUSS; i++)
				sum += uniform(&state);
			*v = sum / 2 * ldexpf(1.0f, (int)c - 20);
			if (c == 3)
				*v = 0.0f;
			if (c == 4)
				*v = 0.75f;
			if (c == 5 && k == 60)
				*v = NAN;
		}
	return x;
}

static double packed_at(const struct q8_group *w8, const struct q4_group *w4, uint32_t k,
			uint32_t c)
{
	int u = (int)(w4 ? q4_at(w4, k, c) : q8_at(w8, k, c));

	return bf16_to_f32(w4 ? w4->d[c] : w8->d[c]) * (u - 128.0);
}

static void packed_bits_equal_scalar(void **state)
{
	(void)state;
	for (uint32_t seed = 1; seed <= 10; seed++) {
		struct q8_group want8, got8;
		struct q4_group want4, got4;
		float *x = panel_new(seed);

		cpu_isa_scalar.pack_q8(&want8, x);
		tested.pack_q8(&got8, x);
		assert_memory_equal(&got8, &want8, sizeof(want8));
		cpu_isa_scalar.pack_q4(&want4, x);
		tested.pack_q4(&got4, x);
		assert_memory_equal(&got4, &want4, sizeof(want4));
		free(x);
	}
}

/* q8: a step is 1/127 of the largest number, and bf16's rounding of d and two tries below it clip by
 * less than two steps. q4: the figures of quant_ops.h, with room for single groups. */
static void packed_weights_are_as_near_as_their_bits_allow(void **state)
{
	double error = 0, power = 0;

	(void)state;
	for (uint32_t seed = 1; seed <= 10; seed++) {
		struct q8_group w8;
		struct q4_group w4;
		float *x = panel_new(seed);

		tested.pack_q8(&w8, x);
		tested.pack_q4(&w4, x);
		for (uint32_t c = 0; c < PANEL; c++) {
			double max = 0, column_error = 0, column_power = 0;

			for (uint32_t k = 0; k < Q_GROUP; k++)
				max = fmax(max, fabs(x[k * PANEL + c]));
			for (uint32_t k = 0; k < Q_GROUP; k++) {
				double v = x[k * PANEL + c], e;
				uint32_t s = w4.s[c] >> k / Q_SUB * 4 & 15;

				assert_true(s >= 1 && w4.o[c][k / Q_SUB] + 15 * s <= 255);
				assert_true(w8.u[k / 4][c / 16][c % 16 * 4 + k % 4] >= 1);
				if (c == 5) { /* it reaches the product and is seen there */
					assert_true(isnan(packed_at(&w8, NULL, k, c)));
					assert_true(isnan(packed_at(NULL, &w4, k, c)));
					continue;
				}
				assert_true(fabs(packed_at(&w8, NULL, k, c) - v) <= max / 127 * 2);
				if (c == 3)
					assert_true(packed_at(&w8, NULL, k, c) == 0 &&
						    packed_at(NULL, &w4, k, c) == 0);
				e = packed_at(NULL, &w4, k, c) - v;
				column_error += e * e;
				column_power += v * v;
			}
			assert_true(column_error <= 0.11 * 0.11 * column_power || c == 5);
			if (c > 5) {
				error += column_error / column_power;
				power += 1;
			}
		}
		free(x);
	}
	assert_true(sqrt(error / power) < 0.0735);
}

/* Through weight_pack() and embed(): every panel and group in its place, and K and columns cut short. */
static void weights_come_back_from_where_they_were_put(void **state)
{
	static const uint32_t shapes[][2] = {{2, 1}, {32, 128}, {33, 129}, {70, 300}};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes) * 2; i++) {
		uint32_t n_out = shapes[i / 2][0], n_in = shapes[i / 2][1];
		enum k_type type = i % 2 ? K_Q4 : K_Q8;
		struct matrix a = matrix_random(i, 1, n_out, n_in), kept = matrix_kept(&a, type);
		double worst = 0;

		for (uint32_t j = 0; j < n_out * n_in; j++)
			worst = fmax(worst, fabs(a.v[j] - kept.v[j]) * sqrt(n_in));
		/* Uniform in +-1: half a step of 2/255, or of 2/15 and d's share of it. */
		assert_true(worst <= (type == K_Q8 ? 0.016 : 0.14));
		free(a.v);
		free(kept.v);
	}
}

/* Files hold these bytes from one version to the next. Where they change with good reason, so does
 * PACKED_VERSION of daemon/layout/packed.h: what was stored before is packed anew then. */
static void packed_bytes_are_those_that_files_hold(void **state)
{
	static const uint64_t want[] = {0xee7487748e0ad222, 0xed86a25d997fb080};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(want); i++) {
		struct kernels *k = kernels_for(UINT32_MAX, 1);
		struct matrix a = matrix_random(7, 2, 70, 300);
		struct k_source src = {2, 70, 300, i ? K_Q4 : K_Q8, matrix_row, &a};
		struct k_weight *w = NULL;
		uint64_t bytes, sum = 0xcbf29ce484222325;

		assert_int_equal(kernels_cpu_weight_bytes(&src, &bytes), 0);
		src.memory = aligned_alloc(K_MEMORY_ALIGN, bytes);
		assert_non_null(src.memory);
		memset(src.memory, 0, bytes);
		assert_int_equal(k->weight_pack(k, &w, &src), 0);
		for (uint64_t j = 0; j < bytes; j++) /* FNV-1a */
			sum = (sum ^ ((const uint8_t *)src.memory)[j]) * 0x100000001b3;
		assert_int_equal(sum, want[i]);
		k->weight_free(k, w);
		free(src.memory);
		free(a.v);
		k->free(k);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packed_bytes_are_those_that_files_hold),
		cmocka_unit_test(products_equal_scalar_and_stay_inside),
		cmocka_unit_test(scalar_product_is_the_formula),
		cmocka_unit_test(quantised_rows_are_within_half_a_step),
		cmocka_unit_test(a_row_that_is_not_finite_says_so),
		cmocka_unit_test(packed_bits_equal_scalar),
		cmocka_unit_test(packed_weights_are_as_near_as_their_bits_allow),
		cmocka_unit_test(weights_come_back_from_where_they_were_put),
	};
	const char *name = argc > 1 ? argv[1] : "scalar";
	const struct variant *v = variant_named(strcmp(name, "emulated") == 0 ? "avx2" : name);

	if (!v)
		return EXIT_SKIPPED;
	tested = *v->isa;
#ifdef K_HAVE_X86
	if (strcmp(name, "emulated") == 0) {
		void quant_tile_q8_emulated(const struct q_tile *t);
		void quant_tile_q4_emulated(const struct q_tile *t);

		tested.tile_q8 = quant_tile_q8_emulated;
		tested.tile_q4 = quant_tile_q4_emulated;
	}
#endif
	return cmocka_run_group_tests(tests, NULL, NULL);
}
