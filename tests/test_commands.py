"""What the client says, to the byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats import commands
from gnats.commands import SIZES

pytestmark = pytest.mark.sansio

HEAD = commands.pub_head(b"a.b")


def test_constants() -> None:
    assert (commands.PING, commands.PONG) == (b"PING\r\n", b"PONG\r\n")


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (commands.pub(HEAD, b"", b"hello"), b"PUB a.b 5\r\nhello\r\n"),
        (commands.pub(HEAD, b"", b""), b"PUB a.b 0\r\n\r\n"),
        (commands.pub(HEAD, b"r.1", b"hi"), b"PUB a.b r.1 2\r\nhi\r\n"),
        (commands.pub(HEAD, b"r", b"\r\n"), b"PUB a.b r 2\r\n\r\n\r\n"),
        (
            commands.hpub(HEAD, b"", b"NATS/1.0\r\n\r\n", b"hi"),
            b"HPUB a.b 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        ),
        (
            commands.hpub(HEAD, b"r.1", b"NATS/1.0\r\n\r\n", b""),
            b"HPUB a.b r.1 12 12\r\nNATS/1.0\r\n\r\n\r\n",
        ),
        (commands.sub(1, b"a.>"), b"SUB a.> 1\r\n"),
        (commands.sub(22, b"a", b"workers"), b"SUB a workers 22\r\n"),
        (commands.unsub(3), b"UNSUB 3\r\n"),
        (commands.unsub(3, 0), b"UNSUB 3\r\n"),
        (commands.unsub(3, 10), b"UNSUB 3 10\r\n"),
        (commands.connect({}), b"CONNECT {}\r\n"),
        (commands.connect({"a": True, "b": "c"}), b'CONNECT {"a":true,"b":"c"}\r\n'),
    ],
)
def test_to_the_byte(frame: bytes, wire: bytes) -> None:
    assert frame == wire


@pytest.mark.parametrize("value", ["ü", "\r\nPING\r\n", "\u2028", '"}\r\n', "\x00", "\ud800"])
def test_no_text_can_break_out_of_connect(value: str) -> None:
    wire = commands.connect({"name": value, "pass": value})
    assert wire.count(b"\r\n") == 1
    assert wire.endswith(b"}\r\n")
    assert wire.isascii()
    assert json.loads(wire[len("CONNECT ") :]) == {"name": value, "pass": value}


@pytest.mark.parametrize("size", [0, 1, 9, 10, 8191, 8192, 8193, 2**20, 2**63])
def test_sizes(size: int) -> None:
    for _ in range(2):
        assert SIZES[size] == b"%d\r\n" % size


def test_sizes_kept_are_bounded() -> None:
    for size in range(0, 300_000, 7):
        SIZES[size]
    assert len(SIZES) <= 8193


_BLOCK = b"NATS/1.0\r\nA: 9999\r\n\r\n"
_MESSAGES = [
    (commands.pub(HEAD, b"", b""), 0),
    (commands.pub(HEAD, b"", b"x" * 1234), 1234),
    (commands.pub(HEAD, b"77", b"x"), 1),
    (commands.pub(HEAD, b"r", b"PUB x 999\r\n"), 11),
    (commands.hpub(HEAD, b"", _BLOCK, b""), len(_BLOCK)),
    (commands.hpub(HEAD, b"r", _BLOCK, b"\r\n 5\r\n"), len(_BLOCK) + 6),
]
_CONTROLS = [
    commands.PING,
    commands.PONG,
    commands.sub(1, b"PUB"),
    commands.unsub(1),
    commands.connect({}),
]


@pytest.mark.parametrize(("frame", "size"), _MESSAGES)
def test_messages_and_their_size(frame: bytes, size: int) -> None:
    assert commands.is_message(frame)
    assert commands.message_size(frame) == size


@pytest.mark.parametrize("frame", _CONTROLS)
def test_control_frames_are_no_messages(frame: bytes) -> None:
    assert not commands.is_message(frame)


@given(
    subject=st.from_regex(r"[!-~]{1,20}", fullmatch=True),
    reply=st.from_regex(r"[!-~]{0,20}", fullmatch=True),
    block=st.none() | st.binary(min_size=1, max_size=30),
    payload=st.binary(max_size=100),
)
def test_frames_say_their_sizes(
    subject: str, reply: str, block: bytes | None, payload: bytes
) -> None:
    head = commands.pub_head(subject.encode())
    if block is None:
        frame = commands.pub(head, reply.encode(), payload)
    else:
        frame = commands.hpub(head, reply.encode(), block, payload)
    line, _, rest = frame.partition(b"\r\n")
    verb, said_subject, *middle, total = line.decode().split(" ")
    assert verb == ("PUB" if block is None else "HPUB")
    assert said_subject == subject
    assert middle == ([reply] if reply else []) + ([str(len(block))] if block else [])
    assert rest == (block or b"") + payload + b"\r\n"
    assert int(total) == len(rest) - 2 == commands.message_size(frame)


@pytest.mark.parametrize(
    ("frame", "size", "headers"),
    [
        (commands.pub(HEAD, b"", b"PUB x 99\r\n"), 10, False),
        (commands.pub(HEAD, b"r", b""), 0, False),
        (commands.hpub(HEAD, b"r", b"NATS/1.0\r\n\r\n", b"hi"), 14, True),
    ],
)
def test_a_message_frame_read_back(frame: bytes, size: int, headers: bool) -> None:
    assert commands.is_message(frame)
    assert commands.message_size(frame) == size
    assert commands.message_subject(frame) == "a.b"
    assert commands.has_headers(frame) is headers
    assert commands.is_larger(frame, size - 1)
    assert not commands.is_larger(frame, size)
