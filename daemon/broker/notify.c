/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/notify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <systemd/sd-daemon.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "broker/model.h"
#include "broker/server.h"

#define LOOK_USEC 1000000u
/* A loading worker that says nothing for a minute is killed: until then a start may take its time. */
#define EXTEND_USEC 90000000u

void notify_init(struct notify *n)
{
	uint64_t usec;

	*n = (struct notify){.heard = getenv("NOTIFY_SOCKET") != NULL};
	if (sd_watchdog_enabled(0, &usec) > 0)
		n->feed_every_usec = MAX(usec / 3, (uint64_t)1);
}

static void add(char line[NOTIFY_STATUS_MAX], const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static void add(char line[NOTIFY_STATUS_MAX], const char *fmt, ...)
{
	size_t n = strlen(line);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line + n, NOTIFY_STATUS_MAX - n, fmt, ap);
	va_end(ap);
}

/* "lite: ready, 3 streams; chat: loading, 40 %" */
static void describe(const struct server *s, char line[NOTIFY_STATUS_MAX])
{
	line[0] = 0;
	if (s->n_models == 0)
		add(line, "DEGRADED: no model is configured");
	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct model *m = s->models[i];
		struct model_stats stats;

		model_get_stats(m, &stats);
		add(line, "%s%s: ", i ? "; " : "", model_name(m));
		if (model_state(m) == DSD__STATE__STATE_READY)
			add(line, "ready, %u streams", stats.sched.running + stats.sched.waiting);
		else if (model_state(m) == DSD__STATE__STATE_IDLE)
			add(line, "idle");
		else if (model_state(m) == DSD__STATE__STATE_LOADING)
			add(line, "loading, %u %%", (unsigned)(stats.progress * 100));
		else
			add(line, "DEGRADED, %s", model_reason(m));
		if (model_is_drained(m))
			add(line, ", drained");
	}
	for (char *c = line; *c; c++) /* one line, whatever a reason holds */
		if ((unsigned char)*c < 0x20)
			*c = ' ';
}

/* A model that has no image yet may still ask the store for its pool. */
static bool is_loading(const struct server *s)
{
	for (uint32_t i = 0; i < s->n_models; i++)
		if (model_state(s->models[i]) == DSD__STATE__STATE_LOADING)
			return true;
	return false;
}

void notify_state(struct server *s)
{
	struct notify *n = &s->notify;
	bool ready = n->ready || server_state(s) != DSD__STATE__STATE_LOADING;
	char line[NOTIFY_STATUS_MAX];

	if (s->stopping)
		return;
	if (n->reloading && !is_loading(s)) {
		n->reloading = false;
		sd_notify(0, "READY=1");
	}
	describe(s, line);
	if (ready == n->ready && strcmp(line, n->status) == 0)
		return;
	sd_notifyf(0, "%sSTATUS=%s", ready && !n->ready ? "READY=1\n" : "", line);
	if (ready && !n->ready)
		server_wake_at(s, 0); /* the watchdog runs from now on */
	if (ready && !is_loading(s))
		store_drop_rest(&s->store);
	n->ready = ready;
	strcpy(n->status, line);
}

/* Streams come and go by the thousand: the line follows once a second while there are any. */
static uint64_t follow(struct server *s, uint64_t now)
{
	struct notify *n = &s->notify;
	bool runs = !n->ready || s->requests.n_used > 0;

	if (!runs && n->look_usec == 0)
		return UINT64_MAX;
	if (now < n->look_usec)
		return n->look_usec;
	notify_state(s);
	if (!n->ready)
		sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%u", EXTEND_USEC);
	n->look_usec = runs ? now + LOOK_USEC : 0;
	return runs ? n->look_usec : UINT64_MAX;
}

static uint64_t feed(struct server *s, uint64_t now)
{
	struct notify *n = &s->notify;

	if (n->feed_every_usec == 0 || !n->ready)
		return UINT64_MAX;
	if (now < n->feed_usec)
		return n->feed_usec;
	for (uint32_t i = 0; i < s->n_models; i++)
		if (!model_moves(s->models[i]))
			return now + LOOK_USEC;
	sd_notify(0, "WATCHDOG=1");
	n->feed_usec = now + n->feed_every_usec;
	return n->feed_usec;
}

uint64_t notify_on_tick(struct server *s, uint64_t now)
{
	uint64_t a, b;

	if (!s->notify.heard)
		return UINT64_MAX;
	a = follow(s, now);
	b = feed(s, now);
	return MIN(a, b);
}

void notify_reloading(struct server *s)
{
	s->notify.reloading = true;
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)io_now_usec(s->io));
}

void notify_stopping(void)
{
	sd_notify(0, "STOPPING=1\nSTATUS=finishing what is under way");
}
