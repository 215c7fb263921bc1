/* SPDX-License-Identifier: Apache-2.0 */
/* Models come and go while others serve: load, reload, unload, drain. A model that comes is hidden
 * until it is READY, one that goes is hidden until its last request has ended. */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/model_impl.h"
#include "broker/request.h"
#include "broker/server.h"
#include "channel/channel.h"
#include "layout/channel.h"
#include "pool/pool.h"

/* The old one finishes what it has, under a name that nobody finds. */
void model_take_place(struct model *m)
{
	struct server *s = m->server;
	struct model *old = m->replaces;
	uint32_t i = 0, k = 0;

	while (s->models[i] != old)
		i++;
	while (s->models[k] != m)
		k++;
	s->models[i] = m;
	s->models[k] = old;
	old->leaving = true;
	fault_at(FAULT_RELOAD_SWITCH);
	if (old->sched && m->pool == old->pool)
		sched_move_published(m->sched, old->sched);
	if (old->sched && m->sched)
		sched_move_sessions(m->sched, old->sched);
	m->drained = old->drained;
	m->replaces = NULL;
}

bool model_in_use(const struct model *m)
{
	const struct table *t = &m->server->requests;

	for (uint32_t i = 0; i < t->n_alloc; i++) {
		const struct request *r = t->items[i];

		if (r && r->model == m && !r->is_admin)
			return true;
	}
	return false;
}

static struct model *model_coming(const struct model *m)
{
	struct server *s = m->server;

	for (uint32_t i = 0; i < s->n_models; i++)
		if (s->models[i]->replaces == m && !s->models[i]->leaving)
			return s->models[i];
	return NULL;
}

bool model_is_coming(const struct server *s, const char *name)
{
	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct model *m = s->models[i];

		if (m->coming && !m->leaving && !m->replaces && strcmp(m->cfg.name, name) == 0)
			return true;
	}
	return false;
}

static uint64_t file_bytes(const char *path)
{
	uint64_t sum = 0;
	struct dirent *d;
	struct stat st;
	DIR *dir;

	dir = opendir(path);
	while (dir && (d = readdir(dir)))
		if (strstr(d->d_name, ".safetensors") &&
		    fstatat(dirfd(dir), d->d_name, &st, 0) == 0)
			sum += (uint64_t)st.st_size;
	if (dir)
		closedir(dir);
	return sum;
}

static uint64_t weight_bytes(const struct model *m)
{
	return m->vocab ? m->image.h->weight_bytes : 0;
}

/* What weights will take: what their files say, taken for bf16 where they are quantised, and no less than
 * what the same files take already. */
static uint64_t expected_bytes(const struct model *next)
{
	const struct server *s = next->server;
	uint64_t bytes = file_bytes(next->cfg.path);

	if (s->cfg.worker_weights == CONTROL_WEIGHTS_Q8)
		bytes = bytes / 128 * 65; /* 8.125 bits of 16 */
	else if (s->cfg.worker_weights == CONTROL_WEIGHTS_Q4)
		bytes = bytes / 32 * 9; /* 4.5 bits of 16 */
	for (uint32_t i = 0; i < s->n_models; i++)
		if (strcmp(s->models[i]->cfg.path, next->cfg.path) == 0)
			bytes = MAX(bytes, weight_bytes(s->models[i]));
	return bytes;
}

/* Weights and pools that are here, and those that are to come, against memory.max. */
static int check_memory(const struct model *next, struct error *err)
{
	const struct server *s = next->server;
	const struct model *old = next->replaces;
	uint64_t used = 0, more = expected_bytes(next), max = s->cfg.memory_max;
	struct sysinfo info;

	if (max == 0) {
		sysinfo(&info);
		max = (uint64_t)info.totalram * info.mem_unit;
	}
	more += model_pool_bytes(next);
	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct model *m = s->models[i];

		if (m->pool)
			used += weight_bytes(m) +
				pool_n_pages(m->pool) * pool_geometry(m->pool)->stride;
	}
	if (used + more <= max)
		return 0;
	return error_set(err, -ENOMEM,
			 "%.0f MB beside the %.0f MB in use are more than %.0f MB (memory.max): %s",
			 (double)more / 1e6, (double)used / 1e6, (double)max / 1e6,
			 old ? "drain the old one first (dsctl reload --drain)"
			     : "unload another first");
}

int model_add(struct server *s, const struct config_model *cfg, struct model *replaces, bool drain,
	      struct model **ret, struct error *err)
{
	struct model *m;
	int r;

