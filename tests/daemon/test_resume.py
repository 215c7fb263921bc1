# SPDX-License-Identifier: Apache-2.0
"""Streams that go on: whatever a client had when it lost its daemon, the rest is what it would have got."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

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


# libdsclient in dsctl, over the end of its daemon -----------------------------------------------------------

DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")
LONG = ["--max-tokens", "160", "--ignore-eos"]
CLIENTS = {
    "greedy": ["--temperature", "0", "--seed", "1"],
    "seeded": ["--temperature", "0.9", "--seed", "4"],
    "two choices": ["--temperature", "1", "--seed", "8", "--n", "2"],
    "stop": ["--temperature", "0", "--seed", "1", "--stop", " never there", "--stop", " th~", "--stop", " a~"],
    "characters": ["--temperature", "100", "--top-p", "1", "--top-k", "0", "--seed", "5"],
    "logprobs": ["--temperature", "0.7", "--seed", "2", "--logprobs", "2", "--repetition-penalty", "1.2"],
}


def ask(socket, options, *more):
    return subprocess.Popen([DSCTL, "--socket", socket, *more, "generate", "--json", *LONG, *options, "Once upon a time"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def told(p):
    """What a client was told, but for times and what the cache held."""
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    o = json.loads(out)
    for choice in [o] + o.get("choices", []):
        for key in [k for k in choice if k.endswith("usec") or k in ("request",)]:
            del choice[key]
    o["usage"] = {k: o["usage"][k] for k in ("prompt_tokens", "completion_tokens")}
    return o


def wait_tokens(daemon, n):
    """Until the daemon that runs now has sampled that many."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            c = daemon.client()
            try:
                m = c.stats().models
                if m and m[0].generated_tokens >= n:
                    return
            finally:
                c.close()
        except (ConnectionRefusedError, FileNotFoundError, Closed):
            pass
        time.sleep(0.01)
    raise AssertionError("nothing is generated: " + daemon.read_log())


@pytest.fixture(scope="module")
def undisturbed(starter):
    running = {name: ask(starter.socket, options) for name, options in CLIENTS.items()}
    return {name: told(p) for name, p in running.items()}


def check_all(undisturbed, running):
    for name, p in running.items():
        assert told(p) == undisturbed[name], name


def test_clients_go_on_when_the_daemon_is_killed_and_comes_back(undisturbed):
    with Daemon(*SMALL, fake=False, model=STARTER + ":starter") as d:
        running = {name: ask(d.socket, options) for name, options in CLIENTS.items()}
        for _ in range(3):
            wait_tokens(d, 100)
            assert any(p.poll() is None for p in running.values())
            d.process.kill()
            d.process.wait()
            d.start(wait=False)
        check_all(undisturbed, running)


def test_clients_go_on_when_the_socket_stays_and_the_daemon_does_not(undisturbed, tmp_path):
    """As under systemd: the listening socket is the parent's and survives."""
    path = str(tmp_path / "held.sock")
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    held.bind(path)
    os.chmod(path, 0o660)
    held.listen(64)
    wrapper = tmp_path / "activate"
    wrapper.write_text("import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.set_inheritable(3, True)\n"
                       "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='dsd.socket')\n"
                       "os.execv(sys.argv[2], sys.argv[2:])\n")

    class Held(Daemon):
        def start(self, wait=True):
            self.socket = path
            self.args[self.args.index("--socket") + 1] = path
            self.process = subprocess.Popen([sys.executable, str(wrapper), str(held.fileno()), *self.args],
                                            stderr=open(self.log, "ab"), env=self.env, stdin=subprocess.DEVNULL,
                                            pass_fds=[held.fileno()])
            if wait:
                self.wait_ready()

    with Held(*SMALL, fake=False, model=STARTER + ":starter") as d:
        running = {name: ask(path, options) for name, options in CLIENTS.items()}
        for _ in range(2):
            wait_tokens(d, 100)
            d.process.kill()
            d.process.wait()
            d.start(wait=False)
        check_all(undisturbed, running)
    held.close()


def test_clients_go_on_when_the_worker_is_killed(undisturbed):
    with Daemon(*SMALL, fake=False, model=STARTER + ":starter") as d:
        running = {name: ask(d.socket, options) for name, options in CLIENTS.items()}
        wait_tokens(d, 100)
        os.kill(d.worker_pid(), signal.SIGKILL)
        check_all(undisturbed, running)


def test_without_resume_the_end_of_the_daemon_is_an_error():
    with Daemon(*SMALL, fake=False, model=STARTER + ":starter") as d:
        p = ask(d.socket, CLIENTS["greedy"], "--no-resume")
        wait_tokens(d, 20)
        d.process.kill()
        d.process.wait()
        d.start(wait=False)
        _, err = p.communicate(timeout=30)
        assert p.returncode == 1 and b"RETRYABLE" in err


def test_another_model_after_the_restart_is_an_error():
    with Daemon(*SMALL, fake=False, model=STARTER + ":starter") as d:
        p = ask(d.socket, CLIENTS["greedy"])
        wait_tokens(d, 20)
        d.process.kill()
        d.process.wait()
        d.args[d.args.index("--model") + 1] = os.path.join(SOURCE, "tests", "golden", "v2-tiny") + ":starter"
        d.start(wait=False)
        _, err = p.communicate(timeout=60)
        assert p.returncode == 1 and b"FAILED_PRECONDITION" in err


def test_a_score_and_an_echo_go_on(starter, tmp_path):
    """The prompt's log-probabilities too, in the middle of which the daemon is killed."""
    text = "Once upon a time there was a little girl. " * 60
    asks = [["score", "--json", text], ["generate", "--json", "--echo", "--logprobs", "1", "--temperature", "0",
                                        "--seed", "1", "--max-tokens", "5", text]]
    want = [json.loads(subprocess.run([DSCTL, "--socket", starter.socket, *a], capture_output=True, check=True).stdout)
            for a in asks]
    with Daemon(*SMALL, "--set", "sched.step_tokens=16", fake=False, model=STARTER + ":starter") as d:
        running = [subprocess.Popen([DSCTL, "--socket", d.socket, *a], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                   for a in asks]
        end = time.monotonic() + 60
        while d.client().stats().models[0].rows < 200 and time.monotonic() < end:
            time.sleep(0.005)
        d.process.kill()
        d.process.wait()
        d.start(wait=False)
        for w, p in zip(want, running):
            out, err = p.communicate(timeout=120)
            assert p.returncode == 0, err
            got = json.loads(out)
            for key in ("usage", "request"):
                w.pop(key, None), got.pop(key, None)
            assert got == w
