#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The engine that is a model: files loaded, steps run through model_forward(), answers sampled. */
#include "kernels.h"
#include "worker/load/load.h"

struct engine;
struct error;
struct files;
struct image_builder;
struct model;

/**
 * infer_new() - load a model
 * @files: not needed after the return
 * @image: initialised builder; gets everything but image_finish()
 *
 * Return: 0; as load_open() and load_pack(); what @progress returned.
 */
int infer_new(struct engine *ret, struct image_builder *image, const struct files *files,
	      const struct load_options *o, const struct kernels_config *cpu,
	      load_progress progress, void *ctx, struct error *err);
/* Where the time of infer_new() went. */
struct infer_times {
	uint64_t files_usec;      /* headers and configuration */
	uint64_t vocabulary_usec; /* and the rest of the model image */
	uint64_t check_usec;      /* hashes of packed weights, or SHA256SUMS */
	uint64_t weights_usec;    /* packing; next to nothing where they were mapped */
};
struct infer_times infer_get_times(const struct engine *e);
/** infer_model() - the model behind an engine of infer_new(), for what wants to know its cost. */
const struct model *infer_model(const struct engine *e);
