/* SPDX-License-Identifier: Apache-2.0 */
#include "text/vocab.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/vocab_impl.h"

/* With at most half of the slots used and a hash that mixes well the longest run of full slots is about
 * 80 at the largest table; past this the pairs were chosen to collide, and building stops. */
#define PROBES_MAX 256

static bool is_named(const struct image_header *h, uint32_t id)
{
	const uint32_t names[] = {h->bos,      h->token_user, h->token_assistant, h->fim_begin,
				  h->fim_hole, h->fim_end,    h->think_begin,     h->think_end};

	for (size_t i = 0; i < N_ELEMENTS(names); i++)
		if (names[i] == id)
			return true;
	for (uint32_t i = 0; i < h->n_eos; i++)
		if (h->eos[i] == id)
			return true;
	return false;
}

static bool starts_with(const uint8_t *p, size_t n, const char *prefix)
{
	return n >= strlen(prefix) && memcmp(p, prefix, strlen(prefix)) == 0;
}

static void set_control(struct vocab *v, uint32_t id)
{
	v->control[id / 64] |= UINT64_C(1) << id % 64;
}

/* The rules of vocab.h, in its order. */
static int make_control(struct vocab *v, struct error *err)
{
	const struct image *im = &v->im;

	v->control = calloc(DIV_ROUND_UP(im->h->n_vocab, 64), sizeof(v->control[0]));
	if (!v->control)
		return -ENOMEM;
	for (uint32_t id = 0; id < im->h->n_vocab; id++)
		if (im->token_flags[id] & (IMAGE_TOKEN_SPECIAL | IMAGE_TOKEN_UNUSED))
			set_control(v, id);
	for (uint32_t i = 0; i < im->h->n_added; i++) {
		uint32_t n;
		const uint8_t *p = image_token(im, im->added[i], &n);

		if (n > VOCAB_ADDED_LEN_MAX)
			return error_set(err, -EINVAL,
					 "added token %u has %u bytes: want at most %d",
					 im->added[i], n, VOCAB_ADDED_LEN_MAX);
		if (is_named(im->h, im->added[i]) || starts_with(p, n, "<|") ||
		    starts_with(p, n, "<\xEF\xBD\x9C"))
			set_control(v, im->added[i]);
	}
	return 0;
}

/* Bytes that occur in UTF-8: not C0, C1 and F5 to FF. */
static bool byte_in_utf8(unsigned b)
{
	return b != 0xC0 && b != 0xC1 && b < 0xF5;
}

static int make_byte_ids(struct vocab *v, struct error *err)
{
	const struct image *im = &v->im;
	bool split_bytes = im->h->splitter == IMAGE_SPLIT_BYTES;

	for (unsigned b = 0; b < 256; b++)
		v->byte_id[b] = IMAGE_NONE;
	for (uint32_t id = 0; id < im->h->n_vocab; id++) {
		uint32_t n;
		const uint8_t *p = image_token(im, id, &n);
		uint32_t *slot;

		if (n != 1 || vocab_is_control(v, id) || (split_bytes && *p != id))
			continue;
		/* The model's own byte before an added token that looks like it; else the lowest. */
		slot = &v->byte_id[*p];
		if (*slot == IMAGE_NONE || ((im->token_flags[*slot] & IMAGE_TOKEN_ADDED) &&
					    !(im->token_flags[id] & IMAGE_TOKEN_ADDED)))
			*slot = id;
	}
	for (unsigned b = 0; b < 256 && !split_bytes; b++)
		if (v->byte_id[b] == IMAGE_NONE && byte_in_utf8(b))
			return error_set(err, -EINVAL,
					 "vocabulary has no token for the byte 0x%02x", b);
	return 0;
}

/* A merge must put two texts together: decoding then gives back what was encoded, tokens only grow, and
 * no sequence of merges leads to a control token. */
static int check_merge(const struct vocab *v, uint32_t rank, struct error *err)
{
	const struct image_merge *m = &v->im.merges[rank];
	uint32_t n_left, n_right, n;
	const uint8_t *left = image_token(&v->im, m->left, &n_left);
	const uint8_t *right = image_token(&v->im, m->right, &n_right);
	const uint8_t *result = image_token(&v->im, m->result, &n);

	if (n_left == 0 || n_right == 0 || n != n_left + n_right ||
	    memcmp(result, left, n_left) != 0 || memcmp(result + n_left, right, n_right) != 0)
		return error_set(err, -EINVAL,
				 "merge %u: token %u is not token %u followed by token %u", rank,
				 m->result, m->left, m->right);
	if (vocab_is_control(v, m->result))
		return error_set(err, -EINVAL, "merge %u makes the control token %u", rank,
				 m->result);
	return 0;
}

static int make_merges(struct vocab *v, struct error *err)
{
	uint32_t n_merges = v->im.h->n_merges, n_slots = 16;
	int r;

	while (n_slots / 2 < n_merges)
		n_slots *= 2;
	v->merges = malloc(n_slots * sizeof(v->merges[0]));
	if (!v->merges)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_slots; i++)
		v->merges[i].rank = MERGE_NONE;
	v->merge_mask = n_slots - 1;
	for (uint32_t rank = 0; rank < n_merges; rank++) {
		const struct image_merge *m = &v->im.merges[rank];
		uint32_t i = merge_hash(m->left, m->right) & v->merge_mask, n_probes = 0;
		struct merge_slot *slot = &v->merges[i];

		r = check_merge(v, rank, err);
		if (r < 0)
			return r;
		while (slot->rank != MERGE_NONE &&
		       (slot->left != m->left || slot->right != m->right)) {
			if (++n_probes > PROBES_MAX)
				return error_set(err, -EINVAL, "merge %u collides with %u others",
						 rank, PROBES_MAX);
			i = (i + 1) & v->merge_mask;
			slot = &v->merges[i];
		}
		/* A pair given twice has its last rank, as in Hugging Face's table. */
		*slot = (struct merge_slot){m->left, m->right, rank, m->result};
	}
	return 0;
}

