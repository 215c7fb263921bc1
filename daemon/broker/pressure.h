#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's word that processes wait for memory (PSI). As long as it comes, no new sequence is begun
 * while another runs: its pages would be new memory. Better a queue than an OOM kill.
 *
 * What is watched: $MEMORY_PRESSURE_WATCH with what $MEMORY_PRESSURE_WRITE says, as systemd 254 and
 * later set them for a service; else the own cgroup's memory.pressure; else the host's. Thread: broker. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct server;

struct pressure {
	int source; /* the file, armed */
	int fd; /* an epoll of it alone, since PSI files speak by POLLPRI, which the seam does not */
	bool fifo;
	uint64_t until_usec; /* memory is short until then; 0: it is not */
};
#define PRESSURE_NULL ((struct pressure){.source = -EBADF, .fd = -EBADF})

/** pressure_watch() - Return: 0; or -errno with a sentence: nobody is watched, and all is as before. */
int pressure_watch(struct server *s, struct error *err);
void pressure_done(struct server *s);
bool pressure_is_high(const struct server *s);
void pressure_on_event(struct server *s);
/** pressure_on_tick() - has it passed? Return: when to look again, UINT64_MAX: no need. */
uint64_t pressure_on_tick(struct server *s, uint64_t now);
