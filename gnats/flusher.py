"""The greenlet that writes: take all that is pending, one join, one send. The only writer.

It also puts the confirmation barrier behind what it writes: a PING whose PONG tells that
everything before it was processed, so that a lost link leaves little uncertain. Under
``replay_unconfirmed`` there is one whenever none is outstanding, otherwise one at most every
``BARRIER_INTERVAL`` while messages flow; a quiet connection sends none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import get_hub
from gevent.hub import Waiter

from .buffer import OutboundBuffer
from .errors import Error
from .pings import Pings
from .transport import Link
from .waiting import Park, turn

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher

#: Seconds. Ten PINGs a second are nothing to a server, and a tenth of a second is what a person
#: calls at once.
BARRIER_INTERVAL = 0.1


class Barrier:
    """When a PING must ride behind a batch. Timers of one link; never switches."""

    def __init__(self, buffer: OutboundBuffer, pings: Pings, wake: Callable[[], None]) -> None:
        self._buffer = buffer
        self._pings = pings
        self._wake = wake
        self._outstanding = False
        self._cooling: _TimerWatcher | None = None  # since the last PING
        #: Nothing is to be raised before a PONG has come, or the time has.
        self.rests = False

    def raise_if_due(self) -> None:
        """Queue a PING if there is something to confirm and the time has come."""
        if self.rests or not self._has_work():
            return
        self._outstanding = self.rests = True
        if not self._buffer.keep:
            self._cooling = get_hub().loop.timer(BARRIER_INTERVAL)
            self._cooling.start(self._cooled, update=True)
        self._pings.ping(self._on_pong)

    def close(self) -> None:
        if self._cooling is not None:
            self._cooling.close()
            self._cooling = None

    def _has_work(self) -> bool:
        return self._buffer.pending_messages > 0 or self._buffer.unconfirmed > 0

    def _cooled(self) -> None:
        self.close()
        self.rests = self._outstanding
        self._rewake()

    def _on_pong(self, arrived: bool) -> None:
        self._outstanding = False
        self.rests = self._cooling is not None
        if arrived:
            self._rewake()

    def _rewake(self) -> None:
        if not self.rests and self._buffer.unconfirmed:
            self._wake()


class Flusher:
    """One link's flusher; ``run`` is its greenlet. ``on_written`` hears of each batch."""

    def __init__(
        self,
        transport: Link,
        buffer: OutboundBuffer,
        pings: Pings,
        on_written: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._transport = transport
        self._buffer = buffer
        self._on_written = on_written
        self._fail = fail
        self._pings = pings
        self._farewell: Callable[[bool], None] | None = None
        #: Is shown each batch that is about to be written, while somebody wants to know.
        self.tap: Callable[[list[bytes]], None] | None = None
        self._waiter: Waiter[None] = Waiter()
        self._asleep = False
        self._barrier = Barrier(buffer, pings, self.wake)

    def run(self) -> None:
        """Write until the link fails."""
        try:
            while True:
                parting = self._farewell is not None
                if self._farewell is not None:
                    # Behind it nothing more of the buffer goes over this link.
                    self._pings.ping(self._farewell)
                elif not self._barrier.rests:
                    self._barrier.raise_if_due()
                if not self._buffer.frames:
                    self._wait()
                    continue
                data = self._buffer.take(whole=parting)
                if self.tap is not None:
                    self.tap(self._buffer.batch)
                self._send(data)
                self._buffer.written()
                self._on_written()
                if parting:
                    self._buffer.wake = None
                    Park().wait()
        except Error as exc:
            # A server that refuses something says so and closes: our write fails first, its
            # words are still to be read. Two turns let the reader be the first to report.
            turn()
            turn()
            self._fail(exc)
        finally:
            self._buffer.wake = None
            self._barrier.close()

    def part(self, on_pong: Callable[[bool], None]) -> None:
        """Write one more batch, a PING at its end, and then no more. Never switches."""
        self._farewell = on_pong
        self.wake()

    def wake(self) -> None:
        """There is something to write. Never switches."""
        self._buffer.wake = None
        if self._asleep:
            self._asleep = False
            self._waiter.hub.loop.run_callback(self._waiter.switch, None)

    def _wait(self) -> None:
        self._buffer.wake = self.wake
        self._asleep = True
        try:
            self._waiter.get()
        finally:
            self._asleep = False
            self._waiter.clear()

    def _send(self, data: bytes) -> None:
        buffer, send = self._buffer, self._transport.send
        try:
            sent = send(memoryview(data))
            if sent < len(data):
                view = memoryview(data)
                while sent < len(data):
                    buffer.offset = sent
                    sent += send(view[sent:])
            buffer.offset = sent
        finally:
            # What the server may have read of a send that failed is not sent again by default.
            buffer.offset += self._transport.in_doubt
