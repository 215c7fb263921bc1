#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The broker in a simulated world: one process, one thread, everything that happens follows from a seed.
 *
 *   io.c      the seam: clock, agenda, wires with short reads and short sends, late and reordered answers
 *   worker.c  the process at the other end of the channel: the fake engine, slow, killed, torn
 *   client.c  connections of 8 users and their misbehaviour
 *   think.c   what they ask;  call.c  one request and what it must get
 *   verbs.c   what an administrator does, and what users ask about themselves
 *   oracle.c  what the fake model must say, computed a second time
 *   pages.c   what every page holds, as it was seen written
 *   check.c   what must hold between any two events
 *
 * The world moves inside io_wait(): the agenda's next entry is taken, actors act, and what concerns the
 * broker becomes an event. Every entry and every byte the broker sends goes into one hash. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/io.h"
#include "broker/server.h"

#define SIM_USERS     8u
#define SIM_ADMIN     SIM_USERS /* comes after them */
#define SIM_PEOPLE    (SIM_USERS + 1)
#define SIM_UID       1000u     /* the first */
#define SIM_LINK_FD   (1 << 24) /* descriptors of wires: no real one is so high */
#define SIM_LISTEN_FD (SIM_LINK_FD - 1)
#define SIM_ADMIN_FD  (SIM_LINK_FD - 2)
#define SIM_SECOND    UINT64_C(1000000)
#define SIM_MINUTE    (60 * SIM_SECOND)
#define SIM_DAY       (86400 * SIM_SECOND)
#define SIM_EVENT_MAX 8u /* broker events of one io_wait() */
#define SIM_PIECE     8192u
/* Values of top_k, which means nothing to the fake model: */
#define SIM_ANY_PATH 4242u /* the request said reuse_generated */
#define SIM_KILLER   6666u /* a step with rows of it kills the worker */

struct call;
struct channel_params;
struct client;
struct engine_step;
struct pages;
struct user;
struct vocab;
struct workers;

/* What went wrong on purpose, how often. */
enum fault {
	FAULT_CLIENT_DEATH,
	FAULT_CONNECTION_LOST, /* and its request goes on on another one */
	FAULT_SLOW_READER,
	FAULT_HALF_FRAME,
	FAULT_GARBAGE,
	FAULT_CANCEL,
	FAULT_DEADLINE,
	FAULT_WORKER_DEATH,
	FAULT_WORKER_DEATH_LOADING,
	FAULT_KILLER, /* a request that kills workers */
	FAULT_WORKER_SLOW,
	FAULT_WORKER_LIES, /* a result that cannot be: it must go */
	FAULT_STEP_REFUSED,
	FAULT_NO_NUMBERS, /* logits that are none cost one request */
	FAULT_ACCEPT,     /* no descriptor is left for a while */
	FAULT_NO_MEMORY,
	FAULT_POOL_SHORT, /* a running sequence lost its pages: as the scheduler counts */
	_FAULT_MAX
};

/* What was asked for and came as it should. */
enum act {
	ACT_GENERATE,
	ACT_CHAT,
	ACT_CHOICES,
	ACT_LOGPROBS,
	ACT_ECHO,
	ACT_ECHO_LOGPROBS,
	ACT_STOP,
	ACT_RESUME,
	ACT_RESUME_CHOICE, /* another than the first */
	ACT_REUSE,
	ACT_REPEAT,
	ACT_COME_BACK, /* a reader that the daemon waited for got the rest */
	ACT_SCORE,
	ACT_TOKENIZE,
	ACT_DETOKENIZE,
	ACT_SESSION_OPEN,
	ACT_SESSION_FORK,
	ACT_SESSION_CLOSE,
	ACT_SESSION_USE,
	ACT_SESSION_OVER, /* its lease had ended, or it was another user's: it is not there */
	ACT_DESCRIPTOR,   /* a prompt beside its frame */
	ACT_LIST,
	ACT_STATS,
	ACT_MODELS,
	ACT_CANCEL_NUMBER,
	ACT_FORBIDDEN, /* a verb of the other socket was refused */
	ACT_PUBLISH,
	ACT_UNPUBLISH,
	ACT_EVICT,
	ACT_RELOAD,
	ACT_DRAIN,
	ACT_UNLOAD,
	ACT_LOAD,
	ACT_FIND_SHARED, /* a prompt began with a published prefix */
	_ACT_MAX
};

