/* SPDX-License-Identifier: Apache-2.0 */
/* proto/wire: the range check over every field of the schema, frames, bounded unpacking. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>

#include <cmocka.h>

#include "wire.h"
#include "wire_ranges.h"

#define MESSAGE_BYTES_MAX 1024

/* A message of any type in which everything required is legal; submessages stay absent. */
static ProtobufCMessage *new_message(const struct wire_message *type)
{
	ProtobufCMessage *m = calloc(1, MESSAGE_BYTES_MAX);

	assert_non_null(m);
	assert_true(type->desc->sizeof_message <= MESSAGE_BYTES_MAX);
	protobuf_c_message_init(type->desc, m);
	for (unsigned i = 0; i < type->desc->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &type->desc->fields[i];
		void *member = (uint8_t *)m + f->offset;

		if (f->label != PROTOBUF_C_LABEL_REQUIRED || type->ranges[i].kind != WIRE_NUMBER)
			continue;
		if (f->type == PROTOBUF_C_TYPE_FLOAT)
			*(float *)member = (float)type->ranges[i].min;
		else if (f->type == PROTOBUF_C_TYPE_UINT32)
			*(uint32_t *)member = (uint32_t)type->ranges[i].min;
		else
			fail_msg("%s.%s: a type this test does not know", type->desc->name,
				 f->name);
	}
	return m;
}

static void set_present(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t count)
{
	void *quantifier = (uint8_t *)m + f->quantifier_offset;

	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		*(size_t *)quantifier = count;
	else if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		*(uint32_t *)quantifier = f->id;
	else if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->type != PROTOBUF_C_TYPE_STRING &&
		 f->type != PROTOBUF_C_TYPE_MESSAGE)
		*(protobuf_c_boolean *)quantifier = 1;
}

/* Checks a message whose field holds `value` (all of `count` elements are that one). */
static int check_with(const struct wire_message *type, unsigned field, const void *value,
		      size_t value_bytes, size_t count)
{
	const ProtobufCFieldDescriptor *f = &type->desc->fields[field];
	ProtobufCMessage *m = new_message(type);
	uint8_t *elements = NULL;
	char text[WIRE_TEXT_MAX] = "";
	int r;

	set_present(m, f, count);
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		elements = malloc(value_bytes * count + 1);
		assert_non_null(elements);
		for (size_t i = 0; i < count; i++)
			memcpy(elements + i * value_bytes, value, value_bytes);
		*(uint8_t **)((uint8_t *)m + f->offset) = elements;
	} else {
		memcpy((uint8_t *)m + f->offset, value, value_bytes);
	}
	r = wire_check(m, text);
	if (r < 0) { /* whatever was refused must be named */
		assert_int_equal(r, -EINVAL);
		assert_memory_equal(text, f->name, strlen(f->name));
		assert_non_null(strstr(text, "got "));
	}
	free(elements);
	free(m);
	return r;
}

static unsigned check_float_bounds(const struct wire_message *t, unsigned i, float min, float max)
{
	float v;

	v = min;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), 0);
	v = max;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), 0);
	v = nextafterf(min, -INFINITY);
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	v = nextafterf(max, INFINITY);
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	v = NAN;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	v = INFINITY;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	return 6;
}

static unsigned check_uint_bounds(const struct wire_message *t, unsigned i, double min, double max)
{
	uint32_t v;
	unsigned n = 2;

	v = (uint32_t)min;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), 0);
	v = (uint32_t)max;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), 0);
	if (min > 0) {
		v = (uint32_t)min - 1;
		assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
		n++;
	}
	if (max < UINT32_MAX) {
		v = (uint32_t)max + 1;
		assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
		n++;
	}
	return n;
}

static unsigned check_length_bounds(const struct wire_message *t, unsigned i, uint32_t max_bytes)
{
	char *s = malloc((size_t)max_bytes + 2);
	ProtobufCBinaryData b = {.data = (uint8_t *)s};
	int is_string = t->desc->fields[i].type == PROTOBUF_C_TYPE_STRING;

	assert_non_null(s);
	for (uint32_t extra = 0; extra <= 1; extra++) {
		b.len = (size_t)max_bytes + extra;
		memset(s, 'a', b.len);
		s[b.len] = 0;
		assert_int_equal(is_string ? check_with(t, i, &s, sizeof(s), 1)
					   : check_with(t, i, &b, sizeof(b), 1),
				 extra ? -EINVAL : 0);
	}
	free(s);
	return 2;
}

