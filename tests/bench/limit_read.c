/* SPDX-License-Identifier: Apache-2.0 */
#include "limits.h"

uint64_t limit_read(const uint64_t *data, size_t n)
{
	uint64_t sum[8] = {0};

	for (size_t i = 0; i + 8 <= n; i += 8) {
		__builtin_prefetch(data + i + 512);
		for (int j = 0; j < 8; j++)
			sum[j] ^= data[i + j];
	}
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}
