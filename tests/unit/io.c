/* SPDX-License-Identifier: Apache-2.0 */
/* The promises of base/io.h, kept by each real backend: unit-io io_uring, unit-io epoll. Skips where
 * io_uring is refused. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"

/* Only so that a lost event ends the test instead of hanging it. */
#define PATIENCE_USEC (20u * 1000000u)

static int (*new_io)(struct io **ret, struct error *err) = io_uring_new;

static int set_up(void **state)
{
	struct error err = {};
	struct io *io = NULL;
	int r = new_io(&io, &err);

	if (r < 0 && r != -ENOSYS && r != -EPERM)
		fail_msg("%s", err.text);
	*state = io;
	return 0;
}

static int tear_down(void **state)
{
	io_free(*state);
	return 0;
}

static struct io *get_io(void **state)
{
	if (!*state) {
		print_message("io_uring is refused here\n");
		skip();
	}
	return *state;
}

/* The next event; there must be one. */
static struct io_event next(struct io *io)
{
	struct io_event ev;
	int n = io_wait(io, &ev, 1, io_now_usec(io) + PATIENCE_USEC);

	if (n != 1)
		fail_msg("io_wait gave %d, want an event", n);
	return ev;
}

/* Nothing more comes. */
static void assert_quiet(struct io *io)
{
	struct io_event ev;

	for (int i = 0; i < 3; i++)
		assert_int_equal(io_wait(io, &ev, 1, io_now_usec(io) + 2000), 0);
}

static void make_pair(int fds[2], int type)
{
	assert_int_equal(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
}

static void close_pair(int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

static void send_fds(int sock, const void *data, size_t n, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(8 * sizeof(int))];
	} control = {};
	struct iovec iov = {(void *)data, n};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	assert_int_equal(sendmsg(sock, &msg, 0), n);
}

static void accept_gives_every_connection_until_cancelled(void **state)
{
	struct io *io = get_io(state);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(addr.sun_family); /* autobind: a name of the kernel's choice */
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), clients[8];
	struct io_event ev;

	assert_int_equal(bind(listener, (struct sockaddr *)&addr, len), 0);
	len = sizeof(addr);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	assert_int_equal(listen(listener, 16), 0);
	assert_int_equal(io_accept(io, listener, 77), 0);
	for (int i = 0; i < 8; i++) {
		clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(connect(clients[i], (struct sockaddr *)&addr, len), 0);
	}
	for (int i = 0; i < 8; i++) {
		char c = 0;

		ev = next(io);
		assert_int_equal(ev.tag, 77);
		assert_int_equal(ev.op, IO_ACCEPT);
		assert_false(ev.last);
		assert_true(ev.res >= 0);
		assert_true(fcntl(ev.res, F_GETFD) & FD_CLOEXEC);
		/* In the order they came. */
		assert_int_equal(write(clients[i], "x", 1), 1);
		assert_int_equal(read(ev.res, &c, 1), 1);
		close(ev.res);
		close(clients[i]);
	}
	io_cancel(io, listener);
	ev = next(io);
	assert_int_equal(ev.tag, 77);
	assert_true(ev.last);
	assert_int_equal(ev.res, -ECANCELED);
	assert_quiet(io);
	close(listener);
}

static void recv_gives_pieces_in_order_then_the_end(void **state)
{
	struct io *io = get_io(state);
	struct io_event ev;
	int s[2];

	make_pair(s, SOCK_STREAM);
	assert_int_equal(io_recv(io, s[0], 1), 0);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(write(s[1], &i, sizeof(i)), sizeof(i));
		ev = next(io);
		assert_int_equal(ev.op, IO_RECV);
		assert_false(ev.last);
		assert_int_equal(ev.res, sizeof(i));
		assert_memory_equal(ev.data, &i, sizeof(i));
		assert_int_equal(ev.fd, -EBADF);
	}
	close(s[1]);
	ev = next(io);
	assert_int_equal(ev.res, 0);
	assert_true(ev.last);
	assert_quiet(io);
	close(s[0]);
}

