/* SPDX-License-Identifier: Apache-2.0 */
/* Generated rows: attention over the latents themselves, W_UK and W_UV absorbed.
 * Source: DeepSeek-V3 inference/model.py, MLA.forward, "absorb".
 *
 *   latent queries  ql[h] = q_nope[h] W_UK[h]
 *   units           (row, up to 16 heads, span of positions): scores, online softmax, latents added
 *   merge           spans of a (row, heads) in ascending order, so nothing depends on threads
 *   values          out[h] = W_UV[h] ol[h]
 *
 * Spans start at multiples of SPAN_TILES tiles whatever the context. Units run in waves, so that the
 * partial sums of a long context stay small. */
#include "mla.h"

#define DECODE_ROWS 64u       /* rows at a time: bounds the latent queries */
#define GROUP       MLA_HEADS /* heads of a unit */
#define SPAN_TILES  8u
#define SCORE_RUN   256u /* of K: the queries of a run stay in L1 */
#define WAVE_MIN    64u  /* units */
#define LOAD_PAST   16u  /* columns that a product may read past its last */

struct decode_row {
	uint32_t row, n_pos, n_spans; /* row of the step; positions it sees */
	uint32_t first_unit;
	const uint32_t *pages;
};

struct decode_job {
	struct cpu *c;
	struct k_buffer *out;
	const struct k_buffer *q;
	const struct k_weight *w_uk, *w_uv;
	const struct k_mla *m;
	uint32_t stream, n_rows, n_groups;
	uint32_t n_units, wave, n_wave; /* first unit and number of units of this wave */
	size_t tile_stride, copy_step, acc_stride;
	struct decode_row rows[DECODE_ROWS];
	const float **x; /* [n_heads][n_rows] row pointers of the two head products */
	float **y;
	float *ql;        /* [n_rows][n_heads][rank], then the merged latents */
	float *max, *sum; /* [n_rows][n_groups][GROUP], merged */
	float *part;      /* [n_wave][GROUP][acc_stride], then [n_wave][2][GROUP] max and sum */
	float *part_max;
	float *threads;
	size_t thread_floats;
};

struct unit {
	const struct decode_row *row;
	uint32_t i; /* of the row in rows[] */
	uint32_t group, span;
};

static struct unit unit_of(const struct decode_job *j, uint32_t u)
{
	uint32_t i = 0;

	while (i + 1 < j->n_rows && j->rows[i + 1].first_unit <= u)
		i++;
	u -= j->rows[i].first_unit;
	return (struct unit){&j->rows[i], i, u / j->rows[i].n_spans, u % j->rows[i].n_spans};
}

static uint32_t group_heads(const struct decode_job *j, uint32_t group)
{
	uint32_t left = j->m->n_heads - group * GROUP;

	return left < GROUP ? left : GROUP;
}

static float *latents(const struct decode_job *j, uint32_t i, uint32_t head)
{
	return j->ql + ((size_t)i * j->m->n_heads + head) * j->m->rank;
}

/* y[h] = x[h] W[h]^T for all rows: units of (head, panel). */
struct heads_job {
	struct decode_job *j;
	const struct k_weight *w;
	struct operand x; /* [n_heads * n_rows] */
};

static void heads_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct heads_job *hj = ctx;
	const struct decode_job *j = hj->j;
	uint32_t n_panels = weight_n_panels(hj->w), begin, end;

	(void)thread;
	(void)n_threads;
	while (threads_take(j->c->threads, j->m->n_heads * n_panels, PANELS_MIN, &begin, &end))
		for (uint32_t u = begin; u < end; u++) {
			uint32_t h = u / n_panels, p = u % n_panels;

			cpu_product(&j->c->isa, j->y + h * j->n_rows,
				    operand_from(hj->x, h * j->n_rows), j->n_rows, hj->w, h, p,
				    p + 1);
		}
}

static void heads_product(struct decode_job *j, const struct k_weight *w)
{
	struct heads_job hj = {.j = j, .w = w};

	if (cpu_operand(j->c, &hj.x, j->x, j->m->n_heads * j->n_rows, w))
		threads_run(j->c->threads, weight_work(w, j->n_rows) * j->m->n_heads, heads_part,
			    &hj);
}

