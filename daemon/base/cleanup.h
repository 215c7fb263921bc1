#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Scope-bound ownership: _cleanup_(x_freep), TAKE_PTR(), TAKE_FD(); and a few small words. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* x_free(NULL) must be fine; makes x_freep() for _cleanup_. */
#define DEFINE_CLEANUP(type, func)                                                                 \
	static inline void func##p(type *p)                                                        \
	{                                                                                          \
		if (*p)                                                                            \
			func(*p);                                                                  \
	}                                                                                          \
	struct _swallow_semicolon_##func

#define TAKE_PTR(p)                                                                                \
	({                                                                                         \
		__auto_type _p = (p);                                                              \
		(p) = NULL;                                                                        \
		_p;                                                                                \
	})
#define TAKE_FD(fd)                                                                                \
	({                                                                                         \
		int _fd = (fd);                                                                    \
		(fd) = -EBADF;                                                                     \
		_fd;                                                                               \
	})

/* Closes and returns -EBADF; keeps errno, and never closes twice. */
static inline int fd_close(int fd)
{
	if (fd >= 0) {
		int e = errno;

		close(fd);
		errno = e;
	}
	return -EBADF;
}
static inline void fd_closep(int *fd)
{
	*fd = fd_close(*fd);
}
static inline void freep(void *p)
{
	free(*(void **)p);
}

#define BIT(n)             (1u << (n))
#define N_ELEMENTS(a)      (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a)     (((x) + ((a)-1)) / (a) * (a))
#define DIV_ROUND_UP(x, a) (((x) + ((a)-1)) / (a))
#define MIN(a, b)                                                                                  \
	({                                                                                         \
		__auto_type _a = (a);                                                              \
		__auto_type _b = (b);                                                              \
		_a < _b ? _a : _b;                                                                 \
	})
#define MAX(a, b)                                                                                  \
	({                                                                                         \
		__auto_type _a = (a);                                                              \
		__auto_type _b = (b);                                                              \
		_a > _b ? _a : _b;                                                                 \
	})
