"""What bytes mean, written to be obviously right: whole input, regular expressions, no state.

The rooms under test are held against these readers. They share nothing with them but ``json``
and the tables of names; where they differ, one of the two is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# An event as wire_cases.plain() tells it; but INFO is the repr of its JSON, and its word on TLS.
Plain = tuple[Any, ...]

# Deeper than this the answer of ``json`` hangs on how deep the caller stands.
DEEP = 300


class Limits(NamedTuple):
    """The parser's constants of the same names."""

    MAX_CONTROL_LINE: int
    MAX_INFO_LINE: int
    LINES_KEPT: int
    LONGEST_LINE_KEPT: int
    SMALL_CHUNK: int


class Reading(NamedTuple):
    """Each event with the number of bytes after which it is due; the same of the first fault."""

    events: list[tuple[int, Plain]]
    fault: int | None

    def between(self, before: int, now: int) -> list[Plain]:
        """The events due while the bytes fed grow from *before* to *now*."""
        return [event for due, event in self.events if before < due <= now]

    def held(self, now: int) -> int:
        """Bytes of *now* that belong to no event yet."""
        return now - max((due for due, _ in self.events if due <= now), default=0)


# -- the stream --------------------------------------------------------------------------

_NUMBER = rb"[ \t]+([0-9]{1,19})"
_MSG = re.compile(
    rb"[ \t]*MSG[ \t]+([^ \t]+)" + _NUMBER + rb"(?:[ \t]+([^ \t]+))?" + _NUMBER + rb"[ \t]*",
    re.IGNORECASE,
)
_HMSG = re.compile(_MSG.pattern.replace(b"MSG", b"HMSG")[:-6] + _NUMBER + rb"[ \t]*", re.IGNORECASE)
_WORD = re.compile(rb"[ \t]*(PING|PONG|\+OK)(?:[ \t][^\r]*)?", re.IGNORECASE)
_ERR = re.compile(rb"[ \t]*-ERR(?:[ \t]+([^\r]*))?", re.IGNORECASE)
_INFO = re.compile(rb"[ \t]*INFO[ \t]+([^\r]*)", re.IGNORECASE)


def read_stream(wire: bytes, max_payload: int, limits: Limits) -> Reading:
    """All of a stream."""
    events: list[tuple[int, Plain]] = []
    position = 0
    while True:
        line, after, fault = _read_line(wire, position, limits)
        if line is None:
            return Reading(events, fault)
        head = _read_head(line)
        if head is None:
            event = _read_control(line)
            if event is None:
                return Reading(events, after)
            events.append((after, event))
            position = after
            continue
        subject, sid, reply, block, total = head
        if total > max_payload or (block or 0) > total:
            return Reading(events, after)
        end = after + total
        if len(wire) < end + 2:
            return Reading(events, None)
        if wire[end : end + 2] != b"\r\n":
            return Reading(events, end + 2)
        events.append((end + 2, _message(subject, sid, reply, block, wire[after:end])))
        position = end + 2


def _read_line(wire: bytes, start: int, limits: Limits) -> tuple[bytes | None, int, int | None]:
    """A line and where the next one starts; or None, and the byte at which it is refused, if so."""
    is_info = wire[start : start + 4].upper() == b"INFO"
    limit = limits.MAX_INFO_LINE if is_info else limits.MAX_CONTROL_LINE
    end = wire.find(b"\n", start)
    ended = end >= 0
    content = wire[start : end if ended else len(wire)]
    if len(content.removesuffix(b"\r")) > limit:
        # One byte more is waited for where the last may be the carriage return of the line end.
        return None, 0, start + limit + (2 if content[limit : limit + 1] == b"\r" else 1)
    if ended and content.endswith(b"\r"):
        return content[:-1], end + 1, None
    return None, 0, end + 1 if ended else None


def _read_head(line: bytes) -> tuple[bytes, bytes, bytes, int | None, int] | None:
    """Subject, sid, reply, header bytes and total bytes of a message's line; None if it is none."""
    match = _MSG.fullmatch(line)
    if match:
        subject, sid, reply, size = match.groups()
        return subject, sid, reply or b"", None, int(size)
    match = _HMSG.fullmatch(line)
    if match:
        subject, sid, reply, block, size = match.groups()
        return subject, sid, reply or b"", int(block), int(size)
    return None


