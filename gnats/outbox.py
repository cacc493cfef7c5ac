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
        self._changed()

    def unlink(self) -> None:
        """There is no link, but one is being sought: publish fills the reconnect buffer."""
        self._linked = False
        self._changed()

    def shut(self, refusal: Callable[[], Error]) -> None:
        """Publish raises what *refusal* makes; those that wait for room raise it too."""
        self._refusal = refusal
        self._changed()

    def open(self) -> None:
        """Take messages again: called once, when the first connect begins."""
        self._refusal = None
        self.unlink()

    @property
    def linked(self) -> bool:
        return self._linked

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1: at 1 the next publish waits, or raises."""
        limit = self._limit
        return min(1.0, self.buffer.size / limit) if limit > 0 else 1.0

    def bytes_moved(self) -> None:
        """Bytes have been written, or confirmed: the first who waits may look again."""
        if self._waiting:
            if self.buffer.size < self._limit:
                self._waiting[0].wake()
        elif self.buffer.keep:
            self._show_limit()

    @property
    def _limit(self) -> int:
        """Bytes that may wait to be written now."""
        if not self._linked:
            return self._reconnect_buf_size
        if not self.buffer.keep:
            return HIGH_WATER
        # What is kept until a PONG counts too, or its memory would have no bound.
        return min(HIGH_WATER, self._reconnect_buf_size - self.buffer.kept)

    # -- a publisher asks ------------------------------------------------------------------

    def make_room(self, size: int, timeout: float | None) -> None:
        """Return when *size* more bytes may be appended. Switches only while linked and full.

        Raises OutboundBufferLimitError after *timeout* seconds, at once in a hub callback, and
        at once while there is no link; ConnectionClosedError and ConnectionDrainingError.
        """
        # Behind those who wait, even where there is room: they may need more of it than we do.
        if not self._waiting and self._admits(size):
            return
        if not in_hub():
            self._wait(size, Deadline(timeout))
        elif not self._admits(size):
            raise self._limit_error(size, "a hub callback cannot wait for room")

    def _wait(self, size: int, deadline: Deadline) -> None:
        # First come, first served: everyone keeps the place in the line until there is room, and
        # only the head is woken, so that one busy publisher cannot starve the others.
        park = Park()
        self._waiting.append(park)
        self._show_limit()
        try:
            while self._waiting[0] is not park or not self._admits(size):
                if not park.wait(deadline.remaining()):
                    raise self._limit_error(
                        size, f"there was none within publish_timeout ({deadline.seconds} s)"
                    )
                park = self._park_again(park)
        finally:
            self._waiting.remove(park)
            self._changed()

    def _park_again(self, old: Park) -> Park:
        park = Park()
        self._waiting[self._waiting.index(old)] = park
        return park

    def _admits(self, size: int) -> bool:
        if self._refusal is not None:
            raise self._refusal()
        held = self.buffer.size
        if held + size <= self._limit:
            return True
        if not self._linked:
            raise self._limit_error(size, "there is no link, and reconnect_buf_size is used up")
        # Larger than the mark by itself: it may go when it is alone.
        kept = self.buffer.kept
        return held == 0 and (kept == 0 or kept + size <= self._reconnect_buf_size)

    def _limit_error(self, size: int, why: str) -> OutboundBufferLimitError:
        limit = HIGH_WATER if self._linked and not self.buffer.keep else self._reconnect_buf_size
        return OutboundBufferLimitError(size, self.buffer.held, limit, why)

    def _changed(self) -> None:
        self._show_limit()
        if self._waiting:
            self._waiting[0].wake()

    def _show_limit(self) -> None:
        """Below 0 the fast lane of publish is shut: everyone comes here."""
        shut = self._refusal is not None or self._waiting
        self.buffer.limit = -1 if shut else max(-1, self._limit)


def _not_connected() -> Error:
    return ConnectionClosedError("not connected: call connect() first")
