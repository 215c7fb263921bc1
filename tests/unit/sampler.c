/* SPDX-License-Identifier: Apache-2.0 */
/* What a request's parameters do to one row of logits, number by number: end tokens that may not come
 * yet, biases, then the penalties of repetition, frequency and presence, in that order (vLLM's). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "kernels.h"
#include "worker/sampler.h"

#define N_VOCAB 8u
#define EOS     7u
#define BELOW   -1e20f /* nothing that a request may add to a logit brings it back from there */

struct fixture {
	struct kernels *k;
	struct sampler *s;
};

static int setup(void **state)
{
	static const uint8_t banned[N_VOCAB];
	static const uint32_t eos[] = {EOS};
	static struct fixture f;
	const struct kernels_config cpu = {.n_threads = 1};
	const struct sampler_config cfg = {
		.n_vocab = N_VOCAB, .banned = banned, .n_eos = 1, .eos = eos, .max_rows = 2};

	*state = &f;
	return kernels_cpu_new(&f.k, &cpu) < 0 || sampler_new(&f.s, f.k, &cfg, NULL) < 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	sampler_free(f->s);
	f->k->free(f->k);
	return 0;
}

static const struct channel_params plain = {.top_p = 1, .repetition_penalty = 1};

static void expect(void **state, const struct channel_params *p, const uint32_t *ids,
		   uint32_t n_ids, const float *before, const float *want)
{
	const struct fixture *f = *state;
	float got[N_VOCAB];

	for (unsigned twice = 0; twice < 2;
	     twice++) { /* nothing of a row is left for the next one */
		memcpy(got, before, sizeof(got));
		sampler_adjust(f->s, p, ids, n_ids, got);
		for (uint32_t i = 0; i < N_VOCAB; i++)
			if (got[i] != want[i])
				fail_msg("logit %u is %g, want %g", i, got[i], want[i]);
	}
}

static void plain_parameters_change_nothing(void **state)
{
	static const uint32_t ids[] = {1, 2, 2, 3};
	static const float logits[N_VOCAB] = {0, 1, -1, 2, -2, 3, -3, 4};

	expect(state, &plain, ids, 4, logits, logits);
}

/* Away from what came: a positive logit is divided, a negative one multiplied; once for each id. */
static void repetition_penalty_is_of_prompt_and_answer(void **state)
{
	static const uint32_t ids[] = {1, 2, 2, 3};
	static const float before[N_VOCAB] = {4, 4, -4, 1, -1, 0, 0, 0};
	static const float want[N_VOCAB] = {4, 2, -8, .5f, -1, 0, 0, 0};
	struct channel_params p = plain;

	p.repetition_penalty = 2;
	p.n_prompt = 2;
	expect(state, &p, ids, 4, before, want);
}

static void frequency_penalty_counts_the_answer_alone(void **state)
{
	static const uint32_t ids[] = {1, 1, 2, 2, 3};
	static const float before[N_VOCAB] = {4, 4, 4, 4, 4, 4, 4, 4};
	static const float want[N_VOCAB] = {4, 4, 3, 3.5f, 4, 4, 4, 4};
	struct channel_params p = plain;

	p.frequency_penalty = .5f;
	p.n_prompt = 2;
	expect(state, &p, ids, 5, before, want);
}

static void presence_penalty_is_taken_once_and_of_the_answer_alone(void **state)
{
	static const uint32_t ids[] = {1, 1, 2, 2, 3};
	static const float before[N_VOCAB] = {4, 4, 4, 4, 4, 4, 4, 4};
	static const float want[N_VOCAB] = {4, 4, 3.5f, 3.5f, 4, 4, 4, 4};
	struct channel_params p = plain;

	p.presence_penalty = .5f;
	p.n_prompt = 2;
	expect(state, &p, ids, 5, before, want);
}

/* 0.5 / 2 - 2 * 0.5 - 0.25: with the divisor last it would be -0.75 * 2. */
static void repetition_goes_before_frequency_and_presence(void **state)
{
	static const uint32_t ids[] = {1, 2, 2};
	static const float before[N_VOCAB] = {0, 0, .5f, 0, 0, 0, 0, 0};
	static const float want[N_VOCAB] = {0, 0, -1, 0, 0, 0, 0, 0};
	struct channel_params p = plain;

	p.repetition_penalty = 2;
	p.frequency_penalty = .5f;
	p.presence_penalty = .25f;
	p.n_prompt = 1;
	expect(state, &p, ids, 3, before, want);
}

