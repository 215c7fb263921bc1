/* SPDX-License-Identifier: Apache-2.0 */
/* batch: a file of requests, many at once on one connection, one line of answer each.
 *
 * Requests are read as there is room for them, and there is room for a window of them: those under way, and those that
 * are done while an earlier one is not, whose answers wait for their turn. So a file may be of any length. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "batch_request.h"
#include "output.h"
#include "sampling.h"
#include "session.h"
#include "verbs.h"

#define PARALLEL_DEFAULT 16
#define PARALLEL_MAX     1024
#define WINDOW           4 /* answers that wait for an earlier one, in multiples of what is under way */
#define BAR_CELLS        30
#define BAR_EVERY_MS     100

enum job_state { JOB_NONE, JOB_READY, JOB_RUNNING, JOB_DONE };

struct job {
	enum job_state state;
	uint64_t number; /* of its line, from 0, empty lines not counted */
	struct batch_request b;
	struct dsc_stream *stream;
	struct dsc_result *result;
	bool failed;
	enum dsc_code code; /* failed: why */
	uint32_t retry_after_ms;
	char *why;
};

struct batch {
	struct dsc_request request; /* defaults */
	uint32_t parallel;
	uint64_t set;
	bool unordered;
	struct arg_list stop;

	struct session session;
	FILE *file;
	char *line; /* of getline() */
	size_t line_bytes;
	bool ended, lost;
	struct json_object
		*ids; /* that requests so far have, as JSON has them, and their numbers */

	struct job *jobs;
	size_t n_jobs, n_running;
	uint64_t next_number, next_printed; /* of jobs */
	uint64_t n_done, n_failed, n_tokens;

	bool bar;
	uint64_t n_lines; /* of the file; 0: not known */
	int64_t began_ms, drawn_ms;
};

static const struct arg_option options[] = {
	{"--parallel", "N", "requests under way at once; default: 16", ARG_U32,
	 .offset = offsetof(struct batch, parallel), .set_offset = offsetof(struct batch, set),
	 .bits = 1},
	{"--unordered", NULL, "print each answer when it is there; default: in the file's order",
	 ARG_FLAG, .offset = offsetof(struct batch, unordered)},
	{"--model", "NAME", "where a line does not say; default: the first one", ARG_STRING,
	 .offset = offsetof(struct batch, request.model)},
	SAMPLING_OPTIONS(struct batch, request),
	SAMPLING_STOP(struct batch, stop),
};

/* ---------------------------------------------------------------- the bar */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void draw_bar(struct batch *t, bool last)
{
	static const char full[] = "##############################";
	int64_t now = now_ms();
	int cells = t->n_lines ? (int)(t->n_done * BAR_CELLS / t->n_lines) : 0;

	if (!t->bar || (!last && now - t->drawn_ms < BAR_EVERY_MS))
		return;
	t->drawn_ms = now;
	fputs("\r\033[K", stderr);
	if (t->n_lines)
		fprintf(stderr, "[%-*.*s] %" PRIu64 "/%" PRIu64, BAR_CELLS,
			cells < BAR_CELLS ? cells : BAR_CELLS, full, t->n_done, t->n_lines);
	else
		fprintf(stderr, "%" PRIu64 " done", t->n_done);
	fprintf(stderr, ", %" PRIu64 " failed, %.0f tokens/s", t->n_failed,
		(double)t->n_tokens * 1e3 / (double)(now - t->began_ms + 1));
	if (last)
		fputc('\n', stderr);
	fflush(stderr);
}

/* A line may be printed to the same terminal: the bar is out of its way, and drawn anew behind it. */
static void clear_bar(struct batch *t)
{
	if (!t->bar || !isatty(STDOUT_FILENO))
		return;
	fputs("\r\033[K", stderr);
	t->drawn_ms = 0;
}

