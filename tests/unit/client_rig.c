/* SPDX-License-Identifier: Apache-2.0 */
#include "client_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

void peer_send_bytes(struct peer *p, const void *data, size_t n)
{
	size_t at = 0;

	while (at < n) {
		ssize_t k = send(p->fd, (const char *)data + at, n - at, MSG_NOSIGNAL);

		assert_true(k > 0);
		at += (size_t)k;
	}
}

void peer_send(struct peer *p, const Dsd__ServerFrame *frame)
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

Dsd__ClientFrame *peer_receive(struct peer *p)
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

bool peer_has_more(struct peer *p)
{
	char c;

	return recv(p->fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) > 0;
}

struct peer peer_new(void)
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

void peer_done(struct peer *p)
{
	dsc_close(p->c);
	if (p->fd >= 0)
		close(p->fd);
	wire_arena_done(&p->arena);
}

void peer_hello(struct peer *p)
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

void peer_started(struct peer *p, uint64_t id, uint64_t seed)
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

void peer_delta(struct peer *p, uint64_t id, uint32_t choice, const char *text, int finish)
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

void peer_finished(struct peer *p, uint64_t id)
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

void peer_error(struct peer *p, uint64_t id, int code, const char *message)
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

struct dsc_stream *generate(struct peer *p, uint64_t *ret_id)
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

const struct dsc_event *next(struct dsc_stream *s, enum dsc_event_type want)
{
	const struct dsc_event *e = NULL;

	assert_int_equal(dsc_wait(s, &e, 5000), 1);
	assert_int_equal(e->type, want);
	return e;
}

void ended(struct dsc_stream *s)
{
	const struct dsc_event *e = NULL;

	assert_int_equal(dsc_wait(s, &e, 5000), 0);
	assert_int_equal(dsc_next(s, &e), 0);
	assert_null(e);
}
