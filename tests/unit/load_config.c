/* SPDX-License-Identifier: Apache-2.0 */
/* config.json against its ranges and against the weights beside it. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/config.h"
#include "worker/load/files.h"
#include "worker/load/load.h"
#include "worker/load/tensors.h"

#define GOLDEN (*(const char **)*state)

static const char base[] =
	"{\"model_type\":\"deepseek_v2\",\"vocab_size\":320,\"hidden_size\":64,\"num_hidden_layers\":2,"
	"\"num_attention_heads\":4,\"kv_lora_rank\":32,\"qk_nope_head_dim\":16,\"qk_rope_head_dim\":8,"
	"\"v_head_dim\":16,\"intermediate_size\":96,\"moe_intermediate_size\":32,\"n_routed_experts\":8,"
	"\"num_experts_per_tok\":2,\"rms_norm_eps\":1e-6,\"max_position_embeddings\":512}";

/* @text with one member changed; @value is JSON, NULL takes it away. */
static char *change(const char *text, const char *key, const char *value)
{
	struct json_object *o = json_tokener_parse(text);
	char *ret;

	assert_non_null(o);
	if (value)
		json_object_object_add(o, key, json_tokener_parse(value));
	else
		json_object_object_del(o, key);
	ret = strdup(json_object_to_json_string(o));
	json_object_put(o);
	return ret;
}

static int parse(struct load_config *c, const char *key, const char *value, struct error *err)
{
	char *text = change(base, key, value);
	int r;

	*err = (struct error){};
	r = load_config_parse(c, text, strlen(text), err);
	free(text);
	return r;
}

/* Three bytes of the file are an object of 800 in memory. */
static void small_text_of_large_values_is_refused(void **state)
{
	static const char value[] = "{},";
	size_t n_values = 1u << 20, n = 0;
	char *text = malloc(n_values * 3 + 64);
	struct load_config c;
	struct error err = {};

	(void)state;
	assert_non_null(text);
	n += (size_t)sprintf(text, "{\"a\":[");
	for (size_t i = 0; i < n_values; i++, n += 3)
		memcpy(text + n, value, 3);
	n += (size_t)sprintf(text + n, "{}]}");
	assert_int_equal(load_config_parse(&c, text, n, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "of memory, want at most 512"));
	/* In a string the same text is a string. */
	text[5] = text[n - 2] = '"';
	err = (struct error){};
	assert_int_equal(load_config_parse(&c, text, n, &err), -EINVAL);
	assert_non_null(strstr(err.text, "model_type"));
	free(text);
}

static void absent_keys_have_the_published_defaults(void **state)
{
	struct load_config c;
	struct error err;

	(void)state;
	assert_int_equal(parse(&c, "ignored", "{}", &err), 0);
	assert_int_equal(c.m.q_lora_rank, 0);
	assert_int_equal(c.m.moe_freq, 1);
	assert_int_equal(c.m.first_dense, 0);
	assert_int_equal(c.m.n_shared, 0);
	assert_int_equal(c.m.route.n_group, 1);
	assert_true(c.m.route.scale == 1 && !c.m.route.norm_topk && !c.m.route.sigmoid);
	assert_false(c.m.yarn.on);
	assert_true(c.m.rope_theta == 10000);
	assert_int_equal(c.bos, IMAGE_NONE);
	assert_int_equal(c.n_eos, 0);
	assert_false(c.tied);
	assert_false(c.synthetic);
}

static void both_rope_spellings_are_read(void **state)
{
	static const char yarn[] =
		"{\"%s\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":64,"
		"\"mscale\":0.707,\"mscale_all_dim\":1.5,\"rope_theta\":5000}";
	char value[300];
	struct load_config c;
	struct error err;

	(void)state;
	for (int i = 0; i < 2; i++) {
		snprintf(value, sizeof(value), yarn, i ? "rope_type" : "type");
		assert_int_equal(parse(&c, i ? "rope_parameters" : "rope_scaling", value, &err), 0);
		assert_true(c.m.yarn.on);
		assert_true(c.m.yarn.factor == 40 && c.m.yarn.mscale == 0.707);
		assert_true(c.m.yarn.mscale_all_dim == 1.5 && c.m.yarn.beta_fast == 32);
		assert_int_equal(c.m.yarn.original_context, 64);
		assert_true(c.m.rope_theta == 5000);
	}
	assert_int_equal(
		parse(&c, "rope_parameters", "{\"rope_type\":\"default\",\"rope_theta\":7}", &err),
		0);
	assert_false(c.m.yarn.on);
	assert_true(c.m.rope_theta == 7);
}

