# SPDX-License-Identifier: Apache-2.0
"""What stands still is found: a worker that has work and does not move, by the broker; the broker, by
systemd, whose part is played here by a socket."""
import os
import signal
import socket
import threading
import time

from dsdtest import BUILD, Daemon, pb


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        got = what()
        if got:
            return got
        time.sleep(0.05)
    raise AssertionError("not within %d s" % seconds)


def next_worker(d, c, old):
    """The worker after @old, once the model is ready with it."""
    def look():
        pid = c.stats().models[0].worker_pid
        return pid if pid not in (0, old) and c.models()[0].state == pb.STATE_READY else 0
    return wait_for(look)


def test_a_stopped_worker_with_work_is_replaced_and_the_answer_goes_on():
    with Daemon() as d:
        c, watcher, pid = d.client(), d.client(), d.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        c.start("hello", max_tokens=8, seed=3, ignore_eos=True)
        next_worker(d, watcher, pid)
        took = time.monotonic() - began
        assert took < 10, took
        assert "has not moved for 6 seconds" in d.read_log()
        assert c.finish().ids == watcher.generate("hello", max_tokens=8, seed=3, ignore_eos=True).ids


def test_a_stopped_worker_without_work_is_left_alone():
    with Daemon("--set", "worker.stall_seconds=1") as d:
        pid = d.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        assert d.worker_pid() == pid
        os.kill(pid, signal.SIGCONT)
        assert d.client().generate("hello", max_tokens=3).error is None
        assert "has not moved" not in d.read_log()


def test_a_slow_step_is_not_a_stopped_worker():
    with Daemon("--set", "worker.stall_seconds=3", env={"DSD_FAKE_STEP_USEC": "1500000"}) as d:
        c = d.client()
        assert c.generate("hello", max_tokens=3, ignore_eos=True).error is None
        assert "has not moved" not in d.read_log()


class Manager:
    """The listening side of sd_notify()."""

    def __init__(self, directory):
        self.path = os.path.join(str(directory), "notify")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.said = []  # (when, text)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            text = self.sock.recv(4096).decode()
            self.said.append((time.monotonic(), text))

    def environment(self, watchdog_usec):
        return {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": str(watchdog_usec)}

    def count(self, word, since=0.0):
        return sum(text.split("\n").count(word) for when, text in self.said if when >= since)


def test_the_watchdog_is_fed_by_a_loop_that_runs_and_by_no_other(tmp_path):
    manager = Manager(tmp_path)
    with Daemon(env=dict(manager.environment(900000), DSD_FAKE_STEP_USEC="10000")) as d:
        wait_for(lambda: manager.count("WATCHDOG=1") >= 3)  # idle
        assert manager.count("READY=1") == 1
        os.kill(d.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(1)
        os.kill(d.process.pid, signal.SIGCONT)
        assert manager.count("WATCHDOG=1", stopped + 0.1) == 0
        wait_for(lambda: manager.count("WATCHDOG=1", stopped + 1))
        c = d.client()
        c.start("hello", max_tokens=2000, ignore_eos=True)
        wait_for(lambda: any("STATUS=fake: ready, 1 streams" in text for _, text in manager.said))
        c.close()
    wait_for(lambda: manager.count("STOPPING=1") == 1)


def test_a_load_that_goes_on_asks_for_more_time(tmp_path):
    manager = Manager(tmp_path)
    slow = tmp_path / "slow-worker"
    slow.write_text("#!/bin/sh\nsleep 3\nexec %s \"$@\"\n" % os.path.join(BUILD, "daemon", "dsd-worker"))
    slow.chmod(0o755)
    with Daemon(env=dict(manager.environment(900000), DSD_WORKER=str(slow))):
        wait_for(lambda: manager.count("READY=1"))
        ready = [i for i, (_, text) in enumerate(manager.said) if "READY=1" in text][0]
        before = [text for _, text in manager.said[:ready]]
        assert sum("EXTEND_TIMEOUT_USEC=" in text for text in before) >= 2, before
        assert any("STATUS=fake: loading" in text for text in before), before
