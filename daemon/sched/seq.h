#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One sequence, as sched.c and batch.c share it; nobody else includes this. */
#include "layout/page.h"
#include "sched/sched.h"

#define SEQ_EOS_MAX 8u
#define SLOT_NONE   UINT32_MAX

struct seq {
	struct sched *sched;
	struct seq *prev, *next; /* in one of the scheduler's lists, by age */
	enum seq_state state;
	const struct seq_ops *ops; /* NULL once cancelled */
	void *ctx;
	uid_t uid;
	uint8_t domain[16];
	uint8_t chain[16]; /* of the last sealed page */

	uint32_t *ids;
	uint32_t n_ids, n_prompt, n_ids_alloc;
	uint32_t n_computed; /* rows in the pool */
	uint32_t n_posted;   /* rows in the pool or in a step */
	uint32_t max_ids;    /* n_prompt + max_tokens */
	bool score;          /* wants prompt logprobs, samples nothing */
	bool paused, done;
	enum seq_end why;

	struct channel_params params;
	uint32_t eos[SEQ_EOS_MAX];
	uint32_t n_eos;
	uint32_t slot;
	page_id *pages; /* block table */
	uint32_t n_pages, n_sealed;
	uint64_t started_usec;
};

struct seq_list {
	struct seq *first, *last;
	uint32_t n;
};

struct sched {
	struct sched_config cfg;
	struct channel *channel;
	struct seq_list waiting, running;
	struct seq *by_slot[CHANNEL_SLOTS_MAX];
	bool step_in_flight;
	bool in_callbacks;
	struct sched_stats stats;
};

static inline uint32_t seq_owes(const struct seq *q)
{
	return q->n_ids - q->n_posted;
}

/** seq_set_state() - the only writer of q->state: asserts the table of legal successors. */
void seq_set_state(struct seq *q, enum seq_state next);
/** seq_reserve() - pages for rows up to @n_rows; all or nothing. -EAGAIN: the pool has none left.
 * -EDQUOT: the user's limit. */
int seq_reserve(struct seq *q, uint32_t n_rows, struct error *err);
/** seq_drop_pages() - give all pages back; the sequence owes all its rows again. */
void seq_drop_pages(struct seq *q);
/** seq_preempt() - out of the running set, back into the queue's front, without pages. */
void seq_preempt(struct seq *q);
/** sched_reclaim() - take the pages of a sequence that has no slot. Return: false: none holds any. */
bool sched_reclaim(struct sched *s);

/** batch_post() - build and post one step (batch.c). Return: rows posted, 0 where none are owed. */
uint32_t batch_post(struct sched *s);
