"""PINGs on their way and who waits for each PONG: one queue for one link.

Keepalive, ``flush``, ``rtt`` and the confirmation barrier share it, because the server answers
PINGs in order. Each PONG also tells the buffer that everything before its PING was processed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from . import commands
from .buffer import OutboundBuffer

# Called with True when the PONG has come, with False when the link was lost before it.
OnPong = Callable[[bool], None]


class Pings:
    """The PINGs of one link. Never switches."""

    def __init__(self, buffer: OutboundBuffer, on_confirmed: Callable[[], None]) -> None:
        self._buffer = buffer
        self._on_confirmed = on_confirmed  # kept messages may have been let go: there is room
        self._queue: deque[tuple[int, float, OnPong | None]] = deque()
        self.sent = 0
        #: Seconds that the last one took that was answered.
        self.rtt: float | None = None
        self._lost = False

    def ping(self, on_pong: OnPong | None = None) -> None:
        """Queue a PING behind all that is pending; *on_pong* hears of its PONG."""
        if self._lost:
            if on_pong is not None:
                on_pong(False)
            return
        self._queue.append((self._buffer.position, time.monotonic(), on_pong))
        self.sent += 1
        self._buffer.append_control(commands.PING)

    def pong(self) -> None:
        """A PONG came. One that nobody asked for is let go, as other clients do."""
        if not self._queue:
            return
        position, began, on_pong = self._queue.popleft()
        self.rtt = time.monotonic() - began
        self._buffer.confirm(position)
        self._on_confirmed()
        if on_pong is not None:
            on_pong(True)

    def lost(self) -> None:
        """The link is gone: tell everyone who waits."""
        self._lost = True
        queue, self._queue = self._queue, deque()
        for _, _, on_pong in queue:
            if on_pong is not None:
                on_pong(False)
