/* SPDX-License-Identifier: Apache-2.0 */
/* A worker that turns on its broker: dsd-worker for a model whose config.json says "dsd_hostile", it
 * writes random bytes into everything it maps and holds (pool-data, channel, eventfds, control socket,
 * model image); for every other model it is an honest worker. Started through $DSD_WORKER.
 *
 *   $DSD_HOSTILE_SEED   of the first life; each later life takes the next
 *   $DSD_HOSTILE_TALLY  file of three counters (struct tally), shared by all lives */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "layout/image.h"
#include "worker/control.h"
#include "worker/engine.h"
#include "worker/infer.h"
#include "worker/load/files.h"
#include "worker/load/load.h"
#include "worker/serve.h"

#define LIFE_USEC      1500000u /* a life ends by then, whatever the broker does */
#define SCRIBBLES_MAX  400u     /* and after so many */
#define SCRIBBLE_N_MAX 4096u    /* bytes */

struct tally {
	_Atomic uint64_t lives, scribbles, images;
};

/* What a life does most of: one that breaks the rings at once never reaches the rest. */
enum temper {
	SPOILS_PAGES,
	SPOILS_TOKENS,
	SPOILS_RESULTS,
	SPOILS_RINGS,
	TALKS,
	SPOILS_IMAGE,
	DOES_ALL,
	_TEMPER_MAX
};

struct hostile {
	struct serve *serve;
	struct tally *tally;
	int control_fd;
	enum temper temper;
	uint64_t random;
};

static uint64_t draw(struct hostile *h, uint64_t n)
{
	h->random ^= h->random >> 12;
	h->random ^= h->random << 25;
	h->random ^= h->random >> 27;
	return (h->random * UINT64_C(2685821657736338717)) % n;
}

/* Other threads read meanwhile; that is the point. */
static void scribble_at(struct hostile *h, uint8_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		((volatile uint8_t *)p)[i] = (uint8_t)draw(h, 256);
}

static void scribble_in(struct hostile *h, uint8_t *p, uint64_t size)
{
	uint64_t n = 1 + draw(h, MIN(size, (uint64_t)SCRIBBLE_N_MAX));

	scribble_at(h, p + draw(h, size - n + 1), n);
}

static void scribble_token(struct hostile *h)
{
	struct serve *s = h->serve;
	struct channel_result *r =
		channel_result(s->channel, &s->shape, (uint32_t)draw(h, CHANNEL_DEPTH));
	struct channel_result_row *row = channel_result_rows(r) + draw(h, 8);
	uint32_t id = (uint32_t)draw(h, 2) ? (uint32_t)h->random : 300 + (uint32_t)draw(h, 60);

	if (draw(h, 2))
		row->token = id;
	else
		row->top[draw(h, CHANNEL_TOP_MAX)].id = id;
}

static void scribble_eventfd(struct hostile *h)
{
	int fd = draw(h, 2) ? h->serve->wake : h->serve->result_event;
	uint64_t n = draw(h, 4) ? draw(h, 1000) : UINT64_MAX - draw(h, 3);
	ssize_t ignored;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	ignored = draw(h, 3) ? write(fd, &n, sizeof(n)) : read(fd, &n, sizeof(n));
	(void)ignored;
}

