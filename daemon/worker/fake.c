/* SPDX-License-Identifier: Apache-2.0 */
/* The chain: h(0) = H(domain); h(p + 1) = H(h(p), id at p, p). The row of position p in every stream
 * is h(p + 1), then H(h(p + 1), stream). The next token is a function of h alone, or of h and the seed
 * when the temperature is not 0.
 *
 * What is verified before a step writes: a page that this slot has not had at this place is recomputed
 * whole from the ids; of every other page in the block table its last written row is compared. So a
 * step costs one comparison for each 64 tokens of context, and a page that was given away, swapped or
 * written by another sequence shows in the next step. */
#include "worker/fake.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sodium.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "worker/engine.h"

#define FAKE_LAYERS   2u
#define FAKE_RANK     4u /* two streams of 64 rows of 32 bytes: a page of 4,096 bytes */
#define FAKE_ROPE     4u
#define END_ONE_IN    64u /* chance of the end token at each position */
#define STEP_USEC_MAX 10000000u

struct chain {
	uint64_t lo, hi;
};
struct fake_row {
	struct chain chain, stream;
};
_Static_assert(sizeof(struct fake_row) == 4 * (FAKE_RANK + FAKE_ROPE), "a row is two hashes");

/* What this process has seen of a slot. ends[i] is the chain after the last row known of page i. */
struct fake_slot {
	uint64_t generation;
	uint32_t n_rows; /* positions [0, n_rows) were verified or written */
	uint32_t *pages;
	struct chain *ends;
};

struct fake {
	struct engine_room room;
	struct page_geometry geometry;
	uint64_t step_usec;
	struct fake_slot *slots;
};

static struct chain hash(const void *data, size_t n, uint64_t seed)
{
	XXH128_hash_t h = XXH3_128bits_withSeed(data, n, seed);

	return (struct chain){h.low64, h.high64};
}

static struct chain chain_next(struct chain h, uint32_t id, uint32_t position)
{
	struct {
		struct chain h;
		uint32_t id, position;
	} in = {h, id, position};

	return hash(&in, sizeof(in), 1);
}

static struct fake_row make_row(struct chain h, uint32_t stream)
{
	return (struct fake_row){h, hash(&h, sizeof(h), 2 + stream)};
}

static void fake_free(void *ctx)
{
	struct fake *f = ctx;

	if (!f)
		return;
	for (uint32_t i = 0; f->slots && i < f->room.n_slots; i++) {
		free(f->slots[i].pages);
		free(f->slots[i].ends);
	}
	free(f->slots);
	free(f);
}
DEFINE_CLEANUP(void *, fake_free);

static int fake_attach(void *ctx, const struct engine_room *room, struct error *err)
{
	struct fake *f = ctx;
	uint32_t n_pages = DIV_ROUND_UP(room->max_tokens, PAGE_TOKENS);

	(void)err;
	f->room = *room;
	f->slots = calloc(room->n_slots, sizeof(*f->slots));
	if (!f->slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < room->n_slots; i++) {
		f->slots[i].pages = calloc(n_pages, sizeof(*f->slots[i].pages));
		f->slots[i].ends = calloc(n_pages, sizeof(*f->slots[i].ends));
		if (!f->slots[i].pages || !f->slots[i].ends)
			return -ENOMEM;
	}
	return 0;
}

/* Row of @position against the chain after it, in every stream. */
static int verify_row(const struct fake *f, const struct engine_sequence *s, uint32_t position,
		      struct chain h, struct error *err)
{
	page_id page = s->pages[position / PAGE_TOKENS];

	for (uint32_t stream = 0; stream < FAKE_LAYERS; stream++) {
		struct fake_row want = make_row(h, stream), got;

		memcpy(&got,
		       page_row(f->room.pool, &f->geometry, page, stream, position % PAGE_TOKENS),
		       sizeof(got));
		if (memcmp(&got, &want, sizeof(got)) != 0)
			return error_set(
				err, -EBADMSG,
				"slot %u: page %u holds another row than that of position %u "
				"in stream %u",
				s->slot, page, position, stream);
	}
	return 0;
}

/* Everything before @first_pos must be in the pages as the ids and the domain say. */
static int verify_before(struct fake *f, const struct engine_sequence *s, uint32_t first_pos,
			 struct error *err)
{
	struct fake_slot *slot = &f->slots[s->slot];
	struct chain h = hash(s->domain, 16, 0), shared = hash(s->shared_domain, 16, 0);
	int r;

