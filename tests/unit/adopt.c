/* SPDX-License-Identifier: Apache-2.0 */
/* Tags and adoption: a pool in the hands of the next life. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "layout/image.h"
#include "plain_io.h"
#include "pool/pool.h"

enum { N_PAGES = 8, N_VOCAB = 20000, PAGE_BYTES = 4096 };
#define META_BYTES (PAGE_META_HEADER_BYTES + N_PAGES * sizeof(struct page_record))

/* ---- the seam: offloaded work runs when the test says so ---- */

static struct io_ops test_ops;
static struct io test_io = {.ops = &test_ops};
static struct {
	io_work_fn fn;
	void *arg;
	unsigned n;
} work;

static int take_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	(void)io;
	assert_int_equal(tag, 7);
	assert_null(work.fn);
	work.fn = fn;
	work.arg = arg;
	work.n++;
	return 0;
}

static void run_work(void)
{
	io_work_fn fn = work.fn;

	assert_non_null(fn);
	work.fn = NULL;
	fn(work.arg);
}

static unsigned make_tags(struct pool *p)
{
	unsigned n = 0;

	for (; pool_tag_next(p, 7); n++) {
		run_work();
		pool_tag_done(p);
	}
	return n;
}

/* ---- a life, and what it leaves behind ---- */

static struct pool_config config(void)
{
	const struct image_stream stream = {0, 4};
	struct pool_config cfg = {.io = &test_io,
				  .n_pages = N_PAGES,
				  .n_vocab = N_VOCAB,
				  .key = {1},
				  .model = {9},
				  .boot_id = {3}};

	assert_int_equal(page_geometry_init(&cfg.geometry, &stream, 1, NULL), 0);
	return cfg;
}

struct left {
	int data_fd, meta_fd;
	uint8_t *data, *meta;
	uint8_t mine[16], other[16];
};

static struct page_record *record(const struct left *l, page_id page)
{
	return (struct page_record *)(l->meta + PAGE_META_HEADER_BYTES) + page;
}

static struct left left_by(struct pool *p)
{
	struct left l = {.data_fd = dup(pool_data_fd(p)), .meta_fd = dup(pool_meta_fd(p))};

	l.data = mmap(NULL, N_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, l.data_fd, 0);
	l.meta = mmap(NULL, META_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, l.meta_fd, 0);
	assert_ptr_not_equal(l.data, MAP_FAILED);
	assert_ptr_not_equal(l.meta, MAP_FAILED);
	pool_domain(p, 1, l.mine);
	pool_domain(p, 2, l.other);
	return l;
}

static void forget(struct left *l)
{
	munmap(l->data, N_PAGES * PAGE_BYTES);
	munmap(l->meta, META_BYTES);
	close(l->data_fd);
	close(l->meta_fd);
}

/* Page n of the prefix of @domain whose text begins with @word; content follows from it. */
static void ids_of(uint32_t ids[PAGE_TOKENS], uint32_t word, uint32_t n)
{
	for (uint32_t i = 0; i < PAGE_TOKENS; i++)
		ids[i] = word * 100 + n * 10 + i;
}

static void seal(struct pool *p, uint8_t *data, const uint8_t domain[16], uint32_t word, uint32_t n,
		 uint8_t chain[16])
{
	uint32_t ids[PAGE_TOKENS];
	page_id page = PAGE_NONE;

	ids_of(ids, word, n);
	assert_int_equal(pool_take_page(p, domain, &page), 0);
	memset(data + page * PAGE_BYTES, (int)(word * 16 + n), PAGE_BYTES);
	pool_seal_page(p, page, chain, n * PAGE_TOKENS, ids, 1000, chain);
	pool_unref_page(p, page);
}

static page_id find(struct pool *p, const uint8_t domain[16], uint32_t word, uint32_t n,
		    uint8_t chain[16])
{
	uint32_t ids[PAGE_TOKENS];

	ids_of(ids, word, n);
	return pool_find_page(p, domain, chain, n * PAGE_TOKENS, ids, 1000, false, chain);
}

