/* SPDX-License-Identifier: Apache-2.0 */
#include "rates.h"

#include <string.h>

static double grown(uint64_t now, uint64_t before)
{
	return (double)(now >= before ? now - before : now);
}

double hit_rate(uint64_t computed, uint64_t cached)
{
	double all = (double)computed + (double)cached;

	return all > 0 ? (double)cached / all : -1;
}

struct rates rates_of_model(const struct dsc_model_stats *now, const struct dsc_model_stats *before,
			    double seconds)
{
	static const struct dsc_model_stats nothing;
	const struct dsc_model_stats *b = before ?: &nothing;
	double prompt = grown(now->prompt_tokens, b->prompt_tokens);
	double cached = grown(now->cached_tokens, b->cached_tokens);
	double steps = grown(now->steps, b->steps);
	double worker = grown(now->worker_usec, b->worker_usec) / 1e6 / seconds;

	return (struct rates){
		.generated = grown(now->generated_tokens, b->generated_tokens) / seconds,
		.prompt = prompt / seconds,
		.cached = cached / seconds,
		.steps = steps / seconds,
		.rows = steps > 0 ? grown(now->rows, b->rows) / steps : 0,
		.hit_rate = hit_rate((uint64_t)prompt, (uint64_t)cached),
		.worker = worker < 1 ? worker : 1, /* a long step counts where it ends */
	};
}

double rates_of_broker(const struct dsc_stats_reply *now, const struct dsc_stats_reply *before,
		       double seconds)
{
	return grown(now->broker_cpu_usec, before ? before->broker_cpu_usec : 0) / 1e6 / seconds;
}

const struct dsc_model_stats *find_model(const struct dsc_stats_reply *stats, const char *name)
{
	for (size_t i = 0; stats && i < stats->n_models; i++)
		if (strcmp(stats->models[i]->name, name) == 0)
			return stats->models[i];
	return NULL;
}

static uint32_t without(uint32_t n, uint32_t part)
{
	return n > part ? n - part : 0;
}

void pool_map(const struct dsc_model_stats *m, uint32_t ret[static PAGE_STATES])
{
	ret[PAGE_IN_USE] = without(m->pages_used, m->pages_published);
	ret[PAGE_PUBLISHED] = m->pages_published;
	ret[PAGE_CACHED] = m->pages_cached;
	ret[PAGE_FREE] = without(m->pages_total, m->pages_cached);
	ret[PAGE_FREE] = without(ret[PAGE_FREE], m->pages_used);
}

const char *page_state_text(enum page_state state)
{
	static const char *const names[PAGE_STATES] = {
		[PAGE_IN_USE] = "in use",
		[PAGE_PUBLISHED] = "published",
		[PAGE_CACHED] = "cached",
		[PAGE_FREE] = "free",
	};

	return names[state];
}
