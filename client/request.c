/* SPDX-License-Identifier: Apache-2.0 */
/* struct dsc_request to the frame it means. The caller's struct may be of an earlier or later version of
 * the library: it is copied into one of ours first. Nothing of the frame outlives the call. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 8u
#endif
#define PASSED_MAX (64u << 20) /* bytes of a prompt that goes beside its frame */

/* What the first version had, up to its last member; anything shorter was not made by DSC_REQUEST_INIT. */
#define REQUEST_BYTES_MIN (offsetof(struct dsc_request, deadline_ms) + sizeof(uint32_t))

static int copy_request(struct dsc *c, struct dsc_request *ret, const struct dsc_request *request)
{
	const uint8_t *bytes = (const uint8_t *)request;

	*ret = (struct dsc_request){};
	if (request->size < REQUEST_BYTES_MIN)
		return dsc_fail(c, -EINVAL, DSC_CODE_NONE,
				"request.size: got %zu, want DSC_REQUEST_INIT's %zu", request->size,
				sizeof(*ret));
	for (size_t i = sizeof(*ret); i < request->size; i++)
		if (bytes[i] != 0)
			return dsc_fail(c, -E2BIG, DSC_CODE_NONE,
					"the request holds something at byte %zu, this libdsclient "
					"knows the first %zu",
					i, sizeof(*ret));
	memcpy(ret, request, request->size < sizeof(*ret) ? request->size : sizeof(*ret));
	return 0;
}

/* protobuf-c's structs want pointers without const, and only read them. */
static ProtobufCBinaryData bytes_of(const void *data, size_t n)
{
	return (ProtobufCBinaryData){n, (uint8_t *)data};
}

/* ---------------------------------------------------------------- parts that need memory */

struct parts {
	Dsd__Chat chat;
	Dsd__Message *messages;
	Dsd__Message **message_list;
	Dsd__Bias *bias;
	Dsd__Bias **bias_list;
	ProtobufCBinaryData *stop;
	Dsd__Ids ids;
	Dsd__PromptFd passed;
	int fd; /* what the frame calls passed; else negative */
	Dsd__Sampling sampling;
};

static void parts_done(struct parts *p)
{
	free(p->messages);
	free(p->message_list);
	free(p->bias);
	free(p->bias_list);
	free(p->stop);
	if (p->fd >= 0)
		close(p->fd);
}

static int fill_chat(struct parts *p, const struct dsc_request *q)
{
	p->chat = (Dsd__Chat)DSD__CHAT__INIT;
	if (q->n_messages == 0)
		return 0;
	p->messages = calloc(q->n_messages, sizeof(*p->messages));
	p->message_list = calloc(q->n_messages, sizeof(*p->message_list));
	if (!p->messages || !p->message_list)
		return -ENOMEM;
	for (size_t i = 0; i < q->n_messages; i++) {
		p->messages[i] = (Dsd__Message)DSD__MESSAGE__INIT;
		p->messages[i].role = (Dsd__Role)q->messages[i].role;
		p->messages[i].text = bytes_of(q->messages[i].text, q->messages[i].text_bytes);
		p->message_list[i] = &p->messages[i];
	}
	p->chat.messages = p->message_list;
	p->chat.n_messages = q->n_messages;
	return 0;
}

static int fill_lists(struct parts *p, const struct dsc_request *q)
{
	if (q->n_logit_bias > 0) {
		p->bias = calloc(q->n_logit_bias, sizeof(*p->bias));
		p->bias_list = calloc(q->n_logit_bias, sizeof(*p->bias_list));
		if (!p->bias || !p->bias_list)
			return -ENOMEM;
	}
	for (size_t i = 0; i < q->n_logit_bias; i++) {
		p->bias[i] = (Dsd__Bias)DSD__BIAS__INIT;
		p->bias[i].id = q->logit_bias[i].id;
		p->bias[i].bias = q->logit_bias[i].bias;
		p->bias_list[i] = &p->bias[i];
	}
	p->sampling.logit_bias = p->bias_list;
	p->sampling.n_logit_bias = q->n_logit_bias;

	if (q->n_stop > 0) {
		p->stop = calloc(q->n_stop, sizeof(*p->stop));
		if (!p->stop)
			return -ENOMEM;
	}
	for (size_t i = 0; i < q->n_stop; i++)
		p->stop[i] = bytes_of(q->stop[i].text, q->stop[i].text_bytes);
	p->sampling.stop = p->stop;
	p->sampling.n_stop = q->n_stop;
	return 0;
}

