# SPDX-License-Identifier: Apache-2.0
"""Bad peers, bad requests, dying workers: each costs what it must and no more, each gets a sentence
that says what was got and what was wanted, and the daemon lives."""
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from dsdtest import SOURCE, Client, Closed, Daemon, pb

STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")


def last_words(c):
    """The Error frame of a connection that the daemon ends."""
    f = c.recv()
    assert f.id == 0 and f.WhichOneof("msg") == "error"
    with pytest.raises(Closed):
        c.recv()
    return f.error


def settle(client, **want):
    """Wait until the first model's counters are as wanted."""
    for _ in range(250):
        m = client.stats().models[0]
        if all(getattr(m, k) == v for k, v in want.items()):
            return m
        time.sleep(0.02)
    raise AssertionError(m)


# Frames ------------------------------------------------------------------------------------------

def test_garbage_ends_the_connection_with_a_reason(fake):
    c = Client(fake.socket, hello=False)
    c.send_raw(struct.pack("<I", 9) + b"not a msg")
    e = last_words(c)
    assert e.code == pb.CODE_MALFORMED and "9 bytes" in e.message


def test_oversize_frame_is_refused_before_it_is_read(fake):
    c = Client(fake.socket)
    c.send_raw(struct.pack("<I", 1 << 31))
    e = last_words(c)
    assert e.code == pb.CODE_FRAME_TOO_LARGE and "2147483648" in e.message and "1048576" in e.message


def test_empty_frame_is_refused(fake):
    c = Client(fake.socket)
    c.send_raw(struct.pack("<I", 0))
    assert last_words(c).code == pb.CODE_MALFORMED


def test_half_a_frame_is_waited_for_and_then_given_up(fake):
    c, other = Client(fake.socket), fake.client()
    c.send_raw(struct.pack("<I", 100) + b"half")
    assert other.generate("hello", max_tokens=3).error is None  # nobody else waits
    e = last_words(c)
    assert e.code == pb.CODE_DEADLINE_EXCEEDED and "5 seconds" in e.message


def test_no_hello_is_given_up(fake):
    e = last_words(Client(fake.socket, hello=False))
    assert e.code == pb.CODE_DEADLINE_EXCEEDED and "Hello" in e.message


def test_hello_comes_first_and_once(fake):
    c = Client(fake.socket, hello=False)
    c.send(1, models=pb.ModelsRequest())
    assert last_words(c).code == pb.CODE_FAILED_PRECONDITION
    c = Client(fake.socket)
    c.send(1, hello=pb.Hello(protocol=1))
    assert last_words(c).code == pb.CODE_FAILED_PRECONDITION
    c = Client(fake.socket, hello=False)
    c.send(1, hello=pb.Hello(protocol=2))
    e = last_words(c)
    assert e.code == pb.CODE_FAILED_PRECONDITION and "got 2, want 1" in e.message


def test_frames_may_come_byte_by_byte(fake):
    c = fake.client()
    data = pb.ClientFrame(id=7, generate=pb.Generate(text=b"hello", sampling=pb.Sampling(max_tokens=3))
                          ).SerializeToString()
    for b in struct.pack("<I", len(data)) + data:
        c.send_raw(bytes([b]))
    assert len(c.finish(7).ids) <= 3


def test_descriptors_are_not_taken(fake):
    c = fake.client()
    r, w = os.pipe()
    socket.send_fds(c.sock, [struct.pack("<I", 8)], [r, w])
    e = last_words(c)
    assert e.code == pb.CODE_MALFORMED and "descriptor" in e.message


def test_an_id_in_use_is_refused(fake):
    c = fake.client()
    c.start("hello", id=3, max_tokens=8000, ignore_eos=True)
    c.start("hello", id=3, max_tokens=8000, ignore_eos=True)
    while True:
        f = c.recv()
        if f.id == 0:
            break
    assert "request 3" in f.error.message


def test_random_bytes_never_hurt(fake):
    rng = random.Random(1)
    for _ in range(300):
        c = Client(fake.socket, hello=rng.random() < 0.5)
        n = rng.randrange(1, 200)
        body = bytes(rng.randrange(256) for _ in range(n))
        c.send_raw(struct.pack("<I", n) + body)
        c.close()
    assert fake.client().generate("hello", max_tokens=3).error is None


