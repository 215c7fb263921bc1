/* SPDX-License-Identifier: Apache-2.0 */
/* Hello, Models, Stats: what is here and how it does. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/rpc.h"
#include "broker/server.h"
#include "layout/image.h"
#include "layout/page.h"

void rpc_hello(struct conn *c, const Dsd__ClientFrame *frame)
{
	Dsd__ServerFrame out = DSD__SERVER_FRAME__INIT;
	Dsd__HelloReply reply = DSD__HELLO_REPLY__INIT;
	char text[96];

	if (frame->hello->protocol != WIRE_PROTOCOL) {
		snprintf(text, sizeof(text), "hello.protocol: got %u, want %u",
			 frame->hello->protocol, WIRE_PROTOCOL);
		conn_fail(c, DSD__CODE__CODE_FAILED_PRECONDITION, text);
		return;
	}
	c->hello = true;
	c->deadline_usec = 0;
	reply.protocol = WIRE_PROTOCOL;
	reply.version = (char *)DSD_VERSION;
	reply.state = server_state(c->server);
	reply.max_frame_bytes = WIRE_FRAME_MAX;
	out.id = frame->id;
	out.msg_case = DSD__SERVER_FRAME__MSG_HELLO;
	out.hello = &reply;
	conn_send(c, &out);
}

static uint32_t clamp32(uint64_t v, uint32_t max)
{
	return (uint32_t)MIN(v, (uint64_t)max);
}

static void fill_model(Dsd__Model *out, const struct model *m)
{
	const struct image *im = model_image(m);
	struct model_stats st;

	model_get_stats(m, &st);
	*out = (Dsd__Model)DSD__MODEL__INIT;
	out->name = (char *)model_name(m);
	out->state = model_state(m);
	if (out->state == DSD__STATE__STATE_DEGRADED)
		out->reason = (char *)model_reason(m);
	else if (model_is_drained(m))
		out->reason = (char *)"drained: takes no new requests";
	if (out->state == DSD__STATE__STATE_LOADING) {
		out->has_progress = 1;
		out->progress = st.progress;
		out->stage = (char *)st.stage;
	}
	if (!im)
		return;
	const struct image_header *h = im->h;

	out->has_digest = 1;
	out->digest = (ProtobufCBinaryData){sizeof(h->digest), (uint8_t *)h->digest};
	out->arch = (char *)h->arch;
#define SET(field, value) (out->has_##field = 1, out->field = (value))
	SET(context, h->n_context);
	SET(vocab, h->n_vocab);
	SET(params, h->n_params);
	SET(params_active, h->n_params_active);
	SET(weight_bytes, h->weight_bytes);
	SET(kv_bytes_per_token, clamp32(st.kv_bytes_per_token, 1u << 26));
	SET(mha_bytes_per_token, clamp32(st.mha_bytes_per_token, UINT32_MAX));
	SET(gqa8_bytes_per_token, clamp32(st.gqa8_bytes_per_token, UINT32_MAX));
	SET(chat, h->renderer != IMAGE_RENDER_NONE);
	SET(layers, h->n_layers);
	SET(experts, clamp32(h->n_experts, 65536));
	SET(experts_used, clamp32(h->n_experts_used, 65536));
#undef SET
	out->kv_entry = (char *)page_entry_name(h->entry);
}

void rpc_models(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct server *s = c->server;
	Dsd__ServerFrame out = DSD__SERVER_FRAME__INIT;
	Dsd__ModelsReply reply = DSD__MODELS_REPLY__INIT;
	Dsd__Model models[SERVER_MODELS_MAX], *list[SERVER_MODELS_MAX];

	for (uint32_t i = 0; i < s->n_models; i++) {
		if (model_is_hidden(s->models[i]))
			continue;
		fill_model(&models[i], s->models[i]);
		list[reply.n_models++] = &models[i];
	}
	reply.models = list;
	out.id = frame->id;
	out.msg_case = DSD__SERVER_FRAME__MSG_MODELS;
	out.models = &reply;
	conn_send(c, &out);
}

static void fill_stats(Dsd__ModelStats *out, const struct model *m)
{
	const struct image *im = model_image(m);
	struct model_stats st;

	model_get_stats(m, &st);
	*out = (Dsd__ModelStats)DSD__MODEL_STATS__INIT;
	out->name = (char *)model_name(m);
	out->pages_total = st.pages_total;
	out->pages_used = st.pages_used;
	out->has_pages_cached = out->has_pages_published = out->has_preemptions = 1;
	out->pages_cached = st.pages_cached;
	out->pages_published = MIN(st.sched.pages_published, st.pages_used);
	out->preemptions = st.sched.preemptions;
	out->running = st.sched.running;
	out->waiting = st.sched.waiting;
	out->steps = st.sched.steps;
	out->rows = st.sched.rows;
	out->prompt_tokens = st.sched.prompt_tokens;
	out->generated_tokens = st.sched.generated_tokens;
	out->cached_tokens = st.sched.cached_tokens;
	out->worker_usec = st.sched.worker_usec;
	out->worker_starts = st.starts;
	out->worker_deaths = st.deaths;
	out->kv_bytes_per_token = clamp32(st.kv_bytes_per_token, 1u << 26);
	out->has_mha_bytes_per_token = out->has_gqa8_bytes_per_token = out->has_worker_pid = 1;
	out->mha_bytes_per_token = clamp32(st.mha_bytes_per_token, UINT32_MAX);
	out->gqa8_bytes_per_token = clamp32(st.gqa8_bytes_per_token, UINT32_MAX);
	out->worker_pid = (uint64_t)st.worker_pid;
	if (im) {
		out->has_params = out->has_params_active = 1;
		out->params = im->h->n_params;
		out->params_active = im->h->n_params_active;
	}
}

void rpc_stats(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct server *s = c->server;
	Dsd__ServerFrame out = DSD__SERVER_FRAME__INIT;
	Dsd__StatsReply reply = DSD__STATS_REPLY__INIT;
	Dsd__ModelStats models[SERVER_MODELS_MAX], *list[SERVER_MODELS_MAX];

	for (uint32_t i = 0; i < s->n_models; i++) {
		if (model_is_hidden(s->models[i]))
			continue;
		fill_stats(&models[i], s->models[i]);
		list[reply.n_models++] = &models[i];
	}
	reply.uptime_usec = io_now_usec(s->io) - s->started_usec;
	reply.state = server_state(s);
	reply.version = (char *)DSD_VERSION;
	reply.io_backend = (char *)s->io->ops->name;
	reply.connections = s->conns.n_used;
	reply.connections_total = s->count.connections;
	reply.requests_total = s->count.requests;
	reply.requests_failed = s->count.failed;
	reply.requests_cancelled = s->count.cancelled;
	reply.protocol_errors = s->count.protocol_errors;
	reply.bytes_in = s->count.bytes_in;
	reply.bytes_out = s->count.bytes_out;
	reply.has_broker_cpu_usec = true;
	reply.broker_cpu_usec = io_cpu_usec(s->io);
	reply.models = list;
	out.id = frame->id;
	out.msg_case = DSD__SERVER_FRAME__MSG_STATS;
	out.stats = &reply;
	conn_send(c, &out);
}
