/* SPDX-License-Identifier: Apache-2.0 */
/* A file of packed weights: what was filled comes back, and nothing else passes for it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/packed.h"

#define N_BYTES (2 * (uint64_t)PACKED_CHUNK + 192) /* the last chunk is short */

static const uint8_t content[PACKED_HASH_BYTES] = "what was packed";

static struct packed_want want_of(uint64_t n)
{
	return (struct packed_want){.plan = "a list of weights", .data_bytes = n};
}

static uint8_t byte_at(uint64_t i)
{
	return (uint8_t)(i * 31 + (i >> 12));
}

static int fill(int fd, uint64_t n)
{
	struct packed_want want = want_of(n);
	struct packed p;

	assert_int_equal(packed_make(&p, fd, &want, NULL), 0);
	assert_int_equal((uintptr_t)packed_data(&p) % 64, 0);
	for (uint64_t i = 0; i < n; i++)
		packed_data(&p)[i] = byte_at(i);
	assert_int_equal(packed_finish(&p, &want, content, NULL, NULL, NULL, NULL), 0);
	packed_done(&p);
	return fd;
}

static int new_file(void)
{
	int fd = memfd_create("packed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	return fd;
}

/* Return: what packed_map() said; with *sentence. */
static int map(int fd, const struct packed_want *want, struct error *err)
{
	uint8_t got[PACKED_HASH_BYTES] = {};
	struct packed p = {};
	int r = packed_map(&p, fd, want, NULL, NULL, NULL, got, err);

	if (r == 0) {
		assert_memory_equal(got, content, sizeof(got));
		for (uint64_t i = 0; i < want->data_bytes; i += 97)
			assert_int_equal(packed_data(&p)[i], byte_at(i));
	} else {
		assert_null(p.map);
	}
	packed_done(&p);
	return r;
}

static void what_was_filled_comes_back(void **state)
{
	static const uint64_t sizes[] = {64, PACKED_CHUNK, N_BYTES};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(sizes); i++) {
		struct packed_want want = want_of(sizes[i]);
		struct error err = {};
		int fd = fill(new_file(), sizes[i]);

		assert_int_equal(map(fd, &want, &err), 0);
		close(fd);
	}
}

static void any_byte_that_turned_is_found(void **state)
{
	struct packed_want want = want_of(N_BYTES);
	struct packed_header *h;
	struct packed_shape s;
	int fd = fill(new_file(), N_BYTES);

	(void)state;
	assert_int_equal(packed_read(&h, &s, fd, NULL), 0);
	free(h);
	/* Not in the padding, which says nothing, nor in the MAC, which is the broker's. */
	const uint64_t at[] = {0,
			       9,
			       16,
			       offsetof(struct packed_header, plan),
			       sizeof(*h),
			       s.hashes_end - 1,
			       s.data_offset,
			       s.data_offset + PACKED_CHUNK - 1,
			       s.data_offset + PACKED_CHUNK,
			       s.total_bytes - 1};
	for (size_t i = 0; i < N_ELEMENTS(at); i++) {
		struct error err = {};
		uint8_t byte;

		assert_int_equal(pread(fd, &byte, 1, (off_t)at[i]), 1);
		byte ^= 1;
		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at[i]), 1);
		assert_int_equal(map(fd, &want, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "packed weights"));
		byte ^= 1;
		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at[i]), 1);
		assert_int_equal(map(fd, &want, NULL), 0);
	}
	close(fd);
}

static void another_length_is_refused(void **state)
{
	struct packed_want want = want_of(N_BYTES);
	struct stat st;
	int fd = fill(new_file(), N_BYTES);

	(void)state;
	assert_int_equal(fstat(fd, &st), 0);
	const off_t sizes[] = {
		0, 8, sizeof(struct packed_header), 4096, st.st_size - 1, st.st_size + 1};
	for (size_t i = N_ELEMENTS(sizes); i-- > 0;) { /* downwards: what is cut off is gone */
		struct error err = {};

		assert_int_equal(ftruncate(fd, sizes[i]), 0);
		assert_int_equal(map(fd, &want, &err), -EBADMSG);
		assert_int_not_equal(err.text[0], 0);
	}
	close(fd);
}

static void weights_of_another_model_are_refused(void **state)
{
	struct packed_want want = want_of(N_BYTES);
	int fd = fill(new_file(), N_BYTES);

	(void)state;
	want.plan[3] ^= 1;
	assert_int_equal(map(fd, &want, NULL), -EBADMSG);
	want = want_of(N_BYTES - 64);
	assert_int_equal(map(fd, &want, NULL), -EBADMSG);
	close(fd);
}

static void a_header_promises_no_more_than_there_can_be(void **state)
{
	struct packed_header h = {.magic = PACKED_MAGIC, .version = PACKED_VERSION};
	struct packed_shape s = {};

	(void)state;
	for (unsigned i = 0; i < 64; i++) {
		h.data_bytes = UINT64_C(1) << i;
		if (packed_shape_init(&s, h.data_bytes, NULL) < 0) {
			assert_true(h.data_bytes > PACKED_DATA_MAX);
			assert_int_equal(packed_check(&s, &h, 0, NULL), -EBADMSG);
			continue;
		}
		assert_int_equal(packed_check(&s, &h, s.total_bytes, NULL), 0);
		assert_true(s.data_offset % PACKED_ALIGN == 0 && s.data_offset >= s.hashes_end);
		assert_true(s.hashes_end >= sizeof(h) + s.n_chunks * sizeof(uint64_t));
		assert_true((uint64_t)s.n_chunks * PACKED_CHUNK >= s.data_bytes);
		assert_int_equal(packed_check(&s, &h, s.total_bytes - 1, NULL), -EBADMSG);
	}
	h.data_bytes = 0;
	assert_int_equal(packed_check(&s, &h, 4096, NULL), -EBADMSG);
	h.data_bytes = UINT64_MAX;
	assert_int_equal(packed_check(&s, &h, 4096, NULL), -EBADMSG);
}

/* Sealed against growing, a memfd is what a full disk is: it has no room. */
static void no_room_is_told_and_leaves_nothing(void **state)
{
	struct packed_want want = want_of(N_BYTES);
	struct packed p = {};
	struct error err = {};
	int fd = new_file();

	(void)state;
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	assert_int_equal(packed_make(&p, fd, &want, &err), -EPERM);
	assert_non_null(strstr(err.text, "8.4 MB for packed weights"));
	assert_null(p.map);
	close(fd);
}

static int broker_has_gone(void *ctx, const char *stage, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)stage;
	assert_true(done <= total);
	return -EPIPE;
}

static void who_waits_may_call_it_off(void **state)
{
	struct packed_want want = want_of(N_BYTES);
	uint8_t got[PACKED_HASH_BYTES];
	struct packed p = {};
	int fd = fill(new_file(), N_BYTES);

	(void)state;
	assert_int_equal(packed_map(&p, fd, &want, NULL, broker_has_gone, NULL, got, NULL), -EPIPE);
	assert_null(p.map);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_filled_comes_back),
		cmocka_unit_test(any_byte_that_turned_is_found),
		cmocka_unit_test(another_length_is_refused),
		cmocka_unit_test(weights_of_another_model_are_refused),
		cmocka_unit_test(a_header_promises_no_more_than_there_can_be),
		cmocka_unit_test(no_room_is_told_and_leaves_nothing),
		cmocka_unit_test(who_waits_may_call_it_off),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