def _message(subject: bytes, sid: bytes, reply: bytes, block: int | None, body: bytes) -> Plain:
    words = subject.decode("utf-8", "surrogateescape"), int(sid)
    back = reply.decode("utf-8", "surrogateescape")
    if block is None:
        return ("MSG", *words, back, None, body)
    return ("HMSG", *words, back, body[:block], body[block:])


def _read_control(line: bytes) -> Plain | None:
    match = _WORD.fullmatch(line)
    if match:
        return (match[1].upper().decode().lstrip("+"),)
    match = _ERR.fullmatch(line)
    if match:
        return "ERR", (match[1] or b"").decode("utf-8", "replace").strip().strip("'")
    match = _INFO.fullmatch(line)
    info = read_info(match[1]) if match else None
    return None if info is None else ("INFO", repr(info), tls_of(info))


def tls_of(info: Mapping[str, Any]) -> str:
    """What an INFO says of TLS: "required", "available" or nothing."""
    said = [word for word in ("required", "available") if info.get(f"tls_{word}") is True]
    return said[0] if said else ""


# -- INFO --------------------------------------------------------------------------------

INFO_FIELDS: dict[str, type] = {
    **dict.fromkeys(["server_id", "server_name", "version", "host"], str),
    **dict.fromkeys(["client_ip", "cluster", "nonce"], str),
    **dict.fromkeys(["proto", "port", "max_payload", "client_id"], int),
    **dict.fromkeys(["headers", "auth_required", "tls_required", "tls_available"], bool),
    **dict.fromkeys(["ldm", "jetstream"], bool),
}


def read_info(body: bytes) -> dict[str, Any] | None:
    """The JSON of an INFO, or None where it is refused."""
    try:
        raw = json.loads(body.decode("utf-8"), parse_int=_number_of_64_bits)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    for name, kind in INFO_FIELDS.items():
        if raw.get(name) is not None and type(raw[name]) is not kind:
            return None
    if raw.get("max_payload") is not None and raw["max_payload"] < 1:
        return None
    urls = raw.get("connect_urls")
    if urls is not None and not (isinstance(urls, list) and all(type(url) is str for url in urls)):
        return None
    return raw


