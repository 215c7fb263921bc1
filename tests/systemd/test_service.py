# SPDX-License-Identifier: Apache-2.0
"""The service under a real systemd: the units as they are installed, the starter model, users who are
in the group dsd and who are not."""
import os
import stat
import time

import pytest

import box as boxes


@pytest.fixture(scope="module")
def box():
    try:
        b = boxes.Box()
    except boxes.Unable as reason:
        pytest.skip(str(reason))
    yield b
    b.stop()


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while True:
        got = what()
        if got:
            return got
        assert time.monotonic() < end, "not within %d s" % seconds
        time.sleep(0.1)


@pytest.fixture(scope="module")
def service(box):
    """The box with its sockets enabled and the service up, started by its first client."""
    box.run("systemctl", "enable", "--now", "dsd.socket", "dsd-admin.socket")
    ping(box)
    return box


def ping(box):
    box.run(*box.as_user("alice", "dsctl", "ping", "--wait"))


def ask(box, user="alice"):
    return box.run(*box.as_user(user, "dsctl", "generate", "--temperature", "0", "--max-tokens", "20", "Once upon a time"),
                   check=False)


def main_pid(box):
    return box.show("MainPID")


def worker_pid(box):
    """As the box counts processes."""
    pids = box.run("sh", "-c", "for p in /proc/[0-9]*; do read -r n <$p/comm && [ $n = dsd-worker ] && "
                   "! grep -q '^State:.Z' $p/status && echo ${p#/proc/}; done; true").stdout.split()
    return pids[0] if pids else None


def status_of(box, pid):
    with open(box.path("/proc/%s/status" % pid)) as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def test_units_verify_without_a_word(box):
    p = box.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=one", "dsd.service", "dsd.socket",
                "dsd-admin.socket")
    assert p.stdout + p.stderr == ""


def test_sockets_have_their_modes_before_anything_runs(box):
    box.run("systemctl", "enable", "--now", "dsd.socket", "dsd-admin.socket")
    said = {}
    for name in ("dsd.sock", "admin.sock"):
        s = os.stat(box.path("/run/dsd/" + name))
        group = box.run("stat", "--format=%U:%G", "/run/dsd/" + name).stdout.strip()
        said[name] = (stat.S_IMODE(s.st_mode), group)
    assert said == {"dsd.sock": (0o660, "root:dsd"), "admin.sock": (0o600, "root:root")}
    assert box.show("ActiveState") == "inactive"


def test_the_first_client_starts_the_service(service):
    assert service.show("ActiveState") == "active"
    assert service.show("StatusText").startswith("starter: ready")
    assert service.show("WatchdogUSec") == "10s"


def test_who_is_in_the_group_is_served_and_who_is_not_is_refused(service):
    p = ask(service)
    assert p.returncode == 0 and len(p.stdout) > 5, p
    p = ask(service, "bob")
    assert p.returncode != 0 and p.stdout == "" and "ermission denied" in p.stderr, p


def test_the_worker_is_in_the_sandbox_of_the_unit_and_in_its_own(service):
    broker, worker = (status_of(service, pid) for pid in (main_pid(service), worker_pid(service)))
    assert worker["NoNewPrivs"] == "1" and worker["CapBnd"] == "0000000000000000"
    assert int(worker["Seccomp_filters"]) == int(broker["Seccomp_filters"]) + 2
    assert not [e for e in service.journal() if "sandbox is not whole" in e["MESSAGE"]]


def test_restart_and_kill_give_a_new_daemon_on_the_same_socket(service):
    inode = os.stat(service.path("/run/dsd/dsd.sock")).st_ino
    text = ask(service).stdout
    pid = main_pid(service)
    service.run("systemctl", "restart", "dsd.service")
    assert main_pid(service) != pid and ask(service).stdout == text
    adopted = service.journal(DSD_EVENT="pool-adopted")
    assert len(adopted) == 1 and adopted[0]["DSD_MODEL"] == "starter"
    pid = main_pid(service)
    service.run("sh", "-c", "kill -KILL " + pid)
    wait_for(lambda: main_pid(service) not in ("0", pid))
    ping(service)
    assert len(service.journal(DSD_EVENT="pool-adopted")) == 2
    assert service.show("NRestarts") == "1" and ask(service).stdout == text
    assert os.stat(service.path("/run/dsd/dsd.sock")).st_ino == inode


def test_packed_weights_are_kept_in_the_cache_directory(service):
    """An unnamed file there, filled by the worker and named by the broker, under all that the unit forbids."""
    conf = service.path("/etc/dsd/dsd.conf.d/weights.conf")
    os.makedirs(os.path.dirname(conf), exist_ok=True)
    with open(conf, "w") as f:
        f.write("[worker]\nweights = q4\n")

    def restart():
        service.run("systemctl", "reset-failed", "dsd.service")  # and what it counts against StartLimitBurst=
        service.run("systemctl", "restart", "dsd.service")

    try:
        texts = []
        for _ in range(2):
            restart()
            texts.append(ask(service).stdout)
        said = [e["MESSAGE"] for e in service.journal() if "of weights" in e["MESSAGE"]][-2:]
        assert "packed, and kept for the next start" in said[0] and "mapped as packed earlier" in said[1], said
        assert texts[0] == texts[1] and len(texts[0]) > 5
        owner = service.run("stat", "-c", "%U %a", "/var/cache/dsd/packed").stdout.split()
        assert owner == ["_dsd", "700"]
        assert len(os.listdir(service.path("/var/cache/dsd/packed"))) == 1
    finally:
        os.unlink(conf)
        restart()
        service.run("systemctl", "reset-failed", "dsd.service")
        ping(service)


