/* SPDX-License-Identifier: Apache-2.0 */
/* Final norm and head, for the rows that want them. */
#include <assert.h>
#include <string.h>

#include "cpu.h"

void cpu_logits(struct kernels *k, struct k_buffer *out, const struct k_buffer *x,
		const uint32_t *picks, uint32_t n_picks, const struct k_weight *norm, float eps,
		const struct k_weight *head)
{
	struct cpu *c = cpu_of(k);
	const float **xs;
	float **ys, *normed;

	assert(norm->panel == 1 && norm->n_in <= x->width && head->n_in == norm->n_in);
	assert(n_picks <= out->max_rows && head->n_out <= out->width);
	if (n_picks == 0)
		return;
	xs = cpu_scratch(c, SCRATCH_ROWS, 2 * (uint64_t)n_picks * sizeof(*xs));
	normed = cpu_scratch(c, SCRATCH_A, (uint64_t)n_picks * norm->n_in * sizeof(*normed));
	if (!xs || !normed)
		return;
	ys = (float **)(xs + n_picks);
	for (uint32_t i = 0; i < n_picks; i++) {
		assert(picks[i] < x->max_rows);
		xs[i] = normed + (size_t)i * norm->n_in;
		ys[i] = buffer_row(out, i);
		c->isa.rmsnorm(normed + (size_t)i * norm->n_in, buffer_row(x, picks[i]),
			       (const float *)norm->data, norm->n_in, eps);
	}
	cpu_linear(c, ys, xs, n_picks, head);
}
