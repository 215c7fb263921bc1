/* SPDX-License-Identifier: Apache-2.0 */
/* libdsclient: whole answers, and the calls of administrators. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "client_rig.h"

static void collect_adds_up_the_choices(void **state)
{
	struct peer p = peer_new();
	struct dsc_result *result = NULL;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_started(&p, id, 11);
	peer_delta(&p, id, 1, "one ", 0);
	peer_delta(&p, id, 0, "zero ", 0);
	for (int i = 0; i < 100; i++)
		peer_delta(&p, id, 0, "0123456789", 0);
	peer_delta(&p, id, 1, "done", DSC_FINISH_LENGTH);
	peer_delta(&p, id, 0, NULL, DSC_FINISH_EOS);
	peer_finished(&p, id);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->seed, 11);
	assert_string_equal(result->model, "tiny");
	assert_int_equal(result->digest_bytes, 3);
	assert_int_equal(result->usage.completion_tokens, 3);
	assert_int_equal(result->n_choices, 2);
	assert_int_equal(result->choices[0].text_bytes, 1005);
	assert_memory_equal(result->choices[0].text, "zero 01234567890123", 19);
	assert_int_equal(strlen(result->choices[0].text), 1005);
	assert_int_equal(result->choices[0].n_ids, 202);
	assert_int_equal(result->choices[0].finish, DSC_FINISH_EOS);
	assert_string_equal(result->choices[1].text, "one done");
	assert_int_equal(result->choices[1].n_ids, 4);
	assert_int_equal(result->choices[1].ids[2], 41);
	assert_int_equal(result->choices[1].finish, DSC_FINISH_LENGTH);
	dsc_result_free(result);
	peer_done(&p);
}

static void collect_gives_what_came_before_an_error(void **state)
{
	struct peer p = peer_new();
	struct dsc_result *result = NULL;
	uint64_t id;
	struct dsc_stream *s = generate(&p, &id);

	(void)state;
	peer_started(&p, id, 11);
	peer_delta(&p, id, 0, "half", 0);
	peer_error(&p, id, DSC_CODE_MODEL_FAULT, "layer 3: got NaN");
	assert_int_equal(dsc_collect(s, &result), -EIO);
	assert_string_equal(dsc_error(p.c), "layer 3: got NaN");
	assert_string_equal(result->choices[0].text, "half");
	assert_int_equal(result->choices[0].finish, 0);
	dsc_result_free(result);
	peer_done(&p);
}

static void score_keeps_every_logprob_over_its_parts(void **state)
{
	struct peer p = peer_new();
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ScoreReply reply = DSD__SCORE_REPLY__INIT;
	Dsd__TopLogprob best = DSD__TOP_LOGPROB__INIT, second = DSD__TOP_LOGPROB__INIT;
	Dsd__TopLogprob *top[] = {&best, &second};
	Dsd__TokenLogprob bos = DSD__TOKEN_LOGPROB__INIT, tok = DSD__TOKEN_LOGPROB__INIT;
	Dsd__TokenLogprob *first[] = {&bos, &tok}, *rest[] = {&tok};
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_result *result = NULL;
	struct dsc_stream *s = NULL;
	const struct dsc_choice *ch;
	Dsd__ClientFrame *frame;

	(void)state;
	r.prompt = DSC_PROMPT_IDS;
	r.ids = (const uint32_t[]){0, 9, 9};
	r.n_ids = 3;
	r.logprobs = 2;
	r.set = DSC_SET_LOGPROBS;
	assert_int_equal(dsc_score(p.c, &r, &s), 0);
	frame = peer_receive(&p);
	f.id = frame->id;
	assert_int_equal(frame->score->ids->n_ids, 3);
	assert_true(frame->score->has_logprobs && frame->score->logprobs == 2);
	best.id = 4;
	best.logprob = -0.25f;
	second.id = 9;
	second.logprob = -1.5f;
	tok.id = 9;
	tok.has_logprob = 1;
	tok.logprob = -1.5f;
	tok.top = top;
	tok.n_top = 2;
	f.msg_case = DSD__SERVER_FRAME__MSG_SCORE;
	f.score = &reply;
	reply.tokens = first;
	reply.n_tokens = 2;
	peer_send(&p, &f);
	reply.tokens = rest;
	reply.n_tokens = 1;
	reply.last = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->n_choices, 1);
	ch = &result->choices[0];
	assert_int_equal(ch->n_tokens, 3);
	assert_false(ch->tokens[0].has_logprob);
	assert_int_equal(ch->tokens[0].n_top, 0);
	for (int i = 1; i < 3; i++) {
		assert_true(ch->tokens[i].has_logprob && ch->tokens[i].logprob == -1.5f);
		assert_int_equal(ch->tokens[i].n_top, 2);
		assert_int_equal(ch->tokens[i].top[0].id, 4);
		assert_true(ch->tokens[i].top[0].logprob == -0.25f);
		assert_int_equal(ch->tokens[i].top[1].id, 9);
	}
	dsc_result_free(result);
	peer_done(&p);
}

static void tokenize_and_detokenize_come_in_parts(void **state)
{
	struct peer p = peer_new();
	struct dsc_request r = DSC_REQUEST_INIT;
	struct dsc_stream *s = NULL;
	struct dsc_result *result = NULL;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__TokenizeReply t = DSD__TOKENIZE_REPLY__INIT;
	Dsd__DetokenizeReply d = DSD__DETOKENIZE_REPLY__INIT;
	uint32_t ids[] = {3, 2, 1};

	(void)state;
	r.text = "abc";
	r.text_bytes = 3;
	assert_int_equal(dsc_tokenize(p.c, &r, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_TOKENIZE;
	f.tokenize = &t;
	t.ids = ids;
	t.n_ids = 3;
	peer_send(&p, &f);
	t.last = 1;
	t.n_ids = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->choices[0].n_ids, 4);
	assert_int_equal(result->choices[0].ids[1], 2);
	assert_int_equal(result->choices[0].ids[3], 3);
	dsc_result_free(result);

	r.prompt = DSC_PROMPT_IDS;
	r.ids = ids;
	r.n_ids = 3;
	assert_int_equal(dsc_detokenize(p.c, &r, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_DETOKENIZE;
	f.detokenize = &d;
	d.has_text = 1;
	d.text = (ProtobufCBinaryData){3, (uint8_t *)"a\0b"};
	peer_send(&p, &f);
	d.last = 1;
	peer_send(&p, &f);
	assert_int_equal(dsc_collect(s, &result), 0);
	assert_int_equal(result->choices[0].text_bytes, 6);
	assert_memory_equal(result->choices[0].text, "a\0ba\0b", 6);
	dsc_result_free(result);
	peer_done(&p);
}

static void models_and_stats_are_passed_on_whole(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ModelsReply mr = DSD__MODELS_REPLY__INIT;
	Dsd__Model a = DSD__MODEL__INIT, b = DSD__MODEL__INIT, *models[] = {&a, &b};
	Dsd__StatsReply sr = DSD__STATS_REPLY__INIT;
	Dsd__ModelStats ms = DSD__MODEL_STATS__INIT, *stats[] = {&ms};

	(void)state;
	a.name = (char *)"good";
	a.state = DSD__STATE__STATE_READY;
	a.has_params = 1;
	a.params = 15706484224;
	a.has_chat = a.chat = 1;
	b.name = (char *)"bad";
	b.state = DSD__STATE__STATE_DEGRADED;
	b.reason = (char *)"config.json: no such file";
	mr.models = models;
	mr.n_models = 2;
	assert_int_equal(dsc_models(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_MODELS;
	f.models = &mr;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_MODELS);
	assert_int_equal(e->n_models, 2);
	assert_string_equal(e->models[0]->name, "good");
	assert_int_equal(e->models[0]->params, 15706484224);
	assert_true(e->models[0]->chat);
	assert_null(e->models[0]->reason);
	assert_int_equal(e->models[1]->state, DSC_STATE_DEGRADED);
	assert_string_equal(e->models[1]->reason, "config.json: no such file");
	next(s, DSC_EVENT_DONE);
	ended(s);

	sr.version = (char *)"0.1.0";
	sr.io_backend = (char *)"uring";
	sr.state = DSD__STATE__STATE_READY;
	sr.requests_total = 12;
	sr.models = stats;
	sr.n_models = 1;
	ms.name = (char *)"good";
	ms.pages_used = 5;
	ms.has_pages_cached = ms.has_pages_published = ms.has_preemptions = 1;
	ms.pages_published = 3;
	sr.has_broker_cpu_usec = 1;
	sr.broker_cpu_usec = 17;
	ms.pages_cached = 7;
	ms.preemptions = UINT64_MAX;
	assert_int_equal(dsc_stats(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_STATS;
	f.stats = &sr;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_STATS);
	assert_string_equal(e->stats->io_backend, "uring");
	assert_int_equal(e->stats->requests_total, 12);
	assert_int_equal(e->stats->n_models, 1);
	assert_string_equal(e->stats->models[0]->name, "good");
	assert_int_equal(e->stats->models[0]->pages_used, 5);
	assert_int_equal(e->stats->models[0]->pages_cached, 7);
	assert_int_equal(e->stats->models[0]->pages_published, 3);
	assert_int_equal(e->stats->broker_cpu_usec, 17);
	assert_true(e->stats->models[0]->preemptions == UINT64_MAX);
	next(s, DSC_EVENT_DONE);
	ended(s);
	peer_done(&p);
}

static void peer_ack(struct peer *p, uint64_t id, uint64_t count)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Ack ack = DSD__ACK__INIT;

	ack.has_count = count != 0;
	ack.count = count;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_ACK;
	f.ack = &ack;
	peer_send(p, &f);
}

static void list_comes_in_parts(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__ListReply list = DSD__LIST_REPLY__INIT;
	Dsd__Request a = DSD__REQUEST__INIT, b = DSD__REQUEST__INIT, *requests[] = {&a, &b};

	(void)state;
	a.request = UINT64_MAX;
	a.uid = UINT32_MAX;
	a.pid = 77;
	a.model = (char *)"tiny";
	a.activity = DSD__ACTIVITY__ACTIVITY_DECODE;
	a.prompt_tokens = 9;
	a.cached_tokens = 8;
	a.completion_tokens = 7;
	a.pages = 6;
	a.age_usec = 5;
	a.has_priority = 1;
	a.priority = DSD__PRIORITY__PRIORITY_BATCH;
	b = a;
	b.request = 2;
	b.has_priority = 0;
	assert_int_equal(dsc_list(p.c, &s), 0);
	f.id = peer_receive(&p)->id;
	f.msg_case = DSD__SERVER_FRAME__MSG_LIST;
	f.list = &list;
	list.requests = requests;
	list.n_requests = 2;
	peer_send(&p, &f);
	list.n_requests = 0;
	list.last = 1;
	peer_send(&p, &f);
	e = next(s, DSC_EVENT_REQUESTS);
	assert_int_equal(e->n_requests, 2);
	assert_true(e->requests[0]->request == UINT64_MAX);
	assert_true(e->requests[0]->uid == UINT32_MAX);
	assert_int_equal(e->requests[0]->pid, 77);
	assert_string_equal(e->requests[0]->model, "tiny");
	assert_int_equal(e->requests[0]->activity, DSC_ACTIVITY_DECODE);
	assert_int_equal(e->requests[0]->priority, DSC_PRIORITY_BATCH);
	assert_int_equal(e->requests[0]->prompt_tokens, 9);
	assert_int_equal(e->requests[0]->cached_tokens, 8);
	assert_int_equal(e->requests[0]->completion_tokens, 7);
	assert_int_equal(e->requests[0]->pages, 6);
	assert_int_equal(e->requests[0]->age_usec, 5);
	assert_int_equal(e->requests[1]->request, 2);
	assert_int_equal(e->requests[1]->priority, 0);
	assert_int_equal(next(s, DSC_EVENT_REQUESTS)->n_requests, 0);
	next(s, DSC_EVENT_DONE);
	ended(s);
	peer_done(&p);
}

static void administrative_requests_say_what_was_asked_and_done_counts(void **state)
{
	static const uint32_t ids[] = {3, 2, 1};
	struct dsc_message system = {DSC_ROLE_SYSTEM, "be brief", 8};
	struct dsc_request r = DSC_REQUEST_INIT;
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	Dsd__ClientFrame *f;

	(void)state;
	assert_int_equal(dsc_cancel_request(p.c, UINT64_MAX, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_CANCEL_REQUEST);
	assert_true(f->cancel_request->request == UINT64_MAX);
	peer_ack(&p, f->id, 0);
	assert_int_equal(next(s, DSC_EVENT_DONE)->count, 0);
	ended(s);

	r.model = "tiny";
	r.text = "a\0b";
	r.text_bytes = 3;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_PUBLISH);
	assert_string_equal(f->publish->name, "prefix");
	assert_string_equal(f->publish->model, "tiny");
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_TEXT);
	assert_int_equal(f->publish->text.len, 3);
	assert_memory_equal(f->publish->text.data, "a\0b", 3);
	peer_ack(&p, f->id, 229);
	assert_int_equal(next(s, DSC_EVENT_DONE)->count, 229);

	r.prompt = DSC_PROMPT_CHAT;
	r.messages = &system;
	r.n_messages = 1;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_CHAT);
	assert_int_equal(f->publish->chat->n_messages, 1);
	assert_int_equal(f->publish->chat->messages[0]->role, DSD__ROLE__ROLE_SYSTEM);

	r.prompt = DSC_PROMPT_IDS;
	r.ids = ids;
	r.n_ids = 3;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->publish->prompt_case, DSD__PUBLISH__PROMPT_IDS);
	assert_int_equal(f->publish->ids->n_ids, 3);
	r.prompt = 77;
	assert_int_equal(dsc_publish(p.c, "prefix", &r, &s), -EINVAL);

	assert_int_equal(dsc_unpublish(p.c, "prefix", NULL, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_UNPUBLISH);
	assert_string_equal(f->unpublish->name, "prefix");
	assert_null(f->unpublish->model);
	peer_error(&p, f->id, DSC_CODE_NOT_FOUND, "nothing is published under that name");
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -ENOENT);

	assert_int_equal(dsc_evict(p.c, "tiny", &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_EVICT);
	assert_string_equal(f->evict->model, "tiny");
	peer_ack(&p, f->id, UINT64_MAX);
	assert_true(next(s, DSC_EVENT_DONE)->count == UINT64_MAX);
	ended(s);
	peer_done(&p);
}

static void peer_progress(struct peer *p, uint64_t id, const char *stage, float done)
{
	Dsd__ServerFrame f = DSD__SERVER_FRAME__INIT;
	Dsd__Progress progress = DSD__PROGRESS__INIT;

	progress.stage = (char *)stage;
	progress.done = done;
	f.id = id;
	f.msg_case = DSD__SERVER_FRAME__MSG_PROGRESS;
	f.progress = &progress;
	peer_send(p, &f);
}

static void verbs_of_models_tell_their_progress(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;
	const struct dsc_event *e;
	Dsd__ClientFrame *f;
	uint64_t id;

	(void)state;
	assert_int_equal(dsc_load(p.c, "/models/tiny", NULL, &s), 0);
	f = peer_receive(&p);
	id = f->id;
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_LOAD);
	assert_string_equal(f->load->path, "/models/tiny");
	assert_null(f->load->name);
	peer_progress(&p, id, "packing", 0.25f);
	peer_progress(&p, id, "self-test", 1);
	peer_ack(&p, id, 0);
	e = next(s, DSC_EVENT_PROGRESS);
	assert_string_equal(e->stage, "packing");
	assert_true(e->progress == 0.25f);
	assert_string_equal(next(s, DSC_EVENT_PROGRESS)->stage, "self-test");
	next(s, DSC_EVENT_DONE);
	ended(s);

	assert_int_equal(dsc_unload(p.c, "tiny", &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_UNLOAD);
	assert_string_equal(f->unload->model, "tiny");
	assert_int_equal(dsc_reload(p.c, NULL, DSC_RELOAD_DRAIN, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_RELOAD);
	assert_null(f->reload->model);
	assert_true(f->reload->drain);
	assert_int_equal(dsc_drain(p.c, "tiny", 0, &s), 0);
	f = peer_receive(&p);
	assert_int_equal(f->msg_case, DSD__CLIENT_FRAME__MSG_DRAIN);
	assert_false(f->drain->has_undo && f->drain->undo);
	assert_int_equal(dsc_drain(p.c, "tiny", DSC_DRAIN_UNDO, &s), 0);
	assert_true(peer_receive(&p)->drain->undo);
	assert_int_equal(dsc_drain(p.c, "tiny", 2, &s), -EINVAL);
	assert_false(peer_has_more(&p));
	peer_done(&p);
}

static void an_ack_answers_no_question(void **state)
{
	struct peer p = peer_new();
	struct dsc_stream *s = NULL;

	(void)state;
	assert_int_equal(dsc_list(p.c, &s), 0);
	peer_ack(&p, peer_receive(&p)->id, 1);
	assert_int_equal(next(s, DSC_EVENT_ERROR)->error, -EPROTO);
	peer_done(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(collect_adds_up_the_choices),
		cmocka_unit_test(collect_gives_what_came_before_an_error),
		cmocka_unit_test(score_keeps_every_logprob_over_its_parts),
		cmocka_unit_test(tokenize_and_detokenize_come_in_parts),
		cmocka_unit_test(models_and_stats_are_passed_on_whole),
		cmocka_unit_test(list_comes_in_parts),
		cmocka_unit_test(administrative_requests_say_what_was_asked_and_done_counts),
		cmocka_unit_test(verbs_of_models_tell_their_progress),
		cmocka_unit_test(an_ack_answers_no_question),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
