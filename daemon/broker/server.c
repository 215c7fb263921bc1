/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "quota/quota.h"

#define EVENTS            64u
#define ACCEPT_RETRY_USEC 100000u
#define STOP_FLUSH_USEC   500000u

/* ---- tables ---- */

int table_add(struct table *t, void *item, uint32_t *ret_generation)
{
	uint32_t i;

	if (t->n_free == 0) {
		uint32_t n = MAX(16u, t->n_alloc * 2);
		void **items = realloc(t->items, n * sizeof(*items));
		uint32_t *generations, *list;

		if (!items)
			return -ENOMEM;
		t->items = items;
		generations = realloc(t->generations, n * sizeof(*generations));
		if (!generations)
			return -ENOMEM;
		t->generations = generations;
		list = realloc(t->free_list, n * sizeof(*list));
		if (!list)
			return -ENOMEM;
		t->free_list = list;
		for (i = n; i-- > t->n_alloc;) {
			items[i] = NULL;
			generations[i] = 0;
			list[t->n_free++] = i;
		}
		t->n_alloc = n;
	}
	i = t->free_list[--t->n_free];
	t->items[i] = item;
	*ret_generation = ++t->generations[i];
	t->n_used++;
	return (int)i;
}

void table_remove(struct table *t, uint32_t index)
{
	t->items[index] = NULL;
	t->free_list[t->n_free++] = index;
	t->n_used--;
}

void *table_get(const struct table *t, uint64_t tag)
{
	uint32_t i = tag_index(tag);

	return i < t->n_alloc && t->generations[i] == (uint32_t)tag ? t->items[i] : NULL;
}

void table_done(struct table *t)
{
	free(t->items);
	free(t->generations);
	free(t->free_list);
	*t = (struct table){};
}

/* ---- models and state ---- */

struct model *server_find_model(const struct server *s, const char *name)
{
	for (uint32_t i = 0; i < s->n_models; i++)
		if (!model_is_hidden(s->models[i]) &&
		    (!name || !name[0] || strcmp(model_name(s->models[i]), name) == 0))
			return s->models[i];
	return NULL;
}

struct model *server_find_session(const struct server *s, uid_t uid, uint64_t id)
{
	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct sched *sched = model_sched(s->models[i]);

		if (sched && sched_has_session(sched, uid, id))
			return s->models[i];
	}
	return NULL;
}

Dsd__State server_state(const struct server *s)
{
	Dsd__State state = DSD__STATE__STATE_DEGRADED;

	for (uint32_t i = 0; i < s->n_models; i++) {
		Dsd__State of = model_state(s->models[i]);

		if (model_is_hidden(s->models[i]))
			continue;
		if (of == DSD__STATE__STATE_READY || of == DSD__STATE__STATE_IDLE)
			return DSD__STATE__STATE_READY;
		if (of == DSD__STATE__STATE_LOADING)
			state = DSD__STATE__STATE_LOADING;
	}
	return state;
}

/* ---- start and end ---- */

int server_init(struct server *s, struct io *io, const struct config *cfg, const char *worker_path,
		bool fake_worker, struct error *err)
{
	uint64_t limits[_QUOTA_MAX];
	int r;

	*s = (struct server){
		.io = io,
		.cfg = *cfg,
		.worker_path = worker_path,
		.fake_worker = fake_worker,
		.started_usec = io_now_usec(io),
		.signal_fd = -EBADF,
		.state_fd = -EBADF,
		.packed = {.dir_fd = -EBADF},
		.wake_usec = UINT64_MAX,
		.pressure = PRESSURE_NULL,
	};
	io_random(io, s->key, sizeof(s->key));
	store_init(&s->store);
	notify_init(&s->notify);
	limits[QUOTA_CONNECTIONS] = cfg->conn_max_per_uid;
	limits[QUOTA_REQUESTS] = cfg->conn_requests_per_uid;
	limits[QUOTA_BYTES] = cfg->conn_bytes_per_uid;
	limits[QUOTA_PAGES] = UINT64_MAX;
	r = quota_new(&s->quota, limits);
	for (uint32_t i = 0; i < cfg->n_models && r == 0; i++) {
		r = model_new(&s->models[i], s, &cfg->models[i]);
		s->n_models += r == 0;
	}
	return r < 0 ? error_set(err, r, "starting the server: %m") : 0;
}

