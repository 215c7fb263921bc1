/* SPDX-License-Identifier: Apache-2.0 */
#include "pool/prefix.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"

struct entry {
	page_id next;           /* of its bucket */
	page_id colder, warmer; /* while cached */
	bool held, cached;
};

struct prefix {
	const struct page_record *records;
	struct entry *entries; /* by page */
	page_id *buckets;
	uint32_t mask;
	page_id coldest, warmest;
	uint32_t n_cached;
};

int prefix_new(struct prefix **ret, struct io *io, uint32_t n_pages,
	       const struct page_record *records)
{
	struct prefix *x = io_alloc(io, sizeof(*x));
	uint32_t n = 16;

	if (!x)
		return -ENOMEM;
	while (n < n_pages)
		n *= 2;
	x->records = records;
	x->mask = n - 1;
	x->coldest = x->warmest = PAGE_NONE;
	x->entries = io_alloc(io, n_pages * sizeof(*x->entries));
	x->buckets = io_alloc(io, n * sizeof(*x->buckets));
	if (!x->entries || !x->buckets) {
		prefix_free(x);
		return -ENOMEM;
	}
	memset(x->buckets, 0xff, n * sizeof(*x->buckets)); /* PAGE_NONE */
	*ret = x;
	return 0;
}

struct prefix *prefix_free(struct prefix *x)
{
	if (!x)
		return NULL;
	free(x->entries);
	free(x->buckets);
	free(x);
	return NULL;
}

/* A chain is a keyed MAC: its own first bytes spread as well as any hash of it. */
static page_id *bucket(const struct prefix *x, const uint8_t chain[16])
{
	uint32_t h;

	memcpy(&h, chain, sizeof(h));
	return &x->buckets[h & x->mask];
}

static bool matches(const struct page_record *rec, const struct prefix_key *key)
{
	return memcmp(rec->chain, key->chain, 16) == 0 &&
	       memcmp(rec->domain, key->domain, 16) == 0 && rec->first_pos == key->first_pos &&
	       (key->any_path || rec->n_prompt == key->n_prompt) &&
	       memcmp(rec->ids, key->ids, sizeof(rec->ids)) == 0;
}

page_id prefix_find(const struct prefix *x, const struct prefix_key *key)
{
	for (page_id i = *bucket(x, key->chain); i != PAGE_NONE; i = x->entries[i].next)
		if (matches(&x->records[i], key))
			return i;
	return PAGE_NONE;
}

page_id prefix_find_twin(const struct prefix *x, page_id page)
{
	const struct page_record *rec = &x->records[page];
	struct prefix_key key = {
		.domain = rec->domain,
		.first_pos = rec->first_pos,
		.ids = rec->ids,
		.n_prompt = rec->n_prompt,
	};

	memcpy(key.chain, rec->chain, 16);
	return prefix_find(x, &key);
}

void prefix_add(struct prefix *x, page_id page)
{
	page_id *b = bucket(x, x->records[page].chain);

	assert(!x->entries[page].held);
	if (prefix_find_twin(x, page) != PAGE_NONE)
		return;
	x->entries[page] = (struct entry){.next = *b, .held = true};
	*b = page;
}

bool prefix_holds(const struct prefix *x, page_id page)
{
	return x->entries[page].held;
}

void prefix_retire(struct prefix *x, page_id page, bool cold)
{
	struct entry *e = &x->entries[page];

	assert(e->held && !e->cached);
	e->cached = true;
	e->colder = cold ? PAGE_NONE : x->warmest;
	e->warmer = cold ? x->coldest : PAGE_NONE;
	*(e->colder == PAGE_NONE ? &x->coldest : &x->entries[e->colder].warmer) = page;
	*(e->warmer == PAGE_NONE ? &x->warmest : &x->entries[e->warmer].colder) = page;
	x->n_cached++;
}

void prefix_revive(struct prefix *x, page_id page)
{
	struct entry *e = &x->entries[page];

	assert(e->cached);
	*(e->colder == PAGE_NONE ? &x->coldest : &x->entries[e->colder].warmer) = e->warmer;
	*(e->warmer == PAGE_NONE ? &x->warmest : &x->entries[e->warmer].colder) = e->colder;
	e->cached = false;
	x->n_cached--;
}

void prefix_remove(struct prefix *x, page_id page)
{
	page_id *at = bucket(x, x->records[page].chain);

	if (x->entries[page].cached)
		prefix_revive(x, page);
	while (*at != page)
		at = &x->entries[*at].next;
	*at = x->entries[page].next;
	x->entries[page].held = false;
}

uint32_t prefix_n_cached(const struct prefix *x)
{
	return x->n_cached;
}

page_id prefix_coldest(const struct prefix *x, const uint8_t domain[16], uint32_t sweep)
{
	page_id i = x->coldest;

	for (; i != PAGE_NONE && sweep > 0; i = x->entries[i].warmer, sweep--)
		if (memcmp(x->records[i].domain, domain, 16) == 0)
			return i;
	return x->coldest;
}

page_id prefix_coldest_of(const struct prefix *x, const uint8_t *domain)
{
	page_id i = x->coldest;

	while (domain && i != PAGE_NONE && memcmp(x->records[i].domain, domain, 16) != 0)
		i = x->entries[i].warmer;
	return i;
}
