/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over a tile of int8 rows, of the instruction set named on the command line: equal to the scalar reference
 * bit for bit, inside its outputs, and the reference as near the formula in doubles as the steps of its
 * numbers say. "emulated" takes it from mla_int8_vnni.c over emulated intrinsics. */
#include "common.h"
#include "sample_math.h"

#define GUARD  64u /* floats after an output */
#define FILL   123.5f
#define ROPE   6u
#define RANKS  516u
#define GROUPS ((RANKS + K_ENTRY_GROUP - 1) / K_ENTRY_GROUP)
#define STRIDE (RANKS / MLA_COLUMNS * MLA_COLUMNS + MLA_COLUMNS) /* of acc */

static struct cpu_isa tested; /* of main()'s argument */

enum numbers { RANDOM, LARGEST, SMALLEST, ANY, _NUMBERS_MAX };

struct fixture {
	struct mla_tile_int8 t;
	uint8_t *rows;
	struct q_row x[MLA_HEADS * GROUPS];
	uint32_t q[RANKS / 2 * MLA_HEADS], w[GROUPS][MLA_FOURS][MLA_HEADS];
	float q_d[GROUPS * MLA_HEADS], w_d[GROUPS][MLA_HEADS], correction[MLA_HEADS];
	float s[K_TILE_POSITIONS * MLA_HEADS + GUARD], acc[MLA_HEADS * STRIDE + GUARD];
};

static uint32_t below(uint64_t *state, uint32_t n)
{
	return (uint32_t)((uniform(state) + 1.0f) / 2.0f * (float)n) % n;
}

static int8_t number(uint64_t *state, enum numbers kind)
{
	switch (kind) {
	case LARGEST:
		return below(state, 20) == 0 ? -127 : 127;
	case ANY: /* of a page that nobody wrote too */
		return (int8_t)(uint8_t)below(state, 256);
	default:
		return (int8_t)((int32_t)below(state, 255) - 127);
	}
}

static float some_d(uint64_t *state, enum numbers kind)
{
	static const float any[] = {0.01f, 0.0f, MLA_SMALLEST, 1e30f, 3e38f, -1.0f, 1e-44f};

	switch (kind) {
	case LARGEST:
		return 0x1p60f;
	case SMALLEST:
		return below(state, 3) ? MLA_SMALLEST * (1.5f + uniform(state) / 2) : 0.0f;
	case ANY:
		return any[below(state, N_ELEMENTS(any))];
	default:
		return 0.01f * (1.5f + uniform(state));
	}
}

/* Rows that end where the memory does: reading past them is for the address sanitizer to see. */
static struct fixture *fixture_new(uint32_t n_pos, uint32_t rank, uint32_t n_heads,
				   enum numbers kind)
{
	uint64_t state = n_pos * 1000 + rank * 10 + n_heads + kind;
	uint32_t n_groups = cpu_entry_groups(rank), row_bytes = rank + 4 * n_groups + 2 * ROPE;
	struct fixture *f = malloc(sizeof(*f));

	assert_non_null(f);
	memset(f, 0x5a, sizeof(*f));
	f->rows = malloc((size_t)n_pos * row_bytes);
	assert_non_null(f->rows);
	for (uint32_t p = 0; p < n_pos; p++) {
		uint8_t *row = f->rows + p * row_bytes;

		for (uint32_t i = 0; i < row_bytes; i++)
			row[i] = (uint8_t)number(&state, kind);
		for (uint32_t g = 0; g < n_groups; g++) {
			float d = some_d(&state, kind);

			memcpy(row + rank + 4 * g, &d, sizeof(d));
		}
	}
	for (uint32_t i = 0; i < MLA_HEADS * n_groups; i++) {
		f->x[i].d = fabsf(some_d(&state, kind == ANY ? RANDOM : kind));
		for (uint32_t k = 0; k < Q_GROUP; k++)
			f->x[i].a[k] = number(&state, kind == ANY ? RANDOM : kind);
		f->q_d[i % n_groups * MLA_HEADS + i / n_groups] = f->x[i].d;
	}
	for (uint32_t h = 0; h < MLA_HEADS; h++)
		f->correction[h] = h % 3 ? fabsf(uniform(&state)) : 0.0f;
	for (uint32_t i = 0; i < N_ELEMENTS(f->s); i++)
		f->s[i] = FILL;
	for (uint32_t i = 0; i < N_ELEMENTS(f->acc); i++)
		f->acc[i] = FILL;
	f->t = (struct mla_tile_int8){
		.rows = f->rows,
		.row_bytes = row_bytes,
		.next = f->rows,
		.n_pos = n_pos,
		.rank = rank,
		.n_heads = n_heads,
		.q = f->q,
		.q_d = f->q_d,
		.s = f->s,
		.w = f->w,
		.w_d = f->w_d,
		.correction = f->correction,
		.acc = f->acc,
		.acc_step = STRIDE,
	};
	return f;
}

