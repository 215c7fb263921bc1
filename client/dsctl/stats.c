/* SPDX-License-Identifier: Apache-2.0 */
/* stats: the daemon's counters, and what each model's pool and worker do. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "rates.h"
#include "session.h"
#include "verbs.h"

/* ---------------------------------------------------------------- for programs */

static struct json_object *json_model(const struct dsc_model_stats *m)
{
	struct json_object *o = json_object_new_object();
	double hit = hit_rate(m->prompt_tokens, m->cached_tokens);

	json_add(o, "name", json_text(m->name, strlen(m->name)));
	json_add(o, "pages_total", json_object_new_int64(m->pages_total));
	json_add(o, "pages_used", json_object_new_int64(m->pages_used));
	json_add(o, "pages_cached", json_object_new_int64(m->pages_cached));
	json_add(o, "pages_published", json_object_new_int64(m->pages_published));
	json_add(o, "preemptions", json_object_new_uint64(m->preemptions));
	json_add(o, "running", json_object_new_int64(m->running));
	json_add(o, "waiting", json_object_new_int64(m->waiting));
	json_add(o, "steps", json_object_new_uint64(m->steps));
	json_add(o, "rows", json_object_new_uint64(m->rows));
	json_add(o, "prompt_tokens", json_object_new_uint64(m->prompt_tokens));
	json_add(o, "generated_tokens", json_object_new_uint64(m->generated_tokens));
	json_add(o, "cached_tokens", json_object_new_uint64(m->cached_tokens));
	json_add(o, "hit_rate", hit < 0 ? NULL : json_real(hit));
	json_add(o, "worker_usec", json_object_new_uint64(m->worker_usec));
	json_add(o, "worker_starts", json_object_new_int64(m->worker_starts));
	json_add(o, "worker_deaths", json_object_new_int64(m->worker_deaths));
	json_add(o, "worker_pid", m->worker_pid ? json_object_new_uint64(m->worker_pid) : NULL);
	json_add(o, "kv_bytes_per_token", json_object_new_int64(m->kv_bytes_per_token));
	json_add(o, "mha_bytes_per_token", json_object_new_int64(m->mha_bytes_per_token));
	json_add(o, "gqa8_bytes_per_token", json_object_new_int64(m->gqa8_bytes_per_token));
	json_add(o, "params", json_object_new_uint64(m->params));
	json_add(o, "params_active", json_object_new_uint64(m->params_active));
	return o;
}

static int print_json(const struct dsc_stats_reply *st)
{
	struct json_object *o = json_object_new_object(), *models = json_object_new_array();

	json_add(o, "uptime_usec", json_object_new_uint64(st->uptime_usec));
	json_add(o, "state", json_object_new_string(state_text(st->state)));
	json_add(o, "version", json_text(st->version, strlen(st->version)));
	json_add(o, "io_backend", json_text(st->io_backend, strlen(st->io_backend)));
	json_add(o, "connections", json_object_new_int64(st->connections));
	json_add(o, "connections_total", json_object_new_uint64(st->connections_total));
	json_add(o, "requests_total", json_object_new_uint64(st->requests_total));
	json_add(o, "requests_failed", json_object_new_uint64(st->requests_failed));
	json_add(o, "requests_cancelled", json_object_new_uint64(st->requests_cancelled));
	json_add(o, "protocol_errors", json_object_new_uint64(st->protocol_errors));
	json_add(o, "bytes_in", json_object_new_uint64(st->bytes_in));
	json_add(o, "bytes_out", json_object_new_uint64(st->bytes_out));
	json_add(o, "broker_cpu_usec", json_object_new_uint64(st->broker_cpu_usec));
	for (size_t i = 0; i < st->n_models; i++)
		json_object_array_add(models, json_model(st->models[i]));
	json_add(o, "models", models);
	return out_json(o);
}

/* ---------------------------------------------------------------- for people */

static void row(struct libscols_table *table, const char *name, const char *value)
{
	struct libscols_line *line = scols_table_new_line(table, NULL);

	if (!line)
		return;
	table_cell(line, 0, "%s", name);
	table_cell(line, 1, "%s", value);
}

static void daemon_rows(struct libscols_table *table, const struct dsc_stats_reply *st)
{
	char text[128], in[16], out[16], up[32];

	duration_text(st->uptime_usec, up);
	snprintf(text, sizeof(text), "%s, version %s, up %s, %s", state_text(st->state),
		 st->version, up, st->io_backend);
	row(table, "daemon", text);
	snprintf(text, sizeof(text), "%u now, %" PRIu64 " in all", st->connections,
		 st->connections_total);
	row(table, "connections", text);
	snprintf(text, sizeof(text), "%" PRIu64 ", %" PRIu64 " failed, %" PRIu64 " cancelled",
		 st->requests_total, st->requests_failed, st->requests_cancelled);
	row(table, "requests", text);
	bytes_text((double)st->bytes_in, in);
	bytes_text((double)st->bytes_out, out);
	snprintf(text, sizeof(text), "%s in, %s out, %" PRIu64 " protocol errors", in, out,
		 st->protocol_errors);
	row(table, "traffic", text);
	duration_text(st->broker_cpu_usec, up);
	snprintf(text, sizeof(text), "%s of processor time, %.2g%% of one", up,
		 st->uptime_usec ? 100.0 * (double)st->broker_cpu_usec / (double)st->uptime_usec
				 : 0.0);
	row(table, "broker", text);
}

