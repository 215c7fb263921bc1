#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the CPU backend: what its operations share.
 *
 * Operations (linear.c, mla_*.c, experts.c, ...) split work over threads and walk pages; all arithmetic
 * that costs time is in the few inner kernels of `struct cpu_isa`, of which there is one table per
 * instruction set. The inner kernels give the same bits in every table (tests/kernels compares
 * them), so a model's output does not depend on the CPU.
 *
 * A packed weight is panels of PANEL output columns, K ascending inside a panel, so that a product
 * reads memory strictly upwards:
 *
 *   f32:  w[k][c], c = 0..31                                      128 bytes per k
 *   bf16: dword j of k holds column j low and column j+16 high     64 bytes per k
 *
 * (one AVX-512 load, or two AVX2 loads, and a shift and a mask give the columns as f32). Columns past
 * n_out are zero. quant.h has q8 and q4. A matrix with one output row (a norm's weights) is kept as
 * that row in f32. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "quant.h"
#include "threads.h"

#define PANEL 32u
#define LINE  K_MEMORY_ALIGN /* bytes; alignment of everything allocated here */

/* Rows stand an odd number of lines apart: a power of two would put the same column of all rows into
 * the same few sets of the caches. */
struct k_buffer {
	uint32_t max_rows, width;
	size_t stride;
	float *data;
};

struct k_weight {
	uint32_t n_mat, n_out, n_in;
	uint32_t panel; /* PANEL, or 1 for matrices of one row */
	enum k_type type;
	uint64_t panel_bytes, matrix_bytes, bytes;
	uint8_t *data;
	bool borrowed; /* data is k_source.memory */
};

/* y[r][c] (+)= sum over k of x[r][k] * w[k][c], one chain of fused multiply-adds over ascending k for
 * each (r, c), whatever the number of rows or columns. */
struct tile {
	const float *const *x;  /* [n_rows] */
	float *const *y;        /* [n_rows]; columns y_col .. y_col + n_cols are written, no more */
	size_t x_first, x_step; /* x[r][x_first + k * x_step] */
	const void *w;
	size_t w_step; /* f32 only: from w[k] to w[k + 1]; LANES columns past n_cols can be read */
	uint32_t n_rows, n_cols, n_k;
	uint32_t y_col;
	bool accumulate; /* go on from what y holds */
};

/* Online softmax of a tile of positions, down the columns: each lane is a row (or a head) of its own.
 * Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). */
struct softmax_tile {
	float *s;                /* [n_pos][n_lanes]: scores in, exp(scale * score - max) out */
	uint32_t n_pos, n_lanes; /* n_lanes is a multiple of LANES */
	const uint32_t
		*n_valid; /* [n_lanes]: positions below it are seen, others weigh 0 exactly */
	float scale;
	float *max, *sum;  /* [n_lanes]: running; -inf and 0 before the first tile */
	float *correction; /* [n_lanes]: factor for what was added up under the old maximum */
	bool bf16; /* what comes out, and is summed, are numbers of bf16 for struct mla_tile */
};

/* Attention of up to MLA_HEADS heads over a tile of the cache whose rows are bf16, without making f32 rows
 * of it: queries and weights are bf16 numbers too. Two neighbours of a sum are a pair, the second is
 * added first, each by a fused multiply-add in f32: what VDPBF16PS does. That instruction
 * takes subnormal numbers for zeros, so the cache, the queries and the weights hold none below
 * MLA_SMALLEST: then all sums are zero or multiples of its square's last place, far above. */
#define MLA_HEADS    16u
#define MLA_SMALLEST 0x1p-50f
#define MLA_COLUMNS  32u

struct mla_tile {
	const uint16_t *rows; /* [n_pos][row_step], the latent first */
	size_t row_step;      /* >= 2 * n_pairs, >= n_cols */
	const void *next;     /* will be read after this tile */
	uint32_t n_pos;       /* even */
	uint32_t n_pairs;     /* of a row and a query */
	uint32_t n_cols;      /* of the values: a multiple of MLA_COLUMNS */
	uint32_t n_heads;     /* of the values; scores are of MLA_HEADS */
	const uint32_t *q;    /* [n_pairs][MLA_HEADS]: the pair's second number in the upper half */
	float *s; /* [n_pos][MLA_HEADS]: scores are added to it; weights in, each a number of bf16 */
	const float *correction; /* [n_heads] */
	float *acc;              /* [n_heads][acc_step] = acc * correction + weights^T rows */
	size_t acc_step;
};

/* The same over rows of K_ENTRY_INT8, in integers. A score's latent part has queries as struct q_row has them, and
 * is one chain over ascending groups,
 *
 *   s = fma((float)sum over the group of q * c, d of the query * d of the row, s)
 *
 * from which the rope part goes on as struct mla_tile does it: a query's d below MLA_SMALLEST is none, so that s
 * holds nothing that is subnormal. A weight times d of its row has 8 bits too, without a sign, and one d for each
 * head and group of the tile, their maximum / 255:
 *
 *   acc = fma(acc, correction, (float)(sum over the positions of w * c) * d of the weights)
 *
 * The sums are exact integers below 2^24, however an instruction set comes by them. */
#define MLA_FOURS (K_TILE_POSITIONS / 4)

struct mla_tile_int8 {
	const uint8_t *rows; /* [n_pos][row_bytes] */
	size_t row_bytes;
	const void *next; /* will be read after this tile */
	uint32_t n_pos;   /* 1 to K_TILE_POSITIONS */
	uint32_t rank;    /* a multiple of 4 */
	uint32_t n_heads; /* of the values; scores are of MLA_HEADS */
	const void *q;    /* of mla_queries_int8, 32 bytes a number of rank at most */
	const float *q_d; /* [group][MLA_HEADS] */
	float *s;         /* [n_pos][MLA_HEADS]: scores out; weights in */
	/* [group]: weights in 8 bits, four positions' in a dword, the first low; and their d */
	uint32_t (*w)[MLA_FOURS][MLA_HEADS];
	float (*w_d)[MLA_HEADS];
	const float *correction; /* [n_heads] */
	/* [n_heads][acc_step]; columns from rank to the next multiple of MLA_COLUMNS may be written */
	float *acc;
	size_t acc_step;
};

static inline float mla_row_d(const struct mla_tile_int8 *t, uint32_t pos, uint32_t group)
{
	float d;

	__builtin_memcpy(&d, t->rows + pos * t->row_bytes + t->rank + group * sizeof(d), sizeof(d));
	return d;
}

struct cpu_isa {
	const char *name;
	void (*tile_f32)(const struct tile *t);
	void (*tile_bf16)(const struct tile *t); /* w is a panel of bf16, n_cols <= PANEL */
	void (*rmsnorm)(float *y, const float *x, const float *w, uint32_t n, float eps);
	void (*add)(float *y, const float *x, uint32_t n);
	/* y = x * a + y * b, fused on the first product */
	void (*blend)(float *y, const float *x, float a, float b, uint32_t n);
	void (*scale)(float *y, float a, uint32_t n);
	void (*divide)(float *y, float a, uint32_t n);
	/* gate = silu(gate) * up */
	void (*swiglu)(float *gate, const float *up, uint32_t n);
	/* y = exp((x - max) / t) */
	void (*exp)(float *y, const float *x, float max, float t, uint32_t n);
	void (*softmax_tile)(const struct softmax_tile *s);
	void (*load_bf16)(float *y, const uint16_t *x, uint32_t n);
	/* A row of K_ENTRY_INT8 as one of K_ENTRY_BF16. */
	void (*load_int8)(uint16_t *y, const uint8_t *row, uint32_t rank, uint32_t rope);
	void (*mla_scores_bf16)(const struct mla_tile *t);
	void (*mla_values_bf16)(const struct mla_tile *t);
	/* Queries [MLA_HEADS][group] as this instruction set's mla_scores_int8 wants them. */
	void (*mla_queries_int8)(void *ret, const struct q_row *x, uint32_t rank);
	void (*mla_scores_int8)(const struct mla_tile_int8 *t);
	/* s to w and w_d; positions up to the next multiple of four past n_pos weigh 0. */
	void (*mla_weights_int8)(const struct mla_tile_int8 *t);
	void (*mla_values_int8)(const struct mla_tile_int8 *t);
	void (*tile_q8)(const struct q_tile *t);
	void (*tile_q4)(const struct q_tile *t);
	/* n numbers into q_groups(n) groups */
	void (*quantise)(struct q_row *y, const float *x, uint32_t n);
	/* One group of a panel out of x[k][column], [Q_GROUP][PANEL]. */
	void (*pack_q8)(struct q8_group *w, const float *x);
	void (*pack_q4)(struct q4_group *w, const float *x);
	/* What there is to reach (limit.h): @n rounds in registers, with the instructions of the products. Return:
	 * operations. @direct: bytes are added up in sixteen bits, where that is another thing. */
	double (*limit_f32)(uint64_t n);
	double (*limit_bf16)(uint64_t n);
	double (*limit_int8)(uint64_t n, bool direct);
};

/* The two products, in linear.c (the reference) and beside it. */
void linear_tile_f32_scalar(const struct tile *t);
void linear_tile_bf16_scalar(const struct tile *t);
void linear_tile_f32_avx2(const struct tile *t);
void linear_tile_bf16_avx2(const struct tile *t);
void linear_tile_f32_avx512(const struct tile *t);
void linear_tile_bf16_avx512(const struct tile *t);

/* The tile's two products, in mla_tile.c (the reference) and beside it. */
void mla_scores_bf16_scalar(const struct mla_tile *t);
void mla_values_bf16_scalar(const struct mla_tile *t);
void mla_scores_bf16_avx2(const struct mla_tile *t);
void mla_values_bf16_avx2(const struct mla_tile *t);
void mla_scores_bf16_avx512(const struct mla_tile *t);
void mla_values_bf16_avx512(const struct mla_tile *t);
void mla_scores_bf16_bf16(const struct mla_tile *t);
void mla_values_bf16_bf16(const struct mla_tile *t);

/* In mla_int8.c (the reference) and beside it. Queries are pairs of 16 bits, [rank / 2][MLA_HEADS], or for VNNI fours
 * of bytes that are 128 too much, [rank / 4][MLA_HEADS]. */
void mla_queries_int8_pairs(void *ret, const struct q_row *x, uint32_t rank);
void mla_queries_int8_fours(void *ret, const struct q_row *x, uint32_t rank);
void mla_scores_int8_scalar(const struct mla_tile_int8 *t);
void mla_values_int8_scalar(const struct mla_tile_int8 *t);
void mla_scores_int8_avx2(const struct mla_tile_int8 *t);
void mla_values_int8_avx2(const struct mla_tile_int8 *t);
void mla_scores_int8_vnni(const struct mla_tile_int8 *t);
void mla_values_int8_vnni(const struct mla_tile_int8 *t);

/* In limit.c and beside it. */
double limit_f32_scalar(uint64_t n);
double limit_int8_scalar(uint64_t n, bool direct);
double limit_f32_avx2(uint64_t n);
double limit_int8_avx2(uint64_t n, bool direct); /* not direct: pmaddwd to 32 bits in between */
double limit_f32_avx512(uint64_t n);
double limit_int8_vnni(uint64_t n, bool direct);
double limit_bf16_bf16(uint64_t n);

extern const struct cpu_isa cpu_isa_scalar;
#ifdef K_HAVE_X86
extern const struct cpu_isa cpu_isa_avx2;
extern const struct cpu_isa cpu_isa_avx512;
extern const struct cpu_isa cpu_isa_vnni; /* AVX-512 with VNNI */
extern const struct cpu_isa cpu_isa_bf16; /* and with BF16 */
#endif
/* The best of those that are allowed and that this CPU has. */
const struct cpu_isa *cpu_isa_pick(uint32_t mask);

/* Memory that operations work in: grows to the largest step seen and stays. */
enum scratch_slot {
	SCRATCH_ROWS, /* row pointers */
	SCRATCH_QUANTISED,
	SCRATCH_QUANTISED_ROWS,
	SCRATCH_A,
	SCRATCH_B,
	SCRATCH_C,
	SCRATCH_THREADS, /* one part per thread */
	SCRATCH_ROUTE_SCORES,
	SCRATCH_ROUTE_IDS,
	SCRATCH_ROUTE_WEIGHTS,
	SCRATCH_GROUPS,
	SCRATCH_SAMPLE,
	_SCRATCH_MAX
};

struct cpu {
	struct kernels k; /* first: the table is the device */
	struct cpu_isa isa;
	struct threads *threads;
	uint32_t n_threads;
	struct scratch {
		void *data;
		size_t bytes;
	} scratch[_SCRATCH_MAX];
	struct k_step step;
	struct k_pool pool;
	struct {
		uint32_t n_rows, n_used, n_experts;
	} routed;   /* shape of the SCRATCH_ROUTE_* arrays */
	int failed; /* of this step, for step_end() */
};

static inline struct cpu *cpu_of(struct kernels *k)
{
	return (struct cpu *)k;
}

/* The team of @cfg, pinned where kernels_cpu_pins() says so. Return: as threads_new(). */
int cpu_threads_new(struct threads **ret, const struct kernels_config *cfg);
/* LINE-aligned and, where large, advised to be huge pages. NULL when there is no memory. */
void *cpu_alloc(uint64_t bytes);
/* Contents are lost when it grows. NULL: no memory, and the step has failed. */
void *cpu_scratch(struct cpu *c, enum scratch_slot slot, uint64_t bytes);

/* Floats from row to row: an odd number of lines. */
static inline size_t cpu_row_stride(size_t width)
{
	return (width + 15) / 16 * 16 | 16;
}
static inline float *buffer_row(const struct k_buffer *b, uint32_t row)
{
	return b->data + row * b->stride;
}
static inline const uint8_t *weight_panel(const struct k_weight *w, uint32_t mat, uint32_t panel)
{
	return w->data + mat * w->matrix_bytes + panel * w->panel_bytes;
}
static inline uint32_t weight_n_panels(const struct k_weight *w)
{
	return (w->n_out + w->panel - 1) / w->panel;
}

/* Of one of its matrices for @n_rows rows: multiply-adds, or what it takes to read it in the time of as many. */
static inline uint64_t weight_work(const struct k_weight *w, uint64_t n_rows)
{
	uint64_t multiply = n_rows * w->n_out * w->n_in, read = 2 * w->matrix_bytes;

	return multiply > read ? multiply : read;
}
/* Panels that a thread takes at least: past the last of them lie a few lines that were asked for in vain. */
#define PANELS_MIN 4u
static inline bool weight_is_quantised(const struct k_weight *w)
{
	return w->panel > 1 && (w->type == K_Q8 || w->type == K_Q4);
}

/* The left side of a product: f32 rows, or quantised ones where the weight is. */
struct operand {
	const float *const *x;
	const struct q_row *const *q;
};

static inline struct operand operand_from(struct operand o, uint32_t row)
{
	return (struct operand){o.x ? o.x + row : NULL, o.q ? o.q + row : NULL};
}
/* Quantised rows of @n_in numbers for @n rows: [n] pointers, not filled. NULL: as cpu_scratch(). */
struct q_row **cpu_quantised_rows(struct cpu *c, uint32_t n, uint32_t n_in);
/* The rows as @w wants them; may fork. False: no memory, and the step has failed. */
bool cpu_operand(struct cpu *c, struct operand *ret, const float *const *x, uint32_t n_rows,
		 const struct k_weight *w);
/* y[r] = x[r] W^T for the panels [first, end) of one matrix, on the calling thread. */
void cpu_product(const struct cpu_isa *isa, float *const *y, struct operand x, uint32_t n_rows,
		 const struct k_weight *w, uint32_t mat, uint32_t first, uint32_t end);
/* y[r] = x[r] W^T over row pointers; forks. */
void cpu_linear(struct cpu *c, float *const *y, const float *const *x, uint32_t n_rows,
		const struct k_weight *w);

/* Scales of a row of K_ENTRY_INT8. */
static inline uint32_t cpu_entry_groups(uint32_t rank)
{
	return (rank + K_ENTRY_GROUP - 1) / K_ENTRY_GROUP;
}
/* Numbers of the one that starts at @first. */
static inline uint32_t cpu_entry_group(uint32_t rank, uint32_t first)
{
	return rank - first < K_ENTRY_GROUP ? rank - first : K_ENTRY_GROUP;
}

static inline float bf16_to_f32(uint16_t x)
{
	uint32_t u = (uint32_t)x << 16;
	float f;

	__builtin_memcpy(&f, &u, sizeof(f));
	return f;
}
/* Nearest, ties to even; a NaN stays one. */
static inline uint16_t bf16_from_f32(float f)
{
	uint32_t u;

	__builtin_memcpy(&u, &f, sizeof(u));
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Operations, each in the file of its name. */
int cpu_weight_pack(struct kernels *k, struct k_weight **ret, const struct k_source *src);
int cpu_weight_copy(struct kernels *k, struct k_weight **ret, const struct k_weight *w);
void cpu_weight_free(struct kernels *k, struct k_weight *w);
uint64_t cpu_weight_bytes(const struct k_weight *w);
void cpu_embed(struct kernels *k, struct k_buffer *x, const struct k_weight *table);
void cpu_rmsnorm(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		 const struct k_weight *w, float eps);
void cpu_linear_op(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		   const struct k_weight *w);
void cpu_add(struct kernels *k, struct k_buffer *x, const struct k_buffer *y);
void cpu_mla_append(struct kernels *k, struct k_buffer *q, struct k_buffer *kv,
		    const struct k_weight *norm, const struct k_mla *m, uint32_t stream);
void cpu_mla_prefill(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
		     const struct k_weight *kv_b, const struct k_mla *m, uint32_t stream);
void cpu_mla_decode(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
		    const struct k_weight *w_uk, const struct k_weight *w_uv, const struct k_mla *m,
		    uint32_t stream);
void cpu_route(struct kernels *k, const struct k_buffer *x, const struct k_weight *gate,
	       const struct k_route *r);
void cpu_routed(struct kernels *k, uint32_t *ret_ids, float *ret_weights);
void cpu_experts(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		 const struct k_weight *gate_up, const struct k_weight *down);
void cpu_ffn(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
	     const struct k_weight *gate_up, const struct k_weight *down);
void cpu_logits(struct kernels *k, struct k_buffer *out, const struct k_buffer *x,
		const uint32_t *picks, uint32_t n_picks, const struct k_weight *norm, float eps,
		const struct k_weight *head);
int cpu_sample(struct kernels *k, const struct k_buffer *logits, uint32_t n, uint32_t n_valid,
	       const uint8_t *banned, const struct k_sample *how, struct k_sampled *ret);
