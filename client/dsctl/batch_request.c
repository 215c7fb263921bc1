/* SPDX-License-Identifier: Apache-2.0 */
#include "batch_request.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "args.h"

#define JSON_DEPTH 32

struct reader {
	struct batch_request *b;
	char *why;
};

struct key {
	const char *name;
	int (*take)(struct reader *r, const struct key *key, struct json_object *v);
	/* take_number and take_switch */
	enum arg_kind kind;
	size_t offset; /* within struct dsc_request */
	uint64_t bits;
};

__attribute__((format(printf, 2, 3))) static int refuse(struct reader *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->why, BATCH_WHY_BYTES, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

static int no_memory(struct reader *r)
{
	refuse(r, "out of memory");
	return -ENOMEM;
}

static bool is_string(const struct json_object *v)
{
	return json_object_is_type(v, json_type_string);
}

/* A whole number from 0 to max. */
static bool whole_number(const struct json_object *v, uint64_t max, uint64_t *ret)
{
	if (!json_object_is_type(v, json_type_int))
		return false;
	/* What is negative is 0 as uint64; what is 0 as int64 as well is 0. */
	*ret = json_object_get_uint64(v);
	return *ret <= max && (*ret > 0 || json_object_get_int64(v) == 0);
}

static bool real_number(const struct json_object *v, float *ret)
{
	if (!json_object_is_type(v, json_type_int) && !json_object_is_type(v, json_type_double))
		return false;
	*ret = (float)json_object_get_double(v);
	return isfinite(*ret);
}

/* ---------------------------------------------------------------- what a key means */

static int take_number(struct reader *r, const struct key *key, struct json_object *v)
{
	void *at = (uint8_t *)&r->b->request + key->offset;
	uint64_t n = 0;

	if (key->kind == ARG_FLOAT) {
		if (!real_number(v, at))
			return refuse(r, "%s: want a number", key->name);
	} else {
		if (!whole_number(v, UINT64_MAX, &n))
			return refuse(r, "%s: want a whole number", key->name);
		if (key->kind == ARG_U32 && n > UINT32_MAX)
			return refuse(r, "%s: got %" PRIu64 ", want a smaller number", key->name,
				      n);
		if (key->kind == ARG_U32)
			*(uint32_t *)at = (uint32_t)n;
		else
			*(uint64_t *)at = n;
	}
	r->b->request.set |= key->bits;
	return 0;
}

static int take_switch(struct reader *r, const struct key *key, struct json_object *v)
{
	if (!json_object_is_type(v, json_type_boolean))
		return refuse(r, "%s: want true or false", key->name);
	if (json_object_get_boolean(v))
		r->b->request.set |= key->bits;
	else
		r->b->request.set &= ~key->bits;
	return 0;
}

static int take_text(struct reader *r, const struct key *key, struct json_object *v)
{
	struct dsc_request *request = &r->b->request;

	if (!is_string(v))
		return refuse(r, "%s: want a string", key->name);
	if (key->offset == offsetof(struct dsc_request, text)) {
		request->prompt = DSC_PROMPT_TEXT;
		request->text = json_object_get_string(v);
		request->text_bytes = (size_t)json_object_get_string_len(v);
	} else {
		request->suffix = json_object_get_string(v);
		request->suffix_bytes = (size_t)json_object_get_string_len(v);
	}
	return 0;
}

static int take_model(struct reader *r, const struct key *key, struct json_object *v)
{
	if (!is_string(v) ||
	    strlen(json_object_get_string(v)) != (size_t)json_object_get_string_len(v))
		return refuse(r, "%s: want a string", key->name);
	r->b->request.model = json_object_get_string(v);
	return 0;
}

static int take_message(struct reader *r, size_t i, struct json_object *v)
{
	static const char *const roles[] = {
		[DSC_ROLE_SYSTEM] = "system",
		[DSC_ROLE_USER] = "user",
		[DSC_ROLE_ASSISTANT] = "assistant",
	};
	struct dsc_message *m = &r->b->messages[i];
	struct json_object *role = NULL, *content = NULL;

	if (!json_object_is_type(v, json_type_object) ||
	    !json_object_object_get_ex(v, "role", &role) || !is_string(role) ||
	    !json_object_object_get_ex(v, "content", &content) || !is_string(content) ||
	    json_object_object_length(v) != 2)
		return refuse(r,
			      "messages[%zu]: want {\"role\": TEXT, \"content\": TEXT} and no more",
			      i);
	for (uint32_t k = DSC_ROLE_SYSTEM; k <= DSC_ROLE_ASSISTANT; k++)
		if (strcmp(json_object_get_string(role), roles[k]) == 0)
			m->role = k;
	if (!m->role)
		return refuse(r,
			      "messages[%zu].role: got \"%.40s\", want system, user or assistant",
			      i, json_object_get_string(role));
	m->text = json_object_get_string(content);
	m->text_bytes = (size_t)json_object_get_string_len(content);
	return 0;
}

static int take_messages(struct reader *r, const struct key *key, struct json_object *v)
{
	size_t n;
	int s = 0;

	if (!json_object_is_type(v, json_type_array))
		return refuse(r, "%s: want an array", key->name);
	n = json_object_array_length(v);
	r->b->messages = calloc(n + 1, sizeof(*r->b->messages));
	if (!r->b->messages)
		return no_memory(r);
	for (size_t i = 0; i < n && s == 0; i++)
		s = take_message(r, i, json_object_array_get_idx(v, i));
	r->b->request.prompt = DSC_PROMPT_CHAT;
	r->b->request.messages = r->b->messages;
	r->b->request.n_messages = n;
	return s;
}

static int take_ids(struct reader *r, const struct key *key, struct json_object *v)
{
	size_t n;

	if (!json_object_is_type(v, json_type_array))
		return refuse(r, "%s: want an array", key->name);
	n = json_object_array_length(v);
	r->b->ids = calloc(n + 1, sizeof(*r->b->ids));
	if (!r->b->ids)
		return no_memory(r);
	for (size_t i = 0; i < n; i++) {
		uint64_t id;

		if (!whole_number(json_object_array_get_idx(v, i), UINT32_MAX, &id))
			return refuse(r, "%s[%zu]: want a token id", key->name, i);
		r->b->ids[i] = (uint32_t)id;
	}
	r->b->request.prompt = DSC_PROMPT_IDS;
	r->b->request.ids = r->b->ids;
	r->b->request.n_ids = n;
	return 0;
}

static int take_stop(struct reader *r, const struct key *key, struct json_object *v)
{
	bool array = json_object_is_type(v, json_type_array);
	size_t n = array ? json_object_array_length(v) : 1;

	r->b->stop = calloc(n + 1, sizeof(*r->b->stop));
	if (!r->b->stop)
		return no_memory(r);
	for (size_t i = 0; i < n; i++) {
		struct json_object *s = array ? json_object_array_get_idx(v, i) : v;

		if (!is_string(s))
			return refuse(r, "%s: want a string or an array of strings", key->name);
		r->b->stop[i] = (struct dsc_stop){json_object_get_string(s),
						  (size_t)json_object_get_string_len(s)};
	}
	r->b->request.stop = r->b->stop;
	r->b->request.n_stop = n;
	return 0;
}

static int take_bias(struct reader *r, const struct key *key, struct json_object *v)
{
	size_t n = 0;

	if (!json_object_is_type(v, json_type_object))
		return refuse(r, "%s: want {\"ID\": NUMBER}", key->name);
	r->b->bias = calloc((size_t)json_object_object_length(v) + 1, sizeof(*r->b->bias));
	if (!r->b->bias)
		return no_memory(r);
	json_object_object_foreach(v, id, x)
	{
		if (!args_u32(id, &r->b->bias[n].id) || !real_number(x, &r->b->bias[n].bias))
			return refuse(r, "%s: got \"%.40s\", want {\"ID\": NUMBER}", key->name, id);
		n++;
	}
	r->b->request.logit_bias = r->b->bias;
	r->b->request.n_logit_bias = n;
	return 0;
}

static int take_priority(struct reader *r, const struct key *key, struct json_object *v)
{
	r->b->request.priority = is_string(v) ? priority_from_text(json_object_get_string(v)) : 0;
	if (!r->b->request.priority)
		return refuse(r, "%s: want \"interactive\", \"normal\" or \"batch\"", key->name);
	r->b->request.set |= DSC_SET_PRIORITY;
	return 0;
}

static int take_id(struct reader *r, const struct key *key, struct json_object *v)
{
	if (!is_string(v) && !json_object_is_type(v, json_type_int))
		return refuse(r, "%s: want a string or a whole number", key->name);
	r->b->id = v;
	return 0;
}

#define NUMBER(name, kind, mask)                                                                   \
	{                                                                                          \
#name, take_number, kind, offsetof(struct dsc_request, name), mask                 \
	}
#define SWITCH(name, mask)                                                                         \
	{                                                                                          \
		name, take_switch, .bits = mask                                                    \
	}

static const struct key keys[] = {
	{"prompt", take_text, .offset = offsetof(struct dsc_request, text)},
	{"suffix", take_text, .offset = offsetof(struct dsc_request, suffix)},
	{"messages", take_messages},
	{"ids", take_ids},
	{"model", take_model},
	{"stop", take_stop},
	{"logit_bias", take_bias},
	{"priority", take_priority},
	NUMBER(max_tokens, ARG_U32, DSC_SET_MAX_TOKENS),
	NUMBER(min_tokens, ARG_U32, DSC_SET_MIN_TOKENS),
	NUMBER(temperature, ARG_FLOAT, DSC_SET_TEMPERATURE),
	NUMBER(top_k, ARG_U32, DSC_SET_TOP_K),
	NUMBER(top_p, ARG_FLOAT, DSC_SET_TOP_P),
	NUMBER(min_p, ARG_FLOAT, DSC_SET_MIN_P),
	NUMBER(seed, ARG_U64, DSC_SET_SEED),
	NUMBER(repetition_penalty, ARG_FLOAT, DSC_SET_REPETITION_PENALTY),
	NUMBER(presence_penalty, ARG_FLOAT, DSC_SET_PRESENCE_PENALTY),
	NUMBER(frequency_penalty, ARG_FLOAT, DSC_SET_FREQUENCY_PENALTY),
	NUMBER(n, ARG_U32, DSC_SET_N),
	NUMBER(logprobs, ARG_U32, DSC_SET_LOGPROBS),
	NUMBER(deadline_ms, ARG_U32, DSC_SET_DEADLINE_MS),
	SWITCH("ignore_eos", DSC_SET_IGNORE_EOS),
	SWITCH("echo", DSC_SET_ECHO),
	SWITCH("parse_special", DSC_SET_PARSE_SPECIAL),
};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

/* ---------------------------------------------------------------- the line */

static int take_key(struct reader *r, const char *name, struct json_object *v)
{
	for (size_t i = 0; i < N_KEYS; i++)
		if (strcmp(keys[i].name, name) == 0)
			return keys[i].take(r, &keys[i], v);
	return refuse(r, "unknown key \"%.40s\"", name);
}

static int parse(struct reader *r, const char *line, size_t n)
{
	struct json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH);
	enum json_tokener_error error;
	size_t end;

	if (!tokener || n > INT32_MAX) {
		json_tokener_free(tokener);
		return no_memory(r);
	}
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	r->b->json = json_tokener_parse_ex(tokener, line, (int)n);
	error = json_tokener_get_error(tokener);
	end = json_tokener_get_parse_end(tokener);
	if (error == json_tokener_continue) /* a number on its own, or half a line */
		r->b->json = json_tokener_parse_ex(tokener, "", 1);
	error = json_tokener_get_error(tokener);
	json_tokener_free(tokener);
	if (error != json_tokener_success)
		return refuse(r, "not JSON: byte %zu of the line: %s", end + 1,
			      end < n ? json_tokener_error_desc(error) : "it ends too early");
	if (!json_object_is_type(r->b->json, json_type_object))
		return refuse(r, "want a JSON object");
	return 0;
}

