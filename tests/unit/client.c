/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient against a daemon that each test plays itself, on the other end of a socketpair. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "dsclient.h"
#include "wire.h"

/* ---------------------------------------------------------------- the other end */

struct peer {
	struct dsc *c;
	int fd;
	struct wire_arena arena; /* of the last frame received */
};

static void peer_send_bytes(struct peer *p, const void *data, size_t n)
{
	size_t at = 0;

	while (at < n) {
		ssize_t k = send(p->fd, (const char *)data + at, n - at, MSG_NOSIGNAL);

		assert_true(k > 0);
		at += (size_t)k;
	}
}

static void peer_send(struct peer *p, const Dsd__ServerFrame *frame)
{
	uint8_t *bytes = NULL;
	size_t n = 0;

	assert_int_equal(wire_pack_frame(&frame->base, &bytes, &n), 0);
	peer_send_bytes(p, bytes, n);
	free(bytes);
}

static void peer_read(struct peer *p, void *data, size_t n)
{
	size_t at = 0;

	while (at < n) {
		ssize_t k = recv(p->fd, (char *)data + at, n - at, 0);

		assert_true(k > 0);
		at += (size_t)k;
	}
}

/* The next frame of the client, which also passes the range check. */
static Dsd__ClientFrame *peer_receive(struct peer *p)
{
	uint8_t hdr[WIRE_HEADER_BYTES], *data;
	Dsd__ClientFrame *frame;
	char text[WIRE_TEXT_MAX];
	uint32_t n;

	wire_arena_done(&p->arena);
	peer_read(p, hdr, sizeof(hdr));
	n = wire_frame_length(hdr);
	assert_true(n > 0 && n <= WIRE_FRAME_MAX);
	data = malloc(n);
	assert_non_null(data);
	peer_read(p, data, n);
	assert_int_equal(wire_arena_init(&p->arena, n), 0);
	frame = wire_unpack_client(data, n, &p->arena);
	free(data);
	assert_non_null(frame);
	assert_int_equal(wire_check(&frame->base, text), 0);
	return frame;
}

static bool peer_has_more(struct peer *p)
{
	char c;

	return recv(p->fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) > 0;
}

static struct peer peer_new(void)
{
	struct peer p = {};
	int fds[2];
	Dsd__ClientFrame *frame;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	p.fd = fds[1];
	assert_int_equal(dsc_connect_fd(&p.c, fds[0], 0), 0);
	frame = peer_receive(&p);
	assert_int_equal(frame->msg_case, DSD__CLIENT_FRAME__MSG_HELLO);
	assert_int_equal(frame->hello->protocol, WIRE_PROTOCOL);
	return p;
}

static void peer_done(struct peer *p)
{
	dsc_close(p->c);
	if (p->fd >= 0)
		close(p->fd);
	wire_arena_done(&p->arena);
}

static void peer_hello(struct peer *p)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__HelloReply h = DSD__HELLO_REPLY__INIT;

	h.protocol = 1;
	h.version = (char *)"1.2.3";
	h.state = DSD__STATE__STATE_READY;
	h.max_frame_bytes = WIRE_FRAME_MAX;
	f.id = 1;
	f.msg_case = DSD__SERVER_FRAME__MSG_HELLO;
	f.hello = &h;
	peer_send(p, &f);
}

static void peer_started(struct peer *p, uint64_t id, uint64_t seed)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Started s = DSD__STARTED__INIT;

	s.request = 1000 + id;
	s.seed = seed;
	s.model_digest = (ProtobufCBinaryData){3, (uint8_t *)"\x01\x02\xff"};
	s.prompt_tokens = 7;
	s.model = (char *)"tiny";
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_STARTED;
	f.started = &s;
	peer_send(p, &f);
}

static void peer_delta(struct peer *p, uint64_t id, uint32_t choice, const char *text, int finish)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Delta d = DSD__DELTA__INIT;
	uint32_t ids[] = {40 + choice, 41};

	d.has_choice = choice != 0;
	d.choice = choice;
	d.ids = ids;
	d.n_ids = text ? 2 : 0;
	d.has_text = text != NULL;
	d.text = (ProtobufCBinaryData){text ? strlen(text) : 0, (uint8_t *)text};
	d.has_finish = finish != 0;
	d.finish = (Dsd__Finish)(finish ? finish : DSD__FINISH__FINISH_EOS);
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
	f.delta = &d;
	peer_send(p, &f);
}

static void peer_finished(struct peer *p, uint64_t id)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Done d = DSD__DONE__INIT;
	Dsd__Usage u = DSD__USAGE__INIT;

	u.prompt_tokens = 7;
	u.cached_tokens = 4;
	u.completion_tokens = 3;
	u.has_decode_usec = 1;
	u.decode_usec = 99;
	d.usage = &u;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_DONE;
	f.done = &d;
	peer_send(p, &f);
}

