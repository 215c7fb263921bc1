#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Client library of dsd, the DeepSeek inference daemon. Link with `pkg-config --libs dsclient`.
 *
 *	struct dsc *c;
 *	struct dsc_stream *s;
 *	const struct dsc_event *e;
 *	struct dsc_request r = DSC_REQUEST_INIT;
 *
 *	r.text = "Once upon a time";
 *	r.text_bytes = strlen("Once upon a time");
 *	if (dsc_connect(&c, NULL, 0) == 0 && dsc_generate(c, &r, &s) == 0)
 *		while (dsc_wait(s, &e, -1) > 0)
 *			if (e->type == DSC_EVENT_TEXT)
 *				fwrite(e->text, 1, e->text_bytes, stdout);
 *	dsc_close(c);
 *
 * One call starts a request and gives a stream of its events; any number of streams run at once on
 * a connection. A simple program blocks in dsc_wait(). An event loop polls dsc_fd() for dsc_events(),
 * calls dsc_process(), and takes what has come with dsc_next(), which never blocks.
 *
 * Errors are negative errno values. dsc_error() has a sentence about the last one. A connection and its
 * streams belong to one thread at a time. The library raises no signal, prints nothing, and needs
 * libc and libprotobuf-c only. Text is bytes: a prompt goes out as it is, a piece of an answer never
 * splits a UTF-8 character that the model has completed. */
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define DSC_SOCKET_DEFAULT "/run/dsd/dsd.sock"

struct dsc;        /* a connection */
struct dsc_stream; /* a request under way */

/* Why a request failed, as the daemon says it. */
enum dsc_code {
	DSC_CODE_NONE = 0,
	DSC_CODE_INVALID_ARGUMENT = 1,    /* mend the request */
	DSC_CODE_NOT_FOUND = 2,           /* no model of that name */
	DSC_CODE_FAILED_PRECONDITION = 3, /* not now or not here */
	DSC_CODE_RESOURCE_EXHAUSTED = 4,  /* later, or smaller */
	DSC_CODE_RETRYABLE = 5, /* a worker or the daemon went away: the same may succeed */
	DSC_CODE_CANCELLED = 6,
	DSC_CODE_DEADLINE_EXCEEDED = 7,
	DSC_CODE_MODEL_INVALID = 8, /* the model could not be loaded */
	DSC_CODE_MODEL_FAULT = 9,   /* the model computed numbers that are none */
	DSC_CODE_FRAME_TOO_LARGE = 10,
	DSC_CODE_MALFORMED = 11,
	DSC_CODE_UNIMPLEMENTED = 12,
	DSC_CODE_PERMISSION_DENIED = 13,
	DSC_CODE_INTERNAL = 14,
};

/* IDLE: unloaded for want of requests; the next one loads it. */
enum dsc_state {
	DSC_STATE_LOADING = 1,
	DSC_STATE_READY = 2,
	DSC_STATE_DEGRADED = 3,
	DSC_STATE_IDLE = 4
};
enum dsc_role { DSC_ROLE_SYSTEM = 1, DSC_ROLE_USER = 2, DSC_ROLE_ASSISTANT = 3 };
enum dsc_priority { DSC_PRIORITY_INTERACTIVE = 1, DSC_PRIORITY_NORMAL = 2, DSC_PRIORITY_BATCH = 3 };
/* An end token, a stop string (not part of the text), or max_tokens or the end of the context. */
enum dsc_finish { DSC_FINISH_EOS = 1, DSC_FINISH_STOP = 2, DSC_FINISH_LENGTH = 3 };
/* What the daemon does for a request; PAUSED: nobody reads what it says. */
enum dsc_activity {
	DSC_ACTIVITY_ENCODING = 1,
	DSC_ACTIVITY_WAITING = 2,
	DSC_ACTIVITY_PREFILL = 3,
	DSC_ACTIVITY_DECODE = 4,
	DSC_ACTIVITY_PAUSED = 5,
	DSC_ACTIVITY_MODEL = 6 /* an administrator waits for a model to come or to go */
};
enum dsc_prompt { DSC_PROMPT_TEXT = 0, DSC_PROMPT_CHAT = 1, DSC_PROMPT_IDS = 2 };

/* ---------------------------------------------------------------- requests */

