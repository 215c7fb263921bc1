/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient: what a request says, how it goes out, and which ones are refused. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "client_rig.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(request_says_what_is_set_and_nothing_else),
		cmocka_unit_test(request_of_another_version_is_taken_or_refused_by_its_bytes),
		cmocka_unit_test(request_must_have_a_prompt_its_call_takes),
		cmocka_unit_test(request_past_a_frame_is_refused_and_the_connection_lives),
		cmocka_unit_test(prompt_past_a_frame_goes_beside_it_as_a_sealed_memfd),
		cmocka_unit_test(session_calls_say_what_is_set_and_give_the_id),
		cmocka_unit_test(large_request_goes_out_in_parts),
		cmocka_unit_test(requests_nobody_reads_are_refused_in_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
