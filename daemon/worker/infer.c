/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/infer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "layout/image.h"
#include "worker/clock.h"
#include "worker/engine.h"
#include "worker/model/forward.h"
#include "worker/sampler.h"
#include "worker/load/sums.h"

/* Rows of logits held at a time: 16 MB of a large vocabulary, and rows enough to fill the threads. */
#define PICKS_MAX 32u

struct infer {
	struct kernels *k;
	struct model model;
	struct page_geometry geometry;
	struct k_pool pool;
	struct forward *forward;
	struct sampler *sampler;
	struct infer_times times;
	uint8_t *banned; /* [n_vocab] */
	uint32_t n_eos, eos[IMAGE_EOS_MAX];
};

static void infer_free(void *ctx)
{
	struct infer *f = ctx;

	if (!f)
		return;
	sampler_free(f->sampler);
	forward_free(f->forward);
	model_done(&f->model);
	if (f->k)
		f->k->free(f->k);
	free(f->banned);
	free(f);
}

static void infer_freep(struct infer **p)
{
	infer_free(*p);
}

static int infer_attach(void *ctx, const struct engine_room *room, struct error *err)
{
	struct infer *f = ctx;
	const struct sampler_config sampler = {
		.n_vocab = f->model.cfg.n_vocab,
		.banned = f->banned,
		.n_eos = f->n_eos,
		.eos = f->eos,
		.max_rows = PICKS_MAX,
	};
	int r;

	f->pool = (struct k_pool){
		.data = room->pool,
		.stride = f->geometry.stride,
		.n_pages = room->n_pages,
		.stream_offset = f->geometry.offset,
		.n_streams = f->geometry.n_streams,
		.row_bytes = f->geometry.row_bytes[0],
		.entry = f->pool.entry,
	};
	r = forward_new(&f->forward, &f->model, room->max_rows, PICKS_MAX, err);
	if (r < 0)
		return r;
	forward_set_progress(f->forward, room->progress);
	return sampler_new(&f->sampler, f->k, &sampler, err);
}

static int infer_step(void *ctx, const struct engine_step *step, struct channel_result_row *ret,
		      struct error *err)
{
	struct infer *f = ctx;
	uint32_t picks[PICKS_MAX];
	int r;

	r = model_forward(f->forward, &step->k, &f->pool, err);
	if (r < 0)
		return r == -EINVAL ? -EBADMSG : r;
	for (uint32_t first = 0; first < step->n_wants; first += PICKS_MAX) {
		uint32_t n = MIN(step->n_wants - first, PICKS_MAX);
		struct k_buffer *logits;

		for (uint32_t i = 0; i < n; i++)
			picks[i] = step->wants[first + i].row;
		logits = forward_logits(f->forward, picks, n);
		r = sampler_run(f->sampler, logits, step, first, n, ret + first, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* What the sampler must know of the vocabulary, from the sections that were just built. */
static int keep_vocabulary(struct infer *f, const struct image_builder *image)
{
	const struct image_header *h = &image->h;
	const uint8_t *flags = image->data + h->token_flags.offset;

	f->banned = calloc(h->n_vocab, 1);
	if (!f->banned)
		return -ENOMEM;
	for (uint32_t id = 0; id < h->n_vocab; id++)
		f->banned[id] = (flags[id] & IMAGE_TOKEN_UNUSED) != 0;
	f->n_eos = h->n_eos;
	memcpy(f->eos, h->eos, sizeof(f->eos));
	return 0;
}

/* Since *since, which begins anew. */
static uint64_t lap(uint64_t *since)
{
	uint64_t from = *since;

	*since = clock_usec();
	return *since - from;
}

int infer_new(struct engine *ret, struct image_builder *image, const struct files *files,
	      const struct load_options *o, const struct kernels_config *cpu,
	      load_progress progress, void *ctx, struct error *err)
{
	_cleanup_(infer_freep) struct infer *f = calloc(1, sizeof(*f));
	_cleanup_(load_freep) struct load *l = NULL;
	struct load_facts facts;
	const struct image_stream *streams;
	uint64_t t = clock_usec();
	int r;

	if (!f)
		return -ENOMEM;
	r = load_open(&l, files, o, err);
	f->times.files_usec = lap(&t);
	r = r ?: load_image(l, image, err);
	r = r ?: keep_vocabulary(f, image);
	f->times.vocabulary_usec = lap(&t);
	if (r < 0)
		return r;
	facts = load_get_facts(l);
	f->pool.entry = (enum k_entry)facts.entry;
	streams = (const void *)(image->data + image->h.streams.offset);
	r = page_geometry_init(&f->geometry, streams, facts.config->m.n_layers, err);
	if (r < 0)
		return r;
	r = kernels_cpu_new(&f->k, cpu);
	if (r < 0)
		return error_set(err, r, "starting the kernels: %m");
	lap(&t);
	r = load_map(l, f->k, progress, ctx, err);
	/* What was packed earlier comes from these very files, and their sums were looked at then. */
	if (r == 0)
		r = sums_check(files, progress, ctx, err);
	f->times.check_usec = lap(&t);
	if (r >= 0)
		r = load_pack(l, f->k, progress, ctx, &f->model, &image->h.weight_bytes, err);
	f->times.weights_usec = lap(&t);
	if (r < 0)
		return r;
	load_digest(l, image->h.digest);
	*ret = (struct engine){
		.limits = {.n_vocab = facts.config->m.n_vocab,
			   .n_context = facts.config->m.n_context,
			   .geometry = f->geometry},
		.ctx = TAKE_PTR(f),
		.free = infer_free,
		.attach = infer_attach,
		.step = infer_step,
	};
	return 0;
}

struct infer_times infer_get_times(const struct engine *e)
{
	const struct infer *f = e->ctx;

	return f->times;
}

const struct model *infer_model(const struct engine *e)
{
	const struct infer *f = e->ctx;

	return &f->model;
}