/* Weights that are a softmax's, some of them next to nothing, and sums of any floats. */
static void fixture_weigh(struct fixture *f)
{
	uint64_t state = f->t.n_pos;

	for (uint32_t i = 0; i < f->t.n_pos * MLA_HEADS; i++)
		f->s[i] = i % 7 == 0 ? 0.0f : expf(30.0f * (uniform(&state) - 1.0f));
	for (uint32_t h = 0; h < f->t.n_heads; h++)
		for (uint32_t c = 0; c < f->t.rank; c++)
			f->acc[h * STRIDE + c] = uniform(&state);
}

/* Nothing outside what the tile's kernels may write has changed. */
static void fixture_free(struct fixture *f)
{
	uint32_t written = (f->t.rank + MLA_COLUMNS - 1) / MLA_COLUMNS * MLA_COLUMNS;

	for (uint32_t i = f->t.n_pos * MLA_HEADS; i < N_ELEMENTS(f->s); i++)
		assert_true(f->s[i] == FILL);
	for (uint32_t i = 0; i < N_ELEMENTS(f->acc); i++)
		if (i / STRIDE >= f->t.n_heads || i % STRIDE >= written)
			assert_true(f->acc[i] == FILL);
	free(f->rows);
	free(f);
}

static const struct {
	uint32_t n_pos, rank, n_heads;
} shapes[] = {
	{64, 512, 16}, {1, 512, 16}, {63, 516, 13}, {61, 132, 9}, {2, 4, 1},     {3, 4, 16},
	{7, 36, 2},    {5, 300, 3},  {8, 64, 4},    {9, 128, 5},  {10, 8, 6},    {11, 32, 7},
	{12, 96, 8},   {13, 260, 9}, {14, 100, 10}, {15, 12, 11}, {22, 124, 12}, {62, 512, 14},
};

/* NaNs are NaNs, whatever else is in them. */
static void assert_same_floats(const float *got, const float *want, size_t n)
{
	for (size_t i = 0; i < n; i++)
		assert_true(k_bits(got[i]) == k_bits(want[i]) || (isnan(got[i]) && isnan(want[i])));
}

static void int8_bits_equal_scalar_and_stay_inside(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes) * _NUMBERS_MAX; i++) {
		uint32_t at = i / _NUMBERS_MAX, n_pos = shapes[at].n_pos, rank = shapes[at].rank;
		enum numbers kind = i % _NUMBERS_MAX;
		struct fixture *want = fixture_new(n_pos, rank, shapes[at].n_heads, kind);
		struct fixture *got = fixture_new(n_pos, rank, shapes[at].n_heads, kind);

		cpu_isa_scalar.mla_queries_int8(want->q, want->x, rank);
		cpu_isa_scalar.mla_scores_int8(&want->t);
		tested.mla_queries_int8(got->q, got->x, rank);
		tested.mla_scores_int8(&got->t);
		assert_same_floats(got->s, want->s, (size_t)n_pos * MLA_HEADS);
		fixture_weigh(want);
		fixture_weigh(got);
		cpu_isa_scalar.mla_weights_int8(&want->t);
		tested.mla_weights_int8(&got->t);
		for (uint32_t g = 0; g < cpu_entry_groups(rank); g++) {
			assert_same_floats(got->w_d[g], want->w_d[g], MLA_HEADS);
			assert_memory_equal(got->w[g], want->w[g],
					    (n_pos + 3) / 4 * sizeof(got->w[g][0]));
		}
		cpu_isa_scalar.mla_values_int8(&want->t);
		tested.mla_values_int8(&got->t);
		for (uint32_t h = 0; h < shapes[at].n_heads; h++)
			assert_same_floats(got->acc + h * STRIDE, want->acc + h * STRIDE, rank);
		fixture_free(want);
		fixture_free(got);
	}
}

