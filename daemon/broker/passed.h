#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A prompt that came as a sealed memfd. Its seals and size are checked, its bytes are copied once and
 * only the copy is parsed; the descriptor is never mapped. */
#include <stddef.h>

struct error;

/**
 * passed_check() - a memfd of exactly @n bytes that nobody can change any more
 * Return: 0, or -EINVAL with a sentence. Does not block. Thread: any.
 */
int passed_check(int fd, size_t n, struct error *err);
/** passed_copy() - its first @n bytes. Return: 0, or -EINVAL with a sentence. Thread: any. */
int passed_copy(int fd, void *ret, size_t n, struct error *err);
