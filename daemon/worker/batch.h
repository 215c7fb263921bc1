#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* From a step in shared memory to a checked one in private memory.
 *
 * Everything is copied once and the copy is checked: after batch_read() no id, page, position or
 * parameter of the step needs another look. What is kept between steps (the ids seen, the last
 * sample of a slot) can all be rebuilt from the slots. Thread: the worker's one loop. */
#include <stdint.h>

#include "base/cleanup.h"
#include "worker/engine.h"

struct batch;
struct error;

/** batch_new() - for steps in a channel of @shape over @n_pages pages. Return: 0 or -ENOMEM. */
int batch_new(struct batch **ret, const struct channel_shape *shape, uint32_t n_vocab,
	      uint32_t n_pages);
struct batch *batch_free(struct batch *b);
DEFINE_CLEANUP(struct batch *, batch_free);

/**
 * batch_read() - copy entry @i of the step ring at @channel, and what it needs of the slots
 * @ret: valid until the next batch_read(); its seq is set even on failure
 *
 * Return: 0; -EBADMSG with a sentence where the step contradicts itself, the slots or the limits.
 */
int batch_read(struct batch *b, void *channel, uint32_t i, struct engine_step *ret,
	       struct error *err);

/** batch_note_sample() - what CHANNEL_FROM_LAST_SAMPLE means for @slot from now on. */
void batch_note_sample(struct batch *b, uint32_t slot, uint32_t position, uint32_t id);