static void peer_error(struct peer *p, uint64_t id, int code, const char *message)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Error e = DSD__ERROR__INIT;

	e.code = (Dsd__Code)code;
	e.message = (char *)message;
	e.has_retry_after_ms = 1;
	e.retry_after_ms = 250;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_ERROR;
	f.error = &e;
	peer_send(p, &f);
}

/* Starts a Generate and takes it off the wire. */
static struct dsc_stream *generate(struct peer *p, uint64_t *ret_id)
{
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	Dsd__ClientFrame *frame;

	r.text = "hi";
	r.text_bytes = 2;
	assert_int_equal(dsc_generate(p->c, &r, &s), 0);
	frame = peer_receive(p);
	assert_int_equal(frame->msg_case, DSD__CLIENT_FRAME__MSG_GENERATE);
	*ret_id = frame->id;
	return s;
}

static const struct dsc_event *next(struct dsc_stream *s, enum dsc_event_type want)
{
	const struct dsc_event *e = NULL;

	assert_int_equal(dsc_wait(s, &e, 5000), 1);
	assert_int_equal(e->type, want);
	return e;
}

static void ended(struct dsc_stream *s)
{
	const struct dsc_event *e = NULL;

	assert_int_equal(dsc_wait(s, &e, 5000), 0);
	assert_int_equal(dsc_next(s, &e), 0);
	assert_null(e);
}

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

/* ---------------------------------------------------------------- requests */

static void request_says_what_is_set_and_nothing_else(void **state)
{
	static const struct dsc_message messages[] = {{DSC_ROLE_SYSTEM, "be brief", 8},
						      {DSC_ROLE_USER, "a\0b", 3}};
	static const struct dsc_stop stop[] = {{"\n\n", 2}, {"end", 3}};
	static const struct dsc_bias bias[] = {{5, -2.5f}};
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	Dsd__Generate *g;

	(void)state;
	r.model = "v3";
	r.prompt = DSC_PROMPT_CHAT;
	r.messages = messages;
	r.n_messages = 2;
	r.stop = stop;
	r.n_stop = 2;
	r.logit_bias = bias;
	r.n_logit_bias = 1;
	r.temperature = 0;
	r.seed = UINT64_MAX;
	r.top_k = 40; /* not set, so not said */
	r.n = 2;
	r.priority = DSC_PRIORITY_BATCH;
	r.set = DSC_SET_TEMPERATURE | DSC_SET_SEED | DSC_SET_N | DSC_SET_PRIORITY |
		DSC_SET_IGNORE_EOS;
	assert_int_equal(dsc_generate(p.c, &r, &s), 0);
	g = peer_receive(&p)->generate;
	assert_string_equal(g->model, "v3");
	assert_int_equal(g->prompt_case, DSD__GENERATE__PROMPT_CHAT);
	assert_int_equal(g->chat->n_messages, 2);
	assert_int_equal(g->chat->messages[0]->role, DSD__ROLE__ROLE_SYSTEM);
	assert_int_equal(g->chat->messages[1]->role, DSD__ROLE__ROLE_USER);
	assert_int_equal(g->chat->messages[1]->text.len, 3);
	assert_memory_equal(g->chat->messages[1]->text.data, "a\0b", 3);
	assert_int_equal(g->sampling->n_stop, 2);
	assert_memory_equal(g->sampling->stop[1].data, "end", 3);
	assert_int_equal(g->sampling->n_logit_bias, 1);
	assert_int_equal(g->sampling->logit_bias[0]->id, 5);
	assert_true(g->sampling->logit_bias[0]->bias == -2.5f);
	assert_true(g->sampling->has_temperature && g->sampling->temperature == 0);
	assert_true(g->sampling->has_seed && g->sampling->seed == UINT64_MAX);
	assert_true(g->sampling->has_n && g->sampling->n == 2);
	assert_true(g->sampling->has_ignore_eos && g->sampling->ignore_eos);
	assert_true(g->has_priority && g->priority == DSD__PRIORITY__PRIORITY_BATCH);
	assert_false(g->sampling->has_top_k);
	assert_false(g->sampling->has_max_tokens);
	assert_false(g->sampling->has_logprobs);
	assert_false(g->sampling->has_echo);
	assert_false(g->has_suffix);
	assert_false(g->has_deadline_ms);
	assert_false(g->has_parse_special);
	peer_done(&p);
}

static void request_of_another_version_is_taken_or_refused_by_its_bytes(void **state)
{
	struct {
		struct dsc_request r;
		uint64_t later;
	} big = {.r = DSC_REQUEST_INIT};
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;

	(void)state;
	big.r.size = 0;
	assert_int_equal(dsc_generate(p.c, &big.r, &s), -EINVAL);
	assert_non_null(strstr(dsc_error(p.c), "request.size: got 0"));
	big.r.size = offsetof(struct dsc_request, deadline_ms);
	assert_int_equal(dsc_generate(p.c, &big.r, &s), -EINVAL);
	big.r.size += sizeof(big.r.deadline_ms); /* the first version */
	assert_int_equal(dsc_generate(p.c, &big.r, &s), 0);
	big.r.size = sizeof(big);
	assert_int_equal(dsc_generate(p.c, &big.r, &s), 0);
	big.later = 1;
	s = NULL;
	assert_int_equal(dsc_generate(p.c, &big.r, &s), -E2BIG);
	assert_null(s);
	peer_done(&p);
}

