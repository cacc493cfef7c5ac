"""A forked child leaves its parent's links alone and makes its own; the parent notices nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.os
import gevent.subprocess
import pytest
from gevent import monkey
from native import Native

import gnats
from gnats.errors import ConnectionClosedError, ForkedConnectionError
from gnats.testing import NatsServer, free_port, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
PATIENCE = 15.0  # seconds that a child may take

raw_fork = monkey.get_original("os", "fork")
# A patched one leaves it, on libuv, to the loop of its thread, which need not run.
raw_close = monkey.get_original("os", "close")


def by_multiprocessing(run: Callable[[], None]) -> None:
    multiprocessing.get_context("fork").Process(target=run).start()


def by_os_fork(run: Callable[[], None]) -> None:
    if raw_fork() == 0:
        run()


def by_gevent(run: Callable[[], None]) -> None:
    if gevent.os.fork() == 0:
        run()


FORKS = [by_os_fork, by_gevent, by_multiprocessing]


class Child:
    """What *work* returns, in a child; ``result`` raises what went wrong there."""

    def __init__(self, work: Callable[[], Any], fork: Callable[..., None] = by_os_fork) -> None:
        self._end, end = os.pipe()
        here = os.getpid()

        def run() -> None:
            try:
                with gevent.Timeout(PATIENCE):
                    said = {"result": work()}
            except BaseException:
                said = {"failure": traceback.format_exc()}
            os.write(end, json.dumps(said).encode())
            os._exit(0)

        try:
            fork(run)
        finally:
            if os.getpid() != here:
                os._exit(1)
        raw_close(end)

    def result(self) -> Any:
        data = b""
        while chunk := gevent.os.tp_read(self._end, 65536):
            data += chunk
        os.close(self._end)
        said = json.loads(data)
        assert "failure" not in said, said["failure"]
        return said["result"]


def books(conn: gnats.Connection) -> tuple[int, int, int]:
    stats = conn.stats
    assert stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered
    return stats.accepted, stats.connects, stats.disconnects


@pytest.fixture
def conn(nats_server: NatsServer) -> Iterator[gnats.Connection]:
    """The parent's, to a server of this test alone."""
    conn = gnats.connect(nats_server.url, **FAST)
    yield conn
    conn.close()


# -- each lives on -------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork.__name__)
def test_parent_and_child_live_on(nats_server: NatsServer, fork: Any) -> None:
    told: list[str] = []
    conn = gnats.connect(
        nats_server.url,
        **FAST,
        connected_cb=lambda _: told.append("connected"),
        disconnected_cb=lambda _: told.append("lost"),
        error_cb=lambda _, exc: told.append(repr(exc)),
    )
    got: list[bytes] = []
    handled = conn.subscribe("news", cb=lambda msg: got.append(msg.data))
    read = conn.subscribe("read")
    conn.subscribe("echo", queue="q", cb=lambda msg: msg.respond(msg.data))
    assert conn.request("echo", b"before", 5).data == b"before"
    wait_until(lambda: told == ["connected"])
    inbox, number = conn.new_inbox(), conn.client_id

    def work() -> Any:
        told.clear()
        conn.publish("news", b"from the child")
        conn.flush(5)
        conn.request("echo", b"child", 5)
        wait_until(lambda: sorted(got) == [b"from the child", b"from the parent"])
        assert read.next_msg(5).data == b"for both"
        assert books(conn) == (2 + handled_here(conn), 1, 0)
        assert told == ["connected"]
        ours = conn.new_inbox(), conn.client_id
        conn.drain(5)
        assert told == ["connected"]
        return ours

    child = Child(work, fork)
    wait_until(lambda: got == [b"from the child"])
    conn.publish("news", b"from the parent")
    conn.publish("read", b"for both")
    conn.flush(5)
    other_inbox, other_number = child.result()
    assert other_inbox.rsplit(".", 1)[1][:12] != inbox.rsplit(".", 1)[1][:12]
    assert other_number != number
    assert sorted(got) == [b"from the child", b"from the parent"]
    assert handled.delivered == 2
    assert read.next_msg(5).data == b"for both"
    assert told == ["connected"]
    assert conn.client_id == number
    assert conn.stats.disconnects == 0
    conn.close()