/* The first life: three pages of one prefix, one of another user's, all with tags. */
static struct left first_life(void)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];

	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	memcpy(chain, l.mine, 16);
	for (uint32_t n = 0; n < 3; n++)
		seal(p, l.data, l.mine, 1, n, chain);
	memcpy(chain, l.other, 16);
	seal(p, l.data, l.other, 2, 0, chain);
	assert_int_equal(make_tags(p), 4);
	pool_free(p);
	return l;
}

static int adopt(struct pool **ret, const struct left *l, struct error *err)
{
	struct pool_config cfg = config();
	int data_fd = dup(l->data_fd), meta_fd = dup(l->meta_fd);
	int r = pool_adopt(ret, &cfg, data_fd, meta_fd, err);

	if (r < 0) {
		close(data_fd);
		close(meta_fd);
	}
	return r;
}

static struct pool_stats stats_of(const struct pool *p)
{
	struct pool_stats s;

	pool_get_stats(p, &s);
	return s;
}

/* How many pages of the prefix of three are found, in a row. */
static uint32_t find_prefix(struct pool *p, const struct left *l)
{
	uint8_t chain[16];
	page_id pages[3];
	uint32_t n = 0;

	memcpy(chain, l->mine, 16);
	while (n < 3 && (pages[n] = find(p, l->mine, 1, n, chain)) != PAGE_NONE) {
		for (size_t i = 0; i < PAGE_BYTES; i++)
			assert_int_equal(l->data[pages[n] * PAGE_BYTES + i], 16 + n);
		n++;
	}
	for (uint32_t i = n; i-- > 0;)
		pool_unref_page(p, pages[i]);
	return n;
}

/* ---- tags ---- */

static void sealed_page_is_found_before_its_tag_and_committed_after(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];
	uint64_t generation;
	page_id page;

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	memcpy(chain, l.mine, 16);
	seal(p, l.data, l.mine, 1, 0, chain);
	memcpy(chain, l.mine, 16);
	page = find(p, l.mine, 1, 0, chain);
	assert_int_not_equal(page, PAGE_NONE);
	assert_int_equal(record(&l, page)->state, PAGE_SEALED);
	generation = record(&l, page)->generation;
	assert_true(pool_tag_next(p, 7));
	assert_true(pool_tag_busy(p));
	assert_false(pool_tag_next(p, 7)); /* one at a time */
	run_work();
	assert_int_equal(record(&l, page)->state, PAGE_SEALED);
	pool_tag_done(p);
	assert_false(pool_tag_busy(p));
	assert_int_equal(record(&l, page)->state, PAGE_COMMITTED);
	assert_int_equal(record(&l, page)->generation, generation + 2);
	assert_false(pool_tag_next(p, 7));
	assert_int_equal(stats_of(p).tagged, 1);
	pool_unref_page(p, page);
	assert_int_equal(pool_check(p, NULL), 0);
	pool_free(p);
	forget(&l);
}

static void tag_of_a_page_that_was_taken_meanwhile_is_dropped(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];
	page_id pages[N_PAGES];

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	for (int ran_before = 0; ran_before < 2; ran_before++) {
		memcpy(chain, l.mine, 16);
		seal(p, l.data, l.mine, 1, 0, chain);
		assert_true(pool_tag_next(p, 7));
		if (ran_before)
			run_work();
		for (uint32_t i = 0; i < N_PAGES; i++)
			assert_int_equal(pool_take_page(p, l.other, &pages[i]), 0);
		if (!ran_before)
			run_work();
		pool_tag_done(p);
		for (page_id i = 0; i < N_PAGES; i++)
			assert_int_equal(record(&l, i)->state, PAGE_OPEN);
		for (uint32_t i = 0; i < N_PAGES; i++)
			pool_unref_page(p, pages[i]);
	}
	assert_int_equal(stats_of(p).tagged, 0);
	pool_free(p);
	forget(&l);
}

static void pages_due_are_tagged_once_however_often_they_change_hands(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	for (uint32_t word = 1; word < 100; word++) { /* far more seals than pages */
		memcpy(chain, l.mine, 16);
		seal(p, l.data, l.mine, word, 0, chain);
	}
	assert_int_equal(make_tags(p), N_PAGES);
	for (page_id i = 0; i < N_PAGES; i++)
		assert_int_equal(record(&l, i)->state, PAGE_COMMITTED);
	pool_free(p);
	forget(&l);
}