static void request_must_have_a_prompt_its_call_takes(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;

	(void)state;
	r.prompt = 3;
	assert_int_equal(dsc_generate(p.c, &r, &s), -EINVAL);
	assert_string_equal(dsc_error(p.c),
			    "request.prompt: got 3, want DSC_PROMPT_TEXT, _CHAT or _IDS");
	r.prompt = DSC_PROMPT_CHAT;
	assert_int_equal(dsc_score(p.c, &r, &s), -EINVAL);
	r.prompt = DSC_PROMPT_IDS;
	assert_int_equal(dsc_tokenize(p.c, &r, &s), -EINVAL);
	r.prompt = DSC_PROMPT_TEXT;
	assert_int_equal(dsc_detokenize(p.c, &r, &s), -EINVAL);
	assert_false(peer_has_more(&p));
	peer_done(&p);
}

static void request_past_a_frame_is_refused_and_the_connection_lives(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	char *text = calloc(1, 1u << 20);
	const struct dsc_message m = {DSC_ROLE_USER, text, 1u << 20};
	uint64_t id;

	(void)state;
	assert_non_null(text);
	r.prompt = DSC_PROMPT_CHAT;
	r.messages = &m;
	r.n_messages = 1;
	assert_int_equal(dsc_generate(p.c, &r, &s), -EMSGSIZE);
	assert_non_null(strstr(dsc_error(p.c), "want at most 1048576"));
	assert_int_equal(dsc_code(p.c), DSC_CODE_FRAME_TOO_LARGE);
	r.prompt = DSC_PROMPT_TEXT;
	r.text = text;
	r.text_bytes = (64u << 20) + 1; /* never looked at */
	assert_int_equal(dsc_generate(p.c, &r, &s), -EMSGSIZE);
	assert_non_null(strstr(dsc_error(p.c), "want at most 67108864"));
	assert_null(s);
	free(text);
	generate(&p, &id);
	peer_done(&p);
}

