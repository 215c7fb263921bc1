/* SPDX-License-Identifier: Apache-2.0 */
/* The engine that a daemon would run, on steps that are made here: prompts in chunks as sched.step_tokens
 * cuts them by default, then rows of P sequences that generate together. Ids are made up and cached
 * positions are filled with made-up numbers: neither changes how long a step takes, and no sequence of
 * a random model falls into saying what another one says.
 *
 * Beside the work, a few times a second, the machine's limits are measured; a row's limit is the larger
 * of the time to read its bytes and the time to multiply, at the rates found beside that very row. */
#include "worker/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json_object.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "limit.h"
#include "worker/bench_quality.h"
#include "worker/bench_shape.h"
#include "worker/engine.h"
#include "worker/infer.h"
#include "worker/machine.h"
#include "worker/load/files.h"
#include "worker/load/load.h"
#include "worker/model/cost.h"

#define STEP_TOKENS     256u /* the default of sched.step_tokens */
#define GAUGE_SECONDS   0.3  /* from one measurement of the limits to the next */
#define PREFILL_SECONDS 1.0  /* prompts are repeated for so long */
#define ROWS_MAX        (1 + BENCH_LIST_MAX * (BENCH_LIST_MAX + 1))
#define MARGIN_BYTES    (700u << 20) /* for what is neither weights nor cache */

/* What was done in which time, of the three things a machine is limited by. */
struct gauge {
	double bytes, bytes_s, int8, int8_s, flop, flop_s;
};

struct bench_row {
	char name[40];
	double tokens, steps, seconds, first_seconds; /* first: of the first token */
	struct cost cost;                             /* of all tokens */
	struct gauge gauge;
	uint64_t memory_bytes;
};

struct bench {
	const struct bench_options *o;
	struct files files;
	struct limits *limits;
	struct machine here;
	struct kernels_config cpu;
	struct engine engine;
	enum k_type type;       /* of the weights */
	enum k_type float_type; /* K_F32: nothing is in bf16; else K_BF16 */
	enum page_entry entry;
	struct image_header image;
	uint8_t *pool;
	uint64_t pool_bytes;
	uint32_t n_pages, max_rows, max_tokens;
	double load_seconds, gauge_due;
	struct gauge machine;
	struct bench_row rows[ROWS_MAX];
	uint32_t n_rows;
	struct bench_quality quality[BENCH_QUALITY_MAX];

	/* A step. */
	uint32_t *ids, *positions, *pages, *history;
	struct k_segment *segments;
	struct engine_sequence *sequences;
	struct engine_want *wants;
	struct channel_result_row *results;
};

