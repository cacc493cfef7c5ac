"""Publishing: payloads, headers, limits; and bad input, refused before anything is half done."""

from __future__ import annotations

import array
import mmap
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from finish import finish
from gevent import socket

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import NatsServer, wait_until

_ids = NUID()


# -- payloads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"memoryview"), b"memoryview"),
        (memoryview(b"0123456789")[::2], b"02468"),
        (memoryview(array.array("H", [1, 2])), array.array("H", [1, 2]).tobytes()),
        (array.array("B", [1, 2, 3]), b"\x01\x02\x03"),
        ("str", b"str"),
        ("naïve — ✓", "naïve — ✓".encode()),
        (b"", b""),
        ("", b""),
        (bytearray(), b""),
        (bytes(range(256)), bytes(range(256))),
        (b"\r\n", b"\r\n"),
        (b"PUB x 3\r\nabc\r\n", b"PUB x 3\r\nabc\r\n"),
        (b"\x00" * 100_000, b"\x00" * 100_000),
    ],
)
def test_payloads(conn: gnats.Connection, subject: str, payload: Any, data: bytes) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, payload)
    msg = sub.next_msg(5)
    assert msg.data == data
    assert type(msg.data) is bytes
    assert (msg.subject, msg.reply, msg.headers) == (subject, "", None)
    conn.publish(subject, payload, headers={"a": "b"})
    assert sub.next_msg(5).data == data


def test_no_payload_at_all(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject)
    assert sub.next_msg(5).data == b""


def test_a_payload_is_copied_when_it_is_accepted(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    payload = bytearray(b"before")
    conn.publish(subject, payload)
    payload[:] = b"after!"
    assert sub.next_msg(5).data == b"before"
    with mmap.mmap(-1, 8) as shared:
        shared[:] = b"mapped!!"
        conn.publish(subject, shared)
    assert sub.next_msg(5).data == b"mapped!!"


class Weird(bytes):
    def __len__(self) -> int:
        return 3


def test_a_subclass_of_bytes_breaks_no_frame(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, Weird(b"not three"))
    assert sub.next_msg(5).data == b"not three"
    assert conn.stats.disconnects == 0


@pytest.mark.parametrize("payload", [None, 5, 1.5, True, [b"a"], (1,), {"a": 1}, object(), {1, 2}])
def test_a_payload_of_a_wrong_type(conn: gnats.Connection, subject: str, payload: Any) -> None:
    for keywords in ({}, {"headers": {"a": "b"}}, {"reply": "r"}):
        with pytest.raises(TypeError, match="payload"):
            conn.publish(subject, payload, **keywords)  # type: ignore[arg-type]
    assert conn.stats.accepted == conn.stats.out_bytes == 0


def test_text_that_is_no_utf8(conn: gnats.Connection, subject: str) -> None:
    with pytest.raises(ValueError):
        conn.publish(subject, "\ud800")
    assert conn.stats.accepted == 0


# -- subjects -------------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    " ",
    "a b",
    "a\r\nPUB x 0",
    "a\n",
    "a\r",
    "\ta",
    "a\x00",
    "a\x7f",
    "a\u00a0b",
    "a\u2028b",
    "\ud800",
    "x" * 5000,
    b"bytes",
    None,
    5,
    ["a"],
]
BAD_SUBJECTS = [*BAD_NAMES, ".", ".a", "a.", "a..b", "a.*", "*", ">", "a.>", "a.*.b"]


@pytest.mark.parametrize("bad", BAD_SUBJECTS)
def test_a_bad_subject(conn: gnats.Connection, bad: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: conn.publish(bad, b"x"),
        lambda: conn.publish(bad, b"x", reply="r"),
        lambda: conn.publish(bad, b"x", headers={"a": "b"}),
        lambda: conn.request(bad, b"x"),
        lambda: conn.request(bad, b"x", headers={"a": "b"}),
        lambda: conn.request_many(bad, b"x"),
    ]
    for call in calls:
        with pytest.raises(errors.BadSubjectError):
            call()
    assert conn.stats.accepted == conn.stats.out_bytes == 0
    assert conn._requests.waiting == 0
    assert conn.flush(5)
    assert conn.stats.errors_received == conn.stats.disconnects == 0


@pytest.mark.parametrize("bad", [name for name in BAD_NAMES if name] + [".", "a.", "a..b"])
def test_a_bad_reply(conn: gnats.Connection, subject: str, bad: Any) -> None:
    with pytest.raises(errors.BadSubjectError, match="reply"):
        conn.publish(subject, b"x", reply=bad)
    assert conn.stats.accepted == 0


