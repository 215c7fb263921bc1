/* SPDX-License-Identifier: Apache-2.0 */
/* models: what the daemon has loaded; --inspect: what a file holds, asked of the worker binary. */
#include <stdio.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "session.h"
#include "verbs.h"
#include "worker.h"

struct models {
	const char *inspect;
};

static const struct arg_option options[] = {
	{"--inspect", "FILE", "describe a model file or directory; needs no daemon", ARG_STRING,
	 .offset = offsetof(struct models, inspect)},
};

static int inspect(const struct global *global, const char *file)
{
	char verb[] = "--inspect", json[] = "--json";
	char *argv[] = {NULL, verb, (char *)file, global->json ? json : NULL, NULL};

	return worker_exec(argv);
}

/* ---------------------------------------------------------------- the daemon's models */

static void add_text(struct json_object *o, const char *key, const char *text)
{
	if (text && *text)
		json_add(o, key, json_text(text, strlen(text)));
}

static struct json_object *json_model(const struct dsc_model *m)
{
	struct json_object *o = json_object_new_object();
	char digest[65];

	hex_text(m->digest, m->digest_bytes, digest, sizeof(digest) - 1);
	add_text(o, "name", m->name);
	json_add(o, "state", json_object_new_string(state_text(m->state)));
	add_text(o, "reason", m->reason);
	add_text(o, "digest", digest);
	add_text(o, "arch", m->arch);
	json_add(o, "context", json_object_new_int64(m->context));
	json_add(o, "vocab", json_object_new_int64(m->vocab));
	json_add(o, "layers", json_object_new_int64(m->layers));
	json_add(o, "experts", json_object_new_int64(m->experts));
	json_add(o, "experts_used", json_object_new_int64(m->experts_used));
	json_add(o, "params", json_object_new_uint64(m->params));
	json_add(o, "params_active", json_object_new_uint64(m->params_active));
	json_add(o, "weight_bytes", json_object_new_uint64(m->weight_bytes));
	json_add(o, "kv_bytes_per_token", json_object_new_int64(m->kv_bytes_per_token));
	json_add(o, "mha_bytes_per_token", json_object_new_int64(m->mha_bytes_per_token));
	json_add(o, "gqa8_bytes_per_token", json_object_new_int64(m->gqa8_bytes_per_token));
	add_text(o, "kv_entry", m->kv_entry);
	json_add(o, "chat", json_object_new_boolean(m->chat));
	if (m->state == DSC_STATE_LOADING) {
		json_add(o, "progress", json_real((double)m->progress));
		add_text(o, "stage", m->stage);
	}
	return o;
}

static int print_json(const struct dsc_event *e)
{
	struct json_object *o = json_object_new_object(), *models = json_object_new_array();

	for (size_t i = 0; i < e->n_models; i++)
		json_object_array_add(models, json_model(e->models[i]));
	json_add(o, "models", models);
	return out_json(o);
}

static void fill_line(struct libscols_line *line, const struct dsc_model *m)
{
	char params[16], active[16], weights[16], kv[16], digest[13];

	count_text((double)m->params, params);
	count_text((double)m->params_active, active);
	bytes_text((double)m->weight_bytes, weights);
	bytes_text(m->kv_bytes_per_token, kv);
	hex_text(m->digest, m->digest_bytes, digest, sizeof(digest) - 1);
	table_cell(line, 0, "%s", m->name);
	if (m->state == DSC_STATE_LOADING)
		table_cell(line, 1, "loading %.0f%%", (double)m->progress * 100);
	else
		table_cell(line, 1, "%s", state_text(m->state));
	if (m->digest_bytes == 0) /* nothing is known before it is loaded */
		return;
	table_cell(line, 2, "%s", m->arch ? m->arch : "");
	table_cell(line, 3, "%s", params);
	table_cell(line, 4, "%s", active);
	table_cell(line, 5, "%s", weights);
	table_cell(line, 6, "%u", m->context);
	table_cell(line, 7, "%s", kv);
	table_cell(line, 8, "%s", digest);
}

static int print_table(const struct dsc_event *e)
{
	static const char *const columns[] = {"NAME",    "STATE",    "ARCH",     ">PARAMS",
					      ">ACTIVE", ">WEIGHTS", ">CONTEXT", ">KV/TOKEN",
					      "DIGEST",  NULL};
	struct libscols_table *table = table_new(columns);

	if (!table)
		return say(STATUS_FAILED, "out of memory");
	for (size_t i = 0; i < e->n_models; i++) {
		struct libscols_line *line = scols_table_new_line(table, NULL);

		if (line)
			fill_line(line, e->models[i]);
	}
	scols_print_table(table);
	scols_unref_table(table);
	for (size_t i = 0; i < e->n_models; i++)
		if (e->models[i]->reason && *e->models[i]->reason)
			printf("%s: %s\n", e->models[i]->name, e->models[i]->reason);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct models *models = data;
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	struct session s;
	int r, status = STATUS_OK;

	if (n_args > 0)
		return say(STATUS_USAGE, "models: unexpected argument '%s'", args[0]);
	if (models->inspect)
		return inspect(global, models->inspect);
	r = session_open(&s, global);
	if (r != 0)
		return r;
	r = dsc_models(s.c, &stream);
	if (r < 0)
		status = session_status(&s);
	while (r >= 0 && (r = session_next(&s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			status = session_status(&s);
		if (e->type == DSC_EVENT_MODELS)
			status = global->json ? print_json(e) : print_table(e);
	}
	if (s.interrupted)
		status = STATUS_INTERRUPTED;
	session_close(&s);
	return status;
}

const struct verb verb_models = {
	.name = "models",
	.arguments = "",
	.summary = "Show the models of the daemon, or what a file holds",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct models),
	.run = run,
};