/* The socket takes a part; the rest goes when it can. */
static void large_request_goes_out_in_parts(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	size_t n = 1000000, at = 0, size;
	uint8_t *text = malloc(n), *got = malloc(WIRE_HEADER_BYTES + WIRE_FRAME_MAX);
	Dsd__ClientFrame *frame;
	int small = 4096;

	(void)state;
	assert_non_null(text);
	assert_non_null(got);
	for (size_t i = 0; i < n; i++)
		text[i] = (uint8_t)(i * 7 + i / 251);
	setsockopt(dsc_fd(p.c), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	r.text = text;
	r.text_bytes = n;
	assert_int_equal(dsc_generate(p.c, &r, &s), 0);
	assert_true(dsc_events(p.c) & POLLOUT);
	do {
		ssize_t k =
			recv(p.fd, got + at, WIRE_HEADER_BYTES + WIRE_FRAME_MAX - at, MSG_DONTWAIT);

		at += k > 0 ? (size_t)k : 0;
		assert_int_equal(dsc_process(p.c), 0);
		size = at >= WIRE_HEADER_BYTES ? WIRE_HEADER_BYTES + wire_frame_length(got)
					       : SIZE_MAX;
	} while (at < size);
	assert_int_equal(at, size);
	assert_false(dsc_events(p.c) & POLLOUT);
	wire_arena_done(&p.arena);
	assert_int_equal(wire_arena_init(&p.arena, size - WIRE_HEADER_BYTES), 0);
	frame = wire_unpack_client(got + WIRE_HEADER_BYTES, size - WIRE_HEADER_BYTES, &p.arena);
	assert_non_null(frame);
	assert_int_equal(frame->generate->text.len, n);
	assert_memory_equal(frame->generate->text.data, text, n);
	free(text);
	free(got);
	peer_done(&p);
}

/* What one recvmsg() gives, with the descriptor that came along. */
static size_t receive_some(struct peer *p, uint8_t *data, size_t n, int *ret_fd)
{
	union {
		struct cmsghdr h;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {data, n};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = sizeof(control)};
	ssize_t k = recvmsg(p->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *h = k > 0 ? CMSG_FIRSTHDR(&mh) : NULL;

	*ret_fd = -EBADF;
	if (h)
		memcpy(ret_fd, CMSG_DATA(h), sizeof(*ret_fd));
	return k > 0 ? (size_t)k : 0;
}

/* The next whole frame, which must come alone if it brings a descriptor. */
static Dsd__ClientFrame *receive_passed(struct peer *p, int *ret_fd)
{
	static uint8_t data[WIRE_HEADER_BYTES + WIRE_FRAME_MAX];
	size_t at = 0, want = WIRE_HEADER_BYTES;
	Dsd__ClientFrame *frame;

	*ret_fd = -EBADF;
	while (at < want) {
		int fd;

		at += receive_some(p, data + at, want - at, &fd);
		if (fd >= 0) {
			assert_true(*ret_fd < 0);
			*ret_fd = fd;
		}
		if (at == want && want == WIRE_HEADER_BYTES)
			want += wire_frame_length(data);
		assert_int_equal(dsc_process(p->c), 0);
	}
	wire_arena_done(&p->arena);
	assert_int_equal(wire_arena_init(&p->arena, want - WIRE_HEADER_BYTES), 0);
	frame = wire_unpack_client(data + WIRE_HEADER_BYTES, want - WIRE_HEADER_BYTES, &p->arena);
	assert_non_null(frame);
	return frame;
}

static void check_passed(int fd, const Dsd__PromptFd *m, Dsd__PromptKind kind, const void *want,
			 size_t n)
{
	void *got = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
	struct stat st;

	assert_int_equal(m->kind, kind);
	assert_int_equal(m->bytes, n);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, n);
	assert_int_equal(fcntl(fd, F_GET_SEALS) & 15,
			 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	assert_true(got != MAP_FAILED);
	assert_memory_equal(got, want, n);
	munmap(got, n);
	close(fd);
}

/* Also where the socket takes little at a time and other requests wait before and behind. */
static void prompt_past_a_frame_goes_beside_it_as_a_sealed_memfd(void **state)
{
	struct peer p = peer_new();
	struct dsc_request small = DSC_REQUEST_INIT, text = DSC_REQUEST_INIT,
			   ids = DSC_REQUEST_INIT;
	struct dsc_stream *s[6] = {};
	const size_t n = 2u << 20;
	uint32_t *data = malloc(n);
	int few = 4096, fd, before = dup(0);
	Dsd__ClientFrame *f;

	(void)state;
	assert_non_null(data);
	for (size_t i = 0; i < n / 4; i++)
		data[i] = (uint32_t)(i * 7919 + 200000) % 1000000;
	setsockopt(dsc_fd(p.c), SOL_SOCKET, SO_SNDBUF, &few, sizeof(few));
	small.text = data;
	small.text_bytes = 100000;
	text.text = data;
	text.text_bytes = n;
	ids.prompt = DSC_PROMPT_IDS;
	ids.ids = data;
	ids.n_ids = n / 4;
	assert_int_equal(dsc_generate(p.c, &small, &s[0]), 0);
	assert_int_equal(dsc_generate(p.c, &text, &s[1]), 0);
	assert_int_equal(dsc_score(p.c, &ids, &s[2]), 0);
	assert_int_equal(dsc_tokenize(p.c, &text, &s[3]), 0);
	assert_int_equal(dsc_generate(p.c, &small, &s[4]), 0);
	assert_int_equal(dsc_generate(p.c, &ids, &s[5]), 0);

	f = receive_passed(&p, &fd);
	assert_int_equal(f->generate->text.len, 100000);
	assert_true(fd < 0);
	f = receive_passed(&p, &fd);
	assert_int_equal(f->generate->prompt_case, DSD__GENERATE__PROMPT_PROMPT_FD);
	check_passed(fd, f->generate->prompt_fd, DSD__PROMPT_KIND__PROMPT_KIND_TEXT, data, n);
	f = receive_passed(&p, &fd);
	assert_int_equal(f->score->prompt_case, DSD__SCORE__PROMPT_PROMPT_FD);
	check_passed(fd, f->score->prompt_fd, DSD__PROMPT_KIND__PROMPT_KIND_IDS, data, n);
	f = receive_passed(&p, &fd);
	assert_int_equal(f->tokenize->input_case, DSD__TOKENIZE__INPUT_PROMPT_FD);
	check_passed(fd, f->tokenize->prompt_fd, DSD__PROMPT_KIND__PROMPT_KIND_TEXT, data, n);
	peer_done(&p); /* with one descriptor unsent */
	free(data);
	fd = dup(0);
	assert_true(fd <= before + 1);
	close(fd);
	close(before);
}

static void session_calls_say_what_is_set_and_give_the_id(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s[3];
	const struct dsc_event *e;
	Dsd__ClientFrame *f;
	Dsd__ServerFrame reply = DSD__SERVER_FRAME__INIT;
	Dsd__SessionReply session = DSD__SESSION_REPLY__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;

	(void)state;
	r.model = "tiny";
	r.lease_ms = 5000;
	r.session = UINT64_C(0xfedcba9876543210);
	r.set = DSC_SET_LEASE_MS | DSC_SET_SESSION;
	assert_int_equal(dsc_session_open(p.c, &r, &s[0]), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_SESSION_OPEN);
	assert_string_equal(f->session_open->model, "tiny");
	assert_int_equal(f->session_open->lease_ms, 5000);
	session.session = 7;
	session.lease_ms = 5000;
	reply.id = f->id;
	reply.msg_case = DSD__SERVER_FRAME__MSG_SESSION;
	reply.session = &session;
	peer_send(&p, &reply);
	assert_int_equal(dsc_wait(s[0], &e, -1), 1);
	assert_int_equal(e->type, DSC_EVENT_SESSION);
	assert_true(e->session == 7 && e->lease_ms == 5000);
	assert_int_equal(dsc_wait(s[0], &e, -1), 1);
	assert_int_equal(e->type, DSC_EVENT_DONE);

	assert_int_equal(dsc_session_fork(p.c, &r, &s[1]), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_SESSION_FORK);
	assert_true(f->session_fork->session == r.session);
	reply.id = f->id;
	peer_send(&p, &reply);
	assert_int_equal(dsc_wait(s[1], &e, -1), 1);
	assert_int_equal(e->type, DSC_EVENT_SESSION);

	assert_int_equal(dsc_session_close(p.c, &r, &s[2]), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_SESSION_CLOSE);
	assert_true(f->session_close->session == r.session);
	reply.id = f->id;
	reply.msg_case = DSD__SERVER_FRAME__MSG_ACK;
	reply.ack = &ack;
	peer_send(&p, &reply);
	assert_int_equal(dsc_wait(s[2], &e, -1), 1);
	assert_int_equal(e->type, DSC_EVENT_DONE);

	r.text = "x";
	r.text_bytes = 1;
	assert_int_equal(dsc_generate(p.c, &r, &s[0]), 0);
	f = peer_receive(&p);
	assert_true(f->generate->has_session && f->generate->session == r.session);
	r.set = 0;
	assert_int_equal(dsc_generate(p.c, &r, &s[0]), 0);
	assert_false(peer_receive(&p)->generate->has_session);
	peer_done(&p);
}

static void requests_nobody_reads_are_refused_in_the_end(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	char *text = calloc(1, 1000000);
	int n = 0, e;

	(void)state;
	assert_non_null(text);
	r.text = text;
	r.text_bytes = 1000000;
	while ((e = dsc_generate(p.c, &r, &s)) == 0)
		assert_true(++n < 100);
	assert_int_equal(e, -EAGAIN);
	assert_true(n >= 8);
	free(text);
	peer_done(&p);
}

/* ---------------------------------------------------------------- whole answers */

static void collect_adds_up_the_choices(void **state)
{
	struct peer p = peer_new();
	struct dsc_result *result = NULL;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_started(&p, id, 11);
	peer_delta(&p, id, 1, "one ", 0);
	peer_delta(&p, id, 0, "zero ", 0);
	for (int i = 0; i < 100; i++)
		peer_delta(&p, id, 0, "0123456789", 0);
	peer_delta(&p, id, 1, "done", DSC_FINISH_LENGTH);
	peer_delta(&p, id, 0, NULL, DSC_FINISH_EOS);
	peer_finished(&p, id);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->seed, 11);
	assert_string_equal(result->model, "tiny");
	assert_int_equal(result->digest_bytes, 3);
	assert_int_equal(result->usage.completion_tokens, 3);
	assert_int_equal(result->n_choices, 2);
	assert_int_equal(result->choices[0].text_bytes, 1005);
	assert_memory_equal(result->choices[0].text, "zero 01234567890123", 19);
	assert_int_equal(strlen(result->choices[0].text), 1005);
	assert_int_equal(result->choices[0].n_ids, 202);
	assert_int_equal(result->choices[0].finish, DSC_FINISH_EOS);
	assert_string_equal(result->choices[1].text, "one done");
	assert_int_equal(result->choices[1].n_ids, 4);
	assert_int_equal(result->choices[1].ids[2], 41);
	assert_int_equal(result->choices[1].finish, DSC_FINISH_LENGTH);
	dsc_result_free(result);
	peer_done(&p);
}

static void collect_gives_what_came_before_an_error(void **state)
{
	struct peer p = peer_new();
	struct dsc_result *result = NULL;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_started(&p, id, 11);
	peer_delta(&p, id, 0, "half", 0);
	peer_error(&p, id, DSC_CODE_MODEL_FAULT, "layer 3: got NaN");
	assert_int_equal(dsc_collect(s, &result), -EIO);
	assert_string_equal(dsc_error(p.c), "layer 3: got NaN");
	assert_string_equal(result->choices[0].text, "half");
	assert_int_equal(result->choices[0].finish, 0);
	dsc_result_free(result);
	peer_done(&p);
}

static void score_keeps_every_logprob_over_its_parts(void **state)
{
	struct peer p = peer_new();
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ScoreReply reply = DSD__SCORE_REPLY__INIT;
	Dsd__TopLogprob best = DSD__TOP_LOGPROB__INIT, second = DSD__TOP_LOGPROB__INIT;
	Dsd__TopLogprob *top[] = {&best, &second};
	Dsd__TokenLogprob bos = DSD__TOKEN_LOGPROB__INIT, tok = DSD__TOKEN_LOGPROB__INIT;
	Dsd__TokenLogprob *first[] = {&bos, &tok}, *rest[] = {&tok};
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_result *result = NULL;
	struct dsc_stream *s = NULL;
	const struct dsc_choice *ch;
	Dsd__ClientFrame *frame;

	(void)state;
	r.prompt = DSC_PROMPT_IDS;
	r.ids = (const uint32_t[]){0, 9, 9};
	r.n_ids = 3;
	r.logprobs = 2;
	r.set = DSC_SET_LOGPROBS;
	assert_int_equal(dsc_score(p.c, &r, &s), 0);
	frame = peer_receive(&p);
	f.id = frame->id;
	assert_int_equal(frame->score->ids->n_ids, 3);
	assert_true(frame->score->has_logprobs && frame->score->logprobs == 2);
	best.id = 4;
	best.logprob = -0.25f;
	second.id = 9;
	second.logprob = -1.5f;
	tok.id = 9;
	tok.has_logprob = 1;
	tok.logprob = -1.5f;
	tok.top = top;
	tok.n_top = 2;
	f.msg_case = DSD__SERVER_FRAME__MSG_SCORE;
	f.score = &reply;
	reply.tokens = first;
	reply.n_tokens = 2;
	peer_send(&p, &f);
	reply.tokens = rest;
	reply.n_tokens = 1;
	reply.last = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->n_choices, 1);
	ch = &result->choices[0];
	assert_int_equal(ch->n_tokens, 3);
	assert_false(ch->tokens[0].has_logprob);
	assert_int_equal(ch->tokens[0].n_top, 0);
	for (int i = 1; i < 3; i++) {
		assert_true(ch->tokens[i].has_logprob && ch->tokens[i].logprob == -1.5f);
		assert_int_equal(ch->tokens[i].n_top, 2);
		assert_int_equal(ch->tokens[i].top[0].id, 4);
		assert_true(ch->tokens[i].top[0].logprob == -0.25f);
		assert_int_equal(ch->tokens[i].top[1].id, 9);
	}
	dsc_result_free(result);
	peer_done(&p);
}

