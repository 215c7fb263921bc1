/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient over the loss of its daemon. The daemon is played here, on a socket with a path: it answers any
 * request, also one that goes on, with what follows from the request alone, and leaves when it was told to. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "dsclient.h"
#include "wire.h"

#define SEED     77
#define N_PROMPT 5
#define N_TOKENS 7 /* of choice 0; each further one has one less */
#define N_SCORE  40
#define DIGEST   "0123456789abcdef0123456789abcdef"
#define NEVER    SIZE_MAX
#define BARELY   80  /* bytes said: Hello and Started, no Delta */
#define MIDWAY   130 /* some of the tokens of an only Generate */

/* ---------------------------------------------------------------- memory that runs out */

/* Of the allocations that hold a frame taken apart, the one that fails while the library works; 0: none. */
static unsigned arena_fails;
static bool in_library;

#ifndef __SANITIZE_ADDRESS__ /* has an allocator of its own */
extern void *__libc_malloc(size_t n);

__attribute__((visibility("default"))) void *malloc(size_t n)
{
	if (in_library && n >= WIRE_ARENA_FIXED && arena_fails > 0 && --arena_fails == 0)
		return NULL;
	return __libc_malloc(n);
}
#endif

/* ---------------------------------------------------------------- the daemon */

struct daemon {
	char dir[64], path[96];
	int listen_fd, fd;
	size_t leave_at[32]; /* bytes said on each connection before it goes; NEVER */
	unsigned n_connections;
	uint8_t in[1 << 16], *out;
	size_t n_in, n_out, sent;
	unsigned n_requests, n_resumed, n_cancels, n_retryable; /* n_retryable: to be answered so */
	uint32_t deadline_ms;
	bool other_model, other_seed, other_score;
};

static void listen_on(struct daemon *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	strcpy(a.sun_path, d->path);
	d->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(d->listen_fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(d->listen_fd, 8), 0);
}

static void unlisten(struct daemon *d)
{
	close(d->listen_fd);
	unlink(d->path);
	d->listen_fd = -1;
}

static void leave(struct daemon *d)
{
	close(d->fd);
	d->fd = -1;
	d->n_in = d->n_out = d->sent = 0;
}

static struct daemon *daemon_new(void)
{
	struct daemon *d = calloc(1, sizeof(*d));

	assert_non_null(d);
	strcpy(d->dir, "/tmp/dsd-resume-XXXXXX");
	assert_non_null(mkdtemp(d->dir));
	snprintf(d->path, sizeof(d->path), "%s/s", d->dir);
	d->fd = -1;
	d->out = malloc(1 << 20);
	assert_non_null(d->out);
	for (size_t i = 0; i < 32; i++)
		d->leave_at[i] = NEVER;
	listen_on(d);
	return d;
}

static void daemon_free(struct daemon *d)
{
	if (d->fd >= 0)
		close(d->fd);
	if (d->listen_fd >= 0)
		unlisten(d);
	rmdir(d->dir);
	free(d->out);
	free(d);
}

static void say(struct daemon *d, uint64_t id, Dsd__ServerFrame *f)
{
	uint8_t *bytes = NULL;
	size_t n = 0;

	f->id = id;
	assert_int_equal(wire_pack_frame(&f->base, &bytes, &n), 0);
	assert_true(d->n_out + n <= 1 << 20);
	memcpy(d->out + d->n_out, bytes, n);
	d->n_out += n;
	free(bytes);
}

static void say_error(struct daemon *d, uint64_t id, Dsd__Code code, const char *text)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Error e = DSD__ERROR__INIT;

	e.code = code;
	e.message = (char *)text;
	f.msg_case = DSD__SERVER_FRAME__MSG_ERROR;
	f.error = &e;
	say(d, id, &f);
}

/* Token j of choice k: its id, and a text of two tokens every second time, as of characters of two tokens. */
static uint32_t token_id(uint32_t k, uint32_t j)
{
	return 100 * (k + 1) + j;
}

