#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A request that takes time: its text is encoded, perhaps off the loop; it waits for its model; it
 * runs; it ends exactly once, with its last frame or with an Error. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "broker/proto.h"
#include "sched/sched.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/stop.h"

struct conn;
struct model;
struct score;
struct server;
struct vocab;

#define REQUEST_CHOICES_MAX 64u
#define REQUEST_INLINE_TEXT (8u << 10) /* longer texts are encoded on another thread */

/* What a request's input is made of: exactly one of text, messages, ids. */
struct request_input {
	uint8_t *text; /* text, or the texts of all messages one after the other */
	size_t n_text;
	struct {
		uint8_t role; /* enum message_role */
		uint32_t n;
	} * messages;
	uint32_t n_messages;
	bool is_chat, is_ids;
	unsigned encode_flags;
	bool force_bos;  /* Score: the begin token whatever the tokenizer's rule */
	bool is_open;    /* chat: without what begins the assistant's answer */
	bool has_suffix; /* fill in the middle: text is prefix and suffix, one after the other */
	size_t n_prefix;
	struct ids ids; /* given, or the result */
	int passed;     /* memfd that text or ids are still to be copied from; else -EBADF */
	size_t n_passed;
};

/* Which of the sampling options that a model may have defaults for were given. */
struct sampling_set {
	bool temperature, top_p, top_k, seed;
};

/* One of a Generate's n completions. */
struct choice {
	struct request *request;
	uint32_t index;
	struct seq *seq; /* NULL: over */
	struct decoder decoder;
	struct stop *stop;
	uint32_t n_tokens; /* sampled, end tokens counted */
};

struct request {
	struct conn *conn; /* NULL: the client no longer wants it, an encoding still runs */
	struct request *prev, *next; /* of the connection */
	struct request *next_parked; /* of the model, while it loads */
	uint64_t id;                 /* the client's */
	uint64_t number;             /* the daemon's */
	uint32_t index, generation;
	uid_t uid;      /* once conn is gone */
	size_t n_bytes; /* charged to it */
	struct server *server;
	struct model *model;
	struct vocab *vocab; /* kept while the request lives */

	/* Called once, when input.ids is complete and the model can run; or with @err set. */
	void (*ready)(struct request *r);
	void (*release)(struct request *r); /* frees what the kind of request added; may be NULL */
	/* Called while the model that it waits for loads; may be NULL. */
	void (*progress)(struct request *r, const char *stage, float done);
	bool is_admin; /* waits for what becomes of its model; asks nothing of it */
	struct request_input input;
	bool encoding, parked;
	int encode_result;
	struct error encode_error;

	/* Generate and Score */
	struct choice choices[REQUEST_CHOICES_MAX];
	uint32_t n_choices, n_running, first_choice;
	struct channel_params params;
	struct sampling_set sampling_set;
	uint32_t max_tokens, n_prompt, n_cached;
	enum seq_priority priority;
	bool reuse_generated;
	uint64_t session; /* 0: none */
	bool want_logprobs, echo, skip_special;
	uint64_t deadline_usec; /* UINT64_MAX: none */
	struct stop_string stops[STOP_STRINGS_MAX];
	uint8_t *stop_text; /* behind stops[] */
	uint32_t n_stops;
	uint64_t arrived_usec, started_usec, first_token_usec;
	struct score *score; /* score.c */
	char publish[SCHED_PUBLISHED_NAME_MAX];
	struct ids resume_ids;
	uint32_t n_echoed; /* tokens of the prompt that a resumed client has */
	uint8_t resume_digest[32];
	bool is_resume;
};

/**
 * request_new() - a request of @c for a model
 * Answers with an Error frame itself and returns NULL where there is no such model, it is broken, or
 * memory or the user's quota is short.
 */
struct request *request_new(struct conn *c, uint64_t id, const char *model,
			    void (*ready)(struct request *r));
/** request_new_of() - the same for a model that was found. */
struct request *request_new_of(struct conn *c, uint64_t id, struct model *m,
			       void (*ready)(struct request *r));
/** request_set_text() - copy a text in; -ENOMEM. */
int request_set_text(struct request *r, const ProtobufCBinaryData *text, bool parse_special);
/** request_set_suffix() - after request_set_text(): what comes behind the gap; -ENOMEM. */
int request_set_suffix(struct request *r, const ProtobufCBinaryData *suffix);
int request_set_chat(struct request *r, const Dsd__Chat *chat);
int request_set_ids(struct request *r, const Dsd__Ids *ids);
/** request_set_prompt_fd() - the content of the descriptor that came with the frame, copied off the loop. */
int request_set_prompt_fd(struct request *r, const Dsd__PromptFd *p, bool parse_special);
/**
 * request_set_session() - to run in it, if it is one of this user and model
 * Return: false: it is none, and it @must be. Frees @r then.
 */
bool request_set_session(struct request *r, uint64_t session, bool must);
/** request_fail_input() - what a request_set_*() returned; @why: the handler's own -EINVAL. Frees @r. */
void request_fail_input(struct request *r, int e, const char *why);
/** request_start() - encode, wait for the model if it loads, then call ready(). */
void request_start(struct request *r);
/** request_on_encoded() - the other thread is done. */
void request_on_encoded(struct request *r);
/** request_proceed() - what it waited for has come: ready() is called. */
void request_proceed(struct request *r);
/** request_unpark() - the model is ready (or broken: ready() is not called, an Error is sent). */
void request_unpark(struct request *r);

/** request_fail() - end with an Error frame. Frees @r. */
void request_fail(struct request *r, Dsd__Code code, const char *text, uint32_t retry_after_ms);
/** request_code() - the protocol's code for what encoding or submitting returned. */
Dsd__Code request_code(int r);
/** request_fail_seq() - the same for a sequence that ended otherwise than it should. Frees @r. */
void request_fail_seq(struct request *r, enum seq_end why);
/** request_cancel() - end without a word. Frees @r (or leaves it to the encoder). */
void request_cancel(struct request *r);
/** request_end() - the last frame was sent. Frees @r. */
void request_end(struct request *r);

/** request_on_tick() - the deadline. Return: when it is due, UINT64_MAX: never. May free @r. */
uint64_t request_on_tick(struct request *r, uint64_t now);

struct request *request_find(const struct conn *c, uint64_t id);
void request_pause_all(struct conn *c, bool paused);
