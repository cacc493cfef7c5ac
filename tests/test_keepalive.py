"""A server that says nothing any more, or takes nothing any more, is found out in bounded time.

Real servers are stopped with SIGSTOP: their sockets stay open and their kernel goes on taking
bytes. The fake one can also answer late, or keep talking without answering.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import gevent.event
import gevent.monkey
import pytest
from gevent import get_hub

import gnats
from gnats.errors import StaleConnectionError, TransportError, WriteStalledError
from gnats.reader import MOST_PONGS
from gnats.testing import FakeClient, NatsServer, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}

# A busy machine may be late by this much (seconds).
SLACK = 1.5

block_loop = gevent.monkey.get_original("time", "sleep")


@pytest.fixture
def two_servers() -> Iterator[list[NatsServer]]:
    with NatsServer() as one, NatsServer() as other:
        yield [one, other]


# -- silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "out"), [(0.1, 1), (0.1, 2), (0.15, 3)])
def test_a_stopped_server_is_left_in_time(
    two_servers: list[NatsServer], interval: float, out: int
) -> None:
    """ping_interval × (max_pings_out + 1) after its last sign, and on to the next server."""
    told: list[Exception] = []
    conn = gnats.connect(
        [server.url for server in two_servers],
        ping_interval=interval,
        max_pings_out=out,
        error_cb=lambda _, exc: told.append(exc),
        **FAST,
    )
    sub = conn.subscribe("x")
    conn.flush()
    began = monotonic()
    two_servers[0].pause()
    wait_until(lambda: conn.stats.disconnects == 1, 10)
    took = monotonic() - began
    # The last sign may be nearly an interval old when the server stops.
    assert interval * out * 0.95 <= took < interval * (out + 1) + SLACK
    conn.wait_for_status("connected", 5)
    assert monotonic() - began < interval * (out + 1) + SLACK
    assert str(conn.connected_url) == two_servers[1].url
    assert isinstance(told[0], StaleConnectionError)
    assert told[0].outstanding == out
    conn.publish("x", b"1")
    assert sub.next_msg(5).data == b"1"
    conn.close()


def test_a_server_that_was_stopped_and_goes_on_is_taken_back(nats_server: NatsServer) -> None:
    conn = gnats.connect(
        nats_server.url, ping_interval=0.1, max_pings_out=2, connect_timeout=0.3, **FAST
    )
    sub = conn.subscribe("x")
    conn.flush()
    nats_server.pause()
    conn.wait_for_status("reconnecting", 5)
    conn.publish("x", b"during")
    # The kernel still takes our connections; only the deadline of the attempt ends them.
    attempts = conn.stats.attempts
    wait_until(lambda: conn.stats.attempts > attempts + 1)
    nats_server.resume()
    began = monotonic()
    conn.wait_for_status("connected", 5)
    assert monotonic() - began < SLACK
    assert sub.next_msg(5).data == b"during"
    conn.flush()
    assert sub.pending_msgs == 0
    conn.close()


def test_a_short_stop_loses_nothing(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, ping_interval=0.3, max_pings_out=2, **FAST)
    sub = conn.subscribe("x")
    conn.flush()
    nats_server.pause()
    for number in range(100):
        conn.publish("x", b"%d" % number)
    gevent.sleep(0.35)
    nats_server.resume()
    assert [sub.next_msg(5).data for _ in range(100)] == [b"%d" % n for n in range(100)]
    assert conn.stats.disconnects == 0
    conn.close()


def test_an_idle_healthy_link_lives_on(nats_server: NatsServer) -> None:
    # Four intervals: a busy machine may not run the server for two hundredths of a second.
    conn = gnats.connect(nats_server.url, ping_interval=0.05, max_pings_out=4, **FAST)
    wait_until(lambda: conn.stats.pings_sent > 30)
    assert conn.stats.disconnects == 0
    conn.close()


def test_a_server_that_talks_and_never_answers_is_stale_in_the_end(fake_server: Any) -> None:
    """Bytes may excuse a tick that comes late; they are no PONG."""

    def talkative(client: FakeClient) -> None:
        client.handshake()
        while True:
            client.send(b"+OK\r\n")
            gevent.sleep(0.15)

    server = fake_server([talkative, serve])
    told: list[Exception] = []
    conn = gnats.connect(
        server.url,
        ping_interval=0.1,
        max_pings_out=2,
        error_cb=lambda _, exc: told.append(exc),
        **FAST,
    )
    wait_until(lambda: conn.stats.reconnects == 1, 10)
    assert isinstance(told[0], StaleConnectionError)
    conn.close()


def test_late_pongs_within_the_bound_are_borne(fake_server: Any) -> None:
    def late(client: FakeClient) -> None:
        client.handshake()
        while True:
            if client.read_frame().op == "PING":
                gevent.sleep(0.12)
                client.send(b"PONG\r\n")

    server = fake_server(late)
    conn = gnats.connect(server.url, ping_interval=0.1, max_pings_out=2, **FAST)
    wait_until(lambda: conn.stats.pings_sent > 8, 10)
    assert conn.stats.disconnects == 0
    conn.close()


@pytest.mark.parametrize("turns", [3])
def test_a_blocked_process_blames_itself_first(nats_server: NatsServer, turns: int) -> None:
    """Nobody read the PONG that lies in our own kernel: the late tick looks before it counts."""
    conn = gnats.connect(nats_server.url, ping_interval=0.2, max_pings_out=1, **FAST)
    for _ in range(turns):
        before = conn.stats.pings_sent
        wait_until(lambda before=before: conn.stats.pings_sent > before)
        block_loop(0.5)  # as a C extension, or a request handler that computes, does
        gevent.sleep(0)
    conn.flush()
    assert conn.stats.disconnects == 0
    conn.close()


def test_a_block_between_a_ping_and_its_write(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PING left late, so its answer cannot have come: a late tick counts no missed PONG."""
    conn = gnats.connect(nats_server.url, ping_interval=0.2, max_pings_out=1, **FAST)
    session = conn._reconnector.session
    assert session is not None
    ping = session.pings.ping
    blocks = [0]

    def ping_and_block(*args: Any) -> None:
        if blocks[0] < 3:
            blocks[0] += 1
            get_hub().loop.run_callback(block_loop, 0.5)  # ahead of the flusher's turn
        ping(*args)

    monkeypatch.setattr(session.pings, "ping", ping_and_block)
    wait_until(lambda: conn.stats.pings_sent >= 5 or conn.stats.disconnects, 20)
    assert blocks == [3]
    assert conn.stats.disconnects == 0
    conn.close()


