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
#include "sched/publish.h"
#include "sched/seq.h"
#include "sched/session.h"

static const uint8_t seq_next[_SEQ_STATE_MAX] = {
	/* legal successors */
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

/* Behind all of a higher priority, and behind what came before it of the same: wherever it goes, and however
 * often, age stays the order. */
static void list_enqueue(struct seq_list *l, struct seq *q)
{
	struct seq *at = l->first;

	while (at && (at->priority < q->priority ||
		      (at->priority == q->priority && at->number < q->number)))
		at = at->next;
	list_insert(l, q, at);
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
	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++)
		published_free(s, s->published[i]);
	session_free_all(s);
	free(s);
	return NULL;
}

void sched_set_channel(struct sched *s, struct channel *c)
{
	assert(s->n_posted == s->n_taken);
	s->channel = c;
}

static struct seq *seq_free(struct seq *q)
{
	if (!q)
		return NULL;
	if (q->ids)
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

	if (n > pool_n_available(s->cfg.pool))
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
	struct pool *pool = q->sched->cfg.pool;
	/* A prompt of more than a quarter of the pool must not drive out everybody else's pages. */
	uint32_t warm = pool_n_pages(pool) / 4;

	/* From the end: what a prefix ends with is colder than what it begins with. */
	for (uint32_t i = q->n_pages; i-- > 0;)
		if (i < warm)
			pool_unref_page(pool, q->pages[i]);
		else
			pool_unref_page_cold(pool, q->pages[i]);
	if (q->n_pages)
		quota_uncharge(q->sched->cfg.quota, q->uid, QUOTA_PAGES, q->n_pages);
	q->n_pages = q->n_sealed = q->n_computed = q->n_posted = q->n_shared = 0;
	q->tainted = false;
	memcpy(q->chain, q->domain, sizeof(q->chain));
}

static void leave_slot(struct seq *q)
{
	struct sched *s = q->sched;

	assert(s->by_slot[q->slot] == q);
	s->by_slot[q->slot] = NULL;
	q->slot = SLOT_NONE;
	list_remove(&s->running, q);
}

/* Back into the queue's front; pages stay. */
static void seq_yield(struct seq *q)
{
	assert(q->n_in_flight == 0);
	leave_slot(q);
	q->yield = false;
	seq_set_state(q, SEQ_PREEMPTED);
	list_enqueue(&q->sched->waiting, q);
}

void seq_preempt(struct seq *q)
{
	seq_yield(q);
	seq_drop_pages(q);
	q->sched->stats.preemptions++;
}

/* Out of every list, pages back, memory gone. */
static void seq_remove(struct seq *q)
{
	struct sched *s = q->sched;

	assert(q->n_in_flight == 0);
	if (q->slot != SLOT_NONE)
		leave_slot(q);
	else
		list_remove(&s->waiting, q);
	for (struct seq *f = s->waiting.first; f; f = f->next)
		if (f->leader == q)
			f->leader = NULL;
	session_keep(q);
	seq_drop_pages(q);
	seq_set_state(q, SEQ_DONE);
	published_free(s, q->publish);
	seq_free(q);
}

