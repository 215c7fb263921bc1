/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/load.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/error.h"
#include "layout/image.h"
#include "worker/clock.h"
#include "worker/load/digest.h"
#include "worker/load/files.h"
#include "worker/load/packed.h"
#include "worker/load/tensors.h"
#include "worker/load/tokenizer_json.h"
#include "worker/load/weights.h"
#include "worker/model/model.h"

struct load {
	struct load_config config;
	struct load_generation generation;
	char *config_json, *generation_json, *tokenizer_json,
		*tokenizer_config_json; /* NULL: none */
	size_t config_bytes, generation_bytes, tokenizer_bytes, tokenizer_config_bytes;
	struct weights *weights;
	enum k_type type;
	enum page_entry entry;
	struct packed_want want;
	uint32_t n_built, n_packed; /* layers; fewer than there are where it is only measured */
	struct load_store *store;   /* NULL: none */
	struct packed packed;       /* until the model has it */
	uint8_t content[PACKED_HASH_BYTES]; /* of the numbers; once the weights are there */
};

struct load *load_free(struct load *l)
{
	if (!l)
		return NULL;
	free(l->config_json);
	free(l->generation_json);
	free(l->tokenizer_json);
	free(l->tokenizer_config_json);
	weights_free(l->weights);
	packed_done(&l->packed);
	free(l);
	return NULL;
}

static int read_small_files(struct load *l, const struct files *files, struct error *err)
{
	const struct {
		const char *name;
		size_t max;
		char **ret;
		size_t *ret_n;
	} wanted[] = {
		{"config.json", CONFIG_JSON_MAX, &l->config_json, &l->config_bytes},
		{"generation_config.json", CONFIG_JSON_MAX, &l->generation_json,
		 &l->generation_bytes},
		{"tokenizer.json", TOKENIZER_JSON_MAX, &l->tokenizer_json, &l->tokenizer_bytes},
		{"tokenizer_config.json", TOKENIZER_CONFIG_JSON_MAX, &l->tokenizer_config_json,
		 &l->tokenizer_config_bytes},
	};
	int r;

	for (size_t i = 0; i < N_ELEMENTS(wanted); i++) {
		const struct file *f = files_find(files, wanted[i].name);

		if (!f)
			continue;
		r = file_slurp(f, wanted[i].max, wanted[i].ret, wanted[i].ret_n, err);
		if (r < 0)
			return r;
	}
	if (!l->config_json)
		return error_set(err, -ENOENT, "config.json: missing");
	return 0;
}

static int open_weights(struct load *l, const struct files *files, struct error *err)
{
	int r = weights_open(&l->weights, files, err);

	if (r == -ENOENT && l->config.synthetic)
		return weights_synthetic(&l->weights, l->config.synthetic_seed);
	if (r == -ENOENT)
		return error_set(err, r,
				 "no .safetensors file, and config.json has no dsd_synthetic");
	if (r == 0 && l->config.synthetic)
		return error_set(err, -EINVAL,
				 "config.json: dsd_synthetic beside .safetensors files");
	return r;
}

/* The published names and the kernels' words for the same two choices. */
static int choose_types(struct load *l, const struct load_options *o, struct error *err)
{
	static const enum k_type types[_CONTROL_WEIGHTS_MAX] = {
		[CONTROL_WEIGHTS_AUTO] = K_BF16, [CONTROL_WEIGHTS_F32] = K_F32,
		[CONTROL_WEIGHTS_BF16] = K_BF16, [CONTROL_WEIGHTS_Q8] = K_Q8,
		[CONTROL_WEIGHTS_Q4] = K_Q4,
	};

	if (o->weights >= _CONTROL_WEIGHTS_MAX || o->entry > _PAGE_ENTRY_MAX)
		return error_set(err, -EINVAL, "weights %u, entry %u: unknown", o->weights,
				 o->entry);
	l->type = types[o->weights];
	l->entry = l->type == K_F32 ? PAGE_ENTRY_F32 : PAGE_ENTRY_BF16;
	if (o->entry != _PAGE_ENTRY_MAX)
		l->entry = (enum page_entry)o->entry;
	if (page_entry_row_bytes(l->entry, l->config.m.rank, l->config.m.rope) == 0)
		return error_set(err, -EINVAL,
				 "pool.entry=%s: kv_lora_rank is %u, want a multiple of 4",
				 page_entry_name(l->entry), l->config.m.rank);
	return 0;
}

