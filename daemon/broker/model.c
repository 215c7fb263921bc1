/* SPDX-License-Identifier: Apache-2.0 */
/* What a model goes through. Everything its worker sends is hostile: messages are checked field by
 * field and in their order, the image must be sealed against writing before it is even mapped. */
#include "broker/model_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/notify.h"
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
#define CONTROL_BURST_MAX  64u       /* messages taken at once; progress comes every 50 ms */
#define POOL_DEFAULT_MAX   (UINT64_C(4) << 30)

int model_new(struct model **ret, struct server *s, const struct config_model *cfg)
{
	struct model *m = io_alloc(s->io, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->server = s;
	m->cfg = *cfg;
	m->state = DSD__STATE__STATE_LOADING;
	m->worker.pidfd = m->worker.control = -EBADF;
	m->packed = PACKED_OFFER_NULL;
	m->used_usec = io_now_usec(s->io);
	*ret = m;
	return 0;
}

struct server *model_server(const struct model *m)
{
	return m->server;
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

bool model_is_hidden(const struct model *m)
{
	return m->coming || m->leaving;
}

bool model_is_drained(const struct model *m)
{
	return m->drained;
}

/* ---- the worker's end ---- */

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
	packed_withdraw(m);
}

static void drop_model(struct model *m)
{
	selftest_stop(&m->selftest);
	m->tested = false;
	if (m->sched)
		sched_fail_all(m->sched);
	m->sched = sched_free(m->sched);
	if (m->pool)
		model_forget_pool(m);
	m->pool = pool_free(m->pool);
	m->vocab = vocab_unref(m->vocab);
}

struct model *model_free(struct model *m)
{
	int status;

	if (!m)
		return NULL;
	process_kill(&m->worker);
	while (m->worker.pidfd >= 0 && !process_reap(&m->worker, &status))
		usleep(1000);
	process_hang_up(&m->worker); /* one that could not be started has this end alone */
	drop_channel(m);
	drop_model(m);
	free(m);
	return NULL;
}

/* ---- starting ---- */

static void retry_later(struct model *m)
{
	uint32_t doublings = MIN(m->deaths_in_row, 10u);
	uint64_t wait = (uint64_t)BACKOFF_FIRST_USEC << doublings;

	process_hang_up(&m->worker);
	m->deaths_in_row++;
	m->retry_usec = io_now_usec(m->server->io) + MIN(wait, (uint64_t)BACKOFF_MAX_USEC);
	server_wake_at(m->server, m->retry_usec);
}

/* Nothing but another load of its files can help. */
static void give_up(struct model *m, const char *why)
{
	m->phase = PHASE_OFF;
	model_set_state(m, DSD__STATE__STATE_DEGRADED, why);
}

/* A failure that another try would meet again; the worker's own word on the files is one. A worker that
 * is gone is none (its pidfd tells more), nor is one that talks nonsense (it goes, another comes), nor
 * is the machine's being short of something for a moment. */
static void model_failed(struct model *m, int r, const struct error *err)
{
	bool passing = r == -EAGAIN || r == -ENOMEM || r == -EMFILE || r == -ENFILE;

	if (r >= 0 || ((r == -EPIPE || r == -ECONNRESET) && m->worker.pidfd >= 0))
		return;
	if (!passing && r != -EPROTO && m->phase != PHASE_RUNNING) {
		give_up(m, error_text(err, r));
		return;
	}
	log_error("model %s: %s", m->cfg.name, error_text(err, r));
	if (m->worker.pidfd >= 0)
		process_kill(&m->worker);
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
	uint8_t source[HASH_MAC_BYTES];
	struct error err = {};
	int r;

	_Static_assert(_PAGE_ENTRY_MAX == 3, "config.c names the entries");
	m->retry_usec = 0;
	m->progress = 0;
	m->phase = PHASE_LOADING;
	snprintf(m->stage, sizeof(m->stage), "starting");
	r = process_spawn(&m->worker, m->server, &err);
	fault_at(FAULT_WORKER_SPAWN);
	watch_start(m);
	if (r == 0) {
		m->starts++;
		if (!m->server->fake_worker)
			r = process_send_files(&m->worker, m->cfg.path, source, &err);
		if (r == 0 && !m->server->fake_worker)
			r = packed_offer(m, source, &err);
	}
	fault_at(FAULT_WORKER_FILES);
	if (r == 0) {
		r = process_send(&m->worker, &load, NULL, 0);
		if (r < 0)
			error_set(&err, r, "telling the worker to load: %m");
	}
	model_failed(m, r, &err);
}

void model_wake_all(struct request **list, void (*wake)(struct request *))
{
	struct request *r, *all = *list;

	*list = NULL;
	while ((r = all)) {
		all = r->next_parked;
		r->next_parked = NULL;
		wake(r);
	}
}

void model_set_state(struct model *m, Dsd__State state, const char *reason)
{
	m->state = state;
	snprintf(m->reason, sizeof(m->reason), "%s", reason);
	if (state == DSD__STATE__STATE_DEGRADED) {
		log_event(m->replaces ? EVENT_RELOAD_REFUSED : EVENT_MODEL_DEGRADED,
			  &(struct log_fields){.model = m->cfg.name}, "model %s: %s%s", m->cfg.name,
			  m->replaces ? "not reloaded, the running one serves on: " : "", reason);
		process_kill(&m->worker);
		selftest_stop(&m->selftest);
		if (m->sched && m->retry_usec)
			sched_fail_unsuspected(m->sched);
		else if (m->sched)
			sched_fail_all(m->sched);
		/* It was to be added or to take another's place, and is not good for that. */
		m->leaving |= m->coming;
	}
	if (state != DSD__STATE__STATE_LOADING)
		model_wake_all(&m->parked, request_unpark);
	notify_state(m->server);
}

void model_list_append(struct request **list, struct request *r)
{
	while (*list)
		list = &(*list)->next_parked;
	r->next_parked = NULL;
	*list = r;
}

void model_park(struct model *m, struct request *r)
{
	m->used_usec = io_now_usec(m->server->io);
	model_list_append(&m->parked, r);
	if (m->state == DSD__STATE__STATE_IDLE) {
		model_set_state(m, DSD__STATE__STATE_LOADING, "");
		if (m->phase == PHASE_OFF && m->worker.pidfd < 0)
			model_start(m);
	}
}

static bool list_remove(struct request **list, struct request *r)
{
	for (; *list; list = &(*list)->next_parked)
		if (*list == r) {
			*list = r->next_parked;
			return true;
		}
	return false;
}

void model_unpark(struct model *m, struct request *r)
{
	if (!list_remove(&m->parked, r))
		list_remove(&m->leavers, r);
}

void model_kick(struct model *m)
{
	m->used_usec = io_now_usec(m->server->io);
	if (m->phase == PHASE_RUNNING) {
		sched_hold_new(m->sched, pressure_is_high(m->server));
		sched_run(m->sched);
	}
	watch_kick(m);
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

uint64_t model_pool_bytes(const struct model *m)
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

/* Whether the model whose place this one takes is the very same: then its pool, and all that is cached
 * there, serves on. */
static bool is_same_as(const struct model *m, const struct model *old)
{
	return old && old->pool && old->vocab &&
	       memcmp(m->image.h, old->image.h, sizeof(*m->image.h)) == 0;
}

static void share_pool(struct model *m, const struct model *old)
{
	m->pool = pool_share(old->pool);
	m->pool_number = old->pool_number;
	m->settles_usec = old->settles_usec;
}

static int make_pool(struct model *m, struct error *err)
{
	struct server *s = m->server;
	const struct image_header *h = m->image.h;
	struct pool_config cfg = {.io = s->io, .entry = h->entry};
	uint64_t n_pages;
	int r;

	if (m->pool)
		return 0;
	r = page_geometry_init(&cfg.geometry, m->image.streams, m->image.n_streams, err);
	if (r < 0)
		return r;
	n_pages = model_pool_bytes(m) / cfg.geometry.stride;
	if (n_pages == 0)
		return error_set(
			err, -ENOSPC,
			"pool.size leaves %llu bytes to this model: want at least a page of %llu",
			(unsigned long long)model_pool_bytes(m),
			(unsigned long long)cfg.geometry.stride);
	cfg.n_pages = (uint32_t)MIN(n_pages, (uint64_t)1 << 24);
	memcpy(cfg.model, h->digest, sizeof(cfg.model));
	cfg.n_vocab = h->n_vocab;
	cfg.verify = s->cfg.pool_verify;
	memcpy(cfg.boot_id, s->store.boot_id, sizeof(cfg.boot_id));
	memcpy(cfg.key, s->key, sizeof(cfg.key));
	if (!is_same_as(m, m->replaces))
		return model_keep_pool(m, &cfg, err);
	share_pool(m, m->replaces);
	return 0;
}

static int make_sched(struct model *m)
{
	struct server *s = m->server;
	const struct sched_config cfg = {
		.io = s->io,
		.pool = m->pool,
		.quota = s->quota,
		.n_slots = s->cfg.sched_slots,
		.step_tokens = s->cfg.sched_step_tokens,
		.max_tokens = m->image.h->n_context,
		.n_vocab = m->image.h->n_vocab,
		.queue_max = s->cfg.sched_queue,
	};

	return m->sched ? 0 : sched_new(&m->sched, &cfg);
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
	r = io_poll(s->io, fds[3], tag_make(TAG_WORKER_RESULT, 0, m->worker.generation));
	if (r < 0)
		return error_set(err, r, "watching a channel: %m");
	m->result_polled = true;
	r = process_send(&m->worker, &msg, fds, 4);
	return r < 0 ? error_set(err, r, "handing the channel to the worker: %m") : 0;
}

static void become_ready(struct model *m)
{
	const struct image_header *h = m->image.h;

	log_event(
		m->replaces ? EVENT_MODEL_RELOADED : EVENT_MODEL_READY,
		&(struct log_fields){.model = m->cfg.name, .worker = m->worker.pid},
		"model %s: ready after %.2f s: %s, %.1f M parameters, %u pages of %llu bytes (%s)",
		m->cfg.name, (double)(io_now_usec(m->server->io) - m->worker.born_usec) / 1e6,
		h->arch, (double)h->n_params / 1e6, pool_n_pages(m->pool),
		(unsigned long long)pool_geometry(m->pool)->stride, page_entry_name(h->entry));
	if (!m->tested)
		sched_forget_stats(m->sched); /* the self-test's own */
	m->tested = true;
	m->progress = 1;
	m->used_usec = io_now_usec(m->server->io);
	if (m->replaces)
		model_take_place(m);
	m->coming = false;
	model_set_state(m, DSD__STATE__STATE_READY, "");
	model_kick(m);
}

void model_on_selftest(struct model *m, int r, const struct error *err)
{
	fault_at(FAULT_RELOAD_SELFTEST);
	if (r < 0)
		give_up(m, error_text(err, r));
	else
		become_ready(m);
}

static void on_ready(struct model *m)
{
	struct error err = {};
	int r = 0;

	fault_at(FAULT_WORKER_READY);
	packed_withdraw(m);
	sched_set_channel(m->sched, m->channel);
	m->phase = PHASE_RUNNING;
	if (m->tested)
		r = 0;
	else if (selftest_is_running(&m->selftest))
		r = 1;
	else
		r = selftest_start(&m->selftest, m, m->replaces != NULL, &err);
	if (r <= 0)
		model_on_selftest(m, r, &err);
	else
		model_kick(m);
}

static void tell_progress(struct model *m)
{
	for (struct request *r = m->parked; r; r = r->next_parked)
		if (r->progress)
			r->progress(r, m->stage, m->progress);
}

/* One control message. The order is checked: a worker cannot be ready before its channel. */
static int take_control(struct model *m, const struct control_msg *msg, int fd, struct error *err)
{
	int r;

	switch (msg->type) {
	case CONTROL_PROGRESS:
		snprintf(m->stage, sizeof(m->stage), "%.63s", msg->text);
		if (msg->total)
			m->progress =
				(float)((double)MIN(msg->done, msg->total) / (double)msg->total);
		tell_progress(m);
		return 0;
	case CONTROL_REFUSED:
		packed_refuse(m, msg->text);
		return 0;
	case CONTROL_FILLED:
		return packed_filled(m, err);
	case CONTROL_IMAGE:
		if (m->phase != PHASE_LOADING || m->channel || fd < 0)
			return error_set(err, -EPROTO, "the worker sent an image out of turn");
		r = adopt_image(m, fd, err);
		fault_at(FAULT_WORKER_IMAGE);
		if (r == 0)
			r = make_pool(m, err);
		if (r == 0)
			r = make_sched(m);
		if (r == 0)
			r = make_channel(m, err);
		fault_at(FAULT_WORKER_CHANNEL);
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

void model_on_control(struct model *m)
{
	uint32_t generation = m->worker.generation;

	for (unsigned n = 0; generation == m->worker.generation && m->worker.control >= 0; n++) {
		_cleanup_(fd_closep) int fd = -EBADF;
		struct control_msg msg;
		struct error err = {};
		int r = process_recv(&m->worker, &msg, &fd);

		if (r == 0)
			return;
		m->watch.n_words++;
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

void model_on_result(struct model *m)
{
	struct error err = {};

	if (!m->channel)
		return;
	channel_clear_result(m->channel);
	if (m->phase == PHASE_RUNNING && sched_take_results(m->sched, &err) < 0) {
		log_error("model %s: %s", m->cfg.name, err.text);
		process_kill(&m->worker); /* its death does the rest */
	}
	model_make_tags(m);
}

/* One more death, and whether it was one of MODEL_DEATHS_MAX in CALM_USEC. */
static bool too_many_deaths(struct model *m, uint64_t now)
{
	uint64_t *slot = &m->death_usec[m->deaths++ % MODEL_DEATHS_MAX]; /* the oldest */
	bool many;

	*slot = now;
	slot = &m->death_usec[m->deaths % MODEL_DEATHS_MAX];
	many = m->deaths >= MODEL_DEATHS_MAX && now - *slot < CALM_USEC;
	if (now - m->worker.born_usec > CALM_USEC)
		m->deaths_in_row = 0;
	return many;
}

static void describe_death(int status, char *ret, size_t n)
{
	if (status > 128)
		snprintf(ret, n, "the worker was killed by signal %d (%s)%s", status - 128,
			 sigabbrev_np(status - 128) ?: "?",
			 status - 128 == SIGSYS   ? ": a call that its sandbox forbids"
			 : status - 128 == SIGBUS ? ": a mapped file ended early or cannot be read"
						  : "");
	else
		snprintf(ret, n, "the worker left with status %d", status);
}

void model_on_pid(struct model *m)
{
	struct server *s = m->server;
	char text[128], reason[256];
	bool died_often;
	int status;

	/* Its last words first: why it left. */
	model_on_control(m);
	if (!process_reap(&m->worker, &status))
		return;
	drop_channel(m);
	if (status == 128 + SIGBUS)
		packed_mistrust(m);
	describe_death(status, text, sizeof(text));
	if (m->phase == PHASE_OFF) {
		/* Told to go; why, was said then. Somebody may have asked for another since. */
		log_debug("model %s: %s", m->cfg.name, text);
		if (m->state == DSD__STATE__STATE_LOADING && !s->stopping && !m->leaving)
			model_start(m);
		return;
	}
	died_often = too_many_deaths(m, io_now_usec(s->io));
	log_event(EVENT_WORKER_DIED,
		  &(struct log_fields){.model = m->cfg.name, .worker = m->worker.pid},
		  "model %s: %s", m->cfg.name, text);
	m->phase = PHASE_OFF;
	if (s->stopping)
		return;
	/* Before anybody is told of the state: another worker comes, so they may ask again. */
	if (!m->leaving || model_in_use(m))
		retry_later(m);
	if (died_often) {
		snprintf(reason, sizeof(reason),
			 "%u workers died within a minute; the daemon goes on trying: %s",
			 MODEL_DEATHS_MAX, text);
		model_set_state(m, DSD__STATE__STATE_DEGRADED, reason);
	} else if (m->state == DSD__STATE__STATE_READY) {
		model_set_state(m, DSD__STATE__STATE_LOADING, "");
	}
}

/* Whoever asks next loads it again; what is cached stays. */
static uint64_t idle_tick(struct model *m, uint64_t now)
{
	uint64_t due = m->used_usec + m->cfg.idle_unload * UINT64_C(1000000);

	if (m->cfg.idle_unload == 0 || m->state != DSD__STATE__STATE_READY)
		return UINT64_MAX;
	if (now < due)
		return due;
	if (model_in_use(m))
		return now + m->cfg.idle_unload * UINT64_C(1000000);
	log_info("model %s: nobody asked for it for %u s: its worker goes", m->cfg.name,
		 m->cfg.idle_unload);
	m->phase = PHASE_OFF;
	process_kill(&m->worker);
	model_set_state(m, DSD__STATE__STATE_IDLE, "");
	return UINT64_MAX;
}

uint64_t model_on_tick(struct model *m, uint64_t now)
{
	uint64_t next = idle_tick(m, now), look = watch_on_tick(m, now);

	next = MIN(next, look);
	if (m->sched)
		next = MIN(next, sched_on_tick(m->sched, now));
	if (m->settles_usec && now >= m->settles_usec)
		model_settled(m);
	if (m->settles_usec)
		next = MIN(next, m->settles_usec);
	if (m->retry_usec && now >= m->retry_usec)
		model_start(m);
	return m->retry_usec ? MIN(next, m->retry_usec) : next;
}

bool model_has_worker(const struct model *m, uint32_t generation)
{
	return m->worker.generation == generation;
}

void model_get_stats(const struct model *m, struct model_stats *ret)
{
	*ret = (struct model_stats){
		.starts = m->starts,
		.deaths = m->deaths,
		.worker_pid = m->worker.pidfd >= 0 ? m->worker.pid : 0,
		.progress = m->progress,
		.stage = m->stage,
	};
	if (m->sched)
		sched_get_stats(m->sched, &ret->sched);
	if (m->pool) {
		ret->pages_total = pool_n_pages(m->pool);
		ret->pages_used = ret->pages_total - pool_n_available(m->pool);
		ret->pages_cached = pool_n_cached(m->pool);
		ret->kv_bytes_per_token = pool_geometry(m->pool)->token_bytes;
		ret->mha_bytes_per_token = image_mha_bytes(m->image.h);
		ret->gqa8_bytes_per_token = image_gqa8_bytes(m->image.h);
	}
}
