#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a model: names and read-only descriptors. The worker opens no path; who does is the
 * broker, or files_open() for `--inspect`. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define FILES_MAX         1024u /* the largest published model has 163 shards */
#define FILE_NAME_LEN_MAX 255u

struct file {
	char *name; /* plain: no '/', not "." or ".." */
	int fd;
	uint64_t
		size; /* when it was added; a file that shrinks later gives short reads, not faults */
};

struct files {
	struct file *items;
	uint32_t n;
};

/**
 * files_add() - take @fd as file @name
 * Return: 0. -EINVAL: not a plain name, not a regular file, twice the same name, too many. @fd is
 *         closed on failure.
 */
int files_add(struct files *f, const char *name, int fd, struct error *err);
/** files_open() - what matters of a model directory, or one .safetensors file. */
int files_open(struct files *f, const char *path, struct error *err);
void files_done(struct files *f);
/** file_is_wanted() - is a file of that name (of @n bytes) part of a model? */
bool file_is_wanted(const char *name, size_t n);

const struct file *files_find(const struct files *f, const char *name);

/**
 * file_read() - all @n bytes at @offset
 * Return: 0; -EIO with a sentence where the file ends before; -errno of pread.
 */
int file_read(const struct file *f, uint64_t offset, void *ret, size_t n, struct error *err);
/** file_slurp() - the whole of a small file, with a 0 behind it; free() it. -EFBIG past @max. */
int file_slurp(const struct file *f, size_t max, char **ret, size_t *ret_n, struct error *err);
