"""Draining a connection: what is here is finished, what is finished arrives, and it always ends."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from finish import check_books
from gevent.event import Event

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import FakeClient, FakeServer, NatsServer, free_port, wait_until

_ids = NUID()
FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
SLACK = 0.9


def assert_drained(conn: gnats.Connection) -> None:
    assert conn.is_closed
    assert conn.status == "closed"
    assert not conn.is_draining
    check_books(conn)
    assert conn.stats.buffered == 0


class Life:
    """Everything the callbacks of one connection were told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def options(self) -> dict[str, Any]:
        return {
            "status_cb": lambda _, old, new: self.told.append(f"{old}>{new}"),
            "error_cb": lambda _, exc: self.told.append(exc),
            "closed_cb": lambda _: self.told.append("closed"),
        }

    @property
    def moves(self) -> list[str]:
        return [one for one in self.told if isinstance(one, str) and ">" in one]

    @property
    def errors(self) -> list[Exception]:
        return [one for one in self.told if isinstance(one, Exception)]


GOOD_MOVES = [
    "disconnected>connecting",
    "connecting>connected",
    "connected>draining_subs",
    "draining_subs>draining_pubs",
    "draining_pubs>closed",
]


@pytest.fixture
def subject() -> str:
    return f"drain.{_ids.next()}"


@pytest.fixture
def life() -> Life:
    return Life()


@pytest.fixture
def conn(shared_nats_server: NatsServer, life: Life) -> Iterator[gnats.Connection]:
    opened = gnats.connect(shared_nats_server.url, **life.options())
    yield opened
    opened.close()
    check_books(opened)


@pytest.fixture
def other(shared_nats_server: NatsServer) -> Iterator[gnats.Connection]:
    opened = gnats.connect(shared_nats_server.url)
    yield opened
    opened.close()
    check_books(opened)


def listen(conn: gnats.Connection, subject: str) -> gnats.Subscription:
    sub = conn.subscribe(subject)
    assert conn.flush(5)
    return sub


def test_an_idle_connection(conn: gnats.Connection, life: Life) -> None:
    began = monotonic()
    conn.drain()
    assert monotonic() - began < SLACK
    assert_drained(conn)
    wait_until(lambda: life.told[-1] == "closed")
    assert life.moves == GOOD_MOVES
    assert life.told.count("closed") == 1
    assert life.errors == []
    conn.drain()  # on a closed connection it does nothing
    conn.drain(0)


def test_queued_and_flying_messages_are_handled_and_their_answers_arrive(
    conn: gnats.Connection, other: gnats.Connection, subject: str
) -> None:
    results = listen(other, f"{subject}.done")

    def handler(msg: gnats.Msg) -> None:
        gevent.sleep(0.001)
        conn.publish(f"{subject}.done", msg.data)

    subs = [conn.subscribe(subject, queue="q", cb=handler, concurrency=n) for n in (1, 3)]
    assert conn.flush(5)
    for number in range(200):
        other.publish(subject, b"%d" % number)
    assert other.flush(5)  # at the server; on their way to us
    conn.drain(10)
    assert_drained(conn)
    assert sum(sub.delivered for sub in subs) == 200
    assert all(sub.is_closed and sub.dropped == 0 for sub in subs)
    assert other.flush(5)
    got = sorted(int(results.next_msg(0).data) for _ in range(results.pending_msgs))
    assert got == list(range(200))


def test_nothing_comes_after(conn: gnats.Connection, other: gnats.Connection, subject: str) -> None:
    """What is published while it drains is another's: the queue group goes on without us."""
    stays = other.subscribe(subject, queue="q")
    handled: list[bytes] = []
    conn.subscribe(subject, queue="q", cb=lambda msg: handled.append(msg.data))
    assert conn.flush(5)
    assert other.flush(5)

    def flood() -> None:
        for number in range(500):
            other.publish(subject, b"%d" % number)
            if number % 20 == 0:
                gevent.sleep(0.001)

    flooding = gevent.spawn(flood)
    gevent.sleep(0.005)
    conn.drain(10)
    flooding.get(timeout=10)
    assert other.flush(5)
    wait_until(lambda: len(handled) + stays.pending_msgs == 500)
    mine = {int(data) for data in handled}
    theirs = {int(stays.next_msg(0).data) for _ in range(stays.pending_msgs)}
    assert mine | theirs == set(range(500))


