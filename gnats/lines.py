"""One control line of the server: a message's head, or an event of its own. Pure.

It reads whole lines, without their line end; which bytes are a line is decided by ``scanner`` and
``parser``. Source: client protocol page (MSG, HMSG, INFO, -ERR, PING, PONG, +OK).

Bounded: a control line, an INFO line and an announced size have each a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .errors import ProtocolError
from .info import ServerInfo, parse_info

#: Longest control line. The server's default for what it takes is 4 KiB; subjects may be
#: longer where an operator raised that.
MAX_CONTROL_LINE = 64 * 1024
#: Longest INFO line: a very large cluster lists its addresses there.
MAX_INFO_LINE = 1024 * 1024


class Info(NamedTuple):
    """The server describes itself."""

    info: ServerInfo


class Err(NamedTuple):
    """-ERR, with the server's words, unquoted."""

    text: str


class Ping(NamedTuple):
    """The server asks whether we live."""


class Pong(NamedTuple):
    """The answer to our oldest PING."""


class Ok(NamedTuple):
    """+OK, in verbose mode."""


#: (subject, sid, reply, header bytes or -1, total bytes)
Head = tuple[str, int, str, int, int]

PING, PONG, OK = Ping(), Pong(), Ok()

SHOWN = 40  # bytes of a line that an error quotes

_BLANKS = re.compile(rb"[ \t]+")


def read_line(line: bytes, max_payload: int, append: Callable[[Any], None]) -> Head | None:
    """A message's head; or None, and the line's event is given to *append*. Raises ProtocolError;
    *max_payload* is the largest message (headers and payload, bytes) taken from the server.
    """
    if 10 in line:
        refuse_line_feed(line[: line.find(b"\n") + 1])
    check_length(line, len(line))
    # The server parts words at blanks and tabs only. What else bytes.split() takes for blank
    # may stand in a subject that another client has published to.
    split = _split if 13 in line or 11 in line or 12 in line else bytes.split
    words = split(line, None, 1)
    operation = words[0].upper() if words else b""
    rest = words[1] if len(words) == 2 else b""
    if operation == b"MSG":
        return _read_msg(line, split(rest), max_payload)
    if operation == b"HMSG":
        return _read_hmsg(line, split(rest), max_payload)
    append(_read_control(operation, rest, line))
    return None


def _read_control(operation: bytes, rest: bytes, line: bytes) -> Any:
    if 13 in line:
        raise ProtocolError(f"a lone carriage return: {line[:SHOWN]!r}")
    if operation == b"PING":
        return PING
    if operation == b"PONG":
        return PONG
    if operation == b"+OK":
        return OK
    if operation == b"-ERR":
        return Err(rest.decode("utf-8", "replace").strip().strip("'"))
    if operation == b"INFO":
        return Info(parse_info(rest))
    raise ProtocolError(f"unknown operation {line[:SHOWN]!r}")


def _read_msg(line: bytes, words: list[bytes], max_payload: int) -> Head:
    if len(words) == 3:
        subject, sid, size = words
        reply = b""
    elif len(words) == 4:
        subject, sid, reply, size = words
    else:
        raise ProtocolError(f"MSG needs 3 or 4 words: {line[:80]!r}")
    return _head(line, subject, sid, reply, None, size, max_payload)


def _read_hmsg(line: bytes, words: list[bytes], max_payload: int) -> Head:
    if len(words) == 4:
        subject, sid, block, size = words
        reply = b""
    elif len(words) == 5:
        subject, sid, reply, block, size = words
    else:
        raise ProtocolError(f"HMSG needs 4 or 5 words: {line[:80]!r}")
    return _head(line, subject, sid, reply, block, size, max_payload)


def _head(
    line: bytes,
    subject: bytes,
    sid: bytes,
    reply: bytes,
    block: bytes | None,
    size: bytes,
    max_payload: int,
) -> Head:
    total = _number(size, line)
    block_size = -1 if block is None else _number(block, line)
    if total > max_payload:
        raise ProtocolError(
            f"a message of {total} bytes is announced, over the limit of {max_payload}"
        )
    if block_size > total:
        raise ProtocolError(f"headers larger than their message: {line[:80]!r}")
    return _text(subject), _number(sid, line), _text(reply), block_size, total


def check_length(start: bytes, length: int) -> None:
    """Refuse a line of *length* bytes that is too long for what its *start* says it is."""
    if length > MAX_CONTROL_LINE and (length > MAX_INFO_LINE or start[:4].upper() != b"INFO"):
        raise ProtocolError(f"a control line is over its limit of bytes: {start[:SHOWN]!r}…")


def refuse_line_feed(line: bytes) -> NoReturn:
    """Refuse a *line* up to its line feed, in the same words whatever has come behind it."""
    check_length(line, len(line) - 1)  # where that comes first, it is what others would see
    raise ProtocolError(f"a control line ends without a carriage return: {line[:SHOWN]!r}")


def _split(line: bytes, _: None = None, most: int = 0) -> list[bytes]:
    """``bytes.split`` at blanks and tabs, and nothing else."""
    return _BLANKS.split(line.strip(b" \t"), most)


def _text(name: bytes) -> str:
    # Subjects are UTF-8, but the server passes on what a client publishes, and one client must not
    # end the links of the others. As with headers, what is no UTF-8 is kept, and cannot be sent.
    return name.decode("utf-8", "surrogateescape")


def _number(digits: bytes, line: bytes) -> int:
    # isdigit() first: int() also takes signs, blanks and underscores. 19 digits fit 64 bits.
    if not digits.isdigit() or len(digits) > 19:
        raise ProtocolError(f"not a number where one is needed: {line[:80]!r}")
    return int(digits)
