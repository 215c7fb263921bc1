# SPDX-License-Identifier: Apache-2.0
"""Bad peers, bad requests and dying workers cost what they must and no more; the daemon lives."""
import os
import re
import sys


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker", "client/dsctl/dsctl")
    file = os.path.join(claim.root, "tests", "daemon", "test_faults.py")
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    listed = re.findall(r"^\S+::\S.*$", claim.command(pytest + ["--collect-only", file], cwd=claim.root), re.M)
    tests = claim.rng.sample(listed, claim.some(len(listed)))
    ended = {}
    for backend in ("uring", "epoll"):
        status, _, out = claim.program(pytest + [os.path.join(claim.root, t) for t in tests],
                                       env={"DSD_IO_BACKEND": backend})
        passed = re.search(r"(\d+) passed", out)
        ended[backend] = int(passed.group(1)) if passed else 0
        claim.check(status == 0, "pytest over %s ended with %d:\n%s" % (backend, status, out[-3000:]))
        claim.check(ended[backend] == len(tests), "%s: %d of %d faults survived" % (backend, ended[backend], len(tests)))
    for backend, n in ended.items():
        claim.figure("faults survived over " + backend, "%d of %d" % (n, len(tests)))
