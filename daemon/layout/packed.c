/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/packed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"

_Static_assert(sizeof(struct packed_header) % sizeof(uint64_t) == 0, "hashes follow the header");
_Static_assert(sizeof(PACKED_MAGIC) == 8, "with its 0");
_Static_assert(PACKED_DATA_MAX / PACKED_CHUNK <= UINT32_MAX, "chunks are counted in 32 bits");

int packed_shape_init(struct packed_shape *s, uint64_t data_bytes, struct error *err)
{
	if (data_bytes == 0 || data_bytes > PACKED_DATA_MAX)
		return error_set(err, -EINVAL, "packed weights of %llu bytes: want 1 to %llu",
				 (unsigned long long)data_bytes,
				 (unsigned long long)PACKED_DATA_MAX);
	s->n_chunks = (uint32_t)DIV_ROUND_UP(data_bytes, PACKED_CHUNK);
	s->data_bytes = data_bytes;
	s->hashes_end = sizeof(struct packed_header) + s->n_chunks * sizeof(uint64_t);
	s->data_offset = ALIGN_UP(s->hashes_end, (uint64_t)PACKED_ALIGN);
	s->total_bytes = s->data_offset + data_bytes;
	return 0;
}

int packed_check(struct packed_shape *ret, const struct packed_header *h, uint64_t file_bytes,
		 struct error *err)
{
	struct packed_shape s;

	if (memcmp(h->magic, PACKED_MAGIC, sizeof(h->magic)) != 0)
		return error_set(err, -EBADMSG, "no packed weights: wrong magic");
	if (h->version != PACKED_VERSION)
		return error_set(err, -EBADMSG, "packed weights of version %u: want %u", h->version,
				 PACKED_VERSION);
	if (packed_shape_init(&s, h->data_bytes, err) < 0)
		return -EBADMSG;
	if (file_bytes != s.total_bytes)
		return error_set(err, -EBADMSG,
				 "packed weights: the file has %llu bytes, want %llu",
				 (unsigned long long)file_bytes, (unsigned long long)s.total_bytes);
	*ret = s;
	return 0;
}

/* Bytes [at, end) of the file to where they stand in @ret. */
static int read_part(int fd, void *ret, size_t at, size_t end, struct error *err)
{
	while (at < end) {
		ssize_t k = pread(fd, (char *)ret + at, end - at, (off_t)at);

		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return error_set(err, -EBADMSG, "packed weights: reading byte %zu: %m", at);
		if (k == 0)
			return error_set(err, -EBADMSG,
					 "packed weights: the file ends at byte %zu, want %zu", at,
					 end);
		at += (size_t)k;
	}
	return 0;
}

int packed_read(struct packed_header **ret, struct packed_shape *ret_shape, int fd,
		struct error *err)
{
	_cleanup_(freep) struct packed_header *all = NULL;
	struct packed_header h;
	struct packed_shape s;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, -EBADMSG, "packed weights: want a regular file");
	r = read_part(fd, &h, 0, sizeof(h), err);
	r = r ?: packed_check(&s, &h, (uint64_t)st.st_size, err);
	if (r < 0)
		return r;
	all = malloc(s.hashes_end);
	if (!all)
		return -ENOMEM;
	*all = h; /* once checked, never read again */
	r = read_part(fd, all, sizeof(h), s.hashes_end, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(all);
	*ret_shape = s;
	return 0;
}
