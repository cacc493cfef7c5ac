"""Other threads than the connection's: their messages, their close, and what is refused to them.

The threads here are native ones, whatever is patched.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.subprocess
import pytest
from finish import check_books
from gevent.monkey import get_original
from native import Native

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.outbox import HIGH_WATER
from gnats.testing import FakeClient, NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
_ids = NUID()
_sleep = get_original("time", "sleep")
get_ident = get_original("_thread", "get_ident")


def publish_numbers(conn: gnats.Connection, subject: str, count: int) -> None:
    for number in range(count):
        conn.publish(subject, b"%d" % number)


# -- publish --------------------------------------------------------------------------------------


def test_each_threads_messages_come_all_and_in_order(
    conn: gnats.Connection, connect: Any, subject: str
) -> None:
    arrived: dict[str, list[int]] = defaultdict(list)
    receiver = connect()
    receiver.subscribe(
        f"{subject}.*", cb=lambda msg: arrived[msg.subject.rpartition(".")[2]].append(int(msg.data))
    )
    receiver.flush()
    threads = [Native(publish_numbers, conn, f"{subject}.{name}", 5000) for name in range(4)]
    publish_numbers(conn, f"{subject}.own", 5000)
    while not all(thread.is_over for thread in threads):
        check_books(conn)
        gevent.sleep(0.001)
    for thread in threads:
        thread.join()
    conn.flush()
    wait_until(lambda: sum(map(len, arrived.values())) == 25_000, timeout=20.0)
    assert dict(arrived) == {name: list(range(5000)) for name in ["0", "1", "2", "3", "own"]}
    assert conn.stats.accepted == 25_000


def test_from_the_thread_pool_of_gevent(conn: gnats.Connection, connect: Any, subject: str) -> None:
    sub = connect().subscribe(subject)
    sub._host.flush(5.0)
    pool = gevent.get_hub().threadpool
    for result in [pool.spawn(conn.publish, subject, b"%d" % number) for number in range(200)]:
        result.get(timeout=10.0)
    assert sorted(int(sub.next_msg(5.0).data) for _ in range(200)) == list(range(200))


def test_a_message_with_everything(conn: gnats.Connection, connect: Any, subject: str) -> None:
    other = connect()
    sub = other.subscribe(subject)
    other.flush()
    Native(conn.publish, subject, "späť", "answer.here", {"A": ["1", "2"]}).join()
    msg = sub.next_msg(5.0)
    assert msg.data == "späť".encode()
    assert msg.reply == "answer.here"
    assert msg.headers is not None
    assert msg.headers.get_all("A") == ["1", "2"]


def test_a_message_is_behind_the_flush_of_the_owner(
    conn: gnats.Connection, connect: Any, subject: str
) -> None:
    """Though the loop has not turned since it was published."""
    other = connect()
    sub = other.subscribe(subject)
    other.flush()
    Native(conn.publish, subject, b"before").join_blocking()
    assert conn.stats.accepted == 1
    assert conn.flush()
    other.flush()
    assert sub.next_msg(timeout=0).data == b"before"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("a b",), errors.BadSubjectError),
        (("",), errors.BadSubjectError),
        ((5,), errors.BadSubjectError),
        (("a", 5), TypeError),
        (("a", b"", "b c"), errors.BadSubjectError),
        (("a", b"", "", {"A\r\n": "b"}), errors.HeaderError),
        (("a", bytes(2 * 1024 * 1024)), errors.MaxPayloadError),
    ],
)
def test_bad_input_is_refused_where_it_is_given(
    conn: gnats.Connection, args: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Native(conn.publish, *args).join()
    assert conn.stats.accepted == 0


def test_respond(conn: gnats.Connection, connect: Any, subject: str) -> None:
    """A handler that leaves its work to a thread, which answers."""
    pool = gevent.get_hub().threadpool
    conn.subscribe(subject, cb=lambda msg: pool.spawn(msg.respond, msg.data.upper(), {"K": "v"}))
    conn.flush()
    msg = connect().request(subject, b"work", timeout=10.0)
    assert msg.data == b"WORK"
    assert msg.headers["K"] == "v"


# -- room -----------------------------------------------------------------------------------------


def test_a_thread_waits_for_room_while_the_owner_is_busy(
    conn: gnats.Connection, connect: Any, subject: str
) -> None:
    other = connect()
    sub = other.subscribe(subject)
    other.flush()
    payload = bytes(HIGH_WATER // 8)
    thread = Native(lambda: [conn.publish(subject, payload) for _ in range(20)])
    # The owner computes: nothing of its loop turns, until the eighth finds no room.
    deadline = monotonic() + 10.0
    while conn.stats.accepted < 7 and monotonic() < deadline:
        _sleep(0.001)
    _sleep(0.05)
    assert not thread.is_over
    assert conn.stats.accepted == 7
    check_books(conn)
    thread.join()
    assert len([sub.next_msg(5.0) for _ in range(20)]) == 20


def test_no_longer_than_publish_timeout(connect: Any, subject: str) -> None:
    conn = connect(publish_timeout=0.05)
    other = connect()
    sub = other.subscribe(subject)
    other.flush()
    payload = bytes(HIGH_WATER // 4)

    def fill() -> int:
        for number in range(100):
            try:
                conn.publish(subject, payload)
            except errors.OutboundBufferLimitError:
                return number
        return 100

    accepted = Native(fill).join_blocking()
    assert accepted == 3  # and their heads are over three quarters
    assert conn.stats.accepted == accepted
    assert len([sub.next_msg(5.0) for _ in range(accepted)]) == accepted
    with pytest.raises(errors.TimeoutError):
        sub.next_msg(0.1)


def test_one_larger_than_all_room_goes_alone(subject: str) -> None:
    with NatsServer(config="max_payload: 8MB") as server, gnats.connect(server.url) as conn:
        Native(conn.publish, subject, bytes(4 * HIGH_WATER)).join()
        assert conn.flush()


def test_the_owners_greenlets_and_threads_take_turns(
    conn: gnats.Connection, connect: Any, subject: str
) -> None:
    received: dict[bytes, int] = defaultdict(int)

    def count(msg: gnats.Msg) -> None:
        received[msg.data[:1]] += 1

    other = connect()
    other.subscribe(subject, cb=count)
    other.flush()
    body = bytes(HIGH_WATER // 4)

    def fill(name: bytes) -> None:
        for _ in range(40):
            conn.publish(subject, name + body)

    threads = [Native(fill, name) for name in (b"a", b"b")]
    greenlets = [gevent.spawn(fill, name) for name in (b"c", b"d")]
    gevent.joinall(greenlets, timeout=30.0, raise_error=True)
    for thread in threads:
        thread.join(30.0)
    wait_until(lambda: sum(received.values()) == 160, timeout=30.0)
    assert set(received.values()) == {40}


# -- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_through_an_outage(nats_server: NatsServer, subject: str, keep: bool) -> None:
    conn = gnats.connect(nats_server.url, replay_unconfirmed=keep, **FAST)
    receiver = gnats.connect(nats_server.url, **FAST)
    arrived: dict[str, list[int]] = defaultdict(list)
    receiver.subscribe(
        f"{subject}.*", cb=lambda msg: arrived[msg.subject.rpartition(".")[2]].append(int(msg.data))
    )
    receiver.flush()
    stopping: list[bool] = []

    def work(name: int) -> int:
        number = 0
        while not stopping:
            conn.publish(f"{subject}.{name}", b"%d" % number)
            number += 1
            _sleep(0.0005)
        return number

    threads = [Native(work, name) for name in range(3)]
    wait_until(lambda: sum(map(len, arrived.values())) > 300, timeout=10.0)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    before = conn.stats.accepted
    wait_until(lambda: conn.stats.accepted > before + 100, timeout=10.0)
    nats_server.restart()
    conn.wait_for_status("connected", timeout=10.0)
    receiver.wait_for_status("connected", timeout=10.0)
    before = conn.stats.accepted
    wait_until(lambda: conn.stats.accepted > before + 100, timeout=10.0)
    stopping.append(True)
    counts = [thread.join() for thread in threads]
    conn.flush()
    stats = conn.stats
    assert stats.accepted == sum(counts)
    assert stats.dropped == 0
    if keep:
        assert stats.uncertain == 0
    for name in range(3):
        numbers = arrived[str(name)]
        assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
    conn.close()
    receiver.close()
    check_books(conn)


def test_a_full_buffer_raises_at_once(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url, reconnect_buf_size=1000, **FAST)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)

    def fill() -> int:
        for number in range(100):
            try:
                conn.publish(subject, bytes(100))
            except errors.OutboundBufferLimitError:
                return number
        return 100

    accepted = Native(fill).join_blocking()
    assert 5 <= accepted <= 8
    stats = conn.stats
    assert (stats.accepted, stats.buffered) == (accepted, accepted)
    assert stats.buffered_bytes <= 1000
    gevent.sleep(0)
    assert conn.stats == stats
    conn.close()
    assert conn.stats.dropped == accepted
    check_books(conn)


def test_without_a_buffer(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url, reconnect_buf_size=0, **FAST)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    with pytest.raises(errors.OutboundBufferLimitError):
        Native(conn.publish, subject).join()
    conn.close()
    assert conn.stats.accepted == 0


# -- the end --------------------------------------------------------------------------------------


def test_a_drain_takes_along_what_was_accepted(connect: Any, subject: str) -> None:
    conn, receiver = connect(), connect()
    sub = receiver.subscribe(subject)
    receiver.flush()
    refusals: list[BaseException] = []

    def work() -> int:
        for number in range(1_000_000):
            try:
                conn.publish(subject, b"%d" % number)
            except errors.Error as exc:
                refusals.append(exc)
                return number
        return -1

    threads = [Native(work) for _ in range(3)]
    wait_until(lambda: conn.stats.accepted > 100, timeout=10.0)
    conn.drain()
    accepted = sum(thread.join() for thread in threads)
    assert all(
        isinstance(exc, (errors.ConnectionDrainingError, errors.ConnectionClosedError))
        for exc in refusals
    )
    stats = conn.stats
    assert (stats.accepted, stats.sent) == (accepted, accepted)
    receiver.flush()
    assert sub.pending_msgs == accepted


def test_close(connect: Any) -> None:
    closed: list[gnats.Connection] = []
    conn = connect(closed_cb=closed.append)
    sub = conn.subscribe("nothing.comes")
    waiting = gevent.spawn(sub.next_msg, timeout=None)
    gevent.sleep(0)
    Native(conn.close).join()
    assert conn.is_closed
    with pytest.raises(errors.ConnectionClosedError):
        waiting.get(timeout=5.0)
    wait_until(lambda: closed == [conn], timeout=5.0)
    Native(conn.close).join()
    with pytest.raises(errors.ConnectionClosedError):
        Native(conn.publish, "a").join()
    assert closed == [conn]


def test_many_close_at_once(connect: Any) -> None:
    conn = connect()
    for thread in [Native(conn.close) for _ in range(20)]:
        thread.join()
    assert conn.is_closed


def test_close_writes_what_was_handed_over(connect: Any, subject: str) -> None:
    conn, receiver = connect(), connect()
    sub = receiver.subscribe(subject)
    receiver.flush()

    def work() -> None:
        publish_numbers(conn, subject, 100)
        conn.close()

    Native(work).join()
    assert [int(sub.next_msg(5.0).data) for _ in range(100)] == list(range(100))
    assert conn.stats.sent == 100


def test_close_while_the_server_is_away(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    Native(conn.close).join()
    assert conn.is_closed


def test_close_under_a_blocked_loop_says_so(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnats.connection.CLOSE_BOUND", 0.1)
    conn = connect()
    with pytest.raises(errors.TimeoutError, match="did not turn"):
        Native(conn.close).join_blocking()
    wait_until(lambda: conn.is_closed, timeout=5.0)  # it is closed as soon as it can be


def test_a_connection_that_never_was_connected() -> None:
    conn = gnats.Connection()
    with pytest.raises(errors.ConnectionClosedError, match="connect"):
        Native(conn.publish, "a").join()
    Native(conn.close).join()
    assert conn.is_closed


OWNER_ENDS = """
import sys
import gevent, gnats
from gnats.errors import ConnectionClosedError
from native import Native

