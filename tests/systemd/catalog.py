#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every event has its own MESSAGE_ID, a page in the catalog and a line in dsd(8): catalog.py SOURCE_DIR"""
import re
import sys


def read(path):
    with open("%s/%s" % (sys.argv[1], path)) as f:
        return f.read()


events = dict(re.findall(r'= \{"([a-z-]+)",\s+"([0-9a-f]{32})"', read("daemon/base/event.c")))
n = len(re.findall(r"^\tEVENT_", read("daemon/base/log.h"), re.M))
assert len(events) == n == len(set(events.values())), "%d events in event.c, %d in log.h" % (len(events), n)
catalog = read("systemd/dsd.catalog")
pages = dict(re.findall(r"^# ([a-z-]+)\n-- ([0-9a-f]{32})\nSubject: .+\nDefined-By: dsd\n", catalog, re.M))
assert pages == events, "dsd.catalog: %s" % set(pages.items()).symmetric_difference(events.items())
fields = set(re.findall(r'add\(&e, "(\w+)=', read("daemon/base/event.c")))
assert set(re.findall(r"@(\w+)@", catalog)) <= fields, "the catalog names fields that no event has"
man = dict(re.findall(r"^([a-z-]+) +([0-9a-f]{32})$", read("packaging/man/dsd.8.scd"), re.M))
assert man == events, "dsd.8.scd: %s" % set(man.items()).symmetric_difference(events.items())
