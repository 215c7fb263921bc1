/* SPDX-License-Identifier: Apache-2.0 */
/* The walker keeps its place in a stack of levels, one per message within a message. The schema's depth
 * is bounded by the generator, so the stack is an array. Tables and descriptors are both sorted by field
 * number, so one index serves both. Everything in a message may be what a hostile peer sent, but it came
 * through protobuf-c: counts and pointers are real, values are not to be trusted. */
#include "wire.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire_ranges.h"

/* ---------------------------------------------------------------- arena */

static void *arena_alloc(void *data, size_t size)
{
	struct wire_arena *a = data;
	size_t at = (a->used + 15) & ~(size_t)15;

	if (at > a->size || size > a->size - at) {
		a->full = 1;
		return NULL;
	}
	a->used = at + size;
	return a->data + at;
}

static void arena_free(void *data, void *pointer)
{
	(void)data;
	(void)pointer;
}

static int arena_init(struct wire_arena *a, size_t frame_bytes, size_t factor)
{
	size_t size;

	*a = WIRE_ARENA_NULL;
	if (__builtin_mul_overflow(frame_bytes, factor, &size) ||
	    __builtin_add_overflow(size, WIRE_ARENA_FIXED, &size))
		return -ENOMEM;
	a->data = malloc(size);
	if (!a->data)
		return -ENOMEM;
	a->size = size;
	a->allocator = (ProtobufCAllocator){arena_alloc, arena_free, a};
	return 0;
}

int wire_arena_init(struct wire_arena *arena, size_t frame_bytes)
{
	return arena_init(arena, frame_bytes, WIRE_ARENA_CLIENT);
}

int wire_arena_init_server(struct wire_arena *arena, size_t frame_bytes)
{
	return arena_init(arena, frame_bytes, WIRE_ARENA_SERVER);
}

void wire_arena_done(struct wire_arena *arena)
{
	free(arena->data);
	*arena = WIRE_ARENA_NULL;
}

Dsd__ClientFrame *wire_unpack_client(const void *data, size_t n, struct wire_arena *arena)
{
	return dsd__client_frame__unpack(&arena->allocator, n, data);
}

Dsd__ServerFrame *wire_unpack_server(const void *data, size_t n, struct wire_arena *arena)
{
	return dsd__server_frame__unpack(&arena->allocator, n, data);
}

void wire_unpack_text(const struct wire_arena *arena, size_t n, char text[WIRE_TEXT_MAX])
{
	if (arena->full)
		snprintf(text, WIRE_TEXT_MAX,
			 "frame of %zu bytes: unpacks to more than the %zu allowed for it", n,
			 arena->size);
	else
		snprintf(
			text, WIRE_TEXT_MAX,
			"frame of %zu bytes: want a message of protocol %d with its required fields",
			n, WIRE_PROTOCOL);
}

/* ---------------------------------------------------------------- check */

struct level {
	const ProtobufCMessage *message;
	const struct wire_message *type;
	unsigned field; /* next or current field */
	size_t element; /* next or current element of it */
};

struct walk {
	struct level stack[WIRE_DEPTH_MAX];
	unsigned depth;
	char *text;
};

/* Appends and never overruns; returns the new end. */
__attribute__((format(printf, 3, 4))) static size_t put(char *text, size_t at, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (at >= WIRE_TEXT_MAX - 1)
		return at;
	va_start(ap, fmt);
	n = vsnprintf(text + at, WIRE_TEXT_MAX - at, fmt, ap);
	va_end(ap);
	return n < 0 ? at : at + (size_t)n;
}

/* "generate.chat.messages[3].text: "; the index of the last field only where one element is meant. */
static size_t put_path(const struct walk *w, bool element)
{
	size_t at = 0;

	for (unsigned i = 0; i < w->depth; i++) {
		const struct level *l = &w->stack[i];
		const ProtobufCFieldDescriptor *f = &l->type->desc->fields[l->field];

		at = put(w->text, at, "%s%s", i ? "." : "", f->name);
		if (f->label == PROTOBUF_C_LABEL_REPEATED && (element || i + 1 < w->depth))
			at = put(w->text, at, "[%zu]", l->element);
	}
	return put(w->text, at, ": ");
}

static bool is_utf8(const char *s)
{
	const uint8_t *p = (const uint8_t *)s;

	while (*p) {
		unsigned n = *p < 0x80                 ? 0
			     : *p >= 0xc2 && *p < 0xe0 ? 1
			     : *p >= 0xe0 && *p < 0xf0 ? 2
						       : 3;
		uint8_t low = *p == 0xe0 ? 0xa0 : *p == 0xf0 ? 0x90 : 0x80;
		uint8_t high = *p == 0xed ? 0x9f : *p == 0xf4 ? 0x8f : 0xbf;

		if (*p >= 0x80 && (*p < 0xc2 || *p > 0xf4))
			return false;
		p++;
		for (; n > 0; n--, p++, low = 0x80, high = 0xbf)
			if (*p < low || *p > high) /* also the NUL of a cut character */
				return false;
	}
	return true;
}