static const char *token_text(uint32_t k, uint32_t j)
{
	static char text[32];

	snprintf(text, sizeof(text), "<%u.%u%u>", k, j - 1, j);
	return j % 2 ? text : "";
}

static void say_delta(struct daemon *d, uint64_t id, uint32_t told, uint32_t id_of,
		      const char *text, bool lp, Dsd__Finish finish)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Delta m = DSD__DELTA__INIT;
	Dsd__TokenLogprob t = DSD__TOKEN_LOGPROB__INIT, *list = &t;

	m.has_choice = told > 0;
	m.choice = told;
	m.ids = &id_of;
	m.n_ids = finish ? 0 : 1;
	t.id = id_of;
	t.has_logprob = 1;
	t.logprob = -(float)id_of;
	m.logprobs = &list;
	m.n_logprobs = lp && !finish;
	m.has_text = *text != 0;
	m.text = (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
	m.has_finish = finish != 0;
	m.finish = finish ? finish : DSD__FINISH__FINISH_EOS;
	f.msg_case = DSD__SERVER_FRAME__MSG_DELTA;
	f.delta = &m;
	say(d, id, &f);
}

static void answer_generate(struct daemon *d, uint64_t id, const Dsd__Generate *g)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Started started = DSD__STARTED__INIT;
	Dsd__Done done = DSD__DONE__INIT;
	Dsd__Usage usage = DSD__USAGE__INIT;
	const Dsd__Resume *r = g->resume;
	uint32_t n = g->sampling->has_n ? g->sampling->n : 1, first = r ? r->choice : 0;
	uint32_t had = r ? (uint32_t)r->n_generated_ids : 0;
	bool lp = g->sampling->has_logprobs, echo = g->sampling->has_echo && g->sampling->echo;

	d->deadline_ms = g->has_deadline_ms ? g->deadline_ms : 0;
	if (r) {
		d->n_resumed++;
		assert_int_equal(n, 1);
		assert_int_equal(r->seed, SEED);
		assert_int_equal(r->model_digest.len, 32);
		assert_memory_equal(r->model_digest.data, DIGEST, 32);
		for (uint32_t j = 0; j < had; j++)
			assert_int_equal(r->generated_ids[j], token_id(first, j));
		assert_true(had <= N_TOKENS - first &&
			    (had == 0 || !echo || r->echoed == N_PROMPT));
		if (d->other_model) {
			say_error(d, id, DSD__CODE__CODE_FAILED_PRECONDITION, "another model");
			return;
		}
	}
	started.request = ++d->n_requests;
	started.seed = SEED + (r && d->other_seed);
	started.model_digest = (ProtobufCBinaryData){32, (uint8_t *)DIGEST};
	started.prompt_tokens = N_PROMPT;
	started.model = (char *)"tiny";
	f.msg_case = DSD__SERVER_FRAME__MSG_STARTED;
	f.started = &started;
	say(d, id, &f);
	if (d->n_retryable) {
		d->n_retryable--;
		for (uint32_t k = 0; k < n; k++)
			say_delta(d, id, k, token_id(k + first, had), token_text(k + first, had),
				  lp, 0);
		say_error(d, id, DSD__CODE__CODE_RETRYABLE, "the worker went away");
		return;
	}
	for (uint32_t j = r ? r->echoed : 0; echo && j < N_PROMPT; j++)
		for (uint32_t k = 0; k < n; k++)
			say_delta(d, id, k, j, "p", lp, 0);
	for (uint32_t j = had; j <= N_TOKENS; j++)
		for (uint32_t k = 0; k < n; k++) {
			uint32_t n_tokens = N_TOKENS - (k + first);

			if (j < n_tokens)
				say_delta(d, id, k, token_id(k + first, j),
					  token_text(k + first, j), lp, 0);
			else if (j == n_tokens)
				say_delta(d, id, k, 0, "!", lp, DSD__FINISH__FINISH_EOS);
		}
	usage.prompt_tokens = N_PROMPT;
	for (uint32_t k = 0; k < n; k++)
		usage.completion_tokens += N_TOKENS - (k + first) + 1;
	done.usage = &usage;
	f.msg_case = DSD__SERVER_FRAME__MSG_DONE;
	f.done = &done;
	say(d, id, &f);
}

