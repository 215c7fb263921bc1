/* SPDX-License-Identifier: Apache-2.0 */
/* Headers as the format has them, and what must not pass for one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/files.h"
#include "worker/load/safetensors.h"
#include "worker/load/weights.h"

static struct safetensors *scan(const char *header, uint64_t data_bytes, struct error *err)
{
	struct safetensors *st = NULL;

	*err = (struct error){};
	safetensors_scan(&st, "f", strdup(header), strlen(header), data_bytes, err);
	return st;
}

static void refuse(const char *header, uint64_t data_bytes, const char *want)
{
	struct error err;
	struct safetensors *st = scan(header, data_bytes, &err);

	if (st || !strstr(err.text, want))
		fail_msg("%s\n  said \"%s\"\n  want \"%s\"", header, st ? "fine" : err.text, want);
}

static int make_file(const void *data, size_t n)
{
	int fd = memfd_create("file", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, n), n);
	return fd;
}

/* A safetensors file with this header length and @n bytes behind it. */
static void add_file(struct files *f, const char *name, uint64_t header_bytes, const char *rest,
		     size_t n)
{
	char buf[4096];

	memcpy(buf, &header_bytes, 8);
	memcpy(buf + 8, rest, n);
	assert_int_equal(files_add(f, name, make_file(buf, 8 + n), NULL), 0);
}

#define T(dtype, shape, begin, end)                                                                \
	"{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void header_gives_tensors_by_name(void **state)
{
	struct error err;
	struct safetensors *st =
		scan("{\"__metadata__\":{\"format\":\"pt\"}, \"b\":" T(
			     "BF16", "[2, 3]", "0",
			     "12") ",\n"
				   " \"a\\u0041\":" T("F32", "[]", "12", "16") ", \"z\":" T(
					   "U8", "[0, 7]", "16", "16") "}   ",
		     16, &err);
	const struct st_tensor *t;

	(void)state;
	assert_non_null(st);
	assert_int_equal(st->n_tensors, 3);
	t = safetensors_find(st, "b");
	assert_non_null(t);
	assert_int_equal(t->dtype, ST_BF16);
	assert_int_equal(t->n_dims, 2);
	assert_int_equal(t->dims[1], 3);
	t = safetensors_find(st, "aA");
	assert_non_null(t);
	assert_int_equal(t->n_dims, 0);
	assert_int_equal(t->begin, 12);
	assert_null(safetensors_find(st, "a"));
	safetensors_free(st);
}

static void malformed_header_is_refused_with_its_place(void **state)
{
	(void)state;
	refuse("", 0, "header byte 0: want {");
	refuse(" {}", 0, "header byte 0: want {");
	refuse("{", 0, "header byte 1: want a string");
	refuse("{} x", 0, "header byte 3: something after the JSON");
	refuse("{}\n", 0, "header byte 2: something after the JSON");
	refuse("{\"a\":" T("F32", "[1]", "0", "4"), 4, "want , or }");
	refuse("{\"a\":" T("F32", "[1]", "0", "4") ",}", 4, "want a string");
	refuse("{\"a\":[]}", 0, "want an object");
	refuse("{\"a\":{}}", 0, "want a string");
	refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a tensor without");
	refuse("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4, "a key that was there before");
	refuse("{\"a\":{\"offset\":1}}", 4, "want dtype, shape or data_offsets");
	refuse("{\"a\":" T("F32", "[-1]", "0", "4") "}", 4, "want a whole number");
	refuse("{\"a\":" T("F32", "[1.0]", "0", "4") "}", 4, "want a whole number");
	refuse("{\"a\":" T("F32", "[01]", "0", "4") "}", 4, "want a whole number");
	refuse("{\"a\":" T("F32", "[1e0]", "0", "4") "}", 4, "want a whole number");
	refuse("{\"a\":" T("F32", "[18446744073709551616]", "0", "4") "}", 4, "past 64 bits");
	refuse("{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4,
	       "more dimensions than 8");
	refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
	       "want two offsets");
	refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
	       "want two offsets");
	refuse("{\"a\\u0000\":" T("F32", "[1]", "0", "4") "}", 4, "a 0 in a string");
	refuse("{\"\\ud800\":" T("F32", "[1]", "0", "4") "}", 4, "half a surrogate pair");
	refuse("{\"\\x\":1}", 4, "an unknown escape");
	refuse("{\"a\n\":1}", 4, "a control character");
	refuse("{\"abc", 4, "a string without an end");
	refuse("{\"abc\\", 4, "a string without an end");
	refuse("{\"\xc0\x80\":1}", 4, "header byte 2 is not UTF-8");
	refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ for the second time");
	refuse("{\"__metadata__\":{\"a\":[[[[[[]]]]]]}}", 0, "want a string");
}

