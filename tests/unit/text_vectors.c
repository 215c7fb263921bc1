/* SPDX-License-Identifier: Apache-2.0 */
/* The published vocabularies: vectors made by the published library, the 47 vectors that come with the deepseek-llm
 * vocabulary, and what Hugging Face's tokenizers makes of some thousand texts of every script.
 *
 *   unit-text-vectors              all of it (exit 77 and a reason without the test data)
 *   unit-text-vectors v2|v3 FILE   one file of make_tokenizer_vectors.py */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>
#include <utf8proc.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/split.h"
#include "text/template.h"
#include "text/utf8.h"
#include "text/vocab.h"
#include "text_image.h"

struct fixture {
	struct text_image *t;
	struct vocab *v;
	struct encode_scratch *s;
};

static struct fixture v2, v3;

static void fixture_open(struct fixture *f, struct text_image *t)
{
	struct error err = {};

	f->t = t;
	if (vocab_new(&f->v, &t->im, NULL, NULL, &err) < 0 || encode_scratch_new(&f->s) < 0) {
		fprintf(stderr, "vocabulary: %s\n", err.text);
		abort();
	}
}

static void fixture_close(struct fixture *f)
{
	vocab_unref(f->v);
	encode_scratch_free(f->s);
	text_image_free(f->t);
}

/* Whether @text encodes to @want, and back; says so when not. */
static bool check(const struct fixture *f, const char *text, size_t n, const uint32_t *want,
		  size_t n_want, unsigned flags)
{
	struct ids ids = {};
	struct text_buf back = {}, shown = {};
	struct error err = {};
	bool same, whole;
	int r = encode_text(f->v, f->s, text, n, flags, &ids, &err);

	same = r == 0 && ids.n == n_want &&
	       (n_want == 0 || memcmp(ids.id, want, n_want * sizeof(*want)) == 0);
	if (!same) {
		printf("\"%.*s\":%s\n  got ", (int)n, text, err.text);
		for (size_t i = 0; i < ids.n; i++)
			printf(" %u", ids.id[i]);
		printf("\n  want");
		for (size_t i = 0; i < n_want; i++)
			printf(" %u", want[i]);
		printf("\n");
	}
	whole = decode_bytes(f->v, ids.id, ids.n, false, &back, NULL) == 0 &&
		decode_text(f->v, ids.id, ids.n, false, &shown, NULL) == 0 && back.n == n &&
		shown.n == n &&
		(n == 0 || (memcmp(back.data, text, n) == 0 && memcmp(shown.data, text, n) == 0));
	if (!whole)
		printf("\"%.*s\" does not come back\n", (int)n, text);
	ids_done(&ids);
	text_buf_done(&back);
	text_buf_done(&shown);
	return same && whole;
}

/* Published ids as text: numbers with anything between them. */
static size_t parse_ids(const char *p, uint32_t *ret, size_t n_max)
{
	size_t n = 0;

	for (p += strcspn(p, "0123456789"); *p; p += strcspn(p, "0123456789")) {
		char *end;

		assert_true(n < n_max);
		ret[n++] = (uint32_t)strtoul(p, &end, 10);
		p = end;
	}
	return n;
}

struct vector {
	const char *text, *ids;
};

static void check_vectors(const struct fixture *f, const struct vector *vectors, size_t n)
{
	size_t n_wrong = 0;

	for (size_t i = 0; i < n; i++) {
		uint32_t want[128];
		size_t n_want = parse_ids(vectors[i].ids, want, N_ELEMENTS(want));

		n_wrong += !check(f, vectors[i].text, strlen(vectors[i].text), want, n_want,
				  ENCODE_PARSE_SPECIAL);
	}
	assert_int_equal(n_wrong, 0);
}

static void encode_gives_the_listed_v3_ids(void **state)
{
	static const struct vector vectors[] = {
		{"Hello!", "19923,3"},
		{"Hello world", "19923,2058"},
		{"The quick brown fox", "671,4787,13769,46012"},
		{"a\n\nb", "67,271,68"},
		{"\n\n\n", "6328"},
		{"   ", "361"},
		{"123456 7890", "6895,18009,223,25744,18"},
		{"3.14159", "21,16,9926,3318"},
		{"你好，世界", "30594,303,3427"},
		{"こんにちは", "4549,7245,2298,12457,2841"},
		{"한국어", "5634,17564,9227"},
		{"naïve café Führer", "2720,91223,57664,80110,42243"},
		{"def f(x):\n    return x**2\n", "3465,285,4042,3395,361,1354,1527,666,20,201"},
		{"don't I'VE", "20385,1664,342,9,23584"},
		{"🚀🦙", "74287,225,3574,102,250"},
		{"\tTab\r\nCRLF", "200,36440,204,201,8002,68688"},
		{"C++ & C#", "37,3312,1051,345,5"},
		{"１２３４", "127167,25081,33095"},
		{"<｜begin▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜>",
		 "0,128803,3085,344,223,19,13,19,33,128804"},
		{"Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ",
		 "19923,3,223,5464,5008,1175,19,940,223,19,438,223,20,6113,257,76589,131,100,76032,"
		 "1628,76589,131,108,76589,131,98"},
	};

	(void)state;
	check_vectors(&v3, vectors, N_ELEMENTS(vectors));
}

