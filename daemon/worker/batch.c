/* SPDX-License-Identifier: Apache-2.0 */
/* Order of checks: the step alone (rows), then each slot it names (generation, parameters, block
 * table), then the ids. A slot is private memory once its generation was read; only the number of
 * ids, the ids and the block table grow while a sequence runs, and each of them is copied once for
 * each step that uses it. */
#include "worker/batch.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"

/* What is remembered of a slot between steps. */
struct batch_slot {
	uint64_t generation;
	uint64_t seen_seq;                   /* of the step that had rows of it last */
	uint32_t n_known;                    /* ids[0 .. n_known) are those of the sequence */
	uint32_t sample_position, sample_id; /* last sample; position 0: none */
	uint8_t domain[16], shared_domain[16];
	uint32_t n_shared;
	struct channel_params params;
};

struct batch {
	struct channel_shape shape;
	uint32_t n_vocab, n_pages;
	struct batch_slot *slots; /* [n_slots] */
	uint32_t *ids;            /* [n_slots][max_tokens] */
	uint32_t *pages;          /* [n_slots][max_pages] */
	struct channel_row *rows; /* [max_rows], and so below */
	uint32_t *row_ids, *row_positions;
	struct k_segment *segments;
	struct engine_sequence *sequences;
	struct engine_want *wants;
};

/* Ranges no request may leave; the broker's own are narrower. */
#define TEMPERATURE_MAX 100.0f
#define PENALTY_MAX     100.0f
#define BIAS_MAX        1e6f

/* The barrier keeps the compiler from reading the original again after the copy was checked. */
static void copy_shared(void *dst, const void *shared, size_t n)
{
	memcpy(dst, shared, n);
	__asm__ volatile("" ::: "memory");
}

struct batch *batch_free(struct batch *b)
{
	if (!b)
		return NULL;
	free(b->slots);
	free(b->ids);
	free(b->pages);
	free(b->rows);
	free(b->row_ids);
	free(b->row_positions);
	free(b->segments);
	free(b->sequences);
	free(b->wants);
	free(b);
	return NULL;
}

int batch_new(struct batch **ret, const struct channel_shape *shape, uint32_t n_vocab,
	      uint32_t n_pages)
{
	_cleanup_(batch_freep) struct batch *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	*b = (struct batch){.shape = *shape, .n_vocab = n_vocab, .n_pages = n_pages};
	b->slots = calloc(shape->n_slots, sizeof(*b->slots));
	/* Untouched parts of these two cost no memory. */
	b->ids = calloc((size_t)shape->n_slots * shape->max_tokens, sizeof(*b->ids));
	b->pages = calloc((size_t)shape->n_slots * shape->max_pages, sizeof(*b->pages));
	b->rows = calloc(shape->max_rows, sizeof(*b->rows));
	b->row_ids = calloc(shape->max_rows, sizeof(*b->row_ids));
	b->row_positions = calloc(shape->max_rows, sizeof(*b->row_positions));
	b->segments = calloc(shape->max_rows, sizeof(*b->segments));
	b->sequences = calloc(shape->max_rows, sizeof(*b->sequences));
	b->wants = calloc(shape->max_rows, sizeof(*b->wants));
	if (!b->slots || !b->ids || !b->pages || !b->rows || !b->row_ids || !b->row_positions ||
	    !b->segments || !b->sequences || !b->wants)
		return -ENOMEM;
	*ret = TAKE_PTR(b);
	return 0;
}

static bool in_range(float x, float min, float max)
{
	return x >= min && x <= max; /* false for a NaN */
}

static int check_params(const struct batch *b, uint32_t slot, const struct channel_params *p,
			struct error *err)
{
	const char *wrong = NULL;

