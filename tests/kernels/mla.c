/* SPDX-License-Identifier: Apache-2.0 */
/* Attention through the table, with the instruction set named on the command line: both paths against the
 * formula in doubles and against each other, and the same bits whatever the chunk, batch or threads. */
#include <errno.h>

#include "common.h"

static uint32_t cpu_mask; /* of main()'s argument */

/* How many of the shapes: the scalar reference takes minutes over all of them. */
static uint32_t n_shapes(uint32_t n)
{
	return cpu_mask == 0 ? 1 : n;
}

#define N_POS   600u /* ten tiles, the last ragged; two spans of the absorbed path */
#define N_HEAD  560u /* what comes before the rows that are cut into chunks */
#define N_PAGES 24u
#define STREAM  1u
#define STREAMS 2u

struct shape {
	uint32_t heads, nope, rope, v, rank;
};
static const struct shape shapes[] = {{3, 12, 8, 20, 36},   {17, 5, 2, 3, 19}, {18, 4, 2, 3, 132},
				      {16, 16, 16, 16, 32}, {1, 1, 2, 1, 1},   {33, 8, 4, 8, 16}};

struct attention {
	struct shape s;
	struct k_mla m;
	struct matrix kv_b, w_uk, w_uv, norm;
	float *q, *kv; /* [N_POS] rows as the projections leave them */
	float *cos, *sin;
	enum k_type type;
	enum k_entry entry;
};

static uint32_t entry_bytes(enum k_entry entry, const struct shape *s)
{
	if (entry == K_ENTRY_INT8)
		return s->rank + (s->rank + 127) / 128 * 4 + 2 * s->rope;
	return (s->rank + s->rope) * (entry == K_ENTRY_BF16 ? 2 : 4);
}

static bool entry_exists(enum k_entry entry, const struct shape *s)
{
	return entry != K_ENTRY_INT8 || s->rank % 4 == 0;
}

static void attention_init(struct attention *a, const struct shape *s, enum k_type type,
			   enum k_entry entry)
{
	uint32_t half = s->rope / 2;

	*a = (struct attention){
		.s = *s,
		.kv_b = matrix_random(1, 1, s->heads * (s->nope + s->v), s->rank),
		.w_uk = matrix_random(1, s->heads, s->rank, s->nope),
		.w_uv = matrix_random(1, s->heads, s->v, s->rank),
		.norm = matrix_random(2, 1, 1, s->rank),
		.q = random_array(3, (size_t)N_POS * s->heads * (s->nope + s->rope), 2.0f),
		.kv = random_array(4, (size_t)N_POS * (s->rank + s->rope), 2.0f),
		.cos = malloc(N_POS * half * sizeof(float)),
		.sin = malloc(N_POS * half * sizeof(float)),
		.type = type,
		.entry = entry,
	};
	for (uint32_t i = 0; i < s->rank; i++)
		a->norm.v[i] += 1.0f;
	for (uint32_t i = 0; i < N_POS * half; i++) {
		a->cos[i] = cosf((float)(i / half) / (float)(i % half + 1));
		a->sin[i] = sinf((float)(i / half) / (float)(i % half + 1));
	}
	for (uint32_t h = 0; h < s->heads; h++) {
		const float *rows = a->kv_b.v + (size_t)h * (s->nope + s->v) * s->rank;

		for (uint32_t r = 0; r < s->rank; r++)
			for (uint32_t i = 0; i < s->nope; i++)
				a->w_uk.v[((size_t)h * s->rank + r) * s->nope + i] =
					rows[i * s->rank + r];
		memcpy(a->w_uv.v + (size_t)h * s->v * s->rank, rows + s->nope * s->rank,
		       (size_t)s->v * s->rank * sizeof(float));
	}
	a->m = (struct k_mla){s->heads, s->nope, s->rope, s->v,   s->rank,
			      0.9f,     1e-6f,   N_POS,   a->cos, a->sin};
}

static void attention_done(struct attention *a)
{
	free(a->kv_b.v);
	free(a->w_uk.v);
	free(a->w_uv.v);
	free(a->norm.v);
	free(a->q);
	free(a->kv);
	free(a->cos);
	free(a->sin);
}

/* A device with this attention's weights and a pool of its own. */
struct device {
	const struct attention *a;
	struct kernels *k;
	struct k_weight *kv_b, *w_uk, *w_uv, *norm;
	struct k_buffer *q, *kv, *out;
	struct k_pool pool;
	uint64_t offsets[STREAMS];
	uint32_t ids[N_POS], positions[N_POS];
};