/* Nobody finds a socket of our own any more, or can connect to it: its queue refuses as one that is closed does,
 * while who accepts from it still is under way. One of systemd's is left to those who come after us. */
static void withdraw_listeners(struct server *s)
{
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		struct sockaddr_un addr = {};
		socklen_t n = sizeof(addr);

		if (!s->listeners[i].own)
			continue;
		if (getsockname(s->listeners[i].fd, (struct sockaddr *)&addr, &n) == 0)
			unlink(addr.sun_path);
		shutdown(s->listeners[i].fd, SHUT_RDWR);
		s->listeners[i].own = false;
	}
}

void server_done(struct server *s)
{
	for (uint32_t i = 0; i < s->conns.n_alloc; i++)
		if (s->conns.items[i])
			conn_kill(s->conns.items[i]);
	/* Operations in flight end with their events; what the second thread does too. */
	for (unsigned k = 0; k < 1000 && (s->conns.n_used || s->requests.n_used || s->packed.jobs);
	     k++) {
		struct io_event ev[EVENTS];
		int n = io_wait(s->io, ev, EVENTS, io_now_usec(s->io) + 10000);

		for (int i = 0; i < n; i++) {
			void *item;

			if (tag_class(ev[i].tag) == TAG_CONN_RECV &&
			    (item = table_get(&s->conns, ev[i].tag)))
				conn_on_recv(item, &ev[i]);
			else if (tag_class(ev[i].tag) == TAG_CONN_SEND &&
				 (item = table_get(&s->conns, ev[i].tag)))
				conn_on_send(item, &ev[i]);
			else if (tag_class(ev[i].tag) == TAG_REQUEST &&
				 (item = table_get(&s->requests, ev[i].tag)))
				request_on_encoded(item);
			else if (tag_class(ev[i].tag) == TAG_PACKED)
				packed_on_done(s, (uint32_t)ev[i].tag);
		}
		conn_flush_all(s);
	}
	s->stopping = true; /* what the store keeps is kept */
	for (uint32_t i = 0; i < s->n_models; i++)
		model_free(s->models[i]);
	store_done(&s->store);
	packed_close(s);
	withdraw_listeners(s);
	for (uint32_t i = 0; i < s->n_listeners; i++)
		fd_close(s->listeners[i].fd);
	fd_close(s->signal_fd);
	fd_close(s->state_fd);
	pressure_done(s);
	quota_free(s->quota);
	table_done(&s->conns);
	table_done(&s->requests);
	text_buf_done(&s->piece);
	text_buf_done(&s->text);
	explicit_bzero(s->key, sizeof(s->key));
}

int server_listen(struct server *s, int fd, bool admin, bool own, struct error *err)
{
	uint32_t i = s->n_listeners;
	int r;

	if (i == SERVER_LISTENERS_MAX) {
		close(fd);
		return error_set(err, -E2BIG, "more than %u listening sockets",
				 SERVER_LISTENERS_MAX);
	}
	s->listeners[i].fd = fd;
	s->listeners[i].admin = admin;
	s->listeners[i].own = own;
	s->n_listeners++;
	r = io_accept(s->io, fd, tag_make(TAG_LISTEN, i, 0));
	return r < 0 ? error_set(err, r, "accepting connections: %m") : 0;
}

static int watch_signals(struct server *s, struct error *err)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0)
		return error_set(err, -errno, "signalfd: %m");
	r = io_poll(s->io, s->signal_fd, tag_make(TAG_SIGNAL, 0, 0));
	return r < 0 ? error_set(err, r, "watching signals: %m") : 0;
}

/* ---- the loop ---- */

