/* SPDX-License-Identifier: Apache-2.0 */
/* What the broker costs, each figure beside what this machine can do, measured in the same run.
 *
 *   bench-broker DSD BENCH_WORKER [MODEL_DIR [ROUNDS]]
 *
 * 1. CPU time of dsd (user and system, all threads; the worker is another process and not counted) for a
 *    step of 64 sequences on the fake worker, which takes 0.2 ms for it: 64 streams on one connection, and
 *    64 connections of one stream. Beside it: what a bare process spends on as many send(2) of as many
 *    bytes to as many AF_UNIX stream sockets, whose readers sleep in epoll. The best of ROUNDS.
 * 2. From the worker's result to the client's read, one stream, a token every 2 ms. Beside it: the round
 *    trip of a message of the same size between two processes over AF_UNIX every 2 ms, which has as many
 *    wake-ups. dsd, and the echo, are pinned to the first CPU; worker, client and the asking end to the
 *    second. Medians, of the best round.
 * 3. Tokens/s of 1, 8 and 64 clients on a model (the starter model), nothing pinned. Beside it: what the
 *    worker alone would do, tokens over the time that it spent on steps. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dsclient.h"
#include "stamp.h"

#define N_STREAMS   64u
#define N_STEPS     1000u /* of a measurement */
#define N_WARM      50u   /* tokens of every stream before it begins */
#define STEP_USEC   "200"
#define N_PINGS     1000u
#define PING_USEC   2000u
#define FRAME_BYTES 24u /* about what a token's frame has */

struct bench {
	char dir[64], socket[96];
	const char *dsd, *worker;
	int cpu[2];
	pid_t pid;
};

struct client {
	struct dsc *c;
	struct dsc_stream *streams[N_STREAMS];
	uint32_t n_streams;
};

