#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a worker that has work still moves: results taken, steps and layers by its own count, words
 * about a load. One that does not for worker.stall_seconds is killed, and its death does the rest; a
 * loading one is silent while it parses and has a minute. One without work may sleep. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

struct model;

struct watch {
	uint32_t n_words;   /* control messages of this worker */
	uint32_t seen;      /* what it had done at the last look */
	uint32_t still;     /* looks in a row that found no more */
	uint64_t look_usec; /* when to look next; 0: it has no work */
};

/** watch_start() - there is a new worker. */
void watch_start(struct model *m);
/** watch_kick() - it has work now, perhaps. */
void watch_kick(struct model *m);
/** watch_on_tick() - Return: when to look again, UINT64_MAX: it has no work. */
uint64_t watch_on_tick(struct model *m, uint64_t now);
