"""Callbacks: one greenlet, in order, once per event, and no harm from one that misbehaves."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from finish import check_books
from gevent.event import Event

import gnats
from gnats.callbacks import MOST_WAITING, CallbackQueue
from gnats.status import MOVES
from gnats.testing import FakeClient, NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
SLACK = 0.9


class Life:
    """All callbacks of a connection, in order; ``greenlets`` says where they ran."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.moves: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self.greenlets: list[Any] = []

    def _note(self, name: str) -> Any:
        def callback(conn: gnats.Connection) -> None:
            assert isinstance(conn, gnats.Connection)
            self.greenlets.append(gevent.getcurrent())
            self.told.append(name)

        return callback

    def _status(self, conn: gnats.Connection, old: Any, new: Any) -> None:
        assert type(old) is type(new) is gnats.ConnectionStatus
        self.moves.append((old, new))
        self.told.append(f"{old}>{new}")

    def _error(self, conn: gnats.Connection, exc: Exception) -> None:
        self.errors.append(exc)
        self.told.append(type(exc).__name__)

    def options(self) -> dict[str, Any]:
        names = ["connected_cb", "disconnected_cb", "reconnected_cb", "closed_cb"]
        names += ["discovered_servers_cb", "lame_duck_cb"]
        options = {name: self._note(name[:-3]) for name in names}
        return {**options, "status_cb": self._status, "error_cb": self._error}

    def assert_legal(self) -> None:
        assert self.moves[0][0] == "disconnected"
        for (_, before), (after, _) in zip(self.moves, self.moves[1:]):
            assert before == after
        assert all(new in MOVES[old] for old, new in self.moves)


@pytest.fixture
def life() -> Life:
    return Life()


def test_the_life_of_a_connection(nats_server: NatsServer, life: Life) -> None:
    conn = gnats.connect(nats_server.url, **FAST, **life.options())
    for _ in range(3):
        nats_server.kill()
        conn.wait_for_status("reconnecting", 5)
        conn.publish("a", b"x")
        nats_server.start()
        conn.wait_for_status("connected", 5)
        assert conn.flush(5)
    conn.close()
    life.assert_legal()
    told = [one for one in life.told if one != "TransportError"]  # one per failed attempt
    loss = ["connected>reconnecting", "UnexpectedEOF", "disconnected"]
    back = ["reconnecting>connected", "reconnected"]
    assert told == [
        "disconnected>connecting",
        "connecting>connected",
        "connected",
        *[*loss, *back] * 3,
        "connected>closed",
        "closed",
    ]
    assert len(set(map(id, life.greenlets))) <= len(life.greenlets)
    check_books(conn)
    assert conn.stats.sent + conn.stats.uncertain == 3
    assert (conn.stats.disconnects, conn.stats.reconnects, conn.stats.connects) == (3, 3, 4)


def test_a_forced_reconnect_is_no_error(shared_nats_server: NatsServer, life: Life) -> None:
    conn = gnats.connect(shared_nats_server.url, **FAST, **life.options())
    conn.force_reconnect()
    wait_until(lambda: "reconnected" in life.told)
    conn.close()
    life.assert_legal()
    assert life.errors == []
    assert life.told[3:7] == [
        "connected>reconnecting",
        "disconnected",
        "reconnecting>connected",
        "reconnected",
    ]


def test_lame_duck_and_discovered_servers_are_told_once(fake_server: Any, life: Life) -> None:
    def handler(client: FakeClient) -> None:
        client.handshake()
        for _ in range(2):
            client.send_info(connect_urls=["10.0.0.1:4222"], ldm=True)
        client.serve()

    conn = gnats.connect(fake_server(handler).url, **life.options())
    assert conn.flush(5)
    wait_until(lambda: "lame_duck" in life.told)
    conn.close()
    assert life.told.count("lame_duck") == life.told.count("discovered_servers") == 1


