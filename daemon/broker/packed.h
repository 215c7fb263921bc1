#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Packed weights, kept from start to start: `packed/` in the cache directory ($CACHE_DIRECTORY, as systemd
 * sets it, else the state directory) holds one file of layout/packed.h for each model.
 *
 *   name: MODEL-SOURCE-CONTENT in hex: MACs of the model's name; of what the kernel says of its files
 *         (name, device, inode, size, times) and of the precision; of what the weights are
 *
 * A worker is given the file whose MODEL and SOURCE are those of its model, if its MAC holds, and an empty
 * one without a name. When it has filled that one, the MAC is added off the loop, the file gets its name,
 * and the model's other files go. So a worker cannot make a file for files that it was not given, and there
 * is never more than one file for a model. A file that does not prove itself is dropped.
 *
 * Only quantised weights are kept: making the others is little more than reading them. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"

struct error;
struct model;
struct server;

#define PACKED_NAME_BYTES 96u

struct packed_job;
struct packed_store {
	int dir_fd; /* negative: nothing is kept */
	uint8_t key[HASH_KEY_BYTES];
	struct packed_job *jobs; /* on the second thread */
	uint32_t n_jobs;         /* ever */
};

/* What a model's worker was given. */
struct packed_offer {
	char prefix[PACKED_NAME_BYTES]; /* MODEL-SOURCE- */
	char name[PACKED_NAME_BYTES];   /* of the file; "": none */
	int empty_fd;                   /* negative: none, or filled */
	bool off;                       /* a worker died of a mapped file */
};
#define PACKED_OFFER_NULL ((struct packed_offer){.empty_fd = -EBADF})

/**
 * packed_open() - the directory and the key, which is made at the first start
 * Return: 0, also where there is no state directory or the weights are not quantised: then nothing is
 *         kept. -errno with a sentence.
 */
int packed_open(struct server *s, struct error *err);
/** packed_close() - what is under way ends by itself. */
void packed_close(struct server *s);

/**
 * packed_offer() - hand a starting worker what there is
 * @source: process_send_files()'s
 * Return: 0, also without a store; -errno with a sentence: the worker cannot be told.
 */
int packed_offer(struct model *m, const uint8_t source[HASH_MAC_BYTES], struct error *err);
/** packed_refuse() - the file that was offered proves nothing, for @why: it is dropped. */
void packed_refuse(struct model *m, const char *why);
/** packed_filled() - keep what the worker filled. Return: 0; -EPROTO: it had nothing to fill. */
int packed_filled(struct model *m, struct error *err);
/** packed_mistrust() - a worker died of a mapped file: the next ones get none. */
void packed_mistrust(struct model *m);
/** packed_withdraw() - the worker is ready or gone: a file that it has not filled goes. */
void packed_withdraw(struct model *m);
/** packed_on_done() - the second thread is through with job @number. */
void packed_on_done(struct server *s, uint32_t number);