@pytest.mark.parametrize("name", ["a", "a.b.c", "$SYS.x", "été.✓", "a*b", "a>", "-", "x" * 4000])
def test_a_good_subject(conn: gnats.Connection, name: str) -> None:
    sub = conn.subscribe(name)
    conn.publish(name, b"x")
    if name.startswith("$SYS"):
        assert conn.flush(5)
    else:
        assert sub.next_msg(5).subject == name
    assert conn.stats.errors_received == conn.stats.disconnects == 0


def test_names_that_fit_alone_but_not_together(conn: gnats.Connection) -> None:
    for keywords in ({}, {"headers": {"a": "b"}}):
        with pytest.raises(errors.BadSubjectError):
            conn.publish("a" * 3000, b"x", reply="b" * 3000, **keywords)  # type: ignore[arg-type]
    conn.publish("a" * 2000, b"x" * 100_000, reply="b" * 2000, headers={"a": "b" * 10_000})
    assert conn.flush(5)
    assert conn.stats.errors_received == conn.stats.disconnects == 0
    assert conn.stats.accepted == 1


def test_a_long_inbox_and_a_long_subject_do_not_fit_together(connect: Any) -> None:
    conn = connect(inbox_prefix="i" * 3000)
    for ask in (conn.request, conn.request_many):
        with pytest.raises(errors.BadSubjectError):
            ask("a" * 3000, b"x", 0.2)
    assert conn.stats.accepted == 0
    assert conn.flush(5)
    assert conn.stats.errors_received == conn.stats.disconnects == 0


# -- reply and headers ----------------------------------------------------------------------------


def test_reply(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, b"x", "answers.here")
    conn.publish(subject, b"x", reply="answers.here", headers={"a": "b"})
    for _ in range(2):
        msg = sub.next_msg(5)
        assert (msg.reply, msg.data) == ("answers.here", b"x")


def test_headers(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    several = gnats.Headers([("Set", "1"), ("Other", "ü ✓"), ("Set", "2"), ("set", "3")])
    for source in (
        {"Set": ["1", "2"], "Other": "ü ✓", "set": "3"},
        [("Set", "1"), ("Other", "ü ✓"), ("Set", "2"), ("set", "3")],
        several,
    ):
        conn.publish(subject, b"data", headers=source)
        msg = sub.next_msg(5)
        assert msg.headers is not None
        assert msg.headers.get_all("Set") == ["1", "2"]
        assert msg.headers["Set"] == "1"
        assert msg.headers["set"] == "3"
        assert msg.headers["Other"] == "ü ✓"
        assert "other" not in msg.headers
        assert list(msg.headers) == ["Set", "Other", "set"]
        assert msg.headers.status is None
        assert msg.header is msg.headers
        assert msg.data == b"data"


def test_empty_headers_and_values(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, b"x", headers={})
    assert not sub.next_msg(5).headers
    conn.publish(subject, b"", headers={"Empty": ""})
    msg = sub.next_msg(5)
    assert dict(msg.headers or {}) == {"Empty": ""}
    assert msg.data == b""


def test_received_headers_can_be_sent_on(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    conn.publish(subject, b"x", headers={"a": ["1", "2"]})
    first = sub.next_msg(5)
    conn.publish(subject, b"x", headers=first.headers)
    assert sub.next_msg(5).headers == {"a": ["1", "2"]}


def test_a_status_line(
    conn: gnats.Connection, shared_nats_server: NatsServer, subject: str
) -> None:
    """What a server says on its own: our client does not write status lines."""
    sub = conn.subscribe(subject)
    assert conn.flush(5)
    blocks = [
        (b"NATS/1.0 404 No Messages\r\n\r\n", 404, "No Messages"),
        (b"NATS/1.0 100\r\n\r\n", 100, ""),
        (b"NATS/1.0 409 Leader Change\r\nNats-X: 1\r\n\r\n", 409, "Leader Change"),
    ]
    with socket.create_connection(("127.0.0.1", shared_nats_server.port), timeout=5) as raw:
        raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
        for block, _, _ in blocks:
            head = f"HPUB {subject} {len(block)} {len(block)}\r\n".encode()
            raw.sendall(head + block + b"\r\n")
        for _, status, description in blocks:
            headers = sub.next_msg(5).headers
            assert headers is not None
            assert (headers.status, headers.description) == (status, description)
            assert headers["Status"] == str(status)
        assert headers["Nats-X"] == "1"


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"a b": "x"},
        {"a:b": "x"},
        {"a\r\nb": "x"},
        {"a\n": "x"},
        {"ä": "x"},
        {"a": "x\r\ny: z"},
        {"a": "x\n"},
        {"a": "x\r"},
        {"a": "x\x00"},
        {"a": "\ud800"},
        {"a": ["good", "x\n"]},
        {"a": []},
        {"a": 5},
        {"a": None},
        {"a": b"x"},
        {"a": [1]},
        {5: "x"},
        {None: "x"},
    ],
)
def test_bad_headers(conn: gnats.Connection, subject: str, headers: Any) -> None:
    for call in (conn.publish, conn.request, conn.request_many):
        with pytest.raises(errors.HeaderError):
            call(subject, b"x", headers=headers)
    assert conn.stats.accepted == 0
    assert conn._requests.waiting == 0