/* Parts end elsewhere each time. */
static void answer_score(struct daemon *d, uint64_t id)
{
	uint32_t part = 3 + d->n_connections;

	for (uint32_t i = 0; i < N_SCORE; i += part) {
		Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
		Dsd__ScoreReply m = DSD__SCORE_REPLY__INIT;
		Dsd__TokenLogprob t[64], *list[64];
		uint32_t n = part < N_SCORE - i ? part : N_SCORE - i;

		for (uint32_t k = 0; k < n; k++) {
			t[k] = (Dsd__TokenLogprob)DSD__TOKEN_LOGPROB__INIT;
			t[k].id = i + k;
			t[k].has_logprob = i + k > 0;
			t[k].logprob = -(float)(i + k) - (d->other_score && d->n_connections > 1);
			list[k] = &t[k];
		}
		m.tokens = list;
		m.n_tokens = n;
		m.last = i + part >= N_SCORE;
		f.msg_case = DSD__SERVER_FRAME__MSG_SCORE;
		f.score = &m;
		say(d, id, &f);
	}
}

static void answer_pieces(struct daemon *d, uint64_t id, bool text)
{
	uint32_t ids[] = {9, 8, 7};

	for (int i = 0; i < 2; i++) {
		Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
		Dsd__TokenizeReply t = DSD__TOKENIZE_REPLY__INIT;
		Dsd__DetokenizeReply u = DSD__DETOKENIZE_REPLY__INIT;

		t.ids = ids + 2 * i;
		t.n_ids = i ? 1 : 2;
		u.has_text = 1;
		u.text = (ProtobufCBinaryData){3, (uint8_t *)(i ? "def" : "abc")};
		t.last = u.last = i;
		f.msg_case =
			text ? DSD__SERVER_FRAME__MSG_DETOKENIZE : DSD__SERVER_FRAME__MSG_TOKENIZE;
		if (text)
			f.detokenize = &u;
		else
			f.tokenize = &t;
		say(d, id, &f);
	}
}

static void answer_models(struct daemon *d, uint64_t id)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ModelsReply m = DSD__MODELS_REPLY__INIT;

	f.msg_case = DSD__SERVER_FRAME__MSG_MODELS;
	f.models = &m;
	say(d, id, &f);
}

static void answer_hello(struct daemon *d)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__HelloReply h = DSD__HELLO_REPLY__INIT;

	h.protocol = 1;
	h.version = (char *)"1";
	h.state = DSD__STATE__STATE_READY;
	h.max_frame_bytes = WIRE_FRAME_MAX;
	f.msg_case = DSD__SERVER_FRAME__MSG_HELLO;
	f.hello = &h;
	say(d, 1, &f);
}

static void answer(struct daemon *d, const Dsd__ClientFrame *f)
{
	switch (f->msg_case) {
	case DSD__CLIENT_FRAME__MSG_HELLO:
		answer_hello(d);
		break;
	case DSD__CLIENT_FRAME__MSG_GENERATE:
		answer_generate(d, f->id, f->generate);
		break;
	case DSD__CLIENT_FRAME__MSG_SCORE:
		answer_score(d, f->id);
		break;
	case DSD__CLIENT_FRAME__MSG_TOKENIZE:
		answer_pieces(d, f->id, false);
		break;
	case DSD__CLIENT_FRAME__MSG_DETOKENIZE:
		answer_pieces(d, f->id, true);
		break;
	case DSD__CLIENT_FRAME__MSG_MODELS:
		answer_models(d, f->id);
		break;
	case DSD__CLIENT_FRAME__MSG_CANCEL:
		d->n_cancels++;
		break;
	default:
		fail();
	}
}