static int fill_sampling(struct parts *p, const struct dsc_request *q)
{
	Dsd__Sampling *s = &p->sampling;

	*s = (Dsd__Sampling)DSD__SAMPLING__INIT;
#define NUMBER(field, bit)                                                                         \
	s->has_##field = (q->set & (bit)) != 0;                                                    \
	s->field = q->field
	NUMBER(max_tokens, DSC_SET_MAX_TOKENS);
	NUMBER(min_tokens, DSC_SET_MIN_TOKENS);
	NUMBER(temperature, DSC_SET_TEMPERATURE);
	NUMBER(top_k, DSC_SET_TOP_K);
	NUMBER(top_p, DSC_SET_TOP_P);
	NUMBER(min_p, DSC_SET_MIN_P);
	NUMBER(seed, DSC_SET_SEED);
	NUMBER(repetition_penalty, DSC_SET_REPETITION_PENALTY);
	NUMBER(presence_penalty, DSC_SET_PRESENCE_PENALTY);
	NUMBER(frequency_penalty, DSC_SET_FREQUENCY_PENALTY);
	NUMBER(n, DSC_SET_N);
	NUMBER(logprobs, DSC_SET_LOGPROBS);
#undef NUMBER
	s->has_ignore_eos = s->ignore_eos = (q->set & DSC_SET_IGNORE_EOS) != 0;
	s->has_echo = s->echo = (q->set & DSC_SET_ECHO) != 0;
	return fill_lists(p, q);
}

/* ---------------------------------------------------------------- one function per request */

/* A memfd with that content, sealed; or -errno. */
static int sealed_memfd(const uint8_t *data, size_t n)
{
	static const unsigned flags[] = {MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL,
					 MFD_CLOEXEC | MFD_ALLOW_SEALING};
	int fd = -1, r = 0;

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && fd < 0; i++) {
		fd = memfd_create("dsclient-prompt", flags[i]);
		if (fd < 0 && errno != EINVAL) /* EINVAL: a kernel before 6.3 */
			return -errno;
	}
	if (fd < 0)
		return -errno;
	for (size_t at = 0; at < n && r >= 0;) {
		ssize_t k = write(fd, data + at, n - at);

		if (k >= 0)
			at += (size_t)k;
		else if (errno != EINTR)
			r = -errno;
	}
	if (r == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		r = -errno;
	if (r < 0)
		close(fd);
	return r < 0 ? r : fd;
}

/* Whether the prompt must go beside the frame, since with it the frame is too large for the wire; p->fd
 * and p->passed are made then. Return: 1: it must, 0, or -errno. */
static int pass_prompt(struct dsc *c, const Dsd__ClientFrame *frame, struct parts *p,
		       const struct dsc_request *q)
{
	bool is_ids = q->prompt == DSC_PROMPT_IDS;
	const void *data = is_ids ? (const void *)q->ids : q->text;
	size_t n = is_ids ? q->n_ids * sizeof(*q->ids) : q->text_bytes;

	if (q->prompt == DSC_PROMPT_CHAT || n == 0 ||
	    protobuf_c_message_get_packed_size(&frame->base) <= WIRE_FRAME_MAX)
		return 0;
	if (n > PASSED_MAX)
		return dsc_fail(c, -EMSGSIZE, DSC_CODE_FRAME_TOO_LARGE,
				"the prompt takes %zu bytes, want at most %u", n, PASSED_MAX);
	p->fd = sealed_memfd(data, n);
	if (p->fd < 0)
		return dsc_fail(c, p->fd, DSC_CODE_NONE, "a memfd of %zu bytes: %s", n,
				strerror(-p->fd));
	p->passed = (Dsd__PromptFd)DSD__PROMPT_FD__INIT;
	p->passed.kind =
		is_ids ? DSD__PROMPT_KIND__PROMPT_KIND_IDS : DSD__PROMPT_KIND__PROMPT_KIND_TEXT;
	p->passed.bytes = (uint32_t)n;
	return 1;
}

