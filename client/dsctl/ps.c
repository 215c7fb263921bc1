/* SPDX-License-Identifier: Apache-2.0 */
/* ps: the requests under way. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "requests.h"
#include "session.h"
#include "verbs.h"

struct ps {
	bool all;
};

static const struct arg_option options[] = {
	{"--all", NULL, "everybody's, over the administrative socket", ARG_FLAG,
	 .offset = offsetof(struct ps, all)},
};

static int print_json(const struct requests *list)
{
	struct json_object *o = json_object_new_object(), *requests = json_object_new_array();

	for (size_t i = 0; i < list->n; i++) {
		const struct dsc_request_info *r = &list->items[i];
		struct json_object *x = json_object_new_object();

		json_add(x, "request", json_object_new_uint64(r->request));
		json_add(x, "uid", json_object_new_int64(r->uid));
		json_add(x, "pid", json_object_new_int64(r->pid));
		json_add(x, "model", json_text(r->model, strlen(r->model)));
		json_add(x, "activity", json_object_new_string(activity_text(r->activity)));
		json_add(x, "priority", json_object_new_string(priority_text(r->priority)));
		json_add(x, "prompt_tokens", json_object_new_int64(r->prompt_tokens));
		json_add(x, "cached_tokens", json_object_new_int64(r->cached_tokens));
		json_add(x, "completion_tokens", json_object_new_int64(r->completion_tokens));
		json_add(x, "pages", json_object_new_int64(r->pages));
		json_add(x, "age_usec", json_object_new_uint64(r->age_usec));
		json_object_array_add(requests, x);
	}
	json_add(o, "requests", requests);
	return out_json(o);
}

static int print_table(const struct requests *list)
{
	static const char *const columns[] = {">REQUEST", ">UID",     ">PID",    "MODEL",
					      "ACTIVITY", "PRIORITY", ">PROMPT", ">CACHED",
					      ">TOKENS",  ">PAGES",   ">AGE",    NULL};
	struct libscols_table *table = table_new(columns);

	if (!table)
		return say(STATUS_FAILED, "out of memory");
	for (size_t i = 0; i < list->n; i++) {
		const struct dsc_request_info *r = &list->items[i];
		struct libscols_line *line = scols_table_new_line(table, NULL);
		char age[32];

		if (!line)
			continue;
		duration_text(r->age_usec, age);
		table_cell(line, 0, "%" PRIu64, r->request);
		table_cell(line, 1, "%" PRIu32, r->uid);
		if (r->pid)
			table_cell(line, 2, "%" PRIu32, r->pid);
		table_cell(line, 3, "%s", r->model);
		table_cell(line, 4, "%s", activity_text(r->activity));
		table_cell(line, 5, "%s", priority_text(r->priority));
		table_cell(line, 6, "%" PRIu32, r->prompt_tokens);
		table_cell(line, 7, "%" PRIu32, r->cached_tokens);
		table_cell(line, 8, "%" PRIu32, r->completion_tokens);
		table_cell(line, 9, "%" PRIu32, r->pages);
		table_cell(line, 10, "%s", age);
	}
	scols_print_table(table);
	scols_unref_table(table);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	const struct ps *ps = data;
	struct requests list = {};
	struct session s;
	int r;

	if (n_args > 0)
		return say(STATUS_USAGE, "ps: unexpected argument '%s'", args[0]);
	r = ps->all ? session_open_admin(&s, global) : session_open(&s, global);
	if (r != 0)
		return r;
	r = requests_ask(&s, &list);
	if (r < 0)
		r = session_failed(&s, r);
	else
		r = global->json ? print_json(&list) : print_table(&list);
	requests_done(&list);
	session_close(&s);
	return r;
}

const struct verb verb_ps = {
	.name = "ps",
	.arguments = "",
	.summary = "Show the requests under way",
	.details = "Your own, oldest first. With --all everybody's, which is for root.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct ps),
	.run = run,
};