struct dsc_message {
	enum dsc_role role;
	const void *text;
	size_t text_bytes;
};

struct dsc_bias {
	uint32_t id;
	float bias;
};

struct dsc_stop {
	const void *text;
	size_t text_bytes;
};

/* Bits of dsc_request.set: which of the numbers are meant. The others come from the model. */
#define DSC_SET_MAX_TOKENS         (UINT64_C(1) << 0)
#define DSC_SET_MIN_TOKENS         (UINT64_C(1) << 1)
#define DSC_SET_TEMPERATURE        (UINT64_C(1) << 2)
#define DSC_SET_TOP_K              (UINT64_C(1) << 3)
#define DSC_SET_TOP_P              (UINT64_C(1) << 4)
#define DSC_SET_MIN_P              (UINT64_C(1) << 5)
#define DSC_SET_SEED               (UINT64_C(1) << 6)
#define DSC_SET_REPETITION_PENALTY (UINT64_C(1) << 7)
#define DSC_SET_PRESENCE_PENALTY   (UINT64_C(1) << 8)
#define DSC_SET_FREQUENCY_PENALTY  (UINT64_C(1) << 9)
#define DSC_SET_N                  (UINT64_C(1) << 10)
#define DSC_SET_LOGPROBS           (UINT64_C(1) << 11)
#define DSC_SET_PRIORITY           (UINT64_C(1) << 12)
#define DSC_SET_DEADLINE_MS        (UINT64_C(1) << 13)
#define DSC_SET_SESSION            (UINT64_C(1) << 14)
#define DSC_SET_LEASE_MS           (UINT64_C(1) << 15)
/* Switches: set is on. */
#define DSC_SET_IGNORE_EOS (UINT64_C(1) << 32) /* go on after an end token */
#define DSC_SET_ECHO       (UINT64_C(1) << 33) /* the prompt is part of the answer */
#define DSC_SET_PARSE_SPECIAL                                                                      \
	(UINT64_C(1) << 34) /* control tokens written out in text become ids */
#define DSC_SET_ADD_BOS         (UINT64_C(1) << 35) /* dsc_tokenize: put the begin token first */
#define DSC_SET_SKIP_SPECIAL    (UINT64_C(1) << 36) /* dsc_detokenize: leave control tokens out */
#define DSC_SET_REUSE_GENERATED (UINT64_C(1) << 37) /* cached pages of generated tokens may serve */

/* Everything a request can say; which call reads what is said there. Start from DSC_REQUEST_INIT. All memory
 * stays the caller's and may go once the call has returned. Ranges are the daemon's to check. */
struct dsc_request {
	size_t size;       /* of the struct as the caller knows it; DSC_REQUEST_INIT sets it */
	uint64_t set;      /* DSC_SET_* */
	const char *model; /* NULL: the only or first model */
	uint32_t prompt;   /* enum dsc_prompt: which of the next three it is */
	uint32_t priority; /* enum dsc_priority */
	const void *text;  /* DSC_PROMPT_TEXT; the begin token is added by the tokenizer's rule */
	size_t text_bytes;
	const struct dsc_message *messages; /* DSC_PROMPT_CHAT */
	size_t n_messages;
	const uint32_t *ids; /* DSC_PROMPT_IDS; verbatim */
	size_t n_ids;
	const void *suffix; /* fill in the middle: text is what comes before; NULL: none */
	size_t suffix_bytes;
	const struct dsc_stop *stop;
	size_t n_stop;
	const struct dsc_bias *logit_bias;
	size_t n_logit_bias;
	uint64_t seed;       /* not set: drawn, and told in DSC_EVENT_STARTED */
	uint32_t max_tokens; /* not set: what the context leaves */
	uint32_t min_tokens;
	float temperature; /* 0 is greedy */
	uint32_t top_k;    /* 0: off */
	float top_p;       /* 1: off */
	float min_p;       /* 0: off */
	float repetition_penalty;
	float presence_penalty;
	float frequency_penalty;
	uint32_t n;        /* choices */
	uint32_t logprobs; /* the chosen token's and so many of the best */
	uint32_t deadline_ms;
	uint64_t session;  /* that it runs in, or that is meant */
	uint32_t lease_ms; /* dsc_session_open: how long the session keeps what nobody uses */
};

