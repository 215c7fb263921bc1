/* SPDX-License-Identifier: Apache-2.0 */
/* sim --seed S --days D [--requests-per-day N]: the broker, D simulated days of it. Exit status 0: nothing
 * was broken. The last lines are figures, the rate by this process's time on a CPU; the hash is the same
 * for the same seed and the same code. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "layout/image.h"
#include "sim.h"
#include "text/vocab.h"
#include "worker/engine.h"
#include "worker/fake.h"

#define POOL_PAGES 80u /* of 4,096 bytes: a few prompts, so that pages are short all the time */

static double seconds_of(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct mapping {
	void *p;
	size_t n;
};

static void unmap(void *user)
{
	struct mapping *m = user;

	munmap(m->p, m->n);
	free(m);
}

/* The fake model's vocabulary, as a client's own copy. */
static int learn_vocab(struct sim *s, struct error *err)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	struct mapping *m = calloc(1, sizeof(*m));
	struct engine engine = {};
	struct image_builder b;
	struct image image;
	struct stat st;
	int r;

	if (!m)
		return -ENOMEM;
	r = image_builder_init(&b);
	if (r == 0)
		r = fake_new(&engine, &b, 0, err);
	if (r == 0)
		fd = image_finish(&b, err);
	image_builder_done(&b);
	engine_done(&engine);
	if (r < 0 || fd < 0 || fstat(fd, &st) < 0) {
		free(m);
		return r < 0 ? r : -EBADF;
	}
	m->n = (size_t)st.st_size;
	m->p = mmap(NULL, m->n, PROT_READ, MAP_SHARED, fd, 0);
	if (m->p == MAP_FAILED) {
		free(m);
		return -errno;
	}
	r = image_open(&image, m->p, m->n, err);
	if (r == 0)
		r = vocab_new(&s->vocab, &image, unmap, m, err);
	if (r < 0)
		unmap(m);
	return r;
}

static int configure(struct config *cfg, struct error *err)
{
	char size[64];
	const char *const keys[] = {"sched.slots=12", "sched.step_tokens=96", "worker.context=6144",
				    "sched.queue=60", "conn.max_per_uid=40",  size};
	int r = 0;

	snprintf(size, sizeof(size), "pool.size=%u", POOL_PAGES * 4096);
	config_init(cfg);
	for (size_t i = 0; i < N_ELEMENTS(keys) && r == 0; i++)
		r = config_set(cfg, keys[i], err);
	return r < 0 ? r : config_add_model(cfg, "fake", err);
}

static int simulate(struct sim *s, struct error *err)
{
	struct config cfg;
	int r = configure(&cfg, err);

	if (r < 0)
		return r;
	sim_io_init(s);
	r = server_init(&s->server, &s->io, &cfg, "simulated", true, err);
	if (r == 0)
		r = workers_new(s);
	if (r == 0)
		r = learn_vocab(s, err);
	if (r == 0)
		r = clients_init(s);
	if (r == 0)
		r = server_listen(&s->server, SIM_LISTEN_FD, false, false, err);
	if (r == 0)
		r = server_listen(&s->server, SIM_ADMIN_FD, true, false, err);
	if (r == 0)
		r = server_run(&s->server, err);
	/* The numbers of our sockets are nobody's to close for real. */
	s->server.n_listeners = 0;
	server_done(&s->server);
	workers_free(s);
	clients_done(s);
	pages_free(s);
	vocab_unref(s->vocab);
	sim_io_done(s);
	return r;
}

