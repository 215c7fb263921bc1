/* SPDX-License-Identifier: Apache-2.0 */
/* One step is one batch: whoever owes a single row goes first, so that a long prompt delays a running
 * stream by one chunk at the most; then chunks of longer debts, by priority and age, up to step_tokens.
 *
 * When the pool has no page left, sequences without a slot lose theirs first, then the youngest running
 * one of the lowest priority gives up its slot: it has cost the least so far, and it computes the same
 * bits when it comes back. If a step holds rows of it, it goes when that step is back. */
#include "sched/seq.h"

#include <assert.h>
#include <errno.h>

#include "base/error.h"
#include "channel/channel.h"
#include "pool/pool.h"

/* The youngest that must give way to @q: one behind it; to a suspect anybody, since nobody goes on before it
 * has. */
static struct seq *find_victim(const struct sched *s, const struct seq *q)
{
	struct seq *victim = s->running.last;

	while (victim && (victim == q ? q->alone_until > 0
				      : !victim->n_pages || victim->done || victim->yield))
		victim = victim->prev;
	return victim == q ? NULL : victim;
}

/* Pages for the next @n rows of @q, from those who must give way to it if need be. */
static int reserve_or_preempt(struct sched *s, struct seq *q, uint32_t n)
{
	for (;;) {
		int r = seq_reserve(q, q->n_posted + n, NULL);
		struct seq *victim;

		if (r != -EAGAIN)
			return r;
		if (sched_reclaim(s, NULL))
			continue;
		victim = find_victim(s, q);
		if (!victim)
			return -EAGAIN;
		if (victim->n_in_flight) {
			victim->yield = true;
			return -EAGAIN;
		}
		seq_preempt(victim);
	}
}

/* Those before the first row to be posted have stood there since the slot was written, or since a step
 * before; a queued step may be reading them. */
static void write_pages(struct seq *q)
{
	struct channel_slot *shared = channel_peek_slot(q->sched->channel, q->slot);
	uint32_t *table = channel_slot_pages(shared);

	for (uint32_t i = q->n_posted / PAGE_TOKENS; i < q->n_pages; i++)
		__atomic_store_n(&table[i], q->pages[i], __ATOMIC_RELAXED);
	__atomic_store_n(&shared->n_pages, q->n_pages, __ATOMIC_RELEASE);
}

static void write_rows(struct seq *q, struct channel_row *rows, uint32_t n, struct posted *step)
{
	struct sched *s = q->sched;
	bool samples = false;

	write_pages(q);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t pos = q->n_posted + i;
		bool last = pos + 1 == q->n_expected;

		rows[i] = (struct channel_row){
			.slot = q->slot,
			.position = pos,
			.token = pos < q->n_ids ? q->ids[pos] : CHANNEL_FROM_LAST_SAMPLE,
			.path = pos < q->n_prompt ? CHANNEL_PROMPT : CHANNEL_GENERATED,
			.mask = UINT32_MAX,
		};
		if (last && !seq_scores(q)) {
			rows[i].flags = CHANNEL_WANT_LOGITS;
			samples = true;
		} else if (q->prompt_logprobs && pos + 1 < q->n_prompt) {
			rows[i].flags = CHANNEL_WANT_PROMPT_LOGPROB;
		}
		s->stats.prompt_tokens += pos < q->n_prompt;
	}
	q->n_posted += n;
	q->n_expected += samples;
	q->n_in_flight++;
	step->part[step->n].seq = q;
	step->part[step->n].n_rows = n;
	step->n++;
}

/* One pass over the running sequences; @single: those that owe one row, else the others. @suspect: it
 * alone; NULL: all but suspects. */
static uint32_t pass(struct sched *s, const struct seq *suspect, bool single,
		     struct channel_row *rows, uint32_t n, uint32_t max, struct posted *step)
{
	struct seq *q, *next;

	for (q = s->running.first; q && n < max; q = next) {
		uint32_t owes = seq_owes(q), want = MIN(owes, max - n);
		int r;

		next = q->next;
		if (q->paused || q->yield || q->done || owes == 0 || (owes == 1) != single ||
		    (suspect ? q != suspect : q->alone_until > 0))
			continue;
		r = reserve_or_preempt(s, q, want);
		if (r == -EAGAIN && !single) {
			/* Nobody to ask: compute what the pages at hand take. */
			uint32_t room = (q->n_pages + pool_n_available(s->cfg.pool)) * PAGE_TOKENS;

			want = room > q->n_posted ? MIN(want, room - q->n_posted) : 0;
			r = want ? seq_reserve(q, q->n_posted + want, NULL) : -EAGAIN;
		}
		next = q->next; /* a younger neighbour may have been preempted */
		if (r < 0)
			continue;
		write_rows(q, rows + n, want, step);
		n += want;
	}
	return n;
}

/* The first that a worker may have died of. */
static const struct seq *find_suspect(const struct sched *s)
{
	const struct seq *q = s->running.first;

	while (q && (q->alone_until == 0 || q->paused || q->yield || q->done))
		q = q->next;
	return q;
}

uint32_t batch_post(struct sched *s)
{
	struct channel_row *rows = channel_begin_step(s->channel);
	uint32_t max = channel_get_shape(s->channel)->max_rows;
	struct posted *step = &s->posted[s->n_posted % STEPS_QUEUED];
	const struct seq *suspect = find_suspect(s);
	uint32_t n, n_single;

	/* Should the worker die of it once more, nobody else is in that step. */
	if (!rows || (suspect && s->n_posted != s->n_taken))
		return 0;
	step->n = 0;
	/* A sequence is in a step once: what the first pass took owes nothing, or waits for its sample. */
	n_single = pass(s, suspect, true, rows, 0, max, step);
	n = pass(s, suspect, false, rows, n_single, MIN(max, n_single + s->cfg.step_tokens), step);
	if (n == 0)
		return 0;
	s->stats.steps++;
	s->stats.rows += n;
	s->n_posted++;
	channel_post_step(s->channel, n);
	return n;
}
