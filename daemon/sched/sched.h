#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Continuous batching over one model: sequences wait, get a slot and pages, and share steps.
 *
 * A sequence owes the rows of its ids that are in no step yet: its prompt at first, then one row for
 * each sampled token. Every step is one batch: first a row for each sequence that owes just one, then
 * chunks of longer debts up to step_tokens. Two steps may be queued: a row whose token is still being
 * sampled is posted as CHANNEL_FROM_LAST_SAMPLE. A sequence that lost its pages owes all its rows
 * again, finds what it sealed in the index, and computes the same bits for the rest, since a row's path
 * depends on its position alone: below n_prompt it is a prompt row.
 *
 * Thread: broker. Callbacks run inside sched_take_results(), sched_requeue_all() and
 * sched_fail_*(); a callback may cancel any sequence, its own too, and submit new ones. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "layout/channel.h"

struct channel;
struct error;
struct io;
struct pool;
struct quota;
struct sched;
struct seq;

enum seq_state { SEQ_WAITING, SEQ_PREFILL, SEQ_DECODE, SEQ_PREEMPTED, SEQ_DONE, _SEQ_STATE_MAX };

enum seq_end {
	SEQ_END_EOS,
	SEQ_END_LENGTH,
	SEQ_END_SCORED,
	SEQ_END_NUMBERS,
	SEQ_END_EXHAUSTED,
	SEQ_END_QUARANTINED, /* two workers died in a step of it */
	SEQ_END_FAILED
};

/* What happens to a sequence. @ctx is the submitter's. */
struct seq_ops {
	/* A token was sampled (an end token too, unless eos is ignored); then the sequence goes on. */
	void (*token)(void *ctx, const struct channel_result_row *row);
	/* Logprob of the prompt id at row->position + 1; ascending. */
	void (*prompt)(void *ctx, const struct channel_result_row *row);
	/* The sequence is over and gone after this call. Not called after seq_cancel(). */
	void (*end)(void *ctx, enum seq_end why);
};

enum seq_priority { SEQ_INTERACTIVE, SEQ_NORMAL, SEQ_BATCH, _SEQ_PRIORITY_MAX };

struct seq_config {
	const struct seq_ops *ops;
	void *ctx;
	uid_t uid;
	const uint32_t *ids; /* prompt, then what a resumed request had generated; copied */
	uint32_t n_ids;
	struct channel_params params; /* n_prompt <= n_ids */
	uint32_t
		max_tokens; /* sampled tokens, resumed ones counted; 0: none, the prompt is scored */
	bool prompt_logprobs; /* call prompt() for every prompt id but the first */
	const uint32_t *eos;  /* copied */
	uint32_t n_eos;       /* <= 8; sampling one ends the sequence */
	enum seq_priority priority;
	bool reuse_generated; /* pages with generated rows of any request of this user may serve */
	const char *publish; /* name: compute the prompt (max_tokens 0) and keep it for everybody */
	uint64_t session;    /* it runs in, of this user; 0, or one that has ended: in none */
	struct seq *leader;  /* of the same prompt: wait until it has computed it; NULL: nobody */
};

struct sched_config {
	struct io *io;
	struct pool *pool;
	struct quota *quota; /* pages are charged here */
	uint32_t n_slots, step_tokens, max_tokens, n_vocab, queue_max;
};

struct sched_stats {
	uint64_t steps, rows, prompt_tokens, generated_tokens, cached_tokens, preemptions,
		worker_usec;
	uint32_t running, waiting, pages_published;
};

#define SCHED_PUBLISHED_MAX      64u
#define SCHED_PUBLISHED_NAME_MAX 64u /* bytes, the end counted */

int sched_new(struct sched **ret, const struct sched_config *cfg);
struct sched *sched_free(struct sched *s); /* sequences must have ended */
DEFINE_CLEANUP(struct sched *, sched_free);

/** sched_set_channel() - the worker that runs from now on; NULL: none, sequences wait. */
void sched_set_channel(struct sched *s, struct channel *c);

/**
 * sched_submit() - a sequence enters the queue
 * Return: 0. -EINVAL: it could never fit (empty, longer than the context or the pool), with a
 *         sentence. -EAGAIN: the queue is full. -ENOMEM.
 */
int sched_submit(struct sched *s, const struct seq_config *cfg, struct seq **ret,
		 struct error *err);
/** sched_n_pages() - that a sequence can have: those of the pool but for what is published. */
uint32_t sched_n_pages(const struct sched *s);
/** sched_evict() - forget every cached page. Return: how many. */
uint32_t sched_evict(struct sched *s);
/** sched_unpublish() - forget a published prefix. Return: 0 or -ENOENT. */
int sched_unpublish(struct sched *s, const char *name);

