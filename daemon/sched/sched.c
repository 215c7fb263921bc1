/* SPDX-License-Identifier: Apache-2.0 */
/* The life of sequences: queue, slots, pages, results. How a step is put together is batch.c.
 *
 * A sequence that ends while a step holds rows of it stays in its slot, silent, until the result is
 * in: a page in flight is never given away. */
#include "sched/sched.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/io.h"
#include "channel/channel.h"
#include "pool/pool.h"
#include "quota/quota.h"
#include "sched/seq.h"

static const uint8_t seq_next[_SEQ_STATE_MAX] = { /* legal successors */
	[SEQ_WAITING] = BIT(SEQ_PREFILL) | BIT(SEQ_DONE),
	[SEQ_PREFILL] = BIT(SEQ_DECODE) | BIT(SEQ_PREEMPTED) | BIT(SEQ_DONE),
	[SEQ_DECODE] = BIT(SEQ_PREEMPTED) | BIT(SEQ_DONE),
	[SEQ_PREEMPTED] = BIT(SEQ_PREFILL) | BIT(SEQ_DONE),
};

void seq_set_state(struct seq *q, enum seq_state next)
{
	assert(seq_next[q->state] & BIT(next));
	q->state = next;
}

static void list_insert(struct seq_list *l, struct seq *q, struct seq *before)
{
	q->next = before;
	q->prev = before ? before->prev : l->last;
	*(q->prev ? &q->prev->next : &l->first) = q;
	*(before ? &before->prev : &l->last) = q;
	l->n++;
}

static void list_remove(struct seq_list *l, struct seq *q)
{
	*(q->prev ? &q->prev->next : &l->first) = q->next;
	*(q->next ? &q->next->prev : &l->last) = q->prev;
	q->prev = q->next = NULL;
	l->n--;
}

int sched_new(struct sched **ret, const struct sched_config *cfg)
{
	struct sched *s = io_alloc(cfg->io, sizeof(*s));

	if (!s)
		return -ENOMEM;
	assert(cfg->n_slots > 0 && cfg->n_slots <= CHANNEL_SLOTS_MAX && cfg->step_tokens > 0);
	s->cfg = *cfg;
	*ret = s;
	return 0;
}

struct sched *sched_free(struct sched *s)
{
	if (!s)
		return NULL;
	assert(s->waiting.n == 0 && s->running.n == 0);
	free(s);
	return NULL;
}

void sched_set_channel(struct sched *s, struct channel *c)
{
	assert(!s->step_in_flight);
	s->channel = c;
}

static struct seq *seq_free(struct seq *q)
{
	if (!q)
		return NULL;
	explicit_bzero(q->ids, q->n_ids_alloc * sizeof(*q->ids));
	free(q->ids);
	free(q->pages);
	free(q);
	return NULL;
}

int seq_reserve(struct seq *q, uint32_t n_rows, struct error *err)
{
	struct sched *s = q->sched;
	uint32_t want = DIV_ROUND_UP(n_rows, PAGE_TOKENS);
	uint32_t n = want > q->n_pages ? want - q->n_pages : 0;
	int r;

	if (n > pool_n_free(s->cfg.pool))
		return -EAGAIN;
	if (n == 0)
		return 0;
	r = quota_charge(s->cfg.quota, q->uid, QUOTA_PAGES, n, err);
	if (r < 0)
		return r;
	for (; n > 0; n--) {
		r = pool_take_page(s->cfg.pool, q->domain, &q->pages[q->n_pages]);
		assert(r == 0);
		q->n_pages++;
	}
	return 0;
}

void seq_drop_pages(struct seq *q)
{
	for (uint32_t i = 0; i < q->n_pages; i++)
		pool_unref_page(q->sched->cfg.pool, q->pages[i]);
	if (q->n_pages)
		quota_uncharge(q->sched->cfg.quota, q->uid, QUOTA_PAGES, q->n_pages);
	q->n_pages = q->n_sealed = q->n_computed = q->n_posted = 0;
	memset(q->chain, 0, sizeof(q->chain));
}

static void leave_slot(struct seq *q)
{
	struct sched *s = q->sched;

	assert(s->by_slot[q->slot] == q);
	s->by_slot[q->slot] = NULL;
	q->slot = SLOT_NONE;
	list_remove(&s->running, q);
}

void seq_preempt(struct seq *q)
{
	struct sched *s = q->sched;

	assert(q->n_posted == q->n_computed);
	leave_slot(q);
	seq_drop_pages(q);
	seq_set_state(q, SEQ_PREEMPTED);
	list_insert(&s->waiting, q, s->waiting.first);
	s->stats.preemptions++;
}