static void encode_gives_the_listed_v2_ids(void **state)
{
	static const struct vector vectors[] = {
		{"Hello World", "17464,5427"},
		{" Hello World", "37727,5427"},
		{" this is 🦙.cpp", "437,317,12356,99,234,13,14743"},
		{"w048 7tuijk dsdfhu", "86,15,19,23,207,22,83,3970,27519,26016,3944,14025"},
		{"нещо на Български", "1603,6476,620,91754"},
		{"\n =", "185,403"},
		{"!!!!!!", "15278,3033"},
		{"33333333", "18 18 18 18 18 18 18 18"},
		{"Führer", "37,100014,71,6245"},
	};

	(void)state;
	check_vectors(&v2, vectors, N_ELEMENTS(vectors));
}

static void encode_gives_the_published_deepseek_llm_ids(void **state)
{
	static const char separator[] = "\n__ggml_vocab_test__\n";
	size_t n, n_done = 0, n_wrong = 0;
	char *texts = text_data_read(text_data_dir(), "vocab-deepseek-llm/texts.inp", &n);
	char *ids = text_data_read(text_data_dir(), "vocab-deepseek-llm/ids.out", &n);
	char *text = texts, *line = ids;

	(void)state;
	assert_non_null(texts);
	assert_non_null(ids);
	/* The texts have no 0 byte; the last one ends with the last separator. */
	for (char *end; (end = strstr(text, separator)); text = end + strlen(separator)) {
		char *line_end = strchr(line, '\n');
		uint32_t want[1024];

		assert_non_null(line_end);
		*line_end = 0;
		n_wrong += !check(&v2, text, (size_t)(end - text), want,
				  parse_ids(line, want, N_ELEMENTS(want)), 0);
		line = line_end + 1;
		n_done++;
	}
	assert_int_equal(n_done, 46);
	free(texts);
	free(ids);
	assert_int_equal(n_wrong, 0);
}

/* Checks every line of a file of make_tokenizer_vectors.py; returns how many were wrong. */
static size_t check_file(const struct fixture *f, const char *dir, const char *name, size_t *ret_n)
{
	size_t n, n_wrong = 0, n_plain = 0;
	char *data = text_data_read(dir, name, &n);
	char *line;

	if (!data) {
		printf("%s/%s cannot be read\n", dir, name);
		return SIZE_MAX;
	}
	*ret_n = 0;
	line = strchr(data, '\n');
	while (line && line[1]) {
		struct json_object *v = json_tokener_parse(++line);
		struct json_object *text = v ? json_object_array_get_idx(v, 0) : NULL;
		size_t n_ids = v ? json_object_array_length(v) - 1 : 0;
		uint32_t *want = calloc(n_ids + 1, sizeof(*want));
		bool control = false;

		if (!text || !want)
			abort();
		for (size_t i = 0; i < n_ids; i++) {
			want[i] = (uint32_t)json_object_get_int64(
				json_object_array_get_idx(v, i + 1));
			control |= vocab_is_control(f->v, want[i]);
		}
		n_wrong += !check(f, json_object_get_string(text),
				  (size_t)json_object_get_string_len(text), want, n_ids,
				  ENCODE_PARSE_SPECIAL);
		/* Without markers the safe form is the same. */
		if (!control)
			n_wrong += !check(f, json_object_get_string(text),
					  (size_t)json_object_get_string_len(text), want, n_ids, 0);
		n_plain += !control;
		++*ret_n;
		free(want);
		json_object_put(v);
		line = strchr(line, '\n');
	}
	free(data);
	printf("%s: %zu texts, %zu of them without control tokens, %zu wrong\n", name, *ret_n,
	       n_plain, n_wrong);
	return n_wrong;
}

