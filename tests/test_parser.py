"""The parser: one table of wire cases, fed whole, byte by byte, and every other way."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import BAD, GOOD, OK, PING, Case, Plain, hmsg, msg, plain

from gnats.errors import ProtocolError
from gnats.lines import MAX_CONTROL_LINE, MAX_INFO_LINE, Err, Ok, Ping, Pong
from gnats.parser import Parser
from gnats.scanner import PureScanner, Scanner

pytestmark = pytest.mark.sansio

MakeParser = Callable[..., Parser]


def _with(scanner: Callable[[], Scanner]) -> MakeParser:
    return lambda **limit: Parser(**limit, scanner=scanner())


# With each twin: both are the same where none was compiled.
PARSERS: dict[str, MakeParser] = {"pure": _with(PureScanner)}
if Scanner is not PureScanner:
    PARSERS["compiled"] = _with(Scanner)

each_parser = pytest.mark.parametrize("make", list(PARSERS.values()), ids=list(PARSERS))
each_good = pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
each_bad = pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)


def singly(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


def cut(wire: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(wire)]
    return [wire[a:b] for a, b in zip(edges, edges[1:])]


def feed(parser: Parser, chunks: Iterable[bytes]) -> tuple[list[Plain], bool]:
    """Every event, and whether the parser refused to go on."""
    seen: list[Plain] = []
    try:
        for chunk in chunks:
            seen += map(plain, parser.feed(chunk))
    except ProtocolError as exc:
        return seen + list(map(plain, exc.events)), True
    return seen, False


# -- what is good ------------------------------------------------------------------------


@each_parser
@each_good
def test_whole(make: MakeParser, case: Case) -> None:
    parser = make()
    assert feed(parser, [case.wire]) == (case.events, False)
    assert parser.pending == 0


@each_parser
@each_good
def test_byte_by_byte(make: MakeParser, case: Case) -> None:
    parser = make()
    assert feed(parser, singly(case.wire)) == (case.events, False)
    assert parser.pending == 0


@each_parser
@each_good
def test_no_event_before_its_last_byte_and_none_later(make: MakeParser, case: Case) -> None:
    parser = make()
    seen, refused = feed(parser, [case.wire[:-1]])
    assert (seen, refused) == (case.events[:-1], False)
    assert parser.pending > 0
    assert feed(parser, [case.wire[-1:]]) == (case.events[-1:], False)


@each_parser
@each_good
def test_with_the_next_message_behind_it(make: MakeParser, case: Case) -> None:
    follower = b"MSG next.one 42 back 3\r\nabc\r\n"
    events = [*case.events, msg("next.one", 42, b"abc", "back")]
    assert feed(make(), [case.wire + follower]) == (events, False)
    for head in (1, 2, len(follower) - 1):
        chunks = [case.wire + follower[:head], follower[head:]]
        assert feed(make(), chunks) == (events, False)


@each_parser
@each_good
def test_in_two_chunks_cut_anywhere(make: MakeParser, case: Case) -> None:
    wire = case.wire if len(case.wire) < 500 else case.wire[:200]
    events = case.events if wire is case.wire else []
    for place in range(1, len(wire)):
        assert feed(make(), cut(wire, [place])) == (events, False), place


@each_parser
@settings(max_examples=150)
@given(data=st.data())
def test_random_chunks(make: MakeParser, data: st.DataObject) -> None:
    cases = data.draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=8))
    wire = b"".join(case.wire for case in cases)
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=40))
    events = [event for case in cases for event in case.events]
    parser = make()
    assert feed(parser, cut(wire, places)) == (events, False)
    assert parser.pending == 0


@each_parser
@pytest.mark.parametrize("chunk", [1, 2, 3, 1000, 4095, 4096, 4097, 65536])
def test_large_payload_in_equal_chunks(make: MakeParser, chunk: int) -> None:
    payload = bytes(range(256)) * 700
    wire = b"HMSG a 1 16 %d\r\nNATS/1.0 503\r\n\r\n%b\r\nPING\r\n" % (16 + len(payload), payload)
    chunks = [wire[i : i + chunk] for i in range(0, len(wire), chunk)]
    events = [hmsg("a", 1, b"NATS/1.0 503\r\n\r\n", payload), PING]
    assert feed(make(), chunks) == (events, False)


@each_parser
def test_large_and_small_chunks_mixed(make: MakeParser) -> None:
    payload = bytes(range(256)) * 400
    wire = b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload)
    places = [1, 5, 9, 5009, 5010, 5011, 9999, 20_000, 20_001, 60_000, len(wire) - 1]
    assert feed(make(), cut(wire, places)) == ([msg("a", 1, payload)], False)


@each_parser
def test_empty_chunks_are_nothing(make: MakeParser) -> None:
    parser = make()
    assert parser.feed(b"") == []
    assert feed(parser, [b"", b"PI", b"", b"", b"NG\r\n", b""]) == ([PING], False)
    line = b"INFO {%b}" % (b" " * (MAX_INFO_LINE - 7))
    events, refused = feed(make(), [line[:4], line[4:] + b"\r", b"", b"", b"\n"])
    assert (len(events), refused) == (1, False)


@each_parser
def test_pending_counts_the_bytes_of_the_incomplete_frame(make: MakeParser) -> None:
    parser = make()
    frame = b"MSG a 1 5\r\nhello\r\n"
    parser.feed(b"PING\r\n")
    for count, byte in enumerate(singly(frame)[:-1], 1):
        assert parser.feed(byte) == []
        assert parser.pending == count
    assert len(parser.feed(b"\nPI")) == 1
    assert parser.pending == 2


@each_parser
def test_many_messages_in_one_chunk(make: MakeParser) -> None:
    frames = [b"MSG s.%d %d 2\r\nhi\r\n" % (n % 3000, n) for n in range(5000)]
    events = [msg(f"s.{n % 3000}", n, b"hi") for n in range(5000)]
    assert feed(make(), [b"".join(frames)]) == (events, False)


@each_parser
def test_payloads_do_not_share_or_alias_what_was_fed(make: MakeParser) -> None:
    first, second = make().feed(b"MSG a 1 2\r\nhi\r\nMSG a 1 2\r\nho\r\n")
    assert (first.data, second.data) == (b"hi", b"ho")  # type: ignore[union-attr]
    assert first is not second


@each_parser
def test_parsers_do_not_share_state(make: MakeParser) -> None:
    one, other = make(), make()
    one.feed(b"MSG a 1 5\r\nhe")
    assert feed(other, [b"PING\r\n"]) == ([PING], False)
    assert feed(one, [b"llo\r\n"]) == ([msg("a", 1, b"hello")], False)


@each_parser
def test_events_are_values(make: MakeParser) -> None:
    ping, pong, ok, err = make().feed(b"PING\r\nPONG\r\n+OK\r\n-ERR 'x'\r\n")
    assert isinstance(ping, Ping)
    assert isinstance(pong, Pong)
    assert isinstance(ok, Ok)
    assert isinstance(err, Err)
    assert err.text == "x"


# -- what is bad -------------------------------------------------------------------------


@each_parser
@each_bad
def test_bad_whole(make: MakeParser, case: Case) -> None:
    assert feed(make(), [case.wire]) == (case.events, True)


@each_parser
@each_bad
def test_bad_byte_by_byte(make: MakeParser, case: Case) -> None:
    assert feed(make(), singly(case.wire)) == (case.events, True)


@each_parser
@each_bad
def test_bad_behind_good(make: MakeParser, case: Case) -> None:
    events = [OK, msg("a", 1, b"hi"), *case.events]
    assert feed(make(), [b"+OK\r\nMSG a 1 2\r\nhi\r\n" + case.wire]) == (events, True)


@each_parser
def test_the_error_carries_what_came_before_in_the_same_bytes(make: MakeParser) -> None:
    parser = make()
    assert feed(parser, [b"PONG\r\nPI"]) == ([("PONG",)], False)
    with pytest.raises(ProtocolError) as caught:
        parser.feed(b"NG\r\nMSG a 1 2\r\nhi\r\nMSG a 1 x\r\n")
    assert list(map(plain, caught.value.events)) == [PING, msg("a", 1, b"hi")]


@each_parser
def test_the_error_is_short_however_long_the_input(make: MakeParser) -> None:
    for wire in (
        b"X" * 60_000 + b"\r\n",
        b"MSG a 1 " + b"9" * 60_000 + b"\r\n",
        b"MSG %b 1 0\r\nxx" % (b"s" * 60_000),
        b"Y" * 10**6,
    ):
        with pytest.raises(ProtocolError) as caught:
            make().feed(wire)
        assert len(str(caught.value)) < 300


def _words_of(make: MakeParser, chunks: Iterable[bytes]) -> str:
    parser = make()
    with pytest.raises(ProtocolError) as caught:
        for chunk in chunks:
            parser.feed(chunk)
    return str(caught.value)


@each_parser
@pytest.mark.parametrize(
    "wire",
    [
        b"XXXX\nPING\r\n",
        b"PI\rNG\nPING\r\n",
        b"MSG a 1 2\nhi\r\n",
        b"MSG %b\nb 1 2\r\nhi\r\n" % (b"s" * 300),
        b"MSG a %b x\r\nhi\r\n" % (b"1" * MAX_CONTROL_LINE),
        b"X" * (MAX_CONTROL_LINE + 1),
        b"X" * MAX_CONTROL_LINE + b"\r.\n",
        b"X" * 2 * MAX_CONTROL_LINE + b"\n",
        b"INFO" + b" " * (MAX_INFO_LINE - 3),
    ],
    ids=lambda wire: repr(wire[:12]),
)
def test_the_error_says_the_same_in_all_chunks(make: MakeParser, wire: bytes) -> None:
    words = _words_of(make, [wire])
    assert _words_of(make, singly(wire)) == words
    assert _words_of(make, cut(wire, [3, 9000])) == words
    assert _words_of(make, cut(wire, [len(wire) - 1])) == words


_FRAGMENTS = st.sampled_from(
    [
        *(b"MSG ", b"HMSG ", b"PING", b"PONG", b"+OK", b"-ERR ", b"INFO ", b"{}", b"a ", b"b.c "),
        *(b"1 ", b"0", b"2", b"16 16", b"18", b"-1", b"hi", b"\r", b"\n", b" ", b"\t", b"\x00"),
        *(b"\r\n", b"\r\n", b"\r\n", b"NATS/1.0 503\r\n\r\n", b"MSG a 1 2\r\nhi\r\n", b"PING\r\n"),
    ]
)


@each_parser
@settings(max_examples=250)
@given(fragments=st.lists(_FRAGMENTS, max_size=16), data=st.data())
def test_no_input_means_another_thing_in_other_chunks(
    make: MakeParser, fragments: list[bytes], data: st.DataObject
) -> None:
    wire = b"".join(fragments)
    whole = feed(make(), [wire])
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=10))
    assert feed(make(), cut(wire, places)) == whole
    assert feed(make(), singly(wire)) == whole


@each_parser
@settings(max_examples=200)
@given(wire=st.binary(max_size=200))
def test_any_bytes_give_events_or_a_protocol_error(make: MakeParser, wire: bytes) -> None:
    assert feed(make(), [wire]) == feed(make(), singly(wire))


@each_parser
@settings(max_examples=200)
@given(data=st.data())
def test_one_wrong_byte_gives_events_or_a_protocol_error(
    make: MakeParser, data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from([case for case in GOOD if len(case.wire) < 500]))
    place = data.draw(st.integers(0, len(case.wire) - 1))
    byte = data.draw(st.binary(min_size=0, max_size=2))
    wire = case.wire[:place] + byte + case.wire[place + 1 :]
    assert feed(make(), [wire]) == feed(make(), singly(wire))


# -- limits ------------------------------------------------------------------------------


@each_parser
@pytest.mark.parametrize("line", [b"MSG a 1 %d", b"HMSG a 1 0 %d", b"MSG a 1 r %d"])
def test_max_payload(make: MakeParser, line: bytes) -> None:
    whole = line % 10 + b"\r\n0123456789\r\n"
    assert len(make(max_payload=10).feed(whole)) == 1
    # Refused as soon as it is announced, before a byte of it is waited for.
    for chunks in ([line % 11 + b"\r\n"], singly(line % 11 + b"\r\n")):
        assert feed(make(max_payload=10), chunks) == ([], True)


def _line_of(length: int, head: bytes = b"-ERR '") -> bytes:
    return head + b"x" * (length - len(head))


@each_parser
def test_longest_control_line(make: MakeParser) -> None:
    longest = _line_of(MAX_CONTROL_LINE)
    event = ("ERR", longest[6:].decode())
    for chunks in (
        [longest + b"\r\n"],
        [longest, b"\r\n"],
        [longest + b"\r", b"\n"],
        [longest[:50], longest[50:] + b"\r", b"\n"],
        [longest[:-1], longest[-1:] + b"\r", b"\n"],
    ):
        assert feed(make(), chunks) == ([event], False)


@each_parser
def test_too_long_a_control_line(make: MakeParser) -> None:
    subject = b"s" * MAX_CONTROL_LINE
    for line in (
        _line_of(MAX_CONTROL_LINE + 1),
        b"MSG %b 1 0" % subject,
        b"HMSG %b 1 0 0" % subject,
        b"PING" + b" " * MAX_CONTROL_LINE,
        b" " * (MAX_CONTROL_LINE + 1),
    ):
        for chunks in ([line + b"\r\n"], [line, b"\r\n\r\n"], [line[:9], line[9:], b"\r\n\r\n"]):
            assert feed(make(), [b"PING\r\n", *chunks]) == ([PING], True)


@each_parser
def test_longest_info_line(make: MakeParser) -> None:
    head = b'INFO {"server_id":"'
    line = head + b"x" * (MAX_INFO_LINE - len(head) - 2) + b'"}'
    assert len(line) == MAX_INFO_LINE
    ended = line + b"\r\n"
    for places in (
        [],
        [MAX_INFO_LINE + 1],
        [3, 5, 70_000],
        [1, 2, 70_000],
        [1, 1, 2, 3, 4, 70_000],
    ):
        chunks = cut(ended, places)
        events, refused = feed(make(), chunks)
        assert not refused
        assert len(events) == 1
    too_long = line[:-2] + b'x"}'
    for chunks in ([too_long + b"\r\n"], [too_long, b"\r\n"], cut(too_long + b"\r\n", [3, 70_000])):
        assert feed(make(), chunks) == ([], True)


@each_parser
@pytest.mark.parametrize(
    ("head", "limit"),
    [(b"", MAX_CONTROL_LINE), (b"MSG ", MAX_CONTROL_LINE), (b"INFO ", MAX_INFO_LINE)],
    ids=["garbage", "msg", "info"],
)
@pytest.mark.parametrize("chunk", [b"A" * 100, b"A" * 5000, b"\r" * 1000, b" " * 1000])
def test_an_endless_line_is_refused_at_its_limit(
    make: MakeParser, head: bytes, limit: int, chunk: bytes
) -> None:
    if limit == MAX_INFO_LINE:
        chunk *= 10
    parser = make()
    fed = len(head)
    parser.feed(head)
    with pytest.raises(ProtocolError):
        while fed <= limit + 2 * len(chunk):
            parser.feed(chunk)
            fed += len(chunk)
    assert fed >= limit - len(chunk)


# -- memory ------------------------------------------------------------------------------


def _memory_of(work: Callable[[], object]) -> int:
    """Peak bytes that *work* took."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@each_parser