/* A paused sequence makes room for others; it keeps its pages. */
static void seq_yield(struct seq *q)
{
	leave_slot(q);
	seq_set_state(q, SEQ_PREEMPTED);
	list_insert(&q->sched->waiting, q, q->sched->waiting.first);
}

/* Out of every list, pages back, memory gone. */
static void seq_remove(struct seq *q)
{
	struct sched *s = q->sched;

	if (q->slot != SLOT_NONE)
		leave_slot(q);
	else
		list_remove(&s->waiting, q);
	seq_drop_pages(q);
	seq_set_state(q, SEQ_DONE);
	seq_free(q);
}

/* The sequence is over: at once, or when the step that holds rows of it is back. */
static void seq_finish(struct seq *q, enum seq_end why)
{
	const struct seq_ops *ops = q->ops;
	void *ctx = q->ctx;

	q->done = true;
	q->why = why;
	q->ops = NULL;
	/* Callbacks run while the slots are walked; whoever has none can go now. */
	if (q->n_posted == q->n_computed && (q->slot == SLOT_NONE || !q->sched->in_callbacks))
		seq_remove(q);
	if (ops)
		ops->end(ctx, why);
}

int sched_submit(struct sched *s, const struct seq_config *cfg, struct seq **ret, struct error *err)
{
	uint64_t max_ids = (uint64_t)cfg->params.n_prompt + cfg->max_tokens;
	uint64_t n_pages = DIV_ROUND_UP(max_ids, PAGE_TOKENS);
	struct seq *q;

	if (cfg->n_ids == 0)
		return error_set(err, -EINVAL, "the prompt has no tokens: want at least one");
	if (max_ids > s->cfg.max_tokens || cfg->n_ids > max_ids)
		return error_set(err, -EINVAL,
				 "%u prompt tokens and %u to generate: want at most %u together (the context)",
				 cfg->params.n_prompt, cfg->max_tokens, s->cfg.max_tokens);
	if (n_pages > pool_n_pages(s->cfg.pool))
		return error_set(err, -EINVAL,
				 "%llu tokens need %llu pages: the pool has %u (pool.size)",
				 (unsigned long long)max_ids, (unsigned long long)n_pages,
				 pool_n_pages(s->cfg.pool));
	if (s->waiting.n >= s->cfg.queue_max)
		return error_set(err, -EAGAIN, "%u sequences wait already: want fewer than %u",
				 s->waiting.n, s->cfg.queue_max);
	for (uint32_t i = 0; i < cfg->n_ids; i++)
		if (cfg->ids[i] >= s->cfg.n_vocab)
			return error_set(err, -EINVAL, "token %u of the prompt is %u: want less than %u",
					 i, cfg->ids[i], s->cfg.n_vocab);
	q = io_alloc(s->cfg.io, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->n_ids_alloc = (uint32_t)MIN(max_ids, (uint64_t)cfg->n_ids + 256);
	q->ids = io_alloc(s->cfg.io, q->n_ids_alloc * sizeof(*q->ids));
	q->pages = io_alloc(s->cfg.io, n_pages * sizeof(*q->pages));
	if (!q->ids || !q->pages) {
		seq_free(q);
		return -ENOMEM;
	}
	q->sched = s;
	q->state = SEQ_WAITING;
	q->ops = cfg->ops;
	q->ctx = cfg->ctx;
	q->uid = cfg->uid;
	q->params = cfg->params;
	q->n_prompt = cfg->params.n_prompt;
	q->max_ids = (uint32_t)max_ids;
	q->score = cfg->max_tokens == 0;
	q->slot = SLOT_NONE;
	q->n_ids = cfg->n_ids;
	memcpy(q->ids, cfg->ids, cfg->n_ids * sizeof(*q->ids));
	q->n_eos = MIN(cfg->n_eos, SEQ_EOS_MAX);
	memcpy(q->eos, cfg->eos, q->n_eos * sizeof(*q->eos));
	pool_domain(s->cfg.pool, q->uid, q->domain);
	list_insert(&s->waiting, q, NULL);
	*ret = q;
	return 0;
}

void seq_cancel(struct seq *q)
{
	q->ops = NULL;
	if (!q->done)
		seq_finish(q, SEQ_END_FAILED);
}

void seq_pause(struct seq *q, bool paused)
{
	q->paused = paused;
}

enum seq_state seq_state(const struct seq *q)
{
	return q->state;
}

uint64_t seq_started_usec(const struct seq *q)
{
	return q->started_usec;
}

/* The worker sees the sequence through its slot: parameters, ids so far, pages. */
static void write_slot(struct seq *q, uint32_t slot)
{
	struct sched *s = q->sched;
	struct channel_slot *shared = channel_begin_slot(s->channel, slot);

	shared->params = q->params;
	memcpy(shared->domain, q->domain, sizeof(shared->domain));
	shared->n_ids = q->n_ids;
	shared->n_pages = 0;
	memcpy(channel_slot_ids(shared, channel_get_shape(s->channel)), q->ids,
	       q->n_ids * sizeof(*q->ids));
	channel_end_slot(s->channel, slot);
}

/* Pages that @q still lacks for what it owes and one row more. */
static uint32_t pages_wanted(const struct seq *q)
{
	uint32_t want = DIV_ROUND_UP(MIN(q->n_ids + 1, q->max_ids), PAGE_TOKENS);

	return want > q->n_pages ? want - q->n_pages : 0;
}

/* The youngest sequence without a slot that holds pages gives them up. Return: false: there is none. */
bool sched_reclaim(struct sched *s)
{
	for (struct seq *q = s->waiting.last; q; q = q->prev)
		if (q->n_pages) {
			seq_drop_pages(q);
			return true;
		}
	return false;
}

/* The queue's front takes free slots while the pool holds what it owes and one more row. */
static void admit(struct sched *s)
{
	struct seq *q, *next;

	for (q = s->running.first; q; q = next) {
		next = q->next;
		if (q->paused && !q->done && q->n_posted == q->n_computed)
			seq_yield(q);
	}
	for (q = s->waiting.first; q && s->running.n < s->cfg.n_slots; q = next) {
		uint32_t slot = 0;

		next = q->next;
		if (q->paused)
			continue;
		while (pages_wanted(q) > pool_n_free(s->cfg.pool))
			if (!sched_reclaim(s))
				return;
		while (s->by_slot[slot])
			slot++;
		list_remove(&s->waiting, q);
		list_insert(&s->running, q, NULL);
		s->by_slot[slot] = q;
		q->slot = slot;
		seq_set_state(q, SEQ_PREFILL);
		if (!q->started_usec)
			q->started_usec = io_now_usec(s->cfg.io);
		write_slot(q, slot);
	}
}

void sched_run(struct sched *s)
{
	if (!s->channel || s->step_in_flight || s->in_callbacks)
		return;
	admit(s);
	s->step_in_flight = batch_post(s) > 0;
}

/* Rows that are in the pool now; full pages are sealed, in order. */
static void seq_computed(struct seq *q)
{
	struct pool *pool = q->sched->cfg.pool;

	q->n_computed = q->n_posted;
	while ((q->n_sealed + 1) * PAGE_TOKENS <= q->n_computed) {
		uint32_t first = q->n_sealed * PAGE_TOKENS;

		pool_seal_page(pool, q->pages[q->n_sealed], q->chain, first, q->ids + first,
			       first + PAGE_TOKENS > q->n_prompt, q->chain);
		q->n_sealed++;
	}
}

static bool is_eos(const struct seq *q, uint32_t id)
{
	for (uint32_t i = 0; i < q->n_eos; i++)
		if (q->eos[i] == id)
			return true;
	return false;
}

static int seq_push_id(struct seq *q, uint32_t id)
{
	struct channel_slot *shared;

	if (q->n_ids == q->n_ids_alloc) {
		uint32_t n = (uint32_t)MIN((uint64_t)q->max_ids, (uint64_t)q->n_ids_alloc * 2);
		uint32_t *p = realloc(q->ids, n * sizeof(*p));

		if (!p)
			return -ENOMEM;
		q->ids = p;
		q->n_ids_alloc = n;
	}
	q->ids[q->n_ids] = id;
	shared = channel_begin_slot(q->sched->channel, q->slot);
	channel_slot_ids(shared, channel_get_shape(q->sched->channel))[q->n_ids++] = id;
	shared->n_ids = q->n_ids;
	channel_end_slot(q->sched->channel, q->slot);
	return 0;
}

static void seq_sampled(struct seq *q, const struct channel_result_row *row)
{
	if (q->state == SEQ_PREFILL)
		seq_set_state(q, SEQ_DECODE);
	q->sched->stats.generated_tokens++;
	if (q->ops)
		q->ops->token(q->ctx, row);
	if (q->done)
		return; /* the callback cancelled it */
	if (is_eos(q, row->token) && !q->params.ignore_eos)
		seq_finish(q, SEQ_END_EOS);
	else if (q->n_ids + 1 >= q->max_ids)
		seq_finish(q, SEQ_END_LENGTH);
	else if (seq_push_id(q, row->token) < 0)
		seq_finish(q, SEQ_END_FAILED);
}

static void take_row(struct sched *s, const struct channel_result_row *row)
{
	struct seq *q = s->by_slot[row->slot];

	/* Only rows we asked for: the last computed one samples, earlier ones score the prompt. */
	if (!q || q->done || q->n_posted == q->n_computed)
		return;
	if (q->score) {
		if (row->position + 1 < q->n_ids && q->ops)
			q->ops->prompt(q->ctx, row);
	} else if (row->position + 1 == q->n_ids) {
		seq_sampled(q, row);
	}
}

int sched_take_results(struct sched *s, struct error *err)
{
	struct channel_reply reply;
	int r;

	if (!s->channel)
		return 0;
	while ((r = channel_take_result(s->channel, s->cfg.n_vocab, &reply, err)) > 0) {
		s->step_in_flight = false;
		s->stats.worker_usec += reply.usec;
		s->in_callbacks = true;
		for (uint32_t i = 0; i < reply.n_rows; i++)
			take_row(s, &reply.rows[i]);
		for (uint32_t slot = 0; slot < s->cfg.n_slots; slot++) {
			struct seq *q = s->by_slot[slot];

			if (!q || q->n_posted == q->n_computed)
				continue;
			if (reply.status != CHANNEL_OK) {
				q->n_computed = q->n_posted;
				if (!q->done)
					seq_finish(q, reply.status == CHANNEL_NUMBERS ? SEQ_END_NUMBERS :
											SEQ_END_FAILED);
				continue;
			}
			seq_computed(q);
			if (!q->done && q->score && q->n_computed == q->n_ids)
				seq_finish(q, SEQ_END_SCORED);
		}
		s->in_callbacks = false;
		for (uint32_t slot = 0; slot < s->cfg.n_slots; slot++)
			if (s->by_slot[slot] && s->by_slot[slot]->done)
				seq_remove(s->by_slot[slot]);
	}
	if (r < 0)
		return r;
	sched_run(s);
	return 0;
}

void sched_fail_all(struct sched *s)
{
	/* The worker is gone: no step is in flight any more. */
	s->step_in_flight = false;
	s->in_callbacks = false;
	while (s->running.first || s->waiting.first) {
		struct seq *q = s->running.first ?: s->waiting.first;

		q->n_computed = q->n_posted;
		if (q->done)
			seq_remove(q);
		else
			seq_finish(q, SEQ_END_FAILED);
	}
}

void sched_get_stats(const struct sched *s, struct sched_stats *ret)
{
	*ret = s->stats;
	ret->running = s->running.n;
	ret->waiting = s->waiting.n;
}

int sched_check(const struct sched *s, struct error *err)
{
	uint32_t n_pages = 0, n_slots = 0;

	for (const struct seq *q = s->running.first; q; q = q->next) {
		if (q->slot >= s->cfg.n_slots || s->by_slot[q->slot] != q)
			return error_set(err, -EBADF, "a running sequence without its slot");
		if (q->n_pages * PAGE_TOKENS < q->n_posted || q->n_posted < q->n_computed)
			return error_set(err, -EBADF, "%u rows posted on %u pages", q->n_posted,
					 q->n_pages);
		n_pages += q->n_pages;
		n_slots++;
	}
	for (const struct seq *q = s->waiting.first; q; q = q->next) {
		if (q->slot != SLOT_NONE || q->n_posted != q->n_computed)
			return error_set(err, -EBADF, "a waiting sequence has slot %u", q->slot);
		n_pages += q->n_pages;
	}
	if (n_slots != s->running.n)
		return error_set(err, -EBADF, "%u in the running list, %u counted", n_slots,
				 s->running.n);
	if (n_pages + pool_n_free(s->cfg.pool) != pool_n_pages(s->cfg.pool))
		return error_set(err, -EBADF, "%u pages with sequences, %u free, of %u", n_pages,
				 pool_n_free(s->cfg.pool), pool_n_pages(s->cfg.pool));
	if (quota_total(s->cfg.quota, QUOTA_PAGES) < n_pages)
		return error_set(err, -EBADF, "%u pages held, %llu charged", n_pages,
				 (unsigned long long)quota_total(s->cfg.quota, QUOTA_PAGES));
	return pool_check(s->cfg.pool, err);
}
