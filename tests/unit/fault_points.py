#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every fault point of the table is passed somewhere in the daemon.

  fault_points.py ROOT
"""
import pathlib
import re
import sys

def main():
    daemon = pathlib.Path(sys.argv[1]) / 'daemon'
    table = dict(re.findall(r'\[FAULT_(\w+)\] = "([a-z-]+)"', (daemon / 'base/fault.c').read_text()))
    enum = re.findall(r'^\tFAULT_(\w+),', (daemon / 'base/fault.h').read_text(), re.M)
    placed = set()
    for source in daemon.rglob('*.c'):
        placed |= set(re.findall(r'fault_at\(FAULT_(\w+)\)', source.read_text()))
    wrong = ['%s has no name' % p for p in enum if p != 'NONE' and p not in table]
    wrong += ['%s is called %s' % (p, n) for p, n in table.items() if p.lower().replace('_', '-') != n]
    wrong += ['%s is passed nowhere' % p for p in table if p not in placed]
    print('%d points, %d passed' % (len(table), len(placed)))
    for sentence in wrong:
        print(sentence)
    return 1 if wrong or not placed else 0


if __name__ == '__main__':
    sys.exit(main())