static void pool_may_go_while_a_tag_is_computed(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	memcpy(chain, l.mine, 16);
	seal(p, l.data, l.mine, 1, 0, chain);
	assert_true(pool_tag_next(p, 7));
	pool_free(p);
	run_work(); /* the address sanitizer sees what it touches, and what it leaves */
	forget(&l);
}

struct thread {
	pthread_t id;
	io_work_fn fn;
	void *arg;
};

static void *run_thread(void *arg)
{
	struct thread *t = arg;

	t->fn(t->arg);
	return NULL;
}

/* Pages of 2 MiB change hands while a second thread reads them; the thread sanitizer looks on. */
static void page_is_not_read_while_its_next_owner_writes(void **state)
{
	enum { ROUNDS = 30 };
	const struct image_stream stream = {0, 32768};
	struct pool_config cfg = config();
	struct pool *p = NULL;
	const uint32_t ids[PAGE_TOKENS] = {};
	uint8_t domains[2][16], chain[16], *data;
	page_id page;

	(void)state;
	cfg.n_pages = 1;
	assert_int_equal(page_geometry_init(&cfg.geometry, &stream, 1, NULL), 0);
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	data = mmap(NULL, cfg.geometry.stride, PROT_READ | PROT_WRITE, MAP_SHARED, pool_data_fd(p),
		    0);
	for (uid_t u = 0; u < 2; u++)
		pool_domain(p, u, domains[u]);
	for (unsigned i = 0; i < ROUNDS; i++) {
		const uint8_t *mine = domains[i % 2], *next = domains[(i + 1) % 2];
		struct thread t;

		assert_int_equal(pool_take_page(p, mine, &page), 0);
		memset(data, 1, cfg.geometry.stride);
		pool_seal_page(p, page, mine, 0, ids, 64, chain);
		pool_unref_page(p, page);
		assert_true(pool_tag_next(p, 7));
		t.fn = work.fn;
		t.arg = work.arg;
		work.fn = NULL;
		assert_int_equal(pthread_create(&t.id, NULL, run_thread, &t), 0);
		assert_int_equal(pool_take_page(p, next, &page), 0);
		for (size_t k = 0; k < cfg.geometry.stride; k += 4096)
			assert_int_equal(data[k], 0);
		pthread_join(t.id, NULL);
		pool_tag_done(p);
		pool_unref_page(p, page);
	}
	assert_int_equal(stats_of(p).tagged, 0);
	munmap(data, cfg.geometry.stride);
	pool_free(p);
}

static void always_checks_what_is_attached_in_the_same_life(void **state)
{
	for (int always = 0; always < 2; always++) {
		struct pool_config cfg = config();
		struct pool *p = NULL;
		struct left l;
		uint8_t chain[16];
		page_id page;

		(void)state;
		cfg.verify = always ? POOL_VERIFY_ALWAYS : POOL_VERIFY_ADOPTED;
		assert_int_equal(pool_new(&p, &cfg, NULL), 0);
		l = left_by(p);
		memcpy(chain, l.mine, 16);
		seal(p, l.data, l.mine, 1, 0, chain);
		make_tags(p);
		memcpy(chain, l.mine, 16);
		page = find(p, l.mine, 1, 0, chain);
		assert_int_not_equal(page, PAGE_NONE);
		assert_int_equal(stats_of(p).verified, always);
		pool_unref_page(p, page);
		l.data[page * PAGE_BYTES + 4095] ^= 1; /* the worker went astray */
		memcpy(chain, l.mine, 16);
		assert_int_equal(find(p, l.mine, 1, 0, chain), always ? PAGE_NONE : page);
		assert_int_equal(stats_of(p).mismatched, always);
		if (!always)
			pool_unref_page(p, page);
		assert_int_equal(pool_check(p, NULL), 0);
		pool_free(p);
		forget(&l);
	}
}

