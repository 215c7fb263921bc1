# SPDX-License-Identifier: Apache-2.0
"""Memory pressure lowers admission. The kernel's part is played by a FIFO, which systemd's contract for
$MEMORY_PRESSURE_WATCH allows in place of a memory.pressure file."""
import os
import time

import pytest

from dsdtest import Daemon


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not within %d s" % seconds
        time.sleep(0.05)


@pytest.fixture
def pressed(tmp_path):
    fifo = str(tmp_path / "pressure")
    os.mkfifo(fifo)
    with Daemon(env={"MEMORY_PRESSURE_WATCH": fifo, "DSD_FAKE_STEP_USEC": "10000"}) as d:
        d.pressure = os.open(fifo, os.O_WRONLY)
        yield d
        os.close(d.pressure)


def running(client):
    s = client.stats().models[0]
    return s.running, s.waiting


def test_under_pressure_requests_run_one_at_a_time_until_it_has_passed(pressed):
    clients = [pressed.client() for _ in range(4)]
    watcher = pressed.client()
    for c in clients[:2]:
        c.start("before", max_tokens=300, ignore_eos=True)
    wait_for(lambda: running(watcher) == (2, 0))
    os.write(pressed.pressure, b"!")
    wait_for(lambda: "memory is short" in pressed.read_log())
    for c in clients[2:]:
        c.start("after", max_tokens=20, ignore_eos=True)
    wait_for(lambda: running(watcher)[1] == 2)
    assert running(watcher) == (2, 2), "who ran before runs on, who came after waits"
    for c in clients[:2]:
        assert len(c.finish().ids) == 300
    wait_for(lambda: "memory is there again" in pressed.read_log())
    for c in clients[2:]:
        assert len(c.finish().ids) == 20
    assert pressed.read_log().count("memory is short") == 1


def test_under_pressure_that_stays_everybody_is_served_in_turn(pressed):
    os.write(pressed.pressure, b"!")
    wait_for(lambda: "memory is short" in pressed.read_log())
    clients = [pressed.client() for _ in range(3)]
    for c in clients:
        c.start("hello", max_tokens=20, ignore_eos=True)
    for c in clients:
        os.write(pressed.pressure, b"!" * 1000)
        assert len(c.finish().ids) == 20
    assert "memory is there again" not in pressed.read_log()


def test_a_file_that_tells_nothing_costs_a_line_of_the_log(tmp_path):
    (tmp_path / "file").write_text("")
    with Daemon(env={"MEMORY_PRESSURE_WATCH": str(tmp_path / "file")}) as d:
        assert "memory pressure is not watched" in d.read_log()
        assert d.client().generate("hello", max_tokens=3).error is None
