/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/bench_shape.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json_object.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/config.h"
#include "worker/load/files.h"
#include "worker/load/json.h"
#include "worker/load/weights.h"

#define YARN(mscale)                                                                               \
	"\"rope_theta\": 10000, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, "           \
	"\"original_max_position_embeddings\": 4096, \"beta_fast\": 32, \"beta_slow\": 1, "        \
	"\"mscale\": " mscale ", \"mscale_all_dim\": " mscale "}"
#define COMMON                                                                                     \
	"\"max_position_embeddings\": 163840, \"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, "  \
	"\"qk_rope_head_dim\": 64, \"v_head_dim\": 128, \"moe_layer_freq\": 1, "                   \
	"\"rms_norm_eps\": 1e-6, "

/* What of the published config.json the loader reads. */
static const struct {
	const char *name, *config;
} shapes[] = {
	{"deepseek-v2-lite",
	 "{\"model_type\": \"deepseek_v2\", \"vocab_size\": 102400, \"hidden_size\": 2048, "
	 "\"intermediate_size\": 10944, \"moe_intermediate_size\": 1408, "
	 "\"num_hidden_layers\": 27, \"num_attention_heads\": 16, \"q_lora_rank\": null, "
	 "\"n_routed_experts\": 64, \"num_experts_per_tok\": 6, \"n_shared_experts\": 2, "
	 "\"first_k_dense_replace\": 1, \"routed_scaling_factor\": 1.0, "
	 "\"topk_method\": \"greedy\", \"n_group\": 1, \"topk_group\": 1, "
	 "\"scoring_func\": \"softmax\", \"norm_topk_prob\": false, " COMMON YARN("0.707") "}"},
	{"deepseek-v2",
	 "{\"model_type\": \"deepseek_v2\", \"vocab_size\": 102400, \"hidden_size\": 5120, "
	 "\"intermediate_size\": 12288, \"moe_intermediate_size\": 1536, "
	 "\"num_hidden_layers\": 60, \"num_attention_heads\": 128, \"q_lora_rank\": 1536, "
	 "\"n_routed_experts\": 160, \"num_experts_per_tok\": 6, \"n_shared_experts\": 2, "
	 "\"first_k_dense_replace\": 1, \"routed_scaling_factor\": 16.0, "
	 "\"topk_method\": \"group_limited_greedy\", \"n_group\": 8, \"topk_group\": 3, "
	 "\"scoring_func\": \"softmax\", \"norm_topk_prob\": false, " COMMON YARN("0.707") "}"},
	{"deepseek-v3",
	 "{\"model_type\": \"deepseek_v3\", \"vocab_size\": 129280, \"hidden_size\": 7168, "
	 "\"intermediate_size\": 18432, \"moe_intermediate_size\": 2048, "
	 "\"num_hidden_layers\": 61, \"num_attention_heads\": 128, \"q_lora_rank\": 1536, "
	 "\"n_routed_experts\": 256, \"num_experts_per_tok\": 8, \"n_shared_experts\": 1, "
	 "\"first_k_dense_replace\": 3, \"routed_scaling_factor\": 2.5, "
	 "\"topk_method\": \"noaux_tc\", \"n_group\": 8, \"topk_group\": 4, "
	 "\"scoring_func\": \"sigmoid\", \"norm_topk_prob\": true, " COMMON YARN("1.0") "}"},
};

static int add_text(struct files *files, const char *text, struct error *err)
{
	_cleanup_(fd_closep) int fd = memfd_create("config.json", MFD_CLOEXEC);
	size_t n = strlen(text);

	if (fd < 0)
		return error_set(err, -errno, "memfd_create: %m");
	if (write(fd, text, n) != (ssize_t)n)
		return error_set(err, -EIO, "config.json of %zu bytes: cannot be kept", n);
	return files_add(files, "config.json", TAKE_FD(fd), err);
}

static int add_synthetic(struct files *files, const char *file, const void *data, size_t n,
			 struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *config = NULL;
	int r = json_parse(&config, file, data, n, err);

	if (r < 0)
		return r;
	if (json_object_object_add(config, "dsd_synthetic", json_object_new_int(1)) < 0)
		return -ENOMEM;
	return add_text(files, json_object_to_json_string_ext(config, JSON_C_TO_STRING_PLAIN), err);
}

int bench_shape_open(struct files *ret, const char *shape, struct error *err)
{
	_cleanup_(files_done) struct files found = {};
	_cleanup_(freep) char *text = NULL;
	struct stat st;
	size_t n;
	int r;

	for (size_t i = 0; i < N_ELEMENTS(shapes); i++)
		if (strcmp(shape, shapes[i].name) == 0)
			return add_synthetic(ret, shape, shapes[i].config, strlen(shapes[i].config),
					     err);
	if (stat(shape, &st) < 0)
		return error_set(err, -errno,
				 "--shape %s: want deepseek-v2-lite, deepseek-v2, deepseek-v3, a "
				 "config.json or a model directory: %m",
				 shape);
	r = files_open(&found, shape, err);
	if (r < 0)
		return r;
	if (weights_are_there(&found)) {
		*ret = found;
		found = (struct files){};
		return 0;
	}
	for (uint32_t i = 0; i < found.n; i++) {
		bool only = !S_ISDIR(st.st_mode);

		if (!only && strcmp(found.items[i].name, "config.json") != 0)
			continue;
		r = file_slurp(&found.items[i], CONFIG_JSON_MAX, &text, &n, err);
		return r < 0 ? r : add_synthetic(ret, found.items[i].name, text, n, err);
	}
	return error_set(err, -ENOENT, "--shape %s: no config.json", shape);
}