/* ---- adoption ---- */

static void what_one_life_sealed_the_next_finds(void **state)
{
	struct left l = first_life();
	struct pool *p = NULL;
	struct error err = {};
	uint8_t chain[16];
	page_id page;

	(void)state;
	assert_int_equal(adopt(&p, &l, &err), 0);
	assert_int_equal(stats_of(p).adopted, 4);
	assert_int_equal(stats_of(p).refused, 0);
	assert_int_equal(pool_n_cached(p), 4);
	assert_int_equal(pool_n_free(p), N_PAGES - 4);
	assert_int_equal(pool_check(p, &err), 0);
	assert_int_equal(find_prefix(p, &l), 3);
	assert_int_equal(stats_of(p).verified, 3);
	assert_int_equal(find_prefix(p, &l), 3);
	assert_int_equal(stats_of(p).verified, 3); /* once is enough */
	/* Another user's page is not found by who asks for the same text. */
	memcpy(chain, l.mine, 16);
	assert_int_equal(find(p, l.mine, 2, 0, chain), PAGE_NONE);
	memcpy(chain, l.other, 16);
	assert_int_equal(find(p, l.mine, 2, 0, chain), PAGE_NONE);
	memcpy(chain, l.other, 16);
	page = find(p, l.other, 2, 0, chain);
	assert_int_not_equal(page, PAGE_NONE);
	pool_unref_page(p, page);
	assert_int_equal(pool_check(p, &err), 0);
	pool_free(p);
	forget(&l);
}

static void tails_go_before_beginnings(void **state)
{
	struct left l = first_life();
	struct pool *p = NULL;
	page_id pages[N_PAGES];

	(void)state;
	assert_int_equal(adopt(&p, &l, NULL), 0);
	/* Four free pages and one more: the third page of the prefix is the coldest. */
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(pool_take_page(p, l.mine, &pages[i]), 0);
	assert_int_equal(find_prefix(p, &l), 2);
	pool_free(p);
	forget(&l);
}

static void pages_of_unknown_owner_are_zeroed_when_taken(void **state)
{
	struct left l = first_life();
	struct pool *p = NULL;
	page_id page;

	(void)state;
	/* A record that says the page was never used, and one torn; a candidate with other content. */
	memset(l.data, 0xee, N_PAGES * PAGE_BYTES);
	for (page_id i = 0; i < N_PAGES; i++)
		if (record(&l, i)->first_pos == 64)
			record(&l, i)->generation++;
	assert_int_equal(adopt(&p, &l, NULL), 0);
	assert_int_equal(stats_of(p).adopted, 3);
	assert_int_equal(stats_of(p).refused, 1);
	assert_int_equal(find_prefix(p, &l), 0);
	assert_int_equal(stats_of(p).mismatched, 1);
	for (uint32_t i = 0; i < N_PAGES; i++) {
		assert_int_equal(pool_take_page(p, l.mine, &page), 0);
		for (size_t k = 0; k < PAGE_BYTES; k++)
			assert_int_equal(l.data[page * PAGE_BYTES + k], 0);
	}
	assert_int_equal(pool_check(p, NULL), 0);
	pool_free(p);
	forget(&l);
}

static void page_without_a_tag_is_not_adopted(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	memcpy(chain, l.mine, 16);
	for (uint32_t n = 0; n < 3; n++)
		seal(p, l.data, l.mine, 1, n, chain);
	assert_true(pool_tag_next(p, 7)); /* the first of them only */
	run_work();
	pool_tag_done(p);
	pool_free(p);
	assert_int_equal(adopt(&p, &l, NULL), 0);
	assert_int_equal(stats_of(p).adopted, 1);
	assert_int_equal(stats_of(p).refused, 2);
	assert_int_equal(find_prefix(p, &l), 1);
	pool_free(p);
	forget(&l);
}

