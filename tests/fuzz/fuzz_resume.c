/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of daemons that leave and come back into libdsclient, while one request of every kind is under way (ids
 * 2 to 7 as in fuzz_client.c; the choices of a Generate that goes on are 8 and 9). The input is what each of
 * four connections is sent: two bytes of length, little-endian, and the bytes; the rest is the last one's.
 * Every stream ends exactly once. */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "dsclient.h"

#define CONNECTIONS 4
#define STREAMS     6

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes everything a stream has; 1: it has ended. */
static int drain(struct dsc_stream *s, struct dsc_result *result, unsigned *n_ends)
{
	const struct dsc_event *e;
	int r;

	while ((r = dsc_next(s, &e)) > 0) {
		assert(*n_ends == 0);
		*n_ends += e->type == DSC_EVENT_DONE || e->type == DSC_EVENT_ERROR;
		dsc_result_add(result, e);
	}
	assert((r == 0) == (*n_ends == 1));
	return r == 0;
}

static size_t piece(const uint8_t **data, size_t *size, int i, const uint8_t **ret)
{
	size_t n = *size;

	if (i < CONNECTIONS - 1 && *size >= 2) {
		n = (*data)[0] | (size_t)(*data)[1] << 8;
		*data += 2;
		*size -= 2;
		if (n > *size)
			n = *size;
	}
	*ret = *data;
	*data += n;
	*size -= n;
	return n;
}

static int listen_at(struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(addr->sun_path, sizeof(addr->sun_path), "/tmp/dsd-fuzz-resume.%d", getpid());
	unlink(addr->sun_path);
	if (fd < 0 || bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ||
	    listen(fd, 4) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void start(struct dsc *c, struct dsc_stream *s[STREAMS])
{
	struct dsc_request request = DSC_REQUEST_INIT;

	request.set = DSC_SET_N;
	request.n = 2;
	dsc_generate(c, &request, &s[0]);
	dsc_score(c, &request, &s[1]);
	dsc_tokenize(c, &request, &s[2]);
	request.prompt = DSC_PROMPT_IDS;
	dsc_detokenize(c, &request, &s[3]);
	dsc_models(c, &s[4]);
	dsc_stats(c, &s[5]);
}

/* The first frame, Hello, by itself: requests that wait are sent when it has come. */
static void say(struct dsc *c, int fd, const uint8_t *bytes, size_t n)
{
	size_t first = n > 0 && n >= (size_t)bytes[0] + 4 ? (size_t)bytes[0] + 4 : n;

	(void)!send(fd, bytes, first, MSG_NOSIGNAL | MSG_DONTWAIT);
	dsc_process(c);
	if (n > first)
		(void)!send(fd, bytes + first, n - first, MSG_NOSIGNAL | MSG_DONTWAIT);
	dsc_process(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dsc_stream *s[STREAMS] = {};
	struct dsc_result *result[STREAMS] = {};
	unsigned n_ends[STREAMS] = {};
	struct sockaddr_un addr;
	struct dsc *c = NULL;
	int listen_fd = listen_at(&addr), n_ended = 0;

	if (listen_fd < 0)
		return 0;
	if (dsc_connect(&c, addr.sun_path, 0) < 0) {
		close(listen_fd);
		unlink(addr.sun_path);
		return 0;
	}
	start(c, s);
	for (int i = 0; i < STREAMS; i++)
		result[i] = dsc_result_new();
	for (int i = 0; i < CONNECTIONS; i++) {
		const uint8_t *bytes;
		size_t n = piece(&data, &size, i, &bytes);
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

		if (fd >= 0)
			say(c, fd, bytes, n);
		if (i == 1 && size % 8 == 7)
			dsc_cancel(s[0]);
		if (fd >= 0)
			close(fd);
		dsc_process(c);
		dsc_process(c);
		for (int k = 0; k < STREAMS; k++)
			drain(s[k], result[k], &n_ends[k]);
	}
	close(listen_fd);
	unlink(addr.sun_path);
	dsc_set_patience(c, 0);
	for (int i = 0; i < 1000 && n_ended < STREAMS; i++) {
		dsc_process(c);
		n_ended = 0;
		for (int k = 0; k < STREAMS; k++)
			n_ended += drain(s[k], result[k], &n_ends[k]);
	}
	assert(n_ended == STREAMS);
	for (int k = 0; k < STREAMS; k++)
		dsc_result_free(result[k]);
	dsc_close(c);
	return 0;
}
