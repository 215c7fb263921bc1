/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/load/weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/error.h"
#include "base/log.h"
#include "worker/load/digest.h"
#include "worker/load/files.h"
#include "worker/load/json.h"
#include "worker/load/synthetic.h"

#define WINDOW_BYTES (1u << 20)
#define ONE_FILE     "model.safetensors"

struct weights {
	bool synthetic;
	uint64_t seed;
	struct safetensors **shards;
	uint32_t n_shards;
	struct weights_entry *entries; /* by name */
	uint32_t n_entries;

	/* The tensor that is being read. */
	char *current_name;
	struct weights_entry *current;
	struct synthetic_tensor made;
	uint8_t *window; /* bytes [at, at + n_window) of the tensor */
	uint64_t at, n_window;
	XXH3_state_t *hash;
	uint64_t n_hashed; /* bytes */
};

struct weights *weights_free(struct weights *w)
{
	if (!w)
		return NULL;
	for (uint32_t i = 0; i < w->n_shards; i++)
		safetensors_free(w->shards[i]);
	free(w->shards);
	free(w->entries);
	free(w->current_name);
	free(w->window);
	XXH3_freeState(w->hash);
	free(w);
	return NULL;
}

static struct weights *weights_new(void)
{
	_cleanup_(weights_freep) struct weights *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->window = malloc(WINDOW_BYTES);
	w->hash = XXH3_createState();
	return w->window && w->hash ? TAKE_PTR(w) : NULL;
}

static bool is_shard(const char *name)
{
	size_t n = strlen(name);

	return n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
}

bool weights_are_there(const struct files *files)
{
	for (uint32_t i = 0; i < files->n; i++)
		if (is_shard(files->items[i].name))
			return true;
	return false;
}

static int open_shards(struct weights *w, const struct files *files, struct error *err)
{
	uint64_t n_bytes = 0, n_tensors = 0; /* of all headers: each is held */
	int r;

	w->shards = calloc((size_t)files->n + 1, sizeof(*w->shards));
	if (!w->shards)
		return -ENOMEM;
	for (uint32_t i = 0; i < files->n; i++) {
		if (!is_shard(files->items[i].name))
			continue;
		r = safetensors_open(&w->shards[w->n_shards], &files->items[i], err);
		if (r < 0)
			return r;
		n_bytes += w->shards[w->n_shards]->data_offset;
		n_tensors += w->shards[w->n_shards]->n_tensors;
		w->n_shards++;
		if (n_bytes > WEIGHTS_HEADERS_MAX || n_tensors > SAFETENSORS_TENSORS_MAX)
			return error_set(
				err, -EBADMSG,
				"the headers of %u .safetensors files have %llu bytes and %llu "
				"tensors: want at most %u and %u",
				w->n_shards, (unsigned long long)n_bytes,
				(unsigned long long)n_tensors, WEIGHTS_HEADERS_MAX,
				SAFETENSORS_TENSORS_MAX);
	}
	return w->n_shards ? 0 : error_set(err, -ENOENT, "no .safetensors file");
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct weights_entry *)a)->name,
		      ((const struct weights_entry *)b)->name);
}

static int add_one_file(struct weights *w, struct error *err)
{
	const struct safetensors *st = w->shards[0];

	if (w->n_shards > 1)
		return error_set(err, -EINVAL, "%u .safetensors files and no " WEIGHTS_INDEX_NAME,
				 w->n_shards);
	w->entries = calloc((size_t)st->n_tensors + 1, sizeof(*w->entries));
	if (!w->entries)
		return -ENOMEM;
	for (uint32_t i = 0; i < st->n_tensors; i++)
		w->entries[i] = (struct weights_entry){
			.name = st->tensors[i].name, .st = st, .tensor = &st->tensors[i]};
	w->n_entries = st->n_tensors;
	return 0;
}

static const struct safetensors *find_shard(const struct weights *w, const char *name)
{
	for (uint32_t i = 0; i < w->n_shards; i++)
		if (strcmp(w->shards[i]->file->name, name) == 0)
			return w->shards[i];
	return NULL;
}

/* {"weight_map": {tensor: file}}: the map decides where a tensor is; its sizes are not believed. */
static int add_indexed(struct weights *w, const struct file *index, struct error *err)
{
	_cleanup_(json_unrefp) struct json_object *root = NULL;
	_cleanup_(freep) char *text = NULL;
	struct json_place p = {.file = index->name, .path = ""};
	struct json_object *map;
	char shown[260];
	size_t n;
	int r;

	r = file_slurp(index, WEIGHTS_INDEX_MAX, &text, &n, err);
	if (r < 0)
		return r;
	r = json_parse(&root, index->name, text, n, err);
	if (r < 0)
		return r;
	p.object = root;
	r = json_get_object(&p, "weight_map", JSON_REQUIRED, &map, err);
	if (r < 0)
		return r;
	n = (size_t)json_object_object_length(map);
	if (n > SAFETENSORS_TENSORS_MAX)
		return error_set(err, -EINVAL, "%s: %zu tensors, want at most %u", index->name, n,
				 SAFETENSORS_TENSORS_MAX);
	w->entries = calloc(n + 1, sizeof(*w->entries));
	if (!w->entries)
		return -ENOMEM;
	json_object_object_foreach(map, name, value)
	{
		struct weights_entry *e = &w->entries[w->n_entries];
		const char *file = json_object_is_type(value, json_type_string)
					   ? json_object_get_string(value)
					   : "";

		e->st = find_shard(w, file);
		e->tensor = e->st ? safetensors_find(e->st, name) : NULL;
		log_escape(shown, sizeof(shown), name, strlen(name));
		if (!e->st)
			return error_set(err, -EINVAL, "%s: %s: its file is not there", index->name,
					 shown);
		if (!e->tensor)
			return error_set(err, -EINVAL, "%s: %s: is not in %s", index->name, shown,
					 e->st->file->name);
		e->name = e->tensor->name;
		w->n_entries++;
	}
	/* entries is never NULL here: it was made with one to spare. */
	qsort(w->entries, w->n_entries, sizeof(*w->entries), by_name);
	return 0;
}

