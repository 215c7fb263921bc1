# SPDX-License-Identifier: Apache-2.0
"""A real dsd on a private socket, and a plain protocol client: protobuf over AF_UNIX, nothing of
libdsclient, so that the wire itself is what is tested."""
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

BUILD = os.environ["DSD_BUILD"]  # the meson build directory
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_generated = os.path.join(BUILD, "tests", "daemon", "proto")


def _load_proto():
    os.makedirs(_generated, exist_ok=True)
    if not os.path.exists(os.path.join(_generated, "dsd_pb2.py")) or os.path.getmtime(
            os.path.join(_generated, "dsd_pb2.py")) < os.path.getmtime(os.path.join(SOURCE, "proto/dsd.proto")):
        subprocess.run(["protoc", "--proto_path", os.path.join(SOURCE, "proto"), "--proto_path", "/usr/include",
                        "--python_out", _generated, "dsd.proto", "options.proto"], check=True,
                       cwd=os.path.join(SOURCE, "proto"))
    sys.path.insert(0, _generated)
    import dsd_pb2
    return dsd_pb2


pb = _load_proto()


class Closed(Exception):
    """The daemon ended the connection."""


class Client:
    def __init__(self, path, hello=True, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.buffer = b""
        if hello:
            self.send(1, hello=pb.Hello(protocol=1, client="test"))
            self.hello = self.recv().hello

    def send(self, id, **message):
        data = pb.ClientFrame(id=id, **message).SerializeToString()
        self.sock.sendall(struct.pack("<I", len(data)) + data)

    def send_raw(self, data):
        self.sock.sendall(data)

    def _read(self, n):
        while len(self.buffer) < n:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Closed()
            self.buffer += piece
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def recv(self):
        (n,) = struct.unpack("<I", self._read(4))
        frame = pb.ServerFrame()
        frame.ParseFromString(self._read(n))
        return frame

    def close(self):
        self.sock.close()

    # Whole dialogues -----------------------------------------------------------------------------

    def generate(self, text=None, ids=None, chat=None, id=7, model=None, resume=None, **sampling):
        """Send a Generate and read it to its end."""
        self.start(text, ids, chat, id, model, resume, **sampling)
        return self.finish(id)

    def start(self, text=None, ids=None, chat=None, id=7, model=None, resume=None, **sampling):
        g = pb.Generate(sampling=pb.Sampling(**sampling))
        if text is not None:
            g.text = text if isinstance(text, bytes) else text.encode()
        if ids is not None:
            g.ids.ids.extend(ids)
            g.ids.SetInParent()
        if chat is not None:
            for role, words in chat:
                g.chat.messages.add(role=role, text=words.encode())
        if model is not None:
            g.model = model
        if resume is not None:
            g.resume.CopyFrom(resume)
        self.send(id, generate=g)

    def finish(self, id=7):
        return Answer(self, id)

    def score(self, text=None, ids=None, logprobs=None, id=8):
        s = pb.Score()
        if text is not None:
            s.text = text.encode()
        if ids is not None:
            s.ids.ids.extend(ids)
        if logprobs is not None:
            s.logprobs = logprobs
        self.send(id, score=s)
        tokens = []
        while True:
            f = self.recv()
            if f.WhichOneof("msg") == "error":
                return f.error
            tokens += f.score.tokens
            if f.score.last:
                return tokens

    def stats(self):
        self.send(9, stats=pb.StatsRequest())
        return self.recv().stats

    def models(self):
        self.send(9, models=pb.ModelsRequest())
        return self.recv().models.models


class Answer:
    """All events of one Generate."""

    def __init__(self, client, id):
        self.started = self.error = self.usage = None
        self.choices = {}
        while self.error is None and self.usage is None:
            f = client.recv()
            assert f.id == id, f
            kind = f.WhichOneof("msg")
            if kind == "started":
                self.started = f.started
            elif kind == "delta":
                c = self.choices.setdefault(f.delta.choice, Choice())
                c.add(f.delta)
            elif kind == "done":
                self.usage = f.done.usage
            elif kind == "error":
                self.error = f.error
            else:
                raise AssertionError(f)

    def __getattr__(self, name):  # text, ids, finish, logprobs of the first choice
        if name.startswith("__") or name == "choices":
            raise AttributeError(name)
        return getattr(self.choices[0], name)


class Choice:
    def __init__(self):
        self.ids, self.text, self.finish, self.logprobs = [], b"", None, []

    def add(self, delta):
        self.ids += delta.ids
        self.text += delta.text
        self.logprobs += delta.logprobs
        if delta.HasField("finish"):
            self.finish = delta.finish


class Daemon:
    """dsd in the foreground in a directory of its own; gone with the `with` block."""

    def __init__(self, *options, fake=True, model=None, env=None, wait=True, state=None):
        self.dir = tempfile.mkdtemp(prefix="dsdtest-")
        self.socket = os.path.join(self.dir, "dsd.sock")
        self.admin = os.path.join(self.dir, "admin.sock")
        self.log = os.path.join(self.dir, "log")
        self.args = [os.path.join(BUILD, "daemon", "dsd"), "--config", "/dev/null",
                     "--socket", self.socket, "--state", state or os.path.join(self.dir, "state"),
                     "--set", "stop.seconds=0"]
        if "DSD_IO_BACKEND" in os.environ:
            self.args += ["--set", "io.backend=" + os.environ["DSD_IO_BACKEND"]]
        if fake:
            self.args.append("--fake-worker")
        if model:
            self.args += ["--model", model]
        self.args += options
        self.env = {**os.environ, "MEMORY_PRESSURE_WATCH": "/dev/null", **(env or {})}
        self.process = None
        self.start(wait)

    def start(self, wait=True):
        self.process = subprocess.Popen(self.args, stderr=open(self.log, "ab"), env=self.env,
                                        stdin=subprocess.DEVNULL)
        if wait:
            self.wait_ready()

    def wait_socket(self, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError("dsd left with %d: %s" % (self.process.returncode, self.read_log()))
            if os.path.exists(self.socket):
                try:
                    return self.client()
                except (ConnectionRefusedError, BrokenPipeError, FileNotFoundError, Closed):
                    pass
            time.sleep(0.01)
        raise AssertionError("no socket: " + self.read_log())

    def wait_ready(self, seconds=120):
        c = self.wait_socket()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            states = [m.state for m in c.models()]
            if pb.STATE_LOADING not in states:
                break
            time.sleep(0.02)
        c.close()
        assert pb.STATE_READY in states, self.read_log()

    def client(self, **kw):
        return Client(self.socket, **kw)

    def worker_pid(self):
        c = self.client()
        pid = c.stats().models[0].worker_pid
        c.close()
        return pid

    def read_log(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self.alive():
                self.stop()
        finally:
            if self.alive():
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.dir, ignore_errors=True)


class Managed(Daemon):
    """dsd under a manager that does what systemd does for it: it owns the sockets, hears READY and STATUS,
    and keeps descriptors over restarts. `kept` is the store: name to descriptor."""

    def __init__(self, *options, **kw):
        self.kept, self.status, self.n_ready, self.n_starts = {}, "", 0, 0
        self.said = []  # (when, lines)
        super().__init__(*options, **kw)

    def _listen(self, path, mode):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.bind(path)
        os.chmod(path, mode)
        s.listen(128)
        return s

    def start(self, wait=True):
        if self.n_starts == 0:
            i = self.args.index("--socket")
            del self.args[i:i + 2]
            self.sockets = [("dsd", self._listen(self.socket, 0o660)),
                            ("dsd-admin", self._listen(self.admin, 0o600))]
            self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.notify.bind(os.path.join(self.dir, "notify"))
            self.lock = threading.Lock()
            threading.Thread(target=self._listen_to_it, daemon=True).start()
        self.n_starts += 1
        with self.lock:
            passed = [(name, s.fileno()) for name, s in self.sockets] + list(self.kept.items())
            copies = [(name, os.dup(fd)) for name, fd in passed]
        env = dict(self.env, LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES=":".join(name for name, _ in copies),
                   NOTIFY_SOCKET=os.path.join(self.dir, "notify"), DSD_BOOT_ID="0123456789abcdef" * 2)

        def place():
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for _, fd in copies]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)
            os.closerange(3 + len(high), 1000)

        self.process = subprocess.Popen(["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"] + self.args, env=env,
                                        stderr=open(self.log, "ab"), stdin=subprocess.DEVNULL, close_fds=False,
                                        preexec_fn=place)
        for _, fd in copies:
            os.close(fd)
        if wait:
            self.wait_ready()

    def _listen_to_it(self):
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.notify, 4096, 4)
            except OSError:
                return
            said = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            with self.lock:
                self.said.append((time.monotonic(), data.decode().splitlines()))
                name = said.get("FDNAME")
                if "FDSTORE" in said:
                    self._forget(name)
                    self.kept[name] = fds.pop()
                elif "FDSTOREREMOVE" in said:
                    self._forget(name)
                self.status = said.get("STATUS", self.status)
                self.n_ready += said.get("READY") == "1"
            for fd in fds:
                os.close(fd)

    def _forget(self, name):
        if name in self.kept:
            os.close(self.kept.pop(name))

    def restart(self, kill=False):
        """As `systemctl restart`, or as after a crash; the sockets stay."""
        if kill:
            self.process.kill()
        else:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.start()

    def __exit__(self, *args):
        super().__exit__(*args)
        self.notify.shutdown(socket.SHUT_RDWR)
        self.notify.close()
        for _, s in self.sockets:
            s.close()
        for name in list(self.kept):
            self._forget(name)