/* (-1 + 5) / 2: with the bias last it would be -1 * 2 + 5. */
static void bias_goes_before_the_penalties(void **state)
{
	static const uint32_t ids[] = {1};
	static const float before[N_VOCAB] = {0, -1, 0, 0, 0, 0, 0, 0};
	static const float want[N_VOCAB] = {0, 2, 0, -7, 0, 0, 0, 0};
	struct channel_params p = plain;

	p.repetition_penalty = 2;
	p.n_prompt = 1;
	p.n_bias = 2;
	p.bias[0].id = 1;
	p.bias[0].bias = 5;
	p.bias[1].id = 3;
	p.bias[1].bias = -7;
	expect(state, &p, ids, 1, before, want);
}

static void end_token_is_out_until_min_tokens_and_no_bias_brings_it_back(void **state)
{
	static const uint32_t ids[] = {1, 2, 3, 4};
	struct fixture *f = *state;
	struct channel_params p = plain;

	p.n_prompt = 2;
	p.n_bias = 1;
	p.bias[0].id = EOS;
	p.bias[0].bias = 100;
	for (uint32_t i = 0; i < 4; i++) {
		bool ignored = i == 3;

		p.ignore_eos = ignored;
		for (p.min_tokens = 0; p.min_tokens < 4; p.min_tokens++) {
			uint32_t n_ids = 2 + MIN(i, 2u), n_generated = n_ids - p.n_prompt;
			float logits[N_VOCAB] = {};

			sampler_adjust(f->s, &p, ids, n_ids, logits);
			if (ignored || n_generated < p.min_tokens)
				assert_true(logits[EOS] < BELOW);
			else
				assert_true(logits[EOS] == 100);
			assert_true(logits[EOS - 1] == 0);
		}
	}
}

/* Two rows of one step, one of them penalised: the draw is made from its own adjusted logits, and the
 * logprobs of both are the model's. */
static void rows_are_adjusted_apart_and_logprobs_are_the_models(void **state)
{
	static const float logits[2 * N_VOCAB] = {0, 3, 2, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0};
	static const uint32_t ids[] = {0, 1}, positions[] = {1, 1};
	static const uint8_t domain[16];
	struct fixture *f = *state;
	struct channel_params p[2] = {plain, plain};
	struct engine_sequence q[2];
	struct engine_want wants[2];
	struct channel_result_row got[2];
	struct k_buffer *b;

	p[0].n_top = p[1].n_top = 2;
	p[0].n_prompt = p[1].n_prompt = 1;
	p[1].presence_penalty = 2;
	for (uint32_t i = 0; i < 2; i++) {
		q[i] = (struct engine_sequence){.slot = i,
						.first_row = i,
						.n_rows = 1,
						.domain = domain,
						.params = &p[i],
						.ids = ids};
		wants[i] = (struct engine_want){.row = i, .sequence = i, .given = UINT32_MAX};
	}
	assert_int_equal(f->k->buffer_new(f->k, &b, 2, N_VOCAB), 0);
	f->k->upload(f->k, b, 0, logits, 2);
	assert_int_equal(
		sampler_run(f->s, b,
			    &(struct engine_step){.k = {.n_rows = 2, .positions = positions},
						  .sequences = q,
						  .wants = wants,
						  .n_sequences = 2,
						  .n_wants = 2},
			    0, 2, got, NULL),
		0);
	assert_int_equal(got[0].token, 1);
	assert_int_equal(got[1].token, 2);
	assert_int_equal(got[1].top[0].id, 1);
	assert_true(got[1].top[0].logprob == got[0].logprob);
	assert_true(got[1].logprob == got[0].top[1].logprob);
	f->k->buffer_free(f->k, b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plain_parameters_change_nothing),
		cmocka_unit_test(repetition_penalty_is_of_prompt_and_answer),
		cmocka_unit_test(frequency_penalty_counts_the_answer_alone),
		cmocka_unit_test(presence_penalty_is_taken_once_and_of_the_answer_alone),
		cmocka_unit_test(repetition_goes_before_frequency_and_presence),
		cmocka_unit_test(bias_goes_before_the_penalties),
		cmocka_unit_test(end_token_is_out_until_min_tokens_and_no_bias_brings_it_back),
		cmocka_unit_test(rows_are_adjusted_apart_and_logprobs_are_the_models),
	};

	return cmocka_run_group_tests_name("sampler", tests, setup, teardown);
}