/** sched_move_published() - what @from has published over the same pool is @to's from now on. */
void sched_move_published(struct sched *to, struct sched *from);
/**
 * sched_move_sessions() - what is open in @from is open in @to, which has none, from now on
 *
 * Over one pool with the pages that are kept; over another it finds less the next time. What runs in @from
 * is no session's any more.
 */
void sched_move_sessions(struct sched *to, struct sched *from);

/* A session keeps the sealed pages of the last sequence that ran in it until its lease ends; each use
 * begins the lease anew, and it does not end while a sequence runs in it. It is its user's: another's id
 * is none. Its pages are charged to the user, and are given up early when the pool is short (session.h). */
#define SCHED_SESSIONS_PER_UID 64u
/** sched_open_session() - *ret_id is random, not 0. Return: 0. -EAGAIN: too many, with a sentence. -ENOMEM. */
int sched_open_session(struct sched *s, uid_t uid, uint64_t lease_usec, uint64_t *ret_id,
		       struct error *err);
/**
 * sched_fork_session() - another session with the same pages and lease
 * Return: 0. -ENOENT. -EAGAIN, -EDQUOT: too many sessions or pages, with a sentence. -ENOMEM.
 */
int sched_fork_session(struct sched *s, uid_t uid, uint64_t id, uint64_t *ret_id,
		       uint64_t *ret_lease_usec, struct error *err);
/** sched_close_session() - its pages are cached like any others. Return: 0 or -ENOENT. */
int sched_close_session(struct sched *s, uid_t uid, uint64_t id);
bool sched_has_session(const struct sched *s, uid_t uid, uint64_t id);
/** sched_on_tick() - end the leases that are over. Return: when the next one is, UINT64_MAX: none. */
uint64_t sched_on_tick(struct sched *s, uint64_t now);

/** seq_cancel() - the sequence ends without a word; its pages are free once no step uses them. */
void seq_cancel(struct seq *q);
/** seq_pause() - a paused sequence leaves its slot and keeps its pages while nobody else needs them. */
void seq_pause(struct seq *q, bool paused);
enum seq_state seq_state(const struct seq *q);
bool seq_is_paused(const struct seq *q);
uint32_t seq_n_pages(const struct seq *q);
/** seq_cached_tokens() - of the prompt, found in the pool when it first got a slot. */
uint32_t seq_cached_tokens(const struct seq *q);
/** seq_started_usec() - when it first got a slot; 0: not yet. */
uint64_t seq_started_usec(const struct seq *q);

/** sched_hold_new() - @hold: while a sequence runs none enters that has not run yet. */
void sched_hold_new(struct sched *s, bool hold);
/** sched_run() - post a step if there is work and the worker is free for it. */
void sched_run(struct sched *s);
/* Of several schedulers of one pool none ends a sequence for want of pages by itself: others may have them. */
/** sched_is_short() - after sched_run(): nothing is under way, since sequences lack pages. */
bool sched_is_short(const struct sched *s);
/** sched_give_way() - one session or waiting sequence loses its pages. Return: false: none has any. */
bool sched_give_way(struct sched *s);
/** sched_end_hopeless() - nobody has the pages that the first sequence lacks: it ends (SEQ_END_EXHAUSTED). */
void sched_end_hopeless(struct sched *s);
/**
 * sched_take_results() - results to callbacks, then the next step
 * Return: 0. -EBADMSG with a sentence: the worker must go.
 */
int sched_take_results(struct sched *s, struct error *err);
/**
 * sched_requeue_all() - the worker is gone: its last results are taken, then all sequences wait for
 * the next one, with the pages that they have
 *
 * Whoever had rows in the step that was under way is suspected: it runs alone until it is past those
 * rows, so that one that kills a second worker is known (SEQ_END_QUARANTINED) and nobody dies with it.
 */
void sched_requeue_all(struct sched *s);
/**
 * sched_fail_unsuspected() - after sched_requeue_all(): whoever is not suspected ends with SEQ_END_FAILED
 *
 * A suspect that ended too would be sent again as somebody new, and kill workers for ever.
 */
void sched_fail_unsuspected(struct sched *s);
/** sched_fail_all() - every sequence ends with SEQ_END_FAILED. No worker may run any more. */
void sched_fail_all(struct sched *s);

void sched_get_stats(const struct sched *s, struct sched_stats *ret);
/** sched_forget_stats() - what was counted so far was nobody's. */
void sched_forget_stats(struct sched *s);
/** sched_held_pages() - in the block tables of @uid's sequences, and in its sessions. Time: linear; for checks. */
uint32_t sched_held_pages(const struct sched *s, uid_t uid);
/** sched_check() - invariants, for tests: pages of sequences and the pool agree, slots too. */
int sched_check(const struct sched *s, struct error *err);
