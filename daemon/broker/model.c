/* SPDX-License-Identifier: Apache-2.0 */
/* Supervision of one worker. Everything it sends is hostile: control messages have a fixed size and
 * are checked field by field, the image must be sealed against writing before it is even mapped. */
#include "broker/model.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/request.h"
#include "broker/server.h"
#include "channel/channel.h"
#include "layout/image.h"
#include "layout/page.h"
#include "pool/pool.h"
#include "text/vocab.h"

#define BACKOFF_FIRST_USEC 100000u
#define BACKOFF_MAX_USEC   10000000u
#define CALM_USEC          60000000u /* a worker that lived so long starts from the first back-off */
#define DEATHS_MAX         3u        /* in CALM_USEC: the model is DEGRADED, and tried on */
#define CONTROL_BURST_MAX  64u       /* messages taken at once; progress comes every 50 ms */
#define FILES_MAX          512u
#define POOL_DEFAULT_MAX   (UINT64_C(4) << 30)

/* Of the worker; what others see of the model is its state. */
enum phase { PHASE_OFF, PHASE_LOADING, PHASE_RUNNING };

struct model {
	struct server *server;
	struct config_model cfg;
	uint32_t index;
	Dsd__State state;
	char reason[ERROR_TEXT_MAX];
	enum phase phase;

	uint32_t generation; /* of the worker, for tags */
	pid_t pid;
	int pidfd, control;
	bool result_polled, pid_polled, control_polled;
	uint64_t born_usec, retry_usec; /* retry: 0: none is due */
	uint32_t starts, deaths, deaths_in_row;
	uint64_t death_usec[DEATHS_MAX]; /* of the last ones; a ring by deaths */
	char stage[64];
	float progress;

	struct image image;
	struct vocab *vocab; /* owns the image's mapping */
	struct pool *pool;
	struct sched *sched;
	struct channel *channel;
	struct request *parked; /* list */
};

static void model_set_state(struct model *m, Dsd__State state, const char *reason);

