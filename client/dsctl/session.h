#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A connection of dsctl: the client library in an event loop with Ctrl-C, which cancels what is under way. */
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <dsclient.h>

struct global;

struct session {
	struct dsc *c;
	const char *path;
	bool quiet;            /* nothing is said to people but failures */
	bool admin;            /* path is the administrative socket */
	unsigned flags;        /* of dsc_connect() */
	int signal_fd;         /* SIGINT */
	bool interrupted;      /* it came */
	char beside[PATH_MAX]; /* what path is, if nobody named the administrative socket */
};

/** session_open() - connect. Return: 0, or an exit status after a sentence. */
int session_open(struct session *s, const struct global *global);
/**
 * session_open_admin() - the same over the administrative socket
 *
 * $DSD_ADMIN_SOCKET where no option names it, else admin.sock beside the daemon's other socket, which is where
 * dsd itself puts it.
 */
int session_open_admin(struct session *s, const struct global *global);
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
/**
 * session_done() - wait for the end of a request that has no answer but that it was done
 *
 * Its progress, if it tells any, is shown on standard error, if that is a terminal.
 *
 * @r:      what starting the request returned
 * @stream: freed
 * @ret:    what DSC_EVENT_DONE counts; NULL: no matter
 *
 * Return: 0, or an exit status after a sentence.
 */
int session_done(struct session *s, int r, struct dsc_stream *stream, uint64_t *ret);
/** session_status() - say why a request failed, from dsc_error(); the exit status that goes with it. */
int session_status(const struct session *s);
/** session_failed() - the same for any r < 0 of a call that said nothing. */
int session_failed(const struct session *s, int r);
