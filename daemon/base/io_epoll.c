/* SPDX-License-Identifier: Apache-2.0 */
/* The seam over epoll, where io_uring is forbidden.
 *
 * A descriptor has at most one reading operation (accept, receive, poll) and one send, kept in a table
 * by descriptor. Readiness becomes completions: what is ready is done inside io_wait(). A send is
 * tried at once, since a socket's buffer is mostly free; what does not fit waits for EPOLLOUT. Polls
 * are edge-triggered, receives level-triggered. Events made outside of epoll_wait() (a send that went
 * through, a cancelled operation) wait in a queue for the next io_wait(). */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io_real.h"

#define EVENTS       64u
#define BUFFER_BYTES 8192u

struct watch {
	bool reading, sending, registered;
	enum io_op kind; /* of the reading operation */
	uint64_t read_tag, send_tag;
	const uint8_t *data; /* what the send has left */
	size_t n;
};

struct epoll_io {
	struct io io;
	int fd;
	struct watch *watches; /* by descriptor */
	int n_watches;
	struct io_event *queue; /* ring of events that are due */
	unsigned queue_at, queue_n, queue_alloc;
	uint8_t (*buffers)[BUFFER_BYTES]; /* [EVENTS] */
	struct io_workers *workers;
};

static struct epoll_io *epoll_io(struct io *io)
{
	return (struct epoll_io *)io;
}

static int queue_reserve(struct epoll_io *u, unsigned n)
{
	unsigned want = MAX(64u, u->queue_alloc);
	struct io_event *p;

	while (want < u->queue_n + n)
		want *= 2;
	if (want == u->queue_alloc)
		return 0;
	p = malloc(want * sizeof(*p));
	if (!p)
		return -ENOMEM;
	for (unsigned i = 0; i < u->queue_n; i++)
		p[i] = u->queue[(u->queue_at + i) % u->queue_alloc];
	free(u->queue);
	u->queue = p;
	u->queue_at = 0;
	u->queue_alloc = want;
	return 0;
}

/* Room was reserved when the operation began. */
static void queue_push(struct epoll_io *u, uint64_t tag, enum io_op op, int res)
{
	u->queue[(u->queue_at + u->queue_n++) % u->queue_alloc] =
		(struct io_event){.tag = tag, .op = op, .last = true, .res = res, .fd = -EBADF};
}

static struct watch *watch_get(struct epoll_io *u, int fd)
{
	if (fd >= u->n_watches) {
		int n = MAX(fd + 1, u->n_watches * 2);
		struct watch *p = realloc(u->watches, (size_t)n * sizeof(*p));

		if (!p)
			return NULL;
		memset(p + u->n_watches, 0, (size_t)(n - u->n_watches) * sizeof(*p));
		u->watches = p;
		u->n_watches = n;
	}
	/* Two operations a descriptor, one event each may have to be queued. */
	if (queue_reserve(u, 2u * EVENTS) < 0)
		return NULL;
	return &u->watches[fd];
}

static int watch_update(struct epoll_io *u, int fd)
{
	struct watch *w = &u->watches[fd];
	struct epoll_event ev = {.data.fd = fd};
	int r;

	if (w->reading)
		ev.events |= EPOLLIN | (w->kind == IO_POLL ? EPOLLET : 0u);
	if (w->sending)
		ev.events |= EPOLLOUT;
	if (!w->reading && !w->sending) {
		if (w->registered)
			epoll_ctl(u->fd, EPOLL_CTL_DEL, fd, NULL);
		w->registered = false;
		return 0;
	}
	r = epoll_ctl(u->fd, w->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev);
	if (r < 0)
		return -errno;
	w->registered = true;
	return 0;
}

static int start_reading(struct io *io, enum io_op kind, int fd, uint64_t tag)
{
	struct epoll_io *u = epoll_io(io);
	struct watch *w = watch_get(u, fd);
	int r;

	if (!w)
		return -ENOMEM;
	if (w->reading)
		return -EBUSY;
	w->reading = true;
	w->kind = kind;
	w->read_tag = tag;
	r = watch_update(u, fd);
	w->reading = r == 0;
	return r;
}

