"""Requests: each its own answer, whatever comes late, twice, never, or for somebody else."""

from __future__ import annotations

import gc
from time import monotonic
from typing import Any

import gevent
import pytest
from finish import finish

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import FakeClient, NatsServer, wait_until

_ids = NUID()
FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
SLACK = 0.7


def echo(msg: gnats.Msg) -> None:
    msg.respond(msg.data, headers=msg.headers)


# -- one answer -----------------------------------------------------------------------------------


def test_request(conn: gnats.Connection, subject: str) -> None:
    conn.subscribe(subject, cb=echo)
    msg = conn.request(subject, b"payload", 5, headers={"a": ["1", "2"]})
    assert msg.data == b"payload"
    assert msg.headers is not None
    assert msg.headers.get_all("a") == ["1", "2"]
    assert conn.request(subject, "text", timeout=5).data == b"text"
    assert conn.request(subject, timeout=None).data == b""
    assert conn._requests.waiting == 0


def test_requests_of_another_connection(connect: Any, subject: str) -> None:
    asker, server = connect(), connect()
    server.subscribe(subject, queue="q", cb=echo)
    server.flush(5)
    assert asker.request(subject, b"x", 5).data == b"x"


def test_one_subscription_for_all(
    conn: gnats.Connection, subject: str, shared_nats_server: NatsServer
) -> None:
    conn.subscribe(subject, cb=echo)
    for _ in range(20):
        conn.request(subject, b"x", 5)
    (client,) = [
        client
        for client in shared_nats_server.connz(subs=True)["connections"]
        if client["cid"] == conn.client_id
    ]
    assert sorted(name[:4] for name in client["subscriptions_list"]) == ["_INB", subject[:4]]


def test_the_inbox_prefix(connect: Any, subject: str) -> None:
    conn = connect(inbox_prefix="answers.to.me")
    sub = conn.subscribe(subject)
    asked = gevent.spawn(conn.request, subject, b"x", 5)
    msg = sub.next_msg(5)
    assert msg.reply.startswith("answers.to.me.")
    msg.respond(b"y")
    assert asked.get(timeout=5).data == b"y"


def test_a_hundred_at_once_each_its_own(conn: gnats.Connection, subject: str) -> None:
    waiting: list[gnats.Msg] = []
    conn.subscribe(subject, cb=waiting.append)

    def ask(number: int) -> tuple[int, int]:
        return number, int(conn.request(subject, b"%d" % number, 10).data)

    askers = [gevent.spawn(ask, number) for number in range(100)]
    wait_until(lambda: len(waiting) == 100)
    # The other way round, and mixed up: no answer comes in the order of its question.
    for msg in waiting[::-2] + waiting[::2][::-1]:
        msg.respond(msg.data)
    wait_until(lambda: all(asker.ready() for asker in askers))
    assert [asker.value for asker in askers] == [(n, n) for n in range(100)]


