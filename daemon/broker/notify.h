#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What systemd is told: READY, one line of STATUS, that a load goes on, and that we live. Nothing where
 * nobody listens ($NOTIFY_SOCKET). Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

struct server;

#define NOTIFY_STATUS_MAX 256u

struct notify {
	char status[NOTIFY_STATUS_MAX]; /* as it was sent */
	bool heard;                     /* there is a $NOTIFY_SOCKET */
	bool ready;                     /* READY=1 was sent */
	bool reloading;                 /* RELOADING=1 was, and no READY=1 since */
	uint64_t look_usec;             /* when to look at the status again; 0: nothing runs */
	uint64_t feed_every_usec;       /* a third of WatchdogSec=; 0: no watchdog */
	uint64_t feed_usec;
};

/** notify_init() - reads $WATCHDOG_USEC. */
void notify_init(struct notify *n);
/** notify_state() - READY=1 once no model loads any more, and STATUS=, where they changed. */
void notify_state(struct server *s);
/**
 * notify_on_tick() - the watchdog is fed, a start that still loads gets more time
 *
 * The watchdog is fed from here alone, by the loop: it runs. A worker that does not move is the model's
 * to replace; as long as one stays that was killed for it, nobody is fed.
 *
 * Return: when to come again, UINT64_MAX: no need.
 */
uint64_t notify_on_tick(struct server *s, uint64_t now);
/** notify_reloading() - SIGHUP was taken; notify_state() says READY=1 once no model loads any more. */
void notify_reloading(struct server *s);
/** notify_stopping() - no more requests; STATUS= stays what this says. */
void notify_stopping(void);