def test_an_announced_size_takes_no_memory(make: MakeParser) -> None:
    parser = make()
    assert _memory_of(lambda: parser.feed(b"MSG a 1 67108864\r\nx")) < 50_000


@each_parser
@pytest.mark.parametrize("chunk", [2, 100, 5000])
def test_a_dribbled_payload_is_held_once(make: MakeParser, chunk: int) -> None:
    parser = make()
    size = 200_000
    parser.feed(b"MSG a 1 %d\r\n" % size)
    dribble = b"x" * chunk

    def work() -> None:
        for _ in range(size // chunk):
            assert not parser.feed(dribble)

    # A bytearray that grows holds its old and its new place for a moment.
    assert _memory_of(work) < 3 * size


@each_parser
def test_hostile_long_lines_are_not_hoarded(make: MakeParser) -> None:
    parser = make()
    subject = b"s" * 60_000

    def work() -> None:
        for n in range(150):
            parser.feed(b"MSG %b.%d 1 0\r\n\r\n" % (subject, n))

    assert _memory_of(work) < 4_000_000


@each_parser
def test_ever_new_lines_are_not_hoarded(make: MakeParser) -> None:
    parser = make()

    def work() -> None:
        for n in range(20_000):
            parser.feed(b"MSG s.%d 1 0\r\n\r\n" % n)

    assert _memory_of(work) < 1_500_000


# -- time --------------------------------------------------------------------------------


def _best_time(work: Callable[[], object], times: int = 3) -> float:
    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return min(once() for _ in range(times))


def _dribble(make: MakeParser, wire: bytes) -> None:
    parser = make()
    for byte in singly(wire):
        parser.feed(byte)


def _info_of(length: int) -> bytes:
    head = b'INFO {"server_id":"'
    return head + b"x" * (length - len(head) - 4) + b'"}\r\n'


def _msg_of(length: int) -> bytes:
    return b"MSG a 1 %d\r\n%b\r\n" % (length, b"x" * length)


@each_parser
def test_a_dribbled_payload_takes_linear_time(make: MakeParser) -> None:
    short, long = _msg_of(60_000), _msg_of(240_000)
    ratio = _best_time(lambda: _dribble(make, long)) / _best_time(lambda: _dribble(make, short))
    assert ratio < 8  # 4 when linear, 16 when quadratic


@each_parser
def test_a_dribbled_info_takes_as_long_as_a_payload_of_its_size(make: MakeParser) -> None:
    # Past MAX_CONTROL_LINE, where a parser might be tempted to look again at what it holds.
    size = 300_000
    info, payload = _info_of(size), _msg_of(size)
    ratio = _best_time(lambda: _dribble(make, info), 2) / _best_time(
        lambda: _dribble(make, payload)
    )
    assert ratio < 6  # below 2 when linear; it was 15 with a parser that joined at every byte


@each_parser
def test_a_dribbled_control_line_takes_linear_time(make: MakeParser) -> None:
    short, long = _line_of(16_000) + b"\r\n", _line_of(64_000) + b"\r\n"
    ratio = _best_time(lambda: _dribble(make, long)) / _best_time(lambda: _dribble(make, short))
    assert ratio < 8


@each_parser
def test_messages_cut_in_the_middle_take_linear_time(make: MakeParser) -> None:
    frame = b"MSG a 1 10\r\n0123456789\r\n"

    def flood(count: int) -> None:
        stream = frame * count
        parser = make()
        parser.feed(stream[:5])
        # One very large chunk that begins and ends within a frame.
        assert len(parser.feed(stream[5:-5])) == count - 1

    ratio = _best_time(lambda: flood(40_000)) / _best_time(lambda: flood(10_000))
    assert ratio < 10
