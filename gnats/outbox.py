"""The gevent side of the outbound buffer: who may put a message in, and who must wait.

Three states, each a limit on the buffer: *linked* (above the high-water mark publish waits),
*unlinked* (up to ``reconnect_buf_size``, then publish raises), *shut* (publish raises what
``shut`` was told). ``Connection.publish`` comes here only when the limit is passed. What other
threads publish waits in a ``Handover`` until it is poured into the buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .backoff import Deadline
from .buffer import OutboundBuffer
from .errors import ConnectionClosedError, Error, OutboundBufferLimitError
from .threads import Handover, Owner
from .waiting import Park, in_hub

# 1 MiB of frames: a batch large enough that joining and sending it costs little per message,
# small enough that a batch in flight does not delay a PING behind it noticeably.
HIGH_WATER = 1024 * 1024


class Outbox:
    """Owns the buffer's limit and the publishers that wait for room."""

    def __init__(self, buffer: OutboundBuffer, reconnect_buf_size: int, owner: Owner) -> None:
        self.buffer = buffer
        self.handed = Handover(owner)
        self._their_turn = False  # of other threads, where our own wait for room as well
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
        with self.handed.lock:  # whoever was let in before is poured in below
            self._refusal = refusal
        self.pour()
        self._changed()

    def open(self) -> None:
        """Take messages again: called when the first connect begins."""
        self._refusal = None
        self.handed.open(self._answer)
        self.unlink()

    def end(self) -> None:
        """Nothing comes from other threads any more, but what they have asked for before is done:
        called once it is shut."""
        self.handed.close()
        self.handed.answer_calls()

    def disown(self) -> None:
        """In a forked child: what other threads left is the parent's, and so are they."""
        self.handed.disown()

    @property
    def linked(self) -> bool:
        return self._linked

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1: at 1 the next publish waits, or raises."""
        limit = self._limit
        if self._refusal is not None or self._waiting or limit <= 0:
            return 1.0
        return min(1.0, (self.buffer.size + self.handed.size) / limit)

    def bytes_moved(self) -> None:
        """Bytes have been written, or confirmed: the first who waits may look again."""
        if self.handed.frames:
            self._pour_in_turn()
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

    # -- other threads -------------------------------------------------------------------

    def hand_over(self, frame: bytes, payload: int, timeout: float | None) -> None:
        """Take a message from another thread; *payload* is its bytes of headers and payload.
        Blocks that thread while there is a link and no room, *timeout* seconds at most. Raises
        OutboundBufferLimitError, ConnectionClosedError, ConnectionDrainingError."""

        def put() -> bool:
            return self.handed.put(frame, payload, self._admits_handed)

        deadline = Deadline(timeout)
        if not put() and not self.handed.wait(put, deadline):
            why = f"there was none within publish_timeout ({deadline.seconds} s)"
            if not deadline.expired:
                why = "the loop of the connection's thread does not turn, so there will be none"
            raise self._limit_error(len(frame), why)

    def _admits_handed(self, size: int) -> bool:
        """In the other thread, under its lock."""
        if self._refusal is not None:
            raise self._refusal()
        held = self.handed.size
        if self._linked:
            return held == 0 or held + size <= HIGH_WATER
        if self.buffer.size + held + size > self._reconnect_buf_size:
            raise self._limit_error(size, "there is no link, and reconnect_buf_size is used up")
        return True

    def pour(self) -> None:
        """Put what other threads have handed over into the buffer, room or not: it is bounded by
        itself. Never switches."""
        if self.handed.frames:
            with self.handed.lock:  # who counts from afar finds them here or there
                self.buffer.extend(*self.handed.take())
            self.handed.wake_all()

    def _pour_in_turn(self) -> None:
        """The same where there is room, and by turns with those of our own thread who wait."""
        if self.buffer.size >= self._limit:
            return
        if not self._waiting or self._their_turn:
            self.pour()
        self._their_turn = not self._their_turn

    def _answer(self) -> None:
        """In the hub: another thread has rung."""
        self.handed.answer_calls()
        if self.handed.frames:
            self._pour_in_turn()

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
        if self.handed.frames:
            self._pour_in_turn()
        self._show_limit()
        self.handed.wake_all()
        if self._waiting:
            self._waiting[0].wake()

    def _show_limit(self) -> None:
        """Below 0 the fast lane of publish is shut: everyone comes here."""
        shut = self._refusal is not None or self._waiting
        self.buffer.limit = -1 if shut else max(-1, self._limit)


def _not_connected() -> Error:
    return ConnectionClosedError("not connected: call connect() first")
