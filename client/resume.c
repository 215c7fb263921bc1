/* SPDX-License-Identifier: Apache-2.0 */
/* What a stream needs to go on over the loss of its connection, its worker or the daemon.
 *
 * The request is kept as it was packed, and of the answer what the daemon must be told to go on: the ids
 * of a Generate, how much came of the others. When the connection is lost, requests that are under way
 * wait; dsc_process() connects again, greets, and sends them once the daemon has greeted back, so that a
 * daemon that cannot even do that costs patience and nothing else. A Generate that had started is sent as one
 * request for each of its choices that had not finished, and the answers are put together again:
 *
 *	id                               id, id + 1 ... one for each choice
 *	 └ Started, Deltas, RETRYABLE  →  ├ (Started), Deltas, (Done)    in brackets: not for the caller
 *	                                  └ (Started), Deltas, Done
 *
 * Until then a stream is one request, its part 0. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define TRIES_MAX      10 /* of one request, if nothing comes of it */
#define BACKOFF_MIN_MS 10
#define BACKOFF_MAX_MS 500
#define CHOICES_MAX    64u
#define IDS_MAX        (1u << 20) /* of a choice: a longer one could not be sent back anyway */

/* FNV-1a, of 64 bits at a time */
#define HASH_START UINT64_C(0xcbf29ce484222325)
#define HASH_PRIME UINT64_C(0x100000001b3)

enum part_state { PART_OVER, PART_SENT, PART_WAITING };

/* A choice of a Generate, and a request on the wire. */
struct part {
	enum part_state state;
	int64_t due_ms; /* WAITING: not before */
	uint32_t *ids;  /* all that came of this choice, an echoed prompt too */
	uint32_t n_ids, n_alloc;
	bool finished;
	uint32_t n_tokens; /* what usage counts, once it has finished */
};

struct resume {
	uint8_t *frame; /* with its header */
	size_t frame_bytes;
	int fd;              /* that goes with it; negative: none */
	int64_t deadline_ms; /* INT64_MAX: none */
	bool echo;
	bool cancelled;
	bool hopeless;     /* what came is more than could be sent back */
	unsigned tries;    /* since something came */
	int64_t waited_ms; /* between them */

	/* Generate */
	bool started;
	bool split; /* each choice is a request */
	uint64_t seed;
	uint32_t prompt_tokens;
	uint8_t digest[32];
	size_t digest_bytes;
	Dsd__Usage usage; /* of the last choice that was done */

	/* The others: how many tokens, ids or bytes came, and what they were */
	uint64_t n_given, given_hash;
	uint64_t n_again, again_hash; /* the same after sending again */

	uint32_t n_parts; /* choices */
	struct part parts[];
};

/* What may be asked twice, and gives the same answer. */
static bool is_repeatable(enum stream_kind kind)
{
	switch (kind) {
	case STREAM_GENERATE:
	case STREAM_SCORE:
	case STREAM_TOKENIZE:
	case STREAM_DETOKENIZE:
	case STREAM_MODELS:
	case STREAM_STATS:
		return true;
	case STREAM_LIST: /* of another life the rest would not be of the same list */
	case STREAM_CANCEL_REQUEST:
	case STREAM_PUBLISH:
	case STREAM_UNPUBLISH:
	case STREAM_EVICT:
	case STREAM_LOAD:
	case STREAM_UNLOAD:
	case STREAM_RELOAD:
	case STREAM_DRAIN:
	case STREAM_SESSION_OPEN: /* there would be two */
	case STREAM_SESSION_FORK:
	case STREAM_SESSION_CLOSE:
		break;
	}
	return false;
}

/* ---------------------------------------------------------------- keeping */

