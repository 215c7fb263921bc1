/* SPDX-License-Identifier: Apache-2.0 */
/* The header is JSON of one fixed shape, so a scanner of that shape reads it: no recursion, no tree, no
 * memory but one record for each tensor, and duplicate keys show when the names are sorted. */
#include "worker/load/safetensors.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "worker/load/files.h"

static const struct {
	const char *name;
	uint32_t bytes;
} dtypes[_ST_DTYPE_MAX] = {
	[ST_UNKNOWN] = {"an unknown type", 0},
	[ST_BOOL] = {"BOOL", 1},
	[ST_U8] = {"U8", 1},
	[ST_I8] = {"I8", 1},
	[ST_F8_E5M2] = {"F8_E5M2", 1},
	[ST_F8_E4M3] = {"F8_E4M3", 1},
	[ST_I16] = {"I16", 2},
	[ST_U16] = {"U16", 2},
	[ST_F16] = {"F16", 2},
	[ST_BF16] = {"BF16", 2},
	[ST_I32] = {"I32", 4},
	[ST_U32] = {"U32", 4},
	[ST_F32] = {"F32", 4},
	[ST_F64] = {"F64", 8},
	[ST_I64] = {"I64", 8},
	[ST_U64] = {"U64", 8},
};

const char *st_dtype_name(uint8_t dtype)
{
	return dtypes[dtype < _ST_DTYPE_MAX ? dtype : ST_UNKNOWN].name;
}

uint32_t st_dtype_bytes(uint8_t dtype)
{
	return dtypes[dtype < _ST_DTYPE_MAX ? dtype : ST_UNKNOWN].bytes;
}

struct scan {
	const char *file;
	char *begin, *p, *end;
	struct error *err;
};

static int wrong(const struct scan *s, const char *what)
{
	return error_set(s->err, -EBADMSG, "%s: header byte %zu: %s", s->file,
			 (size_t)(s->p - s->begin), what);
}

static void skip_space(struct scan *s)
{
	while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
		s->p++;
}

/* Return: whether @c stood there (and was passed). */
static bool take(struct scan *s, char c)
{
	skip_space(s);
	if (s->p == s->end || *s->p != c)
		return false;
	s->p++;
	return true;
}

static int hex4(const char *p, const char *end, uint32_t *ret)
{
	uint32_t x = 0;

	if (end - p < 4)
		return -EBADMSG;
	for (int i = 0; i < 4; i++) {
		char c = p[i];

		if (c >= '0' && c <= '9')
			x = x * 16 + (uint32_t)(c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			x = x * 16 + (uint32_t)((c | 0x20) - 'a' + 10);
		else
			return -EBADMSG;
	}
	*ret = x;
	return 0;
}

static char *put_utf8(char *o, uint32_t c)
{
	if (c < 0x80) {
		*o++ = (char)c;
	} else if (c < 0x800) {
		*o++ = (char)(0xc0 | c >> 6);
		*o++ = (char)(0x80 | (c & 0x3f));
	} else if (c < 0x10000) {
		*o++ = (char)(0xe0 | c >> 12);
		*o++ = (char)(0x80 | (c >> 6 & 0x3f));
		*o++ = (char)(0x80 | (c & 0x3f));
	} else {
		*o++ = (char)(0xf0 | c >> 18);
		*o++ = (char)(0x80 | (c >> 12 & 0x3f));
		*o++ = (char)(0x80 | (c >> 6 & 0x3f));
		*o++ = (char)(0x80 | (c & 0x3f));
	}
	return o;
}

/* After "\u": one code point, from a surrogate pair if need be. Written over the escape itself. */
static int take_unicode(struct scan *s, char **o)
{
	uint32_t c, low;

	if (hex4(s->p, s->end, &c) < 0)
		return wrong(s, "want four hexadecimal digits");
	s->p += 4;
	if (c >= 0xd800 && c < 0xdc00) {
		if (s->end - s->p < 6 || s->p[0] != '\\' || s->p[1] != 'u' ||
		    hex4(s->p + 2, s->end, &low) < 0 || low < 0xdc00 || low >= 0xe000)
			return wrong(s, "half a surrogate pair");
		s->p += 6;
		c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
	} else if (c >= 0xdc00 && c < 0xe000) {
		return wrong(s, "half a surrogate pair");
	}
	if (c == 0)
		return wrong(s, "a 0 in a string");
	*o = put_utf8(*o, c);
	return 0;
}

/* A string, decoded where it stands (never longer than it was) and ended with a 0. */
static int take_string(struct scan *s, char **ret)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	char *o;

	if (!take(s, '"'))
		return wrong(s, "want a string");
	*ret = o = s->p;
	while (s->p < s->end && *s->p != '"') {
		const char *escape;
		int r;

		if ((unsigned char)*s->p < 0x20)
			return wrong(s, "a control character in a string");
		if (*s->p != '\\') {
			*o++ = *s->p++;
			continue;
		}
		if (++s->p == s->end)
			break;
		if (*s->p == 'u') {
			s->p++;
			r = take_unicode(s, &o);
			if (r < 0)
				return r;
			continue;
		}
		escape = *s->p ? strchr(from, *s->p) : NULL;
		if (!escape)
			return wrong(s, "an unknown escape");
		*o++ = to[escape - from];
		s->p++;
	}
	if (s->p == s->end)
		return wrong(s, "a string without an end");
	s->p++;
	*o = 0;
	return 0;
}

