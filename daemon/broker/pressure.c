/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/pressure.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sodium.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/model.h"
#include "broker/server.h"

/* A tenth of two seconds lost by some process; the kernel tells at most once in a window. An
 * unprivileged process may only ask for windows of whole two seconds. */
#define TRIGGER   "some 200000 2000000"
#define HOLD_USEC 5000000u /* two windows without a word, and half of one: it has passed */

static int open_source(const char *path, struct error *err)
{
	/* A FIFO read and written is one that never ends. */
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	return fd < 0 ? error_set(err, -errno, "%.300s: %m", path) : fd;
}

/* memory.pressure of the cgroup that this process is in; "" where there is no unified hierarchy. */
static void own_cgroup(char ret[PATH_MAX])
{
	_cleanup_(fd_closep) int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
	char text[PATH_MAX];
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	char *line;

	ret[0] = 0;
	if (n <= 0)
		return;
	text[n] = 0;
	line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
	if (!line)
		return;
	line = strstr(line, "0::") + 3;
	line[strcspn(line, "\n")] = 0;
	if ((size_t)snprintf(ret, PATH_MAX, "/sys/fs/cgroup%s/memory.pressure", line) >= PATH_MAX)
		ret[0] = 0;
}

static int find_source(struct error *err)
{
	const char *path = getenv("MEMORY_PRESSURE_WATCH");
	char own[PATH_MAX];
	int fd;

	if (path && strcmp(path, "/dev/null") == 0)
		return error_set(err, -ENOENT, "MEMORY_PRESSURE_WATCH=/dev/null");
	if (path)
		return open_source(path, err);
	own_cgroup(own);
	fd = own[0] ? open_source(own, err) : -ENOENT;
	return fd >= 0 ? fd : open_source("/proc/pressure/memory", err);
}

/* The trigger is what systemd says, or ours; its terminating 0 is part of it. */
static int arm(int fd, struct error *err)
{
	const char *said = getenv("MEMORY_PRESSURE_WRITE");
	unsigned char trigger[256] = TRIGGER;
	size_t n = sizeof(TRIGGER);

	if (said && sodium_base642bin(trigger, sizeof(trigger), said, strlen(said), NULL, &n, NULL,
				      sodium_base64_VARIANT_ORIGINAL) < 0)
		return error_set(err, -EINVAL, "MEMORY_PRESSURE_WRITE=%.40s: want base64", said);
	if (write(fd, trigger, n) < 0)
		return error_set(err, -errno, "asking to be told of memory pressure: %m");
	return 0;
}

static int open_pressure(struct pressure *p, struct error *err)
{
	struct epoll_event ev;
	struct stat st;
	int r;

	p->source = find_source(err);
	if (p->source < 0)
		return p->source;
	if (fstat(p->source, &st) < 0)
		return error_set(err, -errno, "memory pressure: %m");
	p->fifo = S_ISFIFO(st.st_mode);
	r = p->fifo ? 0 : arm(p->source, err);
	if (r < 0)
		return r;
	p->fd = epoll_create1(EPOLL_CLOEXEC);
	ev = (struct epoll_event){.events = p->fifo ? EPOLLIN : EPOLLPRI};
	if (p->fd < 0 || epoll_ctl(p->fd, EPOLL_CTL_ADD, p->source, &ev) < 0)
		return error_set(err, -errno, "watching memory pressure: %m");
	return 0;
}

int pressure_watch(struct server *s, struct error *err)
{
	int r = open_pressure(&s->pressure, err);

	if (r == 0) {
		r = io_poll(s->io, s->pressure.fd, tag_make(TAG_PRESSURE, 0, 0));
		if (r == 0)
			return 0;
		error_set(err, r, "watching memory pressure: %s", strerror(-r));
	}
	s->pressure.fd = fd_close(s->pressure.fd);
	s->pressure.source = fd_close(s->pressure.source);
	return r;
}

void pressure_done(struct server *s)
{
	if (s->pressure.fd >= 0)
		io_cancel(s->io, s->pressure.fd);
	fd_close(s->pressure.fd);
	fd_close(s->pressure.source);
	s->pressure = PRESSURE_NULL;
}

bool pressure_is_high(const struct server *s)
{
	return s->pressure.until_usec != 0;
}

void pressure_on_event(struct server *s)
{
	struct pressure *p = &s->pressure;
	struct epoll_event ev;
	char bytes[256];

	if (epoll_wait(p->fd, &ev, 1, 0) <= 0)
		return; /* taken with the one before */
	while (p->fifo && read(p->source, bytes, sizeof(bytes)) > 0)
		;
	if (!pressure_is_high(s))
		log_event(EVENT_MEMORY_PRESSURE, &(struct log_fields){},
			  "memory is short: no request is begun while another runs");
	p->until_usec = io_now_usec(s->io) + HOLD_USEC;
	server_wake_at(s, p->until_usec);
}

uint64_t pressure_on_tick(struct server *s, uint64_t now)
{
	if (!pressure_is_high(s))
		return UINT64_MAX;
	if (now < s->pressure.until_usec)
		return s->pressure.until_usec;
	s->pressure.until_usec = 0;
	log_event(EVENT_MEMORY_RELIEVED, &(struct log_fields){},
		  "memory is there again: requests are begun as usual");
	for (uint32_t i = 0; i < s->n_models; i++)
		model_kick(s->models[i]);
	return UINT64_MAX;
}
