/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The only process-wide state: set once by main() before any thread starts. */
static struct {
	const char *program;
	int max_level;
	bool journal;
} log_state = {"dsd", LOG_INFO, false};

/* The stream that systemd connected, and not what somebody put in its place since. */
static bool is_journal(int fd)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(fd, &st) == 0 &&
	       st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *program, int max_level)
{
	log_state.program = program;
	log_state.max_level = max_level;
	log_state.journal = is_journal(STDERR_FILENO);
}

bool log_to_journal(void)
{
	return log_state.journal;
}

int log_max_level(void)
{
	return log_state.max_level;
}

void log_line(int level, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	int n, m;

	if (level > log_state.max_level)
		return;
	if (log_state.journal)
		n = snprintf(line, sizeof(line), "<%d>", level);
	else
		n = snprintf(line, sizeof(line), "%s: ", log_state.program);
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	n += m < 0 ? 0 : m;
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	for (int i = 0; i < n; i++) /* one line, whatever a name or a reason holds */
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[n++] = '\n';
	/* One write, so that lines of several threads do not mix. A full pipe loses the line. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

const char *log_escape(char *buf, size_t buf_bytes, const void *data, size_t n)
{
	const unsigned char *p = data;
	size_t o = 0;

	if (n > 64)
		n = 64;
	for (size_t i = 0; i < n && o + 5 < buf_bytes; i++)
		o += (size_t)snprintf(
			buf + o, buf_bytes - o,
			p[i] >= 0x20 && p[i] < 0x7f && p[i] != '\\' ? "%c" : "\\x%02x", p[i]);
	buf[o] = 0;
	return buf;
}