static void deep_nesting_is_refused_without_depth(void **state)
{
	char *deep = malloc(2000001);

	(void)state;
	memset(deep, '[', 2000000);
	memcpy(deep, "{\"a\":{\"shape\":", 14);
	deep[2000000] = 0;
	refuse(deep, 0, "header byte 15: want a whole number");
	free(deep);
}

static void places_must_cover_the_data_once(void **state)
{
	(void)state;
	refuse("{}", 4, "tensors end at byte 0 of 4");
	refuse("{\"a\":" T("F32", "[1]", "0", "4") "}", 8, "tensors end at byte 4 of 8");
	refuse("{\"a\":" T("F32", "[2]", "0", "8") "}", 4, "but the data has 4");
	refuse("{\"a\":" T("F32", "[1]", "4", "0") "}", 4, "but the data has 4");
	refuse("{\"a\":" T("F32", "[1]", "4", "8") "}", 8, "begins at byte 4, want 0 (hole)");
	refuse("{\"a\":" T("F32", "[2]", "0", "8") ",\"b\":" T("F32", "[2]", "4", "12") "}", 12,
	       "begins at byte 4, want 8 (overlap)");
	refuse("{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "0", "4") "}", 4,
	       "(overlap)");
	refuse("{\"a\":" T("F32", "[2]", "0", "4") "}", 4, "4 bytes, but F32 of shape [2] has 8");
	refuse("{\"a\":" T("F32", "[4294967296, 4294967296]", "0", "0") "}", 0, "past 64 bits");
	refuse("{\"a\":" T("F32", "[4611686018427387904]", "0", "0") "}", 0, "past 64 bits");
	refuse("{\"a\":" T("F32", "[1]", "0", "4") ",\"a\":" T("F32", "[1]", "4", "8") "}", 8,
	       "a: there twice");
	refuse("{\"a\":" T("F32", "[1]", "0", "4") ",\"\\u0061\":" T("F32", "[1]", "4", "8") "}", 8,
	       "a: there twice");
}

static void unknown_type_is_carried_and_not_sized(void **state)
{
	struct error err;
	struct safetensors *st = scan("{\"a\":" T("F6_E2M3", "[5]", "0", "4") "}", 4, &err);

	(void)state;
	assert_non_null(st);
	assert_int_equal(st->tensors[0].dtype, ST_UNKNOWN);
	safetensors_free(st);
}

static void header_length_is_checked_before_memory_is_taken(void **state)
{
	static const struct {
		uint64_t length;
		const char *want;
	} cases[] = {
		{3, "header of 3 bytes in a file of 10"},
		{100000000, "header of 100000000 bytes, want at most 16777216"},
		{UINT64_MAX, "want at most 16777216"}, /* length + 1 wraps to 0 */
		{UINT64_MAX - 7, "want at most 16777216"},
		{0, "header byte 0: want {"},
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		_cleanup_(files_done) struct files f = {};
		struct safetensors *st = NULL;
		struct error err = {};

		add_file(&f, "m.safetensors", cases[i].length, "{}", 2);
		assert_true(safetensors_open(&st, &f.items[0], &err) < 0);
		if (!strstr(err.text, cases[i].want))
			fail_msg("%s", err.text);
	}
}