# Requests ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampling, words", [
    (dict(temperature=-1), "temperature: got -1, want 0 to 100"),
    (dict(temperature=float("nan")), "temperature"),
    (dict(top_p=0), "top_p"),
    (dict(max_tokens=0), "max_tokens: got 0"),
    (dict(n=65), "n: got 65"),
    (dict(logprobs=21), "logprobs: got 21"),
    (dict(stop=[b"x"] * 17), "stop"),
    (dict(stop=[b""]), "stop"),
    (dict(logit_bias=[pb.Bias(id=1000, bias=1)]), "logit_bias[0].id: got 1000, want less than 258"),
])
def test_a_value_out_of_range_is_named(fake, sampling, words):
    e = fake.client().generate("hello", **sampling).error
    assert e.code == pb.CODE_INVALID_ARGUMENT and words in e.message


@pytest.mark.parametrize("prompt, words", [
    (dict(ids=[70000]), "is 70000: want less than 258"),
    (dict(ids=[]), "no tokens: want at least one"),
    (dict(text=""), "got 0 bytes, want at least one"),
    (dict(), "got nothing, want text, chat, ids or prompt_fd"),
    (dict(text="x" * 9000), "9001 tokens: want fewer than 8192"),
])
def test_a_bad_prompt_is_named(fake, prompt, words):
    e = fake.client().generate(**prompt).error
    assert e.code == pb.CODE_INVALID_ARGUMENT and words in e.message


def test_an_unknown_model_is_named(fake):
    e = fake.client().generate("hello", model="nobody").error
    assert e.code == pb.CODE_NOT_FOUND and "nobody" in e.message


# Clients that go ---------------------------------------------------------------------------------

def test_a_client_killed_in_mid_stream_frees_its_pages():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        c, watcher = d.client(), d.client()
        c.start("hello", max_tokens=8000, ignore_eos=True)
        for _ in range(5):
            c.recv()
        assert watcher.stats().models[0].pages_used > 0
        c.close()
        settle(watcher, pages_used=0, running=0)
        assert d.alive()


def test_a_reader_that_stops_reading_pauses_and_hurts_nobody():
    with Daemon() as d:
        slow, other = d.client(), d.client()
        for i in range(32):
            slow.start("hello", id=100 + i, max_tokens=500, ignore_eos=True, logprobs=20)
        time.sleep(1.5)
        before = other.stats()
        assert other.generate("hello", max_tokens=50, temperature=0, ignore_eos=True).error is None
        time.sleep(0.3)
        after = other.stats()
        # Its sequences stand still: what waits for it is bounded.
        assert after.models[0].generated_tokens - before.models[0].generated_tokens <= 50
        ended, got = 0, 0
        while ended < 32:
            f = slow.recv()
            got += f.WhichOneof("msg") == "delta"
            ended += f.WhichOneof("msg") == "done"
        assert got == 32 * 501  # nothing was lost: every token, and the end of each
        settle(other, pages_used=0)


def test_a_reader_that_never_reads_again_is_let_go():
    with Daemon("--set", "conn.stall_seconds=1") as d:
        slow, other = d.client(), d.client()
        for i in range(8):
            slow.start("hello", id=100 + i, max_tokens=3000, ignore_eos=True, logprobs=20)
        for _ in range(500):
            if other.stats().protocol_errors == 1:
                break
            time.sleep(0.02)
        assert other.stats().protocol_errors == 1 and d.alive()
        settle(other, running=0, waiting=0, pages_used=0)
        with pytest.raises(Closed):
            while slow.recv().WhichOneof("msg") != "error":
                pass
            slow.recv()


# Workers that die --------------------------------------------------------------------------------

def test_requests_of_a_killed_worker_go_on_with_the_same_tokens():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        c = d.client()
        ask = [dict(max_tokens=300, temperature=0 if i % 2 else 1, seed=7 + i, ignore_eos=True, n=1 + i % 2) for i in range(4)]
        want = [[ch.ids for _, ch in sorted(c.generate("hello", **a).choices.items())] for a in ask]
        for i, a in enumerate(ask):
            c.start("hello", id=20 + i, **a)
        got, over = {}, set()
        killed = 0
        while len(over) < len(ask):
            f = c.recv()
            kind = f.WhichOneof("msg")
            assert kind != "error", f.error.message
            if kind == "delta":
                got.setdefault((f.id, f.delta.choice), []).extend(f.delta.ids)
            if kind == "done":
                over.add(f.id)
            if killed < 2 and sum(map(len, got.values())) > 200 * (killed + 1):
                killed += 1
                os.kill(d.worker_pid(), signal.SIGKILL)
        for i, a in enumerate(ask):
            assert [got[20 + i, k] for k in range(a["n"])] == want[i]
        m = settle(c, pages_used=0, running=0)
        assert killed == 2 and (m.worker_starts, m.worker_deaths) == (3, 2)
        assert c.stats().requests_failed == 0


