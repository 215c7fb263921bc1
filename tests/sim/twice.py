#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""twice.py SIM DAYS SEED...: each seed twice, in two processes: nothing broken, the same hash; another seed, another one."""
import subprocess
import sys


def run(program, seed, days):
    p = subprocess.run([program, "--seed", seed, "--days", days], capture_output=True, text=True, errors="replace",
                       stdin=subprocess.DEVNULL)
    print(p.stdout + p.stderr, flush=True)
    if p.returncode != 0:
        sys.exit("seed %s: exit status %d" % (seed, p.returncode))
    return dict(word.split("=", 1) for word in p.stdout.split() if "=" in word)["hash"]


def main():
    program, days, seeds = sys.argv[1], sys.argv[2], sys.argv[3:]
    hashes = []
    for seed in seeds:
        hashes.append(run(program, seed, days))
        if run(program, seed, days) != hashes[-1]:
            sys.exit("seed %s does not replay" % seed)
    if len(set(hashes)) != len(seeds):
        sys.exit("other seeds, the same days")


if __name__ == "__main__":
    main()
