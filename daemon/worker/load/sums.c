/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/sums.h"

#include <errno.h>
#include <string.h>

#include <sodium.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "worker/load/files.h"

#define DIGITS (2 * crypto_hash_sha256_BYTES)
#define PIECE  (1u << 20)

/* Digits, two blanks (or one and an asterisk: binary), a name. Return: bytes of the line, 0: none. */
static size_t line_bytes(const char *p, size_t n)
{
	const char *end = memchr(p, '\n', n);
	size_t name;

	if (!end || (size_t)(end - p) < DIGITS + 3 || strspn(p, "0123456789abcdef") != DIGITS ||
	    p[DIGITS] != ' ' || (p[DIGITS + 1] != ' ' && p[DIGITS + 1] != '*'))
		return 0;
	name = (size_t)(end - p) - DIGITS - 2;
	if (name > FILE_NAME_LEN_MAX || memchr(p + DIGITS + 2, '/', name) ||
	    memchr(p + DIGITS + 2, 0, name))
		return 0;
	return (size_t)(end - p) + 1;
}

static bool names(const char *line, size_t n, const char *name, size_t n_name)
{
	return n == DIGITS + 2 + n_name + 1 && memcmp(line + DIGITS + 2, name, n_name) == 0;
}

const char *sums_find(const char *text, size_t n, const char *name)
{
	size_t n_name = strlen(name);

	for (size_t at = 0, k; at < n; at += k) {
		k = line_bytes(text + at, n - at);
		if (names(text + at, k, name, n_name))
			return text + at;
	}
	return NULL;
}

int sums_parse(const char *text, size_t n, struct error *err)
{
	unsigned line = 1;

	for (size_t at = 0, k; at < n; at += k, line++) {
		k = line_bytes(text + at, n - at);
		if (k == 0)
			return error_set(err, -EBADMSG,
					 SUMS_NAME " line %u: want 64 hex digits, two blanks and a "
						   "plain file name",
					 line);
		if (line > FILES_MAX)
			return error_set(err, -EBADMSG, SUMS_NAME ": more than %u lines",
					 FILES_MAX);
		for (size_t b = 0, j; b < at; b += j) {
			j = line_bytes(text + b, at - b);
			if (names(text + b, j, text + at + DIGITS + 2, k - DIGITS - 3))
				return error_set(err, -EBADMSG,
						 SUMS_NAME " line %u: a name that came before",
						 line);
		}
	}
	return 0;
}

struct pass {
	load_progress progress;
	void *ctx;
	uint64_t done, total;
};

static int hash_file(const struct file *f, struct pass *p, char ret[DIGITS + 1], struct error *err)
{
	_cleanup_(freep) uint8_t *piece = malloc(PIECE);
	uint8_t sum[crypto_hash_sha256_BYTES];
	crypto_hash_sha256_state state;

	if (!piece)
		return -ENOMEM;
	crypto_hash_sha256_init(&state);
	for (uint64_t at = 0; at < f->size; at += PIECE) {
		size_t n = (size_t)MIN(f->size - at, (uint64_t)PIECE);
		int r = file_read(f, at, piece, n, err);

		if (r < 0)
			return r;
		crypto_hash_sha256_update(&state, piece, n);
		p->done += n;
		r = p->progress ? p->progress(p->ctx, "checking " SUMS_NAME, p->done, p->total) : 0;
		if (r < 0)
			return r;
	}
	crypto_hash_sha256_final(&state, sum);
	sodium_bin2hex(ret, DIGITS + 1, sum, sizeof(sum));
	return 0;
}

/* What is listed, would be part of the model, and is not there. */
static int check_missing(const struct files *files, const char *text, size_t n, struct error *err)
{
	for (size_t at = 0, k; at < n; at += k) {
		const char *name = text + at + DIGITS + 2;
		char shown[260];
		size_t n_name, i = 0;

		k = line_bytes(text + at, n - at);
		n_name = k - DIGITS - 3;
		while (i < files->n && (strlen(files->items[i].name) != n_name ||
					memcmp(files->items[i].name, name, n_name) != 0))
			i++;
		if (i == files->n && file_is_wanted(name, n_name))
			return error_set(err, -EBADMSG, "%s: missing, and " SUMS_NAME " lists it",
					 log_escape(shown, sizeof(shown), name, n_name));
	}
	return 0;
}

int sums_check(const struct files *files, load_progress progress, void *ctx, struct error *err)
{
	const struct file *sums = files_find(files, SUMS_NAME);
	struct pass p = {.progress = progress, .ctx = ctx};
	_cleanup_(freep) char *text = NULL;
	size_t n;
	int r;

	if (!sums)
		return 0;
	r = file_slurp(sums, SUMS_BYTES_MAX, &text, &n, err);
	r = r ?: sums_parse(text, n, err);
	r = r ?: check_missing(files, text, n, err);
	for (uint32_t i = 0; i < files->n; i++)
		p.total += files->items[i].size;
	for (uint32_t i = 0; i < files->n && r == 0; i++) {
		const struct file *f = &files->items[i];
		const char *line = sums_find(text, n, f->name);
		char sum[DIGITS + 1];

		if (f == sums)
			continue;
		if (!line)
			return error_set(err, -EBADMSG, "%s: " SUMS_NAME " does not list it",
					 f->name);
		r = hash_file(f, &p, sum, err);
		if (r == 0 && memcmp(line, sum, DIGITS) != 0)
			r = error_set(err, -EBADMSG,
				      "%s: not the file that " SUMS_NAME
				      " speaks of: %.16s..., want %.16s...",
				      f->name, sum, line);
	}
	return r;
}
