/* SPDX-License-Identifier: Apache-2.0 */
/* Worker processes: the real control messages, the real checks of steps and the fake engine, on the
 * simulated clock. A step is read when it begins and computed when it begins or ends, so that a page
 * given away in between shows. It dies as processes die: between two instructions, with some rows of a
 * step written, one of them half. Now and then it refuses a step, has no numbers for a row, or answers
 * what cannot be. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "layout/image.h"
#include "sim.h"
#include "worker/batch.h"
#include "worker/control.h"
#include "worker/engine.h"
#include "worker/fake.h"
#include "worker/serve.h"

#define STEP_USEC    6000u
#define ROW_USEC     400u
#define DEATH_MEAN   (8 * SIM_MINUTE)
#define SLOW_MEAN    (20 * SIM_MINUTE)
#define ODD_MEAN     (15 * SIM_MINUTE)
#define STEPS_QUEUED 2u                /* that the broker posts before it sees a result */
#define LIE_ENDS     (SIM_SECOND / 10) /* after which a liar must be gone */

enum odd { ODD_LIE, ODD_REFUSE, ODD_NO_NUMBERS };
#define WORKERS SERVER_MODELS_MAX
enum phase { PHASE_NONE, PHASE_LOAD, PHASE_CHANNEL, PHASE_SERVE, PHASE_DEAD };

struct worker {
	uint32_t index;
	enum phase phase;
	uint32_t generation;
	int pidfd, control, status;
	struct engine engine;
	struct serve serve;
	struct batch *batch;
	struct channel_result_row *rows;
	struct pages *pages; /* what its pool holds */
	struct slot_seen slots[CHANNEL_SLOTS_MAX];
	uint32_t head, tail, step_index;
	bool busy, computed;
	uint64_t slow_until, next_death;
	uint64_t began;   /* the step */
	uint64_t lied_at; /* 0: not yet */
	uint32_t excused; /* steps posted before this one may stand on one that was refused */
	struct engine_step step;
	uint64_t usec;
	struct channel_result result;
};

/* One serves, another may be coming to take its place, others are going. */
struct workers {
	struct worker worker[WORKERS];
	uint32_t deaths_loading; /* in a row */
	uint64_t next_slow;
	uint64_t next_odd[3]; /* by enum odd */
};

int workers_new(struct sim *s)
{
	s->workers = calloc(1, sizeof(*s->workers));
	if (!s->workers)
		return -ENOMEM;
	for (uint32_t i = 0; i < WORKERS; i++) {
		s->workers->worker[i].index = i;
		s->workers->worker[i].pidfd = s->workers->worker[i].control = -EBADF;
		s->workers->worker[i].serve = SERVE_NULL;
	}
	for (size_t i = 0; i < N_ELEMENTS(s->workers->next_odd); i++)
		s->workers->next_odd[i] = sim_between(s, SIM_MINUTE, 2 * ODD_MEAN);
	s->workers->next_slow = sim_between(s, SIM_MINUTE, 2 * SLOW_MEAN);
	return 0;
}

static void let_go(struct worker *w)
{
	w->control = fd_close(w->control);
	w->batch = batch_free(w->batch);
	free(TAKE_PTR(w->rows));
	serve_done(&w->serve);
	engine_done(&w->engine);
	w->busy = false;
}

void workers_free(struct sim *s)
{
	for (uint32_t i = 0; s->workers && i < WORKERS; i++)
		let_go(&s->workers->worker[i]);
	free(TAKE_PTR(s->workers));
}

static uint64_t around(struct sim *s, uint64_t mean)
{
	return s->now + sim_between(s, mean / 10, 2 * mean);
}

static void again(struct sim *s, const struct worker *w, uint64_t delay_usec, enum entry_kind kind)
{
	sim_push(s, delay_usec,
		 (struct entry){.kind = kind, .index = w->index, .generation = w->generation});
}

int worker_spawn(struct sim *s, int control)
{
	struct worker *w = s->workers->worker;

	while (w < s->workers->worker + WORKERS && w->phase != PHASE_NONE)
		w++;
	if (w == s->workers->worker + WORKERS) {
		sim_broken(s, "%u workers are there and another one is started", WORKERS);
		return -EAGAIN;
	}
	w->pidfd = eventfd(0, EFD_CLOEXEC);
	w->control = dup(control);
	if (w->pidfd < 0 || w->control < 0)
		return -errno;
	w->phase = PHASE_LOAD;
	w->generation++;
	w->next_death = around(s, DEATH_MEAN);
	w->slow_until = w->lied_at = 0;
	again(s, w, sim_between(s, 2000, 50000), ENTRY_WORKER);
	return w->pidfd; /* from now on the broker's */
}

