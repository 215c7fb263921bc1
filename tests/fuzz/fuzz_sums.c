/* SPDX-License-Identifier: Apache-2.0 */
/* SHA256SUMS of any bytes: what passes has a line of 64 digits for each name that is found in it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/load/sums.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	_cleanup_(freep) char *text = malloc(n + 1);
	const char *line;

	if (!text)
		return 0;
	memcpy(text, data, n);
	text[n] = 0; /* as file_slurp() gives it */
	if (sums_parse(text, n, NULL) < 0)
		return 0;
	line = sums_find(text, n, "config.json");
	if (line && (line < text || line + 64 + 2 + 11 + 1 > text + n ||
		     strspn(line, "0123456789abcdef") < 64))
		abort();
	return 0;
}
