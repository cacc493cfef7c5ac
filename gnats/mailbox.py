"""What has come for a subscription and is not handled yet; the way in, behind the parser.

``Sorter`` puts every message into its mailbox, ``Mailbox.work`` calls the handler with what is in
it. Neither switches by itself nor starts a greenlet: ``Subscription`` and ``Reader``, which are
made of them, say how. A compiled twin replaces both (``_mailbox.pyx``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from . import twin
from .message import Msg
from .scanner import Event

Handler = Callable[[Msg], Any]

# A handler that only computes gives the loop back this often (seconds): a flood of messages
# must not keep a web server in the same process from its requests.
SLICE = 0.005


class Mailbox:
    """One subscription's messages, in order, within its limits. Never switches."""

    __slots__ = (
        "_accepting",
        "_bytes",
        "_concurrency",
        "_direct",
        "_max_msgs",
        "_queue",
        "_received",
        "_running",
        "_slow",
        "_watched",
        "delivered",
        "dropped",
        "pending_bytes_limit",
        "pending_msgs_limit",
    )

    def __init__(
        self,
        pending_msgs_limit: int,
        pending_bytes_limit: int,
        concurrency: int,
        direct: Handler | None = None,
    ) -> None:
        #: Messages, and bytes of their payloads and headers, that may wait here.
        self.pending_msgs_limit = pending_msgs_limit
        self.pending_bytes_limit = pending_bytes_limit
        #: Messages handed to the user so far.
        self.delivered = 0
        #: Messages that found no room, or were given up by unsubscribe() or close().
        self.dropped = 0
        self._concurrency = concurrency
        self._direct = direct  # is given each message at once; none waits here
        # An empty deque weighs 600 bytes: it exists only while there are messages.
        self._queue: deque[Msg] | None = None
        self._bytes = 0
        self._received = 0
        self._running = 0  # delivery greenlets
        self._max_msgs = 0  # auto-unsubscribe after that many received; 0: never
        self._accepting = True
        self._watched = False  # somebody waits for a message
        self._slow = False  # within an episode of dropping

    # -- what a subscription adds ----------------------------------------------------------

    def _start_delivery(self) -> None:
        """There are messages, and handlers too few: start one more."""
        raise NotImplementedError

    def _arrived(self) -> None:
        """There is one more message, and somebody waits."""
        raise NotImplementedError

    def _overflowed(self) -> None:
        """A message has found no room."""
        raise NotImplementedError

    def _refused(self) -> None:
        """A message has come for what takes no more."""
        raise NotImplementedError

    def _filled(self) -> None:
        """The last message of ``_max_msgs`` has come."""
        raise NotImplementedError

    def _failed(self, error: BaseException) -> None:
        """A handler has raised."""
        raise NotImplementedError

    # -- in ------------------------------------------------------------------------------

    def push(self, msg: Msg) -> None:
        """Take one message; the reader calls it. Never raises."""
        if not self._accepting:
            self._refused()
            return
        self._received += 1
        if self._direct is not None:
            msg.sub = self  # type: ignore[assignment]
            self._direct(msg)
            return
        size = len(msg.data)
        if msg.block is not None:
            size += len(msg.block)
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        if len(queue) >= self.pending_msgs_limit or self._bytes + size > self.pending_bytes_limit:
            self._overflowed()
        else:
            queue.append(msg)
            self._bytes += size
            if self._running < self._concurrency:
                self._start_delivery()
            elif self._watched:
                self._arrived()
        if self._received == self._max_msgs:
            self._filled()

    # -- out -----------------------------------------------------------------------------

    @property
    def pending_msgs(self) -> int:
        """Messages queued and not handed to the user yet."""
        return len(self._queue) if self._queue else 0

    @property
    def pending_bytes(self) -> int:
        """Payload and header bytes of the queued messages."""
        return self._bytes

    def pop(self) -> Msg:
        """The first message. Raises IndexError when there is none."""
        queue = self._queue
        if not queue:
            raise IndexError("no message is queued")
        msg = queue.popleft()
        msg.sub = self  # type: ignore[assignment]
        self._bytes -= len(msg.data)
        if msg.block is not None:
            self._bytes -= len(msg.block)
        self.delivered += 1
        # The episode is over once half of the queue is free: with the edge at one message,
        # every message of a slow consumer would be an episode of its own.
        if self._slow and len(queue) <= self.pending_msgs_limit // 2:
            self._slow = self._bytes > self.pending_bytes_limit // 2
        return msg

    def work(self, cb: Handler, caught: tuple[type[BaseException], ...]) -> bool:
        """Call *cb* with one message after the other; switches where *cb* does. False when none
        is left, True when some are, but it has gone on for ``SLICE`` seconds and ought to let
        others in. What
        *cb* raises goes to ``_failed`` if it is one of *caught*."""
        clock = time.monotonic
        until = clock() + SLICE
        while self._queue:
            msg = self.pop()
            try:
                cb(msg)
            except caught as exc:
                self._failed(exc)
            if clock() > until:
                return bool(self._queue)
        return False

    def empty(self) -> int:
        """Give up what is queued; returns how many messages that were."""
        count = self.pending_msgs
        self._queue = None
        self._bytes = 0
        return count

    def shrink(self) -> None:
        """Nothing is queued, and nothing may come for long: back to a small object."""
        if not self._queue:
            self._queue = None

    @property
    def _is_small(self) -> bool:
        return self._queue is None


class Sink(Protocol):
    """Where the messages of one subscription go."""

    def push(self, msg: Msg) -> None: ...  # pragma: no cover


class Sorter:
    """Hands each event on: a message to its sink by its sid, what is none to ``on_event``."""

    __slots__ = ("_sinks", "in_bytes", "in_msgs", "in_unknown")

    def __init__(self, sinks: dict[int, Any]) -> None:
        self._sinks = sinks
        self.in_msgs = 0
        self.in_bytes = 0
        self.in_unknown = 0  # messages for a sid that is no more: in flight when it ended

    def on_event(self, event: Any) -> None:
        """An event that is no message."""
        raise NotImplementedError

    def hand_on(self, events: Iterable[Event]) -> None:
        """Hand each event on. Never switches, so a kill cannot lose half a batch."""
        sinks = self._sinks
        count = size = 0
        for event in events:
            if event.__class__ is Msg:
                count += 1
                size += len(event.data)
                if event.block is not None:
                    size += len(event.block)
                try:
                    sink = sinks[event.sid]
                except KeyError:
                    self.in_unknown += 1
                else:
                    sink.push(event)
            else:
                self.on_event(event)
        self.in_msgs += count
        self.in_bytes += size


#: The references, whichever twin is in use.
PureMailbox, PureSorter = Mailbox, Sorter
if not TYPE_CHECKING and twin.compiled:
    from ._mailbox import Mailbox, Sorter
