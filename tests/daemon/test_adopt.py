# SPDX-License-Identifier: Apache-2.0
"""The cache and the streams outlive the daemon: a manager keeps the sockets and the descriptors of the pool,
as systemd does. What comes back is hostile until it is checked."""
import fcntl
import json
import mmap
import os
import random
import time

import pytest

from dsdtest import SOURCE, Client, Closed, Managed, pb

STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")
POOL = ("--set", "pool.size=16M")
TEXT = "a long text of which every whole page is to be found again, word by word. " * 6


@pytest.fixture
def managed():
    with Managed(*POOL, env={"DSD_FAKE_STEP_USEC": "300"}) as d:
        yield d


def ask(d, text=TEXT, n=4, **kw):
    return d.client().generate(text, max_tokens=n, temperature=0, ignore_eos=True, **kw)


def whole_pages(a):
    return (a.started.prompt_tokens - 1) // 64 * 64


def settle(d):
    """All pages that were sealed have their tags: nothing is written any more."""
    seen = None
    while True:
        now = [os.pread(fd, 1 << 22, 0) for name, fd in d.kept.items() if name.startswith("pool-meta")]
        if now == seen:
            return
        seen = now
        time.sleep(0.2)


def pool(d, part):
    (name,) = [n for n in d.kept if n.startswith("pool-" + part)]
    return name


@pytest.mark.parametrize("kill", [False, True])
def test_what_is_cached_is_found_after_a_restart(managed, kill):
    a = ask(managed)
    settle(managed)
    managed.restart(kill)
    b = ask(managed)
    assert b.ids == a.ids and b.usage.cached_tokens == whole_pages(a) >= 384
    assert "adopted the pool" in managed.read_log()
    assert sorted(n.split(".")[0] for n in managed.kept) == ["boot-key", "pool-data", "pool-meta"]


@pytest.mark.parametrize("kill", [False, True])
def test_a_stream_goes_on_where_it_was(managed, kill):
    """By the documented fields alone, greedy and seeded; the answer's own pages are found too."""
    for temperature in (0, 1):
        how = dict(max_tokens=400, temperature=temperature, seed=11, ignore_eos=True)
        want = managed.client().generate(TEXT, **how).ids
        c = managed.client()
        c.start(TEXT, **how)
        started, got = c.recv().started, []
        while len(got) < 300:
            got += c.recv().delta.ids
        managed.restart(kill)
        try:
            while (f := c.recv()).WhichOneof("msg") != "error":
                got += f.delta.ids
            assert f.error.code == pb.CODE_RETRYABLE and not kill
        except Closed:
            assert kill
        a = managed.client().generate(TEXT, resume=pb.Resume(generated_ids=got, seed=started.seed,
                                                             model_digest=started.model_digest), **how)
        assert a.error is None and got + a.ids == want
        assert a.usage.cached_tokens == a.started.prompt_tokens  # and pages of its own answer
        assert a.usage.completion_tokens == 400


def test_other_users_pages_are_not_found_after_a_restart(managed):
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    ask(managed)
    settle(managed)
    managed.restart()
    os.chmod(managed.dir, 0o755)
    os.chmod(managed.socket, 0o666)
    r, w = os.pipe()
    if os.fork() == 0:
        try:
            os.setresuid(65501, 65501, 65501)
            os.write(w, b"%d" % ask(managed).usage.cached_tokens)
        finally:
            os._exit(0)
    assert os.read(r, 100) == b"0"
    os.wait()
    assert ask(managed).usage.cached_tokens >= 384


def test_two_crashes_soon_after_an_adoption_discard_the_pool(managed):
    a = ask(managed)
    settle(managed)
    for _ in range(3):
        managed.restart(kill=True)
    b = ask(managed)
    assert b.ids == a.ids and b.usage.cached_tokens == 0
    assert "discarded" in managed.read_log()
    settle(managed)
    managed.restart(kill=True)
    assert ask(managed).usage.cached_tokens == whole_pages(a)  # the new pool is as good as the first


def test_a_restart_as_asked_is_no_crash(managed):
    a = ask(managed)
    for _ in range(5):
        managed.restart()
        assert ask(managed).usage.cached_tokens == whole_pages(a)


def memfd(n, seals=None, data=b""):
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, n)
    os.pwrite(fd, data, 0)
    if seals is not None:
        fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
    return fd


