"""What the server says: bytes in, events out. No socket, no callback, no clock.

``feed`` takes any chunk of the stream and returns the events that are complete: a ``Msg`` for
MSG and HMSG, else one of the small values below. Source: client protocol page.

Bounded: a control line, an INFO line and an announced size have each a limit, and only what
has arrived is held. Linear: bytes are joined once a frame can be complete, never per chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Union

from .errors import ProtocolError
from .info import MAX_PAYLOAD_CEILING, ServerInfo, parse_info
from .message import Msg

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


Event = Union[Msg, Info, Err, Ping, Pong, Ok]

# (subject, sid, reply, header bytes or -1, total bytes)
_Head = tuple[str, int, str, int, int]

_PING, _PONG, _OK = Ping(), Pong(), Ok()

# Control lines of a busy subscription repeat to the letter when sizes do; a dictionary look-up
# is half the cost of splitting one. Bounded, since the server chooses the lines.
_LINES_KEPT = 1024
_LONGEST_LINE_KEPT = 256
# Smaller chunks are gathered in a bytearray: a peer that dribbles a large message two bytes at
# a time must not cost us an object per dribble.
_SMALL_CHUNK = 4096

_SHOWN = 40  # bytes of a line that an error quotes

_BLANKS = re.compile(rb"[ \t]+")


class Parser:
    """One link's parser; a new link needs a new one. Never switches."""

    __slots__ = ("_chunks", "_have", "_limit", "_lines", "_need", "max_payload")

    def __init__(self, max_payload: int = MAX_PAYLOAD_CEILING) -> None:
        #: Largest message (headers and payload, bytes) taken from the server.
        self.max_payload = max_payload
        self._chunks: list[bytes | bytearray] = []  # an incomplete frame, from its first byte
        self._have = 0  # bytes in _chunks
        self._need = 0  # bytes the incomplete frame has in all; 0 while its line is not complete
        self._limit = 0  # bytes held at which an incomplete line is looked at again
        self._lines: dict[bytes, _Head] = {}

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete."""
        return self._have

    def feed(self, data: bytes) -> list[Event]:
        """The events that *data* completes. Raises ProtocolError, whose ``events`` are those
        completed before the fault; the parser is of no use after that.
        """
        if self._chunks:
            if not data:
                return []
            self._hold(data)
            if not self._may_be_complete(data):
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        events: list[Event] = []
        try:
            self._parse(data, events)
        except ProtocolError as exc:
            exc.events[:0] = events
            raise
        return events

    def _hold(self, data: bytes) -> None:
        self._have += len(data)
        tail = self._chunks[-1]
        if len(data) >= _SMALL_CHUNK:
            self._chunks.append(data)
        elif isinstance(tail, bytearray):
            tail += data
        else:
            self._chunks.append(bytearray(data))

    def _may_be_complete(self, data: bytes) -> bool:
        if self._need:
            return self._have >= self._need
        if b"\n" in data:
            return True
        if self._have > self._limit:
            # The last byte may be the carriage return that ends the line.
            length = self._have - data.endswith(b"\r")
            _check_length(self._start(), length)
            if length > MAX_CONTROL_LINE:
                self._limit = MAX_INFO_LINE  # it is an INFO
        return False

    def _start(self) -> bytes:
        """The first bytes held, whatever the chunks: enough to tell INFO from the others. Behind
        the first there is a small one, or one that is large enough by itself."""
        return b"".join(chunk[:_SHOWN] for chunk in self._chunks[:3])[:_SHOWN]

    def _parse(self, data: bytes, events: list[Event]) -> None:
        position, length = 0, len(data)
        lines, find, append = self._lines, data.find, events.append
        while position < length:
            end = find(b"\r\n", position)
            if end < 0:
                self._check_unfinished(data, position)
                self._keep(data, position, 0)
                return
            line = data[position:end]
            head = lines.get(line)
            if head is None:
                head = self._read_line(line, append)
                if head is None:
                    position = end + 2
                    continue
            subject, sid, reply, block_size, size = head
            start = end + 2
            end = start + size
            if length < end + 2:
                self._keep(data, position, end + 2 - position)
                return
            if data[end] != 13 or data[end + 1] != 10:
                raise ProtocolError(f"a message is longer than it announced: {line[:80]!r}")
            if block_size < 0:
                append(Msg(subject, sid, reply, None, data[start:end]))
            else:
                body = start + block_size
                append(Msg(subject, sid, reply, data[start:body], data[body:end]))
            position = end + 2
        self._have = 0

    def _keep(self, data: bytes, position: int, need: int) -> None:
        rest = data[position:] if position else data
        self._chunks = [rest]
        self._have = len(rest)
        self._need = need
        self._limit = MAX_CONTROL_LINE

    def _check_unfinished(self, data: bytes, position: int) -> None:
        feed = data.find(b"\n", position)
        if feed >= 0:
            _refuse_line_feed(data[position : feed + 1])
        start = data[position : position + _SHOWN]
        _check_length(start, len(data) - position - data.endswith(b"\r"))

    def _read_line(self, line: bytes, append: Callable[[Event], None]) -> _Head | None:
        """A message's head; or None, and the line's event is appended."""
        if 10 in line:
            _refuse_line_feed(line[: line.find(b"\n") + 1])
        _check_length(line, len(line))
        # The server parts words at blanks and tabs only. What else bytes.split() takes for blank
        # may stand in a subject that another client has published to.
        split = _split if 13 in line or 11 in line or 12 in line else bytes.split
        words = split(line, None, 1)
        operation = words[0].upper() if words else b""
        rest = words[1] if len(words) == 2 else b""
        if operation == b"MSG":
            head = self._read_msg(line, split(rest))
        elif operation == b"HMSG":
            head = self._read_hmsg(line, split(rest))
        else:
            append(self._read_control(operation, rest, line))
            return None
        if not head[2] and len(line) <= _LONGEST_LINE_KEPT:
            if len(self._lines) >= _LINES_KEPT:
                self._lines.clear()  # replies have a line each: they must not fill it for good
            self._lines[line] = head
        return head

    def _read_control(self, operation: bytes, rest: bytes, line: bytes) -> Event:
        if 13 in line:
            raise ProtocolError(f"a lone carriage return: {line[:_SHOWN]!r}")
        if operation == b"PING":
            return _PING
        if operation == b"PONG":
            return _PONG
        if operation == b"+OK":
            return _OK
        if operation == b"-ERR":
            return Err(rest.decode("utf-8", "replace").strip().strip("'"))
        if operation == b"INFO":
            return Info(parse_info(rest))
        raise ProtocolError(f"unknown operation {line[:_SHOWN]!r}")

    def _read_msg(self, line: bytes, words: list[bytes]) -> _Head:
        if len(words) == 3:
            subject, sid, size = words
            reply = b""
        elif len(words) == 4:
            subject, sid, reply, size = words
        else:
            raise ProtocolError(f"MSG needs 3 or 4 words: {line[:80]!r}")
        return self._head(line, subject, sid, reply, None, size)

    def _read_hmsg(self, line: bytes, words: list[bytes]) -> _Head:
        if len(words) == 4:
            subject, sid, block, size = words
            reply = b""
        elif len(words) == 5:
            subject, sid, reply, block, size = words
        else:
            raise ProtocolError(f"HMSG needs 4 or 5 words: {line[:80]!r}")
        return self._head(line, subject, sid, reply, block, size)

    def _head(
        self,
        line: bytes,
        subject: bytes,
        sid: bytes,
        reply: bytes,
        block: bytes | None,
        size: bytes,
    ) -> _Head:
        total = _number(size, line)
        block_size = -1 if block is None else _number(block, line)
        if total > self.max_payload:
            raise ProtocolError(
                f"a message of {total} bytes is announced, over the limit of {self.max_payload}"
            )
        if block_size > total:
            raise ProtocolError(f"headers larger than their message: {line[:80]!r}")
        return _text(subject), _number(sid, line), _text(reply), block_size, total


def _check_length(start: bytes, length: int) -> None:
    """Refuse a line of *length* bytes that is too long for what its *start* says it is."""
    if length > MAX_CONTROL_LINE and (length > MAX_INFO_LINE or start[:4].upper() != b"INFO"):
        raise ProtocolError(f"a control line is over its limit of bytes: {start[:_SHOWN]!r}…")


def _refuse_line_feed(line: bytes) -> NoReturn:
    """Refuse a *line* up to its line feed, in the same words whatever has come behind it."""
    _check_length(line, len(line) - 1)  # where that comes first, it is what others would see
    raise ProtocolError(f"a control line ends without a carriage return: {line[:_SHOWN]!r}")


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
