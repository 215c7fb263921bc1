/* SPDX-License-Identifier: Apache-2.0 */
/* Published vocabularies as model images, read the short way: the files are known to be good. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "text/utf8.h"
#include "text_image.h"

static void must(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "test data: %s\n", what);
	abort();
}

const char *text_data_dir(void)
{
	const char *dir = getenv("DSD_TEST_DATA");

	return dir ? dir : TEXT_SOURCE_ROOT "/../shared/data";
}

char *text_data_read(const char *dir, const char *name, size_t *ret_n)
{
	char path[4096], *data;
	FILE *f;
	long n;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	if (!f)
		return NULL;
	must(fseek(f, 0, SEEK_END) == 0, path);
	n = ftell(f);
	must(n >= 0 && fseek(f, 0, SEEK_SET) == 0, path);
	data = malloc((size_t)n + 1);
	must(data && fread(data, 1, (size_t)n, f) == (size_t)n, path);
	fclose(f);
	data[n] = 0;
	*ret_n = (size_t)n;
	return data;
}

/* GPT-2's visible stand-ins for bytes: printable Latin-1 stands for itself, the other 68 bytes, in order,
 * for U+0100 to U+0143. Returns the number of bytes, or -1 when a character stands for none. */
static int visible_to_bytes(const char *text, size_t n, uint8_t *ret)
{
	int n_bytes = 0;

	for (size_t at = 0; at < n;) {
		struct utf8_step c = utf8_step((const uint8_t *)text + at, n - at);
		uint32_t hidden = 0;

		if (!c.valid)
			return -1;
		at += c.n;
		for (unsigned b = 0; b < 256; b++) {
			bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;

			if (c.cp == (shown ? b : 0x100 + hidden)) {
				ret[n_bytes++] = (uint8_t)b;
				hidden = UINT32_MAX;
				break;
			}
			hidden += !shown;
		}
		if (hidden != UINT32_MAX)
			return -1;
	}
	return n_bytes;
}

/* Token texts to ids, for merges that are given as text. */
struct names {
	struct json_object *ids;
};

static uint32_t name_id(const struct names *names, const char *name)
{
	struct json_object *id;

	must(json_object_object_get_ex(names->ids, name, &id), name);
	return (uint32_t)json_object_get_int64(id);
}

/* "left right": the separator is the only space, since tokens have none in their visible form. */
static void add_merge(struct text_image *t, const struct names *names, const char *merge)
{
	char left[1024], right[1024], result[2048];
	const char *space = strchr(merge, ' ');

	must(space && (size_t)(space - merge) < sizeof(left) && strlen(space) < sizeof(right),
	     merge);
	snprintf(left, sizeof(left), "%.*s", (int)(space - merge), merge);
	snprintf(right, sizeof(right), "%s", space + 1);
	snprintf(result, sizeof(result), "%s%s", left, right);
	text_image_merge(t, name_id(names, left), name_id(names, right), name_id(names, result));
}

static uint32_t id_of(struct text_image *t, const char *text)
{
	for (uint32_t i = 0; i < t->n_added; i++) {
		uint32_t id = t->added[i], n = t->offset[id + 1] - t->offset[id];

		if (n == strlen(text) && memcmp(t->bytes + t->offset[id], text, n) == 0)
			return id;
	}
	return IMAGE_NONE;
}

static void name_control_ids(struct text_image *t)
{
	struct image_header *h = &t->b.h;

	h->bos = id_of(t, "<｜begin▁of▁sentence｜>");
	h->eos[h->n_eos++] = id_of(t, "<｜end▁of▁sentence｜>");
	h->token_user = id_of(t, "<｜User｜>");
	h->token_assistant = id_of(t, "<｜Assistant｜>");
	h->add_bos = 1;
}

struct text_image *text_image_v3(void)
{
	size_t n;
	char *data = text_data_read(text_data_dir(), "tokenizer-deepseek-v3/tokenizer.json", &n);
	struct json_object *root, *added, *model, *merges;
	const char **text, **added_text;
	bool *special;
	struct names names;
	struct text_image *t;
	uint32_t n_ids = 0, n_all = 129280;

	if (!data)
		return NULL;
	root = json_tokener_parse(data);
	must(root && json_object_object_get_ex(root, "added_tokens", &added) &&
		     json_object_object_get_ex(root, "model", &model) &&
		     json_object_object_get_ex(model, "vocab", &names.ids) &&
		     json_object_object_get_ex(model, "merges", &merges),
	     "tokenizer.json");
	text = calloc(n_all, sizeof(*text));
	added_text = calloc(n_all, sizeof(*added_text));
	special = calloc(n_all, sizeof(*special));
	must(text && added_text && special, "memory");
	json_object_object_foreach(names.ids, key, value)
	{
		text[json_object_get_int64(value)] = key;
	}
	for (size_t i = 0; i < json_object_array_length(added); i++) {
		struct json_object *a = json_object_array_get_idx(added, i);
		int64_t id = json_object_get_int64(json_object_object_get(a, "id"));

		added_text[id] = json_object_get_string(json_object_object_get(a, "content"));
		special[id] = json_object_get_boolean(json_object_object_get(a, "special"));
	}
	t = text_image_new(IMAGE_SPLIT_V3);
	for (n_ids = 0; n_ids < n_all; n_ids++) {
		uint8_t bytes[IMAGE_TOKEN_LEN_MAX];
		const char *a = added_text[n_ids], *s = text[n_ids];
		int n_bytes;

		if (a) {
			text_image_token(t, a, strlen(a),
					 IMAGE_TOKEN_ADDED |
						 (special[n_ids] ? IMAGE_TOKEN_SPECIAL : 0));
			continue;
		}
		n_bytes = s ? visible_to_bytes(s, strlen(s), bytes) : 0;
		must(n_bytes >= 0, s);
		text_image_token(t, bytes, (size_t)n_bytes, s ? 0 : IMAGE_TOKEN_UNUSED);
	}
	for (size_t i = 0; i < json_object_array_length(merges); i++)
		add_merge(t, &names, json_object_get_string(json_object_array_get_idx(merges, i)));
	t->b.h.renderer = IMAGE_RENDER_V3;
	name_control_ids(t);
	text_image_finish(t);
	json_object_put(root);
	free(text);
	free(added_text);
	free(special);
	free(data);
	return t;
}

