/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/packed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/model_impl.h"
#include "broker/server.h"
#include "layout/packed.h"

#define DIR_NAME    "packed"
#define KEY_FILE    "packed.key" /* in the state directory */
#define MODEL_BYTES 8u           /* of a MAC of 16: tells a host's few models apart */

/* ---- at start ---- */

static int make_key(struct server *s, struct error *err)
{
	_cleanup_(fd_closep) int fd = openat(s->state_fd, KEY_FILE ".new",
					     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	io_random(s->io, s->packed.key, sizeof(s->packed.key));
	if (fd < 0 ||
	    write(fd, s->packed.key, sizeof(s->packed.key)) != (ssize_t)sizeof(s->packed.key) ||
	    fsync(fd) < 0 || renameat(s->state_fd, KEY_FILE ".new", s->state_fd, KEY_FILE) < 0)
		return error_set(err, -errno, "making " KEY_FILE " in the state directory: %m");
	return 0;
}

/* A key of another length is none, and what it signed is packed anew. */
static int read_key(struct server *s, struct error *err)
{
	_cleanup_(fd_closep) int fd =
		openat(s->state_fd, KEY_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0 && errno != ENOENT)
		return error_set(err, -errno, KEY_FILE " in the state directory: %m");
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size == sizeof(s->packed.key) &&
	    read(fd, s->packed.key, sizeof(s->packed.key)) == (ssize_t)sizeof(s->packed.key))
		return 0;
	return make_key(s, err);
}

static int open_directory(struct server *s, struct error *err)
{
	const char *path = secure_getenv("CACHE_DIRECTORY");
	_cleanup_(fd_closep) int cache = -EBADF;
	int fd;

	if (path) {
		cache = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (cache < 0)
			return error_set(err, -errno, "$CACHE_DIRECTORY %.300s: %m", path);
	}
	fd = path ? cache : s->state_fd;
	if (mkdirat(fd, DIR_NAME, 0700) < 0 && errno != EEXIST)
		return error_set(err, -errno, "making " DIR_NAME " in the cache directory: %m");
	fd = openat(fd, DIR_NAME, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return error_set(err, -errno, DIR_NAME " in the cache directory: %m");
	s->packed.dir_fd = fd;
	return 0;
}

int packed_open(struct server *s, struct error *err)
{
	uint32_t weights = s->cfg.worker_weights;
	int r;

	if (s->state_fd < 0 || s->fake_worker ||
	    (weights != CONTROL_WEIGHTS_Q8 && weights != CONTROL_WEIGHTS_Q4))
		return 0;
	r = read_key(s, err);
	return r ?: open_directory(s, err);
}

void packed_close(struct server *s)
{
	s->packed.dir_fd = fd_close(s->packed.dir_fd);
	explicit_bzero(s->packed.key, sizeof(s->packed.key));
}

/* ---- what is there ---- */

static void make_prefix(struct model *m, const uint8_t source[HASH_MAC_BYTES])
{
	const struct server *s = m->server;
	const uint32_t how[] = {s->cfg.worker_weights, PACKED_VERSION};
	const struct hash_part model[] = {{"model", 5}, {m->cfg.name, strlen(m->cfg.name)}};
	const struct hash_part files[] = {
		{"source", 6}, {source, HASH_MAC_BYTES}, {how, sizeof(how)}};
	uint8_t mac[HASH_MAC_BYTES];
	char *p = m->packed.prefix;

	hash_mac(mac, s->packed.key, model, N_ELEMENTS(model));
	hash_hex(p, mac, MODEL_BYTES);
	p += 2 * MODEL_BYTES;
	*p++ = '-';
	hash_mac(mac, s->packed.key, files, N_ELEMENTS(files));
	hash_hex(p, mac, sizeof(mac));
	strcpy(p + 2 * sizeof(mac), "-");
}

static void header_mac(uint8_t ret[HASH_MAC_BYTES], const uint8_t key[HASH_KEY_BYTES],
		       const char *name, const struct packed_header *h,
		       const struct packed_shape *shape)
{
	struct packed_header bare = *h;
	const struct hash_part parts[] = {
		{"packed", 6},
		{name, strlen(name)},
		{&bare, sizeof(bare)},
		{h + 1, shape->hashes_end - sizeof(bare)},
	};

	memset(bare.mac, 0, sizeof(bare.mac));
	hash_mac(ret, key, parts, N_ELEMENTS(parts));
}

/* What is in the directory, from the start. NULL: it cannot be read. */
static DIR *list_files(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir)
		fd_close(fd);
	return dir;
}

