/* SPDX-License-Identifier: Apache-2.0 */
#include "text/bpe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "text/encode.h"
#include "text/vocab_impl.h"

/* Up to here looking at every pair for every merge is faster than keeping a queue. */
#define SHORT_PIECE 32

/* Kept from one text to the next: enough for a piece of 1 MiB. */
#define KEEP_BYTES (32u << 20)

/* A symbol of the piece, in the slot of its first byte, as one word (bit-fields would be written and read
 * in different widths, which is slow):
 *
 *   63              34  33       32    20  19      0
 *  │ rank of the pair │ queued │  length  │   id    │
 *
 * The pair is the one with the next symbol; rank RANK_NONE when it does not merge; queued: it is in the
 * queue. The slot of its last byte has the length too, so that the neighbour on the right finds it; the
 * slots between are stale, with RANK_NONE. */
typedef uint64_t symbol;
#define SYMBOL_ID_BITS  20
#define SYMBOL_LEN_BITS 13
#define SYMBOL_QUEUED   (UINT64_C(1) << 33)
#define RANK_NONE       ((1u << 30) - 1)

_Static_assert(IMAGE_VOCAB_MAX <= 1u << SYMBOL_ID_BITS, "an id fits");
_Static_assert(IMAGE_TOKEN_LEN_MAX < 1u << SYMBOL_LEN_BITS, "a length fits");
_Static_assert(IMAGE_MERGES_MAX < RANK_NONE, "a rank fits");

static inline symbol symbol_make(uint32_t id, size_t len, uint32_t rank)
{
	return (uint64_t)rank << 34 | (uint64_t)len << SYMBOL_ID_BITS | id;
}
static inline uint32_t symbol_id(symbol s)
{
	return s & ((1u << SYMBOL_ID_BITS) - 1);
}
static inline size_t symbol_len(symbol s)
{
	return s >> SYMBOL_ID_BITS & ((1u << SYMBOL_LEN_BITS) - 1);
}
static inline uint32_t symbol_rank(symbol s)
{
	return (uint32_t)(s >> 34);
}

/* One piece being merged. A key is rank << 32 | position of a queued pair. It may be stale: the pair that
 * stands at the position now has another rank. Keys wait in @sorted (those of the start of a very long
 * piece, the next one first) and in a heap, the least at [0], four children to a parent.
 *
 * A pair is queued at most once in its life, and at most 3n pairs ever exist: n - 1 at the start, and two
 * more with each of at most n - 1 merges. So 3n keys are enough for both. */
struct piece {
	const struct vocab *v;
	symbol *symbols;
	size_t n; /* bytes */
	const uint64_t *sorted, *sorted_end;
	uint64_t *heap;
	size_t n_heap;
};

/* From so many keys on sorting them first is faster than having them all in the heap. */
#define SORT_KEYS 1024

void bpe_scratch_done(struct bpe_scratch *s)
{
	free(s->memory);
	*s = (struct bpe_scratch){};
}

void bpe_scratch_trim(struct bpe_scratch *s)
{
	if (s->n_alloc > KEEP_BYTES / BPE_BYTES_PER_BYTE)
		bpe_scratch_done(s);
}

static int scratch_reserve(struct bpe_scratch *s, size_t n)
{
	if (n <= s->n_alloc)
		return 0;
	if (n < KEEP_BYTES / BPE_BYTES_PER_BYTE)
		n = MAX(n, 2 * s->n_alloc);
	bpe_scratch_done(s);
	s->memory = reallocarray(NULL, n, BPE_BYTES_PER_BYTE);
	if (!s->memory)
		return -ENOMEM;
	s->n_alloc = n;
	return 0;
}

/* Puts @key into the hole at @i or above it. */
static inline void heap_fill(uint64_t *heap, size_t i, uint64_t key)
{
	while (i > 0 && heap[(i - 1) / 4] > key) {
		heap[i] = heap[(i - 1) / 4];
		i = (i - 1) / 4;
	}
	heap[i] = key;
}

static void heap_push(struct piece *p, uint64_t key)
{
	heap_fill(p->heap, p->n_heap++, key);
}