struct counts {
	uint64_t events, entries, connections, requests, tokens, scored, resumed, retried, refused,
		cached, prompt, steps, checks, quiet;
	uint64_t faults[_FAULT_MAX], acts[_ACT_MAX];
	uint64_t broken;
};

enum entry_kind {
	ENTRY_BURST,   /* more connections come */
	ENTRY_CONNECT, /* one of them */
	ENTRY_ADMIN,   /* an administrator comes */
	ENTRY_CLIENT,  /* a client does the next thing */
	ENTRY_READ,    /* a client reads */
	ENTRY_RECV,    /* bytes reach the broker */
	ENTRY_SEND,    /* a send gets on */
	ENTRY_EVENT,   /* an event that is ready */
	ENTRY_WORK,    /* offloaded work is done */
	ENTRY_WORKER,  /* the worker gets on */
	ENTRY_DEATH,   /* the worker's last moment */
	ENTRY_MINUTE,  /* bookkeeping */
};

/* One thing on the agenda. @index and @generation name whose; what is gone is not found. */
struct entry {
	uint64_t at, order;
	enum entry_kind kind;
	uint32_t index, generation;
	struct io_event event; /* ENTRY_EVENT, ENTRY_WORK */
	io_work_fn fn;
	void *arg;
};

/* A connection: two byte pipes. */
struct link {
	uint32_t index, generation;
	bool broker_open, client_open; /* each end closes once */
	bool shut;                     /* the broker says no more */
	struct io_peer peer;
	struct client *client;
	struct {
		uint8_t *data;
		size_t at, n, alloc;
	} in, out; /* to the broker, to the client */
	int passed; /* on its way to the broker with the bytes [passed_at, passed_end) of in; or -EBADF */
	size_t passed_at, passed_end;
	size_t room; /* out holds so much */
	bool receiving, recv_due;
	uint64_t recv_tag;
	bool sending, send_due;
	uint64_t send_tag;
	const uint8_t *send_data;
	size_t send_n;
	bool read_due;
};

struct poll {
	int fd;
	uint64_t tag;
	bool used;
};

struct sim {
	struct io io;
	uint64_t seed, rng, now, end, hash, n_order;
	uint32_t requests_per_day;
	bool verbose, stop_early, over;
	struct {
		bool armed;
		uint64_t tag;
	} listen[2]; /* users, administrators */
	struct server server;
	struct counts count;

	struct entry *agenda; /* heap */
	size_t n_agenda, agenda_alloc;
	struct link **links;
	uint32_t n_links, links_alloc;
	struct poll polls[64];
	uint8_t (*pieces)[SIM_PIECE]; /* [SIM_EVENT_MAX]: what events point to */

	struct workers *workers;
	struct pages *pages; /* of every pool there was */
	struct client **clients;
	uint32_t n_clients, clients_alloc, clients_used;
	struct vocab *vocab; /* the fake model's, for prompts */
	uint8_t domains[SIM_PEOPLE][16];
	struct user *users; /* [SIM_PEOPLE]: what their prompts begin with */
	uint64_t quiet_since;
	uint64_t idle_since; /* a worker while somebody waits for it; 0: it is not */
	/* What an administrator has begun and another one, if need be, undoes. */
	bool drained, unloaded, admin_called;
	uint64_t absent_until;  /* a request may be told that the model is not there */
	uint64_t renewed_until; /* one that has no worker yet may stand in its place */
	uint32_t n_spins;       /* waits that had nothing to wait for, one after the other */
	uint64_t n_deaths;      /* of workers */
	uint64_t n_preemptions; /* of all models there are */
	bool second_killer;     /* comes soon */
	uint64_t n_killed;      /* workers, by requests that kill */
	uint64_t n_no_memory;   /* connections that were ended for want of it */
	uint32_t burst_user;    /* whose connections come; SIM_USERS: anybody's */
	uint64_t n_no_numbers;  /* requests that were told so */
};

