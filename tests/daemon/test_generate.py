# SPDX-License-Identifier: Apache-2.0
"""Generate, Score, Tokenize, Detokenize over the wire, against the fake worker: what must hold of the
broker whatever the model is."""
import time

from dsdtest import Daemon, pb


def test_greedy_repeats_itself(client):
    a = client.generate("hello", max_tokens=64, temperature=0, ignore_eos=True)
    b = client.generate("hello", max_tokens=64, temperature=0, ignore_eos=True)
    assert len(a.ids) == 64 and a.ids == b.ids and a.text == b.text


def test_empty_texts_are_texts(client):
    """What has no bytes may have no address either; the sanitizers look at what is done with it."""
    assert client.generate(chat=[(2, ""), (3, ""), (2, "")], max_tokens=2).error is None
    client.send(9, tokenize=pb.Tokenize(text=b""))
    f = client.recv()
    assert f.WhichOneof("msg") == "tokenize" and len(f.tokenize.ids) <= 1  # the one that begins every text


def test_seed_repeats_itself_and_choices_differ(client):
    how = dict(max_tokens=64, temperature=0.8, seed=7, ignore_eos=True)
    a = client.generate("hello", **how)
    assert a.ids == client.generate("hello", **how).ids
    assert a.ids != client.generate("hello", **dict(how, seed=8)).ids
    both = client.generate("hello", n=2, **how)
    assert both.choices[0].ids == a.ids and both.choices[1].ids != a.ids
    assert both.usage.completion_tokens == 128


def test_started_comes_first_and_says_what_runs(client):
    client.start("hello", max_tokens=3, seed=5)
    f = client.recv()
    assert f.WhichOneof("msg") == "started" and f.started.seed == 5
    assert f.started.prompt_tokens == 6 and len(f.started.model_digest) == 32  # begin token counted
    assert client.finish().usage.prompt_tokens == 6


def test_absent_seed_is_drawn_and_told(client):
    a = client.generate("hello", max_tokens=32, temperature=1, ignore_eos=True)
    b = client.generate("hello", max_tokens=32, temperature=1, ignore_eos=True)
    assert a.started.seed != b.started.seed and a.ids != b.ids
    assert a.ids == client.generate("hello", max_tokens=32, temperature=1, ignore_eos=True,
                                    seed=a.started.seed).ids


def test_streams_of_one_connection_are_told_apart(client):
    prompts = {10 + i: "prompt %d" % i for i in range(8)}
    alone = {i: client.generate(p, max_tokens=50, temperature=0).ids for i, p in prompts.items()}
    for i, p in prompts.items():
        client.start(p, id=i, max_tokens=50, temperature=0)
    got, left = {i: [] for i in prompts}, set(prompts)
    while left:
        f = client.recv()
        if f.WhichOneof("msg") == "delta":
            got[f.id] += f.delta.ids
        elif f.WhichOneof("msg") == "done":
            left.remove(f.id)
    assert got == alone


def test_end_token_ends_the_answer_and_is_not_part_of_it(client):
    a = client.generate("hello", max_tokens=4000, temperature=0)
    assert a.finish == pb.FINISH_EOS and 257 not in a.ids
    assert a.usage.completion_tokens == len(a.ids) + 1


def test_stop_string_ends_the_answer_before_itself(client):
    whole = client.generate("hello", max_tokens=64, temperature=0, ignore_eos=True).text
    stop = whole[10:14]
    a = client.generate("hello", max_tokens=64, temperature=0, ignore_eos=True, stop=[stop])
    assert a.finish == pb.FINISH_STOP and a.text == whole[:whole.index(stop)]


def test_stop_string_that_never_completes_holds_nothing_back(client):
    whole = client.generate("hello", max_tokens=20, temperature=0, ignore_eos=True).text
    a = client.generate("hello", max_tokens=20, temperature=0, ignore_eos=True, stop=[whole[-2:] + b"\x01"])
    assert a.text == whole and a.finish == pb.FINISH_LENGTH


