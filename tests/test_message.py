"""A received message: what it says, how it answers; and what counts as a payload."""

from __future__ import annotations

import array
import sys
from typing import Any

import pytest

from gnats.errors import Error, ProtocolError
from gnats.message import Msg, PureMsg
from gnats.payload import to_bytes

pytestmark = pytest.mark.sansio


@pytest.fixture(autouse=True, params=[PureMsg, Msg], ids=["pure", "used"])
def _twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test, on each twin."""
    monkeypatch.setattr(sys.modules[__name__], "Msg", request.param)


def plain(data: bytes = b"", reply: str = "") -> Msg:
    return Msg("a.b", 7, reply, None, data)


def with_block(block: bytes, data: bytes = b"") -> Msg:
    return Msg("a.b", 7, "", block, data)


def test_what_it_says() -> None:
    msg = plain(b"hello", "back")
    assert (msg.subject, msg.sid, msg.reply, msg.data) == ("a.b", 7, "back", b"hello")
    assert msg.headers is None
    assert msg.header is None
    assert msg.sub is None


def test_headers_are_read_once_and_kept() -> None:
    msg = with_block(b"NATS/1.0\r\nA: b\r\n\r\n")
    assert msg.headers == {"A": "b"}
    assert msg.headers is msg.headers
    assert msg.header is msg.headers


def test_a_broken_block_is_told_to_whoever_looks() -> None:
    msg = with_block(b"garbage")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            _ = msg.headers


@pytest.mark.parametrize("block", [b"garbage", b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"\xff" * 9])
def test_repr_never_raises(block: bytes) -> None:
    assert "a.b" in repr(with_block(block, b"x"))


def test_repr_is_short_and_says_the_size() -> None:
    assert repr(plain(b"hi", "r.1")) == "<Msg 'a.b' reply='r.1' data=b'hi' (2 bytes)>"
    text = repr(plain(b"\x00" * 1_000_000))
    assert "1000000 bytes" in text
    assert len(text) < 500


def test_it_has_no_room_for_more() -> None:
    with pytest.raises(AttributeError):
        plain().more = 1  # type: ignore[attr-defined]


# -- answering ---------------------------------------------------------------------------


class Sub:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def respond_to(self, *args: Any) -> None:
        self.calls.append(args)


def test_respond_goes_through_the_subscription() -> None:
    msg, sub = plain(reply="r.1"), Sub()
    msg.sub = sub
    msg.respond(b"yes")
    msg.respond("str", headers={"a": "b"})
    msg.respond()
    assert sub.calls == [
        ("r.1", b"yes", None),
        ("r.1", "str", {"a": "b"}),
        ("r.1", b"", None),
    ]


def test_respond_without_a_reply_subject() -> None:
    msg = plain()
    msg.sub = sub = Sub()
    with pytest.raises(Error, match="no reply"):
        msg.respond(b"yes")
    assert sub.calls == []


def test_respond_without_a_subscription() -> None:
    with pytest.raises(Error, match="subscription"):
        plain(reply="r").respond(b"yes")


# -- no responders -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "data", "expected"),
    [
        (b"NATS/1.0 503\r\n\r\n", b"", True),
        (b"NATS/1.0 503 No Responders\r\n\r\n", b"", True),
        (b"NATS/1.0 503\r\nNats-Subject: x\r\n\r\n", b"", True),
        (b"NATS/1.0 503\r\n\r\n", b"x", False),
        (b"NATS/1.0 5031\r\n\r\n", b"", False),
        (b"NATS/1.0 404\r\n\r\n", b"", False),
        (b"NATS/1.0\r\n\r\n", b"", False),
        (b"NATS/1.0\r\nStatus: 503\r\n\r\n", b"", False),
        (b"garbage", b"", False),
        (None, b"", False),
        (None, b"NATS/1.0 503\r\n\r\n", False),
    ],
)
def test_is_no_responders(block: bytes | None, data: bytes, expected: bool) -> None:
    assert Msg("a", 1, "", block, data).is_no_responders() is expected


# -- payloads ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"", b""),
        (b"\x00\xff", b"\x00\xff"),
        ("", b""),
        ("grüße", "grüße".encode()),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[1:3], b"bc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(bytearray(8)).cast("H"), bytes(8)),
        (array.array("B", b"abc"), b"abc"),
        (array.array("H", [1]), array.array("H", [1]).tobytes()),
    ],
)
def test_to_bytes(payload: object, data: bytes) -> None:
    wire = to_bytes(payload)
    assert type(wire) is bytes
    assert wire == data


@pytest.mark.parametrize(
    "payload", [None, 0, 5, 1.5, True, [], [1, 2], ["a"], (), {}, {"a": 1}, object(), bytes, str]
)
def test_to_bytes_refuses(payload: object) -> None:
    with pytest.raises(TypeError, match="payload"):
        to_bytes(payload)


def test_what_was_copied_does_not_change() -> None:
    buffer = bytearray(b"abc")
    wire = to_bytes(buffer)
    view = to_bytes(memoryview(buffer))
    buffer[:] = b"xyz"
    assert wire == view == b"abc"


def test_subclasses_become_plain() -> None:
    class Bytes(bytes):
        pass

    class Text(str):
        __slots__ = ()

    assert type(to_bytes(Bytes(b"a"))) is bytes
    assert to_bytes(Text("ü")) == "ü".encode()


def test_what_is_shown_of_a_message_is_short() -> None:
    block = b"NATS/1.0\r\n" + b"A: %b\r\n\r\n" % (b"x" * 100_000)
    assert len(repr(Msg("s", 1, "", block, b"y" * 100_000))) < 500