	if (p->n_prompt == 0 || p->n_prompt > b->shape.max_tokens)
		wrong = "n_prompt";
	else if (!in_range(p->temperature, 0, TEMPERATURE_MAX))
		wrong = "temperature";
	else if (!in_range(p->top_p, 0, 1) || p->top_p == 0)
		wrong = "top_p";
	else if (!in_range(p->min_p, 0, 1))
		wrong = "min_p";
	else if (p->n_top > CHANNEL_TOP_MAX)
		wrong = "n_top";
	else if (!in_range(p->repetition_penalty, 1 / PENALTY_MAX, PENALTY_MAX))
		wrong = "repetition_penalty";
	else if (!in_range(p->presence_penalty, -PENALTY_MAX, PENALTY_MAX))
		wrong = "presence_penalty";
	else if (!in_range(p->frequency_penalty, -PENALTY_MAX, PENALTY_MAX))
		wrong = "frequency_penalty";
	else if (p->ignore_eos > 1)
		wrong = "ignore_eos";
	else if (p->n_bias > CHANNEL_BIAS_MAX)
		wrong = "n_bias";
	for (uint32_t i = 0; !wrong && i < p->n_bias; i++)
		if (p->bias[i].id >= b->n_vocab || !in_range(p->bias[i].bias, -BIAS_MAX, BIAS_MAX))
			wrong = "bias";
	if (wrong)
		return error_set(err, -EBADMSG, "slot %u: parameter %s is out of range", slot,
				 wrong);
	return 0;
}

/* Copies the parameters when the slot holds another sequence than last time. */
static int read_params(struct batch *b, uint32_t i, struct channel_slot *shared, struct error *err)
{
	struct batch_slot *s = &b->slots[i];
	uint64_t generation = atomic_load_explicit(&shared->generation, memory_order_acquire);
	struct batch_slot fresh = {.generation = generation, .seen_seq = s->seen_seq};
	int r;

	if (generation == 0 || generation % 2)
		return error_set(err, -EBADMSG, "slot %u is being written (generation %llu)", i,
				 (unsigned long long)generation);
	if (generation == s->generation)
		return 0;
	copy_shared(&fresh.params, &shared->params, sizeof(fresh.params));
	copy_shared(fresh.domain, shared->domain, sizeof(fresh.domain));
	copy_shared(fresh.shared_domain, shared->shared_domain, sizeof(fresh.shared_domain));
	copy_shared(&fresh.n_shared, &shared->n_shared, sizeof(fresh.n_shared));
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load_explicit(&shared->generation, memory_order_relaxed) != generation)
		return error_set(err, -EBADMSG, "slot %u changed while it was read", i);
	r = check_params(b, i, &fresh.params, err);
	if (r < 0)
		return r;
	*s = fresh;
	return 0;
}

static int read_pages(struct batch *b, uint32_t i, struct channel_slot *shared, uint32_t n_pages,
		      struct error *err)
{
	uint32_t n_shared = __atomic_load_n(&shared->n_pages, __ATOMIC_ACQUIRE);
	uint32_t *pages = b->pages + (size_t)i * b->shape.max_pages;

	if (n_shared > b->shape.max_pages || n_shared < n_pages)
		return error_set(err, -EBADMSG, "slot %u has %u pages: want %u to %u", i, n_shared,
				 n_pages, b->shape.max_pages);
	copy_shared(pages, channel_slot_pages(shared), sizeof(*pages) * n_pages);
	for (uint32_t p = 0; p < n_pages; p++)
		if (pages[p] >= b->n_pages)
			return error_set(err, -EBADMSG,
					 "slot %u: page %u of %u is %u, want less than %u", i, p,
					 n_pages, pages[p], b->n_pages);
	return 0;
}

/* The ids before the first row, as far as they are not known from earlier steps. */
static int read_ids(struct batch *b, uint32_t i, struct channel_slot *shared, uint32_t n_shared,
		    uint32_t first_pos, struct error *err)
{
	struct batch_slot *s = &b->slots[i];
	uint32_t *ids = b->ids + (size_t)i * b->shape.max_tokens;

	if (first_pos <= s->n_known)
		return 0;
	if (n_shared < first_pos)
		return error_set(err, -EBADMSG, "slot %u: row at position %u, but only %u ids", i,
				 first_pos, MAX(n_shared, s->n_known));
	copy_shared(ids + s->n_known, channel_slot_ids(shared, &b->shape) + s->n_known,
		    sizeof(*ids) * (first_pos - s->n_known));
	for (uint32_t p = s->n_known; p < first_pos; p++)
		if (ids[p] >= b->n_vocab)
			return error_set(err, -EBADMSG,
					 "slot %u: id %u at position %u, want less than %u", i,
					 ids[p], p, b->n_vocab);
	s->n_known = first_pos;
	return 0;
}

