#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Broker and worker: one sealed memfd of slots and rings, and a socketpair for loading.
 *
 *   memfd │ header │ slot 0 .. n_slots-1 │ step 0 .. CHANNEL_DEPTH-1 │ result 0 .. CHANNEL_DEPTH-1 │
 *
 * The broker alone writes slots and steps, the worker alone writes results. Each side treats what the
 * other writes as hostile: it copies a value once, checks the copy, and uses the copy. Everything a
 * worker needs is in the slots, so that a new worker can go on where a dead one was.
 *
 * A ring is single producer, single consumer. Entry i of a ring is at index i % CHANNEL_DEPTH;
 * `tail` counts entries ever produced, `head` those ever consumed; the producer fills the entry and
 * then stores tail with release order. The worker is woken through a stream socket (an
 * eventfd's holder can make whoever writes to it wait), the broker through an eventfd. */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define CHANNEL_MAGIC        "dsdchan1"
#define CHANNEL_DEPTH        4u /* steps in flight at the most; the scheduler keeps two */
#define CHANNEL_SLOTS_MAX    256u
#define CHANNEL_ROWS_MAX     8192u /* rows of one step */
#define CHANNEL_TOP_MAX      20u   /* alternatives of one logprob */
#define CHANNEL_BIAS_MAX     300u
#define CHANNEL_STOP_IDS_MAX 64u

/* Parameters of one choice, as the request resolved them (never "absent" here). */
struct channel_params {
	uint64_t seed;
	uint32_t choice;    /* which of n; part of the random key */
	uint32_t n_prompt;  /* rows below it are prompt rows */
	float temperature;  /* 0: greedy */
	float top_p, min_p; /* 1 and 0: off */
	uint32_t top_k;     /* 0: off */
	uint32_t n_top;     /* alternatives wanted in results, <= CHANNEL_TOP_MAX */
	float repetition_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0: off */
	uint32_t min_tokens;
	uint32_t ignore_eos; /* bool: end tokens cannot be sampled */
	uint32_t n_bias;
	struct {
		uint32_t id;
		float bias;
	} bias[CHANNEL_BIAS_MAX];
};

/* A slot: one running sequence. The arrays behind it have the header's lengths:
 * uint32_t pages[max_pages]; uint32_t ids[max_tokens]. */
struct channel_slot {
	_Atomic uint64_t generation; /* odd while the broker writes params */
	uint32_t n_pages;
	uint32_t n_ids; /* ids known so far: prompt and generated */
	/* For the fake worker's page check; no secrets (keyed MACs): whose the pages are, and whose
	 * those of the first n_shared positions, which an administrator published. */
	uint8_t domain[16], shared_domain[16];
	uint32_t n_shared, _pad;
	struct channel_params params;
};

#define CHANNEL_NO_TOKEN         UINT32_MAX /* result: the row's logits were no numbers */
#define CHANNEL_FROM_LAST_SAMPLE UINT32_MAX /* row's token is what this slot sampled last */

enum channel_path { CHANNEL_PROMPT, CHANNEL_GENERATED };
#define CHANNEL_WANT_LOGITS         1u /* sample after this row */
#define CHANNEL_WANT_PROMPT_LOGPROB 2u /* logprob of the id at position + 1 (which the slot has) */

/* Rows of a slot stand together in a step, by ascending position. */
struct channel_row {
	uint32_t slot;
	uint32_t position;
	uint32_t token; /* id, or CHANNEL_FROM_LAST_SAMPLE */
	uint16_t path;  /* enum channel_path */
	uint16_t flags; /* CHANNEL_WANT_* */
	uint32_t mask;  /* index of a grammar mask, UINT32_MAX for none */
};

struct channel_step {
	uint64_t seq; /* number of this step, from 1 */
	uint32_t n_rows;
	uint32_t _pad;
	/* struct channel_row rows[max_rows] */
};

struct channel_top {
	uint32_t id;
	float logprob;
};

/* One for each row with flags, in row order. */
struct channel_result_row {
	uint32_t slot, position;
	uint32_t token; /* sampled, or (prompt logprob) the given one, or CHANNEL_NO_TOKEN */
	float logprob;  /* natural logarithm, of the unmodified distribution */
	uint32_t n_top;
	uint32_t _pad;
	struct channel_top top[CHANNEL_TOP_MAX];
};

enum channel_status {
	CHANNEL_OK,
	CHANNEL_BAD_STEP, /* the step contradicts the slots: a broker bug */
	_CHANNEL_STATUS_MAX
};

struct channel_result {
	uint64_t seq; /* of the step it answers */
	uint32_t status;
	uint32_t n_rows;
	uint64_t usec; /* the worker's time on this step */
		       /* struct channel_result_row rows[max_rows] */
};

struct channel_ring {
	_Atomic uint32_t tail __attribute__((aligned(64)));   /* producer */
	_Atomic uint32_t head __attribute__((aligned(64)));   /* consumer */
	_Atomic uint32_t asleep __attribute__((aligned(64))); /* consumer waits to be woken */
};

struct channel_header {
	char magic[8];
	uint32_t version, n_slots, max_rows, max_pages, max_tokens, _pad;
	uint64_t slot_offset, slot_stride;
	uint64_t step_offset, step_stride;
	uint64_t result_offset, result_stride;
	uint64_t total_bytes;
	struct channel_ring steps, results;
	/* The worker counts what it did, steps and parts of one: it stands still where this does. */
	_Atomic uint32_t progress __attribute__((aligned(64)));
};

/* Where everything is, computed from four numbers alone: both sides compute it and the worker
 * compares, so that no offset in shared memory is ever trusted. */
struct channel_shape {
	uint32_t n_slots, max_rows, max_pages, max_tokens;
	uint64_t slot_offset, slot_stride, step_offset, step_stride, result_offset, result_stride;
	uint64_t total_bytes;
};
/** channel_shape_init() - Return: 0; -EINVAL where a number is 0 or past its limit. */
int channel_shape_init(struct channel_shape *s, uint32_t n_slots, uint32_t max_rows,
		       uint32_t max_tokens, struct error *err);

/* Accessors; @slot < n_slots and @i is taken modulo CHANNEL_DEPTH. */
static inline struct channel_slot *channel_slot(void *base, const struct channel_shape *s,
						uint32_t slot)
{
	return (struct channel_slot *)((uint8_t *)base + s->slot_offset + slot * s->slot_stride);
}
static inline uint32_t *channel_slot_pages(struct channel_slot *slot)
{
	return (uint32_t *)(slot + 1);
}
static inline uint32_t *channel_slot_ids(struct channel_slot *slot, const struct channel_shape *s)
{
	return channel_slot_pages(slot) + s->max_pages;
}
static inline struct channel_step *channel_step(void *base, const struct channel_shape *s,
						uint32_t i)
{
	return (struct channel_step *)((uint8_t *)base + s->step_offset +
				       (i % CHANNEL_DEPTH) * s->step_stride);
}
static inline struct channel_row *channel_step_rows(struct channel_step *step)
{
	return (struct channel_row *)(step + 1);
}
static inline struct channel_result *channel_result(void *base, const struct channel_shape *s,
						    uint32_t i)
{
	return (struct channel_result *)((uint8_t *)base + s->result_offset +
					 (i % CHANNEL_DEPTH) * s->result_stride);
}
static inline struct channel_result_row *channel_result_rows(struct channel_result *result)
{
	return (struct channel_result_row *)(result + 1);
}

/* The control socketpair: SOCK_SEQPACKET, one message and at most CONTROL_FDS_MAX descriptors each.
 *
 *   broker                         worker
 *     FILE (name; fd) ... ──────►           the model's files, read-only
 *     PACKED (; fd) ────────────►           its weights as an earlier worker packed them, read-only,
 *     EMPTY (; fd) ─────────────►           and a file to pack them into: either, both or neither
 *     LOAD (options) ───────────►
 *               ◄──────────────── PROGRESS (stage, done, total) ...
 *               ◄──────────────── REFUSED (sentence): PACKED does not prove itself
 *               ◄──────────────── FILLED: EMPTY holds the weights and is on its disk
 *               ◄──────────────── IMAGE (; fd of the sealed memfd)
 *     CHANNEL (; channel, pool-data, wake socket, result eventfd) ──►
 *               ◄──────────────── READY
 *               ◄──────────────── FAILED (sentence), at any time, then the worker exits
 *
 * The worker leaves when the socket ends. */
enum control_type {
	CONTROL_FILE = 1,
	CONTROL_LOAD,
	CONTROL_PROGRESS,
	CONTROL_IMAGE,
	CONTROL_CHANNEL,
	CONTROL_READY,
	CONTROL_FAILED,
	CONTROL_PACKED,
	CONTROL_EMPTY,
	CONTROL_REFUSED,
	CONTROL_FILLED,
	_CONTROL_MAX
};
#define CONTROL_FDS_MAX  4u
#define CONTROL_TEXT_MAX 480u

enum control_weights {
	CONTROL_WEIGHTS_AUTO,
	CONTROL_WEIGHTS_F32,
	CONTROL_WEIGHTS_BF16,
	CONTROL_WEIGHTS_Q8,
	CONTROL_WEIGHTS_Q4,
	_CONTROL_WEIGHTS_MAX
};

struct control_msg {
	uint32_t type;    /* enum control_type */
	uint32_t weights; /* LOAD: enum control_weights */
	uint32_t entry;   /* LOAD: enum page_entry, or _PAGE_ENTRY_MAX for what fits the weights */
	uint32_t n_threads;   /* LOAD: 0 for as many as CPUs */
	uint32_t cpu_mask;    /* LOAD: kernels' instruction sets allowed, UINT32_MAX for all */
	uint32_t n_context;   /* LOAD: limit on the context, 0 for the model's own */
	uint64_t done, total; /* PROGRESS; CHANNEL: total = number of pages */
	uint32_t n_slots, max_rows, max_tokens, _pad; /* CHANNEL: the shape */
	char text
		[CONTROL_TEXT_MAX]; /* FILE: name; PROGRESS: stage; FAILED, REFUSED: the sentence; 0-terminated */
};
