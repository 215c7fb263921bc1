/* SPDX-License-Identifier: Apache-2.0 */
/* Turns the (range) options of a schema into C tables: ranges SET FILE.proto OUT.c, at build time.
 *
 * SET is protoc's descriptor set of FILE.proto with its imports. The tool refuses a schema that leaves
 * a field unbounded, so that nobody can add one by forgetting:
 *   - a number needs min and max, or any; a 64-bit one may not have bounds past 2^53;
 *   - a string or bytes field needs max_bytes;
 *   - a repeated field needs max_count as well;
 *   - bool, enum and message fields need nothing (and may have no min, max or max_bytes);
 *   - messages may not contain themselves, nor nest deeper than the walker's stack.
 * It trusts its input as far as protoc made it: sentences on standard error, exit 1. */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "google/protobuf/descriptor.pb-c.h"
#include "options.pb-c.h"
#include "wire_ranges.h"

#define RANGE_FIELD     50700 /* the extension's number in options.proto */
#define SET_MAX         (1u << 20)
#define EXACT_IN_DOUBLE 9007199254740992.0 /* 2^53 */
#define NAME_MAX_BYTES  256

typedef Google__Protobuf__FileDescriptorSet FileSet;
typedef Google__Protobuf__FileDescriptorProto File;
typedef Google__Protobuf__DescriptorProto Message;
typedef Google__Protobuf__FieldDescriptorProto Field;

#define TYPE(x)  GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_##x
#define LABEL(x) GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__LABEL__LABEL_##x

__attribute__((format(printf, 3, 4))) static int refuse(const Message *m, const Field *f,
							const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s.%s: ", m->name, f ? f->name : "");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return -EINVAL;
}

static uint8_t *read_file(const char *path, size_t *ret_n)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = malloc(SET_MAX);
	size_t n = 0;

	if (f && data)
		n = fread(data, 1, SET_MAX, f);
	if (f)
		fclose(f);
	if (n == 0 || n == SET_MAX) {
		free(data);
		return NULL;
	}
	*ret_n = n;
	return data;
}

/* protoc knows the extension only as a numbered field, so it arrives as unknown bytes: a length, then
 * the Range. NULL: the field has none. */
static Dsd__Range *field_range(const Field *f)
{
	const ProtobufCMessage *options = f->options ? &f->options->base : NULL;

	for (unsigned i = 0; options && i < options->n_unknown_fields; i++) {
		const ProtobufCMessageUnknownField *u = &options->unknown_fields[i];
		size_t skip = 0;

		if (u->tag != RANGE_FIELD)
			continue;
		while (skip < u->len && (u->data[skip] & 0x80))
			skip++;
		skip++;
		return skip <= u->len ? dsd__range__unpack(NULL, u->len - skip, u->data + skip)
				      : NULL;
	}
	return NULL;
}

static int by_number(const void *a, const void *b)
{
	const Field *x = *(Field *const *)a, *y = *(Field *const *)b;

	return (x->number > y->number) - (x->number < y->number);
}

/* As protoc-c spells the C name of a message: TopLogprob becomes top_logprob. */
static void lower_name(const char *name, char out[static NAME_MAX_BYTES])
{
	size_t n = 0;
	bool was_upper = true;

	for (const char *p = name; *p && n < NAME_MAX_BYTES - 2; p++) {
		bool upper = isupper((unsigned char)*p);

		if (upper && !was_upper)
			out[n++] = '_';
		out[n++] = (char)tolower((unsigned char)*p);
		was_upper = upper;
	}
	out[n] = 0;
}

static int find_message(const File *file, const char *type_name)
{
	const char *last = strrchr(type_name, '.');

	for (size_t i = 0; last && i < file->n_message_type; i++)
		if (strcmp(file->message_type[i]->name, last + 1) == 0)
			return (int)i;
	return -1;
}

static bool is_64_bit(const Field *f)
{
	return f->type == TYPE(INT64) || f->type == TYPE(UINT64) || f->type == TYPE(SINT64) ||
	       f->type == TYPE(FIXED64) || f->type == TYPE(SFIXED64);
}

static int check_number(const Message *m, const Field *f, const Dsd__Range *r)
{
	if (!r || (!r->any && !(r->has_min && r->has_max)))
		return refuse(m, f, "a number needs (range) = {min, max} or {any: true}");
	if (r->any && (r->has_min || r->has_max))
		return refuse(m, f, "any and min or max at once");
	if (!r->any && !(r->min <= r->max))
		return refuse(m, f, "got min %g and max %g, want min <= max", r->min, r->max);
	if (!r->any && is_64_bit(f) && (r->min < -EXACT_IN_DOUBLE || r->max > EXACT_IN_DOUBLE))
		return refuse(m, f, "64-bit bounds past 2^53 are not exact: want any");
	return 0;
}

