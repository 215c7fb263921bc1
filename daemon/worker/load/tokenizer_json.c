/* SPDX-License-Identifier: Apache-2.0 */
/* Order: the forms (everything that is not the known pipeline is refused), then ids (each id has at
 * most one text), then the bytes in id order, then merges, whose three parts must all be in the
 * vocabulary, then the ids with a meaning. */
#include "worker/load/tokenizer_json.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "layout/image.h"
#include "worker/load/config.h"
#include "worker/load/json.h"

#define FILE_NAME "tokenizer.json"

/* DeepSeek-V3's. Line ends are written as \r and \n here, whatever the file has. */
static const char *const v3_patterns[] = {
	"\\p{N}{1,3}",
	"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
	"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
	"[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|"
	"\\s+(?!\\S)|\\s+",
};

/* DeepSeek-V2's; the last of its steps is a Digits pre-tokeniser. */
static const char *const v2_patterns[] = {
	"[\\r\\n]",
	"\\s?["
	"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
	"\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
	"\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
	"\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
	"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
	"\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
	"\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
	"\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
	"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
	"\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
	"\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
	"\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
	"\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
	"]+",
	"\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
	"\\s+$",
	"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
};

struct added_token {
	const char *text;
	uint32_t n_bytes;
	bool there, special;
};

/* One tokenizer.json while it is read; strings belong to the JSON tree. */
struct reading {
	uint32_t n_vocab;
	enum image_splitter splitter;
	struct json_object *vocab; /* text (byte symbols) -> id */
	struct json_object *merges;
	const char **text;         /* [n_vocab] of the vocabulary, NULL: none */
	struct added_token *added; /* [n_vocab] */
	uint32_t n_added;
};

static void reading_done(struct reading *r)
{
	free(r->text);
	free(r->added);
}

static int refuse_form(struct error *err, const char *what, struct json_object *got)
{
	char shown[260];
	const char *text =
		got ? json_object_to_json_string_ext(got, JSON_C_TO_STRING_PLAIN) : "nothing";

	log_escape(shown, sizeof(shown), text, strlen(text));
	return error_set(err, -EOPNOTSUPP,
			 FILE_NAME ": %s: got %s, want that of DeepSeek-V2 or -V3", what, shown);
}

/* Whether two pattern texts are the same, a line end in the file being its escape in ours. */
static bool same_pattern(const char *file, const char *ours)
{
	for (; *file; file++) {
		if (*file == '\r' || *file == '\n') {
			if (ours[0] != '\\' || ours[1] != (*file == '\r' ? 'r' : 'n'))
				return false;
			ours += 2;
		} else if (*file != *ours++) {
			return false;
		}
	}
	return *ours == 0;
}

static const char *member_text(struct json_object *o, const char *key)
{
	struct json_object *m = NULL;

	if (!json_object_object_get_ex(o, key, &m) || !json_object_is_type(m, json_type_string))
		return "";
	return json_object_get_string(m);
}

/* A flag that is absent counts as @absent. */
static bool member_is(struct json_object *o, const char *key, bool want, bool absent)
{
	struct json_object *m = NULL;

	if (!json_object_object_get_ex(o, key, &m) || !m)
		return want == absent;
	return json_object_is_type(m, json_type_boolean) && json_object_get_boolean(m) == want;
}

static bool is_split(struct json_object *o, const char *pattern)
{
	struct json_object *p = NULL;

	return strcmp(member_text(o, "type"), "Split") == 0 &&
	       strcmp(member_text(o, "behavior"), "Isolated") == 0 &&
	       member_is(o, "invert", false, false) &&
	       json_object_object_get_ex(o, "pattern", &p) &&
	       json_object_is_type(p, json_type_object) &&
	       same_pattern(member_text(p, "Regex"), pattern);
}

static bool is_byte_level(struct json_object *o)
{
	return strcmp(member_text(o, "type"), "ByteLevel") == 0 &&
	       member_is(o, "add_prefix_space", false, true) &&
	       member_is(o, "use_regex", false, true);
}

static bool is_digits(struct json_object *o)
{
	return strcmp(member_text(o, "type"), "Digits") == 0 &&
	       member_is(o, "individual_digits", true, false);
}

