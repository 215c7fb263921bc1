#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One forward pass over a batch of rows: MLA and DeepSeekMoE as the DeepSeek-V2 paper has them.
 *
 *   model_forward()  embeds the rows, runs every layer, writes their cache entries into the pool
 *   forward_logits() final norm and head for rows picked out of the step that ran last
 *
 * Layer l writes stream l of the pool. Rows of a segment on the prompt path take the naive
 * attention, generated ones the absorbed; a row's result does not depend on the rest of the step. */
#include <stdint.h>

#include "base/cleanup.h"
#include "worker/model/model.h"

struct error;
struct forward; /* activation buffers and rotary tables */

/**
 * forward_new() - what running @m takes besides its weights
 * @m:         complete; must outlive the forward
 * @max_rows:  rows of one step, at most
 * @max_picks: rows of logits held at a time ([max_picks, n_vocab] f32)
 * Return: 0; -ENOMEM; -EINVAL with the sentence.
 */
int forward_new(struct forward **ret, const struct model *m, uint32_t max_rows, uint32_t max_picks,
		struct error *err);
struct forward *forward_free(struct forward *f);
DEFINE_CLEANUP(struct forward *, forward_free);
/** forward_set_progress() - count every layer into @n, for whoever watches; NULL: nobody. */
void forward_set_progress(struct forward *f, _Atomic uint32_t *n);

/**
 * model_forward() - one step
 * @step: n_rows <= max_rows; ids < n_vocab, positions < n_context; read until the call returns
 * @pool: at least n_layers streams of rank + rope numbers
 *
 * Return: 0. -EINVAL: the step contradicts the pool or the model, nothing was written.
 *         -ENOMEM: no scratch memory; the rows of this step are void, pages before them are not.
 * Thread: the one that drives the kernels.
 */
int model_forward(struct forward *f, const struct k_step *step, const struct k_pool *pool,
		  struct error *err);
/**
 * forward_logits() - [n_picks, n_vocab] for rows of the last step, in the order of @picks
 * @picks: n_picks <= max_picks row numbers of that step; call again for more
 * Return: the buffer, for kernels' sample() and download(); good until the next call.
 */
struct k_buffer *forward_logits(struct forward *f, const uint32_t *picks, uint32_t n_picks);