/* Elements are legal themselves: the least number, an empty string, an empty message. */
static unsigned check_count_bounds(const struct wire_message *t, unsigned i, uint32_t max_count)
{
	const ProtobufCFieldDescriptor *f = &t->desc->fields[i];
	ProtobufCMessage *sub = NULL;
	ProtobufCBinaryData empty = {};
	uint32_t number = (uint32_t)t->ranges[i].min;
	const void *value = &number;
	size_t bytes = sizeof(number);

	if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
		sub = new_message(&wire_messages[t->ranges[i].sub]);
		value = &sub;
		bytes = sizeof(sub);
	} else if (f->type == PROTOBUF_C_TYPE_BYTES) {
		value = &empty;
		bytes = sizeof(empty);
	} else {
		assert_int_equal(f->type, PROTOBUF_C_TYPE_UINT32);
	}
	assert_int_equal(check_with(t, i, value, bytes, max_count), 0);
	assert_int_equal(check_with(t, i, value, bytes, (size_t)max_count + 1), -EINVAL);
	free(sub);
	return 2;
}

static unsigned check_enum_bounds(const struct wire_message *t, unsigned i)
{
	const ProtobufCEnumDescriptor *e = t->desc->fields[i].descriptor;
	int v;

	for (unsigned k = 0; k < e->n_values; k++)
		assert_int_equal(check_with(t, i, &e->values[k].value, sizeof(int), 1), 0);
	v = e->values[e->n_values - 1].value + 1;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	v = -1;
	assert_int_equal(check_with(t, i, &v, sizeof(v), 1), -EINVAL);
	return e->n_values + 2;
}

static void check_holds_every_boundary_of_the_schema(void **state)
{
	unsigned n = 0;

	(void)state;
	for (size_t m = 0; m < wire_n_messages; m++) {
		const struct wire_message *t = &wire_messages[m];

		for (unsigned i = 0; i < t->desc->n_fields; i++) {
			const struct wire_range *r = &t->ranges[i];
			const ProtobufCFieldDescriptor *f = &t->desc->fields[i];

			if (r->max_count)
				n += check_count_bounds(t, i, r->max_count);
			if (f->type == PROTOBUF_C_TYPE_ENUM)
				n += check_enum_bounds(t, i);
			else if (r->kind == WIRE_BYTES)
				n += check_length_bounds(t, i, r->max_bytes);
			else if (r->kind == WIRE_NUMBER && f->type == PROTOBUF_C_TYPE_FLOAT)
				n += check_float_bounds(t, i, (float)r->min, (float)r->max);
			else if (r->kind == WIRE_NUMBER)
				n += check_uint_bounds(t, i, r->min, r->max);
		}
	}
	assert_true(n > 300); /* the loop saw the schema and not an empty table */
}

/* ---------------------------------------------------------------- sentences */

static int check_generate(Dsd__Generate *g, char text[WIRE_TEXT_MAX])
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;

	frame.id = 1;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_GENERATE;
	frame.generate = g;
	return wire_check(&frame.base, text);
}

static void check_names_field_and_range(void **state)
{
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Sampling s = DSD__SAMPLING__INIT;
	char text[WIRE_TEXT_MAX];

	(void)state;
	g.sampling = &s;
	s.has_temperature = 1;
	s.temperature = -1;
	assert_int_equal(check_generate(&g, text), -EINVAL);
	assert_string_equal(text, "generate.sampling.temperature: got -1, want 0 to 100");
	s.temperature = 0;
	assert_int_equal(check_generate(&g, text), 0);
}

