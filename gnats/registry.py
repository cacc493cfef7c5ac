"""Every live subscription, by sid, and what a new link must be told of them.

It never switches: the reader looks up here, the reconnector asks what to restore.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

from .delivery import Delivery
from .mailbox import Handler
from .message import Msg
from .subscription import Host, Subscription


class InboxSubscription(Subscription):
    """The one subscription behind all requests: its messages go straight to who waits."""

    __slots__ = ()

    def __init__(
        self, registry: Subscriptions, sid: int, subject: str, deliver: Callable[[Msg], None]
    ) -> None:
        super().__init__(registry, sid, subject, "", None, 1, 1, 1, deliver)


class Subscriptions:
    """The registry: every live subscription by sid, in the order in which they were made."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.by_sid: dict[int, Subscription] = {}
        self.delivery = Delivery()
        self.in_dropped = 0
        self._last_sid = 0
        # Weak: messages that nobody can read any more keep nothing alive.
        self._ending: WeakSet[Subscription] = WeakSet()
        self._not_restored: set[int] = set()
        # By subject and queue; None until somebody asks, and again with every new link.
        self._by_name: dict[tuple[str, str], dict[int, Subscription]] | None = None

    def add(
        self,
        subject: str,
        queue: str,
        cb: Handler | None,
        pending_msgs_limit: int,
        pending_bytes_limit: int,
        concurrency: int,
        max_msgs: int = 0,
    ) -> Subscription:
        """Make a subscription and, if there is a link, tell the server. Never switches."""
        self._last_sid += 1
        sub = Subscription(
            self,
            self._last_sid,
            subject,
            queue,
            cb,
            pending_msgs_limit,
            pending_bytes_limit,
            # Without a callback there is nothing to run, whatever was asked for.
            concurrency if cb is not None else 0,
        )
        sub._max_msgs = max_msgs
        frames = sub.frames()
        self._enter(sub)
        for frame in frames:
            self.host.send_control(frame)
        return sub

    def add_inbox(self, subject: str, deliver: Callable[[Msg], None]) -> None:
        """Make the subscription for replies. Never switches."""
        self._last_sid += 1
        inbox = InboxSubscription(self, self._last_sid, subject, deliver)
        self._enter(inbox)
        self.host.send_control(inbox.frames()[0])

    def _enter(self, sub: Subscription) -> None:
        self.by_sid[sub.sid] = sub
        if self._by_name is not None:
            self._note_name(sub)

    def _note_name(self, sub: Subscription) -> None:
        assert self._by_name is not None
        self._by_name.setdefault((sub.subject, sub.queue), {})[sub.sid] = sub

    def of_users(self) -> list[Subscription]:
        """The live subscriptions that users made."""
        return [s for s in self.by_sid.values() if not isinstance(s, InboxSubscription)]

    def unfinished(self) -> list[Subscription]:
        """The live subscriptions of users, and the ended ones with messages yet to be handled."""
        return [*self.of_users(), *self._ending]

    @property
    def unhandled(self) -> int:
        """Messages that wait for a handler, or are in one; those for ``next_msg`` have none."""
        working = {*self.delivery.at_work.values(), *self.delivery.ready}
        return sum(sub.unhandled for sub in working)

    def remove(self, sub: Subscription) -> None:
        """*sub* has ended; until its last message is handled it is still looked after."""
        self.by_sid.pop(sub.sid, None)
        if self._by_name is not None:
            same = self._by_name[sub.subject, sub.queue]
            del same[sub.sid]
            if not same:
                del self._by_name[sub.subject, sub.queue]
        if sub.unhandled:
            self._ending.add(sub)
        self._not_restored.discard(sub.sid)

    def finished(self, sub: Subscription) -> None:
        """An ended subscription has nothing more to handle."""
        self._ending.discard(sub)

    def stop_restoring(self, sub: Subscription) -> None:
        """A draining subscription still takes messages, but no new link is told of it."""
        self._not_restored.add(sub.sid)

    def to_restore(self) -> list[tuple[Subscription, list[bytes]]]:
        """Every live subscription with its SUB, and UNSUB where there is a limit."""
        self._by_name = None
        return [(sub, sub.frames()) for sub in self.to_keep()]

    def to_keep(self) -> list[Subscription]:
        """Every live subscription that a new link is to be told of."""
        return [sub for sub in self.by_sid.values() if sub.sid not in self._not_restored]

    def inherit(self) -> None:
        """In a forked child: what is queued is the parent's, and so are the handlers that run,
        but for the caller's own; they end in the next turn of the loop. The subscriptions stay.
        Never switches."""
        self.delivery.inherit()
        for sub in self.unfinished():
            sub.inherit()
        for sub in list(self.by_sid.values()):
            if isinstance(sub, InboxSubscription):
                self.remove(sub)
        self.in_dropped = 0

    def refused(self, subject: str, queue: str, error: Exception) -> None:
        """The server forbids *subject*: end the subscriptions it names."""
        # An index, made when the first is refused: with many subscriptions many are, at once.
        if self._by_name is None:
            self._by_name = {}
            for sub in self.by_sid.values():
                self._note_name(sub)
        for sub in list(self._by_name.get((subject, queue), {}).values()):
            sub.end(error)

    def end_all(self, cause: Exception) -> None:
        """The connection is closed: end every subscription and give up what is queued."""
        for sub in [*self.by_sid.values(), *self._ending]:
            sub.give_up()
            sub.end(cause)

    def count_dropped(self, count: int) -> None:
        self.in_dropped += count
