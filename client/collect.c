/* SPDX-License-Identifier: Apache-2.0 */
/* Adds events up to a whole answer. Arrays grow to the next power of two of what they hold, so that their
 * size need not be kept; each token's `top` is an allocation of its own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define CHOICES_MAX 1024 /* far past the protocol's 64: a choice number is not an allocation size */

#define CAPACITY_MIN 8

/* Capacity that goes with n elements: 0, or the least power of two that holds them. */
static size_t capacity(size_t n)
{
	size_t size = CAPACITY_MIN;

	if (n == 0)
		return 0;
	while (size < n)
		size *= 2;
	return size;
}

/* Grows an array of n elements by `more`; NULL: out of memory, the old one is as it was. */
static void *grow(void *array, size_t n, size_t more, size_t element_bytes)
{
	size_t want = capacity(n + more), bytes;

	if (array && want == capacity(n))
		return array;
	if (__builtin_mul_overflow(want ? want : 1, element_bytes, &bytes))
		return NULL;
	return realloc(array, bytes);
}

struct dsc_result *dsc_result_new(void)
{
	struct dsc_result *result = calloc(1, sizeof(*result));

	if (!result)
		return NULL;
	result->model = strdup("");
	if (!result->model) {
		free(result);
		return NULL;
	}
	return result;
}

void dsc_result_free(struct dsc_result *result)
{
	if (!result)
		return;
	for (size_t i = 0; i < result->n_choices; i++) {
		struct dsc_choice *ch = &result->choices[i];

		for (size_t k = 0; k < ch->n_tokens; k++)
			free((void *)ch->tokens[k].top);
		free(ch->text);
		free(ch->ids);
		free(ch->tokens);
	}
	free(result->choices);
	free(result->model);
	free(result);
}

/* The choice of that number, and empty ones before it. */
static struct dsc_choice *choice_at(struct dsc_result *result, size_t i)
{
	struct dsc_choice *choices;

	if (i >= CHOICES_MAX)
		return NULL;
	while (result->n_choices <= i) {
		char *text = calloc(1, CAPACITY_MIN);

		choices =
			text ? grow(result->choices, result->n_choices, 1, sizeof(*choices)) : NULL;
		if (!choices) {
			free(text);
			return NULL;
		}
		result->choices = choices;
		choices[result->n_choices++] = (struct dsc_choice){.text = text};
	}
	return &result->choices[i];
}

static int add_text(struct dsc_choice *ch, const char *text, size_t n)
{
	char *grown = grow(ch->text, ch->text_bytes + 1, n, 1);

	if (!grown)
		return -ENOMEM;
	ch->text = grown;
	if (n > 0)
		memcpy(grown + ch->text_bytes, text, n);
	ch->text_bytes += n;
	grown[ch->text_bytes] = 0;
	return 0;
}

static int add_ids(struct dsc_choice *ch, const uint32_t *ids, size_t n)
{
	uint32_t *grown;

	if (n == 0)
		return 0;
	grown = grow(ch->ids, ch->n_ids, n, sizeof(*ids));
	if (!grown)
		return -ENOMEM;
	ch->ids = grown;
	memcpy(grown + ch->n_ids, ids, n * sizeof(*ids));
	ch->n_ids += n;
	return 0;
}

static int add_tokens(struct dsc_choice *ch, const struct dsc_token *tokens, size_t n)
{
	struct dsc_token *grown;

	if (n == 0)
		return 0;
	grown = grow(ch->tokens, ch->n_tokens, n, sizeof(*tokens));
	if (!grown)
		return -ENOMEM;
	ch->tokens = grown;
	for (size_t i = 0; i < n; i++) {
		struct dsc_token t = tokens[i];
		struct dsc_logprob *top = NULL;

		if (t.n_top > 0) {
			top = malloc(t.n_top * sizeof(*top));
			if (!top)
				return -ENOMEM;
			memcpy(top, t.top, t.n_top * sizeof(*top));
		}
		t.top = top;
		ch->tokens[ch->n_tokens++] = t;
	}
	return 0;
}

static int add_started(struct dsc_result *result, const struct dsc_event *e)
{
	char *model = strdup(e->model);

	if (!model)
		return -ENOMEM;
	free(result->model);
	result->model = model;
	result->request = e->request;
	result->seed = e->seed;
	result->prompt_tokens = e->prompt_tokens;
	result->digest_bytes =
		e->digest_bytes < sizeof(result->digest) ? e->digest_bytes : sizeof(result->digest);
	memcpy(result->digest, e->digest, result->digest_bytes);
	return choice_at(result, 0) ? 0 : -ENOMEM;
}

int dsc_result_add(struct dsc_result *result, const struct dsc_event *e)
{
	struct dsc_choice *ch;
	int r;

	switch (e->type) {
	case DSC_EVENT_STARTED:
		return add_started(result, e);
	case DSC_EVENT_TEXT:
	case DSC_EVENT_TOKENS:
	case DSC_EVENT_FINISHED:
		ch = choice_at(result, e->choice);
		if (!ch)
			return -ENOMEM;
		if (e->type == DSC_EVENT_FINISHED) {
			ch->finish = e->finish;
			return 0;
		}
		r = add_text(ch, e->text, e->text_bytes);
		if (r == 0)
			r = add_ids(ch, e->ids, e->n_ids);
		if (r == 0)
			r = add_tokens(ch, e->tokens, e->n_tokens);
		return r;
	case DSC_EVENT_DONE:
		result->usage = e->usage;
		return 0;
	case DSC_EVENT_MODELS:
	case DSC_EVENT_STATS:
	case DSC_EVENT_REQUESTS:
	case DSC_EVENT_PROGRESS:
	case DSC_EVENT_SESSION:
	case DSC_EVENT_ERROR:
		return 0;
	}
	return 0;
}

int dsc_collect(struct dsc_stream *s, struct dsc_result **ret)
{
	struct dsc_result *result = dsc_result_new();
	const struct dsc_event *e;
	int r, error = 0;

	if (!result)
		return dsc_fail(s->c, -ENOMEM, DSC_CODE_NONE, "out of memory for an answer");
	*ret = result;
	while ((r = dsc_wait(s, &e, -1)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			error = e->error;
		r = dsc_result_add(result, e);
		if (r < 0)
			return dsc_fail(s->c, r, DSC_CODE_NONE, "out of memory for an answer");
	}
	return r < 0 ? r : error;
}
