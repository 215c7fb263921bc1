/* SPDX-License-Identifier: Apache-2.0 */
/* Clients come in bursts, so that slots and pages are short for a while and idle after it. Most say
 * Hello, ask a few things, some at once, and leave. Others stop reading, die, send half a frame or none
 * at all: each must end alone. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "broker/request.h"
#include "call.h"
#include "layout/image.h"
#include "pool/pool.h"
#include "quota/quota.h"

#define CALLS         4u                /* at once on one connection */
#define BURST_MAX     60u               /* connections */
#define REQUESTS_MEAN 3u                /* of one connection */
#define ENDS_USEC     (10 * SIM_MINUTE) /* a request that took longer is lost */
#define BAD_ENDS_USEC (12 * SIM_SECOND) /* so does a connection that breaks the protocol */

enum client_kind {
	CLIENT_GOOD,
	CLIENT_SLOW,
	CLIENT_HALF,
	CLIENT_GARBAGE,
	CLIENT_SILENT,
	CLIENT_ADMIN
};

struct client {
	uint32_t index, generation, user;
	enum client_kind kind;
	struct link *link;
	bool hello, used;
	uint8_t *data; /* what came and is no frame yet */
	size_t n, n_alloc;
	struct call calls[CALLS];
	uint32_t n_todo;
	uint64_t next_id, born;
	uint64_t die_at, stall_at, wake_at; /* 0: never */
	uint64_t stalled_at;                /* 0: it reads */
	bool came_back;                     /* in time, after it had stopped reading */
	uint64_t bad_at;                    /* the protocol was broken then */
	bool out_of_memory;                 /* so the broker said, and ends the connection */
};

/* ---- coming and going ---- */

static void look_again(struct sim *s, struct client *c, uint64_t at)
{
	sim_push(s, at - MIN(at, s->now),
		 (struct entry){
			 .kind = ENTRY_CLIENT, .index = c->index, .generation = c->generation});
}

static void leave(struct sim *s, struct client *c)
{
	link_close(s, c->link);
	for (uint32_t i = 0; i < CALLS; i++)
		call_done(s, &c->calls[i]);
	free(TAKE_PTR(c->data));
	c->used = false;
	s->clients_used--;
}

static struct client *take_client(struct sim *s)
{
	struct client *c;
	uint32_t i = 0;

	while (i < s->n_clients && s->clients[i]->used)
		i++;
	if (i == s->n_clients) {
		if (i == s->clients_alloc) {
			s->clients_alloc = MAX(64u, 2 * s->clients_alloc);
			s->clients = realloc(s->clients, s->clients_alloc * sizeof(*s->clients));
			assert(s->clients);
		}
		s->clients[i] = calloc(1, sizeof(struct client));
		assert(s->clients[i]);
		s->n_clients++;
	}
	c = s->clients[i];
	*c = (struct client){.index = i, .generation = c->generation + 1, .used = true};
	s->clients_used++;
	return c;
}

static bool has_call(const struct client *c)
{
	for (uint32_t i = 0; i < CALLS; i++)
		if (c->calls[i].used)
			return true;
	return false;
}

/* As many as it wants to have running, from what it has left to ask. */
static void ask(struct sim *s, struct client *c)
{
	static const enum call_size sizes[] = {
		[CLIENT_SLOW] = CALL_FLOOD, [CLIENT_ADMIN] = CALL_VERB};
	uint32_t n = c->kind == CLIENT_SLOW ? 1 : (uint32_t)sim_between(s, 1, CALLS);

	if (!c->hello || c->bad_at)
		return;
	for (uint32_t i = 0; i < n && c->n_todo > 0; i++)
		if (!c->calls[i].used) {
			c->n_todo--;
			call_init(s, &c->calls[i], c->user,
				  c->kind < N_ELEMENTS(sizes) ? sizes[c->kind] : CALL_ANY);
			call_send(s, &c->calls[i], c->link, c->next_id++);
			if (c->calls[i].due)
				look_again(s, c, c->calls[i].due);
			/* What comes of several choices is often lost half-way. */
			if (c->kind == CLIENT_GOOD && !c->die_at && c->calls[i].n > 1 &&
			    sim_one_in(s, 8)) {
				c->die_at = s->now + sim_below(s, 5 * SIM_SECOND);
				look_again(s, c, c->die_at);
			}
		}
	if (c->n_todo == 0 && !has_call(c) && c->kind != CLIENT_SLOW)
		leave(s, c);
}

