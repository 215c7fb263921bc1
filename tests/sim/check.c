/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold whenever the broker waits: all of it is walked, each time. Whether requests come to an
 * end is asked each minute, and whether anything is left whenever nobody is there. */
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "quota/quota.h"
#include "sched/sched.h"
#include "sim.h"

#define BROKEN_TOLD 20u
/* Sequences pause at the soft limit; replies to small questions and a step's last words still come. */
#define CONN_QUEUE_MOST (CONN_QUEUE_SOFT + (128u << 10))
#define LEAVE_USEC      (30 * SIM_MINUTE) /* after the last burst nobody stays longer */
#define LATE_USEC       (SIM_SECOND / 10) /* what is due is done by then */
#define IDLE_USEC       (SIM_SECOND / 50) /* nobody who could run waits so long for an idle worker */
#define CALM_USEC       (2 * SIM_SECOND) /* after which nothing may be held for those who are gone */

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
	if (s->stop_early) {
		fflush(stdout);
		_exit(1);
	}
}

static void check_conns(struct sim *s, uint64_t requests[SIM_PEOPLE])
{
	uint64_t stall = s->server.cfg.conn_stall_seconds * SIM_SECOND;

	for (uint32_t i = 0; i < s->server.conns.n_alloc; i++) {
		const struct conn *c = s->server.conns.items[i];
		size_t waits;

		if (!c)
			continue;
		requests[c->uid - SIM_UID] += c->n_requests;
		waits = c->queued.n + c->sending.n - c->sending_at;
		if (waits > CONN_QUEUE_MOST)
			sim_broken(s, "%zu bytes wait for one connection", waits);
		if (c->n_requests > CONN_REQUESTS)
			sim_broken(s, "%u requests of one connection", c->n_requests);
		if (c->congested && !c->closing && s->now > c->stalled_usec + stall + LATE_USEC)
			sim_broken(s, "a reader that has read nothing for %llu s is still there",
				   (unsigned long long)(stall / SIM_SECOND));
	}
}

static void check_requests(struct sim *s, uint64_t bytes[SIM_PEOPLE])
{
	for (uint32_t i = 0; i < s->server.requests.n_alloc; i++) {
		const struct request *r = s->server.requests.items[i];

		if (!r)
			continue;
		bytes[(r->conn ? r->conn->uid : r->uid) - SIM_UID] += r->n_bytes;
		if (r->conn && s->now > r->deadline_usec && s->now - r->deadline_usec > LATE_USEC)
			sim_broken(s, "a request outlives its deadline");
	}
}

static uint64_t held_pages(const struct sim *s, uid_t uid)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < s->server.n_models; i++)
		if (model_sched(s->server.models[i]))
			n += sched_held_pages(model_sched(s->server.models[i]), uid);
	return n;
}

/* What is charged to each is what each holds, and all of it together is the total. The last one is root,
 * whom a self-test is charged to. */
static void check_charges(struct sim *s)
{
	static const char *const names[_QUOTA_MAX] = {"connections", "requests", "pages", "bytes"};
	uint64_t held[_QUOTA_MAX][SIM_PEOPLE + 1] = {};

	check_conns(s, held[QUOTA_REQUESTS]);
	check_requests(s, held[QUOTA_BYTES]);
	for (uint32_t i = 0; i < s->server.conns.n_alloc; i++) {
		const struct conn *c = s->server.conns.items[i];

		if (c)
			held[QUOTA_CONNECTIONS][c->uid - SIM_UID]++;
	}
	for (uid_t i = 0; i <= SIM_PEOPLE; i++)
		held[QUOTA_PAGES][i] = held_pages(s, i < SIM_PEOPLE ? SIM_UID + i : 0);
	for (int kind = 0; kind < _QUOTA_MAX; kind++) {
		uint64_t sum = 0;

		for (uid_t i = 0; i <= SIM_PEOPLE; i++) {
			uint64_t used =
				quota_used(s->server.quota, i < SIM_PEOPLE ? SIM_UID + i : 0,
					   (enum quota_kind)kind);

			sum += used;
			if (used != held[kind][i])
				sim_broken(s, "user %u: %llu %s charged, %llu held", i,
					   (unsigned long long)used, names[kind],
					   (unsigned long long)held[kind][i]);
		}
		if (sum != quota_total(s->server.quota, (enum quota_kind)kind))
			sim_broken(s, "%llu %s charged to users, %llu in all",
				   (unsigned long long)sum, names[kind],
				   (unsigned long long)quota_total(s->server.quota,
								   (enum quota_kind)kind));
	}
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
	/* Pages may be a session's still: check_charges() knows. */
	for (int kind = 0; kind < _QUOTA_MAX; kind++)
		if (kind != QUOTA_PAGES && quota_total(s->server.quota, (enum quota_kind)kind))
			sim_broken(s, "all clients have gone: %llu charged of kind %d",
				   (unsigned long long)quota_total(s->server.quota,
								   (enum quota_kind)kind),
				   kind);
}

