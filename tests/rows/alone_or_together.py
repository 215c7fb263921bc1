# SPDX-License-Identifier: Apache-2.0
"""64 clients at once: every text that survives is the one that its request has alone, and nothing is left behind.

Clients are processes, of four users where root runs this. They share prefixes or do not, or go on from a
published one; greedy or seeded, one choice or several, some stopped by a string, by a cancel, or by a SIGKILL
in mid-stream. The pool is too small for all of them. Alone means: nobody else, and an empty cache. Afterwards
pages, descriptors and charges are counted."""
import json
import os
import random
import signal
import time

CLIENTS = 64
USERS = (65501, 65502, 65503, 65504)
REQUESTS = 48     # different ones
EACH = 12         # that a client sends
KILLED = 1 / 4    # of the clients
CANCELLED = 1 / 8  # of the requests
WORDS = "fox river stone night garden small bright walked looked under over again mother window letter blue".split()


def sentence(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n)) + ". "


def make_requests(rng, n):
    """[(text, options)]; the first prefix is to be published."""
    prefixes = [sentence(rng, 60) for _ in range(4)]
    requests = []
    for i in range(n):
        prefix = rng.choice(prefixes) if i % 3 else sentence(rng, rng.randint(1, 50))
        how = dict(max_tokens=rng.randint(8, 90), ignore_eos=rng.random() < 0.7)
        if rng.random() < 0.5:
            how["temperature"] = 0
        else:
            how.update(temperature=0.9, top_p=0.95, seed=rng.getrandbits(60))
        if rng.random() < 0.2:
            how["n"] = rng.randint(2, 4)
        if rng.random() < 0.2:
            how["stop"] = [b"a", b"ed "]
        if rng.random() < 0.2:
            how["logprobs"] = 2
        requests.append((prefix + sentence(rng, rng.randint(1, 20)), how))
    return prefixes[0], requests


def plain(choices):
    """All that a client gets of an answer, as JSON has it."""
    return [[c.ids, c.text.hex(), c.finish, [[t.id, t.logprob] for t in c.logprobs]]
            for _, c in sorted(choices.items())]


def in_child(uid, work):
    """Runs work() as that user in another process; returns (pid, descriptor of its answer in JSON)."""
    r, w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(w)
        return pid, r
    try:
        if uid != os.getuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        with os.fdopen(w, "w") as f:
            json.dump(work(), f)
    except BaseException as e:
        os.write(2, ("a client of uid %d: %r\n" % (uid, e)).encode())
        os._exit(1)
    os._exit(0)


def answer_of(child):
    """(what it answered, None where it did not; its wait status)."""
    pid, fd = child
    with os.fdopen(fd) as f:
        text = f.read()
    status = os.waitpid(pid, 0)[1]
    return (json.loads(text) if status == 0 else None), status


def evict(admin, pb):
    """Until nothing is left: a step that was queued behind the last token keeps its pages until it is through."""
    end = time.monotonic() + 20
    while (m := admin.stats().models[0]).pages_used or m.pages_cached:
        assert time.monotonic() < end, "%d pages are used, %d cached" % (m.pages_used, m.pages_cached)
        admin.send(1, evict=pb.Evict())
        admin.recv()


def alone(d, admin, requests, pb):
    c = d.client(timeout=120)
    answers = []
    for text, how in requests:
        evict(admin, pb)
        a = c.generate(text, **how)
        assert a.error is None and (how.get("n") or a.usage.cached_tokens == 0), (a.error, a.usage)
        answers.append(plain(a.choices))
    return answers


