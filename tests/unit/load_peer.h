#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's side of a worker, for tests: starts one, gives it a channel and a pool, queues steps. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "layout/channel.h"
#include "layout/image.h"
#include "layout/page.h"

struct peer {
	pid_t pid;
	int control;
	int step_event, result_event;
	uint8_t *channel, *pool;
	struct channel_shape shape;
	struct page_geometry geometry;
	struct image image;
	void *image_data;
	uint32_t n_pages;
	uint32_t n_steps, n_results;  /* produced, consumed */
	struct channel_result result; /* of the last step, and its rows */
	struct channel_result_row rows[64];
	char failed[CONTROL_TEXT_MAX]; /* sentence of a worker that gave up */
};

/** peer_start() - fork and exec @worker, `--fake` where @dir is NULL; else send the files of @dir */
void peer_start(struct peer *p, const char *worker, const char *dir,
		const struct control_msg *load);
/** peer_await_image() - Return: false where the worker answered FAILED (p->failed). */
bool peer_await_image(struct peer *p);
/** peer_open() - channel and pool; waits for READY. */
void peer_open(struct peer *p, uint32_t n_slots, uint32_t max_rows, uint32_t max_tokens,
	       uint32_t n_pages);
/** peer_stop() - close the socket; Return: exit status of the worker as from waitpid(). */
int peer_stop(struct peer *p);

/** peer_slot() - a new sequence in @slot, greedy, with block table pages[0 .. n_pages). */
struct channel_params *peer_slot(struct peer *p, uint32_t slot, const uint32_t *pages,
				 uint32_t n_pages, const uint32_t *ids, uint32_t n_ids);
void peer_slot_done(struct peer *p, uint32_t slot); /* parameters are complete */
/** peer_queue() - publish a step, not waiting; peer_take() - wait for the next result. */
void peer_queue(struct peer *p, const struct channel_row *rows, uint32_t n);
void peer_take(struct peer *p);
void peer_step(struct peer *p, const struct channel_row *rows, uint32_t n);