static const float *latent_query(const struct decode_job *j, const struct unit *u, uint32_t h)
{
	return latents(j, u->i, u->group * GROUP + h);
}

static const float *rope_query(const struct decode_job *j, const struct unit *u, uint32_t h)
{
	const struct k_mla *m = j->m;

	return buffer_row(j->q, u->row->row) +
	       (size_t)(u->group * GROUP + h) * (m->nope + m->rope) + m->nope;
}

/* What a unit has beside its sums. */
struct attend {
	float *s, *max, *sum, *acc; /* acc [GROUP][acc_stride] */
	float correction[GROUP];
	uint32_t n_heads;
	void *scratch; /* of the entry's form */
};

static void attend_softmax(const struct decode_job *j, struct attend *a, uint32_t n, bool bf16)
{
	uint32_t n_valid[GROUP];
	struct softmax_tile st = {
		a->s, n, GROUP, n_valid, j->m->scale, a->max, a->sum, a->correction, bf16,
	};

	for (uint32_t h = 0; h < GROUP; h++)
		n_valid[h] = n;
	j->c->isa.softmax_tile(&st);
}

/* queries[d][GROUP]: latent then rope, heads that do not exist are 0. */
static void pack_f32(const struct decode_job *j, const struct unit *u, float *queries)
{
	const struct k_mla *m = j->m;
	uint32_t n = group_heads(j, u->group);

	if (n < GROUP)
		memset(queries, 0, (size_t)(m->rank + m->rope) * GROUP * sizeof(*queries));
	for (uint32_t h = 0; h < n; h++) {
		const float *ql = latent_query(j, u, h), *rope = rope_query(j, u, h);

		for (uint32_t i = 0; i < m->rank; i++)
			queries[(size_t)i * GROUP + h] = ql[i];
		for (uint32_t i = 0; i < m->rope; i++)
			queries[(size_t)(m->rank + i) * GROUP + h] = rope[i];
	}
}

/* Positions [begin, end) over f32 rows: those of the pool, or copies where the columns' last load would go past a
 * row. */
static void attend_f32(const struct decode_job *j, const struct unit *u, struct attend *a,
		       uint32_t begin, uint32_t end)
{
	const struct k_mla *m = j->m;
	uint32_t width = m->rank + m->rope;
	float *tile = a->scratch, *queries = tile + K_TILE_POSITIONS * j->tile_stride;
	const float *tile_rows[K_TILE_POSITIONS], *weights[GROUP];
	float *score_rows[K_TILE_POSITIONS], *acc_rows[GROUP];

	for (uint32_t i = 0; i < K_TILE_POSITIONS; i++)
		score_rows[i] = a->s + i * GROUP;
	for (uint32_t h = 0; h < GROUP; h++) {
		weights[h] = a->s + h;
		acc_rows[h] = a->acc + h * j->acc_stride;
	}
	pack_f32(j, u, queries);
	for (uint32_t pos = begin; pos < end; pos += K_TILE_POSITIONS) {
		uint32_t n = end - pos < K_TILE_POSITIONS ? end - pos : K_TILE_POSITIONS;
		const float *rows =
			(const float *)mla_pool_row(&j->c->pool, u->row->pages, pos, j->stream);
		size_t step = width;
		struct tile qk = {
			.x = tile_rows,
			.y = score_rows,
			.x_step = 1,
			.w_step = GROUP,
			.n_rows = n,
			.n_cols = GROUP,
		};
		struct tile pv = {
			.x = weights,
			.y = acc_rows,
			.x_step = GROUP,
			.n_rows = a->n_heads,
			.n_cols = m->rank,
			.n_k = n,
			.accumulate = true,
		};

		if (m->rope < LOAD_PAST) {
			mla_load_tile(j->c, m, u->row->pages, j->stream, pos, n, tile,
				      j->tile_stride);
			rows = tile;
			step = j->tile_stride;
		}
		for (uint32_t i = 0; i < n; i++)
			tile_rows[i] = rows + i * step;
		pv.w = rows;
		pv.w_step = step;
		for (uint32_t k = 0; k < width; k += SCORE_RUN) {
			qk.n_k = width - k < SCORE_RUN ? width - k : SCORE_RUN;
			qk.x_first = k;
			qk.w = queries + (size_t)k * GROUP;
			qk.accumulate = k > 0;
			j->c->isa.tile_f32(&qk);
		}
		attend_softmax(j, a, n, false);
		for (uint32_t h = 0; h < a->n_heads; h++)
			if (a->correction[h] != 1.0f)
				j->c->isa.scale(acc_rows[h], a->correction[h], m->rank);
		j->c->isa.tile_f32(&pv);
	}
}