static void die(struct sim *s, struct worker *w, int status)
{
	let_go(w);
	s->n_deaths++;
	w->phase = PHASE_DEAD;
	w->status = status;
	/* The socket's end and the process's, in any order. */
	sim_poll_event(s, TAG_WORKER_CONTROL, sim_below(s, 3000));
	sim_poll_event(s, TAG_WORKER_PID, sim_below(s, 3000));
}

static struct worker *find_worker(struct sim *s, int pidfd)
{
	for (uint32_t i = 0; i < WORKERS; i++)
		if (s->workers->worker[i].phase != PHASE_NONE &&
		    s->workers->worker[i].pidfd == pidfd)
			return &s->workers->worker[i];
	sim_broken(s, "descriptor %d is no worker's", pidfd);
	return NULL;
}

void worker_kill(struct sim *s, int pidfd)
{
	struct worker *w = find_worker(s, pidfd);

	if (w && w->phase != PHASE_DEAD)
		die(s, w, 128 + SIGKILL);
}

bool worker_reap(struct sim *s, int pidfd, int *ret_status)
{
	struct worker *w = find_worker(s, pidfd);

	if (!w || w->phase != PHASE_DEAD)
		return false;
	*ret_status = w->status;
	w->phase = PHASE_NONE;
	return true;
}

bool workers_idle(const struct sim *s)
{
	for (uint32_t i = 0; i < WORKERS; i++)
		if (s->workers->worker[i].phase != PHASE_NONE &&
		    (s->workers->worker[i].phase != PHASE_SERVE || s->workers->worker[i].busy))
			return false;
	return true;
}

/* ---- loading ---- */

/* Return: 1 with a message, 0 where none is there yet, -1 where the broker has gone. */
static int next_message(struct sim *s, struct worker *w, struct control_in *in)
{
	struct pollfd p = {.fd = w->control, .events = POLLIN};
	struct error err = {};
	int r;

	if (poll(&p, 1, 0) <= 0)
		return 0;
	r = control_recv(w->control, in, &err);
	if (r < 0)
		sim_broken(s, "the broker's control message: %s", err.text);
	return r > 0 ? 1 : -1;
}

static int send_image(struct sim *s, struct worker *w, uint32_t n_context, struct error *err)
{
	struct control_msg msg = {.type = CONTROL_IMAGE};
	struct image_builder b;
	int r = image_builder_init(&b), fd;

	if (r < 0)
		return r;
	r = fake_new(&w->engine, &b, n_context, err);
	fd = r < 0 ? r : image_finish(&b, err);
	image_builder_done(&b);
	if (fd < 0)
		return fd;
	r = control_send_text(w->control, CONTROL_PROGRESS, "loading", 1, 2, err);
	if (r == 0)
		r = control_send(w->control, &msg, fd, err);
	fd_close(fd);
	sim_poll_event(s, TAG_WORKER_CONTROL, sim_below(s, 1000));
	return r;
}

static int open_channel(struct sim *s, struct worker *w, struct control_in *in, struct error *err)
{
	struct channel_header *h;
	struct engine_room room;
	struct stat st = {};
	int r = in->n_fds > 1 ? fstat(in->fds[1], &st) : -1;

	r = serve_open(&w->serve, in, &w->engine, err);
	if (r < 0)
		return r;
	h = w->serve.channel;
	room = (struct engine_room){
		.pool = w->serve.pool,
		.n_pages = w->serve.n_pages,
		.n_slots = w->serve.shape.n_slots,
		.max_rows = w->serve.shape.max_rows,
		.max_tokens = w->serve.shape.max_tokens,
	};
	r = w->engine.attach(w->engine.ctx, &room, err);
	if (r == 0)
		r = batch_new(&w->batch, &w->serve.shape, w->engine.limits.n_vocab,
			      w->serve.n_pages);
	w->rows = calloc(w->serve.shape.max_rows, sizeof(*w->rows));
	if (r == 0 && !w->rows)
		r = -ENOMEM;
	w->pages = pages_of(s, st.st_ino, w->serve.n_pages, w->engine.limits.geometry.stride);
	memset(w->slots, 0, sizeof(w->slots));
	w->head = w->excused = atomic_load(&h->steps.head);
	w->tail = atomic_load(&h->results.tail);
	if (r == 0)
		r = control_send_text(w->control, CONTROL_READY, "", 0, 0, err);
	sim_poll_event(s, TAG_WORKER_CONTROL, sim_below(s, 1000));
	return r;
}

