"""Leaving a server that is going away, without a gap: the next link is subscribed before this ends.

For a moment both links deliver. What comes over the next one is held back until the present one
has said its last word, and what both brought is then taken once: so a subscription misses
nothing, sees nothing twice, and keeps its order. Nothing here decides when to move, or where to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import gevent

from . import commands
from .backoff import Deadline
from .errors import Error, TimeoutError
from .message import Msg
from .parser import Event, Ping, Pong
from .session import Opened, Session
from .subscription import Subscription
from .waiting import Bell

# Seconds between "the next server knows our subscriptions" and "the present one may forget them":
# the other servers of the cluster must hear of the first before they hear of the second.
SETTLE = 0.25
# Seconds that either server may take for its part; after that the move is given up.
PATIENCE = 2.0
# Messages held back at which the settling is cut short: their memory must have a bound.
MOST_HELD = 100_000

# Seconds that the next link may lag behind the present one.
LAG = 10.0

Key = tuple[int, str, str, "bytes | None", bytes]


def key_of(msg: Msg) -> Key:
    """What makes two deliveries the same message: nothing else tells them apart."""
    return msg.sid, msg.subject, msg.reply, msg.block, msg.data


class Seen:
    """What the present link has delivered, so that the next one need not deliver it again.

    *early* is what came before the whole cluster knew of the next link: it may have it or not, and
    has it by the time of the change. What came later the next link has, or is still to get.
    """

    def __init__(self) -> None:
        self.early: Counter[Key] = Counter()
        self.late: Counter[Key] = Counter()

    def without(self, events: list[Event]) -> list[Event]:
        """*events* without the messages that were seen, each taken out as often as it was; in
        order."""
        return [event for event in events if not (isinstance(event, Msg) and self._take(event))]

    def _take(self, msg: Msg) -> bool:
        key = key_of(msg)
        for seen in (self.early, self.late):
            if key in seen:
                seen[key] -= 1
                if not seen[key]:
                    del seen[key]
                return True
        return False


class Move:
    """One move from *old* to what is *opened*. ``run`` is called once, by the reconnector."""

    def __init__(
        self,
        old: Session,
        opened: Opened,
        subscriptions: list[Subscription],
        bell: Bell,
        is_closing: Callable[[], bool],
    ) -> None:
        self._old = old
        self._opened = opened
        self._subscriptions = subscriptions
        self._bell = bell
        self._is_closing = is_closing
        # A queue group gives a message to one of its members: both links' are different ones.
        self._shared = {sub.sid for sub in subscriptions if not sub.queue}
        #: The sids that the next server knows.
        self.told = {sub.sid for sub in subscriptions}
        self._held: list[Event] = list(opened.early)
        self._seen = Seen()
        self._settled = False
        self._failure: Exception | None = None
        self._subscribed = False
        self._parted = False

    def delivered(self) -> Counter[int]:
        """How many messages the next server has sent to each sid, doubles included."""
        return Counter(event.sid for event in self._held if isinstance(event, Msg))

    def run(self) -> list[Event]:
        """Subscribe there, part here; what is new over there. Switches. Raises Error when either
        side fails, or takes too long; the old link is then as it was, or has failed."""
        self._old.tap(self._note)
        scout = gevent.spawn(self._listen)
        try:
            self._await(lambda: self._subscribed, PATIENCE)
            self._await(lambda: len(self._held) >= MOST_HELD, SETTLE, optional=True)
            self._settled = True
            self._old.part([commands.unsub(sid) for sid in self.told], self._on_parted)
            try:
                self._await(lambda: self._parted, PATIENCE)
                if self._failure is not None:
                    raise self._failure
            except Error as exc:
                self._old.exit.fail(exc)  # it was told to send no more: it is of no use now
                raise
        finally:
            scout.kill()
            self._old.tap(None)
        unread = self._seen.without(self._held)
        self._seen.early.clear()
        return unread

    def follow(self, session: Session) -> None:
        """The next link may lag behind what the old one has delivered: see to that, too."""
        deadline = Deadline(LAG)

        def sieve(events: list[Event]) -> list[Event]:
            events = self._seen.without(events)
            if not self._seen.late or deadline.expired:
                session.tap(None)
            return events

        if self._seen.late:
            session.tap(sieve)

    # -- inside --------------------------------------------------------------------------

    def _await(self, met: Callable[[], bool], seconds: float, optional: bool = False) -> None:
        deadline = Deadline(seconds)
        while not met():
            if self._failure is not None:
                raise self._failure
            if self._is_closing() or self._old.exit.cause is not None:
                raise Error("the present link ended first")
            if deadline.expired:
                if optional:
                    return
                raise TimeoutError("a server did not answer in time", seconds)
            self._bell.listen(deadline.remaining())

    def _listen(self) -> None:
        """The scout: it subscribes over there, and holds what comes."""
        transport, parser = self._opened.transport, self._opened.parser
        frames = [sub.opening_frame() for sub in self._subscriptions]
        try:
            transport.send_all(b"".join([*frames, commands.PING]))
            while True:
                for event in parser.feed(transport.recv()):
                    if isinstance(event, Ping):
                        transport.send_all(commands.PONG)
                    elif isinstance(event, Pong):
                        self._subscribed = True
                    else:
                        self._held.append(event)
                self._bell.ring()
        except Error as exc:
            self._failure = exc
            self._bell.ring()

    def _note(self, events: list[Event]) -> list[Event]:
        """What the present link brings meanwhile."""
        seen = self._seen.late if self._settled else self._seen.early
        for event in events:
            if isinstance(event, Msg) and event.sid in self._shared:
                seen[key_of(event)] += 1
        return events

    def _on_parted(self, arrived: bool) -> None:
        self._parted = arrived
        self._bell.ring()
