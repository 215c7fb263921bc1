# SPDX-License-Identifier: Apache-2.0
"""A worker that writes random bytes into everything it maps hurts neither the broker nor another model."""
import json
import os
import socket
import struct
import tempfile
import threading
import time

SCRIBBLES = 2000
VOCAB = 320
ROUND_SECONDS = 12
REQUESTS = [dict(text="hello", temperature=0), dict(text="x" * 100, temperature=0.8, seed=3),
            dict(text="one two", temperature=1, seed=4, n=2), dict(text="a" * 70, temperature=0, logprobs=3)]


def ask(client, request, **more):
    a = client.generate(ignore_eos=True, max_tokens=24, **request, **more)
    return a, a.error is None and [(c.ids, c.text, c.finish, [(t.id, t.logprob) for t in c.logprobs])
                                   for _, c in sorted(a.choices.items())]


class Angry(threading.Thread):
    """Requests to the hostile model: whatever comes must be of the protocol."""

    def __init__(self, daemon, seed):
        super().__init__()
        self.daemon_, self.seed, self.stop = daemon, seed, threading.Event()
        self.answers = self.errors = self.closed = 0
        self.faults, self.codes = [], {}

    def see(self, a):
        if a.error is not None:
            self.errors += 1
            self.codes[a.error.code] = self.codes.get(a.error.code, 0) + 1
            if not a.error.message:
                self.faults.append("an error without a sentence")
        else:
            self.answers += 1
        for c in a.choices.values():
            ids = c.ids + [t.id for t in c.logprobs] + [x.id for t in c.logprobs for x in t.top]
            numbers = [t.logprob for t in c.logprobs] + [x.logprob for t in c.logprobs for x in t.top]
            if any(i >= VOCAB for i in ids):
                self.faults.append("id %d of %d came through" % (max(ids), VOCAB))
            if not all(-1e30 <= x <= 0.001 for x in numbers):
                self.faults.append("a logprob that is none: %r" % [x for x in numbers if not x <= 0.001][:3])

    def run(self):
        from dsdtest import Answer, Closed, pb
        i = self.seed
        try:
            c = self.daemon_.client(timeout=60)
            while not self.stop.is_set():
                i += 1
                r = dict(REQUESTS[i % len(REQUESTS)])
                self.see(c.generate(id=i % 1000 + 1, ignore_eos=True, max_tokens=40, model="angry",
                                    **dict(r, logprobs=(5 if i % 2 else 0))))
        except Closed:
            self.closed += 1
            self.faults.append("the daemon closed a good client")
        except socket.timeout:
            self.faults.append("a request without an end after 60 s")
        except Exception as e:  # not parsed, not expected: a fault of the frames
            self.faults.append("%s: %s" % (type(e).__name__, e))


def one_round(claim, folders, tally, seed, env, want, calm_counts):
    from dsdtest import Daemon, pb
    with Daemon("--model", folders["calm"] + ":calm", "--model", folders["angry"] + ":angry", "--set",
                "worker.threads=1", "--set", "pool.size=16M", fake=False, env=env, wait=False) as d:
        c = d.wait_socket()
        models = lambda: {m.name: m for m in c.models()}
        while models()["calm"].state == pb.STATE_LOADING:
            time.sleep(0.02)
        threads = [Angry(d, seed * 100 + i) for i in range(2)]
        for t in threads:
            t.start()
        end = time.monotonic() + ROUND_SECONDS
        calm = d.client(timeout=60)
        starts = lambda: {m.name: m.worker_starts for m in c.stats().models}["angry"]
        while time.monotonic() < end and (tally()[1] < want or starts() < 2):
            for r, expected in zip(REQUESTS, calm_counts["want"]):
                calm_counts["asked"] += 1
                calm_counts["wrong"] += ask(calm, r, model="calm")[1] != expected
            if models()["angry"].state == pb.STATE_DEGRADED:
                break
        for t in threads:
            t.stop.set()
        for t in threads:
            t.join(90)
        alive = d.alive() and c.stats().models[0].worker_deaths == 0
        st = {m.name: m for m in c.stats().models}["angry"]
        claim.check(alive, "seed %d: the broker and the calm model live: %s" % (seed, d.read_log()[-800:]))
        claim.check(not any(t.is_alive() for t in threads), "seed %d: requests end" % seed)
        for t in threads:
            claim.check(not t.faults, "seed %d: %s" % (seed, t.faults[:3]))
        code = d.stop()
        claim.check(code == 0, "seed %d: dsd ended with %d" % (seed, code))
        return st.worker_starts, st.worker_deaths, threads


def run(claim):
    exe, _, _ = claim.need("tests/rows/hostile-worker", "daemon/dsd", "daemon/dsd-worker")
    from dsdtest import Daemon, pb
    with open(os.path.join(claim.root, "tests", "golden", "v2-lite-tiny", "config.json")) as f:
        config = json.load(f)
    with tempfile.TemporaryDirectory() as top:
        folders = {}
        for name, more in (("calm", dict(dsd_synthetic=5)), ("angry", dict(dsd_synthetic=6, dsd_hostile=True))):
            folders[name] = os.path.join(top, name)
            os.mkdir(folders[name])
            with open(os.path.join(folders[name], "config.json"), "w") as f:
                json.dump(dict(config, **more), f)
        path = os.path.join(top, "tally")
        with open(path, "wb") as f:
            f.write(bytes(24))

        def tally():
            with open(path, "rb") as f:
                return struct.unpack("<3Q", f.read(24))
        counts = {"asked": 0, "wrong": 0}
        with Daemon("--set", "worker.threads=1", "--set", "pool.size=16M", fake=False, model=folders["calm"] + ":calm") as d:
            c = d.client(timeout=60)
            counts["want"] = [ask(c, r)[1] for r in REQUESTS]
        claim.check(all(counts["want"]), "the calm model answers when undisturbed")
        want, seed, starts, deaths, threads = claim.some(SCRIBBLES), claim.seed * 1000, 0, 0, []
        rounds = 0
        while (tally()[1] < want or starts <= rounds) and rounds < 400:
            env = {"DSD_WORKER": exe, "DSD_HOSTILE_SEED": str(seed), "DSD_HOSTILE_TALLY": path}
            s, n, t = one_round(claim, folders, tally, seed, env, want, counts)
            starts, deaths, threads, seed, rounds = starts + s, deaths + n, threads + t, seed + 1, rounds + 1
        lives, scribbles, images = tally()
        claim.check(scribbles >= want, "%d scribbles, want %d" % (scribbles, want))
        claim.check(counts["asked"] > 0 and counts["wrong"] == 0,
                    "%d of %d answers of the calm model are not the undisturbed ones" % (counts["wrong"], counts["asked"]))
        claim.check(deaths > 0 and starts > rounds, "%d starts, %d deaths: the broker replaces such workers" % (starts, deaths))
    codes = {}
    for t in threads:
        for k, n in t.codes.items():
            codes[pb.Code.Name(k)] = codes.get(pb.Code.Name(k), 0) + n
    claim.figure("seeds", "%d to %d" % (claim.seed * 1000, seed - 1))
    claim.figure("scribbles", "%d in %d lives of the worker, and %d model images" % (scribbles, lives, images))
    claim.figure("worker starts, deaths", "%d, %d in %d daemons" % (starts, deaths, rounds))
    claim.figure("answers of the hostile model", "%d whole, %d typed errors %s" % (
        sum(t.answers for t in threads), sum(t.errors for t in threads), codes))
    claim.figure("answers of the calm model that changed", "%d of %d" % (counts["wrong"], counts["asked"]))
