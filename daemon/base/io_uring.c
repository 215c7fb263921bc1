/* SPDX-License-Identifier: Apache-2.0 */
/* The seam over io_uring.
 *
 * One ring, SINGLE_ISSUER, never SQPOLL (measured: unusable on two cores). Accept and receive are
 * multishot; receive is recvmsg with a provided-buffer ring, because plain receive drops descriptors
 * silently. A buffer goes back to the kernel at the next io_wait(). A CQE's user_data holds an
 * operation's index and generation: an answer to an operation that is gone is recognised and dropped.
 * Multishot operations that the kernel ends by itself (no buffers left, overflow) are armed again
 * here, so that callers see one operation with one end. */
#include "base/io.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io_real.h"

#define RING_ENTRIES  512u
#define OPS_MAX       65536u
#define BUFFERS       256u /* power of two */
#define BUFFER_BYTES  8192u
#define BUFFER_GROUP  0
#define CONTROL_BYTES CMSG_SPACE(sizeof(int)) /* room for one descriptor, no more */
#define TAG_WORKERS   UINT64_MAX

struct op {
	uint64_t tag;
	uint32_t generation;
	uint32_t next_free;
	int fd;
	enum io_op kind;
	bool used, cancelled;
};

struct ring_io {
	struct io io;
	struct io_uring ring;
	bool ring_ok;
	struct io_uring_buf_ring *buffers; /* entries, mapped */
	uint8_t *buffer_data;
	uint32_t buffer_tail;
	uint16_t lent[BUFFERS]; /* to be given back at the next wait */
	unsigned n_lent;
	struct msghdr recv_msg; /* the shape of every receive */
	struct op *ops;
	uint32_t n_ops, free_op;
	struct io_workers *workers;
	bool workers_polled;
};

static struct ring_io *ring_io(struct io *io)
{
	return (struct ring_io *)io;
}

static uint64_t op_user_data(const struct ring_io *u, uint32_t i)
{
	return (uint64_t)u->ops[i].generation << 32 | (i + 1); /* 0 is nobody's */
}

static struct io_uring_sqe *get_sqe(struct ring_io *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) {
		io_uring_submit(&u->ring);
		sqe = io_uring_get_sqe(&u->ring);
	}
	return sqe;
}