static int check_row(const struct batch *b, uint32_t i, struct error *err)
{
	const struct channel_row *row = &b->rows[i];

	if (row->slot >= b->shape.n_slots)
		return error_set(err, -EBADMSG, "row %u: slot %u, want less than %u", i, row->slot,
				 b->shape.n_slots);
	if (row->position >= b->shape.max_tokens)
		return error_set(err, -EBADMSG, "row %u: position %u, want less than %u", i,
				 row->position, b->shape.max_tokens);
	if (row->token >= b->n_vocab && row->token != CHANNEL_FROM_LAST_SAMPLE)
		return error_set(err, -EBADMSG, "row %u: id %u, want less than %u", i, row->token,
				 b->n_vocab);
	if (row->path != CHANNEL_PROMPT && row->path != CHANNEL_GENERATED)
		return error_set(err, -EBADMSG, "row %u: path %u is unknown", i, row->path);
	/* One answer for each row: a draw, or the logprob of an id that is there already. */
	if (row->flags & ~(CHANNEL_WANT_LOGITS | CHANNEL_WANT_PROMPT_LOGPROB) ||
	    row->flags == (CHANNEL_WANT_LOGITS | CHANNEL_WANT_PROMPT_LOGPROB))
		return error_set(err, -EBADMSG, "row %u: flags 0x%x", i, row->flags);
	if (row->mask != UINT32_MAX)
		return error_set(err, -EBADMSG, "row %u: mask %u, but the channel has none", i,
				 row->mask);
	return 0;
}

static int row_token(const struct batch *b, uint32_t i, uint32_t *ret, struct error *err)
{
	const struct channel_row *row = &b->rows[i];
	const struct batch_slot *s = &b->slots[row->slot];

	*ret = row->token;
	if (row->token != CHANNEL_FROM_LAST_SAMPLE)
		return 0;
	if (s->sample_position == 0 || s->sample_position != row->position)
		return error_set(err, -EBADMSG, "row %u: no sample of slot %u for position %u", i,
				 row->slot, row->position);
	*ret = s->sample_id;
	return 0;
}

/* What a row with CHANNEL_WANT_PROMPT_LOGPROB asks for: the id after it. */
static int next_id(const struct batch *b, uint32_t i, struct channel_slot *shared,
		   uint32_t n_shared, uint32_t *ret, struct error *err)
{
	const struct channel_row *row = &b->rows[i];
	uint32_t id;

	if (row->position + 1 >= b->shape.max_tokens || row->position + 1 >= n_shared)
		return error_set(err, -EBADMSG, "row %u: slot %u has no id after position %u", i,
				 row->slot, row->position);
	id = __atomic_load_n(channel_slot_ids(shared, &b->shape) + row->position + 1,
			     __ATOMIC_RELAXED);
	if (id >= b->n_vocab)
		return error_set(err, -EBADMSG, "slot %u: id %u at position %u, want less than %u",
				 row->slot, id, row->position + 1, b->n_vocab);
	*ret = id;
	return 0;
}

/* Rows [first, first + n) are those of one slot: adds one sequence, its segments and its wants. */
static int read_sequence(struct batch *b, void *channel, uint32_t first, uint32_t n,
			 struct engine_step *step, struct error *err)
{
	uint32_t i = b->rows[first].slot, last_pos = b->rows[first + n - 1].position, n_shared;
	struct channel_slot *shared = channel_slot(channel, &b->shape, i);
	struct batch_slot *s = &b->slots[i];
	uint32_t *ids = b->ids + (size_t)i * b->shape.max_tokens;
	uint32_t n_pages = last_pos / PAGE_TOKENS + 1;
	int r;

