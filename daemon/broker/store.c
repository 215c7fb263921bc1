/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>
#include <systemd/sd-id128.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"

#define KEY_NAME  "boot-key"
#define KEY_MAGIC "dsdkey1"
#define KEY_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

struct boot_key {
	char magic[8];
	uint8_t boot_id[16];
	uint8_t key[HASH_KEY_BYTES];
};

void store_init(struct store *st)
{
	const char *text = secure_getenv("DSD_BOOT_ID");
	sd_id128_t id;

	*st = (struct store){.on = getenv("NOTIFY_SOCKET") != NULL};
	if ((text && sd_id128_from_string(text, &id) >= 0) || sd_id128_get_boot(&id) >= 0)
		memcpy(st->boot_id, id.bytes, sizeof(st->boot_id));
}

void store_done(struct store *st)
{
	while (st->n_kept)
		fd_close(st->kept[--st->n_kept].fd);
}

bool store_is_name(const char *name)
{
	return strcmp(name, KEY_NAME) == 0 || strncmp(name, "pool-", 5) == 0;
}

void store_add(struct store *st, const char *name, int fd)
{
	if (st->n_kept == STORE_MAX || strlen(name) >= STORE_NAME_BYTES) {
		store_remove(st, name);
		close(fd);
		return;
	}
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	strcpy(st->kept[st->n_kept].name, name);
	st->kept[st->n_kept++].fd = fd;
}

int store_take(struct store *st, const char *name)
{
	for (uint32_t i = 0; i < st->n_kept; i++)
		if (strcmp(st->kept[i].name, name) == 0) {
			int fd = st->kept[i].fd;

			st->kept[i] = st->kept[--st->n_kept];
			return fd;
		}
	return -ENOENT;
}

int store_push(const struct store *st, const char *name, int fd)
{
	char text[STORE_NAME_BYTES + 64];
	int r;

	if (!st->on)
		return 0;
	fault_at(FAULT_STORE_PUSH);
	/* A memfd has no hang-up to poll for. */
	snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
	r = sd_pid_notify_with_fds(0, 0, text, &fd, 1);
	fault_at(FAULT_STORE_PUSHED);
	return r < 0 ? r : 0;
}

void store_remove(const struct store *st, const char *name)
{
	if (st->on)
		sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void store_drop_rest(struct store *st)
{
	while (st->n_kept) {
		st->n_kept--;
		log_notice("descriptor store: nobody wants %s: dropped", st->kept[st->n_kept].name);
		store_remove(st, st->kept[st->n_kept].name);
		fd_close(st->kept[st->n_kept].fd);
	}
}

static int read_key(const struct store *st, int fd, struct boot_key *ret, struct error *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st_fd;

	if (seals != KEY_SEALS)
		return error_set(err, -EBADMSG, "want a memfd with seals %#x, got %#x", KEY_SEALS,
				 (unsigned)seals);
	if (fstat(fd, &st_fd) < 0 || st_fd.st_size != sizeof(*ret) ||
	    pread(fd, ret, sizeof(*ret), 0) != sizeof(*ret))
		return error_set(err, -EBADMSG, "want %zu bytes, got %lld", sizeof(*ret),
				 (long long)st_fd.st_size);
	if (memcmp(ret->magic, KEY_MAGIC, sizeof(ret->magic)) != 0)
		return error_set(err, -EBADMSG, "wrong magic");
	if (memcmp(ret->boot_id, st->boot_id, sizeof(ret->boot_id)) != 0)
		return error_set(err, -EBADMSG, "it is of another boot");
	return 0;
}

static int push_key(const struct store *st, const struct boot_key *key, struct error *err)
{
	_cleanup_(fd_closep) int fd = memfd_create("dsd-boot-key", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r;

	if (fd < 0 || write(fd, key, sizeof(*key)) != sizeof(*key) ||
	    fcntl(fd, F_ADD_SEALS, KEY_SEALS) < 0)
		return error_set(err, -errno, "a memfd for the boot key: %m");
	r = store_push(st, KEY_NAME, fd);
	return r < 0 ? error_set(err, r, "handing the boot key to systemd: %m") : 0;
}

int store_key(struct store *st, uint8_t key_bytes[HASH_KEY_BYTES], struct error *err)
{
	_cleanup_(fd_closep) int fd = store_take(st, KEY_NAME);
	struct boot_key key = {.magic = KEY_MAGIC};
	struct error why = {};
	int r = fd >= 0 ? read_key(st, fd, &key, &why) : -ENOENT;

	if (r < 0 && r != -ENOENT) {
		log_warning("descriptor store: %s: %s; a new one is made, caches start cold",
			    KEY_NAME, error_text(&why, r));
		store_remove(st, KEY_NAME);
	}
	if (r == 0) {
		memcpy(key_bytes, key.key, sizeof(key.key));
	} else {
		key = (struct boot_key){.magic = KEY_MAGIC};
		memcpy(key.boot_id, st->boot_id, sizeof(key.boot_id));
		memcpy(key.key, key_bytes, sizeof(key.key));
		r = st->on ? push_key(st, &key, err) : 0;
	}
	explicit_bzero(&key, sizeof(key));
	return r;
}
