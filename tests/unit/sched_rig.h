#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A scheduler with a scripted worker behind its channel.
 *
 * The worker is a pure function of the rows it gets: a row's value mixes the value of the row before,
 * which it reads from the pool through the block table, with the row's token. A token is sampled from
 * the last row's value. So a page that was given away too early, a row computed twice or left out, or a
 * table that is wrong changes every later token, and rig_expect() knows what they must be. */
#include <stdbool.h>
#include <stdint.h>

#include "base/io.h"
#include "channel/channel.h"
#include "pool/pool.h"
#include "quota/quota.h"
#include "sched/sched.h"

#define RIG_VOCAB 1000u
#define RIG_EOS   999u
#define RIG_OUT   512u

struct rig {
	struct io io;
	struct pool *pool;
	struct quota *quota;
	struct channel *channel;
	struct sched *sched;
	struct channel_shape shape;
	uint8_t *shared; /* the worker's mappings */
	uint8_t *data;
	const uint8_t *meta;  /* pool-meta, as an adopter gets it */
	uint32_t n_done;      /* steps the worker has answered */
	uint32_t n_step_rows; /* of the last step */
	struct channel_row step[CHANNEL_ROWS_MAX];
	uint32_t n_before[CHANNEL_SLOTS_MAX]; /* rows of each slot in it */
	uint32_t last_sample[CHANNEL_SLOTS_MAX];
	uint32_t status;            /* of the next answers */
	bool no_token_row;          /* the next answer's first row has no token */
	uint32_t eos_one_in;        /* 0: never */
	enum seq_priority priority; /* of what is submitted next */
	uint64_t session;           /* the same; 0: none */
};

struct rig_config {
	uint32_t n_pages, n_slots, step_tokens, max_tokens, queue_max;
};

struct rig *rig_new(const struct rig_config *cfg);
struct rig *rig_free(struct rig *r);
/** rig_new_worker() - the old one is gone with what was in flight. */
void rig_new_worker(struct rig *r);
/** rig_work() - the worker answers one step. Return: false: none is posted. */
bool rig_work(struct rig *r);
/** rig_step() - the worker answers a step, the scheduler takes it and posts the next; checks all. */
bool rig_step(struct rig *r);
/** rig_run() - steps until nothing is posted. */
void rig_run(struct rig *r);
void rig_check(struct rig *r);

/* One sequence and what came of it. */
struct rig_seq {
	struct rig *rig;
	struct seq *seq; /* NULL once it ended or was cancelled */
	uint32_t ids[2048];
	uint32_t n_ids, max_tokens;
	uint32_t out[RIG_OUT], n_out;
	uint32_t n_prompt_rows; /* of a scored prompt */
	bool ended;
	enum seq_end why;
	void (*on_token)(struct rig_seq *q);
};

/** rig_submit() - @n_ids made of @seed; returns what sched_submit() returns. */
int rig_submit(struct rig *r, struct rig_seq *q, uid_t uid, uint32_t seed, uint32_t n_ids,
	       uint32_t max_tokens);
void rig_cancel(struct rig_seq *q);
/** rig_next_step_holds() - whether the step that the worker would do next has that row of @q. */
bool rig_next_step_holds(struct rig *r, const struct rig_seq *q, uint32_t position);
/** rig_expect() - everything @q got so far is what an undisturbed worker gives. */
void rig_expect(const struct rig_seq *q);
