# SPDX-License-Identifier: Apache-2.0
"""Streams that go on: whatever a client had when it lost its daemon, the rest is what it would have got."""
import os

import pytest

from dsdtest import BUILD, SOURCE, Closed, Daemon, pb

STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")
SMALL = ("--set", "pool.size=256M")


@pytest.fixture(scope="module")
def starter():
    with Daemon(*SMALL, fake=False, model=STARTER + ":starter") as d:
        yield d


def deltas(client, prompt, **how):
    """The Deltas of one choice, and what it started and ended with."""
    client.start(prompt, **how)
    started, pieces = client.recv().started, []
    while True:
        f = client.recv()
        if f.WhichOneof("msg") != "delta":
            assert f.WhichOneof("msg") == "done", f
            return started, pieces, f.done.usage
        pieces.append(f.delta)


def summed(pieces):
    return ([i for d in pieces for i in d.ids], b"".join(d.text for d in pieces),
            [l.SerializeToString() for d in pieces for l in d.logprobs], [d.finish for d in pieces if d.HasField("finish")])


# Each with whether its text lags behind its ids. Hot sampling gives bytes that are no characters, and the
# stop strings begin as the words of the story do; only the last of them is met.
CASES = {
    "greedy": (False, dict(temperature=0, max_tokens=24)),
    "characters that lag": (True, dict(temperature=100, top_p=1, top_k=0, seed=5, max_tokens=20, ignore_eos=True)),
    "stop strings that lag": (True, dict(temperature=0, max_tokens=60, stop=[
        b" there was a boy", b" a time", b" girl nam?", b" named L", b" was a little girl!", b"She lo", b" play w"])),
    "logprobs": (False, dict(temperature=0.8, seed=3, max_tokens=20, logprobs=3)),
    "penalties": (False, dict(temperature=0.7, seed=9, max_tokens=32, repetition_penalty=1.3, presence_penalty=0.5,
                              frequency_penalty=0.4, min_tokens=20)),
}


@pytest.mark.parametrize("lags,how", CASES.values(), ids=CASES.keys())
def test_a_resume_brings_what_had_not_come_wherever_it_was_cut(starter, lags, how):
    c = starter.client()
    started, whole, usage = deltas(c, "Once upon a time", **how)
    n_lagging = 0
    for cut in range(len(whole)):
        ids = [i for d in whole[:cut] for i in d.ids]
        resume = pb.Resume(generated_ids=ids, seed=started.seed, model_digest=started.model_digest)
        again, rest, counted = deltas(c, "Once upon a time", resume=resume, **how)
        assert summed(rest) == summed(whole[cut:]), cut
        assert again.prompt_tokens == counted.prompt_tokens == started.prompt_tokens
        assert counted.completion_tokens == usage.completion_tokens
        n_lagging += bool(cut and not whole[cut - 1].text)
    assert len(whole) > 8 and (not lags or n_lagging), summed(whole)
    c.close()


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": 1}], ids=["plain", "logprobs"])
def test_a_resume_of_an_echo_says_how_much_of_the_prompt_had_come(starter, logprobs):
    c = starter.client()
    how = dict(temperature=0, max_tokens=4, echo=True, **logprobs)
    prompt = "Once upon a time there was a caf\u00e9 \U0001f9ed".encode()[:-1]  # ends within a character
    started, whole, first = deltas(c, prompt, **how)
    ids, text, told, finish = summed(whole)
    for n in (n for n in range(len(ids) + 1) if logprobs or n == 0 or n >= started.prompt_tokens):
        had, cut = 0, 0
        while had < n:
            had += len(whole[cut].ids)
            cut += 1
        resume = pb.Resume(generated_ids=ids[started.prompt_tokens:n], seed=started.seed,
                           echoed=min(n, started.prompt_tokens), model_digest=started.model_digest)
        _, rest, usage = deltas(c, prompt, resume=resume, **how)
        assert summed(rest) == (ids[n:], b"".join(d.text for d in whole[cut:]), told[n:] if logprobs else [], finish), n
        assert usage.completion_tokens == first.completion_tokens
    resume = pb.Resume(generated_ids=[1], seed=1, echoed=2, model_digest=started.model_digest)
    assert c.generate(prompt, resume=resume, **how).error.code == pb.CODE_INVALID_ARGUMENT
    resume = pb.Resume(seed=1, echoed=1000, model_digest=started.model_digest)
    assert c.generate(prompt, resume=resume, **how).error.code == pb.CODE_INVALID_ARGUMENT
    c.close()


def test_a_resume_of_each_choice_draws_its_own_tokens(starter):
    c = starter.client()
    how = dict(temperature=1, max_tokens=20, seed=7, ignore_eos=True)
    whole = c.generate("Once upon a time", n=3, **how)
    for k in range(3):
        for cut in (0, 1, 19, 20):
            resume = pb.Resume(generated_ids=whole.choices[k].ids[:cut], seed=7, choice=k,
                               model_digest=whole.started.model_digest)
            rest = c.generate("Once upon a time", resume=resume, **how)
            assert rest.ids == whole.choices[k].ids[cut:]
    c.close()


def test_a_resume_past_its_end_is_refused_in_words(starter):
    c = starter.client()
    whole = c.generate("Once upon a time", temperature=0, max_tokens=4)
    digest = whole.started.model_digest
    for ids, words in ((whole.ids + [1], "at most 4"), ([1 << 19], "less than")):
        e = c.generate("Once upon a time", max_tokens=4, resume=pb.Resume(generated_ids=ids, seed=1, model_digest=digest))
        assert e.error.code == pb.CODE_INVALID_ARGUMENT and words in e.error.message
    c.close()
