# SPDX-License-Identifier: Apache-2.0
"""Sessions over the wire: what a lease keeps, whose it is, and when it ends."""
import json
import os
import signal
import subprocess
import time

import pytest

from dsdtest import Client, Daemon, pb
from test_dsctl import DSCTL, dsctl
from test_reload import SMALL, ack, synthetic

PROMPT = "what one user of this host says again and again. " * 5  # 245 bytes, 246 ids, 3 pages


@pytest.fixture(scope="module")
def small():
    """A pool of 64 pages."""
    with Daemon("--set", "pool.size=256K") as d:
        total = d.client().stats().models[0].pages_total
        assert total == 64, total
        d.total = total
        yield d
        assert d.alive(), d.read_log()


def ask(c, **message):
    c.send(3, **message)
    return c.recv()


def open_session(c, **how):
    r = ask(c, session_open=pb.SessionOpen(**how)).session
    assert r.session != 0
    return r.session


def close(c, session):
    assert ask(c, session_close=pb.SessionClose(session=session)).WhichOneof("msg") == "ack"


def say(c, text, session=None, **sampling):
    g = pb.Generate(text=text.encode(), sampling=pb.Sampling(**dict(dict(max_tokens=4, temperature=0, ignore_eos=True),
                                                                    **sampling)))
    if session is not None:
        g.session = session
    c.send(7, generate=g)
    return c.finish(7)


