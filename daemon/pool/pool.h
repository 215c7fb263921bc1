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

/* When a page's tag is checked, besides the first use of an adopted one. */
enum pool_verify {
	POOL_VERIFY_ADOPTED, /* never: pages of this life are trusted */
	POOL_VERIFY_ALWAYS,  /* whenever a cached page is attached that has one; for tests */
	_POOL_VERIFY_MAX
};

struct pool_config {
	struct io *io; /* must outlive the pool */
	struct page_geometry geometry;
	enum page_entry entry;
	uint32_t n_pages;
	uint32_t n_vocab;            /* every id is below it */
	uint8_t model[32];           /* digest */
	uint8_t boot_id[16];         /* a pool of another boot is not adopted */
	uint8_t key[HASH_KEY_BYTES]; /* for domains, chains, tags and the header */
	enum pool_verify verify;
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

/**
 * pool_adopt() - go on with the memfds of a pool that another life of the daemon made
 * @cfg:     as for pool_new(); size, geometry, model, boot and key must be those of the other life
 * @data_fd: both become the pool's on success, and stay the caller's on failure
 *
 * Both are hostile input: kind, seals, size, header and its MAC are checked, then each record. Records
 * that the pool could have written become cached candidates: their tag (record and content) is
 * checked when they are first found. Everything else is scrubbed and free. A prefix's first pages are
 * warmer than its last ones.
 *
 * Each adoption counts as an attempt until pool_settled() is called; after POOL_ATTEMPTS_MAX of them
 * the pool is taken for what kills its daemon.
 *
 * Return: 0. -EBADMSG, -EINVAL: not a pool of this configuration; -ESTALE: too many attempts; other
 *         -errno. Each with a sentence; the caller makes a new pool.
 * Time: linear in the pages; no content is read.
 */
#define POOL_ATTEMPTS_MAX 2u
int pool_adopt(struct pool **ret, const struct pool_config *cfg, int data_fd, int meta_fd,
	       struct error *err);
/** pool_settled() - this life has gone well for a minute, or ends as asked: attempts start anew. */
void pool_settled(struct pool *p);

int pool_meta_fd(const struct pool *p); /* for the descriptor store alone */
int pool_data_fd(const struct pool *p); /* for the worker; stays the pool's */
const struct page_geometry *pool_geometry(const struct pool *p);
uint32_t pool_n_pages(const struct pool *p);
uint32_t pool_n_free(const struct pool *p);      /* never used, or scrubbed from the index */
uint32_t pool_n_cached(const struct pool *p);    /* sealed, without references, in the index */
uint32_t pool_n_available(const struct pool *p); /* what pool_take_page() can give: both together */

/** pool_n_refs() - references of all pages. Time: linear; for checks. */
uint64_t pool_n_refs(const struct pool *p);
/** pool_page_refs() - of one page; for checks. */
uint32_t pool_page_refs(const struct pool *p, page_id page);

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
/**
 * pool_ref_indexed() - one more reference to what the index finds for a sealed page that has one: itself,
 * or another with the same rows that was there first. Return: which.
 */
page_id pool_ref_indexed(struct pool *p, page_id page);
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

/**
 * pool_tag_next() - start making the tag of one sealed page, if one is due and none is under way
 * @tag: of the IO_WORK event, at which pool_tag_done() is called; not if the pool was freed meanwhile
 *
 * A page without its tag serves this life as any other; only an adopter cannot use it.
 * Return: whether one was started. Where the work cannot be queued it stays due.
 */
bool pool_tag_next(struct pool *p, uint64_t tag);
/** pool_tag_done() - the event came: write the tag, unless the page was taken meanwhile. */
void pool_tag_done(struct pool *p);
bool pool_tag_busy(const struct pool *p); /* an event is still to come */

/* Counts of this life. */
struct pool_stats {
	uint64_t adopted;    /* records that became candidates */
	uint64_t refused;    /* records in use that did not */
	uint64_t tagged;     /* pages whose tag was made */
	uint64_t verified;   /* tags checked and right */
	uint64_t mismatched; /* and wrong: the page was dropped */
};
void pool_get_stats(const struct pool *p, struct pool_stats *ret);

/** pool_drop_cached() - forget cached pages, of @domain or (NULL) all. Return: how many. */
uint32_t pool_drop_cached(struct pool *p, const uint8_t *domain);

/** pool_check() - every invariant of README.md; -EBADF and a sentence names the first broken one. */
int pool_check(const struct pool *p, struct error *err);
