"""What must hold for any bytes. A target takes bytes and raises AssertionError for a finding.

The first bytes of an input choose (limits, chunk sizes, ...), the rest is what the server says.
An input too short for its choices has zeros there, so every input means something.
"""

# ruff: noqa: PT017  (the targets run without pytest)

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from wire_cases import plain

from fuzz import reference
from fuzz.meter import meter, metered
from fuzz.reference import DEEP, Limits, Plain
from gnats import commands as frames
from gnats import lines, scanner, subjects
from gnats import parser as parser_room
from gnats.errors import (
    AuthorizationError,
    BadSubjectError,
    Error,
    HeaderError,
    MaxConnectionsError,
    PermissionsError,
    ProtocolError,
    SecureConnRequiredError,
    SecureConnWantedError,
    ServerError,
    StaleConnectionError,
)
from gnats.handshake import Handshake
from gnats.headers import Headers, decode_headers, encode_headers
from gnats.info import MAX_PAYLOAD_CEILING, ServerInfo, parse_info
from gnats.message import Msg
from gnats.parser import Info, Parser
from gnats.refusals import blames_a_frame, read_refusal

Target = Callable[[bytes], None]

#: Every target by its name.
TARGETS: dict[str, Target] = {}


def target(check: Target) -> Target:
    """A check of some bytes; an exception that it does not know is a finding as well."""

    @functools.wraps(check)
    def run(data: bytes) -> None:
        try:
            check(data)
        except AssertionError:
            raise
        except Exception as exc:
            raise AssertionError(f"{type(exc).__name__}: {_excerpt(str(exc))}") from exc

    TARGETS[check.__name__] = run
    return run


def _excerpt(text: object) -> str:
    return f"{text!r:.300}"


# -- choices -----------------------------------------------------------------------------

# The parser's own limits, and tiny ones, so that short inputs reach them.
REAL = Limits(
    lines.MAX_CONTROL_LINE,
    lines.MAX_INFO_LINE,
    scanner.LINES_KEPT,
    scanner.LONGEST_LINE_KEPT,
    parser_room._SMALL_CHUNK,
)
TINY = Limits(40, 90, 3, 14, 40)
PAYLOADS = (MAX_PAYLOAD_CEILING, 0, 5, 60)

# The same results are due from both, where there are two.
TWINS = {scanner.PureScanner, scanner.Scanner}

# Characters of an error, whatever the input: 80 bytes of it as \xff, and the words around them.
LONGEST_WORDS = 400


def _room(name: str) -> Any:
    return {"lines": lines, "scanner": scanner, "parser": parser_room}[name]


# Where each of them stands.
_PLACES = (
    ("lines", "MAX_CONTROL_LINE"),
    ("lines", "MAX_INFO_LINE"),
    ("scanner", "LINES_KEPT"),
    ("scanner", "LONGEST_LINE_KEPT"),
    ("parser", "_SMALL_CHUNK"),
)


@contextmanager
def limited(limits: Limits, find: Callable[[str], Any] = _room) -> Iterator[None]:
    """The parser under other limits: it looks them up at every call. *find* finds its rooms."""
    before = [getattr(find(room), name) for room, name in _PLACES]
    _limit(limits, find)
    try:
        yield
    finally:
        _limit(before, find)


def _limit(limits: Iterable[int], find: Callable[[str], Any]) -> None:
    for (room, name), limit in zip(_PLACES, limits):
        setattr(find(room), name, limit)


def split(data: bytes, choices: int) -> tuple[bytes, bytes]:
    """The first *choices* bytes, zeros where the input is shorter, and the rest."""
    return data[:choices].ljust(choices, b"\0"), data[choices:]


def paced(wire: bytes, size: int, seed: int) -> list[bytes]:
    """The wire in chunks of *size* bytes; 0: of random ones, some of them empty."""
    rng = random.Random(seed)
    chunks, position = [], 0
    while position < len(wire):
        step = size or rng.choice((0, 1, 1, 2, 3, 7, 8, 9, 30, 200))
        chunks.append(wire[position : position + step])
        position += step
    return chunks


def is_deep(wire: bytes) -> bool:
    return wire.count(b"[") + wire.count(b"{") > DEEP


def said(event: Any) -> Plain:
    """An event as the reference tells it."""
    if isinstance(event, Info):
        return "INFO", repr(dict(event.info.raw)), reference.tls_of(event.info.raw)
    return plain(event)


# -- the parser --------------------------------------------------------------------------