static int compare_tokens(const void *a, const void *b, void *user)
{
	const struct image *im = user;
	uint32_t id_a = *(const uint32_t *)a, id_b = *(const uint32_t *)b, n_a, n_b;
	const uint8_t *p_a = image_token(im, id_a, &n_a), *p_b = image_token(im, id_b, &n_b);
	int r = memcmp(p_a, p_b, MIN(n_a, n_b));

	if (r == 0)
		r = (n_a > n_b) - (n_a < n_b);
	return r ? r : (id_a > id_b) - (id_a < id_b);
}

static int matcher_init(struct matcher *m, struct vocab *v, bool with_control)
{
	const struct image *im = &v->im;
	uint32_t n = 0;

	m->ids = malloc(MAX(im->h->n_added, 1u) * sizeof(m->ids[0]));
	if (!m->ids)
		return -ENOMEM;
	for (uint32_t i = 0; i < im->h->n_added; i++)
		if (with_control || !vocab_is_control(v, im->added[i]))
			m->ids[n++] = im->added[i];
	m->n = n;
	qsort_r(m->ids, n, sizeof(m->ids[0]), compare_tokens, &v->im);
	for (unsigned b = 0, i = 0; b <= 256; b++) {
		while (i < n && im->token_bytes[im->token_offset[m->ids[i]]] < b)
			i++;
		m->first[b] = i;
	}
	return 0;
}

/* The first of ids[lo..hi), which all have their first @depth bytes in common, whose byte there is at
 * least @byte. Those that end at @depth come before all others. */
static uint32_t lower_bound(const struct image *im, const uint32_t *ids, uint32_t lo, uint32_t hi,
			    uint32_t depth, unsigned byte)
{
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2, n;
		const uint8_t *p = image_token(im, ids[mid], &n);

		if (n <= depth || p[depth] < byte)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* The longest token at text[at..n), which is not empty. */
static uint32_t match_at(const struct image *im, const struct matcher *m, const uint8_t *text,
			 size_t at, size_t n, size_t *ret_end)
{
	uint32_t lo = m->first[text[at]], hi = m->first[text[at] + 1], best = IMAGE_NONE;

	for (uint32_t depth = 1; lo < hi; depth++) {
		uint32_t n_token;

		image_token(im, m->ids[lo], &n_token);
		if (n_token == depth) {
			best = m->ids[lo];
			*ret_end = at + depth;
		}
		if (at + depth == n)
			break;
		hi = lower_bound(im, m->ids, lo, hi, depth, text[at + depth] + 1u);
		lo = lower_bound(im, m->ids, lo, hi, depth, text[at + depth]);
	}
	return best;
}

uint32_t vocab_match(const struct vocab *v, const struct matcher *m, const uint8_t *text,
		     size_t from, size_t n, size_t *ret_start, size_t *ret_end)
{
	for (size_t at = from; at < n && m->n; at++) {
		uint32_t id;

		if (m->first[text[at]] == m->first[text[at] + 1])
			continue;
		id = match_at(&v->im, m, text, at, n, ret_end);
		if (id != IMAGE_NONE) {
			*ret_start = at;
			return id;
		}
	}
	return IMAGE_NONE;
}

/* Frees the tables; the image is not released, for a vocabulary that never came to be. */
static void vocab_free_tables(struct vocab *v)
{
	free(v->merges);
	free(v->control);
	free(v->text.ids);
	free(v->all.ids);
	free(v);
}
DEFINE_CLEANUP(struct vocab *, vocab_free_tables);

int vocab_new(struct vocab **ret, const struct image *im, void (*release)(void *user), void *user,
	      struct error *err)
{
	_cleanup_(vocab_free_tablesp) struct vocab *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	atomic_init(&v->n_refs, 1);
	v->im = *im;
	r = make_control(v, err);
	if (r == 0)
		r = make_byte_ids(v, err);
	if (r == 0)
		r = make_merges(v, err);
	if (r == 0)
		r = matcher_init(&v->text, v, false);
	if (r == 0)
		r = matcher_init(&v->all, v, true);
	if (r < 0)
		return r;
	v->release = release;
	v->user = user;
	*ret = TAKE_PTR(v);
	return 0;
}

struct vocab *vocab_ref(struct vocab *v)
{
	atomic_fetch_add_explicit(&v->n_refs, 1, memory_order_relaxed);
	return v;
}

struct vocab *vocab_unref(struct vocab *v)
{
	if (!v || atomic_fetch_sub_explicit(&v->n_refs, 1, memory_order_acq_rel) != 1)
		return NULL;
	if (v->release)
		v->release(v->user);
	vocab_free_tables(v);
	return NULL;
}

const struct image *vocab_image(const struct vocab *v)
{
	return &v->im;
}

bool vocab_is_control(const struct vocab *v, uint32_t id)
{
	return id >= v->im.h->n_vocab || (v->control[id / 64] >> id % 64 & 1);
}

uint32_t vocab_find_token(const struct vocab *v, const void *bytes, size_t n)
{
	uint32_t found = IMAGE_NONE;

	for (uint32_t id = 0; id < v->im.h->n_vocab; id++) {
		uint32_t n_token;
		const uint8_t *p = image_token(&v->im, id, &n_token);

		if (n_token != n || n == 0 || memcmp(p, bytes, n) != 0)
			continue;
		if (v->im.token_flags[id] & IMAGE_TOKEN_ADDED)
			return id;
		if (found == IMAGE_NONE)
			found = id;
	}
	return found;
}
