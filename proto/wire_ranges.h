#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Shape of the generated tables: what the schema allows in each field. Written by ranges.c. */
#include <stddef.h>
#include <stdint.h>
#include <protobuf-c/protobuf-c.h>

/* Messages within messages, the frame counted; ranges.c refuses a deeper schema. */
#define WIRE_DEPTH_MAX 8

enum wire_kind {
	WIRE_FREE, /* bool, enum (a closed set by itself), or a number of which every value is legal */
	WIRE_NUMBER,  /* min and max hold */
	WIRE_BYTES,   /* max_bytes holds; string or bytes */
	WIRE_MESSAGE, /* sub holds */
};

struct wire_range {
	enum wire_kind kind;
	double min, max; /* closed; compared in the field's own precision */
	uint32_t max_bytes;
	uint32_t max_count; /* repeated fields, else 0 */
	uint32_t sub;       /* index into wire_messages */
};

/* One message; ranges in the order of desc->fields, which is by field number. */
struct wire_message {
	const ProtobufCMessageDescriptor *desc;
	const struct wire_range *ranges;
};

extern const struct wire_message wire_messages[];
extern const size_t wire_n_messages;