static bool is_form(struct json_object *list, const char *const *patterns, size_t n_patterns,
		    bool digits)
{
	size_t n = json_object_array_length(list), i;

	if (n != n_patterns + digits + 1)
		return false;
	for (i = 0; i < n_patterns; i++)
		if (!is_split(json_object_array_get_idx(list, i), patterns[i]))
			return false;
	if (digits && !is_digits(json_object_array_get_idx(list, i++)))
		return false;
	return is_byte_level(json_object_array_get_idx(list, i));
}

static int read_pre_tokenizer(struct reading *r, const struct json_place *p, struct error *err)
{
	struct json_object *pre = json_get(p, "pre_tokenizer"), *list = NULL;

	if (strcmp(member_text(pre, "type"), "Sequence") != 0 ||
	    !json_object_object_get_ex(pre, "pretokenizers", &list) ||
	    !json_object_is_type(list, json_type_array))
		return refuse_form(err, "pre_tokenizer", pre);
	if (is_form(list, v3_patterns, N_ELEMENTS(v3_patterns), false))
		r->splitter = IMAGE_SPLIT_V3;
	else if (is_form(list, v2_patterns, N_ELEMENTS(v2_patterns), true))
		r->splitter = IMAGE_SPLIT_V2;
	else
		return refuse_form(err, "pre_tokenizer", list);
	return 0;
}

/* No normaliser: null, or a sequence of none. */
static int check_normalizer(const struct json_place *p, struct error *err)
{
	struct json_object *o = json_get(p, "normalizer"), *list = NULL;

	if (!o)
		return 0;
	if (strcmp(member_text(o, "type"), "Sequence") == 0 &&
	    json_object_object_get_ex(o, "normalizers", &list) &&
	    json_object_is_type(list, json_type_array) && json_object_array_length(list) == 0)
		return 0;
	return refuse_form(err, "normalizer", o);
}

static int read_model(struct reading *r, const struct json_place *root, struct error *err)
{
	static const char *const flags[] = {"fuse_unk", "byte_fallback", "ignore_merges"};
	static const char *const texts[] = {"dropout", "unk_token", "continuing_subword_prefix",
					    "end_of_word_suffix"};
	struct json_place p = {.file = FILE_NAME, .path = "model."};
	int e;

	e = json_get_object(root, "model", JSON_REQUIRED, &p.object, err);
	if (e < 0)
		return e;
	/* Old files leave the type out. */
	if (json_get(&p, "type") && strcmp(member_text(p.object, "type"), "BPE") != 0)
		return refuse_form(err, "model.type", json_get(&p, "type"));
	for (size_t i = 0; i < N_ELEMENTS(flags); i++)
		if (!member_is(p.object, flags[i], false, false))
			return json_refuse(&p, flags[i], err, "false");
	for (size_t i = 0; i < N_ELEMENTS(texts); i++) {
		struct json_object *o = json_get(&p, texts[i]);

		if (o &&
		    !(json_object_is_type(o, json_type_string) && *json_object_get_string(o) == 0))
			return json_refuse(&p, texts[i], err, "null");
	}
	e = json_get_object(&p, "vocab", JSON_REQUIRED, &r->vocab, err);
	if (e < 0)
		return e;
	return json_get_array(&p, "merges", JSON_REQUIRED, &r->merges, err);
}

static int check_id(const struct reading *r, struct json_object *id, const char *text,
		    uint32_t *ret, struct error *err)
{
	char shown[260];
	int64_t x = json_object_is_type(id, json_type_int) ? json_object_get_int64(id) : -1;

	log_escape(shown, sizeof(shown), text, strlen(text));
	if (x < 0)
		return error_set(err, -EINVAL, FILE_NAME ": token \"%s\" has no id", shown);
	if (x >= r->n_vocab)
		return error_set(err, -EINVAL,
				 FILE_NAME
				 ": token \"%s\" has id %lld, but config.json has vocab_size %u",
				 shown, (long long)x, r->n_vocab);
	*ret = (uint32_t)x;
	return 0;
}

static int read_vocab(struct reading *r, struct error *err)
{
	int e;

	json_object_object_foreach(r->vocab, key, value)
	{
		uint32_t id;

		e = check_id(r, value, key, &id, err);
		if (e < 0)
			return e;
		if (r->text[id])
			return error_set(err, -EINVAL, FILE_NAME ": two tokens have id %u", id);
		r->text[id] = key;
	}
	return 0;
}

