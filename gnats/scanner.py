"""Whole frames in one piece of bytes: the loop that every received byte passes. Pure.

``Scanner.scan`` is what a compiled twin replaces (``_scanner.pyx``): it takes the frames that are
written as the server writes them, and leaves every other line to ``lines``, as this one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from . import twin
from .errors import ProtocolError
from .lines import Err, Head, Info, Ok, Ping, Pong, read_line
from .message import Msg

Event = Union[Msg, Info, Err, Ping, Pong, Ok]

# Control lines of a busy subscription repeat to the letter when sizes do; a dictionary look-up
# is half the cost of splitting one. Bounded, since the server chooses the lines.
LINES_KEPT = 1024
LONGEST_LINE_KEPT = 256


class Scanner:
    """Keeps what it has learned of one link's lines. Never switches."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[bytes, Head] = {}

    def scan(self, data: bytes, position: int, max_payload: int, events: list[Event]) -> int:
        """Append to *events* what the whole frames of *data* from *position* on mean; returns
        where the first frame begins that is not complete. Raises ProtocolError, and *events* has
        those in front of the fault.
        """
        if position < 0:
            raise ValueError(f"position: 0 or more is needed, not {position}")
        length = len(data)
        lines, find, append = self._lines, data.find, events.append
        while position < length:
            end = find(b"\r\n", position)
            if end < 0:
                break
            line = data[position:end]
            head = lines.get(line)
            if head is None:
                head = read_line(line, max_payload, append)
                if head is None:
                    position = end + 2
                    continue
                self._remember(line, head)
            subject, sid, reply, block_size, size = head
            start = end + 2
            end = start + size
            if length < end + 2:
                break
            if data[end] != 13 or data[end + 1] != 10:
                raise ProtocolError(f"a message is longer than it announced: {line[:80]!r}")
            if block_size < 0:
                append(Msg(subject, sid, reply, None, data[start:end]))
            else:
                body = start + block_size
                append(Msg(subject, sid, reply, data[start:body], data[body:end]))
            position = end + 2
        return position

    def _remember(self, line: bytes, head: Head) -> None:
        if not head[2] and len(line) <= LONGEST_LINE_KEPT:
            if len(self._lines) >= LINES_KEPT:
                self._lines.clear()  # replies have a line each: they must not fill it for good
            self._lines[line] = head


#: The reference, whichever twin is in use.
PureScanner = Scanner
if not TYPE_CHECKING and twin.compiled:
    from ._scanner import Scanner
