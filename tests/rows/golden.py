# SPDX-License-Identifier: Apache-2.0
"""The forward pass is the published implementation's, in f32, in every kernel variant and over the wire."""
import json
import os

SHAPES = ["v2-lite-tiny", "v2-lite-bf16", "v2-tiny", "v2-x16", "v2-vdim", "v2-dense2", "v2-freq2", "v2-sharded"]
TOLERANCE = 1e-3


def over_the_wire(claim, folder, shape):
    from dsdtest import Daemon
    with open(os.path.join(folder, shape, "golden.json")) as f:
        g = json.load(f)
    with Daemon("--set", "worker.weights=f32", "--set", "pool.size=64M", "--set", "worker.threads=1", fake=False,
                model=os.path.join(folder, shape)) as d:
        c = d.client(timeout=120)
        got = [t.logprob for t in c.score(ids=g["prompt_ids"])[1:]]
        a = c.generate(ids=g["prompt_ids"], max_tokens=g["n_greedy"], temperature=0, ignore_eos=True, logprobs=0)
    claim.check(len(got) == len(g["prompt_logprobs"]), "%s: %d prompt logprobs" % (shape, len(got)))
    claim.check(a.ids == g["greedy_ids"], "%s: greedy ids over the wire" % shape)
    return max([abs(x - y) for x, y in zip(got, g["prompt_logprobs"])] +
               [abs(t.logprob - w) for t, w in zip(a.logprobs, g["greedy_logprobs"])])


def run(claim):
    exe, _, _ = claim.need("tests/golden/golden", "daemon/dsd", "daemon/dsd-worker")
    folder = os.path.join(claim.root, "tests", "golden")
    shapes = sorted(claim.rng.sample(SHAPES, claim.some(len(SHAPES))))
    status, figures, out = claim.program([exe, folder] + shapes)
    claim.check(status == 0, "the golden program ended with %d:\n%s" % (status, out[-2000:]))
    f32 = [f for f in figures if "prompt" in f and "isa" in f]
    bf16 = [f for f in figures if "bf16_top1" in f]
    claim.check({f["shape"] for f in f32} == set(shapes), "every shape has its figures")
    wire = max(over_the_wire(claim, folder, s) for s in shapes)
    claim.check(wire <= TOLERANCE, "largest |difference| of a logprob over the wire is %.2e" % wire)
    claim.figure("shapes", len(shapes))
    claim.figure("shapes x instruction sets", len(f32))
    claim.figure("largest |d logprob|", "%.2e" % max(float(f[k]) for f in f32 for k in ("prompt", "top", "greedy")))
    claim.figure("largest |d logprob| over the wire", "%.2e" % wire)
    claim.figure("expert sets wrong", "%d of %d" % tuple(
        sum(int(f["experts_wrong"].split("/")[i]) for f in f32) for i in (0, 1)))
    claim.figure("bf16 against f32: mean KL of the worst shape", "%.2e" % max(float(f["bf16_kl_mean"]) for f in bf16))
    claim.figure("bf16 against f32: top-1 agreement of the worst shape", min(float(f["bf16_top1"]) for f in bf16))
