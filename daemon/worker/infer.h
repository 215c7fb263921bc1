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
/** infer_model() - the model behind an engine of infer_new(), for what wants to know its cost. */
const struct model *infer_model(const struct engine *e);
