/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int error_setv(struct error *err, int code, const char *fmt, va_list ap)
{
	if (!err)
		return code;
	err->code = code;
	errno = -code; /* for %m */
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	return code;
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_setv(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
	char head[ERROR_TEXT_MAX], tail[ERROR_TEXT_MAX];
	va_list ap;

	if (!err)
		return 0;
	va_start(ap, fmt);
	vsnprintf(head, sizeof(head), fmt, ap);
	va_end(ap);
	memcpy(tail, err->text, sizeof(tail));
	snprintf(err->text, sizeof(err->text), "%.200s: %.270s", head, tail);
	return err->code;
}

const char *error_text(const struct error *err, int code)
{
	if (err && err->text[0])
		return err->text;
	return strerrordesc_np(-code) ?: "unknown error";
}