static int ep_accept(struct io *io, int fd, uint64_t tag)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return start_reading(io, IO_ACCEPT, fd, tag);
}

static int ep_recv(struct io *io, int fd, uint64_t tag)
{
	return start_reading(io, IO_RECV, fd, tag);
}

static int ep_poll(struct io *io, int fd, uint64_t tag)
{
	return start_reading(io, IO_POLL, fd, tag);
}

static int ep_send(struct io *io, int fd, const void *data, size_t n, uint64_t tag)
{
	struct epoll_io *u = epoll_io(io);
	struct watch *w = watch_get(u, fd);
	ssize_t k;
	int r;

	if (!w)
		return -ENOMEM;
	if (w->sending)
		return -EBUSY;
	k = send(fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (k >= 0 || (errno != EAGAIN && errno != EINTR)) {
		r = queue_reserve(u, 2u * EVENTS);
		if (r == 0)
			queue_push(u, tag, IO_SEND, k >= 0 ? (int)k : -errno);
		return r;
	}
	w->sending = true;
	w->send_tag = tag;
	w->data = data;
	w->n = n;
	r = watch_update(u, fd);
	w->sending = r == 0;
	return r;
}

static int ep_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	return io_workers_add(epoll_io(io)->workers, fn, arg, tag);
}

static void ep_cancel(struct io *io, int fd)
{
	struct epoll_io *u = epoll_io(io);
	struct watch *w;

	if (fd < 0 || fd >= u->n_watches || queue_reserve(u, 2u * EVENTS) < 0)
		return;
	w = &u->watches[fd];
	if (w->reading)
		queue_push(u, w->read_tag, w->kind, -ECANCELED);
	if (w->sending)
		queue_push(u, w->send_tag, IO_SEND, -ECANCELED);
	w->reading = w->sending = false;
	watch_update(u, fd);
}

static void take_descriptors(struct msghdr *mh, struct io_event *ev)
{
	ev->truncated = mh->msg_flags & MSG_CTRUNC;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n =
			c->cmsg_len > CMSG_LEN(0) ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t k = 0; k < n; k++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof(fd));
			if (ev->fd < 0) {
				ev->fd = fd;
			} else {
				fd_close(fd);
				ev->truncated = true;
			}
		}
	}
}

/* A piece of input into @buffer. Return: false where there was none after all. */
static bool do_recv(int fd, uint8_t *buffer, struct io_event *ev)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {buffer, BUFFER_BYTES};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof(control.buf)};
	ssize_t n = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	ev->res = n < 0 ? -errno : (int)n;
	ev->data = buffer;
	if (n >= 0)
		take_descriptors(&mh, ev);
	ev->last = n <= 0;
	return true;
}

