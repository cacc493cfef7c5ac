"""Requests that want one reply each: who waits for which, and until when.

A token is used once in the life of a connection, so a late reply can never reach the wrong
request; it finds nobody, is counted, and let go. One timer serves all deadlines: a timer per
request costs more than all else that waiting takes. A compiled twin replaces it (``_inbox.pyx``).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import twin
from .backoff import LONGEST, Deadline
from .errors import NoRespondersError, TimeoutError
from .message import Msg

# Looking who is out of time may take this part of all time: with many thousands who wait, each
# for another moment, a time-out is told that much later.
LOOKING = 0.1


class Waiter(Deadline):
    """One request that wants one reply, and its deadline; made by the greenlet that will wait.

    *new_switch*: see ``Inbox``.
    """

    __slots__ = ("_switch", "_woken", "error", "reply", "subject", "to")

    def __init__(self, subject: str, seconds: float | None, new_switch: Callable[[], Any]) -> None:
        super().__init__(seconds)
        self.subject = subject
        self.to = ""  # the reply subject
        self.reply: Msg | None = None
        self.error: Exception | None = None
        self._switch = new_switch()
        self._woken = False

    def deliver(self, msg: Msg) -> bool:
        """The reply came; False when it is a second one, which is late. Never switches."""
        if self.reply is not None:
            return False
        self.reply = msg
        self.wake()
        return True

    def fail(self, error: Exception) -> None:
        """No reply can come. Never switches."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """End the wait in the next loop turn. Never switches."""
        if not self._woken:
            self._woken = True
            switch = self._switch
            switch.hub.loop.run_callback(switch.switch, None)

    def wait(self) -> Msg:
        """The reply. Switches. Raises NoRespondersError, TimeoutError, ConnectionClosedError."""
        if not self._woken and self.seconds != 0:
            self._switch.get()
        reply = self.reply
        if reply is not None:
            if reply.block is not None and reply.is_no_responders():
                raise NoRespondersError(self.subject)
            return reply
        if self.error is not None:
            raise self.error
        raise TimeoutError(
            f"no answer to the request to {self.subject!r} within {self.seconds} s", self.seconds
        )


class Inbox:
    """Who waits, by reply subject. ``deliver`` is called by the reader, and never switches.

    *new_switch* makes what a greenlet waits in (gevent's Waiter), *start_timer* calls a function
    once, so many seconds later, and returns how to call it off, *check* raises Error for a
    caller that cannot wait.
    """

    __slots__ = (
        "_call_off",
        "_check",
        "_count",
        "_due",
        "_new_switch",
        "_prefix",
        "_start_timer",
        "_waiters",
        "late",
    )

    def __init__(
        self,
        new_switch: Callable[[], Any],
        start_timer: Callable[[float, Callable[[], None]], Callable[[], None]],
        check: Callable[[str], None],
    ) -> None:
        self._new_switch = new_switch
        self._start_timer = start_timer
        self._check = check
        self._prefix = ""
        self._count = 0
        self._waiters: dict[str, Any] = {}
        self._due = inf  # when the timer goes off
        self._call_off: Callable[[], None] | None = None
        #: Replies that came when nobody waited for them any more, or faster than they were taken.
        self.late = 0

    def _begin(self) -> None:
        """Make the inbox itself, ``_prefix``: it is the first request."""
        raise NotImplementedError

    @property
    def waiting(self) -> int:
        """Requests that are not over."""
        return len(self._waiters)

    def ask(self, subject: str, seconds: float | None) -> Waiter:
        """Begin a request for one reply; ``close`` it in the end. Raises Error in the hub, and
        what ``_begin`` raises."""
        self._check("request")
        waiter = Waiter(subject, seconds, self._new_switch)
        waiter.to = self.open(waiter)
        at = waiter.at
        if at is not None and at < self._due:
            self._set_timer(at)
        return waiter

    def open(self, waiter: Any) -> str:
        """Begin a request; returns its reply subject."""
        if not self._prefix:
            self._begin()
        self._count += 1
        reply = f"{self._prefix}{self._count:x}"
        self._waiters[reply] = waiter
        return reply

    def close(self, reply: str) -> None:
        """The request is over: a later reply is let go."""
        self._waiters.pop(reply, None)

    def deliver(self, msg: Msg) -> None:
        """A reply came. Never raises."""
        waiter = self._waiters.get(msg.subject)
        if waiter is None or not waiter.deliver(msg):
            self.late += 1

    # -- deadlines -----------------------------------------------------------------------

    def _set_timer(self, at: float) -> None:
        self._clear_timer()
        seconds = at - monotonic()
        if seconds < LONGEST:
            self._due = at
            self._call_off = self._start_timer(max(0.0, seconds), self._expire)

    def _clear_timer(self) -> None:
        self._due = inf
        if self._call_off is not None:
            self._call_off()
            self._call_off = None

    def _expire(self) -> None:
        """In the hub: somebody's time may be over."""
        self._clear_timer()
        now, next_at = monotonic(), inf
        # A copy: whoever is collected as garbage meanwhile closes what it has asked for.
        for waiter in list(self._waiters.values()):
            at = waiter.at if isinstance(waiter, Waiter) else None
            if at is None:
                continue
            if at <= now:
                waiter.wake()
            elif at < next_at:
                next_at = at
        if next_at != inf:
            after = monotonic()
            self._set_timer(max(next_at, after + (after - now) / LOOKING))


#: The references, whichever twin is in use.
PureWaiter, PureInbox = Waiter, Inbox
if not TYPE_CHECKING and twin.compiled:
    from ._inbox import Inbox, Waiter