static int read_added(struct reading *r, const struct json_place *root, struct error *err)
{
	static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
	struct json_object *list = NULL;
	int e;

	e = json_get_array(root, "added_tokens", JSON_OPTIONAL, &list, err);
	if (e < 0 || !list)
		return e;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_place p = {FILE_NAME, "added_tokens[].",
				       json_object_array_get_idx(list, i)};
		const char *text;
		bool special = false;
		uint32_t id;

		if (!json_object_is_type(p.object, json_type_object))
			return error_set(err, -EINVAL,
					 FILE_NAME ": added_tokens: element %zu is no object", i);
		e = json_get_string(&p, "content", JSON_REQUIRED, &text, err);
		e = e ?: check_id(r, json_get(&p, "id"), text, &id, err);
		e = e ?: json_get_bool(&p, "special", JSON_OPTIONAL, &special, err);
		if (e < 0)
			return e;
		for (size_t k = 0; k < N_ELEMENTS(flags); k++)
			if (!member_is(p.object, flags[k], false, false))
				return json_refuse(&p, flags[k], err, "false");
		if (r->added[id].there || (r->text[id] && strcmp(r->text[id], text) != 0))
			return error_set(err, -EINVAL, FILE_NAME ": two tokens have id %u", id);
		if (!*text || strlen(text) > IMAGE_TOKEN_LEN_MAX)
			return error_set(err, -EINVAL,
					 FILE_NAME ": added token %u has %zu bytes, want 1 to %u",
					 id, strlen(text), IMAGE_TOKEN_LEN_MAX);
		r->added[id] = (struct added_token){text, (uint32_t)strlen(text), true, special};
		r->n_added++;
		if (r->n_added > IMAGE_ADDED_MAX)
			return error_set(err, -EINVAL, FILE_NAME ": more added tokens than %u",
					 IMAGE_ADDED_MAX);
	}
	return 0;
}

/* The next byte symbol (bytes as printable characters). Return: the byte, or -1. */
static int take_symbol(const char **p)
{
	const uint8_t *s = (const uint8_t *)*p;
	uint32_t c = s[0];

	if (c >= 33 && c <= 126) {
		*p += 1;
		return (int)c;
	}
	if ((c & 0xe0) != 0xc0 || (s[1] & 0xc0) != 0x80)
		return -1;
	c = (c & 0x1f) << 6 | (s[1] & 0x3f);
	*p += 2;
	if ((c >= 161 && c <= 172) || (c >= 174 && c <= 255))
		return (int)c;
	/* The 68 others stand from U+0100 on, in the order of the bytes: 0-32, 127-160, 173. */
	if (c < 0x100 || c > 0x143)
		return -1;
	c -= 0x100;
	if (c <= 32)
		return (int)c;
	return c <= 66 ? (int)(c - 33 + 127) : 173;
}

static int decode_symbols(const char *text, uint8_t *ret, uint32_t *ret_n)
{
	uint32_t n = 0;

	while (*text) {
		int byte = take_symbol(&text);

		if (byte < 0)
			return -EINVAL;
		if (n == IMAGE_TOKEN_LEN_MAX)
			return -E2BIG;
		ret[n++] = (uint8_t)byte;
	}
	*ret_n = n;
	return 0;
}