static bool do_accept(int fd, struct io_event *ev)
{
	int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

	if (conn < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	ev->res = conn < 0 ? -errno : conn;
	ev->last = conn < 0 && errno != ECONNABORTED;
	return true;
}

/* What epoll told of one descriptor's reading side. Return: events written, 0 or 1. */
static unsigned ready_to_read(struct epoll_io *u, int fd, uint8_t *buffer, struct io_event *ev)
{
	struct watch *w = &u->watches[fd];
	bool told = false;

	*ev = (struct io_event){.tag = w->read_tag, .op = w->kind, .fd = -EBADF};
	switch (w->kind) {
	case IO_ACCEPT:
		told = do_accept(fd, ev);
		break;
	case IO_RECV:
		told = do_recv(fd, buffer, ev);
		break;
	default:
		ev->res = POLLIN;
		told = true;
	}
	if (told && ev->last) {
		w->reading = false;
		watch_update(u, fd);
	}
	return told;
}

static unsigned ready_to_send(struct epoll_io *u, int fd, struct io_event *ev)
{
	struct watch *w = &u->watches[fd];
	ssize_t n = send(fd, w->data, w->n, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	*ev = (struct io_event){.tag = w->send_tag,
				.op = IO_SEND,
				.last = true,
				.res = n < 0 ? -errno : (int)n,
				.fd = -EBADF};
	w->sending = false;
	watch_update(u, fd);
	return 1;
}

static unsigned take_queue(struct epoll_io *u, struct io_event *ret, unsigned max)
{
	unsigned n = 0;
	uint64_t tag;

	for (; n < max && u->queue_n > 0; n++) {
		ret[n] = u->queue[u->queue_at];
		u->queue_at = (u->queue_at + 1) % u->queue_alloc;
		u->queue_n--;
	}
	while (n < max && io_workers_done(u->workers, &tag))
		ret[n++] = (struct io_event){.tag = tag, .op = IO_WORK, .last = true, .fd = -EBADF};
	return n;
}

static int timeout_ms(struct io *io, uint64_t deadline_usec)
{
	uint64_t now;

	if (deadline_usec == UINT64_MAX)
		return -1;
	now = io_real_now_usec(io);
	return deadline_usec <= now
		       ? 0
		       : (int)MIN((deadline_usec - now + 999) / 1000, UINT64_C(3600000));
}

static int wait_once(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	struct epoll_io *u = epoll_io(io);
	struct epoll_event ready[EVENTS];
	unsigned n = take_queue(u, ret, max), room;
	int k;

	if (n == max)
		return (int)n;
	/* A descriptor gives two events at the most. */
	room = MIN(EVENTS, (max - n) / 2);
	k = epoll_wait(u->fd, ready, (int)MAX(1u, room), n ? 0 : timeout_ms(io, deadline_usec));
	if (k < 0)
		return errno == EINTR ? (int)n : -errno;
	for (int i = 0; i < k; i++) {
		int fd = ready[i].data.fd;
		struct watch *w;
		eventfd_t count;

		if (fd == io_workers_fd(u->workers)) {
			eventfd_read(fd, &count);
			continue;
		}
		w = &u->watches[fd];
		if (w->sending && (ready[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) && n < max)
			n += ready_to_send(u, fd, &ret[n]);
		if (w->reading && (ready[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && n < max)
			n += ready_to_read(u, fd, u->buffers[i], &ret[n]);
	}
	return (int)(n + take_queue(u, ret + n, max - n));
}

static int ep_wait(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	return io_real_wait(wait_once, io, ret, max, deadline_usec);
}

static void ep_free(struct io *io)
{
	struct epoll_io *u = epoll_io(io);

	io_workers_free(u->workers);
	fd_close(u->fd);
	free(u->watches);
	free(u->queue);
	free(u->buffers);
	free(u);
}

static const struct io_ops ep_ops = {
	.name = "epoll",
	.free = ep_free,
	.accept = ep_accept,
	.recv = ep_recv,
	.send = ep_send,
	.poll = ep_poll,
	.work = ep_work,
	.cancel = ep_cancel,
	.wait = ep_wait,
	IO_REAL_OPS,
};

int io_epoll_new(struct io **ret, struct error *err)
{
	struct epoll_event ev = {.events = EPOLLIN};
	struct epoll_io *u;
	int r;

	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	u->io.ops = &ep_ops;
	u->fd = epoll_create1(EPOLL_CLOEXEC);
	r = u->fd < 0 ? -errno : 0;
	u->buffers = calloc(EVENTS, BUFFER_BYTES);
	if (r == 0)
		r = u->buffers ? queue_reserve(u, 2u * EVENTS) : -ENOMEM;
	if (r == 0)
		r = io_workers_new(&u->workers, 1);
	if (r == 0) {
		ev.data.fd = io_workers_fd(u->workers);
		r = epoll_ctl(u->fd, EPOLL_CTL_ADD, ev.data.fd, &ev) < 0 ? -errno : 0;
	}
	if (r < 0) {
		ep_free(&u->io);
		return error_set(err, r, "epoll: %m");
	}
	*ret = &u->io;
	return 0;
}