/* Numbers that are packed: the tensors, and kv_b a second time for the absorbed path. */
static uint64_t pack_numbers(const struct load *l)
{
	const struct model_config *m = &l->config.m;
	uint64_t n, active;

	tensors_count(&l->config, &n, &active);
	n += (uint64_t)m->n_layers * m->n_heads * (m->nope + m->v_head) * m->rank;
	return (uint64_t)((double)n * l->n_packed / m->n_layers); /* only progress is told by it */
}

static int check_memory(const struct load *l, struct error *err)
{
	uint64_t want = l->want.data_bytes, have;
	struct sysinfo s;

	if (sysinfo(&s) < 0)
		return error_set(err, -errno, "sysinfo: %m");
	have = (uint64_t)s.totalram * s.mem_unit;
	if (want > have)
		return error_set(err, -ENOMEM, "the weights take %.1f GiB: this machine has %.1f",
				 (double)want / (1u << 30), (double)have / (1u << 30));
	return 0;
}

/* The walk over all weights. */
struct packing {
	struct load *l;
	const struct model_config *m;
	struct kernels *k; /* NULL: nothing is read, the list of weights and their bytes is made */
	struct digest *list;
	uint8_t *memory; /* of all weights, one behind the other; NULL: each has its own */
	bool mapped;     /* they are there already */
	load_progress progress;
	void *ctx;
	uint64_t done, total; /* numbers */
	uint64_t next_report; /* monotonic, in usec */
	uint64_t bytes;
	char stage[64];
	struct error *err;
	int r; /* of the first weight that failed; the rest is skipped */
};

static void pack_model(struct packing *p, struct model *ret);

/* What forward.h has no pass for is refused before a weight is read; the size is that of packing it. */
static int check_forward(struct load *l, struct error *err)
{
	struct digest list;
	struct packing p = {.l = l, .m = &l->config.m, .list = &list, .err = err};
	struct model m;

	p.r = model_init(&m, &l->config.m, NULL, err);
	if (p.r < 0)
		return p.r;
	digest_begin(&list);
	pack_model(&p, &m);
	digest_end(&list, l->want.plan);
	l->want.data_bytes = p.bytes;
	free(m.layers);
	return p.r;
}

static int fit_layers(struct load *l, uint64_t room, struct error *err)
{
	int r = 0;

	while (r >= 0 && l->want.data_bytes > room && l->n_built > model_packed_min(&l->config.m)) {
		l->n_built--;
		r = check_forward(l, err);
	}
	if (r >= 0 && l->want.data_bytes > room)
		return error_set(err, -ENOMEM,
				 "the weights of %u layers take %.1f GiB: there is room for %.1f",
				 l->n_built, (double)l->want.data_bytes / (1u << 30),
				 (double)room / (1u << 30));
	return r;
}

int load_open(struct load **ret, const struct files *files, const struct load_options *o,
	      struct error *err)
{
	_cleanup_(load_freep) struct load *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	r = read_small_files(l, files, err);
	r = r ?: load_config_parse(&l->config, l->config_json, l->config_bytes, err);
	if (r == 0 && l->generation_json)
		r = load_generation_parse(&l->generation, l->generation_json, l->generation_bytes,
					  l->config.m.n_vocab, err);
	r = r ?: choose_types(l, o, err);
	r = r ?: open_weights(l, files, err);
	r = r ?: tensors_check(&l->config, l->weights, err);
	l->n_built = l->config.m.n_layers;
	r = r ?: check_forward(l, err);
	r = r ?: o->room_bytes ? fit_layers(l, o->room_bytes, err) : check_memory(l, err);
	if (r < 0)
		return r;
	l->n_packed = l->n_built;
	if (o->room_bytes && weights_are_synthetic(l->weights))
		l->n_packed = model_packed_min(&l->config.m);
	l->store = o->store;
	if (o->n_context)
		l->config.m.n_context = MIN(l->config.m.n_context, o->n_context);
	*ret = TAKE_PTR(l);
	return 0;
}

