/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold whenever the broker waits. The scheduler's and the pool's own checks are linear in the
 * pool; what walks all connections and users is done each minute, and whenever nobody is there. */
#include <stdarg.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "quota/quota.h"
#include "sched/sched.h"
#include "sim.h"

#define BROKEN_TOLD 20u
#define LEAVE_USEC  (30 * SIM_MINUTE) /* after the last burst nobody stays longer */
#define CALM_USEC   (2 * SIM_SECOND)  /* after which nothing may be held for those who are gone */

void sim_broken(struct sim *s, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (s->count.broken++ >= BROKEN_TOLD)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	printf("broken: seed %llu, %.6f s: %s\n", (unsigned long long)s->seed,
	       (double)s->now / (double)SIM_SECOND, text);
}

static void check_users(struct sim *s)
{
	static const char *const names[] = {"connections", "requests", "pages"};
	uint64_t n_requests = 0;

	for (int kind = 0; kind < _QUOTA_MAX && kind < (int)N_ELEMENTS(names); kind++) {
		uint64_t sum = 0;

		for (uid_t i = 0; i < SIM_USERS; i++)
			sum += quota_used(s->server.quota, SIM_UID + i, (enum quota_kind)kind);
		if (sum != quota_total(s->server.quota, (enum quota_kind)kind))
			sim_broken(s, "%llu %s charged to users, %llu in all",
				   (unsigned long long)sum, names[kind],
				   (unsigned long long)quota_total(s->server.quota,
								   (enum quota_kind)kind));
	}
	for (uint32_t i = 0; i < s->server.conns.n_alloc; i++) {
		const struct conn *c = s->server.conns.items[i];

		if (!c)
			continue;
		n_requests += c->n_requests;
		if (c->queued.n + c->sending.n - c->sending_at > CONN_QUEUE_HARD)
			sim_broken(s, "%zu bytes wait for one connection",
				   c->queued.n + c->sending.n - c->sending_at);
		if (c->n_requests > CONN_REQUESTS)
			sim_broken(s, "%u requests of one connection", c->n_requests);
	}
	if (quota_total(s->server.quota, QUOTA_CONNECTIONS) != s->server.conns.n_used)
		sim_broken(s, "%llu connections charged, %u there",
			   (unsigned long long)quota_total(s->server.quota, QUOTA_CONNECTIONS),
			   s->server.conns.n_used);
	if (quota_total(s->server.quota, QUOTA_REQUESTS) != n_requests)
		sim_broken(s, "%llu requests charged, %llu there",
			   (unsigned long long)quota_total(s->server.quota, QUOTA_REQUESTS),
			   (unsigned long long)n_requests);
}

/* Nobody is there and nothing runs: nothing may be held. */
static void check_quiet(struct sim *s, const struct sched_stats *st)
{
	s->count.quiet++;
	if (s->server.conns.n_used || s->server.requests.n_used || st->running || st->waiting)
		sim_broken(
			s,
			"all clients have gone: %u connections, %u requests, %u running, %u waiting",
			s->server.conns.n_used, s->server.requests.n_used, st->running,
			st->waiting);
	for (int kind = 0; kind < _QUOTA_MAX; kind++)
		if (quota_total(s->server.quota, (enum quota_kind)kind))
			sim_broken(s, "all clients have gone: %llu charged of kind %d",
				   (unsigned long long)quota_total(s->server.quota,
								   (enum quota_kind)kind),
				   kind);
}

void sim_check(struct sim *s)
{
	struct model *m = s->server.n_models ? s->server.models[0] : NULL;
	struct sched_stats st = {};
	struct error err = {};

	if (!m || !model_sched(m))
		return;
	sched_get_stats(model_sched(m), &st);
	s->count.faults[FAULT_POOL_SHORT] = st.preemptions;
	if (st.waiting > s->server.cfg.sched_queue || st.running > s->server.cfg.sched_slots)
		sim_broken(s, "%u waiting, %u running", st.waiting, st.running);
	if (s->count.events % s->check_every == 0) {
		s->count.checks++;
		if (sched_check(model_sched(m), &err) < 0)
			sim_broken(s, "%s", err.text);
	}
	if (s->clients_used) {
		s->quiet_since = UINT64_MAX;
		return;
	}
	if (s->quiet_since == UINT64_MAX)
		s->quiet_since = s->now;
	else if (worker_idle(s) && s->quiet_since && s->now > s->quiet_since + CALM_USEC) {
		check_users(s);
		check_quiet(s, &st);
		s->quiet_since = 0; /* once for each calm */
	}
	if (s->quiet_since == 0 && s->now >= s->end)
		s->over = s->server.stopping = true;
}

void sim_check_minute(struct sim *s)
{
	check_users(s);
	clients_check(s);
	sim_check(s);
	if (s->now > s->end + LEAVE_USEC) {
		sim_broken(s, "%u clients and their sequences do not come to an end",
			   s->clients_used);
		s->over = s->server.stopping = true;
	}
	if (!s->over)
		sim_push(s, SIM_MINUTE, (struct entry){.kind = ENTRY_MINUTE});
}