def test_messages_that_nobody_reads_hold_it_up(conn: gnats.Connection, subject: str) -> None:
    sub = listen(conn, subject)
    for number in range(5):
        conn.publish(subject, b"%d" % number)
    assert conn.flush(5)
    draining = gevent.spawn(conn.drain, 5)
    wait_until(lambda: conn.status == "draining_subs")
    assert [int(msg.data) for msg in sub] == [0, 1, 2, 3, 4]
    draining.get(timeout=5)
    assert_drained(conn)


def test_a_subscription_that_ended_by_itself_is_waited_for_too(
    conn: gnats.Connection, other: gnats.Connection, subject: str
) -> None:
    """It took its last message, but has not handled it; nor has one that drains already."""
    results = listen(other, f"{subject}.done")
    release = Event()

    def handler(msg: gnats.Msg) -> None:
        release.wait(10)
        conn.publish(f"{subject}.done", msg.data)

    spent = conn.subscribe(f"{subject}.spent", cb=handler, max_msgs=3)
    drains = conn.subscribe(f"{subject}.drains", cb=handler)
    for _ in range(3):
        conn.publish(f"{subject}.spent", b"spent")
        conn.publish(f"{subject}.drains", b"drains")
    assert conn.flush(5)
    first = gevent.spawn(drains.drain, 10)
    gevent.sleep(0.01)
    draining = gevent.spawn(conn.drain, 10)
    gevent.sleep(0.05)
    assert not draining.ready()
    release.set()
    draining.get(timeout=5)
    first.get(timeout=5)
    assert spent.delivered == drains.delivered == 3
    assert other.flush(5)
    got = sorted(results.next_msg(0).data for _ in range(results.pending_msgs))
    assert got == [b"drains"] * 3 + [b"spent"] * 3


def test_calls_while_draining(conn: gnats.Connection, subject: str) -> None:
    release, asked = Event(), []

    def handler(msg: gnats.Msg) -> None:
        release.wait(10)
        # A handler that ends its work may publish, and ask for what it needs.
        conn.publish(f"{subject}.elsewhere", b"x")
        with pytest.raises(errors.NoRespondersError):
            conn.request(f"{subject}.nobody", b"x", 5)
        asked.append(msg.data)

    sub = conn.subscribe(subject, cb=handler)
    conn.publish(subject, b"x")
    assert conn.flush(5)
    draining = gevent.spawn(conn.drain, 10)
    wait_until(lambda: conn.status == "draining_subs")
    assert conn.is_draining
    assert conn.is_connected
    for call in (
        lambda: conn.subscribe("a"),
        conn.force_reconnect,
        lambda: conn.subscribe("a", cb=handler),
    ):
        with pytest.raises(errors.ConnectionDrainingError):
            call()
    assert conn.flush(5)
    assert conn.rtt(5) > 0
    assert sub.delivered == 1
    release.set()
    draining.get(timeout=5)
    assert asked == [b"x"]
    assert_drained(conn)


def test_publishing_ends_with_draining_pubs(life: Life) -> None:
    reached = Event()

    def stingy(client: FakeClient) -> None:
        client.handshake()
        pings = 0
        while True:
            if client.read_frame(timeout=20).op == "PING":
                pings += 1
                if pings == 2:
                    reached.wait(10)
                client.send(b"PONG\r\n")

    with FakeServer(stingy) as server:
        conn = gnats.connect(server.url, **life.options())
        draining = gevent.spawn(conn.drain, 10)
        wait_until(lambda: conn.status == "draining_pubs")
        assert conn.is_connected
        for call in (
            lambda: conn.publish("a", b"x"),
            lambda: conn.request("a", b"x"),
            lambda: conn.request_many("a", b"x"),
            lambda: conn.subscribe("a"),
        ):
            with pytest.raises(errors.ConnectionDrainingError):
                call()
        assert conn.stats.accepted == 0
        reached.set()
        draining.get(timeout=5)
        wait_until(lambda: life.told[-1] == "closed")
        assert life.moves == GOOD_MOVES


def test_published_messages_arrive(
    conn: gnats.Connection, other: gnats.Connection, subject: str
) -> None:
    sub = listen(other, subject)
    for number in range(5000):
        conn.publish(subject, b"%d" % number)
    conn.drain(10)
    assert other.flush(5)
    assert [int(sub.next_msg(0).data) for _ in range(sub.pending_msgs)] == list(range(5000))
    assert conn.stats.sent == 5000


