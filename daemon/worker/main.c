/* SPDX-License-Identifier: Apache-2.0 */
/* dsd-worker: holds one model for the broker, on the other end of a control socketpair.
 *
 *   dsd-worker --control-fd N [--fake]     started by dsd
 *   dsd-worker --inspect PATH [--json]     describes a model, for people and dsctl
 *   dsd-worker --bench [OPTION]...         measures one, for people and dsctl
 *
 * The order is that of layout/channel.h: files, LOAD, progress, image, channel, READY, steps. It opens
 * no path, and ends when the socket does. What went wrong is sent as FAILED before it exits. */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "layout/image.h"
#include "worker/bench.h"
#include "worker/control.h"
#include "worker/engine.h"
#include "worker/fake.h"
#include "worker/infer.h"
#include "worker/inspect.h"
#include "worker/load/files.h"
#include "worker/machine.h"
#include "worker/model/model.h"
#include "worker/sandbox.h"
#include "worker/serve.h"

/* With fewer CPUs a spinning worker keeps the broker from the one it needs. */
#define SPIN_CPUS_MIN 3

static const char usage[] = "usage: dsd-worker --control-fd N [--fake]\n"
			    "       dsd-worker --inspect PATH [--json]\n"
			    "       dsd-worker --bench [OPTION]...\n";

struct arguments {
	int control_fd;
	bool fake, json;
	const char *inspect; /* path; NULL: serve */
};

static int parse_arguments(struct arguments *ret, int argc, char **argv)
{
	struct arguments a = {.control_fd = -1};

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--fake") == 0) {
			a.fake = true;
		} else if (strcmp(argv[i], "--json") == 0) {
			a.json = true;
		} else if (strcmp(argv[i], "--inspect") == 0 && i + 1 < argc) {
			a.inspect = argv[++i];
		} else if (strcmp(argv[i], "--control-fd") == 0 && i + 1 < argc) {
			char *end;
			long fd = strtol(argv[++i], &end, 10);

			if (!*argv[i] || *end || fd < 3 || fd > 1 << 20)
				return -EINVAL;
			a.control_fd = (int)fd;
		} else {
			return -EINVAL;
		}
	}
	if (a.inspect ? a.control_fd >= 0 || a.fake : a.control_fd < 0 || a.json)
		return -EINVAL;
	*ret = a;
	return 0;
}

