# SPDX-License-Identifier: Apache-2.0
"""Five streaming clients while the service is restarted, killed, reloaded, and its worker killed: same texts."""
import os
import signal
import subprocess
import threading
import time

DISTURBANCES = 200
CLIENTS = 5
PROMPT = "Once upon a time there was a small animal that lived near the river and had many friends there. " * 5
KINDS = ("restart", "kill", "reload", "worker")


def ask(claim, d, i):
    """What one client asks: greedy or seeded, one choice or two, a stop string or none; all through libdsclient."""
    how = [["--temperature", "0"], ["--temperature", "0.8"], ["--temperature", "1", "--n", "2", "--json"],
           ["--temperature", "1", "--top-p", "0.9", "--repetition-penalty", "1.1"], ["--temperature", "0.7", "--stop", "zzz"]]
    return [os.path.join(claim.build, "client/dsctl/dsctl"), "--socket", d.socket, "generate", "--max-tokens", "400",
            "--ignore-eos", "--seed", str(100 + i)] + how[i % len(how)] + [PROMPT + "Animal %d said:" % i]


def text_of(output):
    """What must be equal: of --json the choices alone, not how long it took or what was cached."""
    import json
    if not output.startswith(b"{"):
        return output
    return json.dumps(json.loads(output)["choices"], sort_keys=True).encode()


class Client(threading.Thread):
    def __init__(self, claim, d, i, want):
        super().__init__()
        self.claim, self.d, self.i, self.want = claim, d, i, want
        self.done = self.wrong = 0
        self.over = False
        self.came = []  # when something was read

    def run(self):
        while not self.over:
            p = subprocess.Popen(ask(self.claim, self.d, self.i), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 stdin=subprocess.DEVNULL)
            got = b""
            while piece := os.read(p.stdout.fileno(), 65536):
                self.came.append(time.monotonic())
                got += piece
            err = p.stderr.read()
            p.wait()
            self.done += 1
            if p.returncode != 0 or text_of(got) != self.want:
                self.wrong += 1
                self.claim.say("client %d: status %d, %d of %d bytes: %s" % (
                    self.i, p.returncode, len(got), len(self.want), err.decode(errors="replace")[:300]))


def disturb(d, kind, pb, Admin):
    """Return: when it began, and when what was is gone."""
    began, pid = time.monotonic(), d.process.pid
    if kind == "reload":
        try:
            admin = Admin(d.admin, timeout=60)
            admin.send(3, reload=pb.Reload())
            while admin.recv().WhichOneof("msg") == "progress":
                pass
        except Exception:  # a daemon that is just being started: nothing to reload yet
            pass
    elif kind == "worker":
        try:
            os.kill(d.worker_pid(), signal.SIGKILL)
        except (ProcessLookupError, OSError, IndexError, AssertionError):
            pass
    else:
        d.process.send_signal(signal.SIGTERM if kind == "restart" else signal.SIGKILL)
        while d.process.pid == pid:
            time.sleep(0.002)
    return began, time.monotonic()


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker", "client/dsctl/dsctl")
    from dsdtest import Client as Admin
    from dsdtest import Supervised, pb

    n, gaps, cached, restarts = claim.some(DISTURBANCES, least=len(KINDS)), [], 0, 0
    found = asked = 0
    model = os.path.join(claim.root, "packaging", "starter-model", "model")
    with Supervised("--set", "pool.size=64M", "--set", "worker.threads=1", fake=False, model=model) as d:
        want = [text_of(subprocess.run(ask(claim, d, i), stdout=subprocess.PIPE, check=True).stdout) for i in range(CLIENTS)]
        idle = d.client().stats()
        fds = len(os.listdir("/proc/%d/fd" % d.process.pid))
        clients = [Client(claim, d, i, want[i]) for i in range(CLIENTS)]
        for c in clients:
            c.start()
        for k in range(n):
            time.sleep(claim.rng.uniform(0.3, 1.2))
            kind = KINDS[k % len(KINDS)]
            cold = d.read_log().count("starts cold")
            began, gone = disturb(d, kind, pb, Admin)
            if kind == "kill":
                end = gone + 60
                while time.monotonic() < end:
                    first = [t for c in clients for t in c.came[-50:] if t > gone]
                    if first:
                        gaps.append(min(first) - began)
                        break
                    time.sleep(0.01)
            elif kind == "restart":
                a = d.client(timeout=60).generate(PROMPT + "Animal 0 said:", max_tokens=1, temperature=0)
                if a.error is None and d.read_log().count("starts cold") == cold:
                    restarts += 1
                    found, asked = found + a.usage.cached_tokens, asked + a.started.prompt_tokens
                    cached += a.usage.cached_tokens >= (a.started.prompt_tokens - 1) // 64 * 64 > 0
        for c in clients:
            c.over = True
        for c in clients:
            c.join()
        for _ in range(200):
            st = d.client().stats()
            if st.models[0].pages_used == 0 and st.connections == 1:
                break
            time.sleep(0.05)
        now_fds = len(os.listdir("/proc/%d/fd" % d.process.pid))
        log = d.read_log()
    done, wrong = sum(c.done for c in clients), sum(c.wrong for c in clients)
    claim.check(wrong == 0, "%d of %d texts differ from the undisturbed ones" % (wrong, done))
    claim.check(done >= CLIENTS, "%d texts" % done)
    claim.check(restarts > 0 and cached == restarts, "%d of %d first answers after a restart from the adopted pool" % (cached, restarts))
    claim.check(st.models[0].pages_used == 0 and st.connections == idle.connections,
                "%d pages, %d connections left" % (st.models[0].pages_used, st.connections))
    claim.check(now_fds <= fds + 2, "%d descriptors, %d before" % (now_fds, fds))
    claim.check("defect" not in log, "the log speaks of a defect")
    claim.figure("disturbances", "%d (%s), %d texts, %d differ" % (n, ", ".join(KINDS), done, wrong))
    claim.figure("served from the adopted pool", "%d of %d first answers after a restart" % (cached, restarts))
    claim.figure("hit rate of those", "%d of %d prompt tokens" % (found, asked))
    if gaps:
        gaps.sort()
        claim.figure("SIGKILL to the first resumed token", "median %.0f ms, slowest %.0f ms of %d" % (
            1000 * gaps[len(gaps) // 2], 1000 * gaps[-1], len(gaps)))
