/* SPDX-License-Identifier: Apache-2.0 */
/* config_parse() on any bytes. What it takes must lie in its ranges, and what --check-config prints of it
 * must be taken again and print the same. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/error.h"

static void must(bool ok)
{
	if (!ok)
		abort();
}

static char *print(const struct config *c)
{
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);

	must(f != NULL);
	config_print(c, f);
	must(fclose(f) == 0);
	return text;
}

/* Every line that is no comment, as --set would get it. */
static void set_lines(struct config *c, const char *text)
{
	char *copy = strdup(text), *rest = copy;

	must(copy != NULL);
	for (char *line; (line = strsep(&rest, "\n"));)
		if (line[0] && line[0] != '#')
			must(config_set(c, line, NULL) == 0);
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct config c, again;
	struct error err = {};
	char *first, *second;
	int r;

	config_init(&c);
	r = config_parse(&c, "fuzz", (const char *)data, n, &err);
	must(c.n_models <= CONFIG_MODELS_MAX);
	if (r < 0) {
		must(err.code == r && err.text[0]);
		return 0;
	}
	must(c.sched_slots >= 1 && c.sched_slots <= 256 && c.pool_entry <= 3 &&
	     c.worker_weights <= 2 && c.log_level <= 7 && c.conn_max >= 1);
	for (uint32_t i = 0; i < c.n_models; i++)
		must(memchr(c.models[i].name, 0, CONFIG_NAME_MAX) && c.models[i].name[0] &&
		     memchr(c.models[i].path, 0, CONFIG_PATH_MAX) && c.models[i].share >= 0 &&
		     c.models[i].share <= 1);
	first = print(&c);
	/* A model that has a share and no path yet prints an empty one, which is not a path. */
	for (uint32_t i = 0; i < c.n_models; i++)
		if (!c.models[i].path[0])
			goto out;
	config_init(&again);
	set_lines(&again, first);
	second = print(&again);
	must(strcmp(first, second) == 0);
	free(second);
out:
	free(first);
	return 0;
}
