/* SPDX-License-Identifier: Apache-2.0 */
/* dsctl's command line: where options may stand, what numbers are, what is said about mistakes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "args.h"
#include "output.h"
#include "prompt.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

/* ---------------------------------------------------------------- a verb that keeps what it was given */

struct probe {
	uint64_t set;
	bool flag;
	const char *text;
	uint32_t small;
	uint64_t large;
	float real;
	struct arg_list list;
	struct arg_wait wait;
};

static struct {
	struct probe probe;
	struct global global;
	char list[64], args[64];
	size_t n_args, runs;
} seen;

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct probe *p = data;

	seen.probe = *p;
	seen.global = *global;
	seen.n_args = n_args;
	seen.runs++;
	for (size_t i = 0; i < p->list.n; i++)
		snprintf(seen.list + strlen(seen.list), sizeof(seen.list) - strlen(seen.list),
			 "%s|", p->list.items[i]);
	for (size_t i = 0; i < n_args; i++)
		snprintf(seen.args + strlen(seen.args), sizeof(seen.args) - strlen(seen.args),
			 "%s|", args[i]);
	return 42;
}

#define AT(field) .offset = offsetof(struct probe, field), .set_offset = offsetof(struct probe, set)
static const struct arg_option options[] = {
	{"--flag", NULL, "", ARG_FLAG, AT(flag)},
	{"--switch", NULL, "", ARG_BITS, AT(set), .bits = 1},
	{"--text", "TEXT", "", ARG_STRING, AT(text)},
	{"--small", "N", "", ARG_U32, AT(small), .bits = 2},
	{"--large", "N", "", ARG_U64, AT(large), .bits = 4},
	{"--real", "X", "", ARG_FLOAT, AT(real), .bits = 8},
	{"--list", "TEXT", "", ARG_LIST, AT(list)},
	{"--wait", "SECONDS", "", ARG_WAIT, AT(wait)},
};
static const struct verb probe = {.name = "probe",
				  .arguments = "",
				  .summary = "",
				  .options = options,
				  .n_options = N(options),
				  .options_bytes = sizeof(struct probe),
				  .run = run};
static const struct verb other = {.name = "generate", .arguments = "", .summary = "", .run = run};

/* Runs a command line given as words divided by '\t'; what went to standard error is in `said`. */
static char said[512];
static int dsctl(const char *line)
{
	static const struct verb *const verbs[] = {&probe, &other};
	char copy[256], *argv[32], *save = NULL;
	int argc = 0, status, kept = dup(STDERR_FILENO);
	FILE *file = tmpfile();

	assert_non_null(file);
	memset(&seen, 0, sizeof(seen));
	snprintf(copy, sizeof(copy), "dsctl\t%s", line);
	for (char *w = strtok_r(copy, "\t", &save); w; w = strtok_r(NULL, "\t", &save))
		argv[argc++] = w;
	argv[argc] = NULL;
	fflush(stderr);
	dup2(fileno(file), STDERR_FILENO);
	status = args_run(verbs, N(verbs), argc, argv);
	fflush(stderr);
	dup2(kept, STDERR_FILENO);
	close(kept);
	rewind(file);
	said[fread(said, 1, sizeof(said) - 1, file)] = 0;
	fclose(file);
	return status;
}

static void refused(const char *line, const char *sentence)
{
	assert_int_equal(dsctl(line), STATUS_USAGE);
	assert_int_equal(seen.runs, 0);
	if (!strstr(said, sentence))
		fail_msg("%s: got '%s', want '%s'", line, said, sentence);
}

static void options_may_stand_anywhere_after_the_verb(void **state)
{
	(void)state;
	assert_int_equal(
		dsctl("probe\ta\t--small\t7\tb\t--flag\t--text=x=y\t--list\t1\t--list=2\tc"), 42);
	assert_string_equal(said, "");
	assert_string_equal(seen.args, "a|b|c|");
	assert_int_equal(seen.probe.small, 7);
	assert_true(seen.probe.flag);
	assert_int_equal(seen.probe.set, 2);
	assert_string_equal(seen.list, "1|2|");
}

