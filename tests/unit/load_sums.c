/* SPDX-License-Identifier: Apache-2.0 */
/* What SHA256SUMS promises is kept, and what is no SHA256SUMS is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/files.h"
#include "worker/load/sums.h"

/* Of "a\n" and of nothing, as sha256sum prints them. */
#define SUM_A    "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"
#define SUM_NONE "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static void add(struct files *f, const char *name, const void *data, size_t n)
{
	int fd = memfd_create("file", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, n), n);
	assert_int_equal(files_add(f, name, fd, NULL), 0);
}

static int check(const char *sums, size_t n, const char *content, struct error *err)
{
	_cleanup_(files_done) struct files f = {};

	*err = (struct error){};
	add(&f, "config.json", content, strlen(content));
	add(&f, "empty.safetensors", "", 0);
	if (sums)
		add(&f, SUMS_NAME, sums, n);
	return sums_check(&f, NULL, NULL, err);
}

static void refuse(const char *sums, const char *want)
{
	struct error err;

	assert_int_equal(check(sums, strlen(sums), "a\n", &err), -EBADMSG);
	if (!strstr(err.text, want))
		fail_msg("said \"%s\", want \"%s\"", err.text, want);
}

static const char good[] =
	SUM_A "  config.json\n" SUM_NONE " *empty.safetensors\n" SUM_A "  README.md\n";

static void files_with_their_sums_pass(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(check(good, sizeof(good) - 1, "a\n", &err), 0);
	assert_int_equal(check(NULL, 0, "b\n", &err), 0); /* nothing was promised */
}

static void a_changed_file_is_named(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(check(good, sizeof(good) - 1, "b\n", &err), -EBADMSG);
	assert_non_null(strstr(err.text, "config.json: not the file"));
}

static void a_file_that_is_not_listed_is_refused(void **state)
{
	(void)state;
	refuse("", "config.json: SHA256SUMS does not list it");
	refuse(SUM_A "  config.json\n", "empty.safetensors: SHA256SUMS does not list it");
}

static void a_listed_part_that_is_missing_is_refused(void **state)
{
	(void)state;
	refuse(SUM_A "  config.json\n" SUM_NONE "  empty.safetensors\n" SUM_A "  tokenizer.json\n",
	       "tokenizer.json: missing");
	refuse(SUM_A "  config.json\n" SUM_NONE "  empty.safetensors\n" SUM_A
		     "  \033[2J.safetensors\n",
	       "\\x1b[2J.safetensors: missing");
}

static void what_sha256sum_does_not_write_is_refused(void **state)
{
	(void)state;
	refuse("x", "line 1");
	refuse(SUM_A "  config.json\n" SUM_NONE "  empty.safetensors", "line 2");
	refuse(SUM_A " config.json\n", "line 1");
	refuse(SUM_A "  ../config.json\n", "line 1");
	refuse("8" SUM_A "  config.json\n", "line 1");
	refuse(SUM_A "  config.json\n" SUM_A "  config.json\n", "line 2: a name that came before");
	refuse(SUM_A "  \n", "line 1");
}

/* Whatever byte of it changes to whatever, the files no longer pass. */
static void every_byte_of_it_counts(void **state)
{
	static const char exact[] = SUM_A "  config.json\n" SUM_NONE "  empty.safetensors\n";
	char text[sizeof(exact)];
	struct error err;
	size_t n = sizeof(exact) - 1;

	(void)state;
	assert_int_equal(check(exact, n, "a\n", &err), 0);
	for (size_t i = 0; i < n; i++)
		for (int bit = 0; bit < 8; bit++) {
			memcpy(text, exact, n);
			text[i] ^= (char)(1 << bit);
			if (check(text, n, "a\n", &err) == 0)
				fail_msg("byte %zu, bit %d: passes", i, bit);
		}
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(check(exact, cut, "a\n", &err), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files_with_their_sums_pass),
		cmocka_unit_test(a_changed_file_is_named),
		cmocka_unit_test(a_file_that_is_not_listed_is_refused),
		cmocka_unit_test(a_listed_part_that_is_missing_is_refused),
		cmocka_unit_test(what_sha256sum_does_not_write_is_refused),
		cmocka_unit_test(every_byte_of_it_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
