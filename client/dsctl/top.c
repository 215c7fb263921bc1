/* SPDX-License-Identifier: Apache-2.0 */
/* top: what the daemon does, again and again: a screen for a person, else lines.
 *
 * Each look asks for the counters and keeps the stream of that request, whose event they lie in, until the look after
 * the next: two looks make rates. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "output.h"
#include "rates.h"
#include "requests.h"
#include "screen.h"
#include "session.h"
#include "verbs.h"

#define INTERVAL_DEFAULT 1.0f
#define INTERVAL_MIN     0.05f
#define INTERVAL_MAX     86400.0f

#define SET_INTERVAL 1u
#define SET_COUNT    2u

struct look {
	struct dsc_stream *stream; /* holds what stats points at */
	const struct dsc_stats_reply *stats;
};

struct top {
	bool all;
	float interval; /* seconds */
	uint32_t count; /* looks to show */
	uint64_t set;

	struct session session;
	struct screen *screen; /* NULL: lines */
	struct look before, now;
	struct requests requests; /* with a screen */
	struct rates *rates;      /* of each model */
	double seconds;           /* between the looks */
};

static const struct arg_option options[] = {
	{"--all", NULL, "everybody's requests, over the administrative socket", ARG_FLAG,
	 .offset = offsetof(struct top, all)},
	{"--interval", "SECONDS", "between looks; default: 1", ARG_FLOAT,
	 .offset = offsetof(struct top, interval), .set_offset = offsetof(struct top, set),
	 .bits = SET_INTERVAL},
	{"--count", "N", "leave after so many; default: go on", ARG_U32,
	 .offset = offsetof(struct top, count), .set_offset = offsetof(struct top, set),
	 .bits = SET_COUNT},
};

/* ---------------------------------------------------------------- one look */

static void look_done(struct look *l)
{
	dsc_stream_free(l->stream);
	*l = (struct look){};
}

/* The terminal first, so that a sentence stays to be read. */
static int failed(struct top *t, int r)
{
	t->screen = screen_free(t->screen);
	return session_failed(&t->session, r);
}

