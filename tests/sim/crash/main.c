/* SPDX-License-Identifier: Apache-2.0 */
/* Lives of a pool that end in crashes: torn and reordered writes, adoption, and again.
 *
 *   crash [--runs N] [--seed S]
 *
 * A life adopts what the one before left, seals pages of three owners, makes tags, evicts, and is cut
 * off at several points of its log of stores. For each, memory is what stores_crash() makes of it, a
 * pool adopts that, and then:
 *
 *   - a page that is found holds, byte for byte, what its owner's page held when it was sealed;
 *   - a page that is taken holds nothing of another owner;
 *   - every invariant of the pool stands.
 *
 * Every byte of a page says whose it is, and every page which seal it came from. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "plain_io.h"
#include "pool/pool.h"
#include "stores.h"

enum {
	N_PAGES = 10,
	PAGE_BYTES = 4096,
	N_OWNERS = 3,
	N_TEXTS = 4,
	DEPTH = 3,
	OPERATIONS = 24,
	CRASHES = 8, /* of one life */
};
#define DATA_BYTES  ((size_t)N_PAGES * PAGE_BYTES)
#define META_BYTES  (PAGE_META_HEADER_BYTES + (size_t)N_PAGES * sizeof(struct page_record))
#define IMAGE_BYTES (DATA_BYTES + META_BYTES)

/* The two memfds of a pool, and their bytes one behind the other. */
struct memory {
	int data_fd, meta_fd;
	uint8_t *data, *meta;
};

struct sim {
	struct io io; /* first: the seam finds us by it */
	uint64_t rng;
	struct pool_config cfg;
	uint8_t owners[N_OWNERS][16];
	struct memory life, crashed;
	uint8_t base[IMAGE_BYTES];  /* memory before the log begins */
	uint8_t image[IMAGE_BYTES]; /* memory after a crash */
	uint8_t scratch[IMAGE_BYTES];
	bool logging;
	io_work_fn work;
	void *work_arg;
	struct pool *pool;
	page_id held[4]; /* pages that are being written: open, with a reference */
	uint32_t n_held;
	uint64_t n_seals;
	struct {
		uint64_t crashes, lives, adopted, refused_pools, worn_pools, candidates,
			refused_records, found, mismatched, taken, torn, foreign, broken;
	} n;
};

static struct sim *sim_of(struct io *io)
{
	return (struct sim *)io;
}

static uint64_t sim_random(void *ctx)
{
	struct sim *s = ctx;
	/* SplitMix64. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014. */
	uint64_t z = s->rng += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static uint32_t below(struct sim *s, uint32_t n)
{
	return (uint32_t)(sim_random(s) % n);
}

/* ---- the seam ---- */

static uint64_t op_now(struct io *io)
{
	return sim_of(io)->n.lives;
}

/* A new pool gets the memory of this life, which is all zeros then. */
static int op_memfd(struct io *io, const char *name, uint64_t n_bytes, unsigned seals)
{
	struct memory *m = &sim_of(io)->life;

	(void)name;
	(void)seals;
	return dup(n_bytes == DATA_BYTES ? m->data_fd : m->meta_fd);
}

static void *op_map(struct io *io, int fd, uint64_t n_bytes, bool writable)
{
	void *p = io_real_map(io, fd, n_bytes, writable);
	bool is_data = n_bytes == DATA_BYTES;

	if (p && sim_of(io)->logging)
		stores_watch(is_data ? 0 : 1, p, is_data ? 0 : DATA_BYTES, n_bytes);
	return p;
}

static int op_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	(void)tag;
	sim_of(io)->work = fn;
	sim_of(io)->work_arg = arg;
	return 0;
}

static const struct io_ops sim_ops = {
	.name = "crash",
	.now_usec = op_now,
	.random = io_real_random,
	.memfd = op_memfd,
	.map = op_map,
	.unmap = io_real_unmap,
	.alloc = io_real_alloc,
	.work = op_work,
};

static void run_work(struct sim *s)
{
	if (s->work)
		s->work(s->work_arg);
	s->work = NULL;
}

/* ---- texts and what pages hold ---- */

struct text {
	uint32_t owner, text, depth; /* page @depth of one of N_TEXTS */
};