static void bench_done(struct bench *b)
{
	engine_done(&b->engine);
	files_done(&b->files);
	limits_free(b->limits);
	if (b->pool)
		munmap(b->pool, b->pool_bytes);
	free(b->ids);
	free(b->positions);
	free(b->pages);
	free(b->history);
	free(b->segments);
	free(b->sequences);
	free(b->wants);
	free(b->results);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---------------------------------------------------------------- limits */

static void gauge_add(struct gauge *g, const struct gauge *x)
{
	g->bytes += x->bytes;
	g->bytes_s += x->bytes_s;
	g->int8 += x->int8;
	g->int8_s += x->int8_s;
	g->flop += x->flop;
	g->flop_s += x->flop_s;
}

static void measure(struct bench *b, struct gauge *row)
{
	struct gauge g;
	double t0 = now(), t1, t2;

	g.bytes = limits_read(b->limits);
	t1 = now();
	g.int8 = limits_int8(b->limits, b->type);
	t2 = now();
	g.flop = limits_float(b->limits, b->float_type);
	b->gauge_due = now();
	g.flop_s = b->gauge_due - t2;
	g.int8_s = t2 - t1;
	g.bytes_s = t1 - t0;
	b->gauge_due += GAUGE_SECONDS;
	gauge_add(row, &g);
	gauge_add(&b->machine, &g);
}

static double row_limit(const struct bench_row *r)
{
	const struct gauge *g = &r->gauge;
	double reading = r->cost.bytes * g->bytes_s / g->bytes;
	double multiplying =
		r->cost.ops_int8 * g->int8_s / g->int8 + r->cost.ops_float * g->flop_s / g->flop;

	return r->tokens / (reading > multiplying ? reading : multiplying);
}

/* ---------------------------------------------------------------- steps */

/* Some token, another one for every place. */
static uint32_t made_up_id(const struct bench *b, uint32_t sequence, uint32_t position)
{
	uint64_t x = ((uint64_t)sequence << 32 | position) * UINT64_C(0x9e3779b97f4a7c15);

	return (uint32_t)((x >> 32) % b->engine.limits.n_vocab);
}

static const struct channel_params greedy = {.top_p = 1, .repetition_penalty = 1};
static const uint8_t domain[16];

/* Rows of sequence @s, at row @first of the step; its last one wants an answer if @want. */
static void put_rows(struct bench *b, struct engine_step *e, uint32_t s, uint32_t position,
		     uint32_t n, bool generated, bool want, uint32_t pages_each)
{
	uint32_t first = e->k.n_rows;

	for (uint32_t i = 0; i < n; i++) {
		b->ids[first + i] = made_up_id(b, s, position + i);
		b->positions[first + i] = position + i;
	}
	b->segments[e->n_sequences] = (struct k_segment){first, n, position, generated,
							 b->pages + (size_t)s * pages_each};
	b->sequences[e->n_sequences] = (struct engine_sequence){
		.slot = s,
		.first_row = first,
		.n_rows = n,
		.generation = 2,
		.domain = domain,
		.shared_domain = domain,
		.params = &greedy,
		.ids = b->history,
		.pages = b->pages + (size_t)s * pages_each,
		.n_pages = pages_each,
	};
	if (want)
		b->wants[e->n_wants++] =
			(struct engine_want){first + n - 1, e->n_sequences, UINT32_MAX};
	e->n_sequences++;
	e->k.n_segments++;
	e->k.n_rows += n;
}

static struct engine_step step_new(const struct bench *b)
{
	return (struct engine_step){
		.k = {.ids = b->ids, .positions = b->positions, .segments = b->segments},
		.sequences = b->sequences,
		.wants = b->wants,
	};
}

/* Runs a step and adds it to the row, NULL for none. */
static int run_step(struct bench *b, const struct engine_step *e, struct bench_row *row,
		    struct cost_step cost, struct error *err)
{
	const struct model *m = infer_model(&b->engine);
	uint64_t routed = m->k->n_routed;
	double t = now();
	struct cost c;
	int r;

	r = b->engine.step(b->engine.ctx, e, b->results, err);
	if (r < 0 || !row)
		return r;
	row->seconds += now() - t;
	cost.n_rows = e->k.n_rows;
	cost.n_wants = e->n_wants;
	cost.row_bytes = b->engine.limits.geometry.row_bytes[0];
	cost.quantised = b->type >= K_Q8;
	cost.int8_latents = b->entry == PAGE_ENTRY_INT8;
	cost.n_routed = m->k->n_routed - routed;
	c = model_cost(m, &cost);
	row->steps++;
	row->cost.experts += c.experts;
	row->cost.bytes += c.bytes;
	row->cost.ops_int8 += c.ops_int8;
	row->cost.ops_float += c.ops_float;
	if (now() >= b->gauge_due)
		measure(b, &row->gauge);
	return 0;
}

static uint64_t resident_bytes(void)
{
	unsigned long long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (!f)
		return 0;
	if (fscanf(f, "%*u %llu", &pages) != 1)
		pages = 0;
	fclose(f);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE) - LIMITS_READ_BYTES;
}

static struct bench_row *row_new(struct bench *b)
{
	struct bench_row *row = &b->rows[b->n_rows++];

	measure(b, &row->gauge);
	return row;
}

static void row_end(struct bench *b, struct bench_row *row)
{
	measure(b, &row->gauge);
	row->memory_bytes = resident_bytes();
}

