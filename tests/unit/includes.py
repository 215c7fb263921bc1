#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may include whom: checks every #include of the tree against one table.

  includes.py ROOT

First it plants violations in a copy of nothing but directories and must find each; then it checks ROOT.
"""
import pathlib
import re
import sys
import tempfile

# Folder: the folders of ours that its files may include, beside itself. daemon/X is just X.
ALLOWED = {
    'base': [],
    'layout': ['base'],
    'text': ['base', 'layout'],
    'channel': ['base', 'layout'],
    'quota': ['base', 'layout'],
    'pool': ['base', 'layout', 'quota'],
    'sched': ['base', 'layout', 'quota', 'pool', 'channel'],
    'broker': ['base', 'layout', 'quota', 'pool', 'channel', 'sched', 'text', 'proto'],
    'worker': ['base', 'layout', 'channel', 'kernels'],
    'kernels': [],
    'proto': [],
    'client': ['proto'],
}
# Where "x/y.h" is looked for after the file's own folder, as the build's include paths have it.
SEARCH = ['daemon', 'kernels', 'proto', 'client']
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.M)


def folder(path):
    """The folder of the table that a path below the root belongs to; None: it is nobody's."""
    parts = path.parts
    if parts[0] == 'daemon':
        parts = parts[1:]
    return parts[0] if len(parts) > 1 and parts[0] in ALLOWED else None


def resolve(root, source, name):
    """The included file, relative to the root; None where no file of ours has that name."""
    for base in [source.parent] + [root / s for s in SEARCH]:
        path = (base / name).resolve()
        if path.is_file() and root in path.parents:
            return path.relative_to(root)
    if name.endswith('.pb-c.h'):  # generated
        return pathlib.Path('proto') / pathlib.Path(name).name
    return None


def check(root):
    """Sentences about what is wrong, and how many includes were looked at."""
    wrong, n = [], 0
    for top in ['daemon', 'kernels', 'proto', 'client']:
        for source in sorted((root / top).rglob('*.[ch]')) + sorted((root / top).rglob('*.cu')):
            rel = source.relative_to(root)
            mine = folder(rel)
            if mine is None:
                wrong.append(f'{rel}: a folder that the table does not have')
                continue
            for quote, name in INCLUDE.findall(source.read_text(errors='replace')):
                target = resolve(root, source, name)
                if target is None:
                    if quote == '"':
                        wrong.append(f'{rel}: "{name}" is no file of ours')
                    continue
                n += 1
                theirs = folder(target)
                if theirs != mine and theirs not in ALLOWED[mine]:
                    wrong.append(f'{rel}: {mine} may not include {theirs} ({name})')
    return wrong, n


PLANTED = [
    ('daemon/base/a.c', '#include "layout/l.h"', 'base may not include layout'),
    ('daemon/layout/l.c', '#include "pool/p.h"', 'layout may not include pool'),
    ('daemon/text/t.c', '#include "sched/s.h"', 'text may not include sched'),
    ('daemon/pool/p.c', '  #  include "sched/s.h"', 'pool may not include sched'),
    ('daemon/channel/c.c', '#include "pool/p.h"', 'channel may not include pool'),
    ('daemon/worker/w.c', '#include "pool/p.h"', 'worker may not include pool'),
    ('daemon/worker/model/m.c', '#include "../../sched/s.h"', 'worker may not include sched'),
    ('daemon/broker/b.c', '#include "worker/w.h"', 'broker may not include worker'),
    ('daemon/broker/c.c', '#include "kernels.h"', 'broker may not include kernels'),
    ('kernels/cpu/k.c', '#include "../../daemon/base/a.h"', 'kernels may not include base'),
    ('kernels/k.c', '#include <base/a.h>', 'kernels may not include base'),
    ('client/dsctl/d.c', '#include "base/a.h"', 'client may not include base'),
    ('proto/p.c', '#include "base/a.h"', 'proto may not include base'),
    ('daemon/base/n.c', '#include "nowhere.h"', 'is no file of ours'),
    ('daemon/other/o.c', '', 'a folder that the table does not have'),
]
GOOD = [
    ('daemon/broker/g.c', '#include <stdio.h>\n#include <pool/p.h>\n#include "dsd.pb-c.h"\n#include "sched/s.h"'),
    ('daemon/worker/model/g.c', '#include "worker/w.h"\n#include "kernels.h"\n#include "base/a.h"'),
    ('kernels/cpu/g.c', '#include "kernels.h"'),
]


def self_test():
    with tempfile.TemporaryDirectory() as tmp:
        root = pathlib.Path(tmp).resolve()

        def write(name, text):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + '\n')

        for h in ['daemon/base/a.h', 'daemon/layout/l.h', 'daemon/pool/p.h', 'daemon/sched/s.h',
                  'daemon/worker/w.h', 'kernels/kernels.h']:
            write(h, '#pragma once')
        for name, text in GOOD:
            write(name, text)
        wrong, n = check(root)
        assert wrong == [] and n == 7, (wrong, n)
        for name, text, says in PLANTED:
            write(name, text)
            wrong, _ = check(root)
            assert len(wrong) == 1 and name in wrong[0] and says in wrong[0], (name, wrong)
            (root / name).unlink()


def main():
    self_test()
    wrong, n = check(pathlib.Path(sys.argv[1]).resolve())
    for line in wrong:
        print(line)
    if n == 0:
        print('no includes found')
    print(f'{n} includes, {len(wrong)} wrong')
    return bool(wrong) or n == 0


if __name__ == '__main__':
    sys.exit(main())
