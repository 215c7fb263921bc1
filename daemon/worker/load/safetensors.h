#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors files, read strictly: a header whose every number has been checked, and
 * tensors as rows of f32.
 *
 *   u64 N │ N bytes of JSON │ data: the tensors, one after the other, no gap, to the end of the file */
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct error;
struct file;

#define SAFETENSORS_HEADER_MAX  (16u << 20)
#define SAFETENSORS_TENSORS_MAX 200000u
#define SAFETENSORS_DIMS_MAX    8u

enum st_dtype {
	ST_UNKNOWN, /* a name this reader has no size for */
	ST_BOOL,
	ST_U8,
	ST_I8,
	ST_F8_E5M2,
	ST_F8_E4M3,
	ST_I16,
	ST_U16,
	ST_F16,
	ST_BF16,
	ST_I32,
	ST_U32,
	ST_F32,
	ST_F64,
	ST_I64,
	ST_U64,
	_ST_DTYPE_MAX
};

struct st_tensor {
	const char *name; /* UTF-8 */
	uint8_t dtype;    /* enum st_dtype */
	uint8_t n_dims;
	uint64_t dims[SAFETENSORS_DIMS_MAX];
	uint64_t begin, end; /* bytes of the data part */
};

struct safetensors {
	const struct file *file; /* must outlive this */
	uint64_t data_offset, data_bytes;
	struct st_tensor *tensors; /* by name, as strcmp() orders them */
	uint32_t n_tensors;
	char *header; /* names point into it */
};

/**
 * safetensors_scan() - check a header
 * @header:     @n bytes, changed in place; a member of the result afterwards (freed with it)
 * @data_bytes: what follows it in the file
 * Return: 0; -EBADMSG with a sentence that names the file; -ENOMEM. @header is freed on failure.
 */
int safetensors_scan(struct safetensors **ret, const char *file_name, char *header, size_t n,
		     uint64_t data_bytes, struct error *err);
/** safetensors_open() - read and check the header of @f. Return: as above, or as file_read(). */
int safetensors_open(struct safetensors **ret, const struct file *f, struct error *err);
struct safetensors *safetensors_free(struct safetensors *s);
DEFINE_CLEANUP(struct safetensors *, safetensors_free);

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name);
const char *st_dtype_name(uint8_t dtype);
/** st_dtype_bytes() - of one element; 0 for ST_UNKNOWN. */
uint32_t st_dtype_bytes(uint8_t dtype);
/** st_shape_text() - "[96, 64]"; returns @buf. */
const char *st_shape_text(char *buf, size_t n, const uint64_t *dims, uint32_t n_dims);

/** st_to_f32() - @n numbers of an F32 or BF16 tensor. */
void st_to_f32(uint8_t dtype, const void *src, size_t n, float *ret);
