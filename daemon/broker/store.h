#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What outlives the daemon: descriptors that systemd keeps for us (FDSTORE=1) and hands back at the next
 * start. They are the key of this boot and, for each model, the two memfds of its pool. Where nobody
 * keeps them everything works, cold. What comes back is hostile until its user has checked it.
 * Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"

struct error;

#define STORE_MAX        64u /* as the unit's FileDescriptorStoreMax= */
#define STORE_NAME_BYTES 64u

struct store {
	bool on; /* somebody keeps what is pushed */
	uint8_t boot_id[16];
	struct {
		char name[STORE_NAME_BYTES];
		int fd;
	} kept[STORE_MAX]; /* came back, and nobody has taken them yet */
	uint32_t n_kept;
};

/** store_init() - empty; boot_id from $DSD_BOOT_ID, else the kernel's. */
void store_init(struct store *st);
void store_done(struct store *st); /* closes what nobody took; the store keeps its own */
/** store_is_name() - is this a descriptor of the store, by its FDNAME? */
bool store_is_name(const char *name);
/** store_add() - @fd came back under @name; it is the store's from then on. */
void store_add(struct store *st, const char *name, int fd);
/** store_take() - Return: the descriptor, the caller's from then on; -ENOENT. */
int store_take(struct store *st, const char *name);
/** store_push() - keep a copy of @fd under @name. Return: 0 or -errno; without a keeper 0. */
int store_push(const struct store *st, const char *name, int fd);
/** store_remove() - keep nothing under @name any more. */
void store_remove(const struct store *st, const char *name);
/** store_drop_rest() - what came back and nobody wanted is closed and no longer kept. */
void store_drop_rest(struct store *st);

/**
 * store_key() - the key of this boot
 * @key: a new one, which is pushed; replaced by the one that came back, if it did
 * Return: 0 or -errno with a sentence. A key that came back and is none is dropped with a log line.
 */
int store_key(struct store *st, uint8_t key[HASH_KEY_BYTES], struct error *err);
