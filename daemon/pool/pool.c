/* SPDX-License-Identifier: Apache-2.0 */
/* A page is free (on a stack), referenced, or cached: sealed, without references, on the list of the
 * index from cold to warm. References, list and index are private memory, never in a memfd, so that
 * an adopter starts from records alone. Free pages keep their record's domain, which tells whether the
 * next owner must find them zeroed. Broker thread only. */
#include "pool/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/io.h"
#include "pool/pool_impl.h"

static int make(struct pool *p, const char *name, uint64_t n, int *ret_fd, uint8_t **ret,
		struct error *err)
{
	*ret_fd = io_memfd(p->cfg.io, name, n, POOL_SEALS);
	if (*ret_fd < 0)
		return error_set(err, *ret_fd, "memfd %s of %llu bytes: %m", name,
				 (unsigned long long)n);
	*ret = io_map(p->cfg.io, *ret_fd, n, true);
	if (!*ret)
		return error_set(err, -errno, "mapping %llu bytes of %s: %m", (unsigned long long)n,
				 name);
	return 0;
}

int pool_alloc(struct pool **ret, const struct pool_config *cfg, struct error *err)
{
	_cleanup_(pool_freep) struct pool *p = NULL;
	int r;

	if (cfg->n_pages == 0 || cfg->n_pages > UINT32_MAX / 2 ||
	    cfg->n_pages > (UINT64_C(1) << 46) / cfg->geometry.stride)
		return error_set(err, -EINVAL,
				 "a pool of %u pages of %llu bytes: want at least one page",
				 cfg->n_pages, (unsigned long long)cfg->geometry.stride);
	p = io_alloc(cfg->io, sizeof(*p));
	if (!p)
		return -ENOMEM;
	*p = (struct pool)POOL_NULL;
	p->n_users = 1;
	p->cfg = *cfg;
	p->geometry_id = page_geometry_id(&cfg->geometry);
	p->uses = io_alloc(cfg->io, cfg->n_pages * sizeof(*p->uses));
	p->free_pages = io_alloc(cfg->io, cfg->n_pages * sizeof(*p->free_pages));
	if (!p->uses || !p->free_pages)
		return -ENOMEM;
	for (page_id i = 0; i < cfg->n_pages; i++)
		p->uses[i].due_next = DUE_NOT;
	r = tag_job_new(&p->job, cfg->io);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(p);
	return 0;
}

int pool_index(struct pool *p)
{
	return prefix_new(&p->prefix, p->cfg.io, p->cfg.n_pages, pool_record(p, 0));
}

int pool_new(struct pool **ret, const struct pool_config *cfg, struct error *err)
{
	_cleanup_(pool_freep) struct pool *p = NULL;
	int r = pool_alloc(&p, cfg, err);

	if (r == 0)
		r = make(p, "dsd-pool-data", pool_data_bytes(p), &p->data_fd, &p->data, err);
	if (r == 0)
		r = make(p, "dsd-pool-meta", pool_meta_bytes(p), &p->meta_fd, &p->meta, err);
	if (r == 0)
		r = pool_index(p);
	if (r < 0)
		return r;
	pool_write_header(p, 0, 0);
	/* Low page ids first: a pool that is hardly used touches little memory. */
	for (page_id i = cfg->n_pages; i-- > 0;)
		p->free_pages[p->n_free++] = i;
	*ret = TAKE_PTR(p);
	return 0;
}

struct pool *pool_share(struct pool *p)
{
	p->n_users++;
	return p;
}

uint32_t pool_n_users(const struct pool *p)
{
	return p->n_users;
}

struct pool *pool_free(struct pool *p)
{
	if (!p || (p->n_users > 0 && --p->n_users > 0))
		return NULL;
	tag_job_free(p->job); /* first: it may be reading */
	if (p->data)
		io_unmap(p->cfg.io, p->data, pool_data_bytes(p));
	if (p->meta)
		io_unmap(p->cfg.io, p->meta, pool_meta_bytes(p));
	fd_close(p->data_fd);
	fd_close(p->meta_fd);
	prefix_free(p->prefix);
	free(p->uses);
	free(p->free_pages);
	free(p);
	return NULL;
}

int pool_data_fd(const struct pool *p)
{
	return p->data_fd;
}

int pool_meta_fd(const struct pool *p)
{
	return p->meta_fd;
}

const struct page_geometry *pool_geometry(const struct pool *p)
{
	return &p->cfg.geometry;
}

uint32_t pool_n_pages(const struct pool *p)
{
	return p->cfg.n_pages;
}

uint32_t pool_n_free(const struct pool *p)
{
	return p->n_free;
}

uint32_t pool_n_cached(const struct pool *p)
{
	return prefix_n_cached(p->prefix);
}

uint32_t pool_n_available(const struct pool *p)
{
	return p->n_free + prefix_n_cached(p->prefix);
}

uint64_t pool_n_refs(const struct pool *p)
{
	uint64_t n = 0;

	for (page_id i = 0; i < p->cfg.n_pages; i++)
		n += p->uses[i].refs;
	return n;
}