int resume_keep(struct dsc_stream *s, const Dsd__ClientFrame *frame, uint8_t *bytes, size_t n,
		int fd, bool sent)
{
	const Dsd__Generate *g =
		frame->msg_case == DSD__CLIENT_FRAME__MSG_GENERATE ? frame->generate : NULL;
	uint32_t n_parts = g && g->sampling->has_n ? g->sampling->n : 1;
	struct dsc *c = s->c;
	struct resume *r;

	if (!c->path || (sent && !is_repeatable(s->kind)))
		return 0;
	if (c->kept + n > DSC_KEPT_MAX)
		return sent ? 0
			    : dsc_fail(c, -EAGAIN, DSC_CODE_NONE,
				       "%zu bytes of requests wait to be sent already", c->kept);
	if (n_parts == 0 || n_parts > CHOICES_MAX)
		n_parts = 1; /* it will be refused */
	if (fd >= 0) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return -errno;
	}
	r = calloc(1, sizeof(*r) + n_parts * sizeof(r->parts[0]));
	if (!r) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	r->fd = fd;
	r->frame = bytes;
	r->frame_bytes = n;
	r->n_parts = n_parts;
	r->given_hash = r->again_hash = HASH_START;
	r->deadline_ms = INT64_MAX;
	if (g) {
		r->echo = g->sampling->echo;
		if (g->has_deadline_ms)
			r->deadline_ms = dsc_now_ms() + g->deadline_ms;
	}
	r->parts[0].state = sent ? PART_SENT : PART_WAITING;
	c->kept += n;
	s->resume = r;
	return 1;
}

void resume_free(struct dsc_stream *s)
{
	struct resume *r = s->resume;

	if (!r)
		return;
	s->c->kept -= r->frame_bytes;
	for (uint32_t i = 0; i < r->n_parts; i++)
		free(r->parts[i].ids);
	free(r->frame);
	if (r->fd >= 0)
		close(r->fd);
	free(r);
	s->resume = NULL;
}

uint32_t resume_n_parts(const struct dsc_stream *s)
{
	return s->resume && s->resume->split ? s->resume->n_parts : 1;
}

static bool has_part(const struct dsc_stream *s, enum part_state state)
{
	for (uint32_t i = 0; s->resume && !s->ended && i < s->resume->n_parts; i++)
		if (s->resume->parts[i].state == state)
			return true;
	return false;
}

/* ---------------------------------------------------------------- ends */

/* The last event of a stream that ends by itself. What the daemon still does for it is cancelled. */
static void end_stream(struct dsc_stream *s, int error, enum dsc_code code, const char *text)
{
	if (s->c->fd >= 0 && has_part(s, PART_SENT))
		dsc_cancel(s);
	if (!s->ended)
		event_error(s, error, code, 0, text);
}

/* Ids that count as completion. */
static uint32_t n_generated(const struct resume *r, const struct part *p)
{
	uint32_t n_echo = r->echo ? r->prompt_tokens : 0;

	return p->n_ids > n_echo ? p->n_ids - n_echo : 0;
}

/* No request is left. Return: whether all that was asked for has come, and *usage says it. */
static bool add_up(const struct resume *r, Dsd__Usage *usage)
{
	*usage = r->usage;
	usage->prompt_tokens = r->prompt_tokens;
	usage->completion_tokens = 0;
	for (uint32_t i = 0; i < r->n_parts; i++) {
		if (!r->parts[i].finished)
			return false;
		usage->completion_tokens += r->parts[i].n_tokens;
	}
	return true;
}

/* After the last part of a stream whose choices are requests, if it was not the daemon's Done that told. */
static void finish(struct dsc_stream *s)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Done done = DSD__DONE__INIT;
	Dsd__Usage usage;

	if (!add_up(s->resume, &usage)) {
		end_stream(s, -ECANCELED, DSC_CODE_CANCELLED, "cancelled by the client");
		return;
	}
	done.usage = &usage;
	frame.msg_case = DSD__SERVER_FRAME__MSG_DONE;
	frame.done = &done;
	if (event_from_frame(s, &frame) < 0)
		s->ended = true; /* out of memory, as in event_error() */
}

/* ---------------------------------------------------------------- what came */

static int note_ids(struct resume *r, struct part *p, const Dsd__Delta *d)
{
	size_t n = d->n_ids;

	if (p->n_ids + n > IDS_MAX) {
		r->hopeless = true;
		return 0;
	}
	if (p->n_ids + n > p->n_alloc) {
		uint32_t n_alloc = p->n_alloc ? p->n_alloc : 16;
		uint32_t *ids;

		while (n_alloc < p->n_ids + n)
			n_alloc *= 2;
		ids = realloc(p->ids, n_alloc * sizeof(*ids));
		if (!ids)
			return -ENOMEM;
		p->ids = ids;
		p->n_alloc = n_alloc;
	}
	if (n > 0)
		memcpy(p->ids + p->n_ids, d->ids, n * sizeof(*d->ids));
	p->n_ids += (uint32_t)n;
	return 0;
}

