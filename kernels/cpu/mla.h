#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the three attention operations share: pages, and tiles read out of them.
 *
 * Both paths do one tile of K_TILE_POSITIONS positions at a time, lanes side by side: a lane is one
 * row of one head (prefill) or one head of one row (decode). Queries are packed [d][lane], so that
 *
 *   scores [position][lane] = tile [position][d] x queries [d][lane]
 *   out    [lane][v]       += weights [position][lane]^T x values [position][v]
 *
 * are both the product of linear.c, one chain of fused multiply-adds per element; a cache row is
 * loaded once for all lanes and nothing is summed across a vector. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "cpu.h"

#define MLA_LANES_MAX 32u

static inline uint8_t *mla_pool_row(const struct k_pool *p, const uint32_t *pages, uint32_t pos,
				    uint32_t stream)
{
	return p->data + pages[pos / K_TILE_POSITIONS] * p->stride + p->stream_offset[stream] +
	       (uint64_t)(pos % K_TILE_POSITIONS) * p->row_bytes;
}

/* Positions [first, first + n) of one page, as f32 rows @stride apart. */
static inline void mla_load_tile(const struct cpu *c, const struct k_mla *m, const uint32_t *pages,
				 uint32_t stream, uint32_t first, uint32_t n, float *ret,
				 size_t stride)
{
	uint32_t width = m->rank + m->rope;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *row = mla_pool_row(&c->pool, pages, first + i, stream);
		float *to = ret + i * stride;
		uint16_t *half = (uint16_t *)to + width; /* in the row's second half */

		switch (c->pool.entry) {
		case K_ENTRY_F32:
			memcpy(to, row, width * sizeof(*to));
			break;
		case K_ENTRY_BF16:
			c->isa.load_bf16(to, (const uint16_t *)row, width);
			break;
		case K_ENTRY_INT8:
			c->isa.load_int8(half, row, m->rank, m->rope);
			c->isa.load_bf16(to, half, width);
			break;
		}
	}
}

/* As struct mla_tile wants its numbers. */
static inline uint16_t mla_bf16(float x)
{
	return fabsf(x) < MLA_SMALLEST ? 0 : bf16_from_f32(x);
}

_Static_assert(K_ENTRY_GROUP == Q_GROUP, "an entry is quantised as a row of activations is");

/* A group of latents, of an entry or a query; a scale so small that its numbers would not do is none. */
static inline void mla_quantise(const struct cpu *c, struct q_row *ret, const float *x, uint32_t n)
{
	c->isa.quantise(ret, x, n);
	if (ret->d < MLA_SMALLEST)
		*ret = (struct q_row){};
}

/* Whether the pool holds rows of this attention; if not, the step has failed. */
static inline bool mla_pool_fits(struct cpu *c, const struct k_mla *m, uint32_t stream)
{
	uint32_t bytes[] = {
		[K_ENTRY_F32] = 4 * (m->rank + m->rope),
		[K_ENTRY_BF16] = 2 * (m->rank + m->rope),
		[K_ENTRY_INT8] = m->rank + 4 * cpu_entry_groups(m->rank) + 2 * m->rope,
	};

	if (stream < c->pool.n_streams && c->pool.row_bytes == bytes[c->pool.entry] &&
	    !(c->pool.entry == K_ENTRY_INT8 && (m->rank % 4 || m->rope % 2)))
		return true;
	c->failed = -EINVAL;
	return false;
}