static int check_bytes(const struct walk *w, const ProtobufCFieldDescriptor *f,
		       const struct wire_range *r, const void *member)
{
	const char *s = NULL;
	size_t n, at;

	if (f->type == PROTOBUF_C_TYPE_STRING) {
		s = *(const char *const *)member;
		n = s ? strlen(s) : 0;
	} else {
		n = ((const ProtobufCBinaryData *)member)->len;
	}
	if (n > r->max_bytes) {
		at = put_path(w, true);
		put(w->text, at, "got %zu bytes, want at most %" PRIu32, n, r->max_bytes);
		return -EINVAL;
	}
	if (s && !is_utf8(s)) {
		at = put_path(w, true);
		put(w->text, at, "got bytes that are not UTF-8");
		return -EINVAL;
	}
	return 0;
}

static int check_enum(const struct walk *w, const ProtobufCFieldDescriptor *f, const void *member)
{
	const ProtobufCEnumDescriptor *e = f->descriptor;
	int v = *(const int *)member;
	size_t at;

	if (protobuf_c_enum_descriptor_get_value(e, v))
		return 0;
	at = put_path(w, true);
	at = put(w->text, at, "got %d, want ", v);
	for (unsigned i = 0; i < e->n_values; i++)
		at = put(w->text, at, "%s%s (%d)", i ? ", " : "", e->values[i].name,
			 e->values[i].value);
	return -EINVAL;
}

/* The number as a double, which holds every 32-bit value and float; a 64-bit value of a bounded field
 * that loses digits lies far past its bounds anyway. */
static double number_value(const ProtobufCFieldDescriptor *f, const void *member)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return *(const int32_t *)member;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return *(const uint32_t *)member;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return (double)*(const int64_t *)member;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return (double)*(const uint64_t *)member;
	case PROTOBUF_C_TYPE_FLOAT:
		return *(const float *)member;
	case PROTOBUF_C_TYPE_DOUBLE:
		return *(const double *)member;
	default:
		assert(!"the generator gives ranges to numbers only");
		return 0;
	}
}

static int check_number(const struct walk *w, const ProtobufCFieldDescriptor *f,
			const struct wire_range *r, const void *member)
{
	double v = number_value(f, member), min = r->min, max = r->max;
	size_t at;

	if (f->type == PROTOBUF_C_TYPE_FLOAT) { /* 0.000001f is a little less than 0.000001 */
		min = (float)min;
		max = (float)max;
	}
	if (v >= min && v <= max) /* false for NaN */
		return 0;
	at = put_path(w, true);
	put(w->text, at, "got %.*g, want %.10g to %.10g", f->type == PROTOBUF_C_TYPE_FLOAT ? 7 : 10,
	    v, r->min, r->max);
	return -EINVAL;
}