static void global_options_stand_before_or_after_the_verb(void **state)
{
	(void)state;
	assert_int_equal(dsctl("--socket\t/s\t--json\tprobe"), 42);
	assert_string_equal(seen.global.socket, "/s");
	assert_true(seen.global.json);
	assert_int_equal(dsctl("probe\t--json\t--socket=/t"), 42);
	assert_string_equal(seen.global.socket, "/t");
	assert_true(seen.global.json);
	assert_int_equal(dsctl("probe"), 42);
	assert_null(seen.global.socket);
	assert_false(seen.global.json);
}

static void two_dashes_end_the_options(void **state)
{
	(void)state;
	assert_int_equal(dsctl("probe\t--flag\t--\t--flag\t-\t--"), 42);
	assert_string_equal(seen.args, "--flag|-|--|");
	assert_int_equal(dsctl("probe\t-"), 42);
	assert_string_equal(seen.args, "-|");
}

static void zero_differs_from_absent(void **state)
{
	(void)state;
	assert_int_equal(dsctl("probe\t--real\t0"), 42);
	assert_int_equal(seen.probe.set, 8);
	assert_int_equal(dsctl("probe\t--switch\t--large\t0"), 42);
	assert_int_equal(seen.probe.set, 5);
	assert_int_equal(dsctl("probe"), 42);
	assert_int_equal(seen.probe.set, 0);
}

static void a_value_may_look_like_an_option(void **state)
{
	(void)state;
	assert_int_equal(dsctl("probe\t--real\t-1.5\t--text\t--flag"), 42);
	assert_true(seen.probe.real == -1.5f);
	assert_string_equal(seen.probe.text, "--flag");
	assert_false(seen.probe.flag);
}

static void seconds_to_wait_may_be_left_out(void **state)
{
	(void)state;
	assert_int_equal(dsctl("probe\t--wait"), 42);
	assert_true(seen.probe.wait.given && !seen.probe.wait.has_seconds);
	assert_int_equal(dsctl("probe\t--wait\t--json"), 42);
	assert_true(seen.probe.wait.given && !seen.probe.wait.has_seconds && seen.global.json);
	assert_int_equal(dsctl("probe\t--wait\tword"), 42);
	assert_true(seen.probe.wait.given && !seen.probe.wait.has_seconds);
	assert_string_equal(seen.args, "word|");
	assert_int_equal(dsctl("probe\t--wait\t2.5"), 42);
	assert_true(seen.probe.wait.has_seconds && seen.probe.wait.seconds == 2.5);
	assert_int_equal(dsctl("probe\t--wait=0"), 42);
	assert_true(seen.probe.wait.has_seconds && seen.probe.wait.seconds == 0);
	refused("probe\t--wait=-1", "--wait: got '-1', want seconds");
	refused("probe\t--wait=x", "--wait: got 'x', want seconds");
}

static void numbers_are_strict(void **state)
{
	static const char *const bad_whole[] = {"-1", "+1", "1.0", "1e3", "0x10", " 1", "1 ", "x"};
	static const char *const bad_real[] = {"nan", "inf", "0x1p3", "1,5",   "1.2.3",
					       "-",   ".",   "1e",    "1e400", "1e39"};
	static const char *const large[] = {"4294967296", "99999999999999999999"};
	char line[64];

	(void)state;
	for (size_t i = 0; i < N(bad_whole); i++) {
		snprintf(line, sizeof(line), "probe\t--small=%s", bad_whole[i]);
		refused(line, "want a whole number");
	}
	for (size_t i = 0; i < N(large); i++) {
		snprintf(line, sizeof(line), "probe\t--small=%s", large[i]);
		refused(line, "want a smaller number");
	}
	for (size_t i = 0; i < N(bad_real); i++) {
		snprintf(line, sizeof(line), "probe\t--real=%s", bad_real[i]);
		refused(line, "want a number");
	}
	refused("probe\t--small=", "--small: got ''");
	refused("probe\t--real=", "--real: got ''");
	assert_int_equal(
		dsctl("probe\t--small=4294967295\t--large=18446744073709551615\t--real=1e-6"), 42);
	assert_true(seen.probe.small == UINT32_MAX && seen.probe.large == UINT64_MAX);
	assert_true(seen.probe.real == 1e-6f);
	refused("probe\t--large=18446744073709551616", "--large: got '18446744073709551616'");
}