static void accept_again(struct server *s, uint32_t i)
{
	s->listeners[i].retry_usec = 0;
	if (io_accept(s->io, s->listeners[i].fd, tag_make(TAG_LISTEN, i, 0)) < 0)
		log_error("a socket is not served any more: out of operations");
}

static void on_accept(struct server *s, const struct io_event *ev)
{
	uint32_t i = tag_index(ev->tag);

	if (ev->res >= 0)
		conn_accept(s, ev->res, s->listeners[i].admin);
	else if (ev->res != -ECONNABORTED && !s->stopping)
		log_warning("accept: %s", strerror(-ev->res));
	if (!ev->last || s->stopping)
		return;
	if (ev->res >= 0 || ev->res == -ECONNABORTED) {
		accept_again(s, i);
		return;
	}
	/* Out of descriptors or memory: who waits there now would only fail again at once. */
	s->listeners[i].retry_usec = io_now_usec(s->io) + ACCEPT_RETRY_USEC;
	server_wake_at(s, s->listeners[i].retry_usec);
}

/* The model whose worker a tag names, or NULL where that one is gone. */
static struct model *find_worker(const struct server *s, uint64_t tag)
{
	for (uint32_t i = 0; i < s->n_models; i++)
		if (model_has_worker(s->models[i], (uint32_t)tag))
			return s->models[i];
	return NULL;
}

static void reload_all(struct server *s)
{
	struct model *next, *all[SERVER_MODELS_MAX];
	uint32_t n = s->n_models;

	notify_reloading(s);
	memcpy(all, s->models, n * sizeof(*all));
	for (uint32_t i = 0; i < n; i++) {
		struct error err = {};
		int r = model_is_hidden(all[i]) ? 0 : model_reload(all[i], false, &next, &err);

		if (r < 0)
			log_event(EVENT_RELOAD_REFUSED,
				  &(struct log_fields){.model = model_name(all[i])},
				  "model %s stays as it is: %s", model_name(all[i]),
				  error_text(&err, r));
	}
	notify_state(s); /* they may all have been refused */
}

/* Who connects from now on waits for the next daemon, where systemd keeps the sockets, and finds none elsewhere. */
static void begin_to_stop(struct server *s)
{
	s->stopping = true;
	s->stop_usec += s->cfg.stop_seconds * UINT64_C(1000000);
	for (uint32_t i = 0; i < s->n_listeners; i++)
		io_cancel(s->io, s->listeners[i].fd);
	withdraw_listeners(s);
	notify_stopping();
}

/* SIGHUP: every model's files anew. SIGTERM, SIGINT: no new requests, and those under way have
 * stop.seconds; the same again: at once. */
static void on_signal(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			if (!s->stopping)
				reload_all(s);
			continue;
		}
		s->stop_usec = io_now_usec(s->io);
		if (!s->stopping)
			begin_to_stop(s);
		server_wake_at(s, s->stop_usec);
	}
}

static void on_event(struct server *s, const struct io_event *ev)
{
	struct model *m;
	void *item;

	switch (tag_class(ev->tag)) {
	case TAG_LISTEN:
		on_accept(s, ev);
		break;
	case TAG_CONN_RECV:
		item = table_get(&s->conns, ev->tag);
		if (item)
			conn_on_recv(item, ev);
		else if (ev->fd >= 0)
			close(ev->fd);
		break;
	case TAG_CONN_SEND:
		item = table_get(&s->conns, ev->tag);
		if (item)
			conn_on_send(item, ev);
		break;
	case TAG_REQUEST:
		item = table_get(&s->requests, ev->tag);
		if (item)
			request_on_encoded(item);
		break;
	case TAG_WORKER_PID:
		if ((m = find_worker(s, ev->tag)))
			model_on_pid(m);
		break;
	case TAG_WORKER_CONTROL:
		if ((m = find_worker(s, ev->tag)))
			model_on_control(m);
		break;
	case TAG_WORKER_RESULT:
		if ((m = find_worker(s, ev->tag)))
			model_on_result(m);
		break;
	case TAG_POOL:
		/* One of those that share the pool: the work was done once. */
		for (uint32_t k = 0; k < s->n_models; k++)
			if (model_on_tag(s->models[k], (uint32_t)ev->tag))
				break;
		break;
	case TAG_PACKED:
		packed_on_done(s, (uint32_t)ev->tag);
		break;
	case TAG_PRESSURE:
		pressure_on_event(s);
		break;
	case TAG_SIGNAL:
		on_signal(s);
		break;
	}
}

