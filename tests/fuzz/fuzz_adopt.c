/* SPDX-License-Identifier: Apache-2.0 */
/* pool_adopt() on what somebody wrote into the two memfds of a good pool, then a whole life on it.
 *
 * Byte 0: bit 0: the header's MAC is made right again, bit 1: the chains of records are (as one who
 * has the key would); bit 2: the rest is laid over pool-meta at 8 times the next two bytes. Otherwise
 * the rest is a list of 8-byte changes: u16 where, u8 width and place, u8 how, u32 value. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "layout/image.h"
#include "plain_io.h"
#include "pool/pool.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { N_PAGES = 6, N_SEALED = 4, PAGE_BYTES = 4096, N_VOCAB = 1000 };
#define DATA_BYTES ((size_t)N_PAGES * PAGE_BYTES)
#define META_BYTES (PAGE_META_HEADER_BYTES + N_PAGES * sizeof(struct page_record))

enum { WITH_MAC = 1, WITH_CHAINS = 2, RAW = 4 };

static void must(bool ok)
{
	if (!ok)
		abort();
}

static int work_now(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	(void)io;
	(void)tag;
	fn(arg);
	return 0;
}

struct rig {
	struct io_ops ops;
	struct io io;
	struct pool_config cfg;
	int data_fd, meta_fd;
	uint8_t *data, *meta;
	uint8_t good_data[DATA_BYTES], good_meta[META_BYTES];
	uint8_t domain[16];
};

static struct page_record *record(struct rig *r, page_id page)
{
	return (struct page_record *)(r->meta + PAGE_META_HEADER_BYTES) + page;
}

static void ids_of(uint32_t ids[PAGE_TOKENS], uint32_t n)
{
	for (uint32_t i = 0; i < PAGE_TOKENS; i++)
		ids[i] = n * PAGE_TOKENS + i;
}

/* A pool that sealed four pages of one prefix, the last with generated rows; two were never used. */
static void rig_init(struct rig *r)
{
	const struct image_stream stream = {0, PAGE_BYTES / PAGE_TOKENS};
	struct pool *p = NULL;
	uint32_t ids[PAGE_TOKENS];
	uint8_t chain[16];
	page_id page;

	must(hash_init() == 0);
	r->ops = plain_io_ops;
	r->ops.work = work_now;
	r->io.ops = &r->ops;
	r->cfg = (struct pool_config){
		.io = &r->io, .n_pages = N_PAGES, .n_vocab = N_VOCAB, .key = {1}, .boot_id = {2}};
	must(page_geometry_init(&r->cfg.geometry, &stream, 1, NULL) == 0);
	must(pool_new(&p, &r->cfg, NULL) == 0);
	r->data_fd = dup(pool_data_fd(p));
	r->meta_fd = dup(pool_meta_fd(p));
	r->data = io_map(&r->io, r->data_fd, DATA_BYTES, true);
	r->meta = io_map(&r->io, r->meta_fd, META_BYTES, true);
	must(r->data && r->meta);
	pool_domain(p, 1, r->domain);
	memcpy(chain, r->domain, sizeof(chain));
	for (uint32_t i = 0; i < N_SEALED; i++) {
		must(pool_take_page(p, r->domain, &page) == 0);
		memset(r->data + page * PAGE_BYTES, (int)(i + 1), PAGE_BYTES);
		ids_of(ids, i);
		pool_seal_page(p, page, chain, i * PAGE_TOKENS, ids, 200, chain);
		pool_unref_page(p, page);
	}
	while (pool_tag_next(p, 0))
		pool_tag_done(p);
	pool_free(p);
	memcpy(r->good_data, r->data, DATA_BYTES);
	memcpy(r->good_meta, r->meta, META_BYTES);
}

static void change(struct rig *r, const uint8_t how[8])
{
	unsigned width = 1u << (how[2] & 3);
	uint8_t *base = how[2] & 4 ? r->data : r->meta;
	size_t range = how[2] & 4 ? DATA_BYTES : META_BYTES;
	uint64_t v = 0, value;
	uint32_t low;
	uint16_t where;

	memcpy(&where, how, sizeof(where));
	memcpy(&low, how + 4, sizeof(low));
	value = how[2] & 8 ? (uint64_t)(int32_t)low : low; /* also numbers near 2^64 */
	base += where % (range / width) * width;
	memcpy(&v, base, width);
	v = how[3] % 3 == 0 ? value : how[3] % 3 == 1 ? v + value : v ^ value;
	memcpy(base, &v, width);
}