static int take_uint(struct scan *s, uint64_t *ret)
{
	uint64_t x = 0;
	char *first;

	skip_space(s);
	first = s->p;
	while (s->p < s->end && *s->p >= '0' && *s->p <= '9') {
		if (__builtin_mul_overflow(x, 10u, &x) ||
		    __builtin_add_overflow(x, (uint64_t)(*s->p - '0'), &x))
			return wrong(s, "a number past 64 bits");
		s->p++;
	}
	if (s->p == first || (*first == '0' && s->p - first > 1))
		return wrong(s, "want a whole number");
	if (s->p < s->end && (*s->p == '.' || *s->p == 'e' || *s->p == 'E'))
		return wrong(s, "want a whole number");
	*ret = x;
	return 0;
}

/* Up to @max numbers in brackets. Return: how many. */
static int take_uints(struct scan *s, uint64_t *ret, uint32_t max, const char *too_many)
{
	uint32_t n = 0;
	int r;

	if (!take(s, '['))
		return wrong(s, "want an array");
	if (take(s, ']'))
		return 0;
	do {
		if (n == max)
			return wrong(s, too_many);
		r = take_uint(s, &ret[n++]);
		if (r < 0)
			return r;
	} while (take(s, ','));
	return take(s, ']') ? (int)n : wrong(s, "want , or ]");
}

static uint8_t dtype_of(const char *name)
{
	for (uint8_t i = ST_UNKNOWN + 1; i < _ST_DTYPE_MAX; i++)
		if (strcmp(name, dtypes[i].name) == 0)
			return i;
	return ST_UNKNOWN;
}

/* {"dtype": .., "shape": [..], "data_offsets": [.., ..]}, in any order, each once */
static int take_tensor(struct scan *s, struct st_tensor *t)
{
	unsigned seen = 0;
	uint64_t offsets[2];
	char *key, *text;
	int r;

	if (!take(s, '{'))
		return wrong(s, "want an object");
	do {
		unsigned bit;

		r = take_string(s, &key);
		if (r < 0)
			return r;
		if (!take(s, ':'))
			return wrong(s, "want :");
		if (strcmp(key, "dtype") == 0) {
			bit = 1;
			r = take_string(s, &text);
			t->dtype = r < 0 ? ST_UNKNOWN : dtype_of(text);
		} else if (strcmp(key, "shape") == 0) {
			bit = 2;
			r = take_uints(s, t->dims, SAFETENSORS_DIMS_MAX, "more dimensions than 8");
			t->n_dims = (uint8_t)MAX(r, 0);
		} else if (strcmp(key, "data_offsets") == 0) {
			bit = 4;
			r = take_uints(s, offsets, 2, "want two offsets");
			if (r >= 0 && r != 2)
				return wrong(s, "want two offsets");
		} else {
			return wrong(s, "want dtype, shape or data_offsets");
		}
		if (r < 0)
			return r;
		if (seen & bit)
			return wrong(s, "a key that was there before");
		seen |= bit;
	} while (take(s, ','));
	if (!take(s, '}'))
		return wrong(s, "want , or }");
	if (seen != 7)
		return wrong(s, "a tensor without dtype, shape or data_offsets");
	t->begin = offsets[0];
	t->end = offsets[1];
	return 0;
}

static int take_metadata(struct scan *s)
{
	char *text;
	int r;

	if (!take(s, '{'))
		return wrong(s, "want an object");
	if (take(s, '}'))
		return 0;
	do {
		r = take_string(s, &text);
		if (r < 0)
			return r;
		if (!take(s, ':'))
			return wrong(s, "want :");
		r = take_string(s, &text);
		if (r < 0)
			return r;
	} while (take(s, ','));
	return take(s, '}') ? 0 : wrong(s, "want , or }");
}

