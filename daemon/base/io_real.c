/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io_real.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"

int io_new(struct io **ret, enum io_backend backend, struct error *err)
{
	int r;

	if (backend == IO_EPOLL)
		return io_epoll_new(ret, err);
	r = io_uring_new(ret, err);
	if (r == 0 || backend == IO_URING)
		return r;
	log_notice("epoll instead of io_uring: %s", error_text(err, r));
	return io_epoll_new(ret, err);
}

int io_real_peer(struct io *io, int fd, struct io_peer *ret)
{
	struct ucred cred;
	socklen_t n = sizeof(cred);

	(void)io;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
		return -errno;
	*ret = (struct io_peer){.uid = cred.uid, .pid = cred.pid};
	return 0;
}

int io_real_send_now(struct io *io, int fd, const void *data, size_t n)
{
	ssize_t k = send(fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);

	(void)io;
	return k < 0 ? -errno : (int)k;
}

void io_real_shutdown(struct io *io, int fd)
{
	(void)io;
	shutdown(fd, SHUT_RDWR);
}

void io_real_close(struct io *io, int fd)
{
	(void)io;
	fd_close(fd);
}

uint64_t io_real_now_usec(struct io *io)
{
	struct timespec ts;

	(void)io;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t io_real_cpu_usec(struct io *io)
{
	struct timespec t;

	(void)io;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void io_real_random(struct io *io, void *ret, size_t n)
{
	uint8_t *p = ret;

	(void)io;
	while (n) {
		ssize_t got = getrandom(p, MIN(n, (size_t)256), 0);

		if (got <= 0)
			continue; /* EINTR alone is possible at this size */
		p += got;
		n -= (size_t)got;
	}
}

int io_real_memfd(struct io *io, const char *name, uint64_t n_bytes, unsigned seals)
{
	_cleanup_(fd_closep) int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	(void)io;
	if (fd < 0 || ftruncate(fd, (off_t)n_bytes) < 0 || fcntl(fd, F_ADD_SEALS, (int)seals) < 0)
		return -errno;
	return TAKE_FD(fd);
}

void *io_real_map(struct io *io, int fd, uint64_t n_bytes, bool writable)
{
	void *p = mmap(NULL, n_bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);

	(void)io;
	if (p == MAP_FAILED)
		return NULL;
	/* Pages are somebody's words: not for core files. */
	madvise(p, n_bytes, MADV_DONTDUMP);
	return p;
}

void io_real_unmap(struct io *io, void *p, uint64_t n_bytes)
{
	(void)io;
	if (p)
		munmap(p, n_bytes);
}

void *io_real_alloc(struct io *io, size_t n)
{
	(void)io;
	return calloc(1, n);
}

int io_real_spawn(struct io *io, const struct io_spawn *what, pid_t *ret_pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	pid_t pid;
	int r, fd;

	(void)io;
	r = posix_spawn_file_actions_init(&actions);
	if (r)
		return -r;
	r = posix_spawnattr_init(&attr);
	if (r) {
		posix_spawn_file_actions_destroy(&actions);
		return -r;
	}
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	r = posix_spawn_file_actions_adddup2(&actions, what->fd, 3);
	if (!r)
		r = posix_spawn_file_actions_addclosefrom_np(&actions, 4);
	if (!r)
		r = posix_spawn(&pid, what->path, &actions, &attr, what->argv, what->envp);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (r)
		return -r;
	fd = pidfd_open(pid, 0); /* ours and not reaped: it cannot be another's */
	if (fd < 0) {
		r = -errno;
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return r;
	}
	*ret_pid = pid;
	return fd;
}

int io_real_reap(struct io *io, int pidfd, int *ret_status)
{
	siginfo_t info = {};

	(void)io;
	if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0)
		return -errno;
	if (info.si_pid == 0)
		return -EAGAIN;
	*ret_status = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
	return 0;
}

void io_real_kill(struct io *io, int pidfd, int signal)
{
	(void)io;
	pidfd_send_signal(pidfd, signal, NULL, 0);
}