/* queries[pair][GROUP] of bf16 numbers. */
static void pack_bf16(const struct decode_job *j, const struct unit *u, uint32_t *queries)
{
	const struct k_mla *m = j->m;
	uint32_t n = group_heads(j, u->group), width = m->rank + m->rope;

	memset(queries, 0, (size_t)(width + 1) / 2 * GROUP * sizeof(*queries));
	for (uint32_t h = 0; h < n; h++) {
		const float *ql = latent_query(j, u, h), *rope = rope_query(j, u, h);

		for (uint32_t i = 0; i < width; i++) {
			uint32_t x = mla_bf16(i < m->rank ? ql[i] : rope[i - m->rank]);

			queries[(size_t)i / 2 * GROUP + h] |= x << (i % 2 * 16);
		}
	}
}

/* The tile at @pos, and what will be read after it. */
static const uint8_t *tile_rows(const struct decode_job *j, const struct unit *u, uint32_t pos,
				const void **ret_next)
{
	const uint8_t *row = mla_pool_row(&j->c->pool, u->row->pages, pos, j->stream);
	uint32_t next = pos + K_TILE_POSITIONS;

	*ret_next = next < u->row->n_pos ? mla_pool_row(&j->c->pool, u->row->pages, next, j->stream)
					 : row;
	return row;
}

/* The tile where it lies; or a copy, where positions or numbers are odd or the rows short with zeros after
 * them. */
static void place_tile(const struct decode_job *j, const struct unit *u, uint32_t pos, uint32_t n,
		       uint16_t *copy, struct mla_tile *t)
{
	uint32_t width = j->m->rank + j->m->rope;
	const uint8_t *row = tile_rows(j, u, pos, &t->next);

	t->n_pos = (n + 1) / 2 * 2;
	t->rows = (const uint16_t *)row;
	t->row_step = width;
	if (n % 2 == 0 && width % 2 == 0 && t->n_cols <= width)
		return;
	t->rows = copy;
	t->row_step = j->copy_step;
	for (uint32_t i = 0; i < t->n_pos; i++, copy += j->copy_step, row += j->c->pool.row_bytes) {
		uint32_t kept = i < n ? width : 0;

		memcpy(copy, row, kept * sizeof(*copy));
		memset(copy + kept, 0, (j->copy_step - kept) * sizeof(*copy));
	}
}

static void attend_bf16(const struct decode_job *j, const struct unit *u, struct attend *a,
			uint32_t begin, uint32_t end)
{
	uint32_t n_pairs = (j->m->rank + j->m->rope + 1) / 2;
	uint32_t *queries = a->scratch;
	uint16_t *copy = (uint16_t *)(queries + (size_t)n_pairs * GROUP);
	struct mla_tile t = {
		.n_pairs = n_pairs,
		.n_cols = (j->m->rank + MLA_COLUMNS - 1) / MLA_COLUMNS * MLA_COLUMNS,
		.n_heads = a->n_heads,
		.q = queries,
		.s = a->s,
		.correction = a->correction,
		.acc = a->acc,
		.acc_step = j->acc_stride,
	};

	pack_bf16(j, u, queries);
	for (uint32_t pos = begin; pos < end; pos += K_TILE_POSITIONS) {
		uint32_t n = end - pos < K_TILE_POSITIONS ? end - pos : K_TILE_POSITIONS;

		place_tile(j, u, pos, n, copy, &t);
		memset(a->s, 0, t.n_pos * GROUP * sizeof(*a->s));
		j->c->isa.mla_scores_bf16(&t);
		attend_softmax(j, a, n, true);
		if (n < t.n_pos)
			memset(a->s + n * GROUP, 0, GROUP * sizeof(*a->s));
		j->c->isa.mla_values_bf16(&t);
	}
}

/* Latent queries in 8 bits, x [GROUP][group], with their scales q_d [group][GROUP]; rope [pair][GROUP] of
 * bf16 numbers. */
