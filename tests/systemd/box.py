# SPDX-License-Identifier: Apache-2.0
"""A machine of its own for the service: a small root directory of this host's Debian release, made once
and kept in the cache, booted by systemd-nspawn over a throw-away overlay, with what `meson install` of
this build puts there."""
import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

BUILD = os.environ["DSD_BUILD"]
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = "systemd,systemd-sysv,dbus"


class Unable(Exception):
    """No box can be had here; the sentence says why."""


def command(args, **kw):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, errors="replace", **kw)


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word"


# The root directory ------------------------------------------------------------------------------

def release():
    with open("/etc/os-release") as f:
        return dict(line.rstrip().replace('"', "").split("=", 1) for line in f if "=" in line)


def mirrors(codename):
    """Where this machine itself gets that release from: its own apt sources."""
    found = []
    for path in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*")):
        if not os.path.isfile(path):
            continue
        with open(path) as f:
            text = re.sub(r"^\s*#.*$", "", f.read(), flags=re.M)
        if re.search(r"(^|\s)%s(\s|$)" % codename, text) and re.search(r"\smain(\s|$)", text):
            found.append(path)
    return found


def make_root():
    os_release = release()
    codename = os_release.get("VERSION_CODENAME", "")
    if os_release.get("ID") != "debian":
        raise Unable("this host is no Debian: its libraries would not fit a root made for the test")
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dsd-tests")
    root = os.path.join(cache, "root-" + codename)
    os.makedirs(cache, exist_ok=True)
    with open(os.path.join(cache, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(root, "usr/lib/systemd/systemd")):
            return root
        if not shutil.which("mmdebstrap"):
            raise Unable("no mmdebstrap here")
        new = root + ".new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            p = command(["mmdebstrap", "--quiet", "--variant=minbase", "--include=" + PACKAGES,
                         "--aptopt=Acquire::http::Timeout \"20\"", codename, new] + mirrors(codename), timeout=400)
        except subprocess.TimeoutExpired:
            raise Unable("making a root directory took more than 400 s")
        if p.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise Unable("no root directory: mmdebstrap: " + last_line(p.stdout))
        os.rename(new, root)
    return root


