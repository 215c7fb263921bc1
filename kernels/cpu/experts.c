/* SPDX-License-Identifier: Apache-2.0 */
/* Feed-forward networks: dense and shared ones (ffn), and the routed experts.
 *
 * Rows go through in passes, which bounds the memory. The routed rows of a pass are pairs (row, k-th
 * choice), sorted by expert; a weight panel is read once per pass for all its rows. Each pair's output
 * is kept, and a row's pairs are added in the order of the choices, so that a row's sum knows
 * nothing of the others. A dense network is the case of one expert with every row in it. */
#include <assert.h>
#include <string.h>

#include "cpu.h"

#define PASS_ROWS 256u

struct ffn_job {
	struct cpu *c;
	struct k_buffer *y;
	const struct k_buffer *x;
	const struct k_weight *gate_up, *down;
	uint32_t row, n_rows, n_used; /* of this pass; n_used 1 and no ids: dense */
	uint32_t inter, hidden, n_pairs;
	uint32_t n_hit;            /* experts with rows, ascending */
	uint32_t *expert;          /* [n_hit] */
	uint32_t *first;           /* [n_hit + 1]: its pairs in sorted order */
	uint32_t *next;            /* [n_mat]: cursor of the counting sort */
	uint32_t *row_of;          /* [n_pairs] in sorted order: row of the pass */
	const float **x_rows;      /* [n_pairs]: input of gate and up */
	float **gu_rows;           /* their [2 * inter], gate becomes the activation */
	float **out_rows;          /* and their [hidden] */
	const float **in_rows;     /* [n_rows]: of the pass, each once */
	const struct q_row **in_q; /* [n_pairs]: the quantised x_rows, where gate_up is */
	struct q_row **activated;  /* [n_pairs]: the quantised gu_rows, where down is */
	float *gu, *out;           /* by pair: row * n_used + choice */
	size_t gu_stride, out_stride;
	const uint32_t *ids;
	const float *weights;
};

/* One product for every hit expert: units of (expert, panel). */
struct product_job {
	struct ffn_job *j;
	const struct k_weight *w;
	struct operand x;
	float *const *y;
};

static void product_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct product_job *p = ctx;
	const struct ffn_job *j = p->j;
	uint32_t n_panels = weight_n_panels(p->w), begin, end;

	(void)thread;
	(void)n_threads;
	while (threads_take(j->c->threads, j->n_hit * n_panels, PANELS_MIN, &begin, &end))
		while (begin < end) {
			uint32_t h = begin / n_panels, i = begin % n_panels;
			uint32_t stop = end - begin < n_panels - i ? i + end - begin : n_panels;

			cpu_product(&j->c->isa, p->y + j->first[h], operand_from(p->x, j->first[h]),
				    j->first[h + 1] - j->first[h], p->w, j->expert[h], i, stop);
			begin += stop - i;
		}
}

static void swiglu_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct ffn_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->n_pairs, thread, n_threads, &begin, &end);
	for (uint32_t i = begin; i < end; i++) {
		j->c->isa.swiglu(j->gu_rows[i], j->gu_rows[i] + j->inter, j->inter);
		if (j->activated)
			j->c->isa.quantise(j->activated[i], j->gu_rows[i], j->inter);
	}
}

/* y[row] += sum of weight * output, best choice first. */
static void combine_part(void *ctx, uint32_t thread, uint32_t n_threads)
{
	const struct ffn_job *j = ctx;
	uint32_t begin, end;

	threads_share(j->n_rows, thread, n_threads, &begin, &end);
	for (uint32_t r = begin; r < end; r++) {
		float *sum = j->out + (size_t)r * j->n_used * j->out_stride;
		const float *w = j->weights + (size_t)(j->row + r) * j->n_used;

		j->c->isa.scale(sum, w[0], j->hidden);
		for (uint32_t i = 1; i < j->n_used; i++)
			j->c->isa.blend(sum, sum + i * j->out_stride, w[i], 1.0f, j->hidden);
		j->c->isa.add(buffer_row(j->y, j->row + r), sum, j->hidden);
	}
}

static uint32_t pair_expert(const struct ffn_job *j, uint32_t pair)
{
	return j->ids ? j->ids[(size_t)j->row * j->n_used + pair] : 0;
}

static bool ffn_scratch(struct ffn_job *j)
{
	uint32_t n_mat = j->gate_up->n_mat, rows = j->c->step.n_rows;
	uint64_t pass = rows < PASS_ROWS ? rows : PASS_ROWS, pairs = pass * j->n_used;

	j->expert = cpu_scratch(j->c, SCRATCH_GROUPS,
				(3 * (uint64_t)n_mat + 1 + pairs) * sizeof(*j->expert));
	j->x_rows = cpu_scratch(j->c, SCRATCH_ROWS, (4 * pairs + pass) * sizeof(*j->x_rows));
	j->gu_stride = cpu_row_stride(2 * (size_t)j->inter);
	j->out_stride = cpu_row_stride(j->hidden);
	j->gu = cpu_scratch(j->c, SCRATCH_A, pairs * j->gu_stride * sizeof(*j->gu));
	j->out = cpu_scratch(j->c, SCRATCH_B, j->ids ? pairs * j->out_stride * sizeof(*j->out) : 0);
	if (!j->expert || !j->x_rows || !j->gu || !j->out)
		return false;
	j->first = j->expert + n_mat;
	j->next = j->first + n_mat + 1;
	j->row_of = j->next + n_mat;
	j->gu_rows = (float **)(j->x_rows + pairs);
	j->out_rows = j->gu_rows + pairs;
	j->in_q = (const struct q_row **)(j->out_rows + pairs);
	j->in_rows = (const float **)(j->in_q + pairs);
	return true;
}