static int add_tensor(struct scan *s, struct safetensors *st, uint32_t *n_alloc, const char *name)
{
	if (st->n_tensors == SAFETENSORS_TENSORS_MAX)
		return wrong(s, "more tensors than 200000");
	if (st->n_tensors == *n_alloc) {
		uint32_t n = MAX(64u, *n_alloc * 2);
		struct st_tensor *p = realloc(st->tensors, sizeof(*p) * n);

		if (!p)
			return -ENOMEM;
		st->tensors = p;
		*n_alloc = n;
	}
	st->tensors[st->n_tensors] = (struct st_tensor){.name = name};
	return take_tensor(s, &st->tensors[st->n_tensors++]);
}

static int take_header(struct scan *s, struct safetensors *st)
{
	bool metadata = false;
	uint32_t n_alloc = 0;
	char *name;
	int r;

	if (s->p == s->end || *s->p != '{')
		return wrong(s, "want {");
	s->p++;
	if (!take(s, '}')) {
		do {
			r = take_string(s, &name);
			if (r < 0)
				return r;
			if (!take(s, ':'))
				return wrong(s, "want :");
			if (strcmp(name, "__metadata__") == 0) {
				if (metadata)
					return wrong(s, "__metadata__ for the second time");
				metadata = true;
				r = take_metadata(s);
			} else {
				r = add_tensor(s, st, &n_alloc, name);
			}
			if (r < 0)
				return r;
		} while (take(s, ','));
		if (!take(s, '}'))
			return wrong(s, "want , or }");
	}
	for (; s->p < s->end; s->p++)
		if (*s->p != ' ')
			return wrong(s, "something after the JSON");
	return 0;
}

/* Well-formed UTF-8 as Unicode table 3-7 has it. Return: where it is not, or @n. */
static size_t utf8_valid_up_to(const unsigned char *p, size_t n)
{
	size_t i = 0;

	while (i < n) {
		unsigned char c = p[i];
		unsigned low = 0x80, high = 0xbf, more;

		if (c < 0x80) {
			i++;
			continue;
		}
		if (c >= 0xc2 && c <= 0xdf)
			more = 1;
		else if (c >= 0xe0 && c <= 0xef)
			more = 2;
		else if (c >= 0xf0 && c <= 0xf4)
			more = 3;
		else
			return i;
		if (c == 0xe0)
			low = 0xa0;
		else if (c == 0xed)
			high = 0x9f;
		else if (c == 0xf0)
			low = 0x90;
		else if (c == 0xf4)
			high = 0x8f;
		if (n - i <= more || p[i + 1] < low || p[i + 1] > high)
			return i;
		for (unsigned k = 2; k <= more; k++)
			if ((p[i + k] & 0xc0) != 0x80)
				return i;
		i += more + 1;
	}
	return n;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return x->end < y->end ? -1 : x->end > y->end;
}

/* qsort() wants an array even where there is nothing to sort. */
static void sort(struct safetensors *st, int (*compare)(const void *, const void *))
{
	if (st->n_tensors)
		qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), compare);
}

/* Every tensor has the bytes its shape needs, and together they are the data part, once. */
static int check_places(const char *file, struct safetensors *st, struct error *err)
{
	uint64_t at = 0;
	char shown[260], shape[128];

	sort(st, by_place);
	for (uint32_t i = 0; i < st->n_tensors; i++) {
		const struct st_tensor *t = &st->tensors[i];
		uint64_t want = st_dtype_bytes(t->dtype);
		bool overflow = false;

		log_escape(shown, sizeof(shown), t->name, strlen(t->name));
		st_shape_text(shape, sizeof(shape), t->dims, t->n_dims);
		for (uint32_t k = 0; k < t->n_dims; k++)
			overflow |= __builtin_mul_overflow(want, t->dims[k], &want);
		if (overflow)
			return error_set(err, -EBADMSG, "%s: %s: shape %s is past 64 bits", file,
					 shown, shape);
		if (t->begin > t->end || t->end > st->data_bytes)
			return error_set(
				err, -EBADMSG, "%s: %s: bytes %llu to %llu, but the data has %llu",
				file, shown, (unsigned long long)t->begin,
				(unsigned long long)t->end, (unsigned long long)st->data_bytes);
		if (t->dtype != ST_UNKNOWN && t->end - t->begin != want)
			return error_set(err, -EBADMSG,
					 "%s: %s: %llu bytes, but %s of shape %s has %llu", file,
					 shown, (unsigned long long)(t->end - t->begin),
					 st_dtype_name(t->dtype), shape, (unsigned long long)want);
		if (t->begin != at)
			return error_set(err, -EBADMSG,
					 "%s: %s: begins at byte %llu, want %llu (%s)", file, shown,
					 (unsigned long long)t->begin, (unsigned long long)at,
					 t->begin < at ? "overlap" : "hole");
		at = t->end;
	}
	if (at != st->data_bytes)
		return error_set(err, -EBADMSG, "%s: tensors end at byte %llu of %llu", file,
				 (unsigned long long)at, (unsigned long long)st->data_bytes);
	return 0;
}