static void device_init(struct device *d, struct attention *a, uint32_t mask, uint32_t threads)
{
	const struct shape *s = &a->s;
	uint32_t row_bytes = entry_bytes(a->entry, s);

	*d = (struct device){.a = a, .k = kernels_for(mask, threads)};
	d->kv_b = matrix_pack(d->k, &a->kv_b, a->type);
	d->w_uk = matrix_pack(d->k, &a->w_uk, a->type);
	d->w_uv = matrix_pack(d->k, &a->w_uv, a->type);
	d->norm = matrix_pack(d->k, &a->norm, K_F32);
	d->q = buffer_of(d->k, NULL, N_POS, s->heads * (s->nope + s->rope));
	d->kv = buffer_of(d->k, NULL, N_POS, s->rank + s->rope);
	d->out = buffer_of(d->k, NULL, N_POS, s->heads * s->v);
	d->offsets[1] = (uint64_t)K_TILE_POSITIONS * row_bytes;
	d->pool = (struct k_pool){
		.stride = STREAMS * (uint64_t)K_TILE_POSITIONS * row_bytes + 64,
		.n_pages = N_PAGES,
		.stream_offset = d->offsets,
		.n_streams = STREAMS,
		.row_bytes = row_bytes,
		.entry = a->entry,
	};
	d->pool.data = malloc(N_PAGES * d->pool.stride);
	memset(d->pool.data, 0xff, N_PAGES * d->pool.stride); /* NaN wherever nothing was written */
}

static void device_done(struct device *d)
{
	d->k->weight_free(d->k, d->kv_b);
	d->k->weight_free(d->k, d->w_uk);
	d->k->weight_free(d->k, d->w_uv);
	d->k->weight_free(d->k, d->norm);
	d->k->buffer_free(d->k, d->q);
	d->k->buffer_free(d->k, d->kv);
	d->k->buffer_free(d->k, d->out);
	d->k->free(d->k);
	free(d->pool.data);
}

/* One step: segments of the one sequence or of copies of it in other pages. @out is [rows][heads * v]. */
static void device_step(struct device *d, struct k_segment *segments, uint32_t n, float *out)
{
	const struct shape *s = &d->a->s;
	uint32_t rows = 0, q_width = s->heads * (s->nope + s->rope), kv_width = s->rank + s->rope;
	struct k_step step = {0, n, d->ids, d->positions, segments};

	for (uint32_t i = 0; i < n; i++) {
		segments[i].first_row = rows;
		d->k->upload(d->k, d->q, rows, d->a->q + (size_t)segments[i].first_pos * q_width,
			     segments[i].n_rows);
		d->k->upload(d->k, d->kv, rows, d->a->kv + (size_t)segments[i].first_pos * kv_width,
			     segments[i].n_rows);
		for (uint32_t r = 0; r < segments[i].n_rows; r++)
			d->positions[rows++] = segments[i].first_pos + r;
	}
	step.n_rows = rows;
	assert_int_equal(d->k->step_begin(d->k, &step, &d->pool), 0);
	d->k->mla_append(d->k, d->q, d->kv, d->norm, &d->a->m, STREAM);
	d->k->mla_prefill(d->k, d->out, d->q, d->kv_b, &d->a->m, STREAM);
	d->k->mla_decode(d->k, d->out, d->q, d->w_uk, d->w_uv, &d->a->m, STREAM);
	assert_int_equal(d->k->step_end(d->k), 0);
	d->k->download(d->k, out, d->out, 0, rows);
}

static const uint32_t pages_a[] = {3, 9, 1, 20, 14, 5, 22, 0, 17, 11, 8};
static const uint32_t pages_b[] = {2, 4, 6, 7, 10, 12, 13, 15, 16, 18, 19};

static size_t out_floats(const struct attention *a)
{
	return (size_t)a->s.heads * a->s.v;
}

static void run_chunks(struct device *d, bool generated, uint32_t first, uint32_t chunk,
		       const uint32_t *pages, float *out)
{
	for (uint32_t pos = first; pos < N_POS; pos += chunk) {
		struct k_segment seg = {0, N_POS - pos < chunk ? N_POS - pos : chunk, pos,
					generated, pages};

		device_step(d, &seg, 1, out + pos * out_floats(d->a));
	}
}

