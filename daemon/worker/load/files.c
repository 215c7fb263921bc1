/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"

static bool is_plain_name(const char *name)
{
	size_t n = strlen(name);

	return n > 0 && n <= FILE_NAME_LEN_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

int files_add(struct files *f, const char *name, int fd, struct error *err)
{
	_cleanup_(fd_closep) int owned = fd;
	char shown[260];
	struct file *items;
	struct stat st;
	char *copy;

	log_escape(shown, sizeof(shown), name, strlen(name));
	if (!is_plain_name(name))
		return error_set(err, -EINVAL, "\"%s\": want a plain file name", shown);
	if (files_find(f, name))
		return error_set(err, -EINVAL, "%s: came twice", shown);
	if (f->n >= FILES_MAX)
		return error_set(err, -EINVAL, "%s: want at most %u files", shown, FILES_MAX);
	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %m", shown);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s: want a regular file", shown);
	items = realloc(f->items, sizeof(*items) * (f->n + 1));
	if (!items)
		return -ENOMEM;
	f->items = items;
	copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	f->items[f->n++] = (struct file){
		.name = copy,
		.fd = TAKE_FD(owned),
		.size = (uint64_t)st.st_size,
	};
	return 0;
}

bool file_is_wanted(const char *name, size_t n)
{
	static const char *const names[] = {
		"config.json",           "generation_config.json",       "tokenizer.json",
		"tokenizer_config.json", "model.safetensors.index.json", "SHA256SUMS"};

	for (size_t i = 0; i < N_ELEMENTS(names); i++)
		if (strlen(names[i]) == n && memcmp(name, names[i], n) == 0)
			return true;
	return n > 12 && memcmp(name + n - 12, ".safetensors", 12) == 0;
}

static int open_directory(struct files *f, int dir_fd, struct error *err)
{
	DIR *dir = fdopendir(dir_fd);
	struct dirent *e;
	int r = 0;

	if (!dir) {
		r = -errno;
		fd_close(dir_fd);
		return error_set(err, r, "reading the directory: %m");
	}
	while (r == 0 && (e = readdir(dir))) {
		int fd;

		if (!file_is_wanted(e->d_name, strlen(e->d_name)))
			continue;
		/* Not blocking: a FIFO of that name must not hold us up. */
		fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		r = fd < 0 ? error_set(err, -errno, "%s: %m", e->d_name)
			   : files_add(f, e->d_name, fd, err);
	}
	closedir(dir);
	return r;
}

int files_open(struct files *f, const char *path, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	const char *slash = strrchr(path, '/');
	struct stat st;

	if (fd < 0)
		return error_set(err, -errno, "%s: %m", path);
	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %m", path);
	if (S_ISDIR(st.st_mode))
		return open_directory(f, TAKE_FD(fd), err);
	return files_add(f, slash ? slash + 1 : path, TAKE_FD(fd), err);
}

void files_done(struct files *f)
{
	for (uint32_t i = 0; i < f->n; i++) {
		free(f->items[i].name);
		fd_close(f->items[i].fd);
	}
	free(f->items);
	*f = (struct files){};
}

const struct file *files_find(const struct files *f, const char *name)
{
	for (uint32_t i = 0; i < f->n; i++)
		if (strcmp(f->items[i].name, name) == 0)
			return &f->items[i];
	return NULL;
}

int file_read(const struct file *f, uint64_t offset, void *ret, size_t n, struct error *err)
{
	size_t at = 0;

	while (at < n) {
		ssize_t k = pread(f->fd, (char *)ret + at, n - at, (off_t)(offset + at));

		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return error_set(err, -errno, "%s: %m", f->name);
		if (k == 0)
			return error_set(err, -EIO, "%s: ends at byte %llu, want %llu", f->name,
					 (unsigned long long)(offset + at),
					 (unsigned long long)(offset + n));
		at += (size_t)k;
	}
	return 0;
}

int file_slurp(const struct file *f, size_t max, char **ret, size_t *ret_n, struct error *err)
{
	_cleanup_(freep) char *data = NULL;
	int r;

	if (f->size > max)
		return error_set(err, -EFBIG, "%s: %llu bytes, want at most %zu", f->name,
				 (unsigned long long)f->size, max);
	data = malloc(f->size + 1);
	if (!data)
		return -ENOMEM;
	r = file_read(f, 0, data, f->size, err);
	if (r < 0)
		return r;
	data[f->size] = 0;
	*ret_n = f->size;
	*ret = TAKE_PTR(data);
	return 0;
}
