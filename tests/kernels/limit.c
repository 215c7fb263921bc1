/* SPDX-License-Identifier: Apache-2.0 */
#include "common.h"
#include "limit.h"

/* Products of a round of twelve instructions; the scalar forms have eight chains. */
static const struct {
	const char *name;
	double f32, bf16, int8;
} products[] = {
	{"scalar", 8, 8, 8},
	{"avx2", 12 * 8, 12 * 8, 12 * 32},
	{"avx512", 12 * 16, 12 * 16, 12 * 32},
	{"vnni", 12 * 16, 12 * 16, 12 * 64},
	{"bf16", 12 * 16, 12 * 32, 12 * 64},
};

static const struct variant *tested;

static void round_counts_two_for_each_product(void **state)
{
	uint32_t i = 0;

	(void)state;
	while (strcmp(products[i].name, tested->name) != 0)
		i++;
	for (uint64_t n = 1; n <= 1000; n *= 10) {
		double two = 2.0 * (double)n;

		assert_true(tested->isa->limit_f32(n) == two * products[i].f32);
		assert_true(tested->isa->limit_bf16(n) == two * products[i].bf16);
		assert_true(tested->isa->limit_int8(n, false) == two * products[i].int8);
		assert_true(tested->isa->limit_int8(n, true) == two * products[i].int8);
	}
}

static void limits_are_of_the_instructions_allowed_and_of_all_threads(void **state)
{
	const struct cpu_isa *isa = tested->isa;
	double rounds = 0;

	(void)state;
	for (uint32_t n = 1; n <= 2; n++) {
		struct kernels_config cfg = {n, tested->needs};
		struct limits *l = NULL;

		assert_int_equal(limits_new(&l, &cfg), 0);
		if (n == 1)
			rounds = limits_float(l, K_F32) / isa->limit_f32(1);
		assert_true(limits_float(l, K_F32) == n * rounds * isa->limit_f32(1));
		assert_true(limits_float(l, K_BF16) == n * rounds * isa->limit_bf16(1));
		assert_true(limits_int8(l, K_Q8) == n * rounds * isa->limit_int8(1, false));
		assert_true(limits_int8(l, K_Q4) == n * rounds * isa->limit_int8(1, true));
		assert_true(limits_read(l) == LIMITS_READ_BYTES);
		limits_free(l);
	}
}

/* As the tables of products: no VNNI and no BF16 without the 512 bits. */
static void limits_follow_the_choice_of_kernels(void **state)
{
	struct kernels_config cfg = {1, tested->needs | K_CPU_VNNI | K_CPU_BF16};
	const struct cpu_isa *isa = cpu_isa_pick(cfg.cpu_mask);
	struct kernels *k = kernels_for(cfg.cpu_mask, 1);
	struct limits *l = NULL;

	(void)state;
	assert_string_equal(k->name, isa->name);
	assert_int_equal(limits_new(&l, &cfg), 0);
	assert_true(limits_float(l, K_BF16) * isa->limit_f32(1) ==
		    limits_float(l, K_F32) * isa->limit_bf16(1));
	assert_true(limits_int8(l, K_Q8) * isa->limit_f32(1) ==
		    limits_float(l, K_F32) * isa->limit_int8(1, false));
	limits_free(l);
	k->free(k);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_counts_two_for_each_product),
		cmocka_unit_test(limits_are_of_the_instructions_allowed_and_of_all_threads),
		cmocka_unit_test(limits_follow_the_choice_of_kernels),
	};

	tested = variant_named(argc > 1 ? argv[1] : "scalar");
	if (!tested)
		return EXIT_SKIPPED;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
