#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One sentence about what went wrong, written once, where the cause is known. */
#include <stdarg.h>
#include <stddef.h>

/* Long enough for a path and two numbers; longer sentences are cut, never overrun. */
#define ERROR_TEXT_MAX 480

/* Plain data: callers put it on the stack, `struct error err = {};`. */
struct error {
	int code;                  /* negative errno, 0 while nothing was set */
	char text[ERROR_TEXT_MAX]; /* says what was got and what was wanted */
};

/**
 * error_set() - describe a failure
 * @err:  where to; NULL drops the sentence
 * @code: negative errno, which %m in @fmt spells out
 *
 * Return: @code, so that `return error_set(err, -EINVAL, ...)` reads as one step.
 */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int error_setv(struct error *err, int code, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));
/** error_prefix() - put "fmt: " before a sentence that is already there; returns err->code. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** error_text() - the sentence, or the name of the errno where there is none. */
const char *error_text(const struct error *err, int code);