conn = Native(gnats.connect, sys.argv[1]).join()

def use():
    for call in (lambda: conn.publish("a"), conn.close):
        try:
            call()
        except ConnectionClosedError as exc:
            assert "thread" in str(exc), exc
        else:
            sys.exit("it was taken by nobody")

use()
for _ in range(10):  # one of them is likely to have the ident of the thread that ended
    Native(use).join()
assert conn.stats.accepted == 0
health = conn.health()
assert health.abandoned and not health.is_live and not health.is_ready

def begin():
    conns.append(gnats.connect(sys.argv[1]))
    Native(conns[0].publish, "a").join_blocking()  # it rings, and is not answered

conns = []
Native(begin).join()
try:
    conns[0].publish("a")
except ConnectionClosedError:
    print("ok")
"""


def test_the_owners_thread_has_ended(shared_nats_server: NatsServer) -> None:
    """In a process of its own: what such a thread leaves, nobody can end."""
    done = gevent.subprocess.run(
        [sys.executable, "-c", OWNER_ENDS, shared_nats_server.url],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=30,
    )
    assert done.stdout.strip().endswith(b"ok"), done.stdout + done.stderr


def test_close_while_a_first_connect_fails(fake_server: Any) -> None:
    """It is closed, for good: no wish is left behind for the next connect."""
    going_on: list[bool] = []

    def hold(client: FakeClient) -> None:
        wait_until(lambda: bool(going_on), 10.0)
        client.close()

    conn = gnats.Connection(error_cb=lambda conn, exc: None)
    server = fake_server(hold)
    connecting = gevent.spawn(conn.connect, server.url)
    wait_until(lambda: len(server.clients) == 1, 5.0)
    closing = Native(conn.close)
    going_on.append(True)
    closing.join()
    with pytest.raises(errors.Error):
        connecting.get(timeout=5.0)
    assert conn.is_closed


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002, 0.004])
def test_close_at_about_the_time_of_the_failure(delay: float) -> None:
    conn = gnats.Connection()

    def close_soon() -> None:
        _sleep(delay)
        conn.close()

    closing = Native(close_soon)
    with pytest.raises(errors.Error):
        conn.connect("nats://127.0.0.1:1")
    closing.join()
    assert conn.is_closed


# -- what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[gnats.Connection, gnats.Subscription], Any]] = {
    "connect": lambda conn, _: conn.connect(),
    "add_server": lambda conn, _: conn.add_server("nats://127.0.0.1:1"),
    "set_servers": lambda conn, _: conn.set_servers(["nats://127.0.0.1:1"]),
    "force_reconnect": lambda conn, _: conn.force_reconnect(),
    "subscribe": lambda conn, _: conn.subscribe("a"),
    "request": lambda conn, _: conn.request("a"),
    "request_many": lambda conn, _: conn.request_many("a"),
    "flush": lambda conn, _: conn.flush(),
    "rtt": lambda conn, _: conn.rtt(),
    "drain": lambda conn, _: conn.drain(),
    "wait_for_status": lambda conn, _: conn.wait_for_status("connected"),
    "next_msg": lambda _, sub: sub.next_msg(),
    "iteration": lambda _, sub: next(iter(sub)),
    "unsubscribe": lambda _, sub: sub.unsubscribe(),
    "sub.drain": lambda _, sub: sub.drain(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused(conn: gnats.Connection, subject: str, name: str) -> None:
    sub = conn.subscribe(subject)
    conn.flush()
    before = conn.stats
    expected = errors.Error if name == "connect" else errors.WrongThreadError
    with pytest.raises(expected):
        Native(REFUSED[name], conn, sub).join()
    assert conn.stats == before
    assert not sub.is_closed
    assert conn.is_connected
    conn.publish(subject, b"as before")
    assert sub.next_msg(5.0).data == b"as before"


def test_answers_belong_to_the_thread_that_asked(conn: gnats.Connection, subject: str) -> None:
    conn.subscribe(subject, cb=lambda msg: msg.respond(b"yes"))
    replies = conn.request_many(subject, timeout=5.0, max_msgs=1)
    with pytest.raises(errors.WrongThreadError):
        Native(next, replies).join()
    assert next(replies).data == b"yes"


def test_the_words() -> None:
    error = errors.WrongThreadError("request")
    assert error.operation == "request"
    assert "publish" in str(error)


def test_looking_is_free(conn: gnats.Connection) -> None:
    def look() -> list[Any]:
        return [conn.status, conn.is_connected, conn.stats, conn.health().is_ready, repr(conn)]

    assert Native(look).join() == look()


# -- several owners -------------------------------------------------------------------------------


def test_each_thread_its_own_connection(shared_nats_server: NatsServer, subject: str) -> None:
    def work(name: int) -> list[int]:
        with gnats.connect(shared_nats_server.url) as conn:
            sub = conn.subscribe(f"{subject}.{name}")
            conn.flush()
            publish_numbers(conn, f"{subject}.{name}", 500)
            return [int(sub.next_msg(5.0).data) for _ in range(500)]

    for thread in [Native(work, name) for name in range(3)]:
        assert thread.join() == list(range(500))


def test_a_connect_that_failed_leaves_it_to_nobody(shared_nats_server: NatsServer) -> None:
    conn = gnats.Connection()
    with pytest.raises(errors.NoServersError):
        conn.connect("nats://127.0.0.1:1")

    def work() -> bytes:
        conn.set_servers([shared_nats_server.url])
        conn.connect()
        with conn:
            conn.subscribe("threads.again", cb=lambda msg: msg.respond(b"here"))
            return conn.request("threads.again", timeout=5.0).data

    assert Native(work).join() == b"here"


def test_callbacks_are_called_in_the_thread_that_connected(
    shared_nats_server: NatsServer,
) -> None:
    told: list[tuple[str, int]] = []

    def tell(_: Any, old: Any, new: Any) -> None:
        told.append((str(new), get_ident()))

    conn = gnats.Connection(status_cb=tell)
    with pytest.raises(errors.NoServersError):
        conn.connect("nats://127.0.0.1:1")

    def work() -> int:
        conn.set_servers([shared_nats_server.url])
        conn.connect()
        conn.close()
        return get_ident()

    there = Native(work).join_blocking()  # our own loop stands still meanwhile
    assert [word for word, ident in told if ident == there] == ["connecting", "connected", "closed"]
    wait_until(lambda: len(told) == 5, 5.0)
    assert [word for word, ident in told if ident != there] == ["connecting", "disconnected"]


def test_who_waits_for_a_status_may_wait_in_another_thread(
    shared_nats_server: NatsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    conn = gnats.Connection()
    waiting = gevent.spawn(conn.wait_for_status, "connected", 10.0)
    gevent.sleep(0.01)
    over: list[bool] = []

    def work() -> None:
        conn.connect(shared_nats_server.url)
        while not over:
            gevent.sleep(0.005)
        conn.close()

    thread = Native(work)
    assert waiting.get(timeout=5.0)
    over.append(True)
    thread.join()
    assert "Traceback" not in capfd.readouterr().err


def test_no_counter_falls_for_a_thread_that_looks(
    conn: gnats.Connection, connect: Any, subject: str
) -> None:
    conn.subscribe(subject, cb=lambda msg: None)
    over: list[bool] = []
    interval = sys.getswitchinterval()

    def look() -> list[str]:
        fallen, before = [], conn.stats
        while not over:
            stats = conn.stats
            fallen += [
                name
                for name in ("accepted", "out_bytes", "in_msgs", "in_bytes", "pings_sent")
                if getattr(stats, name) < getattr(before, name)
            ]
            before = stats
        return fallen

    sys.setswitchinterval(1e-5)
    try:
        looking = Native(look)
        publishing = [Native(publish_numbers, conn, subject, 2000) for _ in range(2)]
        for _ in range(5):
            gevent.sleep(0.02)
            conn.force_reconnect()
            wait_until(lambda: conn.is_connected, 5.0)
        for thread in publishing:
            thread.join()
        over.append(True)
        assert looking.join() == []
    finally:
        sys.setswitchinterval(interval)


def test_health_counts_what_was_handed_over(conn: gnats.Connection, subject: str) -> None:
    Native(publish_numbers, conn, subject, 50).join_blocking()
    health = conn.health()
    assert (health.buffered, health.buffered_bytes) == (
        conn.stats.buffered,
        conn.stats.buffered_bytes,
    )
    assert health.buffered == 50
    conn.flush()
    assert conn.health().buffered == 0


def test_one_that_strikes_while_the_lock_is_held_does_not_wait(
    conn: gnats.Connection, subject: str
) -> None:
    """As the handler of a signal may, or a __del__: nobody could make room for it."""

    def work() -> None:
        with conn._outbox.handed.lock:
            for _ in range(20):
                conn.publish(subject, bytes(HIGH_WATER // 8))

    with pytest.raises(errors.OutboundBufferLimitError):
        Native(work).join()
    check_books(conn)
    conn.flush()


def test_an_owner_that_waits_for_the_thread_is_found_out(
    conn: gnats.Connection, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program does that joins its threads: no room will ever come."""
    monkeypatch.setattr("gnats.threads.STUCK", 0.2)
    monkeypatch.setattr("gnats.threads.LOOK_EVERY", 0.05)

    def work() -> None:
        for _ in range(20):
            conn.publish(subject, bytes(HIGH_WATER // 8))

    with pytest.raises(errors.OutboundBufferLimitError, match="does not turn"):
        Native(work).join_blocking()
    check_books(conn)
    accepted = conn.stats.accepted
    conn.flush()
    assert conn.stats.sent == accepted


def test_a_slow_server_is_no_stuck_owner(
    nats_server: NatsServer, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnats.threads.STUCK", 0.2)
    monkeypatch.setattr("gnats.threads.LOOK_EVERY", 0.05)
    conn = gnats.connect(nats_server.url)
    nats_server.pause()
    thread = Native(lambda: [conn.publish(subject, bytes(HIGH_WATER // 2)) for _ in range(30)])
    gevent.sleep(1.0)
    assert not thread.is_over
    nats_server.resume()
    thread.join()
    conn.flush()
    assert conn.stats.sent == 30
    conn.close()


def test_a_made_but_unconnected_one_can_be_filled_anywhere() -> None:
    conn = gnats.Connection()
    Native(conn.add_server, "nats://127.0.0.1:1").join()
    assert [str(url) for url in conn.servers] == ["nats://127.0.0.1:1"]


# -- against a server that does not read ----------------------------------------------------------


def test_a_thread_that_waits_hears_of_the_close(fake_server: Any, subject: str) -> None:
    def stall(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    conn = gnats.connect(fake_server(stall).url, write_timeout=60.0, allow_reconnect=False)
    body = bytes(HIGH_WATER // 2)

    def fill() -> None:
        while True:
            conn.publish(subject, body)

    thread = Native(fill)
    seen: list[int] = []

    def has_come_to_rest() -> bool:
        seen.append(conn.stats.accepted)
        return len(seen) > 50 and seen[-50] == seen[-1] > 0

    wait_until(has_come_to_rest, timeout=20.0)  # it is bounded: the thread waits
    assert HIGH_WATER // 2 < conn.stats.buffered_bytes < 3 * HIGH_WATER
    conn.close()
    with pytest.raises(errors.ConnectionClosedError):
        thread.join()
    check_books(conn)
    assert conn.stats.dropped > 0