/* A score goes on into struct mla_tile, whose instructions may take subnormal numbers for zeros. */
static void int8_scores_are_never_subnormal(void **state)
{
	bool zero = false;

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes); i++) {
		struct fixture *f = fixture_new(shapes[i].n_pos, shapes[i].rank, 16, SMALLEST);

		tested.mla_queries_int8(f->q, f->x, shapes[i].rank);
		tested.mla_scores_int8(&f->t);
		for (uint32_t j = 0; j < shapes[i].n_pos * MLA_HEADS; j++) {
			assert_true(f->s[j] == 0.0f || fabsf(f->s[j]) >= 0x1p-126f);
			zero |= f->s[j] == 0.0f;
		}
		fixture_free(f);
	}
	assert_true(zero);
}

/* What is not finite in a row, a query or a weight comes out where it belongs, and nowhere else. */
static void int8_keeps_what_is_not_finite_in_its_place(void **state)
{
	struct fixture *f = fixture_new(9, 132, 5, RANDOM);
	const float nan = NAN, infinite = INFINITY;

	(void)state;
	memcpy(f->rows + 3 * f->t.row_bytes + 132 + 4, &nan, sizeof(nan));
	f->x[2 * 2].d = f->q_d[2] = NAN; /* a query's first group */
	memset(f->x[2 * 2].a, 0, sizeof(f->x[0].a));
	tested.mla_queries_int8(f->q, f->x, 132);
	tested.mla_scores_int8(&f->t);
	for (uint32_t p = 0; p < 9; p++)
		for (uint32_t h = 0; h < MLA_HEADS; h++)
			assert_int_equal(isnan(f->s[p * MLA_HEADS + h]) != 0, p == 3 || h == 2);
	for (uint32_t bad = 0; bad < 2; bad++) {
		fixture_weigh(f);
		memcpy(f->rows + 3 * f->t.row_bytes + 132 + 4, bad ? &infinite : &f->correction[1],
		       sizeof(nan));
		f->s[7 * MLA_HEADS + 4] = bad ? INFINITY : NAN;
		for (uint32_t h = 0; h < MLA_HEADS; h++)
			f->s[3 * MLA_HEADS + h] = 0.5f;
		tested.mla_weights_int8(&f->t);
		tested.mla_values_int8(&f->t);
		for (uint32_t h = 0; h < 5; h++)
			for (uint32_t c = 0; c < 132; c++)
				assert_int_equal(isfinite(f->acc[h * STRIDE + c]) != 0,
						 h != 4 && !(bad && c >= 128));
	}
	fixture_free(f);
}

/* --- the formula ---------------------------------------------------------------------------------- */

static double row_number(const struct mla_tile_int8 *t, uint32_t p, uint32_t i)
{
	return (double)(int8_t)t->rows[p * t->row_bytes + i] * mla_row_d(t, p, i / K_ENTRY_GROUP);
}