def test_they_run_one_after_the_other_and_not_in_the_caller(shared_nats_server: Any) -> None:
    running, told = [0], []

    def slow(conn: gnats.Connection, *args: Any) -> None:
        running[0] += 1
        assert running == [1]
        gevent.sleep(0.01)
        running[0] -= 1
        told.append(gevent.getcurrent())

    names = ["connected_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "status_cb"]
    conn = gnats.connect(shared_nats_server.url, **FAST, **dict.fromkeys(names, slow))
    conn.force_reconnect()
    wait_until(lambda: conn.stats.connects == 2)
    conn.close()
    assert len(told) == 9
    assert gevent.getcurrent() not in told
    assert gevent.get_hub() not in told


def test_one_that_blocks_harms_only_later_callbacks(nats_server: NatsServer, life: Life) -> None:
    release, told = Event(), []

    def block(conn: gnats.Connection) -> None:
        told.append("blocked")
        release.wait(20)

    options = {**life.options(), "connected_cb": block}
    conn = gnats.connect(nats_server.url, **FAST, **options)
    wait_until(lambda: told)
    sub = conn.subscribe("a", cb=lambda msg: msg.respond(msg.data))
    assert conn.flush(5)
    assert conn.request("a", b"x", 5).data == b"x"
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    nats_server.start()
    conn.wait_for_status("connected", 5)
    assert conn.request("a", b"y", 5).data == b"y"
    assert conn.rtt(5) > 0
    assert "disconnected" not in life.told
    release.set()
    wait_until(lambda: "reconnected" in life.told)
    conn.close()
    assert sub.delivered == 2
    life.assert_legal()
    assert life.told[-1] == "closed"
    check_books(conn)


def test_one_that_blocks_holds_close_for_two_seconds(shared_nats_server: NatsServer) -> None:
    release, told = Event(), []
    conn = gnats.connect(
        shared_nats_server.url,
        connected_cb=lambda _: (told.append("blocked"), release.wait(20)),
        closed_cb=lambda _: told.append("closed"),
    )
    wait_until(lambda: told)
    began = monotonic()
    conn.close()
    assert monotonic() - began < 2 + SLACK
    assert conn.is_closed
    assert told == ["blocked"]
    release.set()
    wait_until(lambda: told == ["blocked", "closed"])


NAMES = ["connected_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "status_cb"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [ZeroDivisionError, gevent.Timeout])
def test_one_that_raises_goes_to_error_cb(
    shared_nats_server: NatsServer, life: Life, name: str, kind: Any
) -> None:
    def fail(*_: Any) -> None:
        raise kind()

    conn = gnats.connect(shared_nats_server.url, **FAST, **{**life.options(), name: fail})
    conn.force_reconnect()
    wait_until(lambda: conn.stats.connects == 2)
    assert conn.flush(5)
    conn.close()
    assert conn.is_closed
    # closed_cb is the last of all, so its own failure is only logged or told behind it.
    wait_until(lambda: life.errors)
    assert {type(getattr(exc, "__cause__", None) or exc) for exc in life.errors} == {kind}
    for other in NAMES[:4]:
        if other != name:
            assert other[:-3] in life.told


def test_an_error_callback_that_raises_is_not_told_of_itself(
    shared_nats_server: NatsServer, caplog: Any
) -> None:
    told: list[Exception] = []

    def fail(conn: gnats.Connection, exc: Exception) -> None:
        told.append(exc)
        raise RuntimeError("again")

    conn = gnats.connect(shared_nats_server.url, error_cb=fail)
    sub = conn.subscribe(conn.new_inbox(), cb=lambda msg: 1 / 0)
    for _ in range(2):
        conn.publish(sub.subject, b"x")
    wait_until(lambda: len(told) == 2)
    assert conn.flush(5)
    conn.close()
    assert len(told) == 2
    assert caplog.text.count("RuntimeError: again") == 2


def test_one_that_kills_itself(shared_nats_server: NatsServer, life: Life) -> None:
    options = {**life.options(), "connected_cb": lambda _: gevent.getcurrent().kill()}
    conn = gnats.connect(shared_nats_server.url, **FAST, **options)
    conn.force_reconnect()
    wait_until(lambda: "reconnected" in life.told)
    conn.close()
    assert life.told[-1] == "closed"
    life.assert_legal()


def test_they_may_use_the_connection(nats_server: NatsServer) -> None:
    told: list[Any] = []

    def connected(conn: gnats.Connection) -> None:
        conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))
        told.append(conn.request("echo", b"from connected_cb", 5).data)

    def reconnected(conn: gnats.Connection) -> None:
        told.append(conn.request("echo", b"from reconnected_cb", 5).data)
        assert conn.flush(5)
        told.append(conn.rtt(5) > 0)

    def disconnected(conn: gnats.Connection) -> None:
        conn.publish("echo", b"from disconnected_cb")
        told.append(conn.status)

    conn = gnats.connect(
        nats_server.url,
        **FAST,
        connected_cb=connected,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
    )
    wait_until(lambda: told == [b"from connected_cb"])
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    nats_server.start()
    wait_until(lambda: len(told) == 4)
    assert told[1:] == ["reconnecting", b"from reconnected_cb", True]
    conn.close()
    check_books(conn)


def test_reconnected_means_restored_and_replayed(nats_server: NatsServer) -> None:
    told: list[Any] = []
    conn = gnats.connect(
        nats_server.url, **FAST, reconnected_cb=lambda c: told.append(c.stats.buffered)
    )
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    for _ in range(500):
        conn.publish("a", b"x" * 1000)
    nats_server.start()
    wait_until(lambda: told)
    assert told == [0]
    conn.close()
    check_books(conn)


# -- the queue by itself --------------------------------------------------------------------------


def queue(failures: list[Any] | None = None) -> CallbackQueue:
    kept = [] if failures is None else failures
    return CallbackQueue(lambda callback, exc: kept.append((callback, exc)))


def test_the_queue_keeps_order_and_never_switches() -> None:
    calls, told = queue(), []
    calls.post(None, 1, 2)
    for number in range(100):
        calls.post(told.append, number)
    assert told == []
    assert calls.join(5) is True
    assert told == list(range(100))
    assert calls.join(0) is True


