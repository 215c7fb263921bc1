/* SPDX-License-Identifier: Apache-2.0 */
#include "sched_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "plain_io.h"

#define ROW_BYTES 8u

static uint64_t mix(uint64_t before, uint32_t token)
{
	uint64_t x = before * UINT64_C(0x9e3779b97f4a7c15) + token + 1;

	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 32;
}

static uint32_t sample(const struct rig *r, uint64_t value)
{
	if (r->eos_one_in && value / RIG_VOCAB % r->eos_one_in == 0)
		return RIG_EOS;
	return (uint32_t)(value % (RIG_VOCAB - 1));
}

static size_t meta_bytes(const struct rig *r)
{
	return PAGE_META_HEADER_BYTES + pool_n_pages(r->pool) * sizeof(struct page_record);
}

/* The pool keeps the descriptor for itself: found by its name. */
static void map_meta(struct rig *r)
{
	for (int fd = 63; fd > 2; fd--) { /* the newest, should a failed test have left one */
		char path[32], target[64] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (readlink(path, target, sizeof(target) - 1) < 0 ||
		    !strstr(target, "dsd-pool-meta"))
			continue;
		r->meta = mmap(NULL, meta_bytes(r), PROT_READ, MAP_SHARED, fd, 0);
		assert_ptr_not_equal(r->meta, MAP_FAILED);
		return;
	}
	fail_msg("no pool-meta among the descriptors");
}

void rig_new_worker(struct rig *r)
{
	struct error err = {};

	sched_set_channel(r->sched, NULL);
	if (r->shared)
		munmap(r->shared, r->shape.total_bytes);
	r->channel = channel_free(r->channel);
	assert_int_equal(channel_new(&r->channel, &r->io, r->shape.n_slots, r->shape.max_rows,
				     r->shape.max_tokens, &err),
			 0);
	r->shared = mmap(NULL, r->shape.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			 channel_fd(r->channel), 0);
	assert_ptr_not_equal(r->shared, MAP_FAILED);
	r->n_done = 0;
	memset(r->n_before, 0, sizeof(r->n_before));
	sched_set_channel(r->sched, r->channel);
}

struct rig *rig_new(const struct rig_config *cfg)
{
	const struct image_stream stream = {0, ROW_BYTES};
	struct rig *r = calloc(1, sizeof(*r));
	struct pool_config *pc = calloc(1, sizeof(*pc));
	const uint64_t limits[_QUOTA_MAX] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
	struct sched_config sc;

	assert_true(r && pc);
	r->io.ops = &plain_io_ops;
	*pc = (struct pool_config){.io = &r->io, .n_pages = cfg->n_pages, .key = {1}};
	assert_int_equal(page_geometry_init(&pc->geometry, &stream, 1, NULL), 0);
	assert_int_equal(pool_new(&r->pool, pc, NULL), 0);
	r->data = mmap(NULL, cfg->n_pages * pc->geometry.stride, PROT_READ | PROT_WRITE, MAP_SHARED,
		       pool_data_fd(r->pool), 0);
	assert_ptr_not_equal(r->data, MAP_FAILED);
	map_meta(r);
	assert_int_equal(quota_new(&r->quota, limits), 0);
	sc = (struct sched_config){
		.io = &r->io,
		.pool = r->pool,
		.quota = r->quota,
		.n_slots = cfg->n_slots,
		.step_tokens = cfg->step_tokens,
		.max_tokens = cfg->max_tokens,
		.n_vocab = RIG_VOCAB,
		.queue_max = cfg->queue_max,
	};
	assert_int_equal(sched_new(&r->sched, &sc), 0);
	assert_int_equal(channel_shape_init(&r->shape, cfg->n_slots,
					    cfg->n_slots + cfg->step_tokens, cfg->max_tokens, NULL),
			 0);
	rig_new_worker(r);
	free(pc);
	return r;
}

struct rig *rig_free(struct rig *r)
{
	assert_int_equal(pool_n_available(r->pool), pool_n_pages(r->pool));
	assert_int_equal(quota_total(r->quota, QUOTA_PAGES), 0);
	munmap(r->data, pool_n_pages(r->pool) * pool_geometry(r->pool)->stride);
	munmap((void *)r->meta, meta_bytes(r));
	munmap(r->shared, r->shape.total_bytes);
	sched_free(r->sched);
	channel_free(r->channel);
	quota_free(r->quota);
	pool_free(r->pool);
	free(r);
	return NULL;
}

