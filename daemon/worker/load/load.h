#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model's files into packed weights and a model image.
 *
 *   load_open()   every JSON file and every header, all of it checked; no weight is read
 *   load_image()  geometry and vocabulary into an image builder
 *   load_map()    the weights as an earlier start packed them, where there is such a file
 *   load_pack()   else the weights, layer by layer, through the kernels
 *   load_digest() who the model is; after load_pack()
 *
 * Until load_open() has succeeded no more memory is taken than the small files and headers have,
 * times a constant. Thread: one. */
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/channel.h"
#include "layout/page.h"
#include "worker/load/config.h"

struct files;
struct image_builder;
struct kernels;
struct load;

/* Files for packed weights, and what became of them. */
struct load_store {
	int packed_fd; /* what an earlier start filled, read-only; negative: none */
	int new_fd;    /* an empty file, to be filled for the next start; negative: none */
	bool mapped, filled;
	struct error refused;    /* why packed_fd was not taken */
	struct error not_filled; /* why new_fd was not */
};

struct load_options {
	uint32_t weights; /* enum control_weights */
	uint32_t entry;   /* enum page_entry, or _PAGE_ENTRY_MAX: f32 for f32 weights, else bf16 */
	uint32_t n_context; /* limit, 0: the model's own */
	/* 0: all layers are packed, and a model that does not fit into this machine is refused. Else it
	 * is only to be measured: as many layers are built as fit into so many bytes, synthetic ones as
	 * copies of the first of their kind, and the others share their weights (model_cycle()). */
	uint64_t room_bytes;
	/* NULL: weights are packed in memory. Else it outlives the load; not together with room_bytes. */
	struct load_store *store;
};

/* What can be said of a model before its weights are read. */
struct load_facts {
	const struct load_config *config;
	enum page_entry entry;
	enum k_type type; /* how matrices are kept; with K_Q4 some have K_Q8 (load.c) */
	uint64_t n_params, n_params_active;
	uint64_t pack_bytes; /* of the packed weights */
	uint32_t n_built;    /* layers with weights of their own */
};

/**
 * load_open() - read and check everything but the weights
 * @files: must outlive the result
 *
 * Return: 0. -EBADMSG: a file is malformed. -EINVAL: files that contradict each other. -EOPNOTSUPP: a
 *         model this version does not run. -ENOENT: no config.json, or no weights. -ENOMEM: more than
 *         this machine has. Each with the sentence.
 */
int load_open(struct load **ret, const struct files *files, const struct load_options *o,
	      struct error *err);
struct load *load_free(struct load *l);
DEFINE_CLEANUP(struct load *, load_free);

struct load_facts load_get_facts(const struct load *l);

/** load_image() - scalars and all sections; digest and weight_bytes are still to come. */
int load_image(struct load *l, struct image_builder *b, struct error *err);

/* Called at least every LOAD_PROGRESS_USEC while weights are packed. A negative errno ends the load. */
#define LOAD_PROGRESS_USEC 50000u
typedef int (*load_progress)(void *ctx, const char *stage, uint64_t done, uint64_t total);

/**
 * load_map() - take the weights from load_store.packed_fd
 *
 * Return: 1: load_pack() will take them. 0: there are none, or they were refused: o->store says why.
 *         What @progress returned.
 */
int load_map(struct load *l, struct kernels *k, load_progress progress, void *ctx,
	     struct error *err);
/**
 * load_pack() - make the model
 * @ret: of model_init(); model_done() by the caller, also on failure
 * Return: 0; -EIO where a file ended early; -ENOMEM; what @progress returned.
 */
int load_pack(struct load *l, struct kernels *k, load_progress progress, void *ctx,
	      struct model *ret, uint64_t *ret_bytes, struct error *err);
void load_digest(struct load *l, uint8_t ret[32]);
