/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "args.h"
#include "output.h"

#define CANCEL_WAIT_MS 1000

static int cannot_connect(const struct session *s, int r)
{
	return say(STATUS_CONNECT, "cannot connect to %s: %s%s", s->path, strerror(-r),
		   s->admin && r == -EACCES ? "; administration is for root: try sudo" : "");
}

static int open_at(struct session *s)
{
	sigset_t set;
	int r;

	r = dsc_connect(&s->c, s->path, s->flags);
	if (r < 0)
		return cannot_connect(s, r);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0) /* then Ctrl-C ends the program, and the daemon notices */
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 0;
}

int session_open(struct session *s, const struct global *global)
{
	*s = (struct session){.path = dsc_socket_path(global->socket),
			      .flags = global->no_resume ? DSC_NO_RESUME : 0,
			      .quiet = global->json,
			      .signal_fd = -EBADF};
	return open_at(s);
}

int session_open_admin(struct session *s, const struct global *global)
{
	const char *path = global->admin_socket ?: getenv("DSD_ADMIN_SOCKET");
	const char *socket = dsc_socket_path(global->socket), *name = strrchr(socket, '/');

	*s = (struct session){.path = path,
			      .flags = global->no_resume ? DSC_NO_RESUME : 0,
			      .admin = true,
			      .quiet = global->json,
			      .signal_fd = -EBADF};
	if (!path || !*path) {
		snprintf(s->beside, sizeof(s->beside), "%.*sadmin.sock",
			 name ? (int)(name + 1 - socket) : 0, socket);
		s->path = s->beside;
	}
	return open_at(s);
}

void session_close(struct session *s)
{
	if (s->signal_fd >= 0)
		close(s->signal_fd);
	s->signal_fd = -EBADF;
	dsc_close(s->c);
	s->c = NULL;
}

int session_renew(struct session *s)
{
	struct dsc *c;
	int r;

	s->interrupted = false;
	if (dsc_process(s->c) == 0)
		return 0;
	r = dsc_connect(&c, s->path, s->flags);
	if (r < 0)
		return cannot_connect(s, r);
	dsc_close(s->c);
	s->c = c;
	return 0;
}

/* True: this was the second time. */
static bool interrupt(struct session *s, struct dsc_stream *stream)
{
	struct signalfd_siginfo info;
	bool again = s->interrupted;

	if (read(s->signal_fd, &info, sizeof(info)) != sizeof(info))
		return false;
	s->interrupted = true;
	dsc_cancel(stream);
	return again;
}

int session_next(struct session *s, struct dsc_stream *stream, const struct dsc_event **ret)
{
	int r;

	while ((r = dsc_next(stream, ret)) == -EAGAIN) {
		struct pollfd p[] = {
			{.fd = dsc_fd(s->c), .events = (short)dsc_events(s->c)},
			{.fd = s->signal_fd, .events = POLLIN},
		};
		int n = poll(p, 2, s->interrupted ? CANCEL_WAIT_MS : dsc_timeout(s->c));

		if (n == 0 && s->interrupted)
			return -EINTR;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents && interrupt(s, stream))
			return -EINTR;
		dsc_process(s->c);
	}
	return r;
}

int session_status(const struct session *s)
{
	enum dsc_code code = dsc_code(s->c);

	if (s->interrupted)
		return STATUS_INTERRUPTED;
	if (!dsc_version(s->c) && code == DSC_CODE_PERMISSION_DENIED) /* in place of a greeting */
		return say(STATUS_CONNECT, "cannot connect to %s: %s: %s", s->path,
			   dsc_code_name(code), dsc_error(s->c));
	if (code == DSC_CODE_NONE)
		return say(STATUS_FAILED, "%s", dsc_error(s->c));
	return say(code == DSC_CODE_MODEL_INVALID ? STATUS_MODEL : STATUS_FAILED, "%s: %s",
		   dsc_code_name(code), dsc_error(s->c));
}

int session_failed(const struct session *s, int r)
{
	if (!s->interrupted && (r == -ENOMEM || !*dsc_error(s->c)))
		return say(STATUS_FAILED, "%s", strerror(-r));
	return session_status(s);
}

int session_collect(struct session *s, int r, struct dsc_stream *stream, struct dsc_result **ret)
{
	struct dsc_result *result;
	const struct dsc_event *e;

	*ret = NULL;
	if (r < 0)
		return session_status(s);
	result = dsc_result_new();
	if (!result)
		return say(STATUS_FAILED, "out of memory");
	while ((r = session_next(s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR || dsc_result_add(result, e) < 0) {
			r = e->type == DSC_EVENT_ERROR ? session_status(s)
						       : say(STATUS_FAILED, "out of memory");
			dsc_result_free(result);
			return r;
		}
	}
	if (r < 0) {
		dsc_result_free(result);
		return s->interrupted ? STATUS_INTERRUPTED : say(STATUS_FAILED, "%s", strerror(-r));
	}
	*ret = result;
	return 0;
}

/* A bar that is drawn over; without a stage it goes. */
static void draw_progress(const struct session *s, const char *stage, float progress)
{
	static const char full[] = "##############################";
	int cells = (int)(progress * (float)(sizeof(full) - 1));

	if (s->quiet || !isatty(STDERR_FILENO))
		return;
	fputs("\r\033[K", stderr);
	if (stage)
		fprintf(stderr, "[%-*.*s] %3.0f%% %s", (int)sizeof(full) - 1, cells, full,
			(double)progress * 100, stage);
	fflush(stderr);
}

int session_done(struct session *s, int r, struct dsc_stream *stream, uint64_t *ret)
{
	const struct dsc_event *e;
	int status = STATUS_OK;
	bool shown = false;

	if (r < 0)
		return session_status(s);
	while (status == STATUS_OK && (r = session_next(s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_PROGRESS) {
			draw_progress(s, e->stage, e->progress);
			shown = true;
			continue;
		}
		if (shown)
			draw_progress(s, NULL, 0);
		shown = false;
		if (e->type == DSC_EVENT_ERROR)
			status = session_status(s);
		if (e->type == DSC_EVENT_DONE && ret)
			*ret = e->count;
	}
	if (shown)
		draw_progress(s, NULL, 0);
	if (status == STATUS_OK && r < 0)
		status = session_failed(s, r);
	dsc_stream_free(stream);
	return status;
}