#ifdef __cplusplus
static inline struct dsc_request dsc_request_init_(void)
{
	struct dsc_request r = {};

	r.size = sizeof(r);
	return r;
}
#define DSC_REQUEST_INIT dsc_request_init_()
#else
#define DSC_REQUEST_INIT                                                                           \
	{                                                                                          \
		.size = sizeof(struct dsc_request)                                                 \
	}
#endif

/* ---------------------------------------------------------------- events */

struct dsc_logprob {
	uint32_t id;
	float logprob;
};

struct dsc_token {
	uint32_t id;
	float logprob;
	const struct dsc_logprob *top; /* the best ones, best first */
	uint32_t n_top;
	uint32_t has_logprob; /* 0: the first token of a text has none */
};

struct dsc_usage {
	uint32_t prompt_tokens;
	uint32_t cached_tokens;     /* of them found in the pool */
	uint32_t completion_tokens; /* of all choices, end tokens counted */
	uint64_t queue_usec, prefill_usec, decode_usec;
};

/* What is not known is 0 or NULL. */
struct dsc_model {
	const char *name;
	enum dsc_state state;
	const char *reason; /* DEGRADED: why */
	const uint8_t *digest;
	size_t digest_bytes;
	const char *arch;
	uint32_t context, vocab, layers, experts, experts_used;
	uint64_t params, params_active, weight_bytes;
	uint32_t kv_bytes_per_token;
	uint32_t mha_bytes_per_token,
		gqa8_bytes_per_token; /* what other designs of that size need */
	const char *kv_entry;
	float progress; /* LOADING: 0 to 1 */
	const char *stage;
	int chat; /* has a chat renderer */
};

struct dsc_model_stats {
	const char *name;
	uint32_t pages_total, pages_used;
	uint32_t running, waiting;
	uint64_t steps, rows, prompt_tokens, generated_tokens, cached_tokens;
	uint64_t worker_usec, worker_pid;
	uint32_t worker_starts, worker_deaths;
	uint32_t kv_bytes_per_token, mha_bytes_per_token, gqa8_bytes_per_token;
	uint32_t pages_cached; /* not in use, kept for who asks again */
	uint64_t preemptions;
	uint32_t pages_published;       /* of pages_used: the administrator's prefixes */
	uint64_t params, params_active; /* numbers in the weights; of them, touched for one token */
};

struct dsc_stats_reply {
	uint64_t uptime_usec;
	enum dsc_state state;
	const char *version;
	const char *io_backend;
	uint32_t connections;
	uint64_t connections_total, requests_total, requests_failed, requests_cancelled;
	uint64_t protocol_errors, bytes_in, bytes_out;
	const struct dsc_model_stats *const *models;
	size_t n_models;
	uint64_t broker_cpu_usec; /* processor time of the broker, without its workers */
};

/* A request under way, whoever's it is. */
struct dsc_request_info {
	uint64_t request; /* the daemon's number: DSC_EVENT_STARTED's, and dsc_cancel_request()'s */
	uint32_t uid, pid;
	const char *model;
	enum dsc_activity activity;
	enum dsc_priority priority; /* 0: not told */
	uint32_t prompt_tokens, cached_tokens, completion_tokens;
	uint32_t pages;
	uint64_t age_usec;
};

enum dsc_event_type {
	DSC_EVENT_STARTED = 1,  /* generate: first */
	DSC_EVENT_TEXT = 2,     /* a piece of one choice, or of a detokenized text */
	DSC_EVENT_FINISHED = 3, /* one choice has ended */
	DSC_EVENT_TOKENS = 4,   /* tokenize: ids; score: tokens */
	DSC_EVENT_MODELS = 5,
	DSC_EVENT_STATS = 6,
	DSC_EVENT_DONE = 7,      /* the last event of a request that did what was asked */
	DSC_EVENT_ERROR = 8,     /* the last event of any other */
	DSC_EVENT_REQUESTS = 9,  /* list: once or more, each with some of them */
	DSC_EVENT_PROGRESS = 10, /* load, unload, reload, drain: any number */
	DSC_EVENT_SESSION = 11,
};

/* Made by the library, which may append members in later versions. */
struct dsc_event {
	enum dsc_event_type type;

	/* STARTED */
	uint64_t request; /* the daemon's number, as in its log */
	uint64_t seed;
	uint32_t prompt_tokens;
	const char *model;
	const uint8_t *digest;
	size_t digest_bytes;

