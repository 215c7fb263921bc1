/* SPDX-License-Identifier: Apache-2.0 */
/* score: log-probability of every token of a text, their sum and perplexity. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "output.h"
#include "prompt.h"
#include "session.h"
#include "verbs.h"

#define PIECES_AT_ONCE 16 /* requests under way while the pieces of a text are asked for */

struct score {
	struct dsc_request request;
	const char *ids;
};

static const struct arg_option options[] = {
	{"--ids", "LIST", "token ids instead of a text, verbatim: 1,2,3", ARG_STRING,
	 .offset = offsetof(struct score, ids)},
	{"--model", "NAME", "default: the first one", ARG_STRING,
	 .offset = offsetof(struct score, request.model)},
	{"--logprobs", "K", "with --json: the K best at each place", ARG_U32,
	 .offset = offsetof(struct score, request.logprobs),
	 .set_offset = offsetof(struct score, request.set), .bits = DSC_SET_LOGPROBS},
	{"--parse-special", NULL, "control tokens written out in the text become their ids",
	 ARG_BITS, .set_offset = offsetof(struct score, request.set),
	 .bits = DSC_SET_PARSE_SPECIAL},
};

struct sums {
	double logprob;
	size_t n;
};

static struct sums sum_of(const struct dsc_choice *ch)
{
	struct sums sums = {};

	for (size_t i = 0; i < ch->n_tokens; i++) {
		if (!ch->tokens[i].has_logprob)
			continue;
		sums.logprob += (double)ch->tokens[i].logprob;
		sums.n++;
	}
	return sums;
}

static double perplexity(struct sums sums)
{
	return sums.n > 0 ? exp(-sums.logprob / (double)sums.n) : 1;
}

static int print_json(const struct dsc_choice *ch)
{
	struct json_object *o = json_object_new_object(), *ids = json_object_new_array();
	struct sums sums = sum_of(ch);

	for (size_t i = 0; i < ch->n_tokens; i++)
		json_object_array_add(ids, json_object_new_int64(ch->tokens[i].id));
	json_add(o, "ids", ids);
	json_add(o, "logprobs", json_tokens(ch->tokens, ch->n_tokens));
	json_add(o, "sum", json_real(sums.logprob));
	json_add(o, "perplexity", json_real(perplexity(sums)));
	return out_json(o);
}

/* Bytes of a token for people: what is not a printable ASCII character or part of a whole UTF-8 one is
 * written \xNN, a newline \n. */
static void print_piece(const char *text, size_t n)
{
	struct json_object *o = json_text(text, n);
	bool whole = o && (size_t)json_object_get_string_len(o) == n &&
		     memcmp(json_object_get_string(o), text, n) == 0;

	putchar('"');
	for (size_t i = 0; i < n; i++) {
		unsigned char b = (unsigned char)text[i];

		if (b == '\n')
			fputs("\\n", stdout);
		else if (b == '"' || b == '\\')
			printf("\\%c", b);
		else if (b < 0x20 || b == 0x7f || (b >= 0x80 && !whole))
			printf("\\x%02x", b);
		else
			putchar(b);
	}
	putchar('"');
	json_object_put(o);
}

static int print_line(struct session *s, const struct dsc_token *t, int started,
		      struct dsc_stream *stream)
{
	struct dsc_result *piece = NULL;
	int r = session_collect(s, started, stream, &piece);

	if (r != 0)
		return r;
	if (t->has_logprob)
		printf("%8" PRIu32 " %12.6f  ", t->id, (double)t->logprob);
	else
		printf("%8" PRIu32 " %12s  ", t->id, "-");
	if (piece->n_choices > 0)
		print_piece(piece->choices[0].text, piece->choices[0].text_bytes);
	putchar('\n');
	dsc_result_free(piece);
	return 0;
}

/* One Detokenize per token, a few of them under way at a time. */
static int print_lines(struct session *s, const struct score *score, const struct dsc_choice *ch)
{
	struct dsc_stream *streams[PIECES_AT_ONCE] = {};
	int started[PIECES_AT_ONCE] = {};
	struct dsc_request request = DSC_REQUEST_INIT;
	struct sums sums = sum_of(ch);
	int r = 0;

	request.model = score->request.model;
	request.prompt = DSC_PROMPT_IDS;
	request.n_ids = 1;
	for (size_t i = 0; r == 0 && i < ch->n_tokens + PIECES_AT_ONCE; i++) {
		size_t slot = i % PIECES_AT_ONCE;

		if (i >= PIECES_AT_ONCE && i - PIECES_AT_ONCE < ch->n_tokens) {
			r = print_line(s, &ch->tokens[i - PIECES_AT_ONCE], started[slot],
				       streams[slot]);
			dsc_stream_free(streams[slot]);
			streams[slot] = NULL;
		}
		if (r == 0 && i < ch->n_tokens) {
			request.ids = &ch->tokens[i].id;
			started[slot] = dsc_detokenize(s->c, &request, &streams[slot]);
		}
	}
	if (r == 0)
		printf("sum %.6f over %zu tokens, perplexity %.4f\n", sums.logprob, sums.n,
		       perplexity(sums));
	return r;
}

static int score_and_print(const struct global *global, const struct score *score)
{
	static const struct dsc_choice nothing;
	struct dsc_result *result = NULL;
	struct dsc_stream *stream = NULL;
	const struct dsc_choice *ch;
	struct session s;
	int r;

	r = session_open(&s, global);
	if (r != 0)
		return r;
	r = dsc_score(s.c, &score->request, &stream);
	r = session_collect(&s, r, stream, &result);
	if (r == 0) {
		ch = result->n_choices > 0 ? &result->choices[0] : &nothing;
		r = global->json ? print_json(ch) : print_lines(&s, score, ch);
	}
	dsc_result_free(result);
	session_close(&s);
	return r;
}

static int run(const struct global *global, void *data, char **args, size_t n_args)
{
	struct score *score = data;
	struct text text = {};
	uint32_t *ids = NULL;
	int r;

	score->request.size = sizeof(score->request);
	if ((score->request.set & DSC_SET_LOGPROBS) && !global->json)
		return say(STATUS_USAGE, "--logprobs wants --json");
	if (score->ids && (n_args > 0 || score->request.set & DSC_SET_PARSE_SPECIAL))
		return say(STATUS_USAGE,
			   "--ids is the whole text: want no other or --parse-special with it");
	if (score->ids) {
		text = (struct text){(char *)score->ids, strlen(score->ids)};
		r = prompt_ids("--ids", &text, &ids, &score->request.n_ids);
		text.data = NULL;
		score->request.prompt = DSC_PROMPT_IDS;
		score->request.ids = ids;
	} else {
		r = prompt_read(args, n_args, &text);
		score->request.text = text.data;
		score->request.text_bytes = text.bytes;
	}
	if (r == 0 && score->request.n_ids == 0 && score->request.text_bytes == 0)
		r = say(STATUS_USAGE, "score: got nothing, want a text or token ids");
	if (r == 0)
		r = score_and_print(global, score);
	free(text.data);
	free(ids);
	return r;
}

const struct verb verb_score = {
	.name = "score",
	.arguments = "[TEXT...]",
	.summary = "Show how likely a text is, token by token",
	.details =
		"Prints id, log-probability and text of each token; the begin token is put first and has\n"
		"none. Without TEXT, or with -, the text is standard input byte for byte.",
	.options = options,
	.n_options = N_OPTIONS(options),
	.options_bytes = sizeof(struct score),
	.run = run,
};