def test_a_flood_does_not_make_a_link_stale(nats_server: NatsServer) -> None:
    """PINGs wait their turn behind what is pending, PONGs behind what the server sends."""
    conn = gnats.connect(nats_server.url, ping_interval=0.1, max_pings_out=5, **FAST)
    got = [0]

    def count(msg: gnats.Msg) -> None:
        got[0] += 1

    conn.subscribe("flood", cb=count)
    total = 30_000
    for number in range(total):
        conn.publish("flood", b"x" * 100)
        if number % 500 == 0:
            gevent.sleep(0)
    wait_until(lambda: got[0] == total, 20)
    assert conn.stats.disconnects == 0
    conn.close()


def test_our_pong_answers_the_servers_ping() -> None:
    """A real server puts out a client that does not answer: ours stays."""
    with NatsServer(config='ping_interval: "100ms"\nping_max: 1') as server:
        conn = gnats.connect(server.url, **FAST)
        gevent.sleep(0.8)
        conn.flush()
        assert conn.stats.disconnects == 0
        assert (
            server.varz()["stale_connections"] == 0 if "stale_connections" in server.varz() else 1
        )
        conn.close()


# -- a send that makes no progress -------------------------------------------------------------


def publish_forever(conn: gnats.Connection) -> None:
    number = 0
    while True:
        conn.publish("w", b"%d:" % number + b"x" * 50_000)
        number += 1
        gevent.sleep(0)


def test_a_stopped_server_that_takes_nothing_is_left(two_servers: list[NatsServer]) -> None:
    """SIGSTOP under load: the kernels fill up, and then no byte goes for write_timeout."""
    told: list[Exception] = []
    conn = gnats.connect(
        [server.url for server in two_servers],
        write_timeout=0.3,
        error_cb=lambda _, exc: told.append(exc),
        **FAST,
    )
    two_servers[0].pause()
    publisher = gevent.spawn(publish_forever, conn)  # so that the first confirms none of it
    began = monotonic()
    wait_until(lambda: conn.stats.disconnects == 1, 20)
    assert isinstance(told[0], WriteStalledError)
    assert monotonic() - began > 0.29
    wait_until(lambda: conn.is_connected, 5)
    assert str(conn.connected_url) == two_servers[1].url
    publisher.kill()
    conn.flush(30)
    stats = conn.stats
    assert stats.accepted == stats.sent + stats.uncertain
    assert two_servers[1].varz()["in_msgs"] == stats.accepted - stats.uncertain
    conn.close()


def test_a_slow_server_is_no_stalled_one(fake_server: Any) -> None:
    """Each bit of progress starts the time anew, however long the whole batch takes."""

    def sip(client: FakeClient) -> None:
        client.handshake()
        for _ in range(12):
            gevent.sleep(0.1)
            client.read_exactly(30_000)
        client.serve()

    server = fake_server(sip, rcvbuf=4096)
    conn = gnats.connect(server.url, write_timeout=1.0, **FAST)
    for _ in range(60):
        conn.publish("w", b"x" * 50_000)
    assert conn.flush(20)
    assert conn.stats.disconnects == 0
    assert len(server.clients[0].payloads()) == 60
    server.clients[0].assert_whole()
    conn.close()


def test_a_stalled_write_is_found_without_keepalive_and_only_when_there_is_one(
    fake_server: Any,
) -> None:
    def deaf(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    server = fake_server([deaf, serve], rcvbuf=4096)
    told: list[Exception] = []
    conn = gnats.connect(
        server.url, write_timeout=0.2, error_cb=lambda _, exc: told.append(exc), **FAST
    )
    conn.publish("w", b"small")  # the kernel takes it: no stall
    gevent.sleep(0.5)
    assert told == []
    publisher = gevent.spawn(lambda: [conn.publish("w", b"x" * 100_000) for _ in range(100)])
    server.wait_for_client(2)
    publisher.join(10)
    conn.flush()
    assert isinstance(told[0], WriteStalledError)
    assert isinstance(told[0], TransportError)
    conn.close()


def test_a_server_that_asks_and_does_not_listen_heaps_up_nothing(fake_server: Any) -> None:
    gate, asked = gevent.event.Event(), gevent.event.Event()

    def flood(client: FakeClient) -> None:
        client.handshake()
        for _ in range(100):
            client.send(b"PING\r\n" * 10_000)
        asked.set()
        gate.wait()
        client.serve()

    server = fake_server(flood, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    most = 0

    def all_read() -> bool:
        nonlocal most
        most = max(most, conn.stats.buffered_bytes)
        return asked.is_set()

    wait_until(all_read, 20)
    assert most <= 2 * 6 * MOST_PONGS  # one batch on its way, one behind it
    gate.set()
    conn.publish("p", b"alive")
    assert conn.flush(10)
    assert conn.stats.disconnects == 0
    conn.close()
