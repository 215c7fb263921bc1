/* SPDX-License-Identifier: Apache-2.0 */
#include "stores.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum kind { PLAIN, RELAXED, RELEASE, FENCE };

struct entry {
	uint32_t at;
	uint8_t kind, n;
	uint8_t bytes[8];
};

/* The functions below have no argument to carry it. */
static struct {
	struct {
		const uint8_t *p;
		size_t at, n;
	} regions[STORES_REGIONS];
	struct entry *log;
	size_t n, n_alloc;
	bool on;
	const uint8_t *pending; /* a store that was announced and not looked at yet */
	size_t n_pending;
} st;

static struct entry *append(enum kind kind)
{
	struct entry *e;

	if (st.n == st.n_alloc) {
		st.n_alloc = st.n_alloc ? 2 * st.n_alloc : 1 << 16;
		st.log = realloc(st.log, st.n_alloc * sizeof(*st.log));
		assert(st.log);
	}
	e = &st.log[st.n++];
	*e = (struct entry){.kind = (uint8_t)kind};
	return e;
}

/* Where in the image; false: memory of this life alone. */
static bool place(const uint8_t *p, size_t n, size_t *ret)
{
	for (unsigned i = 0; i < STORES_REGIONS; i++)
		if (st.regions[i].p && p >= st.regions[i].p &&
		    p + n <= st.regions[i].p + st.regions[i].n) {
			*ret = st.regions[i].at + (size_t)(p - st.regions[i].p);
			return true;
		}
	return false;
}

/* What is there now was stored just now, in words. */
static void note(const uint8_t *p, size_t n, enum kind kind)
{
	size_t at;

	if (!st.on || !place(p, n, &at))
		return;
	while (n > 0) {
		size_t k = 8 - at % 8 < n ? 8 - at % 8 : n;
		struct entry *e = append(kind);

		e->at = (uint32_t)at;
		e->n = (uint8_t)k;
		memcpy(e->bytes, p, k);
		at += k;
		p += k;
		n -= k;
	}
}

static void look(void)
{
	if (st.n_pending)
		note(st.pending, st.n_pending, PLAIN);
	st.n_pending = 0;
}

static void announce(const void *p, size_t n)
{
	look();
	st.pending = p;
	st.n_pending = n;
}

void stores_watch(unsigned region, const void *p, size_t at, size_t n)
{
	look();
	st.regions[region].p = p;
	st.regions[region].at = at;
	st.regions[region].n = n;
}

void stores_begin(void)
{
	st.n_pending = 0;
	st.n = 0;
	st.on = true;
}

void stores_end(void)
{
	look();
	st.on = false;
}

size_t stores_n(void)
{
	return st.n;
}

static void apply(uint8_t *image, const struct entry *e)
{
	if (e->kind != FENCE)
		memcpy(image + e->at, e->bytes, e->n);
}

void stores_replay(uint8_t *image)
{
	for (size_t i = 0; i < st.n; i++)
		apply(image, &st.log[i]);
}

/* So much of the log is there for certain: all before the last fence, and up to some release store. */
static size_t sure(size_t cut, uint64_t number)
{
	size_t fence = cut, n_releases = 0, n;

	while (fence > 0 && st.log[fence - 1].kind != FENCE)
		fence--;
	for (size_t i = fence; i < cut; i++)
		n_releases += st.log[i].kind == RELEASE;
	n = number % (n_releases + 1);
	for (; n > 0; fence++)
		n -= st.log[fence].kind == RELEASE;
	return fence;
}

