/* SPDX-License-Identifier: Apache-2.0 */
/* Every pattern is a function that finds its leftmost match in text[at..end), as a backtracking regular
 * expression engine would. Where the published pattern backtracks, the comment says what that comes to.
 * A function may look at a run of characters again only after a match that took most of it, so that the
 * whole stays linear. */
#include "text/split.h"

#include <utf8proc.h>

#include "base/cleanup.h"
#include "text/utf8.h"

struct split_pattern {
	/* Return: whether there is a match; where, in @ret_from (>= at) and @ret_to (> *ret_from). */
	bool (*find)(const uint8_t *text, size_t at, size_t end, size_t *ret_from, size_t *ret_to);
};

/* Character classes, as bits. */
#define LETTER      BIT(0) /* \p{L} */
#define MARK        BIT(1) /* \p{M} */
#define NUMBER      BIT(2) /* \p{N} */
#define PUNCTUATION BIT(3) /* \p{P} */
#define SYMBOL      BIT(4) /* \p{S} */
#define SPACE       BIT(5) /* \s: White_Space */
#define NEWLINE     BIT(6) /* [\r\n], which are SPACE too */

struct range {
	uint32_t first, last;
};

/* Source: the pattern of DeepSeek-V2's tokenizer.json. ASCII is decided without the tables. */
static const struct range cased_ranges[] = {
	{0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},       {0xF8, 0x1BA},
	{0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},
	{0x376, 0x377},     {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},
	{0x388, 0x38A},     {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},
	{0x3F7, 0x481},     {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},
	{0x13A0, 0x13F5},   {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},
	{0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},
	{0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},
	{0x1F59, 0x1F59},   {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},
	{0x1F80, 0x1FB4},   {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},
	{0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},
	{0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},
	{0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},
	{0x2126, 0x2126},   {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},
	{0x2139, 0x2139},   {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},
	{0x2183, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},
	{0x2CF2, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},
	{0xA771, 0xA787},   {0xA78B, 0xA78E},   {0xAB70, 0xABBF},   {0xFB00, 0xFB06},
	{0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},   {0x10400, 0x1044F},
	{0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2},
	{0x118A0, 0x118DF}, {0x1E900, 0x1E943},
};

static const struct range v2_sign_ranges[] = {
	{0x2018, 0x201F},
	{0x3000, 0x3002},
	{0xFF01, 0xFF0F},
	{0xFF1A, 0xFF5E},
};

static const struct range v2_asian_ranges[] = {{0x0800, 0x9FA5}, {0xAC00, 0xD7FF}};

static const struct range cjk_ranges[] = {{0x3040, 0x30FF}, {0x4E00, 0x9FA5}};

static bool in_ranges(const struct range *ranges, size_t n, uint32_t cp)
{
	size_t lo = 0, hi = n;

	if (cp < ranges[0].first)
		return false;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (ranges[mid].last < cp)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < n && ranges[lo].first <= cp;
}
#define IN_RANGES(ranges, cp) in_ranges(ranges, N_ELEMENTS(ranges), cp)

static const uint8_t category_class[] = {
	[UTF8PROC_CATEGORY_LU] = LETTER,      [UTF8PROC_CATEGORY_LL] = LETTER,
	[UTF8PROC_CATEGORY_LT] = LETTER,      [UTF8PROC_CATEGORY_LM] = LETTER,
	[UTF8PROC_CATEGORY_LO] = LETTER,      [UTF8PROC_CATEGORY_MN] = MARK,
	[UTF8PROC_CATEGORY_MC] = MARK,        [UTF8PROC_CATEGORY_ME] = MARK,
	[UTF8PROC_CATEGORY_ND] = NUMBER,      [UTF8PROC_CATEGORY_NL] = NUMBER,
	[UTF8PROC_CATEGORY_NO] = NUMBER,      [UTF8PROC_CATEGORY_PC] = PUNCTUATION,
	[UTF8PROC_CATEGORY_PD] = PUNCTUATION, [UTF8PROC_CATEGORY_PS] = PUNCTUATION,
	[UTF8PROC_CATEGORY_PE] = PUNCTUATION, [UTF8PROC_CATEGORY_PI] = PUNCTUATION,
	[UTF8PROC_CATEGORY_PF] = PUNCTUATION, [UTF8PROC_CATEGORY_PO] = PUNCTUATION,
	[UTF8PROC_CATEGORY_SM] = SYMBOL,      [UTF8PROC_CATEGORY_SC] = SYMBOL,
	[UTF8PROC_CATEGORY_SK] = SYMBOL,      [UTF8PROC_CATEGORY_SO] = SYMBOL,
	[UTF8PROC_CATEGORY_ZS] = SPACE,       [UTF8PROC_CATEGORY_ZL] = SPACE,
	[UTF8PROC_CATEGORY_ZP] = SPACE,       [UTF8PROC_CATEGORY_CO] = 0,
};

