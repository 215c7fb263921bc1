/* SPDX-License-Identifier: Apache-2.0 */
/* ping: is there a daemon, and can a model generate? With --wait: until it can. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <dsclient.h>

#include "output.h"
#include "verbs.h"

#define POLL_MS   100  /* between looks at a daemon that is starting or loading */
#define ANSWER_MS 5000 /* without --wait: a daemon that is there answers at once */
#define LEAST_MS  500  /* for the last look of --wait, which would find nobody in no time */

struct ping {
	struct arg_wait wait;
};

static const struct arg_option options[] = {
	{"--wait", "SECONDS", "until a model can generate; without SECONDS as long as it takes",
	 ARG_WAIT, .offset = offsetof(struct ping, wait)},
};

/* What one look found. */
struct look {
	int error; /* negative errno: the daemon could not be asked */
	enum dsc_state state;
	char version[65];
	char why[600]; /* DEGRADED or error: a sentence; LOADING: how far */
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The best state of any model, and what there is to say about it. */
static void look_at_models(struct look *look, const struct dsc_event *e)
{
	look->state = DSC_STATE_DEGRADED;
	snprintf(look->why, sizeof(look->why), "the daemon has no model");
	for (size_t i = 0; i < e->n_models; i++) {
		const struct dsc_model *m = e->models[i];

		if (m->state == DSC_STATE_READY) {
			look->state = DSC_STATE_READY;
			return;
		}
		if (m->state == DSC_STATE_LOADING) {
			look->state = DSC_STATE_LOADING;
			snprintf(look->why, sizeof(look->why), "%s: loading, %.0f%%%s%s", m->name,
				 (double)m->progress * 100, m->stage && *m->stage ? ", " : "",
				 m->stage ? m->stage : "");
		} else if (look->state == DSC_STATE_DEGRADED) {
			snprintf(look->why, sizeof(look->why), "%s: %s", m->name,
				 m->reason && *m->reason ? m->reason : "degraded");
		}
	}
}

/* Asks Models until the answer or the time is there. */
static int ask_models(struct dsc *c, struct look *look, int timeout_ms)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	int r = dsc_models(c, &stream);

	while (r >= 0 && (r = dsc_wait(stream, &e, timeout_ms)) > 0) {
		if (e->type == DSC_EVENT_MODELS)
			look_at_models(look, e);
		if (e->type == DSC_EVENT_ERROR)
			r = e->error;
	}
	dsc_stream_free(stream);
	return r;
}

/* Connects, greets, and unless the daemon is ready asks how its models are. */
static void take_look(struct look *look, const char *path, int timeout_ms)
{
	struct dsc *c = NULL;
	int r;

	*look = (struct look){};
	r = dsc_connect(&c, path, DSC_NO_RESUME);
	if (r == 0)
		r = dsc_ping(c, timeout_ms);
	if (r == 0) {
		look->state = dsc_server_state(c);
		snprintf(look->version, sizeof(look->version), "%s", dsc_version(c));
		if (look->state != DSC_STATE_READY)
			r = ask_models(c, look, timeout_ms);
	}
	look->error = r < 0 ? r : 0;
	if (r < 0)
		snprintf(look->why, sizeof(look->why), "%s",
			 c && *dsc_error(c) ? dsc_error(c) : strerror(-r));
	dsc_close(c);
}

static int print(const struct global *global, const struct look *look)
{
	struct json_object *o;

	if (global->json) {
		o = json_object_new_object();
		json_add(o, "state", json_object_new_string(state_text(look->state)));
		json_add(o, "version", json_text(look->version, strlen(look->version)));
		return out_json(o);
	}
	printf("%s %s\n", state_text(look->state), look->version);
	return STATUS_OK;
}

/* Why it is not ready, as an exit status. */
static int complain(const struct global *global, const struct look *look)
{
	if (look->error < 0)
		return say(STATUS_CONNECT, "cannot connect to %s: %s",
			   dsc_socket_path(global->socket), look->why);
	return say(STATUS_MODEL, "%s: %s", state_text(look->state), look->why);
}

/* Is this what a daemon looks like that is about to come or to come back? */
static bool may_come(int error)
{
	return error == -ENOENT || error == -ECONNREFUSED || error == -ECONNRESET ||
	       error == -EPIPE || error == -EAGAIN || error == -ETIMEDOUT || error == -EINTR;
}

/* One line that is written over, for people only. */
static void progress(const struct global *global, const struct look *look)
{
	if (global->json || !isatty(STDERR_FILENO))
		return;
	fprintf(stderr, "\r\033[K%s", look->error < 0 ? "waiting for the daemon" : look->why);
	fflush(stderr);
}

static void progress_end(const struct global *global)
{
	if (!global->json && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct ping *ping = data;
	int64_t end = INT64_MAX, left;
	struct look look;

	if (n_args > 0)
		return say(STATUS_USAGE, "ping: unexpected argument '%s'", args[0]);
	if (!ping->wait.given) {
		take_look(&look, global->socket, ANSWER_MS);
		if (look.error < 0)
			return complain(global, &look);
		print(global, &look);
		return look.state == DSC_STATE_READY ? STATUS_OK : complain(global, &look);
	}
	if (ping->wait.has_seconds)
		end = now_ms() + (int64_t)ceil(ping->wait.seconds * 1000);
	for (;;) {
		struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};

		left = end - now_ms();
		take_look(&look, global->socket,
			  end == INT64_MAX   ? -1
			  : left > INT32_MAX ? INT32_MAX
			  : left > LEAST_MS  ? (int)left
					     : LEAST_MS);
		if (look.error < 0 ? !may_come(look.error) : look.state != DSC_STATE_LOADING)
			break;
		if (now_ms() >= end)
			break;
		progress(global, &look);
		nanosleep(&pause, NULL);
	}
	progress_end(global);
	if (look.error < 0 || look.state != DSC_STATE_READY)
		return complain(global, &look);
	return print(global, &look);
}

const struct verb verb_ping = {
	.name = "ping",
	.arguments = "",
	.summary = "Ask whether the daemon is there and a model can generate",
	.details =
		"Prints the state (ready, loading, degraded) and the daemon's version; the exit status is 0\n"
		"only if it is ready. With --wait, a daemon that is not there yet or is loading is waited for,\n"
		"and one whose models all failed is not: the exit status is 4 and standard error says why.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct ping),
	.run = run,
};