/* Counting sort of the pass's pairs by expert, rows ascending inside an expert. */
static void group_pairs(struct ffn_job *j)
{
	uint32_t n_mat = j->gate_up->n_mat, at = 0;

	j->n_pairs = j->n_rows * j->n_used;
	memset(j->next, 0, n_mat * sizeof(*j->next));
	for (uint32_t p = 0; p < j->n_pairs; p++)
		j->next[pair_expert(j, p)]++;
	j->n_hit = 0;
	for (uint32_t e = 0; e < n_mat; e++) {
		uint32_t n = j->next[e];

		j->next[e] = at;
		if (n == 0)
			continue;
		j->expert[j->n_hit] = e;
		j->first[j->n_hit++] = at;
		at += n;
	}
	j->first[j->n_hit] = at;
	for (uint32_t p = 0; p < j->n_pairs; p++) {
		uint32_t i = j->next[pair_expert(j, p)]++;

		j->row_of[i] = p / j->n_used;
		j->x_rows[i] = buffer_row(j->x, j->row + j->row_of[i]);
		j->gu_rows[i] = j->gu + p * j->gu_stride;
		j->out_rows[i] = j->ids ? j->out + p * j->out_stride : buffer_row(j->y, j->row + p);
	}
}

/* What gate and up read: a row that goes to several experts is quantised once. */
static bool gate_up_operand(struct ffn_job *j, struct operand *ret)
{
	struct operand rows;

	*ret = (struct operand){.x = j->x_rows};
	if (!weight_is_quantised(j->gate_up))
		return true;
	for (uint32_t r = 0; r < j->n_rows; r++)
		j->in_rows[r] = buffer_row(j->x, j->row + r);
	if (!cpu_operand(j->c, &rows, j->in_rows, j->n_rows, j->gate_up))
		return false;
	for (uint32_t i = 0; i < j->n_pairs; i++)
		j->in_q[i] = rows.q[j->row_of[i]];
	ret->q = j->in_q;
	return true;
}

/* What down reads, to be filled by swiglu_part(). */
static bool down_operand(struct ffn_job *j, struct operand *ret)
{
	*ret = (struct operand){.x = (const float *const *)j->gu_rows};
	j->activated = NULL;
	if (!weight_is_quantised(j->down))
		return true;
	j->activated = cpu_quantised_rows(j->c, j->n_pairs, j->inter);
	ret->q = (const struct q_row *const *)j->activated;
	return j->activated;
}

static void ffn_run(struct ffn_job *j)
{
	struct product_job gate_up = {.j = j, .w = j->gate_up}, down = {.j = j, .w = j->down};
	uint32_t n_rows = j->c->step.n_rows;

	j->inter = j->down->n_in;
	j->hidden = j->down->n_out;
	assert(j->gate_up->n_out == 2 * j->inter && j->gate_up->n_mat == j->down->n_mat);
	assert(j->gate_up->n_in <= j->x->width && j->hidden <= j->y->width &&
	       j->x->data != j->y->data);
	if (!ffn_scratch(j))
		return;
	for (j->row = 0; j->row < n_rows; j->row += PASS_ROWS) {
		j->n_rows = n_rows - j->row < PASS_ROWS ? n_rows - j->row : PASS_ROWS;
		group_pairs(j);
		gate_up.y = j->gu_rows;
		down.y = j->out_rows;
		if (!gate_up_operand(j, &gate_up.x))
			return;
		threads_run(j->c->threads, weight_work(j->gate_up, j->n_pairs), product_part,
			    &gate_up);
		if (!down_operand(j, &down.x))
			return;
		threads_run(j->c->threads, (uint64_t)j->n_pairs * j->inter * 32, swiglu_part,
			    j); /* exponentials */
		threads_run(j->c->threads, weight_work(j->down, j->n_pairs), product_part, &down);
		if (j->ids)
			threads_run(j->c->threads, (uint64_t)j->n_pairs * j->hidden * 8,
				    combine_part, j);
	}
}

void cpu_ffn(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
	     const struct k_weight *gate_up, const struct k_weight *down)
{
	struct ffn_job j = {
		.c = cpu_of(k),
		.y = y,
		.x = x,
		.gate_up = gate_up,
		.down = down,
		.n_used = 1,
	};

	assert(gate_up->n_mat == 1);
	ffn_run(&j);
}

void cpu_experts(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		 const struct k_weight *gate_up, const struct k_weight *down)
{
	struct cpu *c = cpu_of(k);
	struct ffn_job j = {
		.c = c,
		.y = y,
		.x = x,
		.gate_up = gate_up,
		.down = down,
		.n_used = c->routed.n_used,
		.ids = c->scratch[SCRATCH_ROUTE_IDS].data,
		.weights = c->scratch[SCRATCH_ROUTE_WEIGHTS].data,
	};

	if (c->routed.n_rows == 0) /* route() had no memory: the step has failed already */
		return;
	assert(c->routed.n_rows == c->step.n_rows && c->routed.n_experts == gate_up->n_mat);
	ffn_run(&j);
}
