/* SPDX-License-Identifier: Apache-2.0 */
#include "layout/channel.h"

#include <errno.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "layout/page.h"

int channel_shape_init(struct channel_shape *s, uint32_t n_slots, uint32_t max_rows,
		       uint32_t max_tokens, struct error *err)
{
	uint64_t at = ALIGN_UP(sizeof(struct channel_header), 4096u);

	if (n_slots == 0 || n_slots > CHANNEL_SLOTS_MAX)
		return error_set(err, -EINVAL, "a channel of %u slots: want 1 to %u", n_slots,
				 CHANNEL_SLOTS_MAX);
	if (max_rows == 0 || max_rows > CHANNEL_ROWS_MAX)
		return error_set(err, -EINVAL, "steps of %u rows: want 1 to %u", max_rows,
				 CHANNEL_ROWS_MAX);
	if (max_tokens == 0 || max_tokens > IMAGE_CONTEXT_MAX)
		return error_set(err, -EINVAL, "sequences of %u tokens: want 1 to %u", max_tokens,
				 IMAGE_CONTEXT_MAX);
	*s = (struct channel_shape){
		.n_slots = n_slots,
		.max_rows = max_rows,
		.max_tokens = max_tokens,
		.max_pages = DIV_ROUND_UP(max_tokens, PAGE_TOKENS),
	};
	s->slot_offset = at;
	s->slot_stride = ALIGN_UP(sizeof(struct channel_slot) +
					  sizeof(uint32_t) * ((uint64_t)s->max_pages + max_tokens),
				  4096u);
	at += s->slot_stride * n_slots;
	s->step_offset = at;
	s->step_stride = ALIGN_UP(sizeof(struct channel_step) +
					  sizeof(struct channel_row) * (uint64_t)max_rows,
				  4096u);
	at += s->step_stride * CHANNEL_DEPTH;
	s->result_offset = at;
	s->result_stride = ALIGN_UP(sizeof(struct channel_result) +
					    sizeof(struct channel_result_row) * (uint64_t)max_rows,
				    4096u);
	at += s->result_stride * CHANNEL_DEPTH;
	s->total_bytes = at;
	return 0;
}