static int take_started(struct dsc_stream *s, const Dsd__Started *m)
{
	struct resume *r = s->resume;
	bool same = m->seed == r->seed && m->prompt_tokens == r->prompt_tokens &&
		    m->model_digest.len == r->digest_bytes &&
		    memcmp(m->model_digest.data, r->digest, r->digest_bytes) == 0;

	if (r->started) {
		if (!same)
			end_stream(s, event_errno(DSC_CODE_FAILED_PRECONDITION),
				   DSC_CODE_FAILED_PRECONDITION,
				   "the daemon went on with another prompt, seed or model");
		return 0;
	}
	r->started = true;
	r->seed = m->seed;
	r->prompt_tokens = m->prompt_tokens;
	r->digest_bytes =
		m->model_digest.len < sizeof(r->digest) ? m->model_digest.len : sizeof(r->digest);
	memcpy(r->digest, m->model_digest.data, r->digest_bytes);
	return 1;
}

static int take_delta(struct dsc_stream *s, uint32_t part, Dsd__Delta *d)
{
	struct resume *r = s->resume;
	struct part *p;
	int e;

	if (r->split)
		d->choice = part;
	if (d->choice >= r->n_parts)
		return 1;
	p = &r->parts[d->choice];
	e = note_ids(r, p, d);
	if (e < 0)
		return e;
	r->tries = 0;
	if (d->has_finish) {
		p->finished = true;
		p->n_tokens = n_generated(r, p) + (d->finish == DSD__FINISH__FINISH_EOS);
	}
	return 1;
}

static int take_done(struct dsc_stream *s, uint32_t part, Dsd__Done *m)
{
	struct resume *r = s->resume;

	if (!r->split)
		return 1;
	r->parts[part].state = PART_OVER;
	r->parts[part].n_tokens = m->usage->completion_tokens;
	r->usage = *m->usage;
	if (has_part(s, PART_SENT) || has_part(s, PART_WAITING))
		return 0;
	if (add_up(r, m->usage))
		return 1;
	finish(s);
	return 0;
}

/* ---------------------------------------------------------------- what comes again */

static uint64_t item_of(const Dsd__ServerFrame *f, size_t i)
{
	uint32_t bits;

	switch (f->msg_case) {
	case DSD__SERVER_FRAME__MSG_SCORE:
		memcpy(&bits, &f->score->tokens[i]->logprob, sizeof(bits));
		return (uint64_t)f->score->tokens[i]->id << 32 | bits;
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
		return f->tokenize->ids[i];
	default:
		return f->detokenize->text.data[i];
	}
}

/*
 * A part of an answer in parts. Return: how many of its n items came before, and *ret_same: they, and at
 * the end all that came before, are what came.
 */
static size_t pass_over(struct resume *r, const Dsd__ServerFrame *f, size_t n, bool last,
			bool *ret_same)
{
	size_t i = 0;

	for (; i < n && r->n_again < r->n_given; i++, r->n_again++)
		r->again_hash = (r->again_hash ^ item_of(f, i)) * HASH_PRIME;
	if (r->n_again < r->n_given) {
		*ret_same = !last;
		return n;
	}
	*ret_same = r->again_hash == r->given_hash;
	for (size_t k = i; k < n; k++)
		r->given_hash = (r->given_hash ^ item_of(f, k)) * HASH_PRIME;
	r->n_given += n - i;
	r->n_again = r->n_given;
	r->again_hash = r->given_hash;
	return i;
}

static int take_piece(struct dsc_stream *s, Dsd__ServerFrame *f)
{
	struct resume *r = s->resume;
	bool same, last;
	size_t n, skip;

	switch (f->msg_case) {
	case DSD__SERVER_FRAME__MSG_SCORE:
		n = f->score->n_tokens;
		last = f->score->last;
		break;
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
		n = f->tokenize->n_ids;
		last = f->tokenize->last;
		break;
	default:
		n = f->detokenize->text.len;
		last = f->detokenize->last;
	}
	skip = pass_over(r, f, n, last, &same);
	if (!same) {
		end_stream(s, event_errno(DSC_CODE_FAILED_PRECONDITION),
			   DSC_CODE_FAILED_PRECONDITION,
			   "the daemon gives another answer than before: the model was replaced");
		return 0;
	}
	if (skip < n)
		r->tries = 0;
	else if (skip > 0 && !last)
		return 0;
	if (skip == 0) /* nothing to cut, and maybe nothing at all */
		return 1;
	switch (f->msg_case) {
	case DSD__SERVER_FRAME__MSG_SCORE:
		f->score->tokens += skip;
		f->score->n_tokens -= skip;
		break;
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
		f->tokenize->ids += skip;
		f->tokenize->n_ids -= skip;
		break;
	default:
		f->detokenize->text.data += skip;
		f->detokenize->text.len -= skip;
	}
	return 1;
}