def test_logprobs_come_with_each_token(client):
    a = client.generate("hello", max_tokens=8, temperature=0, ignore_eos=True, logprobs=3)
    assert [t.id for t in a.logprobs] == a.ids and all(len(t.top) == 3 for t in a.logprobs)
    assert all(t.logprob <= 0 and t.top[0].logprob >= t.top[1].logprob for t in a.logprobs)
    assert client.generate("hello", max_tokens=8, temperature=0).logprobs == []


def test_score_has_a_logprob_for_every_token_but_the_first(client):
    tokens = client.score("hello")
    assert [t.id for t in tokens] == [256] + list(b"hello")
    assert not tokens[0].HasField("logprob") and all(t.HasField("logprob") for t in tokens[1:])
    assert [t.id for t in client.score(ids=[104, 105])] == [104, 105]


def test_score_longer_than_a_frame_comes_in_parts(client):
    text = "abcdefg" * 1000
    assert len(client.score(text, logprobs=20)) == 7001


def test_cancel_ends_the_stream_and_frees_its_pages(fake, client):
    client.start("hello", id=3, max_tokens=8000, ignore_eos=True)
    assert client.recv().WhichOneof("msg") == "started"
    client.send(4, cancel=pb.Cancel(target=3))
    a = client.finish(3)
    assert a.error.code == pb.CODE_CANCELLED
    for _ in range(100):
        m = client.stats().models[0]
        if m.pages_used == 0 and m.running == 0:
            break
        time.sleep(0.02)
    assert (m.pages_used, m.running) == (0, 0)
    assert client.generate("hello", id=3, max_tokens=2).error is None  # the id is free again


def test_cancel_of_a_finished_request_says_nothing(client):
    client.generate("hello", id=3, max_tokens=2)
    client.send(4, cancel=pb.Cancel(target=3))
    assert client.generate("hello", id=5, max_tokens=2).error is None


def test_tokenize_and_detokenize_are_inverse(client):
    data = bytes(range(256)) * 3
    client.send(5, tokenize=pb.Tokenize(text=data))
    ids = client.recv().tokenize.ids
    client.send(6, detokenize=pb.Detokenize(ids=pb.Ids(ids=ids)))
    assert client.recv().detokenize.text == data


def test_a_mebibyte_of_text_is_tokenized_off_the_loop_in_parts(client):
    client.send(5, tokenize=pb.Tokenize(text=b"x" * 1000000))
    client.send(6, tokenize=pb.Tokenize(text=b"y"))
    ids, last, short = [], False, None
    while not last or short is None:
        f = client.recv()
        if f.id == 6:
            short = list(f.tokenize.ids)
        else:
            ids += f.tokenize.ids
            last = f.tokenize.last
    assert ids == [120] * 1000000 and short == [121]


def test_a_repeated_prompt_is_found_in_the_pool(client):
    """All full pages before the last token, and the answer is the same; another prompt finds its own prefix."""
    prompt = "a prompt that is longer than three pages " * 5  # 205 bytes and the begin token
    first = client.generate(prompt, max_tokens=40, temperature=0, ignore_eos=True)
    again = client.generate(prompt, max_tokens=40, temperature=0, ignore_eos=True)
    assert again.ids == first.ids
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 192)
    other = client.generate(prompt[:100] + "X" + prompt[101:], max_tokens=2)
    assert other.usage.cached_tokens == 64
    exact = client.generate(prompt[:191], max_tokens=2)  # 192 tokens: the last one must be computed
    assert exact.usage.cached_tokens == 128


def test_choices_share_their_prompt(client):
    prompt = "choices of one request compute their prompt once " * 8
    a = client.generate(prompt, n=4, max_tokens=3, temperature=1, seed=1, ignore_eos=True)
    before = client.stats().models[0].prompt_tokens
    b = client.generate(prompt + "!", n=4, max_tokens=3, temperature=1, seed=1, ignore_eos=True)
    rows = client.stats().models[0].prompt_tokens - before
    assert a.error is None and b.usage.cached_tokens == 384 and rows == 4 * (len(prompt) + 2 - 384)


