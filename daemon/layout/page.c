/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/page.h"

#include <errno.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"

uint32_t page_entry_row_bytes(enum page_entry entry, uint32_t kv_lora_rank, uint32_t qk_rope)
{
	switch (entry) {
	case PAGE_ENTRY_F32:
		return 4 * (kv_lora_rank + qk_rope);
	case PAGE_ENTRY_BF16:
		return 2 * (kv_lora_rank + qk_rope);
	case PAGE_ENTRY_INT8:
		if (kv_lora_rank % 128)
			return 0;
		return kv_lora_rank + kv_lora_rank / 128 * 4 + 2 * qk_rope;
	default:
		return 0;
	}
}

const char *page_entry_name(enum page_entry entry)
{
	static const char *const names[_PAGE_ENTRY_MAX] = {"f32", "bf16", "int8"};

	return entry < _PAGE_ENTRY_MAX ? names[entry] : "unknown";
}

int page_geometry_init(struct page_geometry *g, const struct image_stream *streams,
		       uint32_t n_streams, struct error *err)
{
	uint64_t at = 0, token_bytes = 0;

	if (n_streams == 0 || n_streams > PAGE_STREAMS_MAX)
		return error_set(err, -EINVAL, "a page of %u streams: want 1 to %u", n_streams,
				 PAGE_STREAMS_MAX);
	for (uint32_t s = 0; s < n_streams; s++) {
		uint32_t n = streams[s].bytes_per_token;

		if (n == 0 || n % 4)
			return error_set(err, -EINVAL,
					 "stream %u has rows of %u bytes: want a multiple of 4", s,
					 n);
		g->row_bytes[s] = n;
		g->offset[s] = at;
		at += (uint64_t)n * PAGE_TOKENS;
		token_bytes += n;
		if (at > PAGE_STRIDE_MAX)
			return error_set(err, -EINVAL, "a page of more than %u bytes",
					 PAGE_STRIDE_MAX);
	}
	g->n_streams = n_streams;
	g->token_bytes = token_bytes;
	g->stride = ALIGN_UP(at, (uint64_t)PAGE_ALIGN);
	return 0;
}
