/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient: connections, streams, and what ends them. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "client_rig.h"

/* ---------------------------------------------------------------- hello */

static void ping_waits_for_hello_and_keeps_what_it_says(void **state)
{
	struct peer p = peer_new();

	(void)state;
	assert_null(dsc_version(p.c));
	assert_int_equal(dsc_server_state(p.c), 0);
	assert_int_equal(dsc_ping(p.c, 0), -ETIMEDOUT);
	peer_hello(&p);
	assert_int_equal(dsc_ping(p.c, 5000), 0);
	assert_string_equal(dsc_version(p.c), "1.2.3");
	assert_int_equal(dsc_server_state(p.c), DSC_STATE_READY);
	assert_int_equal(dsc_ping(p.c, 0), 0);
	peer_done(&p);
}

static void hello_refused_ends_the_connection_with_the_reason(void **state)
{
	struct peer p = peer_new();

	(void)state;
	peer_error(&p, 1, DSC_CODE_PERMISSION_DENIED,
		   "uid 7: got 257 connections, want at most 256");
	assert_int_equal(dsc_ping(p.c, 5000), -EACCES);
	assert_string_equal(dsc_error(p.c), "uid 7: got 257 connections, want at most 256");
	assert_int_equal(dsc_code(p.c), DSC_CODE_PERMISSION_DENIED);
	assert_true(dsc_fd(p.c) < 0);
	peer_done(&p);
}

static void connect_says_what_is_wrong_with_a_path(void **state)
{
	struct dsc *c = NULL;
	char path[300];

	(void)state;
	assert_int_equal(dsc_connect(&c, "/nonexistent/dsd.sock", 0), -ENOENT);
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	assert_int_equal(dsc_connect(&c, path, 0), -ENAMETOOLONG);
	assert_null(c);
}

static void socket_path_comes_from_argument_environment_or_default(void **state)
{
	(void)state;
	unsetenv("DSD_SOCKET");
	assert_string_equal(dsc_socket_path(NULL), "/run/dsd/dsd.sock");
	setenv("DSD_SOCKET", "/tmp/x", 1);
	assert_string_equal(dsc_socket_path(NULL), "/tmp/x");
	assert_string_equal(dsc_socket_path("/y"), "/y");
	setenv("DSD_SOCKET", "", 1);
	assert_string_equal(dsc_socket_path(NULL), "/run/dsd/dsd.sock");
	unsetenv("DSD_SOCKET");
}

/* ---------------------------------------------------------------- streams */

static void generate_gives_its_events_in_order(void **state)
{
	struct peer p = peer_new();
	const struct dsc_event *e;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_started(&p, id, UINT64_MAX);
	peer_delta(&p, id, 0, "caf\xc3\xa9", 0);
	peer_delta(&p, id, 0, "!", DSC_FINISH_STOP);
	peer_finished(&p, id);

	e = next(s, DSC_EVENT_STARTED);
	assert_int_equal(e->request, 1000 + id);
	assert_true(e->seed == UINT64_MAX);
	assert_int_equal(e->prompt_tokens, 7);
	assert_string_equal(e->model, "tiny");
	assert_int_equal(e->digest_bytes, 3);
	assert_memory_equal(e->digest, "\x01\x02\xff", 3);
	e = next(s, DSC_EVENT_TEXT);
	assert_int_equal(e->text_bytes, 5);
	assert_string_equal(e->text, "caf\xc3\xa9");
	assert_int_equal(e->n_ids, 2);
	assert_int_equal(e->ids[0], 40);
	assert_int_equal(e->ids[1], 41);
	e = next(s, DSC_EVENT_TEXT);
	assert_string_equal(e->text, "!");
	e = next(s, DSC_EVENT_FINISHED);
	assert_int_equal(e->finish, DSC_FINISH_STOP);
	e = next(s, DSC_EVENT_DONE);
	assert_int_equal(e->usage.prompt_tokens, 7);
	assert_int_equal(e->usage.cached_tokens, 4);
	assert_int_equal(e->usage.completion_tokens, 3);
	assert_int_equal(e->usage.decode_usec, 99);
	ended(s);
	peer_done(&p);
}