class Supervised(Managed):
    """A manager that starts dsd again whenever it has ended, as Restart= does. `faults` is what the next starts
    are armed with (DSD_FAULT), each once; `kills` counts the ends by SIGKILL."""

    def __init__(self, *options, **kw):
        self.kills, self.faults, self.over = 0, [], False
        super().__init__(*options, **kw)
        self.supervisor = threading.Thread(target=self._supervise, daemon=True)
        self.supervisor.start()

    def _supervise(self):
        while True:
            code = self.process.wait()
            if self.over:
                return
            self.kills += code == -signal.SIGKILL
            self.env.pop("DSD_FAULT", None)
            if self.faults:
                self.env["DSD_FAULT"] = self.faults.pop(0)
            self.start(wait=False)

    def __exit__(self, *args):
        self.over = True
        self.process.send_signal(signal.SIGTERM)
        self.supervisor.join()
        super().__exit__(*args)


def stubborn(d, text, give_up=60, **sampling):
    """An answer's ids, by the protocol's documented fields, however often the daemon goes away meanwhile; the last
    part's usage; how often it went."""
    got, started, lost, end = [], None, 0, time.monotonic() + give_up
    while True:
        assert time.monotonic() < end, (len(got), lost, d.read_log()[-2000:])
        c = None
        try:
            c = d.client(timeout=20)
            resume = started and pb.Resume(generated_ids=got, seed=started.seed, model_digest=started.model_digest)
            c.start(text, resume=resume, **sampling)
            while True:
                f = c.recv()
                kind = f.WhichOneof("msg")
                if kind == "started":
                    started = started or f.started
                elif kind == "delta":
                    got += f.delta.ids
                elif kind == "done":
                    return got, f.done.usage, lost
                else:
                    assert kind == "error" and f.error.code == pb.CODE_RETRYABLE, f
                    raise Closed()
        except (Closed, ConnectionError, socket.timeout):
            lost += 1
            time.sleep(0.01)
        finally:
            if c:
                c.close()