int safetensors_scan(struct safetensors **ret, const char *file_name, char *header, size_t n,
		     uint64_t data_bytes, struct error *err)
{
	_cleanup_(safetensors_freep) struct safetensors *st = calloc(1, sizeof(*st));
	struct scan s = {file_name, header, header, header + n, err};
	size_t valid;
	int r;

	if (!st) {
		free(header);
		return -ENOMEM;
	}
	st->header = header;
	st->data_bytes = data_bytes;
	valid = utf8_valid_up_to((const unsigned char *)header, n);
	if (valid != n)
		return error_set(err, -EBADMSG, "%s: header byte %zu is not UTF-8", file_name,
				 valid);
	r = take_header(&s, st);
	if (r < 0)
		return r;
	r = check_places(file_name, st, err);
	if (r < 0)
		return r;
	sort(st, by_name);
	for (uint32_t i = 1; i < st->n_tensors; i++)
		if (strcmp(st->tensors[i - 1].name, st->tensors[i].name) == 0) {
			char shown[260];

			log_escape(shown, sizeof(shown), st->tensors[i].name,
				   strlen(st->tensors[i].name));
			return error_set(err, -EBADMSG, "%s: %s: there twice", file_name, shown);
		}
	*ret = TAKE_PTR(st);
	return 0;
}

int safetensors_open(struct safetensors **ret, const struct file *f, struct error *err)
{
	uint8_t head[8];
	uint64_t n = 0;
	char *header;
	int r;

	if (f->size < sizeof(head))
		return error_set(err, -EBADMSG, "%s: %llu bytes, want at least 8", f->name,
				 (unsigned long long)f->size);
	r = file_read(f, 0, head, sizeof(head), err);
	if (r < 0)
		return r;
	for (int i = 7; i >= 0; i--)
		n = n << 8 | head[i];
	if (n > SAFETENSORS_HEADER_MAX)
		return error_set(err, -EBADMSG, "%s: header of %llu bytes, want at most %u",
				 f->name, (unsigned long long)n, SAFETENSORS_HEADER_MAX);
	if (n > f->size - sizeof(head))
		return error_set(err, -EBADMSG, "%s: header of %llu bytes in a file of %llu",
				 f->name, (unsigned long long)n, (unsigned long long)f->size);
	header = malloc(n + 1);
	if (!header)
		return -ENOMEM;
	r = file_read(f, sizeof(head), header, n, err);
	if (r < 0) {
		free(header);
		return r;
	}
	r = safetensors_scan(ret, f->name, header, n, f->size - sizeof(head) - n, err);
	if (r < 0)
		return r;
	(*ret)->file = f;
	(*ret)->data_offset = sizeof(head) + n;
	return 0;
}

struct safetensors *safetensors_free(struct safetensors *s)
{
	if (!s)
		return NULL;
	free(s->tensors);
	free(s->header);
	free(s);
	return NULL;
}

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
	struct st_tensor key = {.name = name};

	if (!s->n_tensors)
		return NULL;
	return bsearch(&key, s->tensors, s->n_tensors, sizeof(key), by_name);
}

const char *st_shape_text(char *buf, size_t n, const uint64_t *dims, uint32_t n_dims)
{
	size_t o = (size_t)snprintf(buf, n, "[");

	for (uint32_t i = 0; i < n_dims && o + 24 < n; i++)
		o += (size_t)snprintf(buf + o, n - o, i ? ", %llu" : "%llu",
				      (unsigned long long)dims[i]);
	snprintf(buf + o, n - o, "]");
	return buf;
}

void st_to_f32(uint8_t dtype, const void *src, size_t n, float *ret)
{
	const uint8_t *p = src;

	if (dtype == ST_F32) {
		memcpy(ret, src, n * sizeof(*ret));
		return;
	}
	for (size_t i = 0; i < n; i++) {
		uint32_t bits = (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24;

		memcpy(&ret[i], &bits, sizeof(bits));
	}
}