/* ---------------------------------------------------------------- sending again */

static int backoff_ms(unsigned tries)
{
	int ms = BACKOFF_MIN_MS;

	for (unsigned i = 1; i < tries && ms < BACKOFF_MAX_MS; i++)
		ms *= 2;
	return ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS;
}

/* What is to be asked for again, from due_ms on: of a Generate that had started what had not finished. */
static void wait_again(struct dsc_stream *s, uint32_t part, int64_t due_ms)
{
	struct resume *r = s->resume;
	uint32_t first = part, end = part + 1;

	r->n_again = 0;
	r->again_hash = HASH_START;
	if (r->started && !r->split) {
		r->split = true;
		s->id = s->c->next_id;
		s->c->next_id += r->n_parts;
		first = 0;
		end = r->n_parts;
	}
	for (uint32_t i = first; i < end; i++) {
		r->parts[i].state = r->parts[i].finished ? PART_OVER : PART_WAITING;
		r->parts[i].due_ms = due_ms;
	}
}

/* A request came to nothing. Return: it may be tried again, *ret_due: from then on. */
static bool may_try(struct dsc_stream *s, uint32_t after_ms, int64_t *ret_due_ms)
{
	struct resume *r = s->resume;
	int64_t ms = r->tries > 0 ? backoff_ms(r->tries) : 0;

	if (ms < after_ms)
		ms = after_ms;
	r->waited_ms = r->tries++ > 0 ? r->waited_ms + ms : ms;
	*ret_due_ms = dsc_now_ms() + ms;
	return !r->cancelled && !r->hopeless && r->tries <= TRIES_MAX &&
	       r->waited_ms <= s->c->patience_ms;
}

static int take_error(struct dsc_stream *s, uint32_t part, Dsd__Error *m)
{
	struct resume *r = s->resume;
	bool again = r->tries > 0; /* a request that was accepted once is not too much now */
	int64_t due_ms;

	r->parts[part].state = PART_OVER;
	if ((m->code == DSD__CODE__CODE_RETRYABLE ||
	     (again && m->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED && m->has_retry_after_ms)) &&
	    may_try(s, m->has_retry_after_ms ? m->retry_after_ms : 0, &due_ms)) {
		wait_again(s, part, due_ms);
		if (!has_part(s, PART_SENT) && !has_part(s, PART_WAITING))
			finish(s);
		return 0;
	}
	if (has_part(s, PART_SENT))
		dsc_cancel(s);
	return s->ended ? 0 : 1;
}

int resume_filter(struct dsc_stream *s, uint32_t part, Dsd__ServerFrame *f)
{
	static const enum stream_kind kind_of[] = {
		[DSD__SERVER_FRAME__MSG_STARTED] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_DELTA] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_DONE] = STREAM_GENERATE,
		[DSD__SERVER_FRAME__MSG_SCORE] = STREAM_SCORE,
		[DSD__SERVER_FRAME__MSG_TOKENIZE] = STREAM_TOKENIZE,
		[DSD__SERVER_FRAME__MSG_DETOKENIZE] = STREAM_DETOKENIZE,
	};
	struct resume *r = s->resume;

	if (!r)
		return 1;
	if (r->parts[part].state != PART_SENT)
		return 0; /* of a request that is over, or was never sent */
	if (f->msg_case == DSD__SERVER_FRAME__MSG_ERROR)
		return take_error(s, part, f->error);
	if (f->msg_case >= sizeof(kind_of) / sizeof(kind_of[0]) || kind_of[f->msg_case] != s->kind)
		return 1; /* nothing to note; event_from_frame() knows whether it is wrong */
	switch (f->msg_case) {
	case DSD__SERVER_FRAME__MSG_STARTED:
		return take_started(s, f->started);
	case DSD__SERVER_FRAME__MSG_DELTA:
		return take_delta(s, part, f->delta);
	case DSD__SERVER_FRAME__MSG_DONE:
		return take_done(s, part, f->done);
	case DSD__SERVER_FRAME__MSG_SCORE:
	case DSD__SERVER_FRAME__MSG_TOKENIZE:
	case DSD__SERVER_FRAME__MSG_DETOKENIZE:
		return take_piece(s, f);
	default:
		return 1;
	}
}