int batch_request_init(struct batch_request *ret, const struct dsc_request *defaults,
		       const char *line, size_t n, char why[static BATCH_WHY_BYTES])
{
	struct reader r = {ret, why};
	struct json_object *id, *v;
	int n_prompts = 0, s;

	*ret = (struct batch_request){.request = *defaults};
	s = parse(&r, line, n);
	if (s < 0)
		return s;
	if (json_object_object_get_ex(ret->json, "id", &id)) {
		s = take_id(&r, &(struct key){.name = "id"}, id);
		if (s < 0)
			return s;
	}
	json_object_object_foreach(ret->json, name, value)
	{
		s = strcmp(name, "id") == 0 ? 0 : take_key(&r, name, value);
		if (s < 0)
			return s;
	}
	for (size_t i = 0; i < N_KEYS; i++)
		if (keys[i].take == take_messages || keys[i].take == take_ids ||
		    strcmp(keys[i].name, "prompt") == 0)
			n_prompts += json_object_object_get_ex(ret->json, keys[i].name, &v);
	if (n_prompts != 1)
		return refuse(&r, "got %d of prompt, messages and ids, want one", n_prompts);
	return 0;
}

void batch_request_done(struct batch_request *b)
{
	free(b->messages);
	free(b->ids);
	free(b->stop);
	free(b->bias);
	json_object_put(b->json);
	*b = (struct batch_request){};
}