/* "1.15 kB, 14.1% of multi-head attention (8.19 kB), 56% of 8 groups (2.05 kB)" */
static void kv_text(const struct dsc_model_stats *m, char *ret, size_t n)
{
	char kv[16], mha[16], gqa[16];

	bytes_text(m->kv_bytes_per_token, kv);
	bytes_text(m->mha_bytes_per_token, mha);
	bytes_text(m->gqa8_bytes_per_token, gqa);
	if (m->mha_bytes_per_token == 0 || m->gqa8_bytes_per_token == 0)
		snprintf(ret, n, "%s", kv);
	else
		snprintf(ret, n, "%s, %.3g%% of MHA in bf16 (%s), %.3g%% of GQA-8 in bf16 (%s)", kv,
			 100.0 * m->kv_bytes_per_token / m->mha_bytes_per_token, mha,
			 100.0 * m->kv_bytes_per_token / m->gqa8_bytes_per_token, gqa);
}

/* "2.45 G numbers, 15.6% of 15.7 G" */
static void weights_text(const struct dsc_model_stats *m, char *ret, size_t n)
{
	char active[16], all[16];

	count_text((double)m->params_active, active);
	count_text((double)m->params, all);
	snprintf(ret, n, "%s numbers, %.3g%% of %s", active,
		 m->params ? 100.0 * (double)m->params_active / (double)m->params : 0.0, all);
}

static void model_rows(struct libscols_table *table, const struct dsc_model_stats *m)
{
	char text[160], pid[32] = "none";
	double seconds = (double)m->worker_usec / 1e6;
	double hit = hit_rate(m->prompt_tokens, m->cached_tokens);
	uint32_t pages[PAGE_STATES];

	row(table, "", "");
	row(table, "model", m->name);
	snprintf(text, sizeof(text), "%u running, %u waiting", m->running, m->waiting);
	row(table, "  sequences", text);
	pool_map(m, pages);
	snprintf(text, sizeof(text), "%u in use, %u published, %u cached, %u free of %u",
		 pages[PAGE_IN_USE], pages[PAGE_PUBLISHED], pages[PAGE_CACHED], pages[PAGE_FREE],
		 m->pages_total);
	row(table, "  pages", text);
	snprintf(text, sizeof(text),
		 "%" PRIu64 " of prompts computed, %" PRIu64 " found in the pool (%.0f%%), %" PRIu64
		 " generated",
		 m->prompt_tokens, m->cached_tokens, hit < 0 ? 0 : 100 * hit, m->generated_tokens);
	row(table, "  tokens", text);
	snprintf(text, sizeof(text), "%" PRIu64 " of %.3g rows each, %.1f s in the worker",
		 m->steps, m->steps ? (double)m->rows / (double)m->steps : 0.0, seconds);
	row(table, "  steps", text);
	if (m->worker_pid)
		snprintf(pid, sizeof(pid), "pid %" PRIu64, m->worker_pid);
	snprintf(text, sizeof(text), "%s, %u starts, %u deaths", pid, m->worker_starts,
		 m->worker_deaths);
	row(table, "  worker", text);
	kv_text(m, text, sizeof(text));
	row(table, "  cache per token", text);
	weights_text(m, text, sizeof(text));
	row(table, "  weights per token", text);
}

static int print_table(const struct dsc_stats_reply *st)
{
	static const char *const columns[] = {"WHAT", "VALUE", NULL};
	struct libscols_table *table = table_new(columns);

	if (!table)
		return say(STATUS_FAILED, "out of memory");
	scols_table_enable_noheadings(table, 1);
	daemon_rows(table, st);
	for (size_t i = 0; i < st->n_models; i++)
		model_rows(table, st->models[i]);
	scols_print_table(table);
	scols_unref_table(table);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct dsc_stream *stream = NULL;
	const struct dsc_event *e;
	struct session s;
	int r, status = STATUS_OK;

	(void)data;
	if (n_args > 0)
		return say(STATUS_USAGE, "stats: unexpected argument '%s'", args[0]);
	r = session_open(&s, global);
	if (r != 0)
		return r;
	r = dsc_stats(s.c, &stream);
	if (r < 0)
		status = session_status(&s);
	while (r >= 0 && (r = session_next(&s, stream, &e)) > 0) {
		if (e->type == DSC_EVENT_ERROR)
			status = session_status(&s);
		if (e->type == DSC_EVENT_STATS)
			status = global->json ? print_json(e->stats) : print_table(e->stats);
	}
	if (s.interrupted)
		status = STATUS_INTERRUPTED;
	session_close(&s);
	return status;
}

const struct verb verb_stats = {
	.name = "stats",
	.arguments = "",
	.summary = "Show the counters of the daemon and its models",
	.run = run,
};
