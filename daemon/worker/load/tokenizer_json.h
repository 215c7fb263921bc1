#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.json and tokenizer_config.json into the vocabulary sections of a model image.
 *
 * Known forms only: a byte-level BPE without normaliser behind the pre-tokeniser of DeepSeek-V2 or of
 * DeepSeek-V3, recognised by its pattern texts; everything else is refused by name, so that no
 * pattern of a file is ever run. */
#include <stddef.h>
#include <stdint.h>

struct error;
struct image_builder;
struct load_config;
struct load_generation;

#define TOKENIZER_JSON_MAX        (64u << 20) /* bytes; the largest published one has 20 MB */
#define TOKENIZER_CONFIG_JSON_MAX (1u << 20)

/* Whole files in memory; data NULL: the model has none. */
struct tokenizer_input {
	const char *tokenizer, *config;
	size_t tokenizer_bytes, config_bytes;
};

/**
 * tokenizer_fill() - sections token_offset, token_bytes, token_flags, merges, added, and the header's
 *                    vocabulary fields
 * @b: its h.n_vocab is the model's; ids of the tokenizer must be below it, ids the tokenizer has not
 *     are IMAGE_TOKEN_UNUSED
 *
 * Without tokenizer.json the model gets a byte vocabulary: ids 0 to 255 are the bytes, ids from 256
 * on are empty and usable.
 *
 * Return: 0. -EBADMSG: not JSON. -EINVAL: contradicts itself or the model. -EOPNOTSUPP: a form this
 *         version does not know. Each with the sentence.
 */
int tokenizer_fill(struct image_builder *b, const struct tokenizer_input *in,
		   const struct load_config *config, const struct load_generation *generation,
		   struct error *err);