def test_a_fork_while_threads_publish(shared_nats_server: NatsServer) -> None:
    """The child is a process of one thread: locks that the others held must not hold it."""
    conn = gnats.connect(shared_nats_server.url)
    stopping: list[bool] = []

    def publish() -> int:
        number = 0
        while not stopping:
            conn.publish("threads.parent", b"%d" % number)
            number += 1
        return number

    def work() -> Any:
        conn.publish("threads.child")
        conn.flush(5)
        ours = books(conn)
        conn.close()
        return list(ours)

    threads = [Native(publish) for _ in range(2)]
    wait_until(lambda: conn.stats.accepted > 1000)
    for _ in range(5):
        assert Child(work).result() == [1, 1, 0]
    stopping.append(True)
    accepted = sum(thread.join() for thread in threads)
    conn.flush(5)
    assert conn.stats.sent == accepted
    conn.close()


def test_a_fork_in_another_thread(shared_nats_server: NatsServer) -> None:
    """There, that thread is the only one: the connection is its own."""
    conn = gnats.connect(shared_nats_server.url)
    sub = conn.subscribe("threads.fork")
    conn.flush(5)

    def work() -> Any:
        conn.publish("threads.fork", b"by the child")
        assert conn.flush(5)
        data = sub.next_msg(5).data.decode()
        conn.close()
        return data

    def fork_there() -> Child:
        return Child(work)

    assert Native(fork_there).join().result() == "by the child"
    assert sub.next_msg(5).data == b"by the child"
    conn.close()


def handled_here(conn: gnats.Connection) -> int:
    """Messages that the handlers of *conn* have published: both processes answer in the group."""
    return conn.stats.accepted - 2


def test_what_waits_is_the_parents(conn: gnats.Connection, nats_server: NatsServer) -> None:
    sub = conn.subscribe("once")
    seen = conn.subscribe("seen")
    conn.publish("seen", b"queued")
    conn.flush()
    nats_server.pause()
    for number in range(20):
        conn.publish("once", b"%d" % number + b"x" * 100_000)

    def work() -> Any:
        assert books(conn) == (0, 0, 0)
        assert (seen.pending_msgs, sub.pending_msgs) == (0, 0)
        conn.publish("once", b"child")
        conn.wait_for_status("connected", 10)
        conn.flush(10)
        return books(conn)

    child = Child(work)
    gevent.sleep(0.05)
    nats_server.resume()
    assert child.result() == [1, 1, 0]
    conn.flush(10)
    assert seen.next_msg(1).data == b"queued"
    numbers = [sub.next_msg(5).data.rstrip(b"x") for _ in range(21)]
    numbers.remove(b"child")
    assert numbers == [b"%d" % number for number in range(20)]
    assert books(conn) == (21, 1, 0)


def test_a_limit_goes_on_in_each(conn: gnats.Connection, nats_server: NatsServer) -> None:
    sub = conn.subscribe("few", max_msgs=5)
    other = gnats.connect(nats_server.url)

    def tell(count: int) -> None:
        for _ in range(count):
            other.publish("few", b"x")
        other.flush()

    tell(3)
    conn.flush()
    assert sub.next_msg(1).data == b"x"  # one read, two queued, which are the parent's

    def work() -> Any:
        conn.flush(5)
        tell(6)
        return len(list(sub))

    assert Child(work).result() == 4
    assert len(list(sub)) == 4
    other.close()


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork.__name__)
def test_without_reconnect_after_fork_every_call_says_so(
    nats_server: NatsServer, fork: Any
) -> None:
    conn = gnats.connect(nats_server.url, reconnect_after_fork=False)
    sub = conn.subscribe("s")
    handled = conn.subscribe("h", cb=print)

    def work() -> Any:
        calls: list[Callable[[], Any]] = [
            lambda: conn.publish("s"),
            lambda: conn.subscribe("s"),
            lambda: conn.request("s"),
            lambda: conn.request_many("s"),
            conn.flush,
            conn.rtt,
            conn.drain,
            conn.connect,
            conn.force_reconnect,
            lambda: conn.add_server("nats://h"),
            lambda: conn.set_servers("nats://h"),
            lambda: conn.wait_for_status("connected", 1),
            sub.next_msg,
            sub.unsubscribe,
            sub.drain,
            handled.unsubscribe,
        ]
        for call in calls:
            with pytest.raises(ForkedConnectionError):
                call()
        conn.close()
        return str(conn.status)

    assert Child(work, fork).result() == "closed"
    conn.publish("s", b"parent")
    assert sub.next_msg(5).data == b"parent"
    assert len(nats_server.connz()["connections"]) == 1
    conn.close()