def _number_of_64_bits(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError
    return int(digits)


# -- the opening talk --------------------------------------------------------------------

HELLO = b'CONNECT {"name":"me"}\r\nPING\r\n'


class Talk:
    """What a client says to the events of each chunk. *tls*: it insists on it; *secured*: it is."""

    def __init__(self, tls: bool = False, secured: bool = False) -> None:
        self.tls, self.secured = tls, secured
        self.info: str | None = None
        self.done = False
        self.early: list[Plain] = []

    def hear(self, events: list[Plain], held: int, fault: bool) -> tuple[bytes, str | None]:
        """The bytes to send; and what comes then: TLS ("tls"), or an error, as "protocol",
        "wanted" (TLS, in vain), "-ERR words", or "-ERR! words", in front of TLS."""
        first = events[0] if events else ("NOTHING",)
        required = first[0] == "INFO" and first[2] == "required"
        doubtful = self.info is None and not self.secured and (self.tls or required)
        words = [event[1] for event in events if event[0] == "ERR"]
        if fault:
            return b"", f"-ERR {words[0]}" if words and not doubtful else "protocol"
        if doubtful and first[0] == "INFO":
            return b"", self._turn(first, alone=len(events) == 1 and not held)
        if doubtful and first[0] == "ERR":
            return b"", f"-ERR! {words[0]}"
        return self._answer(events)

    def _turn(self, info: Plain, alone: bool) -> str:
        if not alone:
            return "protocol"
        self.info = info[1]
        return "tls" if info[2] else "wanted"

    def _answer(self, events: list[Plain]) -> tuple[bytes, str | None]:
        out = b""
        asked = self.info is not None  # the PING that is to be answered is out
        for position, (kind, *rest) in enumerate(events):
            if kind == "ERR":
                return b"", f"-ERR {rest[0]}"
            if kind == "INFO":
                out += HELLO if self.info is None else b""
                self.info = rest[0]
            elif kind in ("MSG", "HMSG") or self.info is None or (kind == "PONG" and not asked):
                return b"", "protocol"
            elif kind == "PING":
                out += b"PONG\r\n"
            elif kind == "PONG":
                self.done = True
                self.early = events[position + 1 :]
                break
        return out, None


# -- headers -----------------------------------------------------------------------------


class Block(NamedTuple):
    status: int | None
    description: str
    values: dict[str, list[str]]


_STATUS_LINE = re.compile(rb"NATS/1\.0(?:[ \t](.*))?", re.DOTALL)
_STATUS = re.compile(rb"([0-9]{3})(?: (.*))?", re.DOTALL)


def read_block(block: bytes) -> Block | None:
    """A header block, or None where it is none."""
    first, *lines = block.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        return None
    values: dict[str, list[str]] = {}
    for line in lines:
        if b":" in line:
            name, value = line.split(b":", 1)
            values.setdefault(_text(name), []).append(_text(value))
    status = _STATUS.fullmatch((match[1] or b"").strip(b" \t"))
    if status is None:
        return Block(None, "", values)
    return Block(int(status[1]), _text(status[2] or b""), values)


def _text(part: bytes) -> str:
    return part.strip(b" \t").decode("utf-8", "surrogateescape")


def write_block(values: dict[str, list[str]]) -> bytes | None:
    """The header block of *values*, or None where one of them is forbidden."""
    lines = ["NATS/1.0"]
    for name, several in values.items():
        for value in several:
            if not re.fullmatch(r"[!-9;-~]+", name) or re.search(r"[\r\n\0\ud800-\udfff]", value):
                return None
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode()


# -- what we say ---------------------------------------------------------------------------

_COMMAND = re.compile(
    rb"(?P<verb>PUB|HPUB|SUB|UNSUB|CONNECT|PING|PONG)(?P<words>(?: [^ \r\n]+)*)\r\n"
)


def read_commands(wire: bytes) -> list[tuple[Any, ...]]:
    """Read what a client wrote as strictly as can be; AssertionError where it is no command."""
    commands = []
    while wire:
        match = re.compile(rb"CONNECT (?P<words>\{[^\r\n]*\})\r\n").match(wire)
        if match:
            commands.append(("CONNECT", json.loads(match["words"])))
            wire = wire[match.end() :]
            continue
        match = _COMMAND.match(wire)
        assert match, wire[:80]
        verb, words, wire = (
            match["verb"].decode(),
            match["words"].split(b" ")[1:],
            wire[match.end() :],
        )
        if verb in ("PUB", "HPUB"):
            size = int(words[-1])
            assert wire[size : size + 2] == b"\r\n", wire[:80]
            words.append(wire[:size])
            wire = wire[size + 2 :]
        commands.append((verb, *words))
    return commands


def is_name(name: str, kind: str) -> bool:
    """Whether *name* may be a "subject", a "reply", a "filter" or a "queue"."""
    if not name or any(c.isspace() or ord(c) <= 0x20 or ord(c) == 0x7F for c in name):
        return False
    if any(0xD800 <= ord(c) <= 0xDFFF for c in name) or len(name.encode()) > 4000:
        return False
    tokens = name.split(".")
    wild = {"subject": {"*", ">"} & set(tokens), "filter": {">"} & set(tokens[:-1])}
    return kind == "queue" or not ("" in tokens or wild.get(kind))


# -- what the server refuses --------------------------------------------------------------

# What the server closes the link with, and which of it no frame of ours has caused.
OURS = (
    *("maximum payload", "maximum control line exceeded", "parser error"),
    *("unknown protocol operation", "no responders requires headers"),
)
NOT_OURS = (
    *("slow consumer", "connection throttling", "cluster name", "attempted to connect to"),
    "server shutdown",
)
OF_CLASSES_OF_THEIR_OWN = (
    *("user authentication expired", "user authentication revoked", "authorization"),
    *("account authentication expired", "authentication", "maximum connections exceeded"),
    *("maximum account active connections exceeded", "stale connection"),
    "secure connection - tls required",
)


def closes(text: str) -> bool:
    return text.lower().startswith(OURS + NOT_OURS + OF_CLASSES_OF_THEIR_OWN)


# -- what the server quotes -----------------------------------------------------------------


def go_quote(name: str, ascii_only: bool) -> str:
    """*name* as Go's %q writes it; *ascii_only*: as if nothing beyond ASCII could be printed."""
    named = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}
    named |= {"\\": "\\", '"': '"'}
    return '"' + "".join(_go_char(c, named, ascii_only) for c in name) + '"'


def _go_char(c: str, named: dict[str, str], ascii_only: bool) -> str:
    if c in named:
        return "\\" + named[c]
    if c.isprintable() and (c.isascii() or not ascii_only):
        return c
    if ord(c) < 0x80:
        return f"\\x{ord(c):02x}"
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
