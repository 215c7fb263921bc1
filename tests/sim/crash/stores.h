#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A log of every store that instrumented code makes to memory that would outlive it, and what such
 * memory may look like after a crash.
 *
 * The code under test is compiled with -fsanitize=thread, which calls a function before each access and
 * for each atomic and fence, and linked with our functions instead of the sanitizer's. Where the
 * compiler keeps memcpy() and its like as calls, macros lead them here too. One thread. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORES_REGIONS 3u
/** stores_watch() - memory at @p is the @n bytes at @at of the image; NULL: nothing is watched. */
void stores_watch(unsigned region, const void *p, size_t at, size_t n);
/** stores_begin() - forget the log and keep one from now on. */
void stores_begin(void);
void stores_end(void);
size_t stores_n(void);

/** stores_replay() - the whole log, in its order, onto @image: what memory holds now. */
void stores_replay(uint8_t *image);
/**
 * stores_crash() - onto @image: what may be left in memory when the code stopped
 * @cut:     so many entries of the log have happened
 * @ordered: as another processor may see it: what stands before the last fence is there; after it, up
 *           to some release store, everything is; behind that, any of the plain stores may be and any
 *           release store is not. Otherwise no order holds at all: any of the last stores may be missing.
 * @random:  gives numbers
 *
 * Plain stores may be torn at any byte.
 */
void stores_crash(uint8_t *image, size_t cut, bool ordered, uint64_t (*random)(void *), void *ctx);

/* Stores of somebody who is not instrumented: a worker that writes a page. */
void *stores_memcpy(void *to, const void *from, size_t n);
void *stores_memset(void *to, int byte, size_t n);
void stores_bzero(void *to, size_t n);