/* Writes one table entry; nonzero where the schema is refused. */
static int emit_field(FILE *out, const File *file, const Message *m, const Field *f,
		      const Dsd__Range *r)
{
	uint32_t max_count = r && r->has_max_count ? r->max_count : 0;
	int sub;

	if ((f->label == LABEL(REPEATED)) != (max_count > 0))
		return refuse(m, f,
			      max_count ? "max_count on a field that is not repeated"
					: "a repeated field needs (range) = {max_count}");
	if (f->type == TYPE(GROUP))
		return refuse(m, f, "groups are not supported");
	if (f->type == TYPE(MESSAGE)) {
		sub = find_message(file, f->type_name);
		if (sub < 0)
			return refuse(m, f, "type %s is not in this file", f->type_name);
		fprintf(out, "\t{ .kind = WIRE_MESSAGE, .max_count = %uu, .sub = %d },", max_count,
			sub);
	} else if (f->type == TYPE(STRING) || f->type == TYPE(BYTES)) {
		if (!r || !r->has_max_bytes)
			return refuse(m, f, "a string or bytes field needs (range) = {max_bytes}");
		fprintf(out, "\t{ .kind = WIRE_BYTES, .max_bytes = %uu, .max_count = %uu },",
			r->max_bytes, max_count);
	} else if (f->type == TYPE(BOOL) || f->type == TYPE(ENUM)) {
		if (r && (r->has_min || r->has_max || r->has_max_bytes || r->has_any))
			return refuse(m, f,
				      "a bool or enum is a closed set: want no min, max or any");
		fprintf(out, "\t{ .kind = WIRE_FREE, .max_count = %uu },", max_count);
	} else {
		if (check_number(m, f, r) < 0)
			return -EINVAL;
		if (r->any)
			fprintf(out, "\t{ .kind = WIRE_FREE, .max_count = %uu },", max_count);
		else
			fprintf(out,
				"\t{ .kind = WIRE_NUMBER, .min = %.17g, .max = %.17g, .max_count = %uu },",
				r->min, r->max, max_count);
	}
	fprintf(out, " /* %s */\n", f->name);
	return 0;
}

static int emit_message(FILE *out, const File *file, const Message *m, size_t index)
{
	if (m->n_nested_type || m->n_enum_type)
		return refuse(m, NULL, "types declared inside a message are not supported");
	if (m->n_field > 0)
		qsort(m->field, m->n_field, sizeof(m->field[0]), by_number);
	fprintf(out, "/* %s */\nstatic const struct wire_range ranges_%zu[] = {\n", m->name, index);
	for (size_t i = 0; i < m->n_field; i++) {
		Dsd__Range *r = field_range(m->field[i]);
		int e = emit_field(out, file, m, m->field[i], r);

		if (r)
			dsd__range__free_unpacked(r, NULL);
		if (e < 0)
			return e;
	}
	if (m->n_field == 0)
		fprintf(out, "\t{ .kind = WIRE_FREE },\n"); /* C has no empty array; never read */
	fprintf(out, "};\n\n");
	return 0;
}

/* Longest way down from each message, by relaxation: a schema of n messages without a cycle has settled
 * after n rounds. */
static int check_depth(const File *file)
{
	unsigned *depth = calloc(file->n_message_type, sizeof(*depth));
	bool moved = true;
	int r = 0;

	if (!depth)
		return -ENOMEM;
	for (size_t round = 0; moved && r == 0; round++) {
		moved = false;
		for (size_t i = 0; i < file->n_message_type && r == 0; i++) {
			const Message *m = file->message_type[i];

			for (size_t j = 0; j < m->n_field && r == 0; j++) {
				int sub = m->field[j]->type == TYPE(MESSAGE)
						  ? find_message(file, m->field[j]->type_name)
						  : -1;

				if (sub < 0 || depth[i] > depth[sub])
					continue;
				if (round > file->n_message_type)
					r = refuse(m, m->field[j], "the message contains itself");
				depth[i] = depth[sub] + 1;
				moved = true;
			}
		}
	}
	for (size_t i = 0; i < file->n_message_type && r == 0; i++)
		if (depth[i] + 1 > WIRE_DEPTH_MAX)
			r = refuse(file->message_type[i], NULL, "nested %u deep, want at most %d",
				   depth[i] + 1, WIRE_DEPTH_MAX);
	free(depth);
	return r;
}

static int emit(FILE *out, const File *file)
{
	char package[NAME_MAX_BYTES], name[NAME_MAX_BYTES];
	int r;

	r = check_depth(file);
	if (r < 0)
		return r;
	fprintf(out, "/* Written by ranges.c from %s. */\n", file->name);
	fprintf(out, "#include \"wire_ranges.h\"\n\n#include \"dsd.pb-c.h\"\n\n");
	for (size_t i = 0; i < file->n_message_type; i++) {
		r = emit_message(out, file, file->message_type[i], i);
		if (r < 0)
			return r;
	}
	lower_name(file->package, package);
	fprintf(out, "const struct wire_message wire_messages[] = {\n");
	for (size_t i = 0; i < file->n_message_type; i++) {
		lower_name(file->message_type[i]->name, name);
		fprintf(out, "\t{ &%s__%s__descriptor, ranges_%zu },\n", package, name, i);
	}
	fprintf(out, "};\nconst size_t wire_n_messages = %zu;\n", file->n_message_type);
	return 0;
}

int main(int argc, char **argv)
{
	FileSet *set = NULL;
	const File *file = NULL;
	uint8_t *data = NULL;
	FILE *out = NULL;
	size_t n = 0;
	int r = -EINVAL;

	if (argc != 4) {
		fprintf(stderr, "usage: ranges SET FILE.proto OUT.c\n");
		return 2;
	}
	data = read_file(argv[1], &n);
	if (data)
		set = google__protobuf__file_descriptor_set__unpack(NULL, n, data);
	for (size_t i = 0; set && i < set->n_file; i++)
		if (strcmp(set->file[i]->name, argv[2]) == 0)
			file = set->file[i];
	if (!file || !file->package || file->n_message_type == 0)
		fprintf(stderr, "%s: want a descriptor set with messages of %s\n", argv[1],
			argv[2]);
	else if (!(out = fopen(argv[3], "w")))
		fprintf(stderr, "%s: %s\n", argv[3], strerror(errno));
	else
		r = emit(out, file);
	if (out && fclose(out) != 0)
		r = -EIO;
	if (out && r < 0)
		remove(argv[3]);
	if (set)
		google__protobuf__file_descriptor_set__free_unpacked(set, NULL);
	free(data);
	return r < 0 ? 1 : 0;
}