/* The hole left by the least sinks to the bottom, whatever fills it: which child is least is then the only
 * question, and it is answered without branches, which nobody could predict. */
static uint64_t heap_pop(struct piece *p)
{
	uint64_t *heap = p->heap, least = heap[0];
	size_t n = --p->n_heap, i = 0, child;

	for (child = 1; child + 3 < n; child = 4 * i + 1) {
		const uint64_t *c = heap + child;
		size_t a = c[1] < c[0], b = 2 + (c[3] < c[2]);
		size_t best = a + (b - a) * (c[b] < c[a]);

		heap[i] = c[best];
		i = child + best;
	}
	if (child < n) {
		size_t best = child;

		while (++child < n)
			best = heap[child] < heap[best] ? child : best;
		heap[i] = heap[best];
		i = best;
	}
	heap_fill(heap, i, heap[n]);
	return least;
}

/* Rank of the pair of @id and the symbol at @next, which may be the end. */
static inline uint32_t pair_rank(const struct piece *p, uint32_t id, size_t next)
{
	if (next == p->n)
		return RANK_NONE;
	return vocab_merge(p->v, id, symbol_id(p->symbols[next]))->rank & RANK_NONE;
}

/* Marks the pair at @at as queued if it merges and neither neighbouring pair, at @prev and @next, is to be
 * merged before it; the caller puts its key into the queue. */
static inline bool take_first(struct piece *p, size_t prev, size_t at, size_t next,
			      uint64_t *ret_key)
{
	symbol s = p->symbols[at];
	uint32_t rank = symbol_rank(s);

	if (rank == RANK_NONE || (s & SYMBOL_QUEUED) ||
	    (prev < at && symbol_rank(p->symbols[prev]) <= rank) ||
	    symbol_rank(p->symbols[next]) < rank)
		return false;
	p->symbols[at] = s | SYMBOL_QUEUED;
	*ret_key = (uint64_t)rank << 32 | at;
	return true;
}

static inline void queue_pair(struct piece *p, size_t prev, size_t at, size_t next)
{
	uint64_t key;

	if (take_first(p, prev, at, next, &key))
		heap_push(p, key);
}

/* The symbol to the left, or @at itself at the start. */
static inline size_t prev_of(const struct piece *p, size_t at)
{
	return at ? at - symbol_len(p->symbols[at - 1]) : 0;
}

static inline size_t next_of(const struct piece *p, size_t at)
{
	return at + symbol_len(p->symbols[at]);
}

static void merge_at(struct piece *p, size_t at)
{
	size_t right = next_of(p, at), next = next_of(p, right);
	size_t prev = prev_of(p, at), before = prev_of(p, prev);
	uint32_t id = p->v->im.merges[symbol_rank(p->symbols[at])].result;

	/* RANK_NONE makes what the queue has of the symbol on the right stale for good. */
	p->symbols[right] = p->symbols[next - 1] = symbol_make(0, next - at, RANK_NONE);
	p->symbols[at] = symbol_make(id, next - at, pair_rank(p, id, next));
	if (prev < at) {
		uint32_t prev_id = symbol_id(p->symbols[prev]);

		p->symbols[prev] = symbol_make(prev_id, at - prev, pair_rank(p, prev_id, at));
	}

	/* Only these four can have come to be first among their neighbours. */
	if (before < prev)
		queue_pair(p, prev_of(p, before), before, prev);
	if (prev < at)
		queue_pair(p, before, prev, at);
	queue_pair(p, prev, at, next);
	if (next < p->n)
		queue_pair(p, at, next, next_of(p, next));
}

/* Stable sort of keys by rank, eleven bits at a time; they come in order of position. @spare has room
 * for as many. */