static void take_frames(struct daemon *d)
{
	size_t at = 0;

	while (d->n_in - at >= WIRE_HEADER_BYTES) {
		uint32_t n = wire_frame_length(d->in + at);
		struct wire_arena arena;
		Dsd__ClientFrame *f;
		char text[WIRE_TEXT_MAX];

		if (d->n_in - at - WIRE_HEADER_BYTES < n)
			break;
		assert_int_equal(wire_arena_init(&arena, n), 0);
		f = wire_unpack_client(d->in + at + WIRE_HEADER_BYTES, n, &arena);
		assert_non_null(f);
		assert_int_equal(wire_check(&f->base, text), 0);
		answer(d, f);
		wire_arena_done(&arena);
		at += WIRE_HEADER_BYTES + n;
	}
	memmove(d->in, d->in + at, d->n_in - at);
	d->n_in -= at;
}

/* Whatever can be done now. */
static void daemon_step(struct daemon *d)
{
	size_t limit, n;
	ssize_t got;

	if (d->fd < 0 && d->listen_fd >= 0) {
		d->fd = accept4(d->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (d->fd >= 0)
			assert_true(++d->n_connections < 32);
	}
	if (d->fd < 0)
		return;
	got = recv(d->fd, d->in + d->n_in, sizeof(d->in) - d->n_in, 0);
	if (got == 0 || (got < 0 && errno != EAGAIN)) {
		leave(d);
		return;
	}
	if (got > 0)
		d->n_in += (size_t)got;
	take_frames(d);
	limit = d->leave_at[d->n_connections - 1];
	n = d->n_out < limit ? d->n_out : limit;
	if (n > d->sent)
		assert_int_equal(send(d->fd, d->out + d->sent, n - d->sent, MSG_NOSIGNAL),
				 n - d->sent);
	d->sent = n;
	if (n == limit)
		leave(d);
}

/* ---------------------------------------------------------------- the client */

#define STREAMS_MAX 5

struct client {
	struct daemon *d;
	struct dsc *c;
	struct dsc_stream *s[STREAMS_MAX];
	struct dsc_result *result[STREAMS_MAX];
	unsigned n_streams, n_started, n_finished, n_ends;
	int error;
	enum dsc_code code;
};

static void client_connect(struct client *k, struct daemon *d, unsigned flags)
{
	*k = (struct client){.d = d};
	assert_int_equal(dsc_connect(&k->c, d->path, flags), 0);
}

static void client_add(struct client *k, struct dsc_stream *s)
{
	k->s[k->n_streams] = s;
	k->result[k->n_streams] = dsc_result_new();
	assert_non_null(k->result[k->n_streams++]);
}

static struct dsc_stream *client_generate(struct client *k, uint32_t n, uint64_t set,
					  uint32_t deadline_ms)
{
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;

	r.text = "hi";
	r.text_bytes = 2;
	r.set = DSC_SET_N | set;
	r.n = n;
	r.deadline_ms = deadline_ms;
	assert_int_equal(dsc_generate(k->c, &r, &s), 0);
	client_add(k, s);
	return s;
}

static void client_take(struct client *k)
{
	const struct dsc_event *e;

	for (unsigned i = 0; i < k->n_streams; i++)
		while (dsc_next(k->s[i], &e) > 0) {
			k->n_started += e->type == DSC_EVENT_STARTED;
			k->n_finished += e->type == DSC_EVENT_FINISHED;
			k->n_ends += e->type == DSC_EVENT_DONE || e->type == DSC_EVENT_ERROR;
			if (e->type == DSC_EVENT_ERROR) {
				k->error = e->error;
				k->code = e->code;
			}
			assert_int_equal(dsc_result_add(k->result[i], e), 0);
		}
}

static void client_step(struct client *k)
{
	struct pollfd p = {.fd = dsc_fd(k->c), .events = (short)dsc_events(k->c)};
	int ms = dsc_timeout(k->c);

	poll(&p, 1, ms < 0 || ms > 1000 ? 0 : ms < 5 ? ms : 5);
	in_library = true;
	dsc_process(k->c);
	in_library = false;
	client_take(k);
}

static void client_run(struct client *k)
{
	for (int i = 0; k->n_ends < k->n_streams; i++) {
		assert_true(i < 20000);
		daemon_step(k->d);
		client_step(k);
	}
}

static void client_done(struct client *k)
{
	for (unsigned i = 0; i < k->n_streams; i++)
		dsc_result_free(k->result[i]);
	dsc_close(k->c);
}

/* ---------------------------------------------------------------- what a whole answer is */

static void check_generate(const struct dsc_result *r, uint32_t n, uint32_t n_echo)
{
	uint32_t total = 0;

	assert_int_equal(r->n_choices, n);
	assert_int_equal(r->seed, SEED);
	for (uint32_t k = 0; k < n; k++) {
		const struct dsc_choice *ch = &r->choices[k];
		uint32_t n_tokens = N_TOKENS - k;
		char want[256] = "";

		assert_int_equal(ch->n_ids, n_echo + n_tokens);
		assert_int_equal(ch->n_tokens, n_echo + n_tokens);
		for (uint32_t j = 0; j < n_echo; j++) {
			assert_int_equal(ch->ids[j], j);
			strcat(want, "p");
		}
		for (uint32_t j = 0; j < n_tokens; j++) {
			assert_int_equal(ch->ids[n_echo + j], token_id(k, j));
			assert_true(ch->tokens[n_echo + j].logprob == -(float)token_id(k, j));
			strcat(want, token_text(k, j));
		}
		strcat(want, "!");
		assert_string_equal(ch->text, want);
		assert_int_equal(ch->finish, DSC_FINISH_EOS);
		total += n_tokens + 1;
	}
	assert_int_equal(r->usage.prompt_tokens, N_PROMPT);
	assert_int_equal(r->usage.completion_tokens, total);
}

static void check_score(const struct dsc_result *r)
{
	assert_int_equal(r->choices[0].n_tokens, N_SCORE);
	for (uint32_t i = 0; i < N_SCORE; i++) {
		assert_int_equal(r->choices[0].tokens[i].id, i);
		assert_true(r->choices[0].tokens[i].logprob == -(float)i);
	}
}

static void start_all(struct client *k, uint32_t n, uint64_t set)
{
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	uint32_t id = 1;

	client_generate(k, n, DSC_SET_LOGPROBS | set, 0);
	r.text = "hi";
	r.text_bytes = 2;
	assert_int_equal(dsc_score(k->c, &r, &s), 0);
	client_add(k, s);
	assert_int_equal(dsc_tokenize(k->c, &r, &s), 0);
	client_add(k, s);
	r.prompt = DSC_PROMPT_IDS;
	r.ids = &id;
	r.n_ids = 1;
	assert_int_equal(dsc_detokenize(k->c, &r, &s), 0);
	client_add(k, s);
	assert_int_equal(dsc_models(k->c, &s), 0);
	client_add(k, s);
}

/* One of everything, with connections that end after so many bytes. Return: bytes said on the last one. */
static size_t run_all(uint32_t n, uint64_t set, size_t leave_first, size_t leave_second)
{
	static const uint32_t ids[] = {9, 8, 7};
	struct daemon *d = daemon_new();
	struct client k;
	size_t said;

	d->leave_at[0] = leave_first;
	d->leave_at[1] = leave_second;
	client_connect(&k, d, 0);
	start_all(&k, n, set);
	client_run(&k);
	assert_int_equal(k.error, 0);
	assert_int_equal(k.n_ends, k.n_streams);
	assert_int_equal(k.n_started, 1);
	assert_int_equal(k.n_finished, n);
	check_generate(k.result[0], n, set & DSC_SET_ECHO ? N_PROMPT : 0);
	check_score(k.result[1]);
	assert_int_equal(k.result[2]->choices[0].n_ids, 3);
	assert_memory_equal(k.result[2]->choices[0].ids, ids, sizeof(ids));
	assert_string_equal(k.result[3]->choices[0].text, "abcdef");
	said = d->n_out;
	client_done(&k);
	daemon_free(d);
	return said;
}

static void answers_are_the_same_wherever_the_connection_dies(void **state)
{
	static const uint64_t sets[] = {0, DSC_SET_ECHO};

	(void)state;
	for (uint32_t n = 1; n <= 3; n += 2)
		for (size_t i = 0; i < 2; i++) {
			size_t end = run_all(n, sets[i], NEVER, NEVER);

			assert_true(end > 500);
			for (size_t at = 0; at < end; at++)
				run_all(n, sets[i], at, NEVER);
		}
}

/* The request that is to go on is taken apart and put together anew, too. */
static void a_stream_ends_once_whatever_frame_there_is_no_memory_for(void **state)
{
	unsigned n_failed = 0;

	(void)state;
	for (unsigned fails = 1;; fails++) {
		struct daemon *d = daemon_new();
		struct client k;
		bool failed;

		d->leave_at[0] = MIDWAY;
		client_connect(&k, d, 0);
		client_generate(&k, 1, 0, 0);
		arena_fails = fails;
		client_run(&k);
		failed = arena_fails == 0;
		arena_fails = 0;
		assert_int_equal(k.n_ends, 1);
		assert_true(k.error == (failed ? -ENOMEM : 0));
		client_done(&k);
		daemon_free(d);
		n_failed += failed;
		if (!failed)
			break;
	}
#ifndef __SANITIZE_ADDRESS__
	assert_true(n_failed > 4);
#endif
}

static void answers_are_the_same_when_the_next_connection_dies_too(void **state)
{
	size_t end = run_all(2, 0, NEVER, NEVER);

	(void)state;
	for (size_t at = 30; at < end; at += 61)
		for (size_t then = 0; then < end; then += 47)
			run_all(2, 0, at, then);
}

/* ---------------------------------------------------------------- one thing at a time */

static void retryable_request_is_sent_again_on_its_connection(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->n_retryable = 3; /* the request, then one of its choices twice or two of them */
	client_connect(&k, d, 0);
	client_generate(&k, 2, DSC_SET_LOGPROBS, 0);
	client_run(&k);
	assert_int_equal(k.error, 0);
	assert_int_equal(k.n_started, 1);
	check_generate(k.result[0], 2, 0);
	assert_int_equal(d->n_connections, 1);
	assert_int_equal(d->n_resumed, 4);
	client_done(&k);
	daemon_free(d);
}

static void no_resume_ends_with_the_connection_and_with_retryable(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, DSC_NO_RESUME);
	client_generate(&k, 1, 0, 0);
	client_run(&k);
	assert_int_equal(k.error, -ECONNRESET);
	assert_int_equal(k.code, DSC_CODE_RETRYABLE);
	assert_int_equal(dsc_process(k.c), -ECONNRESET);
	assert_int_equal(dsc_timeout(k.c), -1);
	client_done(&k);

	d->n_retryable = 1;
	client_connect(&k, d, DSC_NO_RESUME);
	client_generate(&k, 1, 0, 0);
	client_run(&k);
	assert_int_equal(k.code, DSC_CODE_RETRYABLE);
	assert_int_equal(d->n_connections, 2);
	client_done(&k);
	assert_int_equal(dsc_connect(&k.c, d->path, 2), -EINVAL);
	daemon_free(d);
}