static void recv_hands_one_descriptor_over_once(void **state)
{
	struct io *io = get_io(state);
	int s[2], p[2];
	struct io_event ev;
	char c = 0;

	make_pair(s, SOCK_STREAM);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(io_recv(io, s[0], 1), 0);
	send_fds(s[1], "a", 1, &p[1], 1);
	ev = next(io);
	assert_int_equal(ev.res, 1);
	assert_true(ev.fd >= 0);
	assert_false(ev.truncated);
	assert_true(fcntl(ev.fd, F_GETFD) & FD_CLOEXEC);
	close(p[1]);
	assert_int_equal(write(ev.fd, "z", 1), 1);
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 'z');
	close(ev.fd);
	assert_int_equal(read(p[0], &c, 1), 0); /* there was no second copy */
	assert_int_equal(write(s[1], "b", 1), 1);
	ev = next(io);
	assert_int_equal(ev.fd, -EBADF);
	io_cancel(io, s[0]);
	assert_true(next(io).last);
	close(p[0]);
	close_pair(s);
}

static void recv_closes_descriptors_past_the_first(void **state)
{
	struct io *io = get_io(state);

	for (size_t n = 2; n <= 8; n++) {
		int s[2], p[8][2], fds[8];
		struct io_event ev;
		char c;

		make_pair(s, SOCK_STREAM);
		for (size_t i = 0; i < n; i++) {
			assert_int_equal(pipe(p[i]), 0);
			fds[i] = p[i][1];
		}
		assert_int_equal(io_recv(io, s[0], 1), 0);
		send_fds(s[1], "a", 1, fds, n);
		ev = next(io);
		assert_int_equal(ev.res, 1);
		assert_true(ev.fd >= 0);
		assert_true(ev.truncated);
		close(ev.fd);
		/* With ours closed, every pipe has lost its last writer. */
		for (size_t i = 0; i < n; i++) {
			close(p[i][1]);
			fcntl(p[i][0], F_SETFL, O_NONBLOCK);
			assert_int_equal(read(p[i][0], &c, 1), 0);
			close(p[i][0]);
		}
		io_cancel(io, s[0]);
		assert_true(next(io).last);
		close_pair(s);
	}
}

static void cancel_ends_every_operation_exactly_once(void **state)
{
	struct io *io = get_io(state);
	static uint8_t much[1u << 20];
	unsigned ends[2] = {};
	int s[2], other[2];

	make_pair(s, SOCK_STREAM);
	make_pair(other, SOCK_STREAM);
	for (int round = 0; round < 50; round++) {
		memset(ends, 0, sizeof(ends));
		assert_int_equal(io_recv(io, s[0], 0), 0);
		while (send(s[0], much, sizeof(much), MSG_DONTWAIT) > 0)
			;
		assert_int_equal(io_send(io, s[0], much, sizeof(much), 1), 0); /* nobody reads */
		assert_int_equal(io_recv(io, other[0], 2), 0);
		if (round % 2) /* under way, or not even submitted */
			assert_quiet(io);
		io_cancel(io, s[0]);
		for (int i = 0; i < 2;) {
			struct io_event ev = next(io);

			assert_true(ev.tag < 2);
			ends[ev.tag] += ev.last;
			i += ev.last;
		}
		assert_int_equal(ends[0], 1);
		assert_int_equal(ends[1], 1);
		assert_quiet(io);
		/* The other descriptor's went on. */
		assert_int_equal(write(other[1], "x", 1), 1);
		assert_int_equal(next(io).tag, 2);
		io_cancel(io, other[0]);
		assert_true(next(io).last);
		close_pair(s);
		make_pair(s, SOCK_STREAM);
	}
	close_pair(s);
	close_pair(other);
}