void resume_lost(struct dsc_stream *s, int error, const char *text)
{
	struct resume *r = s->resume;
	uint32_t n = resume_n_parts(s);
	int64_t due_ms = 0;

	if (r && r->cancelled) {
		event_error(s, -ECANCELED, DSC_CODE_CANCELLED, 0, "cancelled by the client");
	} else if (!r || (has_part(s, PART_SENT) && !may_try(s, 0, &due_ms))) {
		event_error(s, error, DSC_CODE_RETRYABLE, 0, text);
	} else {
		for (uint32_t i = 0; i < n; i++)
			if (r->parts[i].state == PART_SENT)
				wait_again(s, i, due_ms);
		if (!has_part(s, PART_WAITING))
			finish(s);
	}
	if (s->ended)
		resume_free(s);
}

bool resume_cancel(struct dsc_stream *s)
{
	struct resume *r = s->resume;

	if (!r)
		return true;
	r->cancelled = true;
	for (uint32_t i = 0; i < r->n_parts; i++)
		if (r->parts[i].state == PART_WAITING)
			r->parts[i].state = PART_OVER;
	if (has_part(s, PART_SENT))
		return true;
	event_error(s, -ECANCELED, DSC_CODE_CANCELLED, 0, "cancelled by the client");
	resume_free(s);
	return false;
}

/* The kept request as it is to be sent now. */
static int pack_again(struct dsc_stream *s, uint32_t part, int64_t now, uint8_t **ret,
		      size_t *ret_n)
{
	struct resume *r = s->resume;
	struct part *p = &r->parts[part];
	Dsd__Resume resume = DSD__RESUME__INIT;
	struct wire_arena arena;
	Dsd__ClientFrame *frame;
	Dsd__Generate *g;
	uint32_t n_echoed = 0;
	int e;

	e = wire_arena_init(&arena, r->frame_bytes);
	if (e < 0)
		return e;
	frame = wire_unpack_client(r->frame + WIRE_HEADER_BYTES, r->frame_bytes - WIRE_HEADER_BYTES,
				   &arena);
	if (!frame) {
		wire_arena_done(&arena);
		return -EMSGSIZE;
	}
	frame->id = s->id + part;
	g = frame->generate;
	if (r->deadline_ms != INT64_MAX)
		g->deadline_ms = r->deadline_ms > now ? (uint32_t)(r->deadline_ms - now) : 1;
	if (r->started) {
		if (r->echo)
			n_echoed = p->n_ids < r->prompt_tokens ? p->n_ids : r->prompt_tokens;
		resume.generated_ids = p->ids ? p->ids + n_echoed : NULL;
		resume.n_generated_ids = p->n_ids - n_echoed;
		resume.seed = r->seed;
		resume.model_digest = (ProtobufCBinaryData){r->digest_bytes, r->digest};
		resume.has_choice = part > 0;
		resume.choice = part;
		resume.has_echoed = n_echoed > 0;
		resume.echoed = n_echoed;
		g->resume = &resume;
		g->sampling->has_n = 0;
	}
	e = wire_pack_frame(&frame->base, ret, ret_n);
	wire_arena_done(&arena);
	return e;
}

/* Return: 0, -EAGAIN: not now. The stream may have ended. */
static int send_part(struct dsc_stream *s, uint32_t part, int64_t now)
{
	struct resume *r = s->resume;
	bool verbatim = !r->started && r->deadline_ms == INT64_MAX;
	uint8_t *again = NULL, *bytes = r->frame;
	size_t n = r->frame_bytes;
	int e = 0;

	if (s->c->out.end - s->c->out.start > DSC_UNSENT_MAX)
		return -EAGAIN;
	if (!verbatim) {
		e = pack_again(s, part, now, &again, &n);
		bytes = again;
	}
	if (e == 0)
		e = dsc_put(s->c, bytes, n, r->fd);
	free(again);
	if (e < 0) {
		end_stream(
			s, e, e == -EMSGSIZE ? DSC_CODE_FRAME_TOO_LARGE : DSC_CODE_NONE,
			e == -EMSGSIZE
				? "the request and what came of it do not fit a frame, so it cannot go on"
				: "out of memory for going on");
		return 0;
	}
	r->parts[part].state = PART_SENT;
	return 0;
}

