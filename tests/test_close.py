"""Closing: bounded whatever the server does, wakes everyone, leaves nothing, closed_cb last."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from finish import check_books
from gevent.event import Event

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import FakeClient, FakeServer, NatsServer, free_port, hold, wait_until

_ids = NUID()
FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
LINUX = sys.platform.startswith("linux")
SLACK = 0.9


def assert_closed(conn: gnats.Connection) -> None:
    assert conn.status == "closed"
    assert conn.is_closed
    assert not any([conn.is_connected, conn.is_reconnecting, conn.is_draining])
    assert conn.connected_url is None
    assert conn.stats.buffered == conn.stats.buffered_bytes == 0
    check_books(conn)


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(("socket:", "pipe:", "anon_inode:")):
                found.add(target)
    return found


@pytest.fixture
def subject() -> str:
    return f"close.{_ids.next()}"


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def conn(shared_nats_server: NatsServer, told: list[Any]) -> Iterator[gnats.Connection]:
    opened = gnats.connect(
        shared_nats_server.url,
        error_cb=lambda _, exc: told.append(exc),
        closed_cb=lambda _: told.append("closed"),
    )
    yield opened
    opened.close()
    check_books(opened)


def is_known(server: NatsServer, cid: int | None) -> bool:
    return cid in [client["cid"] for client in server.connz()["connections"]]


# -- it closes ------------------------------------------------------------------------------------


def test_close(conn: gnats.Connection, told: list[Any], shared_nats_server: NatsServer) -> None:
    cid = conn.client_id
    assert is_known(shared_nats_server, cid)
    began = monotonic()
    conn.close()
    assert monotonic() - began < SLACK
    assert_closed(conn)
    assert told == ["closed"]  # close() waits for the callbacks
    wait_until(lambda: not is_known(shared_nats_server, cid))


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_what_was_published_before_arrives(
    conn: gnats.Connection, shared_nats_server: NatsServer, subject: str, size: int
) -> None:
    other = gnats.connect(shared_nats_server.url)
    sub = other.subscribe(subject)
    other.flush(5)
    for number in range(50):
        conn.publish(subject, b"%d " % number + b"x" * size)
    conn.close()
    assert_closed(conn)
    assert conn.stats.sent == 50
    assert [int(sub.next_msg(5).data.split()[0]) for _ in range(50)] == list(range(50))
    other.close()


def test_a_paused_server_does_not_hold_it(nats_server: NatsServer, told: list[Any]) -> None:
    conn = gnats.connect(nats_server.url, closed_cb=told.append)
    nats_server.pause()
    conn.publish("a", b"x")
    began = monotonic()
    conn.close()
    assert monotonic() - began < 1 + SLACK
    assert_closed(conn)
    assert told == [conn]
    assert conn.stats.uncertain + conn.stats.sent == 1


def test_a_server_that_takes_nothing_does_not_hold_it(told: list[Any]) -> None:
    def handler(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    with FakeServer(handler, rcvbuf=4096) as server:
        conn = gnats.connect(server.url, publish_timeout=0.05, closed_cb=told.append)
        with pytest.raises(errors.OutboundBufferLimitError):
            for _ in range(1000):
                conn.publish("a", b"x" * 100_000)
        assert conn.stats.buffered > 0
        began = monotonic()
        conn.close()
        assert monotonic() - began < 1 + SLACK
        assert_closed(conn)
        assert conn.stats.sent == 0
        assert conn.stats.dropped > 0
        assert told == [conn]


def test_a_dead_server_does_not_hold_it(nats_server: NatsServer, told: list[Any]) -> None:
    conn = gnats.connect(
        nats_server.url, max_reconnect=-1, reconnect_wait=100, closed_cb=told.append
    )
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    conn.publish("a", b"x")
    wait_until(lambda: conn.stats.attempts == 2)
    began = monotonic()
    conn.close()
    assert monotonic() - began < SLACK
    assert_closed(conn)
    assert conn.stats.dropped == 1
    assert told == [conn]


def test_an_attempt_under_way_does_not_hold_it(fake_server: Any) -> None:
    server = fake_server(hold)
    conn = gnats.connect(server.url, retry_on_failed_connect=True, connect_timeout=60)
    server.wait_for_client()
    began = monotonic()
    conn.close()
    assert monotonic() - began < SLACK
    assert_closed(conn)


def test_a_stubborn_delay_callback_does_not_hold_it() -> None:
    conn = gnats.connect(
        f"127.0.0.1:{free_port()}",
        retry_on_failed_connect=True,
        custom_reconnect_delay_cb=lambda cycles: gevent.sleep(60),
    )
    wait_until(lambda: conn.stats.attempts == 1)
    began = monotonic()
    conn.close()
    assert monotonic() - began < SLACK
    assert_closed(conn)


def test_a_handler_that_does_not_end_holds_it_two_seconds(
    conn: gnats.Connection, told: list[Any], subject: str
) -> None:
    release = Event()
    sub = conn.subscribe(subject, cb=lambda msg: release.wait(20))
    for _ in range(3):
        conn.publish(subject, b"x")
    assert conn.flush(5)
    wait_until(lambda: sub.delivered == 1)
    began = monotonic()
    conn.close()
    assert 1.5 < monotonic() - began < 2 + SLACK
    assert_closed(conn)
    assert told == ["closed"]
    release.set()
    wait_until(lambda: sub.unhandled == 0)
    assert (sub.delivered, sub.dropped) == (1, 2)


def test_a_handler_that_ends_is_waited_for(
    conn: gnats.Connection, told: list[Any], subject: str
) -> None:
    done: list[bytes] = []

    def handler(msg: gnats.Msg) -> None:
        gevent.sleep(0.1)
        done.append(msg.data)

    sub = conn.subscribe(subject, cb=handler)
    conn.publish(subject, b"x")
    wait_until(lambda: sub.delivered == 1)
    conn.close()
    assert done == [b"x"]


def test_what_an_ended_subscription_had_queued_is_given_up(
    conn: gnats.Connection, told: list[Any], subject: str
) -> None:
    """close() ends it all, a queue behind an auto-unsubscribe too."""
    handled: list[bytes] = []

    def handler(msg: gnats.Msg) -> None:
        gevent.sleep(0.05)
        handled.append(msg.data)

    spent = conn.subscribe(subject, cb=handler, max_msgs=100)
    unread = conn.subscribe(subject, max_msgs=100)
    for _ in range(100):
        conn.publish(subject, b"x")
    assert conn.flush(5)
    began = monotonic()
    conn.close()
    assert monotonic() - began < SLACK
    assert len(handled) <= 3
    assert spent.is_closed
    assert spent.pending_msgs == unread.pending_msgs == 0
    assert unread.is_closed
    with pytest.raises(errors.ConnectionClosedError):
        unread.next_msg(0)


# -- it wakes everyone ----------------------------------------------------------------------------


def test_everyone_who_waits_is_woken(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url)
    sub = conn.subscribe(subject)
    silent = conn.subscribe(f"{subject}.silent", cb=lambda msg: None)
    assert conn.flush(5)
    waiting: dict[str, Callable[[], Any]] = {
        "next_msg": lambda: sub.next_msg(None),
        "next_msg with time": lambda: sub.next_msg(60),
        "request": lambda: conn.request(silent.subject, b"x", 60),
        "request without time": lambda: conn.request(silent.subject, b"x", None),
        "request_many": lambda: list(conn.request_many(silent.subject, b"x", 60)),
        "wait_for_status": lambda: conn.wait_for_status("reconnecting", 60),
        "wait_for_status without time": lambda: conn.wait_for_status("reconnecting"),
    }
    greenlets = {name: gevent.spawn(call) for name, call in waiting.items()}
    loop = gevent.spawn(list, sub)
    wait_until(lambda: silent.delivered == 3)
    nats_server.pause()
    for name in ("flush", "rtt"):
        greenlets[name] = gevent.spawn(getattr(conn, name), 60)
        greenlets[f"{name} without time"] = gevent.spawn(getattr(conn, name), None)
    gevent.sleep(0.01)
    assert not any(greenlet.ready() for greenlet in greenlets.values())
    conn.close()
    for name, greenlet in greenlets.items():
        with pytest.raises(errors.ConnectionClosedError):
            raise AssertionError(f"{name} returned {greenlet.get(timeout=2)!r}")
    assert loop.get(timeout=2) == []
    assert_closed(conn)


def test_those_who_wait_for_room_are_woken() -> None:
    def handler(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    with FakeServer(handler, rcvbuf=4096) as server:
        conn = gnats.connect(server.url)
        accepted = []

        def flood() -> None:
            while True:
                conn.publish("a", b"x" * 500_000)
                accepted.append(1)

        flooding = [gevent.spawn(flood) for _ in range(3)]
        wait_until(lambda: len(conn._outbox._waiting) == 3)
        conn.close()
        for greenlet in flooding:
            with pytest.raises(errors.ConnectionClosedError):
                greenlet.get(timeout=2)
        assert conn.stats.accepted == len(accepted)
        assert_closed(conn)


def test_waiters_during_an_outage_are_woken(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url, max_reconnect=-1, reconnect_wait=100)
    sub = conn.subscribe(subject)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    calls: list[Callable[[], Any]] = [
        lambda: sub.next_msg(None),
        lambda: conn.request(subject, b"x", None),
        lambda: conn.flush(None),
        lambda: conn.wait_for_status("connected"),
    ]
    greenlets = [gevent.spawn(call) for call in calls]
    gevent.sleep(0.01)
    conn.close()
    for greenlet in greenlets:
        with pytest.raises(errors.ConnectionClosedError):
            greenlet.get(timeout=2)
    assert_closed(conn)


def test_giving_up_wakes_everyone_too(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url, allow_reconnect=False)
    sub = conn.subscribe(subject)
    assert conn.flush(5)
    greenlets = [gevent.spawn(sub.next_msg, None), gevent.spawn(conn.wait_for_status, "connecting")]
    gevent.sleep(0)
    nats_server.kill()
    for greenlet in greenlets:
        with pytest.raises(errors.ConnectionClosedError):
            greenlet.get(timeout=5)
    assert_closed(conn)


def test_a_handler_woken_by_it_is_told_of_before_closed_cb(
    conn: gnats.Connection, told: list[Any], subject: str
) -> None:
    """Its failure is news of the connection's life, and closed_cb is the last of that."""
    asked = []

    def handler(msg: gnats.Msg) -> None:
        asked.append(1)
        conn.request(f"{subject}.silent", b"x", None)

    conn.subscribe(f"{subject}.silent", cb=lambda msg: None)
    conn.subscribe(subject, cb=handler)
    conn.publish(subject, b"x")
    wait_until(lambda: asked)
    gevent.sleep(0.01)
    conn.close()
    wait_until(lambda: "closed" in told)
    assert told[-1] == "closed"
    assert told.count("closed") == 1
    gevent.sleep(0.02)
    assert told[-1] == "closed"


