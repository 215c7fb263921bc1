/* SPDX-License-Identifier: Apache-2.0 */
/* The connection: a non-blocking socket with a buffer on either side.
 *
 * Frames are read until the socket is empty or enough was done for one call, cut out of the buffer,
 * unpacked in an arena, handed to their stream, and forgotten. The daemon is trusted with what it says
 * but not with memory: lengths are checked before room is made, and unpacking is bounded. Ranges are not
 * checked here, so that a later daemon may say more than this library knows: unknown frames and
 * frames of forgotten requests are dropped. Whatever breaks the framing ends the connection.
 *
 * A connection that was lost is made again (resume.c) where its path is known. One that has ended stays
 * as an object: its streams have their last event, every call says why. */
#include "dsclient.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define READ_BYTES     (64u << 10) /* room made for each read */
#define HELLO_NAME_MAX 64
#define READS_PER_CALL 16 /* so that one busy connection does not hold up an event loop */

int dsc_fail(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	c->code = code;
	return r;
}

static void passed_pop(struct dsc *c)
{
	struct passed *p = c->passed;

	c->passed = p->next;
	close(p->fd);
	free(p);
}

static void drop_socket(struct dsc *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -EBADF;
	c->greeted = false;
	while (c->passed)
		passed_pop(c);
}

int dsc_end(struct dsc *c, int r, enum dsc_code code, const char *fmt, ...)
{
	va_list ap;

	if (c->failed)
		return c->failed;
	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	c->code = c->failed_code = code;
	c->failed = r;
	drop_socket(c);
	for (struct dsc_stream *s = c->streams; s; s = s->next) {
		if (!s->ended)
			event_error(s, r, code, 0, c->text);
		resume_free(s);
	}
	return r;
}

int dsc_lost(struct dsc *c, int r, const char *fmt, ...)
{
	char text[DSC_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!c->path)
		return dsc_end(c, r, DSC_CODE_RETRYABLE, "%s", text);
	drop_socket(c);
	for (struct dsc_stream *s = c->streams; s; s = s->next)
		if (!s->ended)
			resume_lost(s, r, text);
	return 0;
}

/* ---------------------------------------------------------------- buffers */

/* Room for n more bytes behind the content. */
static int buffer_reserve(struct buffer *b, size_t n)
{
	size_t content = b->end - b->start, want, size;
	uint8_t *data;

	if (n <= b->size - b->end)
		return 0;
	if (content > 0)
		memmove(b->data, b->data + b->start, content);
	b->start = 0;
	b->end = content;
	if (__builtin_add_overflow(content, n, &want))
		return -ENOMEM;
	if (want <= b->size)
		return 0;
	size = b->size ? b->size : 4096;
	while (size < want)
		size = size > want / 2 ? want : size * 2;
	data = realloc(b->data, size);
	if (!data)
		return -ENOMEM;
	b->data = data;
	b->size = size;
	return 0;
}

/* An empty buffer that has been large gives its memory back. */
static void buffer_consume(struct buffer *b, size_t n)
{
	b->start += n;
	if (b->start < b->end)
		return;
	b->start = b->end = 0;
	if (b->size <= 2 * READ_BYTES)
		return;
	free(b->data);
	*b = (struct buffer){};
}

/* ---------------------------------------------------------------- sending */

/* One call's worth of what waits: up to the next frame with a descriptor, or that frame with it. */
static ssize_t send_some(struct dsc *c)
{
	struct passed *p = c->passed;
	struct iovec iov = {c->out.data + c->out.start, c->out.end - c->out.start};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	union {
		struct cmsghdr h;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	ssize_t n;

	if (p && p->start > c->sent) {
		iov.iov_len = p->start - c->sent;
	} else if (p) {
		iov.iov_len = p->end - c->sent;
		control.h = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
					     .cmsg_type = SCM_RIGHTS,
					     .cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(&control.h), &p->fd, sizeof(int));
		mh.msg_control = control.bytes;
		mh.msg_controllen = sizeof(control.bytes);
	}
	n = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n > 0 && mh.msg_control)
		passed_pop(c);
	return n;
}

static int flush(struct dsc *c)
{
	while (c->out.start < c->out.end) {
		ssize_t n = send_some(c);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return -errno; /* the daemon's last words may still be there to read */
		c->sent += (size_t)n;
		buffer_consume(&c->out, (size_t)n);
	}
	return 0;
}

static int put_passed(struct dsc *c, size_t n, int fd)
{
	uint64_t start = c->sent + (c->out.end - c->out.start);
	struct passed *p, **at = &c->passed;
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (copy < 0)
		return -errno;
	p = malloc(sizeof(*p));
	if (!p) {
		close(copy);
		return -ENOMEM;
	}
	*p = (struct passed){.start = start, .end = start + n, .fd = copy};
	while (*at)
		at = &(*at)->next;
	*at = p;
	return 0;
}

