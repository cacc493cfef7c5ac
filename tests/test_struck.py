"""What strikes from outside: killed greenlets, wrong arguments met late, callers that leave."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event as Gate

import gnats
from gnats import errors
from gnats.testing import FakeServer, NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.05, "reconnect_jitter": 0.0}


@pytest.mark.parametrize("queue", [None, 0, b"", b"q", []])
def test_a_queue_of_a_wrong_type_leaves_nothing_behind(
    shared_nats_server: NatsServer, queue: Any
) -> None:
    conn = gnats.connect(shared_nats_server.url, **FAST)
    with pytest.raises(errors.BadSubjectError):
        conn.subscribe("a", queue)
    with pytest.raises(errors.BadSubjectError):
        conn.publish("a", b"x", reply=queue)
    conn.force_reconnect()  # a restore must not meet what was refused
    wait_until(lambda: conn.stats.reconnects == 1)
    conn.flush()
    conn.close()


def test_the_credentials_given_last_count() -> None:
    with NatsServer(user="u", password="new") as server:
        address = f"{server.host}:{server.port}"
        conn = gnats.Connection()
        conn.add_server(f"nats://u:old@{address}")
        with pytest.raises(errors.NoServersError):
            conn.connect()
        conn.connect(f"nats://u:new@{address}")
        assert conn.is_connected
        conn.close()


def test_a_drain_of_a_subscription_that_is_struck_ends_it(fake_server: Any) -> None:
    server = fake_server(lambda client: (client.handshake(), client.stall()))
    conn = gnats.connect(server.url, **FAST)
    sub = conn.subscribe("a")
    waiting = gevent.spawn(lambda: list(sub))
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        sub.drain()
    waiting.join(5)
    assert waiting.dead
    assert sub.is_closed
    conn.close()


def test_replies_closed_by_another_wake_who_waits(shared_nats_server: NatsServer) -> None:
    conn = gnats.connect(shared_nats_server.url)
    conn.subscribe("nobody.answers", cb=lambda msg: None)
    replies = conn.request_many("nobody.answers", timeout=None)
    waiting = gevent.spawn(list, replies)
    gevent.sleep(0.01)
    replies.close()
    assert waiting.get(timeout=5) == []
    conn.close()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_killed_greenlet_of_a_link_is_a_lost_link(
    shared_nats_server: NatsServer, which: int
) -> None:
    conn = gnats.connect(shared_nats_server.url, **FAST)
    session = conn._reconnector.session
    assert session is not None
    session._greenlets[which].kill()
    wait_until(lambda: conn.stats.reconnects == 1)
    conn.flush()
    conn.close()


def test_a_killed_reconnector_closes_the_connection(shared_nats_server: NatsServer) -> None:
    told: list[str] = []
    conn = gnats.connect(shared_nats_server.url, closed_cb=lambda conn: told.append("closed"))
    waiting = gevent.spawn(conn.subscribe("a").next_msg, None)
    greenlet = conn._reconnector._greenlet
    assert greenlet is not None
    greenlet.kill()
    wait_until(lambda: conn.is_closed)
    waiting.join(5)
    assert isinstance(waiting.exception, errors.ConnectionClosedError)
    wait_until(lambda: told == ["closed"])
    conn.close()


def test_a_failing_callback_is_told_before_closed_cb(fake_server: Any) -> None:
    server: FakeServer = fake_server()
    told: list[str] = []

    def fail(conn: gnats.Connection) -> None:
        told.append("disconnected")
        raise ValueError("mine")

    conn = gnats.connect(
        server.url,
        allow_reconnect=False,
        disconnected_cb=fail,
        error_cb=lambda conn, exc: told.append(type(exc).__name__),
        closed_cb=lambda conn: told.append("closed"),
    )
    server.close_clients()
    wait_until(lambda: "closed" in told)
    assert told == ["UnexpectedEOF", "disconnected", "ValueError", "closed"]
    conn.close()


def test_add_server_ends_the_wait_for_all(fake_server: Any) -> None:
    first: FakeServer = fake_server()
    waits: list[int] = []
    conn = gnats.connect(
        first.url, custom_reconnect_delay_cb=lambda cycles: waits.append(cycles) or 30.0
    )
    first.refuse()
    first.close_clients()
    wait_until(lambda: waits == [1])  # the first cycle is over, the wait begins
    gone: FakeServer = fake_server()
    gone.refuse()
    first.listen()
    conn.add_server(gone.url)  # refuses too: the next cycle must begin at once
    wait_until(lambda: conn.stats.reconnects == 1)
    assert str(conn.connected_url) == first.url
    conn.close()


@pytest.mark.parametrize(
    "url",
    [
        "nats://bob:hunter,2@h:1",
        "nats://bob:hunter",
        "bob:hunter://@h",
        "nats://bob:hunter@h:x",
        "nats://bob:hunter@",
        "http://bob:hunter@h:1",
        "nats://bob:hunter@h:1/path",
    ],
)
def test_a_bad_url_shows_no_password(url: str) -> None:
    with pytest.raises(errors.BadURLError) as caught:
        gnats.Connection(servers=url)
    assert "hunter" not in str(caught.value)


def test_answers_that_nobody_takes_are_bounded(shared_nats_server: NatsServer) -> None:
    told: list[Exception] = []
    conn = gnats.connect(
        shared_nats_server.url, pending_msgs_limit=10, error_cb=lambda conn, exc: told.append(exc)
    )

    def flood(msg: gnats.Msg) -> None:
        for _ in range(100):
            msg.respond(b"x")

    conn.subscribe("flood.me", cb=flood)
    replies = conn.request_many("flood.me", timeout=5)
    wait_until(lambda: conn.stats.in_dropped == 90)
    assert len(list(zip(replies, range(10)))) == 10
    assert [type(exc) for exc in told] == [errors.SlowConsumerError]
    conn.close()


def test_headers_count_as_pending_bytes(shared_nats_server: NatsServer) -> None:
    conn = gnats.connect(shared_nats_server.url)
    sub = conn.subscribe("heavy", pending_bytes_limit=1000)
    for _ in range(3):
        conn.publish("heavy", b"", headers={"a": "x" * 600})
    conn.flush()
    assert (sub.pending_msgs, sub.dropped) == (1, 2)
    assert 600 < sub.pending_bytes < 1000
    sub.next_msg()
    assert sub.pending_bytes == 0
    conn.close()


def test_a_drain_in_a_hub_callback_drains(shared_nats_server: NatsServer) -> None:
    conn = gnats.connect(shared_nats_server.url)
    handled: list[bytes] = []
    conn.subscribe("d", cb=lambda msg: (gevent.sleep(0.01), handled.append(msg.data)))
    for n in range(5):
        conn.publish("d", b"%d" % n)
    conn.flush()
    gevent.get_hub().loop.run_callback(conn.drain)
    wait_until(lambda: conn.is_closed)
    assert handled == [b"0", b"1", b"2", b"3", b"4"]


def test_two_handlers_that_drain_do_not_wait_for_each_other(
    shared_nats_server: NatsServer,
) -> None:
    conn = gnats.connect(shared_nats_server.url)
    inside: list[int] = []
    done: list[int] = []
    gate = Gate()  # one that the other's drain has ended cannot be drained: both begin at once

    def handle(msg: gnats.Msg) -> None:
        inside.append(1)
        gate.wait()
        assert msg.sub is not None
        msg.sub.drain(20)  # type: ignore[attr-defined]
        done.append(1)

    conn.subscribe("d2", cb=handle, concurrency=2)
    conn.publish("d2")
    conn.publish("d2")
    wait_until(lambda: len(inside) == 2)
    gate.set()
    wait_until(lambda: len(done) == 2)
    conn.close()


def test_a_request_to_a_forbidden_subject_fails_at_once() -> None:
    config = """
    authorization { users = [ { user: u, password: p,
      permissions: { publish: { deny: ["no.>"] } } } ] }
    """
    with NatsServer(config=config) as server:
        conn = gnats.connect(f"nats://u:p@{server.host}:{server.port}")
        with pytest.raises(errors.PermissionsError) as caught:
            conn.request("no.way", b"", timeout=20)
        assert (caught.value.operation, caught.value.subject) == ("publish", "no.way")
        with pytest.raises(errors.PermissionsError):
            list(conn.request_many("no.way", b"", timeout=20))
        conn.close()


def test_leaving_waits_for_no_reader_that_is_gone(shared_nats_server: NatsServer) -> None:
    began = monotonic()
    with gnats.connect(shared_nats_server.url) as conn:
        never, mine, theirs = (conn.subscribe(name) for name in ("l.a", "l.b", "l.c"))
        for name in ("l.a", "l.b", "l.c"):
            conn.publish(name, b"1")
            conn.publish(name, b"2")
        conn.flush()
        mine.next_msg()

        def slow_reader() -> None:
            for _ in theirs:
                gevent.sleep(0.1)

        gevent.spawn(slow_reader)
        gevent.sleep(0)
    assert monotonic() - began < 10
    assert conn.is_closed
    assert (never.delivered, mine.delivered, theirs.delivered) == (0, 1, 2)
    assert (never.dropped, mine.dropped, theirs.dropped) == (2, 1, 0)
    assert conn.stats.in_dropped == 3