static void sort_by_rank(uint64_t *keys, uint64_t *spare, size_t n)
{
	enum { BITS = 11, N_BUCKETS = 1 << BITS };
	uint32_t start[N_BUCKETS];

	_Static_assert(IMAGE_MERGES_MAX <= 1u << 2 * BITS, "two rounds");
	for (unsigned shift = 32; shift < 32 + 2 * BITS; shift += BITS) {
		uint32_t sum = 0;
		uint64_t *from = shift == 32 ? keys : spare, *to = shift == 32 ? spare : keys;

		memset(start, 0, sizeof(start));
		for (size_t i = 0; i < n; i++)
			start[from[i] >> shift & (N_BUCKETS - 1)]++;
		for (size_t b = 0; b < N_BUCKETS; b++) {
			uint32_t count = start[b];

			start[b] = sum;
			sum += count;
		}
		for (size_t i = 0; i < n; i++)
			to[start[from[i] >> shift & (N_BUCKETS - 1)]++] = from[i];
	}
}

/* Fills the queue. At most every other pair is first, so there is room for sorting. */
static void queue_start(struct piece *p, uint64_t *memory)
{
	size_t n_keys = 0;

	for (size_t i = 0; i < p->n; i++)
		n_keys += take_first(p, i ? i - 1 : 0, i, i + 1, &memory[n_keys]);
	p->heap = memory;
	if (n_keys >= SORT_KEYS) {
		sort_by_rank(memory, memory + n_keys, n_keys);
		p->sorted = memory;
		p->sorted_end = p->heap = memory + n_keys;
		return;
	}
	for (size_t i = 0; i < n_keys; i++)
		heap_push(p, memory[i]);
}

static uint64_t queue_pop(struct piece *p)
{
	if (p->sorted < p->sorted_end && (p->n_heap == 0 || *p->sorted < p->heap[0]))
		return *p->sorted++;
	return heap_pop(p);
}

static int encode_long(const struct vocab *v, struct bpe_scratch *scratch, const uint8_t *text,
		       size_t n, struct ids *ret)
{
	struct piece p = {.v = v, .n = n};
	int r;

	r = scratch_reserve(scratch, n + 1);
	if (r < 0)
		return r;
	p.symbols = scratch->memory;
	p.symbols[n] = symbol_make(0, 1, RANK_NONE); /* what the last pair has on its right */
	for (size_t i = n; i-- > 0;)
		p.symbols[i] = symbol_make(v->byte_id[text[i]], 1,
					   pair_rank(&p, v->byte_id[text[i]], i + 1));
	queue_start(&p, scratch->memory + n + 1);
	while (p.n_heap > 0 || p.sorted < p.sorted_end) {
		uint64_t key = queue_pop(&p);

		if (symbol_rank(p.symbols[(uint32_t)key]) == key >> 32)
			merge_at(&p, (uint32_t)key);
	}
	for (size_t at = 0; at < n; at = next_of(&p, at)) {
		r = ids_push(ret, symbol_id(p.symbols[at]));
		if (r < 0)
			return r;
	}
	return 0;
}

static int encode_short(const struct vocab *v, const uint8_t *text, size_t n, struct ids *ret)
{
	const struct merge_slot *pair[SHORT_PIECE];
	uint32_t id[SHORT_PIECE];

	for (size_t i = 0; i < n; i++)
		id[i] = v->byte_id[text[i]];
	for (size_t i = 0; i + 1 < n; i++)
		pair[i] = vocab_merge(v, id[i], id[i + 1]);
	while (n > 1) {
		size_t best = 0;

		for (size_t i = 1; i + 1 < n; i++)
			if (pair[i]->rank < pair[best]->rank)
				best = i;
		if (pair[best]->rank == MERGE_NONE)
			break;
		id[best] = pair[best]->result;
		n--;
		memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof(id[0]));
		memmove(pair + best, pair + best + 1, (n - best - 1) * sizeof(pair[0]));
		if (best + 1 < n)
			pair[best] = vocab_merge(v, id[best], id[best + 1]);
		if (best > 0)
			pair[best - 1] = vocab_merge(v, id[best - 1], id[best]);
	}
	return ids_append(ret, id, n);
}

int bpe_encode(const struct vocab *v, struct bpe_scratch *s, const uint8_t *text, size_t n,
	       struct ids *ret)
{
	if (n == 1)
		return ids_push(ret, v->byte_id[*text]);
	return n <= SHORT_PIECE ? encode_short(v, text, n, ret) : encode_long(v, s, text, n, ret);
}
