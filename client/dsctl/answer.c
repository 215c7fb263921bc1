/* SPDX-License-Identifier: Apache-2.0 */
#include "answer.h"

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
