/* SPDX-License-Identifier: Apache-2.0 */
#include "pool/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/error.h"
#include "layout/image.h"
#include "plain_io.h"

static struct io plain = {.ops = &plain_io_ops};

/* One stream of 4-byte rows: pages of 4,096 bytes. */
static struct pool *new_pool(uint32_t n_pages, uint8_t key)
{
	const struct image_stream stream = {0, 4};
	struct pool_config cfg = {.io = &plain, .n_pages = n_pages, .key = {key}, .model = {9}};
	struct pool *p = NULL;
	struct error err = {};

	assert_int_equal(page_geometry_init(&cfg.geometry, &stream, 1, NULL), 0);
	assert_int_equal(pool_new(&p, &cfg, &err), 0);
	return p;
}

static uint8_t *map_data(const struct pool *p)
{
	uint8_t *data = mmap(NULL, pool_n_pages(p) * pool_geometry(p)->stride,
			     PROT_READ | PROT_WRITE, MAP_SHARED, pool_data_fd(p), 0);

	assert_ptr_not_equal(data, MAP_FAILED);
	return data;
}

/* pool-meta is the pool's alone; a test finds it among the descriptors, as an adopter gets it. */
static const struct page_record *map_records(const struct pool *p)
{
	off_t want = PAGE_META_HEADER_BYTES + (off_t)pool_n_pages(p) * 512;
	char target[64], path[32];

	for (int fd = 63; fd > 2; fd--) { /* the newest, should a failed test have left one */
		struct stat st;
		uint8_t *meta;
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n < 0 || fstat(fd, &st) < 0 || st.st_size != want)
			continue;
		target[n] = 0;
		if (!strstr(target, "dsd-pool-meta"))
			continue;
		meta = mmap(NULL, (size_t)want, PROT_READ, MAP_SHARED, fd, 0);
		assert_ptr_not_equal(meta, MAP_FAILED);
		assert_memory_equal(meta, PAGE_META_MAGIC, 8);
		return (const struct page_record *)(meta + PAGE_META_HEADER_BYTES);
	}
	fail_msg("no pool-meta among the descriptors");
	return NULL;
}

static void unmap_records(const struct pool *p, const struct page_record *records)
{
	munmap((uint8_t *)records - PAGE_META_HEADER_BYTES,
	       PAGE_META_HEADER_BYTES + (size_t)pool_n_pages(p) * 512);
}

static void pool_of_no_pages_is_refused(void **state)
{
	const struct image_stream stream = {0, 4};
	struct pool_config cfg = {.io = &plain};
	struct pool *p = NULL;
	struct error err = {};

	(void)state;
	assert_int_equal(page_geometry_init(&cfg.geometry, &stream, 1, NULL), 0);
	assert_int_equal(pool_new(&p, &cfg, &err), -EINVAL);
	cfg.n_pages = UINT32_MAX;
	assert_int_equal(pool_new(&p, &cfg, &err), -EINVAL);
	assert_null(p);
}

static void data_is_sealed_in_size_and_stays_writable(void **state)
{
	struct pool *p = new_pool(4, 1);
	int fd = pool_data_fd(p);
	uint8_t *data = map_data(p);

	(void)state;
	assert_int_equal(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	assert_int_equal(ftruncate(fd, 0), -1);
	data[4 * 4096 - 1] = 1;
	munmap(data, 4 * 4096);
	pool_free(p);
}

static void pages_run_out_and_come_back(void **state)
{
	const uint8_t domain[16] = {1};
	struct pool *p = new_pool(3, 1);
	page_id pages[3], extra = 77;
	bool seen[3] = {};

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pool_take_page(p, domain, &pages[i]), 0);
		assert_true(pages[i] < 3 && !seen[pages[i]]);
		seen[pages[i]] = true;
	}
	assert_int_equal(pool_take_page(p, domain, &extra), -EAGAIN);
	assert_int_equal(extra, 77);
	pool_ref_page(p, pages[1]);
	pool_unref_page(p, pages[1]);
	assert_int_equal(pool_n_free(p), 0);
	pool_unref_page(p, pages[1]);
	assert_int_equal(pool_n_free(p), 1);
	assert_int_equal(pool_take_page(p, domain, &extra), 0);
	assert_int_equal(extra, pages[1]);
	assert_int_equal(pool_check(p, NULL), 0);
	pool_free(p);
}