/* Return: 0, or an exit status after a sentence. */
static int ask_stats(struct top *t)
{
	const struct dsc_event *e;
	int r;

	look_done(&t->before);
	t->before = t->now;
	t->now = (struct look){};
	r = dsc_stats(t->session.c, &t->now.stream);
	while (r >= 0 && !t->now.stats && (r = session_next(&t->session, t->now.stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			r = e->error;
		if (e->type == DSC_EVENT_STATS)
			t->now.stats = e->stats;
	}
	return r < 0 ? failed(t, r) : STATUS_OK;
}

static int ask_requests(struct top *t)
{
	int r;

	requests_done(&t->requests);
	r = t->screen ? requests_ask(&t->session, &t->requests) : 0;
	return r < 0 ? failed(t, r) : STATUS_OK;
}

static int compute_rates(struct top *t)
{
	const struct dsc_stats_reply *now = t->now.stats, *before = t->before.stats;
	uint64_t usec = now->uptime_usec;

	if (before && before->uptime_usec < usec)
		usec -= before->uptime_usec;
	t->seconds = usec > 0 ? (double)usec / 1e6 : 1e-6;
	free(t->rates);
	t->rates = calloc(now->n_models + 1, sizeof(*t->rates));
	if (!t->rates)
		return failed(t, -ENOMEM);
	for (size_t i = 0; i < now->n_models; i++)
		t->rates[i] = rates_of_model(now->models[i],
					     find_model(before, now->models[i]->name), t->seconds);
	return STATUS_OK;
}

static int take_look(struct top *t)
{
	int r = ask_stats(t);

	if (r == STATUS_OK)
		r = ask_requests(t);
	if (r == STATUS_OK)
		r = compute_rates(t);
	return r;
}

/* ---------------------------------------------------------------- lines */

static struct json_object *json_pages(const struct dsc_model_stats *m)
{
	static const char *const keys[PAGE_STATES] = {
		[PAGE_IN_USE] = "in_use",
		[PAGE_PUBLISHED] = "published",
		[PAGE_CACHED] = "cached",
		[PAGE_FREE] = "free",
	};
	struct json_object *o = json_object_new_object();
	uint32_t pages[PAGE_STATES];

	pool_map(m, pages);
	for (enum page_state i = 0; i < PAGE_STATES; i++)
		json_add(o, keys[i], json_object_new_int64(pages[i]));
	return o;
}

static struct json_object *json_model(const struct dsc_model_stats *m, const struct rates *r)
{
	struct json_object *o = json_object_new_object();

	json_add(o, "name", json_text(m->name, strlen(m->name)));
	json_add(o, "running", json_object_new_int64(m->running));
	json_add(o, "waiting", json_object_new_int64(m->waiting));
	json_add(o, "pages", json_pages(m));
	json_add(o, "generated_tokens_per_second", json_real(r->generated));
	json_add(o, "prompt_tokens_per_second", json_real(r->prompt));
	json_add(o, "cached_tokens_per_second", json_real(r->cached));
	json_add(o, "hit_rate", r->hit_rate < 0 ? NULL : json_real(r->hit_rate));
	json_add(o, "steps_per_second", json_real(r->steps));
	json_add(o, "rows_per_step", json_real(r->rows));
	json_add(o, "worker_share", json_real(r->worker));
	return o;
}

static int print_json(const struct top *t, double broker)
{
	struct json_object *o = json_object_new_object(), *models = json_object_new_array();
	const struct dsc_stats_reply *st = t->now.stats;

	json_add(o, "uptime_usec", json_object_new_uint64(st->uptime_usec));
	json_add(o, "seconds", json_real(t->seconds));
	json_add(o, "state", json_object_new_string(state_text(st->state)));
	json_add(o, "connections", json_object_new_int64(st->connections));
	json_add(o, "broker_share", json_real(broker));
	for (size_t i = 0; i < st->n_models; i++)
		json_object_array_add(models, json_model(st->models[i], &t->rates[i]));
	json_add(o, "models", models);
	return out_json(o);
}

static int print_lines(const struct top *t, double broker)
{
	const struct dsc_stats_reply *st = t->now.stats;

	for (size_t i = 0; i < st->n_models; i++) {
		const struct dsc_model_stats *m = st->models[i];
		const struct rates *r = &t->rates[i];
		uint32_t pages[PAGE_STATES];

		pool_map(m, pages);
		printf("%s: %u running, %u waiting, %.1f tokens/s, %.1f prompt tokens/s, pages:",
		       m->name, m->running, m->waiting, r->generated, r->prompt);
		for (enum page_state k = 0; k < PAGE_STATES; k++)
			printf(" %u %s,", pages[k], page_state_text(k));
		if (r->hit_rate >= 0)
			printf(" hits %.0f%%,", r->hit_rate * 100);
		printf(" worker %.0f%%, broker %.1f%%\n", r->worker * 100, broker * 100);
	}
	if (st->n_models == 0)
		printf("no model, broker %.1f%%\n", broker * 100);
	return STATUS_OK;
}

static int show(struct top *t, const struct global *global)
{
	double broker = rates_of_broker(t->now.stats, t->before.stats, t->seconds);
	int r = STATUS_OK;

	if (t->screen)
		screen_draw(t->screen,
			    &(struct view){t->now.stats, broker, t->rates, &t->requests, t->all});
	else
		r = global->json ? print_json(t, broker) : print_lines(t, broker);
	if (r == STATUS_OK && !t->screen && fflush(stdout) != 0)
		r = STATUS_FAILED; /* the end of the program says why */
	return r;
}

/* ---------------------------------------------------------------- again and again */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* True: the person wants to leave. A terminal of another size is drawn on anew. */
static bool take_keys(struct top *t, const struct global *global)
{
	int key;

	while ((key = screen_key(t->screen)) != 0) {
		if (key == 'q' || key == 'Q')
			return true;
		show(t, global);
	}
	return false;
}

/* Waits for the next look. Return: 0, STATUS_INTERRUPTED; *ret_leave: the person wants to. */
static int wait_interval(struct top *t, const struct global *global, bool *ret_leave)
{
	int64_t end = now_ms() + (int64_t)((double)t->interval * 1000), left;

	while ((left = end - now_ms()) > 0) {
		struct pollfd p[] = {
			{.fd = t->session.signal_fd, .events = POLLIN},
			{.fd = t->screen ? STDIN_FILENO : -1, .events = POLLIN},
		};

		/* A signal may be that of another size, which screen_key() tells. */
		if (poll(p, 2, (int)left) < 0)
			p[0].revents = p[1].revents = 0;
		if (p[0].revents & POLLIN || p[1].revents & (POLLHUP | POLLERR))
			return STATUS_INTERRUPTED;
		*ret_leave = t->screen && take_keys(t, global);
		if (*ret_leave)
			return STATUS_OK;
	}
	return STATUS_OK;
}

/* A person sees something at once: what has been since the daemon began. */
static int watch(struct top *t, const struct global *global)
{
	bool leave = false;
	uint32_t shown = 0;
	int r;

	r = take_look(t);
	if (r == STATUS_OK && t->screen)
		r = show(t, global);
	while (r == STATUS_OK && (!(t->set & SET_COUNT) || shown < t->count)) {
		r = wait_interval(t, global, &leave);
		if (r != STATUS_OK || leave)
			break;
		r = take_look(t);
		if (r == STATUS_OK)
			r = show(t, global);
		shown++;
	}
	return r;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct top *t = data;
	int r;

	if (n_args > 0)
		return say(STATUS_USAGE, "top: unexpected argument '%s'", args[0]);
	if (!(t->set & SET_INTERVAL))
		t->interval = INTERVAL_DEFAULT;
	if (t->interval < INTERVAL_MIN || t->interval > INTERVAL_MAX)
		return say(STATUS_USAGE, "--interval: got %g, want %g to %g", (double)t->interval,
			   (double)INTERVAL_MIN, (double)INTERVAL_MAX);
	r = t->all ? session_open_admin(&t->session, global) : session_open(&t->session, global);
	if (r != 0)
		return r;
	/* A terminal that cannot be drawn on gets lines. */
	if (!global->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))
		screen_new(&t->screen);
	r = watch(t, global);
	t->screen = screen_free(t->screen);
	look_done(&t->before);
	look_done(&t->now);
	requests_done(&t->requests);
	free(t->rates);
	session_close(&t->session);
	return r;
}

const struct verb verb_top = {
	.name = "top",
	.arguments = "",
	.summary = "Watch the daemon at work",
	.details =
		"On a terminal a screen that is drawn anew each second; q leaves. Else a line for each model and\n"
		"interval, or with --json an object for each interval.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct top),
	.run = run,
};