static void connection_is_waited_for_while_the_socket_is_away(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	client_generate(&k, 1, DSC_SET_LOGPROBS, 0);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	unlisten(d);
	for (int i = 0; i < 10; i++)
		client_step(&k);
	assert_int_equal(k.n_ends, 0);
	assert_true(dsc_fd(k.c) < 0);
	assert_int_equal(dsc_events(k.c), 0);
	assert_in_range(dsc_timeout(k.c), 0, 500);
	listen_on(d);
	client_run(&k);
	check_generate(k.result[0], 1, 0);
	assert_int_equal(k.n_started, 1);
	client_done(&k);
	daemon_free(d);
}

static void patience_ends(void **state)
{
	struct daemon *d = daemon_new();
	struct dsc_stream *s;
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	dsc_set_patience(k.c, 40);
	client_generate(&k, 1, 0, 0);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	unlisten(d);
	client_run(&k);
	assert_int_equal(k.error, -ECONNRESET);
	assert_int_equal(k.code, DSC_CODE_RETRYABLE);
	assert_non_null(strstr(dsc_error(k.c), "No such file"));
	assert_true(dsc_fd(k.c) < 0);
	assert_int_equal(dsc_timeout(k.c), -1);
	assert_int_equal(dsc_models(k.c, &s), -ECONNRESET);
	client_done(&k);
	daemon_free(d);
}

