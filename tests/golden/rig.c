/* SPDX-License-Identifier: Apache-2.0 */
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"

/* Open rigs: an operation is given its table alone, and finds its rig here. */
static struct rig *open_rigs[4];

static struct rig *rig_of(const struct kernels *k)
{
	for (size_t i = 0; i < N_ELEMENTS(open_rigs); i++)
		if (open_rigs[i] && open_rigs[i]->k == k)
			return open_rigs[i];
	abort();
}

static int rig_enter(struct rig *r)
{
	for (size_t i = 0; i < N_ELEMENTS(open_rigs); i++)
		if (!open_rigs[i]) {
			open_rigs[i] = r;
			return 0;
		}
	return -EMFILE;
}

static void rig_leave(const struct rig *r)
{
	for (size_t i = 0; i < N_ELEMENTS(open_rigs); i++)
		if (open_rigs[i] == r)
			open_rigs[i] = NULL;
}

static void watch_route(struct kernels *k, const struct k_buffer *x, const struct k_weight *gate,
			const struct k_route *route)
{
	struct rig *r = rig_of(k);
	uint32_t n_context = r->model.cfg.n_context, n_used = route->n_used;
	uint32_t ids[RIG_ROWS_MAX * K_EXPERTS_USED_MAX];
	float weights[RIG_ROWS_MAX * K_EXPERTS_USED_MAX];

	r->own.route(k, x, gate, route);
	if (!r->experts || r->n_routed == RIG_MOE_MAX)
		return;
	k->routed(k, ids, weights);
	for (uint32_t i = 0; i < r->step->n_rows; i++)
		memcpy(r->experts +
			       ((size_t)r->n_routed * n_context + r->step->positions[i]) * n_used,
		       ids + (size_t)i * n_used, n_used * sizeof(*ids));
	r->n_routed++;
}

static struct k_mla scaled(const struct rig *r, const struct k_mla *m)
{
	struct k_mla out = *m;

	if (r->scale != 0)
		out.scale = r->scale;
	return out;
}

static void scale_prefill(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
			  const struct k_weight *kv_b, const struct k_mla *m, uint32_t stream)
{
	struct k_mla mine = scaled(rig_of(k), m);

	rig_of(k)->own.mla_prefill(k, out, q, kv_b, &mine, stream);
}

static void scale_decode(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
			 const struct k_weight *w_uk, const struct k_weight *w_uv,
			 const struct k_mla *m, uint32_t stream)
{
	struct k_mla mine = scaled(rig_of(k), m);

	rig_of(k)->own.mla_decode(k, out, q, w_uk, w_uv, &mine, stream);
}

static int open_files(struct rig *r, const char *dir, const char *config, struct error *err)
{
	size_t n = config ? strlen(config) : 0;
	int fd;

	if (!config)
		return files_open(&r->files, dir, err);
	fd = memfd_create("config", MFD_CLOEXEC);
	if (fd < 0)
		return error_set(err, -errno, "memfd_create: %m");
	if (write(fd, config, n) != (ssize_t)n) {
		close(fd);
		return error_set(err, -EIO, "writing a config of %zu bytes", n);
	}
	return files_add(&r->files, "config.json", fd, err);
}

static int open_pool(struct rig *r, uint32_t n_pages, struct error *err)
{
	_cleanup_(image_builder_done) struct image_builder image = {};
	struct load_facts facts = load_get_facts(r->load);
	int e;

	e = image_builder_init(&image);
	e = e ?: load_image(r->load, &image, err);
	e = e
		    ?: page_geometry_init(&r->geometry,
					  (const void *)(image.data + image.h.streams.offset),
					  facts.config->m.n_layers, err);
	if (e < 0)
		return e;
	r->pool = (struct k_pool){
		.data = calloc(n_pages, r->geometry.stride),
		.stride = r->geometry.stride,
		.n_pages = n_pages,
		.stream_offset = r->geometry.offset,
		.n_streams = r->geometry.n_streams,
		.row_bytes = r->geometry.row_bytes[0],
		.entry = (enum k_entry)facts.entry,
	};
	return r->pool.data ? 0 : -ENOMEM;
}

int rig_open(struct rig *r, const char *dir, const char *config, const struct rig_options *o,
	     struct error *err)
{
	const struct load_options load = {
		.weights = o->weights,
		.entry = o->int8_entry ? PAGE_ENTRY_INT8 : _PAGE_ENTRY_MAX,
	};
	const struct kernels_config cpu = {.n_threads = o->n_threads, .cpu_mask = o->cpu_mask};
	uint64_t n_bytes;
	int e;

	*r = (struct rig){};
	e = open_files(r, dir, config, err);
	e = e ?: load_open(&r->load, &r->files, &load, err);
	e = e ?: open_pool(r, o->n_pages, err);
	e = e ?: kernels_cpu_new(&r->k, &cpu);
	if (e < 0)
		return e;
	r->own = *r->k;
	r->k->route = watch_route;
	r->k->mla_prefill = scale_prefill;
	r->k->mla_decode = scale_decode;
	e = rig_enter(r);
	if (e < 0)
		return e;
	e = load_pack(r->load, r->k, NULL, NULL, &r->model, &n_bytes, err);
	e = e ?: forward_new(&r->forward, &r->model, RIG_ROWS_MAX, RIG_PICKS, err);
	if (e < 0)
		return e;
	if (!o->watch_experts || r->model.cfg.n_used == 0)
		return 0;
	r->experts = calloc((size_t)RIG_MOE_MAX * r->model.cfg.n_context * r->model.cfg.n_used,
			    sizeof(*r->experts));
	return r->experts ? 0 : -ENOMEM;
}

void rig_done(struct rig *r)
{
	forward_free(r->forward);
	rig_leave(r);
	if (r->k) {
		model_done(&r->model);
		r->k->free(r->k);
	}
	load_free(r->load);
	files_done(&r->files);
	free(r->pool.data);
	free(r->experts);
	*r = (struct rig){};
}

int rig_run(struct rig *r, const struct k_step *step, float *ret, struct error *err)
{
	uint32_t picks[RIG_PICKS], n_vocab = r->model.cfg.n_vocab;
	int e;

	r->step = step;
	r->n_routed = 0;
	e = model_forward(r->forward, step, &r->pool, err);
	if (e < 0)
		return e;
	for (uint32_t first = 0; first < step->n_rows; first += RIG_PICKS) {
		uint32_t n = MIN(step->n_rows - first, RIG_PICKS);

		for (uint32_t i = 0; i < n; i++)
			picks[i] = first + i;
		r->k->download(r->k, ret + (size_t)first * n_vocab,
			       forward_logits(r->forward, picks, n), 0, n);
	}
	return 0;
}

uint32_t rig_isas(uint32_t ret[RIG_ISA_MAX])
{
	static const uint32_t masks[RIG_ISA_MAX] = {0, K_CPU_AVX2, K_CPU_AVX2 | K_CPU_AVX512,
						    UINT32_MAX};
	char last[64] = "";
	uint32_t n = 0;

	for (uint32_t i = 0; i < RIG_ISA_MAX; i++) {
		const struct kernels_config cpu = {.n_threads = 1, .cpu_mask = masks[i]};
		struct kernels *k;

		if (kernels_cpu_new(&k, &cpu) < 0)
			continue;
		/* The same name as the mask before: this CPU has nothing more. */
		if (strcmp(k->name, last) != 0)
			ret[n++] = masks[i];
		snprintf(last, sizeof(last), "%s", k->name);
		k->free(k);
	}
	return n;
}
