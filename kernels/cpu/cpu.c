/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend: what the machine can do, its table of operations, buffers, the step. */
#include "cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef K_HAVE_X86
#include <cpuid.h>
#endif

#define HUGE_BYTES (2u << 20)
#define ROWS_MAX   (1u << 20) /* of a buffer */

void *cpu_alloc(uint64_t bytes)
{
	uint64_t align = bytes >= HUGE_BYTES ? HUGE_BYTES : LINE;
	uint64_t rounded;
	void *p;

	if (__builtin_add_overflow(bytes, align - 1, &rounded) || rounded > PTRDIFF_MAX)
		return NULL;
	rounded = rounded / align * align;
	p = aligned_alloc(align, rounded ? rounded : align);
	if (!p)
		return NULL;
	if (align == HUGE_BYTES)
		madvise(p, rounded, MADV_HUGEPAGE); /* a hint: without it only the TLB suffers */
	memset(p, 0, rounded ? rounded : align);
	return p;
}

void *cpu_scratch(struct cpu *c, enum scratch_slot slot, uint64_t bytes)
{
	struct scratch *s = &c->scratch[slot];

	if (s->bytes >= bytes && s->data)
		return s->data;
	free(s->data);
	s->bytes = 0;
	s->data = cpu_alloc(bytes);
	if (s->data)
		s->bytes = bytes;
	else
		c->failed = -ENOMEM;
	return s->data;
}

uint32_t kernels_cpu_detect(void)
{
	uint32_t ret = 0;
#ifdef K_HAVE_X86
	const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
	const uint32_t avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
	const uint32_t ymm_state = 0x6, zmm_state = 0xe6; /* what the system saves: XCR0 */
	uint32_t a, b, c, d, features, xcr0_low, xcr0_high;

	if (!__get_cpuid(1, &a, &b, &features, &d) || !(features & osxsave) || !(features & avx))
		return 0;
	__asm__("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (xcr0_low & ymm_state) != ymm_state)
		return 0;
	if (!(b & avx2) || !(features & fma) || !(features & f16c))
		return 0;
	ret |= K_CPU_AVX2;
	if ((b & avx512) != avx512 || (xcr0_low & zmm_state) != zmm_state)
		return ret;
	ret |= K_CPU_AVX512;
	if (c & 1u << 11)
		ret |= K_CPU_VNNI;
	if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5))
		ret |= K_CPU_BF16;
#endif
	return ret;
}

static int cpu_buffer_new(struct kernels *k, struct k_buffer **ret, uint32_t max_rows,
			  uint32_t width)
{
	struct k_buffer *b;

	(void)k;
	if (max_rows == 0 || width == 0 || max_rows > ROWS_MAX)
		return -EINVAL;
	b = malloc(sizeof(*b));
	if (!b)
		return -ENOMEM;
	*b = (struct k_buffer){
		.max_rows = max_rows, .width = width, .stride = cpu_row_stride(width)};
	b->data = cpu_alloc(max_rows * b->stride * sizeof(float));
	if (!b->data) {
		free(b);
		return -ENOMEM;
	}
	*ret = b;
	return 0;
}

static void cpu_buffer_free(struct kernels *k, struct k_buffer *b)
{
	(void)k;
	if (!b)
		return;
	free(b->data);
	free(b);
}

static void cpu_upload(struct kernels *k, struct k_buffer *dst, uint32_t row, const float *src,
		       uint32_t n_rows)
{
	(void)k;
	for (uint32_t i = 0; i < n_rows; i++)
		memcpy(buffer_row(dst, row + i), src + (size_t)i * dst->width,
		       dst->width * sizeof(*src));
}

static void cpu_download(struct kernels *k, float *dst, const struct k_buffer *src, uint32_t row,
			 uint32_t n_rows)
{
	(void)k;
	for (uint32_t i = 0; i < n_rows; i++)
		memcpy(dst + (size_t)i * src->width, buffer_row(src, row + i),
		       src->width * sizeof(*dst));
}

static int segment_check(const struct k_step *step, const struct k_segment *s, uint32_t row,
			 const struct k_pool *pool)
{
	uint64_t end = (uint64_t)s->first_pos + s->n_rows;

	if (s->first_row != row || s->n_rows == 0 || s->n_rows > step->n_rows - row ||
	    end > UINT32_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < s->n_rows; i++)
		if (step->positions[row + i] != s->first_pos + i)
			return -EINVAL;
	for (uint64_t i = 0; i * K_TILE_POSITIONS < end; i++)
		if (s->pages[i] >= pool->n_pages)
			return -EINVAL;
	return 0;
}

