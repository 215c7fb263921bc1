# SPDX-License-Identifier: Apache-2.0
"""The same request gives the same answer, sooner; another choice of it another one."""
import json
import os
import tempfile
import time

PAGE = 64  # tokens
LENGTHS = (65, 640, 1000, 4000)
PROMPT = "The little fox went to the river. "


def answer(client, **sampling):
    a = client.generate(PROMPT, ignore_eos=True, max_tokens=64, **sampling)
    assert a.error is None, a.error
    return [a.choices[i].ids for i in sorted(a.choices)]


def first_token(client, ids):
    """Seconds until the first token, and how many tokens of the prompt were found in the pool."""
    client.start(ids=ids, max_tokens=1, temperature=0, ignore_eos=True)
    began = time.monotonic()
    while client.recv().WhichOneof("msg") != "delta":
        pass
    seconds = time.monotonic() - began
    return seconds, client.finish().usage.cached_tokens


def found_again(claim, client):
    """A prompt that comes again is found up to the last full page before its last token, and not computed."""
    for n in sorted(LENGTHS[:claim.some(len(LENGTHS), 2)]):
        ids = [claim.rng.randrange(100, 1700) for _ in range(n)]
        rows = lambda: client.stats().models[0].prompt_tokens
        before = rows()
        cold, none = first_token(client, ids)
        computed = rows() - before
        before, want = rows(), (n - 1) // PAGE * PAGE
        warm = [first_token(client, ids) for _ in range(5)]
        claim.check((none, computed) == (0, n), "%d tokens: %d found, %d computed the first time" % (n, none, computed))
        claim.check(all(found == want for _, found in warm), "%d tokens: %r found, want %d" % (n, warm, want))
        claim.check(rows() - before == 5 * (n - want), "%d tokens: %d rows computed again, want %d times %d" % (
            n, rows() - before, 5, n - want))
        claim.figure("first token of %d, cold and found again (%d cached)" % (n, want),
                     "%.1f ms, %.1f ms" % (1e3 * cold, 1e3 * min(s for s, _ in warm)))


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker")
    from dsdtest import Daemon
    golden = os.path.join(claim.root, "tests", "golden", "v2-lite-tiny")
    n_requests = 0
    with tempfile.TemporaryDirectory() as synthetic:
        with open(os.path.join(golden, "config.json")) as f:
            config = dict(json.load(f), dsd_synthetic=claim.seed)
        with open(os.path.join(synthetic, "config.json"), "w") as f:
            json.dump(config, f)
        models = {"starter": os.path.join(claim.root, "packaging", "starter-model", "model"), "golden": golden,
                  "synthetic": synthetic}
        for name in ["starter"] + sorted(claim.rng.sample(["golden", "synthetic"], claim.some(3) - 1)):
            seen = []
            for life in range(2):  # a second daemon answers as the first
                with Daemon("--set", "worker.threads=1", fake=False, model=models[name]) as d:
                    c = d.client(timeout=120)
                    greedy = [answer(c, temperature=0) for _ in range(2)]
                    seeded = [answer(c, temperature=0.8, seed=7) for _ in range(2)]
                    two = answer(c, temperature=0.8, seed=7, n=2)
                    n_requests += 5
                    if name == "starter" and life == 0:
                        found_again(claim, c)
                claim.check(greedy[0] == greedy[1], "%s: greedy twice" % name)
                claim.check(seeded[0] == seeded[1], "%s: seed 7 twice" % name)
                claim.check(len(two) == 2 and two[0] != two[1], "%s: two choices of one seed are different" % name)
                claim.check(two[0] == seeded[0][0], "%s: the first of two choices is the single one" % name)
                claim.check(all(len(x) == 64 for x in greedy[0] + seeded[0] + two), "%s: 64 ids each" % name)
                seen.append((greedy[0], seeded[0], two))
            claim.check(seen[0] == seen[1], "%s: another daemon, another answer" % name)
    claim.figure("requests", n_requests)
