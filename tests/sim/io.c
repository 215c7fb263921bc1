/* SPDX-License-Identifier: Apache-2.0 */
/* The seam of a simulated world. A connection's descriptor is a number of ours; what the broker shares
 * with the worker (memfds, eventfds, the control socketpair) are real objects, used in one thread and
 * never waited for, so that they are as deterministic as the rest. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/cleanup.h"
#include "base/io_real.h"
#include "sim.h"

#define SPINS_MAX 1000u

static struct sim *sim_of(struct io *io)
{
	return (struct sim *)io;
}

uint64_t sim_random(struct sim *s)
{
	/* SplitMix64. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014. */
	uint64_t z = s->rng += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

void sim_note(struct sim *s, const void *data, size_t n)
{
	s->hash = XXH3_64bits_withSeed(data, n, s->hash);
}

/* ---- agenda ---- */

static bool before(const struct entry *a, const struct entry *b)
{
	return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_push(struct sim *s, uint64_t delay_usec, struct entry e)
{
	size_t i = s->n_agenda++;

	if (i == s->agenda_alloc) {
		s->agenda_alloc = MAX((size_t)256, 2 * s->agenda_alloc);
		s->agenda = realloc(s->agenda, s->agenda_alloc * sizeof(*s->agenda));
		assert(s->agenda);
	}
	e.at = s->now + delay_usec;
	/* Of one moment: in any order, and still a total one. */
	e.order = sim_random(s) << 32 | (uint32_t)s->n_order++;
	for (; i > 0 && before(&e, &s->agenda[(i - 1) / 2]); i = (i - 1) / 2)
		s->agenda[i] = s->agenda[(i - 1) / 2];
	s->agenda[i] = e;
}

static struct entry agenda_pop(struct sim *s)
{
	struct entry top = s->agenda[0], last = s->agenda[--s->n_agenda];
	size_t i = 0, k;

	for (; (k = 2 * i + 1) < s->n_agenda; i = k) {
		if (k + 1 < s->n_agenda && before(&s->agenda[k + 1], &s->agenda[k]))
			k++;
		if (!before(&s->agenda[k], &last))
			break;
		s->agenda[i] = s->agenda[k];
	}
	s->agenda[i] = last;
	return top;
}

/* Mostly soon, at times late: what was asked later may be answered earlier. */
static uint64_t some_delay(struct sim *s)
{
	return sim_one_in(s, 50) ? sim_below(s, 20000) : sim_below(s, 200);
}

/* ---- wires ---- */

/* Connections wait in the listening socket's queue until the broker accepts again. */
static void push_accept(struct sim *s, bool admin, uint64_t delay_usec, int res)
{
	sim_push(s, delay_usec,
		 (struct entry){
			 .kind = ENTRY_EVENT,
			 .index = admin,
			 .event = {.op = IO_ACCEPT, .res = res, .last = res < 0, .fd = -EBADF}});
}

static bool on_accept(struct sim *s, const struct entry *e, struct io_event *ev)
{
	if (!s->listen[e->index].armed) {
		if (e->event.res >= 0)
			push_accept(s, e->index, 20000, e->event.res);
		return false;
	}
	s->listen[e->index].armed = !e->event.last;
	s->count.faults[FAULT_ACCEPT] += e->event.last;
	*ev = e->event;
	ev->tag = s->listen[e->index].tag;
	return true;
}

struct link *link_new(struct sim *s, uint32_t user, struct client *c)
{
	struct link *l;
	uint32_t i = 0;

	while (i < s->n_links && (s->links[i]->broker_open || s->links[i]->client_open))
		i++;
	if (i == s->n_links) {
		if (i == s->links_alloc) {
			s->links_alloc = MAX(64u, 2 * s->links_alloc);
			s->links = realloc(s->links, s->links_alloc * sizeof(*s->links));
			assert(s->links);
		}
		s->links[i] = calloc(1, sizeof(struct link));
		assert(s->links[i]);
		s->links[i]->passed = -EBADF;
		s->n_links++;
	}
	l = s->links[i];
	free(l->in.data);
	free(l->out.data);
	fd_close(l->passed);
	*l = (struct link){
		.passed = -EBADF,
		.index = i,
		.generation = l->generation + 1,
		.broker_open = true,
		.client_open = true,
		.peer = {.uid = SIM_UID + user,
			 .pid = (pid_t)(10000 + s->count.connections % 20000)},
		.client = c,
		.room = (size_t)sim_between(s, 4, 64) << 10,
	};
	if (sim_one_in(s, 500))
		push_accept(s, user == SIM_ADMIN, 0, -EMFILE);
	push_accept(s, user == SIM_ADMIN, some_delay(s), SIM_LINK_FD + (int)i);
	return l;
}

struct link *link_get(struct sim *s, uint32_t index, uint32_t generation)
{
	return index < s->n_links && s->links[index]->generation == generation ? s->links[index]
									       : NULL;
}

static struct link *link_of_fd(struct sim *s, int fd)
{
	uint32_t i = (uint32_t)(fd - SIM_LINK_FD);

	return fd >= SIM_LINK_FD && i < s->n_links && s->links[i]->broker_open ? s->links[i] : NULL;
}

static void recv_soon(struct sim *s, struct link *l)
{
	bool something = l->in.at < l->in.n || !l->client_open || l->shut;

	if (!l->receiving || l->recv_due || !something)
		return;
	l->recv_due = true;
	sim_push(
		s, some_delay(s),
		(struct entry){.kind = ENTRY_RECV, .index = l->index, .generation = l->generation});
}

static void send_soon(struct sim *s, struct link *l)
{
	bool room = l->out.n - l->out.at < l->room || !l->client_open || l->shut;

	if (!l->sending || l->send_due || !room)
		return;
	l->send_due = true;
	sim_push(
		s, some_delay(s),
		(struct entry){.kind = ENTRY_SEND, .index = l->index, .generation = l->generation});
}

static void read_soon(struct sim *s, struct link *l)
{
	if (l->read_due || !l->client_open)
		return;
	l->read_due = true;
	sim_push(
		s, some_delay(s),
		(struct entry){.kind = ENTRY_READ, .index = l->index, .generation = l->generation});
}

#define PIPE_PUT(pipe, bytes, n_bytes)                                                             \
	do {                                                                                       \
		if ((pipe).at == (pipe).n)                                                         \
			(pipe).at = (pipe).n = 0;                                                  \
		if ((pipe).n + (n_bytes) > (pipe).alloc) {                                         \
			(pipe).alloc = 2 * ((pipe).n + (n_bytes));                                 \
			(pipe).data = realloc((pipe).data, (pipe).alloc);                          \
			assert((pipe).data);                                                       \
		}                                                                                  \
		memcpy((pipe).data + (pipe).n, (bytes), (n_bytes));                                \
		(pipe).n += (n_bytes);                                                             \
	} while (0)

void link_write(struct sim *s, struct link *l, const void *data, size_t n)
{
	if (n == 0 || l->shut || !l->broker_open)
		return; /* EPIPE: the client will read the end */
	PIPE_PUT(l->in, data, n);
	recv_soon(s, l);
}

void link_write_with(struct sim *s, struct link *l, const void *data, size_t n, int fd)
{
	assert(l->passed < 0);
	if (l->shut || !l->broker_open) {
		fd_close(fd);
		return;
	}
	link_write(s, l, data, n);
	l->passed = fd;
	l->passed_at = l->in.n - n;
	l->passed_end = l->in.n;
}

size_t link_read(struct sim *s, struct link *l, uint8_t *data, size_t n)
{
	n = MIN(n, l->out.n - l->out.at);
	if (n)
		memcpy(data, l->out.data + l->out.at, n);
	l->out.at += n;
	if (l->out.at < l->out.n)
		read_soon(s, l);
	send_soon(s, l);
	return n;
}

bool link_ended(const struct link *l)
{
	return l->out.at == l->out.n && (l->shut || !l->broker_open);
}

void link_close(struct sim *s, struct link *l)
{
	assert(l->client_open);
	l->client_open = false;
	l->client = NULL;
	recv_soon(s, l);
	send_soon(s, l);
}

/* ---- the seam ---- */

static int op_accept(struct io *io, int fd, uint64_t tag)
{
	struct sim *s = sim_of(io);

	assert(fd == SIM_LISTEN_FD || fd == SIM_ADMIN_FD);
	s->listen[fd == SIM_ADMIN_FD].armed = true;
	s->listen[fd == SIM_ADMIN_FD].tag = tag;
	return 0;
}

static int op_recv(struct io *io, int fd, uint64_t tag)
{
	struct link *l = link_of_fd(sim_of(io), fd);

	assert(l && !l->receiving);
	l->receiving = true;
	l->recv_tag = tag;
	recv_soon(sim_of(io), l);
	return 0;
}

static int op_send(struct io *io, int fd, const void *data, size_t n, uint64_t tag)
{
	struct link *l = link_of_fd(sim_of(io), fd);

	assert(l && !l->sending && n > 0);
	l->sending = true;
	l->send_tag = tag;
	l->send_data = data;
	l->send_n = n;
	send_soon(sim_of(io), l);
	return 0;
}

static int op_poll(struct io *io, int fd, uint64_t tag)
{
	struct sim *s = sim_of(io);

	for (size_t i = 0; i < N_ELEMENTS(s->polls); i++)
		if (!s->polls[i].used) {
			s->polls[i] = (struct poll){.fd = fd, .tag = tag, .used = true};
			return 0;
		}
	return -ENOBUFS;
}

void sim_poll_event(struct sim *s, enum tag_class class, uint64_t delay_usec)
{
	for (size_t i = 0; i < N_ELEMENTS(s->polls); i++)
		if (s->polls[i].used && tag_class(s->polls[i].tag) == class)
			sim_push(s, delay_usec,
				 (struct entry){.kind = ENTRY_EVENT,
						.index = (uint32_t)i,
						.event = {.tag = s->polls[i].tag,
							  .op = IO_POLL,
							  .res = POLLIN,
							  .fd = -EBADF}});
}

static int op_work(struct io *io, io_work_fn fn, void *arg, uint64_t tag)
{
	struct sim *s = sim_of(io);

	sim_push(s, sim_between(s, 100, 50000),
		 (struct entry){.kind = ENTRY_WORK,
				.fn = fn,
				.arg = arg,
				.event = {.tag = tag, .op = IO_WORK, .last = true, .fd = -EBADF}});
	return 0;
}

static void push_cancelled(struct sim *s, uint64_t tag, enum io_op op)
{
	sim_push(s, some_delay(s),
		 (struct entry){.kind = ENTRY_EVENT,
				.event = {.tag = tag,
					  .op = op,
					  .last = true,
					  .res = -ECANCELED,
					  .fd = -EBADF}});
}

static void op_cancel(struct io *io, int fd)
{
	struct sim *s = sim_of(io);
	struct link *l = link_of_fd(s, fd);

	if (l && l->receiving) {
		l->receiving = false;
		push_cancelled(s, l->recv_tag, IO_RECV);
	}
	if (l && l->sending) {
		l->sending = false;
		l->send_data = NULL;
		push_cancelled(s, l->send_tag, IO_SEND);
	}
	for (size_t i = 0; i < N_ELEMENTS(s->polls); i++)
		if (s->polls[i].used && s->polls[i].fd == fd) {
			s->polls[i].used = false;
			push_cancelled(s, s->polls[i].tag, IO_POLL);
		}
}

static int op_peer(struct io *io, int fd, struct io_peer *ret)
{
	struct link *l = link_of_fd(sim_of(io), fd);

	if (!l)
		return -EBADF;
	*ret = l->peer;
	return 0;
}

static int op_send_now(struct io *io, int fd, const void *data, size_t n)
{
	struct sim *s = sim_of(io);
	struct link *l = link_of_fd(s, fd);

	if (!l || !l->client_open)
		return -EPIPE;
	sim_note(s, data, n);
	PIPE_PUT(l->out, data, n);
	read_soon(s, l);
	return (int)n;
}

static void op_shutdown(struct io *io, int fd)
{
	struct sim *s = sim_of(io);
	struct link *l = link_of_fd(s, fd);

	assert(l);
	l->shut = true;
	recv_soon(s, l);
	send_soon(s, l);
	read_soon(s, l);
}

static void op_close(struct io *io, int fd)
{
	struct sim *s = sim_of(io);
	struct link *l = link_of_fd(s, fd);

	if (!l) {
		sim_broken(s, "descriptor %d is closed and is not open", fd);
		return;
	}
	if (l->receiving || l->sending)
		sim_broken(s, "descriptor %d is closed while an operation runs on it", fd);
	l->broker_open = false;
	read_soon(s, l);
}

static uint64_t op_now_usec(struct io *io)
{
	return sim_of(io)->now;
}

static void op_random(struct io *io, void *ret, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((uint8_t *)ret)[i] = (uint8_t)sim_random(sim_of(io));
}

/* Rarely: what fails is one connection, one request, or a worker's start, and is told so. */
static void *op_alloc(struct io *io, size_t n)
{
	struct sim *s = sim_of(io);

	if (s->now > SIM_MINUTE && sim_one_in(s, 5000)) {
		s->count.faults[FAULT_NO_MEMORY]++;
		return NULL;
	}
	return io_real_alloc(io, n);
}

static int op_spawn(struct io *io, const struct io_spawn *what, pid_t *ret_pid)
{
	*ret_pid = (pid_t)sim_between(sim_of(io), 2000, 9000);
	return worker_spawn(sim_of(io), what->fd);
}

static int op_reap(struct io *io, int pidfd, int *ret_status)
{
	return worker_reap(sim_of(io), pidfd, ret_status) ? 0 : -EAGAIN;
}

static void op_kill(struct io *io, int pidfd, int signal)
{
	(void)signal;
	worker_kill(sim_of(io), pidfd);
}

/* ---- the world moves ---- */

/* Bytes on their way to the broker. Return: whether @ev was written. */
static bool on_recv(struct sim *s, struct link *l, struct io_event *ev, uint8_t *piece)
{
	size_t n = l->in.n - l->in.at;

	l->recv_due = false;
	if (!l->receiving)
		return false;
	n = MIN(n, (size_t)SIM_PIECE);
	if (n > 1 && sim_one_in(s, 4))
		n = (size_t)sim_between(s, 1, n);
	/* A piece that has the descriptor's first byte brings it, and ends with its message at the latest. */
	if (l->passed >= 0)
		n = MIN(n, l->passed_end - l->in.at);
	if (l->shut)
		n = 0;
	if (n)
		memcpy(piece, l->in.data + l->in.at, n);
	l->in.at += n;
	*ev = (struct io_event){.tag = l->recv_tag,
				.op = IO_RECV,
				.last = n == 0,
				.res = (int)n,
				.fd = -EBADF,
				.data = piece};
	if (n && l->passed >= 0 && l->in.at > l->passed_at)
		ev->fd = TAKE_FD(l->passed);
	/* A peer that died with unread words in its buffer resets the connection. */
	if (n == 0 && !l->shut && sim_one_in(s, 3))
		ev->res = -ECONNRESET;
	l->receiving = n > 0;
	recv_soon(s, l);
	return true;
}

static bool on_send(struct sim *s, struct link *l, struct io_event *ev)
{
	size_t n = l->room - MIN(l->room, l->out.n - l->out.at);

	l->send_due = false;
	if (!l->sending)
		return false;
	*ev = (struct io_event){.tag = l->send_tag, .op = IO_SEND, .last = true, .fd = -EBADF};
	if (!l->client_open || l->shut) {
		ev->res = -EPIPE;
	} else if (n == 0) {
		return false; /* link_read() will ask again */
	} else {
		n = MIN(n, l->send_n);
		if (n > 1 && sim_one_in(s, 4))
			n = (size_t)sim_between(s, 1, n);
		sim_note(s, l->send_data, n);
		PIPE_PUT(l->out, l->send_data, n);
		ev->res = (int)n;
		read_soon(s, l);
	}
	l->sending = false;
	l->send_data = NULL;
	return true;
}

/* Whether a watched descriptor is watched still. */
static bool still_watched(const struct sim *s, const struct entry *e)
{
	return e->event.op != IO_POLL || e->event.last ||
	       (s->polls[e->index].used && s->polls[e->index].tag == e->event.tag);
}

/* One entry of the agenda. Return: whether it became an event of the broker. */
static bool take_entry(struct sim *s, const struct entry *e, struct io_event *ev, uint8_t *piece)
{
	struct link *l = link_get(s, e->index, e->generation);
	uint64_t note[] = {e->at, (uint64_t)e->kind << 32 | e->index, e->event.tag,
			   (uint64_t)(uint32_t)e->event.res};

	s->count.entries++;
	sim_note(s, note, sizeof(note));
	switch (e->kind) {
	case ENTRY_BURST:
		clients_on_burst(s);
		return false;
	case ENTRY_CONNECT:
		clients_on_connect(s, e->arg);
		return false;
	case ENTRY_ADMIN:
		clients_on_admin(s, e->index == 0);
		return false;
	case ENTRY_CLIENT:
		client_on_entry(s, e->index, e->generation);
		return false;
	case ENTRY_READ:
		if (l) {
			l->read_due = false;
			if (l->client)
				client_on_read(s, l->client);
		}
		return false;
	case ENTRY_RECV:
		return l && on_recv(s, l, ev, piece);
	case ENTRY_SEND:
		return l && on_send(s, l, ev);
	case ENTRY_WORK:
		e->fn(e->arg);
		*ev = e->event;
		return true;
	case ENTRY_EVENT:
		if (e->event.op == IO_ACCEPT)
			return on_accept(s, e, ev);
		*ev = e->event;
		return still_watched(s, e);
	case ENTRY_WORKER:
		worker_on_entry(s, e->index, e->generation);
		return false;
	case ENTRY_DEATH:
		worker_on_death(s, e->index, e->generation);
		return false;
	case ENTRY_MINUTE:
		sim_check_minute(s);
		return false;
	}
	return false;
}

static int op_wait(struct io *io, struct io_event *ret, unsigned max, uint64_t deadline_usec)
{
	struct sim *s = sim_of(io);
	/* Half of the time each event alone, else some at once: the first may end what others are for. */
	unsigned want = sim_one_in(s, 2) ? 1 : (unsigned)sim_between(s, 2, SIM_EVENT_MAX), n = 0;
	uint64_t until = deadline_usec;

	sim_check(s);
	want = MIN(want, max);
	while (n < want) {
		struct entry e;

		workers_look(s);
		if (s->over)
			return (int)n;
		if (s->n_agenda == 0 || s->agenda[0].at > until) {
			if (n == 0 && until != UINT64_MAX) {
				s->n_spins = until > s->now ? 0 : s->n_spins + 1;
				s->now = MAX(s->now, until);
			}
			if (s->n_spins == SPINS_MAX) {
				sim_broken(s, "the broker spins: what it waits for is past");
				s->now += SIM_SECOND;
			}
			return (int)n;
		}
		e = agenda_pop(s);
		s->now = MAX(s->now, e.at);
		if (take_entry(s, &e, &ret[n], s->pieces[n])) {
			n++;
			s->count.events++;
			until = MIN(deadline_usec, s->now + 100);
		}
	}
	return (int)n;
}

static const struct io_ops sim_ops = {
	.name = "simulated",
	.accept = op_accept,
	.recv = op_recv,
	.send = op_send,
	.poll = op_poll,
	.work = op_work,
	.cancel = op_cancel,
	.wait = op_wait,
	.peer = op_peer,
	.send_now = op_send_now,
	.shutdown = op_shutdown,
	.close = op_close,
	.now_usec = op_now_usec,
	.cpu_usec = op_now_usec, /* busy all the time */
	.random = op_random,
	.memfd = io_real_memfd,
	.map = io_real_map,
	.unmap = io_real_unmap,
	.alloc = op_alloc,
	.spawn = op_spawn,
	.reap = op_reap,
	.kill = op_kill,
};

void sim_io_init(struct sim *s)
{
	s->io.ops = &sim_ops;
	s->rng = s->seed;
	s->now = SIM_SECOND;
	s->pieces = calloc(SIM_EVENT_MAX, sizeof(*s->pieces));
	assert(s->pieces);
}

void sim_io_done(struct sim *s)
{
	for (uint32_t i = 0; i < s->n_links; i++) {
		free(s->links[i]->in.data);
		free(s->links[i]->out.data);
		fd_close(s->links[i]->passed);
		free(s->links[i]);
	}
	free(s->links);
	free(s->agenda);
	free(s->pieces);
}