/* A socket that systemd holds takes connections though nobody answers. */
static void daemon_that_never_greets_costs_patience(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	dsc_set_patience(k.c, 40);
	client_generate(&k, 1, 0, 0);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	while (k.n_ends == 0)
		client_step(&k);
	assert_int_equal(k.code, DSC_CODE_RETRYABLE);
	assert_non_null(strstr(dsc_error(k.c), "timed out"));
	client_done(&k);
	daemon_free(d);
}

static void request_that_ends_every_daemon_is_given_up(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	for (int i = 0; i < 32; i++)
		d->leave_at[i] = BARELY; /* Hello, Started, and nothing comes of it */
	client_connect(&k, d, 0);
	client_generate(&k, 1, 0, 0);
	client_run(&k);
	assert_int_equal(k.code, DSC_CODE_RETRYABLE);
	assert_int_equal(k.n_started, 1);
	assert_int_equal(d->n_connections, 11);
	client_done(&k);
	daemon_free(d);
}

static void cancelled_stream_is_not_sent_again(void **state)
{
	struct daemon *d = daemon_new();
	struct dsc_stream *s;
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	s = client_generate(&k, 1, 0, 0);
	client_generate(&k, 1, DSC_SET_LOGPROBS, 0);
	while (k.n_started == 0) {
		daemon_step(d);
		client_step(&k);
	}
	assert_int_equal(dsc_cancel(s), 0);
	client_run(&k);
	assert_int_equal(k.code, DSC_CODE_CANCELLED);
	assert_int_equal(d->n_requests, 3);
	check_generate(k.result[1], 1, 0);
	client_done(&k);
	daemon_free(d);
}