/* ---- breaking the protocol ---- */

static void misbehave(struct sim *s, struct client *c)
{
	uint8_t bytes[64];
	uint32_t length = (uint32_t)sim_between(s, 8, 48);

	c->bad_at = s->now;
	memset(bytes, 0xff, sizeof(bytes));
	if (c->kind == CLIENT_HALF) {
		/* A header and a part of what it promised, or a part of a header. */
		s->count.faults[FAULT_HALF_FRAME]++;
		wire_put_length(bytes, 2000);
		link_write(s, c->link, bytes, (size_t)sim_between(s, 1, sizeof(bytes)));
		return;
	}
	s->count.faults[FAULT_GARBAGE]++;
	switch (sim_below(s, 3)) {
	case 0: /* a length that is none */
		wire_put_length(bytes, sim_one_in(s, 2) ? 0 : WIRE_FRAME_MAX + 1);
		break;
	case 1: /* a frame of no message: no field starts with 0xff repeated */
		wire_put_length(bytes, length);
		break;
	default: /* random lengths are almost all too long */
		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)sim_random(s);
		bytes[3] |= 0x80;
	}
	link_write(s, c->link, bytes, WIRE_HEADER_BYTES + length);
}

/* ---- what comes ---- */

static void on_hello(struct sim *s, struct client *c)
{
	if (c->hello)
		sim_broken(s, "Hello was answered twice");
	c->hello = true;
	if (c->calls[0].used)
		call_send(s, &c->calls[0], c->link, c->next_id++); /* inherited */
	if (c->kind == CLIENT_HALF || c->kind == CLIENT_GARBAGE) {
		/* Some while requests run: they go with the connection. */
		if (sim_one_in(s, 2))
			ask(s, c);
		misbehave(s, c);
	} else {
		ask(s, c);
	}
}

/* @well: with its last word, not with an error. */
static void on_over(struct sim *s, struct client *c, struct call *call, bool well)
{
	s->count.acts[ACT_COME_BACK] += well && c->came_back;
	if (well && c->kind == CLIENT_GOOD && call_repeat(s, call)) {
		call_send(s, call, c->link, c->next_id++);
		if (call->due)
			look_again(s, c, call->due);
		return;
	}
	call_done(s, call);
	ask(s, c);
}

static void on_frame(struct sim *s, struct client *c, const Dsd__ServerFrame *frame)
{
	bool lenient = c->kind != CLIENT_GOOD && c->kind != CLIENT_ADMIN;

	if (frame->msg_case == DSD__SERVER_FRAME__MSG_HELLO) {
		on_hello(s, c);
		return;
	}
	for (uint32_t i = 0; i < CALLS; i++) {
		struct call *call = &c->calls[i];

		if (!call->used || call->waiting || call->id != frame->id)
			continue;
		if (call_on_frame(s, call, frame, lenient))
			on_over(s, c, call, frame->msg_case == DSD__SERVER_FRAME__MSG_DONE);
		else if (call->waiting)
			look_again(s, c, call->due);
		return;
	}
	if (frame->msg_case == DSD__SERVER_FRAME__MSG_ERROR && frame->id == 0 && lenient)
		return;
	if (frame->msg_case == DSD__SERVER_FRAME__MSG_ERROR && frame->id == 0 &&
	    frame->error->code == DSD__CODE__CODE_RESOURCE_EXHAUSTED &&
	    (!c->hello || ++s->n_no_memory <= s->count.faults[FAULT_NO_MEMORY])) {
		s->count.refused++;
		c->out_of_memory = true;
		return;
	}
	sim_broken(s, "a frame of kind %d for request %llu, which is over", (int)frame->msg_case,
		   (unsigned long long)frame->id);
}

/* Whole frames at the buffer's front. */
static void take_frames(struct sim *s, struct client *c)
{
	size_t at = 0;

	while (c->used && c->n - at >= WIRE_HEADER_BYTES) {
		uint32_t n = wire_frame_length(c->data + at);
		struct wire_arena arena = WIRE_ARENA_NULL;
		Dsd__ServerFrame *frame;
		char text[WIRE_TEXT_MAX];

		if (n == 0 || n > WIRE_FRAME_MAX) {
			sim_broken(s, "a frame of %u bytes from the broker", n);
			at = c->n;
			break;
		}
		if (c->n - at - WIRE_HEADER_BYTES < n)
			break;
		if (wire_arena_init_server(&arena, n) < 0)
			abort();
		frame = wire_unpack_server(c->data + at + WIRE_HEADER_BYTES, n, &arena);
		at += WIRE_HEADER_BYTES + n;
		if (!frame || wire_check(&frame->base, text) < 0)
			sim_broken(s, "a frame of %u bytes from the broker: %s", n,
				   frame ? text : "malformed");
		else
			on_frame(s, c, frame);
		wire_arena_done(&arena);
	}
	if (!c->used)
		return;
	if (at < c->n)
		memmove(c->data, c->data + at, c->n - at);
	c->n -= at;
}