@pytest.mark.parametrize(
    "headers", [5, "a: b", b"a", ["abc"], [("a",)], [("a", "b", "c")], object()]
)
def test_headers_of_a_wrong_type(conn: gnats.Connection, subject: str, headers: Any) -> None:
    with pytest.raises((errors.HeaderError, TypeError)):
        conn.publish(subject, b"x", headers=headers)
    assert conn.stats.accepted == 0


def test_headers_for_a_server_that_takes_none(fake_server: Any) -> None:
    server = fake_server(lambda c: (c.handshake(headers=False), c.serve()))
    conn = gnats.connect(server.url)
    with pytest.raises(errors.HeaderError):
        conn.publish("a", b"x", headers={"a": "b"})
    conn.publish("a", b"x")
    assert conn.flush(5)
    assert conn.stats.accepted == 1
    finish(conn)


# -- max_payload ----------------------------------------------------------------------------------


def test_max_payload_counts_headers_and_comes_before_the_buffer() -> None:
    with NatsServer(config="max_payload: 1000") as server:
        conn = gnats.connect(server.url)
        assert conn.max_payload == 1000
        sub = conn.subscribe("a")
        conn.publish("a", b"x" * 1000)
        # "NATS/1.0\r\n" + "k: v\r\n" + "\r\n" are 18 bytes.
        conn.publish("a", b"x" * 982, headers={"k": "v"})
        assert len(sub.next_msg(5).data) == 1000
        assert len(sub.next_msg(5).data) == 982
        before = conn.stats
        for call in (conn.publish, conn.request, conn.request_many):
            for payload, keywords, size in [
                (b"x" * 1001, {}, 1001),
                ("é" * 501, {}, 1002),
                (b"x" * 983, {"headers": {"k": "v"}}, 1001),
                (b"", {"headers": {"k": "v" * 1000}}, 1017),
            ]:
                with pytest.raises(errors.MaxPayloadError) as info:
                    call("a", payload, **keywords)
                assert (info.value.size, info.value.max_payload) == (size, 1000)
        with pytest.raises(errors.MaxPayloadError):
            conn.publish("a", b"x" * 1001, reply="b")
        assert conn.stats.accepted == before.accepted == 2
        assert conn.stats.out_bytes == before.out_bytes == 2000
        assert conn.flush(5)
        assert conn.stats.errors_received == conn.stats.disconnects == 0
        finish(conn)


def test_a_message_larger_than_the_high_water_mark() -> None:
    with NatsServer(config="max_payload: 8MB\nmax_pending: 64MB") as server:
        conn = gnats.connect(server.url)
        sub = conn.subscribe("a")
        for size in (8_000_000, 10, 5_000_000):
            conn.publish("a", b"x" * size)
        assert [len(sub.next_msg(10).data) for _ in range(3)] == [8_000_000, 10, 5_000_000]
        finish(conn)


# -- order, counters, modes -----------------------------------------------------------------------


def test_order_and_counters(connect: Any, subject: str) -> None:
    sender, receiver = connect(), connect()
    sub = receiver.subscribe(subject)
    receiver.flush(5)
    for number in range(10_000):
        sender.publish(subject, b"%d" % number, headers={"n": "x"} if number % 7 == 0 else None)
    assert sender.flush(10)
    wait_until(lambda: sub.pending_msgs == 10_000)
    assert [int(sub.next_msg(0).data) for _ in range(10_000)] == list(range(10_000))
    stats = sender.stats
    assert stats.accepted == stats.sent == stats.out_msgs == 10_000
    assert stats.buffered == stats.uncertain == stats.dropped == stats.replayed == 0
    payloads = sum(len(str(number)) for number in range(10_000))
    assert stats.out_bytes == payloads + len(range(0, 10_000, 7)) * 18
    assert receiver.stats.in_msgs == 10_000
    assert receiver.stats.in_bytes == stats.out_bytes


