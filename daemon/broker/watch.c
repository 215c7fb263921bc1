/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/watch.h"

#include "base/io.h"
#include "base/log.h"
#include "broker/model_impl.h"
#include "broker/server.h"
#include "channel/channel.h"

#define LOOK_USEC      1000000u
#define LOAD_LOOKS_MAX 60u
#define GRACE_LOOKS    2u /* for a killed one to be gone */

static bool has_work(const struct model *m)
{
	return m->worker.pidfd >= 0 &&
	       (m->phase == PHASE_LOADING || (m->channel && channel_in_flight(m->channel) > 0));
}

static uint32_t looks_max(const struct model *m)
{
	return m->phase == PHASE_LOADING ? LOAD_LOOKS_MAX : m->server->cfg.worker_stall_seconds;
}

void watch_start(struct model *m)
{
	m->watch = (struct watch){};
	watch_kick(m);
}

void watch_kick(struct model *m)
{
	if (m->watch.look_usec || !has_work(m))
		return;
	m->watch.look_usec = io_now_usec(m->server->io) + LOOK_USEC;
	server_wake_at(m->server, m->watch.look_usec);
}

/* Looks are counted and not seconds: time in which we stood still ourselves says nothing of it. */
uint64_t watch_on_tick(struct model *m, uint64_t now)
{
	uint32_t seen = m->watch.n_words + (m->channel ? channel_progress(m->channel) : 0);

	if (!has_work(m)) {
		m->watch.still = 0;
		m->watch.look_usec = 0;
		return UINT64_MAX;
	}
	if (now < m->watch.look_usec)
		return m->watch.look_usec;
	m->watch.look_usec = now + LOOK_USEC;
	m->watch.still = seen == m->watch.seen ? m->watch.still + 1 : 0;
	m->watch.seen = seen;
	if (m->watch.still == looks_max(m)) {
		log_event(EVENT_WORKER_STALLED,
			  &(struct log_fields){.model = m->cfg.name, .worker = m->worker.pid},
			  "model %s: the worker has not moved for %u seconds: it is killed",
			  m->cfg.name, m->watch.still);
		process_kill(&m->worker);
	}
	return m->watch.look_usec;
}

bool model_moves(const struct model *m)
{
	return m->watch.still < looks_max(m) + GRACE_LOOKS;
}
