#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The live screen of top: what one look found, drawn over the last. */
#include <stdbool.h>
#include <stddef.h>

#include "rates.h"
#include "requests.h"

/* One look. */
struct view {
	const struct dsc_stats_reply *stats;
	double broker;             /* as rates_of_broker() */
	const struct rates *rates; /* of each model */
	const struct requests *requests;
	bool all; /* requests are everybody's */
};

struct screen;

/**
 * screen_new() - take the terminal over
 *
 * Return: 0, -ENOTTY: it cannot be drawn on.
 */
int screen_new(struct screen **ret);
/** screen_free() - the terminal is as it was before; NULL is fine. */
struct screen *screen_free(struct screen *s);
/** screen_draw() - show a view; what does not fit is left out, from the bottom. */
void screen_draw(struct screen *s, const struct view *v);
/** screen_key() - a key that was typed; 0: none. A terminal that changed its size is noticed here. */
int screen_key(struct screen *s);

/**
 * screen_bar() - a bar of n cells, each with the mark of the part that it falls into
 * @parts: n_parts of them, drawn from the left; their sum is the whole bar
 * @marks: one for each part
 * @ret:   n + 1 bytes
 */
void screen_bar(const uint32_t *parts, const char *marks, size_t n_parts, char *ret, size_t n);