/* --- the formula --------------------------------------------------------------------------------- */

static double to_bf16(double x)
{
	return bf16_to_f32(bf16_from_f32((float)x));
}

/* The row as its entry has it. */
static void entry_round(const struct attention *a, double *row)
{
	const uint32_t rank = a->s.rank;

	if (a->entry == K_ENTRY_F32)
		return;
	for (uint32_t i = a->entry == K_ENTRY_INT8 ? rank : 0; i < rank + a->s.rope; i++)
		row[i] = to_bf16(row[i]);
	for (uint32_t g = 0; a->entry == K_ENTRY_INT8 && g < rank; g += 128) {
		uint32_t end = rank - g < 128 ? rank : g + 128;
		double max = 0;

		for (uint32_t i = g; i < end; i++)
			max = fmax(max, fabs(row[i]));
		for (uint32_t i = g; i < end; i++)
			row[i] = to_bf16(nearbyint(row[i] * 127 / max) * max / 127);
	}
}

static void rotate_doubles(const struct attention *a, double *x, uint32_t pos)
{
	for (uint32_t i = 0; i < a->s.rope / 2; i++) {
		double c = a->cos[pos * (a->s.rope / 2) + i], s = a->sin[pos * (a->s.rope / 2) + i];
		double p = x[2 * i], q = x[2 * i + 1];

		x[2 * i] = p * c - q * s;
		x[2 * i + 1] = p * s + q * c;
	}
}

/* [N_POS][rank + rope] */
static double *cache_doubles(const struct attention *a)
{
	uint32_t width = a->s.rank + a->s.rope;
	double *cache = malloc((size_t)N_POS * width * sizeof(*cache));

	for (uint32_t p = 0; p < N_POS; p++) {
		double *row = cache + (size_t)p * width, sum = 0;

		for (uint32_t i = 0; i < width; i++)
			row[i] = a->kv[(size_t)p * width + i];
		for (uint32_t i = 0; i < a->s.rank; i++)
			sum += row[i] * row[i];
		for (uint32_t i = 0; i < a->s.rank; i++)
			row[i] *= a->norm.v[i] / sqrt(sum / a->s.rank + 1e-6);
		rotate_doubles(a, row + a->s.rank, p);
		entry_round(a, row);
	}
	return cache;
}

/* out[v] of one head at one position. */
static void attend_doubles(const struct attention *a, const double *cache, uint32_t pos, uint32_t h,
			   double *out)
{
	const struct shape *s = &a->s;
	uint32_t width = s->rank + s->rope, per_head = s->nope + s->v;
	const float *q0 = a->q + ((size_t)pos * s->heads + h) * (s->nope + s->rope);
	static double w[N_POS];
	double q[64], key, max = -1e300, sum = 0;

	for (uint32_t i = 0; i < s->nope + s->rope; i++)
		q[i] = q0[i];
	rotate_doubles(a, q + s->nope, pos);
	for (uint32_t p = 0; p <= pos; p++) {
		w[p] = 0;
		for (uint32_t i = 0; i < s->nope; i++) {
			key = 0;
			for (uint32_t r = 0; r < s->rank; r++)
				key += matrix_at(&a->kv_b, a->type, 0, h * per_head + i, r) *
				       cache[(size_t)p * width + r];
			w[p] += q[i] * key;
		}
		for (uint32_t i = 0; i < s->rope; i++)
			w[p] += q[s->nope + i] * cache[(size_t)p * width + s->rank + i];
		w[p] *= a->m.scale;
		max = fmax(max, w[p]);
	}
	for (uint32_t p = 0; p <= pos; p++)
		sum += w[p] = exp(w[p] - max);
	for (uint32_t i = 0; i < s->v; i++) {
		out[i] = 0;
		for (uint32_t r = 0; r < s->rank; r++) {
			double latent = 0;

			for (uint32_t p = 0; p <= pos; p++)
				latent += w[p] / sum * cache[(size_t)p * width + r];
			out[i] += matrix_at(&a->kv_b, a->type, 0, h * per_head + s->nope + i, r) *
				  latent;
		}
	}
}

/* --- what must hold ------------------------------------------------------------------------------ */

