# SPDX-License-Identifier: Apache-2.0
"""dsctl chat, at a pseudo-terminal as a person has it and on pipes as a script has it."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from dsdtest import BUILD, SOURCE, Daemon

DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")
STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")


class Terminal:
    """dsctl chat with a terminal of its own, which makes signals of control characters."""

    def __init__(self, daemon, *options, term="dumb", home="/nonexistent", socket=None):
        self.fd, slave = pty.openpty()
        env = dict(os.environ, TERM=term, HOME=home, COLUMNS="200")
        env.pop("LC_ALL", None)
        env.pop("LANG", None)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x30\x00\xc8\x00\0\0\0\0")

        def own():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen([DSCTL, "--socket", socket or daemon.socket, "chat", *options], stdin=slave, stdout=slave,
                                        stderr=slave, env=env, preexec_fn=own)
        os.close(slave)
        self.seen = ""  # since the last expect()

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self.fd, 65536)
        except OSError:  # the other side is closed
            piece = b""
        self.seen += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)

    def expect(self, pattern, seconds=30):
        """Read until the pattern is there; what came up to it is taken and given back."""
        end = time.monotonic() + seconds
        while True:
            m = re.search(pattern, self.seen)
            if m:
                before, self.seen = self.seen[:m.end()], self.seen[m.end():]
                return before
            left = end - time.monotonic()
            assert left > 0 and self.read(left), "no %r in %r" % (pattern, self.seen)

    def prompt(self):
        return self.expect(r"(?:^|\n)> $")

    def type(self, text):
        os.write(self.fd, text.encode())

    def say(self, text):
        """A line, and all that came until the next prompt, without the echo."""
        self.type(text + "\n")
        self.expect(re.escape(text) + r"\n")
        self.seen = "\n" + self.seen
        return self.prompt()[1:-2]

    def stats(self):
        text = self.say("/stats")
        return {k: v for k, v in (word.split("=") for word in text.split())}

    def code(self):
        while self.read(10):
            pass
        return self.process.wait(10)

    def __enter__(self):
        self.prompt()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


def pipe(daemon, text, *options, code=0):
    p = subprocess.run([DSCTL, "--socket", daemon.socket, "chat", *options], input=text.encode(), capture_output=True, timeout=120)
    assert p.returncode == code, p
    return p


def objects(daemon, text, *options, **kw):
    return [json.loads(line) for line in pipe(daemon, text, "--json", *options, **kw).stdout.splitlines()]


def wait_idle(daemon):
    c = daemon.client()
    end = time.monotonic() + 10
    while time.monotonic() < end and (c.stats().models[0].running or c.stats().models[0].pages_used):
        time.sleep(0.01)
    s = c.stats()
    c.close()
    return s


@pytest.fixture(scope="module")
def starter():
    if not os.path.exists(os.path.join(STARTER, "model.safetensors")):
        pytest.skip("packaging/starter-model/model is not there: it is made by packaging/starter-model/train.py")
    with Daemon(fake=False, model=STARTER) as d:
        yield d


# On pipes ------------------------------------------------------------------------------------------------


def test_each_line_is_a_message_and_standard_output_is_answers(fake):
    p = pipe(fake, "hello\n\nagain", "--temperature", "0", "--max-tokens", "5", "--min-tokens", "5")
    c, said, want = fake.client(), [], b""
    for question in ("hello", "again"):
        said.append((2, question))
        answer = c.generate(chat=said, temperature=0, max_tokens=5, min_tokens=5).text.removeprefix(b" ")
        said.append((3, answer.decode()))
        want += answer if answer.endswith(b"\n") else answer + b"\n"
    assert p.stderr == b"" and p.stdout == want
    c.close()


def test_a_turn_sends_the_whole_conversation(fake):
    """The fake's tokens are bytes: a prompt's length says just what is in it."""
    a, b = objects(fake, "hello\nand then?\n", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9", "--min-tokens", "9")
    first = len("Be brief.\n\nUser: hello\n\nAssistant:") + 1
    assert a["usage"]["prompt_tokens"] == first
    answer = len(a["text"].encode())
    assert b["usage"]["prompt_tokens"] == first + len(" ") + answer + 1 + len("User: and then?\n\nAssistant:")
    c = fake.client()
    want = c.generate(chat=[(1, "Be brief."), (2, "hello"), (3, a["text"]), (2, "and then?")], temperature=0, max_tokens=9, min_tokens=9)
    assert b["text"] == want.text.decode(errors="replace").removeprefix(" ")
    c.close()


def test_a_line_that_ends_in_a_backslash_goes_on(fake):
    one, = objects(fake, "a\\\nb", "--max-tokens", "1")
    assert one["usage"]["prompt_tokens"] == len("User: a\nb\n\nAssistant:") + 1
    end, = objects(fake, "a\\", "--max-tokens", "1")
    assert end["usage"]["prompt_tokens"] == len("User: a\n\n\nAssistant:") + 1


def test_a_slash_is_doubled_to_begin_a_message(fake):
    one, = objects(fake, "//etc", "--max-tokens", "1")
    assert one["usage"]["prompt_tokens"] == len("User: /etc\n\nAssistant:") + 1
    assert b"unknown command '/etc'" in pipe(fake, "/etc", code=1).stderr


def test_commands_change_what_is_sent(fake):
    fixed = ("--temperature", "0", "--max-tokens", "6", "--min-tokens", "6")

    def lengths(text):
        return [o["usage"]["prompt_tokens"] for o in objects(fake, text, *fixed)]

    alone = lengths("hello")[0]
    assert lengths("first\n/clear\nhello")[1] == alone
    assert lengths("first\n/undo\nhello")[1] == alone
    assert lengths("hello\n/retry") == [alone, alone]
    assert lengths("/system Short.\nhello\n/clear\nhello\n/system\nhello")[:2] == [alone + len("Short.\n\n")] * 2
    assert lengths("/system Short.\n/system\nhello") == [alone]
    counts = [o["usage"]["completion_tokens"] for o in objects(fake, "a\n/set max_tokens 3\n/set min-tokens=3\nb\n", *fixed)]
    assert counts == [6, 3]
    a, b = objects(fake, "a\n/set seed 7\nb\n", *fixed)
    assert b["seed"] == 7 and a["seed"] != 7


def test_set_refuses_what_it_does_not_know_and_keeps_what_was(fake):
    p = pipe(fake, "/set temprature 1\n/set temperature hot\n/set model x\n/set top_k\n/set\n", "--temperature", "0.5", code=1)
    said = p.stderr.decode()
    assert p.stdout == b"" and said.count("dsctl: ") == 4 and re.search(r"temperature +0.5\n", said)
    assert re.search(r"top-k +default\n", said) and "/set temperature: got 'hot', want a number" in said
    assert re.search(r"temperature +default\n", pipe(fake, "/set temperature default\n/set\n", "--temperature", "1").stderr.decode())


def test_a_failed_turn_is_dropped_and_the_next_ones_go_on(fake):
    p = pipe(fake, "a\n/set top_p 7\nb\n/set top_p 1\n/retry\n", "--json", "--max-tokens", "2", "--min-tokens", "2", code=1)
    a, b = (json.loads(line) for line in p.stdout.splitlines())
    assert b"INVALID_ARGUMENT: generate.sampling.top_p" in p.stderr and p.stderr.count(b"\n") == 1
    answer = len(a["text"].encode())
    assert b["usage"]["prompt_tokens"] - a["usage"]["prompt_tokens"] == len(" ") + answer + 1 + len("User: b\n\nAssistant:")


def test_an_end_token_is_passed_over_where_that_is_asked_for(fake):
    c = fake.client()
    for text in map(chr, range(97, 123)):
        if c.generate(chat=[(2, text)], temperature=0, max_tokens=200).finish == 1:  # an end token comes
            break
    c.close()
    fixed = ("--temperature", "0", "--max-tokens", "200")
    assert [o["finish"] for o in objects(fake, text + "\n/set ignore_eos on\n/retry\n/set ignore-eos default\n/retry\n", *fixed)] == [
        "eos", "length", "eos"]
    assert objects(fake, text, "--ignore-eos", *fixed)[0]["finish"] == "length"
    assert objects(fake, "/set ignore_eos off\n" + text, "--ignore-eos", *fixed)[0]["finish"] == "eos"
    assert b"/set ignore_eos: got 'no', want on or off" in pipe(fake, "/set ignore_eos no", code=1).stderr
    assert re.search(rb"ignore-eos +on\n", pipe(fake, "/set", "--ignore-eos").stderr)
    assert re.search(rb"ignore-eos +off\n", pipe(fake, "/set").stderr)


def test_retry_undo_and_stats_without_a_turn_are_sentences(fake):
    p = pipe(fake, "/retry\n/undo\n/stats\n", code=1)
    assert p.stdout == b"" and p.stderr.count(b"dsctl: ") == 3 and p.stderr.count(b"\n") == 3
    assert b"/stats: there is no turn yet" in p.stderr


def test_stats_are_those_of_the_last_turn_or_none(fake):
    p = pipe(fake, "a\n/stats\n/set top_p 7\nb\n/stats\n", "--max-tokens", "2", code=1)
    assert p.stderr.count(b"prompt_tokens=") == 1 and b"/stats: the last turn did not come to its end" in p.stderr


def test_arguments_are_refused_and_no_daemon_is_status_3(fake, tmp_path):
    assert b"want no arguments" in subprocess.run([DSCTL, "chat", "hello"], capture_output=True, timeout=30).stderr
    p = subprocess.run([DSCTL, "--socket", str(tmp_path / "none"), "chat"], input=b"x", capture_output=True, timeout=30)
    assert p.returncode == 3 and p.stdout == b""


def test_ctrl_c_on_a_pipe_cancels_and_leaves_with_130():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        p = subprocess.Popen([DSCTL, "--socket", d.socket, "chat", "--min-tokens", "2000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        p.stdin.write(b"hello\nagain\n")
        p.stdin.flush()
        assert p.stdout.read(5)
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=10)
        assert p.returncode == 130 and wait_idle(d).models[0].pages_used == 0


# At a terminal -------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_ctrl_d_leaves_with_0(fake):
    with Terminal(fake) as t:
        text = t.say("/help")
        assert re.findall(r"^  (/[a-z]+)", text, re.M) == ["/help", "/clear", "/system", "/retry", "/undo", "/set", "/stats", "/quit"]
        t.type("\x04")
        assert t.code() == 0


def test_quit_leaves_with_0_and_an_unknown_command_is_a_sentence(fake):
    with Terminal(fake) as t:
        assert t.say("/frobnicate").startswith("dsctl: unknown command '/frobnicate'")
        t.type("/quit\n")
        assert t.code() == 0


def test_the_answer_streams_and_ctrl_c_cancels_the_turn_alone():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        with Terminal(d, "--min-tokens", "2000") as t:
            t.type("hello\n")
            t.expect(r"hello\n")
            t.expect(r"(?s).{5}")  # of 2,000 tokens
            assert d.client().stats().models[0].running == 1
            t.type("\x03")
            t.expect(r"\(cancelled; [^\n]*\)")
            t.prompt()
            assert wait_idle(d).models[0].pages_used == 0
            t.say("/set max_tokens 3")
            t.say("/set min_tokens default")
            t.say("b")
            with_partial = int(t.stats()["prompt_tokens"])
            t.say("/clear")
            t.say("b")
            assert with_partial > int(t.stats()["prompt_tokens"])  # what was seen is part of the conversation
            t.type("\x04")
            assert t.code() == 0


def test_ctrl_c_at_the_prompt_drops_the_line(fake):
    with Terminal(fake, "--max-tokens", "1") as t:
        t.type("never sent")
        t.expect("never sent")
        t.type("\x03")
        t.prompt()
        t.type("nor this\\\n")
        t.expect(r"\n\. ")
        t.type("\x03")
        t.prompt()
        t.say("hello")
        assert int(t.stats()["prompt_tokens"]) == len("User: hello\n\nAssistant:") + 1
        t.type("\x04")
        assert t.code() == 0


def test_lines_are_edited_and_called_back(fake):
    with Terminal(fake, "--max-tokens", "1", term="xterm") as t:
        def ask(keys):
            """Bytes of the message that these keys make. What is typed before the prompt is there, the terminal edits."""
            for typed in ("/clear", keys, "/stats"):
                t.type(typed + "\n")
                text = t.expect(r"(?s)\n.*> $")
            return int(re.search(r"prompt_tokens=(\d+)", text).group(1)) - len("User: \n\nAssistant:") - 1

        assert ask("abc\x7f\x01xy\x05z") == len("xyabz")
        assert ask("größe") == 7
        assert ask("größe\x02\x02\x7fo") == len("große".encode())
        assert ask("\x1b[A\x1b[A\x1b[A!") == len("große!".encode())
        t.type("\x04")
        assert t.code() == 0


def test_a_signal_that_ends_the_program_leaves_the_terminal_as_it_was(fake):
    with Terminal(fake) as t:
        t.type("half")
        t.expect("half")
        assert not termios.tcgetattr(t.fd)[3] & termios.ICANON
        t.process.send_signal(signal.SIGTERM)
        assert t.code() == -signal.SIGTERM
        assert termios.tcgetattr(t.fd)[3] & termios.ICANON and termios.tcgetattr(t.fd)[3] & termios.ECHO


def test_a_terminal_that_changes_its_size_keeps_the_line(fake):
    with Terminal(fake, "--max-tokens", "1") as t:
        t.type("one")
        t.expect("one")
        for columns in (60, 100):
            fcntl.ioctl(t.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            t.process.send_signal(signal.SIGWINCH)
        t.type(" two\n")
        t.expect(r"(?s) two.*\n.*> $")
        assert int(t.stats()["prompt_tokens"]) == len("User: one two\n\nAssistant:") + 1


def test_a_lost_connection_is_a_sentence_and_the_next_turn_connects_anew():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "5000"}) as d:
        with Terminal(d, "--no-resume", "--min-tokens", "2000") as t:
            t.type("hello\n")
            t.expect(r"hello\n(?s:.{5})")
            d.process.kill()
            d.process.wait()
            t.expect(r"\ndsctl: RETRYABLE: [^\n]+\n[^\n]*/retry[^\n]*")
            t.prompt()
            assert "cannot connect to" in t.say("again")
            d.start()
            t.say("/set max_tokens 3")
            t.say("/set min_tokens 3")
            t.say("/retry")
            assert int(t.stats()["prompt_tokens"]) == len("User: again\n\nAssistant:") + 1
            t.type("\x04")
            assert t.code() == 0


def test_a_conversation_past_the_context_is_refused_and_clear_helps():
    with Daemon("--set", "worker.context=128") as d, Terminal(d, "--max-tokens", "4", "--min-tokens", "4") as t:
        t.say("x" * 60)
        said = t.say("y" * 60)
        assert "dsctl: INVALID_ARGUMENT: the prompt has" in said and "/clear" in said
        assert "dsctl: " not in t.say("short")  # the refused turn is not part of it
        t.say("/clear")
        assert "dsctl: " not in t.say("y" * 60)
        t.type("\x04")
        assert t.code() == 0


def test_nothing_that_was_said_is_written_to_disk(fake, tmp_path):
    with Terminal(fake, "--max-tokens", "2", home=str(tmp_path)) as t:
        t.say("a secret")
        t.type("\x04")
        assert t.code() == 0
    assert os.listdir(tmp_path) == []


# On the starter model ------------------------------------------------------------------------------------


def test_the_starter_model_answers_and_finds_its_pages_again(starter):
    """A page that a turn prefilled as prompt serves the next one. One with generated tokens does not: the last
    answer is prefilled once."""
    with Terminal(starter, "--temperature", "0") as t:
        assert "dsd" in t.say("What is dsd?")
        turns = [t.stats()]
        assert turns[0]["finish"] == "eos" and turns[0]["cached_tokens"] == "0"
        for question in ("What is MLA?", "12+34=", "What is MLA?"):
            t.say(question)
            turns.append(t.stats())
            assert int(turns[-1]["prompt_tokens"]) > int(turns[-2]["prompt_tokens"]) + int(turns[-2]["completion_tokens"])
        assert int(turns[2]["prompt_tokens"]) > 64
        assert int(turns[3]["cached_tokens"]) >= 64 and int(turns[3]["cached_tokens"]) % 64 == 0, turns
        t.type("\x04")
        assert t.code() == 0


def test_the_starter_model_on_a_pipe(starter):
    p = pipe(starter, "What is dsd?\n", "--temperature", "0")
    assert b"dsd" in p.stdout and p.stdout.endswith(b"\n") and p.stderr == b""