def test_a_late_answer_reaches_nobody_else(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    for number in range(3):
        began = monotonic()
        with pytest.raises(errors.TimeoutError) as info:
            conn.request(subject, b"%d" % number, 0.05)
        assert 0.047 <= monotonic() - began < 0.05 + SLACK
        assert info.value.timeout == 0.05
        assert isinstance(info.value, TimeoutError)
    late = [sub.next_msg(5) for _ in range(3)]
    asked = gevent.spawn(conn.request, subject, b"now", 5)
    question = sub.next_msg(5)
    for msg in late:
        msg.respond(b"too late")
    question.respond(b"in time")
    question.respond(b"twice")
    assert asked.get(timeout=5).data == b"in time"
    assert conn.flush(5)
    assert conn.stats.in_dropped >= 3
    assert conn._requests.waiting == 0


def test_no_responders(conn: gnats.Connection, subject: str) -> None:
    began = monotonic()
    with pytest.raises(errors.NoRespondersError) as info:
        conn.request(subject, b"x", 10)
    assert monotonic() - began < SLACK
    assert info.value.subject == subject
    with pytest.raises(errors.NoRespondersError):
        conn.request(subject, b"x", 10, headers={"a": "b"})


def test_the_deadline_that_is_over_at_once(conn: gnats.Connection, subject: str) -> None:
    conn.subscribe(subject, cb=echo)
    with pytest.raises(errors.TimeoutError):
        conn.request(subject, b"x", 0)
    assert conn.request(subject, b"y", 5).data == b"y"


def test_time_spent_computing_is_not_taken_off(conn: gnats.Connection, subject: str) -> None:
    """The loop's clock stands still while a greenlet computes; the request's time begins now."""
    conn.subscribe(subject, cb=lambda msg: (gevent.sleep(0.1), msg.respond(b"x")))
    gevent.sleep(0.005)
    until = monotonic() + 0.3
    while monotonic() < until:
        pass
    assert conn.request(subject, b"?", 0.35).data == b"x"


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_bad_timeout(conn: gnats.Connection, subject: str, timeout: Any) -> None:
    for call in (conn.request, conn.request_many):
        with pytest.raises(errors.OptionError, match="timeout"):
            call(subject, b"x", timeout)
    with pytest.raises(errors.OptionError, match="stall"):
        conn.request_many(subject, b"x", 1, stall=timeout)
    assert conn.stats.accepted == 0
    assert conn._requests.waiting == 0


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_an_asker_that_is_struck(conn: gnats.Connection, subject: str, how: str) -> None:
    sub = conn.subscribe(subject)
    if how == "kill":
        victim = gevent.spawn(conn.request, subject, b"x", 10)
        question = sub.next_msg(5)
        victim.kill(timeout=5)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            conn.request(subject, b"x", 10)
        question = sub.next_msg(5)
    assert conn._requests.waiting == 0
    question.respond(b"for the dead")
    asked = gevent.spawn(conn.request, subject, b"x", 5)
    sub.next_msg(5).respond(b"for the living")
    assert asked.get(timeout=5).data == b"for the living"


def test_a_request_lives_through_an_outage(nats_server: NatsServer, subject: str) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    conn.flush(5)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    asked = gevent.spawn(conn.request, subject, b"x", 10)
    sub = conn.subscribe(subject)
    gevent.sleep(0)
    nats_server.start()
    sub.next_msg(10).respond(b"still here")
    assert asked.get(timeout=5).data == b"still here"
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    with pytest.raises(errors.TimeoutError):
        conn.request(subject, b"x", 0.05)
    finish(conn)


def test_a_server_without_headers_has_no_no_responders(fake_server: Any) -> None:
    def handler(client: FakeClient) -> None:
        client.handshake(headers=False)
        client.serve()

    conn = gnats.connect(fake_server(handler).url)
    with pytest.raises(errors.TimeoutError):
        conn.request("a", b"x", 0.05)
    finish(conn)


def test_a_forbidden_inbox_fails_who_waits() -> None:
    config = """
    authorization { users: [
      {user: a, password: p, permissions: {subscribe: {deny: ["_INBOX.>"]}}}
    ] }
    """
    with NatsServer(config=config) as server:
        told: list[Exception] = []
        conn = gnats.connect(
            server.url, user="a", password="p", error_cb=lambda _, exc: told.append(exc)
        )
        conn.subscribe("q", cb=echo)
        for _ in range(2):
            with pytest.raises(errors.PermissionsError) as info:
                conn.request("q", b"x", 5)
            assert info.value.operation == "subscription"
        wait_until(lambda: len(told) == 2)
        finish(conn)


# -- many answers ---------------------------------------------------------------------------------


@pytest.fixture
def answering(conn: gnats.Connection, subject: str) -> str:
    """Answers a number with so many answers, then one without a payload."""

    def handler(msg: gnats.Msg) -> None:
        for number in range(int(msg.data)):
            msg.respond(b"%d" % number)
        msg.respond(b"")

    conn.subscribe(subject, cb=handler)
    return subject


def datas(replies: Any) -> list[bytes]:
    return [msg.data for msg in replies]


def test_request_many_ends_at_its_time(conn: gnats.Connection, answering: str) -> None:
    began = monotonic()
    assert datas(conn.request_many(answering, b"3", 0.1)) == [b"0", b"1", b"2", b""]
    assert 0.097 <= monotonic() - began < 0.1 + SLACK
    assert conn._requests.waiting == 0


def test_request_many_counts_its_time_from_the_call(conn: gnats.Connection, answering: str) -> None:
    replies = conn.request_many(answering, b"3", 0.1)
    gevent.sleep(0.12)
    began = monotonic()
    assert datas(replies) == [b"0", b"1", b"2", b""]  # they have come in time
    assert monotonic() - began < 0.09


def test_request_many_ends_at_its_count(conn: gnats.Connection, answering: str) -> None:
    began = monotonic()
    assert datas(conn.request_many(answering, b"5", 10, max_msgs=2)) == [b"0", b"1"]
    assert datas(conn.request_many(answering, b"5", None, max_msgs=1)) == [b"0"]
    assert monotonic() - began < SLACK
    assert conn._requests.waiting == 0


def test_request_many_ends_at_its_sentinel(conn: gnats.Connection, answering: str) -> None:
    began = monotonic()
    assert datas(conn.request_many(answering, b"3", 10, sentinel=True)) == [b"0", b"1", b"2"]
    assert datas(conn.request_many(answering, b"0", 10, sentinel=True)) == []
    last = conn.request_many(answering, b"9", 10, sentinel=lambda msg: msg.data == b"4")
    assert datas(last) == [b"0", b"1", b"2", b"3"]
    assert monotonic() - began < SLACK
    assert datas(conn.request_many(answering, b"1", 0.05, sentinel=False)) == [b"0", b""]
    assert conn._requests.waiting == 0


def test_a_sentinel_that_raises(conn: gnats.Connection, answering: str) -> None:
    def broken(msg: gnats.Msg) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        datas(conn.request_many(answering, b"3", 5, sentinel=broken))
    assert conn._requests.waiting == 0
    assert conn.request(answering, b"0", 5).data == b""


def test_request_many_ends_when_it_stalls(conn: gnats.Connection, subject: str) -> None:
    def handler(msg: gnats.Msg) -> None:
        for _ in range(3):
            gevent.sleep(0.02)
            msg.respond(b"x")

    conn.subscribe(subject, cb=handler)
    began = monotonic()
    assert len(datas(conn.request_many(subject, b"", 10, stall=0.15))) == 3
    assert 0.15 <= monotonic() - began < 0.25 + SLACK


def test_the_stall_begins_with_the_first_answer(conn: gnats.Connection, subject: str) -> None:
    def handler(msg: gnats.Msg) -> None:
        gevent.sleep(0.1)
        msg.respond(b"x")

    conn.subscribe(subject, cb=handler)
    assert len(datas(conn.request_many(subject, b"", 10, stall=0.02))) == 1


def test_request_many_without_responders(conn: gnats.Connection, subject: str) -> None:
    with pytest.raises(errors.NoRespondersError):
        datas(conn.request_many(subject, b"x", 10))
    assert conn._requests.waiting == 0


def test_request_many_without_answers(conn: gnats.Connection, subject: str) -> None:
    conn.subscribe(subject, cb=lambda msg: None)
    assert datas(conn.request_many(subject, b"x", 0.05)) == []
    assert datas(conn.request_many(subject, b"x", 0)) == []


async def coroutine(_msg: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_msgs", value) for value in (-1, 1.5, None)),
        *(("sentinel", value) for value in (5, "x", coroutine)),
    ],
)
def test_bad_options_of_request_many(
    conn: gnats.Connection, subject: str, name: str, value: Any
) -> None:
    with pytest.raises(errors.OptionError, match=name):
        conn.request_many(subject, b"x", 1, **{name: value})
    assert conn.stats.accepted == 0
    assert conn._requests.waiting == 0


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("how", ["dropped", "closed"])
def test_an_abandoned_iterator_leaves_nothing(
    conn: gnats.Connection, answering: str, given: int, how: str
) -> None:
    replies = conn.request_many(answering, b"100", 60)
    for _ in range(given):
        next(replies)
    assert conn._requests.waiting == 1
    if how == "closed":
        replies.close()
        assert datas(replies) == []
    del replies
    gc.collect()
    assert conn._requests.waiting == 0
    assert conn.flush(5)


