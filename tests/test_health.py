"""The report of ``Connection.health``: each fact, through a life, without a byte on the wire."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from gevent.event import Event

import gnats
from gnats.testing import NatsServer, wait_until


def test_before_a_connect() -> None:
    health = gnats.Connection().health()
    assert health.status == "disconnected"
    assert (health.server, health.last_error, health.rtt) == (None, None, None)
    assert (health.buffered, health.buffered_bytes, health.outage) == (0, 0, 0.0)
    assert health.unhandled == 0
    assert health.is_live
    assert not health.is_ready
    with pytest.raises(dataclasses.FrozenInstanceError):
        health.outage = 1.0  # type: ignore[misc]


def test_with_a_link(shared_nats_server: NatsServer) -> None:
    before = time.time()
    with gnats.connect(shared_nats_server.url) as conn:
        health = conn.health()
        assert health.status == "connected"
        assert health.server == shared_nats_server.url
        assert before - 0.1 <= health.since <= time.time()
        assert health.rtt is not None
        assert 0 < health.rtt < 5.0
        assert (health.buffer_fill, health.outage) == (0.0, 0.0)
        assert health.is_live
        assert health.is_ready
        assert conn.rtt() == pytest.approx(conn.health().rtt, abs=0.1)


def test_it_costs_no_network(shared_nats_server: NatsServer) -> None:
    with gnats.connect(shared_nats_server.url) as conn:
        before = conn.stats
        for _ in range(1000):
            conn.health()
        assert conn.stats == before


def test_through_an_outage(nats_server: NatsServer) -> None:
    conn = gnats.connect(
        nats_server.url, max_reconnect=-1, reconnect_wait=0.05, reconnect_buf_size=1000
    )
    connected = conn.health().since
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    wait_until(lambda: conn.health().outage > 0.05, timeout=5.0)
    conn.publish("a", bytes(400))
    away = conn.health()
    assert (away.status, away.server, away.rtt) == ("reconnecting", None, None)
    assert away.is_live
    assert not away.is_ready
    assert away.since > connected - 1.0
    assert away.last_error is not None
    assert away.last_error.startswith(type(conn.last_error).__name__)
    assert (away.buffered, away.buffer_fill) == (1, away.buffered_bytes / 1000)
    nats_server.restart()
    conn.wait_for_status("connected", timeout=10.0)
    conn.flush()
    back = conn.health()
    assert back.is_ready
    assert (back.outage, back.buffered, back.buffer_fill) == (0.0, 0, 0.0)
    conn.close()
    closed = conn.health()
    assert not closed.is_live
    assert closed.buffer_fill == 1.0  # the next publish raises
    assert not closed.is_ready


def test_without_a_buffer_it_is_full_while_there_is_no_link(nats_server: NatsServer) -> None:
    conn = gnats.connect(
        nats_server.url, max_reconnect=-1, reconnect_wait=0.05, reconnect_buf_size=0
    )
    assert conn.health().buffer_fill == 0.0
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    assert conn.health().buffer_fill == 1.0
    conn.close()


def test_messages_that_wait_for_a_handler(shared_nats_server: NatsServer) -> None:
    going_on = Event()
    with gnats.connect(shared_nats_server.url) as conn:
        conn.subscribe("health.handled", cb=lambda msg: going_on.wait(10.0))
        read = conn.subscribe("health.handled")  # by nobody: it has no handler
        for _ in range(3):
            conn.publish("health.handled")
        conn.flush()
        wait_until(lambda: conn.health().unhandled == 3, timeout=5.0)
        assert read.pending_msgs == 3
        going_on.set()
        wait_until(lambda: conn.health().unhandled == 0, timeout=5.0)


def test_draining_is_live_and_not_ready(shared_nats_server: NatsServer) -> None:
    seen: list[gnats.Health] = []
    conn = gnats.connect(
        shared_nats_server.url, status_cb=lambda conn, old, new: seen.append(conn.health())
    )
    conn.subscribe("a.b", cb=lambda msg: seen.append(conn.health()))
    conn.publish("a.b")
    conn.drain()
    assert seen
    assert not seen[-1].is_ready


def test_no_secret_and_nothing_that_json_refuses(nats_server: NatsServer) -> None:
    host, port = nats_server.host, nats_server.port
    with gnats.connect(f"nats://joe:s3cr3t@{host}:{port}") as conn:
        facts = conn.health().as_dict()
        text = json.dumps(facts)
    assert "s3cr3t" not in text
    assert "joe" not in text
    assert facts["status"] == "connected"
    assert facts["live"] is True
    assert facts["ready"] is True
    names = {field.name for field in dataclasses.fields(gnats.Health)}
    assert set(facts) == names | {"live", "ready"}
