# SPDX-License-Identifier: Apache-2.0
"""Build and run every suite, count every case, say why each skip. Called by tests/run."""
import argparse
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLAGS = ["-Dtests=enabled", "-Dwerror=true"]
BUILDS = {
    # name: (environment, options of meson setup, suites to run, in the quick run too)
    "build": ({"CC": "gcc"}, [], None, True),
    "build-clang": ({"CC": "clang"}, [], ["unit", "kernels"], False),
    "build-asan": ({"CC": "gcc"}, ["-Db_sanitize=address,undefined"], ["unit", "kernels", "golden", "daemon", "fuzz"], False),
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Count:
    def __init__(self):
        self.passed = self.failed = 0
        self.skipped = []  # (what, reason)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def say(text):
    print(text, flush=True)


def build(name, env, options):
    directory = os.path.join(ROOT, name)
    env = dict(os.environ, **env)
    setup = ["meson", "setup", directory, ROOT] + FLAGS + options
    if os.path.exists(os.path.join(directory, "build.ninja")):
        setup.insert(2, "--reconfigure")
    for command in (setup, ["ninja", "-C", directory]):
        p = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors="replace", stdin=subprocess.DEVNULL)
        if p.returncode != 0:
            say(p.stdout[-6000:])
            say("%s: %s failed" % (name, " ".join(command[:2])))
            return False
    return True


def cases(test):
    """How many cases a test's output speaks of: cmocka's and pytest's own counts, else one."""
    out = (test.get("stdout") or "") + "\n" + (test.get("stderr") or "")
    count = Count()
    ok = test["result"] in ("OK", "EXPECTEDFAIL")
    if test["result"] == "SKIP":
        reason = [line for line in out.splitlines() if line.strip()]
        count.skipped.append((test["name"], reason[-1].strip() if reason else "no reason given"))
        return count
    pytest = re.search(r"^(?:=+ )?((?:\d+ (?:passed|failed|skipped|error|errors)(?:, )?)+) in ", out, re.M)
    passed = [int(n) for n in re.findall(r"\[  PASSED  \] (\d+) test", out)]
    if pytest:
        numbers = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", pytest.group(1))}
        count.passed = numbers.get("passed", 0)
        count.failed = numbers.get("failed", 0) + numbers.get("error", 0)
        for line in re.findall(r"^SKIPPED \[(\d+)\] (.*)$", out, re.M):
            count.skipped += [(test["name"], line[1])] * int(line[0])
    elif passed:
        count.passed = sum(passed)
        count.failed = sum(int(n) for n in re.findall(r"\[  FAILED  \] (\d+) test", out))
        reasons = re.findall(r"^skip: (.*)$", out, re.M)
        for i, name in enumerate(re.findall(r"\[  SKIPPED \] (\w+)\s*$", out, re.M)):
            if "%s: %s" % (test["name"], name) not in [w for w, _ in count.skipped]:
                count.skipped.append(("%s: %s" % (test["name"], name), reasons[i] if i < len(reasons) else
                                      (reasons[-1] if reasons else "see its output")))
    else:
        count.passed = 1 if ok else 0
    if not ok and count.failed == 0:
        count.failed = 1
    return count


def run(name, suites):
    directory = os.path.join(ROOT, name)
    command = ["meson", "test", "-C", directory, "--no-rebuild", "--num-processes", "2"]
    if name == "build-asan":
        command += ["--timeout-multiplier", "4"]
    for s in suites or []:
        command += ["--suite", s]
    log = os.path.join(directory, "meson-logs", "testlog.json")
    if os.path.exists(log):
        os.unlink(log)
    subprocess.run(command, env=dict(os.environ, **ENVIRONMENT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   stdin=subprocess.DEVNULL)
    total = Count()
    if not os.path.exists(log):
        say("%s: meson test wrote no log" % name)
        total.failed += 1
        return total
    for line in open(log, errors="replace"):
        test = json.loads(line)
        count = cases(test)
        say("%-12s %-40s %4d passed %s%s" % (name, test["name"], count.passed,
                                            "%d FAILED " % count.failed if count.failed else "",
                                            "%d skipped " % len(count.skipped) if count.skipped else ""))
        if count.failed:
            say(((test.get("stdout") or "") + (test.get("stderr") or ""))[-5000:])
        total.add(count)
    return total


def main():
    parser = argparse.ArgumentParser(prog="tests/run")
    parser.add_argument("--quick", action="store_true", help="one compiler, no sanitizers")
    quick = parser.parse_args().quick
    total, started = Count(), time.monotonic()
    for name, (env, options, suites, always) in BUILDS.items():
        if quick and not always:
            continue
        say("%s: building" % name)
        if build(name, env, options):
            total.add(run(name, suites))
        else:
            total.failed += 1
    for what, reason in sorted(set(total.skipped)):
        say("skipped: %s: %s" % (what, reason))
    say("%.0f s" % (time.monotonic() - started))
    say("%d passed, %d failed, %d skipped" % (total.passed, total.failed, len(total.skipped)))
    return 1 if total.failed or total.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