	if (slot->generation != s->generation)
		slot->n_rows = 0;
	slot->generation = s->generation;
	slot->n_rows = MIN(slot->n_rows, first_pos); /* a rewind: later rows will be written anew */
	for (uint32_t p = 0; p < first_pos; p += PAGE_TOKENS) {
		uint32_t i = p / PAGE_TOKENS, end = MIN(p + PAGE_TOKENS, first_pos);

		if (p >= s->n_shared && end <= slot->n_rows && slot->pages[i] == s->pages[i] &&
		    (end == p + PAGE_TOKENS || end == slot->n_rows)) {
			/* Known; what a rewind cut short is recomputed like everything else. */
			if (verify_row(f, s, end - 1, slot->ends[i], NULL) == 0) {
				h = slot->ends[i];
				continue;
			}
		}
		for (uint32_t q = p; q < end; q++) {
			h = chain_next(h, s->ids[q], q);
			if (q < s->n_shared)
				shared = chain_next(shared, s->ids[q], q);
			r = verify_row(f, s, q, q < s->n_shared ? shared : h, err);
			if (r < 0)
				return r;
		}
		slot->pages[i] = s->pages[i];
		slot->ends[i] = h;
	}
	slot->n_rows = first_pos;
	return 0;
}

static struct chain chain_before(const struct fake *f, const struct engine_sequence *s,
				 uint32_t position)
{
	if (position == 0)
		return hash(s->domain, 16, 0);
	return f->slots[s->slot].ends[(position - 1) / PAGE_TOKENS];
}

static void write_row(struct fake *f, const struct engine_sequence *s, uint32_t position,
		      struct chain h)
{
	struct fake_slot *slot = &f->slots[s->slot];
	uint32_t i = position / PAGE_TOKENS;

	for (uint32_t stream = 0; stream < FAKE_LAYERS; stream++) {
		struct fake_row row = make_row(h, stream);

		memcpy(page_row(f->room.pool, &f->geometry, s->pages[i], stream,
				position % PAGE_TOKENS),
		       &row, sizeof(row));
	}
	slot->pages[i] = s->pages[i];
	slot->ends[i] = h;
	slot->n_rows = position + 1;
}

/* A letter or, one time in five, a space: words of about four letters. */
static uint32_t letter(struct chain h)
{
	uint32_t k = (uint32_t)(h.lo % 32);

	return k < 26 ? 'a' + k : ' ';
}

static uint32_t likeliest(struct chain h, bool may_end)
{
	return may_end && h.hi % END_ONE_IN == 0 ? FAKE_EOS : letter(h);
}

static uint32_t choose(struct chain h, const struct channel_params *p, uint32_t position)
{
	uint32_t n_generated = position - MIN(position, p->n_prompt);
	struct {
		struct chain h;
		uint64_t seed;
		uint32_t choice, position;
	} in = {h, p->seed, p->choice, position};

	if (p->temperature > 0)
		h = hash(&in, sizeof(in), 100);
	return likeliest(h, !p->ignore_eos && n_generated >= p->min_tokens);
}

/* The likeliest id has -0.25, every other one a number from -1 to -3 of its own. */
static float logprob_of(struct chain h, uint32_t id)
{
	if (id == likeliest(h, true))
		return -0.25f;
	return -1.0f - (float)(hash(&h, sizeof(h), 1000 + id).lo % 1024) / 512.0f;
}

static void answer(const struct engine_step *step, const struct engine_want *w, struct chain h,
		   struct channel_result_row *ret)
{
	const struct engine_sequence *s = &step->sequences[w->sequence];
	uint32_t position = step->k.positions[w->row], best = likeliest(h, true);
	uint32_t base = best >= 'a' && best <= 'z' ? best - 'a' : 0;

	*ret = (struct channel_result_row){.slot = s->slot, .position = position};
	ret->token = w->given != UINT32_MAX ? w->given : choose(h, s->params, position + 1);
	ret->logprob = logprob_of(h, ret->token);
	ret->n_top = s->params->n_top;
	/* The likeliest and the letters after it, in descending order, lower id first. */
	for (uint32_t i = 0; i < ret->n_top; i++) {
		uint32_t id = i == 0 ? best : 'a' + (base + i) % 26, at = i;
		float logprob = logprob_of(h, id);

		for (;
		     at > 0 && (ret->top[at - 1].logprob < logprob ||
				(ret->top[at - 1].logprob == logprob && ret->top[at - 1].id > id));
		     at--)
			ret->top[at] = ret->top[at - 1];
		ret->top[at] = (struct channel_top){.id = id, .logprob = logprob};
	}
}

static int fake_step(void *ctx, const struct engine_step *step, struct channel_result_row *ret,
		     struct error *err)
{
	struct fake *f = ctx;
	uint32_t w = 0;
	int r;