void server_wake_at(struct server *s, uint64_t usec)
{
	s->wake_usec = MIN(s->wake_usec, usec);
}

static void on_tick(struct server *s, uint64_t now)
{
	s->wake_usec = UINT64_MAX;
	if (s->stopping)
		server_wake_at(s, now < s->stop_usec ? s->stop_usec : now + STOP_FLUSH_USEC / 10);
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		if (s->listeners[i].retry_usec && now >= s->listeners[i].retry_usec)
			accept_again(s, i);
		else if (s->listeners[i].retry_usec)
			server_wake_at(s, s->listeners[i].retry_usec);
	}
	for (uint32_t i = 0; i < s->conns.n_alloc; i++)
		if (s->conns.items[i])
			server_wake_at(s, conn_on_tick(s->conns.items[i], now));
	for (uint32_t i = 0; i < s->requests.n_alloc; i++)
		if (s->requests.items[i])
			server_wake_at(s, request_on_tick(s->requests.items[i], now));
	for (uint32_t i = 0; i < s->n_models; i++)
		server_wake_at(s, model_on_tick(s->models[i], now));
	server_wake_at(s, notify_on_tick(s, now));
	server_wake_at(s, pressure_on_tick(s, now));
}

/* An end that is no crash, however many still waited. */
static bool stop_as_asked(struct server *s)
{
	for (uint32_t i = 0; i < s->n_models; i++)
		model_settled(s->models[i]);
	return true;
}

/* Asked to stop, and nobody waits for an answer any more, or for the rest of one: those whom the time
 * did not suffice are told to come again, and get a moment to read that. */
static bool server_may_stop(struct server *s)
{
	if (!s->stopping)
		return false;
	if (io_now_usec(s->io) >= s->stop_usec)
		for (uint32_t i = 0; i < s->requests.n_alloc; i++) {
			struct request *r = s->requests.items[i];

			if (r && r->conn)
				request_fail(r, DSD__CODE__CODE_RETRYABLE,
					     "the daemon stops: resume when it is back", 100);
		}
	if (io_now_usec(s->io) >= s->stop_usec + STOP_FLUSH_USEC)
		return stop_as_asked(s);
	for (uint32_t i = 0; i < s->requests.n_alloc; i++)
		if (s->requests.items[i])
			return false;
	for (uint32_t i = 0; i < s->conns.n_alloc; i++)
		if (s->conns.items[i] && conn_has_output(s->conns.items[i]))
			return false;
	/* What was computed is to be of use to the next daemon. */
	for (uint32_t i = 0; i < s->n_models; i++)
		if (model_make_tags(s->models[i]))
			return false;
	return stop_as_asked(s);
}

int server_run(struct server *s, struct error *err)
{
	int r = watch_signals(s, err);

	if (r == 0)
		r = store_key(&s->store, s->key, err);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < s->n_models; i++)
		model_start(s->models[i]);
	notify_state(s);
	s->wake_usec = 0; /* the first look at everything */
	while (!server_may_stop(s)) {
		struct io_event events[EVENTS];
		uint64_t now;
		int n = io_wait(s->io, events, EVENTS, s->wake_usec);

		if (n < 0)
			return error_set(err, n, "waiting for events: %m");
		for (int i = 0; i < n; i++) {
			on_event(s, &events[i]);
			conn_reap(s);
			model_reap(s);
		}
		now = io_now_usec(s->io);
		if (now >= s->wake_usec) {
			on_tick(s, now);
			conn_reap(s);
			model_reap(s);
		}
		conn_flush_all(s);
	}
	return 0;
}
