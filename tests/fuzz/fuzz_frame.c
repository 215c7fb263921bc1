/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of bytes from a peer, cut into frames as daemon and library do: no crash, and no frame takes
 * more memory than its arena. Both directions read the same bytes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void one_frame(const uint8_t *data, size_t n, int from_server)
{
	struct wire_arena arena;
	const ProtobufCMessage *message = NULL;
	char text[WIRE_TEXT_MAX];
	uint8_t *exact = malloc(n); /* so that a read past the frame is a read past an allocation */
	int r;

	if (!exact)
		return;
	memcpy(exact, data, n);
	r = from_server ? wire_arena_init_server(&arena, n) : wire_arena_init(&arena, n);
	assert(r == 0);
	if (from_server) {
		Dsd__ServerFrame *frame = wire_unpack_server(exact, n, &arena);

		message = frame ? &frame->base : NULL;
	} else {
		Dsd__ClientFrame *frame = wire_unpack_client(exact, n, &arena);

		message = frame ? &frame->base : NULL;
	}
	free(exact); /* nothing unpacked may point into the frame */
	assert(arena.used <= arena.size);
	if (!message)
		wire_unpack_text(&arena, n, text);
	if (!message || wire_check(message, text) < 0)
		assert(strlen(text) > 0 && strlen(text) < WIRE_TEXT_MAX);
	wire_arena_done(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size >= WIRE_HEADER_BYTES) {
		uint32_t n = wire_frame_length(data);

		data += WIRE_HEADER_BYTES;
		size -= WIRE_HEADER_BYTES;
		if (n == 0 || n > WIRE_FRAME_MAX || n > size)
			return 0;
		one_frame(data, n, 0);
		one_frame(data, n, 1);
		data += n;
		size -= n;
	}
	return 0;
}
