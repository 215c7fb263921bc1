# SPDX-License-Identifier: Apache-2.0
"""Packed weights are kept from start to start, served only if they prove themselves, and never in the way."""
import hashlib
import os
import shutil
import subprocess
import time

import pytest

from dsdtest import SOURCE, Client, Daemon, pb

STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")
MAPPED, KEPT, IN_MEMORY = "mapped as packed earlier", "packed, and kept for the next start", "packed in memory"
HEADER = 104  # bytes; hashes of 8 follow

pytestmark = pytest.mark.skipif(not os.path.exists(os.path.join(STARTER, "model.safetensors")),
                                reason="packaging/starter-model/model has no weights")


def daemon(state, model=STARTER, weights="q4", **kw):
    return Daemon("--set", "worker.weights=" + weights, "--set", "pool.size=64M", fake=False,
                  model=model + ":starter", state=str(state), **kw)


def answer(d):
    a = d.client(timeout=120).generate("Once upon a time there was a", max_tokens=24, temperature=0.8, seed=5,
                                       ignore_eos=True, logprobs=3)
    assert a.error is None, a.error
    return a.ids, [t.logprob for t in a.logprobs]


def files(state):
    return sorted(os.listdir(os.path.join(state, "packed")))


def life(state, **kw):
    """One daemon from start to stop: what it answered, and its log."""
    with daemon(state, **kw) as d:
        got = answer(d)
        assert d.stop() == 0
        return got, d.read_log()


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    got, log = life(tmp_path_factory.mktemp("m") / "s", env={"CACHE_DIRECTORY": "/nonexistent"})
    assert IN_MEMORY in log and "packed weights are not kept: $CACHE_DIRECTORY /nonexistent" in log
    return got


@pytest.fixture
def state(tmp_path, in_memory):
    """A state directory after a first start."""
    path = tmp_path / "state"
    got, log = life(path)
    assert KEPT in log and MAPPED not in log, log
    assert got == in_memory
    assert len(files(path)) == 1
    return path


def test_the_second_start_maps_what_the_first_packed(state, in_memory):
    before = files(state)
    for _ in range(2):
        got, log = life(state)
        assert MAPPED in log and KEPT not in log and IN_MEMORY not in log, log
        assert got == in_memory
    assert files(state) == before
    path = os.path.join(state, "packed", before[0])
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(state, "packed.key")).st_mode & 0o777 == 0o600


def test_the_next_worker_and_a_reload_map_it_too(state, in_memory):
    with daemon(state) as d:
        os.kill(d.worker_pid(), 9)
        assert answer(d) == in_memory
        assert d.read_log().count(MAPPED) == 2
        admin = Client(d.admin, timeout=60)
        admin.send(3, reload=pb.Reload())
        while (f := admin.recv()).WhichOneof("msg") == "progress":
            pass
        assert f.WhichOneof("msg") != "error", f
        assert answer(d) == in_memory
        assert d.read_log().count(MAPPED) == 3