def test_generated_pages_serve_a_resume_and_not_a_longer_prompt(client):
    """What a request computes must not depend on what the cache holds."""
    whole = client.generate("hello", max_tokens=300, temperature=0, ignore_eos=True)
    longer = client.generate(ids=[256] + list(b"hello") + whole.ids[:200], max_tokens=2)
    assert longer.usage.cached_tokens == 0
    resume = pb.Resume(generated_ids=whole.ids[:200], seed=1, model_digest=whole.started.model_digest)
    before = client.stats().models[0].rows
    rest = client.generate("hello", max_tokens=201, temperature=0, ignore_eos=True, resume=resume)
    assert rest.ids == whole.ids[200:201]
    assert client.stats().models[0].rows - before <= 206 - 192 + 1


def test_resume_goes_on_with_the_same_tokens(client):
    for how in (dict(temperature=0), dict(temperature=0.9, seed=11)):
        whole = client.generate("hello", max_tokens=200, ignore_eos=True, **how)
        for cut in (1, 63, 64, 199):
            resume = pb.Resume(generated_ids=whole.ids[:cut], seed=whole.started.seed,
                               model_digest=whole.started.model_digest)
            rest = client.generate("hello", max_tokens=200, ignore_eos=True, resume=resume, **how)
            assert rest.ids == whole.ids[cut:] and rest.text == whole.text[cut:]
            assert rest.usage.prompt_tokens == 6


def test_resume_with_another_model_is_refused(client):
    resume = pb.Resume(generated_ids=[100], seed=1, model_digest=b"\0" * 32)
    assert client.generate("hello", max_tokens=9, resume=resume).error.code == pb.CODE_FAILED_PRECONDITION


def test_max_tokens_stops_at_the_context(client):
    a = client.generate("x" * 8100, max_tokens=100000, temperature=0, ignore_eos=True)
    assert a.finish == pb.FINISH_LENGTH and len(a.ids) == 8192 - 8101


def test_echo_puts_the_prompt_before_the_answer(client):
    plain = client.generate("hello", max_tokens=5, temperature=0, ignore_eos=True)
    a = client.generate("hello", max_tokens=5, temperature=0, ignore_eos=True, echo=True)
    assert a.ids == [256] + list(b"hello") + plain.ids and a.text == b"hello" + plain.text
    assert a.usage.completion_tokens == 5


def test_echo_with_logprobs_scores_the_prompt(client):
    prompt = "a prompt of two pages and a bit, so that a cached one would show" * 3
    scored = client.score(prompt, logprobs=2)
    client.generate(prompt, max_tokens=1)  # now the pool holds it
    a = client.generate(prompt, max_tokens=3, temperature=0, ignore_eos=True, echo=True, logprobs=2)
    assert len(a.logprobs) == len(scored) + 3 and not a.logprobs[0].HasField("logprob")
    assert [(t.id, t.logprob) for t in a.logprobs[:len(scored)]] == [(t.id, t.logprob) for t in scored]


def test_fill_in_the_middle_needs_its_tokens(client):
    client.send(5, generate=pb.Generate(text=b"x", suffix=b"y"))
    e = client.recv().error
    assert e.code == pb.CODE_FAILED_PRECONDITION and "suffix" in e.message
    client.send(5, generate=pb.Generate(ids=pb.Ids(ids=[1]), suffix=b"y"))
    assert client.recv().error.code == pb.CODE_INVALID_ARGUMENT


def test_a_deadline_ends_a_request_in_words():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        c = d.client()
        c.send(5, generate=pb.Generate(text=b"x", deadline_ms=200, sampling=pb.Sampling(ignore_eos=True)))
        a = c.finish(5)
        assert a.error.code == pb.CODE_DEADLINE_EXCEEDED and a.choices[0].ids
        assert c.generate("x", max_tokens=3).error is None