static size_t element_bytes(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

/* How many elements of a field are there: 0 or 1, or the count of a repeated one. */
static size_t n_present(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	const uint8_t *base = (const uint8_t *)m;

	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return *(const size_t *)(base + f->quantifier_offset);
	if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
	    *(const uint32_t *)(base + f->quantifier_offset) != f->id)
		return 0;
	if (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE)
		return *(void *const *)(base + f->offset) != NULL;
	if (f->label == PROTOBUF_C_LABEL_REQUIRED || (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
		return 1;
	return *(const protobuf_c_boolean *)(base + f->quantifier_offset) != 0;
}

static const void *element_at(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
			      size_t i)
{
	const uint8_t *member = (const uint8_t *)m + f->offset;

	if (f->label != PROTOBUF_C_LABEL_REPEATED)
		return member;
	member = *(const uint8_t *const *)member;
	return member ? member + i * element_bytes(f) : NULL; /* no elements */
}

static int check_value(const struct walk *w, const ProtobufCFieldDescriptor *f,
		       const struct wire_range *r, const void *member)
{
	if (f->type == PROTOBUF_C_TYPE_ENUM)
		return check_enum(w, f, member);
	if (r->kind == WIRE_BYTES)
		return check_bytes(w, f, r, member);
	if (r->kind == WIRE_NUMBER)
		return check_number(w, f, r, member);
	return 0;
}

static int check_count(struct walk *w, const struct wire_range *r, size_t n)
{
	size_t at;

	if (r->max_count == 0 || n <= r->max_count)
		return 0;
	at = put_path(w, false);
	put(w->text, at, "got %zu elements, want at most %" PRIu32, n, r->max_count);
	return -EINVAL;
}

/* Token ids are the one thing that comes a million at a time: passes over those in range. */
static void skip_legal_ids(struct level *l, const ProtobufCFieldDescriptor *f,
			   const struct wire_range *r, size_t n)
{
	const uint32_t *ids = element_at(l->message, f, 0);
	uint32_t min = (uint32_t)r->min, max = (uint32_t)r->max;
	size_t i = l->element;

	while (i < n && ids[i] >= min && ids[i] <= max)
		i++;
	l->element = i;
}

/* Goes through what is left of the level on top. 1: a message was pushed, 0: the level is done. */
static int check_level(struct walk *w)
{
	struct level *l = &w->stack[w->depth - 1];

	for (; l->field < l->type->desc->n_fields; l->field++, l->element = 0) {
		const ProtobufCFieldDescriptor *f = &l->type->desc->fields[l->field];
		const struct wire_range *r = &l->type->ranges[l->field];
		size_t n = n_present(l->message, f);
		int e = check_count(w, r, n);

		if (e < 0)
			return e;
		if (f->label == PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_UINT32 &&
		    r->kind == WIRE_NUMBER)
			skip_legal_ids(l, f, r, n);
		for (; l->element < n; l->element++) {
			const void *member = element_at(l->message, f, l->element);

			if (r->kind == WIRE_MESSAGE) {
				assert(w->depth < WIRE_DEPTH_MAX);
				w->stack[w->depth++] = (struct level){
					.message = *(const ProtobufCMessage *const *)member,
					.type = &wire_messages[r->sub],
				};
				return 1;
			}
			e = check_value(w, f, r, member);
			if (e < 0)
				return e;
		}
	}
	return 0;
}

int wire_check(const ProtobufCMessage *message, char text[WIRE_TEXT_MAX])
{
	struct walk w = {.depth = 1, .text = text};
	int r;

	w.stack[0].message = message;
	for (size_t i = 0; i < wire_n_messages && !w.stack[0].type; i++)
		if (wire_messages[i].desc == message->descriptor)
			w.stack[0].type = &wire_messages[i];
	assert(w.stack[0].type);

	while (w.depth > 0) {
		r = check_level(&w);
		if (r < 0)
			return r;
		if (r > 0)
			continue;
		w.depth--;
		if (w.depth > 0)
			w.stack[w.depth - 1].element++;
	}
	return 0;
}

/* ---------------------------------------------------------------- pack */

int wire_frame_bytes(const ProtobufCMessage *message, size_t *ret)
{
	size_t n = protobuf_c_message_get_packed_size(message);

	if (n > WIRE_FRAME_MAX)
		return -EMSGSIZE;
	*ret = WIRE_HEADER_BYTES + n;
	return 0;
}

void wire_put_frame(const ProtobufCMessage *message, size_t n, uint8_t *ret)
{
	wire_put_length(ret, (uint32_t)(n - WIRE_HEADER_BYTES));
	protobuf_c_message_pack(message, ret + WIRE_HEADER_BYTES);
}

static size_t varint_bytes(uint64_t v)
{
	return (70 - (size_t)__builtin_clzll(v | 1)) / 7;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* Tags of one byte: field number and wire type. */
#define TAG(field, type) ((field) << 3 | (type))
enum { VARINT = 0, BYTES = 2 };

static size_t token_delta_bytes(const struct wire_token *t)
{
	size_t n = 2 + varint_bytes(t->token);

	n += t->choice ? 1 + varint_bytes(t->choice) : 0;
	return n + (t->n_text ? 1 + varint_bytes(t->n_text) + t->n_text : 0);
}

size_t wire_token_bytes(const struct wire_token *t)
{
	size_t n = token_delta_bytes(t);

	return WIRE_HEADER_BYTES + 2 + varint_bytes(t->id) + varint_bytes(n) + n;
}

void wire_put_token(const struct wire_token *t, uint8_t *ret)
{
	size_t n = token_delta_bytes(t);
	uint8_t *p = ret + WIRE_HEADER_BYTES;

	*p++ = TAG(1, VARINT); /* ServerFrame.id */
	p = put_varint(p, t->id);
	*p++ = TAG(4, BYTES); /* ServerFrame.delta */
	p = put_varint(p, n);
	if (t->choice) {
		*p++ = TAG(1, VARINT); /* Delta.choice */
		p = put_varint(p, t->choice);
	}
	*p++ = TAG(2, BYTES); /* Delta.ids */
	*p++ = (uint8_t)varint_bytes(t->token);
	p = put_varint(p, t->token);
	if (t->n_text) {
		*p++ = TAG(3, BYTES); /* Delta.text */
		p = put_varint(p, t->n_text);
		memcpy(p, t->text, t->n_text);
		p += t->n_text;
	}
	wire_put_length(ret, (uint32_t)(p - ret - WIRE_HEADER_BYTES));
}

int wire_pack_frame(const ProtobufCMessage *message, uint8_t **ret, size_t *ret_n)
{
	size_t n;
	int r = wire_frame_bytes(message, &n);
	uint8_t *frame;

	if (r < 0)
		return r;
	frame = malloc(n);
	if (!frame)
		return -ENOMEM;
	wire_put_frame(message, n, frame);
	*ret = frame;
	*ret_n = n;
	return 0;
}
