"""Requests: one inbox for all, one token each, and who waits for which reply.

The inbox is one wildcard subscription, made by the first request and restored like any other.
A token is used once in the life of a connection, so a late reply can never reach the wrong
request; it finds nobody and is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from copy import copy

from .backoff import Deadline
from .errors import NoRespondersError, TimeoutError
from .message import Msg
from .waiting import Park

Sentinel = Callable[[Msg], bool]


class Waiter:
    """One request: its replies so far, and the greenlet that waits for the next."""

    __slots__ = ("error", "park", "replies")

    def __init__(self) -> None:
        self.replies: deque[Msg] = deque()
        self.error: Exception | None = None
        self.park: Park | None = None

    def next(self, timeout: float | None) -> Msg | None:
        """The next reply, or None when *timeout* seconds ran out. Raises what ended the wait."""
        if not self.replies and self.error is None:
            self.park = Park()
            try:
                self.park.wait(timeout)
            finally:
                self.park = None
        if self.replies:
            return self.replies.popleft()
        if self.error is not None:
            raise self.error
        return None

    def wake(self) -> None:
        if self.park is not None:
            self.park.wake()


class Requests:
    """The waiters by token. ``deliver`` is the inbox's only reader; it never switches."""

    def __init__(self, new_inbox: Callable[[], str], listen: Callable[[str], None]) -> None:
        self._new_inbox = new_inbox
        self._listen = listen  # subscribe to the inbox's wildcard; raises when that is refused
        self._prefix = ""
        self._count = 0
        self._waiters: dict[str, Waiter] = {}

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._waiters)

    def open(self) -> tuple[str, Waiter]:
        """Begin a request: its reply subject, and its waiter. ``close`` it in the end."""
        if not self._prefix:
            prefix = self._new_inbox()
            self._listen(prefix + ".*")
            self._prefix = prefix + "."
        self._count += 1
        reply = self._prefix + _token(self._count)
        waiter = self._waiters[reply] = Waiter()
        return reply, waiter

    def close(self, reply: str) -> None:
        """The request is over: a later reply is let go."""
        self._waiters.pop(reply, None)

    def deliver(self, msg: Msg) -> None:
        """A reply came. Never switches, never raises; the reader calls it."""
        waiter = self._waiters.get(msg.subject)
        if waiter is not None:
            waiter.replies.append(msg)
            waiter.wake()

    def listens_to(self, subject: str) -> bool:
        """Whether *subject* is the inbox's wildcard."""
        return bool(self._prefix) and subject == self._prefix + "*"

    def fail_all(self, error: Exception) -> None:
        """No reply can come any more: everyone who waits raises *error*, and the next request
        makes a new inbox."""
        self._prefix = ""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            # Each its own: an exception raised in two greenlets mixes up their tracebacks.
            waiter.error = copy(error)
            waiter.wake()

    def answer(self, waiter: Waiter, subject: str, deadline: Deadline) -> Msg:
        """The one reply. Raises NoRespondersError, TimeoutError, ConnectionClosedError."""
        msg = waiter.next(deadline.remaining())
        if msg is None:
            raise TimeoutError(
                f"no answer to the request to {subject!r} within {deadline.seconds} s",
                deadline.seconds,
            )
        if msg.is_no_responders():
            raise NoRespondersError(subject)
        return msg

    def answers(
        self,
        waiter: Waiter,
        subject: str,
        deadline: Deadline,
        stall: float | None,
        max_msgs: int,
        sentinel: Sentinel | None,
    ) -> Iterator[Msg]:
        """Replies until a limit ends them (ADR-47). Raises NoRespondersError."""
        count = 0
        while True:
            msg = waiter.next(_shorter(deadline.remaining(), stall if count else None))
            if msg is None:
                return
            if msg.is_no_responders():
                raise NoRespondersError(subject)
            if sentinel is not None and sentinel(msg):
                return
            yield msg
            count += 1
            if count == max_msgs:
                return


def empty_payload(msg: Msg) -> bool:
    """The usual sentinel: a message without a payload ends the answers (ADR-47)."""
    return not msg.data


def _shorter(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _token(number: int) -> str:
    """A short word for *number*, so that reply subjects stay short on the wire."""
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits += _DIGITS[digit]
    return digits
