#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that are kept without a sequence: one reference each, so that nothing evicts them. Published
 * prefixes and sessions keep theirs so. Only the scheduler includes this. */
#include <stdint.h>

#include "layout/page.h"

struct sched;

struct held {
	page_id *pages;
	uint32_t n;
};

/** held_take() - the first @n of sealed @pages, as the index finds them. Return: 0, -ENOMEM. */
int held_take(struct sched *s, struct held *ret, const page_id *pages, uint32_t n);
/** held_drop() - gives the references back; the pages stay in the index, as warm ones. */
void held_drop(struct sched *s, struct held *h);