# -- from within ----------------------------------------------------------------------------------


def test_from_a_handler(
    conn: gnats.Connection, other: gnats.Connection, life: Life, subject: str
) -> None:
    results = listen(other, f"{subject}.done")

    def handler(msg: gnats.Msg) -> None:
        if msg.data == b"1":
            conn.drain()
        conn.publish(f"{subject}.done", msg.data)

    sub = conn.subscribe(subject, cb=handler)
    for number in range(5):
        conn.publish(subject, b"%d" % number)
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: life.told[-1] == "closed")
    assert sub.delivered == 5
    assert life.errors == []
    assert other.flush(5)
    got = [int(results.next_msg(0).data) for _ in range(results.pending_msgs)]
    assert got == [0, 1, 2, 3, 4]
    assert_drained(conn)


def test_from_a_callback(shared_nats_server: NatsServer) -> None:
    told: list[str] = []
    conn = gnats.connect(
        shared_nats_server.url,
        connected_cb=lambda c: (told.append("connected"), c.drain(), told.append("returned")),
        closed_cb=lambda c: told.append("closed"),
    )
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: "closed" in told)
    assert told == ["connected", "returned", "closed"]
    assert_drained(conn)


def test_from_the_closed_callback(shared_nats_server: NatsServer) -> None:
    told: list[str] = []
    conn = gnats.connect(
        shared_nats_server.url, closed_cb=lambda c: (c.drain(), c.close(), told.append("closed"))
    )
    conn.drain(5)
    wait_until(lambda: told == ["closed"])


def test_a_failed_drain_from_a_handler_is_told_before_the_end(
    conn: gnats.Connection, life: Life, subject: str
) -> None:
    release = Event()
    conn.subscribe(f"{subject}.stuck", cb=lambda msg: release.wait(10))
    conn.subscribe(subject, cb=lambda msg: conn.drain(0.05))
    conn.publish(f"{subject}.stuck", b"")
    conn.publish(subject, b"")
    assert conn.wait_for_status("closed", 5)
    release.set()
    wait_until(lambda: life.errors)
    wait_until(lambda: "closed" in life.told)
    assert [type(exc) for exc in life.errors] == [errors.DrainTimeoutError]
    assert life.told[-1] == "closed"
    assert_drained(conn)


# -- it always ends -------------------------------------------------------------------------------


def test_a_handler_that_does_not_end(conn: gnats.Connection, life: Life, subject: str) -> None:
    release = Event()
    stuck = conn.subscribe(f"{subject}.stuck", cb=lambda msg: release.wait(10))
    unread = listen(conn, f"{subject}.unread")
    fine = conn.subscribe(f"{subject}.fine", cb=lambda msg: None)
    for _ in range(4):
        for name in ("stuck", "unread", "fine"):
            conn.publish(f"{subject}.{name}", b"x")
    assert conn.flush(5)
    gevent.spawn_later(0.3, release.set)  # close() would wait two seconds for it
    began = monotonic()
    with pytest.raises(errors.DrainTimeoutError) as info:
        conn.drain(0.1)
    assert 0.097 <= monotonic() - began < 0.3 + SLACK
    assert info.value.timeout == 0.1
    assert info.value.pending_msgs == 8  # three queued and one handled there, four unread
    assert info.value.buffered_msgs == 0
    assert isinstance(info.value, errors.TimeoutError)
    assert_drained(conn)
    wait_until(lambda: stuck.unhandled == 0)
    assert (stuck.delivered, stuck.dropped) == (1, 3)
    assert (unread.delivered, unread.dropped) == (0, 4)
    assert (fine.delivered, fine.dropped) == (4, 0)
    wait_until(lambda: life.told[-1] == "closed")
    # Whoever reads what was given up hears that the connection is closed.
    with pytest.raises((errors.ConnectionClosedError, errors.BadSubscriptionError)):
        unread.next_msg(0)


