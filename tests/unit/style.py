#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What every source file has: style.py spdx ROOT, or style.py format ROOT. Exit 77: skipped."""
import os
import pathlib
import shutil
import subprocess
import sys

TOPS = ['daemon', 'kernels', 'proto', 'client', 'tests', 'packaging']
SPDX = 'SPDX-License-Identifier: Apache-2.0'


def sources(root):
    for top in TOPS:
        for at, dirs, files in os.walk(root / top):
            dirs[:] = sorted(d for d in dirs if not d.startswith(('.', 'build', '__')))
            for name in sorted(files):
                if name.endswith(('.c', '.h', '.cu')):
                    yield pathlib.Path(at) / name


def has_spdx(path):
    with path.open(errors='replace') as f:
        return any(SPDX in line for line, _ in zip(f, range(3)))


def main():
    what, root = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    paths = list(sources(root))
    assert len(paths) > 50, 'the sources were not found'
    if what == 'spdx':
        wrong = [p.relative_to(root) for p in paths if not has_spdx(p)]
        for p in wrong:
            print(f'{p}: no "{SPDX}" in its first three lines')
        return bool(wrong)
    tool = shutil.which('clang-format')
    if not tool:
        print('skipped: no clang-format here')
        return 77
    wrong = [p for p in paths
             if subprocess.run([tool, '--dry-run', '-Werror', p], capture_output=True).returncode]
    for p in wrong:
        print(f'{p.relative_to(root)}: clang-format -i would change it')
    return bool(wrong)


if __name__ == '__main__':
    sys.exit(main())