int dsc_put(struct dsc *c, const void *bytes, size_t n, int fd)
{
	int r = buffer_reserve(&c->out, n);

	if (r == 0 && fd >= 0)
		r = put_passed(c, n, fd);
	if (r < 0)
		return r;
	memcpy(c->out.data + c->out.end, bytes, n);
	c->out.end += n;
	return 0;
}

int dsc_send(struct dsc *c, const Dsd__ClientFrame *frame)
{
	return dsc_send_fd(c, frame, -EBADF);
}

int dsc_send_fd(struct dsc *c, const Dsd__ClientFrame *frame, int fd)
{
	uint8_t *bytes = NULL;
	size_t n = 0;
	int r;

	struct dsc_stream *s = dsc_find(c, frame->id, &(uint32_t){0});

	if (c->failed)
		return c->failed;
	if (c->out.end - c->out.start > DSC_UNSENT_MAX)
		return dsc_fail(c, -EAGAIN, DSC_CODE_NONE,
				"%zu bytes of requests wait to be sent already",
				c->out.end - c->out.start);
	r = wire_pack_frame(&frame->base, &bytes, &n);
	if (r == -EMSGSIZE)
		return dsc_fail(c, r, DSC_CODE_FRAME_TOO_LARGE,
				"the request takes %zu bytes, want at most %u",
				protobuf_c_message_get_packed_size(&frame->base), WIRE_FRAME_MAX);
	if (r == 0 && c->fd >= 0)
		r = dsc_put(c, bytes, n, fd);
	if (r == 0 && s)
		r = resume_keep(s, frame, bytes, n, fd, c->fd >= 0);
	if (r <= 0)
		free(bytes);
	if (r == -EAGAIN)
		return r;
	if (r < 0)
		return dsc_fail(c, r, DSC_CODE_NONE, "out of memory or descriptors");
	if (c->fd >= 0)
		flush(c); /* what it cannot do now, dsc_process() does or reports */
	return 0;
}

/* The program's name, for people; not one that the daemon would refuse. */
static char *hello_name(void)
{
	char *name = program_invocation_short_name;
	size_t n = 0;

	while (name[n] > ' ' && name[n] <= '~')
		n++;
	return name[n] == 0 && n <= HELLO_NAME_MAX ? name : NULL;
}

int dsc_send_hello(struct dsc *c)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Hello hello = DSD__HELLO__INIT;

	hello.protocol = WIRE_PROTOCOL;
	hello.client = hello_name();
	frame.id = DSC_HELLO_ID;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_HELLO;
	frame.hello = &hello;
	return dsc_send(c, &frame);
}

/* ---------------------------------------------------------------- receiving */

static int hello_answered(struct dsc *c, const Dsd__HelloReply *reply)
{
	if (reply->protocol != WIRE_PROTOCOL)
		return dsc_end(c, -EPROTO, DSC_CODE_NONE, "the daemon speaks protocol %u, want %d",
			       reply->protocol, WIRE_PROTOCOL);
	snprintf(c->version, sizeof(c->version), "%s", reply->version);
	c->state = (enum dsc_state)reply->state;
	c->hello = c->greeted = true;
	resume_greeted(c);
	return 0;
}

/* The daemon says why it ends the connection: whether another one may fare better. */
static bool may_come_back(const struct dsc *c, const Dsd__Error *e)
{
	return e->code == DSD__CODE__CODE_RETRYABLE ||
	       (c->outage_ms >= 0 && e->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED);
}

struct dsc_stream *dsc_find(const struct dsc *c, uint64_t id, uint32_t *ret_part)
{
	for (struct dsc_stream *s = c->streams; s; s = s->next)
		if (id >= s->id && id - s->id < resume_n_parts(s)) {
			*ret_part = (uint32_t)(id - s->id);
			return s;
		}
	return NULL;
}