def stage(directory, root):
    """What a package would bring: meson install, and the libraries that the root lacks."""
    p = command(["meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", directory])
    assert p.returncode == 0, p.stdout[-2000:]
    bin = os.path.join(directory, "usr/bin")
    os.makedirs(bin, exist_ok=True)
    programs = []
    for prefix in (directory, os.path.join(directory, "usr"), os.path.join(directory, "usr/local")):
        programs += glob.glob(prefix + "/bin/ds*") + glob.glob(prefix + "/libexec/dsd-worker")
    for program in programs:
        if os.path.basename(os.path.dirname(program)) == "bin" and os.path.dirname(program) != bin:
            os.symlink(program[len(directory):], os.path.join(bin, os.path.basename(program)))
    lib = os.path.join(directory, "usr/local/lib/dsd-test")
    os.makedirs(lib)
    for name, path in set(re.findall(r"^\s*(\S+) => (/\S+)", "".join(
            command(["ldd", program]).stdout for program in programs), re.M)):
        if not any(os.path.exists(root + d + "/" + os.path.basename(path)) for d in
                   ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib/x86_64-linux-gnu")):
            shutil.copy(path, os.path.join(lib, name))
    os.makedirs(os.path.join(directory, "etc/ld.so.conf.d"))
    with open(os.path.join(directory, "etc/ld.so.conf.d/dsd-test.conf"), "w") as f:
        f.write("/usr/local/lib/dsd-test\n")
    models = os.path.join(directory, "var/lib/dsd/models")
    shutil.copytree(os.path.join(SOURCE, "packaging/starter-model/model"), os.path.join(models, "starter"))
    os.makedirs(os.path.join(directory, "etc/dsd"))
    with open(os.path.join(directory, "etc/dsd/dsd.conf"), "w") as f:
        f.write("[pool]\nsize = 64M\n[worker]\nthreads = 1\n[model.starter]\npath = /var/lib/dsd/models/starter\n")
    command(["chmod", "-R", "a+rX", directory])


# The box -----------------------------------------------------------------------------------------

class Box:
    def __init__(self):
        if os.geteuid() != 0:
            raise Unable("a booted container needs root")
        if not shutil.which("systemd-nspawn"):
            raise Unable("no systemd-nspawn here")
        self.root = make_root()
        self.name = "dsd-test-%d" % os.getpid()
        self.dir = tempfile.mkdtemp(prefix="dsdbox-")
        self.process = self.leader = None
        self.groups = []
        try:
            self._boot()
            self._install()
        except BaseException:
            self.stop()
            raise

    def _make_groups(self):
        """Cgroups of the box's own: where the hierarchies are split, one in each that systemd uses."""
        tops = [t for t in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified") if os.path.isdir(t)]
        for top in tops or ["/sys/fs/cgroup"]:
            group = os.path.join(top, self.name)
            try:
                os.mkdir(group)
            except OSError as e:
                raise Unable("no cgroup %s: %s" % (group, e.strerror))
            self.groups.append(group)

    def _boot(self):
        self._make_groups()
        log = os.path.join(self.dir, "nspawn.log")
        join = "".join("echo $$ >%s/cgroup.procs; " % g for g in self.groups)
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", join + 'exec "$@"', "sh", "systemd-nspawn", "--quiet", "--directory", self.root, "--boot",
                 "--register=no", "--keep-unit", "--private-network", "--volatile=overlay", "--kill-signal=SIGRTMIN+3",
                 "--console=read-only", "--machine=" + self.name, "--capability=all",
                 "--system-call-filter=bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=dict(os.environ, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1"))
        end = time.monotonic() + 60
        state = "nothing"
        while time.monotonic() < end and self.process.poll() is None:
            with open("/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)) as f:
                children = f.read().split()
            if children:
                self.leader = children[0]
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.05)
        with open(log, errors="replace") as f:
            raise Unable("a container did not boot (%s): %s" % (state, last_line(f.read())))

    def _install(self):
        staged = os.path.join(self.dir, "stage")
        os.mkdir(staged)
        stage(staged, self.root)
        tar = "tar -C %s -c . | tar -C %s -x --keep-directory-symlink --no-overwrite-dir" % (staged, self.path("/"))
        p = command(["/bin/sh", "-c", tar])
        assert p.returncode == 0, p.stdout
        self.run("ldconfig")
        self.run("systemd-sysusers")
        self.run("systemd-tmpfiles", "--create", "dsd.conf")
        self.run("journalctl", "--update-catalog")
        self.run("useradd", "--create-home", "--groups", "dsd", "alice")
        self.run("useradd", "--create-home", "bob")
        self.run("systemctl", "daemon-reload")

    def path(self, inside):
        """A path of the box, as this machine sees it."""
        return "/proc/%s/root%s" % (self.leader, inside)

    def run(self, *args, check=True, timeout=60):
        p = subprocess.run(["nsenter", "--target", self.leader, "--all", "--", *args], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace", timeout=timeout)
        assert not check or p.returncode == 0, "%s: %d\n%s%s" % (" ".join(args), p.returncode, p.stdout, p.stderr)
        return p

    def start(self, *args):
        return subprocess.Popen(["nsenter", "--target", self.leader, "--all", "--", *args], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def as_user(self, user, *args):
        return ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env", *args]

    def show(self, property, unit="dsd.service"):
        return self.run("systemctl", "show", "--value", "--property", property, unit).stdout.strip()

    def journal(self, **fields):
        """Entries of dsd with these fields."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "--output=json", "_SYSTEMD_UNIT=dsd.service",
                       *["%s=%s" % item for item in fields.items()]).stdout
        return [json.loads(line) for line in out.splitlines()]

    def drop_in(self, unit, text):
        """Settings of @unit for the with block."""
        return _drop_in(self, unit, text)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for group in self.groups:
            for path, _, _ in os.walk(group, topdown=False):
                for _ in range(100):  # the last process may not be buried yet
                    try:
                        os.rmdir(path)
                        break
                    except OSError:
                        time.sleep(0.02)
        shutil.rmtree(self.dir, ignore_errors=True)


@contextlib.contextmanager
def _drop_in(box, unit, text):
    directory = "/run/systemd/system/%s.d" % unit
    path = os.path.join(directory, "test.conf")
    os.makedirs(box.path(directory), exist_ok=True)
    with open(box.path(path), "w") as f:
        f.write(text)
    box.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        os.unlink(box.path(path))
        box.run("systemctl", "daemon-reload")


# Clients -----------------------------------------------------------------------------------------

PROMPTS = ["Once upon a time", "One day Tom", "The cat", "There was a", "Anna and her dog"]


def generate(box, seed, n_tokens, prompt):
    return box.as_user("alice", "dsctl", "generate", "--seed", str(seed), "--max-tokens", str(n_tokens), "--ignore-eos",
                       "--", prompt)


def undisturbed(box, n_tokens):
    """The texts of five streams when nothing happens."""
    return [box.run(*generate(box, seed, n_tokens, prompt)).stdout for seed, prompt in enumerate(PROMPTS)]


def disturbed(box, n_tokens, disturb):
    """The same five at once, and disturb() while all of them stream: [(status, text, words)]."""
    clients = [box.start(*generate(box, seed, n_tokens, prompt)) for seed, prompt in enumerate(PROMPTS)]
    begun = [os.read(c.stdout.fileno(), 1) for c in clients]
    disturb()
    assert all(c.poll() is None for c in clients), "a stream was over before it was disturbed: want more tokens"
    ends = []
    for first, c in zip(begun, clients):
        rest, words = c.communicate(timeout=120)
        ends.append((c.returncode, (first + rest).decode(errors="replace"), words.decode(errors="replace")))
    return ends