def test_publish_does_not_switch(conn: gnats.Connection, subject: str) -> None:
    switched: list[int] = []
    gevent.spawn(switched.append, 1)
    for _ in range(100):
        conn.publish(subject, b"x")
    assert switched == []
    assert conn.stats.buffered == 100


def test_publish_from_a_hub_callback(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(subject)
    hub = gevent.get_hub()
    for number in range(3):
        hub.loop.run_callback(conn.publish, subject, b"%d" % number)
    assert [sub.next_msg(5).data for _ in range(3)] == [b"0", b"1", b"2"]


def test_many_subjects(conn: gnats.Connection, subject: str) -> None:
    sub = conn.subscribe(f"{subject}.*")
    for number in range(20_000):  # more than the cache of subjects holds
        conn.publish(f"{subject}.{number}", b"")
    assert conn.flush(10)
    wait_until(lambda: sub.pending_msgs == 20_000)
    tails = [sub.next_msg(0).subject.rpartition(".")[2] for _ in range(20_000)]
    assert tails == [str(number) for number in range(20_000)]
    assert len(conn._known_heads) <= 8192


@pytest.mark.parametrize(
    "mode", [{"verbose": True}, {"pedantic": True}, {"verbose": True, "pedantic": True}]
)
def test_verbose_and_pedantic(connect: Any, subject: str, mode: dict[str, bool]) -> None:
    conn = connect(**mode)
    sub = conn.subscribe(subject, cb=lambda msg: msg.respond(msg.data) if msg.reply else None)
    for number in range(100):
        conn.publish(subject, b"%d" % number, headers={"a": "b"})
    assert conn.flush(5)
    wait_until(lambda: sub.delivered == 100)
    assert conn.request(subject, b"?", 5).data == b"?"
    sub.unsubscribe()
    assert conn.rtt(5) > 0
    assert conn.stats.errors_received == conn.stats.disconnects == 0


def test_no_echo(connect: Any, subject: str) -> None:
    silent, other = connect(no_echo=True), connect()
    own, theirs = silent.subscribe(subject), other.subscribe(subject)
    other.flush(5)
    silent.publish(subject, b"from silent")
    assert theirs.next_msg(5).data == b"from silent"
    other.publish(subject, b"from other")
    assert own.next_msg(5).data == b"from other"
    assert silent.flush(5)
    assert own.pending_msgs == 0


def test_new_inbox(connect: Any) -> None:
    plain, other = connect(), connect(inbox_prefix="my.inbox")
    inboxes = [conn.new_inbox() for conn in (plain, other) for _ in range(5000)]
    assert len(set(inboxes)) == 10_000
    assert all(inbox.startswith("_INBOX.") for inbox in inboxes[:5000])
    assert all(inbox.startswith("my.inbox.") for inbox in inboxes[5000:])
    sub = other.subscribe(inboxes[-1])
    other.publish(inboxes[-1], b"x")
    assert sub.next_msg(5).data == b"x"


@pytest.mark.parametrize(
    "prefix", ["", " ", "a b", "a.", ".a", "a..b", "a.*", ">", "a\r\n", None, 5]
)
def test_a_bad_inbox_prefix(prefix: Any) -> None:
    with pytest.raises(errors.OptionError, match="inbox_prefix"):
        gnats.Connection(inbox_prefix=prefix)


@pytest.mark.parametrize("where", ["greenlet", "hub"])
def test_a_lone_publish_leaves_in_the_next_turn_of_the_loop(
    conn: gnats.Connection, subject: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are for the busy: nothing is held back in the hope that more will come."""
    session = conn._reconnector.session
    assert session is not None
    transport, sent = session._opened.transport, []
    send = transport.send

    def record(data: memoryview) -> int:
        sent.append(bytes(data))
        return send(data)

    monkeypatch.setattr(transport, "send", record)
    wait_until(lambda: conn._buffer.wake is not None)  # the flusher has nothing to do
    sent.clear()
    if where == "hub":
        gevent.get_hub().loop.run_callback(conn.publish, subject, b"alone")
        gevent.sleep(0)
    else:
        conn.publish(subject, b"alone")
    assert sent == []  # the caller's greenlet never touches the socket
    gevent.sleep(0)
    assert b"".join(sent).startswith(b"PUB %b 5\r\nalone\r\n" % subject.encode())