def flood(d):
    """More texts of this user than the pool holds."""
    c = d.client()
    for i in range(d.total // 8):
        assert say(c, "%d " % i + "x" * 1000).error is None
    c.close()


def used(c):
    return c.stats().models[0].pages_used


def test_kept_pages_are_found_after_a_flood_and_by_a_fork(small):
    c = small.client()
    want = say(c, PROMPT)
    flood(small)
    assert say(c, PROMPT).usage.cached_tokens == 0
    s = open_session(c)
    assert say(c, PROMPT, s).usage.cached_tokens == 192
    assert used(c) == 3
    flood(small)
    c.close()
    c = small.client()  # the user's, not the connection's
    a = say(c, PROMPT, s)
    assert a.usage.cached_tokens == 192 and a.ids == want.ids
    fork = ask(c, session_fork=pb.SessionFork(session=s)).session
    assert fork.session != s and fork.lease_ms == 300000
    close(c, s)
    flood(small)
    assert used(c) == 3
    assert say(c, PROMPT, fork.session).usage.cached_tokens == 192
    close(c, fork.session)
    assert used(c) == 0
    flood(small)
    assert say(c, PROMPT).usage.cached_tokens == 0


def test_a_lease_ends_by_itself(small):
    c = small.client()
    r = ask(c, session_open=pb.SessionOpen(lease_ms=1000)).session
    assert r.lease_ms == 1000
    assert say(c, PROMPT, r.session).error is None
    for _ in range(1000):
        if used(c) == 0:
            break
        time.sleep(0.02)
    assert used(c) == 0
    e = say(c, PROMPT, r.session).error
    assert e.code == pb.CODE_NOT_FOUND and "its lease has ended" in e.message


def test_what_is_none_is_said(small):
    c = small.client()
    for message in (dict(session_fork=pb.SessionFork(session=5)), dict(session_close=pb.SessionClose(session=5)),
                    dict(generate=pb.Generate(text=b"x", session=0))):
        e = ask(c, **message).error
        assert e.code == pb.CODE_NOT_FOUND and "no session of that id" in e.message
    e = ask(c, session_open=pb.SessionOpen(model="nobody")).error
    assert e.code == pb.CODE_NOT_FOUND
    e = ask(c, session_open=pb.SessionOpen(lease_ms=999)).error
    assert e.code == pb.CODE_INVALID_ARGUMENT and "lease_ms: got 999, want 1000 to 3600000" in e.message
    s = open_session(c)
    c.send(7, generate=pb.Generate(text=b"x", session=s, model="fake"))
    assert c.finish(7).error is None
    close(c, s)
    e = ask(c, session_close=pb.SessionClose(session=s)).error
    assert e.code == pb.CODE_NOT_FOUND
    admin = Client(os.path.join(small.dir, "admin.sock"))
    assert ask(admin, session_open=pb.SessionOpen()).error.code == pb.CODE_UNIMPLEMENTED


def test_a_user_has_so_many(small):
    c = small.client()
    all = [open_session(c) for _ in range(64)]
    e = ask(c, session_open=pb.SessionOpen()).error
    assert e.code == pb.CODE_RESOURCE_EXHAUSTED and "64 sessions" in e.message and e.retry_after_ms > 0
    for s in all:
        close(c, s)


def test_leases_give_way_to_work(small):
    """However much is kept, a request of the size of the pool is answered."""
    c = small.client()
    all = [open_session(c) for _ in range(8)]
    for i, s in enumerate(all):
        assert say(c, "%d" % i + PROMPT * 3, s).error is None
    kept = used(c)
    assert small.total // 4 <= kept <= small.total // 2
    assert say(c, "y" * ((small.total - 3) * 64)).error is None
    assert used(c) < kept
    for s in all:
        close(c, s)
    assert used(c) == 0


def test_another_users_session_is_none(small):
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    c = small.client()
    s = open_session(c)
    say(c, PROMPT, s)
    os.chmod(small.dir, 0o755)
    os.chmod(small.socket, 0o666)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65501, 65501, 65501)
            x = Client(small.socket)
            codes = [ask(x, session_fork=pb.SessionFork(session=s)).error.code,
                     ask(x, session_close=pb.SessionClose(session=s)).error.code, say(x, PROMPT, s).error.code,
                     say(x, PROMPT).usage.cached_tokens]
            os.write(w, repr(codes).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(w)
    assert os.read(r, 1000).decode() == repr([pb.CODE_NOT_FOUND] * 3 + [0])
    os.close(r)
    assert say(c, PROMPT, s).usage.cached_tokens == 192
    close(c, s)


def test_dsctl_opens_uses_forks_and_closes_one(small):
    def generate(session):
        return json.loads(dsctl(small, "generate", "--json", "--max-tokens", "2", "--session", session, PROMPT).stdout)

    session = dsctl(small, "session", "open", "--lease", "60").stdout.decode().strip()
    assert int(session) > 0 and generate(session)["usage"]["cached_tokens"] in (0, 192)
    flood(small)
    assert generate(session)["usage"]["cached_tokens"] == 192
    fork = json.loads(dsctl(small, "session", "fork", "--json", session).stdout)["session"]
    assert dsctl(small, "session", "close", session).stdout == b""
    assert b"NOT_FOUND" in dsctl(small, "session", "close", session, code=1).stderr
    flood(small)
    assert generate(fork)["usage"]["cached_tokens"] == 192
    dsctl(small, "session", "close", fork)
    for args in (["lose"], ["open", "7"], ["close"], ["close", "x"], ["open", "--lease", "0"], []):
        dsctl(small, "session", *args, code=2)
    assert used(small.client()) == 0


def test_dsctl_chat_keeps_its_conversation_warm_and_gives_it_back(small):
    """A turn, a flood, a second turn that finds the first; then nothing is held any more."""
    p = subprocess.Popen([DSCTL, "--socket", small.socket, "chat", "--json", "--max-tokens", "2"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)

    def turn(text):
        p.stdin.write(text.encode() + b"\n")
        p.stdin.flush()
        return json.loads(p.stdout.readline())["usage"]["cached_tokens"]

    turn(PROMPT)
    flood(small)
    assert turn("and then?") >= 192
    p.stdin.close()
    assert p.wait(30) == 0
    p.stdout.close()
    for _ in range(250):
        if used(small.client()) == 0:
            break
        time.sleep(0.02)
    assert used(small.client()) == 0


def test_dsctl_chat_goes_on_when_its_session_is_gone(small):
    p = subprocess.Popen([DSCTL, "--socket", small.socket, "chat", "--json", "--max-tokens", "2"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(b"one\n")
    p.stdin.flush()
    assert "text" in json.loads(p.stdout.readline())
    small.stop()
    small.start()
    p.stdin.write(b"two\nthree\n")
    p.stdin.close()
    assert [sorted(json.loads(p.stdout.readline())) for _ in range(2)] == [["finish", "seed", "text", "usage"]] * 2
    assert p.wait(30) == 0 and p.stderr.read() == b""
    p.stdout.close()
    p.stderr.close()


def test_a_session_outlives_its_worker(small):
    c = small.client()
    s = open_session(c)
    say(c, PROMPT, s)
    os.kill(small.worker_pid(), signal.SIGKILL)
    assert say(c, PROMPT, s).usage.cached_tokens == 192
    close(c, s)


def test_a_session_outlives_a_reload_and_keeps_what_is_the_same(tmp_path):
    """The same files: with its pages, which nothing evicts. Other files: it stays, and finds nothing."""
    path = synthetic(tmp_path / "m", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        c, admin = d.client(), Client(d.admin)
        s = open_session(c)
        n = say(c, PROMPT, s).started.prompt_tokens // 64 * 64
        ack(admin, reload=pb.Reload())
        ack(admin, evict=pb.Evict())
        assert say(c, PROMPT, s).usage.cached_tokens == n > 0
        synthetic(path, 2)
        ack(admin, reload=pb.Reload())
        assert say(c, PROMPT, s).usage.cached_tokens == 0
        ack(admin, evict=pb.Evict())
        assert say(c, PROMPT, s).usage.cached_tokens == n
        close(c, s)
        ack(admin, evict=pb.Evict())
        assert used(c) == 0


def test_a_stream_goes_on_without_the_session_that_is_gone():
    """A daemon that was started anew knows no session: that costs a resumed stream speed, not its answer."""
    with Daemon() as d:
        c = d.client()
        want = c.generate("hello", max_tokens=20, temperature=0, ignore_eos=True)
        resume = pb.Resume(generated_ids=want.ids[:8], seed=want.started.seed, model_digest=want.started.model_digest)
        g = pb.Generate(text=b"hello", session=12345, resume=resume,
                        sampling=pb.Sampling(max_tokens=20, temperature=0, ignore_eos=True))
        c.send(7, generate=g)
        assert c.finish(7).ids == want.ids[8:]
        g.ClearField("resume")
        c.send(7, generate=g)
        assert c.finish(7).error.code == pb.CODE_NOT_FOUND