static void pack_int8(const struct decode_job *j, const struct unit *u, struct q_row *x, float *q_d,
		      uint32_t *rope)
{
	const struct k_mla *m = j->m;
	uint32_t n = group_heads(j, u->group), n_groups = cpu_entry_groups(m->rank);

	memset(x, 0, (size_t)GROUP * n_groups * sizeof(*x));
	memset(rope, 0, (size_t)m->rope / 2 * GROUP * sizeof(*rope));
	for (uint32_t h = 0; h < n; h++) {
		const float *ql = latent_query(j, u, h), *qr = rope_query(j, u, h);

		for (uint32_t g = 0; g < n_groups; g++) {
			uint32_t first = g * K_ENTRY_GROUP;

			mla_quantise(j->c, &x[h * n_groups + g], ql + first,
				     cpu_entry_group(m->rank, first));
		}
		for (uint32_t i = 0; i < m->rope; i++)
			rope[(size_t)i / 2 * GROUP + h] |= (uint32_t)mla_bf16(qr[i])
							   << (i % 2 * 16);
	}
	for (uint32_t g = 0; g < n_groups; g++)
		for (uint32_t h = 0; h < GROUP; h++)
			q_d[g * GROUP + h] = x[h * n_groups + g].d;
}

static void attend_int8(const struct decode_job *j, const struct unit *u, struct attend *a,
			uint32_t begin, uint32_t end)
{
	const struct k_mla *m = j->m;
	const uint32_t n_groups = cpu_entry_groups(m->rank);
	uint32_t(*w)[MLA_FOURS][GROUP] = a->scratch;
	float(*w_d)[GROUP] = (float(*)[GROUP])(w + n_groups);
	float *q_d = (float *)(w_d + n_groups);
	uint32_t *rope_q = (uint32_t *)(q_d + n_groups * GROUP);
	uint32_t *q = rope_q + (size_t)m->rope / 2 * GROUP;
	struct q_row *x = (struct q_row *)(q + (size_t)m->rank / 2 * GROUP);
	struct mla_tile_int8 t = {
		.row_bytes = j->c->pool.row_bytes,
		.rank = m->rank,
		.n_heads = a->n_heads,
		.q = q,
		.q_d = q_d,
		.s = a->s,
		.w = w,
		.w_d = w_d,
		.correction = a->correction,
		.acc = a->acc,
		.acc_step = j->acc_stride,
	};
	struct mla_tile rope = {
		.row_step = t.row_bytes / sizeof(*rope.rows),
		.n_pairs = m->rope / 2,
		.q = rope_q,
		.s = a->s,
	};

	pack_int8(j, u, x, q_d, rope_q);
	j->c->isa.mla_queries_int8(q, x, m->rank);
	for (uint32_t pos = begin; pos < end; pos += K_TILE_POSITIONS) {
		t.n_pos = end - pos < K_TILE_POSITIONS ? end - pos : K_TILE_POSITIONS;
		t.rows = tile_rows(j, u, pos, &t.next);
		/* Of an odd last position's neighbour in the page there is a score too, which nobody
		 * reads. */
		rope.n_pos = (t.n_pos + 1) / 2 * 2;
		rope.rows = (const uint16_t *)(t.rows + m->rank + n_groups * sizeof(float));
		rope.next = t.rows;
		j->c->isa.mla_scores_int8(&t);
		j->c->isa.mla_scores_bf16(&rope);
		attend_softmax(j, a, t.n_pos, false);
		j->c->isa.mla_weights_int8(&t);
		j->c->isa.mla_values_int8(&t);
	}
}

static void attend_unit(const struct decode_job *j, const struct unit *u, uint32_t slot,
			float *scratch)
{
	struct attend a = {
		.s = scratch,
		.max = j->part_max + (size_t)slot * 2 * GROUP,
		.sum = j->part_max + (size_t)slot * 2 * GROUP + GROUP,
		.acc = j->part + (size_t)slot * GROUP * j->acc_stride,
		.n_heads = group_heads(j, u->group),
		.scratch = scratch + K_TILE_POSITIONS * GROUP,
	};
	uint32_t begin = u->span * SPAN_TILES * K_TILE_POSITIONS;
	uint32_t end = begin + SPAN_TILES * K_TILE_POSITIONS;

	if (end > u->row->n_pos)
		end = u->row->n_pos;
	for (uint32_t h = 0; h < GROUP; h++) {
		a.max[h] = -INFINITY;
		a.sum[h] = 0.0f;
	}
	memset(a.acc, 0, GROUP * j->acc_stride * sizeof(*a.acc));
	switch (j->c->pool.entry) {
	case K_ENTRY_F32:
		attend_f32(j, u, &a, begin, end);
		break;
	case K_ENTRY_BF16:
		attend_bf16(j, u, &a, begin, end);
		break;
	case K_ENTRY_INT8:
		attend_int8(j, u, &a, begin, end);
		break;
	}
}

