"""Leaving a server that is going away, without a gap: the next link is subscribed before this ends.

For a moment both links deliver. What comes over the next one is held back until the present one
has said its last word, and what both brought is then taken once: so a subscription misses
nothing, sees nothing twice, and keeps its order. Nothing here decides when to move, or where to.

Three steps. *Listening*: the next server is told of the plain subscriptions, whose messages both
servers send; it can be broken off at no cost. *Joining*: it is told of queue groups, and of what
was subscribed meanwhile; a message to a group now comes over one link only. *Parting*: the present
server is asked to send no more, and its last word is awaited.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from time import monotonic

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
# Rounds of joining: whoever subscribes without end shall not keep us from leaving.
MOST_ROUNDS = 3
# Seconds that the next link may lag behind the present one.
LAG = 2.0

# What makes two deliveries the same message: nothing else tells them apart.
Content = tuple[str, str, "bytes | None", bytes]
Key = tuple[int, Content]


def content_of(msg: Msg) -> Content:
    return msg.subject, msg.reply, msg.block, msg.data


class Seen:
    """What the present link has delivered, so that the next one need not deliver it again.

    What came *early*, before the whole cluster knew of the next link, that may have or not, and if
    so by the time of the change. What came later it has, or is still to get. Of messages that are
    all alike the first one that the next link brings is the one nearest in time: those before it
    were sent when it was not known there yet. From there on they pair in order.
    """

    def __init__(self) -> None:
        self._times: dict[Key, deque[float]] = {}
        self._paired: set[Key] = set()
        self._settled = float("inf")

    def settle(self, now: float) -> None:
        """From *now* on the whole cluster knows of the next link."""
        self._settled = now

    def note(self, msg: Msg, now: float) -> None:
        """The present link has brought *msg*."""
        self._times.setdefault((msg.sid, content_of(msg)), deque()).append(now)

    def take(self, msg: Msg, now: float) -> bool:
        """Whether *msg*, which the next link brought at *now*, was seen; each is taken once."""
        key = msg.sid, content_of(msg)
        times = self._times.get(key)
        if times is None:
            return False
        if key not in self._paired:
            self._paired.add(key)
            while len(times) > 1 and abs(times[1] - now) < abs(times[0] - now):
                times.popleft()
        times.popleft()
        if not times:
            del self._times[key]
        return True

    def forget_early(self) -> None:
        """The change is over: what came early does not come again."""
        for key, times in list(self._times.items()):
            while times and times[0] < self._settled:
                times.popleft()
            if not times:
                del self._times[key]

    def outstanding(self) -> Counter[int]:
        """How many messages to each sid are still to come again."""
        count: Counter[int] = Counter()
        for (sid, _), times in self._times.items():
            count[sid] += len(times)
        return count

    def __bool__(self) -> bool:
        return bool(self._times)


class Echoes:
    """What we published over the present link under ``no_echo``: to the next server it comes from
    somebody else."""

    def __init__(self) -> None:
        self._published: Counter[Content] = Counter()
        self._taken: Counter[Key] = Counter()

    def note(self, frames: list[bytes]) -> None:
        """These have been handed to the present link."""
        self._published.update(
            commands.read_message(frame) for frame in frames if commands.is_message(frame)
        )

    def take(self, msg: Msg) -> bool:
        """Whether *msg* is our own: each comes once to each subscription."""
        key = msg.sid, content_of(msg)
        if self._taken[key] >= self._published[key[1]]:
            return False
        self._taken[key] += 1
        return True

    def __bool__(self) -> bool:
        return bool(self._published)


class Move:
    """One move from *old* to what is *opened*. ``run`` is called once, by the reconnector."""

    def __init__(
        self,
        old: Session,
        opened: Opened,
        subscriptions: Callable[[], list[Subscription]],
        bell: Bell,
        is_closing: Callable[[], bool],
        is_draining: Callable[[], bool],
        no_echo: bool,
    ) -> None:
        self._old = old
        self._opened = opened
        self._subscriptions = subscriptions
        self._bell = bell
        self._is_closing = is_closing
        self._is_draining = is_draining
        self._no_echo = no_echo
        #: The sids that the next server knows.
        self.told: set[int] = set()
        #: Whether messages come that no other link brings: who drains must wait for the end.
        self.is_binding = False
        # A queue group gives a message to one of its members: both links' are different ones.
        self._plain: set[int] = set()
        self._held: list[tuple[float, Event]] = [(0.0, event) for event in opened.early]
        self._seen = Seen()
        self._echoes = Echoes()
        self._failure: Exception | None = None
        self._pongs = 0
        self._to_say: list[bytes] = []
        self._said = Bell()
        self._parting = False
        self._parted = False

    def delivered(self) -> Counter[int]:
        """How many messages the next server has sent to each sid, doubles included, those too
        that are still on their way."""
        sent = Counter(event.sid for _, event in self._held if isinstance(event, Msg))
        return sent + self._seen.outstanding()

    def run(self) -> list[Event]:
        """Subscribe there, part here; what is new over there. Switches. Raises Error when either
        side fails, or takes too long; the old link is then as it was, or has failed."""
        self._old.tap(self._note, self._echoes.note if self._no_echo else None)
        both = [gevent.spawn(self._guarded, self._listen), gevent.spawn(self._guarded, self._speak)]
        try:
            self._tell([sub for sub in self._subscriptions() if not sub.queue])
            self.is_binding = True
            for _ in range(MOST_ROUNDS):
                unsaid = [sub for sub in self._subscriptions() if sub.sid not in self.told]
                if not unsaid:
                    break
                self._tell(unsaid)
            self._part()
            return self._unread()
        except Error:
            self._rescue()
            raise
        finally:
            self.is_binding = False
            gevent.killall(both)
            self._old.tap(None, None)

    def follow(self, session: Session) -> None:
        """The next link may lag behind what the old one has delivered: see to that, too."""
        deadline = Deadline(LAG)

        def sieve(events: list[Event]) -> list[Event]:
            if deadline.expired or not (self._seen or self._echoes):
                session.tap(None, None)
                return events
            now = monotonic()
            return [event for event in events if not self._is_known(event, now)]

        if self._seen or self._echoes:
            session.tap(sieve, None)

    # -- the steps -----------------------------------------------------------------------

    def _tell(self, subs: list[Subscription]) -> None:
        """Tell the next server of *subs*, and let the cluster hear of it."""
        self._plain |= {sub.sid for sub in subs if not sub.queue}
        self.told |= {sub.sid for sub in subs}
        pongs = self._pongs
        frames = [sub.opening_frame() for sub in subs]
        self._say(*frames, commands.PING)
        self._await(lambda: self._pongs > pongs, PATIENCE)
        self._await(lambda: len(self._held) >= MOST_HELD, SETTLE, optional=True)
        self._seen.settle(monotonic())

    def _part(self) -> None:
        self._parting = True
        self._old.part([commands.unsub(sid) for sid in self.told], self._on_parted)
        try:
            self._await(lambda: self._parted, PATIENCE)
            if self._failure is not None:
                raise self._failure
        except Error as exc:
            self._old.exit.fail(exc)  # it was told to send no more: it is of no use now
            raise

    def _unread(self) -> list[Event]:
        unread = [event for arrived, event in self._held if not self._is_known(event, arrived)]
        self._seen.forget_early()
        return unread

    def _rescue(self) -> None:
        """It has failed: what a queue group has given to the next link, nobody else gets."""
        theirs = [
            event
            for _, event in self._held
            if isinstance(event, Msg) and event.sid in self.told - self._plain
        ]
        self._old.hand_on(theirs)

    # -- inside --------------------------------------------------------------------------

    def _await(self, met: Callable[[], bool], seconds: float, optional: bool = False) -> None:
        deadline = Deadline(seconds)
        while not met():
            if self._failure is not None:
                raise self._failure
            if self._is_over():
                raise Error("the present link ended first")
            if deadline.expired:
                if optional:
                    return
                raise TimeoutError("a server did not answer in time", seconds)
            self._bell.listen(deadline.remaining())

    def _is_over(self) -> bool:
        """Whether to break off. What was begun with the parting is brought to its end: then a close
        has a link over which to send what is pending."""
        if self._old.exit.cause is not None:
            return True
        if self._parting:
            return False
        return self._is_closing() or (self._is_draining() and not self.is_binding)

    def _is_known(self, event: Event, now: float) -> bool:
        if not isinstance(event, Msg):
            return False
        return self._echoes.take(event) or self._seen.take(event, now)

    def _say(self, *frames: bytes) -> None:
        self._to_say += frames
        self._said.ring()

    def _speak(self) -> None:
        """The only one that writes over there."""
        while True:
            self._said.listen()
            frames, self._to_say = self._to_say, []
            self._opened.transport.send_all(b"".join(frames))

    def _listen(self) -> None:
        """The only one that reads there. What comes is held."""
        transport, parser = self._opened.transport, self._opened.parser
        while True:
            events, now = parser.feed(transport.recv()), monotonic()
            for event in events:
                if isinstance(event, Ping):
                    self._say(commands.PONG)
                elif isinstance(event, Pong):
                    self._pongs += 1
                else:
                    self._held.append((now, event))
            self._bell.ring()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Error as exc:
            self._failure = exc
            self._bell.ring()

    def _note(self, events: list[Event]) -> list[Event]:
        """What the present link brings meanwhile."""
        now = monotonic()
        for event in events:
            if isinstance(event, Msg) and event.sid in self._plain:
                self._seen.note(event, now)
        return events

    def _on_parted(self, arrived: bool) -> None:
        self._parted = arrived
        self._bell.ring()