static void tokenize_and_detokenize_come_in_parts(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	struct dsc_result *result = NULL;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__TokenizeReply t = DSD__TOKENIZE_REPLY__INIT;
	Dsd__DetokenizeReply d = DSD__DETOKENIZE_REPLY__INIT;
	uint32_t ids[] = {3, 2, 1};

	(void)state;
	r.text = "abc";
	r.text_bytes = 3;
	assert_int_equal(dsc_tokenize(p.c, &r, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_TOKENIZE;
	f.tokenize = &t;
	t.ids = ids;
	t.n_ids = 3;
	peer_send(&p, &f);
	t.last = 1;
	t.n_ids = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->choices[0].n_ids, 4);
	assert_int_equal(result->choices[0].ids[1], 2);
	assert_int_equal(result->choices[0].ids[3], 3);
	dsc_result_free(result);

	r.prompt = DSC_PROMPT_IDS;
	r.ids = ids;
	r.n_ids = 3;
	assert_int_equal(dsc_detokenize(p.c, &r, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_DETOKENIZE;
	f.detokenize = &d;
	d.has_text = 1;
	d.text = (ProtobufCBinaryData){3, (uint8_t *)"a\0b"};
	peer_send(&p, &f);
	d.last = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->choices[0].text_bytes, 6);
	assert_memory_equal(result->choices[0].text, "a\0ba\0b", 6);
	dsc_result_free(result);
	peer_done(&p);
}

static void models_and_stats_are_passed_on_whole(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ModelsReply mr = DSD__MODELS_REPLY__INIT;
	Dsd__Model a = DSD__MODEL__INIT, b = DSD__MODEL__INIT, *models[] = {&a, &b};
	Dsd__StatsReply sr = DSD__STATS_REPLY__INIT;
	Dsd__ModelStats ms = DSD__MODEL_STATS__INIT, *stats[] = {&ms};

	(void)state;
	a.name = (char *)"good";
	a.state = DSD__STATE__STATE_READY;
	a.has_params = 1;
	a.params = 15706484224;
	a.has_chat = a.chat = 1;
	b.name = (char *)"bad";
	b.state = DSD__STATE__STATE_DEGRADED;
	b.reason = (char *)"config.json: no such file";
	mr.models = models;
	mr.n_models = 2;
	assert_int_equal(dsc_models(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_MODELS;
	f.models = &mr;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_MODELS);
	assert_int_equal(e->n_models, 2);
	assert_string_equal(e->models[0]->name, "good");
	assert_int_equal(e->models[0]->params, 15706484224);
	assert_true(e->models[0]->chat);
	assert_null(e->models[0]->reason);
	assert_int_equal(e->models[1]->state, DSC_STATE_DEGRADED);
	assert_string_equal(e->models[1]->reason, "config.json: no such file");
	next(s, DSC_EVENT_DONE);
	ended(s);

	sr.version = (char *)"0.1.0";
	sr.io_backend = (char *)"uring";
	sr.state = DSD__STATE__STATE_READY;
	sr.requests_total = 12;
	sr.models = stats;
	sr.n_models = 1;
	ms.name = (char *)"good";
	ms.pages_used = 5;
	ms.has_pages_cached = ms.has_pages_published = ms.has_preemptions = 1;
	ms.pages_published = 3;
	sr.has_broker_cpu_usec = 1;
	sr.broker_cpu_usec = 17;
	ms.pages_cached = 7;
	ms.preemptions = UINT64_MAX;
	assert_int_equal(dsc_stats(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_STATS;
	f.stats = &sr;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_STATS);
	assert_string_equal(e->stats->io_backend, "uring");
	assert_int_equal(e->stats->requests_total, 12);
	assert_int_equal(e->stats->n_models, 1);
	assert_string_equal(e->stats->models[0]->name, "good");
	assert_int_equal(e->stats->models[0]->pages_used, 5);
	assert_int_equal(e->stats->models[0]->pages_cached, 7);
	assert_int_equal(e->stats->models[0]->pages_published, 3);
	assert_int_equal(e->stats->broker_cpu_usec, 17);
	assert_true(e->stats->models[0]->preemptions == UINT64_MAX);
	next(s, DSC_EVENT_DONE);
	ended(s);
	peer_done(&p);
}

static void peer_ack(struct peer *p, uint64_t id, uint64_t count)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;

	ack.has_count = count != 0;
	ack.count = count;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_ACK;
	f.ack = &ack;
	peer_send(p, &f);
}

static void list_comes_in_parts(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ListReply list = DSD__LIST_REPLY__INIT;
	Dsd__Request a = DSD__REQUEST__INIT, b = DSD__REQUEST__INIT, *requests[] = {&a, &b};

	(void)state;
	a.request = UINT64_MAX;
	a.uid = UINT32_MAX;
	a.pid = 77;
	a.model = (char *)"tiny";
	a.activity = DSD__ACTIVITY__ACTIVITY_DECODE;
	a.prompt_tokens = 9;
	a.cached_tokens = 8;
	a.completion_tokens = 7;
	a.pages = 6;
	a.age_usec = 5;
	a.has_priority = 1;
	a.priority = DSD__PRIORITY__PRIORITY_BATCH;
	b = a;
	b.request = 2;
	b.has_priority = 0;
	assert_int_equal(dsc_list(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_LIST;
	f.list = &list;
	list.requests = requests;
	list.n_requests = 2;
	peer_send(&p, &f);
	list.n_requests = 0;
	list.last = 1;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_REQUESTS);
	assert_int_equal(e->n_requests, 2);
	assert_true(e->requests[0]->request == UINT64_MAX);
	assert_true(e->requests[0]->uid == UINT32_MAX);
	assert_int_equal(e->requests[0]->pid, 77);
	assert_string_equal(e->requests[0]->model, "tiny");
	assert_int_equal(e->requests[0]->activity, DSC_ACTIVITY_DECODE);
	assert_int_equal(e->requests[0]->priority, DSC_PRIORITY_BATCH);
	assert_int_equal(e->requests[0]->prompt_tokens, 9);
	assert_int_equal(e->requests[0]->cached_tokens, 8);
	assert_int_equal(e->requests[0]->completion_tokens, 7);
	assert_int_equal(e->requests[0]->pages, 6);
	assert_int_equal(e->requests[0]->age_usec, 5);
	assert_int_equal(e->requests[1]->request, 2);
	assert_int_equal(e->requests[1]->priority, 0);
	assert_int_equal(next(s, DSC_EVENT_REQUESTS)->n_requests, 0);
	next(s, DSC_EVENT_DONE);
	ended(s);
	peer_done(&p);
}

static void administrative_requests_say_what_was_asked_and_done_counts(void **state)
{
	static const uint32_t ids[] = {3, 2, 1};
	struct dsc_message system = {DSC_ROLE_SYSTEM, "be brief", 8};
	struct dsc_request r = DSC_REQUEST_INIT;
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	Dsd__ClientFrame *f;

	(void)state;
	assert_int_equal(dsc_cancel_request(p.c, UINT64_MAX, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST);
	assert_true(f->cancel_request->request == UINT64_MAX);
	peer_ack(&p, f->id, 0);
	assert_int_equal(next(s, DSC_EVENT_DONE)->count, 0);
	ended(s);

	r.model = "tiny";
	r.text = "a\0b";
	r.text_bytes = 3;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_PUBLISH);
	assert_string_equal(f->publish->name, "prefix");
	assert_string_equal(f->publish->model, "tiny");
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_TEXT);
	assert_int_equal(f->publish->text.len, 3);
	assert_memory_equal(f->publish->text.data, "a\0b", 3);
	peer_ack(&p, f->id, 229);
	assert_int_equal(next(s, DSC_EVENT_DONE)->count, 229);

	r.prompt = DSC_PROMPT_CHAT;
	r.messages = &system;
	r.n_messages = 1;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_CHAT);
	assert_int_equal(f->publish->chat->n_messages, 1);
	assert_int_equal(f->publish->chat->messages[0]->role, DSD__ROLE__ROLE_SYSTEM);

	r.prompt = DSC_PROMPT_IDS;
	r.ids = ids;
	r.n_ids = 3;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_IDS);
	assert_int_equal(f->publish->ids->n_ids, 3);
	r.prompt = 77;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), -EINVAL);

	assert_int_equal(dsc_unpublish(p.c, "prefix", NULL, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_UNPUBLISH);
	assert_string_equal(f->unpublish->name, "prefix");
	assert_null(f->unpublish->model);
	peer_error(&p, f->id, DSC_CODE_NOT_FOUND, "nothing is published under that name");
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -ENOENT);

	assert_int_equal(dsc_evict(p.c, "tiny", &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_EVICT);
	assert_string_equal(f->evict->model, "tiny");
	peer_ack(&p, f->id, UINT64_MAX);
	assert_true(next(s, DSC_EVENT_DONE)->count == UINT64_MAX);
	ended(s);
	peer_done(&p);
}

