/* SPDX-License-Identifier: Apache-2.0 */
/* model.safetensors.index.json beside two shards: what passes names tensors that are where it says. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "worker/load/files.h"
#include "worker/load/weights.h"

static const char header[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
			     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}";

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void add(struct files *f, const char *name, const void *data, size_t n)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	must(fd >= 0 && write(fd, data, n) == (ssize_t)n);
	must(files_add(f, name, fd, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	_cleanup_(files_done) struct files f = {};
	_cleanup_(weights_freep) struct weights *w = NULL;
	uint8_t shard[8 + sizeof(header) - 1 + 8] = {sizeof(header) - 1};
	struct weights_entry *entries;
	uint32_t n_entries;

	memcpy(shard + 8, header, sizeof(header) - 1);
	add(&f, "1.safetensors", shard, sizeof(shard));
	add(&f, "2.safetensors", shard, sizeof(shard));
	add(&f, WEIGHTS_INDEX_NAME, data, n);
	if (weights_open(&w, &f, NULL) < 0)
		return 0;
	entries = weights_entries(w, &n_entries);
	must(n_entries <= 2);
	for (uint32_t i = 0; i < n_entries; i++) {
		float x;

		must(strcmp(entries[i].name, entries[i].tensor->name) == 0);
		must(weights_read(w, entries[i].name, 1, 0, 1, &x, NULL) == 0);
	}
	return 0;
}
