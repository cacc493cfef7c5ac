"""The gevent side of the outbound buffer: who may put a message in, and who must wait.

Three states, each a limit on the buffer: *linked* (above the high-water mark publish waits),
*unlinked* (up to ``reconnect_buf_size``, then publish raises), *shut* (publish raises what
``shut`` was told). ``Connection.publish`` comes here only when the limit is passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .backoff import Deadline
from .buffer import OutboundBuffer
from .errors import ConnectionClosedError, Error, OutboundBufferLimitError
from .waiting import Park, in_hub

# 1 MiB of frames: a batch large enough that joining and sending it costs little per message,
# small enough that a batch in flight does not delay a PING behind it noticeably.
HIGH_WATER = 1024 * 1024


class Outbox:
    """Owns the buffer's limit and the publishers that wait for room."""

    def __init__(self, buffer: OutboundBuffer, reconnect_buf_size: int) -> None:
        self.buffer = buffer
        self._reconnect_buf_size = reconnect_buf_size
        self._linked = False
        self._refusal: Callable[[], Error] | None = _not_connected
        self._waiting: deque[Park] = deque()

    # -- the lifecycle says ----------------------------------------------------------------

    def link(self) -> None:
        """There is a link: publish waits above the high-water mark."""
        self._linked = True
        # Kept frames count until a PONG; the mark would make every publisher wait a round trip.
        self._set(self._reconnect_buf_size if self.buffer.keep else HIGH_WATER)

    def unlink(self) -> None:
        """There is no link, but one is being sought: publish fills the reconnect buffer."""
        self._linked = False
        self._set(self._reconnect_buf_size)

    def shut(self, refusal: Callable[[], Error]) -> None:
        """Publish raises what *refusal* makes; those that wait for room raise it too."""
        self._refusal = refusal
        self.buffer.limit = -1
        self._wake_all()

    def open(self) -> None:
        """Take messages again: called once, when the first connect begins."""
        self._refusal = None

    @property
    def linked(self) -> bool:
        return self._linked

    def room_made(self) -> None:
        """Bytes have left the buffer: the first who waits may look again."""
        if self._waiting and self.buffer.size < self.buffer.limit:
            self._waiting[0].wake()

    # -- a publisher asks ------------------------------------------------------------------

    def make_room(self, size: int, timeout: float | None) -> None:
        """Return when *size* more bytes may be appended. Switches only while linked and full.

        Raises OutboundBufferLimitError after *timeout* seconds, at once in a hub callback, and
        at once while there is no link; ConnectionClosedError and ConnectionDrainingError.
        """
        if self._admits(size):
            return
        if in_hub():
            raise self._limit_error(size, "a hub callback cannot wait for room")
        self._wait(size, Deadline(timeout))

    def _wait(self, size: int, deadline: Deadline) -> None:
        # First come, first served: the park keeps its place in the line until it has room, and
        # only the head is woken, so that one busy publisher cannot starve the others.
        park = Park()
        self._waiting.append(park)
        try:
            while not self._admits(size):
                if not park.wait(deadline.remaining()):
                    raise self._limit_error(
                        size, f"there was none within publish_timeout ({deadline.seconds} s)"
                    )
                park = self._park_again(park)
        finally:
            self._waiting.remove(park)
            self.room_made()

    def _park_again(self, old: Park) -> Park:
        park = Park()
        self._waiting[self._waiting.index(old)] = park
        return park

    def _admits(self, size: int) -> bool:
        if self._refusal is not None:
            raise self._refusal()
        buffer = self.buffer
        if buffer.size + size <= buffer.limit:
            return True
        if not self._linked:
            raise self._limit_error(size, "there is no link, and reconnect_buf_size is used up")
        # Larger than the mark by itself: it may go when it is alone.
        return buffer.size == 0

    def _limit_error(self, size: int, why: str) -> OutboundBufferLimitError:
        return OutboundBufferLimitError(size, self.buffer.size, self.buffer.limit, why)

    def _set(self, limit: int) -> None:
        if self._refusal is None:
            self.buffer.limit = limit
        self._wake_all()

    def _wake_all(self) -> None:
        for park in self._waiting:
            park.wake()


def _not_connected() -> Error:
    return ConnectionClosedError("not connected: call connect() first")
