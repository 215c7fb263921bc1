#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One sequence, as sched.c and batch.c share it; nobody else includes this. */
#include "layout/page.h"
#include "sched/held.h"
#include "sched/sched.h"

#define SEQ_EOS_MAX  8u
#define SLOT_NONE    UINT32_MAX
#define STEPS_QUEUED 2u /* one runs while the next waits: the worker never waits for us */

/*    0        n_sealed*64     n_computed     n_posted      n_ids     n_expected
 *    │ in the index │ in the pool │ in a step    │ owed        │ being sampled │      */
struct seq {
	struct sched *sched;
	struct seq *prev, *next; /* in one of the scheduler's lists: by priority, then age */
	enum seq_state state;
	const struct seq_ops *ops; /* NULL once cancelled or over */
	void *ctx;
	uid_t uid;
	enum seq_priority priority;
	uint64_t number; /* of its arrival */
	uint8_t domain[16];
	uint8_t shared_domain[16];
	uint32_t n_shared; /* leading rows that lie in published pages */
	uint8_t chain[16]; /* of the last sealed page; the domain before the first */

	uint32_t *ids;
	uint32_t n_ids, n_prompt, n_ids_alloc;
	uint32_t n_computed;  /* rows in the pool */
	uint32_t n_posted;    /* rows in the pool or in a step */
	uint32_t n_expected;  /* n_ids and the samples that steps will bring */
	uint32_t max_ids;     /* n_prompt + max_tokens */
	uint32_t n_in_flight; /* steps with rows of it */
	bool prompt_logprobs; /* every prompt row answers, so none may come from the index */
	bool reuse_generated;
	bool tainted;  /* stands on pages of another path: what it computes is not for the index */
	bool poisoned; /* its numbers are none: nor is this */
	uint32_t n_told;      /* prompt logprobs told; rows may be computed twice */
	uint32_t n_deaths;    /* workers that died in a step of it */
	uint32_t alone_until; /* rows: suspected until they are computed; 0: not */
	bool paused;
	bool yield; /* leaves its slot and pages when its steps are back */
	bool done;  /* goes when its steps are back */

	struct seq *leader;
	struct session *session; /* keeps what it has sealed; NULL: none */
	struct published
		*publish; /* to be filled when the prompt is computed; NULL: nothing is published */
	struct channel_params params;
	uint32_t eos[SEQ_EOS_MAX];
	uint32_t n_eos;
	uint32_t slot;
	page_id *pages; /* block table */
	uint32_t n_pages, n_sealed;
	uint32_t n_cached; /* prompt tokens found when it first got a slot */
	uint64_t started_usec;
};

struct seq_list {
	struct seq *first, *last;
	uint32_t n;
};

/* A prefix that every user's prompt may begin with. */
struct published {
	char name[SCHED_PUBLISHED_NAME_MAX];
	uint32_t *ids;
	struct held held;
};

/* Whose rows a posted step holds. */
struct posted {
	uint32_t n;
	struct {
		struct seq *seq;
		uint32_t n_rows;
	} part[CHANNEL_SLOTS_MAX];
};

struct sched {
	struct sched_config cfg;
	struct channel *channel;
	struct seq_list waiting, running;
	struct seq *by_slot[CHANNEL_SLOTS_MAX];
	struct posted posted[STEPS_QUEUED]; /* ring */
	uint32_t n_posted, n_taken;         /* steps ever; their difference is in flight */
	uint64_t n_submitted;
	bool in_callbacks, hold_new;
	struct published *published[SCHED_PUBLISHED_MAX];
	struct session *sessions; /* list */
	struct sched_stats stats;
};

/* It scores its prompt and samples nothing. */
static inline bool seq_scores(const struct seq *q)
{
	return q->max_ids == q->n_prompt;
}

/* Rows that can be posted now. The row of the last id that is sampled is never needed. */
static inline uint32_t seq_owes(const struct seq *q)
{
	uint32_t end = seq_scores(q) || q->n_expected < q->max_ids ? q->n_expected : q->max_ids - 1;

	return end > q->n_posted ? end - q->n_posted : 0;
}

/** seq_set_state() - the only writer of q->state: asserts the table of legal successors. */
void seq_set_state(struct seq *q, enum seq_state next);
/** seq_reserve() - pages for rows up to @n_rows; all or nothing. -EAGAIN: the pool has none left.
 * -EDQUOT: the user's limit. */
int seq_reserve(struct seq *q, uint32_t n_rows, struct error *err);
/** seq_drop_pages() - give all pages back; the sequence owes all its rows again. */
void seq_drop_pages(struct seq *q);
/** seq_preempt() - out of the running set, back into the queue, without pages. */
void seq_preempt(struct seq *q);
/** sched_reclaim() - take the pages of the session used the longest ago, else of the youngest sequence
 * without a slot, but for @spare (NULL: of any). Return: false: none holds any. */
bool sched_reclaim(struct sched *s, const struct seq *spare);

/** batch_post() - build and post one step (batch.c). Return: rows posted, 0 where none are owed. */
uint32_t batch_post(struct sched *s);