static void end_tokens_may_be_one_or_a_list(void **state)
{
	struct load_config c;
	struct error err;

	(void)state;
	assert_int_equal(parse(&c, "eos_token_id", "7", &err), 0);
	assert_int_equal(c.n_eos, 1);
	assert_int_equal(c.eos[0], 7);
	assert_int_equal(parse(&c, "eos_token_id", "[1, 319]", &err), 0);
	assert_int_equal(c.n_eos, 2);
	assert_int_equal(c.eos[1], 319);
}

static void wrong_values_are_named(void **state)
{
	static const struct {
		const char *key, *value, *want;
	} cases[] = {
		{"kv_lora_rank", "\"abc\"",
		 "config.json: kv_lora_rank: got \"abc\", want an integer from 1 to 65536"},
		{"kv_lora_rank", NULL,
		 "config.json: kv_lora_rank: got nothing, want an integer from 1 to 65536"},
		{"kv_lora_rank", "0", "got 0, want"},
		{"kv_lora_rank", "-1", "got -1, want"},
		{"kv_lora_rank", "1.5", "got 1.5, want"},
		{"kv_lora_rank", "18446744073709551616", "want an integer"},
		{"kv_lora_rank", "[1, 2]", "got an array of 2, want"},
		{"hidden_size", "99999999999", "hidden_size: got 99999999999, want"},
		{"num_hidden_layers", "513",
		 "num_hidden_layers: got 513, want an integer from 1 to 512"},
		{"vocab_size", "1048577", "vocab_size"},
		{"max_position_embeddings", "1048577", "max_position_embeddings"},
		{"qk_rope_head_dim", "7", "qk_rope_head_dim: got 7, want an even number"},
		{"num_key_value_heads", "2",
		 "num_key_value_heads: got 2, want an integer from 4 to 4"},
		{"rms_norm_eps", "0", "rms_norm_eps"},
		{"rms_norm_eps", "\"NaN\"", "rms_norm_eps"},
		{"num_experts_per_tok", "9",
		 "num_experts_per_tok: got 9, want an integer from 1 to 8"},
		{"n_routed_experts", "4294967295", "n_routed_experts: got 4294967295, want"},
		{"topk_method", "\"noaux_tc\"", "want greedy or group_limited_greedy"},
		{"scoring_func", "\"sigmoid\"", "scoring_func: got \"sigmoid\", want softmax"},
		{"norm_topk_prob", "true", "norm_topk_prob: got true, want false"},
		{"attention_bias", "true", "attention_bias: got true, want false"},
		{"hidden_act", "\"gelu\"", "hidden_act: got \"gelu\", want silu"},
		{"quantization_config", "{}", "quantization_config: got an object, want none"},
		{"rope_scaling", "{\"type\":\"linear\",\"factor\":2}",
		 "rope_scaling.type: got \"linear\", want yarn or default"},
		{"rope_scaling", "{\"type\":\"yarn\"}", "rope_scaling.factor: got nothing"},
		{"rope_scaling", "{\"type\":\"yarn\",\"factor\":0.5}",
		 "rope_scaling.factor: got 0.5"},
		{"rope_scaling", "{}", "rope_scaling.type: got nothing"},
		{"model_type", "\"llama\"", "model_type: got \"llama\", want deepseek_v2"},
		{"model_type", "\"deepseek_v3\"", "deepseek_v3 is known but not supported yet"},
		{"bos_token_id", "320", "bos_token_id: got 320, want an integer from 0 to 319"},
		{"eos_token_id", "[0,320]", "eos_token_id: element 1 is no id below 320"},
		{"eos_token_id", "[1,2,3,4,5,6,7,8,9]", "want at most 8 ids"},
		{"dsd_synthetic", "-1", "dsd_synthetic: got -1"},
		{"tie_word_embeddings", "1", "tie_word_embeddings: got 1, want true or false"},
	};
	struct load_config c;
	struct error err;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(cases); i++)
		if (parse(&c, cases[i].key, cases[i].value, &err) >= 0 ||
		    !strstr(err.text, cases[i].want))
			fail_msg("%s = %s: \"%s\", want \"%s\"", cases[i].key, cases[i].value,
				 err.text, cases[i].want);
}