static int wrong_prompt(struct dsc *c, const struct dsc_request *q, const char *want)
{
	return dsc_fail(c, -EINVAL, DSC_CODE_NONE, "request.prompt: got %u, want %s", q->prompt,
			want);
}

static int send_generate(struct dsc *c, Dsd__ClientFrame *frame, struct parts *p,
			 const struct dsc_request *q)
{
	Dsd__Generate m = DSD__GENERATE__INIT;
	int r;

	switch (q->prompt) {
	case DSC_PROMPT_TEXT:
		m.prompt_case = DSD__GENERATE__PROMPT_TEXT;
		m.text = bytes_of(q->text, q->text_bytes);
		break;
	case DSC_PROMPT_CHAT:
		m.prompt_case = DSD__GENERATE__PROMPT_CHAT;
		m.chat = &p->chat;
		break;
	case DSC_PROMPT_IDS:
		m.prompt_case = DSD__GENERATE__PROMPT_IDS;
		m.ids = &p->ids;
		break;
	default:
		return wrong_prompt(c, q, "DSC_PROMPT_TEXT, _CHAT or _IDS");
	}
	m.model = (char *)q->model;
	m.sampling = &p->sampling;
	m.has_suffix = q->suffix != NULL;
	m.suffix = bytes_of(q->suffix, q->suffix_bytes);
	m.has_priority = (q->set & DSC_SET_PRIORITY) != 0;
	m.priority = (Dsd__Priority)q->priority;
	m.has_deadline_ms = (q->set & DSC_SET_DEADLINE_MS) != 0;
	m.deadline_ms = q->deadline_ms;
	m.has_parse_special = m.parse_special = (q->set & DSC_SET_PARSE_SPECIAL) != 0;
	m.has_reuse_generated = m.reuse_generated = (q->set & DSC_SET_REUSE_GENERATED) != 0;
	m.has_session = (q->set & DSC_SET_SESSION) != 0;
	m.session = q->session;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_GENERATE;
	frame->generate = &m;
	r = pass_prompt(c, frame, p, q);
	if (r < 0)
		return r;
	if (r > 0) {
		m.prompt_case = DSD__GENERATE__PROMPT_PROMPT_FD;
		m.prompt_fd = &p->passed;
	}
	return dsc_send_fd(c, frame, p->fd);
}

static int send_score(struct dsc *c, Dsd__ClientFrame *frame, struct parts *p,
		      const struct dsc_request *q)
{
	Dsd__Score m = DSD__SCORE__INIT;
	int r;

	switch (q->prompt) {
	case DSC_PROMPT_TEXT:
		m.prompt_case = DSD__SCORE__PROMPT_TEXT;
		m.text = bytes_of(q->text, q->text_bytes);
		break;
	case DSC_PROMPT_IDS:
		m.prompt_case = DSD__SCORE__PROMPT_IDS;
		m.ids = &p->ids;
		break;
	default:
		return wrong_prompt(c, q, "DSC_PROMPT_TEXT or _IDS");
	}
	m.model = (char *)q->model;
	m.has_logprobs = (q->set & DSC_SET_LOGPROBS) != 0;
	m.logprobs = q->logprobs;
	m.has_parse_special = m.parse_special = (q->set & DSC_SET_PARSE_SPECIAL) != 0;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_SCORE;
	frame->score = &m;
	r = pass_prompt(c, frame, p, q);
	if (r < 0)
		return r;
	if (r > 0) {
		m.prompt_case = DSD__SCORE__PROMPT_PROMPT_FD;
		m.prompt_fd = &p->passed;
	}
	return dsc_send_fd(c, frame, p->fd);
}