static int op_arm(struct ring_io *u, uint32_t i)
{
	struct op *op = &u->ops[i];
	struct io_uring_sqe *sqe = get_sqe(u);

	if (!sqe)
		return -ENOBUFS;
	switch (op->kind) {
	case IO_ACCEPT:
		io_uring_prep_multishot_accept(sqe, op->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case IO_RECV:
		io_uring_prep_recvmsg_multishot(sqe, op->fd, &u->recv_msg, MSG_CMSG_CLOEXEC);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = BUFFER_GROUP;
		break;
	case IO_POLL:
	case IO_WORK:
		io_uring_prep_poll_multishot(sqe, op->fd, POLLIN);
		break;
	default:
		return -EINVAL;
	}
	io_uring_sqe_set_data64(sqe, op_user_data(u, i));
	return 0;
}

static int op_new(struct ring_io *u, enum io_op kind, int fd, uint64_t tag, uint32_t *ret)
{
	uint32_t i = u->free_op;

	if (i == UINT32_MAX) {
		uint32_t n = MAX(64u, u->n_ops * 2);
		struct op *ops;

		if (u->n_ops >= OPS_MAX)
			return -ENOBUFS;
		ops = realloc(u->ops, n * sizeof(*ops));
		if (!ops)
			return -ENOMEM;
		for (uint32_t k = u->n_ops; k < n; k++)
			ops[k] = (struct op){.next_free = k + 1 < n ? k + 1 : UINT32_MAX};
		i = u->n_ops;
		u->ops = ops;
		u->n_ops = n;
	}
	u->free_op = u->ops[i].next_free;
	u->ops[i] = (struct op){.tag = tag,
				.generation = u->ops[i].generation + 1,
				.fd = fd,
				.kind = kind,
				.used = true};
	*ret = i;
	return 0;
}

static void op_free(struct ring_io *u, uint32_t i)
{
	u->ops[i].used = false;
	u->ops[i].next_free = u->free_op;
	u->free_op = i;
}

static int op_start(struct ring_io *u, enum io_op kind, int fd, uint64_t tag)
{
	uint32_t i;
	int r = op_new(u, kind, fd, tag, &i);

	if (r < 0)
		return r;
	r = op_arm(u, i);
	if (r < 0)
		op_free(u, i);
	return r;
}

static int uring_accept(struct io *io, int fd, uint64_t tag)
{
	return op_start(ring_io(io), IO_ACCEPT, fd, tag);
}

static int uring_recv(struct io *io, int fd, uint64_t tag)
{
	return op_start(ring_io(io), IO_RECV, fd, tag);
}

static int uring_poll(struct io *io, int fd, uint64_t tag)
{
	return op_start(ring_io(io), IO_POLL, fd, tag);
}

static int uring_send(struct io *io, int fd, const void *data, size_t n, uint64_t tag)
{
	struct ring_io *u = ring_io(io);
	struct io_uring_sqe *sqe;
	uint32_t i;
	int r = op_new(u, IO_SEND, fd, tag, &i);

	if (r < 0)
		return r;
	sqe = get_sqe(u);
	if (!sqe) {
		op_free(u, i);
		return -ENOBUFS;
	}
	io_uring_prep_send(sqe, fd, data, n, MSG_NOSIGNAL);
	io_uring_sqe_set_data64(sqe, op_user_data(u, i));
	return 0;
}

static int uring_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	struct ring_io *u = ring_io(io);
	int r;

	if (!u->workers_polled) {
		r = op_start(u, IO_WORK, io_workers_fd(u->workers), TAG_WORKERS);
		if (r < 0)
			return r;
		u->workers_polled = true;
	}
	return io_workers_add(u->workers, fn, arg, tag);
}

static void uring_cancel(struct io *io, int fd)
{
	struct ring_io *u = ring_io(io);
	struct io_uring_sqe *sqe = get_sqe(u);

	for (uint32_t i = 0; i < u->n_ops; i++)
		if (u->ops[i].used && u->ops[i].fd == fd)
			u->ops[i].cancelled = true;
	if (!sqe)
		return;
	io_uring_prep_cancel_fd(sqe, fd, IORING_ASYNC_CANCEL_ALL);
	io_uring_sqe_set_data64(sqe, 0);
	/* At once: the caller may close or shut the descriptor down right after. */
	io_uring_submit(&u->ring);
}

static void buffers_give_back(struct ring_io *u)
{
	for (unsigned k = 0; k < u->n_lent; k++) {
		uint16_t id = u->lent[k];

		io_uring_buf_ring_add(u->buffers, u->buffer_data + (size_t)id * BUFFER_BYTES,
				      BUFFER_BYTES, id, io_uring_buf_ring_mask(BUFFERS), (int)k);
	}
	if (u->n_lent)
		io_uring_buf_ring_advance(u->buffers, (int)u->n_lent);
	u->n_lent = 0;
}

static void take_descriptors(struct ring_io *u, struct io_uring_recvmsg_out *out,
			     struct io_event *ev)
{
	struct cmsghdr *c;