struct load_facts load_get_facts(const struct load *l)
{
	struct load_facts f = {.config = &l->config,
			       .entry = l->entry,
			       .type = l->type,
			       .pack_bytes = l->want.data_bytes,
			       .n_built = l->n_built};

	tensors_count(&l->config, &f.n_params, &f.n_params_active);
	return f;
}

int load_image(struct load *l, struct image_builder *b, struct error *err)
{
	const struct model_config *m = &l->config.m;
	const struct load_facts facts = load_get_facts(l);
	struct image_stream streams[IMAGE_LAYERS_MAX];
	struct tokenizer_input in = {
		.tokenizer = l->tokenizer_json,
		.config = l->tokenizer_config_json,
		.tokenizer_bytes = l->tokenizer_bytes,
		.config_bytes = l->tokenizer_config_bytes,
	};
	struct image_header *h = &b->h;
	int r;

	memcpy(h->arch, l->config.arch, sizeof(h->arch));
	h->n_vocab = m->n_vocab;
	h->n_context = m->n_context;
	h->n_layers = m->n_layers;
	h->n_heads = m->n_heads;
	h->hidden = m->hidden;
	h->kv_lora_rank = m->rank;
	h->qk_nope = m->nope;
	h->qk_rope = m->rope;
	h->v_head = m->v_head;
	h->n_experts = m->n_experts;
	h->n_experts_used = m->n_used;
	h->entry = l->entry;
	h->n_params = facts.n_params;
	h->n_params_active = facts.n_params_active;
	h->defaults = l->generation.defaults;
	h->temperature = l->generation.temperature;
	h->top_p = l->generation.top_p;
	h->top_k = l->generation.top_k;
	for (uint32_t i = 0; i < m->n_layers; i++)
		streams[i] = (struct image_stream){
			.layer = i,
			.bytes_per_token = page_entry_row_bytes(l->entry, m->rank, m->rope),
		};
	r = tokenizer_fill(b, &in, &l->config, &l->generation, err);
	return r ?: image_append(b, &h->streams, streams, sizeof(*streams) * m->n_layers);
}

void load_digest(struct load *l, uint8_t ret[32])
{
	uint32_t mode[] = {l->type, l->entry};
	struct digest d;

	digest_begin(&d);
	/* Pages of another precision hold other numbers: another model, as far as a cache goes. */
	digest_add(&d, "mode", mode, sizeof(mode));
	digest_add(&d, "config.json", l->config_json, l->config_bytes);
	digest_add(&d, "tokenizer.json", l->tokenizer_json, l->tokenizer_bytes);
	digest_add(&d, "tokenizer_config.json", l->tokenizer_config_json,
		   l->tokenizer_config_bytes);
	digest_add(&d, "weights", l->content, sizeof(l->content));
	digest_end(&d, ret);
}

/* ---- packing ---- */

/* How rows of a packed weight come out of tensors. */
enum rows_kind {
	ROWS_PLAIN,   /* row = row of the tensor */
	ROWS_GATE_UP, /* per matrix: rows of gate_proj, then those of up_proj */
	ROWS_DOWN,    /* per matrix: rows of down_proj */
	ROWS_UK,      /* per head: the key rows of kv_b, transposed */
	ROWS_UV,      /* per head: the value rows of kv_b */
};

struct rows {
	struct packing *p;
	enum rows_kind kind;
	bool numbered;    /* experts: the matrix is part of the name */
	const char *name; /* of the tensor, or what stands before the matrix or projection */
	uint32_t n_out, n_in;
	uint32_t part; /* of which full[] is the name */
	char full[TENSOR_NAME_MAX];
	float *block; /* ROWS_UK: key rows of head `part` [nope, rank] */
};

/* A load_progress that passes on as much as LOAD_PROGRESS_USEC allows. */
static int report(void *ctx, const char *stage, uint64_t done, uint64_t total)
{
	struct packing *p = ctx;
	uint64_t t = clock_usec();

	if (t < p->next_report)
		return 0;
	p->next_report = t + LOAD_PROGRESS_USEC;
	return p->progress ? p->progress(p->ctx, stage, done, total) : 0;
}