void stores_crash(uint8_t *image, size_t cut, bool ordered, uint64_t (*random)(void *), void *ctx)
{
	static const uint64_t of_eight[] = {1, 4, 7, 8};
	uint64_t likely = of_eight[random(ctx) % 4], number = random(ctx);
	size_t at = ordered ? sure(cut, number) : cut - number % (cut + 1) / 2;

	for (size_t i = 0; i < at; i++)
		apply(image, &st.log[i]);
	for (; at < cut; at++) {
		const struct entry *e = &st.log[at];
		uint64_t x = random(ctx);

		if ((ordered && e->kind == RELEASE) || x % 8 >= likely)
			continue;
		if (e->kind == PLAIN && x / 8 % 8 == 0) {
			for (unsigned b = 0; b < e->n; b++)
				if (x >> (8 + b) & 1)
					image[e->at + b] = e->bytes[b];
		} else {
			apply(image, e);
		}
	}
}

void *stores_memcpy(void *to, const void *from, size_t n)
{
	look();
	memcpy(to, from, n);
	note(to, n, PLAIN);
	return to;
}

void *stores_memset(void *to, int byte, size_t n)
{
	look();
	memset(to, byte, n);
	note(to, n, PLAIN);
	return to;
}

void stores_bzero(void *to, size_t n)
{
	stores_memset(to, 0, n);
}

/* ---- what the compiler calls ---- */

enum { ORDER_RELEASE = 3 };

#define HOOK(decl)                                                                                 \
	decl;                                                                                      \
	decl
HOOK(void __tsan_init(void))
{
}
HOOK(void __tsan_func_entry(void *pc))
{
	(void)pc;
	look();
}
HOOK(void __tsan_func_exit(void))
{
	look();
}

#define ACCESS(n)                                                                                  \
	HOOK(void __tsan_read##n(const void *p))                                                   \
	{                                                                                          \
		(void)p;                                                                           \
		look();                                                                            \
	}                                                                                          \
	HOOK(void __tsan_write##n(void *p))                                                        \
	{                                                                                          \
		announce(p, n);                                                                    \
	}
#define UNALIGNED(n)                                                                               \
	HOOK(void __tsan_unaligned_read##n(const void *p))                                         \
	{                                                                                          \
		(void)p;                                                                           \
		look();                                                                            \
	}                                                                                          \
	HOOK(void __tsan_unaligned_write##n(void *p))                                              \
	{                                                                                          \
		announce(p, n);                                                                    \
	}                                                                                          \
	HOOK(void __tsan_read_write##n(void *p))                                                   \
	{                                                                                          \
		announce(p, n);                                                                    \
	}                                                                                          \
	HOOK(void __tsan_unaligned_read_write##n(void *p))                                         \
	{                                                                                          \
		announce(p, n);                                                                    \
	}
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
HOOK(void __tsan_read_write1(void *p))
{
	announce(p, 1);
}
HOOK(void __tsan_read_range(const void *p, long n))
{
	(void)p;
	(void)n;
	look();
}
HOOK(void __tsan_write_range(void *p, long n))
{
	announce(p, (size_t)n);
}
HOOK(void *__tsan_memcpy(void *to, const void *from, size_t n))
{
	return stores_memcpy(to, from, n);
}
HOOK(void *__tsan_memset(void *to, int byte, size_t n))
{
	return stores_memset(to, byte, n);
}

#define ATOMIC(bits, type)                                                                         \
	HOOK(type __tsan_atomic##bits##_load(const type *p, int order))                            \
	{                                                                                          \
		(void)order;                                                                       \
		look();                                                                            \
		return *p;                                                                         \
	}                                                                                          \
	HOOK(void __tsan_atomic##bits##_store(type *p, type v, int order))                         \
	{                                                                                          \
		look();                                                                            \
		*p = v;                                                                            \
		note((const uint8_t *)p, sizeof(*p), order >= ORDER_RELEASE ? RELEASE : RELAXED);  \
	}
ATOMIC(8, uint8_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
HOOK(void __tsan_atomic_thread_fence(int order))
{
	look();
	if (st.on && order >= ORDER_RELEASE)
		append(FENCE);
}
HOOK(void __tsan_atomic_signal_fence(int order))
{
	(void)order;
	look();
}