static int bench_prefill(struct bench *b, struct error *err)
{
	struct bench_row *row = row_new(b);
	uint32_t n = b->o->prompt;
	int r;

	snprintf(row->name, sizeof(row->name), "prefill-%u", n);
	do {
		for (uint32_t at = 0; at < n; at += STEP_TOKENS) {
			struct engine_step e = step_new(b);
			uint32_t k = MIN(STEP_TOKENS, n - at);

			put_rows(b, &e, 0, at, k, false, at + k == n, (n + 63) / 64);
			r = run_step(b, &e, row,
				     (struct cost_step){.seen = k * (at + (k + 1) / 2.0),
							.cached = at + k},
				     err);
			if (r < 0)
				return r;
		}
		row->tokens += n;
		if (row->first_seconds == 0)
			row->first_seconds = row->seconds;
	} while (row->seconds < PREFILL_SECONDS);
	row_end(b, row);
	return 0;
}

static int bench_decode(struct bench *b, uint32_t parallel, uint32_t context, struct error *err)
{
	uint32_t pages_each = (context + b->o->gen + PAGE_TOKENS - 1) / PAGE_TOKENS;
	struct bench_row *row = NULL;
	int r;

	for (uint32_t i = 0; i <= b->o->gen; i++) { /* one before, to warm up */
		uint32_t position = context + (i ? i - 1 : 0);
		struct engine_step e = step_new(b);

		if (i == 1) {
			row = row_new(b);
			snprintf(row->name, sizeof(row->name),
				 context ? "decode-%u@%u" : "decode-%u", parallel, context);
		}
		for (uint32_t s = 0; s < parallel; s++)
			put_rows(b, &e, s, position, 1, true, true, pages_each);
		r = run_step(b, &e, row,
			     (struct cost_step){.generated = true,
						.seen = (double)parallel * (position + 1),
						.cached = (double)parallel * (position + 1)},
			     err);
		if (r < 0)
			return r;
		if (i == 1)
			row->first_seconds = row->seconds;
	}
	row->tokens = (double)parallel * b->o->gen;
	row_end(b, row);
	return 0;
}

static int bench_rows(struct bench *b, struct error *err)
{
	const struct bench_options *o = b->o;
	int r = o->prompt ? bench_prefill(b, err) : 0;

	for (uint32_t p = 0; r >= 0 && o->gen && p < o->parallel.n; p++) {
		r = bench_decode(b, o->parallel.items[p], 0, err);
		for (uint32_t c = 0; r >= 0 && c < o->contexts.n; c++)
			if (o->contexts.items[c] > 0)
				r = bench_decode(b, o->parallel.items[p], o->contexts.items[c],
						 err);
	}
	return r;
}

/* ---------------------------------------------------------------- making it */

static uint32_t list_max(const struct bench_list *l)
{
	uint32_t max = 0;

	for (uint32_t i = 0; i < l->n; i++)
		max = l->items[i] > max ? l->items[i] : max;
	return max;
}

static uint64_t available_bytes(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	fclose(f);
	return kib << 10;
}

/* Tables of positions, pages for the largest row, and what of the memory is left for weights. */
static int plan(struct bench *b, uint64_t *ret_room, struct error *err)
{
	const struct bench_options *o = b->o;
	const struct load_options options = {
		.weights = o->weights, .entry = o->entry, .room_bytes = UINT64_MAX};
	_cleanup_(load_freep) struct load *l = NULL;
	uint64_t have = o->memory_bytes, want, page;
	const struct model_config *m;
	struct load_facts facts;
	uint32_t parallel = list_max(&o->parallel), pages_each, pages_prompt;
	int r;

	r = load_open(&l, &b->files, &options, err);
	if (r < 0)
		return r;
	facts = load_get_facts(l);
	m = &facts.config->m;
	b->type = facts.type;
	b->entry = facts.entry;
	if (b->type == K_F32 && b->entry == PAGE_ENTRY_F32)
		b->float_type = K_F32;
	b->max_rows = MIN(o->prompt, STEP_TOKENS);
	b->max_rows = MAX(b->max_rows, parallel);
	b->max_tokens = MAX(o->prompt, list_max(&o->contexts) + o->gen);
	if (b->max_tokens > m->n_context)
		return error_set(err, -EINVAL,
				 "%u tokens: want at most the %u that the model takes",
				 b->max_tokens, m->n_context);
	pages_each = (list_max(&o->contexts) + o->gen + PAGE_TOKENS - 1) / PAGE_TOKENS;
	pages_prompt = (o->prompt + PAGE_TOKENS - 1) / PAGE_TOKENS;
	b->n_pages = MAX(parallel * pages_each, pages_prompt);
	page = (uint64_t)m->n_layers * PAGE_TOKENS *
	       page_entry_row_bytes(facts.entry, m->rank, m->rope);
	want = b->n_pages * page + MARGIN_BYTES;
	if (!have)
		have = available_bytes();
	if (have <= want)
		return error_set(err, -ENOMEM,
				 "%u pages of cache and %u MiB beside them: %.1f GiB are free",
				 b->n_pages, MARGIN_BYTES >> 20, (double)have / (1u << 30));
	*ret_room = have - want;
	return 0;
}