static const char *mlp_name(struct rows *rows, uint32_t mat, uint32_t half,
			    const char *const *projections)
{
	uint32_t part = mat * 2 + half + 1;

	if (rows->part == part)
		return rows->full;
	rows->part = part;
	if (rows->numbered)
		snprintf(rows->full, sizeof(rows->full), "%s%u.%s.weight", rows->name, mat,
			 projections[half]);
	else
		snprintf(rows->full, sizeof(rows->full), "%s%s.weight", rows->name,
			 projections[half]);
	return rows->full;
}

/* Row @sub of the transposed key block of head @mat: column @sub of its `nope` rows. */
static int read_uk(struct rows *rows, uint32_t mat, uint32_t sub, float *ret)
{
	const struct model_config *m = rows->p->m;
	int r;

	if (rows->part != mat + 1) {
		r = weights_read(rows->p->l->weights, rows->name, m->rank,
				 (uint64_t)mat * (m->nope + m->v_head) * m->rank,
				 (uint64_t)m->nope * m->rank, rows->block, rows->p->err);
		if (r < 0)
			return r;
		rows->part = mat + 1;
	}
	for (uint32_t i = 0; i < m->nope; i++)
		ret[i] = rows->block[(size_t)i * m->rank + sub];
	return 0;
}

static int read_row(void *ctx, uint32_t row, float *ret)
{
	static const char *const gate_up[] = {"gate_proj", "up_proj"}, *const down[] = {
									       "down_proj"};
	struct rows *rows = ctx;
	struct packing *p = rows->p;
	const struct model_config *m = p->m;
	uint32_t mat = row / rows->n_out, sub = row % rows->n_out, half = rows->n_out / 2;
	const char *name = rows->name;
	uint64_t from = row;
	int r;

	p->done += rows->n_in;
	r = report(p, p->stage, p->done, p->total);
	if (r < 0)
		return r;
	switch (rows->kind) {
	case ROWS_PLAIN:
		break;
	case ROWS_GATE_UP:
		name = mlp_name(rows, mat, sub >= half, gate_up);
		from = sub % half;
		break;
	case ROWS_DOWN:
		name = mlp_name(rows, mat, 0, down);
		from = sub;
		break;
	case ROWS_UK:
		return read_uk(rows, mat, sub, ret);
	case ROWS_UV:
		from = (uint64_t)mat * (m->nope + m->v_head) + m->nope + sub;
		break;
	}
	return weights_read(p->l->weights, name, rows->n_in, from * rows->n_in, rows->n_in, ret,
			    p->err);
}

/* In q4 eight bits are kept where an error goes everywhere: the embedding and the head, and what makes
 * and reads cached rows (kv_a with its rotary part, kv_b). The router and the norms are f32 always. */
static enum k_type sensitive(enum k_type type)
{
	return type == K_Q4 ? K_Q8 : type;
}

static void pack(struct packing *p, struct k_weight **ret, struct rows rows, uint32_t n_mat,
		 uint32_t n_out, uint32_t n_in, enum k_type type)
{
	struct k_source src = {.n_mat = n_mat,
			       .n_out = n_out,
			       .n_in = n_in,
			       .type = type,
			       .read_row = read_row,
			       .ctx = &rows};
	uint64_t bytes, from = p->bytes;

	if (p->r < 0)
		return;
	rows.p = p;
	rows.n_out = n_out;
	rows.n_in = n_in;
	p->r = kernels_cpu_weight_bytes(&src, &bytes);
	if (p->r >= 0 && __builtin_add_overflow(from, bytes, &p->bytes))
		p->r = -EINVAL;
	if (p->r >= 0 && p->list) {
		const uint64_t shape[] = {rows.kind, type, n_mat, n_out, n_in, bytes};

		digest_add(p->list, rows.name, shape, sizeof(shape));
	}
	if (p->memory)
		src.memory = p->memory + from;
	if (p->mapped)
		src.read_row = NULL;
	if (p->r >= 0 && p->k)
		p->r = p->k->weight_pack(p->k, ret, &src);
	if (p->r < 0 && p->err && !p->err->text[0])
		error_set(p->err, p->r, "packing %s (%u matrices of %u x %u): %m", rows.name, n_mat,
			  n_out, n_in);
}

