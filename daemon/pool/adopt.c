/* SPDX-License-Identifier: Apache-2.0 */
/* Adoption: the next life of the daemon goes on with the pages of the one before.
 *
 * What comes out of the descriptor store is hostile until it is checked. Header and records are copied
 * once and the copies judged. After that pool-meta is trusted as one that pool_new() made: no worker
 * and no client ever holds it, only the daemon and systemd's store. pool-data is written by workers, in
 * every life, and never trusted across lives: a candidate's content is checked by its tag, over record
 * and content together, when it is first found. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/io.h"
#include "pool/pool_impl.h"

struct found {
	uint32_t first_pos;
	page_id page;
};

static struct pool_header header_of(const struct pool *p)
{
	struct pool_header h = {
		.version = POOL_VERSION,
		.header_bytes = PAGE_META_HEADER_BYTES,
		.record_bytes = sizeof(struct page_record),
		.page_tokens = PAGE_TOKENS,
		.n_pages = p->cfg.n_pages,
		.entry = p->cfg.entry,
		.geometry = p->geometry_id,
		.stride = p->cfg.geometry.stride,
		.token_bytes = p->cfg.geometry.token_bytes,
	};

	memcpy(h.magic, PAGE_META_MAGIC, sizeof(h.magic));
	memcpy(h.boot_id, p->cfg.boot_id, sizeof(h.boot_id));
	memcpy(h.model, p->cfg.model, sizeof(h.model));
	return h;
}

static void header_mac(const struct pool *p, const struct pool_header *h,
		       uint8_t ret[HASH_MAC_BYTES])
{
	const struct hash_part parts[] = {{"header", 6}, {h, offsetof(struct pool_header, mac)}};

	hash_mac(ret, p->cfg.key, parts, N_ELEMENTS(parts));
}

void pool_write_header(struct pool *p, uint32_t attempts, uint64_t adopted_usec)
{
	struct pool_header h = header_of(p);

	h.attempts = attempts;
	h.adopted_usec = adopted_usec;
	header_mac(p, &h, h.mac);
	/* What lies between is zeros, and the fewer stores the smaller the chance to die among them: a
	 * header that is half written is no pool. */
	memcpy(p->meta, &h, offsetof(struct pool_header, _pad));
	memcpy(p->meta + offsetof(struct pool_header, mac), h.mac, sizeof(h.mac));
	atomic_thread_fence(memory_order_release); /* whole before anything that follows */
}

void pool_settled(struct pool *p)
{
	pool_write_header(p, 0, 0);
}

static int check_memfd(int fd, const char *what, uint64_t n_bytes, struct error *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0)
		return error_set(err, -EINVAL, "%s: not a memfd (%m)", what);
	if (seals != POOL_SEALS)
		return error_set(err, -EINVAL, "%s: seals are %#x: want %#x", what, seals,
				 POOL_SEALS);
	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %m", what);
	if (!S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size != n_bytes)
		return error_set(err, -EINVAL, "%s: %lld bytes: want %llu", what,
				 (long long)st.st_size, (unsigned long long)n_bytes);
	return 0;
}

static int map(struct pool *p, int fd, const char *what, uint64_t n_bytes, uint8_t **ret,
	       struct error *err)
{
	int r = check_memfd(fd, what, n_bytes, err);

	if (r < 0)
		return r;
	*ret = io_map(p->cfg.io, fd, n_bytes, true);
	return *ret ? 0
		    : error_set(err, -errno, "mapping %llu bytes of %s: %m",
				(unsigned long long)n_bytes, what);
}

