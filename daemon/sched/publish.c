/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/publish.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "pool/pool.h"
#include "quota/quota.h"
#include "sched/seq.h"

int published_new(struct published **ret, const struct seq *q, const char *name)
{
	struct io *io = q->sched->cfg.io;
	struct published *p;

	if (name[0] == 0 || strlen(name) >= SCHED_PUBLISHED_NAME_MAX)
		return -EINVAL;
	p = io_alloc(io, sizeof(*p));
	if (!p)
		return -ENOMEM;
	strcpy(p->name, name);
	p->ids = io_alloc(io, (q->n_prompt + 1) * sizeof(*p->ids));
	if (!p->ids) {
		published_free(q->sched, p);
		return -ENOMEM;
	}
	memcpy(p->ids, q->ids, q->n_prompt * sizeof(*p->ids));
	*ret = p;
	return 0;
}

struct published *published_free(struct sched *s, struct published *p)
{
	if (!p)
		return NULL;
	held_drop(s, &p->held);
	free(p->ids);
	free(p);
	return NULL;
}

/* The entry of that name, else a free one; NULL: all are taken. */
static struct published **place(struct sched *s, const char *name)
{
	struct published **free_place = NULL;

	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++) {
		if (s->published[i] && strcmp(s->published[i]->name, name) == 0)
			return &s->published[i];
		if (!s->published[i] && !free_place)
			free_place = &s->published[i];
	}
	return free_place;
}

int published_keep(struct seq *q)
{
	struct sched *s = q->sched;
	struct published *p = q->publish, **at = place(s, p->name);
	int r;

	/* Half of the pool at the most: the rest is for those who run. */
	if (!at || (pool_n_pages(s->cfg.pool) - sched_n_pages(s)) + q->n_sealed >
			   pool_n_pages(s->cfg.pool) / 2)
		return -ENOSPC;
	r = held_take(s, &p->held, q->pages, q->n_sealed);
	if (r < 0)
		return r;
	published_free(s, *at);
	*at = p;
	q->publish = NULL;
	return 0;
}

const struct published *published_find(const struct sched *s, const struct seq *q, uint32_t *ret_n)
{
	const struct published *best = NULL;

	*ret_n = 0;
	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++) {
		const struct published *p = s->published[i];
		uint32_t n = 0;

		/* Whole pages of prompt rows, and one row at least is left to compute. */
		while (p && n < p->held.n && (n + 1) * PAGE_TOKENS < q->n_ids &&
		       (n + 1) * PAGE_TOKENS <= q->n_prompt &&
		       memcmp(p->ids + n * PAGE_TOKENS, q->ids + n * PAGE_TOKENS,
			      PAGE_TOKENS * sizeof(*p->ids)) == 0)
			n++;
		if (n > *ret_n) {
			*ret_n = n;
			best = p;
		}
	}
	return best;
}

int sched_unpublish(struct sched *s, const char *name)
{
	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++)
		if (s->published[i] && strcmp(s->published[i]->name, name) == 0) {
			s->published[i] = published_free(s, s->published[i]);
			return 0;
		}
	return -ENOENT;
}

void sched_move_published(struct sched *to, struct sched *from)
{
	assert(to->cfg.pool == from->cfg.pool);
	for (uint32_t i = 0; i < SCHED_PUBLISHED_MAX; i++) {
		published_free(to, to->published[i]);
		to->published[i] = TAKE_PTR(from->published[i]);
	}
}