	for (uint32_t i = 0; i < step->n_sequences; i++) {
		const struct engine_sequence *s = &step->sequences[i];

		for (uint32_t k = s->first_row; k < s->first_row + s->n_rows; k++) {
			uint32_t position = step->k.positions[k];
			struct chain h;

			if (k == s->first_row || position != step->k.positions[k - 1] + 1) {
				r = verify_before(f, s, position, err);
				if (r < 0)
					return r;
			}
			h = chain_next(chain_before(f, s, position), step->k.ids[k], position);
			write_row(f, s, position, h);
			if (w < step->n_wants && step->wants[w].row == k) {
				answer(step, &step->wants[w], h, &ret[w]);
				w++;
			}
		}
	}
	if (f->step_usec) {
		struct timespec t = {
			.tv_sec = (time_t)(f->step_usec / 1000000),
			.tv_nsec = (long)(f->step_usec % 1000000) * 1000,
		};

		nanosleep(&t, NULL);
	}
	return 0;
}

static int make_image(struct image_builder *b, uint32_t n_context, uint32_t row_bytes)
{
	struct image_header *h = &b->h;
	uint32_t offsets[FAKE_VOCAB + 1];
	uint8_t bytes[256], flags[FAKE_VOCAB] = {};
	struct image_stream streams[FAKE_LAYERS];
	uint32_t seed[] = {FAKE_VOCAB, FAKE_LAYERS, FAKE_RANK, FAKE_ROPE};
	int r;

	for (uint32_t i = 0; i <= FAKE_VOCAB; i++)
		offsets[i] = MIN(i, 256u);
	for (uint32_t i = 0; i < 256; i++)
		bytes[i] = (uint8_t)i;
	flags[FAKE_BOS] = flags[FAKE_EOS] = IMAGE_TOKEN_SPECIAL;
	for (uint32_t i = 0; i < FAKE_LAYERS; i++)
		streams[i] = (struct image_stream){.layer = i, .bytes_per_token = row_bytes};
	strcpy(h->arch, "fake");
	crypto_generichash(h->digest, sizeof(h->digest), (const void *)seed, sizeof(seed), NULL, 0);
	h->n_vocab = FAKE_VOCAB;
	h->n_context = n_context;
	h->n_layers = FAKE_LAYERS;
	h->n_heads = 1;
	h->hidden = 8;
	h->kv_lora_rank = FAKE_RANK;
	h->qk_nope = h->v_head = 4;
	h->qk_rope = FAKE_ROPE;
	h->entry = PAGE_ENTRY_F32;
	h->splitter = IMAGE_SPLIT_BYTES;
	h->renderer = IMAGE_RENDER_V2;
	h->add_bos = 1;
	h->bos = FAKE_BOS;
	h->n_eos = 1;
	h->eos[0] = FAKE_EOS;
	r = image_append(b, &h->token_offset, offsets, sizeof(offsets));
	r = r ?: image_append(b, &h->token_bytes, bytes, sizeof(bytes));
	r = r ?: image_append(b, &h->token_flags, flags, sizeof(flags));
	r = r ?: image_append(b, &h->merges, NULL, 0);
	r = r ?: image_append(b, &h->added, NULL, 0);
	return r ?: image_append(b, &h->streams, streams, sizeof(streams));
}

int fake_new(struct engine *ret, struct image_builder *image, uint32_t n_context, struct error *err)
{
	_cleanup_(fake_freep) void *ctx = calloc(1, sizeof(struct fake));
	uint32_t row_bytes = page_entry_row_bytes(PAGE_ENTRY_F32, FAKE_RANK, FAKE_ROPE);
	struct image_stream streams[FAKE_LAYERS] = {{0, row_bytes}, {1, row_bytes}};
	const char *usec = getenv("DSD_FAKE_STEP_USEC");
	struct fake *f = ctx;
	int r;

	if (!f)
		return -ENOMEM;
	if (n_context > IMAGE_CONTEXT_MAX)
		return error_set(err, -EINVAL, "context of %u tokens: want at most %u", n_context,
				 IMAGE_CONTEXT_MAX);
	if (usec) {
		char *end;

		f->step_usec = strtoul(usec, &end, 10);
		if (!*usec || *end || f->step_usec > STEP_USEC_MAX)
			return error_set(err, -EINVAL, "DSD_FAKE_STEP_USEC=%.32s: want 0 to %u",
					 usec, STEP_USEC_MAX);
	}
	r = page_geometry_init(&f->geometry, streams, FAKE_LAYERS, err);
	if (r < 0)
		return r;
	r = make_image(image, n_context ?: FAKE_CONTEXT, row_bytes);
	if (r < 0)
		return r;
	*ret = (struct engine){
		.limits = {.n_vocab = FAKE_VOCAB,
			   .n_context = n_context ?: FAKE_CONTEXT,
			   .geometry = f->geometry},
		.ctx = TAKE_PTR(ctx),
		.free = fake_free,
		.attach = fake_attach,
		.step = fake_step,
	};
	return 0;
}
