"""A subscription: one mailbox, filled by the reader, emptied by a greenlet of its own.

A user's callback never runs in the reader. The delivery greenlet lives while there are messages;
an idle subscription is one small object and nothing else. A full mailbox drops the new message,
counts it, and reports once per episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol

import gevent
from gevent import getcurrent

from . import commands
from .backoff import Deadline
from .delivery import Delivery
from .errors import (
    BadSubscriptionError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    DrainTimeoutError,
    Error,
    FlushInterruptedError,
    HandlerError,
    SlowConsumerError,
    TimeoutError,
)
from .headers import HeaderSource
from .mailbox import Handler, Mailbox
from .message import Msg
from .payload import Payload
from .waiting import Line, check_timeout, refuse_in_hub, turn

#: ``around(msg, handle)``: calls ``handle()``, once, with whatever is to be done before and after.
Around = Callable[[Msg, Callable[[], Any]], Any]


# gevent.Timeout is no Exception: a handler's own, which it let out, is its failure and not ours.
_CAUGHT = (Exception, gevent.Timeout)


_MOST = commands.LARGEST_LIMIT


def enclose(cb: Handler | None, around: Around | None) -> Handler | None:
    """A handler that calls *around*, which calls *cb*."""
    if cb is None or around is None:
        return cb
    inner, outer = cb, around
    return lambda msg: outer(msg, lambda: inner(msg))


class Host:
    """What a subscription needs of its connection, handed down; see ``Connection``."""

    __slots__ = (
        "answer",
        "check_thread",
        "drain_timeout",
        "flush",
        "gone",
        "is_closed",
        "report",
        "send_control",
    )

    def __init__(
        self,
        answer: Callable[[str, Payload, HeaderSource | None], None],
        flush: Callable[[float | None], Any],
        report: Callable[[Exception], None],
        send_control: Callable[[bytes], None],
        is_closed: Callable[[], bool],
        gone: Callable[[], ConnectionClosedError],
        drain_timeout: float,
        check_thread: Callable[[str], None],
    ) -> None:
        self.answer = answer
        self.flush = flush
        self.report = report  # an error nobody waits for: error_cb
        self.send_control = send_control  # a control frame, if there is a link
        self.is_closed = is_closed
        self.gone = gone  # what to raise when it is
        self.drain_timeout = drain_timeout
        self.check_thread = check_thread  # raises in another thread than the connection's


class Registry(Protocol):
    """What a subscription needs of the registry that holds it; see registry.py."""

    host: Host
    delivery: Delivery

    def remove(self, sub: Subscription) -> None: ...  # pragma: no cover

    def finished(self, sub: Subscription) -> None: ...  # pragma: no cover

    def stop_restoring(self, sub: Subscription) -> None: ...  # pragma: no cover

    def count_dropped(self, count: int) -> None: ...  # pragma: no cover


class Subscription(Mailbox):
    """Interest in a subject. Made by ``Connection.subscribe``; a context manager that
    unsubscribes, and an iterator that ends when the subscription does.
    """

    __slots__ = (
        "__weakref__",
        "_cb",
        "_drainers",
        "_end_cause",
        "_host",
        "_last_reader",
        "_line",
        "_received_before",
        "_registry",
        "queue",
        "sid",
        "subject",
    )

    def __init__(
        self,
        registry: Registry,
        sid: int,
        subject: str,
        queue: str,
        cb: Handler | None,
        pending_msgs_limit: int,
        pending_bytes_limit: int,
        concurrency: int,
        direct: Handler | None = None,
    ) -> None:
        super().__init__(pending_msgs_limit, pending_bytes_limit, concurrency, direct)
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self._registry = registry
        self._host = registry.host
        self._cb = cb
        self._received_before = 0  # over links that are gone
        self._last_reader: object = None  # the greenlet that last called next_msg
        self._drainers = 0  # delivery greenlets that wait in drain() for the others
        self._end_cause: Exception | None = None
        self._line: Line | None = None  # who waits for a message, or for the queue to empty

    # -- what the mailbox asks for: never switches, never raises ---------------------------

    def _arrived(self) -> None:
        assert self._line is not None
        self._line.wake_all()

    def _overflowed(self) -> None:
        self.dropped += 1
        self._registry.count_dropped(1)
        if not self._slow:
            self._slow = True
            self._host.report(
                SlowConsumerError(self.subject, self.sid, self.pending_msgs, self.pending_bytes)
            )

    def _refused(self) -> None:
        self._registry.count_dropped(1)

    def _filled(self) -> None:
        self._end(None)

    def _failed(self, error: BaseException) -> None:
        self._host.report(HandlerError(self.subject, error))

    # -- delivery ------------------------------------------------------------------------

    def _start_delivery(self) -> None:
        self._running += 1
        self._registry.delivery.start(self)

    def deliver(self) -> None:
        """Call the handler until nothing is queued; its greenlet does. Switches."""
        assert self._cb is not None
        while self.work(self._cb, _CAUGHT):
            turn()

    def handled(self) -> None:
        """Its greenlet is through with the queue, or was killed. Never switches."""
        self._running -= 1
        if self.pending_msgs:
            self._start_delivery()
        else:
            self._settle()

    def abandon(self) -> None:
        """The greenlet that it waits for will not come. Never switches."""
        self._running -= 1

    def _settle(self) -> None:
        """The queue is empty: back to a small object, and tell who waits for that."""
        if not self.pending_msgs and not self._running:
            if self._cb is not None:
                self.shrink()
            if not self._accepting:
                self._registry.finished(self)
        if self._line is not None:
            self._line.wake_all()

    # -- the user's side -----------------------------------------------------------------

    def next_msg(self, timeout: float | None = 1.0) -> Msg:
        """The next message, in order. Switches only when none is queued.

        *timeout* is in seconds; None waits for ever, but ends with the connection. Raises
        TimeoutError, BadSubscriptionError when the subscription has ended and its queue is
        empty, ConnectionClosedError when the connection has, and Error when the subscription
        has a callback.
        """
        check_timeout(timeout)
        self._host.check_thread("next_msg")
        if self._cb is not None:
            raise Error(f"next_msg: the subscription to {self.subject!r} delivers to its callback")
        self._last_reader = getcurrent()
        if self.pending_msgs > 0:
            return self._take()
        refuse_in_hub("next_msg")
        deadline = Deadline(timeout)
        while self.pending_msgs == 0:
            if not self._accepting:
                raise self._ended()
            if not self._wait(deadline):
                raise TimeoutError(f"no message on {self.subject!r} within {timeout} s", timeout)
        return self._take()

    def __iter__(self) -> Iterator[Msg]:
        """Messages as they come, until the subscription or the connection ends. Switches."""
        while True:
            try:
                yield self.next_msg(timeout=None)
            except (BadSubscriptionError, ConnectionClosedError):
                return

    messages = property(__iter__, doc="The same iterator, under nats-py's name.")

    def unsubscribe(self, limit: int = 0) -> None:
        """End the subscription now, or once *limit* messages in all have come. Never switches.

        A limit can only be lowered: the server may have forgotten the subscription by the time a
        higher one reached it. Ending now gives up what is queued, and counts it in ``dropped``.
        Raises BadSubscriptionError when it has ended already, ConnectionClosedError.
        """
        self._host.check_thread("unsubscribe")
        self._check_live()
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= _MOST:
            raise BadSubscriptionError(
                self.subject, f"unsubscribe: limit must be an int of 0 to {_MOST}, not {limit!r}"
            )
        if self._max_msgs and limit:
            limit = min(limit, self._max_msgs)
        if limit > self._received:
            self._max_msgs = limit
            self._host.send_control(commands.unsub(self.sid, limit - self._received_before))
            return
        if limit == 0:
            self.give_up()
        self._host.send_control(commands.unsub(self.sid))
        self._end(None)

    def drain(self, timeout: float | None = None) -> None:
        """End the subscription after all that the server has sent is handled. Switches.

        *timeout* is in seconds, None is the connection's ``drain_timeout``. Raises
        DrainTimeoutError when handlers (or callers of ``next_msg``) did not keep up; the
        subscription has ended all the same. Called by its own handler it does not wait for
        the handler that called it.
        """
        check_timeout(timeout)
        self._host.check_thread("drain")
        refuse_in_hub("drain")
        self._check_live()
        deadline = Deadline(self._host.drain_timeout if timeout is None else timeout)
        self._host.send_control(commands.unsub(self.sid))
        self._registry.stop_restoring(self)
        try:
            self._host.flush(deadline.remaining())
        except (FlushInterruptedError, ConnectionReconnectingError, ConnectionClosedError):
            pass  # the link is gone and with it whatever the server still had for us
        except TimeoutError:
            self._abandon_drain(deadline)
        finally:
            self._end(None)  # whatever struck: the server was told to send no more
        own = self._registry.delivery.at_work.get(getcurrent()) is self
        self._drainers += own
        if own and self._line is not None:
            self._line.wake_all()  # another handler may wait for this one to end
        try:
            handled = self.await_handled(deadline, own)
        finally:
            self._drainers -= own
        if not handled:
            self._abandon_drain(deadline)

    def await_handled(self, deadline: Deadline, own: bool = False) -> bool:
        """Wait until nothing is queued and no handler runs; False when time ran out first. *own*:
        the caller is a handler, and waits for none that waits as it does. Switches. Raises
        ConnectionClosedError."""
        while self._busy(own):
            if self._host.is_closed():
                raise self._host.gone()
            if not self._wait(deadline):
                return False
        return True

    def _abandon_drain(self, deadline: Deadline) -> None:
        left = self.unhandled
        self.give_up()
        self._end(None)
        raise DrainTimeoutError(deadline.seconds, left, 0, self.obstacle)

    def _busy(self, own: bool) -> bool:
        if not own:
            return self.pending_msgs > 0 or self._running > 0
        if self._drainers == self._concurrency:
            return False  # its handlers wait for themselves; the rest comes when they return
        return self.pending_msgs > 0 or self._running > self._drainers

    @property
    def received(self) -> int:
        """Messages that have come from the server, dropped ones included."""
        return self._received

    @property
    def is_closed(self) -> bool:
        """Whether it has ended and everything queued was handed over."""
        return not self._accepting and not self.pending_msgs

    @property
    def unhandled(self) -> int:
        """Messages queued, or in a handler now."""
        return self.pending_msgs + self._running

    def respond_to(self, reply: str, payload: Payload, headers: HeaderSource | None) -> None:
        """Publish an answer; ``Msg.respond`` calls it."""
        self._host.answer(reply, payload, headers)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._accepting and not self._host.is_closed():
            self.unsubscribe()

    def __repr__(self) -> str:
        queue = f" queue={self.queue!r}" if self.queue else ""
        state = "closed" if self.is_closed else f"pending={self.pending_msgs}"
        return f"<Subscription {self.sid} {self.subject!r}{queue} {state}>"

    # -- the registry's side -------------------------------------------------------------

    def frames(self) -> list[bytes]:
        """What a new link must be told: SUB, and UNSUB with the remaining count."""
        self._received_before = self._received  # the server counts from this SUB on
        frames = [self.opening_frame()]
        if self._max_msgs:
            frames.append(commands.unsub(self.sid, self._max_msgs - self._received))
        return frames

    def opening_frame(self) -> bytes:
        """Its SUB."""
        return commands.sub(self.sid, self.subject.encode(), self.queue.encode())

    def limit_frames(self, delivered: int, unread: int) -> list[bytes]:
        """What a link that knows the subscription must be told of its limit: the server has sent
        *delivered* messages over it, *unread* of which are still to be received here."""
        self._received_before = self._received + unread - delivered
        if not self._max_msgs:
            return []
        remaining = self._max_msgs - self._received - unread
        return [commands.unsub(self.sid, delivered + remaining if remaining > 0 else 0)]

    def end(self, cause: Exception | None) -> None:
        """Take no more messages; what is queued is still delivered."""
        self._end(cause)

    def is_unread_without(self, greenlet: object) -> bool:
        """Whether nobody but *greenlet* would read what is queued: it has no callback, and who
        called next_msg last is that greenlet, or dead, or nobody."""
        reader = self._last_reader
        return self._cb is None and (
            reader is None or reader is greenlet or bool(getattr(reader, "dead", False))
        )

    @property
    def obstacle(self) -> str:
        """What a drain that does not end waits for."""
        if self._cb is None:
            return f"messages of {self.subject!r} were not read"
        return f"handlers of {self.subject!r} did not end"

    def give_up(self) -> int:
        """Drop what is queued, and count it. Returns how many."""
        left = self.empty()
        self.dropped += left
        self._registry.count_dropped(left)
        if self._line is not None:
            self._line.wake_all()
        return left

    def inherit(self) -> None:
        """In a forked child: what is queued is the parent's to handle."""
        self._received -= self.empty()
        self._slow = False

    # -- inside --------------------------------------------------------------------------

    def _take(self) -> Msg:
        msg = self.pop()
        if not self.pending_msgs:
            self._settle()
        return msg

    def _wait(self, deadline: Deadline) -> bool:
        if self._line is None:
            self._line = Line()
            self._watched = True
        return self._line.wait(deadline.remaining())

    def _end(self, cause: Exception | None) -> None:
        if not self._accepting:
            return
        self._accepting = False
        self._end_cause = cause
        self._registry.remove(self)
        if self._line is not None:
            self._line.wake_all()

    def _check_live(self) -> None:
        if self._host.is_closed():
            raise self._host.gone()
        if not self._accepting:
            raise BadSubscriptionError(self.subject)

    def _ended(self) -> Error:
        error: Error = BadSubscriptionError(self.subject)
        if isinstance(self._end_cause, ConnectionClosedError) or self._host.is_closed():
            error = self._host.gone()
        error.__cause__ = self._end_cause
        return error