	if (s->n_models == SERVER_MODELS_MAX)
		return error_set(err, -ENOSPC, "%u models are loaded or on their way: want fewer",
				 s->n_models);
	r = model_new(&m, s, cfg);
	if (r < 0)
		return r;
	m->coming = true;
	m->replaces = replaces;
	if (!drain)
		r = check_memory(m, err);
	if (r < 0) {
		model_free(m);
		return r;
	}
	s->models[s->n_models++] = m;
	if (drain) {
		model_take_place(m);
		m->coming = false;
		m->follows = replaces;
	} else {
		model_start(m);
	}
	*ret = m;
	return 0;
}

int model_reload(struct model *m, bool drain, struct model **ret, struct error *err)
{
	fault_at(FAULT_RELOAD_BEGIN);
	*ret = model_coming(m);
	if (*ret)
		return 0;
	if (m->state == DSD__STATE__STATE_LOADING) {
		*ret = m;
		return 0;
	}
	return model_add(m->server, &m->cfg, m, drain, ret, err);
}

void model_leave(struct model *m)
{
	struct model *next = model_coming(m);

	m->leaving = true;
	if (next)
		next->leaving = true;
}

void model_drain(struct model *m, bool drained)
{
	m->drained = drained;
	notify_state(m->server);
}

void model_when_unused(struct model *m, struct request *r)
{
	model_list_append(&m->leavers, r);
}

/* Whether another goes on under the name of one that leaves. */
static bool name_lives_on(const struct server *s, const struct model *m)
{
	for (uint32_t i = 0; i < s->n_models; i++)
		if (s->models[i] != m && strcmp(s->models[i]->cfg.name, m->cfg.name) == 0)
			return true;
	return false;
}

static void remove_model(struct server *s, uint32_t i)
{
	struct model *m = s->models[i];

	if (m->parked) /* who waited for a load or reload */
		model_set_state(m, DSD__STATE__STATE_DEGRADED, "the model was unloaded");
	if (!m->coming) /* else it never served, and the log has the reason */
		log_notice("model %s: %s", m->cfg.name,
			   name_lives_on(s, m) ? "the old one is unloaded" : "unloaded");
	s->n_models--;
	memmove(&s->models[i], &s->models[i + 1], (s->n_models - i) * sizeof(struct model *));
	for (uint32_t k = 0; k < s->n_models; k++) {
		if (s->models[k]->replaces == m)
			s->models[k]->replaces = NULL;
		if (s->models[k]->follows == m) {
			s->models[k]->follows = NULL;
			model_start(s->models[k]);
		}
	}
	model_free(m);
	for (uint32_t k = 0; k < s->n_models; k++)
		model_kick(s->models[k]); /* its pages are free for others now */
	fault_at(FAULT_RELOAD_OLD_DONE);
}

static bool runs_over(const struct model *m, const struct pool *pool)
{
	return m->pool == pool && m->phase == PHASE_RUNNING;
}

/* The model's next step, with what others of its pool only keep if need be. Return: one is under way. */
static bool run_over(struct server *s, struct model *m)
{
	sched_run(m->sched);
	for (uint32_t i = 0; i < s->n_models; i++) {
		struct model *other = s->models[i];

		if (other == m || other->pool != m->pool || !other->sched)
			continue;
		while (sched_is_short(m->sched) && sched_give_way(other->sched))
			sched_run(m->sched);
	}
	watch_kick(m);
	return channel_in_flight(m->channel) > 0;
}

/* Models that share a pool, one coming and one going: what one lacks the other gives back when it is done.
 * Where all are short all have let go of theirs, and the second look decides. */
static void run_pool(struct server *s, const struct pool *pool)
{
	bool moves = false;

	for (unsigned look = 0; look < 2 && !moves; look++)
		for (uint32_t i = 0; i < s->n_models; i++)
			if (runs_over(s->models[i], pool))
				moves |= run_over(s, s->models[i]);
	for (uint32_t i = 0; i < s->n_models && !moves; i++)
		if (runs_over(s->models[i], pool))
			sched_end_hopeless(s->models[i]->sched);
}

static void run_shared_pools(struct server *s)
{
	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct pool *pool = s->models[i]->pool;
		uint32_t first = 0;

		while (s->models[first]->pool != pool)
			first++;
		if (pool && first == i && pool_n_users(pool) > 1)
			run_pool(s, pool);
	}
}

void model_reap(struct server *s)
{
	run_shared_pools(s);
	for (uint32_t i = 0; i < s->n_models;) {
		struct model *m = s->models[i];

		if ((!m->leaving && !m->leavers) || model_in_use(m)) {
			i++;
			continue;
		}
		if (m->leaving && m->worker.pidfd >= 0) {
			m->phase = PHASE_OFF;
			process_kill(&m->worker); /* the end of the process brings us back here */
			i++;
			continue;
		}
		model_wake_all(&m->leavers, request_proceed);
		if (m->leaving && !model_in_use(m))
			remove_model(s, i);
		else
			i++;
	}
}
