/* SPDX-License-Identifier: Apache-2.0 */
/* One client frame: what passes the range check must pass it again after it was packed and unpacked, and pack
 * to the same bytes, so that nothing a handler sees depends on how the peer wrote it. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wire_arena first, second;
	Dsd__ClientFrame *frame, *again;
	uint8_t *packed = NULL, *repacked = NULL;
	size_t n = 0, n_again = 0;
	char text[WIRE_TEXT_MAX];

	if (size == 0 || size > WIRE_FRAME_MAX || wire_arena_init(&first, size) < 0)
		return 0;
	frame = wire_unpack_client(data, size, &first);
	if (!frame || wire_check(&frame->base, text) < 0) {
		wire_arena_done(&first);
		return 0;
	}
	/* Packing may outgrow a frame, since the peer may have written numbers shorter; the packed bytes may
	 * leave the second arena less room; and protobuf-c passes on an unknown field of number 0 that it would
	 * not take itself. All three are refusals, which is as it should be. */
	if (wire_pack_frame(&frame->base, &packed, &n) == 0) {
		n -= WIRE_HEADER_BYTES;
		assert(n == wire_frame_length(packed));
		if (wire_arena_init(&second, n) == 0) {
			again = wire_unpack_client(packed + WIRE_HEADER_BYTES, n, &second);
			if (again) {
				assert(wire_check(&again->base, text) == 0);
				assert(wire_pack_frame(&again->base, &repacked, &n_again) == 0);
				assert(n_again == n + WIRE_HEADER_BYTES &&
				       memcmp(packed, repacked, n_again) == 0);
			}
			wire_arena_done(&second);
		}
	}
	free(packed);
	free(repacked);
	wire_arena_done(&first);
	return 0;
}