static void page_is_zeroed_when_its_domain_changes_and_only_then(void **state)
{
	const uint8_t mine[16] = {1}, theirs[16] = {2};
	struct pool *p = new_pool(1, 1);
	uint8_t *data = map_data(p);
	page_id page;

	(void)state;
	assert_int_equal(pool_take_page(p, mine, &page), 0);
	memset(data, 0xab, 4096);
	pool_unref_page(p, page);
	assert_int_equal(pool_take_page(p, mine, &page), 0);
	for (size_t i = 0; i < 4096; i++)
		assert_int_equal(data[i], 0xab);
	pool_unref_page(p, page);
	assert_int_equal(pool_take_page(p, theirs, &page), 0);
	for (size_t i = 0; i < 4096; i++)
		assert_int_equal(data[i], 0);
	munmap(data, 4096);
	pool_free(p);
}

static void chain_differs_by_parent_ids_and_key(void **state)
{
	struct pool *a = new_pool(1, 1), *b = new_pool(1, 2);
	const uint8_t zeros[16] = {}, parent[16] = {1};
	uint32_t ids[PAGE_TOKENS] = {5};
	uint8_t chains[5][16], again[16];

	(void)state;
	pool_chain(a, zeros, ids, PAGE_TOKENS, chains[0]);
	pool_chain(a, parent, ids, PAGE_TOKENS, chains[1]);
	pool_chain(b, zeros, ids, PAGE_TOKENS, chains[2]);
	pool_chain(a, zeros, ids, PAGE_TOKENS - 1, chains[3]);
	ids[PAGE_TOKENS - 1] = 1;
	pool_chain(a, zeros, ids, PAGE_TOKENS, chains[4]);
	for (int i = 0; i < 5; i++)
		for (int k = 0; k < i; k++)
			assert_memory_not_equal(chains[i], chains[k], 16);
	pool_chain(a, zeros, ids, PAGE_TOKENS, again);
	assert_memory_equal(again, chains[4], 16);
	pool_free(a);
	pool_free(b);
}

static void domain_differs_by_uid_and_key(void **state)
{
	struct pool *a = new_pool(1, 1), *b = new_pool(1, 2);
	uint8_t root[16], user[16], other[16];

	(void)state;
	pool_domain(a, 0, root);
	pool_domain(a, 1000, user);
	pool_domain(b, 1000, other);
	assert_memory_not_equal(root, user, 16);
	assert_memory_not_equal(user, other, 16);
	pool_domain(a, 1000, other);
	assert_memory_equal(user, other, 16);
	pool_free(a);
	pool_free(b);
}

static void sealed_record_says_what_the_page_holds(void **state)
{
	const uint8_t domain[16] = {3}, parent[16] = {4};
	struct pool *p = new_pool(2, 1);
	const struct page_record *records = map_records(p), *rec;
	uint32_t ids[PAGE_TOKENS];
	uint8_t chain[16], want[16];
	page_id page;

	(void)state;
	for (uint32_t i = 0; i < PAGE_TOKENS; i++)
		ids[i] = 100 + i;
	assert_int_equal(pool_take_page(p, domain, &page), 0);
	rec = &records[page];
	assert_int_equal(rec->state, PAGE_OPEN);
	assert_int_equal(rec->generation % 2, 0);
	memcpy(chain, parent, 16);
	pool_seal_page(p, page, chain, 128, ids, 150, chain); /* in place, as sequences do it */
	pool_chain(p, parent, ids, PAGE_TOKENS, want);
	assert_memory_equal(chain, want, 16);
	assert_int_equal(rec->magic, PAGE_RECORD_MAGIC);
	assert_int_equal(rec->state, PAGE_SEALED);
	assert_int_equal(rec->generation % 2, 0);
	assert_int_equal(rec->flags, PAGE_FLAG_GENERATED);
	assert_int_equal(rec->n_prompt, 150);
	assert_int_equal(rec->page, page);
	assert_int_equal(rec->first_pos, 128);
	assert_int_equal(rec->n_tokens, PAGE_TOKENS);
	assert_memory_equal(rec->domain, domain, 16);
	assert_memory_equal(rec->parent, parent, 16);
	assert_memory_equal(rec->chain, chain, 16);
	assert_memory_equal(rec->ids, ids, sizeof(ids));
	assert_int_equal(rec->model[0], 9);
	pool_unref_page(p, page);
	assert_int_equal(rec->state, PAGE_SEALED); /* cached */
	assert_int_equal(pool_drop_cached(p, NULL), 1);
	assert_int_equal(rec->state, PAGE_FREE);
	for (uint32_t i = 0; i < PAGE_TOKENS; i++) /* nobody's words stay behind */
		assert_int_equal(rec->ids[i], 0);
	unmap_records(p, records);
	pool_free(p);
}

