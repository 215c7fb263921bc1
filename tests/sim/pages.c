/* SPDX-License-Identifier: Apache-2.0 */
/* What every page holds, as the world saw it written: whose rows, computed on which path. The fake model
 * says the same on both paths and cannot see what a page held before; a page that comes with another
 * user's text still in it, or with rows that another path computed, shows here. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "layout/page.h"
#include "sim.h"
#include "worker/engine.h"

enum path {
	PATH_NONE,
	PATH_PROMPT,
	PATH_GENERATED,
	PATH_MIXED /* on top of rows of another path, which its request allowed */
};

struct page_seen {
	uint8_t domain[16]; /* zero: never written */
	uint8_t path[PAGE_TOKENS];
};

struct pages {
	struct pages *next;
	uint64_t pool;
	uint32_t n_pages;
	uint64_t stride;
	struct page_seen seen[];
};

struct pages *pages_of(struct sim *s, uint64_t pool, uint32_t n_pages, uint64_t stride)
{
	struct pages *p = s->pages;

	while (p && p->pool != pool)
		p = p->next;
	if (!p) {
		p = calloc(1, sizeof(*p) + n_pages * sizeof(p->seen[0]));
		assert(p);
		*p = (struct pages){
			.next = s->pages, .pool = pool, .n_pages = n_pages, .stride = stride};
		s->pages = p;
	}
	if (p->n_pages != n_pages)
		sim_broken(s, "a pool of %u pages, then one of %u", p->n_pages, n_pages);
	return p;
}

void pages_free(struct sim *s)
{
	struct pages *p;

	while ((p = s->pages)) {
		s->pages = p->next;
		free(p);
	}
}

static bool is_zero(const uint8_t *p, size_t n)
{
	return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

/* Whether a row that it finds was computed on another path than it would take itself. */
static bool stands_on_another(const struct pages *p, const struct engine_sequence *q,
			      uint32_t n_found)
{
	for (uint32_t i = 0; i < n_found; i++) {
		enum path want = i < q->params->n_prompt ? PATH_PROMPT : PATH_GENERATED;

		if (p->seen[q->pages[i / PAGE_TOKENS]].path[i % PAGE_TOKENS] != want)
			return true;
	}
	return false;
}

/* What it finds in place of computing it. */
static void check_found(struct sim *s, const struct pages *p, const struct engine_sequence *q,
			uint32_t n_found)
{
	for (uint32_t i = 0; i < n_found; i++) {
		const struct page_seen *page = &p->seen[q->pages[i / PAGE_TOKENS]];
		bool shared = i < q->n_shared;
		enum path want = i < q->params->n_prompt ? PATH_PROMPT : PATH_GENERATED;

		if (memcmp(page->domain, shared ? q->shared_domain : q->domain, 16) != 0) {
			sim_broken(s, "slot %u: page %u of position %u is another one's", q->slot,
				   q->pages[i / PAGE_TOKENS], i);
			return;
		}
		if (page->path[i % PAGE_TOKENS] == want)
			continue;
		if (q->params->top_k != SIM_ANY_PATH) {
			sim_broken(s, "slot %u: position %u was computed on path %u, want %u",
				   q->slot, i, page->path[i % PAGE_TOKENS], want);
			return;
		}
	}
	s->count.acts[ACT_FIND_SHARED] += q->n_shared > 0;
}

static void check_row(struct sim *s, const struct pages *p, const struct engine_sequence *q,
		      uint32_t position, bool generated, const uint8_t *pool)
{
	page_id id = q->pages[position / PAGE_TOKENS];
	const struct page_seen *page = &p->seen[id];

	if (position < q->n_shared)
		sim_broken(s, "slot %u: position %u of a published prefix is written", q->slot,
			   position);
	if (generated != (position >= q->params->n_prompt))
		sim_broken(s, "slot %u: position %u of a prompt of %u tokens on the wrong path",
			   q->slot, position, q->params->n_prompt);
	if (memcmp(page->domain, q->domain, 16) != 0 &&
	    (position % PAGE_TOKENS != 0 || !is_zero(pool + id * p->stride, p->stride)))
		sim_broken(s, "slot %u: page %u comes with what another one left in it", q->slot,
			   id);
}

static void note_row(struct pages *p, const struct slot_seen *slot, const struct engine_sequence *q,
		     uint32_t position, bool generated)
{
	struct page_seen *page = &p->seen[q->pages[position / PAGE_TOKENS]];
	enum path path = generated ? PATH_GENERATED : PATH_PROMPT;

	if (memcmp(page->domain, q->domain, 16) != 0) {
		*page = (struct page_seen){};
		memcpy(page->domain, q->domain, 16);
	}
	page->path[position % PAGE_TOKENS] = slot->mixed ? PATH_MIXED : path;
}

void pages_on_step(struct sim *s, struct pages *p, struct slot_seen *slots,
		   const struct engine_step *step, const uint8_t *pool, bool excused)
{
	const struct k_segment *g = step->k.segments;

	for (uint32_t i = 0; i < step->n_sequences; i++) {
		const struct engine_sequence *q = &step->sequences[i];
		struct slot_seen *slot = &slots[q->slot];

		if (slot->generation != q->generation) {
			uint32_t n_found = step->k.positions[q->first_row];

			if (!excused)
				check_found(s, p, q, n_found);
			slot->mixed = stands_on_another(p, q, n_found);
			slot->generation = q->generation;
		}
		for (uint32_t k = q->first_row; k < q->first_row + q->n_rows; k++) {
			while (k >= g->first_row + g->n_rows)
				g++;
			if (!excused)
				check_row(s, p, q, step->k.positions[k], g->generated, pool);
			note_row(p, slot, q, step->k.positions[k], g->generated);
		}
	}
}
