#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of the pool: geometry (pool-data) and records (pool-meta).
 *
 * A page holds PAGE_TOKENS token rows of every stream. Streams lie one after the other inside a page
 * (page-major), each as PAGE_TOKENS consecutive rows; a page's stride is rounded up to 4,096:
 *
 *   page p:  stride * p ──► │ stream 0: 64 rows │ stream 1: 64 rows │ ... │ pad │
 *
 * A row of an MLA stream is latent (kv_lora_rank numbers, after kv_a_layernorm) then rope
 * (qk_rope_head_dim numbers, rotated), in the entry's format. */
#include <stddef.h>
#include <stdint.h>

struct error;
struct image_stream;

#define PAGE_TOKENS      64u
#define PAGE_ALIGN       4096u
#define PAGE_NONE        UINT32_MAX
#define PAGE_STREAMS_MAX 1024u
#define PAGE_STRIDE_MAX  (64u << 20)

typedef uint32_t page_id; /* index into the pool */

enum page_entry {
	PAGE_ENTRY_F32,  /* 4 bytes a number */
	PAGE_ENTRY_BF16, /* 2 bytes a number */
	PAGE_ENTRY_INT8, /* latent int8, an f32 scale for each 128 of it begun, rope bf16 */
	_PAGE_ENTRY_MAX
};

struct page_geometry {
	uint32_t n_streams;
	uint32_t row_bytes[PAGE_STREAMS_MAX]; /* of one token in stream s */
	uint64_t offset[PAGE_STREAMS_MAX];    /* of stream s in a page */
	uint64_t stride;                      /* bytes from page to page */
	uint64_t token_bytes;                 /* sum of row_bytes: KV bytes per token */
};

/** page_entry_row_bytes() - bytes of one MLA row, 0 for a combination that does not exist. */
uint32_t page_entry_row_bytes(enum page_entry entry, uint32_t kv_lora_rank, uint32_t qk_rope);
const char *page_entry_name(enum page_entry entry);

/**
 * page_geometry_init() - lay streams out in a page
 * Return: 0; -EINVAL for no stream, too many, a row that is no multiple of 4, or a page past
 *         PAGE_STRIDE_MAX.
 */
int page_geometry_init(struct page_geometry *g, const struct image_stream *streams,
		       uint32_t n_streams, struct error *err);

/** page_geometry_id() - a number that other streams almost never have. */
uint32_t page_geometry_id(const struct page_geometry *g);

static inline uint8_t *page_row(void *pool_data, const struct page_geometry *g, page_id page,
				uint32_t stream, uint32_t row)
{
	return (uint8_t *)pool_data + page * g->stride + g->offset[stream] +
	       (uint64_t)row * g->row_bytes[stream];
}

/* pool-meta: one header of PAGE_META_HEADER_BYTES, then n_pages records. */
#define PAGE_META_MAGIC        "dsdpool1"
#define POOL_VERSION           2u
#define PAGE_META_HEADER_BYTES 4096u
#define PAGE_RECORD_MAGIC      UINT64_C(0x3167707064736430) /* "0dsdppg1" */

enum page_state {
	PAGE_FREE,
	PAGE_OPEN,
	PAGE_SEALED,    /* its rows are computed; the record says which, the tag is still to come */
	PAGE_COMMITTED, /* and the tag is there: an adopter can use it */
	_PAGE_STATE_MAX
};
#define PAGE_FLAG_GENERATED 1u /* has rows computed on the generated path */

/* What an adopter must find as it would have written it, but for the attempts and their time. */
struct pool_header {
	char magic[8];
	uint32_t version, header_bytes;
	uint32_t record_bytes, page_tokens;
	uint32_t n_pages, entry;
	uint32_t geometry; /* page_geometry_id() */
	uint32_t attempts; /* adoptions since one that lived long enough */
	uint64_t stride, token_bytes;
	uint64_t adopted_usec; /* CLOCK_MONOTONIC of the last adoption, 0: none yet */
	uint8_t boot_id[16];
	uint8_t model[32];
	uint8_t _pad[PAGE_META_HEADER_BYTES - 128];
	uint8_t mac[16]; /* of all before it, under the pool's key */
};

/* The generation is odd while the record is being written: a torn record is never taken for one. */
struct page_record {
	uint64_t magic;
	uint64_t generation;
	uint32_t state; /* enum page_state */
	uint32_t flags;
	uint32_t page;
	uint32_t geometry;  /* page_geometry_id() */
	uint8_t domain[16]; /* MAC of the owner's uid, or of a published name */
	uint8_t model[16];  /* first half of the model digest */
	uint8_t parent[16]; /* chain of the page before */
	uint8_t chain[16];  /* MAC(parent, ids) */
	uint32_t first_pos, n_tokens;
	uint32_t ids[PAGE_TOKENS];
	uint8_t tag[16]; /* COMMITTED: MAC of this record and the page's content */
	uint32_t
		n_prompt; /* GENERATED: of the sequence that computed it; rows from there on took the
			    * generated path. 0 otherwise */
	uint8_t _pad[512 - 380];
};
static inline int page_is_sealed(const struct page_record *rec)
{
	return rec->state == PAGE_SEALED || rec->state == PAGE_COMMITTED;
}
_Static_assert(sizeof(struct page_record) == 512, "page records are 512 bytes");
_Static_assert(sizeof(struct pool_header) == PAGE_META_HEADER_BYTES, "one page of header");

/**
 * pool_header_check() - is a header what this pool would have written?
 * @h:    a copy, of any bytes
 * @want: what it must say; attempts, adopted_usec and the MAC are not compared
 * Return: 0; -EBADMSG and a sentence that names the first field that differs.
 */
int pool_header_check(const struct pool_header *h, const struct pool_header *want,
		      struct error *err);

struct page_expect {
	page_id page;
	uint32_t geometry;
	uint32_t n_vocab;
	const uint8_t *model; /* 16 bytes */
};
/**
 * page_record_check() - could the pool have written this committed record?
 * @rec: a copy, of any bytes. Its MACs (chain, tag, domain) are not looked at.
 * Return: 0; -EBADMSG and a sentence that names the first field that is wrong.
 */
int page_record_check(const struct page_record *rec, const struct page_expect *want,
		      struct error *err);
