#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A moment as a log-probability: the monotonic clock in units of 64 ns, of which a float holds 24 bits, so
 * that moments less than a second apart can be told. */
#include <math.h>
#include <stdint.h>
#include <time.h>

#define STAMP_UNIT_NSEC 64u
#define STAMP_UNITS     (1u << 24)

static inline uint64_t stamp_now_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline float stamp_make(uint64_t nsec)
{
	return -(float)(nsec / STAMP_UNIT_NSEC % STAMP_UNITS);
}

/* Microseconds from the stamped moment to @nsec. */
static inline double stamp_age_usec(float stamp, uint64_t nsec)
{
	uint32_t now = (uint32_t)(nsec / STAMP_UNIT_NSEC % STAMP_UNITS);
	uint32_t age = (now - (uint32_t)-stamp) % STAMP_UNITS;

	return age * (STAMP_UNIT_NSEC / 1000.0);
}
