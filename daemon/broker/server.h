#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's one loop, and what its parts share. Thread: broker, everywhere in this folder. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/config.h"
#include "base/hash.h"
#include "broker/notify.h"
#include "broker/packed.h"
#include "broker/pressure.h"
#include "broker/proto.h"
#include "broker/store.h"
#include "text/decode.h"

struct conn;
struct error;
struct io;
struct model;
struct quota;
struct request;

#define SERVER_LISTENERS_MAX 4u
#define SERVER_MODELS_MAX    (2 * CONFIG_MODELS_MAX) /* one may be loaded beside each */

/* Whose event it is: a tag is class, index and generation, so that an answer to something that is
 * gone finds nobody. */
enum tag_class {
	TAG_LISTEN = 1,
	TAG_CONN_RECV,
	TAG_CONN_SEND,
	TAG_REQUEST,
	TAG_WORKER_PID,
	TAG_WORKER_CONTROL,
	TAG_WORKER_RESULT,
	TAG_POOL,
	TAG_PACKED,
	TAG_SIGNAL,
	TAG_PRESSURE
};

static inline uint64_t tag_make(enum tag_class c, uint32_t index, uint32_t generation)
{
	return (uint64_t)c << 56 | (uint64_t)(index & 0xffffff) << 32 | generation;
}
static inline enum tag_class tag_class(uint64_t tag)
{
	return (enum tag_class)(tag >> 56);
}
static inline uint32_t tag_index(uint64_t tag)
{
	return (uint32_t)(tag >> 32) & 0xffffff;
}

/* Things with an index and a generation: connections and requests. */
struct table {
	void **items;
	uint32_t *generations;
	uint32_t *free_list;
	uint32_t n_alloc, n_free, n_used;
};
/** table_add() - Return: index or -ENOMEM; *ret_generation goes into the tag. */
int table_add(struct table *t, void *item, uint32_t *ret_generation);
void table_remove(struct table *t, uint32_t index);
/** table_get() - the item a tag names, or NULL where it is gone. */
void *table_get(const struct table *t, uint64_t tag);
void table_done(struct table *t);

/* The numbers that stats prints. */
struct server_counters {
	uint64_t connections, requests, failed, cancelled, protocol_errors, bytes_in, bytes_out;
};

struct server {
	struct io *io;
	struct config cfg;
	struct quota *quota;
	uint8_t key[HASH_KEY_BYTES]; /* of this boot: domains, chains and tags */
	struct store store;
	struct packed_store packed;
	const char *worker_path;
	bool fake_worker;
	uint64_t started_usec;
	struct server_counters count;

	struct {
		int fd;
		uint64_t retry_usec; /* accepting failed; 0: it is armed */
		bool admin;          /* its connections speak the administrative table */
		bool own;            /* made by us: its file is ours to remove */
	} listeners[SERVER_LISTENERS_MAX];
	uint32_t n_listeners;
	int signal_fd;
	struct table conns, requests;
	struct conn *doomed, *dirty;
	struct text_buf piece, text; /* of the token at hand: a step allocates nothing */
	uint64_t wake_usec;          /* earliest deadline of anything; UINT64_MAX: none */
	uint64_t n_requests;         /* numbers for the log */

	struct model *models[SERVER_MODELS_MAX];
	uint32_t n_models;
	uint32_t n_workers; /* ever started: names them in tags */
	uint32_t n_pools;   /* ever made: the same */
	int state_fd;       /* directory for what is kept; negative: none */
	uint64_t stop_usec; /* stopping: who has not finished by then is told to come again */
	bool stopping;
	struct notify notify;
	struct pressure pressure;
};

/** server_init() - everything but the sockets; a key that was kept comes with server_run(). */
int server_init(struct server *s, struct io *io, const struct config *cfg, const char *worker_path,
		bool fake_worker, struct error *err);
void server_done(struct server *s);
/** server_listen() - serve a listening socket; the descriptor becomes the server's, and where it is @own so does
 * its file: the daemon removes it as soon as it is told to stop. */
int server_listen(struct server *s, int fd, bool admin, bool own, struct error *err);
/** server_run() - the loop, until SIGTERM or SIGINT. Return: 0 or -errno. */
int server_run(struct server *s, struct error *err);

/** server_wake_at() - the loop looks at deadlines no later than @usec. */
void server_wake_at(struct server *s, uint64_t usec);

/** server_state() - READY if a model can generate, LOADING while one may, else DEGRADED. */
Dsd__State server_state(const struct server *s);
/** server_find_model() - by name, as requests find it; NULL or "": the first. NULL: there is none. */
struct model *server_find_model(const struct server *s, const char *name);
/** server_find_session() - the model that has that session of the user's; NULL: none has. */
struct model *server_find_session(const struct server *s, uid_t uid, uint64_t id);