def test_the_time_of_the_options(shared_nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(shared_nats_server.url, drain_timeout=0.05)
    sub = listen(conn, subject)
    conn.publish(subject, b"x")
    assert conn.flush(5)
    with pytest.raises(errors.DrainTimeoutError) as info:
        conn.drain()
    assert info.value.timeout == 0.05
    assert sub.dropped == 1
    assert_drained(conn)


def test_no_time_at_all(conn: gnats.Connection, subject: str) -> None:
    conn.publish(subject, b"x")
    with pytest.raises(errors.DrainTimeoutError):
        conn.drain(0)
    assert_drained(conn)
    assert conn.stats.sent == 1  # close() still writes what was published


def test_a_paused_server(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    conn.subscribe("a", cb=lambda msg: None)
    assert conn.flush(5)
    nats_server.pause()
    conn.publish("a", b"x")
    began = monotonic()
    with pytest.raises(errors.DrainTimeoutError):
        conn.drain(0.1)
    assert monotonic() - began < 0.1 + 1 + SLACK  # close() gives the server a second
    assert_drained(conn)


def test_a_dead_server(nats_server: NatsServer, life: Life) -> None:
    conn = gnats.connect(nats_server.url, **FAST, **life.options())
    sub = conn.subscribe("a")
    conn.publish("a", b"0")
    conn.publish("a", b"1")
    assert conn.flush(5)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    for _ in range(3):
        conn.publish("a", b"x")
    began = monotonic()
    with pytest.raises(errors.DrainTimeoutError) as info:
        conn.drain(0.2)
    assert 0.197 <= monotonic() - began < 0.2 + SLACK
    assert (info.value.pending_msgs, info.value.buffered_msgs) == (2, 3)
    assert "2" in str(info.value)
    assert "3" in str(info.value)
    assert_drained(conn)
    assert conn.stats.dropped == 3
    assert sub.is_closed
    wait_until(lambda: life.told[-1] == "closed")


def test_no_server_from_the_beginning() -> None:
    conn = gnats.connect(f"127.0.0.1:{free_port()}", **FAST, retry_on_failed_connect=True)
    conn.publish("a", b"x")
    with pytest.raises(errors.DrainTimeoutError) as info:
        conn.drain(0.1)
    assert info.value.buffered_msgs == 1
    assert_drained(conn)


def test_an_outage_that_ends_in_time(nats_server: NatsServer, life: Life) -> None:
    conn = gnats.connect(nats_server.url, **FAST, **life.options())
    handled: list[bytes] = []
    release = Event()

    def handler(msg: gnats.Msg) -> None:
        release.wait(10)
        handled.append(msg.data)
        conn.publish("done", msg.data)

    conn.subscribe("a", cb=handler)
    for number in range(5):
        conn.publish("a", b"%d" % number)
    assert conn.flush(5)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    draining = gevent.spawn(conn.drain, 10)
    gevent.sleep(0.05)
    assert conn.is_draining
    assert not draining.ready()
    nats_server.start()
    other = gnats.connect(nats_server.url)
    done = listen(other, "done")
    release.set()
    draining.get(timeout=10)
    assert_drained(conn)
    assert handled == [b"0", b"1", b"2", b"3", b"4"]
    assert other.flush(5)
    assert [int(done.next_msg(0).data) for _ in range(done.pending_msgs)] == [0, 1, 2, 3, 4]
    wait_until(lambda: life.told[-1] == "closed")
    other.close()


def test_an_outage_in_the_middle(nats_server: NatsServer, life: Life) -> None:
    conn = gnats.connect(nats_server.url, **FAST, **life.options())
    release = Event()

    def handler(msg: gnats.Msg) -> None:
        release.wait(10)
        conn.publish("done", msg.data)

    conn.subscribe("a", cb=handler)
    for number in range(5):
        conn.publish("a", b"%d" % number)
    assert conn.flush(5)
    draining = gevent.spawn(conn.drain, 10)
    wait_until(lambda: conn.status == "draining_subs")
    gevent.sleep(0.02)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    assert conn.is_draining
    release.set()
    gevent.sleep(0.02)
    assert not draining.ready()
    nats_server.start()
    draining.get(timeout=10)
    assert_drained(conn)
    assert nats_server.varz()["in_msgs"] == 5
    assert conn.stats.sent == 10
    wait_until(lambda: life.told[-1] == "closed")
    assert life.moves[2:4] == ["connected>draining_subs", "draining_subs>reconnecting"]
    assert life.moves[-1] == "draining_pubs>closed"


def test_a_link_that_does_not_come_back(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, allow_reconnect=False)
    sub = listen(conn, "a")
    conn.publish("a", b"x")
    assert conn.flush(5)
    draining = gevent.spawn(conn.drain, 10)
    wait_until(lambda: conn.status == "draining_subs")
    nats_server.kill()
    with pytest.raises((errors.ConnectionClosedError, errors.DrainTimeoutError)):
        draining.get(timeout=5)
    assert_drained(conn)
    assert sub.is_closed


# -- two of them ----------------------------------------------------------------------------------


def test_a_second_drain_waits_for_the_first(conn: gnats.Connection, subject: str) -> None:
    release = Event()
    sub = conn.subscribe(subject, cb=lambda msg: release.wait(10))
    conn.publish(subject, b"x")
    assert conn.flush(5)
    drains = [gevent.spawn(conn.drain, 10) for _ in range(3)]
    gevent.sleep(0.05)
    assert not any(drain.ready() for drain in drains)
    release.set()
    for drain in drains:
        drain.get(timeout=5)
    assert sub.delivered == 1
    assert_drained(conn)


def test_a_second_drain_has_a_time_of_its_own(conn: gnats.Connection, subject: str) -> None:
    release = Event()
    conn.subscribe(subject, cb=lambda msg: release.wait(10))
    conn.publish(subject, b"x")
    assert conn.flush(5)
    first = gevent.spawn(conn.drain, 10)
    wait_until(lambda: conn.status == "draining_subs")
    gevent.spawn_later(1.2, release.set)
    began = monotonic()
    with pytest.raises(errors.DrainTimeoutError):
        conn.drain(0.1)
    assert monotonic() - began < 0.1 + SLACK
    first.get(timeout=5)
    assert_drained(conn)


def test_close_ends_a_drain(conn: gnats.Connection, life: Life, subject: str) -> None:
    sub = listen(conn, subject)
    conn.publish(subject, b"x")
    assert conn.flush(5)
    draining = gevent.spawn(conn.drain, 30)
    wait_until(lambda: conn.status == "draining_subs")
    began = monotonic()
    conn.close()
    with pytest.raises(errors.ConnectionClosedError):
        draining.get(timeout=5)
    assert monotonic() - began < SLACK
    assert sub.is_closed
    assert_drained(conn)
    wait_until(lambda: life.told[-1] == "closed")
    with pytest.raises(errors.ConnectionClosedError):
        conn.publish(subject, b"x")


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_drain_that_is_struck_still_closes(
    conn: gnats.Connection, subject: str, how: str
) -> None:
    sub = listen(conn, subject)
    conn.publish(subject, b"x")
    assert conn.flush(5)
    if how == "kill":
        draining = gevent.spawn(conn.drain, 30)
        wait_until(lambda: conn.status == "draining_subs")
        draining.kill(timeout=5)
        assert draining.dead
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            conn.drain(30)
    assert conn.wait_for_status("closed", 5)
    assert sub.is_closed
    assert_drained(conn)


# -- the context manager --------------------------------------------------------------------------


def test_leaving_the_context_drains(
    shared_nats_server: NatsServer, other: gnats.Connection, subject: str
) -> None:
    results = listen(other, f"{subject}.done")
    with gnats.connect(shared_nats_server.url) as conn:
        conn.subscribe(subject, cb=lambda msg: conn.publish(f"{subject}.done", msg.data))
        for number in range(100):
            conn.publish(subject, b"%d" % number)
    assert_drained(conn)
    assert other.flush(5)
    got = [int(results.next_msg(0).data) for _ in range(results.pending_msgs)]
    assert got == list(range(100))


def test_leaving_the_context_by_an_error_keeps_the_error(
    shared_nats_server: NatsServer, subject: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        with gnats.connect(shared_nats_server.url, drain_timeout=0.05) as conn:
            listen(conn, subject)
            conn.publish(subject, b"never read")
            raise ZeroDivisionError
    assert_drained(conn)
    with pytest.raises(errors.DrainTimeoutError):
        with gnats.connect(shared_nats_server.url, drain_timeout=0.05) as conn:
            conn.subscribe(subject, cb=lambda msg: gevent.sleep(0.3))
            conn.publish(subject, b"slowly handled")
    assert_drained(conn)


def test_leaving_the_context_of_a_closed_connection(shared_nats_server: NatsServer) -> None:
    with gnats.connect(shared_nats_server.url) as conn:
        conn.close()
    with gnats.Connection() as conn:
        pass
    assert conn.is_closed
