/* SPDX-License-Identifier: Apache-2.0 */
/* First what can be said of each file alone: a file that is no JSON or no safetensors ends it here. Then
 * the loader's own checks, whose sentence, if there is one, is the reason for a refusal. What is shown
 * of config.json are its plain values, so that models of other families can be described too. */
#include "worker/inspect.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json_object.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "layout/image.h"
#include "worker/load/files.h"
#include "worker/load/json.h"
#include "worker/load/load.h"
#include "worker/load/tensors.h"
#include "worker/load/tokenizer_json.h"
#include "worker/load/weights.h"

/* Integers of config.json worth showing, in this order. */
static const struct {
	const char *key, *shown;
} config_keys[] = {
	{"num_hidden_layers", "layers"},        {"hidden_size", "hidden"},
	{"vocab_size", "vocabulary"},           {"max_position_embeddings", "context"},
	{"num_attention_heads", "heads"},       {"q_lora_rank", "q_lora_rank"},
	{"kv_lora_rank", "kv_lora_rank"},       {"qk_nope_head_dim", "qk_nope"},
	{"qk_rope_head_dim", "qk_rope"},        {"v_head_dim", "v_head"},
	{"intermediate_size", "intermediate"},  {"moe_intermediate_size", "moe_intermediate"},
	{"n_routed_experts", "experts"},        {"num_experts_per_tok", "experts_used"},
	{"n_shared_experts", "experts_shared"}, {"first_k_dense_replace", "dense_layers"},
};

struct inspection {
	struct files files;
	struct json_object *config; /* NULL: no config.json */
	struct weights *weights;    /* NULL: none, or they contradict each other */
	struct json_object *out;    /* what is printed */
	bool refused;
	char reason[ERROR_TEXT_MAX];
};

static void inspection_done(struct inspection *in)
{
	files_done(&in->files);
	json_object_put(in->config);
	weights_free(in->weights);
	json_object_put(in->out);
}

static void put_int(struct json_object *o, const char *key, uint64_t x)
{
	json_object_object_add(o, key, json_object_new_uint64(x));
}

static void put_text(struct json_object *o, const char *key, const char *text)
{
	char shown[260];

	json_object_object_add(
		o, key,
		json_object_new_string(log_escape(shown, sizeof(shown), text, strlen(text))));
}

/* 0 where it is absent or no such number. */
static uint64_t config_int(const struct inspection *in, const char *key)
{
	struct json_object *o = NULL;
	int64_t x;

	if (!in->config || !json_object_object_get_ex(in->config, key, &o) ||
	    !json_object_is_type(o, json_type_int))
		return 0;
	x = json_object_get_int64(o);
	return x > 0 && x <= INT32_MAX ? (uint64_t)x : 0;
}

/* Any JSON file, only for being JSON. Return: 0 also where it is absent. */
static int parse_file(const struct inspection *in, const char *name, size_t max,
		      struct json_object **ret, struct error *err)
{
	const struct file *f = files_find(&in->files, name);
	_cleanup_(freep) char *data = NULL;
	size_t n;
	int r;

	if (!f)
		return 0;
	r = file_slurp(f, max, &data, &n, err);
	return r < 0 ? r : json_parse(ret, name, data, n, err);
}

static int check_json_files(struct inspection *in, struct error *err)
{
	static const struct {
		const char *name;
		size_t max;
	} others[] = {{"generation_config.json", CONFIG_JSON_MAX},
		      {"tokenizer.json", TOKENIZER_JSON_MAX},
		      {"tokenizer_config.json", TOKENIZER_CONFIG_JSON_MAX}};
	int r;

	r = parse_file(in, "config.json", CONFIG_JSON_MAX, &in->config, err);
	for (size_t i = 0; r == 0 && i < N_ELEMENTS(others); i++) {
		_cleanup_(json_unrefp) struct json_object *o = NULL;

		r = parse_file(in, others[i].name, others[i].max, &o, err);
	}
	return r;
}

/* Return: 0 also where the files are well-formed and contradict each other. */
static int open_weights(struct inspection *in, struct error *err)
{
	int r;

	if (!weights_are_there(&in->files))
		return 0;
	r = weights_open(&in->weights, &in->files, err);
	return r == -EINVAL ? 0 : r;
}

static void describe_config(struct inspection *in)
{
	struct json_object *o = NULL, *q = NULL;

	if (!in->config)
		return;
	if (json_object_object_get_ex(in->config, "model_type", &o) &&
	    json_object_is_type(o, json_type_string))
		put_text(in->out, "arch", json_object_get_string(o));
	for (size_t i = 0; i < N_ELEMENTS(config_keys); i++)
		if (config_int(in, config_keys[i].key))
			put_int(in->out, config_keys[i].shown, config_int(in, config_keys[i].key));
	if (json_object_object_get_ex(in->config, "quantization_config", &o) &&
	    json_object_is_type(o, json_type_object) &&
	    json_object_object_get_ex(o, "quant_method", &q) &&
	    json_object_is_type(q, json_type_string))
		put_text(in->out, "quantization", json_object_get_string(q));
	if (config_int(in, "kv_lora_rank") && config_int(in, "qk_rope_head_dim"))
		put_int(in->out, "kv_bytes_per_token",
			2 * config_int(in, "num_hidden_layers") *
				(config_int(in, "kv_lora_rank") +
				 config_int(in, "qk_rope_head_dim")));
	if (json_object_object_get_ex(in->config, "dsd_synthetic", &o))
		json_object_object_add(in->out, "synthetic", json_object_get(o));
}