@target
def parser(data: bytes) -> None:
    """Every chunking gives what the reference reads, at the byte where it is due, in bounds."""
    (flags, size, seed), wire = split(data, 3)
    if is_deep(wire):
        return
    limits, max_payload = TINY if flags & 1 else REAL, PAYLOADS[flags >> 1 & 3]
    reading = reference.read_stream(wire, max_payload, limits)
    with limited(limits):
        ways = ([wire], paced(wire, 1, 0), paced(wire, size, seed))
        words = [
            _feed(Parser(max_payload, twin()), chunks, reading, limits)
            for chunks in ways
            for twin in TWINS
        ]
    assert len(set(words)) == 1, f"the error depends on the chunks, or the twin: {words}"


def _feed(parser: Parser, chunks: list[bytes], reading: reference.Reading, limits: Limits) -> str:
    """Feed and compare; the words of the error, if there was one."""
    now = 0
    for chunk in chunks:
        before, now = now, now + len(chunk)
        due = reading.between(before, now)
        faulty = reading.fault is not None and reading.fault <= now
        try:
            events = parser.feed(chunk)
        except ProtocolError as exc:
            assert faulty, f"refused at {now} of {_excerpt(reading)}: {exc}"
            _compare(exc.events, due)
            assert len(str(exc)) <= LONGEST_WORDS, _excerpt(str(exc))
            return str(exc)
        assert not faulty, f"not refused at {now}: {_excerpt(reading)}"
        _compare(events, due)
        assert parser.pending == reading.held(now), f"{parser.pending} are held at {now}"
        _check_memory(parser, limits)
    return ""


def _compare(events: list[Any], due: list[Plain]) -> None:
    told = [said(event) for event in events]
    assert told == due, f"{_excerpt(told)} instead of {_excerpt(due)}"
    for event in events:
        if isinstance(event, Msg):
            _check_lazy(event)
        elif isinstance(event, Info):
            _check_info(event.info)


def _check_lazy(msg: Msg) -> None:
    """What a message reads only when it is asked for it."""
    repr(msg)
    msg.is_no_responders()
    if msg.block is not None:
        _check_block(msg.block, lambda: msg.headers)


def _check_memory(parser: Parser, limits: Limits) -> None:
    """Only what is pending is held, and it is bounded; so is the cache of lines."""
    longest = max(limits.MAX_INFO_LINE, limits.MAX_CONTROL_LINE + parser.max_payload + 4)
    assert parser.pending <= longest + 1
    held = [_weight(chunk) for chunk in parser._chunks]
    assert sum(map(len, parser._chunks)) == parser.pending
    # A bytearray grows by an eighth, and is begun anew behind each chunk that is not small.
    assert sum(held) <= parser.pending * 9 / 8 + 80 * len(held)
    assert len(held) <= 2 + 2 * parser.pending / limits.SMALL_CHUNK
    if isinstance(parser.scanner, scanner.PureScanner):
        assert len(parser.scanner._lines) <= limits.LINES_KEPT
        assert all(len(line) <= limits.LONGEST_LINE_KEPT for line in parser.scanner._lines)


def _weight(chunk: bytes | bytearray | memoryview) -> int:
    """Bytes of memory. A view holds the chunk that it is of, one recv's, which counts elsewhere."""
    return len(chunk) if isinstance(chunk, memoryview) else sys.getsizeof(chunk)


# -- the handshake -----------------------------------------------------------------------


class Refused(Exception):
    """What the user's own callable raises."""


@target
def handshake(data: bytes) -> None:
    """It says what the reference says, chunk by chunk, and leaves the rest to the reader."""
    (flags, size, seed), wire = split(data, 3)
    if is_deep(wire):
        return
    limits = TINY if flags & 1 else REAL
    reading = reference.read_stream(wire, MAX_PAYLOAD_CEILING, limits)
    with limited(limits):
        for chunks in ([wire], _answered(wire), paced(wire, 1, 0), paced(wire, size, seed)):
            _talk(chunks, reading, flags)


def _answered(wire: bytes) -> list[bytes]:
    """INFO, and all the rest in one chunk: as if the server had waited for our PING with it."""
    line, end, rest = wire.partition(b"\n")
    return [line + end, rest]


