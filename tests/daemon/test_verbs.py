# SPDX-License-Identifier: Apache-2.0
"""What dsctl shows of a daemon at work, and what an administrator does with it."""
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

from dsdtest import BUILD, Client, Daemon, pb
from test_reload import SMALL, synthetic

GOLDEN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "golden", "v2-lite-tiny")
DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")
PREFIX = "a system prompt that everybody of this host begins with. " * 4  # 228 bytes


@pytest.fixture
def daemon():
    """Slow enough to be looked at; its administrative socket is where dsctl looks by itself."""
    with Daemon(env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
        yield d


def dsctl(daemon, *args, input=None, code=0, env=None, **kw):
    p = subprocess.run([DSCTL, "--socket", daemon.socket, *args], capture_output=True, input=input, timeout=60,
                       env=dict(os.environ, **(env or {})), **kw)
    assert p.returncode == code, p
    return p


def objects(daemon, *args, **kw):
    p = dsctl(daemon, *args, "--json", **kw)
    assert p.stderr == b""
    return [json.loads(line) for line in p.stdout.splitlines()]


def ask(daemon, *args, **kw):
    (o,) = objects(daemon, *args, **kw)
    return o


def start(client, **sampling):
    """A request that goes on for long; its number."""
    client.start("hello", max_tokens=8000, ignore_eos=True, **sampling)
    number = client.recv().started.request
    while client.recv().WhichOneof("msg") != "delta":
        pass
    return number


# Requests ------------------------------------------------------------------------------------------------


def test_ps_shows_what_the_protocol_lists(daemon):
    assert ask(daemon, "ps") == {"requests": []}
    c, d = daemon.client(), daemon.client()
    numbers = [start(c), start(d)]
    for args in ((), ("--all",)):
        seen = ask(daemon, "ps", *args)["requests"]
        assert [r["request"] for r in seen] == numbers
        for r in seen:
            assert (r["uid"], r["pid"], r["model"]) == (os.getuid(), os.getpid(), "fake")
            assert (r["activity"], r["priority"]) == ("decode", "normal")
            assert r["prompt_tokens"] == 6 and r["completion_tokens"] > 0 and r["pages"] > 0 and r["age_usec"] > 0
    lines = dsctl(daemon, "ps").stdout.decode().splitlines()
    assert lines[0].split() == ["REQUEST", "UID", "PID", "MODEL", "ACTIVITY", "PRIORITY", "PROMPT", "CACHED", "TOKENS",
                                "PAGES", "AGE"]
    assert [line.split()[0] for line in lines[1:]] == [str(n) for n in numbers]


def test_ps_shows_who_waits_for_a_model(daemon):
    c, admin = daemon.client(), Client(daemon.admin)
    number = start(c)
    admin.send(3, drain=pb.Drain())
    assert admin.recv().WhichOneof("msg") == "progress"
    assert [(r["activity"], r["completion_tokens"] > 0) for r in ask(daemon, "ps", "--all")["requests"]] == [
        ("decode", True), ("model", False)]
    assert dsctl(daemon, "cancel", str(number)).stdout == b""
    assert admin.recv().WhichOneof("msg") == "ack"
    admin.send(4, drain=pb.Drain(undo=True))
    assert admin.recv().WhichOneof("msg") == "ack"


def test_cancel_ends_the_requests_it_names_and_no_other(daemon):
    a, b, c = daemon.client(), daemon.client(), daemon.client()
    first, second, third = start(a), start(b), start(c)
    assert dsctl(daemon, "cancel", str(first)).stdout == b""
    assert "by its user" in a.finish().error.message
    p = dsctl(daemon, "cancel", "--json", "--all", str(first), str(second), code=1)
    assert json.loads(p.stdout) == {"cancelled": [second]}
    assert p.stderr.decode() == "dsctl: NOT_FOUND: no request %d: dsctl ps lists them\n" % first
    e = b.finish().error
    assert e.code == pb.CODE_CANCELLED and "administrator" in e.message
    assert [r["request"] for r in ask(daemon, "ps")["requests"]] == [third]


def test_cancel_wants_numbers(daemon):
    assert b"want the number of a request" in dsctl(daemon, "cancel", code=2).stderr
    c = daemon.client()
    number = start(c)
    assert b"got 'x'" in dsctl(daemon, "cancel", str(number), "x", code=2).stderr
    assert len(ask(daemon, "ps")["requests"]) == 1  # nothing was done


# What is cached ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["text", "stdin", "ids"])
def test_a_published_prefix_is_found_until_it_is_unpublished(daemon, how):
    ids = json.loads(dsctl(daemon, "tokenize", "--json", "--add-bos", PREFIX).stdout)["ids"]
    args, input = {"text": ([PREFIX], None), "stdin": ([], PREFIX.encode()),
                   "ids": (["--ids", ",".join(map(str, ids))], None)}[how]
    assert ask(daemon, "publish", "system", *args, input=input) == {"name": "system", "tokens": 229}
    assert ask(daemon, "stats")["models"][0]["pages_published"] == 3
    c = daemon.client()
    assert c.generate(PREFIX + "hello", max_tokens=2).usage.cached_tokens == 192
    assert ask(daemon, "unpublish", "system") == {"name": "system"}
    p = dsctl(daemon, "unpublish", "system", code=1)
    assert p.stderr == b"dsctl: NOT_FOUND: nothing is published under that name\n" and p.stdout == b""
    assert ask(daemon, "evict")["pages"] >= 3
    assert c.generate(PREFIX + "hello", max_tokens=2).usage.cached_tokens == 0


def test_a_published_system_message_is_found_by_conversations(daemon):
    n = ask(daemon, "publish", "system", "--chat", PREFIX)["tokens"]
    assert n > len(PREFIX)
    c = daemon.client()
    a = c.generate(chat=[(pb.ROLE_SYSTEM, PREFIX), (pb.ROLE_USER, "hello")], max_tokens=2)
    assert a.error is None and a.usage.cached_tokens == n // 64 * 64 > 0
    assert ask(daemon, "stats")["models"][0]["pages_published"] == n // 64


def test_people_are_told_what_was_published_and_evicted(daemon):
    assert dsctl(daemon, "publish", "system", PREFIX).stdout == b"system: 229 tokens published\n"
    assert dsctl(daemon, "unpublish", "system").stdout == b""
    assert dsctl(daemon, "evict", "fake").stdout == b"3 pages evicted\n"


def test_wrong_lines_are_sentences(daemon):
    assert b"want a name" in dsctl(daemon, "publish", code=2).stderr
    assert b"--ids is the whole prefix" in dsctl(daemon, "publish", "x", "--ids", "1", "text", code=2).stderr
    assert b"at least a page of 64" in dsctl(daemon, "publish", "x", "short", code=1).stderr
    assert b"the prefix has 1 token:" in dsctl(daemon, "publish", "x", "--ids", "1", code=1).stderr
    assert b"--socket: got '', want a path" in dsctl(daemon, "ping", "--socket", "", code=2).stderr
    assert b"no model of that name" in dsctl(daemon, "evict", "none", code=1).stderr
    assert b"want one" in dsctl(daemon, "unpublish", "a", "b", code=2).stderr


# Models --------------------------------------------------------------------------------------------------


def names(daemon):
    return [m["name"] for m in ask(daemon, "models")["models"]]


def test_models_are_loaded_reloaded_and_unloaded(tmp_path):
    one, two = synthetic(tmp_path / "one", 1), synthetic(tmp_path / "two", 2)
    with Daemon(*SMALL, fake=False, model=one) as d:
        assert ask(d, "load", two) == {"path": two}
        p = subprocess.run([DSCTL, "--socket", d.socket, "load", "two", "--name", "three"], cwd=tmp_path, capture_output=True)
        assert (p.returncode, p.stdout, p.stderr) == (0, b"", b"")
        assert names(d) == ["one", "two", "three"]
        p = dsctl(d, "load", two, code=1)
        assert b"dsctl reload loads its files anew" in p.stderr
        p = dsctl(d, "load", str(tmp_path / "none"), code=4)
        assert p.stderr.startswith(b"dsctl: MODEL_INVALID: ") and b"none" in p.stderr
        synthetic(two, 3)
        digest = {m["name"]: m["digest"] for m in ask(d, "models")["models"] if "digest" in m}
        assert ask(d, "reload", "two") == {"models": ["two"]}
        assert ask(d, "reload", "three", "--drain") == {"models": ["three"]}
        now = {m["name"]: m["digest"] for m in ask(d, "models")["models"] if "digest" in m}
        assert now["one"] == digest["one"] and now["two"] == now["three"] != digest["two"]
        assert ask(d, "unload", "two") == {"model": "two"} and "two" not in names(d)
        assert b"no model of that name" in dsctl(d, "unload", "two", code=1).stderr


def test_a_drained_model_refuses_until_that_is_undone(daemon):
    c = daemon.client()
    number = start(c)
    drain = subprocess.Popen([DSCTL, "--socket", daemon.socket, "drain", "--json"], stdout=subprocess.PIPE)
    refused = daemon.client()
    while (a := refused.generate("x", max_tokens=1)).error is None:
        pass
    assert a.error.code == pb.CODE_RETRYABLE and drain.poll() is None  # it waits for the one under way
    (m,) = ask(daemon, "models")["models"]
    assert m["state"] == "ready" and m["reason"].startswith("drained")
    dsctl(daemon, "cancel", str(number))
    assert json.loads(drain.communicate(timeout=30)[0]) == {"model": None} and drain.returncode == 0
    assert ask(daemon, "drain", "fake", "--undo") == {"model": "fake"}
    assert "reason" not in ask(daemon, "models")["models"][0]
    assert refused.generate("x", max_tokens=1).error is None


def test_a_terminal_is_shown_the_progress(tmp_path):
    path = synthetic(tmp_path / "one", 1)
    with Daemon(*SMALL, fake=False, model=path) as d:
        screen, slave = pty.openpty()
        p = subprocess.run([DSCTL, "--socket", d.socket, "reload"], stdout=subprocess.PIPE, stderr=slave, timeout=60)
        os.close(slave)
        bar = ""
        try:
            while piece := os.read(screen, 65536):
                bar += piece.decode()
        except OSError:  # the other side is closed, and all of it was read
            os.close(screen)
        assert p.returncode == 0 and p.stdout == b""
        assert "] " in bar and "% starting" in bar and bar.endswith("\r\x1b[K")


# The administrative socket ---------------------------------------------------------------------------------


def test_the_administrative_socket_is_named_by_option_environment_or_its_place(daemon, tmp_path):
    admin = os.path.join(daemon.dir, "admin.sock")
    none = str(tmp_path / "none.sock")
    nowhere = dict(DSD_ADMIN_SOCKET=none)
    assert none.encode() in dsctl(daemon, "evict", env=nowhere, code=3).stderr
    assert dsctl(daemon, "evict", "--admin-socket", admin, env=nowhere).returncode == 0
    assert dsctl(daemon, "evict", env=dict(DSD_ADMIN_SOCKET=admin)).returncode == 0
    p = subprocess.run([DSCTL, "--socket", "dsd.sock", "evict"], cwd=daemon.dir, capture_output=True, timeout=30)
    assert p.returncode == 0, p
    p = dsctl(daemon, "evict", env=dict(DSD_ADMIN_SOCKET=daemon.socket), code=1)
    assert b"UNIMPLEMENTED" in p.stderr and b"on this socket" in p.stderr


def test_who_may_not_administrate_is_told_who_may(daemon):
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    os.chmod(daemon.dir, 0o755)
    os.chmod(daemon.socket, 0o666)
    c = daemon.client()
    number = start(c)
    for path in (DSCTL, os.path.join(BUILD, "client", "libdsclient.so.0")):  # the build may lie where others cannot look
        shutil.copy(path, daemon.dir)
    other = dict(user=65501, group=65501, extra_groups=[], cwd="/", env=dict(LD_LIBRARY_PATH=daemon.dir),
                 executable=os.path.join(daemon.dir, "dsctl"))
    p = dsctl(daemon, "ps", "--all", code=3, **other)
    assert p.stderr.decode() == ("dsctl: cannot connect to %s/admin.sock: Permission denied; administration is for root: "
                                 "try sudo\n" % daemon.dir)
    assert ask(daemon, "ps", **other) == {"requests": []}
    assert b"no request %d" % number in dsctl(daemon, "cancel", str(number), code=1, **other).stderr
    nobody = dict(other, user=65534, group=65534)
    said = [dsctl(daemon, *words, code=3, **nobody).stderr.decode() for words in (("ping",), ("ps",), ("generate", "x"))]
    assert all("cannot connect to %s/dsd.sock: " % daemon.dir in s and "connect as a user of its own" in s for s in said)


# top -------------------------------------------------------------------------------------------------------


def test_top_prints_an_object_for_each_interval(daemon):
    c = daemon.client()
    start(c)
    ask(daemon, "publish", "system", PREFIX)
    looks = objects(daemon, "top", "--count", "3", "--interval", "0.1")
    assert len(looks) == 3
    for look in looks:
        (m,) = look["models"]
        assert (m["name"], m["running"], m["waiting"], look["state"]) == ("fake", 1, 0, "ready")
        assert sum(m["pages"].values()) == ask(daemon, "stats")["models"][0]["pages_total"]
        assert m["pages"]["published"] == 3 and m["pages"]["in_use"] > 0
        # One sequence: a step is a row is a token.
        assert m["generated_tokens_per_second"] > 0 and m["rows_per_step"] == 1
        assert m["hit_rate"] is None and m["prompt_tokens_per_second"] == 0
        assert 0 < m["worker_share"] <= 1 and look["broker_share"] > 0 and look["seconds"] >= 0.1
    assert looks[0]["uptime_usec"] < looks[1]["uptime_usec"] < looks[2]["uptime_usec"]


def test_hits_are_those_of_the_interval(daemon):
    """Three of four pages are found while top looks; the prompt before it found none."""
    c = daemon.client()
    c.generate(PREFIX, max_tokens=1)
    top = subprocess.Popen([DSCTL, "--socket", daemon.socket, "top", "--json", "--interval", "0.1"], stdout=subprocess.PIPE)
    assert json.loads(top.stdout.readline())["models"][0]["hit_rate"] is None
    assert c.generate(PREFIX, max_tokens=1).usage.cached_tokens == 192
    for line in top.stdout:
        (m,) = json.loads(line)["models"]
        if m["hit_rate"] is not None:
            break
    assert m["hit_rate"] == pytest.approx(192 / 229)
    top.send_signal(signal.SIGINT)
    assert top.wait(10) == 130
    s = c.stats().models[0]
    assert s.cached_tokens == 192
    assert ask(daemon, "stats")["models"][0]["hit_rate"] == pytest.approx(192 / (192 + s.prompt_tokens))


@pytest.mark.parametrize("entry,row", [("int8", 32 + 4 + 2 * 16), ("bf16", 2 * 48), ("f32", 4 * 48)])
def test_stats_name_what_a_token_costs_and_beside_what(entry, row):
    """The cache beside MHA's and GQA-8's of the same size, and the weights a token touches; cache rows of 32 + 16."""
    with Daemon("--set", "pool.entry=" + entry, "--set", "pool.size=16M", fake=False, model=GOLDEN) as d:
        with open(os.path.join(GOLDEN, "config.json")) as f:
            c = json.load(f)
        (s,), (m,) = ask(d, "stats")["models"], ask(d, "models")["models"]
        layers = c["num_hidden_layers"]
        mha = 2 * layers * c["num_attention_heads"] * (c["qk_nope_head_dim"] + c["v_head_dim"])
        gqa = 2 * layers * 2 * 8 * 128
        assert s["kv_bytes_per_token"] == layers * row
        assert (s["mha_bytes_per_token"], s["gqa8_bytes_per_token"]) == (mha, gqa)
        assert 0 < s["params_active"] < s["params"] and all(s[k] == m[k] for k in ("params", "params_active"))
        text = dsctl(d, "stats").stdout.decode()
        assert "%.3g%% of MHA in bf16" % (100 * layers * row / mha) in text
        assert "%.3g%% of GQA-8 in bf16" % (100 * layers * row / gqa) in text
        assert re.search(r"weights per token .*numbers, %.3g%% of " % (100 * s["params_active"] / s["params"]), text)
        first, again = (d.client(timeout=60).generate(PREFIX, max_tokens=8, temperature=0, ignore_eos=True) for _ in range(2))
        assert first.ids == again.ids and (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 192)


# Name, cache of a token, MHA's, GQA-8's, numbers, those that a token touches; and what shall be said of them.
PUBLISHED = [
    (("v2-lite", 31104, 221184, 110592, 15706484224, 2451437056), ("14.1%", "28.1%", "15.6%")),
    (("v2-lite-int8", 17712, 221184, 110592, 15706484224, 2451437056), ("8.01%", "16%", "15.6%")),
    (("v2", 69120, 3932160, 245760, 235741434880, 20851517440), ("1.76%", "28.1%", "8.85%")),
    (("v3", 70272, 3997696, 249856, 671026404352, 36625610752), ("1.76%", "28.1%", "5.46%")),
]


def test_stats_of_the_published_models_are_shares_of_what_others_need(tmp_path):
    """The numbers are those that tests/unit has of these shapes (image.c, load_config.c)."""
    def answer(listener):
        conn, _ = listener.accept()
        with conn, conn.makefile("rb") as f:
            while head := f.read(4):
                q, a = pb.ClientFrame(), pb.ServerFrame()
                q.ParseFromString(f.read(*struct.unpack("<I", head)))
                a.id = q.id
                if q.HasField("hello"):
                    a.hello.CopyFrom(pb.HelloReply(protocol=1, version="1", state=pb.STATE_READY, max_frame_bytes=1 << 20))
                else:
                    a.stats.CopyFrom(reply)
                data = a.SerializeToString()
                conn.sendall(struct.pack("<I", len(data)) + data)

    def filled(message, **known):
        """Every required number that nobody asked for is 0."""
        for field in message.DESCRIPTOR.fields:
            if field.label == field.LABEL_REQUIRED and field.name not in known:
                setattr(message, field.name, "x" if field.type == field.TYPE_STRING else 0)
        for name, value in known.items():
            setattr(message, name, value)
        return message

    reply = filled(pb.StatsReply(), state=pb.STATE_READY)
    keys = ("name", "kv_bytes_per_token", "mha_bytes_per_token", "gqa8_bytes_per_token", "params", "params_active")
    for numbers, _ in PUBLISHED:
        filled(reply.models.add(), **dict(zip(keys, numbers)))
    path = str(tmp_path / "dsd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        p = subprocess.run([DSCTL, "--socket", path, "stats"], capture_output=True, timeout=60)
    assert (p.returncode, p.stderr) == (0, b"")
    text = p.stdout.decode()
    caches, weights = (re.findall(r"%s per token +(.*)" % what, text) for what in ("cache", "weights"))
    for cache, weight, (_, (mha, gqa, touched)) in zip(caches, weights, PUBLISHED, strict=True):
        assert ", %s of MHA in bf16 (" % mha in cache and ", %s of GQA-8 in bf16 (" % gqa in cache, cache
        assert " numbers, %s of " % touched in weight, weight


def test_top_without_a_terminal_prints_lines(daemon):
    p = dsctl(daemon, "top", "--count", "2", "--interval", "0.1")
    lines = p.stdout.decode().splitlines()
    assert len(lines) == 2 and all(" free, worker " in line for line in lines), lines
    assert b"--interval: got 0, want" in dsctl(daemon, "top", "--interval", "0", code=2).stderr


class Screen:
    """dsctl top on a terminal of its own."""

    def __init__(self, daemon, *options, term="xterm"):
        self.fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 140, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen([DSCTL, "--socket", daemon.socket, "top", "--interval", "0.1", *options], stdin=slave,
                                        stdout=slave, stderr=slave, env=dict(os.environ, TERM=term), start_new_session=True)
        self.seen = b""

    def expect(self, *words):
        end = time.monotonic() + 30
        while not all(w.encode() in self.seen for w in words):
            assert time.monotonic() < end and select.select([self.fd], [], [], 30)[0], (words, self.seen)
            self.seen += os.read(self.fd, 65536)

    def leave(self, key):
        os.write(self.fd, key)
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 65536)
        assert termios.tcgetattr(self.slave) == self.before  # as it was
        return self.process.wait(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.fd)


def test_top_on_a_terminal_is_a_screen_that_q_leaves(daemon):
    c = daemon.client()
    number = start(c)
    with Screen(daemon) as s:
        s.expect("dsd ", "fake   1 running, 0 waiting", "# in use", "hits", "worker", "REQUEST", "decode", str(number))
        assert s.leave(b"q") == 0
        assert b"dsctl:" not in s.seen


def test_what_ends_top_is_said_after_the_screen(daemon):
    with Screen(daemon, "--no-resume") as s:
        s.expect("none of yours under way")
        daemon.process.kill()
        daemon.process.wait()
        s.expect("dsctl: RETRYABLE: ")
        assert s.seen.index(b"\x1b[?1049l") < s.seen.index(b"dsctl: ")  # back from the alternate screen
        assert s.process.wait(10) == 1


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(daemon):
    with Screen(daemon, "--count", "1", term="dumb") as s:
        s.expect("fake: 0 running", " free, worker ")
        assert s.process.wait(10) == 0
