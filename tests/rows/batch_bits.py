# SPDX-License-Identifier: Apache-2.0
"""The bits of a row's logits depend neither on its batch, nor on the chunk, nor on the number of threads, nor on the
instruction set."""
import os

SHAPES = ["v2-lite-tiny", "v2-tiny", "v2-x16", "v2-vdim", "v2-dense2", "v2-freq2"]
COMPOSITIONS = 5  # for each shape, instruction set, weight type, thread count and chunk size


def run(claim):
    exe, = claim.need("tests/golden/bits")
    shapes = sorted(claim.rng.sample(SHAPES, claim.some(len(SHAPES))))
    status, figures, out = claim.program([exe, os.path.join(claim.root, "tests", "golden"),
                                          str(claim.some(COMPOSITIONS)), str(claim.seed)] + shapes)
    rows, differ = (sum(int(f[k]) for f in figures) for k in ("rows", "differ"))
    claim.check(status == 0, "the bits program ended with %d: %s" % (status, out[-500:]))
    claim.check({f["shape"] for f in figures} == set(shapes) and {f["weights"] for f in figures} == {"f32", "bf16", "q8", "q4", "bf16-int8-entry"},
                "every shape and weight type was run")
    claim.check(rows > 0 and differ == 0, "%d of %d rows have other bits" % (differ, rows))
    kinds = {}
    for f in figures:
        kinds.setdefault((f["shape"], f["weights"]), set()).add(f["hash"])
    # With one composition the scalar kernels get short sequences alone: other rows than the rest.
    claim.check(claim.some(COMPOSITIONS) == 1 or all(len(hashes) == 1 for hashes in kinds.values()),
                "instruction sets agree: %s" % [k for k, hashes in kinds.items() if len(hashes) > 1])
    claim.figure("compositions", sum(int(f["compositions"]) for f in figures))
    claim.figure("rows whose hash differs", "%d of %d" % (differ, rows))
    claim.figure("kinds (shape, instruction set, weights)", len(figures))