static int receive_frame(struct dsc *c, Dsd__ServerFrame *frame)
{
	struct dsc_stream *s;
	uint32_t part;
	int r;

	if (frame->id == 0 ||
	    (frame->id == DSC_HELLO_ID && frame->msg_case == DSD__SERVER_FRAME__MSG_ERROR)) {
		if (frame->msg_case != DSD__SERVER_FRAME__MSG_ERROR)
			return 0;
		if (may_come_back(c, frame->error))
			return dsc_lost(c, -ECONNRESET, "%s", frame->error->message);
		return dsc_end(c, event_errno((enum dsc_code)frame->error->code),
			       (enum dsc_code)frame->error->code, "%s", frame->error->message);
	}
	if (frame->id == DSC_HELLO_ID)
		return frame->msg_case == DSD__SERVER_FRAME__MSG_HELLO
			       ? hello_answered(c, frame->hello)
			       : 0;
	s = dsc_find(c, frame->id, &part);
	if (!s || s->ended)
		return 0;
	r = resume_filter(s, part, frame);
	if (r > 0)
		r = event_from_frame(s, frame);
	if (s->ended)
		resume_free(s);
	if (r == -EPROTO)
		return dsc_end(c, r, DSC_CODE_NONE,
			       "the daemon answered a request with the answer of another kind");
	if (r < 0)
		return dsc_end(c, r, DSC_CODE_NONE, "out of memory for an answer");
	return 0;
}

static int receive_bytes(struct dsc *c, const uint8_t *data, size_t n)
{
	struct wire_arena arena;
	Dsd__ServerFrame *frame;
	char text[WIRE_TEXT_MAX];
	int r;

	r = wire_arena_init_server(&arena, n);
	if (r < 0)
		return dsc_end(c, r, DSC_CODE_NONE, "out of memory for a frame of %zu bytes", n);
	frame = wire_unpack_server(data, n, &arena);
	if (frame) {
		r = receive_frame(c, frame);
	} else {
		wire_unpack_text(&arena, n, text);
		r = dsc_end(c, -EPROTO, DSC_CODE_NONE, "from the daemon: %s", text);
	}
	wire_arena_done(&arena);
	return r;
}

/* Whole frames at the front of the buffer. */
static int receive_frames(struct dsc *c)
{
	while (c->in.end - c->in.start >= WIRE_HEADER_BYTES) {
		const uint8_t *at = c->in.data + c->in.start;
		uint32_t n = wire_frame_length(at);
		int r;

		if (n == 0 || n > WIRE_FRAME_MAX)
			return dsc_end(c, -EPROTO, DSC_CODE_NONE,
				       "from the daemon: got a frame of %u bytes, want 1 to %u", n,
				       WIRE_FRAME_MAX);
		if (c->in.end - c->in.start - WIRE_HEADER_BYTES < n)
			return 0;
		r = receive_bytes(c, at + WIRE_HEADER_BYTES, n);
		if (r < 0)
			return r;
		if (c->fd < 0)
			return 0; /* the daemon has taken its leave */
		buffer_consume(&c->in, WIRE_HEADER_BYTES + n);
	}
	return 0;
}

