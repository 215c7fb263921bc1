# SPDX-License-Identifier: Apache-2.0
"""Every option of a request over the wire, and where each is held to its word.

  repetition, presence, frequency  test_penalties_*, test_presence_*; the numbers: tests/unit/sampler.c
  logit bias                       test_a_bias_*; before the penalties: tests/unit/sampler.c
  min tokens, ignore-eos           test_end_tokens_*
  order of the filters             test_a_filter_*; temperature, min_p, top_k, top_p: tests/kernels/sample.c
  n                                test_choices_*; shared prompt: test_generate.py
  echo, prompt logprobs            test_echo_*; pieces, cached prompts: test_generate.py
  stop strings                     test_a_stop_string_*; every split: tests/unit/text_stop.c
  fill in the middle               test_fill_in_the_middle_*; without its tokens: test_generate.py
  deadlines                        test_a_deadline_*; while it runs: test_generate.py
  priorities                       test_urgent_*; preemption: tests/unit/sched.c
"""
import os

import pytest

from dsdtest import SOURCE, Daemon, pb

STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")
PROMPT = "The little fox went to the river. "
EOS = 1  # of the starter model
GREEDY = dict(temperature=0, ignore_eos=True, logprobs=20)


@pytest.fixture(scope="module")
def starter():
    with Daemon("--set", "pool.size=64M", fake=False, model=STARTER) as d:
        yield d


@pytest.fixture
def client(starter):
    c = starter.client()
    yield c
    c.close()


def tokenize(c, text, **how):
    c.send(5, tokenize=pb.Tokenize(text=text.encode(), **how))
    return list(c.recv().tokenize.ids)


def expect_adjusted(a, adjust):
    """Every id is the best of its 20 likeliest after adjust(id, count in the answer so far) is added to them,
    and not always the likeliest one."""
    moved = 0
    for i, t in enumerate(a.logprobs):
        top = [x for x in t.top if x.id != EOS]
        assert t.id == max(top, key=lambda x: x.logprob + adjust(x.id, a.ids[:i].count(x.id))).id, (i, t)
        moved += t.id != top[0].id
    assert moved > 0


def test_presence_and_frequency_penalties_are_of_the_answer(client):
    for presence, frequency in ((2, 0), (0, 1), (1.5, 0.5), (-2, 0)):
        a = client.generate(PROMPT, max_tokens=60, presence_penalty=presence, frequency_penalty=frequency, **GREEDY)
        expect_adjusted(a, lambda id, n: -frequency * n - presence * (n > 0))


def test_penalties_for_repetition_keep_what_came_from_coming_again(client):
    a = client.generate(PROMPT, max_tokens=40, **GREEDY)
    seen = tokenize(client, PROMPT)
    assert len(set(a.ids)) < len(a.ids) and set(seen) & set(a.ids)
    b = client.generate(PROMPT, max_tokens=40, repetition_penalty=100, **GREEDY)
    assert len(set(b.ids)) == len(b.ids) and not set(seen) & set(b.ids)


def test_a_bias_moves_the_draw_and_not_the_logprobs(client):
    plain = client.generate(PROMPT, max_tokens=1, **GREEDY)
    biases = {plain.logprobs[0].top[0].id: -3.0, plain.logprobs[0].top[5].id: 6.0}
    how = dict(GREEDY, logit_bias=[pb.Bias(id=i, bias=b) for i, b in biases.items()])
    a = client.generate(PROMPT, max_tokens=20, **how)
    expect_adjusted(a, lambda id, n: biases.get(id, 0))
    assert a.logprobs[0].top == plain.logprobs[0].top
    only = [pb.Bias(id=1234, bias=100)]
    assert client.generate(PROMPT, max_tokens=5, ignore_eos=True, logit_bias=only).ids == [1234] * 5
    e = client.generate(PROMPT, max_tokens=5, logit_bias=[pb.Bias(id=2048, bias=1)]).error
    assert e.code == pb.CODE_INVALID_ARGUMENT and "logit_bias[0].id: got 2048" in e.message


def test_end_tokens_wait_for_min_tokens_and_never_come_where_they_are_ignored(client):
    end = dict(temperature=0, logit_bias=[pb.Bias(id=EOS, bias=100)])
    at_once = client.generate(PROMPT, max_tokens=30, **end)
    assert (at_once.finish, at_once.ids, at_once.usage.completion_tokens) == (pb.FINISH_EOS, [], 1)
    later = client.generate(PROMPT, max_tokens=30, min_tokens=7, **end)
    assert (later.finish, len(later.ids), later.usage.completion_tokens) == (pb.FINISH_EOS, 7, 8)
    never = client.generate(PROMPT, max_tokens=30, ignore_eos=True, **end)
    assert (never.finish, len(never.ids), never.usage.completion_tokens) == (pb.FINISH_LENGTH, 30, 30)
    assert EOS not in later.ids + never.ids


def test_a_filter_that_leaves_one_token_is_greedy(client):
    greedy = client.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True).ids
    how = dict(max_tokens=30, temperature=3, top_p=1, ignore_eos=True, seed=5)
    assert client.generate(PROMPT, **how).ids != greedy
    for one in (dict(top_k=1), dict(min_p=1), dict(top_p=0.000001)):
        assert client.generate(PROMPT, **dict(how, **one)).ids == greedy
    two = client.generate(PROMPT, top_k=2, logprobs=3, **how)
    best = [[x.id for x in t.top if x.id != EOS][:2] for t in two.logprobs]
    assert {b.index(t.id) for b, t in zip(best, two.logprobs)} == {0, 1}