static void check_names_the_element_of_a_repeated_message(void **state)
{
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Chat chat = DSD__CHAT__INIT;
	Dsd__Message a = DSD__MESSAGE__INIT, b = DSD__MESSAGE__INIT;
	Dsd__Message *messages[] = {&a, &a, &b};
	char text[WIRE_TEXT_MAX];

	(void)state;
	g.prompt_case = DSD__GENERATE__PROMPT_CHAT;
	g.chat = &chat;
	chat.messages = messages;
	chat.n_messages = 3;
	a.role = DSD__ROLE__ROLE_USER;
	b.role = 9;
	assert_int_equal(check_generate(&g, text), -EINVAL);
	assert_string_equal(text, "generate.chat.messages[2].role: got 9, want ROLE_SYSTEM (1), "
				  "ROLE_USER (2), ROLE_ASSISTANT (3)");
}

static void check_names_a_repeated_field_by_its_count(void **state)
{
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Sampling s = DSD__SAMPLING__INIT;
	ProtobufCBinaryData stops[17] = {};
	char text[WIRE_TEXT_MAX];

	(void)state;
	g.sampling = &s;
	s.stop = stops;
	s.n_stop = 17;
	assert_int_equal(check_generate(&g, text), -EINVAL);
	assert_string_equal(text, "generate.sampling.stop: got 17 elements, want at most 16");
}

static void check_looks_only_at_the_oneof_member_that_is_set(void **state)
{
	Dsd__Generate g = DSD__GENERATE__INIT;
	uint32_t ids[] = {1048576};
	Dsd__Ids list = DSD__IDS__INIT;
	char text[WIRE_TEXT_MAX];

	(void)state;
	list.ids = ids;
	list.n_ids = 1;
	g.ids = &list;
	assert_int_equal(check_generate(&g, text), 0);
	g.prompt_case = DSD__GENERATE__PROMPT_IDS;
	assert_int_equal(check_generate(&g, text), -EINVAL);
	assert_string_equal(text, "generate.ids.ids[0]: got 1048576, want 0 to 1048575");
}

static void check_refuses_strings_that_are_not_utf8(void **state)
{
	static const struct {
		const char *text;
		int want;
	} cases[] = {
		{"", 0},
		{"caf\xc3\xa9", 0},
		{"\xe2\x82\xac \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf \xee\x80\x80", 0},
		{"\xc3", -EINVAL},             /* cut */
		{"\xe2\x82", -EINVAL},         /* cut */
		{"\xa9", -EINVAL},             /* a tail alone */
		{"\xc0\xaf", -EINVAL},         /* overlong */
		{"\xe0\x9f\xbf", -EINVAL},     /* overlong */
		{"\xf0\x8f\xbf\xbf", -EINVAL}, /* overlong */
		{"\xed\xa0\x80", -EINVAL},     /* surrogate */
		{"\xf4\x90\x80\x80", -EINVAL}, /* past the last code point */
		{"\xff", -EINVAL},
	};
	char text[WIRE_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		Dsd__Generate g = DSD__GENERATE__INIT;

		g.model = (char *)cases[i].text;
		assert_int_equal(check_generate(&g, text), cases[i].want);
	}
}

/* ---------------------------------------------------------------- frames */

static void frame_length_is_little_endian(void **state)
{
	const uint8_t hdr[4] = {0x01, 0x02, 0x03, 0x84};
	uint8_t back[4];

	(void)state;
	assert_int_equal(wire_frame_length(hdr), 0x84030201u);
	wire_put_length(back, 0x84030201u);
	assert_memory_equal(back, hdr, 4);
}

static void frame_comes_back_as_it_was_packed(void **state)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT, *back;
	Dsd__Tokenize t = DSD__TOKENIZE__INIT;
	struct wire_arena arena;
	uint8_t *bytes = NULL;
	size_t n = 0;

	(void)state;
	frame.id = UINT64_MAX;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_TOKENIZE;
	frame.tokenize = &t;
	t.input_case = DSD__TOKENIZE__INPUT_TEXT;
	t.text = (ProtobufCBinaryData){3, (uint8_t *)"a\0b"};
	assert_int_equal(wire_pack_frame(&frame.base, &bytes, &n), 0);
	assert_int_equal(wire_frame_length(bytes), n - WIRE_HEADER_BYTES);

	assert_int_equal(wire_arena_init(&arena, n - WIRE_HEADER_BYTES), 0);
	back = wire_unpack_client(bytes + WIRE_HEADER_BYTES, n - WIRE_HEADER_BYTES, &arena);
	assert_non_null(back);
	assert_true(back->id == UINT64_MAX);
	assert_int_equal(back->msg_case, DSD__CLIENT_FRAME__MSG_TOKENIZE);
	assert_int_equal(back->tokenize->text.len, 3);
	assert_memory_equal(back->tokenize->text.data, "a\0b", 3);
	wire_arena_done(&arena);
	wire_arena_done(&arena); /* twice is fine */
	free(bytes);
}

