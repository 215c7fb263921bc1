#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model the broker serves: its worker process, image, vocabulary, pool and scheduler.
 *
 *   LOADING ──► READY ──► (worker dies) ──► LOADING ...     with back-off
 *      │          └─────► IDLE: nobody asked for long; the next request loads it again
 *      └──────► DEGRADED: the worker said why the files cannot be served,
 *               or three workers died within a minute (then another is started with back-off)
 *
 * The worker is watched by pidfd. When it dies a new one is started and its sequences go on where they
 * were; pool and image stay, the channel is new.
 *
 * A reload makes a second model of the same name, which nobody finds until it is READY; then it takes
 * the first one's place, and that one, hidden, finishes what it has and goes. If both have the same
 * digest they share the pool, so that what is cached stays. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

#include "base/config.h"
#include "broker/proto.h"
#include "sched/sched.h"

struct error;
struct image;
struct model;
struct pool;
struct request;
struct server;
struct vocab;

int model_new(struct model **ret, struct server *s, const struct config_model *cfg);
/** model_free() - kills the worker and waits for its end; requests must have ended. */
struct model *model_free(struct model *m);
/** model_start() - start a worker and hand it the files; failures make the model DEGRADED. */
void model_start(struct model *m);

struct server *model_server(const struct model *m);
const char *model_name(const struct model *m);
Dsd__State model_state(const struct model *m);
const char *model_reason(const struct model *m); /* why DEGRADED */
/** model_refusal() - what requests of a DEGRADED model get: RETRYABLE if it ran and is tried on. */
Dsd__Code model_refusal(const struct model *m);
bool model_is_hidden(const struct model *m);            /* not there yet, or any more */
bool model_is_drained(const struct model *m);           /* takes no requests */
const struct image *model_image(const struct model *m); /* NULL before the first load */
struct vocab *model_vocab(const struct model *m);
struct sched *model_sched(const struct model *m);
/** model_room() - tokens a sequence can have: what context and pool allow. */
uint32_t model_room(const struct model *m);

/** model_kick() - look for work: something was submitted, cancelled or resumed. */
void model_kick(struct model *m);
/** model_park() - @r waits until the model is READY or DEGRADED (request_unpark()); loads an IDLE one. */
void model_park(struct model *m, struct request *r);
/** model_when_unused() - @r waits until no request uses the model (request_proceed()). */
void model_when_unused(struct model *m, struct request *r);
void model_unpark(struct model *m, struct request *r); /* @r goes: out of either list */

/**
 * model_add() - load one more model
 * @replaces: whose place it takes when it is READY; NULL: it is new
 * @drain:    @replaces finishes and goes first; requests wait for the new one meanwhile
 * Return: 0. -ENOMEM: memory.max does not allow both; -ENOSPC: too many. With a sentence.
 */
int model_add(struct server *s, const struct config_model *cfg, struct model *replaces, bool drain,
	      struct model **ret, struct error *err);
/** model_is_coming() - one of that name is being loaded, and takes nobody's place. */
bool model_is_coming(const struct server *s, const char *name);
/** model_reload() - load its files anew; *ret: the one to wait for, which may be on its way already. */
int model_reload(struct model *m, bool drain, struct model **ret, struct error *err);
/** model_leave() - hidden from now on, and so is what was to take its place; goes when its requests have
 * ended. */
void model_leave(struct model *m);
void model_drain(struct model *m, bool drained);
bool model_in_use(const struct model *m); /* a request of it has not ended */
/** model_reap() - let go what has left, and share out pools; the loop calls it between events. */
void model_reap(struct server *s);

bool model_has_worker(const struct model *m, uint32_t generation);
void model_on_pid(struct model *m);
void model_on_control(struct model *m);
void model_on_result(struct model *m);
/** model_on_selftest() - 0: passed; negative, with a sentence: the model is not served. */
void model_on_selftest(struct model *m, int r, const struct error *err);
/** model_make_tags() - start the next tag of the pool, where it is kept. Return: one is under way. */
bool model_make_tags(struct model *m);
/** model_on_tag() - a tag of that pool is made. Return: whether it is this model's. */
bool model_on_tag(struct model *m, uint32_t pool_number);
/** model_settled() - the daemon has gone well with an adopted pool, or ends as asked. */
void model_settled(struct model *m);
/** model_on_tick() - Return: when to look again, UINT64_MAX: no need. */
uint64_t model_on_tick(struct model *m, uint64_t now);

struct model_stats {
	struct sched_stats sched;
	uint32_t pages_total, pages_used, pages_cached, starts, deaths;
	uint64_t kv_bytes_per_token, mha_bytes_per_token, gqa8_bytes_per_token;
	pid_t worker_pid;
	float progress;
	const char *stage;
};
/** model_moves() - false: its worker stands still, was killed for it, and is not gone. */
bool model_moves(const struct model *m);
void model_get_stats(const struct model *m, struct model_stats *ret);