static void streams_share_a_connection(void **state)
{
	struct peer p = peer_new();
	uint64_t a_id, b_id;
	struct dsc_stream *a = generate(&p, &a_id), *b = generate(&p, &b_id);

	(void)state;
	assert_int_not_equal(a_id, b_id);
	peer_started(&p, b_id, 2);
	peer_started(&p, a_id, 1);
	peer_delta(&p, a_id, 0, "a1", 0);
	peer_delta(&p, b_id, 0, "b1", 0);
	peer_delta(&p, a_id, 0, "a2", 0);
	peer_finished(&p, b_id);
	peer_finished(&p, a_id);

	assert_int_equal(next(a, DSC_EVENT_STARTED)->seed, 1);
	assert_string_equal(next(a, DSC_EVENT_TEXT)->text, "a1");
	assert_int_equal(next(b, DSC_EVENT_STARTED)->seed, 2);
	assert_string_equal(next(a, DSC_EVENT_TEXT)->text, "a2");
	next(a, DSC_EVENT_DONE);
	assert_string_equal(next(b, DSC_EVENT_TEXT)->text, "b1");
	next(b, DSC_EVENT_DONE);
	ended(a);
	ended(b);
	peer_done(&p);
}

static void frames_may_come_byte_by_byte(void **state)
{
	struct peer p = peer_new(), store = {.fd = -1};
	const struct dsc_event *e;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);
	uint8_t bytes[1024];
	int fds[2];
	ssize_t n;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	store.fd = fds[0];
	peer_started(&store, id, 5);
	peer_delta(&store, id, 0, "slow", 0);
	peer_finished(&store, id);
	n = recv(fds[1], bytes, sizeof(bytes), 0);
	assert_true(n > 50 && n < (ssize_t)sizeof(bytes));
	for (ssize_t i = 0; i < n - 1; i++) {
		peer_send_bytes(&p, bytes + i, 1);
		assert_int_equal(dsc_process(p.c), 0);
	}
	next(s, DSC_EVENT_STARTED);
	assert_string_equal(next(s, DSC_EVENT_TEXT)->text, "slow");
	assert_int_equal(dsc_next(s, &e), -EAGAIN);
	peer_send_bytes(&p, bytes + n - 1, 1);
	next(s, DSC_EVENT_DONE);
	ended(s);
	close(fds[0]);
	close(fds[1]);
	peer_done(&p);
}

static void wait_gives_up_after_its_time(void **state)
{
	struct peer p = peer_new();
	const struct dsc_event *e = NULL;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	assert_int_equal(dsc_wait(s, &e, 1), -ETIMEDOUT);
	assert_int_equal(dsc_wait(s, &e, 0), -ETIMEDOUT);
	peer_started(&p, id, 1);
	next(s, DSC_EVENT_STARTED);
	peer_done(&p);
}

static void *send_later(void *data)
{
	struct peer *p = data;

	usleep(20000);
	peer_started(p, 2, 77);
	return NULL;
}

static void wait_sleeps_until_the_daemon_speaks(void **state)
{
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);
	const struct dsc_event *e = NULL;
	pthread_t thread;

	(void)state;
	assert_int_equal(id, 2);
	assert_int_equal(pthread_create(&thread, NULL, send_later, &p), 0);
	assert_int_equal(dsc_wait(s, &e, -1), 1);
	assert_int_equal(e->seed, 77);
	pthread_join(thread, NULL);
	peer_done(&p);
}

/* ---------------------------------------------------------------- failures */

static void error_frame_ends_its_own_stream_only(void **state)
{
	struct peer p = peer_new();
	uint64_t a_id, b_id;
	struct dsc_stream *a = generate(&p, &a_id), *b = generate(&p, &b_id);
	const struct dsc_event *e;

	(void)state;
	peer_error(&p, a_id, DSC_CODE_RESOURCE_EXHAUSTED, "pool: got 0 free pages, want 3");
	peer_started(&p, b_id, 1);
	e = next(a, DSC_EVENT_ERROR);
	assert_int_equal(e->error, -EBUSY);
	assert_int_equal(e->code, DSC_CODE_RESOURCE_EXHAUSTED);
	assert_string_equal(e->message, "pool: got 0 free pages, want 3");
	assert_int_equal(e->retry_after_ms, 250);
	assert_string_equal(dsc_error(p.c), e->message);
	assert_int_equal(dsc_code(p.c), DSC_CODE_RESOURCE_EXHAUSTED);
	ended(a);
	next(b, DSC_EVENT_STARTED);
	peer_done(&p);
}

static void error_frame_of_id_0_ends_every_stream(void **state)
{
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *a = generate(&p, &id), *b = generate(&p, &id);
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *c = NULL;
	const struct dsc_event *e;

	(void)state;
	peer_error(&p, 0, DSC_CODE_MALFORMED, "frame of 3 bytes: not one of this protocol");
	e = next(a, DSC_EVENT_ERROR);
	assert_int_equal(e->error, -EPROTO);
	assert_int_equal(e->code, DSC_CODE_MALFORMED);
	assert_string_equal(e->message, "frame of 3 bytes: not one of this protocol");
	next(b, DSC_EVENT_ERROR);
	ended(a);
	ended(b);
	assert_int_equal(dsc_process(p.c), -EPROTO);
	assert_int_equal(dsc_generate(p.c, &r, &c), -EPROTO);
	assert_int_equal(dsc_events(p.c), 0);
	peer_done(&p);
}