/* The sequence is over: at once, or when the steps that hold rows of it are back. */
static void seq_finish(struct seq *q, enum seq_end why)
{
	const struct seq_ops *ops = q->ops;
	void *ctx = q->ctx;

	q->done = true;
	q->ops = NULL;
	if (q->n_in_flight == 0 && !q->sched->in_callbacks)
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
		return error_set(
			err, -EINVAL,
			"%u prompt tokens and %u to generate: want at most %u together (the context)",
			cfg->params.n_prompt, cfg->max_tokens, s->cfg.max_tokens);
	if (n_pages > sched_n_pages(s))
		return error_set(
			err, -EINVAL, "%llu tokens need %llu pages: the pool has %u (pool.size)",
			(unsigned long long)max_ids, (unsigned long long)n_pages, sched_n_pages(s));
	if (s->waiting.n >= s->cfg.queue_max)
		return error_set(err, -EAGAIN, "%u sequences wait already: want fewer than %u",
				 s->waiting.n, s->cfg.queue_max);
	for (uint32_t i = 0; i < cfg->n_ids; i++)
		if (cfg->ids[i] >= s->cfg.n_vocab)
			return error_set(err, -EINVAL,
					 "token %u of the prompt is %u: want less than %u", i,
					 cfg->ids[i], s->cfg.n_vocab);
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
	q->prompt_logprobs = cfg->prompt_logprobs;
	q->slot = SLOT_NONE;
	q->n_ids = q->n_expected = cfg->n_ids;
	q->priority = cfg->priority;
	q->reuse_generated = cfg->reuse_generated;
	q->leader = cfg->leader;
	memcpy(q->ids, cfg->ids, cfg->n_ids * sizeof(*q->ids));
	q->n_eos = MIN(cfg->n_eos, SEQ_EOS_MAX);
	if (q->n_eos)
		memcpy(q->eos, cfg->eos, q->n_eos * sizeof(*q->eos));
	if (cfg->publish) {
		int r = published_new(&q->publish, q, cfg->publish);

		if (r < 0) {
			seq_free(q);
			return error_set(err, r, "publishing \"%.63s\": %m", cfg->publish);
		}
		pool_name_domain(s->cfg.pool, cfg->publish, q->domain);
	} else {
		pool_domain(s->cfg.pool, q->uid, q->domain);
	}
	memcpy(q->chain, q->domain, sizeof(q->chain));
	if (cfg->session)
		q->session = session_use(s, q->uid, cfg->session);
	q->number = ++s->n_submitted;
	list_enqueue(&s->waiting, q);
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

uint32_t seq_cached_tokens(const struct seq *q)
{
	return q->n_cached;
}

bool seq_is_paused(const struct seq *q)
{
	return q->paused;
}

uint32_t seq_n_pages(const struct seq *q)
{
	return q->n_pages;
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
	memcpy(shared->shared_domain, q->shared_domain, sizeof(shared->shared_domain));
	shared->n_shared = q->n_shared;
	shared->n_ids = q->n_ids;
	shared->n_pages = q->n_pages;
	if (q->n_pages)
		memcpy(channel_slot_pages(shared), q->pages, q->n_pages * sizeof(*q->pages));
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

/* What is only kept goes before what is being worked on. Return: false: there is nothing. */
bool sched_reclaim(struct sched *s, const struct seq *spare)
{
	if (session_give_up(s))
		return true;
	for (struct seq *q = s->waiting.last; q; q = q->prev)
		if (q->n_pages && q != spare) {
			seq_drop_pages(q);
			return true;
		}
	return false;
}

/* One more page at the end of the block table, whose reference becomes ours. */
static bool attach_page(struct seq *q, page_id page, const uint8_t chain[16])
{
	if (quota_charge(q->sched->cfg.quota, q->uid, QUOTA_PAGES, 1, NULL) < 0) {
		pool_unref_page(q->sched->cfg.pool, page);
		return false;
	}
	memcpy(q->chain, chain, sizeof(q->chain));
	q->pages[q->n_pages++] = page;
	return true;
}

static page_id find_own(struct seq *q, uint32_t first, uint8_t ret_chain[16], bool any_path)
{
	return pool_find_page(q->sched->cfg.pool, q->domain, q->chain, first, q->ids + first,
			      q->n_prompt, any_path, ret_chain);
}

/* Goes on from q->chain with pages of the sequence's own domain. */
static void attach_own(struct seq *q)
{
	while ((q->n_pages + 1) * PAGE_TOKENS < q->n_ids) {
		uint32_t first = q->n_pages * PAGE_TOKENS;
		uint8_t chain[16];
		page_id page = find_own(q, first, chain, false);

		if (page == PAGE_NONE && q->reuse_generated) {
			page = find_own(q, first, chain, true);
			q->tainted |= page != PAGE_NONE;
		}
		if (page == PAGE_NONE || !attach_page(q, page, chain))
			return;
	}
}

/* The longest prefix of whole pages that the pool holds already: the user's own, or a published one
 * and what is the user's own behind it. One row at least is left to compute: somebody waits for its
 * logits. Who wants the logprobs of the prompt takes none. */
static void attach_prefix(struct seq *q)
{
	struct sched *s = q->sched;
	const struct published *p;
	uint32_t n;

	if (q->n_pages || q->prompt_logprobs)
		return;
	attach_own(q);
	p = published_find(s, q, &n);
	/* What is published has one name: it stands on no other published prefix. */
	if (n > q->n_pages && !q->publish) {
		seq_drop_pages(q);
		for (uint32_t i = 0; i < n; i++) {
			page_id page = p->held.pages[i];

			pool_ref_page(s->cfg.pool, page);
			if (!attach_page(q, page, pool_page_chain(s->cfg.pool, page)))
				break;
		}
		q->n_shared = q->n_pages * PAGE_TOKENS;
		pool_name_domain(s->cfg.pool, p->name, q->shared_domain);
		attach_own(q);
	}
	q->n_sealed = q->n_pages;
	q->n_computed = q->n_posted = q->n_pages * PAGE_TOKENS;
}

/* Whether the sequence that computes the same prompt has done so. */
static bool leader_is_ahead(const struct seq *q)
{
	return q->leader && q->leader->state != SEQ_DECODE && !q->leader->done;
}

/* The queue's front takes free slots while the pool holds what it owes and one more row. */
static void admit(struct sched *s)
{
	struct seq *q, *next;

	for (q = s->running.first; q; q = next) {
		next = q->next;
		if (q->n_in_flight || q->done)
			continue;
		if (q->yield)
			seq_preempt(q);
		else if (q->paused)
			seq_yield(q);
	}
	for (q = s->waiting.first; q && s->running.n < s->cfg.n_slots; q = next) {
		uint32_t slot = 0;

		next = q->next;
		if (q->paused || leader_is_ahead(q))
			continue;
		if (s->hold_new && q->state == SEQ_WAITING && s->running.n > 0)
			continue;
		attach_prefix(q);
		/* Not its own pages: they are what it wants to go on with. */
		while (pages_wanted(q) > pool_n_available(s->cfg.pool))
			if (!sched_reclaim(s, q))
				return;
		while (s->by_slot[slot])
			slot++;
		list_remove(&s->waiting, q);
		list_enqueue(&s->running, q);
		s->by_slot[slot] = q;
		q->slot = slot;
		seq_set_state(q, SEQ_PREFILL);
		q->leader = NULL; /* may go before its follower does */
		if (!q->started_usec) {
			q->started_usec = io_now_usec(s->cfg.io);
			q->n_cached = MIN(q->n_computed, q->n_prompt);
			s->stats.cached_tokens += q->n_cached;
		}
		write_slot(q, slot);
	}
}

/* Nothing of ours runs, so nothing of ours will give pages back: who cannot have what it needs. */
static struct seq *find_hopeless(const struct sched *s)
{
	struct seq *q;

	if (s->n_posted != s->n_taken)
		return NULL;
	for (q = s->running.first; q && (q->done || q->paused || seq_owes(q) == 0); q = q->next)
		;
	if (!q && s->running.n == 0)
		for (q = s->waiting.first; q && (q->paused || q->done || leader_is_ahead(q));
		     q = q->next)
			;
	return q;
}

/* Others have pages of this pool, and may lack ours: who waits for them waits without a slot. */
static bool retreat(struct sched *s)
{
	struct seq *q = s->running.last;

	while (q && q->done)
		q = q->prev;
	if (q)
		seq_preempt(q);
	return q != NULL;
}

static bool end_the_hopeless(struct sched *s)
{
	struct seq *q = find_hopeless(s);

	if (!q)
		return false;
	if (pool_n_users(s->cfg.pool) > 1)
		return retreat(s);
	seq_finish(q, SEQ_END_EXHAUSTED);
	return true;
}

bool sched_is_short(const struct sched *s)
{
	return s->channel && find_hopeless(s);
}

bool sched_give_way(struct sched *s)
{
	return sched_reclaim(s, NULL);
}

void sched_end_hopeless(struct sched *s)
{
	struct seq *q = find_hopeless(s);

	if (q)
		seq_finish(q, SEQ_END_EXHAUSTED);
}

void sched_hold_new(struct sched *s, bool hold)
{
	s->hold_new = hold;
}

void sched_run(struct sched *s)
{
	if (!s->channel || s->in_callbacks)
		return;
	while (s->n_posted - s->n_taken < STEPS_QUEUED) {
		admit(s);
		if (batch_post(s) == 0 && !end_the_hopeless(s))
			return;
	}
}

/* Full pages are sealed, in order, as far as their ids are known. */
static void seal_pages(struct seq *q)
{
	struct pool *pool = q->sched->cfg.pool;
	uint32_t n = MIN(q->n_computed, q->n_ids);

	if (q->tainted || q->poisoned)
		return;
	while ((q->n_sealed + 1) * PAGE_TOKENS <= n) {
		uint32_t first = q->n_sealed * PAGE_TOKENS;

		pool_seal_page(pool, q->pages[q->n_sealed], q->chain, first, q->ids + first,
			       q->n_prompt, q->chain);
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
	/* Appended, never changed: the worker may be reading the ids before it. */
	shared = channel_peek_slot(q->sched->channel, q->slot);
	channel_slot_ids(shared, channel_get_shape(q->sched->channel))[q->n_ids] = id;
	q->ids[q->n_ids++] = id;
	__atomic_store_n(&shared->n_ids, q->n_ids, __ATOMIC_RELEASE);
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

	if (!q || q->done || q->n_in_flight == 0)
		return;
	if (row->token == CHANNEL_NO_TOKEN) {
		q->poisoned = true;
		seq_finish(q, SEQ_END_NUMBERS);
	} else if (row->position + 1 == q->n_ids) {
		seq_sampled(q, row);
	} else if (row->position + 1 < q->n_prompt && row->position >= q->n_told && q->ops &&
		   q->prompt_logprobs) {
		q->n_told = row->position + 1;
		q->ops->prompt(q->ctx, row);
	}
}

/* The oldest step is back: what it computed is in the pool. */
static void take_step(struct sched *s, const struct channel_reply *reply)
{
	struct posted *step = &s->posted[s->n_taken % STEPS_QUEUED];

	/* Before the callbacks: a row that samples is computed when its token is told. */
	for (uint32_t i = 0; i < step->n; i++)
		step->part[i].seq->n_computed += step->part[i].n_rows;
	for (uint32_t i = 0; i < reply->n_rows; i++)
		take_row(s, &reply->rows[i]);
	s->n_taken++;
	for (uint32_t i = 0; i < step->n; i++) {
		struct seq *q = step->part[i].seq;

		q->n_in_flight--;
		/* A refused step wrote nothing, and the next one may stand on it. */
		q->poisoned |= reply->status != CHANNEL_OK;
		if (reply->status == CHANNEL_OK)
			seal_pages(q);
		else if (!q->done)
			seq_finish(q, SEQ_END_FAILED);
		if (q->n_computed >= q->alone_until)
			q->alone_until = q->n_deaths = 0;
		if (!q->done && seq_scores(q) && q->n_computed == q->n_ids)
			seq_finish(q, q->publish && published_keep(q) < 0 ? SEQ_END_EXHAUSTED
									  : SEQ_END_SCORED);
	}
}

/* Sequences that are over and in no step any more. */
static void sweep(struct sched *s)
{
	for (uint32_t slot = 0; slot < s->cfg.n_slots; slot++) {
		struct seq *q = s->by_slot[slot];

		if (q && q->done && q->n_in_flight == 0)
			seq_remove(q);
	}
	for (struct seq *q = s->waiting.first, *next; q; q = next) {
		next = q->next;
		if (q->done)
			seq_remove(q);
	}
}

static int take_all(struct sched *s, struct error *err)
{
	struct channel_reply reply;
	int r;

	while ((r = channel_take_result(s->channel, s->cfg.n_vocab, &reply, err)) > 0) {
		s->stats.worker_usec += reply.usec;
		s->in_callbacks = true;
		take_step(s, &reply);
		s->in_callbacks = false;
		sweep(s);
	}
	return r;
}

int sched_take_results(struct sched *s, struct error *err)
{
	int r;

	if (!s->channel)
		return 0;
	r = take_all(s, err);
	if (r < 0)
		return r;
	sched_run(s);
	return 0;
}

/* No worker runs any more: what steps had posted is owed again. */
static void forget_steps(struct sched *s)
{
	for (; s->n_taken != s->n_posted; s->n_taken++) {
		struct posted *step = &s->posted[s->n_taken % STEPS_QUEUED];

		for (uint32_t i = 0; i < step->n; i++)
			step->part[i].seq->n_in_flight--;
	}
	for (struct seq *q = s->running.first; q; q = q->next) {
		q->n_posted = q->n_computed;
		q->n_expected = q->n_ids;
	}
	s->in_callbacks = false;
}

/* The worker died in the oldest step: who has rows in it may have killed it. */
static void suspect(struct sched *s)
{
	const struct posted *step = &s->posted[s->n_taken % STEPS_QUEUED];

	if (s->n_taken == s->n_posted)
		return;
	for (uint32_t i = 0; i < step->n; i++) {
		struct seq *q = step->part[i].seq;

		q->alone_until = q->n_posted;
		q->n_deaths++;
	}
}

void sched_requeue_all(struct sched *s)
{
	if (s->channel)
		take_all(s, NULL);
	suspect(s);
	forget_steps(s);
	s->in_callbacks = true;
	for (struct seq *q = s->running.first; q; q = q->next)
		if (!q->done && q->n_deaths >= 2)
			seq_finish(q, SEQ_END_QUARANTINED);
	s->in_callbacks = false;
	sweep(s);
	while (s->running.last)
		seq_yield(s->running.last);
}

static void fail(struct sched *s, bool suspects)
{
	bool nested =
		s->in_callbacks; /* then whoever called back removes them, when its steps are back */

	s->in_callbacks = true;
	for (struct seq *q = s->running.first; q; q = q->next)
		if (!q->done && (suspects || q->n_deaths == 0))
			seq_finish(q, SEQ_END_FAILED);
	for (struct seq *q = s->waiting.first; q; q = q->next)
		if (!q->done && (suspects || q->n_deaths == 0))
			seq_finish(q, SEQ_END_FAILED);
	s->in_callbacks = nested;
	if (!nested)
		sweep(s);
}

void sched_fail_unsuspected(struct sched *s)
{
	fail(s, false);
}

void sched_fail_all(struct sched *s)
{
	if (!s->in_callbacks)
		forget_steps(s);
	fail(s, true);
}

uint32_t sched_n_pages(const struct sched *s)
{
	uint32_t n = pool_n_pages(s->cfg.pool);

	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++)
		n -= s->published[i] ? s->published[i]->held.n : 0;
	return n;
}

uint32_t sched_evict(struct sched *s)
{
	return pool_drop_cached(s->cfg.pool, NULL);
}

void sched_get_stats(const struct sched *s, struct sched_stats *ret)
{
	*ret = s->stats;
	ret->running = s->running.n;
	ret->waiting = s->waiting.n;
	ret->pages_published = pool_n_pages(s->cfg.pool) - sched_n_pages(s);
}

void sched_forget_stats(struct sched *s)
{
	s->stats = (struct sched_stats){};
}

uint32_t sched_held_pages(const struct sched *s, uid_t uid)
{
	uint32_t n = 0;

	for (const struct seq *q = s->running.first; q; q = q->next)
		n += q->uid == uid ? q->n_pages : 0;
	for (const struct seq *q = s->waiting.first; q; q = q->next)
		n += q->uid == uid ? q->n_pages : 0;
	return n + session_n_pages_of(s, uid);
}

/* Pages that are not sealed are written: they are one sequence's alone. */
static bool owns_its_pages(const struct seq *q)
{
	for (uint32_t i = q->n_sealed; i < q->n_pages; i++)
		if (pool_page_refs(q->sched->cfg.pool, q->pages[i]) != 1)
			return false;
	return true;
}

int sched_check(const struct sched *s, struct error *err)
{
	uint32_t n_slots = 0;
	uint64_t n_refs = session_n_pages(s), n_shared = 0, in_flight = 0, posted = 0;

	for (const struct seq *q = s->running.first; q; q = q->next) {
		if (q->slot >= s->cfg.n_slots || s->by_slot[q->slot] != q)
			return error_set(err, -EBADF, "a running sequence without its slot");
		if (q->n_pages * PAGE_TOKENS < q->n_posted || q->n_posted < q->n_computed ||
		    q->n_expected < q->n_ids || q->n_sealed * PAGE_TOKENS > q->n_computed)
			return error_set(err, -EBADF, "%u rows posted, %u computed on %u pages",
					 q->n_posted, q->n_computed, q->n_pages);
		if ((q->n_posted > q->n_computed) != (q->n_in_flight > 0))
			return error_set(err, -EBADF, "%u rows posted, %u computed in %u steps",
					 q->n_posted, q->n_computed, q->n_in_flight);
		if (!owns_its_pages(q))
			return error_set(err, -EBADF, "two own a page that is written");
		n_refs += q->n_pages;
		in_flight += q->n_in_flight;
		n_slots++;
	}
	for (const struct seq *q = s->waiting.first; q; q = q->next) {
		if (q->slot != SLOT_NONE || q->n_posted != q->n_computed || q->n_in_flight)
			return error_set(err, -EBADF, "a waiting sequence has slot %u", q->slot);
		if (!owns_its_pages(q))
			return error_set(err, -EBADF, "two own a page that is written");
		n_refs += q->n_pages;
	}
	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++)
		n_shared += s->published[i] ? s->published[i]->held.n : 0;
	for (uint32_t i = s->n_taken; i != s->n_posted; i++)
		posted += s->posted[i % STEPS_QUEUED].n;
	if (posted != in_flight)
		return error_set(err, -EBADF, "%llu parts in steps, sequences count %llu",
				 (unsigned long long)posted, (unsigned long long)in_flight);
	if (n_slots != s->running.n)
		return error_set(err, -EBADF, "%u in the running list, %u counted", n_slots,
				 s->running.n);
	if (session_n_pages(s) > pool_n_pages(s->cfg.pool) / 2)
		return error_set(err, -EBADF, "sessions hold %u pages of %u", session_n_pages(s),
				 pool_n_pages(s->cfg.pool));
	/* What another scheduler of the same pool holds is counted there. */
	if (pool_n_users(s->cfg.pool) == 1 && pool_n_refs(s->cfg.pool) != n_refs + n_shared)
		return error_set(err, -EBADF, "%llu references in block tables, %llu in the pool",
				 (unsigned long long)(n_refs + n_shared),
				 (unsigned long long)pool_n_refs(s->cfg.pool));
	if (quota_total(s->cfg.quota, QUOTA_PAGES) < n_refs)
		return error_set(err, -EBADF, "%llu pages held, %llu charged",
				 (unsigned long long)n_refs,
				 (unsigned long long)quota_total(s->cfg.quota, QUOTA_PAGES));
	return pool_check(s->cfg.pool, err);
}
