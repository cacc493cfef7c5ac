"""Both scanners read the same: events, where they stop, errors and their words."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_cases import BAD, GOOD, plain

from gnats import lines
from gnats.errors import ProtocolError
from gnats.scanner import PureScanner, Scanner

pytestmark = [
    pytest.mark.sansio,
    pytest.mark.skipif(Scanner is PureScanner, reason="no compiled twin was built"),
]

WIRES = [case.wire for case in (*GOOD, *BAD) if len(case.wire) < 5000]
# What may stand in a line, the separators and the edges of what a scanner takes for a word.
BITS = [
    b"MSG ", b"HMSG ", b"msg ", b"hMsG ", b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x'\r\n",
    b"INFO {}\r\n", b"MSG a 1 2\r\nhi\r\n", b"MSG a.b 1 r 2\r\nhi\r\n", b"MSG a 1 0\r\n\r\n",
    b"HMSG a 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HMSG a 1 r 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b" ", b"  ", b"\t", b"\r", b"\n", b"\r\n", b"\x0b", b"\x0c", b"\x00", b"\x1f", b"\x7f",
    b"\x80", b"\xff", "ä".encode(), b"a", b"a.b", b"1", b"0", b"01", b"-1", b"+1", b"1_0",
    b"%d" % (2**63 - 1), b"%d" % (2**63 - 40), b"9" * 18, b"9" * 19, b"9" * 20, b"1" * 300,
    b"x" * 300, b"hi", b"NATS/1.0\r\n\r\n",
]  # fmt: skip


def read(
    kind: type, pieces: list[tuple[bytes, int]], max_payload: int
) -> list[tuple[list[Any], Any]]:
    """What one scanner makes of pieces, one after the other: it may remember lines."""
    one, told = kind(), []
    for data, position in pieces:
        events: list[Any] = []
        try:
            end: Any = one.scan(data, position, max_payload, events)
        except ProtocolError as exc:
            end = str(exc)
        told.append(([(plain(event), type(event).__name__) for event in events], end))
    return told


def same(pieces: list[tuple[bytes, int]], max_payload: int = 1 << 20) -> None:
    assert read(Scanner, pieces, max_payload) == read(PureScanner, pieces, max_payload)


@pytest.mark.parametrize("wire", WIRES)
def test_the_wire_cases_cut_anywhere(wire: bytes) -> None:
    for end in range(len(wire) + 1):
        same([(wire[:end], 0)])
    for start in range(0, len(wire), 3):
        same([(wire, start)])


@settings(max_examples=1500, deadline=None)
@given(
    pieces=st.lists(st.lists(st.sampled_from(BITS), max_size=14).map(b"".join), max_size=4),
    max_payload=st.sampled_from([0, 1, 2, 14, 10**6, 2**63 - 1]),
    start=st.integers(0, 5),
)
@example(pieces=[b"MSG a 1 2\r\nhi\r\nMSG a 1 3\r\nhi\r\n"], max_payload=10, start=0)
def test_any_line_is_read_alike(pieces: list[bytes], max_payload: int, start: int) -> None:
    same([(data, min(start, len(data))) for data in pieces], max_payload)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_lines_are_read_alike(data: st.DataObject) -> None:
    wire = bytearray(b"".join(data.draw(st.lists(st.sampled_from(WIRES), min_size=1, max_size=4))))
    for _ in range(data.draw(st.integers(0, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    same([(bytes(wire), 0), (bytes(wire), 0)])


@pytest.mark.parametrize("limit", [0, 5, 10, 20, 64])
def test_a_lower_limit_of_lines_holds_for_both(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_CONTROL_LINE", limit)
    for length in range(1, 80):
        line = b"MSG " + b"a" * length + b" 1 0\r\n\r\n"
        same([(line, 0), (line, 0)])


def test_a_busy_link_with_many_subjects(rng: random.Random) -> None:
    for _ in range(30):
        frames = []
        for _ in range(300):
            subject = rng.choice([b"a", b"a.b", b"long." * 60, b"caf\xc3\xa9"])
            sid = rng.choice([1, 10, 100, 10**17])
            reply = rng.choice([b"", b"r ", b"_INBOX.abc.1 "])
            size = rng.choice([0, 1, 9, 10, 99, 100, 1000])
            frames.append(
                b"MSG %b %d %b%d\r\n%b\r\n"
                % (subject, sid, reply, size, bytes(rng.choices(range(256), k=size)))
            )
        wire = b"".join(frames)
        cut = rng.randrange(len(wire))
        same([(wire[:cut], 0), (wire, 0), (wire, len(frames[0]))])


def test_a_size_to_the_end_of_all_numbers() -> None:
    for size in (*range(2**63 - 60, 2**63), 10**18 - 1, 10**18):
        for wire in (b"MSG a 1 %d\r\nhi\r\n" % size, b"HMSG a 1 %d %d\r\nhi\r\n" % (size, size)):
            same([(wire, 0), (b"x" * 3000 + wire, 3000)], 2**63 - 1)


def test_a_place_in_front_of_all_bytes() -> None:
    for kind in (Scanner, PureScanner):
        for position in (-1, -14, -(10**9), -(2**63)):
            with pytest.raises(ValueError, match="position: 0 or more is needed, not -"):
                kind().scan(b"MSG a 1 0\r\n\r\n", position, 10, [])


def test_what_a_scanner_refuses_to_read() -> None:
    for kind in (Scanner, PureScanner):
        with pytest.raises((TypeError, AttributeError)):
            kind().scan(None, 0, 10, [])