	/* TEXT, TOKENS; text may lag behind ids while a character or a stop string is incomplete */
	uint32_t choice;  /* also FINISHED */
	const char *text; /* NUL-terminated beyond text_bytes, and may contain NUL */
	size_t text_bytes;
	const uint32_t *ids;
	size_t n_ids;
	const struct dsc_token *tokens; /* with logprobs */
	size_t n_tokens;

	/* FINISHED */
	enum dsc_finish finish;

	/* DONE of generate */
	struct dsc_usage usage;

	/* ERROR */
	int error; /* negative errno */
	enum dsc_code code;
	const char *message; /* one sentence */
	uint32_t retry_after_ms;

	/* MODELS */
	const struct dsc_model *const *models;
	size_t n_models;

	/* STATS */
	const struct dsc_stats_reply *stats;

	/* REQUESTS */
	const struct dsc_request_info *const *requests;
	size_t n_requests;

	/* DONE of publish: tokens published; of unpublish: 1; of evict: pages forgotten */
	uint64_t count;

	/* PROGRESS */
	const char *stage;
	float progress; /* 0 to 1 */

	/* SESSION */
	uint64_t session;
	uint32_t lease_ms;
};

/* ---------------------------------------------------------------- connection */

#define DSC_NO_RESUME                                                                              \
	1u /* the loss of the connection or of a worker ends streams with DSC_CODE_RETRYABLE */

/**
 * dsc_connect() - connect and say Hello
 * @path:  socket; NULL: $DSD_SOCKET, else DSC_SOCKET_DEFAULT
 * @flags: 0 or DSC_NO_RESUME
 *
 * Does not wait for the daemon's answer: requests may follow at once. dsc_ping() waits.
 *
 * Without DSC_NO_RESUME a connection that is lost later is made again, at once and then after 10, 20 ... 500 ms,
 * for at most 30 s (dsc_set_patience()); an idle one when it is wanted next. Open streams go on behind what
 * they have: generate with the same tokens, greedy and seeded, each choice for itself; score, tokenize and
 * detokenize behind what came; models and stats again. So do streams whose request ends with
 * DSC_CODE_RETRYABLE, after retry_after_ms. deadline_ms counts from the call that started the request. A
 * stream ends with an error after all where the daemon comes back with another model
 * (DSC_CODE_FAILED_PRECONDITION), where nothing comes of 10 tries or of as long a wait as the connection would
 * be waited for, where its request and ids no longer fit a frame, and where it was cancelled. For this the
 * library keeps each open request, 64 MiB of all at most (what is beyond does not go on), and 4 bytes
 * for each token that came. Times in dsc_usage are those of the last request that was sent for a stream.
 *
 * Return: 0. -ENOENT, -ECONNREFUSED, -EACCES and whatever connect(2) says; -ENAMETOOLONG, -EINVAL:
 *         unknown flags, -ENOMEM. *ret is untouched then.
 */
int dsc_connect(struct dsc **ret, const char *path, unsigned flags);
/** dsc_connect_fd() - the same over a connected stream socket, which the connection owns from then on. It is
 * not made again when it is lost, and its streams end with it. */
int dsc_connect_fd(struct dsc **ret, int fd, unsigned flags);
/** dsc_set_patience() - how long a lost connection is tried to be made again; 0: once. */
void dsc_set_patience(struct dsc *c, int patience_ms);
/** dsc_socket_path() - what dsc_connect() makes of its path; valid while path and environment are. */
const char *dsc_socket_path(const char *path);
/** dsc_close() - close; the daemon cancels what is under way. Frees every stream. NULL is fine. */
void dsc_close(struct dsc *c);

/**
 * dsc_ping() - wait until the daemon has answered Hello
 * @timeout_ms: -1: as long as it takes
 *
 * Return: 0, and then dsc_version() and dsc_server_state() know. -ETIMEDOUT, -EINTR: a signal came,
 *         -EPROTO: not a daemon of this protocol, -ECONNRESET: it closed.
 */
int dsc_ping(struct dsc *c, int timeout_ms);
/** dsc_version() - the daemon's version; NULL before it has answered. */
const char *dsc_version(const struct dsc *c);
/** dsc_server_state() - as it was when the daemon answered Hello; 0 before. */
enum dsc_state dsc_server_state(const struct dsc *c);

