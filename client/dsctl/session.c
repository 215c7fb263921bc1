/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "args.h"
#include "output.h"

#define CANCEL_WAIT_MS 1000

int session_open(struct session *s, const struct global *global)
{
	sigset_t set;
	int r;

	*s = (struct session){.path = dsc_socket_path(global->socket), .signal_fd = -EBADF};
	r = dsc_connect(&s->c, global->socket, 0);
	if (r < 0)
		return say(STATUS_CONNECT, "cannot connect to %s: %s", s->path, strerror(-r));
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0) /* then Ctrl-C ends the program, and the daemon notices */
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 0;
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
	r = dsc_connect(&c, s->path, 0);
	if (r < 0)
		return say(STATUS_CONNECT, "cannot connect to %s: %s", s->path, strerror(-r));
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
		int n = poll(p, 2, s->interrupted ? CANCEL_WAIT_MS : -1);

		if (n == 0)
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
	if (code == DSC_CODE_NONE)
		return say(STATUS_FAILED, "%s", dsc_error(s->c));
	return say(code == DSC_CODE_MODEL_INVALID ? STATUS_MODEL : STATUS_FAILED, "%s: %s",
		   dsc_code_name(code), dsc_error(s->c));
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