static void stream_cancelled_in_an_outage_ends_at_once(void **state)
{
	struct daemon *d = daemon_new();
	struct dsc_stream *s;
	const struct dsc_event *e = NULL;
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	s = client_generate(&k, 2, 0, 0);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	while (dsc_fd(k.c) >= 0)
		client_step(&k);
	assert_int_equal(dsc_cancel(s), 0);
	assert_int_equal(dsc_next(s, &e), 1);
	assert_int_equal(e->code, DSC_CODE_CANCELLED);
	assert_int_equal(dsc_next(s, &e), 0);
	assert_int_equal(dsc_timeout(k.c), -1); /* nobody wants a connection */
	client_done(&k);
	daemon_free(d);
}

static void deadline_counts_from_the_first_submission(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	client_generate(&k, 1, DSC_SET_LOGPROBS | DSC_SET_DEADLINE_MS, 3600000);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	assert_int_equal(d->deadline_ms, 3600000);
	poll(NULL, 0, 30);
	client_run(&k);
	check_generate(k.result[0], 1, 0);
	assert_in_range(d->deadline_ms, 1, 3600000 - 30);
	client_done(&k);
	daemon_free(d);
}

static void deadline_passes_while_nobody_is_there(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	d->leave_at[0] = MIDWAY;
	client_connect(&k, d, 0);
	client_generate(&k, 1, DSC_SET_DEADLINE_MS, 50);
	while (d->n_connections == 0 || d->fd >= 0) {
		daemon_step(d);
		client_step(&k);
	}
	unlisten(d);
	client_run(&k);
	assert_int_equal(k.code, DSC_CODE_DEADLINE_EXCEEDED);
	client_done(&k);
	daemon_free(d);
}

