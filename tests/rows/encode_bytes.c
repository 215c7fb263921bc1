/* SPDX-License-Identifier: Apache-2.0 */
/* Random bytes through the published vocabularies and back, and the time of a mebibyte of each byte.
 *
 *   encode-bytes N SEED BYTES   N random texts and BYTES of the 256 bytes, for each vocabulary
 *
 * Exit status 1 where a text does not come back; 77 without the vocabularies. Whether the time is
 * good is the caller's affair. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/vocab.h"
#include "text_image.h"

#define MEBIBYTE (1u << 20)

static uint64_t draw(uint64_t *state, uint64_t n)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (*state * UINT64_C(2685821657736338717)) % n;
}

/* CPU time: a busy machine is no fault of the encoder. */
static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* V2 vocabularies have no token for the 13 bytes that UTF-8 never uses. */
static bool possible(uint8_t b, bool v2)
{
	return !v2 || (b != 0xC0 && b != 0xC1 && b < 0xF5);
}

static bool comes_back(const struct vocab *v, struct encode_scratch *s, const uint8_t *text,
		       size_t n, double *ret_ms)
{
	struct ids ids = {};
	struct text_buf back = {};
	double begin = now_ms();
	int r = encode_text(v, s, text, n, 0, &ids, NULL);
	bool same;

	*ret_ms = now_ms() - begin;
	same = r == 0 && decode_bytes(v, ids.id, ids.n, false, &back, NULL) == 0 && back.n == n &&
	       (n == 0 || memcmp(back.data, text, n) == 0);
	ids_done(&ids);
	text_buf_done(&back);
	return same;
}

static int try_vocabulary(const char *name, struct text_image *t, uint32_t n, uint64_t seed,
			  uint32_t n_bytes)
{
	bool v2 = strcmp(name, "v2") == 0;
	_cleanup_(vocab_unrefp) struct vocab *v = NULL;
	_cleanup_(encode_scratch_freep) struct encode_scratch *s = NULL;
	_cleanup_(freep) uint8_t *text = malloc(MEBIBYTE);
	uint64_t state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15), n_total = 0;
	uint32_t n_wrong = 0, slowest = 0, first = (uint32_t)draw(&state, 256), n_timed = 0;
	double ms, worst = 0;

	if (!text || vocab_new(&v, &t->im, NULL, NULL, NULL) < 0 || encode_scratch_new(&s) < 0)
		return -1;
	for (uint32_t i = 0; i < n; i++) {
		size_t len = (size_t)draw(&state, draw(&state, 2) ? 40 : 3000),
		       range = draw(&state, 2) ? 256 : 128;

		for (size_t k = 0; k < len; k++)
			do
				text[k] = (uint8_t)draw(&state, range);
			while (!possible(text[k], v2));
		n_wrong += !comes_back(v, s, text, len, &ms);
		n_total += len;
	}
	for (uint32_t i = 0; i < n_bytes; i++) {
		uint8_t b = (uint8_t)(first + i * 256 / n_bytes);

		if (!possible(b, v2))
			continue;
		n_timed++;
		memset(text, b, MEBIBYTE);
		n_wrong += !comes_back(v, s, text, MEBIBYTE, &ms);
		if (ms > worst) {
			worst = ms;
			slowest = b;
		}
	}
	printf("figure: vocabulary=%s texts=%u bytes=%llu mebibytes=%u wrong=%u slowest_byte=0x%02x ms=%.1f\n",
	       name, n, (unsigned long long)n_total, n_timed, n_wrong, slowest, worst);
	fflush(stdout);
	return (int)n_wrong;
}

int main(int argc, char **argv)
{
	struct text_image *t2, *t3;
	uint32_t n, n_bytes;
	int r2, r3;

	if (argc != 4)
		return 2;
	t2 = text_image_v2();
	t3 = text_image_v3();
	if (!t2 || !t3) {
		printf("skipped: no published vocabularies in %s\n", text_data_dir());
		return 77;
	}
	n = (uint32_t)strtoul(argv[1], NULL, 10);
	n_bytes = MIN((uint32_t)strtoul(argv[3], NULL, 10), 256u);
	r2 = try_vocabulary("v2", t2, n, strtoull(argv[2], NULL, 10), MAX(n_bytes, 1u));
	r3 = try_vocabulary("v3", t3, n, strtoull(argv[2], NULL, 10), MAX(n_bytes, 1u));
	text_image_free(t2);
	text_image_free(t3);
	return r2 != 0 || r3 != 0;
}
