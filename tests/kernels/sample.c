/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling: which ids can come out, how often, and that nothing but seed, choice and position decides.
 * Semantics and order: vLLM's. */
#include <errno.h>

#include "common.h"
#include "sample_math.h"

static uint32_t cpu_mask; /* of main()'s argument */

static const struct k_sample plain = {
	.temperature = 1.0f, .top_p = 1.0f, .seed = 7, .given = K_ID_NONE};

/* One row of logits, sampled @n times in a batch at positions 0 .. n - 1. */
static int sample_n(const float *logits, uint32_t n_vocab, uint32_t n_valid, const uint8_t *banned,
		    const struct k_sample *how, uint32_t n, struct k_sampled *ret)
{
	struct kernels *k = kernels_for(cpu_mask, 2);
	struct k_buffer *b = buffer_of(k, NULL, n, n_vocab);
	struct k_sample *each = calloc(n, sizeof(*each));
	int r;

	for (uint32_t i = 0; i < n; i++) {
		k->upload(k, b, i, logits, 1);
		each[i] = *how;
		each[i].position += i;
	}
	r = k->sample(k, b, n, n_valid, banned, each, ret);
	free(each);
	k->buffer_free(k, b);
	k->free(k);
	return r;
}

/* How often each id comes out of @n draws. */
static void count_draws(const float *logits, uint32_t n_vocab, const struct k_sample *how,
			uint32_t n, uint32_t *counts)
{
	struct k_sampled *got = calloc(n, sizeof(*got));

	assert_int_equal(sample_n(logits, n_vocab, n_vocab, NULL, how, n, got), 0);
	memset(counts, 0, n_vocab * sizeof(*counts));
	for (uint32_t i = 0; i < n; i++) {
		assert_true(got[i].id < n_vocab);
		counts[got[i].id]++;
	}
	free(got);
}

/* The set of ids that can come out, as bits; n_vocab <= 32 and no kept id rarer than some 1 in 300. */
static uint32_t possible(const float *logits, uint32_t n_vocab, const struct k_sample *how)
{
	uint32_t counts[32], bits = 0;

	count_draws(logits, n_vocab, how, 4000, counts);
	for (uint32_t i = 0; i < n_vocab; i++)
		bits |= counts[i] > 0 ? 1u << i : 0;
	return bits;
}

static void sample_draws_by_the_softmax(void **state)
{
	static const float logits[] = {0.5f, -1, 2, 1.2f, -0.3f, 1.9f, -3, 0};
	static const float temperatures[] = {1.0f, 0.5f, 2.5f};
	const uint32_t n = 20000;

	(void)state;
	for (uint32_t t = 0; t < N_ELEMENTS(temperatures); t++) {
		struct k_sample how = plain;
		double sum = 0, chi = 0;
		uint32_t counts[8];

		how.temperature = temperatures[t];
		count_draws(logits, 8, &how, n, counts);
		for (uint32_t i = 0; i < 8; i++)
			sum += exp(logits[i] / temperatures[t]);
		for (uint32_t i = 0; i < 8; i++) {
			double want = n * exp(logits[i] / temperatures[t]) / sum;

			chi += (counts[i] - want) * (counts[i] - want) / want;
		}
		/* chi-square of 7 degrees: above 24.3 in one of a thousand; the seed is fixed */
		assert_true(chi < 24.3);
		assert_true(chi > 0);
	}
}

static void sample_is_decided_by_seed_choice_and_position_alone(void **state)
{
	float *logits = random_array(1, 300, 1.0f);
	struct k_sampled a[64], b[64], c[64], d[64], e;
	struct k_sample how = plain;
	uint32_t same_choice = 0, same_seed = 0;

	(void)state;
	assert_int_equal(sample_n(logits, 300, 300, NULL, &how, 64, a), 0);
	assert_int_equal(sample_n(logits, 300, 300, NULL, &how, 64, b), 0);
	how.choice = 1;
	assert_int_equal(sample_n(logits, 300, 300, NULL, &how, 64, c), 0);
	how.choice = 0;
	how.seed ^= UINT64_C(1) << 40;
	assert_int_equal(sample_n(logits, 300, 300, NULL, &how, 64, d), 0);
	for (uint32_t i = 0; i < 64; i++) {
		assert_int_equal(a[i].id, b[i].id);
		same_choice += a[i].id == c[i].id;
		same_seed += a[i].id == d[i].id;
	}
	assert_true(same_choice < 8 && same_seed < 8);
	/* alone, at the position it had in the batch */
	how = plain;
	how.position = 33;
	assert_int_equal(sample_n(logits, 300, 300, NULL, &how, 1, &e), 0);
	assert_int_equal(e.id, a[33].id);
	free(logits);
}

