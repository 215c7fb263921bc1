#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine is to a worker. Read before the sandbox closes every path, /sys with them. */
#include <stdbool.h>

#include "kernels.h"

struct error;

struct machine {
	struct kernels_topology topology;
	bool huge_memory; /* huge pages for anonymous memory that asks for them */
	bool huge_shared; /* the same for memfds, which the pool is */
};

/**
 * machine_read() - CPUs that this process may use, by core, and whether huge pages are granted
 *
 * Return: 0. -errno with a sentence: *ret names no CPU, and threads are better left where the system puts them.
 * Source: hwloc, and /sys/kernel/mm/transparent_hugepage; neither is more than a hint.
 */
int machine_read(struct machine *ret, struct error *err);

/** machine_log() - a line for the operator: where @n_threads run, and what lacks huge pages and why */
void machine_log(const struct machine *m, uint32_t n_threads);
