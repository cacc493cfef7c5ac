"""Requests: one inbox for all, and what a request is that wants many replies.

The inbox is one wildcard subscription, made by the first request and restored like any other. Who
waits for which reply is known to ``inbox``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy

from gevent.hub import Waiter

from .backoff import Deadline
from .errors import NoRespondersError
from .inbox import Inbox
from .message import Msg
from .waiting import Park, refuse_in_hub, start_timer

Sentinel = Callable[[Msg], bool]


class Collector:
    """One request that wants many replies: what has come, and the greenlet that waits."""

    __slots__ = ("_limit", "_on_full", "error", "full", "park", "queue", "subject")

    def __init__(self, subject: str, limit: int, on_full: Callable[[Collector], None]) -> None:
        self.subject = subject
        self._limit = limit  # messages that may wait to be iterated over
        self._on_full = on_full
        self.full = False
        self.queue: deque[Msg] = deque()
        self.error: Exception | None = None
        self.park: Park | None = None

    def deliver(self, msg: Msg) -> bool:
        """One more reply. False when it had to be dropped. Never switches."""
        if len(self.queue) >= self._limit:
            if not self.full:
                self.full = True
                self._on_full(self)
            return False
        self.queue.append(msg)
        if self.park is not None:
            self.park.wake()
        return True

    def fail(self, error: Exception) -> None:
        self.error = error
        if self.park is not None:
            self.park.wake()

    def wait(self, timeout: float | None) -> None:
        """Until there is a reply or an error, *timeout* seconds at most."""
        if self.queue or self.error is not None:
            return
        self.park = Park()
        try:
            self.park.wait(timeout)
        finally:
            self.park = None


class Replies:
    """The answers to one request, as they come: an iterator until a limit ends it (ADR-47).

    ``close`` it, or drop it, when no more are wanted; it closes itself at its end.
    """

    def __init__(
        self,
        collector: Collector,
        close: Callable[[], None],
        subject: str,
        deadline: Deadline,
        stall: float | None,
        max_msgs: int,
        sentinel: Sentinel | None,
        check_thread: Callable[[str], None],
    ) -> None:
        self._collector = collector
        self._check_thread = check_thread  # raises in another thread than the connection's
        self._close = close
        self._subject = subject
        self._deadline = deadline
        self._stall = stall
        self._max_msgs = max_msgs
        self._sentinel = sentinel
        self._given = 0
        self._closed = False

    def __iter__(self) -> Replies:
        return self

    def __next__(self) -> Msg:
        """The next answer. Switches when there is none yet. Raises NoRespondersError,
        ConnectionClosedError, and StopIteration at the end."""
        self._check_thread("request_many")
        if self._closed:
            raise StopIteration
        try:
            msg = self._next()
        except BaseException:
            self.close()
            raise
        self._given += 1
        if self._given == self._max_msgs:
            self.close()
        return msg

    def close(self) -> None:
        """No more answers are wanted: later ones are let go. Never switches."""
        self._closed = True
        self._close()
        if self._collector.park is not None:
            self._collector.park.wake()

    def __del__(self) -> None:
        self._close()

    def _next(self) -> Msg:
        collector = self._collector
        timeout = self._deadline.remaining()
        if self._given and self._stall is not None:
            timeout = self._stall if timeout is None else min(timeout, self._stall)
        collector.wait(timeout)
        if not collector.queue:
            raise collector.error or StopIteration
        msg = collector.queue.popleft()
        if msg.is_no_responders():
            raise NoRespondersError(self._subject)
        if self._sentinel is not None and self._sentinel(msg):
            raise StopIteration
        return msg


class Requests(Inbox):
    """The inbox of a connection."""

    def __init__(self, new_inbox: Callable[[], str], listen: Callable[[str], None]) -> None:
        super().__init__(Waiter, start_timer, refuse_in_hub)
        self._new_inbox = new_inbox
        self._listen = listen  # subscribe to the inbox's wildcard; raises when that is refused

    def _begin(self) -> None:
        prefix = self._new_inbox()
        self._listen(prefix + ".*")
        self._prefix = prefix + "."

    def listens_to(self, subject: str) -> bool:
        """Whether *subject* is the inbox's wildcard."""
        return bool(self._prefix) and subject == self._prefix + "*"

    def fail_subject(self, subject: str, error: Exception) -> None:
        """Nothing may be published to *subject*: who waits for its answer waits in vain."""
        for reply, waiter in list(self._waiters.items()):
            if waiter.subject == subject:
                del self._waiters[reply]
                waiter.fail(copy(error))

    def fail_all(self, error: Exception) -> None:
        """No reply can come any more: everyone who waits raises *error*, and the next request
        makes a new inbox."""
        self._prefix = ""
        self._clear_timer()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            # Each its own: an exception raised in two greenlets mixes up their tracebacks.
            waiter.fail(copy(error))


def empty_payload(msg: Msg) -> bool:
    """The usual sentinel: a message without a payload ends the answers (ADR-47)."""
    return not msg.data
