"""The greenlet that asks the server whether it lives, and tells when it stays silent.

A server that leaves ``max_pings_out`` PINGs unanswered is found out at the tick after that:
``ping_interval × (max_pings_out + 1)`` after its last sign.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from .errors import StaleConnectionError
from .pings import Pings
from .waiting import turn

# A tick that comes after this many intervals says that this process was stopped or blocked.
LATE = 1.5


class Keepalive:
    """One link's keepalive; ``run`` is its greenlet. ``chunks`` counts what the reader read."""

    def __init__(
        self,
        pings: Pings,
        ping_interval: float,
        max_pings_out: int,
        chunks: Callable[[], int],
        fail: Callable[[Exception], None],
    ) -> None:
        self._pings = pings
        self._interval = ping_interval
        self._max_out = max_pings_out
        self._chunks = chunks
        self._fail = fail
        self._outstanding = 0

    def run(self) -> None:
        """Ping until the server is found silent."""
        while True:
            slept_from = time.monotonic()
            gevent.sleep(self._interval)
            if time.monotonic() - slept_from > LATE * self._interval:
                # We were the silent one: our last PING may not even have left. Nothing that the
                # server failed to do in that time counts.
                continue
            if self._outstanding >= self._max_out and not self._reader_found_life():
                self._fail(
                    StaleConnectionError(
                        f"the server left {self._outstanding} PINGs unanswered",
                        self._outstanding,
                    )
                )
                return
            self._outstanding += 1
            self._pings.ping(self._on_pong)

    def _reader_found_life(self) -> bool:
        """Let the reader read what is already here, before a missed PONG is counted.

        A process that was stopped, or whose loop was blocked, runs this tick before it has
        read what came meanwhile. Two turns: one to poll the socket, one for the reader.
        """
        before = self._chunks()
        turn()
        turn()
        return self._chunks() > before or self._outstanding < self._max_out

    def _on_pong(self, arrived: bool) -> None:
        if arrived:
            self._outstanding = 0
