#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* SHA256SUMS, as sha256sum(1) writes it, beside a model's files: weights whose bits have turned are
 * numbers like any others, so a publisher who says what they are lets us refuse what they are not.
 * Thread: any. */
#include <stddef.h>

#include "worker/load/load.h"

struct error;
struct files;

#define SUMS_NAME      "SHA256SUMS"
#define SUMS_BYTES_MAX (256u << 10)

/**
 * sums_check() - every file is as SHA256SUMS says
 * @files:    may lack it: then nothing is checked
 * @progress: may be NULL
 * Return: 0. -EBADMSG with a sentence: a line that sha256sum does not write, a file that is not
 *         listed, or has another sum; -errno of reading, or what @progress returned.
 */
int sums_check(const struct files *files, load_progress progress, void *ctx, struct error *err);
/** sums_find() - the 64 digits of @name's line in @text. @text has passed sums_parse(). NULL: none. */
const char *sums_find(const char *text, size_t n, const char *name);
/** sums_parse() - is every line "<64 lower-case hex digits>  <name>\n" with a plain name, none twice? */
int sums_parse(const char *text, size_t n, struct error *err);
