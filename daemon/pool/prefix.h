#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The prefix index: sealed pages by chain, and those without references from cold to warm. Only pool.c
 * includes this. Pages are named by records, which the pool has written; nothing is stored twice. */
#include <stdbool.h>
#include <stdint.h>

#include "layout/page.h"

struct io;
struct prefix;

int prefix_new(struct prefix **ret, struct io *io, uint32_t n_pages,
	       const struct page_record *records);
struct prefix *prefix_free(struct prefix *x);

/* What a page must be to be found. */
struct prefix_key {
	uint8_t chain[16];
	const uint8_t *domain;
	uint32_t first_pos;
	const uint32_t *ids;
	uint32_t n_prompt; /* 0: prompt rows alone; else generated rows must be of this n_prompt */
	bool any_path;     /* how rows were computed does not matter */
};

/** prefix_add() - a page that was sealed just now; one that says the same as another stays out. */
void prefix_add(struct prefix *x, page_id page);
bool prefix_holds(const struct prefix *x, page_id page);
page_id prefix_find(const struct prefix *x, const struct prefix_key *key);
/** prefix_find_twin() - what is found for the rows of a sealed page: itself or another; PAGE_NONE. */
page_id prefix_find_twin(const struct prefix *x, page_id page);
/** prefix_retire() - its last reference is gone: cached, as the warmest or the coldest. */
void prefix_retire(struct prefix *x, page_id page, bool cold);
/** prefix_revive() - a cached page has a reference again. */
void prefix_revive(struct prefix *x, page_id page);
/** prefix_remove() - a page leaves the index, cached or referenced. */
void prefix_remove(struct prefix *x, page_id page);

uint32_t prefix_n_cached(const struct prefix *x);
/** prefix_coldest() - one of @domain among the @sweep coldest, else the coldest; PAGE_NONE: none. */
page_id prefix_coldest(const struct prefix *x, const uint8_t domain[16], uint32_t sweep);
/** prefix_coldest_of() - the coldest of @domain (NULL: of any). Time: linear in what is cached. */
page_id prefix_coldest_of(const struct prefix *x, const uint8_t *domain);