static void attend_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct decode_job *j = ctx;
	uint32_t begin, end;

	(void)n_threads;
	while (threads_take(j->c->threads, j->n_wave, 1, &begin, &end))
		for (uint32_t i = begin; i < end; i++) {
			struct unit u = unit_of(j, j->wave + i);

			attend_unit(j, &u, i, j->threads + thread * j->thread_floats);
		}
}

/* Two partial softmaxes into one: @a becomes both. */
static void merge_head(const struct decode_job *j, float *a, float *a_max, float *a_sum,
		       const float *b, float b_max, float b_sum)
{
	float pair[2], both = b_max > *a_max ? b_max : *a_max;
	const float maxima[2] = {*a_max, b_max};

	j->c->isa.exp(pair, maxima, both, 1.0f, 2);
	j->c->isa.blend(a, b, pair[1], pair[0], j->m->rank);
	*a_sum = *a_sum * pair[0] + b_sum * pair[1];
	*a_max = both;
}

/* Every unit of the wave belongs to one (row, group); a thread takes whole ones. */
static void merge_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct decode_job *j = ctx;
	uint32_t rank = j->m->rank;

	for (uint32_t i = 0; i < j->n_wave; i++) {
		struct unit u = unit_of(j, j->wave + i);
		size_t at = ((size_t)u.i * j->n_groups + u.group) * GROUP;

		if ((u.i * j->n_groups + u.group) % n_threads != thread)
			continue;
		for (uint32_t h = 0; h < group_heads(j, u.group); h++) {
			const float *part = j->part + ((size_t)i * GROUP + h) * j->acc_stride;
			const float *part_max = j->part_max + (size_t)i * 2 * GROUP + h;
			float *merged = latents(j, u.i, u.group * GROUP + h) +
					(size_t)j->n_rows * j->m->n_heads * rank;

			if (u.span > 0) {
				merge_head(j, merged, &j->max[at + h], &j->sum[at + h], part,
					   part_max[0], part_max[GROUP]);
			} else {
				memcpy(merged, part, rank * sizeof(*part));
				j->max[at + h] = part_max[0];
				j->sum[at + h] = part_max[GROUP];
			}
			if (u.span + 1 == u.row->n_spans)
				j->c->isa.divide(merged, j->sum[at + h], rank);
		}
	}
}

static bool decode_scratch(struct decode_job *j)
{
	const struct k_mla *m = j->m;
	uint32_t width = m->rank + m->rope;
	uint64_t heads = (uint64_t)j->n_rows * m->n_heads,
		 sums = (uint64_t)j->n_rows * j->n_groups * GROUP;
	uint64_t wave = 4 * (uint64_t)j->c->n_threads;

	if (wave < WAVE_MIN)
		wave = WAVE_MIN;
	if (wave > j->n_units)
		wave = j->n_units;
	j->n_wave = (uint32_t)wave;
	j->tile_stride = cpu_row_stride(width + LOAD_PAST);
	j->copy_step = 2 * cpu_row_stride((width + MLA_COLUMNS + 1) / 2);
	j->acc_stride = cpu_row_stride(m->rank + MLA_COLUMNS);
	/* scores, then a tile of f32 or bf16 and its queries; those of int8, and its weights, take less */
	j->thread_floats = cpu_row_stride(K_TILE_POSITIONS * (j->tile_stride + GROUP) +
					  (size_t)(width + 1) * GROUP + 64);
	j->x = cpu_scratch(j->c, SCRATCH_ROWS,
			   2 * (uint64_t)m->n_heads * DECODE_ROWS * sizeof(*j->x));
	j->ql = cpu_scratch(j->c, SCRATCH_A, 2 * heads * m->rank * sizeof(float));
	j->max = cpu_scratch(j->c, SCRATCH_B, 2 * sums * sizeof(float));
	j->part = cpu_scratch(j->c, SCRATCH_C, wave * GROUP * (j->acc_stride + 2) * sizeof(float));
	j->threads = cpu_scratch(j->c, SCRATCH_THREADS,
				 j->c->n_threads * j->thread_floats * sizeof(float));
	if (!j->x || !j->ql || !j->max || !j->part || !j->threads)
		return false;
	j->y = (float **)(j->x + (size_t)m->n_heads * DECODE_ROWS);
	j->sum = j->max + sums;
	j->part_max = j->part + wave * GROUP * j->acc_stride;
	return true;
}

