/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/page.h"

#include <errno.h>
#include <string.h>

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
		if (kv_lora_rank % 4)
			return 0;
		return kv_lora_rank + (kv_lora_rank + 127) / 128 * 4 + 2 * qk_rope;
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

uint32_t page_geometry_id(const struct page_geometry *g)
{
	/* FNV-1a over the row sizes. Source: draft-eastlake-fnv, 32-bit parameters. */
	uint32_t id = 2166136261u;

	for (uint32_t s = 0; s < g->n_streams; s++)
		for (unsigned shift = 0; shift < 32; shift += 8)
			id = (id ^ (g->row_bytes[s] >> shift & 0xff)) * 16777619u;
	return id;
}

int pool_header_check(const struct pool_header *h, const struct pool_header *want,
		      struct error *err)
{
#define FIELD(f)                                                                                   \
	{                                                                                          \
#f, offsetof(struct pool_header, f), sizeof(h->f)                                  \
	}
	static const struct {
		const char *name;
		size_t at, n;
	} fields[] = {
		FIELD(magic),       FIELD(version), FIELD(header_bytes), FIELD(record_bytes),
		FIELD(page_tokens), FIELD(boot_id), FIELD(model),        FIELD(n_pages),
		FIELD(entry),       FIELD(stride),  FIELD(token_bytes),  FIELD(geometry),
		FIELD(_pad),
	};
#undef FIELD

	for (size_t i = 0; i < N_ELEMENTS(fields); i++) {
		const uint8_t *got = (const uint8_t *)h + fields[i].at;
		const uint8_t *good = (const uint8_t *)want + fields[i].at;
		uint64_t x = 0, y = 0;

		if (memcmp(got, good, fields[i].n) == 0)
			continue;
		if (fields[i].n > sizeof(x) || got == (const uint8_t *)h->magic)
			return error_set(err, -EBADMSG, "pool header: %s is not ours",
					 fields[i].name);
		memcpy(&x, got, fields[i].n);
		memcpy(&y, good, fields[i].n);
		return error_set(err, -EBADMSG, "pool header: %s is %llu: want %llu",
				 fields[i].name, (unsigned long long)x, (unsigned long long)y);
	}
	return 0;
}

static int record_wrong(struct error *err, page_id page, const char *field, uint64_t got,
			uint64_t want)
{
	return error_set(err, -EBADMSG, "record %u: %s is %llu: want %llu", page, field,
			 (unsigned long long)got, (unsigned long long)want);
}

/* Which rows the page holds, and how they were computed. */
static int check_rows(const struct page_record *rec, page_id page, struct error *err)
{
	uint32_t flags = rec->n_prompt ? PAGE_FLAG_GENERATED : 0;

	if (rec->n_tokens != PAGE_TOKENS)
		return record_wrong(err, page, "n_tokens", rec->n_tokens, PAGE_TOKENS);
	if (rec->first_pos % PAGE_TOKENS || rec->first_pos > UINT32_MAX - PAGE_TOKENS)
		return record_wrong(err, page, "first_pos", rec->first_pos,
				    rec->first_pos / PAGE_TOKENS * PAGE_TOKENS);
	if (rec->flags != flags)
		return record_wrong(err, page, "flags", rec->flags, flags);
	if (rec->n_prompt && rec->n_prompt >= rec->first_pos + PAGE_TOKENS)
		return error_set(err, -EBADMSG,
				 "record %u: n_prompt is %u: want less than %u in a page with "
				 "generated rows",
				 page, rec->n_prompt, rec->first_pos + PAGE_TOKENS);
	/* The first page of a prefix hangs on its owner. */
	if (rec->first_pos == 0 && memcmp(rec->parent, rec->domain, sizeof(rec->parent)) != 0)
		return error_set(err, -EBADMSG,
				 "record %u: parent of a first page is not its domain", page);
	return 0;
}

int page_record_check(const struct page_record *rec, const struct page_expect *want,
		      struct error *err)
{
	static const uint8_t zeros[sizeof(rec->_pad)];
	int r;

	if (rec->magic != PAGE_RECORD_MAGIC)
		return record_wrong(err, want->page, "magic", rec->magic, PAGE_RECORD_MAGIC);
	if (rec->generation & 1)
		return error_set(err, -EBADMSG,
				 "record %u: generation %llu is odd: it was being written",
				 want->page, (unsigned long long)rec->generation);
	if (rec->state != PAGE_COMMITTED)
		return record_wrong(err, want->page, "state", rec->state, PAGE_COMMITTED);
	if (rec->page != want->page)
		return record_wrong(err, want->page, "page", rec->page, want->page);
	if (rec->geometry != want->geometry)
		return record_wrong(err, want->page, "geometry", rec->geometry, want->geometry);
	if (memcmp(rec->model, want->model, sizeof(rec->model)) != 0)
		return error_set(err, -EBADMSG, "record %u: model is another", want->page);
	if (memcmp(rec->_pad, zeros, sizeof(zeros)) != 0)
		return error_set(err, -EBADMSG, "record %u: bytes behind its end", want->page);
	r = check_rows(rec, want->page, err);
	for (uint32_t i = 0; i < PAGE_TOKENS && r == 0; i++)
		if (rec->ids[i] >= want->n_vocab)
			r = error_set(err, -EBADMSG, "record %u: ids[%u] is %u: want less than %u",
				      want->page, i, rec->ids[i], want->n_vocab);
	return r;
}
