#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One step through bytes that may or may not be UTF-8. Pure functions: any thread. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define UTF8_REPLACEMENT   "\xEF\xBF\xBD" /* U+FFFD */
#define UTF8_REPLACEMENT_N 3

struct utf8_step {
	uint32_t cp; /* the character, when @valid */
	uint8_t n; /* bytes: of the character, or of the maximal subpart of an ill-formed sequence */
	bool valid;
	bool cut; /* not valid only because the bytes end too early */
};

/**
 * utf8_step() - what stands at the start of @n > 0 bytes
 *
 * Source: The Unicode Standard, table 3-7 (well-formed sequences) and §3.9 (maximal subparts).
 */
static inline struct utf8_step utf8_step(const uint8_t *p, size_t n)
{
	uint8_t lead = p[0], lo = 0x80, hi = 0xBF, want;
	uint32_t cp;

	if (lead < 0x80)
		return (struct utf8_step){.cp = lead, .n = 1, .valid = true};
	if (lead < 0xC2 || lead > 0xF4)
		return (struct utf8_step){.n = 1};
	if (lead < 0xE0) {
		want = 2;
		cp = lead & 0x1F;
	} else if (lead < 0xF0) {
		want = 3;
		cp = lead & 0x0F;
		lo = lead == 0xE0 ? 0xA0 : lo;
		hi = lead == 0xED ? 0x9F : hi;
	} else {
		want = 4;
		cp = lead & 0x07;
		lo = lead == 0xF0 ? 0x90 : lo;
		hi = lead == 0xF4 ? 0x8F : hi;
	}
	for (uint8_t i = 1; i < want; i++) {
		if (i >= n)
			return (struct utf8_step){.n = i, .cut = true};
		if (p[i] < lo || p[i] > hi)
			return (struct utf8_step){.n = i};
		cp = cp << 6 | (p[i] & 0x3F);
		lo = 0x80;
		hi = 0xBF;
	}
	return (struct utf8_step){.cp = cp, .n = want, .valid = true};
}

/** utf8_valid_prefix() - how many of the @n bytes are well-formed UTF-8 from the start. */
static inline size_t utf8_valid_prefix(const uint8_t *p, size_t n)
{
	size_t at = 0;

	while (at < n) {
		struct utf8_step s;
		uint64_t word;

		/* Eight characters of ASCII at once, where there are. */
		if (n - at >= sizeof(word)) {
			memcpy(&word, p + at, sizeof(word));
			if (!(word & UINT64_C(0x8080808080808080))) {
				at += sizeof(word);
				continue;
			}
		}
		s = utf8_step(p + at, n - at);

		if (!s.valid)
			break;
		at += s.n;
	}
	return at;
}
