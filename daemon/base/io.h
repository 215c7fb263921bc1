#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The seam: everything the broker asks of the kernel, the clock and chance goes through one table.
 *
 * Real implementations differ in how completions arrive (io_uring, epoll); a simulated one has its own
 * clock and wires, a faulting one wraps another and fails the nth call. The broker is a single loop
 * over io_wait(); operations name their answer by a tag that the caller chose, never by a pointer.
 *
 * Every operation that was accepted ends with exactly one event with `last` set; only then may its
 * memory be reused. A descriptor may be closed once its operations have ended or io_cancel() was
 * called for it. Thread: the broker's alone, except io_work_fn. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct error;

enum io_op { IO_ACCEPT, IO_RECV, IO_SEND, IO_POLL, IO_WORK, _IO_OP_MAX };

struct io_event {
	uint64_t tag;
	enum io_op op;
	bool last;      /* the operation is over */
	bool truncated; /* IO_RECV: more descriptors came than the one we take */
	int res; /* accept: descriptor; recv, send: bytes (recv 0: end); poll: POLL* bits; or -errno */
	int fd; /* IO_RECV: a descriptor that came along, now the receiver's; else -EBADF */
	const uint8_t *data; /* IO_RECV: res bytes, valid until the next io_wait() */
};

/* Runs on another thread; must touch nothing but @arg. */
typedef void (*io_work_fn)(void *arg);

struct io_spawn {
	const char *path;
	char *const *argv;
	char *const *envp;
	int fd; /* becomes descriptor 3 of the child; every other one above 2 is closed */
};

/* Who is at the other end of a connection: the kernel's word, taken when it connected. */
struct io_peer {
	uid_t uid;
	pid_t pid;
};

struct io;
struct io_ops {
	const char *name;
	void (*free)(struct io *io);

	/* Loop. 0 or -errno; -ENOBUFS: too many operations. */
	int (*accept)(struct io *io, int fd, uint64_t tag); /* an event for each connection */
	int (*recv)(struct io *io, int fd,
		    uint64_t tag); /* an event for each piece, until end or error */
	int (*send)(struct io *io, int fd, const void *data, size_t n,
		    uint64_t tag); /* @data stays till the event */
	int (*poll)(struct io *io, int fd,
		    uint64_t tag); /* an event each time @fd becomes readable */
	int (*work)(struct io *io, io_work_fn fn, void *arg, uint64_t tag);
	void (*cancel)(struct io *io, int fd); /* ends all operations on @fd */
	int (*wait)(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec);

	/* A connection, at once. */
	int (*peer)(struct io *io, int fd, struct io_peer *ret);
	int (*send_now)(struct io *io, int fd, const void *data,
			size_t n);               /* what goes without waiting */
	void (*shutdown)(struct io *io, int fd); /* both ways */
	void (*close)(struct io *io, int fd);

	/* Clock and chance. */
	uint64_t (*now_usec)(struct io *io); /* monotonic */
	uint64_t (*cpu_usec)(struct io *io); /* processor time of this process, of all threads */
	void (*random)(struct io *io, void *ret, size_t n);

	/* Memory and processes. */
	int (*memfd)(struct io *io, const char *name, uint64_t n_bytes, unsigned seals);
	void *(*map)(struct io *io, int fd, uint64_t n_bytes, bool writable); /* NULL with errno */
	void (*unmap)(struct io *io, void *p, uint64_t n_bytes);
	void *(*alloc)(struct io *io, size_t n); /* zeroed; freed with free(); NULL: none left */
	int (*spawn)(struct io *io, const struct io_spawn *what, pid_t *ret_pid); /* pidfd */
	int (*reap)(struct io *io, int pidfd, int *ret_status); /* 0, or -EAGAIN while it lives */
	void (*kill)(struct io *io, int pidfd, int signal);
};
struct io {
	const struct io_ops *ops;
};

/** io_uring_new() - the io_uring backend; -ENOSYS, -EPERM: refused here, take another. */
int io_uring_new(struct io **ret, struct error *err);
/** io_epoll_new() - the epoll backend. */
int io_epoll_new(struct io **ret, struct error *err);

enum io_backend { IO_AUTO, IO_URING, IO_EPOLL, _IO_BACKEND_MAX };
/** io_new() - a real backend; IO_AUTO: io_uring, and epoll where that is refused. */
int io_new(struct io **ret, enum io_backend backend, struct error *err);

static inline struct io *io_free(struct io *io)
{
	if (io)
		io->ops->free(io);
	return NULL;
}
static inline int io_accept(struct io *io, int fd, uint64_t tag)
{
	return io->ops->accept(io, fd, tag);
}
static inline int io_recv(struct io *io, int fd, uint64_t tag)
{
	return io->ops->recv(io, fd, tag);
}
static inline int io_send(struct io *io, int fd, const void *data, size_t n, uint64_t tag)
{
	return io->ops->send(io, fd, data, n, tag);
}
static inline int io_poll(struct io *io, int fd, uint64_t tag)
{
	return io->ops->poll(io, fd, tag);
}
static inline int io_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	return io->ops->work(io, fn, arg, tag);
}
static inline void io_cancel(struct io *io, int fd)
{
	io->ops->cancel(io, fd);
}
/** io_peer() - Return: 0 or -errno. */
static inline int io_peer(struct io *io, int fd, struct io_peer *ret)
{
	return io->ops->peer(io, fd, ret);
}
/** io_send_now() - Return: bytes that the socket took without waiting, or -errno. */
static inline int io_send_now(struct io *io, int fd, const void *data, size_t n)
{
	return io->ops->send_now(io, fd, data, n);
}
static inline void io_shutdown(struct io *io, int fd)
{
	io->ops->shutdown(io, fd);
}
/** io_close() - a connection's descriptor; keeps errno. */
static inline void io_close(struct io *io, int fd)
{
	io->ops->close(io, fd);
}
static inline uint64_t io_cpu_usec(struct io *io)
{
	return io->ops->cpu_usec(io);
}
static inline uint64_t io_now_usec(struct io *io)
{
	return io->ops->now_usec(io);
}
/** io_wait() - number of events, 0 at the deadline (UINT64_MAX: none), or -errno. */
static inline int io_wait(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	return io->ops->wait(io, ret, max, deadline_usec);
}
static inline void io_random(struct io *io, void *ret, size_t n)
{
	io->ops->random(io, ret, n);
}
/** io_memfd() - a memfd of @n_bytes with @seals (F_SEAL_*) set; or -errno. */
static inline int io_memfd(struct io *io, const char *name, uint64_t n_bytes, unsigned seals)
{
	return io->ops->memfd(io, name, n_bytes, seals);
}
static inline void *io_map(struct io *io, int fd, uint64_t n_bytes, bool writable)
{
	return io->ops->map(io, fd, n_bytes, writable);
}
static inline void io_unmap(struct io *io, void *p, uint64_t n_bytes)
{
	io->ops->unmap(io, p, n_bytes);
}
static inline void *io_alloc(struct io *io, size_t n)
{
	return io->ops->alloc(io, n);
}
static inline int io_spawn(struct io *io, const struct io_spawn *what, pid_t *ret_pid)
{
	return io->ops->spawn(io, what, ret_pid);
}
static inline int io_reap(struct io *io, int pidfd, int *ret_status)
{
	return io->ops->reap(io, pidfd, ret_status);
}
static inline void io_kill(struct io *io, int pidfd, int signal)
{
	io->ops->kill(io, pidfd, signal);
}
