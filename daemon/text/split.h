#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenisers: where well-formed text is cut into pieces before the merges.
 *
 * A pre-tokeniser is a list of patterns. Each cuts the pieces that the one before it left into its
 * matches and the gaps between them ("Isolated"), and sees nothing outside of the piece it is in. The
 * patterns are matched by hand; character classes come from utf8proc (Unicode 15.0 in utf8proc 2.8).
 * A library of another Unicode version cuts differently only around characters that are unassigned in
 * one of them: Hugging Face's tokenizers 0.23 has Unicode 16.0. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout/image.h"

#define SPLIT_LEVELS_MAX 6

/* A piece under one pattern: what is left of it, and the match that was found and not yet given out. */
struct split_level {
	size_t at, end;
	size_t match, match_end;
};

/* Plain data on the caller's stack. */
struct split {
	const uint8_t *text;
	const struct split_pattern *patterns;
	int n_levels;
	int level; /* deepest that may have something left; -1: done */
	struct split_level levels[SPLIT_LEVELS_MAX];
};

/**
 * split_init() - start on text[0..n)
 * @kind: IMAGE_SPLIT_V2 or IMAGE_SPLIT_V3
 * @text: well-formed UTF-8; must live until the last split_next()
 */
void split_init(struct split *s, enum image_splitter kind, const uint8_t *text, size_t n);
/** split_next() - the next piece, [*ret_from, *ret_to), never empty; false: there are no more.
 * Time: linear in the text over all calls.  Thread: any, one per split. */
bool split_next(struct split *s, size_t *ret_from, size_t *ret_to);
