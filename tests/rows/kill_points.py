# SPDX-License-Identifier: Apache-2.0
"""What a crash leaves of a pool is never used torn, nor for another owner."""
import os
import re

CRASHES = 100000
KILLS = 1000
OFTEN = {"": 1, "adopt-record": 40, "seal": 12, "tag": 12, "store": 2}  # how often a point is passed in a life
TEXTS = ["the %s text, of more than one page so that pages of it are found again. " % n * 5 for n in ("first", "second", "third")]


def simulated(claim):
    """Lives of a pool cut off anywhere in their stores, torn and reordered; then another pool adopts."""
    exe, = claim.need("tests/sim/crash")  # not in sanitizer builds: its pool is instrumented already
    n = claim.some(CRASHES, least=500)
    status, figures, output = claim.program([exe, "--runs", str(n), "--seed", str(claim.seed)])
    claim.check(status == 0 and figures, "the simulation ended with %d\n%s" % (status, output[-2000:]))
    if not figures:
        return
    f = {k: int(v) for k, v in figures[-1].items()}
    claim.check(f["crashes"] >= n, "%d simulated crashes" % f["crashes"])
    claim.check(f["torn"] == f["foreign"] == f["broken"] == 0, "0 foreign or torn pages used, no invariant broken")
    # A pool that is always refused would pass all of this.
    claim.check(f["adopted"] > f["crashes"] / 2, "%d of %d pools are adopted" % (f["adopted"], f["crashes"]))
    claim.check(f["found"] > f["adopted"], "%d pages found in %d adopted pools" % (f["found"], f["adopted"]))
    claim.check(f["records_refused"] > 0 and f["pools_worn"] > 0, "records and worn-out pools are refused")
    claim.check(f["mismatched"] > 0 or n < 5000, "tags find what records do not tell")
    for k in ("crashes", "adopted", "found", "mismatched", "taken", "torn", "foreign"):
        claim.figure("simulated: " + k, f[k])


def points(claim):
    source = open(os.path.join(claim.root, "daemon", "base", "fault.c")).read()
    return re.findall(r'\[FAULT_\w+\] = "([a-z-]+)"', source)


def reload_now(d, pb, Client):
    try:
        admin = Client(d.admin, timeout=10)
        admin.send(3, reload=pb.Reload())
        while admin.recv().WhichOneof("msg") == "progress":
            pass
    except Exception:  # the daemon went away: that is what is asked for
        pass


def real(claim):
    """A daemon that kills itself at a named step, a manager that starts it again, clients that go on."""
    claim.need("daemon/dsd", "daemon/dsd-worker")
    from dsdtest import Client, Supervised, pb, stubborn

    kills, names = claim.some(KILLS, least=len(points(claim))), points(claim)
    reached, wrong, cached, asked = dict.fromkeys(names, 0), 0, 0, 0
    with Supervised("--set", "pool.size=8M", "--set", "pool.verify=always", env={"DSD_FAKE_STEP_USEC": "100"}) as d:
        how = [dict(max_tokens=150, temperature=t, seed=5, ignore_eos=True) for t in (0, 1)]
        want = [[stubborn(d, text, **h)[0] for h in how] for text in TEXTS]
        fds = None
        while d.kills < kills:
            name = min(names, key=lambda n: (reached[n], claim.rng.random()))
            before, killed = d.kills, False
            if name.startswith("store-"):
                with d.lock:
                    for n in [n for n in d.kept if n.startswith("pool-")]:
                        d._forget(n)
            nth = claim.rng.randint(1, max(n for prefix, n in OFTEN.items() if name.startswith(prefix)))
            d.faults.append("%s:%d" % (name, nth))
            d.process.terminate()  # settled: the next start adopts
            for attempt in range(4):
                if name.startswith("reload"):
                    reload_now(d, pb, Client)
                k, h = claim.rng.randrange(len(TEXTS)), claim.rng.randrange(2)
                ids, usage, _ = stubborn(d, TEXTS[k], **how[h])
                asked += 1
                wrong += ids != want[k][h]
                cached += usage.cached_tokens > 0
                killed = d.kills > before
                if killed:
                    break
                if name.startswith(("seal", "tag")):  # what is cached seals nothing: begin cold
                    Client(d.admin).send(3, evict=pb.Evict())
            reached[name] += killed
            if not killed:
                d.faults.clear()
                reached[name] += 0.001  # try another before this one again
        log = d.read_log()
        stats = d.client().stats().models[0]
        held = len(os.listdir("/proc/%d/fd" % d.process.pid))
    claim.check(wrong == 0, "%d of %d answers differ from the undisturbed ones" % (wrong, asked))
    claim.check(d.kills >= kills, "%d real kills" % d.kills)
    claim.check(all(n >= 1 for n in reached.values()), "points never reached: %s" % [n for n in names if reached[n] < 1])
    claim.check(cached > asked / 10, "%d of %d answers used pages of a daemon before" % (cached, asked))
    claim.check("adopted the pool" in log, "pools are adopted")
    claim.check(held < 40, "%d descriptors at the end" % held)
    claim.figure("real kills", "%d at %d points, %d answers, %d differ, %d with cached pages"
                 % (d.kills, len(names), asked, wrong, cached))
    claim.figure("pages in use at the end", stats.pages_used)


def run(claim):
    simulated(claim)
    real(claim)
