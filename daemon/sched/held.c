/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/held.h"

#include <errno.h>
#include <stdlib.h>

#include "base/io.h"
#include "pool/pool.h"
#include "sched/seq.h"

int held_take(struct sched *s, struct held *ret, const page_id *pages, uint32_t n)
{
	struct held h = {.pages = io_alloc(s->cfg.io, (n + 1) * sizeof(*h.pages))};

	if (!h.pages)
		return -ENOMEM;
	for (; h.n < n; h.n++)
		h.pages[h.n] = pool_ref_indexed(s->cfg.pool, pages[h.n]);
	*ret = h;
	return 0;
}

void held_drop(struct sched *s, struct held *h)
{
	/* From the end: what a prefix ends with is colder than what it begins with. */
	for (uint32_t i = h->n; i-- > 0;)
		pool_unref_page(s->cfg.pool, h->pages[i]);
	free(h->pages);
	*h = (struct held){};
}