static void ids_of(uint32_t ids[PAGE_TOKENS], const struct text *t)
{
	for (uint32_t i = 0; i < PAGE_TOKENS; i++)
		ids[i] = t->text * 1000 + t->depth * 100 + i;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	a = (a ^ b) * UINT64_C(0x9e3779b97f4a7c15);
	return a ^ a >> 29;
}

/* The content of one seal: in each byte the owner in the upper two bits, never 0. The first four bytes
 * are the number of the seal, 24 bits of it. */
static void content_of(uint8_t ret[PAGE_BYTES], const struct text *t, uint64_t seal)
{
	uint8_t owner = (uint8_t)((t->owner + 1) << 6);
	uint64_t x = mix(mix(mix(t->owner, t->text), t->depth), seal);

	for (size_t i = 0; i < PAGE_BYTES; i++) {
		if (i % 8 == 0)
			x = mix(x, i + 1);
		ret[i] = (uint8_t)(owner | (x >> i % 8 * 6 & 63));
	}
	for (unsigned i = 0; i < 4; i++)
		ret[i] = (uint8_t)(owner | (seal >> 6 * i & 63));
}

static uint64_t seal_of(const uint8_t page[PAGE_BYTES])
{
	uint64_t seal = 0;

	for (unsigned i = 0; i < 4; i++)
		seal |= (uint64_t)(page[i] & 63) << 6 * i;
	return seal;
}

/* Walks to page t->depth of the text; PAGE_NONE: not there. @chain: of the page before, as far as it goes. */
static page_id find(struct sim *s, struct pool *p, const struct text *t, uint8_t chain[16])
{
	struct text at = {t->owner, t->text, 0};
	page_id page;

	memcpy(chain, s->owners[t->owner], 16);
	for (;; at.depth++) {
		uint32_t ids[PAGE_TOKENS];
		uint8_t parent[16];

		ids_of(ids, &at);
		memcpy(parent, chain, 16);
		page = pool_find_page(p, s->owners[t->owner], parent, at.depth * PAGE_TOKENS, ids,
				      1000, false, chain);
		if (at.depth == t->depth) {
			memcpy(chain, parent, 16);
			return page;
		}
		/* The chain goes on also where the page is gone. */
		if (page != PAGE_NONE)
			pool_unref_page(p, page);
	}
}

/* ---- a life ---- */

/* The worker writes some of a page. */
static void write_some(struct sim *s, page_id page, const uint8_t *content, size_t n)
{
	uint8_t *to = s->life.data + (size_t)page * PAGE_BYTES;

	stores_memcpy(to, content, n);
}

static void seal_one(struct sim *s)
{
	struct text t = {below(s, N_OWNERS), below(s, N_TEXTS), below(s, DEPTH)};
	uint8_t content[PAGE_BYTES], chain[16];
	uint32_t ids[PAGE_TOKENS];
	page_id page = find(s, s->pool, &t, chain);

	if (page != PAGE_NONE) {
		pool_unref_page(s->pool, page);
		return;
	}
	if (pool_take_page(s->pool, s->owners[t.owner], &page) < 0)
		return;
	s->n_seals = (s->n_seals + 1) & 0xffffff;
	content_of(content, &t, s->n_seals);
	if (below(s, 8) == 0 && s->n_held < N_ELEMENTS(s->held)) {
		write_some(s, page, content, 8 * below(s, PAGE_BYTES / 8));
		s->held[s->n_held++] = page; /* not finished before the end of its life */
		return;
	}
	write_some(s, page, content, sizeof(content));
	ids_of(ids, &t);
	pool_seal_page(s->pool, page, chain, t.depth * PAGE_TOKENS, ids, 1000, chain);
	pool_unref_page(s->pool, page);
}

static void operate(struct sim *s)
{
	switch (below(s, 16)) {
	case 0:
		pool_drop_cached(s->pool, s->owners[below(s, N_OWNERS)]);
		break;
	case 1:
		if (s->n_held)
			pool_unref_page(s->pool, s->held[--s->n_held]);
		break;
	case 2:
	case 3:
		pool_tag_next(s->pool, 1);
		break;
	case 4:
	case 5:
		run_work(s);
		break;
	case 6:
	case 7:
		run_work(s);
		pool_tag_done(s->pool);
		break;
	case 8:
	case 9:
		while (!pool_tag_busy(s->pool) && pool_tag_next(s->pool, 1)) {
			run_work(s);
			pool_tag_done(s->pool);
		}
		break;
	default:
		seal_one(s);
	}
}