int weights_open(struct weights **ret, const struct files *files, struct error *err)
{
	_cleanup_(weights_freep) struct weights *w = weights_new();
	const struct file *index = files_find(files, WEIGHTS_INDEX_NAME);
	int r;

	if (!w)
		return -ENOMEM;
	r = open_shards(w, files, err);
	if (r < 0)
		return r;
	/* A directory may hold both; the one file is complete by itself. */
	r = index && (w->n_shards > 1 || !find_shard(w, ONE_FILE)) ? add_indexed(w, index, err)
								   : add_one_file(w, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(w);
	return 0;
}

int weights_synthetic(struct weights **ret, uint64_t seed)
{
	struct weights *w = weights_new();

	if (!w)
		return -ENOMEM;
	w->synthetic = true;
	w->seed = seed;
	*ret = w;
	return 0;
}

bool weights_are_synthetic(const struct weights *w)
{
	return w->synthetic;
}

struct weights_entry *weights_entries(struct weights *w, uint32_t *ret_n)
{
	*ret_n = w->n_entries;
	return w->entries;
}

struct weights_entry *weights_find(struct weights *w, const char *name)
{
	struct weights_entry key = {.name = name};

	if (!w->n_entries)
		return NULL;
	return bsearch(&key, w->entries, w->n_entries, sizeof(key), by_name);
}

static int set_current(struct weights *w, const char *name, uint64_t n_in, struct error *err)
{
	if (w->current_name && strcmp(w->current_name, name) == 0)
		return 0;
	free(w->current_name);
	w->current = NULL;
	w->at = w->n_window = w->n_hashed = 0;
	w->current_name = strdup(name);
	if (!w->current_name)
		return -ENOMEM;
	if (w->synthetic) {
		synthetic_init(&w->made, w->seed, name, n_in);
		return 0;
	}
	w->current = weights_find(w, name);
	if (!w->current)
		return error_set(err, -EINVAL, "%s: not there", name);
	if (w->current->tensor->dtype != ST_F32 && w->current->tensor->dtype != ST_BF16)
		return error_set(err, -EINVAL, "%s: %s, want F32 or BF16", name,
				 st_dtype_name(w->current->tensor->dtype));
	XXH3_128bits_reset(w->hash);
	return 0;
}

/* Fills the window from byte @from of the current tensor. */
static int move_window(struct weights *w, uint64_t from, struct error *err)
{
	struct weights_entry *e = w->current;
	uint64_t all = e->tensor->end - e->tensor->begin,
		 n = MIN(all - from, (uint64_t)WINDOW_BYTES);
	int r;

	r = file_read(e->st->file, e->st->data_offset + e->tensor->begin + from, w->window, n, err);
	if (r < 0)
		return r;
	w->at = from;
	w->n_window = n;
	if (e->hashed || from > w->n_hashed || from + n <= w->n_hashed)
		return 0;
	XXH3_128bits_update(w->hash, w->window + (w->n_hashed - from), from + n - w->n_hashed);
	w->n_hashed = from + n;
	if (w->n_hashed == all) {
		XXH128_canonical_t c;

		XXH128_canonicalFromHash(&c, XXH3_128bits_digest(w->hash));
		memcpy(e->hash, c.digest, sizeof(e->hash));
		e->hashed = true;
	}
	return 0;
}

int weights_read(struct weights *w, const char *name, uint64_t n_in, uint64_t first, uint64_t n,
		 float *ret, struct error *err)
{
	uint64_t size, all;
	int r;

	r = set_current(w, name, n_in, err);
	if (r < 0)
		return r;
	if (w->synthetic) {
		synthetic_fill(&w->made, first, n, ret);
		return 0;
	}
	size = st_dtype_bytes(w->current->tensor->dtype);
	all = (w->current->tensor->end - w->current->tensor->begin) / size;
	if (n > all || first > all - n)
		return error_set(err, -EINVAL, "%s: numbers %llu to %llu of %llu", name,
				 (unsigned long long)first, (unsigned long long)(first + n),
				 (unsigned long long)all);
	while (n) {
		uint64_t from = first * size, k;

		/* Windows start at element borders, so an element is never cut. */
		if (from < w->at || from + size > w->at + w->n_window) {
			r = move_window(w, from, err);
			if (r < 0)
				return r;
		}
		k = MIN(n, (w->at + w->n_window - from) / size);
		st_to_f32(w->current->tensor->dtype, w->window + (from - w->at), k, ret);
		first += k;
		ret += k;
		n -= k;
	}
	return 0;
}

void weights_digest(struct weights *w, struct digest *d)
{
	/* The sorted entries stand for the headers: name, type, shape. Where a tensor lies in which
	 * file is no part of what the model is. */
	for (uint32_t i = 0; i < w->n_entries; i++) {
		const struct weights_entry *e = &w->entries[i];

		if (!e->hashed)
			continue;
		digest_add(d, e->name, e->hash, sizeof(e->hash));
		digest_add(d, st_dtype_name(e->tensor->dtype), e->tensor->dims,
			   sizeof(e->tensor->dims[0]) * e->tensor->n_dims);
	}
	if (w->synthetic)
		digest_add(d, "dsd_synthetic", &w->seed, sizeof(w->seed));
}