struct model {
	uint32_t refs[24], n_available;
	uint64_t sealed_at
		[24]; /* operation that sealed the page: its first id; 0: it is not sealed */
	uint8_t domains[3][16], owner[24];
};

static void random_take(struct pool *p, struct model *m, uint32_t uid)
{
	page_id page = PAGE_NONE;
	int r = pool_take_page(p, m->domains[uid], &page);

	assert_int_equal(r, m->n_available ? 0 : -EAGAIN);
	if (r < 0)
		return;
	assert_int_equal(m->refs[page], 0);
	m->refs[page] = 1;
	m->sealed_at[page] = 0;
	m->owner[page] = (uint8_t)uid;
	m->n_available--;
}

/* What was sealed is found by its owner alone, for as long as nobody took its page. */
static void random_find(struct pool *p, struct model *m, page_id page, uint32_t uid)
{
	const uint32_t ids[PAGE_TOKENS] = {(uint32_t)m->sealed_at[page]};
	const uint8_t *domain = m->domains[uid];
	bool want = m->sealed_at[page] && m->owner[page] == uid;
	uint8_t chain[16];
	page_id found;

	if (!m->sealed_at[page] || m->refs[page] > 3)
		return;
	found = pool_find_page(p, domain, m->domains[m->owner[page]], 0, ids, 64, false, chain);
	assert_int_equal(found, want ? page : PAGE_NONE);
	if (want)
		m->n_available -= m->refs[page]++ == 0;
}

static void random_operations_keep_every_invariant(void **state)
{
	enum { N_OPS = 100000 };
	struct pool *p = new_pool(24, 1);
	const struct page_record *records = map_records(p);
	struct model m = {.n_available = 24};
	uint32_t seed = 1;
	struct error err = {};
	uint8_t chain[16];

	(void)state;
	for (uid_t u = 0; u < 3; u++)
		pool_domain(p, u, m.domains[u]);
	for (uint32_t op = 1; op <= N_OPS; op++) {
		const uint32_t ids[PAGE_TOKENS] = {op};
		page_id page;
		uint32_t x;

		seed = seed * 1664525 + 1013904223;
		x = seed >> 8;
		page = x / 8 % 24;
		switch (x % 8) {
		case 0:
		case 1:
			random_take(p, &m, x / 8 % 3);
			break;
		case 2:
			if (m.refs[page] && m.refs[page] < 4) {
				pool_ref_page(p, page);
				m.refs[page]++;
			}
			break;
		case 3:
			if (m.refs[page] && !m.sealed_at[page]) {
				pool_seal_page(p, page, m.domains[m.owner[page]], 0, ids, 64,
					       chain);
				m.sealed_at[page] = op;
			}
			break;
		case 4:
			random_find(p, &m, page, x / 256 % 3);
			break;
		case 5:
			if (x / 256 % 100 == 0) {
				pool_drop_cached(p, m.domains[0]);
				for (page_id i = 0; i < 24; i++)
					if (!m.refs[i] && m.owner[i] == 0)
						m.sealed_at[i] = 0;
			}
			break;
		default:
			if (m.refs[page]) {
				pool_unref_page(p, page);
				m.n_available += --m.refs[page] == 0;
			}
		}
		if (pool_check(p, &err) < 0)
			fail_msg("after operation %u: %s", op, err.text);
		assert_int_equal(pool_n_available(p), m.n_available);
		assert_int_equal(records[page].generation % 2, 0);
		if (m.refs[page]) {
			assert_int_equal(records[page].state,
					 m.sealed_at[page] ? PAGE_SEALED : PAGE_OPEN);
			assert_memory_equal(records[page].domain, m.domains[m.owner[page]], 16);
		}
	}
	unmap_records(p, records);
	pool_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pool_of_no_pages_is_refused),
		cmocka_unit_test(data_is_sealed_in_size_and_stays_writable),
		cmocka_unit_test(pages_run_out_and_come_back),
		cmocka_unit_test(page_is_zeroed_when_its_domain_changes_and_only_then),
		cmocka_unit_test(chain_differs_by_parent_ids_and_key),
		cmocka_unit_test(domain_differs_by_uid_and_key),
		cmocka_unit_test(sealed_record_says_what_the_page_holds),
		cmocka_unit_test(random_operations_keep_every_invariant),
	};

	if (hash_init() < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
