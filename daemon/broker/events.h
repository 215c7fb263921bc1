#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Result rows as the wire's log-probabilities. */
#include "layout/channel.h"
#include "broker/proto.h"

/* On the stack of whoever packs a frame; points into itself: must not move. */
struct event_logprob {
	Dsd__TokenLogprob token;
	Dsd__TopLogprob top[CHANNEL_TOP_MAX];
	Dsd__TopLogprob *list[CHANNEL_TOP_MAX];
};

/** event_logprob_init() - @id with the row's numbers; @row NULL: the first token of a text. */
static inline void event_logprob_init(struct event_logprob *e, uint32_t id,
				      const struct channel_result_row *row)
{
	e->token = (Dsd__TokenLogprob)DSD__TOKEN_LOGPROB__INIT;
	e->token.id = id;
	if (!row)
		return;
	e->token.has_logprob = 1;
	e->token.logprob = row->logprob;
	e->token.n_top = row->n_top;
	e->token.top = e->list;
	for (uint32_t i = 0; i < row->n_top; i++) {
		e->top[i] = (Dsd__TopLogprob)DSD__TOP_LOGPROB__INIT;
		e->top[i].id = row->top[i].id;
		e->top[i].logprob = row->top[i].logprob;
		e->list[i] = &e->top[i];
	}
}
