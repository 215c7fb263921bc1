/* SPDX-License-Identifier: Apache-2.0 */
#include "answer.h"

#include <string.h>

#include "output.h"

struct json_object *json_ids(const uint32_t *ids, size_t n)
{
	struct json_object *a = json_object_new_array();

	for (size_t i = 0; i < n; i++)
		json_object_array_add(a, json_object_new_int64(ids[i]));
	return a;
}

struct json_object *json_tokens(const struct dsc_token *tokens, size_t n)
{
	struct json_object *a = json_object_new_array();

	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_new_object(), *top = json_object_new_array();

		for (uint32_t k = 0; k < tokens[i].n_top; k++) {
			struct json_object *t = json_object_new_object();

			json_add(t, "id", json_object_new_int64(tokens[i].top[k].id));
			json_add(t, "logprob", json_real((double)tokens[i].top[k].logprob));
			json_object_array_add(top, t);
		}
		json_add(o, "id", json_object_new_int64(tokens[i].id));
		json_add(o, "logprob",
			 tokens[i].has_logprob ? json_real((double)tokens[i].logprob) : NULL);
		json_add(o, "top", top);
		json_object_array_add(a, o);
	}
	return a;
}

struct json_object *json_usage(const struct dsc_usage *usage)
{
	struct json_object *o = json_object_new_object();

	json_add(o, "prompt_tokens", json_object_new_int64(usage->prompt_tokens));
	json_add(o, "cached_tokens", json_object_new_int64(usage->cached_tokens));
	json_add(o, "completion_tokens", json_object_new_int64(usage->completion_tokens));
	json_add(o, "queue_usec", json_object_new_uint64(usage->queue_usec));
	json_add(o, "prefill_usec", json_object_new_uint64(usage->prefill_usec));
	json_add(o, "decode_usec", json_object_new_uint64(usage->decode_usec));
	return o;
}

static void add_choice(struct json_object *o, const struct dsc_choice *ch)
{
	json_add(o, "text", json_text(ch->text, ch->text_bytes));
	json_add(o, "ids", json_ids(ch->ids, ch->n_ids));
	json_add(o, "finish", ch->finish ? json_object_new_string(finish_text(ch->finish)) : NULL);
}

void json_add_choices(struct json_object *o, const struct dsc_result *result, bool logprobs)
{
	const struct dsc_choice *first = &result->choices[0];
	struct json_object *choices;

	add_choice(o, first);
	if (logprobs)
		json_add(o, "logprobs", json_tokens(first->tokens, first->n_tokens));
	if (result->n_choices <= 1)
		return;
	choices = json_object_new_array();
	for (size_t i = 0; i < result->n_choices; i++) {
		const struct dsc_choice *ch = &result->choices[i];
		struct json_object *c = json_object_new_object();

		add_choice(c, ch);
		if (logprobs)
			json_add(c, "logprobs", json_tokens(ch->tokens, ch->n_tokens));
		json_object_array_add(choices, c);
	}
	json_add(o, "choices", choices);
}

struct json_object *json_answer(const struct dsc_result *result, bool logprobs)
{
	struct json_object *o = json_object_new_object();
	char digest[2 * sizeof(result->digest) + 1];

	hex_text(result->digest, result->digest_bytes, digest, sizeof(digest) - 1);
	json_add_choices(o, result, logprobs);
	json_add(o, "usage", json_usage(&result->usage));
	json_add(o, "seed", json_object_new_uint64(result->seed));
	json_add(o, "model", json_text(result->model, strlen(result->model)));
	json_add(o, "digest", json_object_new_string(digest));
	json_add(o, "request", json_object_new_uint64(result->request));
	return o;
}

const char *finish_text(enum dsc_finish finish)
{
	switch (finish) {
	case DSC_FINISH_EOS:
		return "eos";
	case DSC_FINISH_STOP:
		return "stop";
	case DSC_FINISH_LENGTH:
		return "length";
	}
	return "unknown";
}

const char *priority_text(enum dsc_priority priority)
{
	switch (priority) {
	case DSC_PRIORITY_INTERACTIVE:
		return "interactive";
	case DSC_PRIORITY_NORMAL:
		return "normal";
	case DSC_PRIORITY_BATCH:
		return "batch";
	}
	return "";
}

enum dsc_priority priority_from_text(const char *text)
{
	for (enum dsc_priority p = DSC_PRIORITY_INTERACTIVE; p <= DSC_PRIORITY_BATCH; p++)
		if (strcmp(text, priority_text(p)) == 0)
			return p;
	return 0;
}