static void die(const char *what)
{
	fprintf(stderr, "bench-broker: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void pin(pid_t pid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(pid, sizeof(set), &set) < 0)
		die("sched_setaffinity");
}

static void unpin(const struct bench *b)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(b->cpu[0], &set);
	CPU_SET(b->cpu[1], &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static double cpu_usec(pid_t pid)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) < 0)
		die("CPU clock");
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static double wall_usec(void)
{
	return (double)stamp_now_nsec() / 1000;
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double median(double *x, uint32_t n)
{
	qsort(x, n, sizeof(*x), compare);
	return x[n / 2];
}

static void nap(uint64_t usec)
{
	nanosleep(&(struct timespec){.tv_sec = (time_t)(usec / 1000000),
				     .tv_nsec = (long)(usec % 1000000) * 1000},
		  NULL);
}

/* ---- a daemon ---- */

static void daemon_start(struct bench *b, const char *model, const char *step_usec)
{
	char state[96];

	snprintf(state, sizeof(state), "%s/state", b->dir);
	b->pid = fork();
	if (b->pid < 0)
		die("fork");
	if (b->pid == 0) {
		const char *args[20] = {b->dsd,     "--config", "/dev/null",
					"--socket", b->socket,  "--state",
					state,      "--set",    "sched.slots=64"};
		int n = 9;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (model) {
			args[n++] = "--model";
			args[n++] = model;
		} else {
			pin(0, b->cpu[0]);
			args[n++] = "--fake-worker";
			setenv("DSD_WORKER", b->worker, 1);
			setenv("DSD_FAKE_STEP_USEC", step_usec, 1);
		}
		execv(b->dsd, (char *const *)args);
		die(b->dsd);
	}
}

static void daemon_stop(struct bench *b)
{
	kill(b->pid, SIGTERM);
	waitpid(b->pid, NULL, 0);
}

static struct dsc *connect_to(struct bench *b)
{
	struct dsc *c;

	for (unsigned i = 0; i < 3000; i++) {
		if (dsc_connect(&c, b->socket, 0) == 0)
			return c;
		nap(10000);
	}
	die("no daemon");
	return NULL;
}

static struct dsc_model_stats stats_of(struct dsc *c)
{
	struct dsc_model_stats ret = {};
	const struct dsc_event *e;
	struct dsc_stream *s;

	if (dsc_stats(c, &s) < 0)
		die(dsc_error(c));
	while (dsc_wait(s, &e, -1) > 0)
		if (e->type == DSC_EVENT_STATS && e->stats->n_models)
			ret = *e->stats->models[0];
	dsc_stream_free(s);
	return ret;
}

static void generate(struct client *k, const char *prompt, uint32_t max_tokens, bool logprobs)
{
	struct dsc_request r = DSC_REQUEST_INIT;

	r.set = DSC_SET_MAX_TOKENS | DSC_SET_TEMPERATURE | DSC_SET_IGNORE_EOS |
		(logprobs ? DSC_SET_LOGPROBS : 0);
	r.text = prompt;
	r.text_bytes = strlen(prompt);
	r.max_tokens = max_tokens;
	if (dsc_generate(k->c, &r, &k->streams[k->n_streams]) < 0)
		die(dsc_error(k->c));
	k->n_streams++;
}

/* Connections and the streams on each, the first token of all of them awaited: no prompt is computed any
 * more, and the worker is the one that will be measured. */
static struct client *clients_start(struct bench *b, uint32_t n_clients, uint32_t n_streams,
				    uint32_t max_tokens)
{
	struct client *k = calloc(n_clients, sizeof(*k));
	const struct dsc_event *e;

	if (!k)
		die("memory");
	for (uint32_t i = 0; i < n_clients; i++) {
		k[i].c = connect_to(b);
		for (uint32_t s = 0; s < n_streams; s++)
			generate(&k[i], "Once upon a time", max_tokens, false);
	}
	for (uint32_t i = 0; i < n_clients; i++)
		for (uint32_t s = 0; s < n_streams; s++)
			do {
				if (dsc_wait(k[i].streams[s], &e, 60000) <= 0)
					die("no first token");
			} while (e->type != DSC_EVENT_TEXT);
	return k;
}

static void clients_free(struct client *k, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		dsc_close(k[i].c);
	free(k);
}

/* Take what comes until @n_tokens tokens came, or all streams ended. Return: tokens. */
static uint64_t clients_read(struct client *k, uint32_t n_clients, uint64_t n_tokens)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	uint64_t n = 0;
	uint32_t open = 0;

	for (uint32_t i = 0; i < n_clients; i++) {
		struct epoll_event ev = {.events = EPOLLIN, .data.u32 = i};

		if (epoll_ctl(ep, EPOLL_CTL_ADD, dsc_fd(k[i].c), &ev) < 0)
			die("epoll");
		open += k[i].n_streams;
	}
	while (n < n_tokens && open > 0) {
		struct epoll_event ev[N_STREAMS];
		int m = epoll_wait(ep, ev, N_STREAMS, 30000);

		if (m <= 0)
			die("no more tokens");
		for (int j = 0; j < m; j++) {
			struct client *one = &k[ev[j].data.u32];
			const struct dsc_event *e;

			if (dsc_process(one->c) < 0)
				die(dsc_error(one->c));
			for (uint32_t s = 0; s < one->n_streams; s++)
				while (dsc_next(one->streams[s], &e) > 0) {
					n += e->type == DSC_EVENT_TEXT ? e->n_ids : 0;
					open -= e->type == DSC_EVENT_DONE ||
						e->type == DSC_EVENT_ERROR;
				}
		}
	}
	close(ep);
	return n;
}

/* ---- 1. CPU time of a step ---- */

static double measure_step(struct bench *b, uint32_t n_clients)
{
	struct dsc_model_stats before, after;
	struct client *k;
	struct dsc *c;
	double usec;

	daemon_start(b, NULL, STEP_USEC);
	c = connect_to(b);
	k = clients_start(b, n_clients, N_STREAMS / n_clients, 8000);
	pin((pid_t)stats_of(c).worker_pid, b->cpu[1]);
	clients_read(k, n_clients, N_WARM * N_STREAMS);
	before = stats_of(c);
	usec = cpu_usec(b->pid);
	clients_read(k, n_clients, N_STEPS * N_STREAMS);
	usec = cpu_usec(b->pid) - usec;
	after = stats_of(c);
	if (after.rows - before.rows != N_STREAMS * (after.steps - before.steps))
		die("steps were not of 64 rows");
	clients_free(k, n_clients);
	dsc_close(c);
	daemon_stop(b);
	return usec / (double)(after.steps - before.steps);
}