/* Sections token_offset, token_bytes, token_flags and added. */
static int append_tokens(struct image_builder *b, const struct reading *r, struct error *err)
{
	_cleanup_(freep) uint32_t *offsets = calloc((size_t)r->n_vocab + 1, sizeof(*offsets));
	_cleanup_(freep) uint32_t *added = calloc((size_t)r->n_added + 1, sizeof(*added));
	_cleanup_(freep) uint8_t *flags = calloc(r->n_vocab, 1);
	_cleanup_(freep) uint8_t *bytes = NULL;
	size_t n_alloc = 0, n = 0;
	uint32_t n_added = 0;
	int e;

	if (!offsets || !added || !flags)
		return -ENOMEM;
	for (uint32_t id = 0; id < r->n_vocab; id++) {
		const struct added_token *a = &r->added[id];
		uint32_t n_token = 0;

		if (n + IMAGE_TOKEN_LEN_MAX > n_alloc) {
			uint8_t *p = realloc(bytes, 2 * n_alloc + 2 * IMAGE_TOKEN_LEN_MAX);

			if (!p)
				return -ENOMEM;
			bytes = p;
			n_alloc = 2 * n_alloc + 2 * IMAGE_TOKEN_LEN_MAX;
		}
		if (a->there) {
			memcpy(bytes + n, a->text, a->n_bytes);
			n_token = a->n_bytes;
			flags[id] = IMAGE_TOKEN_ADDED | (a->special ? IMAGE_TOKEN_SPECIAL : 0);
			added[n_added++] = id;
		} else if (!r->text[id]) {
			flags[id] = IMAGE_TOKEN_UNUSED;
		} else if (decode_symbols(r->text[id], bytes + n, &n_token) < 0) {
			return error_set(err, -EINVAL,
					 FILE_NAME
					 ": token %u is not made of at most %u byte symbols",
					 id, IMAGE_TOKEN_LEN_MAX);
		}
		n += n_token;
		if (n > UINT32_MAX)
			return error_set(err, -EINVAL, FILE_NAME ": tokens of more than 4 GiB");
		offsets[id + 1] = (uint32_t)n;
	}
	e = image_append(b, &b->h.token_offset, offsets,
			 sizeof(*offsets) * ((size_t)r->n_vocab + 1));
	e = e ?: image_append(b, &b->h.token_bytes, bytes, n);
	e = e ?: image_append(b, &b->h.token_flags, flags, r->n_vocab);
	e = e ?: image_append(b, &b->h.added, added, sizeof(*added) * r->n_added);
	b->h.n_added = r->n_added;
	return e;
}

/* The two halves of "A B" or ["A", "B"], put into @buf as A, 0, B, 0. */
static int split_merge(struct json_object *merge, char *buf, size_t n, const char **ret_right)
{
	const char *left, *right;
	size_t n_left;

	if (json_object_is_type(merge, json_type_array) && json_object_array_length(merge) == 2) {
		struct json_object *a = json_object_array_get_idx(merge, 0);
		struct json_object *b = json_object_array_get_idx(merge, 1);

		if (!json_object_is_type(a, json_type_string) ||
		    !json_object_is_type(b, json_type_string))
			return -EINVAL;
		left = json_object_get_string(a);
		n_left = strlen(left);
		right = json_object_get_string(b);
	} else if (json_object_is_type(merge, json_type_string)) {
		left = json_object_get_string(merge);
		right = strchr(left, ' ');
		if (!right)
			return -EINVAL;
		n_left = (size_t)(right - left);
		right++;
	} else {
		return -EINVAL;
	}
	if (!n_left || !*right || n_left + strlen(right) + 2 > n)
		return -EINVAL;
	memcpy(buf, left, n_left);
	buf[n_left] = 0;
	strcpy(buf + n_left + 1, right);
	*ret_right = buf + n_left + 1;
	return 0;
}

static uint32_t find_id(const struct reading *r, const char *text)
{
	struct json_object *o = NULL;

	return json_object_object_get_ex(r->vocab, text, &o) ? (uint32_t)json_object_get_int64(o)
							     : IMAGE_NONE;
}

static int append_merges(struct image_builder *b, const struct reading *r, struct error *err)
{
	size_t n = json_object_array_length(r->merges);
	_cleanup_(freep) struct image_merge *merges = NULL;
	char buf[4 * IMAGE_TOKEN_LEN_MAX], shown[260];

	if (n > IMAGE_MERGES_MAX)
		return error_set(err, -EINVAL, FILE_NAME ": %zu merges, want at most %u", n,
				 IMAGE_MERGES_MAX);
	merges = calloc(n + 1, sizeof(*merges));
	if (!merges)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct image_merge *m = &merges[i];
		const char *right;

		if (split_merge(json_object_array_get_idx(r->merges, i), buf, sizeof(buf), &right) <
		    0)
			return error_set(err, -EINVAL, FILE_NAME ": merge %zu: want two tokens", i);
		m->left = find_id(r, buf);
		m->right = find_id(r, right);
		/* Side by side they are the result. */
		memmove(buf + strlen(buf), right, strlen(right) + 1);
		m->result = find_id(r, buf);
		if (m->left != IMAGE_NONE && m->right != IMAGE_NONE && m->result != IMAGE_NONE)
			continue;
		log_escape(shown, sizeof(shown), buf, strlen(buf));
		return error_set(err, -EINVAL,
				 FILE_NAME
				 ": merge %zu (%s): not all its parts are in the vocabulary",
				 i, shown);
	}
	b->h.n_merges = (uint32_t)n;
	return image_append(b, &b->h.merges, merges, sizeof(*merges) * n);
}

