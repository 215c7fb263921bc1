/* SPDX-License-Identifier: Apache-2.0 */
/* Tags: a MAC over a page's record and content, by which an adopter knows that a page is as it was
 * sealed. They are made off the loop, one at a time; pages that wait for theirs are a list through
 * `uses`, each in it once, so that the pool's size bounds it.
 *
 * The second thread reads one page under the job's lock. Who wants to change that page's content sets
 * `stop` and takes the lock: the reader looks at it between chunks. A result counts only if the
 * record's generation is still what it was. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/io.h"
#include "pool/pool_impl.h"

#define TAG_CHUNK (64u << 10)

struct tag_job {
	pthread_mutex_t lock; /* held while the page is read */
	atomic_bool stop;
	bool busy;     /* between io_work() and pool_tag_done(); the loop's alone */
	bool finished; /* under the lock: nothing of this is used by the second thread any more */
	bool orphan;   /* under the lock: the pool is gone */

	page_id page;
	const uint8_t *content;
	uint64_t n_content;
	uint8_t key[HASH_KEY_BYTES];
	struct page_record rec; /* as it will be when it is committed */
	uint8_t tag[HASH_MAC_BYTES];
};

int tag_job_new(struct tag_job **ret, struct io *io)
{
	struct tag_job *j = io_alloc(io, sizeof(*j));

	if (!j)
		return -ENOMEM;
	pthread_mutex_init(&j->lock, NULL);
	*ret = j;
	return 0;
}

static void destroy(struct tag_job *j)
{
	pthread_mutex_destroy(&j->lock);
	explicit_bzero(j, sizeof(*j));
	free(j);
}

struct tag_job *tag_job_free(struct tag_job *j)
{
	bool in_use;

	if (!j)
		return NULL;
	atomic_store(&j->stop, true);
	pthread_mutex_lock(&j->lock);
	in_use = j->busy && !j->finished;
	j->orphan = in_use;
	pthread_mutex_unlock(&j->lock);
	if (!in_use)
		destroy(j);
	return NULL;
}

/* tag = MAC(... MAC(MAC(record), chunk 0) ..., last chunk). Return: false: stopped. */
static bool compute(uint8_t ret[HASH_MAC_BYTES], const uint8_t key[HASH_KEY_BYTES],
		    const struct page_record *rec, const uint8_t *content, uint64_t n,
		    const atomic_bool *stop)
{
	struct page_record bare = *rec;
	const struct hash_part head[] = {{"tag", 3}, {&bare, sizeof(bare)}};

	memset(bare.tag, 0, sizeof(bare.tag));
	hash_mac(ret, key, head, N_ELEMENTS(head));
	for (uint64_t at = 0; at < n; at += TAG_CHUNK) {
		uint8_t before[HASH_MAC_BYTES];
		const struct hash_part parts[] = {
			{"page", 4},
			{before, sizeof(before)},
			{content + at, MIN(n - at, (uint64_t)TAG_CHUNK)},
		};

		if (stop && atomic_load_explicit(stop, memory_order_relaxed))
			return false;
		memcpy(before, ret, sizeof(before));
		hash_mac(ret, key, parts, N_ELEMENTS(parts));
	}
	return true;
}

bool tag_holds(const struct pool *p, page_id page)
{
	struct page_record rec;
	uint8_t tag[HASH_MAC_BYTES];

	memcpy(&rec, pool_record(p, page), sizeof(rec));
	atomic_signal_fence(memory_order_seq_cst); /* read once: the copy is what is judged */
	compute(tag, p->cfg.key, &rec, p->data + page * p->cfg.geometry.stride,
		p->cfg.geometry.stride, NULL);
	return rec.state == PAGE_COMMITTED && rec.page == page &&
	       memcmp(rec.tag, tag, sizeof(tag)) == 0;
}

/* Second thread. */
static void run(void *arg)
{
	struct tag_job *j = arg;
	bool orphan;

	pthread_mutex_lock(&j->lock);
	if (compute(j->tag, j->key, &j->rec, j->content, j->n_content, &j->stop))
		fault_at(FAULT_TAG_COMPUTED);
	j->finished = true;
	orphan = j->orphan;
	pthread_mutex_unlock(&j->lock);
	if (orphan)
		destroy(j);
}

void tag_stop_reading(struct pool *p, page_id page)
{
	struct tag_job *j = p->job;

	if (!j->busy || j->page != page)
		return;
	atomic_store(&j->stop, true);
	pthread_mutex_lock(&j->lock);
	pthread_mutex_unlock(&j->lock);
}

void tag_due(struct pool *p, page_id page)
{
	if (p->uses[page].due_next != DUE_NOT)
		return;
	p->uses[page].due_next = page;
	if (p->due_first == DUE_NOT)
		p->due_first = page;
	else
		p->uses[p->due_last].due_next = page;
	p->due_last = page;
}

static void pop_due(struct pool *p)
{
	page_id page = p->due_first, next = p->uses[page].due_next;

	p->due_first = next == page ? DUE_NOT : next;
	p->uses[page].due_next = DUE_NOT;
}

bool pool_tag_next(struct pool *p, uint64_t tag)
{
	struct tag_job *j = p->job;
	page_id page;

	if (j->busy)
		return false;
	/* Taken again since, or never to be found: no tag is needed. */
	while ((page = p->due_first) != DUE_NOT &&
	       (pool_record(p, page)->state != PAGE_SEALED || !prefix_holds(p->prefix, page)))
		pop_due(p);
	if (page == DUE_NOT)
		return false;
	j->page = page;
	j->content = p->data + page * p->cfg.geometry.stride;
	j->n_content = p->cfg.geometry.stride;
	memcpy(j->key, p->cfg.key, sizeof(j->key));
	j->rec = *pool_record(p, page);
	j->rec.state = PAGE_COMMITTED;
	j->rec.generation += 2;
	j->finished = false;
	atomic_store(&j->stop, false);
	j->busy = io_work(p->cfg.io, run, j, tag) == 0;
	if (j->busy)
		pop_due(p);
	return j->busy;
}

void pool_tag_done(struct pool *p)
{
	struct tag_job *j = p->job;
	struct page_record *rec = pool_record(p, j->page);

	if (!j->busy)
		return;
	assert(j->finished);
	j->busy = false;
	if (rec->generation + 2 != j->rec.generation)
		return; /* freed or taken since; what was stopped was taken */
	record_begin(rec);
	rec->state = PAGE_COMMITTED;
	memcpy(rec->tag, j->tag, sizeof(rec->tag));
	fault_at(FAULT_TAG_WRITE);
	record_end(rec);
	fault_at(FAULT_TAG_WRITTEN);
	p->stats.tagged++;
}

bool pool_tag_busy(const struct pool *p)
{
	return p->job->busy;
}
