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
	uint8_t model[32];           /* digest */
	uint8_t key[HASH_KEY_BYTES]; /* for domains and chains */
};

struct pool;

/**
 * pool_new() - make both memfds and map them
 * Return: 0; -EINVAL: no pages or more than memory can name; -errno with a sentence.
 */
int pool_new(struct pool **ret, const struct pool_config *cfg, struct error *err);
/** pool_share() - the same pool for one user more; each calls pool_free(). */
struct pool *pool_share(struct pool *p);
uint32_t pool_n_users(const struct pool *p);
struct pool *pool_free(struct pool *p);
DEFINE_CLEANUP(struct pool *, pool_free);

int pool_data_fd(const struct pool *p); /* for the worker; stays the pool's */
const struct page_geometry *pool_geometry(const struct pool *p);
uint32_t pool_n_pages(const struct pool *p);
uint32_t pool_n_free(const struct pool *p);      /* never used, or scrubbed from the index */
uint32_t pool_n_cached(const struct pool *p);    /* sealed, without references, in the index */
uint32_t pool_n_available(const struct pool *p); /* what pool_take_page() can give: both together */

/** pool_n_refs() - references of all pages. Time: linear; for checks. */
uint64_t pool_n_refs(const struct pool *p);

/** pool_domain() - the domain of a user's pages: a MAC of the kernel-attested uid. */
void pool_domain(const struct pool *p, uid_t uid, uint8_t ret[16]);
/** pool_name_domain() - the domain of a published prefix. */
void pool_name_domain(const struct pool *p, const char *name, uint8_t ret[16]);
/** pool_page_chain() - of a sealed page. */
const uint8_t *pool_page_chain(const struct pool *p, page_id page);
/** pool_chain() - MAC(parent, ids): names the whole prefix that ends with these ids. */
void pool_chain(const struct pool *p, const uint8_t parent[16], const uint32_t *ids, uint32_t n,
		uint8_t ret[16]);

/**
 * pool_take_page() - a page for @domain, OPEN, with one reference
 *
 * A free page, else a cached one: one of the same domain if it is among the coldest POOL_SWEEP, else
 * the coldest. Zeroed if its last owner was of another domain.
 * Return: 0. -EAGAIN: every page has a reference.
 */
#define POOL_SWEEP 64u
int pool_take_page(struct pool *p, const uint8_t domain[16], page_id *ret);
void pool_ref_page(struct pool *p, page_id page);
/** pool_unref_page() - the last reference makes a sealed page cached, the warmest; others free. */
void pool_unref_page(struct pool *p, page_id page);
/** pool_unref_page_cold() - the same, but the coldest: pages that should not drive out others. */
void pool_unref_page_cold(struct pool *p, page_id page);

/**
 * pool_seal_page() - a page's 64 rows are computed: write its record and put it into the index
 * @parent:    chain of the page before (the domain for the first)
 * @n_prompt:  of its sequence; the page is GENERATED if it reaches past it
 * @ret_chain: this page's chain; may be @parent
 */
void pool_seal_page(struct pool *p, page_id page, const uint8_t parent[16], uint32_t first_pos,
		    const uint32_t ids[PAGE_TOKENS], uint32_t n_prompt, uint8_t ret_chain[16]);

/**
 * pool_find_page() - the sealed page that holds these rows, with one more reference
 * @domain:    whose; a page of another domain is never found
 * @parent:    chain of the page before (the domain for the first)
 * @n_prompt:  of the sequence that asks: a page with generated rows serves it only if they were
 *             computed for the same n_prompt (a resume), or with @any_path
 * @ret_chain: the page's chain, also where it is not found; may be @parent
 *
 * Chain, domain, position and all ids are compared.
 * Return: the page, or PAGE_NONE.
 */
page_id pool_find_page(struct pool *p, const uint8_t domain[16], const uint8_t parent[16],
		       uint32_t first_pos, const uint32_t ids[PAGE_TOKENS], uint32_t n_prompt,
		       bool any_path, uint8_t ret_chain[16]);

/** pool_drop_cached() - forget cached pages, of @domain or (NULL) all. Return: how many. */
uint32_t pool_drop_cached(struct pool *p, const uint8_t *domain);

/** pool_check() - every invariant of README.md; -EBADF and a sentence names the first broken one. */
int pool_check(const struct pool *p, struct error *err);
