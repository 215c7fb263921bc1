/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include <hwloc.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* How many of @may on the core of @cpu come before it. */
static unsigned rank_of(hwloc_topology_t hw, hwloc_const_cpuset_t may, unsigned cpu)
{
	hwloc_obj_t pu = hwloc_get_pu_obj_by_os_index(hw, cpu);
	hwloc_obj_t core = pu ? hwloc_get_ancestor_obj_by_type(hw, HWLOC_OBJ_CORE, pu) : NULL;
	unsigned n = 0;
	int i;

	hwloc_bitmap_foreach_begin(i, may) n +=
		core && (unsigned)i < cpu && hwloc_bitmap_isset(core->cpuset, (unsigned)i);
	hwloc_bitmap_foreach_end();
	return n;
}

/* The first CPU of each core, then the second of each, and so on. */
static void list_cpus(struct kernels_topology *t, hwloc_topology_t hw, hwloc_const_cpuset_t may)
{
	for (unsigned rank = 0, n_before = UINT_MAX; n_before != t->n_cpus; rank++) {
		unsigned cpu;

		n_before = t->n_cpus;
		hwloc_bitmap_foreach_begin(cpu, may) if (cpu <= UINT16_MAX &&
							 t->n_cpus < K_CPUS_MAX &&
							 rank_of(hw, may, cpu) == rank)
			t->cpus[t->n_cpus++] = (uint16_t)cpu;
		hwloc_bitmap_foreach_end();
		if (rank == 0)
			t->n_cores = t->n_cpus;
	}
}

static int read_topology(struct kernels_topology *ret, struct error *err)
{
	hwloc_bitmap_t may = hwloc_bitmap_alloc();
	struct kernels_topology t = {};
	hwloc_topology_t hw;
	int r = 0;

	if (!may || hwloc_topology_init(&hw) < 0) {
		hwloc_bitmap_free(may);
		return -ENOMEM;
	}
	/* Cores and CPUs alone, as the kernel tells them: the other way, by asking each CPU, binds to it in turn. */
	hwloc_topology_set_all_types_filter(hw, HWLOC_TYPE_FILTER_KEEP_NONE);
	hwloc_topology_set_type_filter(hw, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
	hwloc_topology_set_components(hw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
	if (hwloc_topology_load(hw) < 0 || hwloc_get_cpubind(hw, may, HWLOC_CPUBIND_PROCESS) < 0)
		r = error_set(err, -errno, "the machine's CPUs: %m");
	else
		list_cpus(&t, hw, may);
	hwloc_topology_destroy(hw);
	hwloc_bitmap_free(may);
	*ret = t;
	return r;
}

/* "always [madvise] never": the one in brackets holds. */
static bool is_granted(const char *path)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[128];
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n <= 0)
		return false;
	text[n] = 0;
	return !strstr(text, "[never]") && !strstr(text, "[deny]");
}

int machine_read(struct machine *ret, struct error *err)
{
	*ret = (struct machine){
		.huge_memory = is_granted(THP "enabled"),
		.huge_shared = is_granted(THP "shmem_enabled"),
	};
	return read_topology(&ret->topology, err);
}

void machine_log(const struct machine *m, uint32_t n_threads)
{
	const struct kernels_topology *t = &m->topology;
	const char *where = kernels_cpu_pins(t, n_threads) ? "each on a CPU of its own"
							   : "where the system puts them";

	log_info("%u threads, %s, of %u CPUs on %u cores", n_threads, where, t->n_cpus, t->n_cores);
	if (!m->huge_memory)
		log_info("no huge pages for weights: " THP
			 "enabled says never; madvise grants them");
	if (!m->huge_shared)
		log_info("no huge pages for the pool: " THP
			 "shmem_enabled says never; advise grants them");
}
