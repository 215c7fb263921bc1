/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.json into the image, from the files that the fuzzer starts with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "worker/load/config.h"
#include "worker/load/tokenizer_json.h"

#define SEEDS (*(const char **)*state)

static char *read_file(const char *dir, const char *name, size_t *ret_n)
{
	char path[600], *data;
	struct stat st;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "rb");
	if (!f)
		return NULL;
	assert_int_equal(fstat(fileno(f), &st), 0);
	data = malloc((size_t)st.st_size + 1);
	assert_int_equal(fread(data, 1, (size_t)st.st_size, f), st.st_size);
	data[st.st_size] = 0;
	fclose(f);
	*ret_n = (size_t)st.st_size;
	return data;
}

/* A seed is tokenizer.json and, behind a 0, tokenizer_config.json. */
static int fill(struct image_builder *b, const char *dir, const char *name, uint32_t n_vocab,
		struct error *err)
{
	static const struct load_config config = {.bos = 256, .n_eos = 1, .eos = {257}};
	static const struct load_generation generation = {.n_eos = 2, .eos = {257, 258}};
	struct tokenizer_input in = {};
	size_t n = 0;
	char *data = read_file(dir, name, &n);
	int r;

	assert_non_null(data);
	in.tokenizer_bytes = strlen(data);
	in.tokenizer = in.tokenizer_bytes ? data : NULL;
	if (in.tokenizer_bytes < n) {
		in.config = data + in.tokenizer_bytes + 1;
		in.config_bytes = n - in.tokenizer_bytes - 1;
	}
	assert_int_equal(image_builder_init(b), 0);
	b->h.n_vocab = n_vocab;
	*err = (struct error){};
	r = tokenizer_fill(b, &in, &config, &generation, err);
	free(data);
	return r;
}

static const void *section(const struct image_builder *b, const struct image_section *s)
{
	return b->data + s->offset;
}

static void expect_token(const struct image_builder *b, uint32_t id, const void *bytes, size_t n)
{
	const uint32_t *offset = section(b, &b->h.token_offset);

	assert_int_equal(offset[id + 1] - offset[id], n);
	assert_memory_equal((const uint8_t *)section(b, &b->h.token_bytes) + offset[id], bytes, n);
}