/* One tensor as one matrix; a vector is one row. */
static void pack_tensor(struct packing *p, struct k_weight **ret, uint32_t l, const char *tail,
			uint32_t n_out, uint32_t n_in, enum k_type type)
{
	char name[TENSOR_NAME_MAX];

	snprintf(name, sizeof(name), "model.layers.%u.%s.weight", l, tail);
	pack(p, ret, (struct rows){.kind = ROWS_PLAIN, .name = name}, 1, n_out, n_in, type);
}

static void pack_mlp(struct packing *p, struct k_weight **gate_up, struct k_weight **down,
		     uint32_t l, const char *tail, uint32_t n_mat, uint32_t inter, bool numbered)
{
	char name[TENSOR_NAME_MAX];

	snprintf(name, sizeof(name), "model.layers.%u.%s", l, tail);
	pack(p, gate_up, (struct rows){.kind = ROWS_GATE_UP, .name = name, .numbered = numbered},
	     n_mat, 2 * inter, p->m->hidden, p->l->type);
	pack(p, down, (struct rows){.kind = ROWS_DOWN, .name = name, .numbered = numbered}, n_mat,
	     p->m->hidden, inter, p->l->type);
}

static void pack_attention(struct packing *p, struct model_layer *layer, uint32_t l)
{
	_cleanup_(freep) float *block = NULL;
	const struct model_config *m = p->m;
	uint32_t q = m->n_heads * (m->nope + m->rope);
	enum k_type type = p->l->type;
	char name[TENSOR_NAME_MAX];

	pack_tensor(p, &layer->attn_norm, l, "input_layernorm", 1, m->hidden, K_F32);
	if (m->q_lora_rank == 0) {
		pack_tensor(p, &layer->q, l, "self_attn.q_proj", q, m->hidden, type);
	} else {
		pack_tensor(p, &layer->q_a, l, "self_attn.q_a_proj", m->q_lora_rank, m->hidden,
			    type);
		pack_tensor(p, &layer->q_a_norm, l, "self_attn.q_a_layernorm", 1, m->q_lora_rank,
			    K_F32);
		pack_tensor(p, &layer->q_b, l, "self_attn.q_b_proj", q, m->q_lora_rank, type);
	}
	pack_tensor(p, &layer->kv_a, l, "self_attn.kv_a_proj_with_mqa", m->rank + m->rope,
		    m->hidden, sensitive(type));
	pack_tensor(p, &layer->kv_a_norm, l, "self_attn.kv_a_layernorm", 1, m->rank, K_F32);
	pack_tensor(p, &layer->kv_b, l, "self_attn.kv_b_proj", m->n_heads * (m->nope + m->v_head),
		    m->rank, sensitive(type));
	if (p->k && p->r >= 0) {
		block = calloc((size_t)m->nope * m->rank, sizeof(*block));
		if (!block)
			p->r = -ENOMEM;
	}
	snprintf(name, sizeof(name), "model.layers.%u.self_attn.kv_b_proj.weight", l);
	pack(p, &layer->w_uk, (struct rows){.kind = ROWS_UK, .name = name, .block = block},
	     m->n_heads, m->rank, m->nope, sensitive(type));
	pack(p, &layer->w_uv, (struct rows){.kind = ROWS_UV, .name = name}, m->n_heads, m->v_head,
	     m->rank, sensitive(type));
	pack_tensor(p, &layer->o, l, "self_attn.o_proj", m->hidden, m->n_heads * m->v_head, type);
}