/* The numbers there are, multiplied exactly: 1e-6 of the sum of sizes for some roundings of 2^-24. */
static void int8_products_are_those_of_doubles(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes); i++) {
		uint32_t rank = shapes[i].rank, n_heads = shapes[i].n_heads;
		struct fixture *f = fixture_new(shapes[i].n_pos, rank, n_heads, RANDOM);
		static float acc[MLA_HEADS * STRIDE];

		tested.mla_queries_int8(f->q, f->x, rank);
		tested.mla_scores_int8(&f->t);
		for (uint32_t j = 0; j < shapes[i].n_pos * MLA_HEADS; j++) {
			const struct q_row *x = f->x + j % MLA_HEADS * cpu_entry_groups(rank);
			double want = 0, size = 0;

			for (uint32_t k = 0; k < rank; k++) {
				double part = row_number(&f->t, j / MLA_HEADS, k) *
					      x[k / Q_GROUP].a[k % Q_GROUP] * x[k / Q_GROUP].d;

				want += part;
				size += fabs(part);
			}
			assert_true(fabs(f->s[j] - want) <= 1e-6 * size);
		}
		fixture_weigh(f);
		memcpy(acc, f->acc, sizeof(acc));
		tested.mla_weights_int8(&f->t);
		tested.mla_values_int8(&f->t);
		for (uint32_t j = 0; j < n_heads * rank; j++) {
			uint32_t h = j / rank, c = j % rank, g = c / K_ENTRY_GROUP;
			double want = (double)acc[h * STRIDE + c] * f->correction[h],
			       size = fabs(want);

			for (uint32_t p = 0; p < shapes[i].n_pos; p++) {
				uint32_t w = f->w[g][p / 4][h] >> p % 4 * 8 & 0xff;
				double part = (double)w * f->w_d[g][h] *
					      (int8_t)f->rows[p * f->t.row_bytes + c];

				want += part;
				size += fabs(part);
			}
			assert_true(fabs(f->acc[h * STRIDE + c] - want) <= 1e-6 * size);
		}
		fixture_free(f);
	}
}

static void int8_weights_are_within_half_a_step(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(shapes); i++) {
		uint32_t n_pos = shapes[i].n_pos, n_groups = cpu_entry_groups(shapes[i].rank);
		struct fixture *f = fixture_new(n_pos, shapes[i].rank, 16, RANDOM);

		fixture_weigh(f);
		tested.mla_weights_int8(&f->t);
		for (uint32_t j = 0; j < n_groups * MLA_HEADS; j++) {
			uint32_t g = j / MLA_HEADS, h = j % MLA_HEADS, most = 0;
			double d = f->w_d[g][h], sum = 0;

			for (uint32_t p = 0; p < (n_pos + 3) / 4 * 4; p++) {
				uint32_t got = f->w[g][p / 4][h] >> p % 4 * 8 & 0xff;
				double want = 0;

				if (p < n_pos)
					want = (double)f->s[p * MLA_HEADS + h] *
					       mla_row_d(&f->t, p, g);
				assert_true(fabs(got * d - want) <= 0.5001 * d);
				most = got > most ? got : most;
				sum += want;
			}
			assert_int_equal(most, sum > 0 ? 255 : 0);
		}
		fixture_free(f);
	}
}

/* Queries of float numbers over tiles of rows: scores, softmax and values, against doubles. An error may be what the
 * steps allow: half of one of a query's numbers for each of its products, half of one of a weight's for each of
 * its, where a tile's steps count by what its maximum is worth at the end. */