static void load(struct sim *s, struct worker *w)
{
	struct error err = {};
	struct control_in in;
	int r = next_message(s, w, &in);

	if (r < 0) {
		die(s, w, 0);
		return;
	}
	/* Three deaths in a row would mean that the model is broken, which it is not. */
	if (s->workers->deaths_loading < 2 && sim_one_in(s, 30)) {
		if (r > 0)
			control_in_done(&in);
		s->workers->deaths_loading++;
		s->count.faults[FAULT_WORKER_DEATH_LOADING]++;
		die(s, w, sim_one_in(s, 2) ? 1 : 128 + SIGSEGV);
		return;
	}
	if (r == 0) {
		again(s, w, sim_between(s, 500, 5000), ENTRY_WORKER);
		return;
	}
	if (w->phase == PHASE_LOAD && in.msg.type == CONTROL_LOAD) {
		r = send_image(s, w, in.msg.n_context, &err);
		w->phase = PHASE_CHANNEL;
		again(s, w, sim_between(s, 500, 100000), ENTRY_WORKER);
	} else if (w->phase == PHASE_CHANNEL && in.msg.type == CONTROL_CHANNEL) {
		r = open_channel(s, w, &in, &err);
		w->phase = PHASE_SERVE;
		s->workers->deaths_loading = 0;
	} else {
		r = error_set(&err, -EPROTO, "control message %u in phase %d", in.msg.type,
			      (int)w->phase);
	}
	control_in_done(&in);
	if (r < 0)
		sim_broken(s, "the worker cannot load: %s", err.text);
}

/* ---- steps ---- */

static bool is_excused(const struct worker *w)
{
	return (int32_t)(w->step_index - w->excused) < 0;
}

/* A step that the worker does not take. It is the broker's fault unless another was refused before. */
static void refuse(struct sim *s, struct worker *w, const struct error *err)
{
	if (!is_excused(w))
		sim_broken(s, "step %llu: %s", (unsigned long long)w->step.seq, err->text);
	w->result.status = CHANNEL_BAD_STEP;
	w->computed = true;
}

/* Sequence by sequence, as a model that cannot see what its pages hold: what stands on a step that was
 * refused gets an answer too, of no worth. */
static void compute_blindly(struct worker *w)
{
	struct engine_want *wants = calloc(w->step.n_wants + 1, sizeof(*wants));
	uint32_t at = 0;

	assert(wants);
	for (uint32_t i = 0; i < w->step.n_sequences; i++) {
		const struct engine_sequence *q = &w->step.sequences[i];
		struct engine_step one = w->step;

		one.sequences = q;
		one.n_sequences = 1;
		one.wants = wants + at;
		for (one.n_wants = 0; at + one.n_wants < w->step.n_wants &&
				      w->step.wants[at + one.n_wants].sequence == i;
		     one.n_wants++) {
			wants[at + one.n_wants] = w->step.wants[at + one.n_wants];
			wants[at + one.n_wants].sequence = 0;
			w->rows[at + one.n_wants] = (struct channel_result_row){
				.slot = q->slot,
				.position = w->step.k.positions[wants[at + one.n_wants].row],
				.token = 'a',
				.logprob = -1};
		}
		w->engine.step(w->engine.ctx, &one, w->rows + at, NULL);
		at += one.n_wants;
	}
	free(wants);
}

static void compute(struct sim *s, struct worker *w)
{
	struct error err = {};
	int r = 0;

	w->computed = true;
	if (is_excused(w))
		compute_blindly(w);
	else
		r = w->engine.step(w->engine.ctx, &w->step, w->rows, &err);
	if (r < 0) {
		refuse(s, w, &err);
		return;
	}
	for (uint32_t i = 0; i < w->step.n_wants; i++)
		if (w->step.wants[i].given == UINT32_MAX)
			batch_note_sample(w->batch, w->rows[i].slot, w->rows[i].position + 1,
					  w->rows[i].token);
}

