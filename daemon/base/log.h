#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Lines to standard error, with the <N> priority prefix when the journal reads them; and events, which
 * the journal gets with fields and a MESSAGE_ID. Never prompt text: user bytes go through
 * log_escape(), at most 64 of them. Thread: any. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <syslog.h>

void log_init(const char *program, int max_level); /* level: LOG_ERR .. LOG_DEBUG */
void log_line(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** log_escape() - printable form of untrusted bytes in @buf; returns @buf. */
const char *log_escape(char *buf, size_t buf_bytes, const void *data, size_t n);

#define log_error(...)   log_line(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_notice(...)  log_line(LOG_NOTICE, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_DEBUG, __VA_ARGS__)

/** log_to_journal() - standard error is the journal's own stream. */
bool log_to_journal(void);
int log_max_level(void);

/* What an operator acts on. Identifier, level and name of each: event.c; what to do: dsd.catalog. */
enum log_event_id {
	EVENT_MODEL_READY,
	EVENT_MODEL_DEGRADED,
	EVENT_MODEL_RELOADED,
	EVENT_RELOAD_REFUSED,
	EVENT_WORKER_DIED,
	EVENT_WORKER_STALLED,
	EVENT_REQUEST_QUARANTINED,
	EVENT_POOL_ADOPTED,
	EVENT_POOL_DISCARDED,
	EVENT_MEMORY_PRESSURE,
	EVENT_MEMORY_RELIEVED,
	EVENT_ADMINISTERED,
	_EVENT_MAX
};

/* Fields of an event; those that are NULL or 0 are left out. */
struct log_fields {
	const char *model; /* DSD_MODEL= */
	const uid_t *uid;  /* DSD_UID=: who asked */
	pid_t worker;      /* DSD_WORKER_PID= */
	uint64_t request;  /* DSD_REQUEST=: its number */
};

/** log_event() - the sentence as MESSAGE= with its fields; outside the journal a line like any other. */
void log_event(enum log_event_id id, const struct log_fields *fields, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
