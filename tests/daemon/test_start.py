# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping: two daemons, stale sockets, options and configuration."""
import os
import signal
import socket
import subprocess
import time

import pytest

from dsdtest import BUILD, Client, Daemon, Managed, pb

DSD = os.path.join(BUILD, "daemon", "dsd")


def lives(pid):
    """Not gone, and not a corpse that a lazy init has yet to bury."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(*args):
    p = subprocess.run([DSD, *args], capture_output=True, text=True, timeout=30)
    return p.returncode, p.stdout, p.stderr


def test_a_second_daemon_on_the_same_state_leaves_with_75(tmp_path):
    with Daemon(state=str(tmp_path / "state")):
        code, _, err = run("--fake-worker", "--socket", str(tmp_path / "s"), "--state", str(tmp_path / "state"))
        assert code == 75 and "another dsd holds" in err


def test_a_socket_that_answers_is_never_taken_away(tmp_path):
    with Daemon() as d:
        code, _, err = run("--fake-worker", "--socket", d.socket, "--state", str(tmp_path / "state"))
        assert code == 75 and "serves" in err
        assert d.client().generate("hello", max_tokens=2).error is None


def test_a_stale_socket_is_replaced():
    with Daemon() as d:
        os.kill(d.process.pid, signal.SIGKILL)
        d.process.wait()
        assert os.path.exists(d.socket)
        d.start()
        assert d.client().generate("hello", max_tokens=2).error is None


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("mine")
    code, _, err = run("--fake-worker", "--socket", str(path), "--state", str(tmp_path / "state"))
    assert code == 1 and "is no socket" in err and path.read_text() == "mine"


def test_a_state_directory_that_others_may_write_to_is_refused(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    for mode in (0o770, 0o777):
        state.chmod(mode)
        code, _, err = run("--fake-worker", "--socket", str(tmp_path / "s"), "--state", str(state))
        assert code == 2 and "mode %03o" % mode in err and not (tmp_path / "s").exists()


def test_two_sockets_are_two(tmp_path):
    path = str(tmp_path / "s")
    code, _, err = run("--fake-worker", "--socket", path, "--admin-socket", path, "--state", str(tmp_path / "state"))
    assert code == 2 and "are both" in err and not os.path.exists(path)


def test_the_socket_and_the_state_have_their_modes(tmp_path):
    with Daemon(state=str(tmp_path / "state")) as d:
        assert os.stat(d.socket).st_mode & 0o777 == 0o660
        assert os.stat(tmp_path / "state").st_mode & 0o777 == 0o700


def test_a_daemon_that_stops_is_not_found_any_more():
    """Its own sockets go when it is told to stop, not when its last request has ended; those of a manager stay."""
    for kind, left in ((Daemon, False), (Managed, True)):
        with kind("--set", "stop.seconds=600", env={"DSD_FAKE_STEP_USEC": "1000"}) as d:
            c, late = d.client(), d.client()
            c.start("x", max_tokens=8000, ignore_eos=True)
            while c.recv().WhichOneof("msg") != "delta":
                pass
            held = os.open(d.socket, os.O_PATH)  # the file, whatever its name is
            d.process.send_signal(signal.SIGTERM)
            while late.generate("x", max_tokens=1).error is None:
                pass
            assert [os.path.exists(p) for p in (d.socket, d.admin)] == [left] * 2
            for path in (d.socket, "/proc/self/fd/%d" % held):
                if left:
                    socket.socket(socket.AF_UNIX).connect(path)
                else:
                    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
                        socket.socket(socket.AF_UNIX).connect(path)
            os.close(held)
            assert d.alive() and "accept: " not in d.read_log()
            d.process.send_signal(signal.SIGTERM)
            assert d.process.wait(20) == 0


def test_sigterm_with_streams_running_leaves_at_once_and_nothing_behind():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "1000"}) as d:
        worker = d.worker_pid()
        c = d.client()
        c.start("hello", max_tokens=8000, ignore_eos=True)
        c.recv()
        assert d.stop() == 0 and not os.path.exists(d.socket)
        assert not os.path.exists("/proc/%d" % worker)


def test_a_worker_does_not_outlive_a_killed_daemon():
    with Daemon() as d:
        worker = d.worker_pid()
        d.process.kill()
        d.process.wait()
        for _ in range(200):
            if not lives(worker):
                break
            time.sleep(0.02)
        assert not lives(worker)


def test_bad_options_are_named(tmp_path):
    for args, words in ((["--set", "pool.size=lots"], "pool.size=lots: want a number"),
                        (["--set", "pool.sise=1"], "no key"),
                        (["--set", "worker.weights=f16"], "want one of auto, f32, bf16"),
                        (["--model", "/srv/x:a b"], "model name \"a b\""),
                        (["--nonsense"], "")):
        code, _, err = run(*args)
        assert code in (1, 2) and words in err, (args, err)


def test_check_config_prints_every_key_with_drop_ins_applied(tmp_path):
    (tmp_path / "dsd.conf").write_text("[sched]\nslots = 5\n[model.tiny]\npath=/srv/tiny\nshare = 0.5\n")
    (tmp_path / "dsd.conf.d").mkdir()
    (tmp_path / "dsd.conf.d" / "10-a.conf").write_text("[sched]\nslots = 6\n")
    (tmp_path / "dsd.conf.d" / "20-b.conf").write_text("[sched]\nslots = 7\n")
    code, out, _ = run("--config", str(tmp_path / "dsd.conf"), "--set", "pool.size=64M", "--check-config")
    assert code == 0
    assert "sched.slots=7\n" in out and "pool.size=67108864\n" in out
    assert "model.tiny.path=/srv/tiny\n" in out and "model.tiny.share=0.5\n" in out
    (tmp_path / "dsd.conf.d" / "30-c.conf").write_text("[sched]\nslots = 0\n")
    code, _, err = run("--config", str(tmp_path / "dsd.conf"), "--check-config")
    assert code == 2 and "30-c.conf line 2" in err and "want a number from 1 to 256" in err


def test_systemd_sockets_are_taken_over_and_readiness_is_told(tmp_path):
    """As systemd does it: descriptor 3 is the listening socket, NOTIFY_SOCKET hears READY."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    os.chmod(tmp_path / "s", 0o660)
    listener.listen()
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(20)
    pid = os.fork()
    if pid == 0:
        os.dup2(listener.fileno(), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", NOTIFY_SOCKET=str(tmp_path / "notify"))
        os.execv(DSD, [DSD, "--fake-worker", "--state", str(tmp_path / "state")])
    try:
        words = ""
        while "READY=1" not in words:
            words += notify.recv(4096).decode() + "\n"
        c = Client(str(tmp_path / "s"))
        assert c.hello.state == pb.STATE_READY
        os.kill(pid, signal.SIGTERM)
        while "STOPPING=1" not in words:
            words += notify.recv(4096).decode() + "\n"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
        assert os.path.exists(tmp_path / "s")  # systemd's, not ours to remove
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_worker_that_serves_is_in_its_sandbox(fake):
    if "the sanitizers" in fake.read_log():
        pytest.skip("the sanitizers need what the sandbox takes away")
    with open("/proc/%d/status" % fake.worker_pid()) as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


@pytest.mark.parametrize("name,mode,want", [("dsd", 0o666, "0660"), ("dsd-admin", 0o660, "0600")])
def test_a_socket_of_systemd_that_lets_in_too_many_is_refused(name, mode, want):
    with Managed() as d:
        d.stop()
        os.chmod(d.socket if name == "dsd" else d.admin, mode)
        d.start(wait=False)
        assert d.process.wait(20) == 2
        assert "mode %04o: want %s" % (mode, want) in d.read_log()