void client_on_read(struct sim *s, struct client *c)
{
	size_t want = sim_one_in(s, 4) ? (size_t)sim_between(s, 1, 512) : 16384;

	if (c->stalled_at)
		return;
	if (c->n + want > c->n_alloc) {
		c->n_alloc = 2 * (c->n + want);
		c->data = realloc(c->data, c->n_alloc);
		assert(c->data);
	}
	c->n += link_read(s, c->link, c->data + c->n, want);
	take_frames(s, c);
	if (!c->used || !link_ended(c->link))
		return;
	if ((c->kind == CLIENT_GOOD || c->kind == CLIENT_ADMIN) && c->hello && !c->out_of_memory)
		sim_broken(s, "the broker ended a connection of user %u that did nothing wrong",
			   c->user);
	leave(s, c);
}

/* ---- its own mind ---- */

static void cancel(struct sim *s, struct client *c, struct call *call)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Cancel m = DSD__CANCEL__INIT;
	_cleanup_(freep) uint8_t *data = NULL;
	size_t n;

	call->due = 0;
	call->cancelling = true;
	call->cancel_at = s->now;
	s->count.faults[FAULT_CANCEL]++;
	m.target = call->id;
	frame.id = c->next_id++;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_CANCEL;
	frame.cancel = &m;
	if (wire_pack_frame(&frame.base, &data, &n) < 0)
		abort();
	link_write(s, c->link, data, n);
}

/* Other connections of the user go on with its requests, each with one choice of which something came. */
static void bequeath(struct sim *s, struct client *c)
{
	for (uint32_t i = 0; i < CALLS && c->kind == CLIENT_GOOD; i++)
		for (uint32_t k = 0; k < CALL_CHOICES && c->calls[i].used; k++) {
			struct call *heir = call_heir(&c->calls[i], k);

			if (!heir)
				continue;
			s->count.faults[FAULT_CONNECTION_LOST]++;
			sim_push(s, sim_below(s, SIM_SECOND),
				 (struct entry){.kind = ENTRY_CONNECT, .arg = heir});
		}
}

/* It reads again. If the daemon still waited for it, it is as good as any other from now on, and gets
 * what it asked for. */
static void come_back(struct sim *s, struct client *c)
{
	uint64_t stall = s->server.cfg.conn_stall_seconds * SIM_SECOND;

	if (s->now < c->stalled_at + stall) {
		c->kind = CLIENT_GOOD;
		c->came_back = true;
		c->die_at = 0;
	}
	c->wake_at = c->stalled_at = 0;
	for (uint32_t i = 0; i < CALLS; i++) {
		c->calls[i].since = s->now;
		if (c->calls[i].cancel_at)
			c->calls[i].cancel_at = s->now;
	}
	client_on_read(s, c);
	if (c->used && c->came_back)
		ask(s, c);
}

void client_on_entry(struct sim *s, uint32_t index, uint32_t generation)
{
	struct client *c = index < s->n_clients ? s->clients[index] : NULL;

	if (!c || !c->used || c->generation != generation)
		return;
	if (c->die_at && s->now >= c->die_at) {
		s->count.faults[FAULT_CLIENT_DEATH] += has_call(c);
		bequeath(s, c);
		leave(s, c);
		return;
	}
	if (c->stall_at && s->now >= c->stall_at) {
		c->stall_at = 0;
		c->stalled_at = s->now;
		s->count.faults[FAULT_SLOW_READER]++;
	}
	if (c->wake_at && s->now >= c->wake_at) {
		come_back(s, c);
		if (!c->used)
			return;
	}
	for (uint32_t i = 0; i < CALLS; i++) {
		struct call *call = &c->calls[i];

		if (!call->used || !call->due || s->now < call->due || c->bad_at)
			continue;
		if (!call->waiting) {
			cancel(s, c, call);
		} else {
			call_send(s, call, c->link, c->next_id++);
			if (call->due)
				look_again(s, c, call->due);
		}
	}
}