/* Every character behind @first: whether the two are one piece, as make_tokenizer_vectors.py hashes it. */
static uint32_t hash_together(enum image_splitter kind, const char *first)
{
	uint8_t *bits = calloc(1, 0x110000 / 8);
	uint32_t h = 0x811C9DC5;

	assert_non_null(bits);
	for (uint32_t c = 0; c < 0x110000; c++) {
		uint8_t text[8];
		size_t n = strlen(first), from, to;
		struct split s;

		memcpy(text, first, n);
		n += (size_t)utf8proc_encode_char((utf8proc_int32_t)c, text + n);
		if (utf8_valid_prefix(text, n) != n)
			continue;
		split_init(&s, kind, text, n);
		if (split_next(&s, &from, &to) && to == n)
			bits[c / 8] |= (uint8_t)(1 << c % 8);
	}
	for (size_t i = 0; i < 0x110000 / 8; i++)
		h = (h ^ bits[i]) * 0x01000193;
	free(bits);
	return h;
}

/* The ranges of the patterns, seen from outside: which characters join a letter, a sign, an ideograph. */
static void split_has_the_ranges_of_the_patterns(void **state)
{
	static const struct {
		enum image_splitter kind;
		const char *name;
		int n;
	} files[] = {{IMAGE_SPLIT_V2, "tokenizer-v2.vectors", 3},
		     {IMAGE_SPLIT_V3, "tokenizer-v3.vectors", 1}};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(files); i++) {
		size_t n;
		char *data = text_data_read(TEXT_SOURCE_ROOT "/tests/unit/data", files[i].name, &n);
		struct json_object *made, *firsts;
		int n_firsts = 0;

		assert_non_null(data);
		*strchr(data, '\n') = 0;
		made = json_tokener_parse(data);
		assert_true(json_object_object_get_ex(made, "together", &firsts));
		json_object_object_foreach(firsts, first, want)
		{
			assert_int_equal(hash_together(files[i].kind, first),
					 json_object_get_int64(want));
			n_firsts++;
		}
		assert_int_equal(n_firsts, files[i].n);
		json_object_put(made);
		free(data);
	}
}

static void encode_equals_hugging_face_v3(void **state)
{
	size_t n;

	(void)state;
	assert_int_equal(
		check_file(&v3, TEXT_SOURCE_ROOT "/tests/unit/data", "tokenizer-v3.vectors", &n),
		0);
	assert_true(n >= 2000);
}

static void encode_equals_hugging_face_v2(void **state)
{
	size_t n;

	(void)state;
	assert_int_equal(
		check_file(&v2, TEXT_SOURCE_ROOT "/tests/unit/data", "tokenizer-v2.vectors", &n),
		0);
	assert_true(n >= 500);
}

/* Conversations of make_tokenizer_vectors.py: what the published template makes as one string. */
static void check_chats(const struct fixture *f, const char *name)
{
	size_t n, n_chats = 0, n_wrong = 0;
	char *data = text_data_read(TEXT_SOURCE_ROOT "/tests/unit/data", name, &n), *line = data;

	assert_non_null(data);
	for (char *end; (end = strchr(line, '\n')); line = end + 1, n_chats++) {
		struct json_object *chat, *messages, *want;
		struct message m[8];
		struct ids ids = {};
		bool same;

		*end = 0;
		chat = json_tokener_parse(line);
		assert_non_null(chat);
		messages = json_object_array_get_idx(chat, 0);
		want = json_object_array_get_idx(chat, 2);
		for (size_t i = 0; i < json_object_array_length(messages); i++) {
			struct json_object *pair = json_object_array_get_idx(messages, i);
			struct json_object *text = json_object_array_get_idx(pair, 1);
			int role = message_role_parse(
				json_object_get_string(json_object_array_get_idx(pair, 0)), NULL);

			assert_true(role >= 0 && i < N_ELEMENTS(m));
			m[i] = (struct message){(enum message_role)role,
						json_object_get_string(text),
						(size_t)json_object_get_string_len(text)};
		}
		assert_int_equal(
			template_render(f->v, f->s, m, json_object_array_length(messages),
					json_object_get_boolean(json_object_array_get_idx(chat, 1))
						? TEMPLATE_GENERATION_PROMPT
						: 0,
					&ids, NULL),
			0);
		same = ids.n == json_object_array_length(want);
		for (size_t i = 0; i < ids.n && same; i++)
			same = ids.id[i] ==
			       json_object_get_int64(json_object_array_get_idx(want, i));
		if (!same)
			printf("rendered otherwise: %s\n", line);
		n_wrong += !same;
		ids_done(&ids);
		json_object_put(chat);
	}
	free(data);
	assert_int_equal(n_chats, 60);
	assert_int_equal(n_wrong, 0);
}