static uint32_t find_added(const struct reading *r, const char *text)
{
	for (uint32_t id = 0; id < r->n_vocab; id++)
		if (r->added[id].there && strcmp(r->added[id].text, text) == 0)
			return id;
	return IMAGE_NONE;
}

static int add_eos(struct image_header *h, uint32_t id, struct error *err)
{
	for (uint32_t i = 0; i < h->n_eos; i++)
		if (h->eos[i] == id)
			return 0;
	if (h->n_eos == IMAGE_EOS_MAX)
		return error_set(err, -EINVAL, "more end tokens than %u", IMAGE_EOS_MAX);
	h->eos[h->n_eos++] = id;
	return 0;
}

static int add_config_ids(struct image_header *h, const struct load_config *config,
			  const struct load_generation *generation, struct error *err)
{
	int e = 0;

	h->bos = config->bos;
	for (uint32_t i = 0; e == 0 && i < config->n_eos; i++)
		e = add_eos(h, config->eos[i], err);
	for (uint32_t i = 0; e == 0 && i < generation->n_eos; i++)
		e = add_eos(h, generation->eos[i], err);
	return e;
}

/* "bos_token": "TEXT", or {"content": "TEXT", ...}. Return: the id, IMAGE_NONE where absent. */
static int named_token(const struct reading *r, const struct json_place *p, const char *key,
		       uint32_t *ret, struct error *err)
{
	struct json_object *o = json_get(p, key);
	const char *text = NULL;

	*ret = IMAGE_NONE;
	if (!o)
		return 0;
	if (json_object_is_type(o, json_type_object))
		text = member_text(o, "content");
	else if (json_object_is_type(o, json_type_string))
		text = json_object_get_string(o);
	if (!text)
		return json_refuse(p, key, err, "a token");
	*ret = find_added(r, text);
	if (*ret == IMAGE_NONE)
		*ret = find_id(r, text);
	if (*ret == IMAGE_NONE)
		return json_refuse(p, key, err, "a token of tokenizer.json");
	return 0;
}

/* tokenizer_config.json: begin and end tokens by their text, and whether the published class has a
 * chat of control ids. @r NULL: there is no tokenizer.json, and texts mean nothing. */
static int read_config(struct image_header *h, const struct reading *r,
		       const struct tokenizer_input *in, bool *ret_v3_chat, struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *root = NULL;
	struct json_place p = {.file = "tokenizer_config.json", .path = ""};
	bool add_bos = true;
	uint32_t bos = IMAGE_NONE, eos = IMAGE_NONE;
	int e;

	*ret_v3_chat = false;
	if (in->config) {
		e = json_parse(&root, p.file, in->config, in->config_bytes, err);
		if (e < 0)
			return e;
		p.object = root;
		e = json_get_bool(&p, "add_bos_token", JSON_OPTIONAL, &add_bos, err);
		if (r) {
			e = e ?: named_token(r, &p, "bos_token", &bos, err);
			e = e ?: named_token(r, &p, "eos_token", &eos, err);
		}
		if (e < 0)
			return e;
		*ret_v3_chat = strstr(member_text(root, "chat_template"), "<｜User｜>");
	}
	if (bos != IMAGE_NONE)
		h->bos = bos;
	h->add_bos = add_bos && h->bos != IMAGE_NONE;
	return eos == IMAGE_NONE ? 0 : add_eos(h, eos, err);
}