/* 1e-4: scores of size 10 carry some 1e-6 each, and their exponentials the same, relative. Weights in bf16
 * are rounded alike on both sides. Over bf16 entries the absorbed path rounds queries and weights to bf16
 * too: 2^-9 of a score of 10 is 2% of a weight; over entries in 8 bits to 8 bits, by 2^-8 of the largest. And an
 * entry next to a rounding edge may fall to the other side on both paths, by a 127th of the largest in 8
 * bits. */
static const double nearness[] = {
	[K_ENTRY_F32] = 1e-4, [K_ENTRY_BF16] = 0.05, [K_ENTRY_INT8] = 0.05};

static void mla_paths_are_near_doubles(void **state)
{
	static const uint32_t positions[] = {0, 1, 2, 4, 62, 63, 64, 127, 128, 511, 512, 599};

	(void)state;
	for (uint32_t i = 0; i < n_shapes(N_ELEMENTS(shapes)); i++)
		for (uint32_t path = 0; path < 6; path++) {
			struct attention a;
			struct device d;
			float *out;
			double *cache;

			if (!entry_exists(path / 2, &shapes[i]))
				continue;
			attention_init(&a, &shapes[i], i % 2 ? K_BF16 : K_F32, path / 2);
			device_init(&d, &a, cpu_mask, 2);
			out = malloc(N_POS * out_floats(&a) * sizeof(*out));
			cache = cache_doubles(&a);
			run_chunks(&d, path % 2, 0, N_POS, pages_a, out);
			for (uint32_t p = 0; p < N_ELEMENTS(positions); p++)
				for (uint32_t h = 0; h < a.s.heads; h += 4) {
					double want[64];

					attend_doubles(&a, cache, positions[p], h, want);
					for (uint32_t v = 0; v < a.s.v; v++)
						assert_true(fabs(out[positions[p] * out_floats(&a) +
								     h * a.s.v + v] -
								 want[v]) < nearness[a.entry]);
				}
			device_done(&d);
			attention_done(&a);
			free(out);
			free(cache);
		}
}

/* Same weights, same cache: relative to the largest output of the row, where a row has several. */
static void mla_naive_equals_absorbed_within_1e_5(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < n_shapes(N_ELEMENTS(shapes)); i++) {
		struct attention a;
		struct device d;
		float *naive, *absorbed;

		if (shapes[i].heads * shapes[i].v < 8)
			continue;
		attention_init(&a, &shapes[i], K_F32, K_ENTRY_F32);
		device_init(&d, &a, cpu_mask, 1);
		naive = malloc(N_POS * out_floats(&a) * sizeof(*naive));
		absorbed = malloc(N_POS * out_floats(&a) * sizeof(*absorbed));
		run_chunks(&d, false, 0, 100, pages_a, naive);
		run_chunks(&d, true, 0, 100, pages_b, absorbed);
		for (uint32_t p = 0; p < N_POS; p++) {
			double size = 0, apart = 0;

			for (uint32_t j = 0; j < out_floats(&a); j++) {
				float x = naive[p * out_floats(&a) + j];

				size = fmax(size, fabs(x));
				apart = fmax(apart, fabs(x - absorbed[p * out_floats(&a) + j]));
			}
			assert_true(apart <= 1e-5 * size);
		}
		device_done(&d);
		attention_done(&a);
		free(naive);
		free(absorbed);
	}
}

static void mla_bits_do_not_depend_on_chunk_threads_or_instructions(void **state)
{
	static const uint32_t chunks[] = {100, 64, 37, 1};

	(void)state;
	for (uint32_t i = 0; i < n_shapes(3); i++)
		for (uint32_t kind = 0; kind < 4; kind++) {
			const enum k_entry entry = kind < 2 ? K_ENTRY_BF16 : K_ENTRY_INT8;
			const bool path = kind % 2;
			struct attention a;
			struct device ref, d;
			float *want, *got;
			size_t bytes;

			if (!entry_exists(entry, &shapes[i]))
				continue;
			attention_init(&a, &shapes[i], K_BF16, entry);
			bytes = N_POS * out_floats(&a) * sizeof(*want);
			want = malloc(bytes);
			got = malloc(bytes);
			device_init(&ref, &a, 0, 1);
			run_chunks(&ref, path, 0, N_POS, pages_a, want);
			for (uint32_t t = 1; t <= 3; t++) {
				device_init(&d, &a, cpu_mask, t);
				run_chunks(&d, path, 0, t == 1 ? N_POS : chunks[t - 1], pages_b,
					   got);
				assert_memory_equal(got, want, bytes);
				device_done(&d);
			}
			device_init(&d, &a, cpu_mask, 1);
			for (uint32_t c = 0; c < N_ELEMENTS(chunks); c++) {
				size_t from = (chunks[c] == 1 ? N_HEAD : 0) * out_floats(&a);

				run_chunks(&d, path, chunks[c] == 1 ? N_HEAD : 0, chunks[c],
					   pages_b, got);
				assert_memory_equal(got + from, want + from,
						    bytes - from * sizeof(*got));
			}
			device_done(&d);
			device_done(&ref);
			attention_done(&a);
			free(want);
			free(got);
		}
}