static const uint8_t ascii_class[128] = {
	['\t'] = SPACE,          ['\n'] = SPACE | NEWLINE,
	['\v' ... '\f'] = SPACE, ['\r'] = SPACE | NEWLINE,
	[' '] = SPACE,           ['!' ... '#'] = PUNCTUATION,
	['$'] = SYMBOL,          ['%' ... '*'] = PUNCTUATION,
	['+'] = SYMBOL,          [',' ... '/'] = PUNCTUATION,
	['0' ... '9'] = NUMBER,  [':' ... ';'] = PUNCTUATION,
	['<' ... '>'] = SYMBOL,  ['?' ... '@'] = PUNCTUATION,
	['A' ... 'Z'] = LETTER,  ['[' ... ']'] = PUNCTUATION,
	['^'] = SYMBOL,          ['_'] = PUNCTUATION,
	['`'] = SYMBOL,          ['a' ... 'z'] = LETTER,
	['{'] = PUNCTUATION,     ['|'] = SYMBOL,
	['}'] = PUNCTUATION,     ['~'] = SYMBOL,
};

/* The classes of a character. */
static inline unsigned classify(uint32_t cp)
{
	if (cp < N_ELEMENTS(ascii_class))
		return ascii_class[cp];
	if (cp == 0x85)
		return SPACE; /* White_Space of category Cc */
	return category_class[utf8proc_category((utf8proc_int32_t)cp)];
}

/* Sets of characters that patterns repeat. */
typedef bool char_set(uint32_t cp);

static bool is_newline(uint32_t cp)
{
	return cp == '\r' || cp == '\n';
}
static bool is_space(uint32_t cp)
{
	return classify(cp) & SPACE;
}
static bool is_number(uint32_t cp)
{
	return classify(cp) & NUMBER;
}
static bool is_word(uint32_t cp)
{
	return classify(cp) & (LETTER | MARK);
}
static bool is_sign(uint32_t cp)
{
	return classify(cp) & (PUNCTUATION | SYMBOL);
}
static bool is_ascii_letter(uint32_t cp)
{
	return (cp | 0x20) >= 'a' && (cp | 0x20) <= 'z';
}
static bool is_ascii_sign(uint32_t cp)
{
	return cp > ' ' && cp < 0x7F && !is_ascii_letter(cp) && !(cp >= '0' && cp <= '9');
}
static bool is_cjk(uint32_t cp)
{
	return IN_RANGES(cjk_ranges, cp);
}
static bool is_cased(uint32_t cp)
{
	return cp < 0x80 ? is_ascii_letter(cp) : IN_RANGES(cased_ranges, cp);
}
static bool is_v2_sign(uint32_t cp)
{
	/* [!-/:-~] has the letters, too. */
	return cp < 0x80 ? is_ascii_sign(cp) || is_ascii_letter(cp) : IN_RANGES(v2_sign_ranges, cp);
}
static bool is_v2_asian(uint32_t cp)
{
	return IN_RANGES(v2_asian_ranges, cp);
}

