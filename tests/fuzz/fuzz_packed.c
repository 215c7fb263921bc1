/* SPDX-License-Identifier: Apache-2.0 */
/* A file of packed weights, of any bytes: what is mapped has the hashes that its header says, and can be
 * read to its end. Byte 0: 0: the rest is the file; else it is the data of a good one, and the last eight
 * bytes are a change to it (u32 where, u32 value, added). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/cleanup.h"
#include "layout/packed.h"
#include "worker/load/packed.h"

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void write_good(int fd, const uint8_t *data, size_t n)
{
	struct packed_header h = {
		.magic = PACKED_MAGIC, .version = PACKED_VERSION, .data_bytes = n - 8};
	uint64_t hash = XXH3_64bits(data, n - 8);
	struct packed_shape s;
	uint32_t where, value, word = 0;

	must(packed_shape_init(&s, n - 8, NULL) == 0 && s.n_chunks == 1);
	must(ftruncate(fd, (off_t)s.total_bytes) == 0);
	must(pwrite(fd, &h, sizeof(h), 0) == sizeof(h));
	must(pwrite(fd, &hash, sizeof(hash), sizeof(h)) == sizeof(hash));
	must(pwrite(fd, data, n - 8, (off_t)s.data_offset) == (ssize_t)(n - 8));
	memcpy(&where, data + n - 8, sizeof(where));
	memcpy(&value, data + n - 4, sizeof(value));
	where %= (uint32_t)s.total_bytes;
	must(pread(fd, &word, sizeof(word), where) > 0);
	word += value;
	must(pwrite(fd, &word, MIN(sizeof(word), s.total_bytes - where), where) > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	_cleanup_(fd_closep) int fd = memfd_create("packed", MFD_CLOEXEC);
	_cleanup_(freep) struct packed_header *h = NULL;
	uint8_t content[PACKED_HASH_BYTES];
	struct packed_want want;
	struct packed_shape s;
	struct packed p = {};
	uint64_t sum = 0;

	must(fd >= 0);
	if (n == 0 || n > PACKED_CHUNK)
		return 0;
	if (data[0] == 0)
		must(write(fd, data + 1, n - 1) == (ssize_t)(n - 1));
	else if (n > 9)
		write_good(fd, data + 1, n - 1);
	if (packed_read(&h, &s, fd, NULL) < 0)
		return 0;
	must(s.total_bytes == (uint64_t)lseek(fd, 0, SEEK_END));
	want.data_bytes = h->data_bytes;
	memcpy(want.plan, h->plan, sizeof(want.plan));
	if (packed_map(&p, fd, &want, NULL, NULL, NULL, content, NULL) < 0)
		return 0;
	for (uint32_t i = 0; i < s.n_chunks; i++) {
		uint64_t from = (uint64_t)i * PACKED_CHUNK;

		must(XXH3_64bits(packed_data(&p) + from,
				 MIN(s.data_bytes - from, (uint64_t)PACKED_CHUNK)) ==
		     packed_hashes(h)[i]);
	}
	for (uint64_t i = 0; i < s.data_bytes; i++)
		sum += packed_data(&p)[i];
	must(sum < UINT64_MAX);
	packed_done(&p);
	return 0;
}
