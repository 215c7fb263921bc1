/* SPDX-License-Identifier: Apache-2.0 */
/* A child enters the worker's sandbox and tries what nobody who took a worker over shall be able to do. */
#include "worker/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"

#define LANDLOCK_ALONE _SANDBOX_STAGE_MAX

/* In the child. Return: 0, or the errno with which it was refused. */
typedef int (*attempt)(void);

static int answer(long r)
{
	return r < 0 ? errno : 0;
}

static int open_path(void)
{
	return answer(open("/etc/hostname", O_RDONLY));
}

static int make_file(void)
{
	return answer(open("/tmp", O_TMPFILE | O_WRONLY, 0600));
}

static int open_tcp(void)
{
	return answer(socket(AF_INET, SOCK_STREAM, 0));
}

static int open_unix(void)
{
	return answer(socket(AF_UNIX, SOCK_DGRAM, 0));
}

static int run_program(void)
{
	char *const argv[] = {(char *)"true", NULL};

	return answer(execv("/bin/true", argv));
}

static int trace(void)
{
	return answer(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

static int make_process(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return answer(pid);
}

static int raw_fork(void)
{
	long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	return answer(pid);
}

static int make_ring(void)
{
	char params[256] = {};

	return answer(syscall(SYS_io_uring_setup, 1, params));
}

static int signal_parent(void)
{
	return answer(kill(getppid(), 0));
}

static int tg_signal_parent(void)
{
	return answer(syscall(SYS_tgkill, getppid(), getppid(), 0));
}

static int map_code(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	return p == MAP_FAILED ? errno : 0;
}

static int change_mode(void)
{
	return answer(chmod("/nowhere", 0600));
}

static void *nothing(void *arg)
{
	return arg;
}

static int make_thread(void)
{
	pthread_t t;
	int r = pthread_create(&t, NULL, nothing, NULL);

	return r ?: pthread_join(t, NULL);
}

static int make_memfd(void)
{
	struct stat st;
	int fd = memfd_create("sandbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, 4096) < 0 || fstat(fd, &st) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) < 0 ||
	    mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
		return errno;
	return st.st_size == 4096 ? 0 : EIO;
}

static int use_memory(void)
{
	for (size_t n = 1; n < (size_t)1 << 26; n *= 3) {
		void *p = realloc(malloc(n), 2 * n);

		if (!p)
			return ENOMEM;
		memset(p, 1, 2 * n);
		free(p);
	}
	return 0;
}

/* Return: the errno, or minus the signal that ended the child. */
static int try(unsigned stage, attempt fn)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		const struct rlimit none = {};

		setrlimit(RLIMIT_CORE, &none);
		if (stage == LANDLOCK_ALONE ? sandbox_close_paths(NULL) < 0
					    : sandbox_set_calls(SANDBOX_LOADING, NULL) < 0)
			_exit(250);
		if (stage == SANDBOX_SERVING && sandbox_set_calls(SANDBOX_SERVING, NULL) < 0)
			_exit(251);
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int enter_paths(void)
{
	return 0;
}

/* Whether the build and the kernel have it at all. */
static void need(unsigned stage)
{
	if (try(stage, enter_paths) != 250)
		return;
	print_message("skip: %s\n", stage == LANDLOCK_ALONE ? "no Landlock here, or sanitizers"
							    : "no seccomp here, or sanitizers");
	skip();
}

static void landlock_alone_closes_every_path(void **state)
{
	(void)state;
	need(LANDLOCK_ALONE);
	assert_int_equal(try(LANDLOCK_ALONE, open_path), EACCES);
	assert_int_equal(try(LANDLOCK_ALONE, make_file), EACCES);
	assert_int_equal(try(LANDLOCK_ALONE, run_program), EACCES);
	assert_int_equal(try(LANDLOCK_ALONE, make_memfd), 0);
}

static void what_no_worker_does_ends_it(void **state)
{
	static const attempt attempts[] = {open_tcp, open_unix,    run_program, trace,
					   raw_fork, make_process, make_ring};

	(void)state;
	need(SANDBOX_LOADING);
	for (unsigned stage = SANDBOX_LOADING; stage <= SANDBOX_SERVING; stage++)
		for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
			assert_int_equal(try(stage, attempts[i]), -SIGSYS);
}

static void what_is_not_allowed_is_refused(void **state)
{
	static const attempt attempts[] = {open_path,        make_file, signal_parent,
					   tg_signal_parent, map_code,  change_mode};

	(void)state;
	need(SANDBOX_LOADING);
	for (unsigned stage = SANDBOX_LOADING; stage <= SANDBOX_SERVING; stage++)
		for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
			assert_int_equal(try(stage, attempts[i]), EPERM);
}

static void loading_has_threads_and_memfds_and_serving_has_not(void **state)
{
	(void)state;
	need(SANDBOX_LOADING);
	assert_int_equal(try(SANDBOX_LOADING, make_thread), 0);
	assert_int_equal(try(SANDBOX_LOADING, make_memfd), 0);
	assert_int_not_equal(try(SANDBOX_SERVING, make_thread), 0);
	assert_int_equal(try(SANDBOX_SERVING, make_memfd), EPERM);
}

static void memory_and_abort_work_in_both_stages(void **state)
{
	(void)state;
	need(SANDBOX_LOADING);
	for (unsigned stage = SANDBOX_LOADING; stage <= SANDBOX_SERVING; stage++) {
		assert_int_equal(try(stage, use_memory), 0);
		assert_int_equal(try(stage, (attempt)(void (*)(void))abort), -SIGABRT);
	}
}

/* A thread that was there before is under the second filter too. */
static pthread_barrier_t barrier;

static void *open_later(void *arg)
{
	pthread_barrier_wait(&barrier);
	*(int *)arg = make_memfd();
	pthread_barrier_wait(&barrier);
	return NULL;
}

static int tighten_with_a_thread(void)
{
	pthread_t t;
	int got = -1;

	pthread_barrier_init(&barrier, NULL, 2);
	if (pthread_create(&t, NULL, open_later, &got) != 0)
		return EAGAIN;
	if (sandbox_set_calls(SANDBOX_SERVING, NULL) < 0)
		return EIO;
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	return got;
}

static void serving_holds_for_every_thread(void **state)
{
	(void)state;
	need(SANDBOX_LOADING);
	assert_int_equal(try(SANDBOX_LOADING, tighten_with_a_thread), EPERM);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(landlock_alone_closes_every_path),
		cmocka_unit_test(what_no_worker_does_ends_it),
		cmocka_unit_test(what_is_not_allowed_is_refused),
		cmocka_unit_test(loading_has_threads_and_memfds_and_serving_has_not),
		cmocka_unit_test(memory_and_abort_work_in_both_stages),
		cmocka_unit_test(serving_holds_for_every_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
