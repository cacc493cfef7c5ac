"""Intake and Publisher, both twins: frames to the byte, what is counted, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gnats.backoff import Deadline
from gnats.errors import BadSubjectError, MaxPayloadError, OutboundBufferLimitError
from gnats.intake import HEADS_KEPT, Publisher, PurePublisher

pytestmark = pytest.mark.sansio


def as_a_connection(kind: type) -> type:
    class Conn(kind):  # type: ignore[misc]
        """What happens seldom is written down."""

        def __init__(self) -> None:
            super().__init__(SimpleNamespace())
            self.asked: list[tuple[Any, ...]] = []
            self.elsewhere = False
            self.room: Any = None
            self._move_in(SimpleNamespace())
            self._buffer.limit = 10_000

        @property
        def _is_elsewhere(self) -> bool:
            return self.elsewhere

        def _hand_over(self, *args: Any) -> None:
            self.asked.append(("hand over", *args))

        def _full_frame(self, *args: Any) -> tuple[bytes, int]:
            self.asked.append(("full frame", *args))
            return b"FULL\r\n", 99

        def _make_room(self, length: int, deadline: Any) -> None:
            self.asked.append(("room", length, deadline))
            if self.room is not None:
                self.room()

    return Conn


@pytest.fixture(params=[PurePublisher, Publisher], ids=["pure", "used"])
def conn(request: pytest.FixtureRequest) -> Any:
    return as_a_connection(request.param)()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 99, 100, 999, 1000, 8191, 8192, 8193])
def test_frames_to_the_byte(conn: Any, size: int) -> None:
    payload = bytes(range(256)) * 33
    conn.publish("a.b", payload[:size])
    frame = b"PUB a.b %d\r\n%b\r\n" % (size, payload[:size])
    buffer = conn._buffer
    assert buffer.frames == [frame]
    assert (buffer.size, buffer.accepted, buffer.accepted_bytes) == (len(frame), 1, size)


def test_large_ones_and_other_kinds_of_bytes(conn: Any) -> None:
    conn._buffer.limit = 10**9
    conn._buffer.max_payload = 10**8
    large = bytes(12_345_678)

    class Bytes(bytes):
        pass

    for payload in (large, "ä", bytearray(b"x"), memoryview(b"y"), Bytes(b"z")):
        conn.publish("s", payload)
    first, *others = conn._buffer.frames
    assert first == b"PUB s 12345678\r\n" + large + b"\r\n"
    assert others == [
        b"PUB s 2\r\n\xc3\xa4\r\n",
        b"PUB s 1\r\nx\r\n",
        b"PUB s 1\r\ny\r\n",
        b"PUB s 1\r\nz\r\n",
    ]
    assert all(type(frame) is bytes for frame in others)
    assert conn._buffer.size == sum(map(len, conn._buffer.frames))


@pytest.mark.parametrize("payload", [None, 5, 1.5, [b"x"], object()])
def test_what_is_no_payload(conn: Any, payload: Any) -> None:
    with pytest.raises(TypeError, match="payload"):
        conn.publish("s", payload)
    assert conn._buffer.accepted == 0


@pytest.mark.parametrize("subject", [None, 5, [], b"s", "", "a b", "a..b", "a.*", ">", "a\r\n", {}])
def test_what_is_no_subject(conn: Any, subject: Any) -> None:
    for _ in range(2):
        with pytest.raises(BadSubjectError):
            conn.publish(subject, b"")
    assert conn._buffer.frames == []


def test_a_subclass_of_str_is_a_subject(conn: Any) -> None:
    class Name(str):
        __slots__ = ()

    conn.publish("s", b"1")
    conn.publish(Name("s"), b"2")
    conn.publish(Name("t"), b"3")
    assert conn._buffer.frames == [b"PUB s 1\r\n1\r\n", b"PUB s 1\r\n2\r\n", b"PUB t 1\r\n3\r\n"]


def test_reply_and_headers_are_for_the_connection(conn: Any) -> None:
    conn.publish("s", b"1", "r")
    conn.publish("s", b"2", headers={"a": "b"})
    conn.publish("s", b"3", None)
    head = b"PUB s "
    assert conn.asked == [
        ("full frame", "s", head, b"1", "r", None),
        ("full frame", "s", head, b"2", "", {"a": "b"}),
        ("full frame", "s", head, b"3", None, None),
    ]
    assert conn._buffer.frames == [b"FULL\r\n"] * 3
    assert (conn._buffer.size, conn._buffer.accepted_bytes) == (18, 297)


def test_the_heads_that_are_kept_are_bounded(conn: Any) -> None:
    conn._buffer.limit = 10**9
    for number in range(HEADS_KEPT + 100):
        conn.publish(f"s.{number}", b"")
        assert len(conn._known_heads) <= HEADS_KEPT
    assert len(conn._known_heads) == 100
    assert conn._buffer.frames[-1] == b"PUB s.%d 0\r\n\r\n" % (HEADS_KEPT + 99)


def test_max_payload(conn: Any) -> None:
    conn._buffer.max_payload = 3
    conn.publish("s", b"123")
    with pytest.raises(MaxPayloadError) as caught:
        conn.publish("s", b"1234")
    assert (caught.value.size, caught.value.max_payload, caught.value.subject) == (4, 3, "s")
    assert conn._buffer.accepted == 1


def test_room(conn: Any) -> None:
    frame = b"PUB s 1\r\n1\r\n"
    conn._buffer.limit = 2 * len(frame)
    conn.publish("s", b"1")
    conn.publish("s", b"1")
    assert conn.asked == []
    conn.publish("s", b"1")
    assert conn.asked == [("room", len(frame), None)]

    def none() -> None:
        raise OutboundBufferLimitError(1, 2, 3, "no room")

    conn.room = none
    with pytest.raises(OutboundBufferLimitError):
        conn.publish("s", b"1")
    assert (len(conn._buffer.frames), conn._buffer.accepted) == (3, 3)


def test_the_next_server_may_take_less(conn: Any) -> None:
    def move() -> None:
        conn._buffer.max_payload = 1

    conn._buffer.limit, conn.room = -1, move
    with pytest.raises(MaxPayloadError):
        conn.publish("s", b"12")
    assert conn._buffer.frames == []


def test_the_flusher_is_woken_once(conn: Any) -> None:
    buffer, woken = conn._buffer, []

    def wake() -> None:
        buffer.wake = None
        woken.append(buffer.frames[-1])

    buffer.wake = wake
    conn.publish("s", b"1")
    conn.publish("s", b"2")
    assert woken == [b"PUB s 1\r\n1\r\n"]


def test_frames_that_were_taken_meanwhile(conn: Any) -> None:
    conn.publish("s", b"1")
    batch, conn._buffer.frames = conn._buffer.frames, []
    conn.publish("s", b"2")
    assert (len(batch), len(conn._buffer.frames)) == (1, 1)


def test_requests(conn: Any) -> None:
    deadline = Deadline(5)
    conn._ask("s", b"1", "_INBOX.x.1", None, deadline)
    conn._ask("s", "2", "ä", None, deadline)
    conn._ask("s", b"3", "r", {"a": "b"}, deadline)
    assert conn._buffer.frames == [
        b"PUB s _INBOX.x.1 1\r\n1\r\n",
        b"PUB s \xc3\xa4 1\r\n2\r\n",
        b"FULL\r\n",
    ]
    conn._buffer.limit = 0
    conn._ask("s", b"4", "r", None, deadline)
    assert conn.asked[-1] == ("room", len(b"PUB s r 1\r\n4\r\n"), deadline)
    with pytest.raises(BadSubjectError, match="bytes"):
        conn._ask("s", b"", "r" * 4000, None, deadline)


def test_frames_made_elsewhere(conn: Any) -> None:
    conn._accept(b"HPUB x\r\n", 5, "s", None)
    buffer = conn._buffer
    assert (buffer.frames, buffer.size, buffer.accepted_bytes) == ([b"HPUB x\r\n"], 8, 5)
    buffer.max_payload = 4
    with pytest.raises(MaxPayloadError):
        conn._accept(b"HPUB x\r\n", 5, "s", None)


@pytest.mark.parametrize("how", ["deleted", "none"])
def test_a_connection_without_a_buffer(conn: Any, how: str) -> None:
    """Nobody takes it away; if somebody did, it is told."""
    if how == "deleted":
        del conn._buffer
    else:
        conn._buffer = None
    for call in (
        lambda: conn.publish("s", b""),
        lambda: conn._ask("s", b"", "r", None, None),
        lambda: conn._accept(b"x", 1, "s", None),
        lambda: conn._check_size(1, "s"),
        lambda: conn._is_ready,
    ):
        with pytest.raises(AttributeError):
            call()


def test_a_frame_that_is_none(conn: Any) -> None:
    conn._full_frame = lambda *_: (None, 1)
    with pytest.raises(TypeError):
        conn.publish("s", b"", "r")
    conn._head = lambda _: None
    with pytest.raises(TypeError):
        conn.publish("t", b"")
    assert conn._buffer.frames == []
    del conn._buffer.frames
    with pytest.raises(AttributeError):
        conn._accept(b"x", 1, "s", None)


def test_ready(conn: Any) -> None:
    assert conn._is_ready
    conn._buffer.limit = 0
    assert conn._is_ready
    conn._buffer.limit = -1
    assert not conn._is_ready


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_thread_that_never_moved_in(
    conn: Any, elsewhere: bool, request: pytest.FixtureRequest
) -> None:
    """Nobody's connection may be used by anyone; another's hands the message over."""
    other = type(conn).__new__(type(conn))
    type(conn).__mro__[1].__init__(other, SimpleNamespace())
    other.asked, other.elsewhere = [], elsewhere
    other._buffer.limit = 100
    other.publish("s", b"1", "r" if elsewhere else "")
    assert not other._is_ready or "heads" in vars(other._home)
    if elsewhere:
        assert other.asked == [("hand over", "s", b"1", "r", None)]
    else:
        assert other._buffer.frames == [b"PUB s 1\r\n1\r\n"]
