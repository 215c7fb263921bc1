#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One request of a simulated client: what it asks, and whether each frame is what it must get. Tokens,
 * texts and log-probabilities are compared with the oracle one by one; a request whose worker died goes
 * on where it was and must give the same words. */
#include "oracle.h"
#include "sim.h"
#include "text/encode.h"

#define CALL_CHOICES   8u
#define CALL_MESSAGES  3u
#define CALL_STOPS     3u
#define DOCUMENTS      4u
#define DOCUMENT_BYTES 1600u

#define SESSIONS 6u /* of one user, as its clients know them */

struct user_session {
	uint64_t id; /* 0: none */
	uint64_t lease_usec, opened;
	uint64_t used, touched; /* for certain; at the latest */
	uint32_t running;
};

/* What a user's prompts begin with: texts of its own, and its last conversation. */
struct user {
	uint8_t documents[DOCUMENTS][DOCUMENT_BYTES];
	uint8_t last[DOCUMENT_BYTES];
	size_t n_last;
	struct user_session sessions[SESSIONS];
};

enum call_kind {
	CALL_GENERATE,
	CALL_SCORE,
	CALL_TOKENIZE,
	CALL_DETOKENIZE,
	/* verbs.c */
	CALL_LIST,
	CALL_SESSION_OPEN,
	CALL_SESSION_FORK,
	CALL_SESSION_CLOSE,
	CALL_STATS,
	CALL_MODELS,
	CALL_CANCEL_NUMBER,
	CALL_PUBLISH,
	CALL_UNPUBLISH,
	CALL_EVICT,
	CALL_RELOAD,
	CALL_DRAIN,
	CALL_UNDRAIN,
	CALL_UNLOAD,
	CALL_LOAD,
	CALL_OTHERS /* a user's, on the administrative socket */
};
enum call_form { FORM_TEXT, FORM_CHAT, FORM_IDS };

struct call_choice {
	struct oracle at, echo_at;
	uint8_t *text; /* of the tokens that came: in this vocabulary a token is its byte */
	uint32_t n_tokens, n_text;      /* came as ids, as text */
	uint32_t n_echoed, n_echo_text; /* the same of the prompt */
	bool over, ended_by_token;
};

struct call {
	bool used;
	enum call_kind kind;
	enum call_form form;
	uint32_t user;
	uint64_t id;
	uint8_t *text;
	size_t n_text;
	uint32_t n_messages, message_bytes[CALL_MESSAGES];
	struct ids ids; /* what the input must become */

	struct channel_params params;
	uint32_t n, max_tokens, priority, deadline_ms;
	uint32_t first_choice; /* of the request that this one goes on with */
	int logprobs;          /* -1: none */
	bool seeded, add_bos, reuse, echo;
	bool goes_on;       /* with its user's last conversation */
	bool huge;          /* more than a pool that is half published can hold: may be refused */
	bool passed;        /* its prompt goes beside its frame */
	bool doomed_input;  /* must be refused */
	bool no_numbers;    /* the model had none for it: it says so, or does not end by itself */
	uint32_t n_repeats; /* the same prompt is asked again so often, for prompt rows alone */
	uint8_t stop[CALL_STOPS][4];
	uint32_t n_stops, stop_bytes[CALL_STOPS];

	bool started, begun; /* this time, ever */
	bool again;          /* goes on where it was */
	bool cancelling, waiting;
	uint8_t digest[32];
	struct call_choice choices[CALL_CHOICES];
	uint32_t n_came;     /* ids or bytes of a reply in parts */
	uint64_t since, due; /* sent; to be sent again, cancelled: 0: nothing is due */
	uint32_t attempts;
	uint64_t cancel_at; /* when its client cancelled it; 0: it has not */
	uint64_t number;    /* the daemon's, from Started; 0: not known */
	bool cancelled;     /* the daemon said that it cancelled it: no other end is right */
	uint64_t target;    /* of a cancel, a fork, a close */
	struct user_session *session; /* it runs in, or is about; NULL: none */
	uint64_t lease_usec;
	bool over;             /* the session cannot be there any more */
	bool sure;             /* it must be */
	bool drain;            /* of a reload: the old one goes first */
	bool admin, forbidden; /* through which socket; it is not for this one */
	uint64_t deaths;       /* of workers, when it was sent */
};

enum call_size {
	CALL_ANY,
	CALL_FLOOD, /* many long answers with all that can be said of each token */
	CALL_HUGE,  /* takes about all that the pool has */
	CALL_VERB   /* an administrator's */
};

/* ---- think.c ---- */
/** call_init() - think of a request. */
void call_init(struct sim *s, struct call *c, uint32_t user, enum call_size size);
void call_done(struct sim *s, struct call *c);
/** call_heir() - what goes on on another connection of choice @k of @c; NULL: nothing. On the heap. */
struct call *call_heir(const struct call *c, uint32_t k);
/** call_repeat() - whether @c, which has ended well, is asked once more: it is to be sent then. */
bool call_repeat(struct sim *s, struct call *c);
/* ---- call.c ---- */
/** call_send() - as request @id, for the first time or where it was. */
void call_send(struct sim *s, struct call *c, struct link *l, uint64_t id);
/** call_on_frame() - Return: whether the request is over; c->waiting: it wants to be sent again at c->due. */
bool call_on_frame(struct sim *s, struct call *c, const Dsd__ServerFrame *frame, bool lenient);
/* ---- verbs.c ---- */
/** session_pick() - some session of @user; NULL: it has none, or it was not asked of for that one. */
struct user_session *session_pick(struct sim *s, uint32_t user);
/** session_look() - what must be said of a session that @c is about to name. */
void session_look(struct sim *s, struct call *c, const struct user_session *x);
void verb_init(struct sim *s, struct call *c);
void verb_send(struct sim *s, struct call *c, struct link *l);
bool verb_on_frame(struct sim *s, struct call *c, const Dsd__ServerFrame *frame);
/** call_send_frame() - as request @id. */
void call_send_frame(struct sim *s, struct link *l, uint64_t id, Dsd__ClientFrame *frame);