static void daemon_gone_in_mid_stream_is_retryable(void **state)
{
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);
	const struct dsc_event *e;

	(void)state;
	peer_started(&p, id, 1);
	peer_delta(&p, id, 0, "half", 0);
	close(p.fd);
	p.fd = -1;
	next(s, DSC_EVENT_STARTED);
	assert_string_equal(next(s, DSC_EVENT_TEXT)->text, "half");
	e = next(s, DSC_EVENT_ERROR);
	assert_int_equal(e->error, -ECONNRESET);
	assert_int_equal(e->code, DSC_CODE_RETRYABLE);
	assert_string_equal(e->message, "the daemon closed the connection");
	ended(s);
	peer_done(&p);
}

static void daemon_gone_within_a_frame_says_so(void **state)
{
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_send_bytes(&p, "\x10\0\0\0\x08", 5);
	close(p.fd);
	p.fd = -1;
	assert_string_equal(next(s, DSC_EVENT_ERROR)->message,
			    "the daemon closed the connection within a frame");
	peer_done(&p);
}

static void writing_to_a_daemon_that_is_gone_raises_no_signal(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;

	(void)state;
	close(p.fd);
	p.fd = -1;
	r.text = "hi";
	r.text_bytes = 2;
	assert_int_equal(dsc_generate(p.c, &r, &s), 0);
	e = next(s, DSC_EVENT_ERROR);
	assert_int_equal(e->code, DSC_CODE_RETRYABLE);
	peer_done(&p);
}

static void frames_that_are_none_end_the_connection(void **state)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *want;
	} bad[] = {
		{"\x01\x00\x10\x00", 4, "got a frame of 1048577 bytes, want 1 to 1048576"},
		{"\xff\xff\xff\xff", 4, "got a frame of 4294967295 bytes"},
		{"\x00\x00\x00\x00", 4, "got a frame of 0 bytes"},
		{"\x02\x00\x00\x00\x12\x00", 6, "want a message of protocol 1"}, /* no id */
		{"\x03\x00\x00\x00\xff\xff\xff", 7, "want a message of protocol 1"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct peer p = peer_new();
		uint64_t id;
		struct dsc_stream *s = generate(&p, &id);
		const struct dsc_event *e;

		peer_send_bytes(&p, bad[i].bytes, bad[i].n);
		e = next(s, DSC_EVENT_ERROR);
		assert_int_equal(e->error, -EPROTO);
		assert_non_null(strstr(e->message, bad[i].want));
		assert_true(dsc_fd(p.c) < 0);
		peer_done(&p);
	}
}

static void what_a_later_daemon_says_is_passed_over(void **state)
{
	/* id 2 with field 100, a message; and id 2 with nothing but an unknown number */
	static const char later[] =
		"\x07\0\0\0\x08\x02\xa2\x06\x02\x08\x01\x05\0\0\0\x08\x02\xf8\x01\x05";
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	assert_int_equal(id, 2);
	peer_send_bytes(&p, later, sizeof(later) - 1);
	peer_started(&p, 999, 1); /* nobody's */
	peer_started(&p, id, 3);
	assert_int_equal(next(s, DSC_EVENT_STARTED)->seed, 3);
	peer_error(&p, id, 77, "of a kind that came later");
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -EIO);
	assert_string_equal(dsc_code_name(dsc_code(p.c)), "UNKNOWN");
	peer_done(&p);
}

static void answer_of_another_kind_ends_the_connection(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	uint64_t id;

	(void)state;
	assert_int_equal(dsc_stats(p.c, &s), 0);
	id = peer_receive(&p)->id;
	peer_started(&p, id, 1);
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -EPROTO);
	peer_done(&p);
}

