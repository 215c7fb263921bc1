/* SPDX-License-Identifier: Apache-2.0 */
#include "load_peer.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void send_msg(int fd, const struct control_msg *msg, const int *fds, uint32_t n_fds)
{
	char buf[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)] __attribute__((aligned(8))) = {};
	struct iovec iov = {.iov_base = (void *)msg, .iov_len = sizeof(*msg)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds) {
		struct cmsghdr *c;

		mh.msg_control = buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	assert_int_equal(sendmsg(fd, &mh, MSG_NOSIGNAL), sizeof(*msg));
}

/* Return: false at the end of the socket. */
static bool recv_msg(int control, struct control_msg *ret, int *ret_fd)
{
	char buf[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = {.iov_base = ret, .iov_len = sizeof(*ret)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = buf,
			    .msg_controllen = sizeof(buf)};
	struct cmsghdr *c;
	ssize_t n = recvmsg(control, &mh, MSG_CMSG_CLOEXEC);

	*ret_fd = -1;
	if (n <= 0)
		return false;
	assert_int_equal(n, sizeof(*ret));
	c = CMSG_FIRSTHDR(&mh);
	if (c)
		memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	return true;
}

static void send_files(struct peer *p, const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d))) {
		struct control_msg msg = {.type = CONTROL_FILE};
		int fd;

		if (e->d_name[0] == '.')
			continue;
		snprintf(msg.text, sizeof(msg.text), "%s", e->d_name);
		fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		send_msg(p->control, &msg, &fd, 1);
		close(fd);
	}
	closedir(d);
}

void peer_start(struct peer *p, const char *worker, const char *dir, const struct control_msg *load)
{
	struct control_msg msg =
		load ? *load
		     : (struct control_msg){.entry = _PAGE_ENTRY_MAX, .cpu_mask = UINT32_MAX};
	int pair[2];

	*p = (struct peer){};
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (p->pid == 0) {
		char number[16];

		snprintf(number, sizeof(number), "%d", pair[1]);
		fcntl(pair[1], F_SETFD, 0);
		execl(worker, worker, "--control-fd", number, dir ? NULL : "--fake", NULL);
		_exit(127);
	}
	close(pair[1]);
	p->control = pair[0];
	if (dir)
		send_files(p, dir);
	msg.type = CONTROL_LOAD;
	send_msg(p->control, &msg, NULL, 0);
}

bool peer_await_image(struct peer *p)
{
	for (;;) {
		struct control_msg msg;
		struct stat st;
		int fd;

		if (!recv_msg(p->control, &msg, &fd))
			fail_msg("the worker left without a word");
		if (msg.type == CONTROL_PROGRESS)
			continue;
		if (msg.type == CONTROL_FAILED) {
			memcpy(p->failed, msg.text, sizeof(p->failed));
			return false;
		}
		assert_int_equal(msg.type, CONTROL_IMAGE);
		assert_true(fd >= 0);
		assert_int_equal(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE, F_SEAL_WRITE);
		assert_int_equal(fstat(fd, &st), 0);
		p->image_data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
		assert_true(p->image_data != MAP_FAILED);
		close(fd);
		assert_int_equal(image_open(&p->image, p->image_data, (size_t)st.st_size, NULL), 0);
		assert_int_equal(page_geometry_init(&p->geometry, p->image.streams,
						    p->image.n_streams, NULL),
				 0);
		return true;
	}
}

static int make_memfd(uint64_t n_bytes, uint8_t **ret)
{
	int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)n_bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	*ret = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(*ret != MAP_FAILED);
	return fd;
}

