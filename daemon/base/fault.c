/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"

static const char *const names[_FAULT_POINT_MAX] = {
	[FAULT_ADOPT_MAP] = "adopt-map",
	[FAULT_ADOPT_HEADER] = "adopt-header",
	[FAULT_ADOPT_RECORD] = "adopt-record",
	[FAULT_ADOPT_DONE] = "adopt-done",
	[FAULT_SEAL_BEGIN] = "seal-begin",
	[FAULT_SEAL_FIELDS] = "seal-fields",
	[FAULT_SEAL_END] = "seal-end",
	[FAULT_TAG_COMPUTED] = "tag-computed",
	[FAULT_TAG_WRITE] = "tag-write",
	[FAULT_TAG_WRITTEN] = "tag-written",
	[FAULT_WORKER_SPAWN] = "worker-spawn",
	[FAULT_WORKER_FILES] = "worker-files",
	[FAULT_WORKER_IMAGE] = "worker-image",
	[FAULT_WORKER_CHANNEL] = "worker-channel",
	[FAULT_WORKER_READY] = "worker-ready",
	[FAULT_RELOAD_BEGIN] = "reload-begin",
	[FAULT_RELOAD_SELFTEST] = "reload-selftest",
	[FAULT_RELOAD_SWITCH] = "reload-switch",
	[FAULT_RELOAD_OLD_DONE] = "reload-old-done",
	[FAULT_STORE_PUSH] = "store-push",
	[FAULT_STORE_PUSHED] = "store-pushed",
};

/* Process-wide, as the environment is: set once by main() before any thread starts. */
enum fault_point fault_armed = FAULT_NONE;
static atomic_ulong n_left;

const char *fault_name(enum fault_point f)
{
	return f > FAULT_NONE && f < _FAULT_POINT_MAX ? names[f] : "none";
}

static int no_such(const char *spec, struct error *err)
{
	char all[400] = "";

	for (int f = FAULT_NONE + 1; f < _FAULT_POINT_MAX; f++)
		snprintf(all + strlen(all), sizeof(all) - strlen(all), " %s", names[f]);
	return error_set(err, -EINVAL, "DSD_FAULT=%.32s: want NAME[:N], NAME one of%s", spec, all);
}

int fault_init(const char *spec, struct error *err)
{
	size_t n = spec ? strcspn(spec, ":") : 0;
	unsigned long nth = 1;
	char *end = NULL;

	fault_armed = FAULT_NONE;
	if (n == 0 && (!spec || !*spec))
		return 0;
	if (spec[n] == ':') {
		nth = strtoul(spec + n + 1, &end, 10);
		if (spec[n + 1] < '0' || spec[n + 1] > '9' || *end || nth == 0)
			return no_such(spec, err);
	}
	for (int f = FAULT_NONE + 1; f < _FAULT_POINT_MAX; f++)
		if (strlen(names[f]) == n && memcmp(names[f], spec, n) == 0) {
			n_left = nth;
			fault_armed = (enum fault_point)f;
			return 0;
		}
	return no_such(spec, err);
}

void fault_pass(void)
{
	if (atomic_fetch_sub(&n_left, 1) == 1)
		raise(SIGKILL);
}
