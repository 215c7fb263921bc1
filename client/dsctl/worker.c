/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"

/* $DSD_WORKER, beside dsctl, where a build tree has it, where it is installed. */
static int find_worker(char ret[static PATH_MAX])
{
	static const char *const beside[] = {"dsd-worker", "../../daemon/dsd-worker",
					     "../../daemon/worker/dsd-worker"};
	const char *env = getenv("DSD_WORKER");
	char self[PATH_MAX];
	ssize_t n;

	if (env && *env) {
		snprintf(ret, PATH_MAX, "%s", env);
		return 0;
	}
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	while (n > 0 && self[n - 1] != '/')
		n--;
	for (size_t i = 0; n > 0 && i < sizeof(beside) / sizeof(beside[0]); i++) {
		int k = snprintf(ret, PATH_MAX, "%.*s%s", (int)n, self, beside[i]);

		if (k < PATH_MAX && access(ret, X_OK) == 0)
			return 0;
	}
	snprintf(ret, PATH_MAX, "%s/dsd-worker", DSD_LIBEXECDIR);
	return access(ret, X_OK) == 0 ? 0 : -ENOENT;
}

int worker_exec(char **argv)
{
	char path[PATH_MAX];

	if (find_worker(path) < 0)
		return say(
			STATUS_FAILED,
			"no dsd-worker in $DSD_WORKER, beside dsctl, or in %s: it does this work",
			DSD_LIBEXECDIR);
	argv[0] = path;
	fflush(stdout);
	execv(path, argv);
	return say(STATUS_FAILED, "%s: %s", path, strerror(errno));
}