def test_three_deaths_in_a_minute_degrade_and_the_model_comes_back():
    with Daemon() as d:
        c, other = d.client(), d.client()
        for i in range(2):
            os.kill(d.worker_pid(), signal.SIGKILL)
            settle(c, worker_starts=i + 2)
            assert c.generate("hello", max_tokens=3, temperature=0).error is None
        want = c.generate("hello", max_tokens=2000, ignore_eos=True, temperature=0).ids
        c.start("hello", id=9, max_tokens=2000, ignore_eos=True, temperature=0)
        got = []
        while not got:
            got += c.recv().delta.ids
        os.kill(d.worker_pid(), signal.SIGKILL)
        while (e := other.generate("hello", max_tokens=3).error) is None:
            pass  # the broker has not seen it yet
        assert e.code == pb.CODE_RETRYABLE and e.retry_after_ms > 0
        while True:
            state = other.models()[0].state
            if state == pb.STATE_READY:
                break
            assert state == pb.STATE_DEGRADED
            time.sleep(0.01)
        assert other.generate("hello", max_tokens=3, temperature=0).error is None
        # Whose step it was is tried once more, alone.
        a = c.finish(9)
        assert a.error is None and got + a.ids == want
        m = settle(c, pages_used=0)
        assert d.alive() and (m.worker_starts, m.worker_deaths) == (4, 3)


def test_a_worker_that_dies_while_loading_three_times_degrades(tmp_path):
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nkill -SEGV $$\n")
    worker.chmod(0o755)
    with Daemon(env={"DSD_WORKER": str(worker)}, wait=False) as d:
        e = d.wait_socket().generate("hello").error
        assert e.code == pb.CODE_MODEL_INVALID and "signal 11" in e.message
        assert d.client().stats().models[0].worker_starts >= 3 and d.alive()


def test_streams_and_kills_at_random_leak_nothing():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "300"}) as d:
        watcher = d.client()
        fds = len(os.listdir("/proc/%d/fd" % d.process.pid))
        rng = random.Random(2)
        stop = threading.Event()

        def use(seed):
            r = random.Random(seed)
            while not stop.is_set():
                c = d.client()
                try:
                    c.start("x" * r.randrange(1, 300), max_tokens=r.randrange(1, 200), n=r.randrange(1, 4))
                    for _ in range(r.randrange(0, 100)):
                        f = c.recv()
                        if f.WhichOneof("msg") in ("done", "error"):
                            break
                except Closed:
                    pass
                c.close()

        users = [threading.Thread(target=use, args=(i,)) for i in range(6)]
        for u in users:
            u.start()
        for _ in range(4):
            time.sleep(rng.uniform(0.2, 0.5))
            pid = d.worker_pid()
            if pid:
                os.kill(pid, signal.SIGKILL)
        stop.set()
        for u in users:
            u.join()
        settle(watcher, pages_used=0, running=0, waiting=0)
        for _ in range(100):
            now = len(os.listdir("/proc/%d/fd" % d.process.pid))
            if now == fds:
                break
            time.sleep(0.05)
        assert now == fds
        assert d.stop() == 0


def test_a_text_that_is_encoded_while_the_worker_dies_waits_for_the_next_one():
    text = b"a long text, word by word, that is taken apart off the loop. " * 17000
    with Daemon("--set", "pool.size=16M", fake=False, model=STARTER) as d:
        c, other = d.client(), d.client()

        def tokenize(client):
            client.send(3, tokenize=pb.Tokenize(text=text))

        def ids():
            got = []
            while not (f := c.recv()).tokenize.last:
                assert f.WhichOneof("msg") == "tokenize", f
                got += f.tokenize.ids
            return got + list(f.tokenize.ids)

        tokenize(c)
        want = ids()
        pid = other.stats().models[0].worker_pid
        tokenize(other)  # one before it in the queue
        tokenize(c)
        os.kill(pid, signal.SIGKILL)
        assert ids() == want
        assert d.client().stats().requests_failed == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs to look into the daemon")
def test_a_worker_that_cannot_be_started_leaves_nothing_open():
    with Daemon(env={"DSD_WORKER": "/nonexistent"}, wait=False) as d:
        d.wait_socket()
        admin, n = Client(d.admin), []
        for _ in range(5):
            admin.send(3, load=pb.Load(path="/nonexistent", name="other"))
            while (f := admin.recv()).WhichOneof("msg") == "progress":
                pass
            assert f.error.code == pb.CODE_MODEL_INVALID and "/nonexistent" in f.error.message, f
            n.append(len(os.listdir("/proc/%d/fd" % d.process.pid)))
        assert n[1:] == n[:-1], n
