# SPDX-License-Identifier: Apache-2.0
"""A damaged model is refused at reload with a sentence, and the old one goes on serving."""
import hashlib
import os
import shutil
import tempfile
import threading

FILES = 10000
ASK = dict(max_tokens=12, temperature=0, ignore_eos=True)


def damage(rng, data):
    """Another file than @data, and how it became so."""
    kind = rng.choice(["cut", "flip", "block", "zero", "grow", "swap"])
    b = bytearray(data)
    if kind == "cut":
        del b[rng.randrange(len(b)):]
    elif kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            # Half of them where the structure is.
            i = rng.randrange(min(len(b), 4096)) if rng.random() < 0.5 else rng.randrange(len(b))
            b[i] ^= 1 << rng.randrange(8)
    elif kind == "grow":
        b += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 100)))
    else:
        n = rng.randrange(1, min(len(b), 2000))
        i, k = rng.randrange(len(b) - n + 1), rng.randrange(len(b) - n + 1)
        b[i:i + n] = {"block": rng.randbytes(n), "zero": bytes(n), "swap": b[k:k + n]}[kind]
    return kind, bytes(b)


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker")
    from dsdtest import Client, Daemon, pb

    n, kinds, refused, accepted, crashes = claim.some(FILES), {}, 0, 0, 0
    answers, wrong, stop = 0, 0, threading.Event()
    with tempfile.TemporaryDirectory() as top:
        path = os.path.join(top, "m")
        shutil.copytree(os.path.join(claim.root, "tests", "golden", "v2-lite-tiny"), path)
        parts = ["config.json", "model.safetensors"]
        whole = {f: open(os.path.join(path, f), "rb").read() for f in parts}
        whole["SHA256SUMS"] = "".join("%s  %s\n" % (hashlib.sha256(whole[f]).hexdigest(), f) for f in parts).encode()

        def write(name, data):
            with open(os.path.join(path, "new"), "wb") as f:
                f.write(data)
            os.rename(os.path.join(path, "new"), os.path.join(path, name))  # never in place: it is being read

        write("SHA256SUMS", whole["SHA256SUMS"])
        with Daemon("--set", "pool.size=8M", fake=False, model=path) as d:
            want = d.client().generate("hello", **ASK).ids
            pid = d.worker_pid()

            def keep_asking():
                nonlocal answers, wrong
                c = d.client(timeout=120)
                while not stop.is_set():
                    a = c.generate("hello", **ASK)
                    answers += 1
                    wrong += a.error is not None or a.ids != want

            asker = threading.Thread(target=keep_asking)
            asker.start()
            admin = Client(d.admin, timeout=120)
            for i in range(n):
                name = claim.rng.choice(["config.json", "model.safetensors", "model.safetensors", "SHA256SUMS"])
                kind, data = damage(claim.rng, whole[name])
                if data == whole[name]:
                    continue
                # A file that is cut short is refused by its structure alone, too.
                alone = kind == "cut" and name == "model.safetensors" and claim.rng.random() < 0.5
                if alone:
                    os.unlink(os.path.join(path, "SHA256SUMS"))
                write(name, data)
                admin.send(3, reload=pb.Reload())
                while (f := admin.recv()).WhichOneof("msg") == "progress":
                    pass
                kinds[kind] = kinds.get(kind, 0) + 1
                bad = f.WhichOneof("msg") != "error" or not f.error.message
                accepted += bad
                refused += not bad
                if bad:
                    claim.say("accepted: %s of %s" % (kind, name))
                write(name, whole[name])
                write("SHA256SUMS", whole["SHA256SUMS"])
            stop.set()
            asker.join()
            crashes = d.read_log().count("killed by signal")
            claim.check(d.worker_pid() == pid, "the old worker serves to the end")
            admin.send(3, reload=pb.Reload())
            while (f := admin.recv()).WhichOneof("msg") == "progress":
                pass
            claim.check(f.WhichOneof("msg") == "ack", "the whole model is accepted afterwards")
            claim.check(d.client().generate("hello", **ASK).ids == want, "and gives the same tokens")
    claim.check(accepted == 0, "%d of %d damaged models accepted" % (accepted, accepted + refused))
    claim.check(refused >= n * 0.9, "%d refused" % refused)
    claim.check(crashes == 0, "%d workers crashed" % crashes)
    claim.check(answers > 0 and wrong == 0, "%d of %d answers of the old model dropped or changed" % (wrong, answers))
    claim.figure("damaged models", "%d refused, %d accepted, %d crashes; %s" % (
        refused, accepted, crashes, ", ".join("%s %d" % x for x in sorted(kinds.items()))))
    claim.figure("answers of the old model meanwhile", "%d, %d dropped or changed" % (answers, wrong))
