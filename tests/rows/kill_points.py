# SPDX-License-Identifier: Apache-2.0
"""What a crash leaves of a pool is never used torn, nor for another owner."""
CRASHES = 100000


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


def run(claim):
    simulated(claim)