def test_a_reload_is_answered_by_a_new_worker_and_streams_go_on(service):
    n = 300
    want = boxes.undisturbed(service, n)
    pid, worker = main_pid(service), worker_pid(service)
    ends = boxes.disturbed(service, n, lambda: service.run("systemctl", "reload", "dsd.service"))
    assert [end[1] for end in ends] == want and [end[0] for end in ends] == [0] * 5, ends
    assert len(service.journal(DSD_EVENT="model-reloaded")) == 1  # reload waits for it
    wait_for(lambda: worker_pid(service) not in (None, worker))
    service.run("sh", "-c", "kill -HUP " + pid)
    wait_for(lambda: len(service.journal(DSD_EVENT="model-reloaded")) == 2)
    assert main_pid(service) == pid and service.show("ActiveState") == "active"
    assert ask(service).returncode == 0


def test_streams_outlive_their_worker_with_the_same_text(service):
    n = 400
    want = boxes.undisturbed(service, n)
    pid, died = main_pid(service), len(service.journal(DSD_EVENT="worker-died"))
    ends = boxes.disturbed(service, n, lambda: service.run("sh", "-c", "kill -KILL " + worker_pid(service)))
    assert [text for _, text, _ in ends] == want, [words for _, _, words in ends]
    assert [code for code, _, _ in ends] == [0] * 5
    assert main_pid(service) == pid
    assert len(service.journal(DSD_EVENT="worker-died")) == died + 1


def test_a_stopped_worker_is_replaced_and_a_stopped_broker_too(service):
    pid, worker = main_pid(service), worker_pid(service)
    service.run("sh", "-c", "kill -STOP " + worker)
    began = time.monotonic()
    assert ask(service).returncode == 0
    assert time.monotonic() - began < 12 and worker_pid(service) != worker and main_pid(service) == pid
    service.run("sh", "-c", "kill -STOP " + pid)
    wait_for(lambda: main_pid(service) not in ("0", pid))
    ping(service)
    assert ask(service).returncode == 0
    assert "watchdog" in service.run("journalctl", "--output=cat", "_PID=1", "UNIT=dsd.service").stdout.lower()


def test_events_are_in_the_journal_with_their_fields_and_no_prompt_is(service):
    service.run(*service.as_user("alice", "dsctl", "generate", "--max-tokens", "5", "zebra crossing"))
    ready = service.journal(MESSAGE_ID="cbc563dc26c44abeb399b51c5d641dee")[-1]
    assert ready["DSD_EVENT"] == "model-ready" and ready["DSD_MODEL"] == "starter" and ready["PRIORITY"] == "6"
    assert ready["DSD_WORKER_PID"] == worker_pid(service) and ready["_PID"] == main_pid(service)
    died = service.journal(MESSAGE_ID="be10933d57154d9ca68fdab025567ebd")
    assert died and "signal 9" in died[-1]["MESSAGE"] and died[-1]["PRIORITY"] == "4"
    assert service.journal(DSD_EVENT="worker-stalled")
    explained = service.run("journalctl", "--catalog", "--output=short", "DSD_EVENT=worker-died").stdout
    assert "A worker died" in explained and "starter" in explained
    assert "zebra" not in service.run("journalctl", "--output=export").stdout


def test_sockets_that_anybody_may_open_are_refused(service):
    service.run("systemctl", "stop", "dsd.service", "dsd.socket", "dsd-admin.socket")
    for unit, mode in (("dsd.socket", "0666"), ("dsd-admin.socket", "0660")):
        with service.drop_in(unit, "[Socket]\nSocketMode=%s\n" % mode):
            service.run("systemctl", "start", "dsd.socket", "dsd-admin.socket")
            p = service.run("systemctl", "start", "dsd.service", check=False)
            assert p.returncode != 0
            assert service.show("ExecMainStatus") == "2" and service.show("NRestarts") == "0"
            said = service.journal()[-1]["MESSAGE"]
            assert mode in said and "want" in said, said
            service.run("systemctl", "stop", "dsd.service", "dsd.socket", "dsd-admin.socket")
            service.run("systemctl", "reset-failed", "dsd.service", check=False)
    service.run("systemctl", "start", "dsd.socket", "dsd-admin.socket")
    ping(service)


def test_stop_is_clean_and_leaves_nobody(service):
    service.run("systemctl", "stop", "dsd.service")
    assert service.show("Result") == "success" and service.show("ExecMainStatus") == "0"
    assert worker_pid(service) is None
    ping(service)  # the sockets stay, and start it again
    service.run("systemctl", "stop", "dsd.socket", "dsd-admin.socket", "dsd.service")
    assert ask(service).returncode != 0
