/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "pool/pool.h"
#include "quota/quota.h"
#include "sched/seq.h"

struct session {
	struct session *next;
	uint64_t id;
	uid_t uid;
	uint64_t lease_usec, used_usec;
	struct held held;
};

static struct session *find(const struct sched *s, uid_t uid, uint64_t id)
{
	struct session *x = s->sessions;

	while (x && (x->id != id || x->uid != uid))
		x = x->next;
	return x;
}

static void drop_pages(struct sched *s, struct session *x)
{
	if (x->held.n)
		quota_uncharge(s->cfg.quota, x->uid, QUOTA_PAGES, x->held.n);
	held_drop(s, &x->held);
}

static void leave(struct seq_list *l, const struct session *x)
{
	for (struct seq *q = l->first; q; q = q->next)
		if (q->session == x)
			q->session = NULL;
}

/* @at points at it in the list. */
static void session_free(struct sched *s, struct session **at)
{
	struct session *x = *at;

	leave(&s->running, x);
	leave(&s->waiting, x);
	drop_pages(s, x);
	*at = x->next;
	free(x);
}

void session_free_all(struct sched *s)
{
	while (s->sessions)
		session_free(s, &s->sessions);
}

void sched_move_sessions(struct sched *to, struct sched *from)
{
	assert(!to->sessions);
	for (struct session *x = from->sessions; x; x = x->next) {
		leave(&from->running, x);
		leave(&from->waiting, x);
		if (to->cfg.pool != from->cfg.pool)
			drop_pages(from, x);
	}
	to->sessions = TAKE_PTR(from->sessions);
}

uint32_t session_n_pages(const struct sched *s)
{
	uint32_t n = 0;

	for (const struct session *x = s->sessions; x; x = x->next)
		n += x->held.n;
	return n;
}

uint32_t session_n_pages_of(const struct sched *s, uid_t uid)
{
	uint32_t n = 0;

	for (const struct session *x = s->sessions; x; x = x->next)
		n += x->uid == uid ? x->held.n : 0;
	return n;
}

/* Half of the pool at the most: the rest is for those who have none. */
static uint32_t room(const struct sched *s)
{
	return pool_n_pages(s->cfg.pool) / 2 - session_n_pages(s);
}

static uint64_t new_id(struct sched *s)
{
	const struct session *x;
	uint64_t id;

	do {
		io_random(s->cfg.io, &id, sizeof(id));
		for (x = s->sessions; x && x->id != id; x = x->next)
			;
	} while (id == 0 || x);
	return id;
}

static int session_new(struct sched *s, uid_t uid, uint64_t lease_usec, struct session **ret,
		       struct error *err)
{
	struct session *x;
	uint32_t n = 0;

	for (x = s->sessions; x; x = x->next)
		n += x->uid == uid;
	if (n >= SCHED_SESSIONS_PER_UID)
		return error_set(err, -EAGAIN, "this user has %u sessions: want fewer than %u", n,
				 SCHED_SESSIONS_PER_UID);
	x = io_alloc(s->cfg.io, sizeof(*x));
	if (!x)
		return -ENOMEM;
	*x = (struct session){
		.next = s->sessions,
		.id = new_id(s),
		.uid = uid,
		.lease_usec = lease_usec,
		.used_usec = io_now_usec(s->cfg.io),
	};
	s->sessions = x;
	*ret = x;
	return 0;
}

int sched_open_session(struct sched *s, uid_t uid, uint64_t lease_usec, uint64_t *ret_id,
		       struct error *err)
{
	struct session *x;
	int r = session_new(s, uid, lease_usec, &x, err);

	if (r == 0)
		*ret_id = x->id;
	return r;
}

int sched_fork_session(struct sched *s, uid_t uid, uint64_t id, uint64_t *ret_id,
		       uint64_t *ret_lease_usec, struct error *err)
{
	struct session *x = session_use(s, uid, id), *fork;
	int r;

	if (!x)
		return error_set(err, -ENOENT, "no session of that id");
	if (x->held.n > room(s))
		return error_set(
			err, -EAGAIN,
			"sessions hold %u pages: %u more would be more than half of the pool",
			session_n_pages(s), x->held.n);
	r = quota_charge(s->cfg.quota, uid, QUOTA_PAGES, x->held.n, err);
	if (r < 0)
		return r;
	r = session_new(s, uid, x->lease_usec, &fork, err);
	if (r == 0) {
		r = held_take(s, &fork->held, x->held.pages, x->held.n);
		if (r < 0)
			session_free(s, &s->sessions);
	}
	if (r < 0) {
		quota_uncharge(s->cfg.quota, uid, QUOTA_PAGES, x->held.n);
		return r;
	}
	*ret_id = fork->id;
	*ret_lease_usec = fork->lease_usec;
	return 0;
}

int sched_close_session(struct sched *s, uid_t uid, uint64_t id)
{
	for (struct session **at = &s->sessions; *at; at = &(*at)->next)
		if ((*at)->id == id && (*at)->uid == uid) {
			session_free(s, at);
			return 0;
		}
	return -ENOENT;
}

bool sched_has_session(const struct sched *s, uid_t uid, uint64_t id)
{
	return find(s, uid, id) != NULL;
}

struct session *session_use(struct sched *s, uid_t uid, uint64_t id)
{
	struct session *x = find(s, uid, id);

	if (x)
		x->used_usec = io_now_usec(s->cfg.io);
	return x;
}

void session_keep(struct seq *q)
{
	struct sched *s = q->sched;
	struct session *x = q->session;
	struct held held;
	uint32_t n, old;

	if (!x)
		return;
	x->used_usec = io_now_usec(s->cfg.io);
	if (q->n_sealed == 0)
		return; /* it came to nothing: what was kept is still the best there is */
	old = x->held.n;
	n = MIN(q->n_sealed, room(s) + old);
	if (n > old && quota_charge(s->cfg.quota, x->uid, QUOTA_PAGES, n - old, NULL) < 0)
		n = old;
	if (held_take(s, &held, q->pages, n) < 0) {
		if (n > old)
			quota_uncharge(s->cfg.quota, x->uid, QUOTA_PAGES, n - old);
		return;
	}
	if (n < old)
		quota_uncharge(s->cfg.quota, x->uid, QUOTA_PAGES, old - n);
	held_drop(s, &x->held);
	x->held = held;
}

bool session_give_up(struct sched *s)
{
	struct session *idle = NULL;

	for (struct session *x = s->sessions; x; x = x->next)
		if (x->held.n && (!idle || x->used_usec < idle->used_usec))
			idle = x;
	if (idle)
		drop_pages(s, idle);
	return idle != NULL;
}

static bool in_use(const struct seq_list *l, const struct session *x)
{
	const struct seq *q = l->first;

	while (q && q->session != x)
		q = q->next;
	return q != NULL;
}

uint64_t sched_on_tick(struct sched *s, uint64_t now)
{
	uint64_t next = UINT64_MAX;

	for (struct session **at = &s->sessions, *x; (x = *at);) {
		if (now >= x->used_usec + x->lease_usec &&
		    (in_use(&s->running, x) || in_use(&s->waiting, x)))
			x->used_usec = now;
		if (now >= x->used_usec + x->lease_usec) {
			session_free(s, at);
			continue;
		}
		next = MIN(next, x->used_usec + x->lease_usec);
		at = &x->next;
	}
	return next;
}
