/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt rows: keys and values expanded from the cached latents, tile by tile.
 *
 * A row at position p walks the tiles 0 .. p / K_TILE_POSITIONS in that order, whichever chunk it came
 * in; the latents it meets are those of the pool, its own included, in the pool's precision. Per tile:
 *
 *   expand   kv [position][head, nope + v] = latents x kv_b^T, by panels of kv_b
 *   attend   units of (head, up to 32 rows): scores, online softmax, values added into @out
 */
#include "mla.h"

#include <math.h>

#define PREFILL_ROWS 512u /* rows of a segment at a time: bounds the packed queries */

struct prefill_job {
	struct cpu *c;
	struct k_buffer *out;
	const struct k_buffer *q;
	const struct k_weight *kv_b;
	const struct k_mla *m;
	const struct k_segment *seg;
	uint32_t row, n_rows;      /* of this pass, rows of the step */
	uint32_t lanes, n_blocks;  /* rows side by side; blocks of so many rows */
	uint32_t tile_pos, tile_n; /* positions of the tile that are there */
	float *tile;               /* [64][rank + rope] */
	float *kv;                 /* [64][n_heads * (nope + v)], rows kv_stride apart */
	size_t tile_stride, kv_stride;
	const float **kv_x;   /* [64] rows of tile */
	struct operand kv_in; /* the same as kv_b wants them */
	float **kv_y;         /* [64] rows of kv */
	float *queries;       /* [n_heads][n_blocks][nope + rope][lanes] */
	float *max, *sum;     /* [n_heads][n_blocks][lanes] */
	struct prefill_thread {
		float s[K_TILE_POSITIONS * MLA_LANES_MAX];
		float correction[MLA_LANES_MAX];
		uint32_t n_valid[MLA_LANES_MAX];
		const float *x[K_TILE_POSITIONS];
		float *y[K_TILE_POSITIONS];
	} * threads;
};

static uint32_t block_rows(const struct prefill_job *j, uint32_t block)
{
	uint32_t left = j->n_rows - block * j->lanes;

	return left < j->lanes ? left : j->lanes;
}

static uint32_t row_pos(const struct prefill_job *j, uint32_t row)
{
	return j->seg->first_pos + (j->row - j->seg->first_row) + row;
}

/* Queries of a unit as [d][lane], running maxima and sums before the first tile, out = 0. */
static void prepare_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct prefill_job *j = ctx;
	const struct k_mla *m = j->m;
	uint32_t d = m->nope + m->rope, begin, end;

	threads_share(m->n_heads * j->n_blocks, thread, n_threads, &begin, &end);
	for (uint32_t u = begin; u < end; u++) {
		uint32_t h = u / j->n_blocks, first = u % j->n_blocks * j->lanes;
		uint32_t n = block_rows(j, u % j->n_blocks);
		float *queries = j->queries + (size_t)u * d * j->lanes;

		memset(queries, 0, (size_t)d * j->lanes * sizeof(*queries));
		for (uint32_t r = 0; r < n; r++) {
			const float *q = buffer_row(j->q, j->row + first + r) + h * d;

			for (uint32_t i = 0; i < d; i++)
				queries[(size_t)i * j->lanes + r] = q[i];
			memset(buffer_row(j->out, j->row + first + r) + h * m->v_head, 0,
			       m->v_head * sizeof(*q));
		}
		for (uint32_t r = 0; r < j->lanes; r++) {
			j->max[(size_t)u * j->lanes + r] = -INFINITY;
			j->sum[(size_t)u * j->lanes + r] = 0.0f;
		}
	}
}

static void expand_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct prefill_job *j = ctx;
	uint32_t begin, end;

	(void)thread;
	(void)n_threads;
	while (threads_take(j->c->threads, weight_n_panels(j->kv_b), PANELS_MIN, &begin, &end))
		cpu_product(&j->c->isa, j->kv_y, j->kv_in, j->tile_n, j->kv_b, 0, begin, end);
}