def _talk(chunks: list[bytes], reading: reference.Reading, flags: int) -> None:
    refuses, tls, secured = bool(flags & 2), bool(flags & 4), bool(flags & 8)

    def fields(info: ServerInfo) -> dict[str, Any]:
        if refuses:
            raise Refused
        return {"name": "me"}

    reader, talk = Parser(), reference.Talk(tls, secured)
    shaking = Handshake(reader, fields, tls=tls, secured=secured)
    now = 0
    for position, chunk in enumerate(chunks):
        before, now = now, now + len(chunk)
        faulty = reading.fault is not None and reading.fault <= now
        began = talk.info is not None
        due = reading.between(before, now)
        out, reason = talk.hear(due, reading.held(now), faulty)
        if reason == "tls":
            assert (shaking.feed(chunk), shaking.stage) == (b"", "TLS handshake")
            assert shaking.awaits_tls
            out, reason, chunk = reference.HELLO, None, b""
        asked = not began and talk.info is not None and not faulty and reason != "wanted"
        if refuses and asked:
            _must_raise(Refused, shaking, chunk)
            return
        if reason is not None:
            _must_raise(_kind(reason), shaking, chunk)
            return
        assert _heard(shaking, chunk) == out
        assert (shaking.done, shaking.awaits_tls) == (talk.done, False)
        assert shaking.stage == ("PONG" if talk.info else "INFO")
        assert (shaking.info and repr(dict(shaking.info.raw))) == talk.info
        if talk.done:
            assert [said(event) for event in shaking.early] == talk.early
            _read_on(reader, chunks[position + 1 :], now, reading)
            return


def _heard(shaking: Handshake, chunk: bytes) -> bytes:
    """The answer to a chunk, or to the link having become TLS."""
    return shaking.secured() if shaking.awaits_tls else shaking.feed(chunk)


def _must_raise(kind: type[BaseException], shaking: Handshake, chunk: bytes) -> None:
    try:
        out = _heard(shaking, chunk)
    except (Error, Refused) as exc:
        assert type(exc) is kind, f"{exc!r} instead of {kind.__name__}"
        assert not shaking.done
    else:
        raise AssertionError(f"{kind.__name__} is missing, {_excerpt(out)} was said")


def _kind(reason: str) -> type[BaseException]:
    in_clear = reason.startswith("-ERR! ")
    if reason.startswith("-ERR"):
        kind = type(read_refusal(reason[6 if in_clear else 5 :]).error)
        # Credentials are not given up for a word that anybody could have put in.
        return ProtocolError if in_clear and issubclass(kind, AuthorizationError) else kind
    return {"protocol": ProtocolError, "wanted": SecureConnWantedError}[reason]


def _read_on(parser: Parser, chunks: list[bytes], now: int, reading: reference.Reading) -> None:
    """The link's reader goes on where the handshake ended, with the same parser."""
    for chunk in chunks:
        before, now = now, now + len(chunk)
        try:
            events = parser.feed(chunk)
        except ProtocolError as exc:
            assert reading.fault is not None
            assert reading.fault <= now
            _compare(exc.events, reading.between(before, now))
            return
        _compare(events, reading.between(before, now))


# -- headers -----------------------------------------------------------------------------


@target
def headers(data: bytes) -> None:
    """Any block is read as the reference reads it, or refused; what can be sent on, reads again."""
    flags, block = split(data, 1)
    if flags[0] & 1:
        block = b"NATS/1.0" + block
    _check_block(block, lambda: decode_headers(block))


def _check_block(block: bytes, read: Callable[[], Headers | None]) -> None:
    expected = reference.read_block(block)
    try:
        found = read()
    except ProtocolError as exc:
        assert expected is None, f"{_excerpt(block)} was refused: {exc}"
        assert len(str(exc)) <= LONGEST_WORDS
        return
    assert expected is not None, f"{_excerpt(block)} was read"
    assert found is not None
    assert (found.status, found.description) == (expected.status, expected.description)
    assert _values(found) == expected.values
    assert dict(found) == _entries(expected)
    assert len(found) == len(dict(found)) == len(list(found))
    repr(found)
    for one in (found, Headers(found)):
        assert one == found
        _check_encoding(one, expected.values)


def _entries(block: reference.Block) -> dict[str, str]:
    """What a user sees: the first values, and the status where no header has its name."""
    entries = {name: values[0] for name, values in block.values.items()}
    if block.status is not None:
        entries.setdefault("Status", f"{block.status}")
        if block.description:
            entries.setdefault("Description", block.description)
    return entries


def _values(headers: Headers) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in headers.pairs():
        values.setdefault(name, []).append(value)
    assert values == {name: headers.get_all(name) for name in values}
    return values


@target
def encode(data: bytes) -> None:
    """What may be sent is encoded to the byte and reads back; what may not is refused, shortly."""
    flags, rest = split(data, 1)
    parts = rest.decode("utf-8", "surrogateescape").split(":")
    pairs = list(zip(parts[::2], parts[1::2]))
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    _check_encoding(pairs if flags[0] & 1 else values, values)


