#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Model images for tests of daemon/text: made by hand, or from published vocabulary files. Everything
 * here aborts on failure: a test that has no vocabulary has nothing to say. */
#include <stddef.h>
#include <stdint.h>

#include "layout/image.h"

/* Tokens and merges are added, then text_image_finish() makes the image. */
struct text_image {
	struct image_builder b; /* b.h: scalars, free to change before the finish */
	struct image im;        /* after the finish; lives as long as this struct */
	uint32_t *offset;       /* of token i in bytes; n + 1 of them */
	uint8_t *bytes, *flags;
	struct image_merge *merges;
	uint32_t *added;
	uint32_t n_tokens, n_merges, n_added;
};

struct text_image *text_image_new(enum image_splitter splitter);
struct text_image *text_image_free(struct text_image *t);
/** text_image_token() - add a token; returns its id. */
uint32_t text_image_token(struct text_image *t, const void *bytes, size_t n, unsigned flags);
/** text_image_merge() - add the next merge; makes the resulting token unless @result names one. */
uint32_t text_image_merge(struct text_image *t, uint32_t left, uint32_t right, uint32_t result);
/** text_image_finish() - build and check the image. */
const struct image *text_image_finish(struct text_image *t);

/** text_image_tiny() - the 256 bytes, a few merges of English, digits and accents, a begin and an end
 * token, user and assistant, fill-in-the-middle, and "ü" as an added token; finished. The vocabulary of
 * IMAGE_SPLIT_BYTES has the bytes, begin and end only. */
struct text_image *text_image_tiny(enum image_splitter splitter, enum image_renderer renderer);

/* From files below $DSD_TEST_DATA (default ../shared/data beside the source root); finished. NULL when
 * the file does not exist: the test skips. */
struct text_image *text_image_v3(void); /* tokenizer-deepseek-v3/tokenizer.json */
struct text_image *text_image_v2(void); /* vocab-deepseek-llm/vocab.gguf */
/** text_data_read() - a whole file of a directory, 0-terminated; NULL when it does not exist. */
char *text_data_read(const char *dir, const char *name, size_t *ret_n);
/** text_data_dir() - where published test data is. */
const char *text_data_dir(void);