static void read_until_end(const int *fds, uint32_t n)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	char data[4096];
	uint32_t open = n;

	for (uint32_t i = 0; i < n; i++) {
		struct epoll_event ev = {.events = EPOLLIN, .data.fd = fds[i]};

		epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &ev);
	}
	while (open > 0) {
		struct epoll_event ev[N_STREAMS];
		int m = epoll_wait(ep, ev, N_STREAMS, -1);

		for (int j = 0; j < m; j++)
			if (read(ev[j].data.fd, data, sizeof(data)) <= 0) {
				close(ev[j].data.fd);
				open--;
			}
	}
	_exit(0);
}

/* As many bytes to as many sockets in each step, and nothing else. */
static double measure_bare_sends(struct bench *b, uint32_t n)
{
	int ours[N_STREAMS], theirs[N_STREAMS];
	char data[FRAME_BYTES * N_STREAMS] = {};
	size_t bytes = FRAME_BYTES * N_STREAMS / n;
	double usec = 0;
	pid_t pid;

	for (uint32_t i = 0; i < n; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
			die("socketpair");
		ours[i] = pair[0];
		theirs[i] = pair[1];
	}
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (uint32_t i = 0; i < n; i++)
			close(ours[i]);
		pin(0, b->cpu[1]);
		read_until_end(theirs, n);
	}
	for (uint32_t i = 0; i < n; i++)
		close(theirs[i]);
	pin(0, b->cpu[0]);
	for (uint32_t step = 0; step < N_WARM + N_STEPS; step++) {
		double begin;

		nap(200);
		begin = cpu_usec(getpid());
		for (uint32_t i = 0; i < n; i++)
			if (send(ours[i], data, bytes, MSG_NOSIGNAL) < 0)
				die("send");
		usec += step < N_WARM ? 0 : cpu_usec(getpid()) - begin;
	}
	for (uint32_t i = 0; i < n; i++)
		close(ours[i]);
	waitpid(pid, NULL, 0);
	pin(0, b->cpu[1]);
	return usec / N_STEPS;
}

/* ---- 2. from the result to the client ---- */

static double measure_delivery(struct bench *b)
{
	struct client k = {};
	double usec[N_PINGS];
	const struct dsc_event *e;
	uint32_t n = 0;
	char step[16];

	snprintf(step, sizeof(step), "%u", PING_USEC);
	daemon_start(b, NULL, step);
	k.c = connect_to(b);
	generate(&k, "Once upon a time", N_WARM + N_PINGS, true);
	while (dsc_wait(k.streams[0], &e, 30000) > 0) {
		if (e->type == DSC_EVENT_STARTED)
			pin((pid_t)stats_of(k.c).worker_pid, b->cpu[1]);
		for (size_t i = 0; e->type == DSC_EVENT_TEXT && i < e->n_tokens; i++, n++)
			if (n >= N_WARM)
				usec[n - N_WARM] =
					stamp_age_usec(e->tokens[i].logprob, stamp_now_nsec());
	}
	dsc_close(k.c);
	daemon_stop(b);
	if (n != N_WARM + N_PINGS)
		die("a stream ended early");
	return median(usec, N_PINGS);
}

static double measure_ping(struct bench *b)
{
	double usec[N_PINGS];
	char data[FRAME_BYTES + 8] = {};
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		die("socketpair");
	pid = fork();
	if (pid == 0) {
		ssize_t n;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		pin(0, b->cpu[0]);
		while ((n = read(pair[1], data, sizeof(data))) > 0)
			if (write(pair[1], data, (size_t)n) != n)
				break;
		_exit(0);
	}
	close(pair[1]);
	for (uint32_t i = 0; i < N_WARM + N_PINGS; i++) {
		uint64_t begin;

		nap(PING_USEC);
		begin = stamp_now_nsec();
		if (write(pair[0], data, sizeof(data)) < 0 || read(pair[0], data, sizeof(data)) < 0)
			die("ping");
		if (i >= N_WARM)
			usec[i - N_WARM] = (double)(stamp_now_nsec() - begin) / 1000;
	}
	close(pair[0]);
	waitpid(pid, NULL, 0);
	return median(usec, N_PINGS);
}

