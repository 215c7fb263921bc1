/* SPDX-License-Identifier: Apache-2.0 */
/* A whole .safetensors file: what passes has tensors that fill its data once, and every one of a known
 * type reads to its last number. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "worker/load/files.h"
#include "worker/load/weights.h"

static void must(bool ok)
{
	if (!ok)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	_cleanup_(files_done) struct files f = {};
	_cleanup_(weights_freep) struct weights *w = NULL;
	struct weights_entry *entries;
	uint64_t n_bytes = 0;
	uint32_t n_entries;
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	must(fd >= 0 && write(fd, data, n) == (ssize_t)n);
	must(files_add(&f, "model.safetensors", fd, NULL) == 0);
	if (weights_open(&w, &f, NULL) < 0)
		return 0;
	entries = weights_entries(w, &n_entries);
	for (uint32_t i = 0; i < n_entries; i++) {
		const struct st_tensor *t = entries[i].tensor;
		uint64_t n_numbers = (t->end - t->begin) / MAX(st_dtype_bytes(t->dtype), 1u);
		float x[16];

		n_bytes += t->end - t->begin;
		must(weights_find(w, entries[i].name) == &entries[i]);
		must(weights_read(w, entries[i].name, 16, n_numbers, 1, x, NULL) < 0);
		if (t->dtype != ST_F32 && t->dtype != ST_BF16)
			continue;
		for (uint64_t k = 0; k < n_numbers; k += 16)
			must(weights_read(w, entries[i].name, 16, k,
					  MIN(n_numbers - k, (uint64_t)16), x, NULL) == 0);
		must(entries[i].hashed == (n_numbers > 0));
	}
	must(n_entries == 0 || n_bytes == entries[0].st->data_bytes);
	return 0;
}