static void make_right(struct rig *r, unsigned flags)
{
	struct pool_header *h = (struct pool_header *)r->meta;
	const struct hash_part head[] = {{"header", 6}, {h, offsetof(struct pool_header, mac)}};

	if (flags & WITH_MAC)
		hash_mac(h->mac, r->cfg.key, head, N_ELEMENTS(head));
	for (page_id i = 0; i < N_PAGES && flags & WITH_CHAINS; i++) {
		struct page_record *rec = record(r, i);
		const struct hash_part parts[] = {
			{"chain", 5}, {rec->parent, 16}, {rec->ids, sizeof(rec->ids)}};

		hash_mac(rec->chain, r->cfg.key, parts, N_ELEMENTS(parts));
	}
}

/* What is found is what was sealed. */
static void find_all(struct rig *r, struct pool *p)
{
	page_id pages[N_SEALED], page;
	uint32_t ids[PAGE_TOKENS], n = 0;
	uint8_t chain[16];

	memcpy(chain, r->domain, sizeof(chain));
	for (uint32_t i = 0; i < N_SEALED; i++) {
		ids_of(ids, i);
		page = pool_find_page(p, r->domain, chain, i * PAGE_TOKENS, ids, 200, false, chain);
		if (page == PAGE_NONE)
			continue;
		for (size_t k = 0; k < PAGE_BYTES; k++)
			must(r->data[page * PAGE_BYTES + k] == i + 1);
		pages[n++] = page;
	}
	must(pool_check(p, NULL) == 0);
	while (n > 0)
		pool_unref_page(p, pages[--n]);
}

/* Another user gets all pages, and nothing of what was in them. */
static void take_all(struct rig *r, struct pool *p)
{
	uint32_t ids[PAGE_TOKENS] = {};
	uint8_t domain[16], chain[16];
	page_id page;

	pool_domain(p, 2, domain);
	for (uint32_t i = 0; i < N_PAGES; i++) {
		must(pool_take_page(p, domain, &page) == 0);
		for (size_t k = 0; k < PAGE_BYTES; k++)
			must(r->data[page * PAGE_BYTES + k] == 0);
		ids[0] = i;
		pool_seal_page(p, page, domain, 0, ids, PAGE_TOKENS, chain);
	}
	must(pool_take_page(p, domain, &page) < 0);
	while (pool_tag_next(p, 0))
		pool_tag_done(p);
	must(pool_check(p, NULL) == 0);
}

static int adopt(struct rig *r, struct pool **ret)
{
	int data_fd = dup(r->data_fd), meta_fd = dup(r->meta_fd);
	int e = pool_adopt(ret, &r->cfg, data_fd, meta_fd, NULL);

	if (e < 0) {
		fd_close(data_fd);
		fd_close(meta_fd);
	}
	return e;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct rig *r; /* made once: memfds are dear */
	unsigned flags = n > 0 ? data[0] : 0;
	struct pool_stats stats;
	struct pool *p = NULL;

	if (!r) {
		r = calloc(1, sizeof(*r));
		must(r != NULL);
		rig_init(r);
	}
	memcpy(r->data, r->good_data, DATA_BYTES);
	memcpy(r->meta, r->good_meta, META_BYTES);
	if (flags & RAW && n > 3) {
		size_t at = ((size_t)data[1] | (size_t)data[2] << 8) * 8 % META_BYTES;

		memcpy(r->meta + at, data + 3, MIN(n - 3, META_BYTES - at));
	}
	for (size_t at = 1; !(flags & RAW) && at + 8 <= n; at += 8)
		change(r, data + at);
	make_right(r, flags);
	if (adopt(r, &p) < 0)
		return 0;
	must(pool_check(p, NULL) == 0);
	find_all(r, p);
	take_all(r, p);
	pool_get_stats(p, &stats);
	must(stats.adopted + stats.refused <= N_PAGES);
	pool_free(p);
	/* And the life after that one. */
	if (adopt(r, &p) == 0) {
		must(pool_check(p, NULL) == 0);
		pool_get_stats(p, &stats);
		must(stats.adopted == N_PAGES);
		pool_free(p);
	}
	return 0;
}
