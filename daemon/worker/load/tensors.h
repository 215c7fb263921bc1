#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors a model must have, by name and shape, and whether a file has them. */
#include <stdint.h>

struct error;
struct load_config;
struct weights;

#define TENSOR_NAME_MAX 128u

struct tensor_want {
	const char *name;
	uint32_t n_dims;
	uint64_t dims[2];
	const char *meaning; /* "n_heads x (qk_nope + qk_rope), hidden" */
};
typedef int (*tensor_visitor)(void *ctx, const struct tensor_want *want, struct error *err);

/** tensors_visit() - call @visit for every tensor of the model, in order of use, until one fails. */
int tensors_visit(const struct load_config *c, tensor_visitor visit, void *ctx, struct error *err);

/**
 * tensors_check() - a file against a config
 *
 * Every tensor is there, F32 or BF16, and of the shape that follows from the config; nothing else is
 * there but rotary tables, layers behind the last (drafters) and a head that is tied.
 * Return: 0; -EINVAL with the sentence; -EOPNOTSUPP for a type that is not supported.
 */
int tensors_check(const struct load_config *c, struct weights *w, struct error *err);

/** tensors_count() - parameters, and those that one token passes through. */
void tensors_count(const struct load_config *c, uint64_t *ret_params, uint64_t *ret_active);