def test_choices_are_each_the_request_of_one_choice_with_its_own_key(client):
    how = dict(max_tokens=30, temperature=1, seed=9, ignore_eos=True)
    a = client.generate(PROMPT, n=5, **how)
    assert sorted(a.choices) == list(range(5)) and a.usage.completion_tokens == 150
    assert len({tuple(c.ids) for c in a.choices.values()}) == 5
    assert a.choices[0].ids == client.generate(PROMPT, **how).ids
    greedy = client.generate(PROMPT, n=3, **dict(how, temperature=0))
    assert len({tuple(c.ids) for c in greedy.choices.values()}) == 1


def test_echo_with_logprobs_is_score_and_then_the_answer(client):
    plain = client.generate(PROMPT, max_tokens=6, **GREEDY)
    a = client.generate(PROMPT, max_tokens=6, echo=True, **GREEDY)
    scored = client.score(PROMPT, logprobs=20)
    assert a.ids == [t.id for t in scored] + plain.ids
    assert list(a.logprobs) == list(scored) + list(plain.logprobs)
    assert a.text.endswith(PROMPT.encode() + plain.text)


def test_a_stop_string_begins_and_ends_inside_of_tokens(client):
    """The starter model's tokens are words: a stop string cuts the last bytes of one and the first of the next."""
    how = dict(max_tokens=40, temperature=0, ignore_eos=True)
    plain = client.generate(PROMPT, **how)
    client.send(5, detokenize=pb.Detokenize(ids=pb.Ids(ids=plain.ids[:12])))
    until = client.recv().detokenize.text
    assert plain.text.startswith(until)
    stop = plain.text[len(until) - 2:len(until) + 1]  # across the border of tokens 11 and 12
    assert plain.text.index(stop) == len(until) - 2
    a = client.generate(PROMPT, stop=[b"not in it", stop], **how)
    assert (a.finish, a.text) == (pb.FINISH_STOP, until[:-2])
    assert a.usage.completion_tokens == 13 and a.ids == plain.ids[:13]


def test_fill_in_the_middle_puts_its_tokens_around_prefix_and_suffix(client):
    client.send(7, generate=pb.Generate(text=b"def f(x):\n    return ", suffix=b"\n\nprint(f(2))",
                                        sampling=pb.Sampling(max_tokens=3, temperature=0, echo=True)))
    a = client.finish()
    want = tokenize(client, "<｜fim▁begin｜>def f(x):\n    return <｜fim▁hole｜>\n\nprint(f(2))<｜fim▁end｜>",
                    parse_special=True, add_bos=True)
    assert a.error is None and a.ids[:len(want)] == want and a.usage.prompt_tokens == len(want)
    assert [want.count(i) for i in (0, 1776, 1777, 1778)] == [1] * 4  # begin of text, hole, begin, end
    again = client.generate(ids=want, max_tokens=3, temperature=0)
    assert a.ids[len(want):] == again.ids
    # What is written out in the text of a user stays text.
    client.send(7, generate=pb.Generate(text="<｜fim▁hole｜>".encode(), suffix=b"y",
                                        sampling=pb.Sampling(max_tokens=1, echo=True)))
    assert client.finish().ids.count(1776) == 1


def test_urgent_requests_go_first_and_equal_ones_in_their_order():
    with Daemon("--set", "sched.slots=1", env={"DSD_FAKE_STEP_USEC": "200"}) as d:
        c = d.client()
        c.start("the one that runs", id=1, max_tokens=8000, ignore_eos=True)
        assert c.recv().WhichOneof("msg") == "started"
        while c.recv().WhichOneof("msg") != "delta":
            pass
        priorities = {2: pb.PRIORITY_BATCH, 3: None, 4: pb.PRIORITY_INTERACTIVE, 5: pb.PRIORITY_NORMAL,
                      6: pb.PRIORITY_INTERACTIVE}
        for id, priority in priorities.items():
            c.send(id, generate=pb.Generate(text=b"waits", priority=priority,
                                            sampling=pb.Sampling(max_tokens=3, ignore_eos=True)))
        waiting = set(priorities)
        while waiting:
            f = c.recv()
            assert f.id == 1 or f.WhichOneof("msg") == "started", f
            waiting.discard(f.id)
        c.send(7, cancel=pb.Cancel(target=1))
        order = []
        while len(order) < len(priorities):
            f = c.recv()
            if f.WhichOneof("msg") == "done":
                order.append(f.id)
        assert order == [4, 6, 3, 5, 2]


def test_a_deadline_also_ends_who_still_waits():
    with Daemon("--set", "sched.slots=1", env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        c, other = d.client(), d.client()
        other.start("the one that runs", max_tokens=8000, ignore_eos=True)
        assert other.recv().WhichOneof("msg") == "started"
        while other.recv().WhichOneof("msg") != "delta":
            pass
        c.send(5, generate=pb.Generate(text=b"x", deadline_ms=50))
        a = c.finish(5)
        assert a.error.code == pb.CODE_DEADLINE_EXCEEDED and not a.choices
        assert c.stats().models[0].waiting == 0 and other.recv().WhichOneof("msg") == "delta"