static void decode_pass(struct decode_job *j)
{
	const struct k_mla *m = j->m;
	uint64_t n_work = 0;
	uint32_t wave;

	j->n_units = 0;
	for (uint32_t i = 0; i < j->n_rows; i++) {
		uint32_t tiles = (j->rows[i].n_pos + K_TILE_POSITIONS - 1) / K_TILE_POSITIONS;

		j->rows[i].n_spans = (tiles + SPAN_TILES - 1) / SPAN_TILES;
		j->rows[i].first_unit = j->n_units;
		j->n_units += j->rows[i].n_spans * j->n_groups;
		n_work += (uint64_t)j->rows[i].n_pos * m->n_heads * (2 * m->rank + m->rope);
	}
	if (!decode_scratch(j))
		return;
	for (uint32_t h = 0; h < m->n_heads; h++)
		for (uint32_t i = 0; i < j->n_rows; i++) {
			j->x[h * j->n_rows + i] =
				buffer_row(j->q, j->rows[i].row) + h * (m->nope + m->rope);
			j->y[h * j->n_rows + i] = latents(j, i, h);
		}
	heads_product(j, j->w_uk);
	wave = j->n_wave;
	for (j->wave = 0; j->wave < j->n_units; j->wave += wave) {
		j->n_wave = j->n_units - j->wave < wave ? j->n_units - j->wave : wave;
		threads_run(j->c->threads, n_work, attend_part, j);
		threads_run(j->c->threads, (uint64_t)j->n_wave * GROUP * m->rank, merge_part, j);
	}
	for (uint32_t h = 0; h < m->n_heads; h++)
		for (uint32_t i = 0; i < j->n_rows; i++) {
			j->x[h * j->n_rows + i] =
				latents(j, i, h) + (size_t)j->n_rows * m->n_heads * m->rank;
			j->y[h * j->n_rows + i] =
				buffer_row(j->out, j->rows[i].row) + h * m->v_head;
		}
	heads_product(j, j->w_uv);
}

void cpu_mla_decode(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
		    const struct k_weight *w_uk, const struct k_weight *w_uv, const struct k_mla *m,
		    uint32_t stream)
{
	struct decode_job j = {
		.c = cpu_of(k),
		.out = out,
		.q = q,
		.w_uk = w_uk,
		.w_uv = w_uv,
		.m = m,
		.stream = stream,
		.n_groups = (m->n_heads + GROUP - 1) / GROUP,
	};

	assert(w_uk->n_mat == m->n_heads && w_uk->n_out == m->rank && w_uk->n_in == m->nope);
	assert(w_uv->n_mat == m->n_heads && w_uv->n_out == m->v_head && w_uv->n_in == m->rank);
	assert(q->width >= m->n_heads * (m->nope + m->rope) &&
	       out->width >= m->n_heads * m->v_head);
	if (!mla_pool_fits(j.c, m, stream))
		return;
	for (uint32_t s = 0; s < j.c->step.n_segments; s++) {
		const struct k_segment *seg = &j.c->step.segments[s];

		for (uint32_t i = 0; seg->generated && i < seg->n_rows; i++) {
			j.rows[j.n_rows++] = (struct decode_row){
				.row = seg->first_row + i,
				.n_pos = seg->first_pos + i + 1,
				.pages = seg->pages,
			};
			if (j.n_rows == DECODE_ROWS) {
				decode_pass(&j);
				j.n_rows = 0;
			}
		}
	}
	if (j.n_rows > 0)
		decode_pass(&j);
}
