#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The operations a model is made of, on opaque buffers, for whatever device runs them.
 *
 * A backend fills one `struct kernels`: the CPU one chooses its instruction set at start, the CUDA
 * plugin will fill the same table. Nothing of the daemon is included here, and nothing here knows
 * requests: a step is rows, rows of one sequence stand together in segments.
 *
 * Bits. A row's result depends on that row's own inputs and history alone, never on which rows share
 * its batch, on the chunk it was prefilled in, or on the number of threads: every output element is
 * one chain of fused multiply-adds over ascending K (or a fixed lane tree of them, chosen per
 * instruction set), attention walks its positions in tiles that start at multiples of
 * K_TILE_POSITIONS, and experts are added in descending-score order (lower index first on ties).
 *
 * Activations are f32, row-major, rows `width` apart. Weights are [n_out, n_in] as published,
 * y = x W^T. Unless said otherwise functions return nothing and cannot fail: shapes are checked when
 * buffers and weights are made. Thread: one caller per device; the CPU backend forks inside.
 *
 * Source of the formulas: DeepSeek-V2 paper section 2; transformers modeling_deepseek_v2 (>= the
 * version with yarn_apply_mscale); the published modeling_deepseek.py. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define K_TILE_POSITIONS   64u /* attention tile = one page of the pool */
#define K_TOP_MAX          20u
#define K_EXPERTS_USED_MAX 32u
#define K_ID_NONE          UINT32_MAX
#define K_MEMORY_ALIGN     64u /* bytes; the size of a packed weight is a multiple of it */

/* Instruction sets of the CPU backend, as --cpu-mask names them. */
#define K_CPU_AVX2   1u /* with FMA, F16C */
#define K_CPU_AVX512 2u /* F, BW, DQ, VL */
#define K_CPU_VNNI   4u
#define K_CPU_BF16   8u

/* How a weight is kept. K_Q8 and K_Q4: integers of 8 and 4 bits with their scales (8.125 and 4.5 bits a
 * number); their products take the activations in 8 bits too, one scale for 128 numbers. */
enum k_type { K_F32, K_BF16, K_Q8, K_Q4, _K_TYPE_MAX };
/* How a row of the cache is kept, as enum page_entry of the daemon. K_ENTRY_INT8: the latent in 8 bits, [rank]
 * int8; then the f32 scale of each K_ENTRY_GROUP of it, the last possibly of fewer numbers; then the rope part in
 * bf16: 656 bytes for 512 + 64. rank is a multiple of 4. A latent is the bf16 number nearest to
 * int8 * scale. */
enum k_entry { K_ENTRY_F32, K_ENTRY_BF16, K_ENTRY_INT8 };
#define K_ENTRY_GROUP 128u

struct kernels;  /* one device with its op table (below) */
struct k_buffer; /* f32 activations [max_rows, width] on the device */
struct k_weight; /* n_mat matrices [n_out, n_in], packed for the device */

/* Where a weight comes from. Rows are asked for one after the other, in ascending order, so that a
 * file is read upwards and nothing large is held; @row < n_mat * n_out. Return 0 or -errno. */
struct k_source {
	uint32_t n_mat, n_out, n_in;
	enum k_type type; /* how it shall be kept */
	int (*read_row)(void *ctx, uint32_t row,
			float *ret); /* n_in numbers; NULL: @memory has them */
	void *ctx;
	/* Where it shall be kept: as many bytes as kernels_cpu_weight_bytes() says, K_MEMORY_ALIGN
	 * aligned, which outlive the weight; zero, or with read_row NULL what an earlier weight_pack()
	 * of this shape left there (they are only read then). NULL: in memory of its own. */
	void *memory;
};

/* Rows of one sequence, consecutive in the step and in position, all on one path. */
struct k_segment {
	uint32_t first_row, n_rows;
	uint32_t first_pos;
	bool generated;        /* absorbed path; else naive */
	const uint32_t *pages; /* block table; covers first_pos + n_rows positions */
};

struct k_step {
	uint32_t n_rows, n_segments;
	const uint32_t *ids;       /* [n_rows] */
	const uint32_t *positions; /* [n_rows] */
	const struct k_segment *segments;
};

/* The pool as a backend sees it. Row r of stream s of page p is at
 * data + p * stride + stream_offset[s] + r * row_bytes. */
struct k_pool {
	uint8_t *data;
	uint64_t stride, n_pages;
	const uint64_t *stream_offset;
	uint32_t n_streams, row_bytes;
	enum k_entry entry;
};