static void report(const struct sim *s, double days, double seconds, double cpu_seconds)
{
	static const char *const faults[_FAULT_MAX] = {
		[FAULT_CLIENT_DEATH] = "client_death",
		[FAULT_CONNECTION_LOST] = "connection_lost",
		[FAULT_SLOW_READER] = "slow_reader",
		[FAULT_HALF_FRAME] = "half_frame",
		[FAULT_GARBAGE] = "garbage",
		[FAULT_CANCEL] = "cancel",
		[FAULT_DEADLINE] = "deadline",
		[FAULT_WORKER_DEATH] = "worker_death",
		[FAULT_WORKER_DEATH_LOADING] = "worker_death_loading",
		[FAULT_KILLER] = "killer",
		[FAULT_WORKER_SLOW] = "worker_slow",
		[FAULT_WORKER_LIES] = "worker_lies",
		[FAULT_STEP_REFUSED] = "step_refused",
		[FAULT_NO_NUMBERS] = "no_numbers",
		[FAULT_ACCEPT] = "accept_failed",
		[FAULT_NO_MEMORY] = "no_memory",
		[FAULT_POOL_SHORT] = "pool_short",
	};
	static const char *const acts[_ACT_MAX] = {
		[ACT_GENERATE] = "generate",
		[ACT_CHAT] = "chat",
		[ACT_CHOICES] = "choices",
		[ACT_LOGPROBS] = "logprobs",
		[ACT_ECHO] = "echo",
		[ACT_ECHO_LOGPROBS] = "echo_logprobs",
		[ACT_STOP] = "stop",
		[ACT_RESUME] = "resume",
		[ACT_RESUME_CHOICE] = "resume_choice",
		[ACT_REUSE] = "reuse",
		[ACT_REPEAT] = "repeat",
		[ACT_COME_BACK] = "come_back",
		[ACT_SCORE] = "score",
		[ACT_TOKENIZE] = "tokenize",
		[ACT_DETOKENIZE] = "detokenize",
		[ACT_SESSION_OPEN] = "session_open",
		[ACT_SESSION_FORK] = "session_fork",
		[ACT_SESSION_CLOSE] = "session_close",
		[ACT_SESSION_USE] = "session_use",
		[ACT_SESSION_OVER] = "session_over",
		[ACT_DESCRIPTOR] = "descriptor",
		[ACT_LIST] = "list",
		[ACT_STATS] = "stats",
		[ACT_MODELS] = "models",
		[ACT_CANCEL_NUMBER] = "cancel_number",
		[ACT_FORBIDDEN] = "forbidden",
		[ACT_PUBLISH] = "publish",
		[ACT_UNPUBLISH] = "unpublish",
		[ACT_EVICT] = "evict",
		[ACT_RELOAD] = "reload",
		[ACT_DRAIN] = "drain",
		[ACT_UNLOAD] = "unload",
		[ACT_LOAD] = "load",
		[ACT_FIND_SHARED] = "find_shared",
	};
	const struct counts *c = &s->count;

	printf("figure: seed=%llu days=%.3f requests=%llu connections=%llu events=%llu entries=%llu steps=%llu "
	       "tokens=%llu scored=%llu prompt_tokens=%llu cached_tokens=%llu resumed=%llu retried=%llu "
	       "refused=%llu\n",
	       (unsigned long long)s->seed, days, (unsigned long long)c->requests,
	       (unsigned long long)c->connections, (unsigned long long)c->events,
	       (unsigned long long)c->entries, (unsigned long long)c->steps,
	       (unsigned long long)c->tokens, (unsigned long long)c->scored,
	       (unsigned long long)c->prompt, (unsigned long long)c->cached,
	       (unsigned long long)c->resumed, (unsigned long long)c->retried,
	       (unsigned long long)c->refused);
	printf("figure:");
	for (int i = 0; i < _FAULT_MAX; i++)
		printf(" %s=%llu", faults[i], (unsigned long long)c->faults[i]);
	printf("\nfigure:");
	for (int i = 0; i < _ACT_MAX; i++)
		printf(" %s=%llu", acts[i], (unsigned long long)c->acts[i]);
	printf("\nfigure: checks=%llu quiet=%llu broken=%llu seconds=%.2f cpu_seconds=%.2f rate=%.0f hash=%016llx\n",
	       (unsigned long long)c->checks, (unsigned long long)c->quiet,
	       (unsigned long long)c->broken, seconds, cpu_seconds, days * 86400 / cpu_seconds,
	       (unsigned long long)s->hash);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"seed", required_argument, NULL, 's'},
						{"days", required_argument, NULL, 'd'},
						{"requests-per-day", required_argument, NULL, 'r'},
						{"stop-early", no_argument, NULL, 'e'},
						{"verbose", no_argument, NULL, 'v'},
						{}};
	_cleanup_(freep) struct sim *s = calloc(1, sizeof(*s));
	struct error err = {};
	double days = 1, began;
	int c, r;

	if (!s || hash_init() < 0)
		return 1;
	s->seed = 1;
	s->requests_per_day = 120000;
	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case 's':
			s->seed = strtoull(optarg, NULL, 10);
			break;
		case 'd':
			days = strtod(optarg, NULL);
			break;
		case 'r':
			s->requests_per_day = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'e':
			s->stop_early = true;
			break;
		case 'v':
			s->verbose = true;
			break;
		default:
			return 2;
		}
	if (!(days > 0) || s->requests_per_day == 0) {
		fputs("sim: want --days and --requests-per-day above 0\n", stderr);
		return 2;
	}
	log_init("sim", s->verbose ? LOG_INFO : LOG_CRIT);
	s->end = (uint64_t)(days * (double)SIM_DAY);
	began = seconds_of(CLOCK_MONOTONIC);
	r = simulate(s, &err);
	if (r < 0) {
		printf("sim: %s\n", error_text(&err, r));
		return 1;
	}
	report(s, days, seconds_of(CLOCK_MONOTONIC) - began, seconds_of(CLOCK_PROCESS_CPUTIME_ID));
	return s->count.broken ? 1 : 0;
}