/* The first file of @dir_fd whose name begins with @prefix. Return: whether there is one. */
static bool find_file(int dir_fd, const char *prefix, char ret[PACKED_NAME_BYTES])
{
	DIR *dir = list_files(dir_fd);
	struct dirent *d;
	bool found = false;

	if (!dir)
		return false;
	while (!found && (d = readdir(dir))) {
		found = strncmp(d->d_name, prefix, strlen(prefix)) == 0 &&
			strlen(d->d_name) < PACKED_NAME_BYTES;
		if (found)
			strcpy(ret, d->d_name);
	}
	closedir(dir);
	return found;
}

/* Return: the file, its MAC good; or -errno with a sentence. */
static int open_file(const struct model *m, struct error *err)
{
	const struct packed_store *store = &m->server->packed;
	_cleanup_(freep) struct packed_header *h = NULL;
	_cleanup_(fd_closep) int fd = openat(store->dir_fd, m->packed.name,
					     O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct packed_shape shape;
	uint8_t mac[HASH_MAC_BYTES];
	int r;

	if (fd < 0)
		return error_set(err, -errno, "packed weights: %m");
	r = packed_read(&h, &shape, fd, err);
	if (r < 0)
		return r;
	header_mac(mac, store->key, m->packed.name, h, &shape);
	if (memcmp(mac, h->mac, sizeof(mac)) != 0)
		return error_set(err, -EBADMSG,
				 "packed weights: the header is not as this daemon wrote it");
	return TAKE_FD(fd);
}

void packed_refuse(struct model *m, const char *why)
{
	if (!m->packed.name[0])
		return;
	log_warning("model %s: %s; the file is dropped, and the model is packed anew", m->cfg.name,
		    why);
	unlinkat(m->server->packed.dir_fd, m->packed.name, 0);
	m->packed.name[0] = 0;
}

static int send_packed(struct model *m, struct error *err)
{
	const struct control_msg msg = {.type = CONTROL_PACKED};
	_cleanup_(fd_closep) int fd = -EBADF;
	struct error why = {};
	int r;

	if (!find_file(m->server->packed.dir_fd, m->packed.prefix, m->packed.name))
		return 0;
	fd = open_file(m, &why);
	if (fd < 0) {
		packed_refuse(m, error_text(&why, fd));
		return 0;
	}
	r = process_send(&m->worker, &msg, &fd, 1);
	return r < 0 ? error_set(err, r, "passing packed weights to the worker: %m") : 0;
}

static int send_empty(struct model *m, struct error *err)
{
	const struct control_msg msg = {.type = CONTROL_EMPTY};
	int fd = openat(m->server->packed.dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), r;

	if (fd < 0) {
		log_warning("model %s: packed weights are not kept: an unnamed file in the cache "
			    "directory: %s",
			    m->cfg.name, strerror(errno));
		return 0;
	}
	m->packed.empty_fd = fd;
	r = process_send(&m->worker, &msg, &fd, 1);
	return r < 0 ? error_set(err, r, "passing an empty file to the worker: %m") : 0;
}

int packed_offer(struct model *m, const uint8_t source[HASH_MAC_BYTES], struct error *err)
{
	int r;

	packed_withdraw(m);
	m->packed.name[0] = 0;
	if (m->server->packed.dir_fd < 0 || m->packed.off)
		return 0;
	make_prefix(m, source);
	r = send_packed(m, err);
	return r ?: send_empty(m, err);
}

void packed_withdraw(struct model *m)
{
	m->packed.empty_fd = fd_close(m->packed.empty_fd);
}

void packed_mistrust(struct model *m)
{
	if (m->server->packed.dir_fd < 0)
		return;
	packed_refuse(m, "packed weights: their file was cut short, or its disk failed");
	m->packed.off = true;
}

/* ---- keeping a new one ---- */

struct packed_job {
	struct packed_job *next;
	uint32_t number;
	int fd, dir_fd;
	uint8_t key[HASH_KEY_BYTES];
	char model[sizeof(((struct config_model *)NULL)->name)];
	char name[PACKED_NAME_BYTES]; /* the prefix; the whole name when it is done */
	uint64_t bytes;
	int r;
	struct error err;
};

static void free_job(struct packed_job *j)
{
	fd_close(j->fd);
	fd_close(j->dir_fd);
	explicit_bzero(j->key, sizeof(j->key));
	free(j);
}

static void name_content(struct packed_job *j, const struct packed_header *h)
{
	const struct hash_part parts[] = {{"content", 7},
					  {h->content, sizeof(h->content)},
					  {h->plan, sizeof(h->plan)},
					  {&h->version, sizeof(h->version)}};
	uint8_t mac[HASH_MAC_BYTES];

	hash_mac(mac, j->key, parts, N_ELEMENTS(parts));
	hash_hex(j->name + strlen(j->name), mac, sizeof(mac));
}

static int link_file(const struct packed_job *j, struct error *err)
{
	char path[32];

	/* One that did not prove itself may be there under the same name. */
	unlinkat(j->dir_fd, j->name, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", j->fd);
	if (linkat(AT_FDCWD, path, j->dir_fd, j->name, AT_SYMLINK_FOLLOW) < 0)
		return error_set(err, -errno, "naming the file: %m");
	if (fsync(j->dir_fd) < 0)
		return error_set(err, -errno, "writing the directory: %m");
	return 0;
}

/* Files of the same model that are not this one: of other files, another precision, another version. */
static void remove_others(const struct packed_job *j)
{
	DIR *dir = list_files(j->dir_fd);
	struct dirent *d;

	if (!dir)
		return;
	while ((d = readdir(dir)))
		if (strncmp(d->d_name, j->name, 2 * MODEL_BYTES + 1) == 0 &&
		    strcmp(d->d_name, j->name) != 0)
			unlinkat(j->dir_fd, d->d_name, 0);
	closedir(dir);
}

/* Second thread. The worker has had the weights written; what is left is a page. */
static void keep_file(void *arg)
{
	struct packed_job *j = arg;
	_cleanup_(freep) struct packed_header *h = NULL;
	struct packed_shape shape;

	j->r = packed_read(&h, &shape, j->fd, &j->err);
	if (j->r < 0)
		return;
	j->bytes = shape.total_bytes;
	name_content(j, h);
	header_mac(h->mac, j->key, j->name, h, &shape);
	if (pwrite(j->fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h) || fsync(j->fd) < 0)
		j->r = error_set(&j->err, -errno, "writing the header: %m");
	j->r = j->r ?: link_file(j, &j->err);
	if (j->r == 0)
		remove_others(j);
}

static int start_job(struct packed_job *j, struct model *m)
{
	struct packed_store *store = &m->server->packed;

	j->number = ++store->n_jobs;
	j->fd = TAKE_FD(m->packed.empty_fd);
	j->dir_fd = fcntl(store->dir_fd, F_DUPFD_CLOEXEC, 0);
	memcpy(j->key, store->key, sizeof(j->key));
	strcpy(j->model, m->cfg.name);
	strcpy(j->name, m->packed.prefix);
	return j->dir_fd < 0
		       ? -errno
		       : io_work(m->server->io, keep_file, j, tag_make(TAG_PACKED, 0, j->number));
}

int packed_filled(struct model *m, struct error *err)
{
	struct packed_store *store = &m->server->packed;
	struct packed_job *j;
	int r = -ENOMEM;

	if (m->packed.empty_fd < 0)
		return error_set(err, -EPROTO, "the worker filled a file that it was not given");
	j = io_alloc(m->server->io, sizeof(*j));
	if (j)
		r = start_job(j, m);
	if (r == 0) {
		j->next = store->jobs;
		store->jobs = j;
		return 0;
	}
	/* The worker has its weights all the same. */
	log_warning("model %s: packed weights are not kept: %s", m->cfg.name, strerror(-r));
	packed_withdraw(m);
	if (j)
		free_job(j);
	return 0;
}

void packed_on_done(struct server *s, uint32_t number)
{
	struct packed_job **at = &s->packed.jobs, *j;

	while (*at && (*at)->number != number)
		at = &(*at)->next;
	j = *at;
	if (!j)
		return;
	*at = j->next;
	if (j->r < 0)
		log_warning("model %s: packed weights are not kept: %s", j->model,
			    error_text(&j->err, j->r));
	else
		log_info("model %s: packed weights are kept: %.1f MB, packed/%s", j->model,
			 (double)j->bytes / 1e6, j->name);
	free_job(j);
}