/* The end of the longest run of characters of @set that starts at @at; @at itself when there is none. */
static inline __attribute__((always_inline)) size_t run_end(const uint8_t *text, size_t at,
							    size_t end, char_set *set)
{
	while (at < end) {
		struct utf8_step c = utf8_step(text + at, end - at);

		if (!set(c.cp))
			break;
		at += c.n;
	}
	return at;
}

/* The first character of @set at or after @at; @end when there is none. */
static inline __attribute__((always_inline)) size_t find_set(const uint8_t *text, size_t at,
							     size_t end, char_set *set)
{
	while (at < end) {
		struct utf8_step c = utf8_step(text + at, end - at);

		if (set(c.cp))
			break;
		at += c.n;
	}
	return at;
}

/* [set]+ */
static inline __attribute__((always_inline)) bool find_run(const uint8_t *text, size_t at,
							   size_t end, char_set *set,
							   size_t *ret_from, size_t *ret_to)
{
	*ret_from = find_set(text, at, end, set);
	*ret_to = run_end(text, *ret_from, end, set);
	return *ret_from < end;
}

/* \p{N}{1,3} */
static bool v3_find_digits(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			   size_t *ret_to)
{
	size_t to = find_set(text, at, end, is_number);

	*ret_from = to;
	for (int i = 0; i < 3 && to < end; i++) {
		struct utf8_step c = utf8_step(text + to, end - to);

		if (!is_number(c.cp))
			break;
		to += c.n;
	}
	*ret_to = to;
	return *ret_from < end;
}