@pytest.mark.parametrize("ending", ["close", "drain"])
def test_a_child_of_one_that_ends_has_an_end(conn: gnats.Connection, ending: str) -> None:
    inside = gevent.event.Event()
    go_on = gevent.event.Event()

    def handle(msg: gnats.Msg) -> None:
        inside.set()
        go_on.wait()

    conn.subscribe("s", cb=handle)
    conn.publish("s")
    assert inside.wait(5)
    leaving = gevent.spawn(getattr(conn, ending))
    wait_until(lambda: conn.is_draining or conn.is_closed)

    def work() -> Any:
        with pytest.raises(ConnectionClosedError):
            conn.publish("s")
        gevent.sleep(0.05)
        return str(conn.status)

    assert Child(work).result() == "closed"
    go_on.set()
    leaving.get(timeout=5)


def test_a_connection_that_is_not_made_yet_is_made_in_the_child(nats_server: NatsServer) -> None:
    conn = gnats.Connection()
    first = conn.new_inbox()[:-10]

    def work() -> Any:
        conn.connect(nats_server.url)
        conn.flush(5)
        conn.close()
        return conn.new_inbox()[:-10]

    assert Child(work).result() != first
    conn.connect(nats_server.url)
    conn.close()


# -- at every moment -----------------------------------------------------------------------------


def test_in_the_middle_of_a_handshake(nats_server: NatsServer) -> None:
    """Neither handshake has a byte of the other in it."""
    options = gnats.ConnectionOptions(servers=nats_server.url)
    conn = gnats.Connection(options, retry_on_failed_connect=True, **FAST)
    nats_server.pause()
    conn.connect()
    gevent.sleep(0.05)  # it waits for INFO, or is about to dial: both must be right

    def work() -> Any:
        conn.publish("s", b"child")
        conn.flush(10)
        return books(conn)

    child = Child(work)
    conn.publish("s", b"parent")
    gevent.sleep(0.05)
    nats_server.resume()
    conn.flush(10)
    assert child.result() == [1, 1, 0]
    assert books(conn) == (1, 1, 0)
    conn.close()


def test_while_the_server_is_away(conn: gnats.Connection, nats_server: NatsServer) -> None:
    sub = conn.subscribe("s")
    nats_server.kill()
    wait_until(lambda: conn.is_reconnecting)
    conn.publish("s", b"parent")

    def work() -> Any:
        conn.publish("s", b"child")
        conn.wait_for_status("connected", 10)
        conn.flush(10)
        return books(conn)

    child = Child(work)
    gevent.sleep(0.1)
    nats_server.restart()
    assert child.result() == [1, 1, 0]
    conn.flush(10)
    assert {sub.next_msg(5).data for _ in range(1)} <= {b"parent", b"child"}
    assert books(conn) == (1, 2, 1)


def test_inside_a_handler_and_a_callback(nats_server: NatsServer) -> None:
    children: list[Child] = []
    conn = gnats.connect(
        nats_server.url,
        **FAST,
        error_cb=lambda conn, _: children.append(Child(lambda: conn.flush(5))),
    )

    def handle(msg: gnats.Msg) -> None:
        children.append(Child(lambda: conn.flush(5)))
        raise ZeroDivisionError

    conn.subscribe("s", cb=handle)
    conn.publish("s")
    wait_until(lambda: len(children) == 2)
    assert [child.result() for child in children] == [True, True]
    conn.flush(5)
    assert conn.stats.disconnects == 0
    conn.close()


def test_calls_that_were_under_way_end_in_the_child(
    conn: gnats.Connection, nats_server: NatsServer
) -> None:
    sub = conn.subscribe("s")
    conn.subscribe("mute", cb=lambda msg: None)
    conn.flush()
    nats_server.pause()
    calls = {
        "request": gevent.spawn(conn.request, "mute", b"", 20),
        "many": gevent.spawn(lambda: list(conn.request_many("mute", timeout=20))),
        "flush": gevent.spawn(conn.flush, 20),
        "publish": gevent.spawn(lambda: [conn.publish("p", b"x" * 500_000) for _ in range(40)]),
    }
    reading = gevent.spawn(sub.next_msg, 20)
    gevent.sleep(0.1)
    assert not any(greenlet.dead for greenlet in calls.values())

    def work() -> Any:
        for greenlet in calls.values():
            with pytest.raises(ForkedConnectionError):
                greenlet.get(timeout=5)
        conn.publish("s", b"mine")
        return reading.get(timeout=10).data.decode()

    child = Child(work)
    gevent.sleep(0.2)
    assert not calls["flush"].dead
    nats_server.resume()
    assert child.result() == "mine"
    for name in ("flush", "publish"):
        calls[name].get(timeout=10)
    assert reading.get(timeout=5).data == b"mine"
    gevent.killall(list(calls.values()))
    assert conn.stats.disconnects == 0


