"""The greenlet that reads: recv → parse → hand on. The only one that reads the socket.

It runs no user code, writes nothing (a PONG goes through the buffer) and, when the link fails,
reports and returns; the reconnector acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from . import commands
from .buffer import OutboundBuffer
from .errors import Error, ProtocolError
from .info import ServerInfo
from .lines import Err, Info, Ping, Pong
from .mailbox import Sorter
from .parser import Parser
from .pings import Pings
from .scanner import Event
from .transport import Link
from .waiting import turn

# A flood is read without ever blocking, so the loop would never turn: give it back after this
# many messages. At about 2 µs a message that is a few milliseconds.
YIELD_EVERY = 2048
# Large payloads make few messages of much work: one recv counts as much as this many.
CHUNK_COST = 64
# Unwritten answers to PINGs that a server may heap up by not reading what it asked for. Any PONG
# shows that we live, so the ones over this are not missed.
MOST_PONGS = 1000


class Reader(Sorter):
    """One link's reader; ``run`` is its greenlet."""

    def __init__(
        self,
        transport: Link,
        parser: Parser,
        buffer: OutboundBuffer,
        pings: Pings,
        sinks: dict[int, Any],
        on_info: Callable[[ServerInfo], None],
        on_err: Callable[[str], None],
        fail: Callable[[Exception], None],
    ) -> None:
        super().__init__(sinks)
        self._transport = transport
        self._parser = parser
        self._buffer = buffer
        self._pings = pings
        self._on_info = on_info
        self._on_err = on_err
        self._fail = fail
        #: Sees the events first, while a move to another server is under way, and may keep some.
        self.tap: Callable[[list[Event]], list[Event]] | None = None
        self._pongs = 0  # due since the flusher last took a batch
        self._batches = 0
        self.chunks = 0  # recv calls that brought something: how keepalive sees life

    def run(self, early: Iterable[Event] = ()) -> None:
        """Read until the link fails. *early*: events that came with the handshake's PONG."""
        recv, feed = self._transport.recv, self._parser.feed
        since_yield = 0
        try:
            self.hand_on(early)
            while True:
                data = recv()
                self.chunks += 1
                events = feed(data)
                if self.tap is not None:
                    events = self.tap(events)
                self.hand_on(events)
                since_yield += CHUNK_COST + len(events)
                if since_yield >= YIELD_EVERY:
                    since_yield = 0
                    turn()
        except ProtocolError as exc:
            # Handed on, and let go: messages know their connection, and whoever keeps the error (a
            # log handler does) must not keep that.
            events, exc.events = exc.events, []
            self.hand_on(events)
            self._fail(exc)
        except Error as exc:
            self._fail(exc)

    def on_event(self, event: Event) -> None:
        """What is no message."""
        if isinstance(event, Ping):
            self._answer_ping()
        elif isinstance(event, Pong):
            self._pings.pong()
        elif isinstance(event, Info):
            self._on_info(event.info)
        elif isinstance(event, Err):
            self._on_err(event.text)

    def _answer_ping(self) -> None:
        batches = self._buffer.batches
        if batches != self._batches:
            self._batches, self._pongs = batches, 0
        self._pongs += 1
        if self._pongs <= MOST_PONGS:
            self._buffer.append_control(commands.PONG)