/* Byte by byte what protobuf-c makes of the same message. */
static void token_frame_is_the_one_that_protobuf_c_packs(void **state)
{
	static const uint64_t numbers[] = {
		0, 1, 127, 128, 16383, 16384, 100000, 1048575, UINT32_MAX, 1ull << 35, UINT64_MAX};
	static const size_t lengths[] = {0, 1, 3, 100, 127, 128, 5000, 16384};
	static uint8_t text[16384], got[20000];

	(void)state;
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (uint8_t)(i * 7);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		for (size_t k = 0;
		     k < sizeof(numbers) / sizeof(numbers[0]) && numbers[k] <= UINT32_MAX; k++)
			for (size_t l = 0; l < sizeof(lengths) / sizeof(lengths[0]); l++) {
				Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
				Dsd__Delta delta = DSD__DELTA__INIT;
				uint32_t id = (uint32_t)numbers[k], choice = (uint32_t)(l * k);
				struct wire_token t = {.id = numbers[i],
						       .choice = choice,
						       .token = id,
						       .text = text,
						       .n_text = lengths[l]};
				uint8_t *want;
				size_t n;

				frame.id = numbers[i];
				frame.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
				frame.delta = &delta;
				delta.has_choice = choice > 0;
				delta.choice = choice;
				delta.n_ids = 1;
				delta.ids = &id;
				delta.has_text = lengths[l] > 0;
				delta.text = (ProtobufCBinaryData){lengths[l], text};
				assert_int_equal(wire_pack_frame(&frame.base, &want, &n), 0);
				assert_int_equal(wire_token_bytes(&t), n);
				wire_put_token(&t, got);
				assert_memory_equal(got, want, n);
				free(want);
			}
}

static void pack_refuses_a_frame_past_the_limit(void **state)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Tokenize t = DSD__TOKENIZE__INIT;
	uint8_t *bytes = NULL;
	size_t n = 0, overhead;

	(void)state;
	frame.id = 1;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_TOKENIZE;
	frame.tokenize = &t;
	t.input_case = DSD__TOKENIZE__INPUT_TEXT;
	t.text.data = calloc(1, WIRE_FRAME_MAX);
	t.text.len = WIRE_FRAME_MAX - 100;
	overhead = dsd__client_frame__get_packed_size(&frame) - t.text.len;
	t.text.len = WIRE_FRAME_MAX - overhead + 1;
	assert_int_equal(wire_pack_frame(&frame.base, &bytes, &n), -EMSGSIZE);
	assert_null(bytes);
	t.text.len--;
	assert_int_equal(wire_pack_frame(&frame.base, &bytes, &n), 0);
	assert_int_equal(n, WIRE_HEADER_BYTES + WIRE_FRAME_MAX);
	free(bytes);
	free(t.text.data);
}

static void unpack_says_what_is_wrong(void **state)
{
	static const struct {
		const char *bytes;
		size_t n;
	} bad[] = {
		{"\xff\xff\xff\xff\xff", 5},     /* no tag */
		{"\x12\x00", 2},                 /* hello without id and protocol */
		{"\x08\x01\x12\x7f\x08", 5},     /* length past the end */
		{"\x08\x01\x12\x02\x12\x00", 6}, /* hello without protocol */
		{"\x0b\x0c", 2},                 /* groups */
	};
	struct wire_arena arena;
	char text[WIRE_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(wire_arena_init(&arena, bad[i].n), 0);
		assert_null(wire_unpack_client(bad[i].bytes, bad[i].n, &arena));
		wire_unpack_text(&arena, bad[i].n, text);
		assert_non_null(strstr(text, "want a message of protocol 1"));
		wire_arena_done(&arena);
	}
}

