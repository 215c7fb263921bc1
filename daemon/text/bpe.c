/* SPDX-License-Identifier: Apache-2.0 */
#include "text/bpe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "text/encode.h"
#include "text/vocab_impl.h"

#define NONE UINT32_MAX

/* Up to here looking at every pair for every merge is faster than keeping a queue. */
#define SHORT_PIECE 32

/* More than this is not kept from one text to the next. */
#define KEEP_BYTES (4u << 20)

/* A symbol of the piece; dead once merged into its left neighbour (rank NONE, nobody links to it). */
struct symbol {
	uint32_t id, prev, next;
	uint32_t rank; /* of the pair it makes with the next one; MERGE_NONE */
};

/* A position in a run. It may be stale: the pair that stands there now has another rank. */
struct place {
	uint32_t symbol, next;
};

struct run {
	uint32_t rank, head, tail; /* places; NONE: empty */
	uint32_t next_free;
};

struct heap_item {
	uint64_t key; /* rank << 32 | symbol of the head */
	uint32_t run;
};

/* One piece being merged. At any time at most 2n places are in use: n - 1 at the start, and a merge takes
 * one out and puts two in, and there are at most n - 1 merges. A run has at least one place. */
struct queue {
	const struct vocab *v;
	struct symbol *symbols;
	struct place *places;
	struct run *runs;
	struct heap_item *heap;
	uint32_t *open_run;
	uint32_t n_places, n_runs, n_heap; /* used so far */
	uint32_t free_place, free_run;
};

void bpe_scratch_done(struct bpe_scratch *s)
{
	free(s->memory);
	free(s->open_run);
	*s = (struct bpe_scratch){};
}

#define BYTES_PER_SYMBOL                                                                           \
	(sizeof(struct symbol) +                                                                   \
	 2 * (sizeof(struct place) + sizeof(struct run) + sizeof(struct heap_item)))

void bpe_scratch_trim(struct bpe_scratch *s)
{
	if (s->n_alloc <= KEEP_BYTES / BYTES_PER_SYMBOL)
		return;
	free(s->memory);
	s->memory = NULL;
	s->n_alloc = 0;
}

static int scratch_reserve(struct bpe_scratch *s, uint32_t n_ranks, size_t n)
{
	if (s->n_ranks < n_ranks) {
		uint32_t *p = reallocarray(s->open_run, n_ranks, sizeof(*p));

		if (!p)
			return -ENOMEM;
		for (uint32_t i = s->n_ranks; i < n_ranks; i++)
			p[i] = NONE;
		s->open_run = p;
		s->n_ranks = n_ranks;
	}
	if (s->n_alloc < n) {
		size_t want = MAX(n, 2 * s->n_alloc);

		free(s->memory);
		s->n_alloc = 0;
		s->memory = reallocarray(NULL, want, BYTES_PER_SYMBOL);
		if (!s->memory)
			return -ENOMEM;
		s->n_alloc = want;
	}
	return 0;
}

