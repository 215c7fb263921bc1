/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static void error_set_returns_its_code_and_spells_errno(void **state)
{
	struct error err = {};

	(void)state;
	errno = 0;
	assert_int_equal(error_set(&err, -ENOENT, "%s=%d: %m", "a.b", 7), -ENOENT);
	assert_int_equal(err.code, -ENOENT);
	assert_string_equal(err.text, "a.b=7: No such file or directory");
	assert_int_equal(error_set(NULL, -EPERM, "nobody listens"), -EPERM);
}

static void error_set_cuts_long_sentences(void **state)
{
	char longer[2 * ERROR_TEXT_MAX];
	struct {
		struct error err;
		char guard[8];
	} box = {};

	(void)state;
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	memset(box.guard, 0x5a, sizeof(box.guard));
	error_set(&box.err, -EINVAL, "%s", longer);
	assert_int_equal(strlen(box.err.text), ERROR_TEXT_MAX - 1);
	error_prefix(&box.err, "%s", longer);
	assert_true(strlen(box.err.text) < ERROR_TEXT_MAX);
	for (size_t i = 0; i < sizeof(box.guard); i++)
		assert_int_equal(box.guard[i], 0x5a);
}

static void error_prefix_keeps_code_and_sentence(void **state)
{
	struct error err = {};

	(void)state;
	error_set(&err, -EINVAL, "got %d, want 1", 2);
	assert_int_equal(error_prefix(&err, "file %s", "x"), -EINVAL);
	assert_string_equal(err.text, "file x: got 2, want 1");
	assert_int_equal(error_prefix(NULL, "file"), 0);
}

static void error_text_names_the_errno_where_nothing_was_said(void **state)
{
	struct error err = {};

	(void)state;
	assert_string_equal(error_text(&err, -ENOMEM), "Cannot allocate memory");
	assert_string_equal(error_text(NULL, -EDQUOT), "Disk quota exceeded");
	assert_string_equal(error_text(NULL, -100000), "unknown error");
	error_set(&err, -EINVAL, "said");
	assert_string_equal(error_text(&err, -ENOMEM), "said");
}

static void log_escape_prints_bytes_within_its_buffer(void **state)
{
	char buf[512], tiny[8];
	uint8_t all[256];

	(void)state;
	assert_string_equal(log_escape(buf, sizeof(buf), "a\n\\\x7f", 4), "a\\x0a\\x5c\\x7f");
	for (size_t i = 0; i < sizeof(all); i++)
		all[i] = (uint8_t)i;
	log_escape(buf, sizeof(buf), all, sizeof(all));
	assert_string_equal(buf + 4 * 32, " !\"#$%&'()*+,-./0123456789:;<=>?");
	log_escape(tiny, sizeof(tiny), all, sizeof(all));
	assert_string_equal(tiny, "\\x00");
}

static void log_line_is_one_line_whatever_a_name_holds(void **state)
{
	int pipe_fds[2], old = dup(STDERR_FILENO);
	char got[64] = "";

	(void)state;
	assert_int_equal(pipe(pipe_fds), 0);
	dup2(pipe_fds[1], STDERR_FILENO);
	log_error("\"%s\"", "a\nb\x1b[2J\x7fü");
	dup2(old, STDERR_FILENO);
	assert_true(read(pipe_fds[0], got, sizeof(got) - 1) > 0);
	assert_string_equal(got, "dsd: \"a?b?[2J?ü\"\n");
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(old);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_set_returns_its_code_and_spells_errno),
		cmocka_unit_test(error_set_cuts_long_sentences),
		cmocka_unit_test(error_prefix_keeps_code_and_sentence),
		cmocka_unit_test(error_text_names_the_errno_where_nothing_was_said),
		cmocka_unit_test(log_line_is_one_line_whatever_a_name_holds),
		cmocka_unit_test(log_escape_prints_bytes_within_its_buffer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
