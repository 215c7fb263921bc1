#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker runs steps on: the model (infer.h) or a function that only looks like one (fake.h).
 *
 * serve.c owns the channel and hands over steps that batch.c has checked, in private memory; an
 * engine never sees shared memory other than the pool's pages. */
#include <stdint.h>

#include "kernels.h"
#include "layout/channel.h"
#include "layout/page.h"

struct error;

/* Rows of one slot in a step. */
struct engine_sequence {
	uint32_t slot, first_row, n_rows;
	uint64_t generation;          /* of the slot: another one is another sequence */
	const uint8_t *domain;        /* [16] */
	const uint8_t *shared_domain; /* [16]: of the pages of positions below n_shared */
	uint32_t n_shared;
	const struct channel_params *params;
	const uint32_t *ids;   /* of positions 0 up to that of its last row */
	const uint32_t *pages; /* block table up to the page of its last row */
	uint32_t n_pages;
};

/* A row that wants an answer. */
struct engine_want {
	uint32_t row, sequence;
	uint32_t given; /* id whose logprob is wanted; UINT32_MAX: sample */
};

struct engine_step {
	uint64_t seq;
	struct k_step k;
	const struct engine_sequence *sequences;
	const struct engine_want *wants; /* by ascending row */
	uint32_t n_sequences, n_wants;
};

/* The pool and the largest step there will be. */
struct engine_room {
	uint8_t *pool;
	uint32_t n_pages;
	uint32_t n_slots, max_rows, max_tokens;
	_Atomic uint32_t *progress; /* counted up now and then during a step */
};

/* What serve.c must know of a model to check steps. */
struct engine_limits {
	uint32_t n_vocab, n_context;
	struct page_geometry geometry;
};

struct engine {
	struct engine_limits limits;
	void *ctx;
	void (*free)(void *ctx);
	/* Once, before the first step. 0 or -errno. */
	int (*attach)(void *ctx, const struct engine_room *room, struct error *err);
	/**
	 * Run one step and fill ret[step->n_wants].
	 *
	 * A row whose logits are not finite answers CHANNEL_NO_TOKEN, and costs its sequence alone.
	 *
	 * Return: 0. -EBADMSG: the step contradicts the pages, and is void; any other error ends the
	 *         worker.
	 */
	int (*step)(void *ctx, const struct engine_step *step, struct channel_result_row *ret,
		    struct error *err);
};

static inline void engine_done(struct engine *e)
{
	if (e->free)
		e->free(e->ctx);
	*e = (struct engine){};
}
