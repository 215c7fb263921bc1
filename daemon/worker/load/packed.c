/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/packed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/error.h"

#define SYNC_BYTES (32u << 20) /* written to the disk between two words of progress */
#define NO_CHUNK   UINT32_MAX

/* One pass over all chunks: each thread takes the next one. */
struct walk {
	const uint8_t *data;
	const struct packed_shape *shape;
	uint64_t *hashes;
	bool fill; /* else compare */
	_Atomic uint32_t next;
	_Atomic uint32_t bad; /* a chunk whose hash is another; NO_CHUNK: none */
	_Atomic int r;
	load_progress progress; /* of thread 0 */
	void *ctx;
	const char *stage;
};

/* Return: whether there was a chunk left. */
static bool walk_one(struct walk *w)
{
	const struct packed_shape *s = w->shape;
	uint32_t i = atomic_fetch_add(&w->next, 1);
	uint64_t from = (uint64_t)i * PACKED_CHUNK, n, hash;

	if (i >= s->n_chunks || atomic_load(&w->r) < 0)
		return false;
	n = MIN(s->data_bytes - from, (uint64_t)PACKED_CHUNK);
	hash = XXH3_64bits(w->data + from, n);
	if (w->fill) {
		w->hashes[i] = hash;
	} else if (hash != w->hashes[i]) {
		atomic_store(&w->bad, i);
		atomic_store(&w->r, -EBADMSG);
	}
	return true;
}

static void walk_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	struct walk *w = ctx;

	(void)n_threads;
	do {
		uint64_t n = w->shape->data_bytes;
		uint64_t at = MIN((uint64_t)atomic_load(&w->next) * PACKED_CHUNK, n);
		int r = thread == 0 && w->progress ? w->progress(w->ctx, w->stage, at, n) : 0;

		if (r < 0)
			atomic_store(&w->r, r);
	} while (walk_one(w));
}

/* Return: 0; -EBADMSG with w->bad; what @progress returned. */
static int walk_all(struct walk *w, struct kernels *k)
{
	atomic_store(&w->bad, NO_CHUNK);
	if (k)
		k->parallel(k, walk_part, w);
	else
		walk_part(w, 0, 1);
	return atomic_load(&w->r);
}

static int map_file(struct packed *p, int fd, int prot, struct error *err)
{
	void *map = mmap(NULL, p->shape.total_bytes, prot, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return error_set(err, -errno, "mapping packed weights of %llu bytes: %m",
				 (unsigned long long)p->shape.total_bytes);
	p->map = map;
	/* Where the file system has huge pages to give, it reads in them too: what is not in memory yet
	 * comes as fast as when it is asked for ahead, and stays in huge pages. */
	madvise(map, p->shape.total_bytes, MADV_HUGEPAGE);
	return 0;
}

static int check_hashes(const struct packed *p, struct packed_header *h, struct kernels *k,
			load_progress progress, void *ctx, struct error *err)
{
	struct walk w = {.data = packed_data(p),
			 .shape = &p->shape,
			 .hashes = packed_hashes(h),
			 .progress = progress,
			 .ctx = ctx,
			 .stage = "checking the packed weights"};
	int r = walk_all(&w, k);
	uint32_t bad = atomic_load(&w.bad);

	if (bad != NO_CHUNK)
		r = error_set(
			err, -EBADMSG,
			"packed weights: the bytes from %llu on are not those that were written",
			(unsigned long long)(p->shape.data_offset + (uint64_t)bad * PACKED_CHUNK));
	return r;
}

int packed_map(struct packed *ret, int fd, const struct packed_want *want, struct kernels *k,
	       load_progress progress, void *ctx, uint8_t ret_content[PACKED_HASH_BYTES],
	       struct error *err)
{
	_cleanup_(freep) struct packed_header *h = NULL;
	struct packed p = {};
	int r;

	r = packed_read(&h, &p.shape, fd, err);
	if (r < 0)
		return r;
	if (p.shape.data_bytes != want->data_bytes ||
	    memcmp(h->plan, want->plan, sizeof(h->plan)) != 0)
		return error_set(err, -EBADMSG, "packed weights of another model or precision");
	r = map_file(&p, fd, PROT_READ, err);
	r = r ?: check_hashes(&p, h, k, progress, ctx, err);
	if (r < 0) {
		packed_done(&p);
		return r;
	}
	memcpy(ret_content, h->content, sizeof(h->content));
	*ret = p;
	return 0;
}

int packed_make(struct packed *ret, int fd, const struct packed_want *want, struct error *err)
{
	struct packed p = {};
	int r = packed_shape_init(&p.shape, want->data_bytes, err);

	if (r < 0)
		return r;
	/* Room for all of it now: a store into a mapped hole would be a signal where the disk is full. */
	if (fallocate(fd, 0, 0, (off_t)p.shape.total_bytes) < 0) {
		r = error_set(err, -errno, "%.1f MB for packed weights in the cache directory: %m",
			      (double)p.shape.total_bytes / 1e6);
		/* Give back what there was room for. */
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			  (off_t)p.shape.total_bytes);
		return r;
	}
	r = map_file(&p, fd, PROT_READ | PROT_WRITE, err);
	if (r < 0)
		return r;
	*ret = p;
	return 0;
}

/* In pieces, so that nobody takes a slow disk for a worker that stands still. */
static int sync_all(const struct packed *p, load_progress progress, void *ctx)
{
	uint64_t n = p->shape.total_bytes;
	int r = 0;

	for (uint64_t at = 0; at < n && r >= 0; at += SYNC_BYTES) {
		if (msync(p->map + at, MIN(n - at, (uint64_t)SYNC_BYTES), MS_SYNC) < 0)
			r = -errno;
		else if (progress)
			r = progress(ctx, "storing the packed weights", at, n);
	}
	return r;
}

int packed_finish(struct packed *p, const struct packed_want *want,
		  const uint8_t content[PACKED_HASH_BYTES], struct kernels *k,
		  load_progress progress, void *ctx, struct error *err)
{
	struct packed_header *h = (void *)p->map;
	struct walk w = {.data = packed_data(p),
			 .shape = &p->shape,
			 .hashes = packed_hashes(h),
			 .fill = true,
			 .progress = progress,
			 .ctx = ctx,
			 .stage = "hashing the packed weights"};
	int r = walk_all(&w, k);

	if (r < 0)
		return r;
	*h = (struct packed_header){
		.magic = PACKED_MAGIC, .version = PACKED_VERSION, .data_bytes = want->data_bytes};
	memcpy(h->plan, want->plan, sizeof(h->plan));
	memcpy(h->content, content, sizeof(h->content));
	if (mprotect(p->map, p->shape.total_bytes, PROT_READ) < 0)
		return error_set(err, -errno, "protecting packed weights: %m");
	r = sync_all(p, progress, ctx);
	return r < 0 ? error_set(err, r, "writing packed weights: %m") : 0;
}

void packed_done(struct packed *p)
{
	if (p->map)
		munmap(p->map, p->shape.total_bytes);
	*p = (struct packed){};
}