@pytest.mark.parametrize("way", ["tls", "ws"])
def test_over_tls_and_websocket(way: str, authority: Any) -> None:
    port = free_port()
    config = (
        authority.config("127.0.0.1")
        if way == "tls"
        else f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}'
    )
    with NatsServer(config=config) as server:
        url = server.url if way == "tls" else f"ws://127.0.0.1:{port}"
        tls = authority.trusted if way == "tls" else None
        conn = gnats.connect(url, tls=tls, **FAST)
        sub = conn.subscribe("s")

        def work() -> Any:
            conn.publish("s", b"child")
            got = sub.next_msg(5).data.decode()
            conn.close()
            return got

        assert Child(work).result() == "child"
        assert sub.next_msg(5).data == b"child"
        conn.publish("s", b"parent")
        assert sub.next_msg(5).data == b"parent"
        assert conn.stats.disconnects == 0
        conn.close()


def test_the_childs_own_child(conn: gnats.Connection) -> None:
    def grandchild() -> Any:
        conn.flush(5)
        return os.getpid()

    def work() -> Any:
        before = os.getpid()
        conn.flush(5)
        after = Child(grandchild).result()
        conn.flush(5)
        assert conn.stats.disconnects == 0
        return before != after

    assert Child(work).result()
    conn.flush(5)
    assert conn.stats.disconnects == 0


@pytest.mark.parametrize("module", [subprocess, gevent.subprocess], ids=lambda m: m.__name__)
def test_a_program_that_is_run_changes_nothing(conn: gnats.Connection, module: Any) -> None:
    sub = conn.subscribe("s")
    for preexec in (None, lambda: None):
        conn.publish("s", b"x")
        code = "import os; print(len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc') else 0)"
        said = module.check_output([sys.executable, "-c", code], preexec_fn=preexec)
        assert int(said) <= 4
        assert sub.next_msg(5).data == b"x"
    conn.flush(5)
    assert (conn.stats.disconnects, conn.stats.connects) == (0, 1)


# -- again and again -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count", [30, pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_forks_under_load(nats_server: NatsServer, count: int, keep: bool) -> None:
    """The parent publishes on; each child publishes a little of its own. Nothing is lost, nothing
    comes twice, no frame is broken, and in the end the server knows one client."""
    conn = gnats.connect(nats_server.url, name="parent", replay_unconfirmed=keep, **FAST)
    reader = gnats.connect(nats_server.url, name="reader", reconnect_after_fork=False)
    parents: list[int] = []
    children: list[bytes] = []
    reader.subscribe("parent", cb=lambda msg: parents.append(int(msg.data)))
    reader.subscribe("child", cb=lambda msg: children.append(msg.data))
    reader.flush()
    published = [0]

    here = os.getpid()

    def publish() -> None:
        while os.getpid() == here:  # gevent lets it go on in a child, too
            for _ in range(20):
                conn.publish("parent", b"%d" % published[0])
                published[0] += 1
            gevent.sleep(0.001)

    flood = gevent.spawn(publish)

    def work(number: int) -> Any:
        for message in range(5):
            conn.publish("child", b"%d:%d" % (number, message))
        conn.flush(10)
        return books(conn)

    running: list[Child] = []
    for number in range(count):
        running.append(Child(lambda number=number: work(number)))  # type: ignore[misc]
        gevent.sleep(0.002)
        if len(running) == 10:
            assert running.pop(0).result() == [5, 1, 0]
    for child in running:
        assert child.result() == [5, 1, 0]
    flood.kill()
    conn.flush(10)
    reader.flush(10)
    wait_until(lambda: len(parents) == published[0] and len(children) == 5 * count, 20)
    assert parents == list(range(published[0]))
    assert sorted(children) == sorted(b"%d:%d" % (n, m) for n in range(count) for m in range(5))
    assert books(conn) == (published[0], 1, 0)
    assert conn.stats.uncertain == conn.stats.dropped == 0
    wait_until(lambda: nats_server.connz()["num_connections"] == 2, 10)
    conn.close()
    reader.close()
