#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* config.json and generation_config.json of a model, every value checked. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout/image.h"
#include "worker/model/model.h"

struct error;

#define CONFIG_JSON_MAX (1u << 20) /* bytes */

struct load_config {
	struct model_config m;
	char arch[32];  /* model_type */
	bool tied;      /* the head is the embedding */
	bool synthetic; /* "dsd_synthetic": no weights, numbers from the seed */
	uint64_t synthetic_seed;
	uint32_t bos; /* IMAGE_NONE where absent */
	uint32_t n_eos, eos[IMAGE_EOS_MAX];
};

/* generation_config.json: which of the defaults are there, and the end tokens. */
struct load_generation {
	uint32_t defaults; /* IMAGE_DEFAULT_* */
	float temperature, top_p;
	uint32_t top_k;
	uint32_t n_eos, eos[IMAGE_EOS_MAX];
};

/**
 * load_config_parse() - config.json
 * Return: 0. -EBADMSG: not JSON. -EINVAL: a value is missing or out of range. -EOPNOTSUPP: a model
 *         this version does not run. Each with the sentence.  Thread: any.
 */
int load_config_parse(struct load_config *ret, const void *data, size_t n, struct error *err);
/** load_generation_parse() - generation_config.json; ids must be below @n_vocab. Return: as above. */
int load_generation_parse(struct load_generation *ret, const void *data, size_t n, uint32_t n_vocab,
			  struct error *err);