/**
 * dsc_fd() - what to poll for dsc_events(), which are POLLIN and POLLOUT as needed
 *
 * Ask for both anew before each poll(2): they may change with every call on the connection. dsc_fd() is
 * negative while there is no connection, which poll(2) passes over; then the time alone is waited for.
 */
int dsc_fd(const struct dsc *c);
int dsc_events(const struct dsc *c);
/** dsc_timeout() - milliseconds after which to call dsc_process() whatever dsc_fd() says; -1: no need. With
 * a negative dsc_fd() as well there is nothing to wait for: the connection has ended, or is idle. */
int dsc_timeout(const struct dsc *c);
/**
 * dsc_process() - send what waits, read what has come; never blocks
 *
 * Return: 0, also while a lost connection is made again. Negative errno: the connection has ended, every open
 *         stream has its DSC_EVENT_ERROR.
 */
int dsc_process(struct dsc *c);

/** dsc_error() - a sentence about the last call that failed; "" if none did. Never NULL. */
const char *dsc_error(const struct dsc *c);
/** dsc_code() - the daemon's code for it, DSC_CODE_NONE where the daemon did not say. */
enum dsc_code dsc_code(const struct dsc *c);
/** dsc_code_name() - "INVALID_ARGUMENT", "UNKNOWN" for a code of a later daemon. */
const char *dsc_code_name(enum dsc_code code);

/* ---------------------------------------------------------------- requests and streams */

/* Each starts a request and gives its stream. The frame is buffered; what the socket takes at once is sent.
 *
 * Text and ids that do not fit a frame (1 MiB) go beside it, in a sealed memfd.
 *
 * Return: 0. -EMSGSIZE: text or ids take more than 64 MiB, or the rest of the request (a chat, a suffix)
 *         more than a frame. -EINVAL: the struct contradicts itself, -E2BIG: it holds something this
 *         version of the library does not know, -EAGAIN: 8 MiB wait to be sent already, -ENOMEM; or
 *         what ended the connection before, or what memfd_create(2) says. */