uint32_t pool_page_refs(const struct pool *p, page_id page)
{
	return p->uses[page].refs;
}

void pool_domain(const struct pool *p, uid_t uid, uint8_t ret[16])
{
	uint32_t id = uid;
	const struct hash_part parts[] = {{"uid", 3}, {&id, sizeof(id)}};

	hash_mac(ret, p->cfg.key, parts, N_ELEMENTS(parts));
}

void pool_name_domain(const struct pool *p, const char *name, uint8_t ret[16])
{
	const struct hash_part parts[] = {{"name", 4}, {name, strlen(name)}};

	hash_mac(ret, p->cfg.key, parts, N_ELEMENTS(parts));
}

const uint8_t *pool_page_chain(const struct pool *p, page_id page)
{
	assert(page_is_sealed(pool_record(p, page)));
	return pool_record(p, page)->chain;
}

void pool_chain(const struct pool *p, const uint8_t parent[16], const uint32_t *ids, uint32_t n,
		uint8_t ret[16])
{
	const struct hash_part parts[] = {{"chain", 5}, {parent, 16}, {ids, n * sizeof(*ids)}};

	hash_mac(ret, p->cfg.key, parts, N_ELEMENTS(parts));
}

/* A page without references goes to the free stack; its text goes out of the record. */
static void make_free(struct pool *p, page_id page)
{
	struct page_record *rec = pool_record(p, page);

	record_begin(rec);
	rec->state = PAGE_FREE;
	explicit_bzero(rec->ids, sizeof(rec->ids));
	/* What nobody checked may be anybody's: no domain is zero, so the next owner is another. */
	if (p->uses[page].candidate)
		memset(rec->domain, 0, sizeof(rec->domain));
	record_end(rec);
	p->uses[page].candidate = false;
	p->free_pages[p->n_free++] = page;
}

void pool_scrub_page(struct pool *p, page_id page)
{
	struct page_record *rec = pool_record(p, page);

	record_begin(rec);
	explicit_bzero((uint8_t *)rec + sizeof(rec->magic) + sizeof(rec->generation),
		       sizeof(*rec) - sizeof(rec->magic) - sizeof(rec->generation));
	rec->magic = PAGE_RECORD_MAGIC;
	rec->state = PAGE_FREE;
	rec->page = page;
	record_end(rec);
	p->free_pages[p->n_free++] = page;
}

int pool_take_page(struct pool *p, const uint8_t domain[16], page_id *ret)
{
	struct page_record *rec;
	page_id page;

	if (p->n_free == 0) {
		page = prefix_coldest(p->prefix, domain, POOL_SWEEP);
		if (page == PAGE_NONE)
			return -EAGAIN;
		prefix_remove(p->prefix, page);
		make_free(p, page);
	}
	page = p->free_pages[--p->n_free];
	tag_stop_reading(p, page);
	rec = pool_record(p, page);
	if (rec->magic == PAGE_RECORD_MAGIC && memcmp(rec->domain, domain, 16) != 0)
		memset(p->data + page * p->cfg.geometry.stride, 0, p->cfg.geometry.stride);
	record_begin(rec);
	rec->magic = PAGE_RECORD_MAGIC;
	rec->state = PAGE_OPEN;
	rec->flags = 0;
	rec->page = page;
	rec->geometry = p->geometry_id;
	memcpy(rec->domain, domain, 16);
	memcpy(rec->model, p->cfg.model, 16);
	rec->n_tokens = 0;
	record_end(rec);
	p->uses[page].refs = 1;
	*ret = page;
	return 0;
}

void pool_ref_page(struct pool *p, page_id page)
{
	assert(page < p->cfg.n_pages && p->uses[page].refs > 0);
	p->uses[page].refs++;
}

static void unref(struct pool *p, page_id page, bool cold)
{
	assert(page < p->cfg.n_pages && p->uses[page].refs > 0);
	if (--p->uses[page].refs > 0)
		return;
	if (prefix_holds(p->prefix, page))
		prefix_retire(p->prefix, page, cold);
	else
		make_free(p, page);
}

void pool_unref_page(struct pool *p, page_id page)
{
	unref(p, page, false);
}

void pool_unref_page_cold(struct pool *p, page_id page)
{
	unref(p, page, true);
}

void pool_seal_page(struct pool *p, page_id page, const uint8_t parent[16], uint32_t first_pos,
		    const uint32_t ids[PAGE_TOKENS], uint32_t n_prompt, uint8_t ret_chain[16])
{
	struct page_record *rec = pool_record(p, page);
	bool generated = first_pos + PAGE_TOKENS > n_prompt;
	uint8_t chain[HASH_MAC_BYTES];

	assert(rec->state == PAGE_OPEN && p->uses[page].refs > 0);
	pool_chain(p, parent, ids, PAGE_TOKENS, chain);
	record_begin(rec);
	fault_at(FAULT_SEAL_BEGIN);
	rec->state = PAGE_SEALED;
	rec->flags = generated ? PAGE_FLAG_GENERATED : 0;
	rec->n_prompt = generated ? n_prompt : 0;
	memcpy(rec->parent, parent, 16);
	memcpy(rec->chain, chain, 16);
	rec->first_pos = first_pos;
	rec->n_tokens = PAGE_TOKENS;
	memcpy(rec->ids, ids, sizeof(rec->ids));
	memset(rec->tag, 0, sizeof(rec->tag));
	fault_at(FAULT_SEAL_FIELDS);
	record_end(rec);
	fault_at(FAULT_SEAL_END);
	memcpy(ret_chain, chain, 16);
	prefix_add(p->prefix, page);
	tag_due(p, page);
}

