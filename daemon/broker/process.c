/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/process.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "broker/server.h"

#define FILES_MAX 512u

/* Descriptors the loop watches are closed after their poll has ended: cancel first. */
static void drop_fd(struct process *p, int *fd, bool *polled)
{
	if (*fd >= 0 && *polled)
		io_cancel(p->server->io, *fd);
	*polled = false;
	*fd = fd_close(*fd);
}

void process_hang_up(struct process *p)
{
	drop_fd(p, &p->control, &p->control_polled);
}

void process_kill(struct process *p)
{
	if (p->pidfd >= 0)
		io_kill(p->server->io, p->pidfd, SIGKILL);
}

bool process_reap(struct process *p, int *ret_status)
{
	if (p->pidfd < 0 || io_reap(p->server->io, p->pidfd, ret_status) < 0)
		return false;
	drop_fd(p, &p->pidfd, &p->pid_polled);
	process_hang_up(p);
	return true;
}

int process_spawn(struct process *p, struct server *s, struct error *err)
{
	const struct timeval patience = {.tv_sec = 2};
	char *argv[] = {(char *)"dsd-worker", (char *)"--control-fd", (char *)"3",
			s->fake_worker ? (char *)"--fake" : NULL, NULL};
	struct io_spawn what = {.path = s->worker_path, .argv = argv, .envp = environ};
	int pair[2], r;

	*p = (struct process){
		.server = s,
		.generation = ++s->n_workers,
		.pidfd = -EBADF,
		.control = -EBADF,
	};
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(err, -errno, "socketpair for a worker: %m");
	setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	p->control = pair[0];
	what.fd = pair[1];
	p->pidfd = io_spawn(s->io, &what, &p->pid);
	close(pair[1]);
	if (p->pidfd < 0)
		return error_set(err, p->pidfd, "starting %.300s: %m", s->worker_path);
	p->born_usec = io_now_usec(s->io);
	r = io_poll(s->io, p->pidfd, tag_make(TAG_WORKER_PID, 0, p->generation));
	p->pid_polled = r == 0;
	if (r == 0) {
		r = io_poll(s->io, p->control, tag_make(TAG_WORKER_CONTROL, 0, p->generation));
		p->control_polled = r == 0;
	}
	return r < 0 ? error_set(err, r, "watching a worker: %m") : 0;
}

int process_send(struct process *p, const struct control_msg *msg, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
	} control = {};
	struct iovec iov = {(void *)msg, sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	assert(n_fds <= CONTROL_FDS_MAX);
	if (n_fds) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	return sendmsg(p->control, &mh, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static bool wanted_file(const char *name)
{
	static const char *const names[] = {
		"config.json",           "generation_config.json",       "tokenizer.json",
		"tokenizer_config.json", "model.safetensors.index.json", "SHA256SUMS"};
	size_t n = strlen(name);

	for (size_t i = 0; i < N_ELEMENTS(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
}

/* XOR, so that the order of a directory is of no matter: names in it differ. */
static void add_source(uint8_t source[HASH_MAC_BYTES], const uint8_t key[HASH_KEY_BYTES],
		       const char *name, const struct stat *st)
{
	const uint64_t numbers[] = {
		(uint64_t)st->st_dev,          (uint64_t)st->st_ino,
		(uint64_t)st->st_size,         (uint64_t)st->st_mtim.tv_sec,
		(uint64_t)st->st_mtim.tv_nsec, (uint64_t)st->st_ctim.tv_sec,
		(uint64_t)st->st_ctim.tv_nsec,
	};
	const struct hash_part parts[] = {
		{"file", 4}, {name, strlen(name)}, {numbers, sizeof(numbers)}};
	uint8_t mac[HASH_MAC_BYTES];

	hash_mac(mac, key, parts, N_ELEMENTS(parts));
	for (unsigned i = 0; i < sizeof(mac); i++)
		source[i] ^= mac[i];
}

static int send_file(struct process *p, int dir, const char *name, uint8_t source[HASH_MAC_BYTES],
		     struct error *err)
{
	_cleanup_(fd_closep) int fd =
		openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct control_msg msg = {.type = CONTROL_FILE};
	struct stat st;
	int r;

	if (fd < 0)
		return error_set(err, -errno, "%.200s: %m", name);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%.200s: want a regular file", name);
	if (strlen(name) >= sizeof(msg.text))
		return error_set(err, -ENAMETOOLONG, "%.64s...: the name is too long", name);
	strcpy(msg.text, name);
	add_source(source, p->server->packed.key, name, &st);
	r = process_send(p, &msg, &fd, 1);
	return r < 0 ? error_set(err, r, "passing %.200s to the worker: %m", name) : 0;
}

int process_send_files(struct process *p, const char *path, uint8_t ret_source[HASH_MAC_BYTES],
		       struct error *err)
{
	DIR *dir = opendir(path);
	uint32_t n = 0;
	struct dirent *d;
	int r = 0;

	memset(ret_source, 0, HASH_MAC_BYTES);
	if (!dir && errno == ENOTDIR)
		return error_set(err, -ENOTDIR,
				 "%.300s: not a directory: want one with config.json and "
				 "*.safetensors in it",
				 path);
	if (!dir)
		return error_set(err, -errno, "%.300s: %m", path);
	while (r == 0 && (d = readdir(dir))) {
		if (!wanted_file(d->d_name))
			continue;
		if (++n > FILES_MAX)
			r = error_set(err, -E2BIG, "%.300s: more than %u files", path, FILES_MAX);
		else
			r = send_file(p, dirfd(dir), d->d_name, ret_source, err);
	}
	closedir(dir);
	if (r == 0 && n == 0)
		r = error_set(err, -ENOENT, "%.300s: no config.json and no *.safetensors in it",
			      path);
	return r;
}

/* One descriptor is taken, whatever comes besides is closed: the control buffer's padding holds two. */
static int take_fd(struct msghdr *mh, int *ret_fd)
{
	int r = mh->msg_flags & (MSG_CTRUNC | MSG_TRUNC) ? -EPROTO : 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n =
			c->cmsg_len > CMSG_LEN(0) ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t k = 0; k < n; k++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof(fd));
			if (*ret_fd >= 0) {
				fd_close(fd);
				r = -EPROTO;
			} else {
				*ret_fd = fd;
			}
		}
	}
	return r;
}

/* What a worker says is shown to people, put into STATUS= and sent on: printable ASCII, one line. */
static void make_printable(char *text, size_t n)
{
	text[n - 1] = 0;
	for (; *text; text++)
		if (*text < 0x20 || *text > 0x7e)
			*text = '?';
}

int process_recv(struct process *p, struct control_msg *msg, int *ret_fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {msg, sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof(control.buf)};
	ssize_t n = recvmsg(p->control, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int r;

	*ret_fd = -EBADF;
	if (n < 0)
		return 0;
	r = take_fd(&mh, ret_fd);
	if (n == 0 && r == 0 && *ret_fd < 0)
		return 0;
	if (r < 0 || n != sizeof(*msg))
		return -EPROTO;
	make_printable(msg->text, sizeof(msg->text));
	return 1;
}
