# SPDX-License-Identifier: Apache-2.0
"""The forward pass is the published implementation's, in f32, in every kernel variant and over the wire; and how far
weights kept in fewer bits are from it, on random shapes and on the starter model."""
import json
import os
import sys
import tempfile

SHAPES = ["v2-lite-tiny", "v2-lite-bf16", "v2-tiny", "v2-x16", "v2-vdim", "v2-dense2", "v2-freq2", "v2-sharded"]
TOLERANCE = 1e-3
KEPT = ["bf16", "q8", "q4", "int8-entry"]
TEXTS = 40
# Starter model, held-out stories and sums: mean KL at most, top-1 agreement at least. Measured 2.7e-6, 1.4e-4 and 2.5e-3;
# 1.0, 0.988 and 0.950. Few texts vary more than many.
STARTER = {"bf16": (1e-4, 0.98), "q8": (1e-3, 0.95), "q4": (0.02, 0.89), "int8-entry": (1e-3, 0.95)}


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


def kept_figures(claim, figures, where):
    """Mean KL and top-1 agreement with f32, over all positions and of the worst text or shape."""
    ret = {}
    for kept in KEPT:
        some = [f for f in figures if f.get("kept") == kept]
        n = sum(int(f["positions"]) for f in some)
        claim.check(n > 0, "%s: %s was run" % (where, kept))
        kl, top1 = (sum(float(f[k]) * int(f["positions"]) for f in some) / n for k in ("kl_mean", "top1"))
        claim.figure("%s: %s against f32" % (where, kept), "mean KL %.2e (worst of them %.2e), top-1 %.4f (worst %.4f), "
                     "%d positions" % (kl, max(float(f["kl_mean"]) for f in some), top1,
                                       min(float(f["top1"]) for f in some), n))
        ret[kept] = kl, top1
    return ret


def starter(claim, exe):
    """Ids of held-out texts, as the daemon's tokenizer has them, through every way to keep the weights."""
    folder = os.path.join(claim.root, "packaging", "starter-model")
    if not os.path.exists(os.path.join(folder, "model", "model.safetensors")):
        claim.say("packaging/starter-model/model has no weights: not measured there")
        return
    sys.path.insert(0, folder)
    import make_data as data
    from dsdtest import Daemon
    texts = [data.story(data.N_STORIES + 1 + i) for i in range(claim.some(TEXTS, 2))]
    texts += ["%d+%d=%d\n" % (a, b, a + b) for a, b in claim.rng.sample(data.held_out_pairs(), claim.some(TEXTS, 2))]
    with Daemon(fake=False, model=os.path.join(folder, "model")) as d:
        c = d.client(timeout=300)
        lines = [" ".join(str(t.id) for t in c.score(text=t)[:256]) for t in texts]
    with tempfile.NamedTemporaryFile("w", prefix="dsd-golden-") as f:
        f.write("\n".join(lines) + "\n")
        f.flush()
        status, figures, out = claim.program([exe, "--quality", folder, "model", f.name])
    claim.check(status == 0, "the golden program ended with %d:\n%s" % (status, out[-2000:]))
    for kept, (kl, top1) in kept_figures(claim, figures, "starter model").items():
        claim.check(kl <= STARTER[kept][0] and top1 >= STARTER[kept][1],
                    "starter model, %s: mean KL %.2e, top-1 %.4f" % (kept, kl, top1))


def run(claim):
    exe, _, _ = claim.need("tests/golden/golden", "daemon/dsd", "daemon/dsd-worker")
    folder = os.path.join(claim.root, "tests", "golden")
    shapes = sorted(claim.rng.sample(SHAPES, claim.some(len(SHAPES))))
    status, figures, out = claim.program([exe, folder] + shapes)
    claim.check(status == 0, "the golden program ended with %d:\n%s" % (status, out[-2000:]))
    f32 = [f for f in figures if "prompt" in f and "isa" in f]
    claim.check({f["shape"] for f in f32} == set(shapes), "every shape has its figures")
    wire = max(over_the_wire(claim, folder, s) for s in shapes)
    claim.check(wire <= TOLERANCE, "largest |difference| of a logprob over the wire is %.2e" % wire)
    claim.figure("shapes", len(shapes))
    claim.figure("shapes x instruction sets", len(f32))
    claim.figure("largest |d logprob|", "%.2e" % max(float(f[k]) for f in f32 for k in ("prompt", "top", "greedy")))
    claim.figure("largest |d logprob| over the wire", "%.2e" % wire)
    claim.figure("expert sets wrong", "%d of %d" % tuple(
        sum(int(f["experts_wrong"].split("/")[i]) for f in f32) for i in (0, 1)))
    kept_figures(claim, figures, "random shapes")
    starter(claim, exe)