def test_a_loop_that_is_left(conn: gnats.Connection, answering: str) -> None:
    for msg in conn.request_many(answering, b"100", 60):
        assert msg.data == b"0"
        break
    del msg
    gc.collect()
    assert conn._requests.waiting == 0


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_reader_of_many_that_is_struck(conn: gnats.Connection, subject: str, how: str) -> None:
    conn.subscribe(subject, cb=lambda msg: None)

    def read() -> None:
        datas(conn.request_many(subject, b"x", 60))

    if how == "kill":
        victim = gevent.spawn(read)
        gevent.sleep(0.01)
        victim.kill(timeout=5)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            read()
    gc.collect()
    assert conn._requests.waiting == 0


def test_many_requests_for_many_answers_at_once(conn: gnats.Connection, answering: str) -> None:
    def read(count: int) -> list[bytes]:
        return datas(conn.request_many(answering, b"%d" % count, 10, sentinel=True))

    readers = [gevent.spawn(read, count) for count in range(30)]
    for count, reader in enumerate(readers):
        assert reader.get(timeout=10) == [b"%d" % number for number in range(count)]


def test_answers_of_several_services(connect: Any, subject: str) -> None:
    asker, services = connect(), [connect() for _ in range(3)]
    for number, service in enumerate(services):
        service.subscribe(subject, cb=lambda msg, n=number: msg.respond(b"%d" % n))
        service.flush(5)
    got = datas(asker.request_many(subject, b"?", 10, max_msgs=3))
    assert sorted(got) == [b"0", b"1", b"2"]