int model_new(struct model **ret, struct server *s, const struct config_model *cfg, uint32_t index)
{
	struct model *m = io_alloc(s->io, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->server = s;
	m->cfg = *cfg;
	m->index = index;
	m->state = DSD__STATE__STATE_LOADING;
	m->pidfd = m->control = -EBADF;
	*ret = m;
	return 0;
}

const char *model_name(const struct model *m)
{
	return m->cfg.name;
}

Dsd__State model_state(const struct model *m)
{
	return m->state;
}

const char *model_reason(const struct model *m)
{
	return m->reason;
}

Dsd__Code model_refusal(const struct model *m)
{
	bool tried_on = m->retry_usec || m->phase != PHASE_OFF;

	return tried_on && m->vocab ? DSD__CODE__CODE_RETRYABLE : DSD__CODE__CODE_MODEL_INVALID;
}

const struct image *model_image(const struct model *m)
{
	return m->vocab ? &m->image : NULL;
}

struct vocab *model_vocab(const struct model *m)
{
	return m->vocab;
}

struct sched *model_sched(const struct model *m)
{
	return m->sched;
}

uint32_t model_room(const struct model *m)
{
	return (uint32_t)MIN((uint64_t)m->image.h->n_context,
			     (uint64_t)sched_n_pages(m->sched) * PAGE_TOKENS);
}

/* ---- the worker's end ---- */

/* Descriptors the loop watches are closed after their poll has ended: cancel first. */
static void drop_fd(struct model *m, int *fd, bool *polled)
{
	if (*fd >= 0 && *polled)
		io_cancel(m->server->io, *fd);
	*polled = false;
	*fd = fd_close(*fd);
}

/* The worker is gone: its sequences wait for the next one. */
static void drop_channel(struct model *m)
{
	if (m->sched) {
		sched_requeue_all(m->sched);
		sched_set_channel(m->sched, NULL);
	}
	if (m->channel && m->result_polled)
		io_cancel(m->server->io, channel_result_eventfd(m->channel));
	m->result_polled = false;
	m->channel = channel_free(m->channel);
}

static void drop_model(struct model *m)
{
	if (m->sched)
		sched_fail_all(m->sched);
	m->sched = sched_free(m->sched);
	m->pool = pool_free(m->pool);
	m->vocab = vocab_unref(m->vocab);
}

static void kill_worker(struct model *m)
{
	if (m->pidfd >= 0)
		io_kill(m->server->io, m->pidfd, SIGKILL);
}

struct model *model_free(struct model *m)
{
	int status;

	if (!m)
		return NULL;
	kill_worker(m);
	drop_channel(m);
	drop_model(m);
	while (m->pidfd >= 0 && io_reap(m->server->io, m->pidfd, &status) == -EAGAIN)
		usleep(1000);
	drop_fd(m, &m->pidfd, &m->pid_polled);
	drop_fd(m, &m->control, &m->control_polled);
	free(m);
	return NULL;
}

static int send_control(struct model *m, const struct control_msg *msg, const int *fds,
			size_t n_fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
	} control = {};
	struct iovec iov = {(void *)msg, sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	assert(n_fds <= CONTROL_FDS_MAX);
	if (n_fds) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	return sendmsg(m->control, &mh, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* ---- files ---- */

static bool wanted_file(const char *name)
{
	static const char *const names[] = {"config.json", "generation_config.json",
					    "tokenizer.json", "tokenizer_config.json",
					    "model.safetensors.index.json"};
	size_t n = strlen(name);

	for (size_t i = 0; i < N_ELEMENTS(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
}

static int send_file(struct model *m, int dir, const char *name, const char *as, struct error *err)
{
	_cleanup_(fd_closep) int fd =
		openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct control_msg msg = {.type = CONTROL_FILE};
	struct stat st;
	int r;

	if (fd < 0)
		return error_set(err, -errno, "%.200s: %m", name);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%.200s: want a regular file", name);
	if (strlen(as) >= sizeof(msg.text))
		return error_set(err, -ENAMETOOLONG, "%.64s...: the name is too long", as);
	strcpy(msg.text, as);
	r = send_control(m, &msg, &fd, 1);
	return r < 0 ? error_set(err, r, "passing %.200s to the worker: %m", name) : 0;
}

static int send_directory(struct model *m, int fd, struct error *err)
{
	DIR *dir = fdopendir(fd);
	uint32_t n = 0;
	struct dirent *d;
	int r = 0;

	if (!dir) {
		r = error_set(err, -errno, "%.300s: %m", m->cfg.path);
		close(fd);
		return r;
	}
	while (r == 0 && (d = readdir(dir))) {
		if (!wanted_file(d->d_name))
			continue;
		if (++n > FILES_MAX)
			r = error_set(err, -E2BIG, "%.300s: more than %u files", m->cfg.path,
				      FILES_MAX);
		else
			r = send_file(m, dirfd(dir), d->d_name, d->d_name, err);
	}
	closedir(dir);
	if (r == 0 && n == 0)
		r = error_set(err, -ENOENT, "%.300s: no config.json and no *.safetensors in it",
			      m->cfg.path);
	return r;
}

static int send_files(struct model *m, struct error *err)
{
	struct stat st;
	int fd;

	if (m->server->fake_worker)
		return 0;
	if (stat(m->cfg.path, &st) < 0)
		return error_set(err, -errno, "%.300s: %m", m->cfg.path);
	if (S_ISDIR(st.st_mode)) {
		fd = open(m->cfg.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			return error_set(err, -errno, "%.300s: %m", m->cfg.path);
		return send_directory(m, fd, err);
	}
	return send_file(m, AT_FDCWD, m->cfg.path,
			 strrchr(m->cfg.path, '/') ? strrchr(m->cfg.path, '/') + 1 : m->cfg.path,
			 err);
}

/* ---- starting ---- */

static int spawn_worker(struct model *m, struct error *err)
{
	struct server *s = m->server;
	const struct timeval patience = {.tv_sec = 2};
	char *argv[] = {(char *)"dsd-worker", (char *)"--control-fd", (char *)"3",
			s->fake_worker ? (char *)"--fake" : NULL, NULL};
	struct io_spawn what = {.path = s->worker_path, .argv = argv, .envp = environ};
	uint32_t g = ++m->generation;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(err, -errno, "socketpair for a worker: %m");
	setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	m->control = pair[0];
	what.fd = pair[1];
	m->pidfd = io_spawn(s->io, &what, &m->pid);
	close(pair[1]);
	if (m->pidfd < 0)
		return error_set(err, m->pidfd, "starting %.300s: %m", s->worker_path);
	m->starts++;
	m->born_usec = io_now_usec(s->io);
	r = io_poll(s->io, m->pidfd, tag_make(TAG_WORKER_PID, m->index, g));
	m->pid_polled = r == 0;
	if (r == 0) {
		r = io_poll(s->io, m->control, tag_make(TAG_WORKER_CONTROL, m->index, g));
		m->control_polled = r == 0;
	}
	return r < 0 ? error_set(err, r, "watching a worker: %m") : 0;
}

static void retry_later(struct model *m)
{
	uint32_t doublings = MIN(m->deaths_in_row, 10u);
	uint64_t wait = (uint64_t)BACKOFF_FIRST_USEC << doublings;

	drop_fd(m, &m->control, &m->control_polled);
	m->deaths_in_row++;
	m->retry_usec = io_now_usec(m->server->io) + MIN(wait, (uint64_t)BACKOFF_MAX_USEC);
	server_wake_at(m->server, m->retry_usec);
}

/* A failure that another try would meet again; the worker's own word on the files is one. A worker that
 * is gone is none (its pidfd tells more), nor is one that talks nonsense (it goes, another comes), nor
 * is the machine's being short of something for a moment. */
static void model_failed(struct model *m, int r, const struct error *err)
{
	bool passing = r == -EAGAIN || r == -ENOMEM || r == -EMFILE || r == -ENFILE;

	if (r >= 0 || ((r == -EPIPE || r == -ECONNRESET) && m->pidfd >= 0))
		return;
	if (!passing && r != -EPROTO && m->phase != PHASE_RUNNING) {
		m->phase = PHASE_OFF;
		model_set_state(m, DSD__STATE__STATE_DEGRADED, error_text(err, r));
		return;
	}
	log_error("model %s: %s", m->cfg.name, error_text(err, r));
	if (m->pidfd >= 0)
		kill_worker(m);
	else
		retry_later(m);
}

void model_start(struct model *m)
{
	const struct config *cfg = &m->server->cfg;
	struct control_msg load = {
		.type = CONTROL_LOAD,
		.weights = cfg->worker_weights,
		.entry = cfg->pool_entry, /* "auto" is _PAGE_ENTRY_MAX */
		.n_threads = cfg->worker_threads,
		.cpu_mask = cfg->worker_cpu_mask,
		.n_context = cfg->worker_context,
	};
	struct error err = {};
	int r;

	_Static_assert(_PAGE_ENTRY_MAX == 3, "config.c names the entries");
	m->retry_usec = 0;
	m->progress = 0;
	m->phase = PHASE_LOADING;
	snprintf(m->stage, sizeof(m->stage), "starting");
	r = spawn_worker(m, &err);
	if (r == 0)
		r = send_files(m, &err);
	if (r == 0) {
		r = send_control(m, &load, NULL, 0);
		if (r < 0)
			error_set(&err, r, "telling the worker to load: %m");
	}
	model_failed(m, r, &err);
}

static void model_set_state(struct model *m, Dsd__State state, const char *reason)
{
	struct request *r;

	m->state = state;
	snprintf(m->reason, sizeof(m->reason), "%s", reason);
	if (state == DSD__STATE__STATE_DEGRADED) {
		log_error("model %s: %s", m->cfg.name, reason);
		kill_worker(m);
		if (m->sched)
			sched_fail_all(m->sched);
	}
	if (state != DSD__STATE__STATE_LOADING)
		while ((r = m->parked)) {
			m->parked = r->next_parked;
			r->next_parked = NULL;
			request_unpark(r);
		}
	server_tell_systemd(m->server);
}

void model_park(struct model *m, struct request *r)
{
	struct request **end = &m->parked;

	while (*end)
		end = &(*end)->next_parked;
	r->next_parked = NULL;
	*end = r;
}

void model_unpark(struct model *m, struct request *r)
{
	for (struct request **p = &m->parked; *p; p = &(*p)->next_parked)
		if (*p == r) {
			*p = r->next_parked;
			return;
		}
}

void model_kick(struct model *m)
{
	if (m->phase == PHASE_RUNNING)
		sched_run(m->sched);
}

/* ---- the image, and what is made from it ---- */

struct mapping {
	void *p;
	size_t n;
};

static void unmap_image(void *user)
{
	struct mapping *map = user;

	munmap(map->p, map->n);
	free(map);
}

static int adopt_image(struct model *m, int fd, struct error *err)
{
	const int want = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	struct io *io = m->server->io;
	struct vocab *vocab = NULL;
	struct mapping *map;
	struct image image;
	struct stat st;
	int seals, r;

	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || (seals & want) != want)
		return error_set(err, -EINVAL, "the model image is not sealed");
	if (fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size > IMAGE_BYTES_MAX)
		return error_set(err, -EINVAL, "the model image has %lld bytes",
				 (long long)st.st_size);
	map = io_alloc(io, sizeof(*map));
	if (!map)
		return -ENOMEM;
	map->n = (size_t)st.st_size;
	map->p = io_map(io, fd, map->n, false);
	if (!map->p) {
		free(map);
		return error_set(err, -errno, "mapping the model image: %m");
	}
	r = image_open(&image, map->p, map->n, err);
	if (r == 0 && m->vocab && memcmp(image.h, m->image.h, sizeof(*image.h)) == 0) {
		unmap_image(map); /* the same model once more: everything stays */
		return 0;
	}
	if (r == 0)
		r = vocab_new(&vocab, &image, unmap_image, map, err);
	if (r < 0) {
		unmap_image(map);
		return r;
	}
	drop_model(m);
	m->vocab = vocab;
	m->image = image;
	return 0;
}

static uint64_t pool_bytes(const struct model *m)
{
	const struct config *cfg = &m->server->cfg;
	uint64_t total = cfg->pool_size;
	double named = 0;
	uint32_t n_unnamed = 0;

	if (total == 0) {
		struct sysinfo info;

		sysinfo(&info);
		total = MIN((uint64_t)info.totalram * info.mem_unit / 8, POOL_DEFAULT_MAX);
	}
	for (uint32_t i = 0; i < cfg->n_models; i++) {
		named += cfg->models[i].share;
		n_unnamed += cfg->models[i].share == 0;
	}
	if (m->cfg.share > 0)
		return (uint64_t)((double)total * m->cfg.share);
	return (uint64_t)((double)total * MAX(0.0, 1 - named) / MAX(n_unnamed, 1u));
}

static int make_pool(struct model *m, struct error *err)
{
	struct server *s = m->server;
	const struct image_header *h = m->image.h;
	struct pool_config cfg = {.io = s->io, .entry = h->entry};
	struct sched_config sc;
	uint64_t n_pages;
	int r;

	if (m->pool)
		return 0;
	r = page_geometry_init(&cfg.geometry, m->image.streams, m->image.n_streams, err);
	if (r < 0)
		return r;
	n_pages = pool_bytes(m) / cfg.geometry.stride;
	if (n_pages == 0)
		return error_set(
			err, -ENOSPC,
			"pool.size leaves %llu bytes to this model: want at least a page of %llu",
			(unsigned long long)pool_bytes(m), (unsigned long long)cfg.geometry.stride);
	cfg.n_pages = (uint32_t)MIN(n_pages, (uint64_t)1 << 24);
	memcpy(cfg.model, h->digest, sizeof(cfg.model));
	memcpy(cfg.key, s->key, sizeof(cfg.key));
	r = pool_new(&m->pool, &cfg, err);
	if (r < 0)
		return r;
	sc = (struct sched_config){
		.io = s->io,
		.pool = m->pool,
		.quota = s->quota,
		.n_slots = s->cfg.sched_slots,
		.step_tokens = s->cfg.sched_step_tokens,
		.max_tokens = h->n_context,
		.n_vocab = h->n_vocab,
		.queue_max = s->cfg.sched_queue,
	};
	return sched_new(&m->sched, &sc);
}

static int make_channel(struct model *m, struct error *err)
{
	struct server *s = m->server;
	struct control_msg msg = {.type = CONTROL_CHANNEL, .total = pool_n_pages(m->pool)};
	const struct channel_shape *shape;
	int fds[CONTROL_FDS_MAX], r;

	r = channel_new(&m->channel, s->io, s->cfg.sched_slots,
			s->cfg.sched_step_tokens + s->cfg.sched_slots, m->image.h->n_context, err);
	if (r < 0)
		return r;
	shape = channel_get_shape(m->channel);
	msg.n_slots = shape->n_slots;
	msg.max_rows = shape->max_rows;
	msg.max_tokens = shape->max_tokens;
	fds[0] = channel_fd(m->channel);
	fds[1] = pool_data_fd(m->pool);
	fds[2] = channel_wake_fd(m->channel);
	fds[3] = channel_result_eventfd(m->channel);
	r = io_poll(s->io, fds[3], tag_make(TAG_WORKER_RESULT, m->index, m->generation));
	if (r < 0)
		return error_set(err, r, "watching a channel: %m");
	m->result_polled = true;
	r = send_control(m, &msg, fds, 4);
	return r < 0 ? error_set(err, r, "handing the channel to the worker: %m") : 0;
}

static void on_ready(struct model *m)
{
	const struct image_header *h = m->image.h;

	sched_set_channel(m->sched, m->channel);
	log_info("model %s: ready after %.2f s: %s, %.1f M parameters, %u pages of %llu bytes (%s)",
		 m->cfg.name, (double)(io_now_usec(m->server->io) - m->born_usec) / 1e6, h->arch,
		 (double)h->n_params / 1e6, pool_n_pages(m->pool),
		 (unsigned long long)pool_geometry(m->pool)->stride, page_entry_name(h->entry));
	m->progress = 1;
	m->phase = PHASE_RUNNING;
	model_set_state(m, DSD__STATE__STATE_READY, "");
	model_kick(m);
}

/* One control message. The order of states is checked: a worker cannot be ready before its channel. */
static int take_control(struct model *m, const struct control_msg *msg, int fd, struct error *err)
{
	int r;

	switch (msg->type) {
	case CONTROL_PROGRESS:
		snprintf(m->stage, sizeof(m->stage), "%.63s", msg->text);
		if (msg->total)
			m->progress =
				(float)((double)MIN(msg->done, msg->total) / (double)msg->total);
		return 0;
	case CONTROL_IMAGE:
		if (m->phase != PHASE_LOADING || m->channel || fd < 0)
			return error_set(err, -EPROTO, "the worker sent an image out of turn");
		r = adopt_image(m, fd, err);
		if (r == 0)
			r = make_pool(m, err);
		if (r == 0)
			r = make_channel(m, err);
		return r;
	case CONTROL_READY:
		if (m->phase != PHASE_LOADING || !m->channel)
			return error_set(err, -EPROTO, "the worker was ready out of turn");
		on_ready(m);
		return 0;
	case CONTROL_FAILED:
		return error_set(err, -EBADMSG, "%s",
				 msg->text[0] ? msg->text : "the worker failed");
	default:
		return error_set(err, -EPROTO, "the worker sent a message of type %u", msg->type);
	}
}

/* One descriptor is taken, whatever comes besides is closed: the control buffer's padding holds two. */
static int take_fd(struct msghdr *mh, int *ret_fd)
{
	int r = mh->msg_flags & (MSG_CTRUNC | MSG_TRUNC) ? -EPROTO : 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n =
			c->cmsg_len > CMSG_LEN(0) ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t k = 0; k < n; k++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof(fd));
			if (*ret_fd >= 0) {
				fd_close(fd);
				r = -EPROTO;
			} else {
				*ret_fd = fd;
			}
		}
	}
	return r;
}

/* What a worker says is shown to people, put into STATUS= and sent on: printable ASCII, one line. */
static void make_printable(char *text, size_t n)
{
	text[n - 1] = 0;
	for (; *text; text++)
		if (*text < 0x20 || *text > 0x7e)
			*text = '?';
}

/* Return: 1 with a message, 0 where none is there (or the socket ended: the pidfd will say so). */
static int recv_control(struct model *m, struct control_msg *msg, int *ret_fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {msg, sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof(control.buf)};
	ssize_t n = recvmsg(m->control, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int r;

	*ret_fd = -EBADF;
	if (n < 0)
		return 0;
	r = take_fd(&mh, ret_fd);
	if (n == 0 && r == 0 && *ret_fd < 0)
		return 0;
	if (r < 0 || n != sizeof(*msg))
		return -EPROTO;
	make_printable(msg->text, sizeof(msg->text));
	return 1;
}

void model_on_control(struct model *m, uint32_t generation)
{
	for (unsigned n = 0; generation == m->generation && m->control >= 0; n++) {
		_cleanup_(fd_closep) int fd = -EBADF;
		struct control_msg msg;
		struct error err = {};
		int r = recv_control(m, &msg, &fd);

		if (r == 0)
			return;
		if (r < 0)
			error_set(&err, r, "the worker sent a broken control message");
		else if (n == CONTROL_BURST_MAX)
			r = error_set(&err, -EPROTO, "the worker talks without end");
		else
			r = take_control(m, &msg, fd, &err);
		if (r < 0) {
			model_failed(m, r, &err);
			return;
		}
	}
}

void model_on_result(struct model *m, uint32_t generation)
{
	struct error err = {};
	if (generation != m->generation || !m->channel)
		return;
	channel_clear_result(m->channel);
	if (m->phase == PHASE_RUNNING && sched_take_results(m->sched, &err) < 0) {
		log_error("model %s: %s", m->cfg.name, err.text);
		kill_worker(m); /* its death does the rest */
	}
}

/* One more death, and whether it was one of DEATHS_MAX in CALM_USEC. */
static bool too_many_deaths(struct model *m, uint64_t now)
{
	uint64_t *slot = &m->death_usec[m->deaths++ % DEATHS_MAX]; /* the oldest */
	bool many;

	*slot = now;
	slot = &m->death_usec[m->deaths % DEATHS_MAX];
	many = m->deaths >= DEATHS_MAX && now - *slot < CALM_USEC;
	if (now - m->born_usec > CALM_USEC)
		m->deaths_in_row = 0;
	return many;
}

void model_on_pid(struct model *m, uint32_t generation)
{
	struct server *s = m->server;
	uint64_t now = io_now_usec(s->io);
	char text[128], reason[256];
	bool died_often;
	int status;

	if (generation != m->generation || m->pidfd < 0)
		return;
	/* Its last words first: why it left. */
	model_on_control(m, generation);
	if (io_reap(s->io, m->pidfd, &status) < 0)
		return;
	drop_fd(m, &m->pidfd, &m->pid_polled);
	drop_fd(m, &m->control, &m->control_polled);
	died_often = too_many_deaths(m, now);
	if (status > 128)
		snprintf(text, sizeof(text), "the worker was killed by signal %d (%s)",
			 status - 128, sigabbrev_np(status - 128) ?: "?");
	else
		snprintf(text, sizeof(text), "the worker left with status %d", status);
	/* What made the model DEGRADED was said when it did. */
	log_line(m->phase == PHASE_OFF ? LOG_DEBUG : LOG_WARNING, "model %s: %s", m->cfg.name,
		 text);
	drop_channel(m);
	if (s->stopping || m->phase == PHASE_OFF)
		return;
	m->phase = PHASE_OFF;
	if (died_often) {
		snprintf(reason, sizeof(reason),
			 "%u workers died within a minute, and it is tried on: %s", DEATHS_MAX,
			 text);
		model_set_state(m, DSD__STATE__STATE_DEGRADED, reason);
	} else if (m->state == DSD__STATE__STATE_READY) {
		model_set_state(m, DSD__STATE__STATE_LOADING, "");
	}
	retry_later(m);
}

uint64_t model_on_tick(struct model *m, uint64_t now)
{
	if (m->retry_usec == 0)
		return UINT64_MAX;
	if (now < m->retry_usec)
		return m->retry_usec;
	model_start(m);
	return UINT64_MAX;
}

void model_get_stats(const struct model *m, struct model_stats *ret)
{
	*ret = (struct model_stats){
		.starts = m->starts,
		.deaths = m->deaths,
		.worker_pid = m->pidfd >= 0 ? m->pid : 0,
		.progress = m->progress,
		.stage = m->stage,
	};
	if (m->sched)
		sched_get_stats(m->sched, &ret->sched);
	if (m->pool) {
		const struct image_header *h = m->image.h;

		ret->pages_total = pool_n_pages(m->pool);
		ret->pages_used = ret->pages_total - pool_n_available(m->pool);
		ret->pages_cached = pool_n_cached(m->pool);
		ret->kv_bytes_per_token = pool_geometry(m->pool)->token_bytes;
		/* What the same model would cache otherwise, in bf16 (MODEL.md §1.2). */
		ret->mha_bytes_per_token =
			2ull * h->n_layers * h->n_heads * (h->qk_nope + h->v_head);
		ret->gqa8_bytes_per_token = 2ull * h->n_layers * 2 * 8 * 128;
	}
}
