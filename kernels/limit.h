#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do at most, for figures to be a share of: reading memory, and multiplying in
 * registers with the instructions that the products of the same configuration use.
 *
 * Bandwidth and clocks drift with the neighbours: whoever reports a share measures the limit beside
 * the work. Functions run one round on all threads and return how much was done; the caller times. */
#include "kernels.h"

#define LIMITS_READ_BYTES (256u << 20) /* of one round: more than the caches hold */

struct limits;

/** limits_new() - @cfg as for kernels_cpu_new(). Return: 0; -ENOMEM; -errno of thread creation. */
int limits_new(struct limits **ret, const struct kernels_config *cfg);
struct limits *limits_free(struct limits *l);
/** limits_read() - Return: bytes read, every line once. */
double limits_read(struct limits *l);
/**
 * limits_float() - products of floats, added up in f32
 * @type: K_F32: fused multiply-adds; K_BF16: of numbers in bf16, with VDPBF16PS where there is one
 * Return: operations, two for a product.
 */
double limits_float(struct limits *l, enum k_type type);
/**
 * limits_int8() - products of bytes, added up
 * @type: K_Q4: with AVX2, sums of sixteen bits, all that 4-bit weights need most of the time; else sums
 *        of 32 bits. Other instruction sets do the same for both.
 * Return: operations, two for a product.
 */
double limits_int8(struct limits *l, enum k_type type);
