#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Published prefixes: pages that an administrator made everybody's. Only the scheduler includes this.
 * Their domain is a MAC of the name, so no user's own pages can be taken for them. */
#include <stdint.h>

struct published;
struct sched;
struct seq;

/** published_new() - an entry for what @q computes; -EINVAL: a bad name; -ENOMEM. */
int published_new(struct published **ret, const struct seq *q, const char *name);
struct published *published_free(struct sched *s, struct published *p); /* gives its pages back */
/** published_keep() - @q has computed its prompt: its sealed pages become the entry's. -ENOSPC, -ENOMEM. */
int published_keep(struct seq *q);
/** published_find() - the entry that @q begins with the furthest; *ret_n: whole pages of it. */
const struct published *published_find(const struct sched *s, const struct seq *q, uint32_t *ret_n);
