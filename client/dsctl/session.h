#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A connection of dsctl: the client library in an event loop with Ctrl-C, which cancels what is under way. */
#include <stdbool.h>
#include <dsclient.h>

struct global;

struct session {
	struct dsc *c;
	const char *path;
	int signal_fd;    /* SIGINT */
	bool interrupted; /* it came */
};

/** session_open() - connect. Return: 0, or an exit status after a sentence. */
int session_open(struct session *s, const struct global *global);
void session_close(struct session *s);
/**
 * session_renew() - make ready for the next request: connect anew if the connection was lost, forget Ctrl-C
 *
 * Return: 0, or an exit status after a sentence; it can be tried again.
 */
int session_renew(struct session *s);

/**
 * session_next() - wait for the next event of a stream
 *
 * After Ctrl-C the stream is cancelled, and what the daemon still says about it is waited for a second;
 * a second Ctrl-C ends the wait.
 *
 * Return: 1: *ret is an event, 0: the stream has ended, negative: it was interrupted.
 */
int session_next(struct session *s, struct dsc_stream *stream, const struct dsc_event **ret);
/**
 * session_collect() - wait for a whole answer
 * @r: what starting the request returned
 * @ret: to be freed by dsc_result_free(); NULL if the status is not 0
 *
 * Return: 0, or an exit status after a sentence.
 */
int session_collect(struct session *s, int r, struct dsc_stream *stream, struct dsc_result **ret);
/** session_status() - say why a request failed, from dsc_error(); the exit status that goes with it. */
int session_status(const struct session *s);