static void heap_push(struct queue *q, uint32_t run)
{
	struct heap_item item = {.run = run};
	uint32_t i = q->n_heap++;

	item.key = (uint64_t)q->runs[run].rank << 32 | q->places[q->runs[run].head].symbol;
	while (i > 0 && q->heap[(i - 1) / 2].key > item.key) {
		q->heap[i] = q->heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	q->heap[i] = item;
}

static uint32_t heap_pop(struct queue *q)
{
	uint32_t run = q->heap[0].run, i = 0;
	struct heap_item item = q->heap[--q->n_heap];

	for (;;) {
		uint32_t child = 2 * i + 1;

		if (child + 1 < q->n_heap && q->heap[child + 1].key < q->heap[child].key)
			child++;
		if (child >= q->n_heap || q->heap[child].key >= item.key)
			break;
		q->heap[i] = q->heap[child];
		i = child;
	}
	q->heap[i] = item;
	return run;
}

static uint32_t place_new(struct queue *q, uint32_t symbol)
{
	uint32_t i = q->free_place;

	if (i != NONE)
		q->free_place = q->places[i].next;
	else
		i = q->n_places++;
	q->places[i] = (struct place){.symbol = symbol, .next = NONE};
	return i;
}

static uint32_t run_new(struct queue *q, uint32_t rank, uint32_t place)
{
	uint32_t i = q->free_run;

	if (i != NONE)
		q->free_run = q->runs[i].next_free;
	else
		i = q->n_runs++;
	q->runs[i] = (struct run){.rank = rank, .head = place, .tail = place};
	return i;
}

/* Takes the first symbol off a run. */
static uint32_t run_take(struct queue *q, struct run *run)
{
	uint32_t place = run->head, symbol = q->places[place].symbol;

	run->head = q->places[place].next;
	q->places[place].next = q->free_place;
	q->free_place = place;
	return symbol;
}

static void run_free(struct queue *q, uint32_t i)
{
	struct run *run = &q->runs[i];

	if (q->open_run[run->rank] == i)
		q->open_run[run->rank] = NONE;
	run->next_free = q->free_run;
	q->free_run = i;
}

/* Looks up the pair that starts at @symbol and queues it if it merges. */
static void queue_pair(struct queue *q, uint32_t symbol)
{
	struct symbol *s = &q->symbols[symbol];
	uint32_t place, open;

	s->rank = s->next == NONE ? MERGE_NONE
				  : vocab_merge(q->v, s->id, q->symbols[s->next].id)->rank;
	if (s->rank == MERGE_NONE)
		return;
	place = place_new(q, symbol);
	open = q->open_run[s->rank];
	/* A run that is being taken from may be empty for the moment: its tail is no longer its own. */
	if (open != NONE && q->runs[open].head != NONE &&
	    q->places[q->runs[open].tail].symbol <= symbol) {
		q->places[q->runs[open].tail].next = place;
		q->runs[open].tail = place;
		return;
	}
	open = run_new(q, s->rank, place);
	q->open_run[s->rank] = open;
	heap_push(q, open);
}

static void merge_at(struct queue *q, uint32_t symbol)
{
	struct symbol *left = &q->symbols[symbol], *right = &q->symbols[left->next];

	left->id = q->v->im.merges[left->rank].result;
	left->next = right->next;
	right->rank = MERGE_NONE;
	if (left->next != NONE)
		q->symbols[left->next].prev = symbol;
	if (left->prev != NONE)
		queue_pair(q, left->prev);
	queue_pair(q, symbol);
}

/* Merges what the first run of the queue names, until it is empty or another one comes before it. */
static void queue_step(struct queue *q)
{
	uint32_t i = heap_pop(q);
	uint32_t rank = q->runs[i].rank;

	while (q->runs[i].head != NONE) {
		uint64_t key = (uint64_t)rank << 32 | q->places[q->runs[i].head].symbol;
		uint32_t symbol;

		if (q->n_heap > 0 && q->heap[0].key < key) {
			heap_push(q, i);
			return;
		}
		symbol = run_take(q, &q->runs[i]);
		if (q->symbols[symbol].rank == rank)
			merge_at(q, symbol);
	}
	run_free(q, i);
}

static int encode_long(const struct vocab *v, struct bpe_scratch *s, const uint32_t *id, size_t n,
		       struct ids *ret)
{
	struct queue q = {.v = v, .free_place = NONE, .free_run = NONE};
	int r;

	r = scratch_reserve(s, v->im.h->n_merges, n);
	if (r < 0)
		return r;
	q.heap = s->memory; /* the strictest alignment first */
	q.symbols = (struct symbol *)(q.heap + 2 * n);
	q.runs = (struct run *)(q.symbols + n);
	q.places = (struct place *)(q.runs + 2 * n);
	q.open_run = s->open_run;
	for (uint32_t i = 0; i < n; i++)
		q.symbols[i] = (struct symbol){
			.id = id[i], .prev = i ? i - 1 : NONE, .next = i + 1 < n ? i + 1 : NONE};
	for (uint32_t i = 0; i < n; i++)
		queue_pair(&q, i);
	while (q.n_heap > 0)
		queue_step(&q);
	for (uint32_t i = 0; i != NONE; i = q.symbols[i].next) {
		r = ids_push(ret, q.symbols[i].id);
		if (r < 0)
			return r;
	}
	return 0;
}

static int encode_short(const struct vocab *v, uint32_t *id, size_t n, struct ids *ret)
{
	const struct merge_slot *pair[SHORT_PIECE];

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

int bpe_encode(const struct vocab *v, struct bpe_scratch *s, uint32_t *id, size_t n,
	       struct ids *ret)
{
	return n <= SHORT_PIECE ? encode_short(v, id, n, ret) : encode_long(v, s, id, n, ret);
}