static void mistakes_are_named(void **state)
{
	(void)state;
	refused("", "want a verb");
	refused("generat", "unknown verb 'generat'; did you mean 'generate'?");
	refused("xyzzy", "unknown verb 'xyzzy'; `dsctl --help` lists them");
	refused("probe\t--smal\t1", "unknown option '--smal'; did you mean '--small'?");
	refused("probe\t--sma\t1", "did you mean '--small'?");
	refused("probe\t--sokcet\t1", "did you mean '--socket'?");
	refused("probe\t--something",
		"unknown option '--something'; `dsctl probe --help` lists them");
	refused("--small\t1\tprobe", "unknown option '--small'");
	refused("probe\t-x", "unknown option '-x'");
	refused("probe\t--flag=1", "--flag takes no value, got '1'");
	refused("probe\t--socket=", "--socket: got '', want a path");
	refused("probe\t--text", "--text: want a value: --text TEXT");
	refused("generate\t--flag", "unknown option '--flag'");
}

/* ---------------------------------------------------------------- prompt, JSON */

static void prompt_joins_arguments_by_a_space(void **state)
{
	char *args[] = {(char *)"Once", (char *)"upon a", (char *)""};
	struct text t = {};

	(void)state;
	assert_int_equal(prompt_read(args, 3, &t), 0);
	assert_int_equal(t.bytes, 12);
	assert_memory_equal(t.data, "Once upon a ", 12);
	free(t.data);
}

static void ids_are_divided_by_commas_or_space(void **state)
{
	static const char *const bad[] = {"1,x", "-1", "4294967296", "1;2", "99999999999999999999"};
	uint32_t *ids = NULL;
	size_t n = 0;
	struct text t = {(char *)" 1,2 3,\n\t4294967295,,", 20};

	(void)state;
	assert_int_equal(prompt_ids("ids", &t, &ids, &n), 0);
	assert_int_equal(n, 4);
	assert_true(ids[0] == 1 && ids[1] == 2 && ids[2] == 3 && ids[3] == UINT32_MAX);
	free(ids);
	t = (struct text){(char *)"", 0};
	assert_int_equal(prompt_ids("ids", &t, &ids, &n), 0);
	assert_int_equal(n, 0);
	free(ids);
	for (size_t i = 0; i < N(bad); i++) {
		t = (struct text){(char *)bad[i], strlen(bad[i])};
		assert_int_equal(prompt_ids("ids", &t, &ids, &n), STATUS_USAGE);
	}
	t = (struct text){(char *)"1\0002", 3};
	assert_int_equal(prompt_ids("ids", &t, &ids, &n), STATUS_USAGE);
}

static void json_text_replaces_what_is_not_utf8(void **state)
{
	static const struct {
		const char *text;
		size_t n;
		const char *want;
	} cases[] = {
		{"caf\xc3\xa9", 5, "\"caf\xc3\xa9\""},
		{"a\xff"
		 "b",
		 3,
		 "\"a\xef\xbf\xbd"
		 "b\""},
		{"\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\""},
		{"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
		{"\xf0\x9f\x98\x80", 4, "\"\xf0\x9f\x98\x80\""},
		{"a\0b\n", 4, "\"a\\u0000b\\n\""},
		{"", 0, "\"\""},
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		struct json_object *o = json_text(cases[i].text, cases[i].n);

		assert_string_equal(json_object_to_json_string(o), cases[i].want);
		json_object_put(o);
	}
}

static void json_real_gives_a_float_back(void **state)
{
	static const float values[] = {-0.693147182f, -1e-30f, 0, -12.3456793f, -1e30f};

	(void)state;
	for (size_t i = 0; i < N(values); i++) {
		struct json_object *o = json_real((double)values[i]);

		assert_true(strtof(json_object_to_json_string(o), NULL) == values[i]);
		json_object_put(o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_may_stand_anywhere_after_the_verb),
		cmocka_unit_test(global_options_stand_before_or_after_the_verb),
		cmocka_unit_test(two_dashes_end_the_options),
		cmocka_unit_test(zero_differs_from_absent),
		cmocka_unit_test(a_value_may_look_like_an_option),
		cmocka_unit_test(seconds_to_wait_may_be_left_out),
		cmocka_unit_test(numbers_are_strict),
		cmocka_unit_test(mistakes_are_named),
		cmocka_unit_test(prompt_joins_arguments_by_a_space),
		cmocka_unit_test(ids_are_divided_by_commas_or_space),
		cmocka_unit_test(json_text_replaces_what_is_not_utf8),
		cmocka_unit_test(json_real_gives_a_float_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
