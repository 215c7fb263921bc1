#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The model image: what a worker tells the broker about a model, in one sealed memfd of plain offsets.
 *
 * The worker parses the model's files and writes the image; the broker checks every number in it
 * (image_open()) before it uses one. Little-endian, sections 8-byte aligned, no pointers. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define IMAGE_MAGIC         "dsdimage"
#define IMAGE_VERSION       1
#define IMAGE_BYTES_MAX     (256u << 20)
#define IMAGE_VOCAB_MAX     (1u << 20) /* ids; the largest published vocabulary has 163,840 */
#define IMAGE_MERGES_MAX    (1u << 21)
#define IMAGE_ADDED_MAX     (1u << 16)
#define IMAGE_LAYERS_MAX    512
#define IMAGE_CONTEXT_MAX   (1u << 20) /* tokens */
#define IMAGE_TOKEN_LEN_MAX 4096       /* bytes of one token */
#define IMAGE_EOS_MAX       8
#define IMAGE_NONE          UINT32_MAX /* "this vocabulary has no such token" */

/* How text becomes pieces before the merges (daemon/text). Other patterns are refused by the worker. */
enum image_splitter {
	IMAGE_SPLIT_BYTES, /* no tokenizer: ids 0..255 are the bytes, no merges */
	IMAGE_SPLIT_V2,    /* DeepSeek-V2's tokenizer.json */
	IMAGE_SPLIT_V3,    /* DeepSeek-V3's */
	_IMAGE_SPLIT_MAX
};

/* Which compiled-in chat renderer fits (daemon/text/template). */
enum image_renderer { IMAGE_RENDER_NONE, IMAGE_RENDER_V2, IMAGE_RENDER_V3, _IMAGE_RENDER_MAX };

/* token_flags */
#define IMAGE_TOKEN_ADDED   1u /* matched in text before the splitter, whole */
#define IMAGE_TOKEN_SPECIAL 2u /* control id: never made from a user's text, hidden when decoding */
#define IMAGE_TOKEN_UNUSED  4u /* padding row of the embedding: never sampled, never accepted */

/* Which defaults of generation_config.json are present */
#define IMAGE_DEFAULT_TEMPERATURE 1u
#define IMAGE_DEFAULT_TOP_P       2u
#define IMAGE_DEFAULT_TOP_K       4u

struct image_section {
	uint64_t offset; /* from the start of the image, multiple of 8 */
	uint64_t bytes;
};

/* One merge of the byte-pair encoding; the index in the section is its rank. */
struct image_merge {
	uint32_t left, right, result;
};

/* One stream of latent rows in a page, in page order (layout/page.h makes offsets of it). */
struct image_stream {
	uint32_t layer;
	uint32_t bytes_per_token; /* multiple of 4 */
};

struct image_header {
	char magic[8];
	uint32_t version;
	uint32_t header_bytes; /* sizeof(struct image_header) */
	uint64_t total_bytes;
	uint8_t digest[32]; /* of the model */
	char arch[32];      /* "deepseek_v2", 0-terminated; for people */

	/* Geometry, for pages, limits and statistics. */
	uint32_t n_vocab;   /* rows of the logits; ids are < n_vocab */
	uint32_t n_context; /* positions the model can hold */
	uint32_t n_layers, n_heads, hidden;
	uint32_t kv_lora_rank, qk_nope, qk_rope, v_head;
	uint32_t n_experts, n_experts_used;
	uint32_t entry; /* enum page_entry */
	uint64_t n_params, n_params_active;
	uint64_t weight_bytes; /* as packed */

	/* Vocabulary. */
	uint32_t splitter; /* enum image_splitter */
	uint32_t renderer; /* enum image_renderer */
	uint32_t add_bos;  /* bool: raw text starts with bos */
	uint32_t n_eos;
	uint32_t bos, eos[IMAGE_EOS_MAX];
	uint32_t token_user, token_assistant;  /* control ids of the V3 renderer */
	uint32_t fim_begin, fim_hole, fim_end; /* IMAGE_NONE where absent */
	uint32_t think_begin, think_end;
	uint32_t n_merges, n_added;

	/* Defaults of generation_config.json. */
	uint32_t defaults; /* IMAGE_DEFAULT_* bits */
	float temperature, top_p;
	uint32_t top_k;
	uint32_t _reserved;

	struct image_section token_offset; /* uint32_t[n_vocab + 1], ascending, into token_bytes */
	struct image_section
		token_bytes; /* the raw bytes a token stands for (already byte-decoded) */
	struct image_section token_flags; /* uint8_t[n_vocab] */
	struct image_section merges;      /* struct image_merge[n_merges] */
	struct image_section added;   /* uint32_t[n_added]: ids with IMAGE_TOKEN_ADDED, any order */
	struct image_section streams; /* struct image_stream[n] */
};

/* A checked image: pointers into the mapping, every length known to be inside it. */
struct image {
	const struct image_header *h;
	const uint32_t *token_offset;
	const uint8_t *token_bytes;
	const uint8_t *token_flags;
	const struct image_merge *merges;
	const uint32_t *added;
	const struct image_stream *streams;
	uint32_t n_streams;
};

/**
 * image_open() - check an image as hostile input and make a view of it
 * @data: 8-byte aligned, must stay mapped and unchanged (the broker insists on a WRITE seal) as long
 *        as @ret is used
 *
 * Checks every offset, count, id and range that a reader relies on: after success no reader needs a
 * bounds check of its own.
 *
 * Return: 0; -EINVAL with a sentence.  Thread: any.
 */
int image_open(struct image *ret, const void *data, size_t n_bytes, struct error *err);

/** image_token() - the bytes of @id (< n_vocab); their number in @ret_n. */
static inline const uint8_t *image_token(const struct image *im, uint32_t id, uint32_t *ret_n)
{
	*ret_n = im->token_offset[id + 1] - im->token_offset[id];
	return im->token_bytes + im->token_offset[id];
}

/** image_is_eos() - whether @id ends a completion. */
bool image_is_eos(const struct image *im, uint32_t id);

/* What another attention of the model's size would cache for a token, in bf16: keys and values of all heads, or
 * those of 8 groups of 128 numbers. Source: DeepSeek-V2 paper, section 2.1.4. */
static inline uint64_t image_mha_bytes(const struct image_header *h)
{
	return UINT64_C(2) * h->n_layers * h->n_heads * (h->qk_nope + h->v_head);
}
static inline uint64_t image_gqa8_bytes(const struct image_header *h)
{
	return UINT64_C(2) * h->n_layers * 2 * 8 * 128;
}

/* Writing side (the worker): sections are appended, the header is finished last. */
struct image_builder {
	struct image_header h; /* the caller fills the scalars */
	uint8_t *data;
	size_t n_bytes, n_alloc;
};
int image_builder_init(struct image_builder *b);
void image_builder_done(struct image_builder *b);
/** image_append() - copy @n bytes in as @section (a member of b->h). Return: 0 or -ENOMEM. */
int image_append(struct image_builder *b, struct image_section *section, const void *data,
		 size_t n);
/** image_finish() - write the header, check the whole with image_open(), return a sealed memfd. */
int image_finish(struct image_builder *b, struct error *err);
