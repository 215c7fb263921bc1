#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Latent-cache pool of one model: equal pages in a sealed memfd, refcounted. Rules: README.md.
 * Thread: broker. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "layout/page.h"

struct error;
struct io;

struct pool_config {
	struct io *io; /* must outlive the pool */
	struct page_geometry geometry;
	enum page_entry entry;
	uint32_t n_pages;
	uint8_t model[32];            /* digest */
	uint8_t key[HASH_KEY_BYTES];  /* for domains and chains */
};

struct pool;

/**
 * pool_new() - make both memfds and map them
 * Return: 0; -EINVAL: no pages or more than memory can name; -errno with a sentence.
 */
int pool_new(struct pool **ret, const struct pool_config *cfg, struct error *err);
struct pool *pool_free(struct pool *p);
DEFINE_CLEANUP(struct pool *, pool_free);

int pool_data_fd(const struct pool *p); /* for the worker; stays the pool's */
const struct page_geometry *pool_geometry(const struct pool *p);
uint32_t pool_n_pages(const struct pool *p);
uint32_t pool_n_free(const struct pool *p);

/** pool_domain() - the domain of a user's pages: a MAC of the kernel-attested uid. */
void pool_domain(const struct pool *p, uid_t uid, uint8_t ret[16]);
/** pool_chain() - MAC(parent, ids): names the whole prefix that ends with these ids. */
void pool_chain(const struct pool *p, const uint8_t parent[16], const uint32_t *ids, uint32_t n,
		uint8_t ret[16]);

/**
 * pool_take_page() - a free page for @domain, OPEN, with one reference
 * Zeroed if its last owner was of another domain.
 * Return: 0. -EAGAIN: none is free.
 */
int pool_take_page(struct pool *p, const uint8_t domain[16], page_id *ret);
void pool_ref_page(struct pool *p, page_id page);
void pool_unref_page(struct pool *p, page_id page);

/**
 * pool_seal_page() - a page's 64 rows are computed: write its record
 * @parent:    chain of the page before (zeros for the first)
 * @generated: it has rows of the generated path
 * @ret_chain: this page's chain
 */
void pool_seal_page(struct pool *p, page_id page, const uint8_t parent[16], uint32_t first_pos,
		    const uint32_t ids[PAGE_TOKENS], bool generated, uint8_t ret_chain[16]);

/** pool_check() - every invariant of README.md; -EBADF and a sentence names the first broken one. */
int pool_check(const struct pool *p, struct error *err);