/* The same row beside prompt and generated rows of other sequences. */
static void mla_bits_do_not_depend_on_the_batch(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < 2 * n_shapes(3); kind++) {
		const enum k_entry entry = kind % 2 ? K_ENTRY_INT8 : K_ENTRY_BF16;
		const uint32_t i = kind / 2;
		static const uint32_t other[] = {23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23};
		struct attention a;
		struct device d;
		float *prompt, *generated, *got;
		size_t row;

		if (!entry_exists(entry, &shapes[i]))
			continue;
		attention_init(&a, &shapes[i], K_BF16, entry);
		row = out_floats(&a);
		prompt = malloc(N_POS * row * sizeof(*prompt));
		generated = malloc(N_POS * row * sizeof(*generated));
		got = malloc(N_POS * row * sizeof(*got));
		device_init(&d, &a, cpu_mask, 2);
		run_chunks(&d, false, 0, N_POS, pages_a, prompt);
		run_chunks(&d, true, 0, N_POS, pages_b, generated); /* the same entries */
		for (uint32_t n = 1; n <= 17; n += 2) {
			struct k_segment segments[] = {
				{0, n, 0, n % 4 == 1, other},
				{0, 1, 590, true, pages_a},
				{0, 5, 123, false, pages_b},
				{0, 1, 0, true, other + 1},
			};

			segments[3].first_pos = n; /* behind the first segment's rows, same page */
			device_step(&d, segments, 4, got);
			assert_memory_equal(got + n * row, generated + 590 * row,
					    row * sizeof(*got));
			assert_memory_equal(got + (n + 1) * row, prompt + 123 * row,
					    5 * row * sizeof(*got));
			assert_memory_equal(got + (n + 6) * row, generated + n * row,
					    row * sizeof(*got));
		}
		device_done(&d);
		attention_done(&a);
		free(prompt);
		free(generated);
		free(got);
	}
}

static void mla_append_writes_its_rows_and_nothing_else(void **state)
{
	(void)state;
	for (uint32_t e = 0; e < 2; e++) {
		struct attention a;
		struct device d;
		double *cache;
		float *out;

		attention_init(&a, &shapes[0], K_F32, e ? K_ENTRY_BF16 : K_ENTRY_F32);
		device_init(&d, &a, cpu_mask, 1);
		out = malloc(N_POS * out_floats(&a) * sizeof(*out));
		a.entry =
			K_ENTRY_F32; /* no rounding in the formula: compared within the format's half ulp */
		cache = cache_doubles(&a);
		struct k_segment seg = {0, 70, 0, false, pages_a};

		device_step(&d, &seg, 1, out);
		for (uint64_t at = 0; at < N_PAGES * d.pool.stride; at += e ? 2 : 4) {
			uint64_t page = at / d.pool.stride, in = at % d.pool.stride, row;
			uint32_t pos, col, bits = 0;
			float got;

			memcpy(&bits, d.pool.data + at, e ? 2 : 4);
			row = (in - d.offsets[STREAM]) / d.pool.row_bytes;
			pos = (uint32_t)row + (page == pages_a[1] ? 64 : 0);
			if ((page != pages_a[0] && page != pages_a[1]) || in < d.offsets[STREAM] ||
			    row >= K_TILE_POSITIONS || pos >= 70) {
				assert_int_equal(bits, e ? 0xffff : 0xffffffff);
				continue;
			}
			col = (uint32_t)((in - d.offsets[STREAM]) % d.pool.row_bytes) / (e ? 2 : 4);
			bits <<= e ? 16 : 0;
			memcpy(&got, &bits, sizeof(got));
			double want = cache[pos * (a.s.rank + a.s.rope) + col];

			assert_true(fabs(got - want) <= fabs(want) * (e ? 0x1.01p-8 : 1e-6) + 1e-6);
		}
		device_done(&d);
		attention_done(&a);
		free(out);
		free(cache);
	}
}