/* ---- io.c ---- */
void sim_io_init(struct sim *s);
void sim_io_done(struct sim *s);
/** sim_push() - put @e on the agenda, @delay_usec from now; entries of one moment come in any order. */
void sim_push(struct sim *s, uint64_t delay_usec, struct entry e);
/** sim_poll_event() - a watched descriptor of the broker became readable; @class: a tag_class. */
void sim_poll_event(struct sim *s, enum tag_class class, uint64_t delay_usec);
/** sim_note() - into the hash. */
void sim_note(struct sim *s, const void *data, size_t n);

struct link *link_new(struct sim *s, uint32_t user, struct client *c);
struct link *link_get(struct sim *s, uint32_t index, uint32_t generation);
/** link_write() - the client sends; nothing is lost, pieces come when they come. */
void link_write(struct sim *s, struct link *l, const void *data, size_t n);
/** link_write_with() - the same with a descriptor, which is the link's then; none may be on its way. */
void link_write_with(struct sim *s, struct link *l, const void *data, size_t n, int fd);
/** link_read() - the client takes up to @n bytes. Return: bytes. */
size_t link_read(struct sim *s, struct link *l, uint8_t *data, size_t n);
/** link_ended() - nothing more will come to the client. */
bool link_ended(const struct link *l);
void link_close(struct sim *s, struct link *l); /* by the client */

/* ---- chance ---- */
uint64_t sim_random(struct sim *s);
/** sim_below() - 0 .. n-1. */
static inline uint64_t sim_below(struct sim *s, uint64_t n)
{
	return sim_random(s) % n;
}
/** sim_one_in() - true once in @n times. */
static inline bool sim_one_in(struct sim *s, uint64_t n)
{
	return sim_below(s, n) == 0;
}
/** sim_between() - @a .. @b. */
static inline uint64_t sim_between(struct sim *s, uint64_t a, uint64_t b)
{
	return a + sim_below(s, b - a + 1);
}

/* ---- worker.c ---- */
int workers_new(struct sim *s);
void workers_free(struct sim *s);
int worker_spawn(struct sim *s, int control);
void worker_kill(struct sim *s, int pidfd);
bool worker_reap(struct sim *s, int pidfd, int *ret_status);
/** workers_look() - has the broker posted a step? */
void workers_look(struct sim *s);
void worker_on_entry(struct sim *s, uint32_t index, uint32_t generation);
void worker_on_death(struct sim *s, uint32_t index, uint32_t generation);
bool workers_idle(const struct sim *s);

/* ---- pages.c ---- */
/* What a worker has seen of a slot. */
struct slot_seen {
	uint64_t generation;
	bool mixed; /* its sequence stands on rows of another path */
};
/** pages_of() - of the pool with that inode, which is new if it was never seen. */
struct pages *pages_of(struct sim *s, uint64_t pool, uint32_t n_pages, uint64_t stride);
void pages_free(struct sim *s);
/** pages_on_step() - a worker is about to compute @step on @pool. @excused: it stands on a refused one. */
void pages_on_step(struct sim *s, struct pages *p, struct slot_seen *slots,
		   const struct engine_step *step, const uint8_t *pool, bool excused);

/* ---- client.c ---- */
int clients_init(struct sim *s);
void clients_done(struct sim *s);
void clients_on_burst(struct sim *s);
/** clients_on_connect() - @heir: NULL, or a request to begin with: of a lost connection, say; freed. */
void clients_on_connect(struct sim *s, struct call *heir);
/** clients_on_admin() - @again: others come after this one. */
void clients_on_admin(struct sim *s, bool again);
/** clients_find_call() - the running request of that number, NULL: no client knows of it. */
struct call *clients_find_call(struct sim *s, uint64_t number);
/** clients_any_call() - some running request whose number its client knows; NULL: none was met. */
struct call *clients_any_call(struct sim *s);
void client_on_entry(struct sim *s, uint32_t index, uint32_t generation);
void client_on_read(struct sim *s, struct client *c);
/** clients_expect_no_numbers() - a row of the sequence with @p had none in a step that @began then. */
void clients_expect_no_numbers(struct sim *s, const struct channel_params *p, uint64_t began);
/** clients_check() - requests that should have ended long ago. */
void clients_check(struct sim *s);

/* ---- check.c ---- */
/** sim_broken() - an invariant does not hold. Says so with time and seed, and counts. */
void sim_broken(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_check(struct sim *s);
/** sim_check_minute() - the slow ones. */
void sim_check_minute(struct sim *s);
