# SPDX-License-Identifier: Apache-2.0
"""dsctl batch: a file of requests, many at once."""
import json
import os
import pty
import signal
import subprocess

from dsdtest import BUILD, Daemon, pb
from test_chat import wait_idle

DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")


def run(daemon, path, *options, input=None, code=0):
    p = subprocess.run([DSCTL, "--socket", daemon.socket, "batch", *options, str(path)], capture_output=True, input=input,
                       timeout=120)
    assert p.returncode == code, p
    return p, [json.loads(line) for line in p.stdout.splitlines()]


def write(path, requests):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in requests) + "\n")
    return path


def test_answers_are_generates_own_in_the_order_of_the_file(fake, tmp_path):
    """Lengths differ, so requests end in another order than they began; the window is passed many times."""
    requests = [{"id": "r%d" % i, "prompt": "text %d" % i, "temperature": 0.9, "seed": i, "ignore_eos": True,
                 "max_tokens": 1 + (i * 37) % 50} for i in range(100)]
    p, got = run(fake, write(tmp_path / "f", requests), "--parallel", "7")
    assert p.stderr == b"" and [g["id"] for g in got] == ["r%d" % i for i in range(100)]
    c = fake.client()
    for r, g in zip(requests, got):
        want = c.generate(r["prompt"], temperature=r["temperature"], seed=r["seed"], ignore_eos=True, max_tokens=r["max_tokens"])
        assert (g["ids"], g["text"].encode(), g["seed"]) == (want.ids, want.text, r["seed"])
        assert g["usage"]["completion_tokens"] == r["max_tokens"] and g["finish"] == "length"
    c.close()
    _, unordered = run(fake, tmp_path / "f", "--parallel", "7", "--unordered")
    assert sorted(g["id"] for g in unordered) == sorted(g["id"] for g in got)
    assert {g["id"]: g["ids"] for g in unordered} == {g["id"]: g["ids"] for g in got}


def test_unordered_prints_what_is_there_first():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "1000"}) as d:
        lines = [json.dumps({"prompt": "x", "ignore_eos": True, "max_tokens": n}) for n in (300, 1)]
        for options, want in (((), [0, 1]), (("--unordered",), [1, 0])):
            _, got = run(d, "-", *options, input="\n".join(lines).encode())
            assert [g["id"] for g in got] == want


def test_each_kind_of_prompt_and_every_option(fake, tmp_path):
    sampling = {"max_tokens": 3, "min_tokens": 3, "top_k": 5, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5,
                "presence_penalty": -1, "frequency_penalty": 0.5, "seed": 2**64 - 1, "temperature": 2}
    requests = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "max_tokens": 1},
        {"ids": [104, 105], "max_tokens": 2, "ignore_eos": True, "logprobs": 2, "n": 2, "id": 2**63 + 5},
        dict(sampling, prompt="a\0ß", stop=["\u0001"], logit_bias={"101": 100}, priority="batch", parse_special=False),
        {"prompt": "x", "min_tokens": 4},
    ]
    _, got = run(fake, write(tmp_path / "f", requests), "--max-tokens", "4")
    assert [g["id"] for g in got] == [0, 2**63 + 5, 2, 3] and [g["index"] for g in got] == [0, 1, 2, 3]
    assert got[0]["usage"]["prompt_tokens"] == len("s\n\nUser: q\n\nAssistant:") + 1
    assert len(got[1]["choices"]) == 2 and all(len(t["top"]) == 2 for t in got[1]["logprobs"])
    assert got[2]["usage"]["prompt_tokens"] == len("a\0ß".encode()) + 1
    c = fake.client()
    assert got[2]["ids"] == c.generate("a\0ß", stop=[b"\1"], logit_bias=[pb.Bias(id=101, bias=100)], **sampling).ids
    c.close()
    assert got[3]["usage"]["completion_tokens"] == 4


def test_bad_lines_are_errors_of_their_own(fake, tmp_path):
    good = {"prompt": "x", "max_tokens": 1}
    bad = {
        "{": "not JSON: byte 2 of the line: it ends too early", "[1]": "want a JSON object", "7": "want a JSON object", '{"prompt":"x"} {}': "not JSON: byte 16 of the line",
        '{"prompt": nope}': "not JSON: byte 13 of the line", "[" * 100: "not JSON",
        '{"prompt":"x","ids":[1]}': "got 2 of prompt", '{"max_tokens":1}': "got 0 of prompt", '{"prompt":1}': "prompt: want",
        '{"prompt":"x","frobnicate":1}': 'unknown key "frobnicate"', '{"prompt":"x","max_tokens":-1}': "max_tokens: want a whole",
        '{"prompt":"x","max_tokens":1.5}': "max_tokens: want", '{"prompt":"x","max_tokens":4294967296}': "max_tokens: got 4294967296, want a smaller",
        '{"prompt":"x","max_tokens":"x"}': "max_tokens: want a whole number", '{"prompt":"x","max_tokens":2,"min_tokens":3}': "min_tokens: got 3, want at most max_tokens, 2",
        '{"ids":[1],"parse_special":true}': "parse_special goes with a text",
        '{"prompt":"x","temperature":"hot"}': "temperature: want", '{"prompt":"x","temperature":1e99}': "temperature: want",
        '{"prompt":"x","ignore_eos":1}': "ignore_eos: want", '{"ids":[1,-2]}': "ids[1]: want", '{"ids":7}': "ids: want",
        '{"messages":[{"role":"god","content":""}]}': 'got "god"', '{"messages":[{"role":"user"}]}': "messages[0]: want",
        '{"messages":[7]}': "messages[0]", '{"prompt":"x","stop":[1]}': "stop: want", '{"prompt":"x","logit_bias":{"x":1}}': "logit_bias",
        '{"prompt":"x","priority":"first"}': "priority: want", '{"prompt":"x","id":{}}': "id: want", '{"prompt":"x","model":null}': "model: want",
        '{"prompt":"x","top_p":7}': "generate.sampling.top_p: got 7", '{"ids":[70000]}': "is 70000", '{"ids":[null]}': "ids[0]: want",
    }
    lines = [x for line in bad for x in (line, "", good)]
    p, got = run(fake, write(tmp_path / "f", lines), code=1)
    assert p.stderr == b"" and len(got) == 2 * len(bad)
    for line, g, ok in zip(bad, got[::2], got[1::2]):
        assert g["error"]["code"] == "INVALID_ARGUMENT" and bad[line] in g["error"]["message"], (line, g)
        assert ok["usage"]["completion_tokens"] == 1
    _, got = run(fake, "-", input=b'{"prompt":"x","id":"mine","max_tokens":0}', code=1)
    assert got[0]["id"] == "mine"