static void scribble_control(struct hostile *h)
{
	struct control_msg m = {};
	uint64_t n = draw(h, 3) ? sizeof(m) : draw(h, sizeof(m) + 1);
	int fd = draw(h, 4) ? -1 : h->control_fd;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = {&m, n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	scribble_at(h, (uint8_t *)&m, sizeof(m));
	if (draw(h, 3))
		m.type = (uint32_t)draw(h, _CONTROL_MAX + 1);
	if (draw(h, 2))
		m.text[draw(h, CONTROL_TEXT_MAX)] = 0;
	if (fd >= 0) {
		struct cmsghdr *c;

		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	sendmsg(h->control_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void scribble_once(struct hostile *h)
{
	struct serve *s = h->serve;
	enum temper t = h->temper;

	/* A word on the control socket may end the model for good, so only those that talk say any. */
	if (t == DOES_ALL)
		t = (enum temper)draw(h, SPOILS_IMAGE);
	else if (draw(h, 20) == 0)
		t = (enum temper)draw(h, TALKS);

	switch (t) {
	case SPOILS_TOKENS:
		scribble_token(h);
		break;
	case SPOILS_RESULTS:
		scribble_in(h, (uint8_t *)s->channel + s->shape.result_offset,
			    s->shape.total_bytes - s->shape.result_offset);
		break;
	case SPOILS_RINGS:
		if (draw(h, 2))
			scribble_in(h, s->channel, sizeof(struct channel_header));
		else
			scribble_in(h, s->channel, s->channel_bytes);
		break;
	case TALKS:
		if (draw(h, 2))
			scribble_eventfd(h);
		else
			scribble_control(h);
		break;
	default:
		scribble_in(h, s->pool, s->pool_bytes);
		break;
	}
	h->tally->scribbles++;
}

static void *scribble_life(void *arg)
{
	struct hostile *h = arg;
	uint64_t usec = 0;

	for (uint32_t i = 0; i < SCRIBBLES_MAX && usec < LIFE_USEC; i++) {
		uint64_t pause = 200 + draw(h, 20000);

		nanosleep(&(struct timespec){.tv_nsec = (long)pause * 1000}, NULL);
		usec += pause;
		scribble_once(h);
	}
	_exit(3);
}

/* The image with some bytes changed, sealed as it should be; checks are the broker's affair. */
static int spoil_image(struct hostile *h, int fd)
{
	_cleanup_(fd_closep) int mine = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	_cleanup_(freep) uint8_t *data = NULL;
	struct stat st;

	if (mine < 0 || fstat(fd, &st) < 0)
		return -errno;
	data = malloc((size_t)st.st_size);
	if (!data || pread(fd, data, (size_t)st.st_size, 0) != st.st_size)
		return -EIO;
	for (uint64_t n = 1 + draw(h, 8); n > 0; n--)
		scribble_at(h,
			    data + draw(h, draw(h, 2) ? sizeof(struct image_header)
						      : (uint64_t)st.st_size),
			    1);
	if (write(mine, data, (size_t)st.st_size) != st.st_size ||
	    fcntl(mine, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return -EIO;
	h->tally->images++;
	return TAKE_FD(mine);
}

static int receive_load(int control_fd, struct files *files, struct control_msg *ret,
			bool *ret_hostile, struct error *err)
{
	for (;;) {
		struct control_in in = {};
		int r = control_recv(control_fd, &in, err);

		if (r <= 0)
			return r;
		if (in.msg.type == CONTROL_FILE && in.n_fds == 1)
			r = files_add(files, in.msg.text, TAKE_FD(in.fds[0]), err);
		*ret = in.msg;
		control_in_done(&in);
		if (r < 0)
			return r;
		if (in.msg.type == CONTROL_LOAD) {
			const struct file *config = files_find(files, "config.json");
			_cleanup_(freep) char *text = NULL;
			size_t n;

			if (!config || file_slurp(config, 1u << 20, &text, &n, err) < 0)
				return -ENOENT;
			*ret_hostile = strstr(text, "\"dsd_hostile\"") != NULL;
			return 1;
		}
	}
}

static struct tally *open_tally(void)
{
	const char *path = getenv("DSD_HOSTILE_TALLY");
	_cleanup_(fd_closep) int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p = fd < 0 ? MAP_FAILED
			 : mmap(NULL, sizeof(struct tally), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				0);

	return p == MAP_FAILED ? NULL : p;
}

static int run(int fd, struct error *err)
{
	_cleanup_(image_builder_done) struct image_builder image = {};
	_cleanup_(engine_done) struct engine engine = {};
	_cleanup_(files_done) struct files files = {};
	const char *seed = getenv("DSD_HOSTILE_SEED");
	struct serve serve = SERVE_NULL;
	struct hostile h = {.serve = &serve, .tally = open_tally(), .control_fd = fd};
	struct control_in in = {};
	struct control_msg load = {};
	struct kernels_config cpu;
	struct load_options options;
	bool hostile = false;
	pthread_t thread;
	int r, image_fd;

	if (!h.tally || !seed)
		return error_set(err, -EINVAL, "want $DSD_HOSTILE_TALLY and $DSD_HOSTILE_SEED");
	r = receive_load(fd, &files, &load, &hostile, err);
	if (r <= 0)
		return r;
	if (hostile) {
		h.random = (strtoull(seed, NULL, 10) + h.tally->lives++ + 1) *
			   UINT64_C(0x9E3779B97F4A7C15);
		h.temper = (enum temper)draw(&h, _TEMPER_MAX);
	}
	cpu = (struct kernels_config){.n_threads = load.n_threads, .cpu_mask = load.cpu_mask};
	options = (struct load_options){
		.weights = load.weights, .entry = load.entry, .n_context = load.n_context};
	r = image_builder_init(&image);
	r = r ?: infer_new(&engine, &image, &files, &options, &cpu, NULL, NULL, err);
	image_fd = r < 0 ? r : image_finish(&image, err);
	if (image_fd >= 0 && hostile && h.temper == SPOILS_IMAGE)
		image_fd = spoil_image(&h, image_fd);
	if (image_fd < 0)
		return image_fd;
	r = control_send(fd, &(struct control_msg){.type = CONTROL_IMAGE}, image_fd, err);
	r = r < 0 ? r : control_recv(fd, &in, err);
	if (r <= 0)
		return r;
	r = serve_open(&serve, &in, &engine, err);
	if (r < 0)
		return r;
	r = engine.attach(engine.ctx,
			  &(struct engine_room){.pool = serve.pool,
						.n_pages = serve.n_pages,
						.n_slots = serve.shape.n_slots,
						.max_rows = serve.shape.max_rows,
						.max_tokens = serve.shape.max_tokens},
			  err);
	r = r ?: control_send_text(fd, CONTROL_READY, "", 0, 0, err);
	if (r < 0)
		return r;
	if (hostile && pthread_create(&thread, NULL, scribble_life, &h) != 0)
		return -EAGAIN;
	r = serve_run(&serve, fd, false, &engine, err);
	if (hostile)
		pthread_join(thread,
			     NULL); /* it goes on although the loop has met its own scribbles */
	return r;
}

int main(int argc, char **argv)
{
	struct error err = {};
	int r;

	log_init("hostile-worker", LOG_INFO);
	if (argc < 3 || strcmp(argv[1], "--control-fd") != 0)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	r = run(atoi(argv[2]), &err);
	if (r < 0)
		log_error("%s", error_text(&err, r));
	return r < 0;
}
