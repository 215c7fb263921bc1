#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Lines to standard error, with the <N> priority prefix when systemd reads them. Never prompt text:
 * user bytes go through log_escape(), at most 64 of them. Thread: any. */
#include <stddef.h>
#include <syslog.h>

void log_init(const char *program, int max_level); /* level: LOG_ERR .. LOG_DEBUG */
void log_line(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** log_escape() - printable form of untrusted bytes in @buf; returns @buf. */
const char *log_escape(char *buf, size_t buf_bytes, const void *data, size_t n);

#define log_error(...)   log_line(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_notice(...)  log_line(LOG_NOTICE, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_DEBUG, __VA_ARGS__)