/* ---- 3. tokens/s ---- */

static void measure_model(struct bench *b, const char *model, unsigned rounds)
{
	static const uint32_t n_clients[] = {1, 8, 64};
	static const uint32_t n_tokens[] = {400, 200, 100};
	struct dsc *c;

	unpin(b);
	daemon_start(b, model, NULL);
	c = connect_to(b);
	for (unsigned i = 0; i < 3; i++) {
		double best = 0, alone = 0;

		for (unsigned round = 0; round < rounds; round++) {
			struct client *k = clients_start(b, n_clients[i], 1, n_tokens[i]);
			struct dsc_model_stats before = stats_of(c), after;
			double usec = wall_usec(), n;

			n = (double)clients_read(k, n_clients[i], UINT64_MAX);
			usec = wall_usec() - usec;
			after = stats_of(c);
			if (n / usec * 1e6 > best) {
				best = n / usec * 1e6;
				alone = n / (double)(after.worker_usec - before.worker_usec) * 1e6;
			}
			clients_free(k, n_clients[i]);
		}
		printf("%2u clients            %9.0f tokens/s  worker alone %9.0f tokens/s  %5.2f\n",
		       n_clients[i], best, alone, best / alone);
	}
	dsc_close(c);
	daemon_stop(b);
}

static void print_ratio(const char *name, double value, const char *limit_name, double limit)
{
	printf("%-22s %7.1f us  %s %7.1f us  %5.2f\n", name, value, limit_name, limit,
	       value / limit);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct bench b = {.dsd = argc > 2 ? argv[1] : NULL, .worker = argc > 2 ? argv[2] : NULL};
	unsigned rounds = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 5;
	double best[6] = {1e9, 1e9, 1e9, 1e9, 1e9, 1e9}, ratio = 1e9;
	cpu_set_t set;
	int n_cpus = 0;

	if (!b.worker || rounds == 0) {
		fputs("bench-broker DSD BENCH_WORKER [MODEL_DIR [ROUNDS]]\n", stderr);
		return 2;
	}
	sched_getaffinity(0, sizeof(set), &set);
	for (int i = 0; i < CPU_SETSIZE && n_cpus < 2; i++)
		if (CPU_ISSET(i, &set))
			b.cpu[n_cpus++] = i;
	if (n_cpus < 2) {
		fputs("bench-broker: want two CPUs\n", stderr);
		return 77;
	}
	snprintf(b.dir, sizeof(b.dir), "/tmp/bench-broker-XXXXXX");
	if (!mkdtemp(b.dir))
		die("mkdtemp");
	snprintf(b.socket, sizeof(b.socket), "%s/dsd.sock", b.dir);
	pin(0, b.cpu[1]);
	for (unsigned i = 0; i < rounds; i++) {
		double round[6] = {measure_step(&b, 1),         measure_bare_sends(&b, 1),
				   measure_step(&b, N_STREAMS), measure_bare_sends(&b, N_STREAMS),
				   measure_delivery(&b),        measure_ping(&b)};

		for (unsigned k = 0; k < 4; k++)
			best[k] = round[k] < best[k] ? round[k] : best[k];
		if (round[4] / round[5] < ratio) {
			ratio = round[4] / round[5];
			best[4] = round[4];
			best[5] = round[5];
		}
	}
	print_ratio("step, 1 connection", best[0], "bare send ", best[1]);
	print_ratio("step, 64 connections", best[2], "bare sends", best[3]);
	print_ratio("result to read", best[4], "ping-pong ", best[5]);
	if (argc > 3 && argv[3][0])
		measure_model(&b, argv[3], rounds);
	fflush(stdout);
	execlp("rm", "rm", "-rf", b.dir, NULL);
	return 1;
}