/* The header is ours and not worn out; then it counts this attempt. */
static int take_header(struct pool *p, struct error *err)
{
	struct pool_header h, want = header_of(p);
	uint64_t now = io_now_usec(p->cfg.io);
	int r;

	memcpy(&h, p->meta, sizeof(h));
	atomic_signal_fence(memory_order_seq_cst); /* read once */
	r = pool_header_check(&h, &want, err);
	if (r < 0)
		return r;
	header_mac(p, &h, want.mac);
	if (memcmp(h.mac, want.mac, sizeof(h.mac)) != 0)
		return error_set(err, -EBADMSG, "pool header: mac is wrong");
	if (h.attempts >= POOL_ATTEMPTS_MAX)
		return error_set(err, -ESTALE,
				 "pool: adopted %u times, last %llu s ago, and no life with it "
				 "lasted a minute: discarded",
				 h.attempts,
				 (unsigned long long)(now - MIN(now, h.adopted_usec)) / 1000000);
	pool_write_header(p, h.attempts + 1, now);
	return 0;
}

static bool record_is_good(const struct pool *p, const struct page_record *rec, page_id page)
{
	const struct page_expect want = {
		.page = page,
		.geometry = p->geometry_id,
		.n_vocab = p->cfg.n_vocab,
		.model = p->cfg.model,
	};
	uint8_t chain[HASH_MAC_BYTES];

	if (page_record_check(rec, &want, NULL) < 0)
		return false;
	pool_chain(p, rec->parent, rec->ids, PAGE_TOKENS, chain);
	return memcmp(chain, rec->chain, sizeof(chain)) == 0;
}

/* Tails first, so that they become the coldest; of one position, in the order of pages. */
static int colder_first(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	if (x->first_pos != y->first_pos)
		return x->first_pos > y->first_pos ? -1 : 1;
	return x->page < y->page ? -1 : x->page > y->page;
}

/* Every page becomes a candidate or is scrubbed. */
static int take_records(struct pool *p)
{
	_cleanup_(freep) struct found *found = io_alloc(p->cfg.io, p->cfg.n_pages * sizeof(*found));
	uint32_t n = 0;

	if (!found)
		return -ENOMEM;
	for (page_id i = p->cfg.n_pages; i-- > 0;) {
		struct page_record rec;

		memcpy(&rec, pool_record(p, i), sizeof(rec));
		atomic_signal_fence(memory_order_seq_cst); /* read once */
		if (record_is_good(p, &rec, i)) {
			found[n++] = (struct found){.first_pos = rec.first_pos, .page = i};
		} else {
			p->stats.refused += rec.state != PAGE_FREE;
			pool_scrub_page(p, i);
		}
		fault_at(FAULT_ADOPT_RECORD);
	}
	qsort(found, n, sizeof(*found), colder_first);
	for (uint32_t i = 0; i < n; i++) {
		page_id page = found[i].page;

		prefix_add(p->prefix, page);
		if (!prefix_holds(p->prefix, page)) { /* another says the same */
			p->stats.refused++;
			pool_scrub_page(p, page);
			continue;
		}
		prefix_retire(p->prefix, page, false);
		p->uses[page].candidate = true;
		p->stats.adopted++;
	}
	return 0;
}

int pool_adopt(struct pool **ret, const struct pool_config *cfg, int data_fd, int meta_fd,
	       struct error *err)
{
	_cleanup_(pool_freep) struct pool *p = NULL;
	int r = pool_alloc(&p, cfg, err);

	if (r == 0)
		r = map(p, data_fd, "pool-data", pool_data_bytes(p), &p->data, err);
	if (r == 0)
		r = map(p, meta_fd, "pool-meta", pool_meta_bytes(p), &p->meta, err);
	if (r < 0)
		return r;
	fault_at(FAULT_ADOPT_MAP);
	r = take_header(p, err);
	if (r < 0)
		return r;
	fault_at(FAULT_ADOPT_HEADER);
	r = pool_index(p);
	if (r == 0)
		r = take_records(p);
	if (r < 0)
		return r;
	fault_at(FAULT_ADOPT_DONE);
	p->data_fd = data_fd;
	p->meta_fd = meta_fd;
	*ret = TAKE_PTR(p);
	return 0;
}