def test_a_store_full_of_garbage_is_a_cold_start_with_a_sentence(managed):
    ask(managed)
    names = list(managed.kept)
    read, write = os.pipe()
    things = [lambda: os.open("/dev/zero", os.O_RDWR), lambda: os.dup(read), lambda: os.open("/etc/passwd", os.O_RDONLY),
              lambda: memfd(0), lambda: memfd(4096, 7), lambda: memfd(16 << 20, 7), lambda: memfd(56, 15, b"dsdkey1\0"),
              lambda: memfd(1 << 20, 15), lambda: os.open("/", os.O_RDONLY)]
    for i, thing in enumerate(things):
        with managed.lock:
            for name in names + ["pool-data.0123", "pool-meta.%d" % i, "pool-", "boot-key"]:
                managed._forget(name)
                managed.kept[name] = thing()
        managed.restart(kill=True)
        b = ask(managed)
        # The fake worker's tokens hang on the domain, and that on the key, which is a new one.
        assert b.error is None and b.usage.cached_tokens == 0
        assert sorted(n.split(".")[0] for n in managed.kept) == ["boot-key", "pool-data", "pool-meta"]
        names = list(managed.kept)
    assert "boot-key" in managed.read_log() and "nobody wants pool-data.0123" in managed.read_log()
    os.close(read)
    os.close(write)


def test_half_a_pool_is_none(managed):
    a = ask(managed)
    for part in ("data", "meta"):
        settle(managed)
        with managed.lock:
            managed._forget(pool(managed, part))
        managed.restart()
        b = ask(managed)
        assert b.ids == a.ids and b.usage.cached_tokens == 0
        assert len(managed.kept) == 3


@pytest.mark.parametrize("part", ["data", "meta"])
def test_what_was_changed_while_nobody_looked_is_never_used(managed, part):
    rng = random.Random(part)
    a = ask(managed)
    for _ in range(8):
        settle(managed)
        name = pool(managed, part)
        size = os.fstat(managed.kept[name]).st_size
        managed.process.kill()
        managed.process.wait()
        with mmap.mmap(managed.kept[name], size) as m:
            used = [i for i in range(0, size, 512) if any(m[i:i + 512])]
            for i in rng.sample(used, min(len(used), 20)):
                m[i + rng.randrange(512)] ^= 1 << rng.randrange(8)
        managed.start()
        b = ask(managed)
        assert b.error is None and b.ids == a.ids
        managed.restart()  # as asked: attempts start anew


def test_another_model_is_not_served_from_the_old_ones_pool():
    with Managed(*POOL, fake=False, model=STARTER) as d:
        a = ask(d)
        first = pool(d, "data")
        d.args += ["--set", "worker.weights=f32"]
        d.restart()
        b = ask(d)
        assert b.usage.cached_tokens == 0 and pool(d, "data") != first
        assert len(d.kept) == 3
        d.args[-1] = "worker.weights=auto"
        d.restart()
        assert ask(d).ids == a.ids


def test_an_unloaded_models_pool_is_no_longer_kept():
    with Managed(*POOL, fake=False, model=STARTER) as d:
        admin = Client(d.admin)
        admin.send(3, load=pb.Load(path=STARTER, name="two"))
        while (f := admin.recv()).WhichOneof("msg") == "progress":
            pass
        assert f.WhichOneof("msg") == "ack"
        assert len(d.kept) == 5
        admin.send(3, unload=pb.Unload(model="two"))
        while (f := admin.recv()).WhichOneof("msg") == "progress":
            pass
        d.restart()
        assert len(d.kept) == 3 and "cold" not in d.read_log()


def test_a_model_that_is_ready_last_finds_its_pool(tmp_path):
    """The first that is ready makes the daemon READY, and what nobody wants is dropped: not before all had a say."""
    tiny, ids = tmp_path / "tiny", list(range(3, 150))
    tiny.mkdir()
    config = json.load(open(os.path.join(SOURCE, "tests", "golden", "v2-lite-tiny", "config.json")))
    (tiny / "config.json").write_text(json.dumps(dict(config, dsd_synthetic=1)))
    with Managed(*POOL, "--model", STARTER, "--model", str(tiny), fake=False) as d:
        c = d.client()
        asked = {m.name: c.generate(ids=ids, max_tokens=2, model=m.name) for m in c.models()}
        assert len(asked) == 2 and len(d.kept) == 5
        settle(d)
        d.restart()
        c = d.client()
        for name, a in asked.items():
            b = c.generate(ids=ids, max_tokens=2, model=name)
            assert b.error is None and b.usage.cached_tokens == whole_pages(a) > 0, (name, b.error)
        assert len(d.kept) == 5


def test_a_restart_as_asked_is_no_crash_though_somebody_reads_nothing(managed):
    a = ask(managed)
    settle(managed)
    for _ in range(3):
        c = managed.client()
        for i in range(64):
            c.start(TEXT, id=i + 2, max_tokens=2000, temperature=0, ignore_eos=True, logprobs=20)
        other = managed.client()
        while True:
            other.send(3, list=pb.ListRequest())
            if any(r.activity == pb.ACTIVITY_PAUSED for r in other.recv().list.requests):
                break
            time.sleep(0.05)
        managed.restart()
    assert "discarded" not in managed.read_log()
    assert ask(managed).usage.cached_tokens == whole_pages(a)