def damage(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("how,sentence", [
    ("magic", "no packed weights: wrong magic"),
    ("version", "packed weights of version"),
    ("plan", "the header is not as this daemon wrote it"),
    ("content", "the header is not as this daemon wrote it"),
    ("mac", "the header is not as this daemon wrote it"),
    ("hash", "the header is not as this daemon wrote it"),
    ("first panel", "the bytes from 4096 on are not those that were written"),
    ("last panel", "on are not those that were written"),
    ("cut short", "the file has"),
    ("empty", "the file ends at byte 0"),
    ("longer", "the file has"),
    ("named otherwise", "the header is not as this daemon wrote it"),
    ("another key", "the header is not as this daemon wrote it"),
    ("a directory", "packed weights: "),
])
def test_a_file_that_does_not_prove_itself_is_dropped_and_made_anew(state, in_memory, how, sentence):
    (name,) = files(state)
    path = os.path.join(state, "packed", name)
    size = os.stat(path).st_size
    places = {"magic": 0, "version": 8, "plan": 24, "content": 56, "mac": 88, "hash": HEADER, "first panel": 4096,
              "last panel": size - 1}
    if how in places:
        damage(path, places[how])
    elif how == "named otherwise":
        digit = "1" if name[-1] != "1" else "2"
        os.rename(path, path[:-1] + digit)
    elif how == "another key":
        with open(os.path.join(state, "packed.key"), "r+b") as f:
            f.write(b"k" * 31)
    elif how == "a directory":
        os.unlink(path)
        os.mkdir(path)
    else:
        os.truncate(path, {"cut short": size - 1, "empty": 0, "longer": size + 4096}[how])
    got, log = life(state)
    assert got == in_memory
    if how == "another key":  # names are made with it too: the file is nobody's
        assert KEPT in log and len(files(state)) == 2
        return
    assert sentence in log and "the file is dropped, and the model is packed anew" in log, log
    assert MAPPED not in log
    if how == "a directory":  # none of ours, and not ours to remove
        return
    assert KEPT in log and files(state) == [name]
    got, log = life(state)
    assert MAPPED in log and got == in_memory


def test_other_files_or_another_precision_leave_one_file(state, tmp_path, in_memory):
    (first,) = files(state)
    model = tmp_path / "model"
    shutil.copytree(STARTER, model)
    got, log = life(state, model=str(model))  # the same numbers in other files
    (second,) = files(state)
    assert KEPT in log and got == in_memory
    assert second.split("-")[1] != first.split("-")[1], "another source"
    assert second.split("-")[2] == first.split("-")[2], "the same content"
    os.utime(model / "config.json")
    assert KEPT in life(state, model=str(model))[1]
    (third,) = files(state)
    assert KEPT in life(state, model=str(model), weights="q8")[1]
    (fourth,) = files(state)
    assert len({second, third, fourth}) == 3
    assert MAPPED in life(state, model=str(model), weights="q8")[1]


def test_models_keep_their_files_beside_each_other(state, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(STARTER, model)
    for want in (KEPT, MAPPED):
        with daemon(state) as d:
            d.args += ["--model", str(model) + ":other"]
            d.stop()
            d.start()
            log = d.read_log()
            assert d.stop() == 0
            assert want in d.read_log() and len(files(state)) == 2, log


def test_a_file_cut_short_under_a_worker_costs_a_pause(state, in_memory):
    """Reading past its end is a signal: the next worker packs in memory, the request goes on."""
    (name,) = files(state)
    options = os.environ.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"  # a sanitizer would make it an exit
    with daemon(state, env={"ASAN_OPTIONS": options}) as d:
        os.truncate(os.path.join(state, "packed", name), 4096)
        assert answer(d) == in_memory
        log = d.read_log()
        assert "killed by signal 7 (BUS): a mapped file ended early or cannot be read" in log
        assert "their file was cut short, or its disk failed" in log
        assert log.count(MAPPED) == 1 and log.count(IN_MEMORY) == 1
        assert files(state) == []


def test_a_full_disk_is_told_and_the_model_served(tmp_path, in_memory):
    cache = tmp_path / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(cache)], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        got, log = life(tmp_path / "state", env={"CACHE_DIRECTORY": str(cache)})
        assert got == in_memory
        assert "the packed weights are not kept for the next start: 4.2 MB" in log and "No space left" in log
        assert IN_MEMORY in log
        assert os.listdir(cache / "packed") == [] and os.statvfs(cache).f_bavail > 200
    finally:
        subprocess.run(["umount", str(cache)], check=True)


WORKER = """#!/usr/bin/python3
import array, os, socket, struct, time
MSG = "<6I2Q4I480s"
EMPTY, FILLED, LOAD = 9, 11, 2
s = socket.socket(fileno=3)
empty = kind = None
while kind != LOAD:
    data, fds, _, _ = socket.recv_fds(s, struct.calcsize(MSG), 4)
    kind = struct.unpack(MSG, data)[0]
    if kind == EMPTY:
        empty = fds[0]
os.pwrite(empty, open(os.environ["FILL_WITH"], "rb").read(), 0)
for _ in range(int(os.environ["FILLED_TIMES"])):
    s.send(struct.pack(MSG, FILLED, *[0] * 11, b""))
time.sleep(600)
"""


@pytest.mark.parametrize("how,times,told", [
    ("nothing", 1, ["packed weights are not kept: packed weights: the file ends at byte 0"]),
    ("text", 1, ["packed weights are not kept: no packed weights: wrong magic"]),
    ("cut", 1, ["packed weights are not kept: packed weights: the file has"]),
    # The broker cannot know better than to bind it to the files that this worker was given.
    ("whole", 2, ["packed weights are kept:", "the worker filled a file that it was not given"]),
])
def test_a_worker_that_fills_nonsense_keeps_nothing(state, tmp_path, how, times, told):
    (name,) = files(state)
    with open(os.path.join(state, "packed", name), "rb") as f:
        whole = f.read()
    worker, fill = tmp_path / "worker", tmp_path / "fill"
    worker.write_text(WORKER)
    worker.chmod(0o700)
    fill.write_bytes({"nothing": b"", "text": b"x" * 9000, "cut": whole[:-1], "whole": whole}[how])
    os.unlink(os.path.join(state, "packed", name))
    with daemon(state, env={"DSD_WORKER": str(worker), "FILL_WITH": str(fill), "FILLED_TIMES": str(times)},
                wait=False) as d:
        end = time.monotonic() + 60
        while not all(words in d.read_log() for words in told) and time.monotonic() < end:
            time.sleep(0.02)
        assert [words for words in told if words not in d.read_log()] == []
        assert len(files(state)) == (how == "whole")


def test_weights_that_are_not_quantised_are_not_kept(tmp_path):
    _, log = life(tmp_path / "state", weights="bf16")
    assert IN_MEMORY in log
    assert not os.path.exists(tmp_path / "state" / "packed")


def test_sums_are_not_asked_again(tmp_path, in_memory):
    """What was packed came from files whose SHA256SUMS held; as long as nobody writes to them it holds on."""
    model = tmp_path / "model"
    shutil.copytree(STARTER, model)
    lines = ["%s  %s\n" % (hashlib.sha256((model / n).read_bytes()).hexdigest(), n) for n in sorted(os.listdir(model))
             if n.endswith((".json", ".safetensors"))]
    (model / "SHA256SUMS").write_text("".join(lines))
    assert KEPT in life(tmp_path / "state", model=str(model))[1]
    assert MAPPED in life(tmp_path / "state", model=str(model))[1]
    damage(model / "model.safetensors", os.path.getsize(model / "model.safetensors") - 1)
    with daemon(tmp_path / "state", model=str(model), wait=False) as d:
        c = d.wait_socket()
        end = time.monotonic() + 60
        while c.models()[0].state == pb.STATE_LOADING and time.monotonic() < end:
            time.sleep(0.02)
        assert c.models()[0].state == pb.STATE_DEGRADED
        assert "SHA256SUMS" in d.read_log() and MAPPED not in d.read_log()
