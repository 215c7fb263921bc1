/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"

/* How often a child passes @f before it dies; 0: it does not, in five times. */
static int dies_at(const char *spec, enum fault_point f)
{
	int status, pipes[2];
	char passed[8];
	ssize_t n = 0, k;
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (fault_init(spec, NULL) < 0)
			_exit(1);
		for (int i = 0; i < 5; i++) {
			if (write(pipes[1], "x", 1) != 1)
				_exit(1);
			fault_at(f);
		}
		_exit(0);
	}
	close(pipes[1]);
	while ((k = read(pipes[0], passed, sizeof(passed))) > 0)
		n += k;
	close(pipes[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGKILL);
		return (int)n;
	}
	assert_int_equal(status, 0);
	return 0;
}

static void process_dies_at_the_nth_passing_of_its_point(void **state)
{
	(void)state;
	assert_int_equal(dies_at("adopt-map", FAULT_ADOPT_MAP), 1);
	assert_int_equal(dies_at("adopt-map:3", FAULT_ADOPT_MAP), 3);
	assert_int_equal(dies_at("adopt-map:6", FAULT_ADOPT_MAP), 0);
	assert_int_equal(dies_at("adopt-map", FAULT_ADOPT_HEADER), 0);
	assert_int_equal(dies_at(NULL, FAULT_ADOPT_MAP), 0);
	assert_int_equal(dies_at("", FAULT_ADOPT_MAP), 0);
	for (int f = FAULT_NONE + 1; f < _FAULT_POINT_MAX; f++)
		assert_int_equal(dies_at(fault_name(f), f), 1);
}

static void unknown_point_is_refused_with_the_list(void **state)
{
	static const char *const bad[] = {"adopt",        "adopt-maps",  "adopt-map:0",
					  "adopt-map:",   "adopt-map:x", "adopt-map:1x",
					  "adopt-map:-1", ":1",          "none",
					  "adopt-map ",   "adopt-map:+1"};
	struct error err = {};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err.text[0] = 0;
		assert_int_equal(fault_init(bad[i], &err), -EINVAL);
		assert_non_null(strstr(err.text, " adopt-map "));
		assert_non_null(strstr(err.text, fault_name(_FAULT_POINT_MAX - 1)));
		assert_int_equal(fault_armed, FAULT_NONE);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(process_dies_at_the_nth_passing_of_its_point),
		cmocka_unit_test(unknown_point_is_refused_with_the_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