class One:
    """One client: up to two requests in flight, each compared with what it is alone."""

    def __init__(self, d, requests, expected, seed, each, victim, pb):
        self.rng, self.pb, self.requests, self.expected = random.Random(seed), pb, requests, expected
        self.dies_at = self.rng.randrange(1, each * 20) if victim else None  # frames
        self.left, self.flying, self.frames = each, {}, 0
        self.report = dict(same=0, wrong=[], cancelled=0, cached=0, tokens=0)
        self.c = d.client(timeout=300)

    def start(self, id):
        i = self.rng.randrange(len(self.requests))
        text, how = self.requests[i]
        cancel_at = self.rng.randrange(1, 20) if self.rng.random() < CANCELLED else None
        priority = self.rng.choice([None, self.pb.PRIORITY_INTERACTIVE, self.pb.PRIORITY_BATCH])
        self.c.send(id, generate=self.pb.Generate(text=text.encode(), sampling=self.pb.Sampling(**how), priority=priority))
        self.flying[id] = [i, {}, cancel_at]
        self.left -= 1

    def take(self, f, Choice):
        i, choices, cancel_at = self.flying[f.id]
        kind = f.WhichOneof("msg")
        if kind == "delta":
            choices.setdefault(f.delta.choice, Choice()).add(f.delta)
            if cancel_at is not None:
                self.flying[f.id][2] = cancel_at - 1
                if cancel_at == 1:
                    self.c.send(999, cancel=self.pb.Cancel(target=f.id))
        elif kind == "done":
            self.report["cached"] += f.done.usage.cached_tokens
            self.report["tokens"] += f.done.usage.completion_tokens
            got = plain(choices)
            if got == self.expected[i]:
                self.report["same"] += 1
            else:
                self.report["wrong"].append("request %d: %r, alone %r" % (i, got, self.expected[i]))
        elif kind == "error":
            if f.error.code == self.pb.CODE_CANCELLED and cancel_at is not None and cancel_at <= 1:
                self.report["cancelled"] += 1
            else:
                self.report["wrong"].append("request %d: %s" % (i, f.error))
        if kind in ("done", "error"):
            del self.flying[f.id]

    def run(self):
        from dsdtest import Choice
        id = 0
        while self.left or self.flying:
            while self.left and len(self.flying) < 2:
                id += 1
                self.start(id)
            self.take(self.c.recv(), Choice)
            self.frames += 1
            if self.frames == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.report


def use_up(d, n_connections, n_requests):
    """As many connections and requests as one user may have: all of them, if none is still charged."""
    cs = [d.client() for _ in range(n_connections)]
    for id in range(1, n_requests + 1):
        cs[0].start("x", id=id, max_tokens=2)
    left, refused = n_requests, 0
    while left:
        kind = cs[0].recv().WhichOneof("msg")
        left -= kind in ("done", "error")
        refused += kind == "error"
    return refused


def descriptors(pid):
    return sorted(os.readlink("/proc/%d/fd/%s" % (pid, fd)).split(":")[0] for fd in os.listdir("/proc/%d/fd" % pid))


def settled(c, seconds=20):
    """Stats when nothing runs any more and ours is the only user connection (with the administrator's)."""
    end = time.monotonic() + seconds
    while True:
        s = c.stats()
        m = s.models[0]
        if (s.connections, m.running, m.waiting) == (2, 0, 0) or time.monotonic() > end:
            return s
        time.sleep(0.02)