static void events_nobody_takes_stop_the_reading(void **state)
{
	struct peer p = peer_new();
	uint64_t a_id, b_id;
	struct dsc_stream *a = generate(&p, &a_id), *b = generate(&p, &b_id);
	const struct dsc_event *e = NULL;
	char *text = malloc(900001);
	size_t n = 0;

	(void)state;
	assert_non_null(text);
	memset(text, 'x', 900000);
	text[900000] = 0;
	while (dsc_events(p.c) & POLLIN) {
		Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
		Dsd__Delta d = DSD__DELTA__INIT;
		uint8_t *bytes = NULL;
		size_t size = 0, at = 0;

		d.has_text = 1;
		d.text = (ProtobufCBinaryData){900000, (uint8_t *)text};
		f.id = a_id;
		f.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
		f.delta = &d;
		assert_int_equal(wire_pack_frame(&f.base, &bytes, &size), 0);
		while (at < size) { /* both ends by turns, in one thread */
			ssize_t k = send(p.fd, bytes + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL);

			at += k > 0 ? (size_t)k : 0;
			assert_int_equal(dsc_process(p.c), 0);
		}
		free(bytes);
		assert_true(++n < 100);
	}
	assert_int_equal(n, 19); /* 16 MiB of them */
	peer_started(&p, b_id, 1);
	assert_int_equal(dsc_wait(b, &e, 5000), -ENOBUFS);
	while (dsc_next(a, &e) == 1) {
		assert_int_equal(e->text_bytes, 900000);
		n--;
	}
	assert_int_equal(n, 0);
	next(b, DSC_EVENT_STARTED);
	free(text);
	peer_done(&p);
}

/* ---------------------------------------------------------------- cancelling */

static void cancel_names_its_target_and_the_end_still_comes(void **state)
{
	struct peer p = peer_new();
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);
	Dsd__ClientFrame *frame;

	(void)state;
	peer_started(&p, id, 1);
	next(s, DSC_EVENT_STARTED);
	assert_int_equal(dsc_cancel(s), 0);
	frame = peer_receive(&p);
	assert_int_equal(frame->msg_case, DSD__CLIENT_FRAME__MSG_CANCEL);
	assert_int_equal(frame->cancel->target, id);
	assert_int_not_equal(frame->id, id);
	peer_delta(&p, id, 0, "still", 0);
	peer_error(&p, id, DSC_CODE_CANCELLED, "cancelled by the client");
	next(s, DSC_EVENT_TEXT);
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -ECANCELED);
	ended(s);
	assert_int_equal(dsc_cancel(s), 0);
	assert_false(peer_has_more(&p));
	peer_done(&p);
}

static void freed_stream_is_cancelled_and_its_frames_dropped(void **state)
{
	struct peer p = peer_new();
	uint64_t a_id, b_id;
	struct dsc_stream *a = generate(&p, &a_id), *b = generate(&p, &b_id);
	Dsd__ClientFrame *frame;

	(void)state;
	peer_started(&p, a_id, 1);
	assert_int_equal(dsc_process(p.c), 0);
	dsc_stream_free(a);
	frame = peer_receive(&p);
	assert_int_equal(frame->msg_case, DSD__CLIENT_FRAME__MSG_CANCEL);
	assert_int_equal(frame->cancel->target, a_id);
	peer_delta(&p, a_id, 0, "late", 0);
	peer_finished(&p, a_id);
	peer_started(&p, b_id, 9);
	assert_int_equal(next(b, DSC_EVENT_STARTED)->seed, 9);
	peer_finished(&p, b_id);
	next(b, DSC_EVENT_DONE);
	dsc_stream_free(b);
	assert_false(peer_has_more(&p)); /* nothing to cancel any more */
	dsc_stream_free(NULL);
	peer_done(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ping_waits_for_hello_and_keeps_what_it_says),
		cmocka_unit_test(hello_refused_ends_the_connection_with_the_reason),
		cmocka_unit_test(connect_says_what_is_wrong_with_a_path),
		cmocka_unit_test(socket_path_comes_from_argument_environment_or_default),
		cmocka_unit_test(generate_gives_its_events_in_order),
		cmocka_unit_test(streams_share_a_connection),
		cmocka_unit_test(frames_may_come_byte_by_byte),
		cmocka_unit_test(wait_gives_up_after_its_time),
		cmocka_unit_test(wait_sleeps_until_the_daemon_speaks),
		cmocka_unit_test(error_frame_ends_its_own_stream_only),
		cmocka_unit_test(error_frame_of_id_0_ends_every_stream),
		cmocka_unit_test(daemon_gone_in_mid_stream_is_retryable),
		cmocka_unit_test(daemon_gone_within_a_frame_says_so),
		cmocka_unit_test(writing_to_a_daemon_that_is_gone_raises_no_signal),
		cmocka_unit_test(frames_that_are_none_end_the_connection),
		cmocka_unit_test(what_a_later_daemon_says_is_passed_over),
		cmocka_unit_test(answer_of_another_kind_ends_the_connection),
		cmocka_unit_test(events_nobody_takes_stop_the_reading),
		cmocka_unit_test(cancel_names_its_target_and_the_end_still_comes),
		cmocka_unit_test(freed_stream_is_cancelled_and_its_frames_dropped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