/* scores[position][lane]: the nope part, then the rope part goes on with the same chain. */
static void score_unit(const struct prefill_job *j, struct prefill_thread *th, uint32_t unit,
		       uint32_t h, uint32_t n_pos)
{
	const struct k_mla *m = j->m;
	const float *queries = j->queries + (size_t)unit * (m->nope + m->rope) * j->lanes;
	struct tile t = {
		.x = th->x,
		.y = th->y,
		.x_step = 1,
		.w = queries,
		.w_step = j->lanes,
		.n_rows = n_pos,
		.n_cols = j->lanes,
		.n_k = m->nope,
	};

	for (uint32_t i = 0; i < n_pos; i++) {
		th->x[i] = j->kv + i * j->kv_stride + (size_t)h * (m->nope + m->v_head);
		th->y[i] = th->s + i * j->lanes;
	}
	j->c->isa.tile_f32(&t);
	for (uint32_t i = 0; i < n_pos; i++)
		th->x[i] = j->tile + i * j->tile_stride + m->rank;
	t.w = queries + (size_t)m->nope * j->lanes;
	t.n_k = m->rope;
	t.accumulate = true;
	j->c->isa.tile_f32(&t);
}

/* out[row][v] += weights x values; a row sees its own n_valid positions and touches no other. */
static void value_unit(const struct prefill_job *j, struct prefill_thread *th, uint32_t h,
		       uint32_t first, uint32_t n, uint32_t n_pos)
{
	const struct k_mla *m = j->m;
	struct tile t = {
		.x = th->x,
		.y = th->y,
		.x_step = j->lanes,
		.w = j->kv + (size_t)h * (m->nope + m->v_head) + m->nope,
		.w_step = j->kv_stride,
		.n_rows = n,
		.n_cols = m->v_head,
		.n_k = n_pos,
		.accumulate = true,
	};

	for (uint32_t r = 0; r < n; r++) {
		th->x[r] = th->s + r;
		th->y[r] = buffer_row(j->out, j->row + first + r) + h * m->v_head;
		if (th->n_valid[r] > 0 && th->correction[r] != 1.0f)
			j->c->isa.scale(th->y[r], th->correction[r], m->v_head);
	}
	if (th->n_valid[0] == n_pos) { /* all of them see the whole tile */
		j->c->isa.tile_f32(&t);
		return;
	}
	t.n_rows = 1;
	for (uint32_t r = 0; r < n; r++, t.x++, t.y++) {
		t.n_k = th->n_valid[r];
		if (t.n_k > 0)
			j->c->isa.tile_f32(&t);
	}
}

static void attend_unit(const struct prefill_job *j, struct prefill_thread *th, uint32_t u)
{
	const struct k_mla *m = j->m;
	uint32_t h = u / j->n_blocks, first = u % j->n_blocks * j->lanes;
	uint32_t n = block_rows(j, u % j->n_blocks), n_pos = 0;
	struct softmax_tile st = {
		.s = th->s,
		.n_lanes = j->lanes,
		.n_valid = th->n_valid,
		.scale = m->scale,
		.max = j->max + (size_t)u * j->lanes,
		.sum = j->sum + (size_t)u * j->lanes,
		.correction = th->correction,
	};

	for (uint32_t r = 0; r < j->lanes; r++) {
		uint32_t pos = row_pos(j, first + (r < n ? r : n - 1));
		uint32_t seen = pos < j->tile_pos ? 0 : pos - j->tile_pos + 1;

		th->n_valid[r] = seen < j->tile_n ? seen : j->tile_n;
		n_pos = th->n_valid[r];
	}
	if (n_pos == 0)
		return;
	score_unit(j, th, u, h, n_pos);
	st.n_pos = n_pos;
	j->c->isa.softmax_tile(&st);
	value_unit(j, th, h, first, n, n_pos);
}

static void attend_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct prefill_job *j = ctx;
	const struct k_mla *m = j->m;
	struct prefill_thread *th = &j->threads[thread];
	uint32_t begin, end;

	(void)n_threads;
	while (threads_take(j->c->threads, m->n_heads * j->n_blocks, 1, &begin, &end))
		for (uint32_t u = begin; u < end; u++)
			attend_unit(j, th, u);
}

static void finish_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct prefill_job *j = ctx;
	const struct k_mla *m = j->m;
	uint32_t begin, end;

	threads_share(m->n_heads * j->n_blocks, thread, n_threads, &begin, &end);
	for (uint32_t u = begin; u < end; u++)
		for (uint32_t r = 0; r < block_rows(j, u % j->n_blocks); r++) {
			uint32_t row = j->row + u % j->n_blocks * j->lanes + r;

			j->c->isa.divide(buffer_row(j->out, row) + u / j->n_blocks * m->v_head,
					 j->sum[(size_t)u * j->lanes + r], m->v_head);
		}
}

