#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's end of a channel (layout/channel.h): makes the memfd, fills slots, posts steps, takes
 * results. What a result says is checked here; nothing of it is believed before. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "layout/channel.h"

struct error;
struct io;

struct channel;

int channel_new(struct channel **ret, struct io *io, uint32_t n_slots, uint32_t max_rows,
		uint32_t max_tokens, struct error *err);
struct channel *channel_free(struct channel *c);
DEFINE_CLEANUP(struct channel *, channel_free);

const struct channel_shape *channel_get_shape(const struct channel *c);
/* Descriptors for the worker and the loop; they stay the channel's. */
int channel_fd(const struct channel *c);
int channel_wake_fd(const struct channel *c); /* the worker's: readable when steps were posted */
int channel_result_eventfd(const struct channel *c); /* readable: take results */

/** channel_clear_result() - the eventfd was seen; before results are taken. */
void channel_clear_result(struct channel *c);

/** channel_begin_slot() - a sequence moves into @slot; the broker fills in params and ids. */
struct channel_slot *channel_begin_slot(struct channel *c, uint32_t slot);
/** channel_peek_slot() - the slot of a running sequence, whose ids and pages may be appended to. */
struct channel_slot *channel_peek_slot(struct channel *c, uint32_t slot);
/** channel_end_slot() - the slot is complete; workers may read it from the next step on. */
void channel_end_slot(struct channel *c, uint32_t slot);

/**
 * channel_begin_step() - room for a step's rows
 * Return: the rows [shape.max_rows]; NULL while CHANNEL_DEPTH steps wait for their results.
 */
struct channel_row *channel_begin_step(struct channel *c);
/** channel_post_step() - @n_rows are written: publish and wake the worker. Return: step number. */
uint64_t channel_post_step(struct channel *c, uint32_t n_rows);
/** channel_in_flight() - steps posted whose result was not taken. */
uint32_t channel_in_flight(const struct channel *c);
/** channel_progress() - moves with every result that was taken and, by the worker's word, between. */
uint32_t channel_progress(const struct channel *c);

/* A result that was copied out and checked; valid until the next call. */
struct channel_reply {
	uint64_t seq, usec;
	enum channel_status status;
	uint32_t n_rows;
	const struct channel_result_row *rows;
};
/**
 * channel_take_result() - the next result, if there is one
 * @n_vocab: ids must be below it
 *
 * Return: 1 with @ret filled, 0 where none is there, -EBADMSG with a sentence: the worker wrote what
 *         cannot be; it must go.
 */
int channel_take_result(struct channel *c, uint32_t n_vocab, struct channel_reply *ret,
			struct error *err);