/* Numbers that are small in every entry: around 1/4, in int8 by scales of 1/256. */
static void fill_pool(struct bench *b)
{
	uint32_t base = b->entry == PAGE_ENTRY_INT8 ? 0x3b00 : 0x3e00; /* upper half of an f32 */
	uint16_t *p = (uint16_t *)b->pool;
	uint32_t x = 1;

	for (uint64_t i = 0; i < b->pool_bytes / 2; i++) {
		x = x * 1664525u + 1013904223u;
		p[i] = (uint16_t)((x >> 31) << 15 | (base + (x >> 20 & 0xff)));
	}
}

static int make_room(struct bench *b, struct error *err)
{
	struct engine_room room;

	b->pool_bytes = b->n_pages * b->engine.limits.geometry.stride;
	b->pool = mmap(NULL, b->pool_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	if (b->pool == MAP_FAILED) {
		b->pool = NULL;
		return error_set(err, -errno, "%u pages of cache: %m", b->n_pages);
	}
	fill_pool(b);
	b->ids = calloc(b->max_rows, sizeof(*b->ids));
	b->positions = calloc(b->max_rows, sizeof(*b->positions));
	b->pages = calloc(b->n_pages, sizeof(*b->pages));
	b->history = calloc(b->max_tokens, sizeof(*b->history));
	b->segments = calloc(b->max_rows, sizeof(*b->segments));
	b->sequences = calloc(b->max_rows, sizeof(*b->sequences));
	b->wants = calloc(b->max_rows, sizeof(*b->wants));
	b->results = calloc(b->max_rows, sizeof(*b->results));
	if (!b->ids || !b->positions || !b->pages || !b->history || !b->segments || !b->sequences ||
	    !b->wants || !b->results)
		return -ENOMEM;
	for (uint32_t i = 0; i < b->n_pages; i++)
		b->pages[i] = i;
	room = (struct engine_room){.pool = b->pool,
				    .n_pages = b->n_pages,
				    .n_slots = b->max_rows,
				    .max_rows = b->max_rows,
				    .max_tokens = b->max_tokens};
	return b->engine.attach(b->engine.ctx, &room, err);
}

static int show_progress(void *ctx, const char *stage, uint64_t done, uint64_t total)
{
	const struct bench *b = ctx;

	if (!b->o->json && isatty(STDERR_FILENO))
		fprintf(stderr, "\r%s, %.0f%%\033[K%s", stage,
			total ? 100.0 * (double)done / (double)total : 0,
			done < total ? "" : "\r\033[K");
	return 0;
}

static int make(struct bench *b, struct error *err)
{
	_cleanup_(image_builder_done) struct image_builder image = {};
	struct load_options options = {.weights = b->o->weights, .entry = b->o->entry};
	double t = now();
	int r;

	r = plan(b, &options.room_bytes, err);
	if (r < 0)
		return r;
	options.n_context = b->max_tokens;
	r = image_builder_init(&image);
	r = r ?: infer_new(&b->engine, &image, &b->files, &options, &b->cpu, show_progress, b, err);
	if (r < 0)
		return r;
	b->image = image.h;
	b->load_seconds = now() - t;
	return make_room(b, err);
}

/* ---------------------------------------------------------------- printing */

static double gauge_rate(double amount, double seconds)
{
	return amount / seconds * 1e-9;
}

static void put_number(struct json_object *o, const char *key, double x)
{
	json_object_object_add(o, key, json_object_new_double(x));
}

static void put_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

static double row_rate(const struct bench_row *r)
{
	return r->tokens / r->seconds;
}

static double row_cost(const struct bench *b, const struct bench_row *r)
{
	return b->o->price_per_hour / 3600 / row_rate(r) * 1e6;
}

static bool is_extrapolated(const struct bench *b)
{
	return infer_model(&b->engine)->n_built < infer_model(&b->engine)->cfg.n_layers;
}

static struct json_object *json_row(const struct bench *b, const struct bench_row *r)
{
	struct json_object *o = json_object_new_object();

	put_text(o, "name", r->name);
	put_number(o, "tokens_per_s", row_rate(r));
	put_number(o, "bytes_per_token", r->cost.bytes / r->tokens);
	put_number(o, "ops_per_token", (r->cost.ops_int8 + r->cost.ops_float) / r->tokens);
	put_number(o, "ops_int8_per_token", r->cost.ops_int8 / r->tokens);
	put_number(o, "experts_per_layer", r->cost.experts / r->steps);
	put_number(o, "limit_tokens_per_s", row_limit(r));
	put_number(o, "share_of_limit", row_rate(r) / row_limit(r));
	put_number(o, "ttft_ms", r->first_seconds * 1e3);
	put_number(o, "read_gbps", gauge_rate(r->gauge.bytes, r->gauge.bytes_s));
	put_number(o, "int8_gops", gauge_rate(r->gauge.int8, r->gauge.int8_s));
	put_number(o, "bf16_gflops", gauge_rate(r->gauge.flop, r->gauge.flop_s));
	json_object_object_add(o, "memory_bytes", json_object_new_uint64(r->memory_bytes));
	if (b->o->price_per_hour > 0)
		put_number(o, "price_per_million_tokens", row_cost(b, r));
	if (is_extrapolated(b))
		json_object_object_add(o, "extrapolated", json_object_new_boolean(true));
	return o;
}

static struct json_object *json_model(const struct bench *b)
{
	const struct model *m = infer_model(&b->engine);
	struct json_object *o = json_object_new_object();

	put_text(o, "shape", b->o->shape);
	put_text(o, "weights", bench_weights_name(b->o->weights));
	json_object_object_add(o, "params", json_object_new_uint64(b->image.n_params));
	json_object_object_add(o, "params_active",
			       json_object_new_uint64(b->image.n_params_active));
	json_object_object_add(o, "layers", json_object_new_int64(m->cfg.n_layers));
	json_object_object_add(o, "layers_built", json_object_new_int64(m->n_built));
	json_object_object_add(o, "weight_bytes", json_object_new_uint64(b->image.weight_bytes));
	json_object_object_add(o, "kv_bytes_per_token",
			       json_object_new_uint64(b->engine.limits.geometry.token_bytes));
	put_number(o, "load_seconds", b->load_seconds);
	return o;
}

static void print_json(const struct bench *b)
{
	const struct gauge *g = &b->machine;
	struct json_object *out = json_object_new_object(), *machine = json_object_new_object(),
			   *rows = json_object_new_array(), *quality = json_object_new_array();

	put_number(machine, "read_gbps", gauge_rate(g->bytes, g->bytes_s));
	put_number(machine, "int8_gops", gauge_rate(g->int8, g->int8_s));
	put_number(machine, "bf16_gflops", gauge_rate(g->flop, g->flop_s));
	if (b->engine.ctx) {
		const struct kernels *k = infer_model(&b->engine)->k;

		put_text(machine, "kernels", k->name);
		json_object_object_add(machine, "threads", json_object_new_int64(k->n_threads));
		put_text(out, "entry", page_entry_name(b->entry));
		json_object_object_add(out, "model", json_model(b));
	}
	for (uint32_t i = 0; i < b->n_rows; i++)
		json_object_array_add(rows, json_row(b, &b->rows[i]));
	for (uint32_t i = 0; b->o->quality && i < BENCH_QUALITY_MAX; i++) {
		const struct bench_quality *q = &b->quality[i];
		struct json_object *o = json_object_new_object();

		put_text(o, "weights", q->weights);
		put_text(o, "entry", q->entry);
		put_number(o, "kl", q->kl);
		put_number(o, "top1", q->top1);
		json_object_object_add(o, "tokens", json_object_new_int64(q->n_tokens));
		json_object_object_add(o, "weight_bytes", json_object_new_uint64(q->weight_bytes));
		json_object_array_add(quality, o);
	}
	json_object_object_add(out, "machine", machine);
	json_object_object_add(out, "rows", rows);
	if (b->o->quality)
		json_object_object_add(out, "quality", quality);
	else
		json_object_put(quality);
	printf("%s\n", json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN |
								   JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(out);
}

static void print_text(const struct bench *b)
{
	const struct gauge *g = &b->machine;

	printf("machine: reads %.1f GB/s, int8 %.0f GOP/s, bf16 %.0f GFLOP/s\n",
	       gauge_rate(g->bytes, g->bytes_s), gauge_rate(g->int8, g->int8_s),
	       gauge_rate(g->flop, g->flop_s));
	if (b->engine.ctx) {
		const struct model *m = infer_model(&b->engine);

		printf("model: %s, %s, cache in %s, on %s with %u threads; %.2f G parameters, "
		       "weights of %.2f GB made in %.1f s\n",
		       b->o->shape, bench_weights_name(b->o->weights), page_entry_name(b->entry),
		       m->k->name, m->k->n_threads, (double)b->image.n_params * 1e-9,
		       (double)b->image.weight_bytes * 1e-9, b->load_seconds);
		if (is_extrapolated(b))
			printf("extrapolated: %u of %u layers fit and were built; the others share "
			       "their weights\n",
			       m->n_built, m->cfg.n_layers);
		printf("%-18s %10s %10s %10s %10s %6s %10s %8s%s\n", "ROW", "TOKENS/S", "MB/TOKEN",
		       "GOP/TOKEN", "LIMIT", "SHARE", "TTFT MS", "MEMORY",
		       b->o->price_per_hour > 0 ? "   PRICE/MTOK" : "");
	}
	for (uint32_t i = 0; i < b->n_rows; i++) {
		const struct bench_row *r = &b->rows[i];

		printf("%-18s %10.2f %10.2f %10.3f %10.2f %5.0f%% %10.1f %6.2f G", r->name,
		       row_rate(r), r->cost.bytes / r->tokens * 1e-6,
		       (r->cost.ops_int8 + r->cost.ops_float) / r->tokens * 1e-9, row_limit(r),
		       100 * row_rate(r) / row_limit(r), r->first_seconds * 1e3,
		       (double)r->memory_bytes * 1e-9);
		if (b->o->price_per_hour > 0)
			printf(" %12.2f", row_cost(b, r));
		printf("\n");
	}
	for (uint32_t i = 0; b->o->quality && i < BENCH_QUALITY_MAX; i++) {
		const struct bench_quality *q = &b->quality[i];

		printf("%-4s weights, %s cache against f32: KL divergence %.6f nats, same top "
		       "token %.1f%%, %u tokens, weights of %.4g MB\n",
		       q->weights, q->entry, q->kl, 100 * q->top1, q->n_tokens,
		       (double)q->weight_bytes * 1e-6);
	}
}

int bench_run(const struct bench_options *o, struct error *err)
{
	_cleanup_(freep) struct bench *memory = calloc(1, sizeof(*memory));
	struct bench *b = memory;
	struct gauge unused = {};
	int r;

	if (!b)
		return -ENOMEM;
	b->o = o;
	b->float_type = K_BF16;
	b->cpu = (struct kernels_config){.n_threads = o->n_threads, .cpu_mask = o->cpu_mask};
	if (machine_read(&b->here, err) == 0)
		b->cpu.topology = &b->here.topology;
	r = bench_shape_open(&b->files, o->shape, err);
	r = r ?: limits_new(&b->limits, &b->cpu);
	if (r >= 0 && o->quality) {
		measure(b, &unused);
		r = bench_quality_run(b->quality, &b->files, &b->cpu, err);
	} else if (r >= 0) {
		r = make(b, err);
		r = r ?: bench_rows(b, err);
	}
	if (r >= 0)
		(o->json ? print_json : print_text)(b);
	if (r >= 0 && fflush(stdout) != 0)
		r = error_set(err, -errno, "writing: %m");
	bench_done(b);
	return r;
}