static void say_hello(struct sim *s, struct client *c)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	Dsd__Hello hello = DSD__HELLO__INIT;
	_cleanup_(freep) uint8_t *data = NULL;
	size_t n;

	hello.protocol = WIRE_PROTOCOL;
	frame.id = 0;
	frame.msg_case = DSD__CLIENT_FRAME__MSG_HELLO;
	frame.hello = &hello;
	if (wire_pack_frame(&frame.base, &data, &n) < 0)
		abort();
	link_write(s, c->link, data, n);
}

void clients_on_connect(struct sim *s, struct call *heir)
{
	static const struct {
		enum client_kind kind;
		uint32_t one_in;
	} kinds[] = {{CLIENT_SLOW, 150},
		     {CLIENT_HALF, 150},
		     {CLIENT_GARBAGE, 150},
		     {CLIENT_SILENT, 300}};
	struct client *c = take_client(s);

	c->user = heir                        ? heir->user
		  : s->burst_user < SIM_USERS ? s->burst_user
					      : (uint32_t)sim_below(s, SIM_USERS);
	c->next_id = sim_between(s, 1, 1000);
	c->born = s->now;
	c->n_todo = (uint32_t)sim_between(s, 1, 2 * REQUESTS_MEAN - 1);
	for (size_t i = 0; i < N_ELEMENTS(kinds) && c->kind == CLIENT_GOOD && !heir; i++)
		if (sim_one_in(s, kinds[i].one_in))
			c->kind = kinds[i].kind;
	if (heir)
		c->calls[0] = *heir;
	free(heir);
	c->link = link_new(s, c->user, c);
	s->count.connections++;
	if (c->kind == CLIENT_SILENT) {
		c->bad_at = s->now;
		return;
	}
	if (c->kind == CLIENT_SLOW) {
		c->n_todo = 1;
		c->stall_at = s->now + sim_between(s, 50000, 2 * SIM_SECOND);
		look_again(s, c, c->stall_at);
		if (sim_one_in(s, 2)) {
			c->wake_at = c->stall_at + sim_between(s, SIM_SECOND, 45 * SIM_SECOND);
			look_again(s, c, c->wake_at);
		}
		c->die_at = s->now + sim_between(s, 60 * SIM_SECOND, 240 * SIM_SECOND);
	} else if (sim_one_in(s, 40)) {
		c->die_at = s->now + sim_below(s, 5 * SIM_SECOND);
	}
	if (c->die_at)
		look_again(s, c, c->die_at);
	say_hello(s, c);
}

void clients_on_admin(struct sim *s, bool again)
{
	struct client *c;

	s->admin_called &= again;
	if (s->now >= s->end && !s->drained && !s->unloaded)
		return;
	c = take_client(s);
	c->kind = CLIENT_ADMIN;
	c->user = SIM_ADMIN;
	c->next_id = sim_between(s, 1, 1000);
	c->born = s->now;
	c->n_todo = (uint32_t)sim_between(s, 1, 12);
	c->link = link_new(s, c->user, c);
	if (sim_one_in(s, 10)) {
		c->die_at = s->now + sim_below(s, SIM_SECOND);
		look_again(s, c, c->die_at);
	}
	s->count.connections++;
	say_hello(s, c);
	if (again)
		sim_push(s, sim_between(s, SIM_MINUTE / 10, 4 * SIM_MINUTE),
			 (struct entry){.kind = ENTRY_ADMIN});
}

struct call *clients_find_call(struct sim *s, uint64_t number)
{
	for (uint32_t i = 0; i < s->n_clients; i++)
		for (uint32_t k = 0; k < CALLS && s->clients[i]->used; k++)
			if (s->clients[i]->calls[k].used &&
			    s->clients[i]->calls[k].number == number)
				return &s->clients[i]->calls[k];
	return NULL;
}

void clients_expect_no_numbers(struct sim *s, const struct channel_params *p, uint64_t began)
{
	const struct request *found = NULL;
	struct call *c;

	for (uint32_t i = 0; i < s->server.requests.n_alloc; i++) {
		const struct request *r = s->server.requests.items[i];
		uint32_t k = r ? p->choice - r->first_choice : 0;

		/* One that came later is the same asked again: the step has a row of the first. */
		if (!r || r->arrived_usec > began || r->params.seed != p->seed ||
		    k >= r->n_choices || !r->choices[k].seq)
			continue;
		if (found)
			return; /* one that goes on, and the one whose connection was lost */
		found = r;
	}
	c = found ? clients_find_call(s, found->number) : NULL;
	if (c)
		c->no_numbers = true;
}