/* Lines with something on them, if the file can be read twice. */
static uint64_t count_lines(FILE *f)
{
	struct stat st;
	uint64_t n = 0;
	bool something = false;
	int c;

	if (fstat(fileno(f), &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	while ((c = getc(f)) != EOF) {
		if (c == '\n')
			something = false;
		else if (!something && !strchr(" \t\r", c))
			n += something = true;
	}
	rewind(f);
	return n;
}

/* ---------------------------------------------------------------- one job */

static void job_done(struct job *j)
{
	dsc_stream_free(j->stream);
	dsc_result_free(j->result);
	batch_request_done(&j->b);
	free(j->why);
	*j = (struct job){};
}

static void job_fail(struct job *j, enum dsc_code code, const char *why)
{
	j->failed = true;
	j->code = code;
	free(j->why);
	j->why = strdup(why);
}

/* Why, and beside it what had come. */
static struct json_object *job_error(const struct job *j)
{
	struct json_object *o = json_object_new_object(), *error = json_object_new_object();
	const char *why = j->why ? j->why : "out of memory";

	json_add(error, "code", json_object_new_string(dsc_code_name(j->code)));
	json_add(error, "message", json_text(why, strlen(why)));
	if (j->retry_after_ms)
		json_add(error, "retry_after_ms", json_object_new_int64(j->retry_after_ms));
	json_add(o, "error", error);
	if (j->result && j->result->n_choices > 0)
		json_add_choices(o, j->result, j->b.request.set & DSC_SET_LOGPROBS);
	return o;
}

/* Prints an answer and makes room. Return: 0, or an exit status. */
static int job_print(struct batch *t, struct job *j)
{
	struct json_object *o = json_object_new_object(), *body;
	int r;

	body = j->failed ? job_error(j)
			 : json_answer(j->result, j->b.request.set & DSC_SET_LOGPROBS);
	json_add(o, "id", j->b.id ? json_object_get(j->b.id) : json_object_new_uint64(j->number));
	json_add(o, "index", json_object_new_uint64(j->number));
	json_object_object_foreach(body, key, value)
	{
		json_add(o, key, json_object_get(value));
	}
	json_object_put(body);
	clear_bar(t);
	r = out_json(o);
	if (r == STATUS_OK && fflush(stdout) != 0)
		r = STATUS_FAILED; /* the end of the program says why */
	job_done(j);
	return r;
}

static void job_end(struct batch *t, struct job *j)
{
	if (j->state == JOB_RUNNING)
		t->n_running--;
	if (!j->failed && (!j->result || j->result->n_choices == 0))
		job_fail(j, DSC_CODE_INTERNAL, "the daemon ended the request without an answer");
	dsc_stream_free(j->stream);
	j->stream = NULL;
	j->state = JOB_DONE;
	t->n_done++;
	t->n_failed += j->failed;
}

/* Takes what has come for a job. */
static void job_take(struct batch *t, struct job *j)
{
	const struct dsc_event *e;
	int r;

	while ((r = dsc_next(j->stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR) {
			job_fail(j, e->code, e->message);
			j->retry_after_ms = e->retry_after_ms;
		} else if (dsc_result_add(j->result, e) < 0) {
			job_fail(j, DSC_CODE_NONE, "out of memory");
			r = 0;
			break;
		}
		if (e->type == DSC_EVENT_TEXT)
			t->n_tokens += e->n_ids;
	}
	if (r == 0)
		job_end(t, j);
}

/* Sends a job that is ready; it stays so if too much waits to be sent. */
static void job_start(struct batch *t, struct job *j)
{
	int r;

	if (!j->result)
		j->result = dsc_result_new();
	if (!j->result) {
		job_fail(j, DSC_CODE_NONE, "out of memory");
		job_end(t, j);
		return;
	}
	r = dsc_generate(t->session.c, &j->b.request, &j->stream);
	if (r == -EAGAIN)
		return;
	if (r < 0) {
		job_fail(j, dsc_code(t->session.c), dsc_error(t->session.c));
		job_end(t, j);
		return;
	}
	j->state = JOB_RUNNING;
	t->n_running++;
}

/* ---------------------------------------------------------------- the file */

/* The next line with something on it. Return: 1, 0: the end, or an exit status below 0 after a sentence. */
static int next_line(struct batch *t, size_t *ret_n)
{
	ssize_t n;

	do {
		errno = 0;
		n = getline(&t->line, &t->line_bytes, t->file);
		if (n < 0) {
			t->ended = true;
			if (ferror(t->file) || errno == ENOMEM)
				return -say(STATUS_FAILED, "reading the file of requests: %s",
					    strerror(errno));
			return 0;
		}
		while (n > 0 && strchr(" \t\r\n", t->line[n - 1]))
			n--;
	} while (n == 0);
	*ret_n = (size_t)n;
	return 1;
}

/* Answers are told apart by the ids that their requests were given. */
static int note_id(struct batch *t, const struct job *j, char why[static BATCH_WHY_BYTES])
{
	struct json_object *first = NULL, *number;
	const char *id;

	if (!j->b.id)
		return 0;
	number = json_object_new_uint64(j->number);
	id = json_object_to_json_string(j->b.id);
	if (id && json_object_object_get_ex(t->ids, id, &first)) {
		snprintf(why, BATCH_WHY_BYTES,
			 "id %.80s is that of request %" PRIu64 " of the file: want each once", id,
			 json_object_get_uint64(first));
		json_object_put(number);
		return -EINVAL;
	}
	if (id && json_object_object_add(t->ids, id, number) == 0)
		return 0;
	json_object_put(number);
	snprintf(why, BATCH_WHY_BYTES, "out of memory");
	return -ENOMEM;
}

/* Reads a line into a free job. Return: 1, 0: the end, or an exit status below 0. */
static int read_job(struct batch *t, struct job *j)
{
	char why[BATCH_WHY_BYTES];
	size_t n = 0;
	int r = next_line(t, &n);

	if (r <= 0)
		return r;
	j->number = t->next_number++;
	j->state = JOB_READY;
	r = batch_request_init(&j->b, &t->request, t->line, n, why);
	if (r == 0)
		r = note_id(t, j, why);
	if (r < 0) {
		job_fail(j, DSC_CODE_INVALID_ARGUMENT, why);
		job_end(t, j);
	}
	return 1;
}

/* Starts what there is room for. Return: 0, or an exit status. */
static int start_jobs(struct batch *t)
{
	for (size_t i = 0; i < t->n_jobs && t->n_running < t->parallel; i++) {
		struct job *j = &t->jobs[i];

		if (j->state == JOB_NONE && !t->ended && !t->lost) {
			int r = read_job(t, j);

			if (r < 0)
				return -r;
		}
		if (j->state == JOB_READY)
			job_start(t, j);
	}
	return STATUS_OK;
}

/* Prints what may be printed. Return: how many, or an exit status below 0. */
static int print_jobs(struct batch *t)
{
	bool again;
	int n = 0;

	do {
		again = false;
		for (size_t i = 0; i < t->n_jobs; i++) {
			struct job *j = &t->jobs[i];

			if (j->state != JOB_DONE || (!t->unordered && j->number != t->next_printed))
				continue;
			t->next_printed++;
			if (job_print(t, j) != STATUS_OK)
				return -STATUS_FAILED;
			n++;
			again = true;
		}
	} while (again);
	return n;
}

/* ---------------------------------------------------------------- all of them */

/* Return: 0, or an exit status. */
static int wait_for_more(struct batch *t)
{
	struct pollfd p[] = {
		{.fd = dsc_fd(t->session.c), .events = (short)dsc_events(t->session.c)},
		{.fd = t->session.signal_fd, .events = POLLIN},
	};
	int ms = dsc_timeout(t->session.c);

	if (t->bar && (ms < 0 || ms > BAR_EVERY_MS))
		ms = BAR_EVERY_MS;
	if (poll(p, 2, ms) < 0)
		return errno == EINTR
			       ? STATUS_OK
			       : say(STATUS_FAILED, "waiting for the daemon: %s", strerror(errno));
	if (p[1].revents)
		return STATUS_INTERRUPTED; /* closing the connection cancels what is under way */
	t->lost = dsc_process(t->session.c) < 0;
	for (size_t i = 0; i < t->n_jobs; i++)
		if (t->jobs[i].state == JOB_RUNNING)
			job_take(t, &t->jobs[i]);
	return STATUS_OK;
}

static int run_all(struct batch *t)
{
	int r, printed;

	for (;;) {
		r = start_jobs(t);
		if (r != STATUS_OK)
			return r;
		printed = print_jobs(t);
		if (printed < 0)
			return -printed;
		draw_bar(t, false);
		if (printed > 0)
			continue; /* there is room for more */
		if ((t->ended || t->lost) && t->next_printed == t->next_number)
			break;
		r = wait_for_more(t);
		if (r != STATUS_OK)
			return r;
	}
	if (t->lost && !t->ended)
		return say(STATUS_FAILED,
			   "the connection was lost: what follows request %" PRIu64
			   " of the file was not run",
			   t->next_number);
	return t->n_failed > 0 ? STATUS_FAILED : STATUS_OK;
}

static int open_batch(struct batch *t, const struct global *global, const char *path)
{
	int r;

	t->file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
	if (!t->file)
		return say(STATUS_FAILED, "%s: %s", path, strerror(errno));
	t->n_jobs = (size_t)WINDOW * t->parallel;
	t->jobs = calloc(t->n_jobs, sizeof(*t->jobs));
	t->ids = json_object_new_object();
	if (!t->jobs || !t->ids)
		return say(STATUS_FAILED, "out of memory");
	r = session_open(&t->session, global);
	if (r != 0)
		return r;
	t->bar = isatty(STDERR_FILENO);
	if (t->bar)
		t->n_lines = count_lines(t->file);
	t->began_ms = now_ms();
	r = run_all(t);
	draw_bar(t, true);
	return r;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct batch *t = data;
	int r;

	if (n_args != 1)
		return say(STATUS_USAGE, "batch: got %zu files, want one, or - for standard input",
			   n_args);
	if (!t->set)
		t->parallel = PARALLEL_DEFAULT;
	if (t->parallel < 1 || t->parallel > PARALLEL_MAX)
		return say(STATUS_USAGE, "--parallel: got %u, want 1 to %u", t->parallel,
			   PARALLEL_MAX);
	t->request.size = sizeof(t->request);
	r = sampling_set_stop(&t->request, &t->stop);
	if (r != 0)
		return r;
	t->session.signal_fd = -EBADF;
	r = open_batch(t, global, args[0]);
	for (size_t i = 0; t->jobs && i < t->n_jobs; i++)
		job_done(&t->jobs[i]);
	free(t->jobs);
	free(t->line);
	free((void *)t->request.stop);
	json_object_put(t->ids);
	if (t->file && t->file != stdin)
		fclose(t->file);
	session_close(&t->session);
	return r;
}

const struct verb verb_batch = {
	.name = "batch",
	.arguments = "FILE",
	.summary = "Run a file of requests",
	.details =
		"Each line of FILE, or of standard input for -, is a JSON object: one of \"prompt\", \"messages\" and\n"
		"\"ids\", an \"id\" if wanted, and the options of generate with _ for -. Each gives one line of JSON\n"
		"with its id, which is its index where the line has none, and its index, the request's number in\n"
		"FILE, from 0.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct batch),
	.run = run,
};