static void run_to_failure(struct daemon *d, size_t leave_at, bool score)
{
	struct client k;

	d->leave_at[0] = leave_at;
	client_connect(&k, d, 0);
	if (score)
		start_all(&k, 1, 0);
	else
		client_generate(&k, 2, 0, 0);
	client_run(&k);
	assert_int_equal(k.n_ends, k.n_streams);
	assert_int_equal(k.code, DSC_CODE_FAILED_PRECONDITION);
	client_done(&k);
	daemon_free(d);
}

static void another_model_after_the_restart_is_an_error(void **state)
{
	struct daemon *d = daemon_new();

	(void)state;
	d->other_model = true;
	run_to_failure(d, MIDWAY, false);
	d = daemon_new();
	d->other_seed = true;
	run_to_failure(d, MIDWAY, false);
}

static void another_answer_to_a_score_is_an_error(void **state)
{
	struct daemon *d = daemon_new();

	(void)state;
	d->other_score = true;
	run_to_failure(d, 353, true);
}

static void idle_connection_is_made_again_when_it_is_wanted(void **state)
{
	struct daemon *d = daemon_new();
	struct client k;

	(void)state;
	client_connect(&k, d, 0);
	client_generate(&k, 1, DSC_SET_LOGPROBS, 0);
	client_run(&k);
	leave(d);
	assert_int_equal(dsc_process(k.c), 0);
	assert_true(dsc_fd(k.c) < 0);
	assert_int_equal(dsc_timeout(k.c), -1);
	client_generate(&k, 1, DSC_SET_LOGPROBS, 0);
	client_run(&k);
	check_generate(k.result[1], 1, 0);
	assert_int_equal(d->n_resumed, 0);
	leave(d); /* not noticed before the next request */
	client_generate(&k, 1, DSC_SET_LOGPROBS, 0);
	client_run(&k);
	check_generate(k.result[2], 1, 0);
	assert_int_equal(d->n_connections, 3);
	client_done(&k);
	daemon_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_are_the_same_wherever_the_connection_dies),
		cmocka_unit_test(a_stream_ends_once_whatever_frame_there_is_no_memory_for),
		cmocka_unit_test(answers_are_the_same_when_the_next_connection_dies_too),
		cmocka_unit_test(retryable_request_is_sent_again_on_its_connection),
		cmocka_unit_test(no_resume_ends_with_the_connection_and_with_retryable),
		cmocka_unit_test(connection_is_waited_for_while_the_socket_is_away),
		cmocka_unit_test(patience_ends),
		cmocka_unit_test(daemon_that_never_greets_costs_patience),
		cmocka_unit_test(request_that_ends_every_daemon_is_given_up),
		cmocka_unit_test(cancelled_stream_is_not_sent_again),
		cmocka_unit_test(stream_cancelled_in_an_outage_ends_at_once),
		cmocka_unit_test(deadline_counts_from_the_first_submission),
		cmocka_unit_test(deadline_passes_while_nobody_is_there),
		cmocka_unit_test(another_model_after_the_restart_is_an_error),
		cmocka_unit_test(another_answer_to_a_score_is_an_error),
		cmocka_unit_test(idle_connection_is_made_again_when_it_is_wanted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
