/* SPDX-License-Identifier: Apache-2.0 */
#include "prompt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "output.h"

#define PROMPT_MAX (64u << 20) /* bytes, as libdsclient takes them */

static int read_stdin(struct text *ret)
{
	size_t n = 0, size = 64u << 10;
	char *data = malloc(size);

	while (data) {
		size_t got = fread(data + n, 1, size - n, stdin);
		char *more;

		n += got;
		if (ferror(stdin)) {
			free(data);
			return say(STATUS_FAILED, "reading standard input: %s", strerror(errno));
		}
		if (feof(stdin)) {
			*ret = (struct text){data, n};
			return 0;
		}
		if (n < size)
			continue;
		if (size >= PROMPT_MAX) {
			free(data);
			return say(STATUS_FAILED, "standard input: got more than %u bytes",
				   PROMPT_MAX);
		}
		more = realloc(data, size *= 2);
		if (!more)
			free(data);
		data = more;
	}
	return say(STATUS_FAILED, "out of memory");
}

int prompt_read(char **args, size_t n_args, struct text *ret)
{
	size_t n = 0;
	char *data;

	if (n_args == 0 || (n_args == 1 && strcmp(args[0], "-") == 0))
		return read_stdin(ret);
	for (size_t i = 0; i < n_args; i++)
		n += strlen(args[i]) + 1;
	data = malloc(n);
	if (!data)
		return say(STATUS_FAILED, "out of memory");
	n = 0;
	for (size_t i = 0; i < n_args; i++) {
		size_t k = strlen(args[i]);

		if (i > 0)
			data[n++] = ' ';
		memcpy(data + n, args[i], k);
		n += k;
	}
	*ret = (struct text){data, n};
	return 0;
}

int prompt_ids(const char *name, const struct text *text, uint32_t **ret, size_t *ret_n)
{
	static const char between[] = ", \t\r\n";
	uint32_t *ids =
		malloc((text->bytes / 2 + 1) * sizeof(*ids)); /* a digit and a divider each */
	size_t n = 0;

	if (!ids)
		return say(STATUS_FAILED, "out of memory");
	for (size_t i = 0; i < text->bytes;) {
		char number[16];
		size_t k = 0;

		if (text->data[i] && strchr(between, text->data[i])) {
			i++;
			continue;
		}
		while (i + k < text->bytes && k < sizeof(number) - 1 &&
		       !(text->data[i + k] && strchr(between, text->data[i + k]))) {
			number[k] = text->data[i + k];
			k++;
		}
		number[k] = 0;
		if (strlen(number) != k || !args_u32(number, &ids[n])) {
			free(ids);
			return say(STATUS_USAGE,
				   "%s: got '%s', want token ids divided by commas or spaces", name,
				   number);
		}
		n++;
		i += k;
	}
	*ret = ids;
	*ret_n = n;
	return 0;
}