static void peer_progress(struct peer *p, uint64_t id, const char *stage, float done)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Progress progress = DSD__PROGRESS__INIT;

	progress.stage = (char *)stage;
	progress.done = done;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_PROGRESS;
	f.progress = &progress;
	peer_send(p, &f);
}

static void verbs_of_models_tell_their_progress(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ClientFrame *f;
	uint64_t id;

	(void)state;
	assert_int_equal(dsc_load(p.c, "/models/tiny", NULL, &s), 0);
	f = peer_receive(&p);
	id = f->id;
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_LOAD);
	assert_string_equal(f->load->path, "/models/tiny");
	assert_null(f->load->name);
	peer_progress(&p, id, "packing", 0.25f);
	peer_progress(&p, id, "self-test", 1);
	peer_ack(&p, id, 0);
	e = next(s, DSC_EVENT_PROGRESS);
	assert_string_equal(e->stage, "packing");
	assert_true(e->progress == 0.25f);
	assert_string_equal(next(s, DSC_EVENT_PROGRESS)->stage, "self-test");
	next(s, DSC_EVENT_DONE);
	ended(s);

	assert_int_equal(dsc_unload(p.c, "tiny", &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_UNLOAD);
	assert_string_equal(f->unload->model, "tiny");
	assert_int_equal(dsc_reload(p.c, NULL, DSC_RELOAD_DRAIN, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_RELOAD);
	assert_null(f->reload->model);
	assert_true(f->reload->drain);
	assert_int_equal(dsc_drain(p.c, "tiny", 0, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_DRAIN);
	assert_false(f->drain->has_undo && f->drain->undo);
	assert_int_equal(dsc_drain(p.c, "tiny", DSC_DRAIN_UNDO, &s), 0);
	assert_true(peer_receive(&p)->drain->undo);
	assert_int_equal(dsc_drain(p.c, "tiny", 2, &s), -EINVAL);
	assert_false(peer_has_more(&p));
	peer_done(&p);
}

static void an_ack_answers_no_question(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;

	(void)state;
	assert_int_equal(dsc_list(p.c, &s), 0);
	peer_ack(&p, peer_receive(&p)->id, 1);
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -EPROTO);
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
		cmocka_unit_test(request_says_what_is_set_and_nothing_else),
		cmocka_unit_test(request_of_another_version_is_taken_or_refused_by_its_bytes),
		cmocka_unit_test(request_must_have_a_prompt_its_call_takes),
		cmocka_unit_test(request_past_a_frame_is_refused_and_the_connection_lives),
		cmocka_unit_test(prompt_past_a_frame_goes_beside_it_as_a_sealed_memfd),
		cmocka_unit_test(session_calls_say_what_is_set_and_give_the_id),
		cmocka_unit_test(large_request_goes_out_in_parts),
		cmocka_unit_test(requests_nobody_reads_are_refused_in_the_end),
		cmocka_unit_test(collect_adds_up_the_choices),
		cmocka_unit_test(collect_gives_what_came_before_an_error),
		cmocka_unit_test(score_keeps_every_logprob_over_its_parts),
		cmocka_unit_test(tokenize_and_detokenize_come_in_parts),
		cmocka_unit_test(models_and_stats_are_passed_on_whole),
		cmocka_unit_test(list_comes_in_parts),
		cmocka_unit_test(administrative_requests_say_what_was_asked_and_done_counts),
		cmocka_unit_test(verbs_of_models_tell_their_progress),
		cmocka_unit_test(an_ack_answers_no_question),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
