#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Where the text of a request comes from: arguments, or standard input byte for byte. */
#include <stddef.h>
#include <stdint.h>

struct text {
	char *data; /* malloc'ed */
	size_t bytes;
};

/**
 * prompt_read() - arguments joined by a space; standard input if there is none or the one is "-"
 *
 * Return: 0, or an exit status after a sentence. Free ret->data.
 */
int prompt_read(char **args, size_t n_args, struct text *ret);
/**
 * prompt_ids() - numbers divided by commas or white space
 * @name: what to call them in a sentence
 *
 * Return: 0, or an exit status after a sentence. Free *ret.
 */
int prompt_ids(const char *name, const struct text *text, uint32_t **ret, size_t *ret_n);