/* A header may have 16 MB and a model a thousand files, but not both. */
static void headers_of_all_files_are_bounded_together(void **state)
{
	enum { N_FILES = 5, HEADER = SAFETENSORS_HEADER_MAX };
	_cleanup_(files_done) struct files f = {};
	struct weights *w = NULL;
	struct error err = {};
	uint64_t n = HEADER;
	char *data = malloc(8 + HEADER);
	int fd;

	(void)state;
	assert_non_null(data);
	memcpy(data, &n, 8);
	memset(data + 8, ' ', HEADER);
	memcpy(data + 8, "{}", 2);
	fd = make_file(data, 8 + HEADER);
	for (int i = 0; i < N_FILES; i++) {
		char name[] = "0.safetensors";

		name[0] = (char)('0' + i);
		assert_int_equal(files_add(&f, name, dup(fd), NULL), 0);
	}
	assert_int_equal(weights_open(&w, &f, &err), -EBADMSG);
	assert_non_null(
		strstr(err.text, "the headers of 4 .safetensors files have 67108896 bytes"));
	close(fd);
	free(data);
}

static void short_file_is_refused(void **state)
{
	_cleanup_(files_done) struct files f = {};
	struct safetensors *st = NULL;
	struct error err = {};

	(void)state;
	assert_int_equal(files_add(&f, "m.safetensors", make_file("\2\0\0\0\0\0\0", 7), NULL), 0);
	assert_int_equal(safetensors_open(&st, &f.items[0], &err), -EBADMSG);
	assert_string_equal(err.text, "m.safetensors: 7 bytes, want at least 8");
}

/* The file loses its tail between header and data: a sentence, never a fault. */
static void file_that_shrinks_gives_an_error(void **state)
{
	static const char header[] = "{\"a\":" T("F32", "[1, 2]", "0", "8") "}";
	_cleanup_(files_done) struct files f = {};
	_cleanup_(weights_freep) struct weights *w = NULL;
	char rest[200] = {};
	struct error err = {};
	float x[2];

	(void)state;
	memcpy(rest, header, sizeof(header) - 1);
	add_file(&f, "m.safetensors", sizeof(header) - 1, rest, sizeof(header) - 1 + 8);
	assert_int_equal(weights_open(&w, &f, &err), 0);
	assert_int_equal(ftruncate(f.items[0].fd, 8 + sizeof(header) - 1 + 5), 0);
	assert_int_equal(weights_read(w, "a", 2, 0, 2, x, &err), -EIO);
	assert_non_null(strstr(err.text, "m.safetensors: ends at byte"));
}

static void bf16_and_f32_read_as_f32(void **state)
{
	static const char header[] = "{\"a\":" T("F32", "[2]", "0", "8") ",\"b\":" T(
		"BF16", "[3]", "8", "14") ",\"c\":" T("I8", "[2]", "14", "16") "}";
	static const float f32[] = {1.5f, -2};
	static const uint16_t bf16[] = {0x3fc0, 0xc000, 0x7f80};
	_cleanup_(files_done) struct files f = {};
	_cleanup_(weights_freep) struct weights *w = NULL;
	char rest[300] = {};
	size_t n = sizeof(header) - 1;
	struct error err = {};
	float x[3];

	(void)state;
	memcpy(rest, header, n);
	memcpy(rest + n, f32, sizeof(f32));
	memcpy(rest + n + 8, bf16, sizeof(bf16));
	add_file(&f, "m.safetensors", n, rest, n + 16);
	assert_int_equal(weights_open(&w, &f, &err), 0);
	assert_int_equal(weights_read(w, "a", 2, 0, 2, x, &err), 0);
	assert_true(x[0] == 1.5f && x[1] == -2);
	assert_int_equal(weights_read(w, "b", 3, 1, 2, x, &err), 0);
	assert_true(x[0] == -2 && isinf(x[1]));
	assert_int_equal(weights_read(w, "b", 3, 2, 2, x, &err), -EINVAL);
	assert_int_equal(weights_read(w, "c", 2, 0, 1, x, &err), -EINVAL);
	assert_string_equal(err.text, "c: I8, want F32 or BF16");
}

