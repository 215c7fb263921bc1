# SPDX-License-Identifier: Apache-2.0
"""The administrative socket: a dispatch table of its own, and what it alone can do."""
import os
import socket
import time

import pytest

from dsdtest import Client, Daemon, pb


@pytest.fixture
def daemon():
    with Daemon(env={"DSD_FAKE_STEP_USEC": "500"}) as d:
        yield d


def ask(c, **message):
    c.send(3, **message)
    return c.recv()


def wait_pages(c, n):
    """Until n pages are in use: a step that is under way keeps those of a sequence that has ended."""
    for _ in range(100):
        model = c.stats().models[0]
        if model.pages_used == n:
            break
        time.sleep(0.02)
    assert model.pages_used == n
    return model


def test_the_admin_socket_is_its_owners_alone(daemon):
    assert os.stat(daemon.admin).st_mode & 0o777 == 0o600
    assert daemon.stop() == 0 and not os.path.exists(daemon.admin)


def test_each_socket_knows_its_own_verbs(daemon):
    user, admin = daemon.client(), Client(daemon.admin)
    for verb in (dict(evict=pb.Evict()), dict(publish=pb.Publish(name="x", text=b"y" * 200)),
                 dict(unpublish=pb.Unpublish(name="x"))):
        assert ask(user, **verb).error.code == pb.CODE_UNIMPLEMENTED
    assert ask(admin, generate=pb.Generate(text=b"x")).error.code == pb.CODE_UNIMPLEMENTED
    assert admin.stats().state == pb.STATE_READY


def test_a_published_prefix_is_found_and_changes_no_answer(daemon):
    c, admin = daemon.client(), Client(daemon.admin)
    prefix = "a system prompt that everybody of this host begins with. " * 4  # 228 bytes
    want = c.generate(prefix + "hello", max_tokens=20, temperature=0, ignore_eos=True)
    assert ask(admin, evict=pb.Evict()).ack.count > 0
    ack = ask(admin, publish=pb.Publish(name="system", text=prefix.encode()))
    assert ack.ack.count == 229
    a = c.generate(prefix + "hello", max_tokens=20, temperature=0, ignore_eos=True)
    # The fake worker looks at every row it reads: one of another domain than announced would end the request.
    assert a.error is None and a.usage.cached_tokens == 192 and a.ids == want.ids
    assert wait_pages(c, 3).pages_published == 3
    assert ask(admin, unpublish=pb.Unpublish(name="system")).ack.count == 1
    assert ask(admin, unpublish=pb.Unpublish(name="system")).error.code == pb.CODE_NOT_FOUND
    ask(admin, evict=pb.Evict())
    assert c.stats().models[0].pages_published == 0
    assert c.generate(prefix + "hello", max_tokens=2).usage.cached_tokens == 0


def test_the_brokers_processor_time_grows_with_its_work(daemon):
    c = daemon.client()
    before = c.stats().broker_cpu_usec
    c.generate("hello", max_tokens=200, ignore_eos=True)
    assert 0 < before < c.stats().broker_cpu_usec


def test_a_prefix_shorter_than_a_page_is_refused(daemon):
    e = ask(Client(daemon.admin), publish=pb.Publish(name="x", text=b"short")).error
    assert e.code == pb.CODE_INVALID_ARGUMENT and "at least a page of 64" in e.message


def test_requests_are_listed_and_cancelled_by_number(daemon):
    c, other, admin = daemon.client(), daemon.client(), Client(daemon.admin)
    c.start("hello", id=5, max_tokens=8000, ignore_eos=True, n=2)
    number = c.recv().started.request
    while c.recv().WhichOneof("msg") != "delta":
        pass
    (r,) = ask(admin, list=pb.ListRequest()).list.requests
    assert (r.request, r.uid, r.model, r.prompt_tokens) == (number, os.getuid(), "fake", 6)
    assert r.pages > 0 and r.completion_tokens > 0 and r.pid == os.getpid()
    assert [x.request for x in ask(other, list=pb.ListRequest()).list.requests] == [number]
    assert ask(other, cancel_request=pb.CancelRequest(request=number + 7)).error.code == pb.CODE_NOT_FOUND
    assert ask(admin, cancel_request=pb.CancelRequest(request=number)).WhichOneof("msg") == "ack"
    a = c.finish(5)
    assert a.error.code == pb.CODE_CANCELLED and "administrator" in a.error.message
    assert list(ask(admin, list=pb.ListRequest()).list.requests) == []
    wait_pages(c, 0)


def test_another_user_neither_sees_nor_cancels(daemon):
    """A process of another uid, let in by the group, is a stranger to this one's requests."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    c = daemon.client()
    c.start("hello", id=5, max_tokens=8000, ignore_eos=True)
    number = c.recv().started.request
    os.chmod(daemon.dir, 0o755)
    os.chmod(daemon.socket, 0o666)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65501, 65501, 65501)
            x = Client(daemon.socket)
            seen = list(ask(x, list=pb.ListRequest()).list.requests)
            cancel = ask(x, cancel_request=pb.CancelRequest(request=number)).error.code
            try:
                Client(daemon.admin)
                admin = "in"
            except PermissionError:
                admin = "refused"
            os.write(w, repr((seen, cancel, admin)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(r, 1000).decode() == repr(([], pb.CODE_NOT_FOUND, "refused"))
    assert c.recv().WhichOneof("msg") == "delta"
