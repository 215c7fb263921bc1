#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model without a worker: loaded by worker/load, run by model_forward(), its pages in plain memory.
 * Goldens and the row-bits claim stand on it. The router of the op table is
 * watched, and its attention may be told another softmax scale. Thread: one. */
#include <stdbool.h>
#include <stdint.h>

#include "kernels.h"
#include "layout/page.h"
#include "worker/load/files.h"
#include "worker/load/load.h"
#include "worker/model/forward.h"

struct error;

#define RIG_ROWS_MAX 512u
#define RIG_PICKS    64u
#define RIG_MOE_MAX  8u /* MoE layers of the shapes here */

struct rig {
	struct kernels *k;  /* route and attention replaced */
	struct kernels own; /* the operations as they were */
	float scale;        /* softmax scale forced on the attention; 0: the model's own */
	uint32_t *experts;  /* [RIG_MOE_MAX][n_context][n_used] chosen last; NULL: not watched */
	const struct k_step *step; /* in progress */
	uint32_t n_routed;         /* MoE layers seen of it */
	struct files files;
	struct load *load;
	struct model model;
	struct forward *forward;
	struct page_geometry geometry;
	struct k_pool pool;
};

struct rig_options {
	enum control_weights weights;
	bool int8_entry; /* else entries follow the weights: f32 for f32, else bf16 */
	uint32_t cpu_mask, n_threads, n_pages;
	bool watch_experts;
};

/**
 * rig_open() - a model directory, or with @config that text alone as its config.json
 * Return: 0; what load and kernels said, with the sentence. rig_done() also on failure.
 */
int rig_open(struct rig *r, const char *dir, const char *config, const struct rig_options *o,
	     struct error *err);
void rig_done(struct rig *r);

/**
 * rig_run() - one step and the logits of all its rows
 * @ret: [step->n_rows, n_vocab]
 */
int rig_run(struct rig *r, const struct k_step *step, float *ret, struct error *err);

/* Instruction sets to try: masks whose kernels differ on this CPU, scalar first. Return: how many. */
#define RIG_ISA_MAX 4u
uint32_t rig_isas(uint32_t ret[RIG_ISA_MAX]);
