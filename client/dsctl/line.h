#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Messages from standard input: edited where it is a terminal, else taken as they come, one a line. A line that ends
 * in a backslash goes on in the next. What was typed can be called back, from memory only. */
#include <stdbool.h>

#include "prompt.h"

#define LINE_BYTES_MAX (1u << 20) /* of a message: what a request could carry at most */

struct line_reader;

/**
 * line_reader_new() - read from a descriptor
 * @fd:        standard input; a terminal is edited on if there is a terminal to draw on
 * @signal_fd: signalfd of SIGINT, which is blocked; negative: none
 *
 * Return: 0, -ENOMEM, or why the terminal cannot be used.
 */
int line_reader_new(struct line_reader **ret, int fd, int signal_fd);
/** line_reader_free() - the terminal is as it was before; NULL is fine. */
struct line_reader *line_reader_free(struct line_reader *l);
/** line_reader_edits() - a person types: prompts are shown. */
bool line_reader_edits(const struct line_reader *l);

/**
 * line_read() - the next message
 * @ret: without its newline; free ret->data
 *
 * Return: 1: *ret is a message, maybe an empty one. 0: the input has ended. -EINTR: Ctrl-C, what was typed is
 *         dropped. -EMSGSIZE: a message longer than LINE_BYTES_MAX, which was passed over. Anything else: reading
 *         failed.
 */
int line_read(struct line_reader *l, struct text *ret);