static void broken(struct sim *s, const char *what)
{
	printf("broken in life %llu, crash %llu: %s\n", (unsigned long long)s->n.lives,
	       (unsigned long long)s->n.crashes, what);
	s->n.broken++;
}

static int adopt(struct sim *s, const struct memory *m, struct pool **ret)
{
	int data_fd = dup(m->data_fd), meta_fd = dup(m->meta_fd);
	int r = pool_adopt(ret, &s->cfg, data_fd, meta_fd, NULL);

	if (r < 0) {
		fd_close(data_fd);
		fd_close(meta_fd);
	}
	return r;
}

static void copy_out(uint8_t *image, const struct memory *m)
{
	memcpy(image, m->data, DATA_BYTES);
	memcpy(image + DATA_BYTES, m->meta, META_BYTES);
}

static void copy_in(const struct memory *m, const uint8_t *image)
{
	memcpy(m->data, image, DATA_BYTES);
	memcpy(m->meta, image + DATA_BYTES, META_BYTES);
}

/* One life on what s->image holds; after it the log is complete and s->base what it began with. */
static void live(struct sim *s)
{
	bool settles = below(s, 8) != 0;
	struct error err = {};

	s->n.lives++;
	copy_in(&s->life, s->image);
	memcpy(s->base, s->image, IMAGE_BYTES);
	stores_watch(2, s->life.data, 0, DATA_BYTES); /* the worker's; the pool maps its own */
	s->logging = true;
	stores_begin();
	if (adopt(s, &s->life, &s->pool) < 0) {
		/* Its memory is another's now, and all zeros: no crash mixes the two. */
		stores_end();
		memset(s->base, 0, IMAGE_BYTES);
		copy_in(&s->life, s->base);
		stores_begin();
		if (pool_new(&s->pool, &s->cfg, NULL) < 0)
			abort();
	}
	for (uint32_t i = 0; i < OPERATIONS; i++) {
		if (i == OPERATIONS / 4 && settles)
			pool_settled(s->pool);
		operate(s);
	}
	stores_end();
	s->logging = false;
	if (pool_check(s->pool, &err) < 0)
		broken(s, err.text);
	run_work(s);
	s->n_held = 0;
	pool_free(s->pool);
	/* The log must know every store, or it proves nothing. */
	copy_out(s->scratch, &s->life);
	memcpy(s->image, s->base, IMAGE_BYTES);
	stores_replay(s->image);
	if (memcmp(s->image, s->scratch, IMAGE_BYTES) != 0)
		broken(s, "stores that are not in the log");
}

/* ---- what an adopter finds ---- */

static void check_found(struct sim *s, struct pool *p)
{
	for (uint32_t i = 0; i < N_OWNERS * N_TEXTS * DEPTH; i++) {
		struct text t = {i % N_OWNERS, i / N_OWNERS % N_TEXTS, i / N_OWNERS / N_TEXTS};
		uint8_t want[PAGE_BYTES], chain[16];
		page_id page = find(s, p, &t, chain);
		const uint8_t *got;

		if (page == PAGE_NONE)
			continue;
		got = s->crashed.data + (size_t)page * PAGE_BYTES;
		content_of(want, &t, seal_of(got));
		s->n.found++;
		if (got[0] >> 6 != t.owner + 1) {
			s->n.foreign++;
			broken(s, "a page of another owner was found");
		} else if (memcmp(got, want, PAGE_BYTES) != 0) {
			s->n.torn++;
			broken(s, "a torn page was found");
		}
		pool_unref_page(p, page);
	}
}

static void check_taken(struct sim *s, struct pool *p)
{
	uint32_t owner = below(s, N_OWNERS);
	page_id page;

	while (pool_take_page(p, s->owners[owner], &page) == 0) {
		const uint8_t *got = s->crashed.data + (size_t)page * PAGE_BYTES;

		s->n.taken++;
		for (size_t k = 0; k < PAGE_BYTES; k++)
			if (got[k] && got[k] >> 6 != owner + 1) {
				s->n.foreign++;
				broken(s, "a taken page holds bytes of another owner");
				break;
			}
	}
}