/* Vectors of the authors' implementation (Random123, kat_vectors, philox4x32 10). */
static void philox_gives_published_vectors(void **state)
{
	static const struct {
		uint32_t counter[4], key[2], want[4];
	} known[] = {
		{{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{{~0u, ~0u, ~0u, ~0u},
		 {~0u, ~0u},
		 {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
		 {0xa4093822, 0x299f31d0},
		 {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(known); i++) {
		uint32_t got[4];

		k_philox(known[i].key, known[i].counter, got);
		assert_memory_equal(got, known[i].want, sizeof(got));
	}
}

static void fixed_point_is_exact_down_to_its_last_bit(void **state)
{
	(void)state;
	assert_true(k_fixed(1.0f) == K_FIXED_ONE);
	assert_true(k_fixed(0.75f) == K_FIXED_ONE / 4 * 3);
	assert_true(k_fixed(0x1.8p-40f) == 1);
	assert_true(k_fixed(0x1.fffffep-41f) == 0);
	assert_true(k_fixed(0x1p-40f) == 1);
	assert_true(k_fixed(0.0f) == 0 && k_fixed(0x1p-149f) == 0 && k_fixed(0x1p-126f) == 0);
	assert_true(k_fixed(0x1.fffffep-1f) == K_FIXED_ONE - (K_FIXED_ONE >> 24));
}

static void sample_greedy_takes_the_first_of_equals(void **state)
{
	static const float logits[] = {1, 4, 4, -2, 4};
	struct k_sample how = plain;
	struct k_sampled got;
	double sum = 0;

	(void)state;
	how.temperature = 0;
	for (uint32_t i = 0; i < 5; i++)
		sum += exp(logits[i]);
	assert_int_equal(sample_n(logits, 5, 5, NULL, &how, 1, &got), 0);
	assert_int_equal(got.id, 1);
	assert_true(fabs(got.logprob - log(exp(4) / sum)) < 1e-6);
}

static void sample_logprobs_are_of_the_distribution_before_filters(void **state)
{
	static const float logits[] = {3, 1, 2, 0};
	static const uint32_t order[] = {0, 2, 1};
	struct k_sample how = plain;
	struct k_sampled got;
	double sum = exp(3) + exp(1) + exp(2) + exp(0);

	(void)state;
	how.top_k = 1;
	how.temperature = 0.1f;
	how.n_top = 3;
	assert_int_equal(sample_n(logits, 4, 4, NULL, &how, 1, &got), 0);
	assert_int_equal(got.id, 0);
	assert_true(fabs(got.logprob - log(exp(3) / sum)) < 1e-6);
	assert_int_equal(got.n_top, 3);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(got.top[i].id, order[i]);
		assert_true(fabs(got.top[i].logprob - log(exp(3.0 - i) / sum)) < 1e-6);
	}
	how.given = 3;
	assert_int_equal(sample_n(logits, 4, 4, NULL, &how, 1, &got), 0);
	assert_int_equal(got.id, 3);
	assert_true(fabs(got.logprob - log(1 / sum)) < 1e-6);
}

static void sample_top_lists_lower_ids_first_on_ties(void **state)
{
	static const float logits[] = {0, 5, 1, 5, 1, 5, 9, 1};
	static const uint32_t order[] = {6, 1, 3, 5, 2, 4, 7, 0};
	struct k_sample how = plain;
	struct k_sampled got;

	(void)state;
	for (how.n_top = 0; how.n_top <= K_TOP_MAX; how.n_top++) {
		assert_int_equal(sample_n(logits, 8, 8, NULL, &how, 1, &got), 0);
		assert_int_equal(got.n_top, how.n_top < 8 ? how.n_top : 8);
		for (uint32_t i = 0; i < got.n_top; i++)
			assert_int_equal(got.top[i].id, order[i]);
	}
}

static void sample_top_k_keeps_all_that_equal_the_last(void **state)
{
	static const float logits[] = {1, 2, 1.5f, 1.5f, 0.5f, -1, 1.5f, 0};
	static const uint32_t want[] = {0xff, 0x02, 0x4e, 0x4e, 0x4e, 0x4f, 0x5f, 0xdf, 0xff, 0xff};
	struct k_sample how = plain;

	(void)state;
	for (how.top_k = 0; how.top_k < N_ELEMENTS(want); how.top_k++)
		assert_int_equal(possible(logits, 8, &how), want[how.top_k]);
}

static void sample_top_p_keeps_the_id_that_crosses(void **state)
{
	/* probabilities 0.5, 0.25, 0.125, 0.125: exact in fixed point, as long as exp is within an ulp */
	const float logits[] = {0, logf(2), 2 * logf(2), 0};
	static const struct {
		float p;
		uint32_t want;
	} cases[] = {{0.0f, 0x4},  {0.1f, 0x4},  {0.49f, 0x4}, {0.51f, 0x6}, {0.74f, 0x6},
		     {0.76f, 0x7}, {0.87f, 0x7}, {0.88f, 0xf}, {1.0f, 0xf},  {1e-30f, 0x4}};
	struct k_sample how = plain;

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(cases); i++) {
		how.top_p = cases[i].p;
		assert_int_equal(possible(logits, 4, &how), cases[i].want);
	}
	/* top_k goes first: its survivors are the whole that p is of; 0.5 of 0.75 is 2/3 */
	how.top_k = 2;
	how.top_p = 0.6f;
	assert_int_equal(possible(logits, 4, &how), 0x4);
	how.top_p = 0.7f;
	assert_int_equal(possible(logits, 4, &how), 0x6);
}

static void sample_min_p_is_relative_to_the_best(void **state)
{
	const float logits[] = {0, -1, -2, -3};
	struct k_sample how = plain;

	(void)state;
	how.min_p = 0.1f; /* e^-2 = 0.135 stays, e^-3 = 0.0498 goes */
	assert_int_equal(possible(logits, 4, &how), 0x7);
	how.min_p = 0.04f;
	assert_int_equal(possible(logits, 4, &how), 0xf);
	how.min_p = 1.0f;
	assert_int_equal(possible(logits, 4, &how), 0x1);
	how.min_p = 2.0f; /* nonsense still leaves the best */
	assert_int_equal(possible(logits, 4, &how), 0x1);
	how.min_p = 0.1f; /* the temperature comes first: e^-2/3, e^-1, ... all stay */
	how.temperature = 3.0f;
	assert_int_equal(possible(logits, 4, &how), 0xf);
}

/* Probabilities 0.5, 0.25, 0.125, 0.125. Min_p leaves the first two, of which 0.5 is 2/3; of all four it
 * would be less than top_p, and both would stay. */
static void sample_min_p_goes_before_top_p(void **state)
{
	const float logits[] = {0, logf(2), 2 * logf(2), 0};
	struct k_sample how = plain;

	(void)state;
	how.top_p = 0.6f;
	assert_int_equal(possible(logits, 4, &how), 0x6);
	how.min_p = 0.4f;
	assert_int_equal(possible(logits, 4, &how), 0x4);
	how.top_p = 0.7f;
	assert_int_equal(possible(logits, 4, &how), 0x6);
}

/* Thresholds found by radix selection against a sort, over a vocabulary with many equal logits. */
static int descending(const void *a, const void *b)
{
	const float *x = a, *y = b;

	return (*x < *y) - (*x > *y);
}

static void sample_filters_agree_with_a_sort(void **state)
{
	enum { N = 1000, DRAWS = 3000 };
	static const uint32_t ks[] = {1, 2, 17, 500, 999};
	static const float ps[] = {0.05f, 0.3f, 0.9f, 0.999f};
	float *logits = random_array(3, N, 4.0f), sorted[N];
	static uint32_t counts[N];

	(void)state;
	for (uint32_t i = 0; i < N; i++)
		logits[i] = roundf(logits[i] * 8) / 8 - 0.5f; /* signs and ties */
	memcpy(sorted, logits, sizeof(sorted));
	qsort(sorted, N, sizeof(*sorted), descending);
	for (uint32_t i = 0; i < N_ELEMENTS(ks); i++) {
		struct k_sample how = plain;

		how.top_k = ks[i];
		how.temperature = 5.0f;
		count_draws(logits, N, &how, DRAWS, counts);
		for (uint32_t id = 0; id < N; id++)
			assert_true(counts[id] == 0 || logits[id] >= sorted[ks[i] - 1]);
	}
	for (uint32_t i = 0; i < N_ELEMENTS(ps); i++) {
		struct k_sample how = plain;
		double total = 0, before = 0;
		uint32_t n_kept = 0, n_lower_ties = 0;

		how.top_p = ps[i];
		count_draws(logits, N, &how, DRAWS, counts);
		for (uint32_t j = 0; j < N; j++)
			total += exp((double)sorted[j] - sorted[0]);
		while (n_kept < N && before < ps[i] * total)
			before += exp((double)sorted[n_kept++] - sorted[0]);
		for (uint32_t j = n_kept; j < N && sorted[j] == sorted[n_kept - 1]; j++)
			n_lower_ties++;
		for (uint32_t id = 0; id < N; id++)
			assert_true(counts[id] == 0 || logits[id] >= sorted[n_kept - 1]);
		/* of ids that equal the last one kept, the highest ones are out */
		for (uint32_t id = N; id-- > 0 && n_lower_ties > 0;)
			if (logits[id] == sorted[n_kept - 1]) {
				assert_int_equal(counts[id], 0);
				n_lower_ties--;
			}
	}
	free(logits);
}

static void sample_never_draws_banned_or_invalid_ids(void **state)
{
	static const float logits[] = {0, 9,   1,
				       8, 100, NAN}; /* the last two are padding rows of the head */
	static const uint8_t banned[] = {0, 1, 0, 0};
	struct k_sample how = plain;
	struct k_sampled got[200];
	double sum = exp(0) + exp(1) + exp(8);
	bool seen = false;

	(void)state;
	how.n_top = 20;
	how.temperature = 4;
	assert_int_equal(sample_n(logits, 6, 4, banned, &how, 200, got), 0);
	for (uint32_t i = 0; i < 200; i++) {
		assert_true(got[i].id == 0 || got[i].id == 2 || got[i].id == 3);
		assert_int_equal(got[i].n_top, 3);
		assert_int_equal(got[i].top[0].id, 3);
		assert_true(fabs(got[i].top[0].logprob - log(exp(8) / sum)) < 1e-6);
		seen = seen || got[i].id == 2;
	}
	assert_true(seen);
	how.given = 1;
	assert_int_equal(sample_n(logits, 6, 4, banned, &how, 1, got), 0);
	assert_true(got[0].logprob == -INFINITY);
	how.given = 77;
	assert_int_equal(sample_n(logits, 6, 4, banned, &how, 1, got), 0);
	assert_true(got[0].logprob == -INFINITY);
}

/* One bad row costs itself alone. */
static void sample_answers_edom_for_rows_that_are_no_numbers(void **state)
{
	static const float bad[] = {NAN, INFINITY, -INFINITY};
	static const uint8_t all[] = {1, 1, 1};

	(void)state;
	for (uint32_t i = 0; i < N_ELEMENTS(bad); i++) {
		float logits[3][3] = {{1, 2, 3}, {1, 2, 3}, {3, 2, 1}};
		struct kernels *k = kernels_for(cpu_mask, 1);
		struct k_sample how[3] = {plain, plain, plain};
		struct k_sampled got[3];
		struct k_buffer *b;

		for (uint32_t j = 0; j < 3; j++)
			how[j].temperature = 0;
		logits[1][1] = bad[i];
		b = buffer_of(k, logits[0], 3, 3);
		assert_int_equal(k->sample(k, b, 3, 3, NULL, how, got), -EDOM);
		assert_int_equal(got[0].id, 2);
		assert_int_equal(got[1].id, K_ID_NONE);
		assert_int_equal(got[2].id, 0);
		assert_int_equal(k->sample(k, b, 1, 3, all, how, got),
				 -EDOM); /* nothing left to draw */
		assert_int_equal(k->sample(k, b, 1, 4, NULL, how, got), -EINVAL);
		k->buffer_free(k, b);
		k->free(k);
	}
}

/* Large magnitudes, a temperature near 0, a vocabulary of one. */
static void sample_stands_at_the_ends_of_the_range(void **state)
{
	const float wide[] = {-3e38f, 3e38f, 0, 2.9e38f};
	struct k_sample how = plain;
	struct k_sampled got;

	(void)state;
	how.temperature = 1e-5f;
	how.top_p = 0.5f;
	how.top_k = 3;
	how.min_p = 0.01f;
	assert_int_equal(sample_n(wide, 4, 4, NULL, &how, 1, &got), 0);
	assert_int_equal(got.id, 1);
	assert_true(got.logprob == 0.0f);
	assert_int_equal(sample_n(wide, 4, 1, NULL, &how, 1, &got), 0);
	assert_int_equal(got.id, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sample_draws_by_the_softmax),
		cmocka_unit_test(sample_is_decided_by_seed_choice_and_position_alone),
		cmocka_unit_test(philox_gives_published_vectors),
		cmocka_unit_test(fixed_point_is_exact_down_to_its_last_bit),
		cmocka_unit_test(sample_greedy_takes_the_first_of_equals),
		cmocka_unit_test(sample_logprobs_are_of_the_distribution_before_filters),
		cmocka_unit_test(sample_top_lists_lower_ids_first_on_ties),
		cmocka_unit_test(sample_top_k_keeps_all_that_equal_the_last),
		cmocka_unit_test(sample_top_p_keeps_the_id_that_crosses),
		cmocka_unit_test(sample_min_p_is_relative_to_the_best),
		cmocka_unit_test(sample_min_p_goes_before_top_p),
		cmocka_unit_test(sample_filters_agree_with_a_sort),
		cmocka_unit_test(sample_never_draws_banned_or_invalid_ids),
		cmocka_unit_test(sample_answers_edom_for_rows_that_are_no_numbers),
		cmocka_unit_test(sample_stands_at_the_ends_of_the_range),
	};
	const struct variant *v = variant_named(argc > 1 ? argv[1] : "scalar");

	if (!v)
		return EXIT_SKIPPED;
	cpu_mask = v->needs;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