static void int8_attention_is_as_near_as_its_steps(void **state)
{
	enum { TILES = 3, HEAD = 7 };
	static const uint32_t ranks[] = {512, 132, 36, 4};
	const float scale = 0.2f;

	(void)state;
	for (uint32_t round = 0; round < 4 * N_ELEMENTS(ranks); round++) {
		uint32_t rank = ranks[round % N_ELEMENTS(ranks)], last = 1 + round * 4;
		uint32_t n_groups = cpu_entry_groups(rank), n_pos = 2 * K_TILE_POSITIONS + last,
			 at = 0;
		float *query = random_array(round, rank, 2.0f);
		float max[MLA_HEADS], sum[MLA_HEADS], tops[TILES];
		double exact[TILES * K_TILE_POSITIONS], off[TILES * K_TILE_POSITIONS], total = 0;
		double top = -1e300, apart = 0;
		uint32_t n_valid[MLA_HEADS];
		struct fixture *tiles[TILES], *f;

		for (uint32_t h = 0; h < MLA_HEADS; h++) {
			max[h] = -INFINITY;
			sum[h] = 0.0f;
		}
		for (uint32_t k = 0; k < TILES; k++, at += K_TILE_POSITIONS) {
			uint32_t n = k + 1 < TILES ? K_TILE_POSITIONS : last;

			f = tiles[k] = fixture_new(n, rank, MLA_HEADS, RANDOM);
			for (uint32_t h = 0; h < MLA_HEADS; h++)
				for (uint32_t c = 0; c < rank; c++)
					f->acc[h * STRIDE + c] =
						k > 0 ? tiles[k - 1]->acc[h * STRIDE + c] : 0.0f;
			for (uint32_t g = 0; g < n_groups; g++) {
				struct q_row *x = &f->x[HEAD * n_groups + g];

				tested.quantise(x, query + g * Q_GROUP,
						cpu_entry_group(rank, g * Q_GROUP));
				f->q_d[g * MLA_HEADS + HEAD] = x->d;
			}
			for (uint32_t p = 0; p < n; p++) {
				exact[at + p] = off[at + p] = 0;
				for (uint32_t i = 0; i < rank; i++) {
					double c = row_number(&f->t, p, i);

					exact[at + p] += scale * c * query[i];
					off[at + p] += scale * fabs(c) * 0.501 *
						       f->q_d[i / Q_GROUP * MLA_HEADS + HEAD];
				}
				top = fmax(top, exact[at + p]);
			}
			tested.mla_queries_int8(f->q, f->x, rank);
			tested.mla_scores_int8(&f->t);
			for (uint32_t p = 0; p < n; p++)
				assert_true(fabs(scale * f->s[p * MLA_HEADS + HEAD] -
						 exact[at + p]) <= off[at + p]);
			for (uint32_t h = 0; h < MLA_HEADS; h++)
				n_valid[h] = n;
			tested.softmax_tile(&(struct softmax_tile){f->s, n, MLA_HEADS, n_valid,
								   scale, max, sum, f->correction,
								   false});
			tops[k] = max[HEAD];
			tested.mla_weights_int8(&f->t);
			tested.mla_values_int8(&f->t);
		}
		for (uint32_t p = 0; p < n_pos; p++) {
			total += exp(exact[p] - top);
			apart = fmax(apart, off[p]);
		}
		for (uint32_t c = 0; c < rank; c++) {
			double want = 0, error = 0;

			for (uint32_t p = 0; p < n_pos; p++) {
				f = tiles[p / K_TILE_POSITIONS];
				uint32_t in = p % K_TILE_POSITIONS, g = c / K_ENTRY_GROUP;
				double x = row_number(&f->t, in, c),
				       w = exp(exact[p] - top) / total;
				double step = f->w_d[g][HEAD] / sum[HEAD] *
					      exp(tops[p / K_TILE_POSITIONS] - tops[TILES - 1]);

				want += w * x;
				error += w * fabs(x) * (exp(2 * apart) - 1 + 1e-5);
				error += step * 0.501 * fabs(x / mla_row_d(&f->t, in, g));
			}
			assert_true(fabs(f->acc[HEAD * STRIDE + c] / sum[HEAD] - want) <= error);
		}
		for (uint32_t k = 0; k < TILES; k++)
			fixture_free(tiles[k]);
		free(query);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(int8_bits_equal_scalar_and_stay_inside),
		cmocka_unit_test(int8_scores_are_never_subnormal),
		cmocka_unit_test(int8_keeps_what_is_not_finite_in_its_place),
		cmocka_unit_test(int8_products_are_those_of_doubles),
		cmocka_unit_test(int8_weights_are_within_half_a_step),
		cmocka_unit_test(int8_attention_is_as_near_as_its_steps),
	};
	const char *name = argc > 1 ? argv[1] : "scalar";
	const struct variant *v = variant_named(strcmp(name, "emulated") == 0 ? "avx2" : name);

	if (!v)
		return EXIT_SKIPPED;
	tested = *v->isa;
#ifdef K_HAVE_X86
	if (strcmp(name, "emulated") == 0) {
		void mla_scores_int8_emulated(const struct mla_tile_int8 *t);
		void mla_values_int8_emulated(const struct mla_tile_int8 *t);

		tested.mla_queries_int8 = mla_queries_int8_fours;
		tested.mla_scores_int8 = mla_scores_int8_emulated;
		tested.mla_values_int8 = mla_values_int8_emulated;
	}
#endif
	return cmocka_run_group_tests(tests, NULL, NULL);
}