# -- from wherever it is called -------------------------------------------------------------------


def test_twice(conn: gnats.Connection, told: list[Any]) -> None:
    conn.close()
    conn.close()
    assert told == ["closed"]
    assert_closed(conn)


def test_by_many_at_once(conn: gnats.Connection, told: list[Any]) -> None:
    closers = [gevent.spawn(conn.close) for _ in range(20)]
    for closer in closers:
        closer.get(timeout=5)
        assert conn.is_closed
    wait_until(lambda: told == ["closed"])
    assert_closed(conn)


@pytest.mark.parametrize("name", ["connected_cb", "status_cb", "error_cb", "closed_cb"])
def test_from_a_callback(shared_nats_server: NatsServer, name: str, subject: str) -> None:
    told: list[str] = []

    def close(conn: gnats.Connection, *args: Any) -> None:
        if name == "status_cb" and args[1] != "connected":
            return
        conn.close()
        assert conn.is_closed
        told.append(name)

    callbacks: dict[str, Any] = {name: close}
    if name != "closed_cb":
        callbacks["closed_cb"] = lambda _: told.append("closed")
    conn = gnats.Connection(**callbacks)
    with contextlib.suppress(errors.ConnectionClosedError):
        conn.connect(shared_nats_server.url)
        if name == "error_cb":
            conn.subscribe(subject, cb=lambda msg: 1 / 0)
            conn.publish(subject, b"x")
        if name == "closed_cb":
            conn.close()
        assert conn.wait_for_status("closed", 5)
    wait_until(lambda: len(told) == len(callbacks))
    assert told == ([name, "closed"] if name != "closed_cb" else [name])
    assert_closed(conn)


