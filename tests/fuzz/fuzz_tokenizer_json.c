/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.json, and behind the first 0 byte tokenizer_config.json: what passes is an image that
 * image_open() accepts. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "layout/page.h"
#include "worker/load/config.h"
#include "worker/load/tokenizer_json.h"

#define N_VOCAB 300u

static void must(bool ok)
{
	if (!ok)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const struct load_config config = {.bos = 256, .n_eos = 1, .eos = {257}};
	static const struct load_generation generation = {.n_eos = 1, .eos = {258}};
	_cleanup_(image_builder_done) struct image_builder b = {};
	const uint8_t *end = n ? memchr(data, 0, n) : NULL;
	struct tokenizer_input in = {.tokenizer = (const char *)data, .tokenizer_bytes = n};
	struct image_stream stream = {0, page_entry_row_bytes(PAGE_ENTRY_F32, 16, 16)};
	struct error err = {};
	int fd;

	if (end) {
		in.tokenizer_bytes = (size_t)(end - data);
		in.config = (const char *)end + 1;
		in.config_bytes = n - in.tokenizer_bytes - 1;
	}
	if (in.tokenizer_bytes == 0)
		in.tokenizer = NULL;
	must(image_builder_init(&b) == 0);
	b.h.n_vocab = N_VOCAB;
	b.h.n_context = 64;
	b.h.n_layers = b.h.n_heads = b.h.hidden = b.h.qk_nope = b.h.v_head = 1;
	b.h.kv_lora_rank = b.h.qk_rope = 16;
	if (tokenizer_fill(&b, &in, &config, &generation, &err) < 0) {
		must(err.text[0] != 0);
		return 0;
	}
	must(image_append(&b, &b.h.streams, &stream, sizeof(stream)) == 0);
	fd = image_finish(&b, &err);
	must(fd >= 0);
	fd_close(fd);
	return 0;
}