/* Constants of the attention, the same for all layers. */
struct k_mla {
	uint32_t n_heads, nope, rope, v_head, rank; /* dn, dr, dv, c */
	float scale;                                /* softmax scale with the YaRN factor squared */
	float norm_eps;                             /* kv_a_layernorm: 1e-6 always */
	uint32_t n_positions;
	const float *rope_cos, *rope_sin; /* [n_positions, rope / 2] */
};

struct k_route {
	uint32_t n_experts, n_used;
	uint32_t n_group, topk_group; /* 1, 1: no group limit (greedy) */
	bool sigmoid;                 /* scores; else softmax */
	bool group_top2;              /* V3: groups by the sum of their two best; else the best */
	bool norm_topk;
	float scale;       /* routed_scaling_factor */
	const float *bias; /* e_score_correction_bias [n_experts], or NULL */
};

/* How one row is sampled; semantics and order as vLLM has them. */
struct k_sample {
	float temperature; /* 0: greedy, first index on ties */
	float top_p, min_p;
	uint32_t top_k;
	uint64_t seed;
	uint32_t choice, position; /* with the seed: the Philox key and counter */
	uint32_t n_top;            /* alternatives wanted, <= K_TOP_MAX */
	uint32_t given;            /* K_ID_NONE: draw; else report this id's logprob */
};
struct k_sampled {
	uint32_t id;
	float logprob; /* natural, of the softmax of the logits as given (before temperature and filters) */
	uint32_t n_top;
	struct {
		uint32_t id;
		float logprob;
	} top[K_TOP_MAX]; /* descending, lower id first on ties */
};

/* The CPUs this process may use: the first of each core, then the second of each, and so on. */
#define K_CPUS_MAX 1024u
struct kernels_topology {
	uint32_t n_cpus, n_cores;
	uint16_t cpus[K_CPUS_MAX];
};

struct kernels_config {
	uint32_t
		n_threads; /* 0: one for each core, of whose CPUs the second adds nothing to what the first does */
	uint32_t cpu_mask; /* instruction sets allowed */
	const struct kernels_topology
		*topology; /* borrowed; NULL: threads are where the system puts them */
};

struct kernels {
	const char *name; /* "cpu-avx2", for people */
	void *device;
	uint32_t n_threads;
	uint64_t n_nan_scores; /* router scores that were NaN, ever: each was taken as the lowest */
	uint64_t n_routed;     /* experts that rows went to, ever: each once for a route() */

	void (*free)(struct kernels *k);
	/* @part on each thread of the backend, of which the caller is number 0, until all are through. */
	void (*parallel)(struct kernels *k,
			 void (*part)(void *ctx, uint32_t thread, uint32_t n_threads), void *ctx);

	/* Memory. -ENOMEM; -EINVAL for a shape of 0 or past limits, or memory that does not fit;
	 * what read_row() returned. */
	int (*weight_pack)(struct kernels *k, struct k_weight **ret, const struct k_source *src);
	/* The same numbers in memory of their own. -ENOMEM. */
	int (*weight_copy)(struct kernels *k, struct k_weight **ret, const struct k_weight *w);
	void (*weight_free)(struct kernels *k, struct k_weight *w);
	uint64_t (*weight_bytes)(const struct k_weight *w);
	int (*buffer_new)(struct kernels *k, struct k_buffer **ret, uint32_t max_rows,
			  uint32_t width);
	void (*buffer_free)(struct kernels *k, struct k_buffer *b);
	void (*upload)(struct kernels *k, struct k_buffer *dst, uint32_t row, const float *src,
		       uint32_t n_rows);
	void (*download)(struct kernels *k, float *dst, const struct k_buffer *src, uint32_t row,
			 uint32_t n_rows);

	/* A step: everything between begin and end works on the same rows. -EINVAL: the step
	 * contradicts the pool (a page past n_pages, segments that overlap or leave gaps).
	 * What @step and @pool point at stays as it is until step_end(). */
	int (*step_begin)(struct kernels *k, const struct k_step *step, const struct k_pool *pool);
	/* What went wrong since step_begin(), which the operations could not say: -ENOMEM: no
	 * scratch; -EINVAL: an id or position past its table, a pool row of another width. The rows
	 * of the step are void then, and so they are for logits() and sample(). */
	int (*step_end)(struct kernels *k);

	/* x[n_rows, hidden] = table[ids] */
	void (*embed)(struct kernels *k, struct k_buffer *x, const struct k_weight *table);
	/* y = x * rsqrt(mean(x^2) + eps) * w; the first `w->n_in` columns of each row */
	void (*rmsnorm)(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
			const struct k_weight *w, float eps);
	/* y[n_rows, n_out] = x[n_rows, n_in] W^T */
	void (*linear)(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		       const struct k_weight *w);
	/* x += y */
	void (*add)(struct kernels *k, struct k_buffer *x, const struct k_buffer *y);

