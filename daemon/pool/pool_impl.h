#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a pool, for pool.c (the life of pages), tag.c and adopt.c alone. */
#include <fcntl.h>
#include <stdatomic.h>

#include "pool/pool.h"
#include "pool/prefix.h"

#define POOL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define DUE_NOT    UINT32_MAX

/* What this life knows of a page; never in a memfd. */
struct page_use {
	uint32_t refs;
	page_id due_next; /* in the list of pages whose tag is due; the last names itself */
	bool candidate;   /* adopted, its tag not checked yet */
};

struct tag_job;
struct pool {
	struct pool_config cfg;
	uint32_t geometry_id;
	int data_fd, meta_fd;
	uint8_t *data;
	uint8_t *meta;
	struct page_use *uses;
	page_id *free_pages; /* stack */
	uint32_t n_free;
	uint32_t n_users;
	struct prefix *prefix;
	struct tag_job *job;
	page_id due_first, due_last; /* DUE_NOT: none */
	struct pool_stats stats;
};
#define POOL_NULL                                                                                  \
	{                                                                                          \
		.data_fd = -EBADF, .meta_fd = -EBADF, .due_first = DUE_NOT, .due_last = DUE_NOT    \
	}

static inline uint64_t pool_data_bytes(const struct pool *p)
{
	return p->cfg.n_pages * p->cfg.geometry.stride;
}

static inline uint64_t pool_meta_bytes(const struct pool *p)
{
	return PAGE_META_HEADER_BYTES + (uint64_t)p->cfg.n_pages * sizeof(struct page_record);
}

static inline struct page_record *pool_record(const struct pool *p, page_id page)
{
	return (struct page_record *)(p->meta + PAGE_META_HEADER_BYTES) + page;
}

/* Records are read by whoever adopts the pool after a crash at any instruction: odd, then the fields,
 * then even, in this order for every observer. */
static inline void record_begin(struct page_record *rec)
{
	atomic_store_explicit((_Atomic uint64_t *)&rec->generation, rec->generation | 1,
			      memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
}

static inline void record_end(struct page_record *rec)
{
	atomic_store_explicit((_Atomic uint64_t *)&rec->generation, rec->generation + 1,
			      memory_order_release);
}

/* pool.c */

/** pool_alloc() - a pool without memfds: everything that is private to this life. */
int pool_alloc(struct pool **ret, const struct pool_config *cfg, struct error *err);
/** pool_index() - the index, over records that are mapped. */
int pool_index(struct pool *p);
/** pool_scrub_page() - whatever a page and its record hold, they are nobody's: free, zeroed when taken. */
void pool_scrub_page(struct pool *p, page_id page);

/* adopt.c */

/** pool_write_header() - a header that counts @attempts. */
void pool_write_header(struct pool *p, uint32_t attempts, uint64_t adopted_usec);

/* tag.c */

int tag_job_new(struct tag_job **ret, struct io *io);
/** tag_job_free() - at once, or when what runs has seen that nobody waits. */
struct tag_job *tag_job_free(struct tag_job *j);
/** tag_due() - a page was sealed: its tag is to be made. */
void tag_due(struct pool *p, page_id page);
/** tag_stop_reading() - the page's content is about to change. Waits for TAG_CHUNK bytes at the most. */
void tag_stop_reading(struct pool *p, page_id page);
/** tag_holds() - is the tag of a committed page that of its record and content? */
bool tag_holds(const struct pool *p, page_id page);