static void text_that_is_no_json_is_refused_with_its_place(void **state)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{"", "config.json: ends at byte 0 in the middle of the JSON"},
		{"[]", "config.json: want a JSON object"},
		{"{} {}", "config.json: byte 3: something after the JSON"},
		{"{\"a\":tru}", "config.json: byte"},
		{"{\"a\":\"\xff\"}", "config.json: byte"},
		{"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
		 "config.json: byte 32: nesting too deep"},
	};
	struct load_config c;

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		struct error err = {};

		assert_int_equal(load_config_parse(&c, cases[i].text, strlen(cases[i].text), &err),
				 -EBADMSG);
		if (!strstr(err.text, cases[i].want))
			fail_msg("%s: %s", cases[i].text, err.text);
	}
	assert_int_equal(load_config_parse(&c, "{}\0", 3, NULL), -EBADMSG);
}

static void generation_defaults_are_those_that_are_there(void **state)
{
	static const char some[] = "{\"temperature\":0.3,\"top_p\":0.95,\"eos_token_id\":[1,2]}";
	static const char greedy[] = "{\"do_sample\":false,\"temperature\":0.3}";
	struct load_generation g;
	struct error err = {};

	(void)state;
	assert_int_equal(load_generation_parse(&g, some, strlen(some), 10, &err), 0);
	assert_int_equal(g.defaults, IMAGE_DEFAULT_TEMPERATURE | IMAGE_DEFAULT_TOP_P);
	assert_true(g.temperature == 0.3f && g.top_p == 0.95f);
	assert_int_equal(g.n_eos, 2);
	assert_int_equal(load_generation_parse(&g, greedy, strlen(greedy), 10, &err), 0);
	assert_true((g.defaults & IMAGE_DEFAULT_TEMPERATURE) && g.temperature == 0);
	assert_int_equal(load_generation_parse(&g, some, strlen(some), 2, &err), -EINVAL);
	assert_string_equal(err.text,
			    "generation_config.json: eos_token_id: element 1 is no id below 2");
}

/* The golden checkpoint v2-tiny with its config changed: loads, or says which tensor disagrees. */
static int open_changed(const char *golden, const char *key, const char *value, struct error *err)
{
	static const struct load_options options = {.entry = _PAGE_ENTRY_MAX};
	_cleanup_(files_done) struct files original = {}, files = {};
	_cleanup_(load_freep) struct load *l = NULL;
	char path[512], *text, *changed;
	size_t n;
	int fd = memfd_create("config", MFD_CLOEXEC);

	snprintf(path, sizeof(path), "%s/v2-tiny", golden);
	assert_int_equal(files_open(&original, path, NULL), 0);
	assert_int_equal(
		file_slurp(files_find(&original, "config.json"), CONFIG_JSON_MAX, &text, &n, NULL),
		0);
	changed = change(text, key, value);
	assert_int_equal(write(fd, changed, strlen(changed)), strlen(changed));
	free(text);
	free(changed);
	assert_int_equal(files_add(&files, "config.json", fd, NULL), 0);
	fd = dup(files_find(&original, "model.safetensors")->fd);
	assert_int_equal(files_add(&files, "model.safetensors", fd, NULL), 0);
	*err = (struct error){};
	return load_open(&l, &files, &options, err);
}