def _check_encoding(source: Any, values: dict[str, list[str]]) -> None:
    wire = reference.write_block(values)
    try:
        block = encode_headers(source)
    except HeaderError as exc:
        assert wire is None, f"{_excerpt(values)} was refused: {exc}"
        assert len(str(exc)) <= LONGEST_WORDS, _excerpt(str(exc))
        return
    assert block == wire, f"{_excerpt(block)} instead of {_excerpt(wire)}"
    again = decode_headers(block)
    stripped = {name: [value.strip(" \t") for value in each] for name, each in values.items()}
    assert _values(again) == stripped
    assert encode_headers(again) == reference.write_block(stripped)


# -- INFO --------------------------------------------------------------------------------


@target
def info(data: bytes) -> None:
    """Any JSON is a checked value, or refused."""
    if is_deep(data):
        return
    expected = reference.read_info(data)
    try:
        found = parse_info(data)
    except ProtocolError as exc:
        assert expected is None, f"{_excerpt(data)} was refused: {exc}"
        assert len(str(exc)) <= LONGEST_WORDS
        return
    assert expected is not None, f"{_excerpt(data)} was read"
    assert repr(dict(found.raw)) == repr(expected)
    _check_info(found)


def _check_info(info: ServerInfo) -> None:
    for name, kind in reference.INFO_FIELDS.items():
        value = getattr(info, name)
        assert type(value) is kind
        told = info.get(name)
        assert told is None or name == "max_payload" or value == told
    assert 0 < info.max_payload <= MAX_PAYLOAD_CEILING
    assert info.connect_urls == tuple(info.get("connect_urls") or ())
    assert "nonce" not in repr(info).replace(repr(info.server_name), "") or _names_nonce(info)
    hash(info)


def _names_nonce(info: ServerInfo) -> bool:
    """Whether a field that is shown holds the word by chance."""
    shown = [name for name in reference.INFO_FIELDS if name != "nonce"]
    return any("nonce" in str(getattr(info, name)) for name in [*shown, "connect_urls"])


# -- refusals ----------------------------------------------------------------------------

REFUSALS = (
    AuthorizationError,
    MaxConnectionsError,
    PermissionsError,
    SecureConnRequiredError,
    ServerError,
    StaleConnectionError,
)


@target
def refusal(data: bytes) -> None:
    """Any words are an error; a name that the server quotes comes back as it was."""
    (flags,), rest = split(data, 1)
    text = rest.decode("utf-8", "replace")
    _check_refusal(text)
    subject, _, queue = text.partition(" ")
    quoted = reference.go_quote(subject, bool(flags & 1))
    words = f"Permissions Violation for {('Publish', 'Subscription')[flags >> 1 & 1]} to {quoted}"
    if queue:
        words += f" using queue {reference.go_quote(queue, bool(flags & 1))}"
    error, _ = read_refusal(words)
    assert isinstance(error, PermissionsError)
    assert (error.subject, error.queue) == (subject, queue), _excerpt(words)


def _check_refusal(text: str) -> None:
    error, closes = read_refusal(text)
    lowered = text.lower()
    assert isinstance(error, REFUSALS)
    if isinstance(error, PermissionsError):
        assert "permissions violation" in lowered
        assert error.operation in ("publish", "subscription", "")
        assert not closes
    else:
        assert not lowered.startswith("permissions violation")
        assert closes is reference.closes(text)
    plain = type(error) is ServerError
    assert plain or not lowered.startswith(reference.OURS + reference.NOT_OURS)
    assert not plain or not lowered.startswith(reference.OF_CLASSES_OF_THEIR_OWN)
    assert blames_a_frame(error) is (plain and not lowered.startswith(reference.NOT_OURS))


# -- commands ----------------------------------------------------------------------------


