#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The vocabulary of a model: what the tokenizer looks up, built once from a checked model image.
 *
 * Immutable after vocab_new(): any thread may use it, and the reference count is atomic. It holds
 * pointers into the image, whose mapping must live as long as the last reference does.
 *
 * Control tokens are the ids that give a prompt its structure. Text never becomes one of them unless
 * the caller asks for it by name (ENCODE_PARSE_SPECIAL). A token is a control token when
 *   1. it has IMAGE_TOKEN_SPECIAL or IMAGE_TOKEN_UNUSED, or
 *   2. it is an added token that the image names: bos, eos, user, assistant, fim_*, think_*, or
 *   3. it is an added token whose text starts with "<|" or "<｜" (U+FF5C): the published
 *      vocabularies have user, assistant and tool markers as ordinary added tokens.
 * All other added tokens (deepseek-llm's "ü") are text and always match. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "layout/image.h"

struct error;
struct vocab;

/* Bytes of one added token: bounds what a text can cost where many of them share a prefix. The longest
 * published ones have about 40. */
#define VOCAB_ADDED_LEN_MAX 128

/**
 * vocab_new() - build the lookup tables of an image
 * @im:      from image_open(); the view is copied, its mapping is not
 * @release: called with @user when the last reference goes (to unmap the image), NULL: nobody;
 *           not called when vocab_new() fails
 *
 * Refuses with -EINVAL what would make an encoding wrong or unbounded: a merge whose result is not
 * left and right put together or is a control token; an added token past VOCAB_ADDED_LEN_MAX; a
 * splitter other than BYTES without a token for each byte that UTF-8 uses (the 13 others may be
 * missing: V2 vocabularies have none for them).
 *
 * Return: 0, -EINVAL, -ENOMEM.  Time: linear in the image.  Thread: any.
 */
int vocab_new(struct vocab **ret, const struct image *im, void (*release)(void *user), void *user,
	      struct error *err);
struct vocab *vocab_ref(struct vocab *v);
/** vocab_unref() - drop one reference; NULL is fine; returns NULL. */
struct vocab *vocab_unref(struct vocab *v);
DEFINE_CLEANUP(struct vocab *, vocab_unref);

const struct image *vocab_image(const struct vocab *v);
/** vocab_is_control() - whether @id (any value) is a control token; ids past the end are. */
bool vocab_is_control(const struct vocab *v, uint32_t id);
/** vocab_find_token() - the id whose bytes are exactly these, added tokens first; IMAGE_NONE: none.
 * Time: linear in the vocabulary; for tools and tests, not for encoding. */
uint32_t vocab_find_token(const struct vocab *v, const void *bytes, size_t n);