static void recv_survives_running_out_of_buffers(void **state)
{
	enum { N = 700 }; /* more pieces at once than there are buffers */
	struct io *io = get_io(state);
	struct io_event *events = calloc(N, sizeof(*events));
	int(*s)[2] = calloc(N, sizeof(*s));
	unsigned n_got = 0;
	uint8_t seen[N] = {};

	assert_true(events && s);
	for (int i = 0; i < N; i++) {
		make_pair(s[i], SOCK_STREAM);
		assert_int_equal(io_recv(io, s[i][0], (uint64_t)i), 0);
		assert_int_equal(write(s[i][1], &i, sizeof(i)), sizeof(i));
	}
	while (n_got < N) {
		int n = io_wait(io, events, N, io_now_usec(io) + PATIENCE_USEC);

		assert_true(n > 0);
		for (int i = 0; i < n; i++) {
			int tag = (int)events[i].tag;

			assert_false(events[i].last);
			assert_int_equal(events[i].res, sizeof(int));
			assert_memory_equal(events[i].data, &tag, sizeof(tag));
			assert_int_equal(seen[tag]++, 0);
			n_got++;
		}
	}
	/* Every one of them still receives. */
	for (int i = N - 1; i >= 0; i--) {
		struct io_event ev;

		assert_int_equal(write(s[i][1], "again", 5), 5);
		ev = next(io);
		assert_int_equal(ev.tag, i);
		assert_int_equal(ev.res, 5);
	}
	for (int i = 0; i < N; i++)
		close(s[i][1]);
	for (n_got = 0; n_got < N; n_got++) {
		struct io_event ev = next(io);

		assert_true(ev.last && ev.res == 0);
		close(s[ev.tag][0]);
	}
	assert_quiet(io);
	free(events);
	free(s);
}

#define STREAM_BYTES (8u << 20)

static void *write_stream(void *arg)
{
	static uint8_t block[65536];

	for (size_t i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i % 251);
	for (size_t at = 0; at < STREAM_BYTES;) {
		size_t from = at % (sizeof(block) / 251 * 251);
		ssize_t n = write(*(int *)arg, block + from,
				  MIN(sizeof(block) / 251 * 251 - from, STREAM_BYTES - at));

		if (n <= 0)
			break;
		at += (size_t)n;
	}
	return NULL;
}

static void long_stream_arrives_whole_at_a_slow_reader(void **state)
{
	struct io *io = get_io(state);
	size_t got = 0;
	pthread_t writer;
	int s[2];

	make_pair(s, SOCK_STREAM);
	assert_int_equal(io_recv(io, s[0], 1), 0);
	assert_int_equal(pthread_create(&writer, NULL, write_stream, &s[1]), 0);
	while (got < STREAM_BYTES) {
		struct io_event ev = next(io); /* one at a time */

		assert_false(ev.last);
		assert_true(ev.res > 0);
		for (int i = 0; i < ev.res; i++)
			if (ev.data[i] != (got + (size_t)i) % 251)
				fail_msg("byte %zu is wrong", got + (size_t)i);
		got += (size_t)ev.res;
	}
	pthread_join(writer, NULL);
	io_cancel(io, s[0]);
	assert_true(next(io).last);
	close_pair(s);
}

static void send_ends_with_its_bytes_or_its_error(void **state)
{
	struct io *io = get_io(state);
	struct io_event ev;
	char got[6] = "";
	int s[2];

	make_pair(s, SOCK_STREAM);
	assert_int_equal(io_send(io, s[0], "hello", 5, 9), 0);
	ev = next(io);
	assert_int_equal(ev.op, IO_SEND);
	assert_int_equal(ev.tag, 9);
	assert_int_equal(ev.res, 5);
	assert_true(ev.last);
	assert_int_equal(read(s[1], got, 5), 5);
	assert_string_equal(got, "hello");
	close(s[1]);
	assert_int_equal(io_send(io, s[0], "x", 1, 10), 0); /* no SIGPIPE either */
	ev = next(io);
	assert_int_equal(ev.res, -EPIPE);
	assert_true(ev.last);
	close(s[0]);
}

static void poll_tells_each_time(void **state)
{
	struct io *io = get_io(state);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_int_equal(io_poll(io, fd, 5), 0);
	for (eventfd_t i = 1; i <= 2000; i++) {
		struct io_event ev;
		eventfd_t n = 0;

		assert_int_equal(eventfd_write(fd, i), 0);
		ev = next(io);
		assert_int_equal(ev.op, IO_POLL);
		assert_false(ev.last);
		assert_true(ev.res & POLLIN);
		assert_int_equal(eventfd_read(fd, &n), 0);
		assert_int_equal(n, i);
	}
	io_cancel(io, fd);
	assert_true(next(io).last);
	assert_quiet(io);
	close(fd);
}

