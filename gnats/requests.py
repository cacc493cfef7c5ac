"""Requests: one inbox for all, one token each, and who waits for which reply.

The inbox is one wildcard subscription, made by the first request and restored like any other.
A token is used once in the life of a connection, so a late reply can never reach the wrong
request; it finds nobody, is counted, and let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy

from .backoff import Deadline
from .errors import NoRespondersError, TimeoutError
from .message import Msg
from .waiting import Park

Sentinel = Callable[[Msg], bool]


class Waiter:
    """One request that wants one reply."""

    __slots__ = ("error", "park", "reply", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.reply: Msg | None = None
        self.error: Exception | None = None
        self.park = Park()

    def deliver(self, msg: Msg) -> bool:
        """The reply came; False when it is a second one, which is late. Never switches."""
        if self.reply is not None:
            return False
        self.reply = msg
        self.park.wake()
        return True

    def fail(self, error: Exception) -> None:
        self.error = error
        self.park.wake()

    def wait(self, deadline: Deadline) -> Msg:
        """The reply. Raises NoRespondersError, TimeoutError, ConnectionClosedError."""
        self.park.wait(deadline.remaining())
        if self.reply is not None:
            if self.reply.is_no_responders():
                raise NoRespondersError(self.subject)
            return self.reply
        if self.error is not None:
            raise self.error
        raise TimeoutError(
            f"no answer to the request to {self.subject!r} within {deadline.seconds} s",
            deadline.seconds,
        )


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


class Requests:
    """Who waits, by reply subject. ``deliver`` is the inbox's only reader; it never switches."""

    def __init__(self, new_inbox: Callable[[], str], listen: Callable[[str], None]) -> None:
        self._new_inbox = new_inbox
        self._listen = listen  # subscribe to the inbox's wildcard; raises when that is refused
        self._prefix = ""
        self._count = 0
        self._waiters: dict[str, Waiter | Collector] = {}
        #: Replies that came when nobody waited for them any more, or faster than they were taken.
        self.late = 0

    @property
    def waiting(self) -> int:
        """Requests that are not over."""
        return len(self._waiters)

    def open(self, waiter: Waiter | Collector) -> str:
        """Begin a request; returns its reply subject. ``close`` that in the end."""
        if not self._prefix:
            prefix = self._new_inbox()
            self._listen(prefix + ".*")
            self._prefix = prefix + "."
        self._count += 1
        reply = f"{self._prefix}{self._count:x}"
        self._waiters[reply] = waiter
        return reply

    def close(self, reply: str) -> None:
        """The request is over: a later reply is let go."""
        self._waiters.pop(reply, None)

    def deliver(self, msg: Msg) -> None:
        """A reply came. Never raises; the reader calls it."""
        waiter = self._waiters.get(msg.subject)
        if waiter is None or not waiter.deliver(msg):
            self.late += 1

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
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            # Each its own: an exception raised in two greenlets mixes up their tracebacks.
            waiter.fail(copy(error))


def empty_payload(msg: Msg) -> bool:
    """The usual sentinel: a message without a payload ends the answers (ADR-47)."""
    return not msg.data