static void two_records_that_say_the_same_are_one_page(void **state)
{
	struct pool_config cfg = config();
	struct pool *p = NULL;
	struct left l;
	uint8_t chain[16];
	uint32_t ids[PAGE_TOKENS];
	page_id pages[2];
	struct page_record copy;

	(void)state;
	assert_int_equal(pool_new(&p, &cfg, NULL), 0);
	l = left_by(p);
	ids_of(ids, 1, 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pool_take_page(p, l.mine, &pages[i]), 0);
		memset(l.data + pages[i] * PAGE_BYTES, 16, PAGE_BYTES);
		pool_seal_page(p, pages[i], l.mine, 0, ids, 1000, chain);
	}
	assert_int_equal(make_tags(p), 1); /* the second is not in the index */
	copy = *record(&l, pages[0]);
	copy.page = pages[1];
	*record(&l, pages[1]) = copy;
	pool_free(p);
	assert_int_equal(adopt(&p, &l, NULL), 0);
	assert_int_equal(stats_of(p).adopted, 1);
	assert_int_equal(stats_of(p).refused, 1);
	assert_int_equal(pool_check(p, NULL), 0);
	pool_free(p);
	forget(&l);
}

static void content_flip_is_a_miss_at_first_use(void **state)
{
	(void)state;
	for (size_t at = 0; at < PAGE_BYTES; at += 97) {
		struct left l = first_life();
		struct pool *p = NULL;

		for (page_id i = 0; i < N_PAGES; i++)
			if (record(&l, i)->state == PAGE_COMMITTED &&
			    record(&l, i)->first_pos == 64)
				l.data[i * PAGE_BYTES + at] ^= 0x10;
		assert_int_equal(adopt(&p, &l, NULL), 0);
		assert_int_equal(find_prefix(p, &l), 1);
		assert_int_equal(stats_of(p).mismatched, 1);
		assert_int_equal(find_prefix(p, &l), 1);
		assert_int_equal(stats_of(p).mismatched, 1); /* dropped, not asked again */
		assert_int_equal(pool_check(p, NULL), 0);
		pool_free(p);
		forget(&l);
	}
}