struct call *clients_any_call(struct sim *s)
{
	for (unsigned tries = 0; tries < 40 && s->n_clients; tries++) {
		struct client *c = s->clients[sim_below(s, s->n_clients)];
		struct call *call = &c->calls[sim_below(s, CALLS)];

		if (c->used && call->used && call->number)
			return call;
	}
	return NULL;
}

void clients_on_burst(struct sim *s)
{
	uint64_t n =
		sim_one_in(s, 3) ? sim_between(s, 1, BURST_MAX) : sim_between(s, 1, BURST_MAX / 4);
	uint64_t spread = sim_between(s, 1000, 3 * SIM_SECOND);
	/* So long a gap that the day has its requests. */
	uint64_t gap = SIM_DAY / s->requests_per_day * REQUESTS_MEAN * n;

	if (s->now >= s->end)
		return;
	/* One user at times wants more than its share. */
	s->burst_user = sim_one_in(s, 10) ? (uint32_t)sim_below(s, SIM_USERS) : SIM_USERS;
	for (uint64_t i = 0; i < n; i++)
		sim_push(s, sim_below(s, spread), (struct entry){.kind = ENTRY_CONNECT});
	sim_push(s, sim_between(s, gap / 2, gap * 3 / 2), (struct entry){.kind = ENTRY_BURST});
}

void clients_check(struct sim *s)
{
	for (uint32_t i = 0; i < s->n_clients; i++) {
		struct client *c = s->clients[i];

		if (!c->used)
			continue;
		if (c->bad_at && s->now > c->bad_at + BAD_ENDS_USEC) {
			sim_broken(s, "a connection of user %u that broke the protocol lives on",
				   c->user);
			leave(s, c);
			continue;
		}
		for (uint32_t k = 0; k < CALLS && !c->stalled_at; k++)
			if (c->calls[k].used && s->now > c->calls[k].since + ENDS_USEC) {
				sim_broken(s, "request %llu of user %u has no end",
					   (unsigned long long)c->calls[k].id, c->user);
				c->calls[k].since = s->now;
			}
	}
}

/* ---- start and end ---- */

/* The pool's own word for each user, from a pool that nobody else uses. */
static int learn_domains(struct sim *s)
{
	struct pool_config cfg = {.io = &s->io, .n_pages = 1};
	struct image_stream stream = {.bytes_per_token = 32};
	_cleanup_(pool_freep) struct pool *p = NULL;
	int r = page_geometry_init(&cfg.geometry, &stream, 1, NULL);

	memcpy(cfg.key, s->server.key, sizeof(cfg.key));
	if (r == 0)
		r = pool_new(&p, &cfg, NULL);
	for (uid_t i = 0; i < SIM_PEOPLE && r == 0; i++) {
		pool_domain(p, SIM_UID + i, s->domains[i]);
		for (uid_t k = 0; k < i; k++)
			if (memcmp(s->domains[i], s->domains[k], sizeof(s->domains[i])) == 0)
				sim_broken(s, "users %u and %u share their pages", k, i);
	}
	return r;
}

int clients_init(struct sim *s)
{
	s->users = calloc(SIM_PEOPLE, sizeof(*s->users));
	assert(s->users);
	for (uint32_t u = 0; u < SIM_PEOPLE; u++)
		for (uint32_t d = 0; d < DOCUMENTS; d++)
			for (uint32_t i = 0; i < DOCUMENT_BYTES; i++)
				/* The first document is everybody's: equal words, other pages. */
				s->users[u].documents[d][i] =
					d == 0 && u > 0 ? s->users[0].documents[0][i]
							: (uint8_t)('a' + sim_below(s, 26));
	sim_push(s, SIM_SECOND, (struct entry){.kind = ENTRY_BURST});
	sim_push(s, SIM_SECOND, (struct entry){.kind = ENTRY_ADMIN});
	sim_push(s, SIM_MINUTE, (struct entry){.kind = ENTRY_MINUTE});
	return learn_domains(s);
}

void clients_done(struct sim *s)
{
	for (uint32_t i = 0; i < s->n_clients; i++) {
		for (uint32_t k = 0; k < CALLS; k++)
			call_done(s, &s->clients[i]->calls[k]);
		free(s->clients[i]->data);
		free(s->clients[i]);
	}
	free(s->clients);
	free(s->users);
}
