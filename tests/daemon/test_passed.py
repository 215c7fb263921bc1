# SPDX-License-Identifier: Apache-2.0
"""Prompts that come beside their frame, in a sealed memfd: what is refused, and that nothing leaks."""
import array
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import time

import pytest

from dsdtest import Client, Closed, Daemon, pb
from test_dsctl import DSCTL, dsctl

SHRINK, GROW, WRITE, SEAL = (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL)
ALL = SHRINK | GROW | WRITE | SEAL
LONG = (1 << 20) * 2


def memfd(data, seals=ALL, size=None):
    fd = os.memfd_create("prompt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if size is not None:
        os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def frame(id, **message):
    data = pb.ClientFrame(id=id, **message).SerializeToString()
    return struct.pack("<I", len(data)) + data


def named(n, kind=pb.PROMPT_KIND_TEXT):
    return pb.PromptFd(kind=kind, bytes=n)


def pass_fd(c, data, *fds):
    """One sendmsg, as the protocol wants it; our copies are closed."""
    socket.send_fds(c.sock, [data], fds)
    for fd in fds:
        os.close(fd)


def generate(n, kind=pb.PROMPT_KIND_TEXT, **more):
    return pb.Generate(prompt_fd=named(n, kind), sampling=pb.Sampling(max_tokens=8, temperature=0, ignore_eos=True),
                       **more)


def tokens_of(c, id):
    ids = []
    while True:
        f = c.recv()
        assert f.id == id and f.WhichOneof("msg") == "tokenize", f
        ids += f.tokenize.ids
        if f.tokenize.last:
            return ids


def count_fds(d):
    return len(os.listdir("/proc/%d/fd" % d.process.pid))


@pytest.fixture(autouse=True)
def nothing_leaks(fake):
    watcher = fake.client()
    before = count_fds(fake)
    yield
    for _ in range(250):
        if count_fds(fake) == before:
            break
        time.sleep(0.02)
    assert count_fds(fake) == before
    m = watcher.stats().models[0]
    assert (m.running, m.waiting) == (0, 0)
    watcher.close()


# What is taken -----------------------------------------------------------------------------------

def test_a_prompt_beside_its_frame_is_as_good_as_one_within(fake):
    c = fake.client()
    want = c.generate("hello", max_tokens=8, temperature=0, ignore_eos=True)
    pass_fd(c, frame(3, generate=generate(5)), memfd(b"hello"))
    a = c.finish(3)
    assert (a.ids, a.text, a.started.prompt_tokens) == (want.ids, want.text, 6)
    ids = [257] + list(b"hello")
    want = c.generate(ids=ids, max_tokens=8, temperature=0, ignore_eos=True)
    pass_fd(c, frame(4, generate=generate(24, pb.PROMPT_KIND_IDS)), memfd(array.array("I", ids).tobytes()))
    assert c.finish(4).ids == want.ids
    want = c.score("hello")
    pass_fd(c, frame(5, score=pb.Score(prompt_fd=named(5))), memfd(b"hello"))
    assert list(c.recv().score.tokens) == want


def test_two_mebibytes_give_the_ids_of_their_bytes(fake):
    c = fake.client()
    text = os.urandom(LONG)
    pass_fd(c, frame(3, tokenize=pb.Tokenize(prompt_fd=named(LONG))), memfd(text))
    assert bytes(tokens_of(c, 3)) == text


def test_dsctl_sends_what_no_frame_holds(fake):
    text = os.urandom(LONG)
    assert bytes(json.loads(dsctl(fake, "tokenize", "--json", input=text).stdout)["ids"]) == text
    p = dsctl(fake, "generate", input=text, code=1)
    assert b"2097153 tokens: want fewer than 8192" in p.stderr


def test_a_connection_that_is_made_again_sends_the_prompt_again():
    text = os.urandom(LONG)
    with Daemon() as d:
        def connections():
            with open("/proc/net/unix") as f:
                return sum(line.rstrip().endswith(d.socket) for line in f)

        d.process.send_signal(signal.SIGSTOP)
        before = connections()
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "tokenize", "--json"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
        p.stdin.write(text)
        p.stdin.close()
        while connections() == before:
            assert p.poll() is None
            time.sleep(0.01)
        d.process.kill()
        d.process.wait()
        d.start()
        assert bytes(json.loads(p.stdout.read())["ids"]) == text
        assert p.wait(30) == 0
        p.stdout.close()


def test_the_descriptor_is_of_the_frame_it_is_sent_with(fake):
    """Frames before and behind it in the same stretch of the stream have none."""
    c = fake.client()
    for _ in range(50):
        c.sock.sendall(frame(3, tokenize=pb.Tokenize(text=b"before")))
        pass_fd(c, frame(4, tokenize=pb.Tokenize(prompt_fd=named(3))), memfd(b"one"))
        half = frame(5, tokenize=pb.Tokenize(prompt_fd=named(4)))
        pass_fd(c, half[:9], memfd(b"four"))
        c.sock.sendall(half[9:] + frame(6, tokenize=pb.Tokenize(text=b"behind")))
        got = {f.id: bytes(f.tokenize.ids) for f in (c.recv() for _ in range(4))}
        assert got == {3: b"before", 4: b"one", 5: b"four", 6: b"behind"}


# What costs the answer ---------------------------------------------------------------------------

@pytest.mark.parametrize("make, words", [
    (lambda: os.pipe()[0], "not of a memfd"),
    (lambda: os.open("/dev/zero", os.O_RDONLY), "not of a memfd"),
    (lambda: os.open(__file__, os.O_RDONLY), "not of a memfd"),
    (lambda: socket.socket().detach(), "not of a memfd"),
    (lambda: memfd(b"hello", 0), "seals 0x0"),
    (lambda: memfd(b"hello", ALL & ~SEAL), "seals 0xe"),
    (lambda: memfd(b"hello", ALL & ~WRITE), "seals 0x7"),
    (lambda: memfd(b"hello", ALL & ~GROW), "seals 0xb"),
    (lambda: memfd(b"hello", ALL & ~SHRINK), "seals 0xd"),
    (lambda: memfd(b"hello", ALL & ~WRITE | 0x10), "seals 0x17"),
    (lambda: memfd(b"hell"), "has 4 bytes, the frame says 5"),
    (lambda: memfd(b"hello!"), "has 6 bytes, the frame says 5"),
])
def test_a_bad_descriptor_costs_its_answer(fake, make, words):
    c = fake.client()
    fd = make()
    pass_fd(c, frame(3, generate=generate(5)), fd)
    e = c.recv().error
    assert e.code == pb.CODE_INVALID_ARGUMENT and words in e.message
    assert c.generate("hello", max_tokens=1).error is None  # the connection goes on


@pytest.fixture(autouse=True)
def pipes_closed():
    """os.pipe()[0] leaves its other end: not the daemon's."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        try:
            os.close(int(fd))
        except OSError:
            pass


def test_a_write_only_memfd_costs_its_answer(fake):
    c = fake.client()
    fd = memfd(b"hello")
    weak = os.open("/proc/self/fd/%d" % fd, os.O_PATH)
    os.close(fd)
    pass_fd(c, frame(3, generate=generate(5)), weak)
    assert "not of a memfd" in c.recv().error.message


def test_no_descriptor_at_all_costs_the_answer(fake):
    c = fake.client()
    c.send(3, generate=generate(5))
    e = c.recv().error
    assert e.code == pb.CODE_INVALID_ARGUMENT and "no descriptor came" in e.message


def test_ids_are_looked_at(fake):
    c = fake.client()
    pass_fd(c, frame(3, generate=generate(6, pb.PROMPT_KIND_IDS)), memfd(b"123456"))
    assert "got 6, want 4 for each id" in c.recv().error.message
    pass_fd(c, frame(4, generate=generate(8, pb.PROMPT_KIND_IDS)), memfd(struct.pack("<II", 1, 1 << 31)))
    while (f := c.recv()).WhichOneof("msg") == "started":
        pass
    assert "token 1 of the prompt is 2147483648" in f.error.message
    pass_fd(c, frame(5, tokenize=pb.Tokenize(prompt_fd=named(4, pb.PROMPT_KIND_IDS))), memfd(b"1234"))
    assert "want TEXT" in c.recv().error.message


def test_sixty_four_sparse_mebibytes_are_a_prompt_too_long_and_one_byte_more_none(fake):
    c = fake.client()
    n = 64 << 20
    pass_fd(c, frame(3, generate=generate(n)), memfd(b"", size=n))
    e = c.recv().error
    assert e.code == pb.CODE_INVALID_ARGUMENT and "%d tokens: want fewer than 8192" % (n + 1) in e.message
    pass_fd(c, frame(3, tokenize=pb.Tokenize(prompt_fd=named(n))), memfd(b"", size=n))
    assert "%d tokens: want at most %d" % (n, 4 << 20) in c.recv().error.message
    pass_fd(c, frame(4, generate=generate(n + 1)), memfd(b"", size=n + 1))
    assert "prompt_fd.bytes: got %d, want 1 to %d" % (n + 1, n) in c.recv().error.message


def test_what_waits_to_be_copied_is_charged():
    with Daemon("--set", "conn.bytes_per_uid=3M") as d:
        c = d.client()
        pass_fd(c, frame(3, tokenize=pb.Tokenize(prompt_fd=named(4 << 20))), memfd(b"", size=4 << 20))
        e = c.recv().error
        assert e.code == pb.CODE_RESOURCE_EXHAUSTED and "bytes of requests" in e.message
        for i in range(3):
            pass_fd(c, frame(4, tokenize=pb.Tokenize(prompt_fd=named(LONG))), memfd(b"", size=LONG))
            assert tokens_of(c, 4) == [0] * LONG


def test_a_client_that_goes_while_it_is_copied_leaves_nothing(fake):
    for _ in range(10):
        c = fake.client()
        pass_fd(c, frame(3, tokenize=pb.Tokenize(prompt_fd=named(8 << 20))), memfd(b"", size=8 << 20))
        c.close()


# What costs the connection -----------------------------------------------------------------------

def last_words(c):
    while (f := c.recv()).id:
        pass
    with pytest.raises(Closed):
        c.recv()
    return f.error


@pytest.mark.parametrize("message", [
    dict(stats=pb.StatsRequest()),
    dict(generate=pb.Generate(text=b"hello")),
    dict(hello=pb.Hello(protocol=1)),
])
def test_a_frame_that_names_no_descriptor_takes_none(fake, message):
    c = Client(fake.socket, hello="hello" not in message)
    pass_fd(c, frame(3, **message), memfd(b"hello"))
    e = last_words(c)
    assert e.code == pb.CODE_MALFORMED and "descriptor" in e.message


def test_two_descriptors_at_once_are_too_many(fake):
    for n in (2, 3, 200):
        c = fake.client()
        pass_fd(c, frame(3, generate=generate(5)), *[memfd(b"hello") for _ in range(n)])
        e = last_words(c)
        assert e.code == pb.CODE_MALFORMED and "descriptor" in e.message


def test_two_descriptors_one_after_the_other_are_too_many(fake):
    c = fake.client()
    data = frame(3, generate=generate(5))
    pass_fd(c, data[:6], memfd(b"hello"))
    time.sleep(0.05)
    pass_fd(c, data[6:], memfd(b"hello"))
    e = last_words(c)
    assert e.code == pb.CODE_MALFORMED and "second descriptor" in e.message


def test_a_descriptor_of_half_a_frame_goes_with_its_connection(fake):
    for _ in range(20):
        c = fake.client()
        pass_fd(c, frame(3, generate=generate(5))[:7], memfd(b"hello"))
        c.close()