/* A cursor over a GGUF file. */
struct gguf {
	const uint8_t *p;
	size_t n, at;
};

static uint64_t take(struct gguf *g, unsigned n_bytes)
{
	uint64_t x = 0;

	must(g->n - g->at >= n_bytes, "gguf ends early");
	memcpy(&x, g->p + g->at, n_bytes);
	g->at += n_bytes;
	return x;
}

static const char *take_string(struct gguf *g, uint64_t *ret_n)
{
	const char *s;

	*ret_n = take(g, 8);
	must(*ret_n <= g->n - g->at, "gguf string");
	s = (const char *)g->p + g->at;
	g->at += *ret_n;
	return s;
}

/* Bytes of a scalar of each GGUF type; strings (8) and arrays (9) are read otherwise. */
static const uint8_t gguf_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static void skip_values(struct gguf *g, uint64_t type, uint64_t n)
{
	uint64_t n_string;

	must(type < sizeof(gguf_bytes) && type != 9, "gguf type");
	for (uint64_t i = 0; i < n; i++) {
		if (type == 8)
			take_string(g, &n_string);
		else
			take(g, gguf_bytes[type]);
	}
}

static bool is_key(const char *s, uint64_t n, const char *key)
{
	return n == strlen(key) && memcmp(s, key, n) == 0;
}

struct text_image *text_image_v2(void)
{
	size_t n;
	char *data = text_data_read(text_data_dir(), "vocab-deepseek-llm/vocab.gguf", &n);
	struct gguf g = {(const uint8_t *)data, n, 0}, tokens = {}, types = {}, merges = {};
	uint64_t n_tokens = 0, n_merges = 0, n_keys, n_text;
	struct names names = {json_object_new_object()};
	struct text_image *t;

	if (!data) {
		json_object_put(names.ids);
		return NULL;
	}
	must(take(&g, 4) == 0x46554747 && take(&g, 4) >= 2, "gguf magic");
	take(&g, 8);
	n_keys = take(&g, 8);
	for (uint64_t i = 0; i < n_keys; i++) {
		uint64_t n_key, type, count = 1;
		const char *key = take_string(&g, &n_key);

		type = take(&g, 4);
		if (type == 9) {
			type = take(&g, 4);
			count = take(&g, 8);
		}
		if (is_key(key, n_key, "tokenizer.ggml.tokens")) {
			tokens = g;
			n_tokens = count;
		} else if (is_key(key, n_key, "tokenizer.ggml.token_type")) {
			types = g;
		} else if (is_key(key, n_key, "tokenizer.ggml.merges")) {
			merges = g;
			n_merges = count;
		}
		skip_values(&g, type, count);
	}
	must(n_tokens && n_merges && types.p, "gguf vocabulary");
	t = text_image_new(IMAGE_SPLIT_V2);
	for (uint64_t i = 0; i < n_tokens; i++) {
		enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };
		const char *s = take_string(&tokens, &n_text);
		uint64_t type = take(&types, 4);
		uint8_t bytes[IMAGE_TOKEN_LEN_MAX];
		char *name = strndup(s, n_text);
		int n_bytes;

		must(name != NULL, "memory");
		if (type == USER_DEFINED && strncmp(name, "[PAD", 4) == 0)
			type = UNUSED; /* rows that only fill the embedding up */
		if (type == CONTROL || type == USER_DEFINED) {
			text_image_token(t, s, n_text,
					 IMAGE_TOKEN_ADDED |
						 (type == CONTROL ? IMAGE_TOKEN_SPECIAL : 0));
		} else if (type == UNUSED) {
			text_image_token(t, "", 0, IMAGE_TOKEN_UNUSED);
		} else {
			n_bytes = visible_to_bytes(s, n_text, bytes);
			must(n_bytes > 0, name);
			text_image_token(t, bytes, (size_t)n_bytes, 0);
			json_object_object_add(names.ids, name, json_object_new_int64((int64_t)i));
		}
		free(name);
	}
	for (uint64_t i = 0; i < n_merges; i++) {
		const char *s = take_string(&merges, &n_text);
		char *merge = strndup(s, n_text);

		must(merge != NULL, "memory");
		add_merge(t, &names, merge);
		free(merge);
	}
	t->b.h.renderer = IMAGE_RENDER_V2;
	name_control_ids(t);
	text_image_finish(t);
	json_object_put(names.ids);
	free(data);
	return t;
}
