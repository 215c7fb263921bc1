#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What counters say: two looks at them say how fast, one how full. */
#include <stdint.h>
#include <dsclient.h>

/* Between two looks. */
struct rates {
	double generated, prompt,
		cached;  /* tokens a second: drawn; of prompts: computed, found in the pool */
	double steps;    /* a second */
	double rows;     /* of a step; 0: there was none */
	double hit_rate; /* as hit_rate() */
	double worker;   /* of the time, spent in the worker's steps: 0 to 1 */
};

/**
 * rates_of_model() - what a model did between two looks
 * @before:  NULL: since the daemon began
 * @seconds: between them, > 0
 *
 * A counter that went back was begun anew by another daemon.
 */
struct rates rates_of_model(const struct dsc_model_stats *now, const struct dsc_model_stats *before,
			    double seconds);
/** rates_of_broker() - processors that the broker kept busy between two looks. */
double rates_of_broker(const struct dsc_stats_reply *now, const struct dsc_stats_reply *before,
		       double seconds);
/** hit_rate() - of the prompts' tokens, those found in the pool: 0 to 1; negative: there were no prompts. */
double hit_rate(uint64_t computed, uint64_t cached);
/** find_model() - by name; NULL: none, or no stats. */
const struct dsc_model_stats *find_model(const struct dsc_stats_reply *stats, const char *name);

/* Pages of a pool by what they are: every page is one of these. */
enum page_state { PAGE_IN_USE, PAGE_PUBLISHED, PAGE_CACHED, PAGE_FREE, PAGE_STATES };

/** pool_map() - count pages by state. */
void pool_map(const struct dsc_model_stats *m, uint32_t ret[static PAGE_STATES]);
const char *page_state_text(enum page_state state);