/* A row that was being written: some of its bytes are new, and nobody's. */
static void tear(struct sim *s, struct worker *w, const struct engine_sequence *q,
		 uint32_t position)
{
	const struct page_geometry *g = &w->engine.limits.geometry;
	uint8_t *row = page_row(w->serve.pool, g, q->pages[position / PAGE_TOKENS],
				(uint32_t)sim_below(s, g->n_streams), position % PAGE_TOKENS);

	for (uint64_t n = sim_between(s, 1, 31); n > 0; n--)
		row[n] = (uint8_t)sim_random(s);
}

/* The first rows of the step are written, one more is torn. */
static void die_in_step(struct sim *s, struct worker *w)
{
	struct engine_step step = w->step;
	struct engine_sequence *part;
	uint32_t n_rows = (uint32_t)sim_below(s, step.k.n_rows), i;
	struct error err = {};

	part = calloc(step.n_sequences, sizeof(*part));
	assert(part);
	memcpy(part, step.sequences, step.n_sequences * sizeof(*part));
	for (i = 0; i + 1 < step.n_sequences && part[i + 1].first_row <= n_rows; i++)
		;
	tear(s, w, &part[i], step.k.positions[n_rows]);
	part[i].n_rows = n_rows - part[i].first_row;
	step.n_sequences = i + (part[i].n_rows > 0);
	step.sequences = part;
	if (!w->computed && step.n_sequences > 0 &&
	    w->engine.step(w->engine.ctx, &step, w->rows, &err) < 0 && !is_excused(w))
		sim_broken(s, "step %llu: %s", (unsigned long long)step.seq, err.text);
	free(part);
}

static bool holds_killer(const struct engine_step *step)
{
	for (uint32_t i = 0; i < step->n_sequences; i++)
		if (step->sequences[i].params->top_k == SIM_KILLER)
			return true;
	return false;
}

void worker_on_death(struct sim *s, uint32_t index, uint32_t generation)
{
	struct worker *w = &s->workers->worker[index];

	if (generation != w->generation || w->phase != PHASE_SERVE)
		return;
	s->count.faults[FAULT_WORKER_DEATH]++;
	/* A step that it did not take touches nothing. */
	if (w->busy && w->result.status == CHANNEL_OK) {
		s->n_killed += holds_killer(&w->step);
		die_in_step(s, w);
	}
	die(s, w, sim_one_in(s, 4) ? 1 : 128 + SIGKILL);
}

static void begin(struct sim *s, struct worker *w)
{
	struct channel_header *h = w->serve.channel;
	struct error err = {};
	int r = batch_read(w->batch, w->serve.channel, w->head, &w->step, &err);

	s->count.steps++;
	s->idle_since = 0;
	w->began = s->now;
	w->result = (struct channel_result){.seq = w->step.seq, .status = CHANNEL_OK};
	w->busy = true;
	w->computed = false;
	w->step_index = w->head;
	if (r < 0) {
		refuse(s, w, &err);
	} else {
		pages_on_step(s, w->pages, w->slots, &w->step, w->serve.pool, is_excused(w));
		if (sim_one_in(s, 2))
			compute(s, w);
	}
	atomic_store_explicit(&h->steps.head, ++w->head, memory_order_release);
	if (s->now >= s->workers->next_slow) {
		s->count.faults[FAULT_WORKER_SLOW]++;
		s->workers->next_slow = around(s, SLOW_MEAN);
		w->slow_until = s->now + sim_between(s, SIM_SECOND, 10 * SIM_SECOND);
	}
	w->usec = STEP_USEC + ROW_USEC * (uint64_t)w->step.k.n_rows;
	w->usec = sim_between(s, w->usec / 2, w->usec * 3 / 2);
	if (s->now < w->slow_until)
		w->usec *= 20;
	if (s->now >= w->next_death || (r == 0 && holds_killer(&w->step))) {
		w->next_death = UINT64_MAX;
		again(s, w, sim_below(s, w->usec * (holds_killer(&w->step) ? 3 : 5) / 4),
		      ENTRY_DEATH);
	}
	again(s, w, w->usec, ENTRY_WORKER);
}

