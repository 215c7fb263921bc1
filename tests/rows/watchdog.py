# SPDX-License-Identifier: Apache-2.0
"""A worker under SIGSTOP is found within 10 s, and every stream goes on with the same tokens."""
import os
import signal
import time

from dsdtest import Daemon, pb

STOPS = 20
STREAMS = 5


def stop_one(claim, d):
    """Five streams over a worker that is stopped among them. Return: seconds until another serves."""
    watcher = d.client()
    seeds = [claim.rng.randrange(1 << 32) for _ in range(STREAMS)]
    want = [watcher.generate("hello", max_tokens=400, seed=s, ignore_eos=True).ids for s in seeds]
    clients = [d.client() for _ in seeds]
    for c, s in zip(clients, seeds):
        c.start("hello", max_tokens=400, seed=s, ignore_eos=True)
    time.sleep(claim.rng.random() * 0.3)
    old = watcher.stats().models[0].worker_pid
    os.kill(old, signal.SIGSTOP)
    began = time.monotonic()
    while watcher.stats().models[0].worker_pid in (0, old) or watcher.models()[0].state != pb.STATE_READY:
        if time.monotonic() - began > 60:
            break
        time.sleep(0.02)
    took = time.monotonic() - began
    claim.check(took < 10, "a new worker served after %.1f s" % took)
    claim.check([c.finish().ids for c in clients] == want, "a stream differs from the undisturbed one")
    claim.check(d.alive(), "the broker died")
    return took


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker")
    slowest = 0.0
    for _ in range(claim.some(STOPS)):
        # A daemon for each: three deaths in a minute are a matter of their own.
        with Daemon(env={"DSD_FAKE_STEP_USEC": "2000"}) as d:
            slowest = max(slowest, stop_one(claim, d))
    claim.figure("SIGSTOP to a new worker that serves, slowest of %d" % claim.some(STOPS), "%.2f s" % slowest)