static bool prefill_scratch(struct prefill_job *j)
{
	const struct k_mla *m = j->m;
	uint64_t units, row = (uint64_t)m->n_heads * (m->nope + m->v_head);
	float *a;

	j->lanes = j->n_rows <= MLA_LANES_MAX / 2 ? MLA_LANES_MAX / 2 : MLA_LANES_MAX;
	j->n_blocks = (j->n_rows + j->lanes - 1) / j->lanes;
	units = (uint64_t)m->n_heads * j->n_blocks;
	j->kv_stride = cpu_row_stride(row);
	j->tile_stride = cpu_row_stride((size_t)m->rank + m->rope);
	a = cpu_scratch(j->c, SCRATCH_A,
			(K_TILE_POSITIONS * (j->kv_stride + j->tile_stride) + 64) * sizeof(*a));
	j->queries = cpu_scratch(j->c, SCRATCH_B,
				 units * j->lanes * (m->nope + m->rope + 2) * sizeof(*j->queries));
	j->kv_x = cpu_scratch(j->c, SCRATCH_ROWS, 2 * K_TILE_POSITIONS * sizeof(*j->kv_x));
	j->threads = cpu_scratch(j->c, SCRATCH_THREADS, j->c->n_threads * sizeof(*j->threads));
	if (!a || !j->queries || !j->kv_x || !j->threads)
		return false;
	j->tile = a;
	j->kv = a + K_TILE_POSITIONS * j->tile_stride;
	j->max = j->queries + units * j->lanes * (m->nope + m->rope);
	j->sum = j->max + units * j->lanes;
	j->kv_y = (float **)(j->kv_x + K_TILE_POSITIONS);
	for (uint32_t i = 0; i < K_TILE_POSITIONS; i++) {
		j->kv_x[i] = j->tile + i * j->tile_stride;
		j->kv_y[i] = j->kv + i * j->kv_stride;
	}
	return true;
}

static void prefill_pass(struct prefill_job *j, uint32_t stream)
{
	const struct k_mla *m = j->m;
	uint64_t numbers = (uint64_t)j->n_rows * m->n_heads * (m->nope + m->rope + m->v_head);
	uint32_t end = row_pos(j, j->n_rows - 1) + 1;

	if (!prefill_scratch(j))
		return;
	threads_run(j->c->threads, numbers, prepare_part, j);
	for (j->tile_pos = 0; j->tile_pos < end; j->tile_pos += K_TILE_POSITIONS) {
		uint32_t left = end - j->tile_pos;

		j->tile_n = left < K_TILE_POSITIONS ? left : K_TILE_POSITIONS;
		mla_load_tile(j->c, m, j->seg->pages, stream, j->tile_pos, j->tile_n, j->tile,
			      j->tile_stride);
		if (!cpu_operand(j->c, &j->kv_in, j->kv_x, j->tile_n, j->kv_b))
			return;
		threads_run(j->c->threads, weight_work(j->kv_b, j->tile_n), expand_part, j);
		threads_run(j->c->threads, numbers * j->tile_n, attend_part, j);
	}
	threads_run(j->c->threads, numbers, finish_part, j);
}

void cpu_mla_prefill(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
		     const struct k_weight *kv_b, const struct k_mla *m, uint32_t stream)
{
	struct prefill_job j = {.c = cpu_of(k), .out = out, .q = q, .kv_b = kv_b, .m = m};

	assert(kv_b->n_in == m->rank && kv_b->n_out == m->n_heads * (m->nope + m->v_head));
	assert(q->width >= m->n_heads * (m->nope + m->rope) &&
	       out->width >= m->n_heads * m->v_head);
	if (!mla_pool_fits(j.c, m, stream))
		return;
	for (uint32_t i = 0; i < j.c->step.n_segments; i++) {
		j.seg = &j.c->step.segments[i];
		if (j.seg->generated)
			continue;
		for (uint32_t done = 0; done < j.seg->n_rows; done += PREFILL_ROWS) {
			uint32_t left = j.seg->n_rows - done;

			j.row = j.seg->first_row + done;
			j.n_rows = left < PREFILL_ROWS ? left : PREFILL_ROWS;
			prefill_pass(&j, stream);
		}
	}
}