@pytest.mark.parametrize("name", ["disconnected_cb", "reconnected_cb"])
def test_from_a_callback_of_a_loss(shared_nats_server: NatsServer, name: str) -> None:
    told: list[str] = []

    def close(conn: gnats.Connection) -> None:
        conn.close()
        assert conn.is_closed
        told.append(name)

    callbacks: dict[str, Any] = {name: close, "closed_cb": lambda _: told.append("closed")}
    conn = gnats.connect(shared_nats_server.url, **FAST, **callbacks)
    conn.force_reconnect()
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: told == [name, "closed"])
    assert_closed(conn)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_from_a_handler(
    conn: gnats.Connection, told: list[Any], subject: str, concurrency: int
) -> None:
    handled: list[bytes] = []

    def handler(msg: gnats.Msg) -> None:
        conn.close()
        assert conn.is_closed
        handled.append(msg.data)

    sub = conn.subscribe(subject, cb=handler, concurrency=concurrency)
    for number in range(10):
        conn.publish(subject, b"%d" % number)
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: sub.unhandled == 0)
    wait_until(lambda: told == ["closed"])
    assert 1 <= len(handled) <= concurrency
    assert sub.delivered + sub.dropped == sub.received
    assert_closed(conn)


def test_from_a_hub_callback(conn: gnats.Connection, told: list[Any], subject: str) -> None:
    sub = conn.subscribe(subject)
    reader = gevent.spawn(sub.next_msg, None)
    gevent.sleep(0)
    gevent.get_hub().loop.run_callback(conn.close)
    with pytest.raises(errors.ConnectionClosedError):
        reader.get(timeout=5)
    wait_until(lambda: told == ["closed"])
    assert_closed(conn)