struct job {
	pthread_t thread;
	unsigned n_runs;
};

static void do_job(void *arg)
{
	struct job *j = arg;

	j->thread = pthread_self();
	j->n_runs++;
}

static void work_runs_elsewhere_and_ends_once(void **state)
{
	enum { N = 300 };
	struct io *io = get_io(state);
	struct job jobs[N] = {};
	unsigned ends[N] = {};

	for (uint64_t i = 0; i < N; i++)
		assert_int_equal(io_work(io, do_job, &jobs[i], i), 0);
	for (unsigned i = 0; i < N; i++) {
		struct io_event ev = next(io);

		assert_int_equal(ev.op, IO_WORK);
		assert_true(ev.last);
		assert_true(ev.tag < N);
		assert_int_equal(ends[ev.tag]++, 0);
	}
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(jobs[i].n_runs, 1);
		assert_false(pthread_equal(jobs[i].thread, pthread_self()));
	}
	/* And again after the queue ran dry. */
	assert_int_equal(io_work(io, do_job, &jobs[0], 42), 0);
	assert_int_equal(next(io).tag, 42);
	assert_quiet(io);
}

static void wait_ends_at_its_deadline_and_not_before(void **state)
{
	struct io *io = get_io(state);
	struct io_event ev;
	uint64_t deadline = io_now_usec(io) + 20000;

	assert_int_equal(io_wait(io, &ev, 1, deadline), 0);
	assert_true(io_now_usec(io) >= deadline);
	assert_int_equal(io_wait(io, &ev, 1, 0), 0); /* long past */
}

static void many_operations_run_at_once(void **state)
{
	enum { N = 1500 }; /* more than a ring has entries */
	struct io *io = get_io(state);
	uint8_t told[N] = {};
	int fds[N];

	for (uint64_t i = 0; i < N; i++) {
		fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		assert_true(fds[i] >= 0);
		assert_int_equal(io_poll(io, fds[i], i), 0);
		if (i % 2)
			assert_int_equal(eventfd_write(fds[i], 1), 0);
	}
	for (unsigned i = 0; i < N / 2; i++) {
		struct io_event ev = next(io);

		assert_false(ev.last);
		assert_int_equal(ev.tag % 2, 1);
		assert_int_equal(told[ev.tag]++, 0);
	}
	for (unsigned i = 0; i < N; i++)
		io_cancel(io, fds[i]);
	for (unsigned i = 0; i < N; i++) {
		struct io_event ev = next(io);

		assert_true(ev.last);
		assert_true(ev.tag < N && told[ev.tag] < 2);
		told[ev.tag] = 2;
	}
	assert_quiet(io);
	for (unsigned i = 0; i < N; i++)
		close(fds[i]);
}

/* Runs "sh -c @script" with @fd as its descriptor 3. */
static int spawn_shell(struct io *io, const char *script, int fd)
{
	char *const argv[] = {(char *)"sh", (char *)"-c", (char *)script, NULL};
	char *const envp[] = {(char *)"PATH=/usr/bin:/bin", NULL};
	const struct io_spawn what = {.path = "/bin/sh", .argv = argv, .envp = envp, .fd = fd};
	pid_t pid = 0;
	int pidfd = io_spawn(io, &what, &pid);

	assert_true(pidfd >= 0);
	assert_true(pid > 0);
	return pidfd;
}

static int await_exit(struct io *io, int pidfd)
{
	struct io_event ev;
	int status = -1;

	assert_int_equal(io_poll(io, pidfd, 3), 0);
	ev = next(io);
	assert_true(ev.res & POLLIN);
	assert_int_equal(io_reap(io, pidfd, &status), 0);
	if (!ev.last) {
		io_cancel(io, pidfd);
		while (!next(io).last)
			;
	}
	close(pidfd);
	return status;
}

