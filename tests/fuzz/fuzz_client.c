/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a daemon into libdsclient while one request of every kind is under way (ids 2 to 16, in the
 * order below): every stream ends exactly once, whatever comes. */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dsclient.h"

#define N_STREAMS 15
#define INPUT_MAX (64u << 10) /* what a socket buffer takes at once */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes everything a stream has; true: it has ended. */
static int drain(struct dsc_stream *s, struct dsc_result *result, unsigned *n_ends)
{
	const struct dsc_event *e;
	int r;

	while ((r = dsc_next(s, &e)) > 0) {
		assert(*n_ends == 0);
		*n_ends += e->type == DSC_EVENT_DONE || e->type == DSC_EVENT_ERROR;
		dsc_result_add(result, e);
	}
	assert(r == 0 || r == -EAGAIN);
	assert((r == 0) == (*n_ends == 1));
	return r == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dsc_request request = DSC_REQUEST_INIT;
	struct dsc_stream *s[N_STREAMS] = {};
	struct dsc_result *result[N_STREAMS] = {};
	unsigned n_ends[N_STREAMS] = {};
	struct dsc *c = NULL;
	int fds[2];

	if (size > INPUT_MAX || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		return 0;
	if (dsc_connect_fd(&c, fds[0], 0) < 0)
		return 0;
	dsc_generate(c, &request, &s[0]);
	dsc_score(c, &request, &s[1]);
	dsc_tokenize(c, &request, &s[2]);
	request.prompt = DSC_PROMPT_IDS;
	dsc_detokenize(c, &request, &s[3]);
	dsc_models(c, &s[4]);
	dsc_stats(c, &s[5]);
	dsc_list(c, &s[6]);
	dsc_cancel_request(c, 7, &s[7]);
	dsc_publish(c, "prefix", &request, &s[8]);
	dsc_unpublish(c, "prefix", NULL, &s[9]);
	dsc_evict(c, NULL, &s[10]);
	dsc_load(c, "/models/tiny", NULL, &s[11]);
	dsc_unload(c, "tiny", &s[12]);
	dsc_reload(c, NULL, DSC_RELOAD_DRAIN, &s[13]);
	dsc_drain(c, NULL, DSC_DRAIN_UNDO, &s[14]);
	for (int i = 0; i < N_STREAMS; i++)
		result[i] = dsc_result_new();

	if (size > 0 && send(fds[1], data, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		size = 0;
	dsc_process(c);
	for (int i = 0; i < N_STREAMS; i++)
		drain(s[i], result[i], &n_ends[i]);
	close(fds[1]);
	while (dsc_process(c) == 0)
		;
	for (int i = 0; i < N_STREAMS; i++) {
		assert(drain(s[i], result[i], &n_ends[i]));
		dsc_result_free(result[i]);
	}
	dsc_close(c);
	return 0;
}
