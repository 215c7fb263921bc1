#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's clock: it has no io, whose time may be a simulated one. */
#include <stdint.h>
#include <time.h>

/** clock_usec() - monotonic */
static inline uint64_t clock_usec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}
