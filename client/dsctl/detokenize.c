/* SPDX-License-Identifier: Apache-2.0 */
/* detokenize: token ids to bytes. */
#include <stdlib.h>

#include "answer.h"
#include "output.h"
#include "prompt.h"
#include "session.h"
#include "verbs.h"

struct detokenize {
	struct dsc_request request;
};

static const struct arg_option options[] = {
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct detokenize, request.model)},
	{"--skip-special", NULL, "leave control tokens out", ARG_BITS,
	 .set_offset = offsetof(struct detokenize, request.set), .bits = DSC_SET_SKIP_SPECIAL},
};

static int print(const struct global *global, const struct dsc_choice *ch)
{
	struct json_object *o;

	if (global->json) {
		o = json_object_new_object();
		json_add(o, "text", json_text(ch ? ch->text : "", ch ? ch->text_bytes : 0));
		return out_json(o);
	}
	if (!ch || ch->text_bytes == 0)
		return STATUS_OK;
	out_text(ch->text, ch->text_bytes);
	out_end_line(ch->text[ch->text_bytes - 1]);
	return STATUS_OK;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct detokenize *d = data;
	struct dsc_result *result = NULL;
	struct dsc_stream *stream = NULL;
	struct session s;
	struct text text = {};
	uint32_t *ids = NULL;
	int r;

	r = prompt_read(args, n_args, &text);
	if (r == 0)
		r = prompt_ids("ids", &text, &ids, &d->request.n_ids);
	free(text.data);
	if (r != 0)
		return r;
	d->request.size = sizeof(d->request);
	d->request.prompt = DSC_PROMPT_IDS;
	d->request.ids = ids;
	r = session_open(&s, global);
	if (r == 0) {
		r = dsc_detokenize(s.c, &d->request, &stream);
		r = session_collect(&s, r, stream, &result);
		if (r == 0)
			r = print(global, result->n_choices > 0 ? &result->choices[0] : NULL);
		dsc_result_free(result);
		session_close(&s);
	}
	free(ids);
	return r;
}

const struct verb verb_detokenize = {
	.name = "detokenize",
	.arguments = "[ID...]",
	.summary = "Show the text of token ids",
	.details =
		"IDs are divided by commas or spaces; without any they are read from standard input.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct detokenize),
	.run = run,
};