/* Nothing of the broker but the socket, nothing of us in a core, and no life without the broker. */
static int confine(int control_fd, struct error *err)
{
	int type;
	socklen_t n = sizeof(type);

	if (getsockopt(control_fd, SOL_SOCKET, SO_TYPE, &type, &n) < 0 || type != SOCK_SEQPACKET)
		return error_set(err, -EINVAL, "--control-fd %d: want a SOCK_SEQPACKET socket",
				 control_fd);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		return error_set(err, -errno, "prctl PDEATHSIG: %m");
#ifndef __SANITIZE_ADDRESS__ /* the leak checker traces its own process */
	if (prctl(PR_SET_DUMPABLE, 0) < 0)
		return error_set(err, -errno, "prctl DUMPABLE: %m");
#endif
	if ((control_fd > 3 && close_range(3, (unsigned)control_fd - 1, 0) < 0) ||
	    close_range((unsigned)control_fd + 1, ~0u, 0) < 0)
		return error_set(err, -errno, "close_range: %m");
	if (fcntl(control_fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "control socket: %m");
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

/* A kernel or a container without the means costs a line of the log; anything else costs the worker. */
static int or_without(int r, const struct error *err)
{
	if (r != -EOPNOTSUPP && r != -ENOSYS && r != -EPERM)
		return r;
	log_notice("the worker's sandbox is not whole: %s", error_text(err, r));
	return 0;
}

static int enter_sandbox(struct error *err)
{
	int r = or_without(sandbox_close_paths(err), err);

	return r ?: or_without(sandbox_set_calls(SANDBOX_LOADING, err), err);
}

/* Return: 1; 0 where the broker has gone before it asked for a model. */
static int receive_load(int control_fd, struct files *files, struct load_store *store,
			struct control_msg *ret, struct error *err)
{
	for (;;) {
		struct control_in in = {};
		int r = control_recv(control_fd, &in, err);

		if (r <= 0)
			return r;
		if (in.msg.type == CONTROL_FILE && in.n_fds == 1)
			r = files_add(files, in.msg.text, TAKE_FD(in.fds[0]), err);
		else if (in.msg.type == CONTROL_PACKED && in.n_fds == 1 && store->packed_fd < 0)
			store->packed_fd = TAKE_FD(in.fds[0]);
		else if (in.msg.type == CONTROL_EMPTY && in.n_fds == 1 && store->new_fd < 0)
			store->new_fd = TAKE_FD(in.fds[0]);
		else if (in.msg.type == CONTROL_LOAD && in.n_fds == 0)
			*ret = in.msg;
		else
			r = error_set(err, -EBADMSG,
				      "control message %u with %u descriptors: want a file or LOAD",
				      in.msg.type, in.n_fds);
		control_in_done(&in);
		if (r < 0 || in.msg.type == CONTROL_LOAD)
			return r;
	}
}

static int send_progress(void *ctx, const char *stage, uint64_t done, uint64_t total)
{
	return control_send_text(*(const int *)ctx, CONTROL_PROGRESS, stage, done, total, NULL);
}

static void store_done(struct load_store *s)
{
	s->packed_fd = fd_close(s->packed_fd);
	s->new_fd = fd_close(s->new_fd);
}

/* What became of the files for packed weights: to the broker, and where the time went to the log. */
static int tell_load(int fd, const struct load_store *store, const struct engine *engine,
		     uint64_t weight_bytes, struct error *err)
{
	struct infer_times t = infer_get_times(engine);
	double mb = (double)weight_bytes / 1e6, check = (double)t.check_usec / 1e6;
	int r = 0;

	if (store->refused.code)
		r = control_send_text(fd, CONTROL_REFUSED, store->refused.text, 0, 0, err);
	if (r == 0 && store->filled)
		r = control_send_text(fd, CONTROL_FILLED, "", 0, 0, err);
	if (store->not_filled.code)
		log_warning("the packed weights are not kept for the next start: %s",
			    store->not_filled.text);
	log_info("files read in %.2f s, vocabulary in %.2f s; %.1f MB of weights %s in %.2f s",
		 (double)t.files_usec / 1e6, (double)t.vocabulary_usec / 1e6, mb,
		 store->mapped   ? "mapped as packed earlier, their hashes compared"
		 : store->filled ? "packed, and kept for the next start,"
				 : "packed in memory",
		 store->mapped ? check : (double)t.weights_usec / 1e6);
	return r;
}

static int make_engine(const struct arguments *a, const struct machine *machine, struct engine *ret,
		       struct image_builder *image, struct error *err)
{
	const struct kernels_topology *topology =
		machine->topology.n_cpus > 0 ? &machine->topology : NULL;
	_cleanup_(files_done) struct files files = {};
	_cleanup_(store_done) struct load_store store = {.packed_fd = -EBADF, .new_fd = -EBADF};
	struct control_msg load = {};
	struct kernels_config cpu;
	struct load_options options;
	int fd = a->control_fd, r;

	r = receive_load(fd, &files, &store, &load, err);
	if (r <= 0)
		return r;
	r = image_builder_init(image);
	if (r < 0)
		return r;
	r = send_progress(&fd, "opening", 0, 0);
	if (r < 0)
		return r;
	cpu = (struct kernels_config){
		.n_threads = load.n_threads, .cpu_mask = load.cpu_mask, .topology = topology};
	options = (struct load_options){.weights = load.weights,
					.entry = load.entry,
					.n_context = load.n_context,
					.store = &store};
	if (a->fake) {
		r = fake_new(ret, image, load.n_context, err);
	} else {
		r = infer_new(ret, image, &files, &options, &cpu, send_progress, &fd, err);
		r = r ?: tell_load(fd, &store, ret, image->h.weight_bytes, err);
		if (r == 0 && topology)
			machine_log(machine, infer_model(ret)->k->n_threads);
	}
	return r < 0 ? r : 1;
}

static int run(const struct arguments *a, const struct machine *machine, struct error *err)
{
	_cleanup_(image_builder_done) struct image_builder image = {};
	_cleanup_(engine_done) struct engine engine = {};
	_cleanup_(serve_done) struct serve serve = SERVE_NULL;
	_cleanup_(fd_closep) int image_fd = -EBADF;
	struct control_in in = {};
	int r;

	r = make_engine(a, machine, &engine, &image, err);
	if (r <= 0)
		return r;
	image_fd = image_finish(&image, err);
	if (image_fd < 0)
		return image_fd;
	image_builder_done(&image);
	r = control_send(a->control_fd, &(struct control_msg){.type = CONTROL_IMAGE}, image_fd,
			 err);
	if (r < 0)
		return r;
	image_fd = fd_close(image_fd);

	r = control_recv(a->control_fd, &in, err);
	if (r <= 0)
		return r;
	r = serve_open(&serve, &in, &engine, err);
	control_in_done(&in);
	if (r < 0)
		return r;
	r = engine.attach(engine.ctx,
			  &(struct engine_room){.pool = serve.pool,
						.n_pages = serve.n_pages,
						.n_slots = serve.shape.n_slots,
						.max_rows = serve.shape.max_rows,
						.max_tokens = serve.shape.max_tokens,
						.progress = serve_progress(&serve)},
			  err);
	if (r < 0)
		return r;
	r = or_without(sandbox_set_calls(SANDBOX_SERVING, err), err);
	if (r < 0)
		return r;
	r = control_send_text(a->control_fd, CONTROL_READY, "", 0, 0, err);
	if (r < 0)
		return r;
	return serve_run(&serve, a->control_fd, machine->topology.n_cpus >= SPIN_CPUS_MIN, &engine,
			 err);
}

static int bench(int n, char **words)
{
	struct bench_options options;
	struct error err = {};
	int r;

	r = bench_parse(&options, n, words, &err);
	if (r < 0) {
		log_error("%s", error_text(&err, r));
		return 2;
	}
	r = bench_run(&options, &err);
	if (r < 0)
		log_error("%s", error_text(&err, r));
	return r < 0;
}

int main(int argc, char **argv)
{
	struct machine machine = {};
	struct arguments a;
	struct error err = {};
	int r;

	log_init("dsd-worker", LOG_INFO);
	if (argc > 1 && strcmp(argv[1], "--bench") == 0)
		return bench(argc - 2, argv + 2);
	if (parse_arguments(&a, argc, argv) < 0) {
		fputs(usage, stderr);
		return 2;
	}
	if (a.inspect) {
		r = inspect_run(a.inspect, a.json, &err);
		if (r < 0)
			log_error("%s", error_text(&err, r));
		return r < 0;
	}
	if (machine_read(&machine, &err) < 0)
		log_notice("threads are not pinned: %s", error_text(&err, -EIO));
	r = confine(a.control_fd, &err);
	r = r ?: enter_sandbox(&err);
	if (r < 0) {
		log_error("%s", error_text(&err, r));
		return 1;
	}
	r = run(&a, &machine, &err);
	if (r == -EPIPE || r == -ECONNRESET)
		return 0; /* the broker has gone: nobody to tell */
	if (r < 0) {
		log_error("%s", error_text(&err, r));
		control_send_text(a.control_fd, CONTROL_FAILED, error_text(&err, r), 0, 0, NULL);
		return 1;
	}
	return 0;
}