int dsc_process(struct dsc *c)
{
	int sent, r;

	if (c->failed)
		return c->failed;
	r = resume_tick(c);
	if (r < 0 || c->fd < 0)
		return r;
	sent = flush(c);
	for (unsigned i = 0; i < READS_PER_CALL && c->queued < DSC_QUEUE_MAX; i++) {
		ssize_t n;

		if (buffer_reserve(&c->in, READ_BYTES) < 0)
			return dsc_end(c, -ENOMEM, DSC_CODE_NONE, "out of memory for an answer");
		n = recv(c->fd, c->in.data + c->in.end, c->in.size - c->in.end, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			return dsc_lost(c, -errno, "reading from the daemon: %s", strerror(errno));
		if (n == 0)
			return dsc_lost(c, -ECONNRESET,
					c->in.end > c->in.start
						? "the daemon closed the connection within a frame"
						: "the daemon closed the connection");
		c->in.end += (size_t)n;
		r = receive_frames(c);
		if (r < 0 || c->fd < 0)
			return r;
	}
	if (sent < 0)
		return dsc_lost(c, sent, "writing to the daemon: %s", strerror(-sent));
	resume_send(c);
	flush(c);
	return 0;
}

/* ---------------------------------------------------------------- waiting */

int64_t dsc_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int dsc_left_ms(int64_t deadline_ms, int timeout_ms)
{
	int64_t left;

	if (timeout_ms < 0)
		return -1;
	left = deadline_ms - dsc_now_ms();
	return left > 0 ? (int)left : 0;
}

int dsc_sleep(struct dsc *c, int timeout_ms)
{
	struct pollfd p = {.fd = dsc_fd(c), .events = (short)dsc_events(c)};
	int own_ms = dsc_timeout(c);
	bool own = own_ms >= 0 && (timeout_ms < 0 || own_ms < timeout_ms);
	int n = poll(&p, 1, own ? own_ms : timeout_ms);

	if (n < 0)
		return dsc_fail(c, -errno, DSC_CODE_NONE, "waiting for the daemon: %s",
				strerror(errno));
	if (n == 0 && !own)
		return dsc_fail(c, -ETIMEDOUT, DSC_CODE_NONE, "the daemon did not answer in time");
	return 0;
}

int dsc_fd(const struct dsc *c)
{
	return c->fd;
}

int dsc_timeout(const struct dsc *c)
{
	return c->failed ? -1 : resume_timeout(c);
}

int dsc_events(const struct dsc *c)
{
	if (c->fd < 0)
		return 0;
	return (c->queued < DSC_QUEUE_MAX ? POLLIN : 0) | (c->out.start < c->out.end ? POLLOUT : 0);
}

int dsc_ping(struct dsc *c, int timeout_ms)
{
	int64_t deadline = dsc_now_ms() + timeout_ms;
	int r = c->failed;

	c->wanted = true;
	while (r == 0 && !c->greeted) {
		r = dsc_sleep(c, dsc_left_ms(deadline, timeout_ms));
		if (r == 0)
			r = dsc_process(c);
	}
	c->wanted = false;
	return r;
}

/* ---------------------------------------------------------------- life */

const char *dsc_socket_path(const char *path)
{
	const char *env;

	if (path)
		return path;
	env = getenv("DSD_SOCKET");
	return env && *env ? env : DSC_SOCKET_DEFAULT;
}

int dsc_connect_fd(struct dsc **ret, int fd, unsigned flags)
{
	struct dsc *c;
	int f, r;

	if (flags & ~DSC_NO_RESUME)
		return -EINVAL;
	f = fcntl(fd, F_GETFL);
	if (f < 0 || fcntl(fd, F_SETFL, f | O_NONBLOCK) < 0)
		return -errno;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->fd = fd;
	c->next_id = DSC_HELLO_ID + 1;
	c->patience_ms = DSC_PATIENCE_MS;
	c->outage_ms = -1;
	r = dsc_send_hello(c);
	if (r < 0) {
		c->fd = -EBADF; /* still the caller's */
		dsc_close(c);
		return r;
	}
	*ret = c;
	return 0;
}

int dsc_connect_path(const char *path, int flags)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

int dsc_connect(struct dsc **ret, const char *path, unsigned flags)
{
	char *copy = NULL;
	int fd, r;

	path = dsc_socket_path(path);
	if (!(flags & DSC_NO_RESUME)) {
		copy = strdup(path);
		if (!copy)
			return -ENOMEM;
	}
	fd = dsc_connect_path(path, 0);
	r = fd < 0 ? fd : dsc_connect_fd(ret, fd, flags);
	if (r < 0) {
		if (fd >= 0)
			close(fd);
		free(copy);
		return r;
	}
	(*ret)->path = copy;
	return 0;
}

void dsc_set_patience(struct dsc *c, int patience_ms)
{
	c->patience_ms = patience_ms > 0 ? patience_ms : 0;
}

void dsc_close(struct dsc *c)
{
	if (!c)
		return;
	drop_socket(c);
	c->failed = -ESHUTDOWN;
	while (c->streams)
		dsc_stream_free(c->streams);
	while (c->passed)
		passed_pop(c);
	free(c->in.data);
	free(c->out.data);
	free(c->path);
	free(c);
}

const char *dsc_version(const struct dsc *c)
{
	return c->hello ? c->version : NULL;
}

enum dsc_state dsc_server_state(const struct dsc *c)
{
	return c->state;
}

const char *dsc_error(const struct dsc *c)
{
	return c->text;
}

enum dsc_code dsc_code(const struct dsc *c)
{
	return c->code;
}

const char *dsc_code_name(enum dsc_code code)
{
	static const char *const names[] = {
		[DSC_CODE_NONE] = "NONE",
		[DSC_CODE_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
		[DSC_CODE_NOT_FOUND] = "NOT_FOUND",
		[DSC_CODE_FAILED_PRECONDITION] = "FAILED_PRECONDITION",
		[DSC_CODE_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
		[DSC_CODE_RETRYABLE] = "RETRYABLE",
		[DSC_CODE_CANCELLED] = "CANCELLED",
		[DSC_CODE_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
		[DSC_CODE_MODEL_INVALID] = "MODEL_INVALID",
		[DSC_CODE_MODEL_FAULT] = "MODEL_FAULT",
		[DSC_CODE_FRAME_TOO_LARGE] = "FRAME_TOO_LARGE",
		[DSC_CODE_MALFORMED] = "MALFORMED",
		[DSC_CODE_UNIMPLEMENTED] = "UNIMPLEMENTED",
		[DSC_CODE_PERMISSION_DENIED] = "PERMISSION_DENIED",
		[DSC_CODE_INTERNAL] = "INTERNAL",
	};

	return (unsigned)code < sizeof(names) / sizeof(names[0]) ? names[code] : "UNKNOWN";
}
