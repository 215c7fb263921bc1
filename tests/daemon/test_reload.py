# SPDX-License-Identifier: Apache-2.0
"""Models come and go while requests run: reload, load, unload, drain, idle unload, stop."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from dsdtest import BUILD, SOURCE, Client, Closed, Daemon, pb

GOLDEN = os.path.join(SOURCE, "tests", "golden", "v2-lite-tiny")
DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")
SMALL = ("--set", "pool.size=16M", "--set", "worker.weights=f32")


def synthetic(path, seed):
    """A model directory without weights; another seed is another model."""
    config = json.load(open(os.path.join(GOLDEN, "config.json")))
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json.new"), "w") as f:
        json.dump(dict(config, dsd_synthetic=seed), f)
    os.rename(os.path.join(path, "config.json.new"), os.path.join(path, "config.json"))
    return str(path)


def do(admin, **message):
    """Send an administrative verb; its last frame, and how often it told its progress."""
    admin.send(3, **message)
    n = 0
    while (f := admin.recv()).WhichOneof("msg") == "progress":
        assert 0 <= f.progress.done <= 1 and f.progress.stage
        n += 1
    return f, n


def ack(admin, **message):
    f, n = do(admin, **message)
    assert f.WhichOneof("msg") == "ack", f
    return n


def greedy(c, n=24, **kw):
    a = c.generate("hello there", max_tokens=n, temperature=0, ignore_eos=True, **kw)
    assert a.error is None, a.error
    return a.ids


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def start_streams(c, n, tokens):
    for i in range(n):
        c.start("hello there", id=100 + i, max_tokens=tokens, temperature=1, seed=i, ignore_eos=True)
    got = {100 + i: [] for i in range(n)}
    while not all(got.values()):
        f = c.recv()
        if f.WhichOneof("msg") == "delta":
            got[f.id] += f.delta.ids
    return got


def finish_streams(c, got):
    left = set(got)
    while left:
        f = c.recv()
        kind = f.WhichOneof("msg")
        assert kind != "error", f
        if kind == "delta":
            got[f.id] += f.delta.ids
        elif kind == "done":
            left.discard(f.id)
    return got


def test_a_reload_changes_the_model_and_disturbs_nobody(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        c, admin = d.client(), Client(d.admin)
        old = greedy(c)
        want = finish_streams(c, start_streams(c, 4, 400))
        got = start_streams(c, 4, 400)
        synthetic(path, 2)
        assert ack(admin, reload=pb.Reload()) > 0
        other = d.client()
        new = greedy(other)
        assert new != old  # whoever comes now has the new model
        assert finish_streams(c, got) == want  # and who was there has kept the old one to the end
        until(lambda: "model m: the old one is unloaded" in d.read_log())
        st = other.stats()
        assert len(st.models) == 1 and st.models[0].worker_starts == 1 and st.requests_failed == 0
        assert greedy(c) == new


def test_counters_are_of_requests_alone_and_begin_anew_with_a_reload(tmp_path):
    with Daemon(*SMALL, fake=False, model=synthetic(tmp_path / "m", 1)) as d:
        c, admin = d.client(), Client(d.admin)

        def counters():
            (m,) = c.stats().models
            return m.steps, m.rows, m.prompt_tokens, m.generated_tokens, m.cached_tokens, m.worker_usec

        assert os.listdir(os.path.join(d.dir, "state", "selftest"))  # there was one
        assert counters() == (0,) * 6
        greedy(c, n=5)
        assert counters()[2:5] == (len("hello there") + 1, 5, 0)
        os.kill(d.worker_pid(), signal.SIGKILL)
        greedy(c, n=5)
        assert counters()[3] == 10
        ack(admin, reload=pb.Reload())
        assert counters() == (0,) * 6


def test_a_reload_of_the_same_files_keeps_what_is_cached(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    text = "a text of more than one page, so that a page of it is found again. " * 3
    with Daemon(*SMALL, fake=False, model=path) as d:
        c, admin = d.client(), Client(d.admin)
        ack(admin, publish=pb.Publish(name="p", text=b"what everybody begins with. " * 5))
        a = c.generate(text, max_tokens=8, temperature=0)
        got = start_streams(c, 3, 300)
        pid = d.worker_pid()
        for _ in range(3):
            ack(admin, reload=pb.Reload())
        assert d.worker_pid() != pid
        finish_streams(c, got)
        b = c.generate(text, max_tokens=8, temperature=0)
        assert b.ids == a.ids and b.usage.cached_tokens == a.started.prompt_tokens // 64 * 64 > 0
        assert c.generate("what everybody begins with. " * 6, max_tokens=1).usage.cached_tokens >= 64
        assert ack(admin, unpublish=pb.Unpublish(name="p")) == 0
        until(lambda: c.stats().models[0].pages_used == 0)


def test_tags_are_made_while_two_models_share_a_pool():
    """The work on a tag ends once, whoever's page it is: with it begun anew meanwhile, tags would be of nothing."""
    with Daemon("--set", "pool.size=64M", "--set", "pool.verify=always") as d:
        c, other, admin = d.client(), d.client(), Client(d.admin)
        got = start_streams(c, 4, 2000)
        ack(admin, reload=pb.Reload())
        texts = ["%d: a text of a few pages. " % i * 40 for i in range(8)]
        first = [other.generate(t, max_tokens=4, temperature=0).ids for t in texts]
        again = [other.generate(t, max_tokens=4, temperature=0) for t in texts]
        assert "unloaded" not in d.read_log()  # the old one was there all the time
        finish_streams(c, got)
        assert [a.ids for a in again] == first
        assert all(a.usage.cached_tokens == (a.started.prompt_tokens - 1) // 64 * 64 > 0 for a in again)
        assert d.stop() == 0


@pytest.mark.parametrize("old, new", [(60, 60), (80, 80)])
def test_two_models_of_one_pool_wait_for_each_others_pages(old, new):
    """In per cent of the pool: neither the old one's streams nor who comes ends for want of pages, and sessions give
    way."""
    with Daemon("--set", "pool.size=200K", env={"DSD_FAKE_STEP_USEC": "200"}) as d:
        c, other, admin = d.client(), d.client(), Client(d.admin)
        room = c.stats().models[0].pages_total * 64
        assert room > 2000
        part = lambda percent, k: dict(ids=[i * k % 200 for i in range(room * percent // 300)], temperature=0,
                                       max_tokens=room * percent // 150, ignore_eos=True)
        want = [other.generate(**part(new, 7)).ids, other.generate(**part(new, 11)).ids]
        alone = other.generate(**part(old, 3)).ids
        other.send(3, session_open=pb.SessionOpen())
        session = other.recv().session.session
        other.send(7, generate=pb.Generate(ids=pb.Ids(ids=[i % 190 for i in range(room // 3)]), session=session,
                                           sampling=pb.Sampling(max_tokens=1)))
        assert other.finish().error is None
        c.start(id=100, **part(old, 3))
        got = {100: []}
        while not got[100]:
            f = c.recv()
            got[100] += f.delta.ids
        ack(admin, reload=pb.Reload())
        second = d.client()
        other.start(**part(new, 7))
        second.start(**part(new, 11))
        answers = [other.finish(), second.finish()]
        assert finish_streams(c, got)[100] == alone
        assert [a.error for a in answers] == [None, None], answers
        assert [a.ids for a in answers] == want
        until(lambda: len(c.stats().models) == 1 and c.stats().models[0].running == 0)


def test_a_bad_model_leaves_the_old_one_serving_and_says_why(tmp_path):
    path = tmp_path / "m"
    shutil.copytree(GOLDEN, path)
    with Daemon(*SMALL, fake=False, model=str(path)) as d:
        c, admin = d.client(), Client(d.admin)
        want = greedy(c)
        data = (path / "model.safetensors").read_bytes()
        (path / "new").write_bytes(data[:-5])
        os.rename(path / "new", path / "model.safetensors")
        f, _ = do(admin, reload=pb.Reload())
        assert f.error.code == pb.CODE_MODEL_INVALID and "model.safetensors" in f.error.message
        assert greedy(c) == want
        (m,) = c.models()
        assert m.state == pb.STATE_READY
        assert "not reloaded, the running one serves on: " in d.read_log() and "unloaded" not in d.read_log()
        # The daemon's own worker may die now: what is on the disk is refused, and it says so.
        (path / "new").write_bytes(data)
        os.rename(path / "new", path / "model.safetensors")
        ack(admin, reload=pb.Reload())
        assert greedy(c) == want


def test_a_model_that_computes_other_tokens_than_before_is_refused(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        c, admin = d.client(), Client(d.admin)
        kept = os.path.join(d.dir, "state", "selftest")
        (name,) = os.listdir(kept)
        want = greedy(c)
        with open(os.path.join(kept, name)) as f:
            ids = f.read().split()
        assert len(ids) == 8
        ids[3] = str(int(ids[3]) ^ 1)
        with open(os.path.join(kept, name), "w") as f:
            f.write(" ".join(ids) + "\n")
        f, _ = do(admin, reload=pb.Reload())
        assert f.error.code == pb.CODE_MODEL_INVALID and "other tokens" in f.error.message
        assert greedy(c) == want


def test_memory_for_both_or_drain(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, "--set", "memory.max=20M", fake=False, model=path) as d:
        c, admin = d.client(), Client(d.admin)
        old, got = greedy(c), start_streams(c, 3, 200)
        synthetic(path, 2)
        f, _ = do(admin, reload=pb.Reload())
        assert f.error.code == pb.CODE_RESOURCE_EXHAUSTED
        assert "memory.max" in f.error.message and "--drain" in f.error.message
        admin.send(3, reload=pb.Reload(drain=True))
        assert admin.recv().WhichOneof("msg") == "progress"
        # A request that comes meanwhile waits for the new model.
        new = greedy(d.client())
        finish_streams(c, got)
        while (f := admin.recv()).WhichOneof("msg") == "progress":
            pass
        assert f.WhichOneof("msg") == "ack" and new != old and greedy(c) == new
        assert c.stats().requests_failed == 0 or "memory" in d.read_log()


STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")


@pytest.mark.skipif(not os.path.exists(os.path.join(STARTER, "model.safetensors")), reason="no starter model")
@pytest.mark.parametrize("weights, bytes", [("bf16", 9.2e6), ("q8", 6.1e6), ("q4", 4.2e6)])
def test_memory_is_counted_as_weights_will_be_and_not_as_their_files_are(weights, bytes):
    """Two pools of 4 MiB each time, and bf16 files of 8.9 MB that are loaded a second time."""
    for extra, fits in ((1e6, True), (-1e6, False)):
        most = int(2 * bytes + 2 * (4 << 20) + extra)
        with Daemon("--set", "pool.size=4M", "--set", "worker.weights=" + weights, "--set", "memory.max=%d" % most,
                    fake=False, model=STARTER) as d:
            c, admin = d.client(), Client(d.admin)
            assert abs(c.models()[0].weight_bytes - bytes) < 1e5
            for verb in (dict(reload=pb.Reload()), dict(load=pb.Load(path=STARTER, name="other"))):
                f, _ = do(admin, **verb)
                if fits:
                    assert f.WhichOneof("msg") == "ack", f
                    until(lambda: "the old one is unloaded" in d.read_log())
                else:
                    assert f.error.code == pb.CODE_RESOURCE_EXHAUSTED and "memory.max" in f.error.message, f


def test_models_are_loaded_and_unloaded_at_run_time(tmp_path):
    one, two = synthetic(tmp_path / "one", 1), synthetic(tmp_path / "two", 2)
    with Daemon(*SMALL, fake=False, model=one) as d:
        c, admin = d.client(), Client(d.admin)
        first = greedy(c)
        assert c.generate("x", model="two").error.code == pb.CODE_NOT_FOUND
        ack(admin, load=pb.Load(path=two))
        ack(admin, load=pb.Load(path=two, name="three"))
        assert [m.name for m in c.models()] == ["one", "two", "three"]
        assert greedy(c, model="two") == greedy(c, model="three") != first == greedy(c)
        f, _ = do(admin, load=pb.Load(path=two))
        assert f.error.code == pb.CODE_INVALID_ARGUMENT and "reload" in f.error.message
        f, _ = do(admin, load=pb.Load(path=str(tmp_path / "none")))
        assert f.error.code == pb.CODE_MODEL_INVALID and "none" in f.error.message
        f, _ = do(admin, load=pb.Load(path="/etc/passwd"))
        assert f.error.code == pb.CODE_MODEL_INVALID and "/etc/passwd: not a directory: want" in f.error.message
        c.start("x", id=50, model="two", max_tokens=200, ignore_eos=True)
        while c.recv().WhichOneof("msg") != "delta":
            pass
        ack(admin, unload=pb.Unload(model="two"))  # when its request is over
        a = c.finish(50)
        assert a.error is None and c.generate("x", model="two").error.code == pb.CODE_NOT_FOUND
        assert [m.name for m in c.models()] == ["one", "three"]
        f, _ = do(admin, unload=pb.Unload(model="two"))
        assert f.error.code == pb.CODE_NOT_FOUND


def test_dsctl_reload_reloads_every_model_and_goes_on_past_a_bad_one(tmp_path):
    one, two = synthetic(tmp_path / "one", 1), synthetic(tmp_path / "two", 2)
    with Daemon(*SMALL, fake=False, model=one) as d:
        ack(Client(d.admin), load=pb.Load(path=two))

        def reload(*args):
            p = subprocess.run([DSCTL, "--socket", d.socket, "--admin-socket", d.admin, "--json", "reload", *args],
                               capture_output=True, text=True, timeout=60)
            return p.returncode, json.loads(p.stdout)["models"], p.stderr

        old = [greedy(d.client(), model=m) for m in ("one", "two")]
        synthetic(one, 3)
        synthetic(two, 4)
        assert reload() == (0, ["one", "two"], "")
        new = [greedy(d.client(), model=m) for m in ("one", "two")]
        assert new[0] != old[0] and new[1] != old[1]
        with open(os.path.join(one, "config.json"), "w") as f:
            f.write("{")
        synthetic(two, 2)
        status, models, said = reload()
        assert status != 0 and models == ["two"] and "config.json" in said
        assert [greedy(d.client(), model=m) for m in ("one", "two")] == [new[0], old[1]]
        assert reload("two")[:2] == (0, ["two"])


def test_a_drained_model_refuses_and_comes_back():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "1000"}) as d:
        c, admin = d.client(), Client(d.admin)
        got = start_streams(c, 2, 200)
        admin.send(3, drain=pb.Drain())
        assert admin.recv().WhichOneof("msg") == "progress"
        e = d.client().generate("x").error
        assert e.code == pb.CODE_RETRYABLE and e.retry_after_ms > 0
        finish_streams(c, got)
        assert admin.recv().WhichOneof("msg") == "ack"
        ack(admin, drain=pb.Drain(undo=True))
        assert c.generate("x", max_tokens=2).error is None


def test_a_model_nobody_asks_for_is_unloaded_and_comes_back(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, "--set", "model.m.idle_unload=1", fake=False, model=path) as d:
        c = d.client()
        want = greedy(c)
        until(lambda: c.models()[0].state == pb.STATE_IDLE)
        until(lambda: c.stats().models[0].worker_pid == 0)
        assert greedy(c) == want
        m = c.stats().models[0]
        assert (m.worker_starts, m.worker_deaths) == (2, 0)


def test_sighup_reloads_and_may_be_sent_twice(tmp_path):
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        c = d.client()
        old = greedy(c)
        synthetic(path, 2)
        d.process.send_signal(signal.SIGHUP)
        d.process.send_signal(signal.SIGHUP)
        until(lambda: greedy(c) != old)
        until(lambda: "unloaded" in d.read_log())
        assert len(c.models()) == 1


def test_a_new_worker_of_changed_files_fails_what_the_old_one_left(tmp_path):
    """The files were replaced without a reload, then the worker died: its streams cannot go on."""
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        c = d.client()
        pid = d.worker_pid()
        synthetic(path, 2)
        start_streams(c, 2, 4000)  # which last for milliseconds
        os.kill(pid, signal.SIGKILL)
        errors = []
        while len(errors) < 2:
            f = c.recv()
            if f.WhichOneof("msg") == "error":
                errors.append(f.error.code)
        assert errors == [pb.CODE_RETRYABLE] * 2
        assert greedy(c) == greedy(d.client())


@pytest.mark.parametrize("seconds", [0, 30])
def test_a_stop_gives_time_to_finish_and_then_a_typed_end(seconds):
    with Daemon("--set", "stop.seconds=%d" % seconds, env={"DSD_FAKE_STEP_USEC": "500"}) as d:
        c, late = d.client(), d.client()
        got = start_streams(c, 2, 200)
        start = time.monotonic()
        d.process.send_signal(signal.SIGTERM)
        if seconds:
            e = late.generate("x").error
            assert e.code == pb.CODE_RETRYABLE and "stopping" in e.message
            finish_streams(c, got)
            assert [len(x) for x in got.values()] == [200, 200]
        else:
            ends = []
            while len(ends) < 2:
                f = c.recv()
                if f.WhichOneof("msg") == "error":
                    ends.append((f.error.code, f.error.retry_after_ms))
            assert ends == [(pb.CODE_RETRYABLE, 100)] * 2
        assert d.process.wait(20) == 0
        with pytest.raises(Closed):
            c.recv()


def test_a_second_sigterm_does_not_wait():
    with Daemon("--set", "stop.seconds=600", env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        c, late = d.client(), d.client()
        start_streams(c, 1, 8000)
        d.process.send_signal(signal.SIGTERM)
        e = None
        until(lambda: late.generate("x", max_tokens=1).error is not None)
        d.process.send_signal(signal.SIGTERM)
        while e is None:
            f = c.recv()
            e = f.error if f.WhichOneof("msg") == "error" else None
        assert e.code == pb.CODE_RETRYABLE and d.process.wait(20) == 0


def test_who_comes_while_the_daemon_stops_is_told_to_come_again():
    with Daemon("--set", "stop.seconds=600", env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        start_streams(d.client(), 1, 8000)
        d.process.send_signal(signal.SIGSTOP)
        d.process.send_signal(signal.SIGTERM)
        late = [Client(d.socket, hello=False, timeout=1) for _ in range(8)]
        d.process.send_signal(signal.SIGCONT)
        for c in late:
            try:
                f = c.recv()
            except (Closed, TimeoutError):
                continue  # the latter waits for the next daemon
            assert f.id == 0 and f.error.code == pb.CODE_RETRYABLE, f
        d.process.send_signal(signal.SIGTERM)
        assert d.process.wait(20) == 0