static int fill_bytes(struct image_builder *b, const struct tokenizer_input *in, struct error *err)
{
	struct image_header *h = &b->h;
	_cleanup_(freep) uint32_t *offsets = NULL;
	_cleanup_(freep) uint8_t *flags = NULL;
	uint8_t bytes[256];
	bool v3_chat;
	int e;

	if (h->n_vocab < 256)
		return error_set(
			err, -EINVAL,
			"config.json: vocab_size: got %u, want at least 256 without " FILE_NAME,
			h->n_vocab);
	e = read_config(h, NULL, in, &v3_chat, err);
	if (e < 0)
		return e;
	offsets = calloc((size_t)h->n_vocab + 1, sizeof(*offsets));
	flags = calloc(h->n_vocab, 1);
	if (!offsets || !flags)
		return -ENOMEM;
	for (uint32_t i = 0; i <= h->n_vocab; i++)
		offsets[i] = MIN(i, 256u);
	for (uint32_t i = 0; i < 256; i++)
		bytes[i] = (uint8_t)i;
	if (h->bos != IMAGE_NONE && h->bos >= 256)
		flags[h->bos] = IMAGE_TOKEN_SPECIAL;
	for (uint32_t i = 0; i < h->n_eos; i++)
		if (h->eos[i] >= 256)
			flags[h->eos[i]] = IMAGE_TOKEN_SPECIAL;
	h->splitter = IMAGE_SPLIT_BYTES;
	h->renderer = IMAGE_RENDER_NONE;
	e = image_append(b, &h->token_offset, offsets, sizeof(*offsets) * ((size_t)h->n_vocab + 1));
	e = e ?: image_append(b, &h->token_bytes, bytes, sizeof(bytes));
	e = e ?: image_append(b, &h->token_flags, flags, h->n_vocab);
	e = e ?: image_append(b, &h->merges, NULL, 0);
	return e ?: image_append(b, &h->added, NULL, 0);
}

static void find_control_ids(struct image_header *h, const struct reading *r, bool v3_chat)
{
	h->token_user = find_added(r, "<｜User｜>");
	h->token_assistant = find_added(r, "<｜Assistant｜>");
	h->fim_begin = find_added(r, "<｜fim▁begin｜>");
	h->fim_hole = find_added(r, "<｜fim▁hole｜>");
	h->fim_end = find_added(r, "<｜fim▁end｜>");
	h->think_begin = find_added(r, "<think>");
	h->think_end = find_added(r, "</think>");
	h->splitter = r->splitter;
	/* V2 vocabularies have the V3 control ids too; which chat is meant only the template says. */
	if ((r->splitter == IMAGE_SPLIT_V3 || v3_chat) && h->token_user != IMAGE_NONE &&
	    h->token_assistant != IMAGE_NONE)
		h->renderer = IMAGE_RENDER_V3;
	else
		h->renderer = r->splitter == IMAGE_SPLIT_V2 ? IMAGE_RENDER_V2 : IMAGE_RENDER_NONE;
}

int tokenizer_fill(struct image_builder *b, const struct tokenizer_input *in,
		   const struct load_config *config, const struct load_generation *generation,
		   struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *root = NULL;
	_cleanup_(reading_done) struct reading r = {.n_vocab = b->h.n_vocab};
	struct json_place p = {.file = FILE_NAME, .path = ""};
	bool v3_chat;
	int e;

	e = add_config_ids(&b->h, config, generation, err);
	if (e < 0)
		return e;
	if (!in->tokenizer)
		return fill_bytes(b, in, err);
	e = json_parse(&root, FILE_NAME, in->tokenizer, in->tokenizer_bytes, err);
	if (e < 0)
		return e;
	p.object = root;
	r.text = calloc(r.n_vocab, sizeof(*r.text));
	r.added = calloc(r.n_vocab, sizeof(*r.added));
	if (!r.text || !r.added)
		return -ENOMEM;
	e = check_normalizer(&p, err);
	e = e ?: read_pre_tokenizer(&r, &p, err);
	e = e ?: read_model(&r, &p, err);
	e = e ?: read_vocab(&r, err);
	e = e ?: read_added(&r, &p, err);
	e = e ?: append_tokens(b, &r, err);
	e = e ?: append_merges(b, &r, err);
	e = e ?: read_config(&b->h, &r, in, &v3_chat, err);
	if (e < 0)
		return e;
	find_control_ids(&b->h, &r, v3_chat);
	return 0;
}
