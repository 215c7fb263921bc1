#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A model, as model.c (its life) and reload.c (its coming and going) share it; nobody else includes
 * this. */
#include "base/error.h"
#include "broker/model.h"
#include "broker/packed.h"
#include "broker/process.h"
#include "broker/selftest.h"
#include "broker/watch.h"
#include "layout/image.h"

#define MODEL_DEATHS_MAX 3u

struct pool_config;

/* Of the worker; what others see of the model is its state. */
enum phase { PHASE_OFF, PHASE_LOADING, PHASE_RUNNING };

struct model {
	struct server *server;
	struct config_model cfg;
	Dsd__State state;
	char reason[ERROR_TEXT_MAX];
	enum phase phase;

	struct model *replaces; /* takes its name when READY; may be NULL */
	struct model *follows;  /* starts when that one is gone */
	bool coming;            /* no request finds it yet */
	bool leaving;           /* no request finds it any more; goes when its last one has ended */
	bool drained;           /* refuses requests */
	bool tested;            /* its self-test was passed, or there is none to pass */

	struct process worker;
	struct watch watch;         /* over it */
	struct packed_offer packed; /* what it was given */
	bool result_polled;
	uint64_t retry_usec; /* 0: none is due */
	uint64_t used_usec;  /* when a request last asked for it */
	uint32_t starts, deaths, deaths_in_row;
	uint64_t death_usec[MODEL_DEATHS_MAX]; /* of the last ones; a ring by deaths */
	char stage[64];
	float progress;

	struct image image;
	struct vocab *vocab; /* owns the image's mapping */
	struct pool *pool;
	uint32_t pool_number;  /* names it in tags */
	uint64_t settles_usec; /* when an adopted pool has proved itself; 0: it has */
	struct sched *sched;
	struct channel *channel;
	struct selftest selftest;
	struct request *parked;  /* list: wait until it is READY */
	struct request *leavers; /* list: wait until its requests have ended */
};

void model_set_state(struct model *m, Dsd__State state, const char *reason);
/** model_take_place() - of the one it replaces, which is hidden from now on. */
void model_take_place(struct model *m);
uint64_t model_pool_bytes(const struct model *m);
/** model_keep_pool() - adopt the pool that the store kept for this model, or make one and have it kept.
 * Return: 0; -errno with a sentence. */
int model_keep_pool(struct model *m, const struct pool_config *cfg, struct error *err);
/** model_forget_pool() - it is not to be kept any more. */
void model_forget_pool(struct model *m);
void model_list_append(struct request **list, struct request *r);
/** model_wake_all() - each of a list; more may be put onto it meanwhile, and wait for the next time. */
void model_wake_all(struct request **list, void (*wake)(struct request *));
