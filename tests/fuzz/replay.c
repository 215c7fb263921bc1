/* SPDX-License-Identifier: Apache-2.0 */
/* The main of a fuzz target in the normal build: runs every file of a directory through it, by name.
 *
 *   fuzz-NAME DIRECTORY
 *
 * Fails where the directory holds no file: an empty corpus tests nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int run_file(int dir, const char *name)
{
	_cleanup_(fd_closep) int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	_cleanup_(freep) uint8_t *data = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return 0;
	/* Exactly as long as the input, so that a sanitizer sees the first byte past it. */
	data = malloc((size_t)st.st_size);
	n = data || st.st_size == 0 ? read(fd, data, (size_t)st.st_size) : -1;
	if (n != st.st_size)
		return -EIO;
	LLVMFuzzerTestOneInput(data, (size_t)n);
	return 1;
}

static int not_hidden(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

int main(int argc, char **argv)
{
	_cleanup_(fd_closep) int dir = -EBADF;
	struct dirent **names;
	int n, n_run = 0, failed = 0;

	if (argc != 2) {
		fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
		return 2;
	}
	dir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	n = dir < 0 ? -1 : scandir(argv[1], &names, not_hidden, alphasort);
	if (n < 0) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	for (int i = 0; i < n; i++) {
		int r = run_file(dir, names[i]->d_name);

		if (r < 0) {
			fprintf(stderr, "%s/%s: %s\n", argv[1], names[i]->d_name, strerror(-r));
			failed = 1;
		}
		n_run += r > 0;
		free(names[i]);
	}
	free(names);
	if (n_run == 0) {
		fprintf(stderr, "%s: no files\n", argv[1]);
		return 1;
	}
	printf("%d inputs\n", n_run);
	return failed;
}