void peer_open(struct peer *p, uint32_t n_slots, uint32_t max_rows, uint32_t max_tokens,
	       uint32_t n_pages)
{
	struct control_msg msg = {.type = CONTROL_CHANNEL,
				  .n_slots = n_slots,
				  .max_rows = max_rows,
				  .max_tokens = max_tokens,
				  .total = n_pages};
	struct channel_header *h;
	struct channel_shape *s = &p->shape;
	int fds[4], wake[2], fd;

	assert_int_equal(channel_shape_init(s, n_slots, max_rows, max_tokens, NULL), 0);
	p->n_pages = n_pages;
	fds[0] = make_memfd(s->total_bytes, &p->channel);
	fds[1] = make_memfd(p->geometry.stride * n_pages, &p->pool);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, wake), 0);
	p->step_event = wake[0];
	fds[2] = wake[1];
	fds[3] = p->result_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	h = (struct channel_header *)p->channel;
	*h = (struct channel_header){
		.version = 1,
		.n_slots = n_slots,
		.max_rows = max_rows,
		.max_pages = s->max_pages,
		.max_tokens = max_tokens,
		.slot_offset = s->slot_offset,
		.slot_stride = s->slot_stride,
		.step_offset = s->step_offset,
		.step_stride = s->step_stride,
		.result_offset = s->result_offset,
		.result_stride = s->result_stride,
		.total_bytes = s->total_bytes,
	};
	memcpy(h->magic, CHANNEL_MAGIC, sizeof(h->magic));
	send_msg(p->control, &msg, fds, 4);
	close(fds[0]);
	close(fds[1]);
	close(fds[2]);
	if (!recv_msg(p->control, &msg, &fd))
		fail_msg("the worker left without a word");
	if (msg.type == CONTROL_FAILED)
		fail_msg("%s", msg.text);
	assert_int_equal(msg.type, CONTROL_READY);
}

int peer_stop(struct peer *p)
{
	int status = -1;

	close(p->control);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	if (p->channel) {
		munmap(p->channel, p->shape.total_bytes);
		munmap(p->pool, p->geometry.stride * p->n_pages);
		close(p->step_event);
		close(p->result_event);
	}
	if (p->image_data)
		munmap(p->image_data, p->image.h->total_bytes);
	return status;
}

struct channel_params *peer_slot(struct peer *p, uint32_t slot, const uint32_t *pages,
				 uint32_t n_pages, const uint32_t *ids, uint32_t n_ids)
{
	struct channel_slot *s = channel_slot(p->channel, &p->shape, slot);

	s->generation++;
	s->n_pages = n_pages;
	s->n_ids = n_ids;
	memcpy(channel_slot_pages(s), pages, sizeof(*pages) * n_pages);
	memcpy(channel_slot_ids(s, &p->shape), ids, sizeof(*ids) * n_ids);
	memset(s->domain, 7, sizeof(s->domain));
	s->params = (struct channel_params){.n_prompt = n_ids, .top_p = 1, .repetition_penalty = 1};
	return &s->params;
}

void peer_slot_done(struct peer *p, uint32_t slot)
{
	channel_slot(p->channel, &p->shape, slot)->generation++;
}

void peer_queue(struct peer *p, const struct channel_row *rows, uint32_t n)
{
	struct channel_header *h = (struct channel_header *)p->channel;
	struct channel_step *step = channel_step(p->channel, &p->shape, p->n_steps);
	uint64_t one = 1;

	step->n_rows = n;
	memcpy(channel_step_rows(step), rows, sizeof(*rows) * n);
	step->seq = ++p->n_steps;
	atomic_store(&h->steps.tail, p->n_steps);
	if (atomic_load(&h->steps.asleep))
		assert_int_equal(write(p->step_event, &one, sizeof(one)), sizeof(one));
}

void peer_take(struct peer *p)
{
	struct channel_header *h = (struct channel_header *)p->channel;
	struct channel_result *result = channel_result(p->channel, &p->shape, p->n_results);
	uint64_t n;

	while (atomic_load(&h->results.tail) == p->n_results) {
		struct pollfd fds[] = {{.fd = p->result_event, .events = POLLIN},
				       {.fd = p->control, .events = POLLIN}};

		assert_true(poll(fds, 2, 60000) > 0);
		if (fds[1].revents)
			fail_msg("the worker left in mid-step");
		assert_int_equal(read(p->result_event, &n, sizeof(n)), sizeof(n));
	}
	p->result = *result;
	assert_int_equal(p->result.seq, ++p->n_results);
	assert_in_range(p->result.n_rows, 0, 64);
	memcpy(p->rows, channel_result_rows(result), sizeof(*p->rows) * p->result.n_rows);
	atomic_store(&h->results.head, p->n_results);
}

void peer_step(struct peer *p, const struct channel_row *rows, uint32_t n)
{
	peer_queue(p, rows, n);
	peer_take(p);
}
