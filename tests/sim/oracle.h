#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the fake model (daemon/worker/fake.c) says, computed from domain, ids and parameters alone: no
 * pages, no slots, no steps. */
#include <stdbool.h>
#include <stdint.h>

#include "layout/channel.h"

struct oracle {
	uint64_t lo, hi; /* the chain after the ids so far */
	uint32_t position;
};

void oracle_init(struct oracle *o, const uint8_t domain[16]);
void oracle_push(struct oracle *o, uint32_t id);
/** oracle_next() - the id that comes after the ids so far. */
uint32_t oracle_next(const struct oracle *o, const struct channel_params *p);
/** oracle_logprob() - of @id after the ids so far. */
float oracle_logprob(const struct oracle *o, uint32_t id);
