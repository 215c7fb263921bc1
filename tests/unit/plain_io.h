#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The seam without a loop: real clock, chance and memory, for tests of what only needs those. */
#include "base/io_real.h"

static const struct io_ops plain_io_ops = {
	.name = "plain",
	.now_usec = io_real_now_usec,
	.random = io_real_random,
	.memfd = io_real_memfd,
	.map = io_real_map,
	.unmap = io_real_unmap,
	.alloc = io_real_alloc,
};
