"""What strikes from outside: killed greenlets, wrong arguments met late, callers that leave."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

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
    conn = gnats.connect(first.url, reconnect_wait=30.0)
    first.refuse()
    first.close_clients()
    wait_until(lambda: conn.stats.attempts == 2)  # the first cycle is over, the wait begins
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
