/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/selftest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "broker/model.h"
#include "broker/server.h"
#include "layout/image.h"

#define PROMPT_TOKENS 8u

/* What is remembered: SELFTEST_TOKENS ids in decimal, a line. */
#define TEXT_MAX (SELFTEST_TOKENS * 11 + 1)

static void file_name(const struct model *m, char ret[64])
{
	const uint8_t *digest = model_image(m)->h->digest;

	strcpy(ret, "selftest/");
	hash_hex(ret + strlen(ret), digest, 16);
}

static void format_ids(const struct selftest *t, char ret[TEXT_MAX])
{
	size_t n = 0;

	for (uint32_t i = 0; i < t->n; i++)
		n += (size_t)sprintf(ret + n, "%u%c", t->ids[i], i + 1 < t->n ? ' ' : '\n');
}

static int read_known(const struct server *s, const char *name, char ret[TEXT_MAX])
{
	_cleanup_(fd_closep) int fd = openat(s->state_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t n = fd < 0 ? -1 : read(fd, ret, TEXT_MAX - 1);

	if (n < 0)
		return -errno;
	ret[n] = 0;
	return 0;
}

/* Whole or not at all: a name appears with its content. */
static int write_known(const struct server *s, const char *name, const char *text)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	size_t n = strlen(text);

	mkdirat(s->state_fd, "selftest", 0700);
	fd = openat(s->state_fd, "selftest/.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, text, n) != (ssize_t)n || fsync(fd) < 0 ||
	    renameat(s->state_fd, "selftest/.new", s->state_fd, name) < 0)
		return -errno;
	return 0;
}

static int compare(const struct selftest *t, struct error *err)
{
	const struct server *s = model_server(t->model);
	char name[64], known[TEXT_MAX], text[TEXT_MAX];
	int r;

	if (s->state_fd < 0)
		return 0;
	file_name(t->model, name);
	format_ids(t, text);
	r = read_known(s, name, known);
	if (r == -ENOENT) {
		r = write_known(s, name, text);
		if (r < 0)
			log_warning("the state directory does not take %s: %s", name, strerror(-r));
		return 0;
	}
	if (r < 0)
		return error_set(err, r, "reading %s in the state directory: %m", name);
	if (strcmp(known, text) != 0)
		return error_set(
			err, -EBADMSG,
			"self-test: the model computes other tokens than when it was first served "
			"(%s in the state directory)",
			name);
	return 0;
}

static void on_token(void *ctx, const struct channel_result_row *row)
{
	struct selftest *t = ctx;

	if (t->n < SELFTEST_TOKENS)
		t->ids[t->n++] = row->token;
}

static void on_end(void *ctx, enum seq_end why)
{
	struct selftest *t = ctx;
	struct error err = {};
	int r;

	t->seq = NULL;
	if (why == SEQ_END_LENGTH)
		r = compare(t, &err);
	else
		r = error_set(&err, -EBADMSG, "self-test: %s",
			      why == SEQ_END_NUMBERS ? "the model computes numbers that are none"
			      : why == SEQ_END_QUARANTINED ? "two workers died of it"
							   : "the worker did not compute it");
	model_on_selftest(t->model, r, &err);
}

static const struct seq_ops selftest_ops = {.token = on_token, .end = on_end};

int selftest_start(struct selftest *t, struct model *m, bool always, struct error *err)
{
	const struct image_header *h = model_image(m)->h;
	uint32_t ids[PROMPT_TOKENS];
	char name[64], known[TEXT_MAX];
	struct seq_config cfg = {
		.ops = &selftest_ops,
		.ctx = t,
		.uid = 0,
		.ids = ids,
		.n_ids = PROMPT_TOKENS,
		.params = {.n_prompt = PROMPT_TOKENS,
			   .ignore_eos = true,
			   .top_p = 1,
			   .repetition_penalty = 1},
		.max_tokens = SELFTEST_TOKENS,
		.priority = SEQ_NORMAL,
	};
	int r;

	*t = (struct selftest){.model = m};
	if (model_room(m) < PROMPT_TOKENS + SELFTEST_TOKENS)
		return 0;
	if (!always) {
		if (model_server(m)->state_fd < 0)
			return 0;
		file_name(m, name);
		if (read_known(model_server(m), name, known) == 0)
			return 0;
	}
	for (uint32_t i = 0; i < PROMPT_TOKENS; i++)
		ids[i] = (i * 7919 + 1) % h->n_vocab;
	r = sched_submit(model_sched(m), &cfg, &t->seq, err);
	return r < 0 ? r : 1;
}

bool selftest_is_running(const struct selftest *t)
{
	return t->seq != NULL;
}

void selftest_stop(struct selftest *t)
{
	if (t->seq)
		seq_cancel(TAKE_PTR(t->seq));
}