static void child_has_its_descriptor_and_no_other(void **state)
{
	struct io *io = get_io(state);
	int s[2], leak = dup(1); /* without CLOEXEC */
	char got[3] = "";

	make_pair(s, SOCK_STREAM);
	assert_int_equal(await_exit(io, spawn_shell(io, "printf hi >&3; exit 7", s[1])), 7);
	assert_int_equal(read(s[0], got, 2), 2);
	assert_string_equal(got, "hi");
	/* The shell's own are from 10 on. */
	assert_int_equal(await_exit(io, spawn_shell(io,
						    "for n in 4 5 6 7 8 9; do "
						    "[ -e /proc/$$/fd/$n ] && exit 1; done; exit 0",
						    s[1])),
			 0);
	close(leak);
	close_pair(s);
}

static void reap_tells_signals_and_says_again_before(void **state)
{
	struct io *io = get_io(state);
	int s[2], pidfd, status = 1;

	make_pair(s, SOCK_STREAM);
	pidfd = spawn_shell(io, "read x <&3; exit 0", s[1]);
	assert_int_equal(io_reap(io, pidfd, &status), -EAGAIN);
	assert_int_equal(status, 1);
	io_kill(io, pidfd, SIGKILL);
	assert_int_equal(await_exit(io, pidfd), 128 + SIGKILL);
	close_pair(s);
}

static void child_that_cannot_start_is_an_error(void **state)
{
	struct io *io = get_io(state);
	char *const none[] = {NULL};
	const struct io_spawn what = {.path = "/nowhere/dsd", .argv = none, .envp = none, .fd = 0};
	pid_t pid = 0;

	assert_int_equal(io_spawn(io, &what, &pid), -ENOENT);
}

static void memfd_is_sealed_and_maps(void **state)
{
	const unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct io *io = get_io(state);
	int fd = io_memfd(io, "test", 8192, seals);
	uint8_t *a, *b;

	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GET_SEALS), seals);
	assert_int_equal(ftruncate(fd, 4096), -1);
	assert_int_equal(ftruncate(fd, 16384), -1);
	a = io_map(io, fd, 8192, true);
	b = io_map(io, fd, 8192, false);
	assert_true(a && b && a != b);
	a[8191] = 9;
	assert_int_equal(b[8191], 9);
	assert_int_equal(b[0], 0);
	io_unmap(io, a, 8192);
	io_unmap(io, b, 8192);
	assert_null(io_map(io, -1, 4096, true));
	close(fd);
}

static void random_and_alloc_do_what_they_say(void **state)
{
	struct io *io = get_io(state);
	uint8_t a[1000] = {}, b[1000] = {};
	uint8_t *p = io_alloc(io, 4096);

	io_random(io, a, sizeof(a));
	io_random(io, b, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
	assert_memory_not_equal(a + 900, (uint8_t[100]){}, 100); /* filled to the end */
	assert_non_null(p);
	for (size_t i = 0; i < 4096; i++)
		assert_int_equal(p[i], 0);
	free(p);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(accept_gives_every_connection_until_cancelled),
		TEST(recv_gives_pieces_in_order_then_the_end),
		TEST(recv_hands_one_descriptor_over_once),
		TEST(recv_closes_descriptors_past_the_first),
		TEST(cancel_ends_every_operation_exactly_once),
		TEST(recv_survives_running_out_of_buffers),
		TEST(long_stream_arrives_whole_at_a_slow_reader),
		TEST(send_ends_with_its_bytes_or_its_error),
		TEST(poll_tells_each_time),
		TEST(work_runs_elsewhere_and_ends_once),
		TEST(wait_ends_at_its_deadline_and_not_before),
		TEST(many_operations_run_at_once),
		TEST(child_has_its_descriptor_and_no_other),
		TEST(reap_tells_signals_and_says_again_before),
		TEST(child_that_cannot_start_is_an_error),
		TEST(memfd_is_sealed_and_maps),
		TEST(random_and_alloc_do_what_they_say),
	};

	struct rlimit files;

	if (argc != 2 || (strcmp(argv[1], "io_uring") != 0 && strcmp(argv[1], "epoll") != 0)) {
		fprintf(stderr, "usage: %s io_uring|epoll\n", argv[0]);
		return 2;
	}
	if (strcmp(argv[1], "epoll") == 0)
		new_io = io_epoll_new;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