def test_answers_leave_nothing_in_the_memory_of_subjects(
    conn: gnats.Connection, subject: str
) -> None:
    """Their subjects are used once each: kept, they would push out those that are used again."""
    conn.subscribe(subject, cb=echo)
    conn.request(subject, b"x", timeout=5)
    before = len(conn._known_heads)
    for _ in range(50):
        assert conn.request(subject, b"x", timeout=5, headers={"K": "v"}).headers is not None
        assert conn.request(subject, b"x", timeout=5).data == b"x"
    assert len(conn._known_heads) == before


# -- no room to send it ---------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [None, {"K": "v"}])
@pytest.mark.parametrize("many", [False, True])
def test_a_request_that_finds_no_room_keeps_its_time(
    fake_server: Any, many: bool, headers: Any
) -> None:
    """A silent link and a full buffer: the request is given up in its own time, and not sent."""

    def stalled(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    server = fake_server(stalled, rcvbuf=4096)
    conn = gnats.connect(server.url, write_timeout=30, **FAST)
    filling = gevent.spawn(_fill, conn)
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    accepted = conn.stats.accepted
    began = monotonic()
    with pytest.raises(TimeoutError, match="room"):
        if many:
            conn.request_many("q", b"x" * 200_000, timeout=0.2, headers=headers)
        else:
            conn.request("q", b"x" * 200_000, timeout=0.2, headers=headers)
    assert monotonic() - began < 0.2 + SLACK
    assert conn.stats.accepted == accepted
    filling.kill()
    finish(conn)


def _fill(conn: gnats.Connection) -> None:
    while True:
        conn.publish("fill", b"z" * 50_000)