static uint64_t *cell(struct rig *r, const struct channel_slot *slot, uint32_t position)
{
	const uint32_t *pages = channel_slot_pages((void *)slot);

	assert_true(position / PAGE_TOKENS < slot->n_pages);
	assert_true(pages[position / PAGE_TOKENS] < pool_n_pages(r->pool));
	return (uint64_t *)page_row(r->data, pool_geometry(r->pool), pages[position / PAGE_TOKENS],
				    0, position % PAGE_TOKENS);
}

/* Every page that is full before @position is sealed, and its record says what the slot says. */
static void check_sealed(struct rig *r, const struct channel_slot *slot,
			 const struct channel_row *row)
{
	uint32_t position = row->position;
	const struct page_record *records = (const void *)(r->meta + PAGE_META_HEADER_BYTES);
	const uint32_t *pages = channel_slot_pages((void *)slot);
	const uint32_t *ids = channel_slot_ids((void *)slot, &r->shape);
	uint8_t chain[16];

	memcpy(chain, slot->domain, sizeof(chain));
	for (uint32_t i = 0; i < position / PAGE_TOKENS; i++) {
		const struct page_record *rec = &records[pages[i]];

		/* The scheduler may not have seen the result of the step before. */
		if ((i + 1) * PAGE_TOKENS > position - MIN(position, r->n_before[row->slot]))
			break;
		assert_int_equal(rec->state, PAGE_SEALED);
		assert_int_equal(rec->first_pos, i * PAGE_TOKENS);
		assert_int_equal(rec->flags, (i + 1) * PAGE_TOKENS > slot->params.n_prompt
						     ? PAGE_FLAG_GENERATED
						     : 0);
		assert_memory_equal(rec->ids, ids + i * PAGE_TOKENS, sizeof(rec->ids));
		assert_memory_equal(rec->domain, slot->domain, sizeof(rec->domain));
		assert_memory_equal(rec->parent, chain, sizeof(chain));
		pool_chain(r->pool, chain, rec->ids, PAGE_TOKENS, chain);
		assert_memory_equal(rec->chain, chain, sizeof(chain));
	}
}

bool rig_work(struct rig *r)
{
	struct channel_header *h = (struct channel_header *)r->shared;
	struct channel_step *step = channel_step(r->shared, &r->shape, r->n_done);
	struct channel_result *res = channel_result(r->shared, &r->shape, r->n_done);
	struct channel_result_row *out = channel_result_rows(res);

	if (atomic_load(&h->steps.tail) == r->n_done)
		return false;
	assert_int_equal(step->seq, r->n_done + 1);
	assert_true(step->n_rows > 0 && step->n_rows <= r->shape.max_rows);
	*res = (struct channel_result){.seq = step->seq, .status = r->status, .usec = 10};
	r->n_step_rows = step->n_rows;
	memcpy(r->step, channel_step_rows(step), step->n_rows * sizeof(*r->step));
	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct channel_row *row = &r->step[i];
		struct channel_slot *slot = channel_slot(r->shared, &r->shape, row->slot);
		const uint32_t *ids = channel_slot_ids(slot, &r->shape);
		uint32_t token = row->token;
		uint64_t value;

		assert_int_equal(atomic_load(&slot->generation) % 2, 0);
		if (token == CHANNEL_FROM_LAST_SAMPLE)
			token = r->last_sample[row->slot];
		else
			assert_true(row->position < slot->n_ids && token == ids[row->position]);
		assert_int_equal(row->path, row->position < slot->params.n_prompt
						    ? CHANNEL_PROMPT
						    : CHANNEL_GENERATED);
		if (i == 0 || r->step[i - 1].slot != row->slot)
			check_sealed(r, slot, row);
		value = mix(row->position ? *cell(r, slot, row->position - 1) : 0, token);
		*cell(r, slot, row->position) = value;
		if (row->flags)
			out[res->n_rows++] = (struct channel_result_row){
				.slot = row->slot,
				.position = row->position,
				.token = row->flags & CHANNEL_WANT_PROMPT_LOGPROB
						 ? ids[row->position + 1]
						 : sample(r, value),
				.logprob = -(float)(value % 97),
			};
		if (row->flags && r->no_token_row) {
			out[0].token = CHANNEL_NO_TOKEN;
			r->no_token_row = false;
		}
		if (row->flags & CHANNEL_WANT_LOGITS)
			r->last_sample[row->slot] = sample(r, value);
	}
	memset(r->n_before, 0, sizeof(r->n_before));
	for (uint32_t i = 0; i < step->n_rows; i++)
		r->n_before[r->step[i].slot]++;
	r->n_done++;
	atomic_store_explicit(&h->results.tail, r->n_done, memory_order_release);
	return true;
}

