/* SPDX-License-Identifier: Apache-2.0 */
/* One step is one batch: whoever owes a single row goes first, so that a long prompt delays a running
 * stream by one chunk at the most; then chunks of longer debts, oldest first, up to step_tokens.
 *
 * When the pool has no page left, the youngest running sequence gives up its slot: it has cost the
 * least so far, and it computes the same bits when it comes back. */
#include "sched/seq.h"

#include <assert.h>
#include <errno.h>

#include "base/error.h"
#include "channel/channel.h"
#include "pool/pool.h"

/* Pages for the next @n rows of @q, taken from younger sequences if need be. Sequences that have rows
 * in this step already are older than @q in their pass, or marked by n_posted. */
static int reserve_or_preempt(struct sched *s, struct seq *q, uint32_t n)
{
	for (;;) {
		int r = seq_reserve(q, q->n_posted + n, NULL);
		struct seq *victim;

		if (r != -EAGAIN)
			return r;
		if (sched_reclaim(s))
			continue;
		for (victim = s->running.last; victim; victim = victim->prev)
			if (victim == q || (victim->n_pages && victim->n_posted == victim->n_computed))
				break;
		if (!victim || victim == q)
			return -EAGAIN;
		seq_preempt(victim);
	}
}

static void write_rows(struct seq *q, struct channel_row *rows, uint32_t n)
{
	struct sched *s = q->sched;
	struct channel_slot *shared = channel_begin_slot(s->channel, q->slot);
	uint32_t *table = channel_slot_pages(shared);

	for (uint32_t i = 0; i < q->n_pages; i++)
		table[i] = q->pages[i];
	shared->n_pages = q->n_pages;
	channel_end_slot(s->channel, q->slot);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t pos = q->n_posted + i;
		bool last = pos + 1 == q->n_ids;

		rows[i] = (struct channel_row){
			.slot = q->slot,
			.position = pos,
			.token = q->ids[pos],
			.path = pos < q->n_prompt ? CHANNEL_PROMPT : CHANNEL_GENERATED,
			.mask = UINT32_MAX,
		};
		if (q->score)
			rows[i].flags = last ? 0 : CHANNEL_WANT_PROMPT_LOGPROB;
		else
			rows[i].flags = last ? CHANNEL_WANT_LOGITS : 0;
		s->stats.prompt_tokens += pos < q->n_prompt;
	}
	q->n_posted += n;
}

/* One pass over the running sequences; @single: those that owe one row, else the others. */
static uint32_t pass(struct sched *s, bool single, struct channel_row *rows, uint32_t n, uint32_t max)
{
	struct seq *q, *next;

	for (q = s->running.first; q && n < max; q = next) {
		uint32_t want = MIN(seq_owes(q), max - n);
		int r;

		next = q->next;
		if (q->paused || q->done || q->n_posted != q->n_computed || want == 0 ||
		    (seq_owes(q) == 1) != single)
			continue;
		r = reserve_or_preempt(s, q, want);
		if (r == -EAGAIN && n == 0 && !single) {
			/* Nobody younger to ask: compute what the pages at hand take. */
			uint32_t room = (q->n_pages + pool_n_free(s->cfg.pool)) * PAGE_TOKENS;

			want = room > q->n_posted ? MIN(want, room - q->n_posted) : 0;
			r = want ? seq_reserve(q, q->n_posted + want, NULL) : -EAGAIN;
		}
		next = q->next; /* a younger neighbour may have been preempted */
		if (r < 0)
			continue;
		write_rows(q, rows + n, want);
		n += want;
	}
	return n;
}

uint32_t batch_post(struct sched *s)
{
	struct channel_row *rows = channel_begin_step(s->channel);
	uint32_t max = channel_get_shape(s->channel)->max_rows;
	uint32_t n;

	if (!rows)
		return 0;
	n = pass(s, true, rows, 0, max);
	n = pass(s, false, rows, n, MIN(max, n + s->cfg.step_tokens));
	if (n == 0)
		return 0;
	s->stats.steps++;
	s->stats.rows += n;
	channel_post_step(s->channel, n);
	return n;
}
