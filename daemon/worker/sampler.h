#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* From rows of logits to result rows: what a slot's parameters mean to the kernels' sample(). */
#include <stdint.h>

#include "base/cleanup.h"
#include "kernels.h"
#include "worker/engine.h"

struct error;
struct sampler;

struct sampler_config {
	uint32_t n_vocab;
	const uint8_t *banned; /* [n_vocab], copied: ids that are never drawn */
	uint32_t n_eos;
	const uint32_t *eos; /* copied */
	uint32_t max_rows;   /* of one sampler_run() */
};

int sampler_new(struct sampler **ret, struct kernels *k, const struct sampler_config *cfg,
		struct error *err);
struct sampler *sampler_free(struct sampler *s);
DEFINE_CLEANUP(struct sampler *, sampler_free);

/**
 * sampler_run() - answer wants [first, first + n) of a step
 * @logits: row i belongs to want first + i; n <= max_rows
 *
 * A draw is keyed by (seed, choice, position of the drawn token), so it is the same whenever and
 * beside whatever it is made. End tokens that may not come yet, biases and penalties change the
 * logits the draw is made from; logprobs are always those of the model (vLLM's order).
 *
 * A row whose logits are not finite, or that has no id left, answers CHANNEL_NO_TOKEN.
 * Return: 0; what the kernels say.
 */
int sampler_run(struct sampler *s, const struct k_buffer *logits, const struct engine_step *step,
		uint32_t first, uint32_t n, struct channel_result_row *ret, struct error *err);

/** sampler_adjust() - the same for one row in memory; @ids: the sequence up to and with the row. */
void sampler_adjust(struct sampler *s, const struct channel_params *p, const uint32_t *ids,
		    uint32_t n_ids, float *logits);