@target
def commands(data: bytes) -> None:
    """Whatever ``subjects`` lets pass reads back strictly, one command behind the other."""
    (sid, limit), rest = split(data, 2)
    texts = rest.decode("utf-8", "surrogateescape").split("\n")
    name, reply, queue, value = (texts + [""] * 4)[:4]
    payload = rest[::-1]
    subject, wire_reply = _encoded(name, "subject"), _encoded(reply, "reply")
    pattern, group = _encoded(name, "filter"), _encoded(queue, "queue") or b""
    wire, expected = b"", list[Any]()
    if subject is not None:
        block = reference.write_block({"A": [value]}) or b"NATS/1.0\r\n\r\n"
        for frame, words in _messages(subject, wire_reply or b"", block, payload):
            wire, expected = wire + frame, [*expected, words]
    if pattern is not None:
        wire += frames.sub(sid, pattern, group)
        expected.append(("SUB", pattern, *([group] if group else []), b"%d" % sid))
    fields = {"name": value, "pass": name}
    wire += frames.unsub(sid, limit) + frames.connect(fields) + frames.PING + frames.PONG
    expected.append(("UNSUB", b"%d" % sid, *([b"%d" % limit] if limit else [])))
    expected += [("CONNECT", fields), ("PING",), ("PONG",)]
    assert reference.read_commands(wire) == expected


def _encoded(name: str, kind: str) -> bytes | None:
    try:
        wire: bytes = getattr(subjects, f"encode_{kind}")(name)
    except BadSubjectError as exc:
        assert not reference.is_name(name, kind), exc
        assert len(str(exc)) <= LONGEST_WORDS
        return None
    assert reference.is_name(name, kind), name
    assert wire.decode() == name
    return wire


def _messages(
    subject: bytes, reply: bytes, block: bytes, payload: bytes
) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """A PUB and an HPUB, and how they read."""
    head = frames.pub_head(subject)
    back = [reply] if reply else []
    size = b"%d" % len(payload)
    total = b"%d" % (len(block) + len(payload))
    yield frames.pub(head, reply, payload), ("PUB", subject, *back, size, payload)
    words = ("HPUB", subject, *back, b"%d" % len(block), total, block + payload)
    yield frames.hpub(head, reply, block, payload), words
    for frame in (frames.pub(head, reply, payload), frames.hpub(head, reply, block, payload)):
        has_block = frame[:1] == b"H"
        assert frames.is_message(frame)
        assert frames.has_headers(frame) is has_block
        assert frames.message_size(frame) == len(payload) + (len(block) if has_block else 0)
        assert frames.message_subject(frame) == subject.decode()


# -- work --------------------------------------------------------------------------------

# Units of the meter (see there): what a fed chunk, an event and a byte may cost. The dearest
# shapes known take half of it.
PER_CHUNK, PER_BYTE = 60, 60
# Bytes of a stream: enough for work that grows with its square to be over that.
LONG_STREAM = 1000


@target
def work(data: bytes) -> None:
    """However a stream is built and dribbled, reading it costs so much per byte and per chunk.

    The input is a head, a part that is repeated, and a tail, so that short ones make long streams.
    """
    (flags, size, seed, times, first, second), rest = split(data, 6)
    head, part, tail = rest[:first], rest[first : first + second], rest[first + second :]
    wire = head + part * min(times * 8, LONG_STREAM // (len(part) or 1)) + tail
    limits, reader = TINY if flags & 1 else REAL, READERS[flags >> 1 & 3]
    with limited(limits):
        _spend(Parser().feed, paced(wire, size, seed))  # an engine sees the ways of this one
    with limited(limits, metered):
        for chunks in reader.ways(wire, size, seed):
            spent = meter.of(functools.partial(_spend, reader.make(), chunks))
            allowed = PER_CHUNK * len(chunks) + PER_BYTE * len(wire) + 1000
            assert spent <= allowed, f"{spent} of {allowed} for {len(wire)} bytes"


class Reader(NamedTuple):
    """What takes bytes, and whether it takes them in chunks."""

    make: Callable[[], Callable[[bytes], object]]
    chunked: bool = True

    def ways(self, wire: bytes, size: int, seed: int) -> list[list[bytes]]:
        return [paced(wire, 1, 0), paced(wire, size, seed)] if self.chunked else [[wire]]


def _metered_parser() -> Callable[[bytes], object]:
    feed: Callable[[bytes], object] = metered("parser").Parser().feed
    return feed


def _metered_handshake() -> Callable[[bytes], object]:
    parser = metered("parser").Parser()
    shaking = metered("handshake").Handshake(parser, lambda info: {})
    feed: Callable[[bytes], object] = shaking.feed
    return feed


READERS = (
    Reader(_metered_parser),
    Reader(_metered_handshake),
    Reader(lambda: lambda wire: metered("headers").decode_headers(b"NATS/1.0\r\n" + wire), False),
    Reader(lambda: lambda wire: metered("info").parse_info(wire), False),
)


def _spend(feed: Callable[[bytes], object], chunks: list[bytes]) -> None:
    try:
        for chunk in chunks:
            feed(chunk)
    except (Error, metered("errors").Error):
        pass
