# SPDX-License-Identifier: Apache-2.0
"""The same request gives the same answer; another choice of it another one."""
import json
import os
import tempfile

PROMPT = "The little fox went to the river. "


def answer(client, **sampling):
    a = client.generate(PROMPT, ignore_eos=True, max_tokens=64, **sampling)
    assert a.error is None, a.error
    return [a.choices[i].ids for i in sorted(a.choices)]


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
        for name in sorted(claim.rng.sample(sorted(models), claim.some(len(models)))):
            seen = []
            for life in range(2):  # a second daemon answers as the first
                with Daemon("--set", "worker.threads=1", fake=False, model=models[name]) as d:
                    c = d.client(timeout=120)
                    greedy = [answer(c, temperature=0) for _ in range(2)]
                    seeded = [answer(c, temperature=0.8, seed=7) for _ in range(2)]
                    two = answer(c, temperature=0.8, seed=7, n=2)
                    n_requests += 5
                claim.check(greedy[0] == greedy[1], "%s: greedy twice" % name)
                claim.check(seeded[0] == seeded[1], "%s: seed 7 twice" % name)
                claim.check(len(two) == 2 and two[0] != two[1], "%s: two choices of one seed are different" % name)
                claim.check(two[0] == seeded[0][0], "%s: the first of two choices is the single one" % name)
                claim.check(all(len(x) == 64 for x in greedy[0] + seeded[0] + two), "%s: 64 ids each" % name)
                seen.append((greedy[0], seeded[0], two))
            claim.check(seen[0] == seen[1], "%s: another daemon, another answer" % name)
    claim.figure("requests", n_requests)
