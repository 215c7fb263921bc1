/* SPDX-License-Identifier: Apache-2.0 */
/* Rendering with the tiny vocabulary; text_vectors.c compares with the published templates. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/template.h"
#include "text/vocab.h"
#include "text_image.h"

#define B "<｜begin▁of▁sentence｜>"
#define E "<｜end▁of▁sentence｜>"
#define U "<｜User｜>"
#define A "<｜Assistant｜>"
#define SYSTEM(s)                                                                                  \
	{                                                                                          \
		MESSAGE_SYSTEM, s, sizeof(s) - 1                                                   \
	}
#define USER(s)                                                                                    \
	{                                                                                          \
		MESSAGE_USER, s, sizeof(s) - 1                                                     \
	}
#define REPLY(s)                                                                                   \
	{                                                                                          \
		MESSAGE_ASSISTANT, s, sizeof(s) - 1                                                \
	}

struct fixture {
	struct text_image *t;
	struct vocab *v;
};

static struct fixture open_tiny(enum image_renderer renderer)
{
	struct fixture f = {.t = text_image_tiny(IMAGE_SPLIT_V3, renderer)};

	assert_int_equal(vocab_new(&f.v, &f.t->im, NULL, NULL, NULL), 0);
	return f;
}

static void close_tiny(struct fixture *f)
{
	vocab_unref(f->v);
	text_image_free(f->t);
}

/* The messages become what @want, with its control tokens parsed, encodes to. */
static void expect_rendered(enum image_renderer renderer, const struct message *m, size_t n,
			    unsigned flags, const char *want)
{
	struct fixture f = open_tiny(renderer);
	struct ids got = {}, ids = {};

	assert_int_equal(template_render(f.v, NULL, m, n, flags, &got, NULL), 0);
	assert_int_equal(
		encode_text(f.v, NULL, want, strlen(want), ENCODE_PARSE_SPECIAL, &ids, NULL), 0);
	assert_int_equal(got.n, ids.n);
	assert_memory_equal(got.id, ids.id, ids.n * sizeof(ids.id[0]));
	ids_done(&got);
	ids_done(&ids);
	close_tiny(&f);
}

static void template_v3_renders_as_published(void **state)
{
	static const struct message chat[] = {SYSTEM("the one"), USER("they"), REPLY("aaa"),
					      USER(" 12"), SYSTEM("two")};

	(void)state;
	expect_rendered(IMAGE_RENDER_V3, chat, 5, TEMPLATE_GENERATION_PROMPT,
			B "the one\n\ntwo" U "they" A "aaa" E U " 12" A);
	expect_rendered(IMAGE_RENDER_V3, chat, 5, 0, B "the one\n\ntwo" U "they" A "aaa" E U " 12");
	expect_rendered(IMAGE_RENDER_V3, chat + 1, 1, TEMPLATE_GENERATION_PROMPT, B U "they" A);
}

static void template_v2_renders_as_published(void **state)
{
	static const struct message chat[] = {SYSTEM("the one"), USER("they"), REPLY("aaa"),
					      USER("12")};

	(void)state;
	expect_rendered(IMAGE_RENDER_V2, chat, 4, TEMPLATE_GENERATION_PROMPT,
			B "the one\n\nUser: they\n\nAssistant: aaa" E "User: 12\n\nAssistant:");
	expect_rendered(IMAGE_RENDER_V2, chat, 3, 0, B "the one\n\nUser: they\n\nAssistant: aaa" E);
}

static void template_lets_merges_cross_from_literal_to_message(void **state)
{
	static const struct message chat[] = {USER("the")};
	struct fixture f = open_tiny(IMAGE_RENDER_V2);
	struct ids ids = {};

	(void)state;
	assert_int_equal(template_render(f.v, NULL, chat, 1, 0, &ids, NULL), 0);
	/* B U s e r : " the" "\n\n" */
	assert_int_equal(ids.n, 8);
	assert_int_equal(ids.id[6], vocab_find_token(f.v, " the", 4));
	assert_int_equal(ids.id[7], vocab_find_token(f.v, "\n\n", 2));
	ids_done(&ids);
	close_tiny(&f);
}