/* [一-龥぀-ゟ゠-ヿ]+ */
static bool v3_find_cjk(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			size_t *ret_to)
{
	return find_run(text, at, end, is_cjk, ret_from, ret_to);
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a white space character: up to the last newline of the run; without one
 * the whole run at the end of the piece; else all but its last character, which is left for the word
 * behind it, unless it is the only one. */
static size_t v3_space_end(const uint8_t *text, size_t at, size_t end)
{
	size_t to = at, last = at, newline_end = at;

	while (to < end) {
		struct utf8_step c = utf8_step(text + to, end - to);

		if (!is_space(c.cp))
			break;
		last = to;
		to += c.n;
		if (is_newline(c.cp))
			newline_end = to;
	}
	if (newline_end > at)
		return newline_end;
	return to == end || last == at ? to : last;
}

/* The end of the match at @at of
 *   [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
 *    ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * or @at when there is none: at control characters, numbers and the like that no word follows. A mark
 * may be taken for the optional first character of the second alternative; the match is the same. */
static size_t v3_word_end(const uint8_t *text, size_t at, size_t end)
{
	struct utf8_step c = utf8_step(text + at, end - at), d = {};
	unsigned class = classify(c.cp), next_class = 0;
	size_t next = at + c.n;

	if (next < end) {
		d = utf8_step(text + next, end - next);
		next_class = classify(d.cp);
	}
	if (is_ascii_sign(c.cp) && d.valid && is_ascii_letter(d.cp))
		return run_end(text, next, end, is_ascii_letter);
	if ((class & (LETTER | MARK)) ||
	    (!(class & (NEWLINE | PUNCTUATION | SYMBOL)) && (next_class & (LETTER | MARK))))
		return run_end(text, next, end, is_word);
	if ((class & (PUNCTUATION | SYMBOL)) ||
	    (c.cp == ' ' && (next_class & (PUNCTUATION | SYMBOL)))) {
		size_t to = run_end(text, next, end, is_sign);

		return run_end(text, to, end, is_newline);
	}
	return class & SPACE ? v3_space_end(text, at, end) : at;
}

static bool v3_find_word(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			 size_t *ret_to)
{
	while (at < end) {
		size_t to = v3_word_end(text, at, end);

		if (to > at) {
			*ret_from = at;
			*ret_to = to;
			return true;
		}
		at += utf8_step(text + at, end - at).n;
	}
	return false;
}

/* [\r\n] */
static bool v2_find_newline(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			    size_t *ret_to)
{
	*ret_from = find_set(text, at, end, is_newline);
	*ret_to = *ret_from + 1;
	return *ret_from < end;
}

/* \s?[set]+ */
static inline __attribute__((always_inline)) bool find_spaced_run(const uint8_t *text, size_t at,
								  size_t end, char_set *set,
								  size_t *ret_from, size_t *ret_to)
{
	size_t from = at; /* of a white space character just before @at, or @at */

	while (at < end) {
		struct utf8_step c = utf8_step(text + at, end - at);

		if (set(c.cp)) {
			*ret_from = from;
			*ret_to = run_end(text, at, end, set);
			return true;
		}
		from = is_space(c.cp) ? at : at + c.n;
		at += c.n;
	}
	return false;
}

static bool v2_find_letters(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			    size_t *ret_to)
{
	return find_spaced_run(text, at, end, is_cased, ret_from, ret_to);
}

static bool v2_find_signs(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			  size_t *ret_to)
{
	return find_spaced_run(text, at, end, is_v2_sign, ret_from, ret_to);
}

/* \s+$ */
static bool v2_find_trailing_space(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
				   size_t *ret_to)
{
	size_t from = at; /* behind the last character that is not white space */

	while (at < end) {
		struct utf8_step c = utf8_step(text + at, end - at);

		at += c.n;
		if (!is_space(c.cp))
			from = at;
	}
	*ret_from = from;
	*ret_to = end;
	return from < end;
}

/* [一-龥ࠀ-一가-퟿]+ */
static bool v2_find_asian(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			  size_t *ret_to)
{
	return find_run(text, at, end, is_v2_asian, ret_from, ret_to);
}

/* Every \p{N} alone. */
static bool v2_find_digit(const uint8_t *text, size_t at, size_t end, size_t *ret_from,
			  size_t *ret_to)
{
	size_t from = find_set(text, at, end, is_number);

	if (from == end)
		return false;
	*ret_from = from;
	*ret_to = from + utf8_step(text + from, end - from).n;
	return true;
}

/* Source: DeepSeek-V3's tokenizer.json. */
static const struct split_pattern v3_patterns[] = {{v3_find_digits}, {v3_find_cjk}, {v3_find_word}};
/* Source: DeepSeek-V2's tokenizer.json. */
static const struct split_pattern v2_patterns[] = {
	{v2_find_newline},        {v2_find_letters}, {v2_find_signs},
	{v2_find_trailing_space}, {v2_find_asian},   {v2_find_digit},
};
_Static_assert(N_ELEMENTS(v2_patterns) <= SPLIT_LEVELS_MAX, "room for every pattern");

static struct split_level level_of(size_t from, size_t to)
{
	return (struct split_level){.at = from, .end = to, .match = from, .match_end = from};
}

void split_init(struct split *s, enum image_splitter kind, const uint8_t *text, size_t n)
{
	bool v2 = kind == IMAGE_SPLIT_V2;

	*s = (struct split){
		.text = text,
		.patterns = v2 ? v2_patterns : v3_patterns,
		.n_levels = v2 ? N_ELEMENTS(v2_patterns) : N_ELEMENTS(v3_patterns),
	};
	s->levels[0] = level_of(0, n);
}

bool split_next(struct split *s, size_t *ret_from, size_t *ret_to)
{
	while (s->level >= 0) {
		struct split_level *l = &s->levels[s->level];
		size_t from = l->at, to;

		if (l->at == l->end) {
			s->level--;
			continue;
		}
		if (l->match_end <= l->at &&
		    !s->patterns[s->level].find(s->text, l->at, l->end, &l->match, &l->match_end))
			l->match = l->match_end = l->end;
		to = l->at < l->match ? l->match : l->match_end;
		l->at = to;
		/* One byte is one character, which nothing cuts. */
		if (s->level == s->n_levels - 1 || to - from == 1) {
			*ret_from = from;
			*ret_to = to;
			return true;
		}
		s->levels[++s->level] = level_of(from, to);
	}
	return false;
}