static void template_equals_the_published_v3_template(void **state)
{
	(void)state;
	check_chats(&v3, "tokenizer-v3.chats");
}

static void template_equals_the_published_v2_template(void **state)
{
	(void)state;
	check_chats(&v2, "tokenizer-v2.chats");
}

static void vocab_has_the_published_control_tokens(void **state)
{
	size_t n_control = 0;

	(void)state;
	for (uint32_t i = 0; i < v3.t->im.h->n_added; i++)
		n_control += vocab_is_control(v3.v, v3.t->im.added[i]);
	assert_int_equal(v3.t->im.h->n_added, 818);
	assert_int_equal(n_control, 818);
	assert_true(vocab_is_control(v3.v, 128815));
	assert_true(vocab_is_control(v3.v, 200000));
	assert_false(vocab_is_control(v3.v, 19923));
	assert_int_equal(vocab_find_token(v3.v, "<｜User｜>", strlen("<｜User｜>")), 128803);
	/* The 13 letters of deepseek-llm are text. */
	assert_int_equal(v2.t->im.h->n_added, 15);
	for (uint32_t id = 100002; id <= 100014; id++)
		assert_false(vocab_is_control(v2.v, id));
}

static void encode_refuses_the_bytes_that_v2_has_no_token_for(void **state)
{
	struct ids ids = {};
	struct error err = {};

	(void)state;
	for (unsigned b = 0; b < 256; b++) {
		uint8_t byte = (uint8_t)b;
		bool impossible = b == 0xC0 || b == 0xC1 || b >= 0xF5;

		assert_int_equal(encode_text(v2.v, v2.s, &byte, 1, 0, &ids, &err),
				 impossible ? -EILSEQ : 0);
		assert_int_equal(encode_text(v3.v, v3.s, &byte, 1, 0, &ids, &err), 0);
	}
	ids_done(&ids);
}

static void encode_of_a_mebibyte_comes_back(void **state)
{
	static const char *const patterns[] = {"a",  "^",      "7",   " ",    "\n",
					       "ab", "hello ", " \n", "\xE6", "日"};
	const struct fixture *both[] = {&v2, &v3};
	size_t n = 1u << 20;
	char *text = malloc(n);

	(void)state;
	assert_non_null(text);
	for (size_t k = 0; k < 2 * N_ELEMENTS(patterns); k++) {
		const char *p = patterns[k / 2];
		struct ids ids = {};
		struct text_buf back = {};

		for (size_t i = 0; i < n; i++)
			text[i] = p[i % strlen(p)];
		assert_int_equal(
			encode_text(both[k % 2]->v, both[k % 2]->s, text, n, 0, &ids, NULL), 0);
		assert_int_equal(decode_bytes(both[k % 2]->v, ids.id, ids.n, false, &back, NULL),
				 0);
		assert_int_equal(back.n, n);
		assert_memory_equal(back.data, text, n);
		ids_done(&ids);
		text_buf_done(&back);
	}
	free(text);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vocab_has_the_published_control_tokens),
		cmocka_unit_test(encode_gives_the_listed_v3_ids),
		cmocka_unit_test(encode_gives_the_listed_v2_ids),
		cmocka_unit_test(encode_gives_the_published_deepseek_llm_ids),
		cmocka_unit_test(split_has_the_ranges_of_the_patterns),
		cmocka_unit_test(encode_equals_hugging_face_v3),
		cmocka_unit_test(encode_equals_hugging_face_v2),
		cmocka_unit_test(template_equals_the_published_v3_template),
		cmocka_unit_test(template_equals_the_published_v2_template),
		cmocka_unit_test(encode_refuses_the_bytes_that_v2_has_no_token_for),
		cmocka_unit_test(encode_of_a_mebibyte_comes_back),
	};
	struct text_image *t2 = text_image_v2(), *t3 = text_image_v3();
	int r;

	if (!t2 || !t3) {
		text_image_free(t2);
		text_image_free(t3);
		printf("skipped: no published vocabularies in %s\n", text_data_dir());
		return 77;
	}
	fixture_open(&v2, t2);
	fixture_open(&v3, t3);
	if (argc == 3) {
		size_t n;

		r = check_file(strcmp(argv[1], "v2") == 0 ? &v2 : &v3, ".", argv[2], &n) != 0;
	} else {
		r = cmocka_run_group_tests(tests, NULL, NULL);
	}
	fixture_close(&v2);
	fixture_close(&v3);
	return r;
}