static void every_flip_of_a_record_is_a_miss(void **state)
{
	struct left l = first_life();
	struct page_record good[N_PAGES];
	uint8_t header[PAGE_META_HEADER_BYTES];
	page_id victim = 0;

	(void)state;
	memcpy(good, record(&l, 0), sizeof(good));
	memcpy(header, l.meta, sizeof(header));
	while (good[victim].state != PAGE_COMMITTED || good[victim].first_pos != 64)
		victim++;
	for (size_t bit = 0; bit < sizeof(*good) * 8; bit++) {
		struct pool *p = NULL;
		struct error err = {};

		memcpy(l.meta, header, sizeof(header));
		memcpy(record(&l, 0), good, sizeof(good));
		((uint8_t *)record(&l, victim))[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(adopt(&p, &l, &err), 0);
		assert_int_equal(find_prefix(p, &l), 1);
		assert_int_equal(stats_of(p).mismatched + stats_of(p).refused <= 1, 1);
		if (pool_check(p, &err) < 0)
			fail_msg("bit %zu: %s", bit, err.text);
		pool_free(p);
	}
	forget(&l);
}

static void every_flip_of_the_header_is_refused(void **state)
{
	struct left l = first_life();
	uint8_t good[META_BYTES];
	struct pool *p = NULL;

	(void)state;
	memcpy(good, l.meta, sizeof(good));
	for (size_t i = 0; i < PAGE_META_HEADER_BYTES; i++) {
		struct error err = {};

		l.meta[i] ^= (uint8_t)(1 << i % 8);
		assert_int_equal(adopt(&p, &l, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "pool header: "));
		assert_null(p);
		l.meta[i] ^= (uint8_t)(1 << i % 8);
		assert_memory_equal(l.meta, good, sizeof(good)); /* refused is untouched */
	}
	assert_int_equal(adopt(&p, &l, NULL), 0);
	pool_free(p);
	forget(&l);
}

static void pool_of_another_configuration_is_refused(void **state)
{
	struct left l = first_life();
	const struct image_stream two[] = {{0, 4}, {1, 4}}, wide[] = {{0, 128}};

	(void)state;
	for (int what = 0; what < 7; what++) {
		static const char *const words[] = {"boot_id", "model", "mac is wrong", "entry",
						    "bytes",   "bytes", "token_bytes"};
		struct pool_config cfg = config();
		struct pool *p = NULL;
		struct error err = {};

		cfg.boot_id[15] ^= what == 0;
		cfg.model[31] ^= what == 1;
		cfg.key[31] ^= what == 2;
		cfg.entry += what == 3;
		cfg.n_pages += what == 4;
		if (what == 5)
			page_geometry_init(&cfg.geometry, wide, 1, NULL);
		if (what == 6)
			page_geometry_init(&cfg.geometry, two, 2, NULL);
		assert_true(pool_adopt(&p, &cfg, l.data_fd, l.meta_fd, &err) < 0);
		if (!strstr(err.text, words[what]))
			fail_msg("%d: \"%s\" does not say %s", what, err.text, words[what]);
	}
	forget(&l);
}

static int file_of(uint64_t n, int seals)
{
	int fd = memfd_create("x", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)n), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void descriptors_that_are_no_pool_are_refused(void **state)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct left l = first_life();
	struct {
		int fd;
		const char *word;
	} bad[] = {
		{-1, "not a memfd"},
		{open("/dev/null", O_RDWR | O_CLOEXEC), "not a memfd"},
		{open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "not a memfd"},
		{file_of(META_BYTES, F_SEAL_SHRINK | F_SEAL_SEAL), "seals"},
		{file_of(META_BYTES, F_SEAL_SHRINK | F_SEAL_GROW), "seals"},
		{file_of(META_BYTES, seals | F_SEAL_WRITE), "seals"},
		{file_of(META_BYTES - 1, seals), "bytes"},
		{file_of(META_BYTES + 1, seals), "bytes"},
		{file_of(0, seals), "bytes"},
		{file_of(META_BYTES, seals), "magic"},
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
		struct pool_config cfg = config();
		struct pool *p = NULL;
		struct error err = {};

		assert_true(pool_adopt(&p, &cfg, l.data_fd, bad[i].fd, &err) < 0);
		if (!strstr(err.text, bad[i].word))
			fail_msg("%zu: \"%s\" does not say %s", i, err.text, bad[i].word);
		if (i < N_ELEMENTS(bad) - 1)
			assert_true(pool_adopt(&p, &cfg, bad[i].fd, l.meta_fd, &err) < 0);
		fd_close(bad[i].fd);
	}
	forget(&l);
}

static void two_lives_that_end_within_a_minute_discard_the_pool(void **state)
{
	struct left l = first_life();
	struct pool *p = NULL;
	struct error err = {};

	(void)state;
	for (int round = 0; round < 3; round++) { /* a life that settles counts nothing */
		assert_int_equal(adopt(&p, &l, &err), 0);
		pool_free(p);
		assert_int_equal(adopt(&p, &l, &err), 0);
		pool_settled(p);
		pool_free(p);
	}
	for (int i = 0; i < 2; i++) {
		assert_int_equal(adopt(&p, &l, &err), 0);
		assert_int_equal(find_prefix(p, &l), 3);
		pool_free(p);
	}
	p = NULL;
	assert_int_equal(adopt(&p, &l, &err), -ESTALE);
	assert_non_null(strstr(err.text, "adopted 2 times"));
	assert_null(p);
	forget(&l);
}

/* Lives after lives, each sealing and evicting, some tags left undone. */
static void many_lives_in_a_row_keep_every_invariant(void **state)
{
	struct left l = first_life();
	uint32_t seed = 1, n_found = 0;

	(void)state;
	for (uint32_t life = 0; life < 300; life++) {
		struct pool *p = NULL;
		struct error err = {};

		assert_int_equal(adopt(&p, &l, &err), 0);
		for (uint32_t op = 0; op < 20; op++) {
			uint32_t x = (seed = seed * 1664525 + 1013904223) >> 8, word = x / 4 % 15;
			const uint8_t *domain = x % 4 ? l.mine : l.other;
			uint8_t chain[16];
			page_id page;

			memcpy(chain, domain, 16);
			page = find(p, domain, word, 0, chain);
			if (page != PAGE_NONE) {
				assert_int_equal(l.data[page * PAGE_BYTES], word * 16);
				assert_int_equal(l.data[page * PAGE_BYTES + 4095], word * 16);
				pool_unref_page(p, page);
				n_found++;
			} else {
				memcpy(chain, domain, 16);
				seal(p, l.data, domain, word, 0, chain);
			}
			if (x / 64 % 3 == 0)
				make_tags(p);
			if (pool_check(p, &err) < 0)
				fail_msg("life %u: %s", life, err.text);
		}
		assert_int_equal(stats_of(p).mismatched, 0);
		pool_settled(p);
		pool_free(p);
	}
	assert_true(n_found > 1000);
	forget(&l);
}

