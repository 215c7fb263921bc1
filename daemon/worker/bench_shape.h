#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Shapes to be measured: published ones by name, others from files. */
struct error;
struct files;

/**
 * bench_shape_open() - the files of a model to load
 * @shape: deepseek-v2-lite, deepseek-v2, deepseek-v3; else the path of a config.json or of a model
 *         directory
 *
 * A directory with weights is taken as it is. Anything else gets synthetic weights.
 * Return: 0; -ENOENT and others with the sentence.
 */
int bench_shape_open(struct files *ret, const char *shape, struct error *err);