/* Two groups and a bit; zeros and numbers too small to keep; a number that is none spoils its group alone. */
static void mla_append_keeps_latents_in_8_bits(void **state)
{
	static const struct shape s = {1, 4, 6, 4, 300};
	struct attention a;
	struct device d;
	double *cache;
	float out[70 * 4];
	struct k_segment seg = {0, 70, 0, false, pages_a};

	(void)state;
	attention_init(&a, &s, K_F32, K_ENTRY_INT8);
	memset(a.kv + 3 * 306, 0, 306 * sizeof(*a.kv));
	for (uint32_t i = 0; i < 128; i++)
		a.norm.v[128 + i] = 1e-20f;
	a.kv[7 * 306 + 299] = NAN;
	device_init(&d, &a, cpu_mask, 1);
	d.a = &a;
	a.entry = K_ENTRY_F32; /* the formula's numbers, unrounded */
	cache = cache_doubles(&a);
	device_step(&d, &seg, 1, out);
	for (uint64_t p = 0; p < N_PAGES * 64u; p++) {
		const uint8_t *row = d.pool.data + p / 64 * d.pool.stride + d.offsets[STREAM] +
				     p % 64 * d.pool.row_bytes;
		uint32_t pos = (uint32_t)(p % 64 + (p / 64 == pages_a[1] ? 64 : 0));
		float scales[3];
		uint16_t rope[6];

		if ((p / 64 != pages_a[0] && p / 64 != pages_a[1]) || pos >= 70) {
			for (uint32_t i = 0; i < d.pool.row_bytes; i++)
				assert_int_equal(row[i], 0xff);
			continue;
		}
		memcpy(scales, row + 300, sizeof(scales));
		memcpy(rope, row + 312, sizeof(rope));
		for (uint32_t i = 0; i < 300; i++) {
			double want = cache[pos * 306 + i], step = scales[i / 128];

			if (pos == 7) /* the norm spreads it over the row */
				assert_true(isnan(step));
			else if (i / 128 == 1 || pos == 3)
				assert_true((int8_t)row[i] == 0 && step == 0);
			else
				assert_true(step > 0 &&
					    fabs((int8_t)row[i] * step - want) <= step * 0.501);
		}
		for (uint32_t i = 0; i < 6 && pos != 7; i++)
			assert_true(fabs(bf16_to_f32(rope[i]) - cache[pos * 306 + 300 + i]) <=
				    0x1.01p-8 * fabs(cache[pos * 306 + 300 + i]) + 1e-6);
	}
	device_done(&d);
	attention_done(&a);
	free(cache);
}

static void mla_reports_a_pool_of_another_shape_at_step_end(void **state)
{
	struct attention a;
	struct device d;
	struct k_segment seg = {0, 1, 0, false, pages_a};
	const struct k_step step = {1, 1, d.ids, d.positions, &seg};

	(void)state;
	attention_init(&a, &shapes[0], K_F32, K_ENTRY_F32);
	device_init(&d, &a, cpu_mask, 1);
	for (uint32_t i = 0; i < 3; i++) {
		struct k_pool pool = d.pool;
		struct k_mla m = a.m;

		pool.row_bytes -= i == 0 ? 4 : 0;
		m.n_positions = i == 1 ? 0 : m.n_positions;
		assert_int_equal(d.k->step_begin(d.k, &step, &pool), 0);
		d.k->mla_append(d.k, d.q, d.kv, d.norm, &m, i == 2 ? STREAMS : STREAM);
		assert_int_equal(d.k->step_end(d.k), -EINVAL);
	}
	device_done(&d);
	attention_done(&a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mla_paths_are_near_doubles),
		cmocka_unit_test(mla_naive_equals_absorbed_within_1e_5),
		cmocka_unit_test(mla_bits_do_not_depend_on_chunk_threads_or_instructions),
		cmocka_unit_test(mla_bits_do_not_depend_on_the_batch),
		cmocka_unit_test(mla_append_writes_its_rows_and_nothing_else),
		cmocka_unit_test(mla_append_keeps_latents_in_8_bits),
		cmocka_unit_test(mla_reports_a_pool_of_another_shape_at_step_end),
	};
	const struct variant *v = variant_named(argc > 1 ? argv[1] : "scalar");

	if (!v)
		return EXIT_SKIPPED;
	cpu_mask = v->needs;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