void resume_send(struct dsc *c)
{
	int64_t now = dsc_now_ms();

	if (!c->greeted)
		return;
	for (struct dsc_stream *s = c->streams; s; s = s->next) {
		for (uint32_t i = 0; i < resume_n_parts(s) && has_part(s, PART_WAITING); i++)
			if (s->resume->parts[i].state == PART_WAITING &&
			    s->resume->parts[i].due_ms <= now && send_part(s, i, now) == -EAGAIN)
				return;
		/* From now on it is like one that was sent at once. */
		if (s->ended || (!is_repeatable(s->kind) && !has_part(s, PART_WAITING)))
			resume_free(s);
	}
}

/* ---------------------------------------------------------------- the connection */

static bool is_wanted(const struct dsc *c)
{
	if (c->wanted)
		return true;
	for (const struct dsc_stream *s = c->streams; s; s = s->next)
		if (has_part(s, PART_WAITING))
			return true;
	return false;
}

void resume_greeted(struct dsc *c)
{
	c->outage_ms = -1;
}

/* The daemon cannot say it to a request that waits. */
static void end_late(struct dsc *c, int64_t now)
{
	for (struct dsc_stream *s = c->streams; s; s = s->next) {
		if (!has_part(s, PART_WAITING) || s->resume->deadline_ms > now)
			continue;
		end_stream(s, event_errno(DSC_CODE_DEADLINE_EXCEEDED), DSC_CODE_DEADLINE_EXCEEDED,
			   "the request's deadline has passed");
		resume_free(s);
	}
}

static int give_up(struct dsc *c, int e)
{
	return dsc_end(c, -ECONNRESET, DSC_CODE_RETRYABLE,
		       "the connection was lost; connecting to %.200s again: %s (for %d ms)",
		       c->path, strerror(-e), c->patience_ms);
}

static int connect_again(struct dsc *c, int64_t now)
{
	int fd;

	if (c->outage_ms < 0) {
		c->outage_ms = c->attempt_ms = now;
		c->backoff_ms = BACKOFF_MIN_MS;
	}
	if (now < c->attempt_ms && now - c->outage_ms < c->patience_ms)
		return 0;
	fd = dsc_connect_path(c->path, SOCK_NONBLOCK);
	/* The socket is made anew, nobody listens yet, too many wait: what a restart looks like. */
	if (fd < 0 && fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN)
		return give_up(c, fd);
	if (fd < 0 && now - c->outage_ms >= c->patience_ms)
		return give_up(c, fd);
	c->attempt_ms = now + c->backoff_ms;
	c->backoff_ms = c->backoff_ms < BACKOFF_MAX_MS / 2 ? 2 * c->backoff_ms : BACKOFF_MAX_MS;
	if (fd < 0)
		return 0;
	c->fd = fd;
	c->in.start = c->in.end = 0;
	c->out.start = c->out.end = 0;
	return dsc_send_hello(c);
}

int resume_tick(struct dsc *c)
{
	int64_t now;

	if (!c->path)
		return 0;
	now = dsc_now_ms();
	end_late(c, now);
	if (c->fd < 0)
		return is_wanted(c) ? connect_again(c, now) : 0;
	if (c->outage_ms >= 0 && now - c->outage_ms >= c->patience_ms)
		return give_up(c, -ETIMEDOUT);
	return 0;
}

int resume_timeout(const struct dsc *c)
{
	int64_t at = INT64_MAX, now;

	if (!c->path)
		return -1;
	now = dsc_now_ms();
	if (c->outage_ms >= 0)
		at = c->outage_ms + c->patience_ms;
	if (c->fd < 0 && !is_wanted(c))
		at = INT64_MAX;
	else if (c->fd < 0 && (c->outage_ms < 0 || c->attempt_ms < at))
		at = c->outage_ms < 0 ? now : c->attempt_ms;
	for (const struct dsc_stream *s = c->streams; s; s = s->next) {
		if (!has_part(s, PART_WAITING))
			continue;
		if (s->resume->deadline_ms < at)
			at = s->resume->deadline_ms;
		for (uint32_t i = 0; c->greeted && i < s->resume->n_parts; i++)
			if (s->resume->parts[i].state == PART_WAITING &&
			    s->resume->parts[i].due_ms < at && c->out.start == c->out.end)
				at = s->resume->parts[i].due_ms;
	}
	if (at == INT64_MAX)
		return -1;
	if (at <= now)
		return 0;
	return at - now < INT32_MAX ? (int)(at - now) : INT32_MAX;
}
