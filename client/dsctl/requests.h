#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The requests under way, as ps and top show them. */
#include <stddef.h>
#include <dsclient.h>

struct session;

struct requests {
	struct dsc_request_info *items; /* oldest first; each model is malloc'ed */
	size_t n;
};

/**
 * requests_ask() - what the daemon has under way for whom the session's socket speaks
 * @ret: to be freed by requests_done(); as it was on error
 *
 * Return: 0. Negative: session_failed() says why.
 */
int requests_ask(struct session *s, struct requests *ret);
void requests_done(struct requests *r);
const char *activity_text(enum dsc_activity activity);
