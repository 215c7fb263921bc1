/* SPDX-License-Identifier: Apache-2.0 */
/* Which CPUs are cores, on machines that hwloc is told of; the CPUs are those this process may use. */
#include "worker/machine.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/error.h"

static void read_machine(struct machine *ret, const char *synthetic)
{
	struct error err = {};

	if (synthetic) {
		setenv("HWLOC_SYNTHETIC", synthetic, 1);
		setenv("HWLOC_THISSYSTEM", "1", 1);
	}
	assert_int_equal(machine_read(ret, &err), 0);
	unsetenv("HWLOC_SYNTHETIC");
	unsetenv("HWLOC_THISSYSTEM");
}

static void every_cpu_is_listed_once(void **state)
{
	struct machine m;
	cpu_set_t may;

	(void)state;
	read_machine(&m, NULL);
	assert_int_equal(sched_getaffinity(0, sizeof(may), &may), 0);
	assert_int_equal(m.topology.n_cpus, CPU_COUNT(&may));
	assert_in_range(m.topology.n_cores, 1, m.topology.n_cpus);
	for (uint32_t i = 0; i < m.topology.n_cpus; i++) {
		assert_true(CPU_ISSET(m.topology.cpus[i], &may));
		CPU_CLR(m.topology.cpus[i], &may);
	}
}

static void two_cpus_of_one_core_are_one_core(void **state)
{
	cpu_set_t two, may;
	struct machine m;

	(void)state;
	CPU_ZERO(&two);
	CPU_SET(0, &two);
	CPU_SET(1, &two);
	if (sched_setaffinity(0, sizeof(two), &two) < 0 ||
	    sched_getaffinity(0, sizeof(may), &may) < 0 || CPU_COUNT(&may) != 2)
		skip(); /* this process may not use both */
	read_machine(&m, "core:4 pu:2");
	assert_int_equal(m.topology.n_cpus, 2);
	assert_int_equal(m.topology.n_cores, 1);
	read_machine(&m, "core:4 pu:1");
	assert_int_equal(m.topology.n_cpus, 2);
	assert_int_equal(m.topology.n_cores, 2);
	read_machine(&m, "pu:2");
	assert_int_equal(m.topology.n_cores, 2);
}

static void threads_have_cpus_where_they_are_as_many_as_cores_or_cpus(void **state)
{
	const struct kernels_topology t = {.n_cpus = 8, .n_cores = 4};

	(void)state;
	for (uint32_t n = 1; n <= 9; n++)
		assert_int_equal(kernels_cpu_pins(&t, n), n == 4 || n == 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_cpu_is_listed_once),
		cmocka_unit_test(threads_have_cpus_where_they_are_as_many_as_cores_or_cpus),
		cmocka_unit_test(two_cpus_of_one_core_are_one_core),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