static void describe_weights(struct inspection *in)
{
	uint64_t n_params = 0, n_bytes = 0, by_type[_ST_DTYPE_MAX] = {};
	struct json_object *types;
	struct weights_entry *entries;
	uint32_t n;

	if (!in->weights)
		return;
	entries = weights_entries(in->weights, &n);
	for (uint32_t i = 0; i < n; i++) {
		const struct st_tensor *t = entries[i].tensor;
		uint32_t size = st_dtype_bytes(t->dtype);

		by_type[t->dtype]++;
		n_bytes += t->end - t->begin;
		n_params += size ? (t->end - t->begin) / size : 0;
	}
	put_int(in->out, "tensors", n);
	types = json_object_new_object();
	for (uint8_t i = 0; i < _ST_DTYPE_MAX; i++)
		if (by_type[i])
			put_int(types, st_dtype_name(i), by_type[i]);
	json_object_object_add(in->out, "tensor_types", types);
	put_int(in->out, "tensor_bytes", n_bytes);
	put_int(in->out, "params", n_params);
}

static void describe_tokenizer(struct inspection *in, const struct image_header *h)
{
	static const char *const splitters[] = {"bytes", "V2", "V3"}, *const renderers[] = {
									      "none", "V2", "V3"};
	struct json_object *o = json_object_new_object();

	put_text(o, "kind", splitters[h->splitter]);
	put_int(o, "merges", h->n_merges);
	put_int(o, "added", h->n_added);
	put_text(o, "chat", renderers[h->renderer]);
	json_object_object_add(in->out, "tokenizer", o);
}

/* What the loader says, without reading a weight. */
static int try_load(struct inspection *in, struct error *err)
{
	static const struct load_options options = {.entry = _PAGE_ENTRY_MAX};
	_cleanup_(image_builder_done) struct image_builder image = {};
	_cleanup_(load_freep) struct load *l = NULL;
	struct load_facts facts;
	int r;

	r = load_open(&l, &in->files, &options, err);
	if (r < 0)
		return r;
	facts = load_get_facts(l);
	put_int(in->out, "params", facts.n_params);
	put_int(in->out, "params_active", facts.n_params_active);
	r = image_builder_init(&image);
	r = r ?: load_image(l, &image, err);
	if (r == 0)
		describe_tokenizer(in, &image.h);
	return r;
}

static int inspect(struct inspection *in, const char *path, struct error *err)
{
	struct error refusal = {};
	const char *dot = strrchr(path, '.');
	int r;

	if (dot && strcmp(dot, ".gguf") == 0)
		return error_set(err, -EOPNOTSUPP, "%s: GGUF is not supported yet", path);
	r = files_open(&in->files, path, err);
	if (r < 0)
		return r;
	if (!files_find(&in->files, "config.json") && !weights_are_there(&in->files))
		return error_set(err, -ENOENT,
				 "%s: want a directory with config.json, or a .safetensors file",
				 path);
	r = check_json_files(in, err);
	r = r ?: open_weights(in, err);
	if (r < 0)
		return r;
	put_text(in->out, "path", path);
	describe_config(in);
	describe_weights(in);
	r = try_load(in, &refusal);
	in->refused = r < 0;
	json_object_object_add(in->out, "loads", json_object_new_boolean(r == 0));
	if (r < 0) {
		snprintf(in->reason, sizeof(in->reason), "%s", error_text(&refusal, r));
		json_object_object_add(in->out, "reason", json_object_new_string(in->reason));
	}
	return 0;
}

/* One level of objects becomes "key value, key value". */
static void print_value(struct json_object *o)
{
	const char *between = "";

	if (json_object_is_type(o, json_type_boolean)) {
		printf("%s", json_object_get_boolean(o) ? "yes" : "no");
	} else if (!json_object_is_type(o, json_type_object)) {
		printf("%s", json_object_get_string(o));
	} else {
		json_object_object_foreach(o, key, value)
		{
			printf("%s%s %s", between, key, json_object_get_string(value));
			between = ", ";
		}
	}
}

static void print_text(struct json_object *out)
{
	json_object_object_foreach(out, key, value)
	{
		printf("%-20s ", key);
		print_value(value);
		printf("\n");
	}
}

int inspect_run(const char *path, bool json, struct error *err)
{
	_cleanup_(inspection_done) struct inspection in = {.out = json_object_new_object()};
	int r;

	if (!in.out)
		return -ENOMEM;
	r = inspect(&in, path, err);
	if (r < 0)
		return r;
	if (json)
		printf("%s\n",
		       json_object_to_json_string_ext(
			       in.out, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	else
		print_text(in.out);
	if (fflush(stdout) != 0)
		return error_set(err, -errno, "writing: %m");
	return 0;
}