def test_an_empty_file_is_no_request_and_a_missing_one_a_sentence(fake, tmp_path):
    assert run(fake, write(tmp_path / "f", ["", "  "]))[1] == []
    p, _ = run(fake, tmp_path / "none", code=1)
    assert b"No such file" in p.stderr
    assert b"--parallel" in run(fake, tmp_path / "f", "--parallel", "0", code=2)[0].stderr


def test_a_lost_daemon_ends_every_request_under_way(tmp_path):
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        path = write(tmp_path / "f", [{"prompt": "x", "max_tokens": 1}] +
                     [{"prompt": "x", "ignore_eos": True, "max_tokens": 2000}] * 20)
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "--no-resume", "batch", "--parallel", "4", str(path)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert json.loads(p.stdout.readline())["finish"]
        d.process.kill()
        d.process.wait()
        out, err = p.communicate(timeout=20)
        got = [json.loads(line) for line in out.splitlines()]
        assert p.returncode == 1 and 0 < len(got) < 20 and b"connection was lost" in err
        assert all(g["error"]["code"] == "RETRYABLE" for g in got)


def test_ctrl_c_cancels_and_leaves_with_130(tmp_path):
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        path = write(tmp_path / "f", [{"prompt": "x", "max_tokens": 1}] + [{"prompt": "x", "ignore_eos": True}] * 20)
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "batch", str(path)], stdout=subprocess.PIPE)
        assert json.loads(p.stdout.readline())["id"] == 0
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=10)
        assert p.returncode == 130 and out == b"" and wait_idle(d).models[0].pages_used == 0


def test_a_terminal_gets_a_bar_on_standard_error_alone(fake, tmp_path):
    path = write(tmp_path / "f", [{"prompt": "x", "max_tokens": 2, "ignore_eos": True}] * 5)
    screen, slave = pty.openpty()
    p = subprocess.run([DSCTL, "--socket", fake.socket, "batch", str(path)], stdout=subprocess.PIPE, stderr=slave, timeout=30)
    os.close(slave)
    bar = b""
    try:
        while piece := os.read(screen, 65536):
            bar += piece
    except OSError:  # EIO: nobody holds the other end
        pass
    os.close(screen)
    bar = bar.decode()
    assert p.returncode == 0 and p.stdout.count(b"\n") == 5 and "5/5, 0 failed" in bar and bar.endswith("\r\n")


def test_an_id_that_was_there_is_refused_by_its_name(fake, tmp_path):
    """A string is no number, and what a request is called by default is told apart by its index."""
    requests = [{"id": "a", "prompt": "x"}, {"id": 3, "prompt": "x"}, {"id": "a", "prompt": "x"}, {"prompt": "x"},
                {"id": "3", "prompt": "x"}, {"prompt": "x"}, {"id": 5, "prompt": "x"}]
    _, got = run(fake, write(tmp_path / "f", requests), "--max-tokens", "2", code=1)
    assert [g["id"] for g in got] == ["a", 3, "a", 3, "3", 5, 5]
    assert [g["index"] for g in got] == list(range(7))
    assert [i for i, g in enumerate(got) if "error" in g] == [2]
    assert got[2]["error"] == {"code": "INVALID_ARGUMENT",
                               "message": 'id "a" is that of request 0 of the file: want each once'}


def test_what_came_before_a_deadline_is_printed_with_the_error():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "1000"}) as d:
        c = d.client()
        want = c.generate("x", temperature=0, ignore_eos=True, max_tokens=400).text.decode()
        c.close()
        request = {"prompt": "x", "temperature": 0, "ignore_eos": True, "max_tokens": 100000, "deadline_ms": 300}
        _, (got,) = run(d, "-", input=json.dumps(request).encode(), code=1)
        assert got["error"]["code"] == "DEADLINE_EXCEEDED" and got["finish"] is None and "usage" not in got
        assert 0 < len(got["text"]) and (want.startswith(got["text"]) or got["text"].startswith(want))
        assert len(got["ids"]) >= len(got["text"].encode())


def test_stop_and_ignore_eos_hold_where_a_line_does_not_say(fake, tmp_path):
    c = fake.client()
    want = c.generate("x", max_tokens=40, temperature=0, ignore_eos=True).text.decode()
    c.close()
    first, other = want[8:14], want[24:30]
    assert want.index(first) < want.index(other)
    requests = [{"prompt": "x"}, {"prompt": "x", "stop": other}, {"prompt": "x", "stop": []}]
    _, got = run(fake, write(tmp_path / "f", requests), "--temperature", "0", "--max-tokens", "40", "--ignore-eos",
                 "--stop", first)
    assert [(g["text"], g["finish"]) for g in got] == [(want[:want.index(first)], "stop"),
                                                      (want[:want.index(other)], "stop"), (want, "length")]
