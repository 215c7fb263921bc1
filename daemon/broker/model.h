#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model the broker serves: its worker process, image, vocabulary, pool and scheduler.
 *
 *   LOADING ──► READY ──► (worker dies) ──► LOADING ...     with back-off
 *      └──────► DEGRADED: the worker said why the files cannot be served,
 *               or three workers died within a minute (then another is tried with back-off)
 *
 * The worker is watched by pidfd. When it dies a new one is started and its sequences go on where they
 * were; pool and image stay, the channel is new. Thread: broker. */
#include <stdint.h>

#include "base/config.h"
#include "broker/proto.h"
#include "sched/sched.h"

struct io_event;
struct image;
struct model;
struct pool;
struct request;
struct server;
struct vocab;

int model_new(struct model **ret, struct server *s, const struct config_model *cfg, uint32_t index);
/** model_free() - kills the worker; requests must have ended. */
struct model *model_free(struct model *m);
/** model_start() - open the files and start a worker; failures make the model DEGRADED. */
void model_start(struct model *m);

const char *model_name(const struct model *m);
Dsd__State model_state(const struct model *m);
const char *model_reason(const struct model *m); /* why DEGRADED */
/** model_refusal() - what requests of a DEGRADED model get: RETRYABLE if it ran and is tried on. */
Dsd__Code model_refusal(const struct model *m);
const struct image *model_image(const struct model *m); /* NULL before the first load */
struct vocab *model_vocab(const struct model *m);
struct sched *model_sched(const struct model *m);
/** model_room() - tokens a sequence can have: what context and pool allow. */
uint32_t model_room(const struct model *m);

/** model_kick() - look for work: something was submitted, cancelled or resumed. */
void model_kick(struct model *m);
void model_park(struct model *m, struct request *r);
void model_unpark(struct model *m, struct request *r);

void model_on_pid(struct model *m, uint32_t generation);
void model_on_control(struct model *m, uint32_t generation);
void model_on_result(struct model *m, uint32_t generation);
/** model_on_tick() - back-off is over? Return: when to look again, UINT64_MAX: no need. */
uint64_t model_on_tick(struct model *m, uint64_t now);

struct model_stats {
	struct sched_stats sched;
	uint32_t pages_total, pages_used, pages_cached, starts, deaths;
	uint64_t kv_bytes_per_token, mha_bytes_per_token, gqa8_bytes_per_token;
	pid_t worker_pid;
	float progress;
	const char *stage;
};
void model_get_stats(const struct model *m, struct model_stats *ret);