bool rig_next_step_holds(struct rig *r, const struct rig_seq *q, uint32_t position)
{
	const struct channel_header *h = (const struct channel_header *)r->shared;
	struct channel_step *step = channel_step(r->shared, &r->shape, r->n_done);
	const struct channel_row *row = channel_step_rows(step);

	if (atomic_load(&h->steps.tail) == r->n_done)
		return false;
	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct channel_slot *slot = channel_slot(r->shared, &r->shape, row[i].slot);

		if (row[i].position == position && memcmp(channel_slot_ids((void *)slot, &r->shape),
							  q->ids, q->n_ids * sizeof(*q->ids)) == 0)
			return true;
	}
	return false;
}

void rig_check(struct rig *r)
{
	struct error err = {};

	if (sched_check(r->sched, &err) < 0)
		fail_msg("%s", err.text);
}

bool rig_step(struct rig *r)
{
	struct error err = {};
	bool worked = rig_work(r);

	if (sched_take_results(r->sched, &err) < 0)
		fail_msg("%s", err.text);
	rig_check(r);
	return worked;
}

void rig_run(struct rig *r)
{
	sched_run(r->sched);
	for (int i = 0; rig_step(r); i++)
		assert_true(i < 1000000);
}

static void on_token(void *ctx, const struct channel_result_row *row)
{
	struct rig_seq *q = ctx;

	assert_true(q->seq && !q->ended && q->n_out < RIG_OUT && q->n_out < q->max_tokens);
	assert_int_equal(row->position, q->n_ids + q->n_out - 1);
	q->out[q->n_out++] = row->token;
	if (q->on_token)
		q->on_token(q);
}

static void on_prompt(void *ctx, const struct channel_result_row *row)
{
	struct rig_seq *q = ctx;

	/* Each position once, in order, also after the pages were lost. */
	assert_int_equal(row->position, q->n_prompt_rows);
	assert_int_equal(row->token, q->ids[row->position + 1]);
	q->n_prompt_rows++;
}

static void on_end(void *ctx, enum seq_end why)
{
	struct rig_seq *q = ctx;

	assert_true(q->seq && !q->ended);
	q->ended = true;
	q->why = why;
	q->seq = NULL;
}

static const struct seq_ops rig_ops = {.token = on_token, .prompt = on_prompt, .end = on_end};

int rig_submit(struct rig *r, struct rig_seq *q, uid_t uid, uint32_t seed, uint32_t n_ids,
	       uint32_t max_tokens)
{
	static const uint32_t eos[] = {RIG_EOS};
	struct seq_config cfg = {
		.ops = &rig_ops,
		.ctx = q,
		.uid = uid,
		.ids = q->ids,
		.n_ids = n_ids,
		.params = {.n_prompt = n_ids},
		.max_tokens = max_tokens,
		.prompt_logprobs = max_tokens == 0,
		.eos = eos,
		.n_eos = 1,
		.priority = r->priority,
		.session = r->session,
	};
	struct error err = {};
	int ret;

	*q = (struct rig_seq){.rig = r, .n_ids = n_ids, .max_tokens = max_tokens};
	assert_true(n_ids <= sizeof(q->ids) / sizeof(q->ids[0]));
	for (uint32_t i = 0; i < n_ids; i++)
		q->ids[i] = (uint32_t)(mix(seed, i) % RIG_VOCAB);
	ret = sched_submit(r->sched, &cfg, &q->seq, &err);
	assert_true(ret == 0 || err.text[0]);
	return ret;
}

void rig_cancel(struct rig_seq *q)
{
	struct seq *seq = q->seq;

	q->seq = NULL;
	seq_cancel(seq);
}

void rig_expect(const struct rig_seq *q)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < q->n_ids; i++)
		value = mix(value, q->ids[i]);
	for (uint32_t i = 0; i < q->n_out; i++) {
		assert_int_equal(q->out[i], sample(q->rig, value));
		value = mix(value, q->out[i]);
	}
	if (!q->ended)
		return;
	if (q->why == SEQ_END_EOS)
		assert_int_equal(q->out[q->n_out - 1], RIG_EOS);
	else if (q->why == SEQ_END_LENGTH)
		assert_int_equal(q->n_out, q->max_tokens);
	else if (q->why == SEQ_END_SCORED)
		assert_int_equal(q->n_prompt_rows, q->n_ids - 1);
}