	/* kv[n_rows, rank + rope]: norm the first rank with w, rotate the rest, write the row of each
	 * position into its page of @stream. Rotates the rope part of q[n_rows, heads*(nope+rope)]
	 * in place. */
	void (*mla_append)(struct kernels *k, struct k_buffer *q, struct k_buffer *kv,
			   const struct k_weight *norm, const struct k_mla *m, uint32_t stream);
	/* Segments on the prompt path: keys and values expanded from the pool's latents with
	 * kv_b [heads*(nope+v), rank]; out[n_rows, heads*v]. */
	void (*mla_prefill)(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
			    const struct k_weight *kv_b, const struct k_mla *m, uint32_t stream);
	/* Segments on the generated path: w_uk = n_heads matrices [rank, nope] (kv_b's key rows,
	 * transposed), w_uv = n_heads matrices [v, rank]. */
	void (*mla_decode)(struct kernels *k, struct k_buffer *out, const struct k_buffer *q,
			   const struct k_weight *w_uk, const struct k_weight *w_uv,
			   const struct k_mla *m, uint32_t stream);

	/* Scores in f32 from gate [n_experts, hidden]; ids and weights stay on the device until the
	 * next route(). */
	void (*route)(struct kernels *k, const struct k_buffer *x, const struct k_weight *gate,
		      const struct k_route *r);
	/* y += sum over the routed experts of weight * down(silu(gate x) * up x);
	 * gate_up = n_experts matrices [2*inter, hidden] (gate rows first), down [hidden, inter]. */
	void (*experts)(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
			const struct k_weight *gate_up, const struct k_weight *down);
	/* y = down(silu(gate x) * up x), one matrix each, gate_up as above */
	void (*ffn)(struct kernels *k, struct k_buffer *y, const struct k_buffer *x,
		    const struct k_weight *gate_up, const struct k_weight *down);

	/* out[n_pick, n_vocab] = head(rmsnorm(x[picks])) */
	void (*logits)(struct kernels *k, struct k_buffer *out, const struct k_buffer *x,
		       const uint32_t *picks, uint32_t n_picks, const struct k_weight *norm,
		       float eps, const struct k_weight *head);
	/* For each of n rows of logits. Ids >= n_valid or with banned[id] set are never drawn and carry
	 * no probability. -EDOM: some row's logits are not finite, or no id is left in it: that row's
	 * id is K_ID_NONE and the other rows stand. -ENOMEM. What step_end() said, if it was ignored. */
	int (*sample)(struct kernels *k, const struct k_buffer *logits, uint32_t n,
		      uint32_t n_valid, const uint8_t *banned, const struct k_sample *how,
		      struct k_sampled *ret);
	/* What route() chose, for tests and goldens: ids and weights [n_rows, n_used]. */
	void (*routed)(struct kernels *k, uint32_t *ret_ids, float *ret_weights);
	/* Copy whole pages inside the pool (dst[i] <- src[i]). */
	void (*copy_pages)(struct kernels *k, const struct k_pool *pool, const uint32_t *dst,
			   const uint32_t *src, uint32_t n);
};

/**
 * kernels_cpu_weight_bytes() - size of a weight as weight_pack() of the CPU backend keeps it
 * @src: read_row is not called
 *
 * The bytes are in one piece and say nothing of themselves: they follow from type, n_mat, n_out and
 * n_in alone, and are the same on every CPU of one byte order.
 *
 * Return: 0; -EINVAL for a shape that weight_pack() refuses.
 */
int kernels_cpu_weight_bytes(const struct k_source *src, uint64_t *ret);
/** kernels_cpu_detect() - K_CPU_* bits of this machine (and its operating system). */
uint32_t kernels_cpu_detect(void);
/**
 * kernels_cpu_pins() - do @n_threads have a CPU each of their own?
 *
 * Those that are as many as the cores or the CPUs: fewer leave room, and the system knows for whom.
 */
static inline bool kernels_cpu_pins(const struct kernels_topology *t, uint32_t n_threads)
{
	return n_threads == t->n_cores || n_threads == t->n_cpus;
}
/**
 * kernels_cpu_new() - the CPU backend
 * Return: 0 and a table to be freed with k->free(k); -ENOMEM; -errno of thread creation.
 */
int kernels_cpu_new(struct kernels **ret, const struct kernels_config *cfg);

#ifdef __cplusplus
}
#endif