static void pack_layer(struct packing *p, struct model_layer *layer, uint32_t l)
{
	const struct model_config *m = p->m;

	snprintf(p->stage, sizeof(p->stage), "layer %u of %u", l + 1, m->n_layers);
	pack_attention(p, layer, l);
	pack_tensor(p, &layer->ffn_norm, l, "post_attention_layernorm", 1, m->hidden, K_F32);
	if (!model_layer_is_moe(m, l)) {
		pack_mlp(p, &layer->ffn_gate_up, &layer->ffn_down, l, "mlp.", 1, m->inter, false);
		return;
	}
	/* The router decides in f32, whatever the rest is kept in. */
	pack_tensor(p, &layer->gate, l, "mlp.gate", m->n_experts, m->hidden, K_F32);
	pack_mlp(p, &layer->experts_gate_up, &layer->experts_down, l, "mlp.experts.", m->n_experts,
		 m->moe_inter, true);
	if (m->n_shared)
		pack_mlp(p, &layer->shared_gate_up, &layer->shared_down, l, "mlp.shared_experts.",
			 1, m->n_shared * m->moe_inter, false);
}

static void pack_model(struct packing *p, struct model *ret)
{
	const struct model_config *m = p->m;
	uint32_t n_layers = p->k ? p->l->n_packed : p->l->n_built;

	snprintf(p->stage, sizeof(p->stage), "embedding");
	pack(p, &ret->embed, (struct rows){.name = "model.embed_tokens.weight"}, 1, m->n_vocab,
	     m->hidden, sensitive(p->l->type));
	for (uint32_t i = 0; i < n_layers && p->r >= 0; i++)
		pack_layer(p, &ret->layers[i], i);
	snprintf(p->stage, sizeof(p->stage), "head");
	pack(p, &ret->norm, (struct rows){.name = "model.norm.weight"}, 1, 1, m->hidden, K_F32);
	if (p->l->config.tied)
		ret->head = ret->embed;
	else
		pack(p, &ret->head, (struct rows){.name = "lm_head.weight"}, 1, m->n_vocab,
		     m->hidden, sensitive(p->l->type));
}

int load_map(struct load *l, struct kernels *k, load_progress progress, void *ctx,
	     struct error *err)
{
	struct packing p = {.progress = progress, .ctx = ctx};
	struct error why = {};
	int r;

	if (!l->store || l->store->packed_fd < 0)
		return 0;
	r = packed_map(&l->packed, l->store->packed_fd, &l->want, k, report, &p, l->content, &why);
	l->store->mapped = r == 0;
	if (r == -EBADMSG)
		l->store->refused = why;
	else if (r < 0 && err)
		*err = why;
	return r == -EBADMSG ? 0 : r < 0 ? r : 1;
}

/* The weights are there: who they are, and where they are kept for the next start. */
static int finish(struct packing *p)
{
	struct load *l = p->l;
	struct digest d;
	int r;

	if (p->mapped)
		return 0;
	digest_begin(&d);
	weights_digest(l->weights, &d);
	digest_end(&d, l->content);
	if (!p->memory)
		return 0;
	r = packed_finish(&l->packed, &l->want, l->content, p->k, report, p, p->err);
	l->store->filled = r >= 0;
	return r;
}

int load_pack(struct load *l, struct kernels *k, load_progress progress, void *ctx,
	      struct model *ret, uint64_t *ret_bytes, struct error *err)
{
	struct packing p = {.l = l,
			    .m = &l->config.m,
			    .k = k,
			    .mapped = l->packed.map != NULL,
			    .progress = progress,
			    .ctx = ctx,
			    .total = pack_numbers(l),
			    .err = err};

	p.r = model_init(ret, p.m, k, err);
	if (p.r < 0)
		return p.r;
	/* Without room in a file the weights are packed all the same. */
	if (!p.mapped && l->store && l->store->new_fd >= 0)
		packed_make(&l->packed, l->store->new_fd, &l->want, &l->store->not_filled);
	if (l->packed.map)
		p.memory = packed_data(&l->packed);
	pack_model(&p, ret);
	if (p.r >= 0)
		p.r = model_cycle(ret, l->n_packed, l->n_built);
	if (p.r >= 0)
		p.r = finish(&p);
	p.next_report = 0;
	if (p.r >= 0)
		p.r = report(&p, p.stage, p.total, p.total);
	ret->map = TAKE_PTR(l->packed.map);
	ret->map_bytes = l->packed.shape.total_bytes;
	*ret_bytes = l->want.data_bytes;
	return p.r;
}