def test_drain_from_a_hub_callback(conn: gnats.Connection, told: list[Any]) -> None:
    gevent.get_hub().loop.run_callback(conn.drain)
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: told == ["closed"])


def test_before_it_was_ever_connected() -> None:
    told: list[Any] = []
    conn = gnats.Connection(closed_cb=told.append)
    conn.close()
    conn.close()
    assert_closed(conn)
    wait_until(lambda: told == [conn])
    with pytest.raises(errors.ConnectionClosedError):
        conn.connect("127.0.0.1:1")


def test_from_a_hub_callback_before_it_was_ever_connected() -> None:
    told: list[Any] = []
    conn = gnats.Connection(closed_cb=told.append)
    gevent.get_hub().loop.run_callback(conn.close)
    wait_until(lambda: told == [conn])
    assert_closed(conn)


def test_after_a_connect_that_failed() -> None:
    told: list[Any] = []
    conn = gnats.Connection(closed_cb=told.append)
    with pytest.raises(errors.NoServersError):
        conn.connect(f"127.0.0.1:{free_port()}")
    conn.close()
    assert_closed(conn)
    wait_until(lambda: told == [conn])


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_close_that_is_struck_goes_on(nats_server: NatsServer, told: list[Any], how: str) -> None:
    conn = gnats.connect(nats_server.url, closed_cb=told.append)
    nats_server.pause()
    conn.publish("a", b"x")
    if how == "kill":
        closer = gevent.spawn(conn.close)
        gevent.sleep(0.01)
        closer.kill(timeout=5)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            conn.close()
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: told == [conn])
    assert_closed(conn)


# -- after it -------------------------------------------------------------------------------------


def test_every_method_raises_after_it(
    conn: gnats.Connection, told: list[Any], subject: str
) -> None:
    sub, limited = conn.subscribe(subject), conn.subscribe(subject)
    handled = conn.subscribe(subject, cb=lambda msg: None)
    conn.publish(subject, b"x", reply="r")
    msg = sub.next_msg(5)
    before = conn.stats.accepted
    conn.close()
    calls: dict[str, Callable[[], Any]] = {
        "connect": conn.connect,
        "publish": lambda: conn.publish(subject, b"x"),
        "publish with headers": lambda: conn.publish(subject, b"x", headers={"a": "b"}),
        "subscribe": lambda: conn.subscribe(subject),
        "request": lambda: conn.request(subject, b"x"),
        "request_many": lambda: list(conn.request_many(subject, b"x")),
        "flush": conn.flush,
        "rtt": conn.rtt,
        "force_reconnect": conn.force_reconnect,
        "wait_for_status": lambda: conn.wait_for_status("connected"),
        "next_msg": lambda: sub.next_msg(None),
        "next_msg at once": lambda: sub.next_msg(0),
        "unsubscribe": sub.unsubscribe,
        "unsubscribe later": lambda: limited.unsubscribe(5),
        "unsubscribe handler": handled.unsubscribe,
        "sub.drain": sub.drain,
        "respond": lambda: msg.respond(b"x"),
        "add_server": lambda: conn.add_server("nats://127.0.0.1:4222"),
        "set_servers": lambda: conn.set_servers("nats://127.0.0.1:4222"),
    }
    for name, call in calls.items():
        with pytest.raises(errors.ConnectionClosedError):
            raise AssertionError(f"{name} returned {call()!r}")
    assert list(sub) == []
    assert conn.stats.accepted == before
    # Looking is no offence.
    assert conn.server_info is not None
    assert conn.new_inbox().startswith("_INBOX.")
    assert "closed" in repr(conn)
    assert "closed" in repr(sub)
    conn.drain()
    conn.close()


@pytest.mark.skipif(not LINUX, reason="counts descriptors in /proc")
def test_nothing_is_left(shared_nats_server: NatsServer, subject: str) -> None:
    gnats.connect(shared_nats_server.url).close()  # whatever a first use makes for good
    before = descriptors()
    for number in range(20):
        conn = gnats.connect(shared_nats_server.url)
        sub = conn.subscribe(subject, cb=lambda msg: msg.respond(b"x"))
        reader = gevent.spawn(list, conn.subscribe(subject))
        assert conn.request(subject, b"x", 5).data == b"x"
        if number % 3 == 0:
            conn.force_reconnect()
        if number % 2:
            conn.close()
        else:
            conn.drain(5)
        assert sub.is_closed
        reader.get(timeout=5)
    wait_until(lambda: descriptors() <= before)
