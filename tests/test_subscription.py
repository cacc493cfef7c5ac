"""Subscriptions: ways to receive, limits, counters, slow consumers, handlers that misbehave."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from finish import finish
from gevent.event import Event

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import FakeClient, NatsServer, message_frame, wait_until
from gnats.waiting import turn

_ids = NUID()
SLACK = 0.7


class Told(list[Any]):
    """An error_cb that keeps what it is told."""

    def __call__(self, conn: gnats.Connection, exc: Exception) -> None:
        self.append(exc)


def root(exc: BaseException) -> BaseException:
    """What a handler raised, from what error_cb was told."""
    return exc.__cause__ or exc


def living_greenlets() -> int:
    return sum(isinstance(one, gevent.Greenlet) and not one.dead for one in gc.get_objects())


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def conn(connect: Any, told: Told) -> gnats.Connection:
    opened: gnats.Connection = connect(error_cb=told)
    return opened


def publish(conn: gnats.Connection, subject: str, count: int, payload: bytes = b"") -> None:
    """Publish, and wait until what comes back has come back."""
    for number in range(count):
        conn.publish(subject, payload or b"%d" % number)
    assert conn.flush(10)


# -- ways to receive ------------------------------------------------------------------------------


def test_a_callback_gets_all_in_order(conn: gnats.Connection, subject: str) -> None:
    got: list[gnats.Msg] = []
    sub = conn.subscribe(subject, cb=got.append)
    publish(conn, subject, 1000)
    wait_until(lambda: len(got) == 1000)
    assert [int(msg.data) for msg in got] == list(range(1000))
    assert all(msg.sub is sub for msg in got)
    assert (sub.delivered, sub.pending_msgs, sub.pending_bytes, sub.dropped) == (1000, 0, 0, 0)


def test_a_callback_runs_in_a_greenlet_that_may_switch(
    conn: gnats.Connection, subject: str
) -> None:
    got: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        assert gevent.getcurrent() is not gevent.get_hub()
        gevent.sleep(0.001 if int(msg.data) % 3 else 0)
        got.append(int(msg.data))

    conn.subscribe(subject, cb=handler)
    publish(conn, subject, 50)
    wait_until(lambda: len(got) == 50)
    assert got == list(range(50))


def test_a_blocked_handler_holds_up_nobody_else(conn: gnats.Connection, subject: str) -> None:
    release = Event()
    stuck = conn.subscribe(f"{subject}.stuck", cb=lambda msg: release.wait(10))
    other = conn.subscribe(f"{subject}.other")
    for _ in range(3):
        conn.publish(f"{subject}.stuck", b"")
        conn.publish(f"{subject}.other", b"")
    assert conn.flush(5)
    assert [other.next_msg(5).data for _ in range(3)] == [b""] * 3
    assert conn.rtt(5) > 0
    assert stuck.pending_msgs == 2
    release.set()
    wait_until(lambda: stuck.delivered == 3)


def test_next_msg(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    for timeout in (0, 0.05):
        began = monotonic()
        with pytest.raises(errors.TimeoutError) as info:
            sub.next_msg(timeout)
        assert info.value.timeout == timeout
        assert isinstance(info.value, TimeoutError)
        assert timeout - 0.003 <= monotonic() - began < timeout + SLACK
    publish(conn, subject, 3)
    assert sub.pending_msgs == 3
    assert sub.next_msg(0).data == b"0"
    assert sub.next_msg(None).data == b"1"
    assert sub.next_msg().data == b"2"
    for timeout in (None, 5):
        waiter = gevent.spawn(sub.next_msg, timeout)
        gevent.sleep(0)
        conn.publish(subject, b"late")
        assert waiter.get(timeout=5).data == b"late"


def test_polling_with_no_timeout_lets_the_messages_in(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, b"x")
    for _ in range(100_000):
        try:
            msg = sub.next_msg(0)
            break
        except errors.TimeoutError:
            gevent.sleep(0)
    assert msg.data == b"x"


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_bad_timeout(conn: gnats.Connection, subject: str, timeout: Any) -> None:
    sub = conn.subscribe(subject)
    for call in (sub.next_msg, sub.drain):
        with pytest.raises(errors.OptionError, match="timeout"):
            call(timeout)
    publish(conn, subject, 1)
    assert sub.next_msg(5).data == b"0"


def test_several_readers_share_the_messages(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    readers = [gevent.spawn(sub.next_msg, 5) for _ in range(10)]
    gevent.sleep(0)
    publish(conn, subject, 10)
    assert sorted(int(reader.get(timeout=5).data) for reader in readers) == list(range(10))


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_reader_that_is_struck_loses_nothing(
    conn: gnats.Connection, subject: str, how: str
) -> None:
    sub = conn.subscribe(subject)
    if how == "kill":
        victim = gevent.spawn(sub.next_msg, 10)
        gevent.sleep(0)
        victim.kill(timeout=5)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            sub.next_msg(10)
    publish(conn, subject, 3)
    assert [sub.next_msg(5).data for _ in range(3)] == [b"0", b"1", b"2"]


def test_next_msg_is_not_for_a_subscription_with_a_callback(
    conn: gnats.Connection, subject: str
) -> None:
    sub = conn.subscribe(subject, cb=lambda msg: None)
    with pytest.raises(errors.Error, match="callback"):
        sub.next_msg(1)


def test_iteration(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    got: list[bytes] = []

    def read() -> str:
        for msg in sub:
            got.append(msg.data)
            if msg.data == b"4":
                sub.unsubscribe()
        return "ended"

    reader = gevent.spawn(read)
    publish(conn, subject, 5)
    assert reader.get(timeout=5) == "ended"
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    assert list(sub) == []


def test_iteration_of_what_was_queued_goes_on_behind_the_end(
    conn: gnats.Connection, subject: str
) -> None:
    sub = conn.subscribe(subject, max_msgs=5)
    publish(conn, subject, 10)
    assert [int(msg.data) for msg in sub.messages] == [0, 1, 2, 3, 4]


def test_context_manager(conn: gnats.Connection, subject: str, shared_nats_server: Any) -> None:
    with conn.subscribe(subject) as sub:
        publish(conn, subject, 1)
        assert sub.next_msg(5).data == b"0"
    assert sub.is_closed
    with pytest.raises(errors.BadSubscriptionError):
        sub.next_msg(0)
    with conn.subscribe(subject) as sub:
        sub.unsubscribe()  # not twice
    with pytest.raises(ZeroDivisionError), conn.subscribe(subject) as sub:
        raise ZeroDivisionError
    assert sub.is_closed
    assert conn.flush(5)
    assert subscriptions(shared_nats_server, conn) == []


def test_a_context_manager_may_outlive_its_connection(connect: Any, subject: str) -> None:
    conn = connect()
    with conn.subscribe(subject):
        conn.close()


def subscriptions(server: NatsServer, conn: gnats.Connection) -> list[str]:
    """What the server thinks this connection listens to."""
    for client in server.connz(subs=True)["connections"]:
        if client["cid"] == conn.client_id:
            found: list[str] = client.get("subscriptions_list", [])
            return found
    raise AssertionError("the server does not know the connection")


def test_wildcards(conn: gnats.Connection, subject: str) -> None:
    star, tail = conn.subscribe(f"{subject}.*.x"), conn.subscribe(f"{subject}.>")
    for name in ("a.x", "b.x", "a.y"):
        conn.publish(f"{subject}.{name}", name)
    assert conn.flush(5)
    assert [star.next_msg(0).data for _ in range(2)] == [b"a.x", b"b.x"]
    assert [tail.next_msg(0).data for _ in range(3)] == [b"a.x", b"b.x", b"a.y"]
    assert star.pending_msgs == 0


def test_two_subscriptions_to_one_subject(conn: gnats.Connection, subject: str) -> None:
    subs = [conn.subscribe(subject) for _ in range(2)]
    publish(conn, subject, 1)
    assert [sub.next_msg(0).data for sub in subs] == [b"0", b"0"]


def test_queue_groups(connect: Any, subject: str) -> None:
    conns = [connect() for _ in range(3)]
    subs = [conn.subscribe(subject, queue="workers") for conn in conns]
    subs.append(conns[0].subscribe(subject, "others"))
    everything = conns[0].subscribe(subject)
    for conn in conns:
        conn.flush(5)
    publish(conns[0], subject, 300)
    for conn in conns:
        conn.flush(5)
    wait_until(lambda: sum(sub.pending_msgs for sub in subs[:3]) == 300)
    assert all(sub.pending_msgs > 0 for sub in subs[:3])
    assert subs[3].pending_msgs == everything.pending_msgs == 300
    assert subs[0].queue == "workers"
    got = sorted(int(msg.data) for sub in subs[:3] for msg in drained(sub))
    assert got == list(range(300))


def drained(sub: gnats.Subscription) -> list[gnats.Msg]:
    return [sub.next_msg(0) for _ in range(sub.pending_msgs)]


def test_respond(conn: gnats.Connection, subject: str) -> None:
    answers = conn.subscribe(f"{subject}.answers")
    conn.subscribe(subject, cb=lambda msg: msg.respond(b"re: " + msg.data, headers={"a": "b"}))
    conn.publish(subject, b"x", reply=f"{subject}.answers")
    msg = answers.next_msg(5)
    assert msg.data == b"re: x"
    assert msg.headers == {"a": "b"}
    with pytest.raises(errors.Error, match="reply"):
        msg.respond(b"x")


# -- ending ---------------------------------------------------------------------------------------


def test_unsubscribe_gives_up_what_is_queued(
    conn: gnats.Connection, subject: str, shared_nats_server: NatsServer
) -> None:
    sub = conn.subscribe(subject)
    publish(conn, subject, 5)
    assert subscriptions(shared_nats_server, conn) == [subject]
    sub.unsubscribe()
    assert sub.is_closed
    assert (sub.pending_msgs, sub.pending_bytes, sub.dropped, sub.delivered) == (0, 0, 5, 0)
    for call in (sub.unsubscribe, sub.drain, lambda: sub.next_msg(None)):
        with pytest.raises(errors.BadSubscriptionError) as info:
            call()
        assert info.value.subject == subject
    assert conn.flush(5)
    assert subscriptions(shared_nats_server, conn) == []
    assert conn.stats.in_dropped == 5


def test_unsubscribe_wakes_who_waits(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    readers = [gevent.spawn(sub.next_msg, None) for _ in range(3)]
    loops = [gevent.spawn(list, sub) for _ in range(3)]
    gevent.sleep(0)
    sub.unsubscribe()
    for reader in readers:
        with pytest.raises(errors.BadSubscriptionError):
            reader.get(timeout=5)
    assert [loop.get(timeout=5) for loop in loops] == [[], [], []]


def test_unsubscribe_in_the_handler(conn: gnats.Connection, subject: str) -> None:
    got: list[bytes] = []

    def handler(msg: gnats.Msg) -> None:
        got.append(msg.data)
        sub.unsubscribe()

    sub = conn.subscribe(subject, cb=handler)
    publish(conn, subject, 10)
    wait_until(lambda: sub.is_closed)
    assert got == [b"0"]
    publish(conn, subject, 10)
    assert got == [b"0"]


@pytest.mark.parametrize("way", ["max_msgs", "unsubscribe"])
@pytest.mark.parametrize("callback", [True, False])
def test_auto_unsubscribe(
    conn: gnats.Connection,
    subject: str,
    shared_nats_server: NatsServer,
    way: str,
    callback: bool,
) -> None:
    got: list[bytes] = []
    cb = (lambda msg: got.append(msg.data)) if callback else None
    if way == "max_msgs":
        sub = conn.subscribe(subject, cb=cb, max_msgs=5)
    else:
        sub = conn.subscribe(subject, cb=cb)
        sub.unsubscribe(5)
    publish(conn, subject, 4)
    assert not sub.is_closed
    assert subscriptions(shared_nats_server, conn) == [subject]
    publish(conn, subject, 10)
    assert subscriptions(shared_nats_server, conn) == []
    if callback:
        wait_until(lambda: len(got) == 5)
    else:
        got = [sub.next_msg(0).data for _ in range(5)]
    assert got == [b"0", b"1", b"2", b"3", b"0"]
    assert sub.is_closed
    assert (sub.delivered, sub.received, sub.dropped) == (5, 5, 0)
    with pytest.raises(errors.BadSubscriptionError):
        sub.unsubscribe()
    if not callback:
        with pytest.raises(errors.BadSubscriptionError):
            sub.next_msg(None)


def test_a_limit_that_is_reached_already(
    conn: gnats.Connection, subject: str, shared_nats_server: NatsServer
) -> None:
    sub = conn.subscribe(subject)
    publish(conn, subject, 5)
    sub.unsubscribe(3)
    assert conn.flush(5)
    assert subscriptions(shared_nats_server, conn) == []
    assert [int(msg.data) for msg in sub] == [0, 1, 2, 3, 4]  # they had come already


def test_a_limit_can_be_changed(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    sub.unsubscribe(100)
    sub.unsubscribe(3)
    publish(conn, subject, 10)
    assert [int(msg.data) for msg in sub] == [0, 1, 2]


def test_a_limit_cannot_be_raised(conn: gnats.Connection, subject: str) -> None:
    """The server forgets a subscription with its last message; a higher limit may come too late,
    and leave one here that nobody serves."""
    sub = conn.subscribe(subject, max_msgs=2)
    sub.unsubscribe(5)
    publish(conn, subject, 10)
    assert [int(msg.data) for msg in sub] == [0, 1]
    assert sub.is_closed


@pytest.mark.parametrize("limit", [-1, 1.5, "1", None, True])
def test_a_bad_limit(conn: gnats.Connection, subject: str, limit: Any) -> None:
    sub = conn.subscribe(subject)
    with pytest.raises(errors.Error, match="limit"):
        sub.unsubscribe(limit)
    publish(conn, subject, 1)
    assert sub.next_msg(5).data == b"0"


def test_messages_for_an_ended_subscription_are_counted(fake_server: Any) -> None:
    def handler(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB")
        client.expect("UNSUB")
        client.send(message_frame(1, "a", b"late") * 3 + message_frame(77, "b", b"strange"))
        client.serve()

    conn = gnats.connect(fake_server(handler).url)
    sub = conn.subscribe("a")
    sub.unsubscribe()
    wait_until(lambda: conn.stats.in_msgs == 4)
    assert conn.stats.in_dropped == 4
    assert sub.pending_msgs == sub.received == 0
    assert conn.stats.disconnects == 0
    finish(conn)


# -- bad input ------------------------------------------------------------------------------------

BAD_NAMES: list[Any] = [" ", "a b", "a\r\nSUB x 9", "a\n", "a\x00", "a\u00a0b", "x" * 5000]
BAD_NAMES += ["\ud800", b"a", 5, ["a"]]


@pytest.mark.parametrize("bad", [*BAD_NAMES, "", None, ".", "a.", ".a", "a..b", ">.a", "a.>.b"])
def test_a_bad_subject(conn: gnats.Connection, bad: Any) -> None:
    with pytest.raises(errors.BadSubjectError):
        conn.subscribe(bad)
    assert_nothing_subscribed(conn)


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_a_bad_queue(conn: gnats.Connection, subject: str, bad: Any) -> None:
    with pytest.raises(errors.BadSubjectError, match="queue"):
        conn.subscribe(subject, queue=bad)
    assert_nothing_subscribed(conn)


def assert_nothing_subscribed(conn: gnats.Connection) -> None:
    assert conn._subscriptions.by_sid == {}
    assert conn.flush(5)
    assert conn.stats.errors_received == conn.stats.disconnects == 0


def test_a_subject_and_a_queue_that_fit_alone_but_not_together(conn: gnats.Connection) -> None:
    with pytest.raises(errors.BadSubjectError):
        conn.subscribe("a" * 3000, queue="b" * 3000)
    assert_nothing_subscribed(conn)
    conn.subscribe("a" * 2000, queue="b" * 1900)
    assert conn.flush(5)
    assert conn.stats.disconnects == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cb", 5),
        ("cb", "handler"),
        ("max_msgs", -1),
        ("max_msgs", 1.5),
        ("max_msgs", True),
        ("max_msgs", None),
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", 2.0),
        ("pending_msgs_limit", 0),
        ("pending_msgs_limit", "5"),
        ("pending_bytes_limit", 0),
        ("pending_bytes_limit", float("nan")),
    ],
)
def test_a_bad_option(conn: gnats.Connection, subject: str, name: str, value: Any) -> None:
    with pytest.raises(errors.OptionError, match=name):
        conn.subscribe(subject, **{name: value})
    assert_nothing_subscribed(conn)


# -- concurrency ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_concurrency(conn: gnats.Connection, subject: str, limit: int) -> None:
    running, most, done = [0], [0], []

    def handler(msg: gnats.Msg) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        gevent.sleep(0.002)
        running[0] -= 1
        done.append(int(msg.data))

    sub = conn.subscribe(subject, cb=handler, concurrency=limit)
    publish(conn, subject, 50)
    wait_until(lambda: len(done) == 50)
    assert most == [limit]
    assert sorted(done) == list(range(50))
    if limit == 1:
        assert done == list(range(50))
    assert sub.delivered == 50


def test_a_slow_message_holds_up_only_its_own_place(conn: gnats.Connection, subject: str) -> None:
    release, done = Event(), []

    def handler(msg: gnats.Msg) -> None:
        if msg.data == b"0":
            release.wait(10)
        done.append(int(msg.data))

    conn.subscribe(subject, cb=handler, concurrency=2)
    publish(conn, subject, 20)
    wait_until(lambda: len(done) == 19)
    release.set()
    wait_until(lambda: done[-1] == 0)


# -- slow consumers -------------------------------------------------------------------------------


def slow_errors(told: Told) -> list[errors.SlowConsumerError]:
    return [exc for exc in told if isinstance(exc, errors.SlowConsumerError)]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"pending_msgs_limit": 10}, 10),
        ({"pending_bytes_limit": 100}, 3),
        ({"pending_msgs_limit": 2, "pending_bytes_limit": 100}, 2),
        ({"pending_msgs_limit": 1}, 1),
    ],
)
@pytest.mark.parametrize("level", ["connection", "subscription"])
def test_a_slow_reader(
    connect: Any, told: Told, subject: str, limits: dict[str, int], kept: int, level: str
) -> None:
    if level == "connection":
        conn = connect(error_cb=told, **limits)
        sub = conn.subscribe(subject)
    else:
        conn = connect(error_cb=told)
        sub = conn.subscribe(subject, **limits)
    for episode in (1, 2, 3):
        publish(conn, subject, 50, payload=b"x" * 30)
        assert (sub.pending_msgs, sub.pending_bytes) == (kept, kept * 30)
        assert sub.dropped == conn.stats.in_dropped == episode * (50 - kept)
        wait_until(lambda e=episode: len(slow_errors(told)) == e)
        error = slow_errors(told)[-1]
        assert (error.subject, error.sid) == (subject, sub.sid)
        assert (error.pending_msgs, error.pending_bytes) == (kept, kept * 30)
        for _ in range(kept):
            sub.next_msg(0)
    assert sub.received == 150
    assert sub.delivered == 3 * kept
    assert len(told) == 3
    assert isinstance(conn.last_error, errors.SlowConsumerError)


def test_the_oldest_messages_are_kept(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject, pending_msgs_limit=5)
    publish(conn, subject, 20)
    assert [int(msg.data) for msg in drained(sub)] == [0, 1, 2, 3, 4]
    publish(conn, subject, 3)
    assert [int(msg.data) for msg in drained(sub)] == [0, 1, 2]


def test_a_slow_handler(conn: gnats.Connection, told: Told, subject: str) -> None:
    release = Event()
    sub = conn.subscribe(subject, cb=lambda msg: release.wait(10), pending_msgs_limit=10)
    publish(conn, subject, 1)
    wait_until(lambda: sub.delivered == 1)
    publish(conn, subject, 100)
    assert (sub.pending_msgs, sub.dropped) == (10, 90)
    wait_until(lambda: len(told) == 1)
    release.set()
    wait_until(lambda: sub.delivered == 11)
    publish(conn, subject, 5)
    wait_until(lambda: sub.delivered == 16)
    assert len(told) == 1


def test_a_message_over_the_whole_limit_harms_no_other(
    conn: gnats.Connection, told: Told, subject: str
) -> None:
    sub = conn.subscribe(subject, pending_bytes_limit=100)
    publish(conn, subject, 1, payload=b"x" * 101)
    publish(conn, subject, 1, payload=b"small")
    assert sub.next_msg(0).data == b"small"
    assert sub.dropped == 1
    wait_until(lambda: len(slow_errors(told)) == 1)


# -- handlers that misbehave ----------------------------------------------------------------------


def test_a_handler_that_raises(conn: gnats.Connection, told: Told, subject: str) -> None:
    got: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        number = int(msg.data)
        got.append(number)
        if number == 2:
            raise gevent.Timeout(None, RuntimeError("a time-out of the handler's own"))
        if number % 2 == 0:
            raise ZeroDivisionError(number)

    sub = conn.subscribe(subject, cb=handler)
    publish(conn, subject, 6)
    wait_until(lambda: len(got) == 6)
    assert got == list(range(6))
    wait_until(lambda: len(told) == 3)
    assert [type(root(exc)) for exc in told] == [
        ZeroDivisionError,
        gevent.Timeout,
        ZeroDivisionError,
    ]
    assert isinstance(told[0], errors.Error)
    assert subject in str(told[0])
    assert sub.delivered == 6
    assert conn.status == "connected"


def test_a_handler_that_kills_its_greenlet(
    conn: gnats.Connection, told: Told, subject: str
) -> None:
    got: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        got.append(int(msg.data))
        if len(got) == 2:
            gevent.getcurrent().kill()
        if len(got) == 4:
            raise gevent.GreenletExit

    conn.subscribe(subject, cb=handler)
    publish(conn, subject, 6)
    wait_until(lambda: len(got) == 6)
    assert got == list(range(6))
    publish(conn, subject, 2)
    wait_until(lambda: len(got) == 8)
    assert told == []


def test_a_handler_whose_greenlet_is_killed_from_outside(
    conn: gnats.Connection, subject: str
) -> None:
    greenlets: list[Any] = []
    got: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        greenlets.append(gevent.getcurrent())
        if msg.data == b"1":
            gevent.sleep(10)
        got.append(int(msg.data))

    sub = conn.subscribe(subject, cb=handler)
    publish(conn, subject, 4)
    wait_until(lambda: len(greenlets) == 2)
    greenlets[-1].kill(timeout=5)
    wait_until(lambda: len(got) == 3)
    assert got == [0, 2, 3]
    sub.drain(5)


def test_a_greenlet_killed_before_it_began(conn: gnats.Connection, subject: str) -> None:
    """As gevent.killall of everything in sight does: the messages are not its victims."""
    got: list[bytes] = []
    sub = conn.subscribe(subject, cb=lambda msg: got.append(msg.data))
    push = sub.push

    def push_and_kill(msg: gnats.Msg) -> None:
        push(msg)
        for greenlet in list(conn._subscriptions.delivery.greenlets):
            greenlet.kill(block=False)

    conn._subscriptions.by_sid[sub.sid] = type("Sink", (), {"push": staticmethod(push_and_kill)})()
    conn.publish(subject, b"0")
    assert conn.flush(5)
    conn._subscriptions.by_sid[sub.sid] = sub
    conn.publish(subject, b"1")
    wait_until(lambda: got == [b"0", b"1"], 2)


def test_one_greenlet_serves_many_whose_handlers_do_not_wait(
    conn: gnats.Connection, subject: str
) -> None:
    seen: list[object] = []
    for number in range(500):
        conn.subscribe(f"{subject}.{number}", cb=lambda _: seen.append(gevent.getcurrent()))
    assert conn.flush(5)
    for number in range(500):
        conn.publish(f"{subject}.{number}")
    wait_until(lambda: len(seen) == 500, 5)
    # As many as there were batches at most, and never one for each.
    assert len(set(seen)) < 100


def test_handlers_that_wait_do_not_wait_for_each_other(
    conn: gnats.Connection, subject: str
) -> None:
    """Each has a greenlet for itself as soon as it waits, also in a batch of many."""
    entered: list[int] = []
    go = Event()

    def handler(number: int) -> None:
        entered.append(number)
        if number % 3:
            assert go.wait(10)

    for number in range(200):
        conn.subscribe(f"{subject}.{number}", cb=lambda _, number=number: handler(number))
    assert conn.flush(5)
    for _ in range(2):
        for number in range(200):
            conn.publish(f"{subject}.{number}")
    # Both messages of those that do not wait, the first of the others.
    wait_until(lambda: len(entered) == 2 * 67 + 133, 5)
    go.set()
    wait_until(lambda: len(entered) == 400, 5)
    wait_until(lambda: not conn._subscriptions.delivery.greenlets, 5)


def test_handlers_that_compute_let_the_loop_turn(conn: gnats.Connection, subject: str) -> None:
    """In a batch for many, too: no second greenlet takes the time that the first has left."""
    at_once: list[int] = []
    turns = 0

    def handler(_: gnats.Msg) -> None:
        at_once.append(len(conn._subscriptions.delivery.greenlets))
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    def count_turns() -> None:
        nonlocal turns
        while len(at_once) < 300:
            turn()
            turns += 1

    for number in range(300):
        conn.subscribe(f"{subject}.{number}", cb=handler)
    assert conn.flush(5)
    for number in range(300):
        conn.publish(f"{subject}.{number}")
    counter = gevent.spawn(count_turns)
    wait_until(lambda: len(at_once) == 300, 20)
    counter.join(5)
    assert max(at_once) <= 2
    assert turns >= 50  # three handlers fill a slice
    wait_until(lambda: not conn._subscriptions.delivery.greenlets, 5)


def test_a_greenlet_killed_in_its_rest(conn: gnats.Connection, subject: str) -> None:
    """Between two subscriptions: those that are still to be served get another one."""
    done: list[bytes] = []

    def handler(msg: gnats.Msg) -> None:
        until = time.perf_counter() + 0.006  # more than a slice
        while time.perf_counter() < until:
            pass
        done.append(msg.data)

    delivery = conn._subscriptions.delivery
    for number in range(30):
        conn.subscribe(f"{subject}.{number}", cb=handler)
    assert conn.flush(5)
    for number in range(30):
        conn.publish(f"{subject}.{number}", b"%d" % number)
    for _ in range(5):
        wait_until(lambda: delivery._resting or len(done) == 30, 5)
        gevent.killall([one for one in delivery.greenlets if one not in delivery.at_work])
    wait_until(lambda: len(done) == 30, 10)
    wait_until(lambda: not delivery.greenlets, 5)
    assert not conn._subscriptions.unhandled


def test_a_killed_handler_takes_no_other_subscription_with_it(
    conn: gnats.Connection, subject: str
) -> None:
    got: list[int] = []

    def suicidal(_: gnats.Msg) -> None:
        raise gevent.GreenletExit

    for number in range(100):
        cb = suicidal if number % 10 == 0 else lambda _, number=number: got.append(number)
        conn.subscribe(f"{subject}.{number}", cb=cb)
    assert conn.flush(5)
    for number in range(100):
        conn.publish(f"{subject}.{number}")
    wait_until(lambda: len(got) == 90, 5)
    wait_until(lambda: not conn._subscriptions.delivery.greenlets, 5)
    assert not conn._subscriptions.unhandled


def test_a_handler_that_uses_the_connection(conn: gnats.Connection, subject: str) -> None:
    got: list[Any] = []

    def handler(msg: gnats.Msg) -> None:
        inner = conn.subscribe(f"{subject}.inner", max_msgs=1)
        conn.publish(f"{subject}.inner", b"in")
        assert conn.flush(5)
        got.append(inner.next_msg(5).data)
        got.append(conn.request(f"{subject}.echo", b"asked", 5).data)

    conn.subscribe(f"{subject}.echo", cb=lambda msg: msg.respond(msg.data))
    conn.subscribe(subject, cb=handler)
    publish(conn, subject, 2)
    wait_until(lambda: len(got) == 4)
    assert got == [b"in", b"asked"] * 2


def test_a_handler_that_only_computes_lets_others_run(conn: gnats.Connection, subject: str) -> None:
    """100 messages of 5 ms: others have their turn about every slice, not after half a second."""
    ticks: list[float] = []

    def compute(msg: gnats.Msg) -> None:
        until = monotonic() + 0.005
        while monotonic() < until:
            pass

    def tick() -> None:
        while True:
            ticks.append(monotonic())
            gevent.sleep(0.001)

    sub = conn.subscribe(subject, cb=compute)
    ticker = gevent.spawn(tick)
    publish(conn, subject, 100)
    wait_until(lambda: sub.delivered == 100, 10)
    ticker.kill()
    assert len(ticks) > 30
    assert max(after - before for before, after in zip(ticks, ticks[1:])) < 0.25


# -- drain of one subscription --------------------------------------------------------------------


def test_drain_handles_all_that_was_sent(
    connect: Any, conn: gnats.Connection, subject: str, shared_nats_server: NatsServer
) -> None:
    done: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        gevent.sleep(0.001)
        done.append(int(msg.data))

    sub = conn.subscribe(subject, cb=handler)
    sender = connect()
    conn.flush(5)
    publish(sender, subject, 100)
    sub.drain(10)  # some are in flight now
    assert done == list(range(100))
    assert sub.is_closed
    assert subscriptions(shared_nats_server, conn) == []
    publish(sender, subject, 1)
    conn.flush(5)
    assert len(done) == 100
    with pytest.raises(errors.BadSubscriptionError):
        sub.drain()
    assert conn.is_connected
    assert not conn.is_draining


def test_drain_waits_for_readers(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    publish(conn, subject, 10)
    draining = gevent.spawn(sub.drain, 5)
    gevent.sleep(0.01)
    assert not draining.ready()
    assert [int(msg.data) for msg in sub] == list(range(10))
    draining.get(timeout=5)


def test_drain_that_takes_too_long(conn: gnats.Connection, subject: str) -> None:
    release = Event()
    sub = conn.subscribe(subject, cb=lambda msg: release.wait(10))
    publish(conn, subject, 5)
    began = monotonic()
    with pytest.raises(errors.DrainTimeoutError) as info:
        sub.drain(0.05)
    assert monotonic() - began < 0.05 + SLACK
    assert info.value.pending_msgs == 5  # four queued, one in its handler
    assert sub.is_closed
    assert sub.dropped == 4
    release.set()
    assert conn.flush(5)
    wait_until(lambda: sub.unhandled == 0)
    assert sub.delivered == 1


def test_drain_in_its_own_handler(conn: gnats.Connection, subject: str) -> None:
    got: list[int] = []

    def handler(msg: gnats.Msg) -> None:
        got.append(int(msg.data))
        if len(got) == 1:
            sub.drain(5)

    sub = conn.subscribe(subject, cb=handler)
    publish(conn, subject, 5)
    wait_until(lambda: sub.is_closed and sub.unhandled == 0)
    assert got == [0, 1, 2, 3, 4]


def test_drain_while_there_is_no_link(nats_server: NatsServer, told: Told) -> None:
    conn = gnats.connect(nats_server.url, reconnect_wait=0.02, error_cb=told)
    sub = conn.subscribe("a")
    publish(conn, "a", 3)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    draining = gevent.spawn(sub.drain, 5)
    gevent.sleep(0)
    assert [int(msg.data) for msg in sub] == [0, 1, 2]
    draining.get(timeout=5)
    nats_server.start()
    conn.wait_for_status("connected", 5)
    assert conn.flush(5)
    assert subscriptions(nats_server, conn) == []
    finish(conn)


# -- weight ---------------------------------------------------------------------------------------


def test_idle_subscriptions_hold_no_greenlet(conn: gnats.Connection, subject: str) -> None:
    got: list[bytes] = []
    before = living_greenlets()
    subs = [
        conn.subscribe(f"{subject}.{number}", cb=lambda msg: got.append(msg.data))
        for number in range(2000)
    ]
    assert conn.flush(5)
    assert living_greenlets() <= before
    for number in range(2000):
        conn.publish(f"{subject}.{number}", b"")
    wait_until(lambda: len(got) == 2000)
    wait_until(lambda: living_greenlets() <= before)
    wait_until(lambda: all(sub._is_small for sub in subs))
    assert all(sub.delivered == 1 for sub in subs)


# -- what stands around a handler -----------------------------------------------------------------


def test_around_stands_in_the_place_of_the_callback(conn: gnats.Connection, subject: str) -> None:
    seen: list[Any] = []

    def around(msg: gnats.Msg, handle: Callable[[], Any]) -> None:
        seen.append("before")
        seen.append(handle())
        seen.append("after")

    def handler(msg: gnats.Msg) -> bytes:
        seen.append(msg.data)
        return b"returned"

    conn.subscribe(subject, cb=handler, around=around)
    publish(conn, subject, 2)
    wait_until(lambda: len(seen) == 8, timeout=5.0)
    assert seen == ["before", b"0", b"returned", "after", "before", b"1", b"returned", "after"]


def test_the_around_of_the_options_is_outermost(connect: Any, subject: str) -> None:
    seen: list[str] = []

    def named(name: str) -> Callable[..., None]:
        def around(msg: gnats.Msg, handle: Callable[[], Any]) -> None:
            seen.append(name)
            handle()

        return around

    conn = connect(around=named("options"))
    conn.subscribe(subject, cb=lambda msg: seen.append("handler"), around=named("subscription"))
    unrelated = conn.subscribe(subject)  # read with next_msg: there is no callback
    publish(conn, subject, 1)
    wait_until(lambda: len(seen) == 3, timeout=5.0)
    assert seen == ["options", "subscription", "handler"]
    assert unrelated.next_msg().data == b"0"
    assert len(seen) == 3


def test_around_that_raises_is_told_as_a_handler(
    conn: gnats.Connection, told: Told, subject: str
) -> None:
    handled: list[bytes] = []

    def around(msg: gnats.Msg, handle: Callable[[], Any]) -> None:
        if msg.data == b"0":
            raise ValueError("no context")
        handle()

    conn.subscribe(subject, cb=lambda msg: handled.append(msg.data), around=around)
    publish(conn, subject, 2)
    wait_until(lambda: bool(handled), timeout=5.0)
    assert handled == [b"1"]
    wait_until(lambda: bool(told), timeout=5.0)
    assert isinstance(told[0], errors.HandlerError)
    assert str(root(told[0])) == "no context"


async def coroutine(*_: Any) -> None: ...


@pytest.mark.parametrize("name", ["cb", "around"])
def test_an_async_function_is_refused(conn: gnats.Connection, subject: str, name: str) -> None:
    with pytest.raises(errors.OptionTypeError, match=f"'{name}': a plain function is needed"):
        conn.subscribe(subject, **{"cb": print, name: coroutine})
    assert not conn._subscriptions.by_sid


@pytest.mark.parametrize("around", [1, "x", True, []])
def test_a_bad_around(conn: gnats.Connection, subject: str, around: Any) -> None:
    with pytest.raises(errors.OptionError, match=r"around.*callable"):
        conn.subscribe(subject, cb=print, around=around)


# -- the largest numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "most"),
    [("max_msgs", 999_999_999), ("pending_msgs_limit", 2**62), ("pending_bytes_limit", 2**62)],
)
def test_counts_that_nobody_holds_are_refused(
    conn: gnats.Connection, subject: str, name: str, most: int
) -> None:
    got: list[bytes] = []
    conn.subscribe(subject, cb=lambda msg: got.append(msg.data), **{name: most})
    conn.publish(subject, b"x")
    wait_until(lambda: got == [b"x"])
    with pytest.raises(errors.OptionError, match=name):
        conn.subscribe(subject, cb=print, **{name: most + 1})


def test_a_limit_of_more_digits_than_servers_read_is_refused(
    conn: gnats.Connection, subject: str
) -> None:
    """They would take it for an order to end the subscription now."""
    sub = conn.subscribe(subject)
    with pytest.raises(errors.BadSubscriptionError, match="limit"):
        sub.unsubscribe(1_000_000_000)
    sub.unsubscribe(999_999_999)
    conn.publish(subject, b"x")
    assert sub.next_msg(5).data == b"x"


@pytest.mark.parametrize(
    "name", ["reconnect_buf_size", "pending_msgs_limit", "pending_bytes_limit"]
)
def test_options_that_nobody_holds_are_refused(connect: Any, name: str) -> None:
    assert connect(**{name: 2**62}, replay_unconfirmed=True).flush(5)
    with pytest.raises(errors.OptionError, match=name):
        gnats.Connection(**{name: 2**62 + 1})