static void index_names_plain_files_that_are_there(void **state)
{
	static const char header[] = "{\"a\":" T("F32", "[1]", "0", "4") "}";
	static const struct {
		const char *index, *want;
	} cases[] = {
		{"{\"weight_map\":{\"a\":\"x.safetensors\"}}", NULL},
		{"{\"weight_map\":{\"b\":\"x.safetensors\"}}", "b: is not in x.safetensors"},
		{"{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "a: its file is not there"},
		{"{\"weight_map\":{\"a\":7}}", "a: its file is not there"},
		{"{\"weight_map\":[]}", "weight_map: got an array of 0, want an object"},
		{"{}", "weight_map: got nothing, want an object"},
		{"{\"weight_map\":", "in the middle of the JSON"},
	};
	char rest[200] = {};

	(void)state;
	memcpy(rest, header, sizeof(header) - 1);
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		_cleanup_(files_done) struct files f = {};
		_cleanup_(weights_freep) struct weights *w = NULL;
		struct error err = {};
		int r;

		add_file(&f, "x.safetensors", sizeof(header) - 1, rest, sizeof(header) - 1 + 4);
		add_file(&f, "y.safetensors", sizeof(header) - 1, rest, sizeof(header) - 1 + 4);
		files_add(&f, WEIGHTS_INDEX_NAME, make_file(cases[i].index, strlen(cases[i].index)),
			  NULL);
		r = weights_open(&w, &f, &err);
		if (!cases[i].want) {
			assert_int_equal(r, 0);
			assert_non_null(weights_find(w, "a"));
		} else if (r == 0 || !strstr(err.text, cases[i].want)) {
			fail_msg("%s: %s", cases[i].index, err.text);
		}
	}
}

static void file_names_are_plain_and_come_once(void **state)
{
	static const char *const bad[] = {"", ".", "..", "a/b", "/etc/passwd", "../config.json"};
	_cleanup_(files_done) struct files f = {};
	struct error err = {};
	int fds[2];

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++)
		assert_int_equal(files_add(&f, bad[i], make_file("", 0), &err), -EINVAL);
	assert_int_equal(files_add(&f, "config.json", make_file("", 0), &err), 0);
	assert_int_equal(files_add(&f, "config.json", make_file("", 0), &err), -EINVAL);
	assert_string_equal(err.text, "config.json: came twice");
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(files_add(&f, "tokenizer.json", fds[0], &err), -EINVAL);
	assert_string_equal(err.text, "tokenizer.json: want a regular file");
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header_gives_tensors_by_name),
		cmocka_unit_test(malformed_header_is_refused_with_its_place),
		cmocka_unit_test(deep_nesting_is_refused_without_depth),
		cmocka_unit_test(places_must_cover_the_data_once),
		cmocka_unit_test(unknown_type_is_carried_and_not_sized),
		cmocka_unit_test(header_length_is_checked_before_memory_is_taken),
		cmocka_unit_test(headers_of_all_files_are_bounded_together),
		cmocka_unit_test(short_file_is_refused),
		cmocka_unit_test(file_that_shrinks_gives_an_error),
		cmocka_unit_test(bf16_and_f32_read_as_f32),
		cmocka_unit_test(index_names_plain_files_that_are_there),
		cmocka_unit_test(file_names_are_plain_and_come_once),
	};

	return cmocka_run_group_tests_name("load_safetensors", tests, NULL, NULL);
}
