/* SPDX-License-Identifier: Apache-2.0 */
/* What a step must not do: ask for memory. The allocator's functions are wrapped, and counted while steps run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/error.h"
#include "layout/image.h"
#include "worker/control.h"
#include "worker/engine.h"
#include "worker/infer.h"
#include "worker/load/files.h"

#define N_SEQUENCES 8u
#define MAX_ROWS    100u
#define MAX_TOKENS  256u
#define PAGES_EACH  (MAX_TOKENS / PAGE_TOKENS)

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);

static _Atomic uint64_t n_calls;

void *__wrap_malloc(size_t n)
{
	n_calls++;
	return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	n_calls++;
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	n_calls++;
	return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
	n_calls++;
	return __real_aligned_alloc(align, n);
}

struct rig {
	struct engine engine;
	uint8_t *pool;
	uint32_t ids[MAX_TOKENS], pages[N_SEQUENCES * PAGES_EACH];
	uint32_t row_ids[MAX_ROWS], positions[MAX_ROWS];
	struct k_segment segments[N_SEQUENCES];
	struct engine_sequence sequences[N_SEQUENCES];
	struct engine_want wants[N_SEQUENCES];
	struct channel_result_row results[N_SEQUENCES];
};

/* Every step a draw, alternatives, penalties and a bias. */
static const struct channel_params params = {
	.seed = 1,
	.n_prompt = 1,
	.temperature = 0.8f,
	.top_p = 0.9f,
	.min_p = 0.01f,
	.top_k = 40,
	.n_top = 5,
	.repetition_penalty = 1.1f,
	.presence_penalty = 0.1f,
	.frequency_penalty = 0.1f,
	.ignore_eos = true,
	.n_bias = 1,
	.bias = {{3, 1.0f}},
};

static int no_progress(void *ctx, const char *stage, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)stage;
	(void)done;
	(void)total;
	return 0;
}

static void open_rig(struct rig *r, const char *model, enum control_weights weights)
{
	static const uint8_t domain[16];
	struct kernels_config cpu = {.n_threads = 2, .cpu_mask = UINT32_MAX};
	struct load_options options = {
		.weights = weights, .entry = _PAGE_ENTRY_MAX, .n_context = MAX_TOKENS};
	struct image_builder image;
	struct engine_room room;
	struct files files = {};
	struct error err = {};

	*r = (struct rig){};
	assert_int_equal(files_open(&files, model, &err), 0);
	assert_int_equal(image_builder_init(&image), 0);
	if (infer_new(&r->engine, &image, &files, &options, &cpu, no_progress, NULL, &err) < 0)
		fail_msg("%s", err.text);
	image_builder_done(&image);
	files_done(&files);
	r->pool = __real_calloc(N_SEQUENCES * PAGES_EACH, r->engine.limits.geometry.stride);
	assert_non_null(r->pool);
	room = (struct engine_room){.pool = r->pool,
				    .n_pages = N_SEQUENCES * PAGES_EACH,
				    .n_slots = N_SEQUENCES,
				    .max_rows = MAX_ROWS,
				    .max_tokens = MAX_TOKENS};
	assert_int_equal(r->engine.attach(r->engine.ctx, &room, &err), 0);
	for (uint32_t i = 0; i < MAX_TOKENS; i++)
		r->ids[i] = i * 7 % r->engine.limits.n_vocab;
	for (uint32_t s = 0; s < N_SEQUENCES; s++) {
		for (uint32_t i = 0; i < PAGES_EACH; i++)
			r->pages[s * PAGES_EACH + i] = s * PAGES_EACH + i;
		r->sequences[s] = (struct engine_sequence){.slot = s,
							   .generation = 2,
							   .domain = domain,
							   .shared_domain = domain,
							   .params = &params,
							   .ids = r->ids,
							   .pages = r->pages + s * PAGES_EACH,
							   .n_pages = PAGES_EACH};
	}
}

/* @n rows of each of @n_sequences, from @position on; each sequence samples after its last. */
static void step(struct rig *r, uint32_t n_sequences, uint32_t position, uint32_t n, bool generated)
{
	struct engine_step e = {
		.k = {.ids = r->row_ids, .positions = r->positions, .segments = r->segments},
		.sequences = r->sequences,
		.wants = r->wants,
		.n_sequences = n_sequences,
		.n_wants = n_sequences,
	};
	struct error err = {};

	for (uint32_t s = 0; s < n_sequences; s++) {
		uint32_t first = e.k.n_rows;

		for (uint32_t i = 0; i < n; i++, e.k.n_rows++) {
			r->row_ids[first + i] = r->ids[position + i];
			r->positions[first + i] = position + i;
		}
		r->segments[s] = (struct k_segment){first, n, position, generated,
						    r->pages + s * PAGES_EACH};
		r->sequences[s].first_row = first;
		r->sequences[s].n_rows = n;
		r->wants[s] = (struct engine_want){first + n - 1, s, UINT32_MAX};
	}
	e.k.n_segments = n_sequences;
	if (r->engine.step(r->engine.ctx, &e, r->results, &err) < 0)
		fail_msg("%s", err.text);
	for (uint32_t s = 0; s < n_sequences; s++)
		assert_true(r->results[s].token < r->engine.limits.n_vocab);
}

static void everything(struct rig *r)
{
	for (uint32_t at = 0; at < 2 * MAX_ROWS; at += MAX_ROWS)
		step(r, 1, at, MAX_ROWS, false); /* a prompt in chunks */
	step(r, N_SEQUENCES, 0, MAX_ROWS / N_SEQUENCES, false);
	for (uint32_t at = MAX_ROWS / N_SEQUENCES; at < 80; at++)
		step(r, N_SEQUENCES, at, 1, true);
	for (uint32_t n = 1; n <= N_SEQUENCES; n++)
		step(r, n, 80, 1, true);
}

static void a_step_asks_for_no_memory_once_it_has_seen_the_largest(void **state)
{
	static const enum control_weights weights[] = {CONTROL_WEIGHTS_F32, CONTROL_WEIGHTS_BF16,
						       CONTROL_WEIGHTS_Q8, CONTROL_WEIGHTS_Q4};
	const char *model = *state;

	for (uint32_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
		struct rig r;
		uint64_t before = n_calls;

		open_rig(&r, model, weights[i]);
		assert_true(n_calls > before); /* they are counted */
		everything(&r);
		before = n_calls;
		everything(&r);
		assert_int_equal(n_calls - before, 0);
		engine_done(&r.engine);
		free(r.pool);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(a_step_asks_for_no_memory_once_it_has_seen_the_largest,
					  argc > 1 ? argv[1] : NULL),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