static void crash(struct sim *s)
{
	_cleanup_(pool_freep) struct pool *p = NULL;
	struct pool_stats stats;
	struct error err = {};
	int r;

	s->n.crashes++;
	memcpy(s->image, s->base, IMAGE_BYTES);
	stores_crash(s->image, below(s, (uint32_t)stores_n() + 1), below(s, 4) != 0, sim_random, s);
	copy_in(&s->crashed, s->image);
	r = adopt(s, &s->crashed, &p);
	if (r < 0) {
		s->n.refused_pools += r != -ESTALE;
		s->n.worn_pools += r == -ESTALE;
		return;
	}
	s->n.adopted++;
	if (pool_check(p, &err) < 0)
		broken(s, err.text);
	check_found(s, p);
	if (pool_check(p, &err) < 0)
		broken(s, err.text);
	check_taken(s, p);
	if (pool_check(p, &err) < 0)
		broken(s, err.text);
	pool_get_stats(p, &stats);
	s->n.candidates += stats.adopted;
	s->n.refused_records += stats.refused;
	s->n.mismatched += stats.mismatched;
}

/* ---- start ---- */

static int memory_init(struct io *io, struct memory *m)
{
	const unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

	m->data_fd = io_real_memfd(io, "data", DATA_BYTES, seals);
	m->meta_fd = io_real_memfd(io, "meta", META_BYTES, seals);
	if (m->data_fd < 0 || m->meta_fd < 0)
		return -ENOMEM;
	m->data = io_real_map(io, m->data_fd, DATA_BYTES, true);
	m->meta = io_real_map(io, m->meta_fd, META_BYTES, true);
	return m->data && m->meta ? 0 : -ENOMEM;
}

static int sim_init(struct sim *s, uint64_t seed)
{
	const struct image_stream stream = {0, PAGE_BYTES / PAGE_TOKENS};
	struct pool *p = NULL;
	int r;

	s->io.ops = &sim_ops;
	s->rng = seed;
	s->cfg = (struct pool_config){
		.io = &s->io,
		.n_pages = N_PAGES,
		.n_vocab = 10000,
		.model = {9},
		.boot_id = {3},
		.key = {1},
	};
	r = page_geometry_init(&s->cfg.geometry, &stream, 1, NULL);
	if (r == 0)
		r = memory_init(&s->io, &s->life);
	if (r == 0)
		r = memory_init(&s->io, &s->crashed);
	if (r == 0)
		r = pool_new(&p, &s->cfg, NULL);
	if (r < 0)
		return r;
	for (uid_t i = 0; i < N_OWNERS; i++)
		pool_domain(p, i, s->owners[i]);
	pool_free(p);
	return 0;
}

int main(int argc, char **argv)
{
	_cleanup_(freep) struct sim *s = calloc(1, sizeof(*s));
	uint64_t runs = 10000, seed = 1;

	for (int i = 1; i < argc; i += 2) {
		uint64_t *to = strcmp(argv[i], "--runs") == 0   ? &runs
			       : strcmp(argv[i], "--seed") == 0 ? &seed
								: NULL;
		char *end = NULL;

		if (to && i + 1 < argc)
			*to = strtoull(argv[i + 1], &end, 10);
		if (!end || *end || end == argv[i + 1]) {
			fprintf(stderr, "usage: %s [--runs N] [--seed S]\n", argv[0]);
			return 2;
		}
	}
	if (!s || hash_init() < 0 || sim_init(s, seed) < 0)
		return 1;
	while (s->n.crashes < runs && s->n.broken < 10) {
		live(s);
		for (unsigned i = 0; i < CRASHES; i++)
			crash(s); /* the last one's memory is the next life's */
	}
	printf("figure: crashes=%llu lives=%llu adopted=%llu pools_refused=%llu pools_worn=%llu "
	       "candidates=%llu records_refused=%llu found=%llu mismatched=%llu taken=%llu torn=%llu "
	       "foreign=%llu broken=%llu\n",
	       (unsigned long long)s->n.crashes, (unsigned long long)s->n.lives,
	       (unsigned long long)s->n.adopted, (unsigned long long)s->n.refused_pools,
	       (unsigned long long)s->n.worn_pools, (unsigned long long)s->n.candidates,
	       (unsigned long long)s->n.refused_records, (unsigned long long)s->n.found,
	       (unsigned long long)s->n.mismatched, (unsigned long long)s->n.taken,
	       (unsigned long long)s->n.torn, (unsigned long long)s->n.foreign,
	       (unsigned long long)s->n.broken);
	return s->n.broken ? 1 : 0;
}
