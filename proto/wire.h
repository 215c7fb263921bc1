#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of dsd's protocol: length, bounded unpacking, the range check, packing.
 *
 * Shared by the daemon and the client library; includes nothing of either. A received frame passes
 *   wire_frame_length() -> wire_arena_init() -> wire_unpack_client() -> wire_check()
 * before anything else looks at it. All functions are pure and may be called from any thread. */
#include <stddef.h>
#include <stdint.h>
#include <protobuf-c/protobuf-c.h>

#include "dsd.pb-c.h"

#define WIRE_PROTOCOL     1
#define WIRE_HEADER_BYTES 4          /* little-endian length of what follows */
#define WIRE_FRAME_MAX    (1u << 20) /* longest message, header not counted */
#define WIRE_TEXT_MAX     256        /* a sentence of this file, NUL included */

/* What a frame may take when unpacked: a fixed part and so many times its own size. Eight times holds
 * all but crowds of tiny elements; the fixed part holds 300 logit biases, the worst legal crowd. */
#define WIRE_ARENA_FIXED  (32u << 10)
#define WIRE_ARENA_CLIENT 8
#define WIRE_ARENA_SERVER                                                                          \
	32 /* answers are many small log-probabilities, and come from the daemon */

/** wire_frame_length() - bytes that follow the header; refuse what is 0 or above WIRE_FRAME_MAX. */
static inline uint32_t wire_frame_length(const uint8_t hdr[WIRE_HEADER_BYTES])
{
	return (uint32_t)hdr[0] | (uint32_t)hdr[1] << 8 | (uint32_t)hdr[2] << 16 |
	       (uint32_t)hdr[3] << 24;
}

/** wire_put_length() - writes the header of a message of n bytes. */
static inline void wire_put_length(uint8_t hdr[WIRE_HEADER_BYTES], uint32_t n)
{
	hdr[0] = (uint8_t)n;
	hdr[1] = (uint8_t)(n >> 8);
	hdr[2] = (uint8_t)(n >> 16);
	hdr[3] = (uint8_t)(n >> 24);
}

/* Memory of one unpacked frame: handed out upwards, given back all at once. Must not move while in use,
 * since the allocator points back at it. */
struct wire_arena {
	ProtobufCAllocator allocator;
	uint8_t *data;
	size_t size, used; /* bytes */
	int full;          /* an allocation was refused: the frame unpacks to more than size */
};
#define WIRE_ARENA_NULL ((struct wire_arena){})

/**
 * wire_arena_init() - room for one frame from a client
 * @frame_bytes: length of the message; the arena holds 8 times that and WIRE_ARENA_FIXED
 *
 * Return: 0, -ENOMEM. Free with wire_arena_done(), which also takes a zeroed arena.
 */
int wire_arena_init(struct wire_arena *arena, size_t frame_bytes);
/** wire_arena_init_server() - the same for a frame from the daemon: 32 times. */
int wire_arena_init_server(struct wire_arena *arena, size_t frame_bytes);
/** wire_arena_done() - frees every message unpacked into the arena. */
void wire_arena_done(struct wire_arena *arena);

/**
 * wire_unpack_client() - protobuf bytes of a client frame to its message
 * @data, @n: the frame without its header
 * @arena:    owns the result, which dies with it; never free it by protobuf-c's own function
 *
 * Return: the message; NULL: malformed, a required field missing, or too large when unpacked:
 *         wire_unpack_text() says which. Ranges are not checked yet.
 */
Dsd__ClientFrame *wire_unpack_client(const void *data, size_t n, struct wire_arena *arena);
Dsd__ServerFrame *wire_unpack_server(const void *data, size_t n, struct wire_arena *arena);
/** wire_unpack_text() - why the last unpacking into this arena failed, as a sentence. */
void wire_unpack_text(const struct wire_arena *arena, size_t n, char text[WIRE_TEXT_MAX]);

/**
 * wire_check() - every field of a message against the ranges of the schema
 * @message: any message of dsd.proto
 * @text:    on error, what was got and wanted: "generate.sampling.temperature: got -1, want 0 to 100"
 *
 * Numbers lie in their range and are not NaN, enum values are known, strings are UTF-8, strings, bytes
 * and repeated fields are not too long. Which oneof must be set is the handler's to know.
 * Walks without recursion, allocates nothing.
 *
 * Return: 0, or -EINVAL with text.
 */
int wire_check(const ProtobufCMessage *message, char text[WIRE_TEXT_MAX]);

/** wire_frame_bytes() - of header and message. Return: 0; -EMSGSIZE: more than WIRE_FRAME_MAX. */
int wire_frame_bytes(const ProtobufCMessage *message, size_t *ret);
/** wire_put_frame() - header and message into @n bytes, which wire_frame_bytes() counted. */
void wire_put_frame(const ProtobufCMessage *message, size_t n, uint8_t *ret);
/* The one frame that comes for every token: ServerFrame { id, delta { choice, ids = [token], text } },
 * packed without a walk over descriptors, into the same bytes. */
struct wire_token {
	uint64_t id;
	uint32_t choice; /* absent where it is 0 */
	uint32_t token;
	const void *text; /* absent where @n_text is 0 */
	size_t n_text;
};
/** wire_token_bytes() - of header and message. */
size_t wire_token_bytes(const struct wire_token *t);
/** wire_put_token() - header and message into wire_token_bytes() bytes. */
void wire_put_token(const struct wire_token *t, uint8_t *ret);

/**
 * wire_pack_frame() - header and message, ready to send
 * @message: &frame->base of a ClientFrame or ServerFrame
 * @ret:     malloc'ed; the caller frees it
 *
 * Return: 0, -EMSGSIZE: more than WIRE_FRAME_MAX, -ENOMEM.
 */
int wire_pack_frame(const ProtobufCMessage *message, uint8_t **ret, size_t *ret_n);
