"""The short run of the fuzzing: what was kept, a few new inputs, and the work of long ones.

The long run is ``tox run -e fuzz``, see docs/fuzzing.md. A failure here says GNATS_SEED, with
which the same inputs come again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from fuzz import corpus, engines, reference, targets
from fuzz.__main__ import main
from fuzz.meter import meter, metered
from fuzz.targets import TARGETS
from hypothesis import strategies as st
from wire_cases import BAD, GOOD

from gnats import lines
from gnats.errors import ProtocolError
from gnats.handshake import Handshake
from gnats.parser import Parser

# Once, not in every cell: the interpreter hardly matters, and the work is counted byte by byte.
pytestmark = [pytest.mark.sansio, pytest.mark.once]

each_target = pytest.mark.parametrize("target", list(TARGETS))

# Of `work`, where every byte is counted, fewer inputs take as long.
RUNS = dict.fromkeys(TARGETS, 120) | {"work": 16}


def check(target: str, data: bytes) -> None:
    try:
        TARGETS[target](data)
    except AssertionError as exc:
        pytest.fail(f"{target} of {data!r}: {exc}")


# -- inputs ------------------------------------------------------------------------------


@each_target
def test_the_corpus(target: str) -> None:
    for data in corpus.kept(target).values():
        check(target, data)


@each_target
def test_what_the_other_tests_know(target: str) -> None:
    for data in corpus.seeds(target):
        check(target, data)


@each_target
def test_the_corpus_is_small_and_named_after_its_content(target: str) -> None:
    kept = corpus.kept(target)
    assert 0 < len(kept) <= corpus.MOST
    for name, data in kept.items():
        assert name == corpus.name_of(data, name.startswith("found-"))
        assert len(data) <= corpus.LONGEST


@each_target
def test_mutations_of_the_corpus(target: str, rng: random.Random) -> None:
    pool = list(corpus.kept(target).values())
    for _ in range(RUNS[target]):
        check(target, engines.mutate(rng, rng.choice(pool), pool))


NAMES = st.sampled_from([b"a", b"b.c", b"a\x0b1", b"\xff", b"\r", b"{}", b"'x'", b"1"])
NUMBERS = st.sampled_from([b"0", b"1", b"2", b"12", b"+1", b"-0", b"1_0", b"60", b"61", b"9" * 20])
SIZES = st.tuples(NUMBERS, NUMBERS)
REPLIES = st.lists(NAMES, max_size=1)
# The words of a line: those of the two messages in their order, others in any.
WORDS = (
    st.builds(lambda a, b, c, d: [b"MSG", a, b, *c, d], NAMES, NUMBERS, REPLIES, NUMBERS)
    | st.builds(lambda a, b, c, d: [b"hMSG", a, b, *c, *d], NAMES, NUMBERS, REPLIES, SIZES)
    | st.lists(st.sampled_from(engines.WORDS), max_size=4)
)
BLANKS = st.sampled_from([b" ", b" ", b"\t", b"  "])
ENDS = st.sampled_from([b"\r\n", b"\r\n\r\n", b"\r\nx\r\n", b"\r\n" * 2 + b"\r\n", b"\n", b"\r"])
LINES = st.builds(lambda words, blank, end: blank.join(words) + end, WORDS, BLANKS, ENDS)
GOOD_FRAMES = st.sampled_from([case.wire for case in GOOD if len(case.wire) < 60])
PIECES = LINES | st.sampled_from(engines.WORDS) | st.binary(max_size=6)
CHOICES = st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 255)).map(bytes)
INPUTS = st.builds(
    lambda *parts: b"".join(parts),
    CHOICES,
    st.lists(GOOD_FRAMES, max_size=2).map(b"".join),
    PIECES,
    st.lists(GOOD_FRAMES | PIECES, max_size=5).map(b"".join),
)

# To explain a failure as well would take a minute.
PHASES = (hypothesis.Phase.generate, hypothesis.Phase.shrink)


@each_target
def test_pieces_of_the_protocol(target: str, rng: random.Random) -> None:
    """Hypothesis makes a failing input as small as it can be."""

    # Not its database, and not its own seed: GNATS_SEED alone says what is run.
    @hypothesis.seed(rng.getrandbits(64))
    @hypothesis.settings(max_examples=RUNS[target] // 2, database=None, phases=PHASES)
    @hypothesis.given(INPUTS)
    def run(data: bytes) -> None:
        TARGETS[target](data)

    run()


# -- work --------------------------------------------------------------------------------


def singly(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


def fed(*chunks: bytes, to: Any = None) -> Callable[[], object]:
    """Feed a metered parser."""
    feed = (to or metered("parser").Parser()).feed
    return lambda: [feed(chunk) for chunk in chunks]


def shaken(*chunks: bytes) -> Callable[[], object]:
    """Feed a metered handshake."""
    parser = metered("parser").Parser()
    return fed(*chunks, to=metered("handshake").Handshake(parser, lambda info: {}))


def dribbled(wire: bytes) -> Callable[[], object]:
    return fed(*singly(wire))


def _sized(head: bytes, payload: bytes) -> bytes:
    return b"%b %d\r\n%b\r\n" % (head, len(payload), payload)


def _info_of(n: int) -> Callable[[], object]:
    urls = b",".join(b'"10.0.%d.1:4222"' % k for k in range(n))
    return lambda: metered("info").parse_info(b'{"connect_urls":[%b]}' % urls)


def _decode(block: bytes) -> Callable[[], object]:
    return lambda: metered("headers").decode_headers(b"NATS/1.0\r\n" + block)


def _encode(pairs: list[tuple[str, str]]) -> Callable[[], object]:
    return lambda: metered("headers").encode_headers(pairs)


_TINY = b"MSG a 1 1\r\nx\r\n"
_INFO = b"INFO {%b}\r\n"


def _different(n: int) -> bytes:
    return b"".join(b"MSG a.%d %d 0\r\n\r\n" % (k, k) for k in range(1000, 1000 + n))


def _by(wire: bytes, size: int) -> list[bytes]:
    return targets.paced(wire, size, 0)


def _uneven(wire: bytes) -> list[bytes]:
    """Chunks that are kept as they are, and such that are gathered, in turn."""
    edges = [edge for start in range(0, len(wire), 4097) for edge in (start, start + 4096)]
    return [wire[a:b] for a, b in zip(edges, [*edges[1:], len(wire)])]


def _sparse(wire: bytes) -> list[bytes]:
    return [chunk for byte in singly(wire) for chunk in (b"", byte)]


# What a hostile server may send, at any size; the smaller of two sizes, and how. Those of INFO are
# beyond the limit of other lines, where a parser may be tempted to look at all of it again.
SHAPES: dict[str, tuple[int, Callable[[int], Callable[[], object]]]] = {
    "control line without end": (4000, lambda n: dribbled(b"MSG " + b"a" * n)),
    "CRs without LF": (4000, lambda n: dribbled(b"-ERR " + b"\r" * n)),
    "blanks, then a verb": (4000, lambda n: dribbled(b" " * n + b"PING\r\n")),
    "long lines": (10, lambda n: fed(*_by(b"MSG %b 1 0\r\n\r\n" % (b"s" * 60_000) * n, 5000))),
    # -- INFO
    "INFO": (4000, lambda n: dribbled(_INFO % (b" " * n))),
    "INFO beyond 64 KiB": (70_000, lambda n: fed(*_by(_INFO % (b" " * n), 7))),
    "INFO of a megabyte": (500_000, lambda n: fed(*_by(_INFO % (b" " * n), 100))),
    "INFO in uneven chunks": (400_000, lambda n: fed(*_uneven(_INFO % (b" " * n)))),
    "INFO of addresses": (3000, _info_of),
    # -- payloads
    "payload": (4000, lambda n: dribbled(_sized(b"MSG a 1", b"x" * n))),
    "payload of LFs": (4000, lambda n: dribbled(_sized(b"MSG a 1", b"\n" * n))),
    "payload of CRLFs": (2000, lambda n: dribbled(_sized(b"MSG a 1", b"\r\n" * n))),
    "payload of messages": (400, lambda n: dribbled(_sized(b"HMSG a 1 9", _TINY * n))),
    "payload in uneven chunks": (400_000, lambda n: fed(*_uneven(_sized(b"MSG a 1", b"x" * n)))),
    "payload, empty chunks": (5000, lambda n: fed(*_sparse(_sized(b"MSG a 1", b"\n" * n)))),
    # -- many
    "messages": (400, lambda n: dribbled(_TINY * n)),
    "messages, all different": (300, lambda n: dribbled(_different(n))),
    "messages in one chunk": (5000, lambda n: fed(_TINY * n)),
    "messages cut anywhere": (5000, lambda n: fed(*_by(_TINY * n, 999))),
    "PINGs": (5000, lambda n: fed(b"PING\r\n" * n)),
    "PINGs in the handshake": (3000, lambda n: shaken(b"INFO {}\r\n", b"PING\r\n" * n)),
    "OKs in the handshake": (900, lambda n: shaken(*singly(b"INFO {}\r\n" + b"+OK\r\n" * n))),
    # -- headers
    "many headers": (3000, lambda n: _decode(b"".join(b"n%d: v\r\n" % k for k in range(n)))),
    "one header many times": (3000, lambda n: _decode(b"n: v\r\n" * n)),
    "a long header": (90_000, lambda n: _decode(b"n: %b\r\n" % (b"v " * n))),
    "empty header lines": (4000, lambda n: _decode(b"\r\n" * n)),
    "headers sent": (3000, lambda n: _encode([(f"n{k % 99}", "v") for k in range(n)])),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_twice_the_bytes_are_twice_the_work(shape: str) -> None:
    size, make = SHAPES[shape]
    once, twice = meter.of(make(size)), meter.of(make(2 * size))
    assert once > size
    assert twice < 2.5 * once, f"{once} and {twice}: {twice / once:.2f} times the work"


def test_the_meter_sees_what_grows_with_the_square() -> None:
    module = metered("parser")

    class Hasty(module.Parser):  # type: ignore[misc]
        """It joins what it holds at every byte."""

        def _may_be_complete(self, data: bytes) -> bool:
            return True

    def spend(size: int) -> int:
        parser = Hasty()
        return meter.of(lambda: [parser.feed(byte) for byte in singly(b"MSG " + b"a" * size)])

    assert spend(4000) > 3.5 * spend(2000)


# -- the targets themselves --------------------------------------------------------------


def _late(self: Parser, data: bytes) -> bool:
    return b"\n" in data or self._have >= (self._need or 10**9)


def _forgets(self: Parser, data: bytes, position: int) -> None:
    self._chunks, self._have, self._need, self._limit = [data[position:]], 1, 0, 40


def _takes_all(digits: bytes, line: bytes) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ProtocolError("") from None


def _asks_nobody(self: Handshake, events: list[Any]) -> bytes:
    return b"".join(map(self._on_event, events))


# A fault: where it is, what stands there instead, the target that must find it, and an input.
FAULTS: dict[str, tuple[Any, str, Any, str, bytes]] = {
    "signs": (lines, "_number", _takes_all, "parser", b"\0\0\0MSG a 1 +1\r\nx\r\n"),
    "endless lines": (Parser, "_may_be_complete", _late, "parser", b"\1\0\0" + b"x" * 99),
    "wrong pending": (Parser, "_keep", _forgets, "parser", b"\0\0\0MSG a 1 1\r\nx"),
    "no limit": (lines, "check_length", lambda *_: None, "parser", b"\1\0\0" + b"x" * 99),
    "odd names": (lines, "_text", bytes.decode, "parser", b"\0\0\0MSG \xff 1 0\r\n\r\n"),
    "early PONG": (Handshake, "_walk", _asks_nobody, "handshake", b"\0\0\0INFO {}\r\nPONG\r\n"),
    "bad headers": (targets, "encode_headers", lambda _: b"", "headers", b"\1\r\na b: c\r\n"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_targets_find(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, broken, target, data = FAULTS[fault]
    assert not engines.fails(target, data)
    monkeypatch.setattr(place, name, broken)
    assert engines.fails(target, data)


def test_an_exception_that_nobody_knows_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise KeyError("x")

    monkeypatch.setattr(targets, "parse_info", broken)
    with pytest.raises(AssertionError, match="KeyError"):
        TARGETS["info"](b"{}")


def _plain(event: reference.Plain) -> tuple[str, ...]:
    """In the one form that the wire cases and the reference have in common."""
    return event[0], *(repr(fact) if event[0] != "INFO" else str(fact) for fact in event[1:])


def test_the_reference_reads_the_wire_cases() -> None:
    for case in (*GOOD, *BAD):
        reading = reference.read_stream(case.wire, targets.PAYLOADS[0], targets.REAL)
        events = [event[:2] if event[0] == "INFO" else event for _, event in reading.events]
        assert [*map(_plain, events)] == [*map(_plain, case.events)], case.name
        assert (reading.fault is not None) is (case in BAD), case.name
        assert reading.held(len(case.wire)) == 0 or case in BAD, case.name


# -- the engines -------------------------------------------------------------------------


def test_a_search_finds_its_way_and_the_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus, "PLACE", tmp_path)
    command = ["info", "--engine", "random", "--seconds", "0.2", "--seed", "1"]
    assert main([*command, "--grow"]) == 0
    assert corpus.kept("info")

    def faulty(data: bytes) -> None:
        assert b"port" not in data

    monkeypatch.setitem(TARGETS, "info", faulty)
    assert main(command) == 1
    (found,) = tmp_path.glob("info/found-*")
    assert found.read_bytes() == b"port"
    assert "FOUND b'port'" in capsys.readouterr().out
    assert main(["--replay", str(found)]) == 1
    monkeypatch.undo()
    assert main(["--replay", str(found)]) == 0


def test_the_same_seed_makes_the_same_inputs() -> None:
    known = len(corpus.kept("refusal")) + len(corpus.seeds("refusal")) + 1

    def search(seed: str) -> engines.Result:
        return engines.at_random("refusal", seed, seconds=60, runs=known + 60)

    assert search("s") == search("s")
