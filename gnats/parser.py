"""What the server says: bytes in, events out. No socket, no callback, no clock.

``feed`` takes any chunk of the stream and returns the events that are complete: a ``Msg`` for
MSG and HMSG, else one of the small values of ``lines``. Source: client protocol page. Here is what
must be known between two chunks; what one piece of bytes holds is found by ``scanner``.

Bounded: only what has arrived is held, and a line that is too long is refused before its end.
Linear: bytes are joined once a frame can be complete, never per chunk; a large payload is copied
once, into the message.
"""

from __future__ import annotations

from typing import Union

from . import lines
from .errors import ProtocolError
from .info import MAX_PAYLOAD_CEILING
from .lines import SHOWN, Err, Head, Info, Ok, Ping, Pong, read_line
from .message import Msg
from .scanner import Event, Scanner

__all__ = ["Err", "Event", "Info", "Ok", "Parser", "Ping", "Pong"]

# Smaller chunks are gathered in a bytearray: a peer that dribbles a large message two bytes at
# a time must not cost us an object per dribble. Below it a second copy is cheaper than views.
_SMALL_CHUNK = 4096

Chunk = Union[bytes, bytearray, memoryview]


class Parser:
    """One link's parser; a new link needs a new one. Never switches."""

    __slots__ = (
        "_chunks",
        "_have",
        "_head",
        "_limit",
        "_need",
        "_scan",
        "_start",
        "max_payload",
        "scanner",
    )

    def __init__(
        self, max_payload: int = MAX_PAYLOAD_CEILING, scanner: Scanner | None = None
    ) -> None:
        #: Largest message (headers and payload, bytes) taken from the server.
        self.max_payload = max_payload
        self.scanner = scanner or Scanner()
        self._scan = self.scanner.scan
        self._chunks: list[Chunk] = []  # an incomplete frame, from its first byte
        self._have = 0  # bytes in _chunks
        self._need = 0  # bytes the incomplete frame has in all; 0 while its line is not complete
        self._head: Head | None = None  # of the incomplete frame, once its line is complete,
        self._start = 0  # and where its body begins
        self._limit = 0  # bytes held at which an incomplete line is looked at again

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete."""
        return self._have

    def feed(self, data: bytes) -> list[Event]:
        """The events that *data* completes. Raises ProtocolError, whose ``events`` are those
        completed before the fault; the parser is of no use after that.
        """
        events: list[Event] = []
        try:
            position = 0
            if self._chunks:
                if not data:
                    return events
                self._hold(data)
                if not self._may_be_complete(data):
                    return events
                if self._need < _SMALL_CHUNK:
                    data = b"".join(self._chunks)
                else:
                    position = self._finish(data, events)
            position = self._scan(data, position, self.max_payload, events)
            if position < len(data):
                self._keep(data, position)
            elif self._have:
                self._chunks = []
                self._have = 0
        except ProtocolError as exc:
            exc.events[:0] = events
            raise
        return events

    # -- a frame that is not complete ----------------------------------------------------

    def _keep(self, data: bytes, position: int) -> None:
        """Hold the frame that begins at *position* and does not end in *data*."""
        end = data.find(b"\r\n", position)
        if end < 0:
            _check_unfinished(data, position)
            self._need = 0
            self._limit = lines.MAX_CONTROL_LINE
        else:
            # A message's line: what ends with its line has been taken.
            head = read_line(data[position:end], self.max_payload, _no_event)
            assert head is not None
            self._head = head
            self._start = end + 2 - position
            self._need = self._start + head[4] + 2
        rest: Chunk = data
        if position:
            large = len(data) - position >= _SMALL_CHUNK
            rest = memoryview(data)[position:] if large else data[position:]
        self._chunks = [rest]
        self._have = len(rest)

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
            lines.check_length(self._first_bytes(), length)
            if length > lines.MAX_CONTROL_LINE:
                self._limit = lines.MAX_INFO_LINE  # it is an INFO
        return False

    def _first_bytes(self) -> bytes:
        """The first bytes held, whatever the chunks: enough to tell INFO from the others. Behind
        the first there is a small one, or one that is large enough by itself."""
        return b"".join(chunk[:SHOWN] for chunk in self._chunks[:3])[:SHOWN]

    def _finish(self, data: bytes, events: list[Event]) -> int:
        """Make the large message whose last bytes are in *data*; returns where it ends there."""
        assert self._head is not None
        subject, sid, reply, block_size, _ = self._head
        over = self._have - self._need  # bytes behind it
        views = [memoryview(chunk) for chunk in self._chunks]
        first, views[0] = bytes(views[0][: self._start]), views[0][self._start :]
        if over:
            views[-1] = views[-1][:-over]
        if _cut_end(views) != b"\r\n":
            line = first[:-2]
            raise ProtocolError(f"a message is longer than it announced: {line[:80]!r}")
        block = _cut_start(views, block_size) if block_size >= 0 else None
        events.append(Msg(subject, sid, reply, block, b"".join(views)))
        return len(data) - over


def _cut_end(views: list[memoryview]) -> bytes:
    """Take the last two bytes from *views*."""
    end = b""
    while len(end) < 2:
        short = 2 - len(end)
        end = bytes(views[-1][-short:]) + end
        views[-1] = views[-1][:-short]
        if not views[-1]:
            views.pop()
    return end


def _cut_start(views: list[memoryview], size: int) -> bytes:
    """Take the first *size* bytes from *views*."""
    start = b""
    while len(start) < size:
        short = size - len(start)
        start += views[0][:short]
        views[0] = views[0][short:]
        if not views[0]:
            views.pop(0)
    return start


def _check_unfinished(data: bytes, position: int) -> None:
    feed = data.find(b"\n", position)
    if feed >= 0:
        lines.refuse_line_feed(data[position : feed + 1])
    start = data[position : position + SHOWN]
    lines.check_length(start, len(data) - position - data.endswith(b"\r"))


def _no_event(event: Event) -> None:
    raise AssertionError(f"{event!r} was to be taken by the scanner")