/* n chat messages of `bytes` letters each, packed and unpacked again. */
static int unpack_chat(size_t n, size_t bytes, char text[WIRE_TEXT_MAX])
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Chat chat = DSD__CHAT__INIT;
	Dsd__Message one = DSD__MESSAGE__INIT;
	Dsd__Message **messages = calloc(n, sizeof(*messages));
	struct wire_arena arena;
	uint8_t *data = NULL;
	size_t size = 0;
	int ok;

	assert_non_null(messages);
	one.role = DSD__ROLE__ROLE_USER;
	one.text = (ProtobufCBinaryData){bytes, calloc(1, bytes)};
	for (size_t i = 0; i < n; i++)
		messages[i] = &one;
	chat.messages = messages;
	chat.n_messages = n;
	g.prompt_case = DSD__GENERATE__PROMPT_CHAT;
	g.chat = &chat;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_GENERATE;
	frame.generate = &g;
	assert_int_equal(wire_pack_frame(&frame.base, &data, &size), 0);
	size -= WIRE_HEADER_BYTES;
	assert_int_equal(wire_arena_init(&arena, size), 0);
	ok = wire_unpack_client(data + WIRE_HEADER_BYTES, size, &arena) != NULL;
	assert_true(arena.used <= arena.size);
	assert_int_equal(arena.size, 8 * size + WIRE_ARENA_FIXED);
	if (!ok)
		wire_unpack_text(&arena, size, text);
	wire_arena_done(&arena);
	free(one.text.data);
	free(messages);
	free(data);
	return ok;
}

static void arena_bounds_a_crowd_of_tiny_elements(void **state)
{
	char text[WIRE_TEXT_MAX] = "";

	(void)state;
	assert_false(unpack_chat(4096, 1, text));
	assert_non_null(strstr(text, "unpacks to more than"));
	assert_false(unpack_chat(1000, 2, text));
}

static void arena_holds_an_ordinary_chat(void **state)
{
	char text[WIRE_TEXT_MAX] = "";

	(void)state;
	assert_true(unpack_chat(200, 1, text));
	assert_true(unpack_chat(4096, 40, text));
	assert_true(unpack_chat(1, 1000000, text));
}

static void arena_holds_every_legal_logit_bias(void **state)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT, *back;
	Dsd__Generate g = DSD__GENERATE__INIT;
	Dsd__Sampling s = DSD__SAMPLING__INIT;
	Dsd__Bias one = DSD__BIAS__INIT;
	Dsd__Bias *bias[300];
	struct wire_arena arena;
	uint8_t *data = NULL;
	size_t n = 0;

	(void)state;
	for (size_t i = 0; i < 300; i++)
		bias[i] = &one;
	s.logit_bias = bias;
	s.n_logit_bias = 300;
	g.sampling = &s;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_GENERATE;
	frame.generate = &g;
	assert_int_equal(wire_pack_frame(&frame.base, &data, &n), 0);
	assert_int_equal(wire_arena_init(&arena, n - WIRE_HEADER_BYTES), 0);
	back = wire_unpack_client(data + WIRE_HEADER_BYTES, n - WIRE_HEADER_BYTES, &arena);
	assert_non_null(back);
	assert_int_equal(back->generate->sampling->n_logit_bias, 300);
	wire_arena_done(&arena);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(check_holds_every_boundary_of_the_schema),
		cmocka_unit_test(check_names_field_and_range),
		cmocka_unit_test(check_names_the_element_of_a_repeated_message),
		cmocka_unit_test(check_names_a_repeated_field_by_its_count),
		cmocka_unit_test(check_looks_only_at_the_oneof_member_that_is_set),
		cmocka_unit_test(check_refuses_strings_that_are_not_utf8),
		cmocka_unit_test(frame_length_is_little_endian),
		cmocka_unit_test(frame_comes_back_as_it_was_packed),
		cmocka_unit_test(token_frame_is_the_one_that_protobuf_c_packs),
		cmocka_unit_test(pack_refuses_a_frame_past_the_limit),
		cmocka_unit_test(unpack_says_what_is_wrong),
		cmocka_unit_test(arena_bounds_a_crowd_of_tiny_elements),
		cmocka_unit_test(arena_holds_an_ordinary_chat),
		cmocka_unit_test(arena_holds_every_legal_logit_bias),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