/* ---- figures ---- */

static void tag_cost(void)
{
	for (uint32_t bytes_per_token = 1024; bytes_per_token <= 32768; bytes_per_token *= 32) {
		const struct image_stream stream = {0, bytes_per_token};
		const uint32_t n_prompt = PAGE_TOKENS;
		unsigned n;
		struct pool_config cfg = config();
		struct pool *p = NULL;
		struct timespec a, b;
		uint8_t domain[16], chain[16], *data;

		cfg.n_pages = (32u << 20) / (PAGE_TOKENS * bytes_per_token);
		assert_int_equal(page_geometry_init(&cfg.geometry, &stream, 1, NULL), 0);
		assert_int_equal(pool_new(&p, &cfg, NULL), 0);
		data = mmap(NULL, cfg.n_pages * cfg.geometry.stride, PROT_READ | PROT_WRITE,
			    MAP_SHARED, pool_data_fd(p), 0);
		memset(data, 1, cfg.n_pages * cfg.geometry.stride);
		munmap(data, cfg.n_pages * cfg.geometry.stride);
		pool_domain(p, 1, domain);
		for (page_id i = 0, page; i < cfg.n_pages; i++) {
			assert_int_equal(pool_take_page(p, domain, &page), 0);
			pool_seal_page(p, page, domain, 0, (const uint32_t[PAGE_TOKENS]){i},
				       n_prompt, chain);
		}
		clock_gettime(CLOCK_MONOTONIC, &a);
		n = make_tags(p);
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("tag of a page of %llu bytes: %.1f us\n",
		       (unsigned long long)cfg.geometry.stride,
		       ((double)(b.tv_sec - a.tv_sec) * 1e6 +
			(double)(b.tv_nsec - a.tv_nsec) / 1e3) /
			       n);
		assert_int_equal(n, cfg.n_pages);
		pool_free(p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sealed_page_is_found_before_its_tag_and_committed_after),
		cmocka_unit_test(tag_of_a_page_that_was_taken_meanwhile_is_dropped),
		cmocka_unit_test(pages_due_are_tagged_once_however_often_they_change_hands),
		cmocka_unit_test(pool_may_go_while_a_tag_is_computed),
		cmocka_unit_test(page_is_not_read_while_its_next_owner_writes),
		cmocka_unit_test(always_checks_what_is_attached_in_the_same_life),
		cmocka_unit_test(what_one_life_sealed_the_next_finds),
		cmocka_unit_test(tails_go_before_beginnings),
		cmocka_unit_test(pages_of_unknown_owner_are_zeroed_when_taken),
		cmocka_unit_test(page_without_a_tag_is_not_adopted),
		cmocka_unit_test(two_records_that_say_the_same_are_one_page),
		cmocka_unit_test(content_flip_is_a_miss_at_first_use),
		cmocka_unit_test(every_flip_of_a_record_is_a_miss),
		cmocka_unit_test(every_flip_of_the_header_is_refused),
		cmocka_unit_test(pool_of_another_configuration_is_refused),
		cmocka_unit_test(descriptors_that_are_no_pool_are_refused),
		cmocka_unit_test(two_lives_that_end_within_a_minute_discard_the_pool),
		cmocka_unit_test(many_lives_in_a_row_keep_every_invariant),
	};

	test_ops = plain_io_ops;
	test_ops.work = take_work;
	if (hash_init() < 0)
		return 1;
	tag_cost();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