static int send_tokenize(struct dsc *c, Dsd__ClientFrame *frame, struct parts *p,
			 const struct dsc_request *q)
{
	Dsd__Tokenize m = DSD__TOKENIZE__INIT;
	int r;

	switch (q->prompt) {
	case DSC_PROMPT_TEXT:
		m.input_case = DSD__TOKENIZE__INPUT_TEXT;
		m.text = bytes_of(q->text, q->text_bytes);
		break;
	case DSC_PROMPT_CHAT:
		m.input_case = DSD__TOKENIZE__INPUT_CHAT;
		m.chat = &p->chat;
		break;
	default:
		return wrong_prompt(c, q, "DSC_PROMPT_TEXT or _CHAT");
	}
	m.model = (char *)q->model;
	m.has_parse_special = m.parse_special = (q->set & DSC_SET_PARSE_SPECIAL) != 0;
	m.has_add_bos = m.add_bos = (q->set & DSC_SET_ADD_BOS) != 0;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_TOKENIZE;
	frame->tokenize = &m;
	r = pass_prompt(c, frame, p, q);
	if (r < 0)
		return r;
	if (r > 0) {
		m.input_case = DSD__TOKENIZE__INPUT_PROMPT_FD;
		m.prompt_fd = &p->passed;
	}
	return dsc_send_fd(c, frame, p->fd);
}

static int send_detokenize(struct dsc *c, Dsd__ClientFrame *frame, struct parts *p,
			   const struct dsc_request *q)
{
	Dsd__Detokenize m = DSD__DETOKENIZE__INIT;

	if (q->prompt != DSC_PROMPT_IDS)
		return wrong_prompt(c, q, "DSC_PROMPT_IDS");
	m.ids = &p->ids;
	m.model = (char *)q->model;
	m.has_skip_special = m.skip_special = (q->set & DSC_SET_SKIP_SPECIAL) != 0;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_DETOKENIZE;
	frame->detokenize = &m;
	return dsc_send(c, frame);
}

static int send_publish(struct dsc *c, Dsd__ClientFrame *frame, const char *name, struct parts *p,
			const struct dsc_request *q)
{
	Dsd__Publish m = DSD__PUBLISH__INIT;

	switch (q->prompt) {
	case DSC_PROMPT_TEXT:
		m.prompt_case = DSD__PUBLISH__PROMPT_TEXT;
		m.text = bytes_of(q->text, q->text_bytes);
		break;
	case DSC_PROMPT_CHAT:
		m.prompt_case = DSD__PUBLISH__PROMPT_CHAT;
		m.chat = &p->chat;
		break;
	case DSC_PROMPT_IDS:
		m.prompt_case = DSD__PUBLISH__PROMPT_IDS;
		m.ids = &p->ids;
		break;
	default:
		return wrong_prompt(c, q, "DSC_PROMPT_TEXT, _CHAT or _IDS");
	}
	m.name = (char *)name;
	m.model = (char *)q->model;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_PUBLISH;
	frame->publish = &m;
	return dsc_send(c, frame);
}

static int send_model_verb(struct dsc *c, Dsd__ClientFrame *frame, const struct ask *ask)
{
	Dsd__Load load = DSD__LOAD__INIT;
	Dsd__Unload unload = DSD__UNLOAD__INIT;
	Dsd__Reload reload = DSD__RELOAD__INIT;
	Dsd__Drain drain = DSD__DRAIN__INIT;

	if (ask->flags & ~1u)
		return dsc_fail(c, -EINVAL, DSC_CODE_NONE, "flags: got %#x, want 0 or 1",
				ask->flags);
	switch (ask->kind) {
	case STREAM_LOAD:
		load.path = (char *)ask->path;
		load.name = (char *)ask->name;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_LOAD;
		frame->load = &load;
		break;
	case STREAM_UNLOAD:
		unload.model = (char *)ask->model;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_UNLOAD;
		frame->unload = &unload;
		break;
	case STREAM_RELOAD:
		reload.model = (char *)ask->model;
		reload.has_drain = reload.drain = (ask->flags & DSC_RELOAD_DRAIN) != 0;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_RELOAD;
		frame->reload = &reload;
		break;
	case STREAM_DRAIN:
		drain.model = (char *)ask->model;
		drain.has_undo = drain.undo = (ask->flags & DSC_DRAIN_UNDO) != 0;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_DRAIN;
		frame->drain = &drain;
		break;
	default:
		return -EINVAL;
	}
	return dsc_send(c, frame);
}

static int send_session_open(struct dsc *c, Dsd__ClientFrame *frame, const struct dsc_request *q)
{
	Dsd__SessionOpen m = DSD__SESSION_OPEN__INIT;

	m.model = (char *)q->model;
	m.has_lease_ms = (q->set & DSC_SET_LEASE_MS) != 0;
	m.lease_ms = q->lease_ms;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_OPEN;
	frame->session_open = &m;
	return dsc_send(c, frame);
}