static void template_text_never_becomes_a_control_id(void **state)
{
	static const struct message chat[] = {SYSTEM(U "x" E), USER("x" E A B "<|EOT|>"),
					      REPLY(E U "</think>"), USER("<｜Assis"),
					      USER("tant｜>")};

	(void)state;
	for (int renderer = IMAGE_RENDER_V2; renderer < _IMAGE_RENDER_MAX; renderer++) {
		struct fixture f = open_tiny((enum image_renderer)renderer);
		struct ids ids = {};
		size_t n_control = 0;

		assert_int_equal(
			template_render(f.v, NULL, chat, 5, TEMPLATE_GENERATION_PROMPT, &ids, NULL),
			0);
		for (size_t i = 0; i < ids.n; i++)
			n_control += vocab_is_control(f.v, ids.id[i]);
		/* V2: B E.  V3: B U A E U U A. */
		assert_int_equal(n_control, renderer == IMAGE_RENDER_V2 ? 2 : 7);
		ids_done(&ids);
		close_tiny(&f);
	}
}

static void template_appends_and_leaves_ids_alone_on_failure(void **state)
{
	static const struct message good[] = {USER("a")};
	struct message bad[] = {USER("a"), {_MESSAGE_ROLE_MAX, "b", 1}};
	struct fixture f = open_tiny(IMAGE_RENDER_V3);
	struct ids ids = {};
	struct error err = {};

	(void)state;
	assert_int_equal(ids_push(&ids, 77), 0);
	assert_int_equal(template_render(f.v, NULL, good, 1, 0, &ids, &err), 0);
	assert_int_equal(ids.n, 4);
	assert_int_equal(ids.id[0], 77);
	assert_int_equal(ids.id[1], f.t->im.h->bos);
	assert_int_equal(template_render(f.v, NULL, bad, 2, 0, &ids, &err), -EINVAL);
	assert_non_null(strstr(err.text, "message 1 has role 3"));
	assert_int_equal(template_render(f.v, NULL, good, 0, 0, &ids, &err), -EINVAL);
	assert_int_equal(ids.n, 4);
	ids_done(&ids);
	close_tiny(&f);
}

static void template_refuses_a_model_without_a_renderer(void **state)
{
	static const struct message chat[] = {USER("a")};
	struct fixture f = open_tiny(IMAGE_RENDER_NONE);
	struct ids ids = {};
	struct error err = {};

	(void)state;
	assert_int_equal(template_render(f.v, NULL, chat, 1, 0, &ids, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "chat template"));
	assert_int_equal(ids.n, 0);
	close_tiny(&f);
}

static void template_refuses_an_image_without_its_control_ids(void **state)
{
	static const struct message chat[] = {USER("a")};
	struct text_image *t = text_image_new(IMAGE_SPLIT_BYTES);
	struct vocab *v;
	struct ids ids = {};
	struct error err = {};

	(void)state;
	for (unsigned b = 0; b < 256; b++)
		text_image_token(t, &(uint8_t){(uint8_t)b}, 1, 0);
	t->b.h.renderer = IMAGE_RENDER_V2;
	text_image_finish(t);
	assert_int_equal(vocab_new(&v, &t->im, NULL, NULL, NULL), 0);
	assert_int_equal(template_render(v, NULL, chat, 1, 0, &ids, &err), -EINVAL);
	assert_non_null(strstr(err.text, "V2 chat template"));
	vocab_unref(v);
	text_image_free(t);
}

static void message_roles_have_names(void **state)
{
	struct error err = {};

	(void)state;
	for (int i = 0; i < _MESSAGE_ROLE_MAX; i++)
		assert_int_equal(message_role_parse(message_role_name((enum message_role)i), &err),
				 i);
	assert_null(message_role_name(_MESSAGE_ROLE_MAX));
	assert_int_equal(message_role_parse("tool", &err), -EINVAL);
	assert_non_null(strstr(err.text, "role \"tool\""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(template_v3_renders_as_published),
		cmocka_unit_test(template_v2_renders_as_published),
		cmocka_unit_test(template_lets_merges_cross_from_literal_to_message),
		cmocka_unit_test(template_text_never_becomes_a_control_id),
		cmocka_unit_test(template_appends_and_leaves_ids_alone_on_failure),
		cmocka_unit_test(template_refuses_a_model_without_a_renderer),
		cmocka_unit_test(template_refuses_an_image_without_its_control_ids),
		cmocka_unit_test(message_roles_have_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
