# SPDX-License-Identifier: Apache-2.0
"""dsctl and libdsclient as people and programs use them."""
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from dsdtest import BUILD, SOURCE, Daemon

DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")


def dsctl(daemon, *args, input=None, code=0):
    p = subprocess.run([DSCTL, "--socket", daemon.socket, *args], capture_output=True, input=input, timeout=60,
                       env=dict(os.environ, DSD_WORKER=os.path.join(BUILD, "daemon", "dsd-worker")))
    assert p.returncode == code, p
    return p


def generate(daemon, *args, **kw):
    p = dsctl(daemon, "generate", "--json", *args, **kw)
    assert p.stderr == b""
    return json.loads(p.stdout)


def test_greedy_twice_is_equal(fake):
    args = ("--raw", "--temperature", "0", "--ignore-eos", "--max-tokens", "64", "hello")
    a, b = generate(fake, *args), generate(fake, *args)
    assert len(a["ids"]) == 64 and (a["ids"], a["text"]) == (b["ids"], b["text"])
    assert a["usage"]["completion_tokens"] == 64 and a["finish"] == "length"


def test_seeded_twice_is_equal_and_choices_differ(fake):
    args = ("--raw", "--temperature", "0.8", "--seed", "7", "--ignore-eos", "--max-tokens", "64", "hello")
    a, b = generate(fake, *args), generate(fake, *args)
    assert a["ids"] == b["ids"] and a["seed"] == 7
    two = generate(fake, "--n", "2", *args)["choices"]
    assert two[0]["ids"] == a["ids"] and two[1]["ids"] != a["ids"]


def test_standard_input_is_taken_byte_for_byte(fake):
    data = bytes(range(256)) + b"\n\n"
    ids = json.loads(dsctl(fake, "tokenize", "--json", input=data).stdout)["ids"]
    assert ids == list(data)
    assert dsctl(fake, "detokenize", *map(str, ids)).stdout.startswith(data)


def test_text_is_the_completion_alone_and_streams(fake):
    want = generate(fake, "--temperature", "0", "--max-tokens", "30", "--ignore-eos", "hello")["text"]
    assert dsctl(fake, "generate", "--temperature", "0", "--max-tokens", "30", "--ignore-eos", "hello").stdout == want.encode()


def test_global_options_go_before_and_after_the_verb(fake):
    a = subprocess.run([DSCTL, "models", "--json", "--socket", fake.socket], capture_output=True, timeout=30)
    b = subprocess.run([DSCTL, "--json", "--socket", fake.socket, "models"], capture_output=True, timeout=30)
    assert a.returncode == 0 and json.loads(a.stdout) == json.loads(b.stdout)


def test_errors_are_one_sentence_and_documented_codes(fake, tmp_path):
    p = dsctl(fake, "generate", "--ids", "70000", code=1)
    assert p.stdout == b"" and b"is 70000: want less than 258" in p.stderr and p.stderr.count(b"\n") == 1
    assert b"unknown verb" in dsctl(fake, "frobnicate", code=2).stderr
    assert b"--temperature" in dsctl(fake, "generate", "--temperature", "hot", "x", code=2).stderr
    for words in (("generate", "--chat", "x"), ("generate", "--ids", "1"), ("tokenize", "--chat", "x"), ("score", "--ids", "1")):
        assert b"--parse-special" in dsctl(fake, *words, "--parse-special", code=2).stderr, words
    assert b"--add-bos" in dsctl(fake, "tokenize", "--chat", "--add-bos", "x", code=2).stderr
    p = dsctl(fake, "generate", "--min-tokens", "20", "--max-tokens", "12", "x", code=1)
    assert p.stdout == b"" and b"min_tokens: got 20, want at most max_tokens, 12" in p.stderr
    p = subprocess.run([DSCTL, "--socket", str(tmp_path / "none"), "ping"], capture_output=True, timeout=30)
    assert p.returncode == 3 and str(tmp_path).encode() in p.stderr


def test_nothing_has_no_score(fake):
    for args, input in ((("",), None), ((), b""), (("--ids", ""), None)):
        p = dsctl(fake, "score", *args, input=input, code=2)
        assert p.stdout == b"" and p.stderr == b"dsctl: score: got nothing, want a text or token ids\n"


def test_ping_that_may_wait_no_time_looks_once(fake, tmp_path):
    assert dsctl(fake, "ping", "--wait", "0").stdout.startswith(b"ready")


def test_ping_waits_for_a_daemon_that_comes(tmp_path):
    path = str(tmp_path / "s")
    waiting = subprocess.Popen([DSCTL, "--socket", path, "ping", "--wait", "30"], stdout=subprocess.PIPE)
    time.sleep(0.3)
    daemon = subprocess.Popen([os.path.join(BUILD, "daemon", "dsd"), "--fake-worker", "--socket", path,
                               "--state", str(tmp_path / "state")], stderr=subprocess.DEVNULL)
    try:
        out, _ = waiting.communicate(timeout=30)
        assert waiting.returncode == 0 and b"ready" in out
    finally:
        daemon.terminate()
        daemon.wait()


def test_ctrl_c_cancels_and_leaves_with_130():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "generate", "--ignore-eos", "hello"], stdout=subprocess.PIPE)
        assert p.stdout.read(5)
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=10)
        assert p.returncode == 130
        c = d.client()
        for _ in range(100):
            if c.stats().models[0].pages_used == 0:
                break
            time.sleep(0.02)
        assert c.stats().models[0].pages_used == 0


def test_dsctl_killed_in_mid_stream_leaves_nothing_behind():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "generate", "--ignore-eos", "hello"], stdout=subprocess.PIPE)
        assert p.stdout.read(5)
        p.kill()
        p.wait()
        c = d.client()
        for _ in range(100):
            s = c.stats()
            if s.models[0].pages_used == 0 and s.connections == 1:
                break
            time.sleep(0.02)
        assert (s.models[0].pages_used, s.connections) == (0, 1)


def test_the_program_of_the_readme_compiles_and_runs(fake, tmp_path):
    text = open(os.path.join(SOURCE, "README.md")).read()
    (source,) = re.findall(r"```c\n(.*?)```", text, re.S)
    (tmp_path / "story.c").write_text(source)
    lib = os.path.join(BUILD, "client")
    if re.search(rb"__(asan|tsan|ubsan)_", open(os.path.join(lib, "libdsclient.so.0"), "rb").read()):
        pytest.skip("the library is built with sanitizers: a plain program cannot load it")
    for compiler in (["cc", "-std=c11"], ["c++", "-std=c++17", "-x", "c++"]):
        if not shutil.which(compiler[0]):
            continue
        subprocess.run(compiler + ["-Wall", "-Wextra", "-Werror", "-I" + os.path.join(SOURCE, "client"),
                                   "-o", str(tmp_path / "story"), str(tmp_path / "story.c"), "-x", "none", "-L" + lib,
                                   "-ldsclient", "-Wl,-rpath," + lib], check=True)
        said = b""
        for _ in range(8):  # it draws with a seed of its own, and the first token drawn may be the end
            p = subprocess.run([str(tmp_path / "story"), "hello"], capture_output=True, timeout=30,
                               env=dict(os.environ, DSD_SOCKET=fake.socket))
            assert p.returncode == 0 and p.stderr == b"" and len(p.stdout) <= 40
            said += p.stdout
        assert said