def one_model(claim, name, pool, each, **options):
    from dsdtest import Client, Daemon, pb
    users = USERS if os.getuid() == 0 else (os.getuid(),)
    conn_max, requests_max = CLIENTS // len(users) + 10, 2 * CLIENTS // len(users) + 10
    prefix, requests = make_requests(claim.rng, claim.some(REQUESTS, 12))
    with Daemon("--set", "sched.slots=48", "--set", "pool.size=" + pool, "--set", "conn.max_per_uid=%d" % conn_max,
                "--set", "conn.requests_per_uid=%d" % requests_max, **options) as d:
        os.chmod(d.dir, 0o755)
        os.chmod(d.socket, 0o666)
        c, admin = d.client(timeout=60), Client(os.path.join(d.dir, "admin.sock"), timeout=60)
        expected = {}
        for uid in users:
            expected[uid], status = answer_of(in_child(uid, lambda: alone(d, admin, requests, pb)))
            if expected[uid] is None:
                raise SystemExit("%s: alone, uid %d ended with %d" % (name, uid, status))
        if not options["fake"]:  # the fake model's words are of its user
            claim.check(all(e == expected[users[0]] for e in expected.values()), "%s: alone, every user gets the same" % name)
        admin.send(1, evict=pb.Evict())
        admin.recv()
        admin.send(1, publish=pb.Publish(name="everybody", text=prefix.encode()))
        claim.check(admin.recv().WhichOneof("msg") == "ack", "%s: the prefix is published" % name)
        pids = (d.process.pid, c.stats().models[0].worker_pid)
        before = settled(c)
        fds = [descriptors(p) for p in pids]
        victims = set(claim.rng.sample(range(CLIENTS), round(CLIENTS * KILLED)))
        children = []
        for i in range(CLIENTS):
            uid, seed = users[i % len(users)], claim.rng.getrandbits(60)
            children.append(in_child(uid, lambda: One(d, requests, expected[uid], seed, each, i in victims, pb).run()))
        reports = [answer_of(child) for child in children]
        after = settled(c)
        killed = sum(status == signal.SIGKILL for _, status in reports)
        lived = [r for r, _ in reports if r is not None]
        wrong = [w for r in lived for w in r["wrong"]]
        total = {k: sum(r[k] for r in lived) for k in ("same", "cancelled", "cached", "tokens")}
        claim.check(len(lived) + killed == CLIENTS, "%s: %d clients lived, %d were killed" % (name, len(lived), killed))
        claim.check(killed > 0 and total["same"] > 0 and total["cached"] > 0, "%s: too tame: %s" % (name, total))
        claim.check(not wrong, "%s: %d answers are not as alone, for example %s" % (name, len(wrong), wrong[:1]))
        m, was = after.models[0], before.models[0]
        claim.check((after.connections, m.running, m.waiting) == (2, 0, 0), "%s: left behind: %s" % (name, after))
        claim.check(m.pages_used == was.pages_used, "%s: %d pages are in use, %d before" % (name, m.pages_used, was.pages_used))
        claim.check((m.worker_deaths, m.worker_pid) == (0, pids[1]), "%s: the worker lived through it" % name)
        for who, pid, fd in zip(("dsd", "worker"), pids, fds):
            claim.check(descriptors(pid) == fd, "%s: descriptors of %s: %r, before %r" % (name, who, descriptors(pid), fd))
        admin.send(1, unpublish=pb.Unpublish(name="everybody"))
        admin.recv()
        refused = {uid: answer_of(in_child(uid, lambda: use_up(d, conn_max - 2 * (uid == os.getuid()), requests_max)))
                   for uid in users}
        claim.check(all(r == (0, 0) for r in refused.values()), "%s: charges are left: %r" % (name, refused))
        settled(c)
        admin.send(1, evict=pb.Evict())
        admin.recv()
        m = settled(c).models[0]
        claim.check((m.pages_used, m.pages_cached) == (0, 0), "%s: %d pages used, %d cached at the end" % (
            name, m.pages_used, m.pages_cached))
        claim.figure("%s: texts as alone" % name, "%d of %d, %d cancelled, %d clients of %d killed, %d users" % (
            total["same"], total["same"] + len(wrong), total["cancelled"], killed, CLIENTS, len(users)))
        claim.figure("%s: tokens, prompt tokens found in the pool, preemptions" % name, "%d, %d, %d" % (
            total["tokens"], total["cached"], m.preemptions))
        claim.figure("%s: leaked pages, descriptors, charges" % name, "0, 0, 0" if not claim.broken else "see above")


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker")
    from dsdtest import Daemon  # noqa: F401 (its import makes the protocol's module before anyone forks)
    starter = os.path.join(claim.root, "packaging", "starter-model", "model")
    one_model(claim, "fake", "512K", claim.some(EACH * 4), fake=True, env={"DSD_FAKE_STEP_USEC": "300"})
    if os.path.exists(os.path.join(starter, "model.safetensors")):
        one_model(claim, "starter", "4M", claim.some(EACH), fake=False, model=starter)