static int cpu_step_begin(struct kernels *k, const struct k_step *step, const struct k_pool *pool)
{
	struct cpu *c = cpu_of(k);
	uint32_t row = 0;

	if (step->n_rows == 0 || pool->entry > K_ENTRY_INT8)
		return -EINVAL;
	for (uint32_t i = 0; i < step->n_segments; i++) {
		int r = segment_check(step, &step->segments[i], row, pool);

		if (r < 0)
			return r;
		row += step->segments[i].n_rows;
	}
	if (row != step->n_rows)
		return -EINVAL;
	c->step = *step;
	c->pool = *pool;
	c->failed = 0;
	return 0;
}

static int cpu_step_end(struct kernels *k)
{
	return cpu_of(k)->failed;
}

static void cpu_copy_pages(struct kernels *k, const struct k_pool *pool, const uint32_t *dst,
			   const uint32_t *src, uint32_t n)
{
	(void)k;
	for (uint32_t i = 0; i < n; i++)
		if (dst[i] != src[i])
			memcpy(pool->data + dst[i] * pool->stride,
			       pool->data + src[i] * pool->stride, pool->stride);
}

static void cpu_free(struct kernels *k)
{
	struct cpu *c = cpu_of(k);

	if (!k)
		return;
	threads_free(c->threads);
	for (uint32_t i = 0; i < _SCRATCH_MAX; i++)
		free(c->scratch[i].data);
	free(c);
}

const struct cpu_isa *cpu_isa_pick(uint32_t mask)
{
#ifdef K_HAVE_X86
	uint32_t cpu = kernels_cpu_detect() & mask;

	if (cpu & K_CPU_AVX512 && cpu & K_CPU_VNNI)
		return cpu & K_CPU_BF16 ? &cpu_isa_bf16 : &cpu_isa_vnni;
	if (cpu & K_CPU_AVX512)
		return &cpu_isa_avx512;
	if (cpu & K_CPU_AVX2)
		return &cpu_isa_avx2;
#else
	(void)mask;
#endif
	return &cpu_isa_scalar;
}

int cpu_threads_new(struct threads **ret, const struct kernels_config *cfg)
{
	const struct kernels_topology *t = cfg->topology;
	uint32_t n = cfg->n_threads;

	if (n == 0)
		n = t ? t->n_cores : threads_cpus();
	return threads_new(ret, n, t && kernels_cpu_pins(t, n) ? t->cpus : NULL);
}

static void cpu_parallel(struct kernels *k,
			 void (*part)(void *ctx, uint32_t thread, uint32_t n_threads), void *ctx)
{
	threads_run(cpu_of(k)->threads, UINT64_MAX, part, ctx);
}

int kernels_cpu_new(struct kernels **ret, const struct kernels_config *cfg)
{
	struct cpu *c;
	int r;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->isa = *cpu_isa_pick(cfg->cpu_mask);
	c->k = (struct kernels){
		.name = c->isa.name,
		.device = c,
		.free = cpu_free,
		.parallel = cpu_parallel,
		.weight_pack = cpu_weight_pack,
		.weight_copy = cpu_weight_copy,
		.weight_free = cpu_weight_free,
		.weight_bytes = cpu_weight_bytes,
		.buffer_new = cpu_buffer_new,
		.buffer_free = cpu_buffer_free,
		.upload = cpu_upload,
		.download = cpu_download,
		.step_begin = cpu_step_begin,
		.step_end = cpu_step_end,
		.embed = cpu_embed,
		.rmsnorm = cpu_rmsnorm,
		.linear = cpu_linear_op,
		.add = cpu_add,
		.mla_append = cpu_mla_append,
		.mla_prefill = cpu_mla_prefill,
		.mla_decode = cpu_mla_decode,
		.route = cpu_route,
		.routed = cpu_routed,
		.experts = cpu_experts,
		.ffn = cpu_ffn,
		.logits = cpu_logits,
		.sample = cpu_sample,
		.copy_pages = cpu_copy_pages,
	};
	r = cpu_threads_new(&c->threads, cfg);
	if (r < 0) {
		free(c);
		return r;
	}
	c->n_threads = c->k.n_threads = threads_count(c->threads);
	*ret = &c->k;
	return 0;
}
