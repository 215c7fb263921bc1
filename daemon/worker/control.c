/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/error.h"

void control_in_done(struct control_in *in)
{
	for (uint32_t i = 0; i < in->n_fds; i++)
		in->fds[i] = fd_close(in->fds[i]);
	in->n_fds = 0;
}

/* Descriptors first: whatever else is wrong with the message, they are ours to close. */
static void take_fds(struct control_in *in, struct msghdr *mh)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (in->n_fds < CONTROL_FDS_MAX)
				in->fds[in->n_fds++] = fd;
			else
				fd_close(fd);
		}
	}
}

int control_recv(int fd, struct control_in *ret, struct error *err)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
	} control;
	struct iovec iov = {.iov_base = &ret->msg, .iov_len = sizeof(ret->msg)};
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	ssize_t n;
	int r = -EBADMSG;

	ret->n_fds = 0;
	do
		n = recvmsg(fd, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == ECONNRESET)
		return 0;
	if (n < 0)
		return error_set(err, -errno, "receiving a control message: %m");
	take_fds(ret, &mh);
	if (n == 0 && ret->n_fds == 0)
		return 0;
	if (mh.msg_flags & MSG_CTRUNC)
		error_set(err, r, "control message with more than %u descriptors", CONTROL_FDS_MAX);
	else if (n != sizeof(ret->msg) || (mh.msg_flags & MSG_TRUNC))
		error_set(err, r, "control message of %zd bytes: want %zu", n, sizeof(ret->msg));
	else if (ret->msg.type == 0 || ret->msg.type >= _CONTROL_MAX)
		error_set(err, r, "control message of type %u: want 1 to %u", ret->msg.type,
			  _CONTROL_MAX - 1);
	else if (!memchr(ret->msg.text, 0, sizeof(ret->msg.text)))
		error_set(err, r, "control message whose text has no end");
	else
		return 1;
	control_in_done(ret);
	return r;
}

int control_send(int fd, const struct control_msg *msg, int attached, struct error *err)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = {.iov_base = (void *)msg, .iov_len = sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (attached >= 0) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &attached, sizeof(int));
	}
	do
		n = sendmsg(fd, &mh, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_set(err, -errno, "sending a control message: %m");
	return 0;
}

int control_send_text(int fd, enum control_type type, const char *text, uint64_t done,
		      uint64_t total, struct error *err)
{
	struct control_msg msg = {.type = type, .done = done, .total = total};

	snprintf(msg.text, sizeof(msg.text), "%s", text);
	return control_send(fd, &msg, -1, err);
}