	ev->truncated = out->flags & MSG_CTRUNC;
	for (c = io_uring_recvmsg_cmsg_firsthdr(out, &u->recv_msg); c;
	     c = io_uring_recvmsg_cmsg_nexthdr(out, &u->recv_msg, c)) {
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

/* A receive: false where nothing is to be told (the operation was armed again). */
static bool complete_recv(struct ring_io *u, const struct io_uring_cqe *cqe, struct io_event *ev)
{
	struct io_uring_recvmsg_out *out;
	uint16_t id;

	if (!(cqe->flags & IORING_CQE_F_BUFFER))
		return true; /* end or error */
	id = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
	u->lent[u->n_lent++] = id;
	if (cqe->res < 0)
		return true;
	out = io_uring_recvmsg_validate(u->buffer_data + (size_t)id * BUFFER_BYTES, cqe->res,
					&u->recv_msg);
	if (!out) {
		ev->res = -EBADMSG;
		return true;
	}
	ev->data = io_uring_recvmsg_payload(out, &u->recv_msg);
	ev->res = (int)io_uring_recvmsg_payload_length(out, cqe->res, &u->recv_msg);
	take_descriptors(u, out, ev);
	return true;
}

static bool rearm_after(enum io_op kind, int res)
{
	switch (res) {
	case -ENOBUFS: /* recv: all buffers lent out */
	case -EINTR:
	case -EAGAIN:
		return true;
	case -ECANCELED:
		return false;
	case 0:
		return kind == IO_POLL;
	default: /* the kernel ended a healthy multishot (overflow of completions) */
		return res > 0;
	}
}

/* One completion into at most one event. Return: number of events written (0 or 1). */
static int complete(struct ring_io *u, const struct io_uring_cqe *cqe, struct io_event *ev)
{
	uint64_t user_data = io_uring_cqe_get_data64(cqe);
	uint32_t i = (uint32_t)user_data - 1;
	bool more = cqe->flags & IORING_CQE_F_MORE;
	struct op *op;

	if ((uint32_t)user_data == 0 || i >= u->n_ops || !u->ops[i].used ||
	    u->ops[i].generation != (uint32_t)(user_data >> 32))
		return 0;
	op = &u->ops[i];
	*ev = (struct io_event){.tag = op->tag, .op = op->kind, .res = cqe->res, .fd = -EBADF};
	if (op->kind == IO_RECV)
		complete_recv(u, cqe, ev);
	if (op->tag == TAG_WORKERS) {
		eventfd_t count;

		eventfd_read(op->fd, &count);
	}
	if (more)
		return op->tag == TAG_WORKERS ? 0 : 1;
	if (op->kind != IO_SEND && !op->cancelled && rearm_after(op->kind, ev->res) &&
	    op_arm(u, i) == 0) {
		/* -ENOBUFS and its kin are ours to mend, not an event. */
		return ev->res > 0 && op->tag != TAG_WORKERS ? 1 : 0;
	}
	ev->last = true;
	op_free(u, i);
	return ev->tag == TAG_WORKERS ? 0 : 1;
}

static unsigned drain_workers(struct ring_io *u, struct io_event *ret, unsigned max)
{
	unsigned n = 0;
	uint64_t tag;

	while (n < max && io_workers_done(u->workers, &tag))
		ret[n++] = (struct io_event){.tag = tag, .op = IO_WORK, .last = true, .fd = -EBADF};
	return n;
}

static int wait_once(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	struct ring_io *u = ring_io(io);
	struct io_uring_cqe *cqe;
	unsigned n, seen = 0, head;
	int r;

	buffers_give_back(u);
	n = drain_workers(u, ret, max);
	if (n == 0 && io_uring_cq_ready(&u->ring) == 0) {
		struct __kernel_timespec ts = {};
		uint64_t now = io_real_now_usec(io);

		if (deadline_usec > now && deadline_usec != UINT64_MAX) {
			ts.tv_sec = (long long)((deadline_usec - now) / 1000000);
			ts.tv_nsec = (long long)((deadline_usec - now) % 1000000 * 1000);
		}
		r = io_uring_submit_and_wait_timeout(
			&u->ring, &cqe, 1, deadline_usec == UINT64_MAX ? NULL : &ts, NULL);
		if (r < 0 && r != -ETIME && r != -EINTR && r != -EAGAIN && r != -EBUSY)
			return r;
	} else {
		io_uring_submit_and_get_events(&u->ring);
	}
	io_uring_for_each_cqe(&u->ring, head, cqe)
	{
		if (n == max)
			break;
		seen++;
		n += (unsigned)complete(u, cqe, &ret[n]);
	}
	io_uring_cq_advance(&u->ring, seen);
	return (int)(n + drain_workers(u, ret + n, max - n));
}

static int uring_wait(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	return io_real_wait(wait_once, io, ret, max, deadline_usec);
}

static void uring_free(struct io *io)
{
	struct ring_io *u = ring_io(io);

	io_workers_free(u->workers);
	if (u->ring_ok)
		io_uring_queue_exit(&u->ring);
	if (u->buffers)
		munmap(u->buffers, BUFFERS * sizeof(struct io_uring_buf));
	free(u->buffer_data);
	free(u->ops);
	free(u);
}

static const struct io_ops uring_ops = {
	.name = "io_uring",
	.free = uring_free,
	.accept = uring_accept,
	.recv = uring_recv,
	.send = uring_send,
	.poll = uring_poll,
	.work = uring_work,
	.cancel = uring_cancel,
	.wait = uring_wait,
	IO_REAL_OPS,
};

static int ring_init(struct ring_io *u, struct error *err)
{
	static const int needed[] = {IORING_OP_ACCEPT, IORING_OP_RECVMSG, IORING_OP_SEND,
				     IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};
	/* From what this kernel may have down to what it must have. */
	static const unsigned flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER,
		0,
	};
	struct io_uring_probe *probe;
	int r = -EINVAL;

	for (size_t i = 0; i < N_ELEMENTS(flags) && r == -EINVAL; i++) {
		struct io_uring_params p = {.flags = flags[i] | IORING_SETUP_CQSIZE,
					    .cq_entries = 4 * RING_ENTRIES};

		r = io_uring_queue_init_params(RING_ENTRIES, &u->ring, &p);
	}
	if (r < 0)
		return error_set(err, r, "io_uring_setup: %m");
	u->ring_ok = true;
	probe = io_uring_get_probe_ring(&u->ring);
	if (!probe)
		return error_set(err, -ENOSYS, "io_uring cannot say what it supports");
	for (size_t i = 0; i < N_ELEMENTS(needed); i++)
		if (!io_uring_opcode_supported(probe, needed[i]))
			r = -ENOSYS;
	io_uring_free_probe(probe);
	if (r == -ENOSYS)
		return error_set(err, r, "io_uring of this kernel lacks an operation dsd needs");
	return 0;
}

static int buffers_init(struct ring_io *u, struct error *err)
{
	struct io_uring_buf_reg reg = {.ring_entries = BUFFERS, .bgid = BUFFER_GROUP};
	void *p;
	int r;

	u->buffer_data = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_BYTES);
	if (!u->buffer_data)
		return -ENOMEM;
	p = mmap(NULL, BUFFERS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
		 MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	u->buffers = p;
	reg.ring_addr = (uintptr_t)p;
	r = io_uring_register_buf_ring(&u->ring, &reg, 0);
	if (r < 0)
		return error_set(err, r == -EINVAL ? -ENOSYS : r, "io_uring buffer ring: %m");
	io_uring_buf_ring_init(u->buffers);
	for (uint16_t id = 0; id < BUFFERS; id++)
		u->lent[u->n_lent++] = id;
	buffers_give_back(u);
	return 0;
}

int io_uring_new(struct io **ret, struct error *err)
{
	struct ring_io *u;
	int r;

	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	u->io.ops = &uring_ops;
	u->free_op = UINT32_MAX;
	u->recv_msg.msg_controllen = CONTROL_BYTES;
	r = ring_init(u, err);
	if (r == 0)
		r = buffers_init(u, err);
	if (r == 0)
		r = io_workers_new(&u->workers, 1);
	if (r < 0) {
		uring_free(&u->io);
		return r;
	}
	*ret = &u->io;
	return 0;
}