	if (s->seen_seq == step->seq)
		return error_set(err, -EBADMSG, "rows of slot %u do not stand together", i);
	s->seen_seq = step->seq;
	r = read_params(b, i, shared, err);
	if (r < 0)
		return r;
	r = read_pages(b, i, shared, n_pages, err);
	if (r < 0)
		return r;
	n_shared = __atomic_load_n(&shared->n_ids, __ATOMIC_ACQUIRE);
	if (n_shared > b->shape.max_tokens)
		return error_set(err, -EBADMSG, "slot %u has %u ids: want at most %u", i, n_shared,
				 b->shape.max_tokens);
	for (uint32_t k = first; k < first + n; k++) {
		const struct channel_row *row = &b->rows[k];
		struct k_segment *g = &b->segments[step->k.n_segments];
		uint32_t given = UINT32_MAX;

		/* A gap is a prefix found in the middle; its ids are in the slot. */
		r = read_ids(b, i, shared, n_shared, row->position, err);
		if (r < 0)
			return r;
		r = row_token(b, k, &b->row_ids[k], err);
		if (r < 0)
			return r;
		ids[row->position] = b->row_ids[k];
		s->n_known = row->position + 1;
		b->row_positions[k] = row->position;
		if (k == first || row->position != b->rows[k - 1].position + 1 ||
		    row->path != b->rows[k - 1].path) {
			*g = (struct k_segment){
				.first_row = k,
				.first_pos = row->position,
				.generated = row->path == CHANNEL_GENERATED,
				.pages = b->pages + (size_t)i * b->shape.max_pages,
			};
			step->k.n_segments++;
		}
		b->segments[step->k.n_segments - 1].n_rows++;
		if (row->flags & CHANNEL_WANT_PROMPT_LOGPROB) {
			r = next_id(b, k, shared, n_shared, &given, err);
			if (r < 0)
				return r;
		}
		if (row->flags)
			b->wants[step->n_wants++] = (struct engine_want){
				.row = k, .sequence = step->n_sequences, .given = given};
	}
	b->sequences[step->n_sequences++] = (struct engine_sequence){
		.slot = i,
		.first_row = first,
		.n_rows = n,
		.generation = s->generation,
		.domain = s->domain,
		.shared_domain = s->shared_domain,
		.n_shared = s->n_shared,
		.params = &s->params,
		.ids = ids,
		.pages = b->pages + (size_t)i * b->shape.max_pages,
		.n_pages = n_pages,
	};
	return 0;
}

int batch_read(struct batch *b, void *channel, uint32_t i, struct engine_step *ret,
	       struct error *err)
{
	struct channel_step *shared = channel_step(channel, &b->shape, i), head;
	uint32_t n;
	int r;

	copy_shared(&head, shared, sizeof(head));
	*ret = (struct engine_step){
		.seq = head.seq,
		.k = {.n_rows = head.n_rows,
		      .ids = b->row_ids,
		      .positions = b->row_positions,
		      .segments = b->segments},
		.sequences = b->sequences,
		.wants = b->wants,
	};
	if (head.seq == 0 || head.n_rows == 0 || head.n_rows > b->shape.max_rows)
		return error_set(err, -EBADMSG, "step %llu of %u rows: want 1 to %u",
				 (unsigned long long)head.seq, head.n_rows, b->shape.max_rows);
	copy_shared(b->rows, channel_step_rows(shared), sizeof(*b->rows) * head.n_rows);
	for (uint32_t k = 0; k < head.n_rows; k++) {
		r = check_row(b, k, err);
		if (r < 0)
			return r;
		if (k > 0 && b->rows[k].slot == b->rows[k - 1].slot &&
		    b->rows[k].position <= b->rows[k - 1].position)
			return error_set(err, -EBADMSG,
					 "row %u: position %u does not come after %u", k,
					 b->rows[k].position, b->rows[k - 1].position);
	}
	for (uint32_t k = 0; k < head.n_rows; k += n) {
		for (n = 1; k + n < head.n_rows && b->rows[k + n].slot == b->rows[k].slot;)
			n++;
		r = read_sequence(b, channel, k, n, ret, err);
		if (r < 0)
			return r;
	}
	return 0;
}

void batch_note_sample(struct batch *b, uint32_t slot, uint32_t position, uint32_t id)
{
	b->slots[slot].sample_position = position;
	b->slots[slot].sample_id = id;
}
