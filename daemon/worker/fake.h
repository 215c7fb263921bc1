#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model that is a pure function of (domain, token chain, position), to test a broker without
 * arithmetic and to notice every foreign, stale or half-written page. */
#include <stdint.h>

struct engine;
struct error;
struct image_builder;

#define FAKE_BOS     256u
#define FAKE_EOS     257u
#define FAKE_VOCAB   258u
#define FAKE_CONTEXT 8192u /* unless LOAD says otherwise */

/**
 * fake_new() - make the engine and its image
 * @n_context: 0 for FAKE_CONTEXT
 * @image:     initialised builder; gets everything but image_finish()
 *
 * $DSD_FAKE_STEP_USEC makes every step take that long (tests of cancelling and killing).
 * Return: 0; -EINVAL; -ENOMEM.
 */
int fake_new(struct engine *ret, struct image_builder *image, uint32_t n_context,
	     struct error *err);
