# SPDX-License-Identifier: Apache-2.0
"""What stands still is found: a worker that has work and does not move, by the broker; the broker, by
systemd, whose part the test plays."""
import os
import signal
import time

from dsdtest import BUILD, Daemon, Managed, pb


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


def times(d, word, since=0.0):
    """How often systemd was told @word."""
    return sum(word in lines for when, lines in list(d.said) if when >= since)


def test_the_watchdog_is_fed_by_a_loop_that_runs_and_by_no_other():
    with Managed(env={"WATCHDOG_USEC": "900000", "DSD_FAKE_STEP_USEC": "10000"}) as d:
        wait_for(lambda: times(d, "WATCHDOG=1") >= 3)  # idle
        assert times(d, "READY=1") == 1
        os.kill(d.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(1)
        os.kill(d.process.pid, signal.SIGCONT)
        assert times(d, "WATCHDOG=1", stopped + 0.1) == 0
        wait_for(lambda: times(d, "WATCHDOG=1", stopped + 1))
        c = d.client()
        c.start("hello", max_tokens=2000, ignore_eos=True)
        wait_for(lambda: times(d, "STATUS=fake: ready, 1 streams"))
        c.close()
        d.stop()
        wait_for(lambda: times(d, "STOPPING=1") == 1)


def test_a_load_that_goes_on_asks_for_more_time(tmp_path):
    slow = tmp_path / "slow-worker"
    slow.write_text("#!/bin/sh\nsleep 3\nexec %s \"$@\"\n" % os.path.join(BUILD, "daemon", "dsd-worker"))
    slow.chmod(0o755)
    with Managed(env={"WATCHDOG_USEC": "900000", "DSD_WORKER": str(slow)}) as d:
        wait_for(lambda: times(d, "READY=1"))
        ready = [i for i, (_, lines) in enumerate(d.said) if "READY=1" in lines][0]
        before = [line for _, lines in d.said[:ready] for line in lines]
        assert sum(line.startswith("EXTEND_TIMEOUT_USEC=") for line in before) >= 2, before
        assert any(line.startswith("STATUS=fake: loading") for line in before), before


def test_a_reload_is_over_for_systemd_when_the_new_worker_serves(tmp_path):
    slow = tmp_path / "slow-worker"
    slow.write_text("#!/bin/sh\nsleep 1\nexec %s \"$@\"\n" % os.path.join(BUILD, "daemon", "dsd-worker"))
    slow.chmod(0o755)
    with Managed(env={"DSD_WORKER": str(slow)}) as d:
        wait_for(lambda: times(d, "READY=1"))
        c = d.client()
        old = c.stats().models[0].worker_pid
        d.process.send_signal(signal.SIGHUP)
        wait_for(lambda: times(d, "RELOADING=1"))
        wait_for(lambda: times(d, "READY=1") == 2)
        assert c.stats().models[0].worker_pid not in (0, old)
