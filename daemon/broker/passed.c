/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/passed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

#define PASSED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

int passed_check(int fd, size_t n, struct error *err)
{
	/* First: only memfds and files of tmpfs have seals, so what follows cannot block. */
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0)
		return error_set(err, -EINVAL, "prompt_fd: the descriptor is not of a memfd");
	if ((seals & PASSED_SEALS) != PASSED_SEALS)
		return error_set(
			err, -EINVAL,
			"prompt_fd: the memfd has seals 0x%x, want SHRINK, GROW, WRITE and "
			"SEAL (0x%x)",
			(unsigned)seals, (unsigned)PASSED_SEALS);
	if (fstat(fd, &st) < 0)
		return error_set(err, -EINVAL, "prompt_fd: fstat: %m");
	if (st.st_size < 0 || (uint64_t)st.st_size != n)
		return error_set(err, -EINVAL,
				 "prompt_fd: the memfd has %lld bytes, the frame says %zu",
				 (long long)st.st_size, n);
	return 0;
}

int passed_copy(int fd, void *ret, size_t n, struct error *err)
{
	uint8_t *p = ret;
	size_t at = 0;

	while (at < n) {
		ssize_t got = pread(fd, p + at, n - at, (off_t)at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return error_set(err, -EINVAL, "prompt_fd: reading byte %zu of %zu: %s", at,
					 n, got < 0 ? strerror(errno) : "there is none");
		at += (size_t)got;
	}
	return 0;
}