static void check_model(struct sim *s, const struct model *m, struct sched_stats *sum)
{
	struct sched_stats st = {};
	struct error err = {};

	if (!model_sched(m))
		return;
	sched_get_stats(model_sched(m), &st);
	/* Who gave its slot up waits again. */
	if (st.waiting + st.running > s->server.cfg.sched_queue + s->server.cfg.sched_slots ||
	    st.running > s->server.cfg.sched_slots)
		sim_broken(s, "%u waiting, %u running", st.waiting, st.running);
	if (sched_check(model_sched(m), &err) < 0)
		sim_broken(s, "%s", err.text);
	sum->preemptions += st.preemptions;
	sum->running += st.running;
	sum->waiting += st.waiting;
}

/* Only while one model serves and nothing else is on its way. */
static bool is_calm(const struct sim *s)
{
	return workers_idle(s) && s->server.n_models == 1 &&
	       model_state(s->server.models[0]) == DSD__STATE__STATE_READY;
}

static uint32_t n_paused(const struct sim *s)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->server.requests.n_alloc; i++) {
		const struct request *r = s->server.requests.items[i];

		for (uint32_t k = 0; r && k < r->n_choices; k++)
			n += r->choices[k].seq && seq_is_paused(r->choices[k].seq);
	}
	return n;
}

/* A worker that has nothing to do, and sequences whose clients read: each of them runs, or is ended. */
static void check_progress(struct sim *s, const struct sched_stats *st)
{
	uint32_t n = st->running + st->waiting;

	if (n == 0 || !is_calm(s) || n <= n_paused(s)) {
		s->idle_since = 0;
	} else if (s->idle_since == 0) {
		s->idle_since = s->now;
	} else if (s->now > s->idle_since + IDLE_USEC) {
		sim_broken(s, "%u sequences run, %u wait, and the worker has nothing to do",
			   st->running, st->waiting);
		s->idle_since = s->now;
	}
}

void sim_check(struct sim *s)
{
	struct sched_stats sum = {};

	for (uint32_t i = 0; i < s->server.n_models; i++)
		check_model(s, s->server.models[i], &sum);
	check_charges(s);
	check_progress(s, &sum);
	s->count.checks++;
	/* A model that was unloaded takes its count with it. */
	if (sum.preemptions > s->n_preemptions)
		s->count.faults[FAULT_POOL_SHORT] += sum.preemptions - s->n_preemptions;
	s->n_preemptions = sum.preemptions;
	if (s->clients_used) {
		s->quiet_since = UINT64_MAX;
		return;
	}
	if (s->quiet_since == UINT64_MAX)
		s->quiet_since = s->now;
	else if (is_calm(s) && s->quiet_since && s->now > s->quiet_since + CALM_USEC) {
		check_quiet(s, &sum);
		s->quiet_since = 0; /* once for each calm */
	}
	if (s->quiet_since == 0 && s->now >= s->end)
		s->over = s->server.stopping = true;
}

void sim_check_minute(struct sim *s)
{
	clients_check(s);
	/* Two deaths each; one more where the model was unloaded in between. */
	if (s->n_killed > 3 * s->count.faults[FAULT_KILLER])
		sim_broken(s, "%llu requests have killed %llu workers",
			   (unsigned long long)s->count.faults[FAULT_KILLER],
			   (unsigned long long)s->n_killed);
	sim_check(s);
	if (s->now > s->end + LEAVE_USEC) {
		sim_broken(s, "%u clients and their sequences do not come to an end",
			   s->clients_used);
		s->over = s->server.stopping = true;
	}
	if (!s->over)
		sim_push(s, SIM_MINUTE, (struct entry){.kind = ENTRY_MINUTE});
}
