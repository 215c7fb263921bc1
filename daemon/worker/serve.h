#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's loop: steps out of the channel, through the engine, results into it. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout/channel.h"
#include "layout/page.h"

struct control_in;
struct engine;
struct error;

/* Everything mapped from a CONTROL_CHANNEL message. */
struct serve {
	int wake, result_event;
	void *channel;
	size_t channel_bytes;
	uint8_t *pool;
	size_t pool_bytes;
	uint32_t n_pages;
	struct channel_shape shape;
};
#define SERVE_NULL ((struct serve){.wake = -EBADF, .result_event = -EBADF})

/**
 * serve_open() - check and map what a CONTROL_CHANNEL message brought
 * @in: its descriptors are taken
 *
 * The channel must be sealed against SHRINK and GROW, be exactly as long as its shape says and hold
 * that shape; the pool must be sealed alike and hold its number of pages. So no access to either
 * can fault later.
 *
 * Return: 0; -EBADMSG for anything else.
 */
int serve_open(struct serve *s, struct control_in *in, const struct engine *engine,
	       struct error *err);
void serve_done(struct serve *s);
/** serve_progress() - what the broker watches; good until serve_done(). */
_Atomic uint32_t *serve_progress(const struct serve *s);

/**
 * serve_run() - answer steps until the control socket ends
 * @spin: between steps, for a moment, before sleeping
 *
 * Return: 0 when the broker has gone; -EBADMSG where it broke the rings; what the engine could not
 *         survive.  Thread: blocks this one.
 */
int serve_run(struct serve *s, int control_fd, bool spin, struct engine *engine, struct error *err);
