/* SPDX-License-Identifier: Apache-2.0 */
/* Apart from log.c, so that a program without events does without libsystemd. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "base/cleanup.h"
#include "base/log.h"

#define TEXT_MAX  900u
#define FIELD_MAX 160u

static const struct {
	const char *name; /* DSD_EVENT= */
	const char *id;   /* MESSAGE_ID=: for ever */
	int level;
} events[] = {
	[EVENT_MODEL_READY] = {"model-ready", "cbc563dc26c44abeb399b51c5d641dee", LOG_INFO},
	[EVENT_MODEL_DEGRADED] = {"model-degraded", "e972948ba0b848f195d1961aec11f655", LOG_ERR},
	[EVENT_MODEL_RELOADED] = {"model-reloaded", "00a5f9823d2c410496b9d6865cc6faf7", LOG_NOTICE},
	[EVENT_RELOAD_REFUSED] = {"reload-refused", "d2e19260e0cf40b2927f34ff2048a998", LOG_ERR},
	[EVENT_WORKER_DIED] = {"worker-died", "be10933d57154d9ca68fdab025567ebd", LOG_WARNING},
	[EVENT_WORKER_STALLED] = {"worker-stalled", "dfa3f47829c44bdaa0a34575f194903a", LOG_ERR},
	[EVENT_REQUEST_QUARANTINED] = {"request-quarantined", "9adf94f5b5f24d80a7bdc5ee95aa268b",
				       LOG_ERR},
	[EVENT_POOL_ADOPTED] = {"pool-adopted", "fb2b038ab7c7439d9cd16d9216a88aad", LOG_NOTICE},
	[EVENT_POOL_DISCARDED] = {"pool-discarded", "f40dc5f9647c4fa0acb1238e3af6d7a8",
				  LOG_WARNING},
	[EVENT_MEMORY_PRESSURE] = {"memory-pressure", "38fa1930482b484dbcc35acd34c1724e",
				   LOG_WARNING},
	[EVENT_MEMORY_RELIEVED] = {"memory-relieved", "1f6bbd23913049c38897172747292b63",
				   LOG_NOTICE},
	[EVENT_ADMINISTERED] = {"administered", "07002a75f6a04c1185a7f3c391d3b7e2", LOG_NOTICE},
};
_Static_assert(N_ELEMENTS(events) == _EVENT_MAX, "a row for each event");

struct entry {
	char text[TEXT_MAX], fields[8][FIELD_MAX];
	struct iovec iov[9];
	int n;
};

static void add(struct entry *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct entry *e, const char *fmt, ...)
{
	char *field = e->fields[e->n - 1];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(field, FIELD_MAX, fmt, ap);
	va_end(ap);
	e->iov[e->n++] = (struct iovec){field, strlen(field)};
}

void log_event(enum log_event_id id, const struct log_fields *f, const char *fmt, ...)
{
	static const char prefix[] = "MESSAGE=";
	const size_t skip = sizeof(prefix) - 1;
	struct entry e = {.n = 1};
	va_list ap;

	if (events[id].level > log_max_level())
		return;
	memcpy(e.text, prefix, sizeof(prefix));
	va_start(ap, fmt);
	vsnprintf(e.text + skip, sizeof(e.text) - skip, fmt, ap);
	va_end(ap);
	e.iov[0] = (struct iovec){e.text, strlen(e.text)};
	add(&e, "PRIORITY=%d", events[id].level);
	add(&e, "MESSAGE_ID=%s", events[id].id);
	add(&e, "DSD_EVENT=%s", events[id].name);
	if (f->model)
		add(&e, "DSD_MODEL=%s", f->model);
	if (f->uid)
		add(&e, "DSD_UID=%u", *f->uid);
	if (f->worker)
		add(&e, "DSD_WORKER_PID=%d", f->worker);
	if (f->request)
		add(&e, "DSD_REQUEST=%llu", (unsigned long long)f->request);
	if (!log_to_journal() || sd_journal_sendv(e.iov, e.n) < 0)
		log_line(events[id].level, "%s", e.text + skip);
}