static void contradiction_with_the_weights_is_named(void **state)
{
	static const struct {
		const char *key, *value, *want;
	} cases[] = {
		{"num_hidden_layers", "4",
		 "model.layers.3.input_layernorm.weight: missing, want [32] (hidden)"},
		{"hidden_size", "48",
		 "model.embed_tokens.weight: shape [320, 32], want [320, 48] (vocab_size, hidden)"},
		{"q_lora_rank", NULL,
		 "model.layers.0.self_attn.q_proj.weight: missing, want [96, 32] "
		 "(n_heads x (qk_nope + qk_rope), hidden)"},
		{"kv_lora_rank", "24",
		 "model.layers.0.self_attn.kv_a_proj_with_mqa.weight: shape [40, 32], want [32, 32]"},
		{"v_head_dim", "24",
		 "model.layers.0.self_attn.kv_b_proj.weight: shape [128, 32], want [160, 32]"},
		{"n_routed_experts", "8",
		 "model.layers.1.mlp.gate.weight: shape [12, 32], want [8, 32]"},
		{"n_shared_experts", "1",
		 "model.layers.1.mlp.shared_experts.gate_proj.weight: shape [32, 32], "
		 "want [16, 32]"},
		{"n_shared_experts", "0", "this model has no such tensor"},
		{"first_k_dense_replace", "2", "model.layers.1.mlp.gate_proj.weight: missing"},
		{"dsd_synthetic", "1", "config.json: dsd_synthetic beside .safetensors files"},
	};
	struct error err;

	assert_int_equal(open_changed(GOLDEN, "ignored", "1", &err), 0);
	/* Fewer layers than the file has: the rest counts as drafters, as published files have them. */
	assert_int_equal(open_changed(GOLDEN, "num_hidden_layers", "2", &err), 0);
	/* A head of its own in the file of a tied model is not looked at. */
	assert_int_equal(open_changed(GOLDEN, "tie_word_embeddings", "true", &err), 0);
	for (size_t i = 0; i < N_ELEMENTS(cases); i++)
		if (open_changed(GOLDEN, cases[i].key, cases[i].value, &err) >= 0 ||
		    !strstr(err.text, cases[i].want))
			fail_msg("%s = %s: \"%s\", want \"%s\"", cases[i].key, cases[i].value,
				 err.text, cases[i].want);
}

/* V2-Lite, V2 and V3, as published: 15.7, 236 and 671 G numbers, of which a token touches 2.45, 20.9 and 36.6 G. What a
 * router adds to its scores is not among them. */
static void published_shapes_have_their_parameters(void **state)
{
	static const struct {
		uint32_t layers, hidden, vocab, heads, q_lora_rank, inter;
		uint32_t experts, used, shared, moe_inter, dense;
		uint64_t params, active;
	} known[] = {
		{27, 2048, 102400, 16, 0, 10944, 64, 6, 2, 1408, 1, 15706484224, 2451437056},
		{60, 5120, 102400, 128, 1536, 12288, 160, 6, 2, 1536, 1, 235741434880, 20851517440},
		{61, 7168, 129280, 128, 1536, 18432, 256, 8, 1, 2048, 3, 671026404352, 36625610752},
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(known); i++) {
		const struct load_config c = {.m = {.n_layers = known[i].layers,
						    .hidden = known[i].hidden,
						    .n_vocab = known[i].vocab,
						    .n_heads = known[i].heads,
						    .nope = 128,
						    .rope = 64,
						    .v_head = 128,
						    .rank = 512,
						    .q_lora_rank = known[i].q_lora_rank,
						    .inter = known[i].inter,
						    .n_experts = known[i].experts,
						    .n_used = known[i].used,
						    .n_shared = known[i].shared,
						    .moe_inter = known[i].moe_inter,
						    .first_dense = known[i].dense,
						    .moe_freq = 1}};
		uint64_t params = 0, active = 0;

		tensors_count(&c, &params, &active);
		assert_int_equal(params, known[i].params);
		assert_int_equal(active, known[i].active);
	}
}

int main(int argc, char **argv)
{
	const char *golden = argc > 1 ? argv[1] : NULL;
	struct CMUnitTest tests[] = {
		cmocka_unit_test(small_text_of_large_values_is_refused),
		cmocka_unit_test(absent_keys_have_the_published_defaults),
		cmocka_unit_test(both_rope_spellings_are_read),
		cmocka_unit_test(end_tokens_may_be_one_or_a_list),
		cmocka_unit_test(wrong_values_are_named),
		cmocka_unit_test(text_that_is_no_json_is_refused_with_its_place),
		cmocka_unit_test(generation_defaults_are_those_that_are_there),
		cmocka_unit_test(contradiction_with_the_weights_is_named),
		cmocka_unit_test(published_shapes_have_their_parameters),
	};

	for (size_t i = 0; i < N_ELEMENTS(tests); i++)
		tests[i].initial_state = &golden;
	if (!golden)
		return 77;
	return cmocka_run_group_tests_name("load_config", tests, NULL, NULL);
}
