"""Losing a link for every reason there is, and the way back: cycles, waits, limits, giving up.

Times are measured from below only: a wait must be at least what was asked for. From above there is
a bound that only a wait which was not cut short at all could pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import (
    AuthorizationError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    Error,
    NoServersError,
    ProtocolError,
    ReconnectForcedError,
    StaleConnectionError,
    TimeoutError,
    TransportError,
    UnexpectedEOF,
)
from gnats.testing import FakeClient, FakeServer, NatsServer, ReservedPort, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}

CALLBACKS = ("connected_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "error_cb")


def noting(log: list[Any]) -> dict[str, Any]:
    """Callbacks that write down (name, *facts) of what they are told."""

    def note(name: str) -> Callable[..., None]:
        return lambda conn, *facts: log.append((name, *facts))

    return {name: note(name) for name in CALLBACKS}


def names(log: list[Any]) -> list[str]:
    return [entry[0] for entry in log]


@pytest.fixture
def dead() -> Iterator[list[str]]:
    """Three addresses where nobody listens, and nobody will."""
    ports = [ReservedPort() for _ in range(3)]
    yield [f"nats://127.0.0.1:{port.port}" for port in ports]
    for port in ports:
        port.release()


# -- every reason ------------------------------------------------------------------------------


def eof(client: FakeClient) -> None:
    client.handshake()


def rst(client: FakeClient) -> None:
    client.handshake()
    client.reset()


def says(*data: bytes, closes: bool = True) -> Callable[[FakeClient], None]:
    """Once the link is up: say that, and close."""

    def fate(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB ")
        for piece in data:
            client.send(piece)
        if not closes:
            client.serve()

    return fate


@pytest.mark.parametrize(
    ("fate", "kind"),
    [
        (says(), UnexpectedEOF),
        (rst, TransportError),
        (says(b"HELLO, WHO IS THERE?\r\n", closes=False), ProtocolError),
        (says(b"HELLO, WHO IS THERE?\r\n"), ProtocolError),
        (says(b"MSG x 1 10\r\n123"), UnexpectedEOF),
        (says(b"MSG x 1 2\r\n12345\r\n", closes=False), ProtocolError),
        (says(b"MSG x 1 2\r\n12345\r\n"), ProtocolError),
        (says(b"INFO {oops\r\n", closes=False), ProtocolError),
        (says(b"-ERR 'Stale Connection'\r\n"), StaleConnectionError),
        (
            says(b"-ERR 'Stale Connection'\r\n-ERR 'Authorization Violation'\r\ngarbage\r\n"),
            StaleConnectionError,
        ),
    ],
)
def test_a_loss_is_told_once_with_its_first_cause(
    fake_server: Any, fate: Callable[[FakeClient], None], kind: type[Exception]
) -> None:
    server = fake_server([fate, serve])
    log: list[Any] = []
    conn = gnats.connect(server.url, **noting(log), **FAST)
    conn.subscribe("x")
    wait_until(lambda: "reconnected_cb" in names(log))
    assert names(log) == ["connected_cb", "error_cb", "disconnected_cb", "reconnected_cb"]
    assert isinstance(log[1][1], kind)
    assert conn.last_error is log[1][1]
    stats = conn.stats
    assert (stats.disconnects, stats.reconnects, stats.attempts) == (1, 1, 2)
    conn.flush()
    assert server.clients[0].is_closed
    conn.close()
    assert names(log)[4:] == ["closed_cb"]


def test_a_server_killed_and_restarted(nats_server: NatsServer) -> None:
    log: list[Any] = []
    causes: list[Exception | None] = []
    told = noting(log)
    told["disconnected_cb"] = lambda conn: (
        log.append(("disconnected_cb",)),
        causes.append(conn.last_error),
    )
    conn = gnats.connect(nats_server.url, **told, **FAST)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    wait_until(lambda: causes)
    # disconnected_cb finds the cause, not what came of the first attempt behind it.
    assert isinstance(causes[0], TransportError)
    assert causes[0] is next(entry[1] for entry in log if entry[0] == "error_cb")
    assert conn.connected_url is None
    nats_server.start()
    began = monotonic()
    conn.wait_for_status("connected", 5)
    assert monotonic() - began < 1
    wait_until(lambda: "reconnected_cb" in names(log))
    seen = names(log)
    assert seen[:3] == ["connected_cb", "error_cb", "disconnected_cb"]
    assert seen[-1] == "reconnected_cb"
    assert set(seen[3:-1]) <= {"error_cb"}  # failed attempts
    conn.close()
    assert names(log)[-1] == "closed_cb"
    assert names(log).count("closed_cb") == 1


def test_force_reconnect_is_a_loss_without_an_error(fake_server: Any) -> None:
    server = fake_server()
    log: list[Any] = []
    conn = gnats.connect(server.url, **noting(log), **FAST)
    conn.force_reconnect()
    conn.force_reconnect()  # the same loss
    wait_until(lambda: "reconnected_cb" in names(log))
    assert names(log) == ["connected_cb", "disconnected_cb", "reconnected_cb"]
    assert isinstance(conn.last_error, ReconnectForcedError)
    assert conn.stats.disconnects == 1
    assert server.clients[0].is_closed
    conn.close()
    with pytest.raises(ConnectionClosedError):
        conn.force_reconnect()


def test_force_reconnect_again_and_again_is_never_made_to_wait(fake_server: Any) -> None:
    """It is our own wish: short lives that we ended ourselves are not held against the server."""
    server = fake_server()
    conn = gnats.connect(server.url, reconnect_wait=30)
    began = monotonic()
    for turn in range(1, 11):
        conn.force_reconnect()
        wait_until(lambda turn=turn: conn.stats.reconnects == turn)
    assert monotonic() - began < 5
    conn.close()


def test_a_loss_while_idle_is_noticed_without_a_call(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    for count in range(2, 8):
        server.close_clients(reset=count % 2 == 0)
        server.wait_for_client(count)
        wait_until(lambda count=count: conn.stats.reconnects == count - 1)
    conn.close()


def test_the_socket_is_closed_though_the_server_takes_nothing(fake_server: Any) -> None:
    """A loss does not wait for the other side, and leaves no descriptor."""

    def stuck(client: FakeClient) -> None:
        client.handshake()
        go.wait(5)
        client.send(b"garbage\r\n")
        client.stall()

    go = gevent.event.Event()
    server = fake_server([stuck, serve], rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    publisher = gevent.spawn(lambda: [conn.publish("p", b"x" * 100_000) for _ in range(30)])
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    began = monotonic()
    go.set()
    server.wait_for_client(2)
    assert monotonic() - began < 2
    publisher.join(5)
    conn.flush()
    conn.close()


def test_status_moves_by_the_table_and_each_is_told(fake_server: Any) -> None:
    server = fake_server([eof, serve])
    moves: list[tuple[str, str]] = []
    conn = gnats.connect(
        server.url, status_cb=lambda _, old, new: moves.append((str(old), str(new))), **FAST
    )
    wait_until(lambda: conn.stats.reconnects == 1)
    conn.close()
    assert moves == [
        ("disconnected", "connecting"),
        ("connecting", "connected"),
        ("connected", "reconnecting"),
        ("reconnecting", "connected"),
        ("connected", "closed"),
    ]


def test_calls_in_an_outage(dead: list[str], fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, reconnect_wait=30)
    server.refuse()
    server.close_clients()
    conn.wait_for_status("reconnecting", 5)
    began = monotonic()
    with pytest.raises(ConnectionReconnectingError):
        conn.rtt()
    with pytest.raises(TimeoutError):
        conn.flush(0.05)
    with pytest.raises(TimeoutError):
        conn.request("x", timeout=0.05)
    with pytest.raises(TimeoutError):
        conn.subscribe("x").next_msg(0.05)
    with pytest.raises(TimeoutError):
        conn.wait_for_status("connected", 0.05)
    assert (conn.is_reconnecting, conn.is_connected, conn.is_closed) == (True, False, False)
    conn.close()
    assert monotonic() - began < 5


# -- cycles and waits ------------------------------------------------------------------------


def lose(server: FakeServer, conn: gnats.Connection) -> None:
    server.refuse()
    server.close_clients()
    conn.wait_for_status("reconnecting", 5)


def test_one_wait_per_cycle_and_none_before_the_first(dead: list[str], fake_server: Any) -> None:
    """The delay callback is asked once per full cycle, after every server had its attempt."""
    asked: list[tuple[int, int]] = []
    server = fake_server()
    conn = gnats.connect(
        [server.url, *dead],
        max_reconnect=-1,
        custom_reconnect_delay_cb=lambda cycle: asked.append((cycle, conn.stats.attempts)) or 0.01,
    )
    began = conn.stats.attempts
    lose(server, conn)
    wait_until(lambda: len(asked) >= 6)
    server.listen()
    conn.wait_for_status("connected", 5)
    assert asked[:6] == [(cycle, began + 4 * cycle) for cycle in range(1, 7)]
    # A new outage counts from one again.
    asked.clear()
    began = conn.stats.attempts
    lose(server, conn)
    wait_until(lambda: len(asked) >= 2)
    assert asked[:2] == [(1, began + 4), (2, began + 8)]
    conn.close()


def attempt_times(
    server: FakeServer, extra: list[str], cycles: int, **fields: Any
) -> list[list[float]]:
    """The moments of the failed attempts of an outage, by cycle."""
    moments: list[float] = []
    conn = gnats.connect(
        [server.url, *extra],
        error_cb=lambda _, exc: moments.append(monotonic()),
        **{"max_reconnect": -1, "reconnect_jitter": 0.0, **fields},
    )
    moments.clear()
    lose(server, conn)
    size = 1 + len(extra)
    wait_until(lambda: len(moments) >= 1 + size * cycles, 20)
    conn.close()
    attempts = moments[1:]  # the first is the loss itself
    return [attempts[index * size : (index + 1) * size] for index in range(cycles)]


# Seconds by which a failure may be told late, so that the wait behind it looks shorter.
TOLD_LATE = 0.03


def waits(cycles: list[list[float]]) -> list[float]:
    return [after[0] - before[-1] for before, after in zip(cycles, cycles[1:])]


def test_the_wait_is_flat_by_default(dead: list[str], fake_server: Any) -> None:
    cycles = attempt_times(fake_server(), dead, 4, reconnect_wait=0.2)
    assert all(wait >= 0.2 - TOLD_LATE for wait in waits(cycles)), waits(cycles)
    assert min(waits(cycles)) < 0.35  # it does not grow
    assert all(cycle[-1] - cycle[0] < 0.5 for cycle in cycles)  # and none within a cycle


def test_the_wait_doubles_when_asked_to(fake_server: Any) -> None:
    cycles = attempt_times(fake_server(), [], 6, reconnect_wait=0.05, reconnect_max_wait=0.3)
    for wait, least in zip(waits(cycles), [0.05, 0.1, 0.2, 0.3, 0.3]):
        assert least - TOLD_LATE <= wait < least + 0.45, waits(cycles)


def test_the_wait_has_jitter(fake_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def highest(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr("gnats.backoff.Backoff.delay.__defaults__", (highest,), raising=True)
    cycles = attempt_times(fake_server(), [], 3, reconnect_wait=0.02, reconnect_jitter=0.15)
    assert all(wait >= 0.17 - TOLD_LATE for wait in waits(cycles))
    assert set(asked) == {(0.0, 0.15)}


@pytest.mark.parametrize(
    "answer",
    [ZeroDivisionError("oops"), float("nan"), -1, "soon", None, True, float("inf"), 1e300],
    ids=repr,
)
def test_a_delay_callback_that_fails(fake_server: Any, answer: Any) -> None:
    """The default wait is used, and error_cb told."""

    def delay(cycle: int) -> Any:
        asked.append(monotonic())
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked: list[float] = []
    told: list[Exception] = []
    server = fake_server()
    conn = gnats.connect(
        server.url,
        max_reconnect=-1,
        reconnect_wait=0.1,
        reconnect_jitter=0.0,
        custom_reconnect_delay_cb=delay,
        error_cb=lambda _, exc: told.append(exc),
    )
    lose(server, conn)
    wait_until(lambda: len(asked) >= 3)
    assert asked[1] - asked[0] >= 0.095
    failures = [exc for exc in told if not isinstance(exc, TransportError)]
    if isinstance(answer, Exception):
        assert failures[0] is answer
    else:
        assert "custom_reconnect_delay_cb" in str(failures[0])
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.close()


def test_a_delay_callback_may_switch_and_call_the_connection(fake_server: Any) -> None:
    def delay(cycle: int) -> float:
        gevent.sleep(0.01)
        conn.publish("from.delay", b"%d" % cycle)
        return 0.0

    server = fake_server()
    conn = gnats.connect(server.url, max_reconnect=-1, custom_reconnect_delay_cb=delay)
    lose(server, conn)
    wait_until(lambda: conn.stats.accepted >= 3)
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.flush()
    assert server.clients[-1].payloads("from.delay")[:3] == [b"1", b"2", b"3"]
    conn.close()


def test_a_delay_callback_that_closes(fake_server: Any) -> None:
    server = fake_server()
    log: list[Any] = []
    conn = gnats.connect(
        server.url,
        max_reconnect=-1,
        custom_reconnect_delay_cb=lambda cycle: conn.close(),
        **noting(log),
    )
    lose(server, conn)
    conn.wait_for_status("closed", 5)
    wait_until(lambda: names(log)[-1] == "closed_cb")


def test_a_delay_callback_that_never_returns_does_not_hold_a_close(fake_server: Any) -> None:
    entered = gevent.event.Event()

    def delay(cycle: int) -> float:
        entered.set()
        gevent.sleep(1000)
        return 0.0

    server = fake_server()
    conn = gnats.connect(server.url, max_reconnect=-1, custom_reconnect_delay_cb=delay)
    lose(server, conn)
    assert entered.wait(5)
    began = monotonic()
    conn.close()
    assert monotonic() - began < 3
    assert conn.is_closed


def cut_by_close(conn: gnats.Connection, server: FakeServer) -> None:
    conn.close()


def cut_by_force(conn: gnats.Connection, server: FakeServer) -> None:
    server.listen()
    conn.force_reconnect()


def cut_by_new_server(conn: gnats.Connection, server: FakeServer) -> None:
    other = FakeServer().start()
    try:
        conn.add_server(other.url)
        conn.wait_for_status("connected", 5)
        assert str(conn.connected_url) == other.url
        conn.close()
    finally:
        other.stop()


def cut_by_set_servers(conn: gnats.Connection, server: FakeServer) -> None:
    other = FakeServer().start()
    try:
        conn.set_servers([other.url])
        conn.wait_for_status("connected", 5)
        assert conn.servers == [conn.connected_url]
        conn.close()
    finally:
        other.stop()


@pytest.mark.parametrize("cut", [cut_by_close, cut_by_force, cut_by_new_server, cut_by_set_servers])
def test_a_wait_is_cut_short(
    fake_server: Any, cut: Callable[[gnats.Connection, FakeServer], None]
) -> None:
    server = fake_server()
    log: list[Any] = []
    conn = gnats.connect(server.url, reconnect_wait=60, max_reconnect=-1, **noting(log))
    lose(server, conn)
    wait_until(lambda: names(log).count("error_cb") == 2)  # the loss, and the failed attempt
    began = monotonic()
    cut(conn, server)
    conn.wait_for_status("closed" if cut is cut_by_close else "connected", 5) if (
        not conn.is_closed
    ) else None
    assert monotonic() - began < 5
    conn.close()


def test_a_server_added_again_cuts_nothing_short(fake_server: Any) -> None:
    """It is no new address: it has had its attempt in this cycle."""
    server = fake_server()
    conn = gnats.connect(server.url, reconnect_wait=60, max_reconnect=-1)
    lose(server, conn)
    wait_until(lambda: conn.stats.attempts == 2)
    conn.add_server(server.url)
    gevent.sleep(0.05)
    assert conn.stats.attempts == 2
    assert len(conn.servers) == 1
    conn.close()


def test_close_in_the_middle_of_an_attempt(fake_server: Any) -> None:
    """At every stage of a handshake: nothing is left, closed_cb is told once."""
    stages: list[Callable[[FakeClient], object]] = [
        lambda client: client.stall(),
        lambda client: (client.send(b"INFO {"), client.stall()),
        lambda client: (client.send_info(), client.stall()),
        lambda client: (client.send_info(), client.expect("CONNECT "), client.stall()),
        lambda client: (client.handshake(), client.stall()),
    ]
    for stage in stages:
        server = fake_server([serve, stage])
        log: list[Any] = []
        conn = gnats.connect(server.url, **noting(log), **FAST)
        server.close_clients()
        server.wait_for_client(2)
        gevent.sleep(0.01)
        began = monotonic()
        conn.close()
        assert monotonic() - began < 3
        assert conn.is_closed
        assert names(log)[-1] == "closed_cb"
        assert names(log).count("closed_cb") == 1
        server.stop()


def test_force_reconnect_in_an_attempt_that_fails_spares_the_wait(fake_server: Any) -> None:
    """It came a moment before the wait that it would have cut short: it is not forgotten."""

    def refuse(client: FakeClient) -> None:
        client.send_info()
        client.expect("CONNECT ")
        conn.force_reconnect()
        client.reset()

    server = fake_server([eof, refuse, serve])
    began = monotonic()
    conn = gnats.connect(server.url, reconnect_wait=60, max_reconnect=-1)
    wait_until(lambda: conn.stats.reconnects == 1)
    assert monotonic() - began < 5
    conn.close()


def test_force_reconnect_in_the_middle_of_an_attempt_harms_nothing(fake_server: Any) -> None:
    def slow(client: FakeClient) -> None:
        client.send_info()
        client.expect("CONNECT ")
        conn.force_reconnect()
        client.expect("PING")
        client.send(b"PONG\r\n")
        client.serve()

    server = fake_server([eof, slow, serve])
    conn = gnats.connect(server.url, **FAST)
    wait_until(lambda: conn.stats.reconnects >= 1)
    conn.wait_for_status("connected", 5)
    conn.flush()
    conn.close()


# -- limits, and giving up -------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_it_gives_up_after_max_reconnect_attempts_per_server(
    dead: list[str], fake_server: Any, limit: int
) -> None:
    log: list[Any] = []
    server = fake_server()
    conn = gnats.connect(
        [server.url, *dead[:2]],
        max_reconnect=limit,
        reconnect_wait=0.02,
        reconnect_jitter=0.0,
        **noting(log),
    )
    sub = conn.subscribe("x")
    conn.publish("x", b"")
    conn.flush()
    waiting = [
        gevent.spawn(sub.next_msg, 30),
        gevent.spawn(conn.request, "nobody", b"", 30),
        gevent.spawn(lambda: conn.wait_for_status("draining_subs", 30)),
        gevent.spawn(lambda: list(conn.subscribe("y"))),
    ]
    gevent.sleep(0)
    gevent.sleep(0)
    server.refuse()
    server.close_clients()
    conn.wait_for_status("closed", 5)
    gevent.joinall(waiting, 5)
    assert [type(one.exception) for one in waiting] == [ConnectionClosedError] * 3 + [type(None)]
    wait_until(lambda: names(log)[-1] == "closed_cb")
    assert conn.stats.attempts == 1 + 3 * limit
    assert names(log) == [
        "connected_cb",
        "error_cb",
        "disconnected_cb",
        *["error_cb"] * (3 * limit + (limit > 0)),
        "closed_cb",
    ]
    if limit:
        # The last word names each server with its own failure.
        assert isinstance(conn.last_error, NoServersError)
        assert set(conn.last_error.failures) == {server.url, *dead[:2]}
        assert log[-2] == ("error_cb", conn.last_error)
    else:
        assert isinstance(conn.last_error, TransportError)
    for call in (conn.flush, conn.rtt, lambda: conn.publish("x"), lambda: conn.subscribe("x")):
        with pytest.raises(ConnectionClosedError):
            call()
    conn.close()
    assert names(log).count("closed_cb") == 1


def test_minus_one_never_gives_up(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, max_reconnect=-1, reconnect_wait=0.0, reconnect_jitter=0.0)
    lose(server, conn)
    wait_until(lambda: conn.stats.attempts > 200, 20)
    assert conn.is_reconnecting
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.close()


def test_a_success_zeroes_the_count(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, max_reconnect=3, reconnect_wait=0.3, reconnect_jitter=0.0)
    for _ in range(3):
        before = conn.stats.attempts
        lose(server, conn)
        wait_until(lambda before=before: conn.stats.attempts >= before + 2)
        server.listen()
        conn.wait_for_status("connected", 5)
    conn.close()


def test_a_server_over_its_limit_is_skipped_and_the_others_go_on(
    dead: list[str], fake_server: Any
) -> None:
    """One added late has its own count, and the outage lasts as long as it has attempts."""
    log: list[Any] = []
    server = fake_server()
    conn = gnats.connect(
        server.url, max_reconnect=2, reconnect_wait=0.1, reconnect_jitter=0.0, **noting(log)
    )
    lose(server, conn)
    wait_until(lambda: conn.stats.attempts == 2)
    conn.add_server(dead[0])
    conn.wait_for_status("closed", 5)
    wait_until(lambda: names(log)[-1] == "closed_cb")
    failed = [str(entry[1]) for entry in log if entry[0] == "error_cb"][1:-1]
    port = dead[0].rpartition(":")[2]
    assert sum(port in text for text in failed) == 2
    assert len(failed) == 4
    assert len(conn.servers) == 2  # never forgotten


def test_allow_reconnect_false_closes_at_the_first_loss(nats_server: NatsServer) -> None:
    log: list[Any] = []
    conn = gnats.connect(nats_server.url, allow_reconnect=False, **noting(log))
    sub = conn.subscribe("x")
    waiting = gevent.spawn(sub.next_msg, 30)
    gevent.sleep(0)
    nats_server.kill()
    conn.wait_for_status("closed", 5)
    waiting.join(5)
    assert isinstance(waiting.exception, ConnectionClosedError)
    wait_until(lambda: names(log)[-1] == "closed_cb")
    assert names(log) == ["connected_cb", "error_cb", "disconnected_cb", "closed_cb"]
    assert isinstance(conn.last_error, TransportError)
    assert conn.stats.attempts == 1


def test_pending_messages_of_a_connection_that_gave_up_are_counted(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, max_reconnect=1, reconnect_wait=0.1)
    lose(server, conn)
    for _ in range(5):
        try:
            conn.publish("x")
        except ConnectionClosedError:
            break
    conn.wait_for_status("closed", 5)
    stats = conn.stats
    assert stats.accepted == stats.dropped
    assert stats.buffered == 0


# -- the first connect ---------------------------------------------------------------------------


def test_retry_on_failed_connect_goes_on_in_the_background(fake_server: Any) -> None:
    server = fake_server()
    server.refuse()
    log: list[Any] = []
    began = monotonic()
    conn = gnats.connect(server.url, retry_on_failed_connect=True, **noting(log), **FAST)
    assert monotonic() - began < 1
    assert conn.status == "connecting"
    sub = conn.subscribe("x")
    conn.publish("x", b"early")
    wait_until(lambda: conn.stats.attempts > 3)
    server.listen()
    assert conn.wait_for_status("connected", 5)
    conn.flush()
    frames = server.clients[-1].frames
    assert [frame.op for frame in frames[:4]] == ["CONNECT", "PING", "SUB", "PUB"]
    assert not sub.is_closed
    wait_until(lambda: names(log)[-1] == "connected_cb")
    assert names(log).count("connected_cb") == 1
    assert set(names(log)[:-1]) == {"error_cb"}
    conn.close()


def test_retry_on_failed_connect_gives_up_like_any_outage(dead: list[str]) -> None:
    log: list[Any] = []
    conn = gnats.connect(
        dead,
        retry_on_failed_connect=True,
        max_reconnect=2,
        reconnect_wait=0.02,
        reconnect_jitter=0.0,
        **noting(log),
    )
    conn.wait_for_status("closed", 5)
    assert conn.stats.attempts == 6
    wait_until(lambda: names(log)[-1] == "closed_cb")
    assert "disconnected_cb" not in names(log)


def test_a_first_connect_fails_fast_and_may_be_tried_again(
    dead: list[str], fake_server: Any
) -> None:
    server = fake_server()
    server.refuse()
    log: list[Any] = []
    conn = gnats.Connection(**noting(log), **FAST)
    with pytest.raises(NoServersError) as caught:
        conn.connect([*dead, server.url])
    assert set(caught.value.failures) == {*dead, server.url}
    assert all(isinstance(exc, Error) for exc in caught.value.failures.values())
    assert conn.status == "disconnected"
    server.listen()
    conn.connect()
    conn.flush()
    assert str(conn.connected_url) == server.url
    conn.close()
    assert names(log) == ["connected_cb", "closed_cb"]


def test_a_first_connect_that_fails_ends_every_wait(fake_server: Any) -> None:
    """What others asked of the connection meanwhile can never come true: nobody may hang."""

    def refuse_late(client: FakeClient) -> None:
        waiting["flush"] = gevent.spawn(conn.flush, None)
        waiting["request"] = gevent.spawn(conn.request, "x", b"", None)
        waiting["request_many"] = gevent.spawn(lambda: list(conn.request_many("x", timeout=None)))
        waiting["drain"] = gevent.spawn(conn.drain, 60)
        gevent.sleep(0.02)

    waiting: dict[str, Any] = {}
    server = fake_server(refuse_late)
    conn = gnats.Connection()
    with pytest.raises(Error):
        conn.connect(server.url)
    gevent.joinall(list(waiting.values()), 5)
    assert {name: one.dead for name, one in waiting.items()} == dict.fromkeys(waiting, True)
    assert isinstance(waiting["flush"].exception, Error)
    assert isinstance(waiting["request"].exception, Error)
    conn.close()
    gevent.killall(list(waiting.values()))


def test_connect_timeout_is_one_deadline_over_the_attempt(fake_server: Any) -> None:
    """A server that dribbles bytes does not get more time for each."""

    def dribble(client: FakeClient) -> None:
        while True:
            client.send(b"I")
            gevent.sleep(0.02)

    server = fake_server(dribble)
    began = monotonic()
    with pytest.raises(NoServersError) as caught:
        gnats.connect(server.url, connect_timeout=0.3)
    assert 0.29 <= monotonic() - began < 2
    (failure,) = caught.value.failures.values()
    assert isinstance(failure, TimeoutError)


def test_a_timeout_in_the_caller_of_connect_leaves_nothing(fake_server: Any) -> None:
    server = fake_server(lambda client: client.stall())
    conn = gnats.Connection()
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.05):
            conn.connect(server.url)
    wait_until(lambda: conn.is_closed)


# -- servers that admit and drop ---------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("select", [None, lambda pool, info: (pool[0], 0)], ids=["line", "cb"])
def test_servers_that_admit_us_and_drop_us_are_not_redialled_in_a_tight_loop(
    count: int, select: Any, fake_server: Any
) -> None:
    servers = [fake_server(eof) for _ in range(count)]
    conn = gnats.connect(
        [server.url for server in servers],
        reconnect_wait=0.2,
        reconnect_jitter=0.0,
        max_reconnect=-1,
        select_server_cb=select,
    )
    began = monotonic()
    wait_until(lambda: monotonic() - began > 2, 5)
    admitted = sum(len(server.clients) for server in servers)
    # A few quick returns, then a cycle for each wait.
    assert 5 <= admitted <= 5 + count * 11
    for server in servers:
        server.handler = serve
    wait_until(lambda: _is_back(conn))
    conn.close()


def _is_back(conn: gnats.Connection) -> bool:
    try:
        return conn.flush(1)
    except gnats.errors.Error:  # the last of the links that were dropped at once
        return False


def test_servers_that_refuse_us_at_once_are_not_dialled_in_a_tight_loop(fake_server: Any) -> None:
    def refuse(client: FakeClient) -> None:
        client.send_info()
        client.send_err("maximum connections exceeded")

    server = fake_server([eof, refuse])
    conn = gnats.connect(server.url, reconnect_wait=0.2, reconnect_jitter=0.0, max_reconnect=-1)
    gevent.sleep(1)
    assert 3 <= len(server.clients) <= 7
    conn.close()


def test_the_words_before_the_garbage_are_the_failure(fake_server: Any) -> None:
    def refuse(client: FakeClient) -> None:
        client.send_info()
        client.expect("CONNECT ")
        client.send(b"-ERR 'Authorization Violation'\r\ngarbage\r\n")

    server = fake_server(refuse)
    with pytest.raises(NoServersError) as caught:
        gnats.connect(server.url)
    (failure,) = caught.value.failures.values()
    assert isinstance(failure, AuthorizationError)


def test_a_server_that_is_no_nats_server_is_a_failed_attempt(fake_server: Any) -> None:
    def http(client: FakeClient) -> None:
        client.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def silent_close(client: FakeClient) -> None:
        client.close()

    def flood(client: FakeClient) -> None:
        client.send(b"x" * 200_000)
        client.stall()

    server = fake_server([eof, http, silent_close, flood, serve])
    log: list[Any] = []
    conn = gnats.connect(server.url, **noting(log), **FAST)
    wait_until(lambda: conn.stats.reconnects == 1)
    kinds = [type(entry[1]) for entry in log if entry[0] == "error_cb"]
    assert kinds == [UnexpectedEOF, ProtocolError, UnexpectedEOF, ProtocolError]
    conn.close()


# -- the callbacks -----------------------------------------------------------------------------


def test_callbacks_that_raise_or_block_do_not_hold_the_return(fake_server: Any) -> None:
    gate = gevent.event.Event()
    log: list[Any] = []
    told = noting(log)

    def block(conn: gnats.Connection) -> None:
        gate.wait(20)
        raise ZeroDivisionError

    told["disconnected_cb"] = block
    server = fake_server()
    conn = gnats.connect(server.url, **told, **FAST)
    sub = conn.subscribe("x")
    for count in (2, 3):
        server.close_clients()
        server.wait_for_client(count)
        wait_until(lambda count=count: conn.stats.reconnects == count - 1)
        conn.publish("y", b"")
        conn.flush()
        inbox = server.clients[-1].wait_for_frames(1, "SUB")[0]
        server.clients[-1].deliver(inbox.sid, "x", b"")
        sub.next_msg(5)
    assert "reconnected_cb" not in names(log)
    gate.set()
    wait_until(lambda: names(log).count("reconnected_cb") == 2)
    raised = [e for e in log if e[0] == "error_cb" and isinstance(e[1], ZeroDivisionError)]
    assert len(raised) == 2
    conn.close()


@pytest.mark.parametrize("name", CALLBACKS)
def test_close_from_any_callback(fake_server: Any, name: str) -> None:
    server = fake_server([eof, serve])
    log: list[Any] = []
    told = noting(log)
    note = told[name]

    def closing(conn: gnats.Connection, *facts: Any) -> None:
        note(conn, *facts)
        began = monotonic()
        conn.close()
        assert conn.is_closed
        assert monotonic() - began < 3

    told[name] = closing
    conn = gnats.Connection(**told, **FAST)
    try:
        conn.connect(server.url)
    except ConnectionClosedError:
        assert name == "connected_cb"
    if name == "closed_cb":
        conn.close()
    conn.wait_for_status("closed", 5)
    wait_until(lambda: names(log)[-1:] == ["closed_cb"])
    assert names(log).count("closed_cb") == 1
    # No callback failed: an error_cb would have come behind.
    assert not [e for e in log if e[0] == "error_cb" and isinstance(e[1], AssertionError)]


def test_every_loss_has_one_of_each_callback_in_order(fake_server: Any) -> None:
    log: list[Any] = []
    server = fake_server()
    conn = gnats.connect(server.url, **noting(log), **FAST)
    for count in range(2, 22):
        server.close_clients(reset=count % 3 == 0)
        server.wait_for_client(count)
        wait_until(lambda count=count: conn.stats.reconnects == count - 1)
    conn.close()
    assert names(log) == [
        "connected_cb",
        *["error_cb", "disconnected_cb", "reconnected_cb"] * 20,
        "closed_cb",
    ]


# -- the log ---------------------------------------------------------------------------------


def test_a_log_line_per_transition_and_no_stack_traces(
    fake_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gnats")
    server = fake_server()
    conn = gnats.connect(
        server.url.replace("://", "://someone:verysecret@"), user="u", password="hidden", **FAST
    )
    lose(server, conn)
    wait_until(lambda: conn.stats.attempts > 3)
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.close()
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert sum(level == "WARNING" and "lost" in text for level, text in levels) == 1
    assert [level for level, text in levels if "connected to" in text] == ["INFO", "WARNING"]
    assert all(record.exc_info is None for record in caplog.records)
    assert "verysecret" not in caplog.text
    assert "hidden" not in caplog.text


# -- select_server_cb ---------------------------------------------------------------------------


def test_the_user_chooses_the_next_server(fake_server: Any) -> None:
    servers = [fake_server() for _ in range(3)]
    urls = [server.url for server in servers]
    asked: list[tuple[list[str], Any]] = []

    def choose(pool: list[gnats.ServerURL], info: Any) -> tuple[gnats.ServerURL, float]:
        asked.append(([str(url) for url in pool], info))
        return next(url for url in pool if str(url) == urls[2]), 0.05

    conn = gnats.connect(urls, **{**FAST, "reconnect_wait": 30}, select_server_cb=choose)
    assert not asked  # the first connect goes by the list
    lost_at = monotonic()
    servers[0].refuse()
    servers[0].close_clients()
    wait_until(lambda: conn.is_connected and str(conn.connected_url) == urls[2])
    assert monotonic() - lost_at >= 0.05
    assert [names for names, _ in asked] == [[urls[1], urls[2], urls[0]]]
    assert asked[0][1].server_id == "FAKE" or asked[0][1].version
    conn.close()


def test_a_choice_may_be_made_again_and_again_without_a_tight_loop(fake_server: Any) -> None:
    server = fake_server()
    calls = 0

    def choose(pool: list[gnats.ServerURL], info: Any) -> tuple[gnats.ServerURL, float]:
        nonlocal calls
        calls += 1
        return pool[0], 0

    conn = gnats.connect(server.url, **FAST, select_server_cb=choose)
    server.refuse()
    server.close_clients()
    wait_until(lambda: calls >= 5)
    began, first = monotonic(), calls
    wait_until(lambda: calls >= first + 20)
    assert monotonic() - began >= 0.19
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.close()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "nats://127.0.0.1:1",
        (gnats.ServerURL("127.0.0.1", 1), 0),
        (None, 0),
        "bad delay",
        ValueError("mine"),
    ],
)
def test_a_choice_that_fails_leaves_it_to_the_line(fake_server: Any, answer: Any) -> None:
    servers = [fake_server(), fake_server()]
    told: list[Exception] = []

    def choose(pool: list[gnats.ServerURL], info: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return (pool[0], -1) if answer == "bad delay" else answer

    conn = gnats.connect(
        [server.url for server in servers],
        **FAST,
        select_server_cb=choose,
        error_cb=lambda _, exc: told.append(exc),
    )
    servers[0].close_clients()
    wait_until(lambda: conn.is_connected and str(conn.connected_url) == servers[1].url)
    assert any("select_server_cb" in str(exc) or exc is answer for exc in told)
    conn.close()


def test_a_choice_gives_up_with_the_pool(fake_server: Any) -> None:
    server = fake_server()
    seen: list[int] = []

    def choose(pool: list[gnats.ServerURL], info: Any) -> tuple[gnats.ServerURL, float]:
        seen.append(len(pool))
        return pool[0], 0

    conn = gnats.connect(server.url, max_reconnect=3, reconnect_wait=0.01, select_server_cb=choose)
    server.refuse()
    server.close_clients()
    conn.wait_for_status("closed", 10)
    assert isinstance(conn.last_error, NoServersError)
    assert seen == [1, 1, 1]