static bool odd(struct sim *s, enum odd what, enum fault fault)
{
	if (s->now < s->workers->next_odd[what])
		return false;
	s->workers->next_odd[what] = around(s, ODD_MEAN);
	s->count.faults[fault]++;
	return true;
}

/* Something that an honest worker would not say. */
static void lie(struct sim *s, struct worker *w)
{
	struct channel_result_row *row = &w->rows[sim_below(s, MAX(w->result.n_rows, 1u))];

	w->lied_at = s->now;
	switch (sim_below(s, w->result.n_rows ? 6 : 3)) {
	case 0:
		w->result.seq += sim_one_in(s, 2) ? 1 : sim_random(s);
		break;
	case 1:
		w->result.n_rows += 1 + (uint32_t)sim_below(s, 100);
		break;
	case 2:
		w->result.status = _CHANNEL_STATUS_MAX;
		break;
	case 3:
		row->slot = w->serve.shape.n_slots + (uint32_t)sim_below(s, 2) * 1000000;
		break;
	case 4:
		row->token = FAKE_VOCAB;
		break;
	default:
		row->n_top = CHANNEL_TOP_MAX + 1;
	}
}

/* A row that is none, and whose request must be told so. */
static void spoil(struct sim *s, struct worker *w, struct channel_result_row *row)
{
	row->token = CHANNEL_NO_TOKEN;
	row->n_top = 0;
	for (uint32_t i = 0; i < w->step.n_sequences; i++)
		if (w->step.sequences[i].slot == row->slot)
			clients_expect_no_numbers(s, w->step.sequences[i].params, w->began);
}

static void end(struct sim *s, struct worker *w)
{
	struct channel_header *h = w->serve.channel;
	struct channel_result *out = channel_result(w->serve.channel, &w->serve.shape, w->tail);
	uint32_t n_rows;

	if (!w->computed && odd(s, ODD_REFUSE, FAULT_STEP_REFUSED)) {
		w->result.status = CHANNEL_BAD_STEP;
	} else if (!w->computed) {
		compute(s, w);
	}
	if (w->result.status == CHANNEL_BAD_STEP)
		w->excused = w->step_index + STEPS_QUEUED;
	n_rows = w->result.n_rows = w->result.status == CHANNEL_OK ? w->step.n_wants : 0;
	if (n_rows && odd(s, ODD_NO_NUMBERS, FAULT_NO_NUMBERS)) {
		spoil(s, w, &w->rows[sim_below(s, n_rows)]);
	} else if (w->result.status == CHANNEL_OK && odd(s, ODD_LIE, FAULT_WORKER_LIES)) {
		lie(s, w);
	}
	w->result.usec = w->usec;
	*out = w->result;
	memcpy(channel_result_rows(out), w->rows, sizeof(*w->rows) * n_rows);
	sim_note(s, w->rows, sizeof(*w->rows) * n_rows);
	atomic_store(&h->results.tail, ++w->tail);
	w->busy = false;
	sim_poll_event(s, TAG_WORKER_RESULT, sim_below(s, 100));
}

static void look(struct sim *s, struct worker *w)
{
	struct channel_header *h;

	if (w->lied_at && s->now > w->lied_at + LIE_ENDS && w->phase == PHASE_SERVE) {
		sim_broken(s, "a worker that answered what cannot be is still there");
		w->lied_at = 0;
	}
	if (w->phase != PHASE_SERVE || w->busy || w->lied_at)
		return;
	h = w->serve.channel;
	if (atomic_load_explicit(&h->steps.tail, memory_order_acquire) == w->head) {
		atomic_store(&h->steps.asleep, 1);
		return;
	}
	/* The broker posted to a sleeper: it must have taken the flag down to wake it. */
	if (atomic_load(&h->steps.asleep))
		sim_broken(s, "a step was posted and the worker not woken");
	begin(s, w);
}

void workers_look(struct sim *s)
{
	for (uint32_t i = 0; i < WORKERS; i++)
		look(s, &s->workers->worker[i]);
}

void worker_on_entry(struct sim *s, uint32_t index, uint32_t generation)
{
	struct worker *w = &s->workers->worker[index];

	if (generation != w->generation)
		return;
	switch (w->phase) {
	case PHASE_LOAD:
	case PHASE_CHANNEL:
		load(s, w);
		break;
	case PHASE_SERVE:
		if (w->busy)
			end(s, w);
		break;
	default:
		break;
	}
}
