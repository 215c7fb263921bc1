/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile worker: writes anything anywhere into the channel's memfd while the broker posts steps and
 * takes results. Whatever channel_take_result() accepts must answer what was asked.
 *
 * The input is a list of operations, one byte each, with their operands behind them. */
#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "channel/channel.h"
#include "plain_io.h"

#define N_SLOTS    4u
#define MAX_ROWS   8u
#define MAX_TOKENS 256u
#define N_VOCAB    300u

static void must(bool ok)
{
	if (!ok)
		abort();
}

struct input {
	const uint8_t *data;
	size_t n;
};

/* Up to four bytes of the input, zeros behind its end. */
static uint32_t take(struct input *in, unsigned width)
{
	uint32_t v = 0;
	size_t n = width < in->n ? width : in->n;

	if (n)
		memcpy(&v, in->data, n);
	in->data += n;
	in->n -= n;
	return v;
}

struct world {
	struct channel *channel;
	uint8_t *shared; /* the worker's own mapping */
	struct channel_shape shape;
	/* What the broker asked for, step by step. */
	struct channel_row asked[CHANNEL_DEPTH][MAX_ROWS];
	uint32_t n_asked[CHANNEL_DEPTH];
	uint32_t n_posted, n_taken, n_answered;
};

static void post(struct world *w, struct input *in)
{
	struct channel_row *rows = channel_begin_step(w->channel);
	uint32_t n = take(in, 1) % MAX_ROWS + 1;

	must((rows == NULL) == (w->n_posted - w->n_taken == CHANNEL_DEPTH));
	if (!rows)
		return;
	w->n_asked[w->n_posted % CHANNEL_DEPTH] = 0;
	for (uint32_t i = 0; i < n; i++) {
		rows[i] = (struct channel_row){
			.slot = i % N_SLOTS,
			.position = i + w->n_posted % 64,
			.flags = (uint16_t)(take(in, 1) % 3),
			.mask = UINT32_MAX,
		};
		if (rows[i].flags)
			w->asked[w->n_posted % CHANNEL_DEPTH]
				[w->n_asked[w->n_posted % CHANNEL_DEPTH]++] = rows[i];
	}
	channel_post_step(w->channel, n);
	w->n_posted++;
}

/* An answer as a good worker gives it, but for what the input changes afterwards. */
static void answer(struct world *w, struct input *in)
{
	struct channel_header *h = (struct channel_header *)w->shared;
	uint32_t i = w->n_answered % CHANNEL_DEPTH;
	struct channel_result *res = channel_result(w->shared, &w->shape, w->n_answered);
	struct channel_result_row *rows = channel_result_rows(res);

	res->seq = w->n_answered + 1;
	res->status = take(in, 1) % 8 == 7 ? CHANNEL_BAD_STEP : CHANNEL_OK;
	res->n_rows = w->n_asked[i];
	for (uint32_t k = 0; k < res->n_rows; k++)
		rows[k] = (struct channel_result_row){
			.slot = w->asked[i][k].slot,
			.position = w->asked[i][k].position,
			.token = take(in, 1),
			.logprob = -1,
		};
	w->n_answered++;
	atomic_store(&h->results.tail, w->n_answered);
}

static void scribble(struct world *w, struct input *in)
{
	uint64_t at = take(in, 4) % w->shape.total_bytes;
	uint32_t n = take(in, 1);

	for (; n > 0 && in->n > 0 && at < w->shape.total_bytes; n--)
		w->shared[at++] = (uint8_t)take(in, 1);
}

/* Into the result that is taken next: where random bytes get furthest. */
static void scribble_result(struct world *w, struct input *in)
{
	uint8_t *res = (uint8_t *)channel_result(w->shared, &w->shape, w->n_taken);
	uint32_t at = take(in, 2) % (uint32_t)(w->shape.result_stride - 4), v = take(in, 4);

	memcpy(res + at / 4 * 4, &v, sizeof(v));
}

static bool take_all(struct world *w)
{
	for (;;) {
		struct channel_reply reply;
		struct error err = {};
		uint32_t i = w->n_taken % CHANNEL_DEPTH;
		int r = channel_take_result(w->channel, N_VOCAB, &reply, &err);

		if (r < 0) {
			must(r == -EBADMSG && err.text[0]);
			return false;
		}
		if (r == 0)
			return true;
		must(w->n_taken < w->n_posted && reply.seq == w->n_taken + 1);
		must(reply.status < _CHANNEL_STATUS_MAX);
		must(reply.n_rows == (reply.status == CHANNEL_OK ? w->n_asked[i] : 0));
		for (uint32_t k = 0; k < reply.n_rows; k++) {
			const struct channel_result_row *row = &reply.rows[k];

			must(row->slot == w->asked[i][k].slot &&
			     row->position == w->asked[i][k].position);
			must(row->token < N_VOCAB ||
			     (row->token == CHANNEL_NO_TOKEN && row->n_top == 0));
			must(isfinite(row->logprob));
			must(row->n_top <= CHANNEL_TOP_MAX);
			for (uint32_t t = 0; t < row->n_top; t++)
				must(row->top[t].id < N_VOCAB && isfinite(row->top[t].logprob));
		}
		w->n_taken++;
		must(channel_in_flight(w->channel) == w->n_posted - w->n_taken);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct io io = {.ops = &plain_io_ops};
	struct input in = {data, n};
	struct world *w = calloc(1, sizeof(*w));

	must(w && channel_new(&w->channel, &io, N_SLOTS, MAX_ROWS, MAX_TOKENS, NULL) == 0);
	w->shape = *channel_get_shape(w->channel);
	w->shared = mmap(NULL, w->shape.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			 channel_fd(w->channel), 0);
	must(w->shared != MAP_FAILED);
	while (in.n > 0) {
		struct channel_header *h = (struct channel_header *)w->shared;

		switch (take(&in, 1) % 6) {
		case 0:
			post(w, &in);
			break;
		case 1:
			answer(w, &in);
			break;
		case 2:
			scribble(w, &in);
			break;
		case 3:
			scribble_result(w, &in);
			break;
		case 4:
			atomic_store(&h->results.tail, take(&in, 4));
			break;
		default:
			if (!take_all(w))
				goto out;
		}
	}
	take_all(w);
out:
	munmap(w->shared, w->shape.total_bytes);
	channel_free(w->channel);
	free(w);
	return 0;
}