static int send_session_fork(struct dsc *c, Dsd__ClientFrame *frame, const struct dsc_request *q)
{
	Dsd__SessionFork m = DSD__SESSION_FORK__INIT;

	m.session = q->session;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_FORK;
	frame->session_fork = &m;
	return dsc_send(c, frame);
}

static int send_session_close(struct dsc *c, Dsd__ClientFrame *frame, const struct dsc_request *q)
{
	Dsd__SessionClose m = DSD__SESSION_CLOSE__INIT;

	m.session = q->session;
	frame->msg_case = DSD__CLIENT_FRAME__MSG_SESSION_CLOSE;
	frame->session_close = &m;
	return dsc_send(c, frame);
}

static int send_kind(struct dsc *c, Dsd__ClientFrame *frame, const struct ask *ask, struct parts *p,
		     const struct dsc_request *q)
{
	Dsd__ModelsRequest models = DSD__MODELS_REQUEST__INIT;
	Dsd__StatsRequest stats = DSD__STATS_REQUEST__INIT;
	Dsd__ListRequest list = DSD__LIST_REQUEST__INIT;
	Dsd__CancelRequest cancel = DSD__CANCEL_REQUEST__INIT;
	Dsd__Unpublish unpublish = DSD__UNPUBLISH__INIT;
	Dsd__Evict evict = DSD__EVICT__INIT;

	switch (ask->kind) {
	case STREAM_GENERATE:
		return send_generate(c, frame, p, q);
	case STREAM_SCORE:
		return send_score(c, frame, p, q);
	case STREAM_TOKENIZE:
		return send_tokenize(c, frame, p, q);
	case STREAM_DETOKENIZE:
		return send_detokenize(c, frame, p, q);
	case STREAM_MODELS:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_MODELS;
		frame->models = &models;
		return dsc_send(c, frame);
	case STREAM_STATS:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_STATS;
		frame->stats = &stats;
		return dsc_send(c, frame);
	case STREAM_LIST:
		frame->msg_case = DSD__CLIENT_FRAME__MSG_LIST;
		frame->list = &list;
		return dsc_send(c, frame);
	case STREAM_CANCEL_REQUEST:
		cancel.request = ask->number;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST;
		frame->cancel_request = &cancel;
		return dsc_send(c, frame);
	case STREAM_PUBLISH:
		return send_publish(c, frame, ask->name, p, q);
	case STREAM_UNPUBLISH:
		unpublish.name = (char *)ask->name;
		unpublish.model = (char *)ask->model;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_UNPUBLISH;
		frame->unpublish = &unpublish;
		return dsc_send(c, frame);
	case STREAM_EVICT:
		evict.model = (char *)ask->model;
		frame->msg_case = DSD__CLIENT_FRAME__MSG_EVICT;
		frame->evict = &evict;
		return dsc_send(c, frame);
	case STREAM_LOAD:
	case STREAM_UNLOAD:
	case STREAM_RELOAD:
	case STREAM_DRAIN:
		return send_model_verb(c, frame, ask);
	case STREAM_SESSION_OPEN:
		return send_session_open(c, frame, q);
	case STREAM_SESSION_FORK:
		return send_session_fork(c, frame, q);
	case STREAM_SESSION_CLOSE:
		return send_session_close(c, frame, q);
	}
	return -EINVAL;
}

int request_send(struct dsc *c, uint64_t id, const struct ask *ask)
{
	Dsd__ClientFrame frame = DSD__CLIENT_FRAME__INIT;
	struct dsc_request q = {};
	struct parts p = {.fd = -EBADF};
	int r = 0;

	if (ask->request)
		r = copy_request(c, &q, ask->request);
	if (r < 0)
		return r;
	p.ids = (Dsd__Ids)DSD__IDS__INIT;
	p.ids.ids = (uint32_t *)q.ids;
	p.ids.n_ids = q.n_ids;
	r = fill_chat(&p, &q);
	if (r == 0)
		r = fill_sampling(&p, &q);
	if (r < 0) {
		parts_done(&p);
		return dsc_fail(c, r, DSC_CODE_NONE, "out of memory for a request");
	}
	frame.id = id;
	r = send_kind(c, &frame, ask, &p, &q);
	parts_done(&p);
	return r;
}
