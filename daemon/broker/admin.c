/* SPDX-License-Identifier: Apache-2.0 */
/* Administrative verbs on models: load, unload, reload, drain. Each is a request that waits for what it
 * asked for, hears of the progress and ends with Ack or Error. What was begun goes on without it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "broker/conn.h"
#include "broker/model.h"
#include "broker/request.h"
#include "broker/rpc.h"
#include "broker/server.h"

static void send_progress(struct request *r, const char *stage, float done)
{
	Dsd__ServerFrame frame = DSD__SERVER_FRAME__INIT;
	Dsd__Progress progress = DSD__PROGRESS__INIT;

	progress.stage = (char *)stage;
	progress.done = done;
	frame.id = r->id;
	frame.msg_case = DSD__SERVER_FRAME__MSG_PROGRESS;
	frame.progress = &progress;
	conn_send(r->conn, &frame);
}

static void send_ack(struct request *r)
{
	rpc_send_ack(r->conn, r->id, NULL);
	request_end(r);
}

/* A request that waits for @m. NULL: the client was told why not. */
static struct request *new_request(struct conn *c, uint64_t id, struct model *m)
{
	struct request *r = request_new_of(c, id, m, send_ack);

	if (!r)
		return NULL;
	r->is_admin = true;
	r->progress = send_progress;
	r->parked = true;
	return r;
}

static struct model *find(struct conn *c, uint64_t id, const char *name)
{
	struct model *m = server_find_model(c->server, name);

	if (!m)
		conn_send_error(c, id, DSD__CODE__CODE_NOT_FOUND,
				"no model of that name: dsctl models lists them", 0);
	return m;
}

static void refuse(struct conn *c, uint64_t id, const char *name, int r, struct error *err)
{
	log_event(EVENT_RELOAD_REFUSED, &(struct log_fields){.model = name, .uid = &c->uid}, "%s",
		  error_text(err, r));
	conn_send_error(c, id,
			r == -EINVAL ? DSD__CODE__CODE_INVALID_ARGUMENT
				     : DSD__CODE__CODE_RESOURCE_EXHAUSTED,
			error_text(err, r), 0);
}

static void wait_until_ready(struct conn *c, uint64_t id, struct model *m)
{
	struct request *r = new_request(c, id, m);

	if (!r)
		return;
	send_progress(r, "starting", 0);
	model_park(m, r);
	/* It may have failed at once. */
	if (model_state(m) == DSD__STATE__STATE_DEGRADED) {
		model_unpark(m, r);
		request_unpark(r);
	}
}

void rpc_load(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Load *load = frame->load;
	_cleanup_(freep) struct config *cfg = calloc(1, sizeof(*cfg));
	char spec[CONFIG_PATH_MAX + CONFIG_NAME_MAX + 2];
	struct error err = {};
	struct model *m;
	int r = -ENOMEM;

	snprintf(spec, sizeof(spec), "%s%s%s", load->path, load->name ? ":" : "", load->name ?: "");
	if (cfg)
		r = config_add_model(cfg, spec, &err);
	if (r == 0 && server_find_model(c->server, cfg->models[0].name))
		r = error_set(&err, -EINVAL,
			      "a model \"%s\" is loaded: dsctl reload loads its files anew",
			      cfg->models[0].name);
	if (r == 0 && model_is_coming(c->server, cfg->models[0].name))
		r = error_set(&err, -EINVAL, "a model \"%s\" is being loaded already",
			      cfg->models[0].name);
	if (r == 0)
		r = model_add(c->server, &cfg->models[0], NULL, false, &m, &err);
	if (r < 0) {
		refuse(c, frame->id, load->name, r, &err);
		return;
	}
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.model = model_name(m), .uid = &c->uid},
		  "loading model %s from %s, by uid %u", model_name(m), cfg->models[0].path,
		  c->uid);
	wait_until_ready(c, frame->id, m);
}

void rpc_reload(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Reload *reload = frame->reload;
	struct model *next, *m = find(c, frame->id, reload->model);
	struct error err = {};
	int r;

	if (!m)
		return;
	r = model_reload(m, reload->has_drain && reload->drain, &next, &err);
	if (r < 0) {
		refuse(c, frame->id, model_name(m), r, &err);
		return;
	}
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.model = model_name(m), .uid = &c->uid},
		  "reloading model %s, by uid %u", model_name(m), c->uid);
	wait_until_ready(c, frame->id, next);
}

static void wait_until_unused(struct conn *c, uint64_t id, struct model *m)
{
	struct request *r = new_request(c, id, m);

	if (!r)
		return;
	send_progress(r, "finishing what is under way", 0);
	model_when_unused(m, r);
}

void rpc_unload(struct conn *c, const Dsd__ClientFrame *frame)
{
	struct model *m = find(c, frame->id, frame->unload->model);

	if (!m)
		return;
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.model = model_name(m), .uid = &c->uid},
		  "unloading model %s, by uid %u", model_name(m), c->uid);
	model_leave(m);
	wait_until_unused(c, frame->id, m);
}

void rpc_drain(struct conn *c, const Dsd__ClientFrame *frame)
{
	const Dsd__Drain *drain = frame->drain;
	struct model *m = find(c, frame->id, drain->model);
	bool undo = drain->has_undo && drain->undo;

	if (!m)
		return;
	log_event(EVENT_ADMINISTERED, &(struct log_fields){.model = model_name(m), .uid = &c->uid},
		  "model %s %s requests, by uid %u", model_name(m), undo ? "takes" : "takes no new",
		  c->uid);
	model_drain(m, !undo);
	if (undo)
		rpc_send_ack(c, frame->id, NULL);
	else
		wait_until_unused(c, frame->id, m);
}