/* Is what was found still what was sealed? If not it leaves the index; nobody finds it again. */
static bool check_found(struct pool *p, page_id page)
{
	struct page_use *use = &p->uses[page];

	if (!use->candidate && (p->cfg.verify != POOL_VERIFY_ALWAYS || use->refs > 0 ||
				pool_record(p, page)->state != PAGE_COMMITTED))
		return true;
	if (tag_holds(p, page)) {
		use->candidate = false;
		p->stats.verified++;
		return true;
	}
	p->stats.mismatched++;
	use->candidate = true;
	prefix_remove(p->prefix, page);
	make_free(p, page);
	return false;
}

/* One more reference to a page of the index. */
static page_id ref_found(struct pool *p, page_id page)
{
	if (p->uses[page].refs++ == 0)
		prefix_revive(p->prefix, page);
	return page;
}

page_id pool_ref_indexed(struct pool *p, page_id page)
{
	page_id twin;

	assert(page < p->cfg.n_pages && p->uses[page].refs > 0);
	twin = prefix_find_twin(p->prefix, page);
	if (twin == PAGE_NONE || !check_found(p, twin))
		twin = page; /* the index knows neither: for its holder alone */
	return ref_found(p, twin);
}

page_id pool_find_page(struct pool *p, const uint8_t domain[16], const uint8_t parent[16],
		       uint32_t first_pos, const uint32_t ids[PAGE_TOKENS], uint32_t n_prompt,
		       bool any_path, uint8_t ret_chain[16])
{
	struct prefix_key key = {
		.domain = domain,
		.first_pos = first_pos,
		.ids = ids,
		.n_prompt = first_pos + PAGE_TOKENS > n_prompt ? n_prompt : 0,
		.any_path = any_path,
	};
	page_id page;

	pool_chain(p, parent, ids, PAGE_TOKENS, key.chain);
	memcpy(ret_chain, key.chain, 16);
	page = prefix_find(p->prefix, &key);
	return page == PAGE_NONE || !check_found(p, page) ? PAGE_NONE : ref_found(p, page);
}

uint32_t pool_drop_cached(struct pool *p, const uint8_t *domain)
{
	uint32_t n = 0;
	page_id page;

	while ((page = prefix_coldest_of(p->prefix, domain)) != PAGE_NONE) {
		prefix_remove(p->prefix, page);
		make_free(p, page);
		n++;
	}
	return n;
}

void pool_get_stats(const struct pool *p, struct pool_stats *ret)
{
	*ret = p->stats;
}

int pool_check(const struct pool *p, struct error *err)
{
	uint32_t n_free = 0, n_cached = 0;

	for (page_id i = 0; i < p->cfg.n_pages; i++) {
		const struct page_record *rec = pool_record(p, i);

		bool cached = p->uses[i].refs == 0 && prefix_holds(p->prefix, i);

		n_cached += cached;
		n_free += p->uses[i].refs == 0 && !cached;
		if (rec->generation & 1)
			return error_set(err, -EBADF, "page %u: record left half written", i);
		if (rec->magic == 0 && p->uses[i].refs == 0)
			continue; /* never used */
		if (rec->magic != PAGE_RECORD_MAGIC || rec->page != i)
			return error_set(err, -EBADF, "page %u: not its own record", i);
		if (cached && !page_is_sealed(rec))
			return error_set(err, -EBADF, "page %u: in the index with state %u", i,
					 rec->state);
		if (p->uses[i].candidate && !cached)
			return error_set(err, -EBADF, "page %u: used before it was checked", i);
		if ((rec->state == PAGE_FREE) != (p->uses[i].refs == 0 && !cached))
			return error_set(err, -EBADF, "page %u: state %u with %u references", i,
					 rec->state, p->uses[i].refs);
	}
	if (n_free != p->n_free)
		return error_set(err, -EBADF, "%u pages without references, %u on the free list",
				 n_free, p->n_free);
	if (n_cached != prefix_n_cached(p->prefix))
		return error_set(err, -EBADF, "%u cached pages, %u on their list", n_cached,
				 prefix_n_cached(p->prefix));
	for (uint32_t i = 0; i < p->n_free; i++)
		if (p->free_pages[i] >= p->cfg.n_pages || p->uses[p->free_pages[i]].refs != 0)
			return error_set(err, -EBADF, "free list holds page %u", p->free_pages[i]);
	return 0;
}
