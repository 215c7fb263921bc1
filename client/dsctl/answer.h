#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* JSON shapes that more than one verb prints. */
#include <stdbool.h>
#include <json-c/json.h>
#include <dsclient.h>

/** json_ids() - [1, 2, 3] */
struct json_object *json_ids(const uint32_t *ids, size_t n);
/** json_tokens() - [{"id", "logprob", "top": [{"id", "logprob"}]}]; no log-probability is null. */
struct json_object *json_tokens(const struct dsc_token *tokens, size_t n);
/** json_usage() - {"prompt_tokens", "cached_tokens", "completion_tokens", and times} */
struct json_object *json_usage(const struct dsc_usage *usage);
/** json_add_choices() - {"text", "ids", "finish"}, with more than one choice "choices"; at least one has begun.
 * "finish" of one that has not come to its end is null. */
void json_add_choices(struct json_object *o, const struct dsc_result *result, bool logprobs);
/** json_answer() - the same with {"usage", "seed", ...}, of a generate that is done */
struct json_object *json_answer(const struct dsc_result *result, bool logprobs);
const char *finish_text(enum dsc_finish finish);
/** priority_text() - "interactive", "normal" or "batch"; "" where it is none of them. */
const char *priority_text(enum dsc_priority priority);
/** priority_from_text() - the other way round. Return: 0 where it is none of them. */
enum dsc_priority priority_from_text(const char *text);