static void v3_form_becomes_sections(void **state)
{
	struct image_builder b;
	struct error err;
	const uint8_t *flags;
	const struct image_merge *merges;
	const uint32_t *added;

	if (fill(&b, SEEDS, "v3-config", 300, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(b.h.splitter, IMAGE_SPLIT_V3);
	assert_int_equal(b.h.renderer, IMAGE_RENDER_V3);
	assert_int_equal(b.h.token_user, 258);
	assert_int_equal(b.h.token_assistant, 259);
	assert_int_equal(b.h.fim_begin, IMAGE_NONE);
	assert_int_equal(b.h.bos, 256);
	assert_int_equal(b.h.add_bos, 1);
	assert_int_equal(b.h.n_eos, 2);
	assert_int_equal(b.h.eos[1], 258);
	for (uint32_t i = 0; i < 256; i++) {
		uint8_t byte = (uint8_t)i;

		expect_token(&b, i, &byte, 1);
	}
	expect_token(&b, 261, "abc", 3);
	expect_token(&b, 262, " a", 2);
	expect_token(&b, 258, "<｜User｜>", strlen("<｜User｜>"));
	expect_token(&b, 299, "", 0);
	flags = section(&b, &b.h.token_flags);
	assert_int_equal(flags['a'], 0);
	assert_int_equal(flags[256], IMAGE_TOKEN_ADDED | IMAGE_TOKEN_SPECIAL);
	assert_int_equal(flags[258], IMAGE_TOKEN_ADDED);
	assert_int_equal(flags[263], IMAGE_TOKEN_UNUSED);
	assert_int_equal(b.h.n_merges, 3);
	merges = section(&b, &b.h.merges);
	assert_int_equal(merges[1].left, 260);
	assert_int_equal(merges[1].right, 'c');
	assert_int_equal(merges[1].result, 261);
	assert_int_equal(merges[2].left, ' ');
	assert_int_equal(b.h.n_added, 4);
	added = section(&b, &b.h.added);
	assert_int_equal(added[3], 259);
	image_builder_done(&b);
}

static void v2_form_has_the_v2_chat(void **state)
{
	struct image_builder b;
	struct error err;

	if (fill(&b, SEEDS, "v2", 300, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(b.h.splitter, IMAGE_SPLIT_V2);
	assert_int_equal(b.h.renderer, IMAGE_RENDER_V2);
	image_builder_done(&b);
}

static void merges_may_be_pairs(void **state)
{
	struct image_builder b;
	struct error err;
	const struct image_merge *merges;

	if (fill(&b, SEEDS, "pairs", 300, &err) < 0)
		fail_msg("%s", err.text);
	merges = section(&b, &b.h.merges);
	assert_int_equal(b.h.n_merges, 2);
	assert_int_equal(merges[1].left, 260);
	assert_int_equal(merges[1].result, 261);
	image_builder_done(&b);
}

/* Ids past the bytes can be given and sampled: random models are tested with them. */
static void no_tokenizer_is_a_byte_vocabulary(void **state)
{
	struct image_builder b;
	struct error err;
	const uint8_t *flags;

	if (fill(&b, SEEDS, "none", 320, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(b.h.splitter, IMAGE_SPLIT_BYTES);
	assert_int_equal(b.h.add_bos, 0); /* its tokenizer_config.json says so */
	expect_token(&b, 0, "", 1);
	expect_token(&b, 255, "\xff", 1);
	expect_token(&b, 319, "", 0);
	flags = section(&b, &b.h.token_flags);
	assert_int_equal(flags[319], 0);
	assert_int_equal(flags[256], IMAGE_TOKEN_SPECIAL);
	image_builder_done(&b);
	assert_int_equal(fill(&b, SEEDS, "none", 255, &err), -EINVAL);
	assert_non_null(strstr(err.text, "vocab_size: got 255, want at least 256"));
	image_builder_done(&b);
}

static void everything_else_is_refused_by_name(void **state)
{
	static const struct {
		const char *seed, *want;
	} cases[] = {
		{"merge-unknown", "merge 1 (bc): not all its parts are in the vocabulary"},
		{"merge-longer", "merge 0"},
		{"merge-shape", "merge 0: want two tokens"},
		{"id-negative", "token \"x\" has no id"},
		{"id-past", "token \"x\" has id 300, but config.json has vocab_size 300"},
		{"id-huge", "token \"x\" has id 9223372036854775807, but"},
		{"id-twice", "two tokens have id 260"},
		{"symbol-unknown", "token 270 is not made of at most 4096 byte symbols"},
		{"added-twice", "two tokens have id 258"},
		{"added-empty", "added token 270 has 0 bytes"},
		{"added-strip", "added_tokens[].lstrip: got true, want false"},
		{"added-long", "added token 270 has 5000 bytes"},
		{"normalizer-nfc",
		 "normalizer: got {\"type\":\"NFC\"}, want that of DeepSeek-V2 or -V3"},
		{"pattern-slow",
		 "pre_tokenizer: got [{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"}"},
		{"prefix-space", "pre_tokenizer: got"},
		{"byte-fallback", "model.byte_fallback: got true, want false"},
		{"unigram", "model.type: got \"Unigram\""},
		{"bos-unknown", "bos_token: got \"<none>\", want a token of tokenizer.json"},
		{"config-broken", "tokenizer_config.json: ends at byte"},
		{"deep", "nesting too deep"},
		{"empty-object", "pre_tokenizer: got nothing"},
	};

	for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
		struct image_builder b;
		struct error err;

		if (fill(&b, SEEDS, cases[i].seed, 300, &err) >= 0 ||
		    !strstr(err.text, cases[i].want))
			fail_msg("%s: \"%s\", want \"%s\"", cases[i].seed, err.text, cases[i].want);
		image_builder_done(&b);
	}
}

/* The published file, where it is at hand. */
static void published_v3_tokenizer_is_read(void **state)
{
	const char *data = getenv("DSD_TEST_DATA");
	char dir[500];
	struct image_builder b;
	struct error err;
	const uint8_t *flags;
	size_t n;
	char *there;

	snprintf(dir, sizeof(dir), "%s/tokenizer-deepseek-v3", data ?: "../shared/data");
	there = read_file(dir, "tokenizer.json", &n);
	if (!there) {
		print_message("%s is not there\n", dir);
		skip();
	}
	free(there);
	(void)state;
	if (fill(&b, dir, "tokenizer.json", 129280, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(b.h.splitter, IMAGE_SPLIT_V3);
	assert_int_equal(b.h.n_merges, 127741);
	assert_int_equal(b.h.n_added, 818);
	assert_int_equal(b.h.token_user, 128803);
	assert_int_equal(b.h.fim_hole, 128800);
	expect_token(&b, 19923, "Hello", 5);
	expect_token(&b, 2058, " world", 6);
	expect_token(&b, 30594, "你好", 6);
	expect_token(&b, 0, "<｜begin▁of▁sentence｜>", strlen("<｜begin▁of▁sentence｜>"));
	flags = section(&b, &b.h.token_flags);
	assert_int_equal(flags[128814], IMAGE_TOKEN_ADDED);
	assert_int_equal(flags[128815], IMAGE_TOKEN_UNUSED);
	assert_int_equal(flags[129279], IMAGE_TOKEN_UNUSED);
	image_builder_done(&b);
}

int main(int argc, char **argv)
{
	const char *seeds = argc > 1 ? argv[1] : NULL;
	struct CMUnitTest tests[] = {
		cmocka_unit_test(v3_form_becomes_sections),
		cmocka_unit_test(v2_form_has_the_v2_chat),
		cmocka_unit_test(merges_may_be_pairs),
		cmocka_unit_test(no_tokenizer_is_a_byte_vocabulary),
		cmocka_unit_test(everything_else_is_refused_by_name),
		cmocka_unit_test(published_v3_tokenizer_is_read),
	};

	for (size_t i = 0; i < N_ELEMENTS(tests); i++)
		tests[i].initial_state = &seeds;
	if (!seeds)
		return 77;
	return cmocka_run_group_tests_name("load_tokenizer", tests, NULL, NULL);
}