def test_the_queue_takes_posts_of_its_own_calls() -> None:
    calls, told = queue(), []

    def outer(depth: int) -> None:
        assert calls.is_current
        told.append(depth)
        if depth < 5:
            calls.post(outer, depth + 1)

    calls.post(outer, 0)
    assert not calls.is_current
    assert calls.join(5)
    assert told == [0, 1, 2, 3, 4, 5]


def test_the_queue_joins_with_a_bound() -> None:
    calls, release = queue(), Event()
    calls.post(release.wait, 10)
    began = monotonic()
    assert calls.join(0.05) is False
    assert monotonic() - began < 0.05 + SLACK
    release.set()
    assert calls.join(5) is True


def test_the_queue_passes_failures_on() -> None:
    failures: list[Any] = []
    calls, told = queue(failures), []

    def fail() -> None:
        raise ZeroDivisionError

    def exit_() -> None:
        raise gevent.GreenletExit

    for callback in (fail, exit_, fail):
        calls.post(callback)
        calls.post(told.append, callback)
    assert calls.join(5)
    assert told == [fail, exit_, fail]
    assert [(callback, type(exc)) for callback, exc in failures] == [(fail, ZeroDivisionError)] * 2


def test_posts_from_the_hub() -> None:
    calls, told = queue(), []
    gevent.get_hub().loop.run_callback(calls.post, told.append, 1)
    wait_until(lambda: told == [1])
    assert calls.join(5)


# -- calls from hub callbacks, where nothing may wait ---------------------------------------------


def in_a_hub_callback(call: Any) -> Any:
    """What *call* returned, or the error that it raised, in a callback of the loop."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as exc:
            outcome.append(exc)

    gevent.get_hub().loop.run_callback(run)
    return wait_until(lambda: outcome)[0]


WAITING: dict[str, Any] = {
    "flush": lambda conn, sub: conn.flush(1),
    "rtt": lambda conn, sub: conn.rtt(1),
    "request": lambda conn, sub: conn.request(sub.subject, b"x", 1),
    "request_many": lambda conn, sub: list(conn.request_many(sub.subject, b"x", 1)),
    "wait_for_status": lambda conn, sub: conn.wait_for_status("closed", 1),
    "next_msg": lambda conn, sub: sub.next_msg(1),
    "sub.drain": lambda conn, sub: sub.drain(1),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_call_that_waits_is_refused_in_a_hub_callback(shared_nats_server: Any, name: str) -> None:
    """And before anything is half done: no message sent, no subscription ended."""
    conn = gnats.connect(shared_nats_server.url)
    sub = conn.subscribe(conn.new_inbox())
    assert conn.flush(5)
    outcome = in_a_hub_callback(lambda: WAITING[name](conn, sub))
    assert isinstance(outcome, Exception)
    if name != "request_many":  # the call is legal there, only its iteration waits
        assert conn.stats.accepted == 0
    assert conn._requests.waiting == 0
    conn.publish(sub.subject, b"still here")
    while sub.next_msg(5).data != b"still here":
        pass
    conn.close()
    check_books(conn)


def test_connect_is_refused_in_a_hub_callback(shared_nats_server: NatsServer) -> None:
    conn = gnats.Connection()
    assert isinstance(in_a_hub_callback(lambda: conn.connect(shared_nats_server.url)), Exception)
    assert conn.status == "disconnected"
    conn.connect(shared_nats_server.url)
    assert conn.flush(5)
    conn.close()


def test_calls_that_never_wait_are_legal_in_a_hub_callback(shared_nats_server: NatsServer) -> None:
    conn = gnats.connect(shared_nats_server.url, **FAST)
    subject = conn.new_inbox()
    sub = in_a_hub_callback(lambda: conn.subscribe(subject))
    in_a_hub_callback(lambda: conn.publish(subject, b"x", headers={"a": "b"}))
    assert sub.next_msg(5).data == b"x"
    assert in_a_hub_callback(lambda: sub.unsubscribe(2)) is None
    conn.publish(subject, b"y")
    assert conn.flush(5)
    assert in_a_hub_callback(lambda: sub.next_msg(0)).data == b"y"  # queued: it need not wait
    assert sub.is_closed
    assert in_a_hub_callback(lambda: conn.add_server("127.0.0.1:1")) is None
    assert in_a_hub_callback(conn.force_reconnect) is None
    wait_until(lambda: conn.stats.connects == 2)
    assert in_a_hub_callback(lambda: conn.stats.accepted) == 2
    conn.close()
    check_books(conn)


def test_discoveries_without_end_do_not_fill_the_memory() -> None:
    calls = queue()
    gate, heard = Event(), []
    calls.post(lambda: gate.wait())
    gevent.sleep(0)
    for _ in range(MOST_WAITING + 50):
        calls.post_bounded(lambda conn: heard.append(conn), "conn")
    calls.post(heard.append, "closed")  # what happens once is never left out
    gate.set()
    assert calls.join(10)
    assert heard == ["conn"] * MOST_WAITING + ["closed"]
    calls.post_error(lambda conn, exc: heard.append(str(exc)), "conn", ValueError("new"))
    assert calls.join(10)
    assert heard[-2].startswith("50 ")
    assert heard[-1] == "new"