/** dsc_generate() - STARTED, then TEXT and FINISHED of each choice. Reads the whole request. */
int dsc_generate(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_score() - TOKENS: log-probability of every token of text or ids. Reads model, logprobs. */
int dsc_score(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_tokenize() - TOKENS: ids of text or chat. Reads model. */
int dsc_tokenize(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_detokenize() - TEXT of ids. Reads model. */
int dsc_detokenize(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_models() - MODELS. */
int dsc_models(struct dsc *c, struct dsc_stream **ret);
/** dsc_stats() - STATS. */
int dsc_stats(struct dsc *c, struct dsc_stream **ret);
/** dsc_list() - REQUESTS under way: the caller's own, on the administrative socket everybody's. */
int dsc_list(struct dsc *c, struct dsc_stream **ret);
/**
 * dsc_cancel_request() - end a request by the daemon's number, whichever connection it is on
 *
 * The caller's own; on the administrative socket anybody's. That request ends with DSC_CODE_CANCELLED;
 * this one with DONE, or with DSC_CODE_NOT_FOUND where there is none of that number to see.
 */
int dsc_cancel_request(struct dsc *c, uint64_t request, struct dsc_stream **ret);
/**
 * dsc_session_open() - SESSION: a new one. Reads model, lease_ms (not set: the daemon's choice).
 *
 * A generate in a session leaves the pages that it filled with that session until the lease ends, so that
 * the next one with the same beginning need not compute it again. It belongs to the user, not to
 * the connection. One that has ended is DSC_CODE_NOT_FOUND.
 */
int dsc_session_open(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_session_fork() - SESSION: another one that begins with the pages of request->session. */
int dsc_session_fork(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);
/** dsc_session_close() - request->session ends; only DONE comes. */
int dsc_session_close(struct dsc *c, const struct dsc_request *request, struct dsc_stream **ret);

/* What follows is answered on the administrative socket alone. */

/**
 * dsc_publish() - compute a prefix once, and let every user's prompt that begins with it find it
 * @name:    1 to 63 bytes; what was published under it before is replaced
 * @request: model, and text, chat (without what begins the answer) or ids; at least a page of 64 tokens
 *
 * DONE comes when it is computed; its count says how many tokens it has.
 */
int dsc_publish(struct dsc *c, const char *name, const struct dsc_request *request,
		struct dsc_stream **ret);
/** dsc_unpublish() - forget a published prefix. @model NULL: of the only or first model. */
int dsc_unpublish(struct dsc *c, const char *name, const char *model, struct dsc_stream **ret);
/** dsc_evict() - forget what is cached and in nobody's use; DONE counts the pages. */
int dsc_evict(struct dsc *c, const char *model, struct dsc_stream **ret);

/* These tell PROGRESS, and DONE comes when it is done. What was begun goes on if the stream is cancelled. */

/** dsc_load() - serve a model directory, by its @path as the daemon sees it; @name NULL: the directory's. */
int dsc_load(struct dsc *c, const char *path, const char *name, struct dsc_stream **ret);
/** dsc_unload() - let a model's requests finish, take no new ones, and end its worker. */
int dsc_unload(struct dsc *c, const char *model, struct dsc_stream **ret);
#define DSC_RELOAD_DRAIN                                                                           \
	1u /* end the running worker first: for want of memory; requests wait meanwhile */
/** dsc_reload() - load a model's files anew; what cannot be loaded leaves the running worker serving. */
int dsc_reload(struct dsc *c, const char *model, unsigned flags, struct dsc_stream **ret);
#define DSC_DRAIN_UNDO 1u /* take requests again */
/** dsc_drain() - refuse a model's new requests as RETRYABLE; DONE when those under way have finished. */
int dsc_drain(struct dsc *c, const char *model, unsigned flags, struct dsc_stream **ret);

/**
 * dsc_next() - take the next event, if one has come; never blocks
 * @ret: valid until the next call on this stream
 *
 * Return: 1: *ret is an event. 0: the last one (DONE or ERROR) was taken before. -EAGAIN: none yet.
 */
int dsc_next(struct dsc_stream *s, const struct dsc_event **ret);
/**
 * dsc_wait() - dsc_next() that waits, and does the connection's work meanwhile
 * @timeout_ms: -1: as long as it takes
 *
 * Return: 1 or 0 as dsc_next(). -ETIMEDOUT. -EINTR: a signal came; call again, or cancel. -ENOBUFS:
 *         16 MiB of events of other streams wait to be taken, so nothing more is read.
 */
int dsc_wait(struct dsc_stream *s, const struct dsc_event **ret, int timeout_ms);
/** dsc_cancel() - ask the daemon to end the request; its last event still comes. */
int dsc_cancel(struct dsc_stream *s);
/** dsc_stream_free() - forget the request, which is cancelled if it has not ended. NULL is fine. */
void dsc_stream_free(struct dsc_stream *s);

/* ---------------------------------------------------------------- whole answers */

/* One choice of generate; score, tokenize and detokenize have one. */
struct dsc_choice {
	char *text; /* NUL-terminated beyond text_bytes */
	size_t text_bytes;
	uint32_t *ids;
	size_t n_ids;
	struct dsc_token *tokens;
	size_t n_tokens;
	enum dsc_finish finish; /* 0: it did not come to an end */
};

/* What all events of a stream add up to. Made by the library, which may append members. */
struct dsc_result {
	uint64_t request, seed;
	uint32_t prompt_tokens;
	char *model; /* "" where not told */
	uint8_t digest[32];
	size_t digest_bytes;
	struct dsc_usage usage;
	struct dsc_choice *choices;
	size_t n_choices;
};

/** dsc_result_new() - an empty result; NULL: out of memory. */
struct dsc_result *dsc_result_new(void);
/** dsc_result_add() - add what one event says. Return: 0, -ENOMEM. */
int dsc_result_add(struct dsc_result *result, const struct dsc_event *event);
/** dsc_result_free() - NULL is fine. */
void dsc_result_free(struct dsc_result *result);
/**
 * dsc_collect() - wait for the end of a stream and add up its events
 * @ret: set also on error, to what came before it; free it by dsc_result_free()
 *
 * Return: 0, or the error of the stream's DSC_EVENT_ERROR (dsc_error() has the sentence), or of dsc_wait().
 */
int dsc_collect(struct dsc_stream *s, struct dsc_result **ret);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
