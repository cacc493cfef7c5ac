"""Leaving a server that is going away, without a gap: the next link is subscribed before this ends.

For a moment both links deliver. What comes over the next one is held back until the present one
has said its last word, and what both brought is then taken once: so a subscription misses
nothing, sees nothing twice, and keeps its order. Nothing here decides when to move, or where to.

Three steps. *Listening*: the next server is told of the plain subscriptions, whose messages both
servers send; it can be broken off at no cost. *Joining*: it is told of queue groups, and of what
was subscribed meanwhile; a message to a group comes over one link only, and is handed on at once.
*Parting*: the present server is asked to send no more, and its last word is awaited.
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
from .waiting import Bell, turn

# Seconds between "the next server knows our subscriptions" and "the present one may forget them":
# the other servers of the cluster must hear of the first before they hear of the second.
SETTLE = 0.25
# Seconds in which either link must have moved something; after that the move is given up.
PATIENCE = 2.0
# The same for the last word of the present server, from which there is no way back. It stands
# behind all that the kernel has taken for a slow line, and a server that goes away ends the link.
FAREWELL = 10.0
# Seconds that a close waits for that last word, so that it has a link to send over.
CLOSE_PATIENCE = 1.0
# So often a time of patience may be renewed, for one answer.
RENEWALS = 10
# Messages, and bytes, held back at which the settling is cut short: their memory must have a bound.
MOST_HELD = 100_000
MOST_BYTES = 64 * 1024 * 1024
# The scout gives the loop back after so many, see reader.py.
YIELD_EVERY = 2048
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
    so it was on its way at the change. What came later it has, or is still to get. Of messages that
    are all alike the first one that the next link brings is the one nearest in time: those before
    it were sent when it was not known there yet. From there on they pair in order.
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
        self._bytes = 0
        self._handed: Counter[int] = Counter()  # messages, by sid
        self._moved = 0  # how often the next link has moved bytes
        self._seen = Seen()
        self._echoes = Echoes()
        self._failure: Exception | None = None
        self._asked = self._pongs = 0
        self._to_say: list[bytes] = []
        self._said = Bell()
        self._parting = False
        self._close: Deadline | None = None  # it was asked for: until then the parting goes on
        self._parted = False

    def delivered(self) -> Counter[int]:
        """How many messages the next server has sent to each sid, doubles included, those too
        that are still on their way."""
        sent = Counter(event.sid for _, event in self._held if isinstance(event, Msg))
        return sent + self._handed + self._seen.outstanding()

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
        finally:
            self.is_binding = False
            gevent.killall(both)
            self._old.tap(None, None)

    def follow(self, session: Session) -> None:
        """The next link may lag behind what the old one has delivered: see to that, too. What it
        had on its way at the change has come with the first PONG."""
        session.pings.ping(lambda _: self._seen.forget_early())
        deadline = Deadline(LAG)

        def sieve(events: list[Event]) -> list[Event]:
            if deadline.expired or not (self._seen or self._echoes):
                session.tap(None, None)
                return events
            now = monotonic()
            return [event for event in events if not self._is_known(event, now)]

        session.tap(sieve, None)

    # -- the steps -----------------------------------------------------------------------

    def _tell(self, subs: list[Subscription]) -> None:
        """Tell the next server of *subs*, and let the cluster hear of it."""
        self._plain |= {sub.sid for sub in subs if not sub.queue}
        self.told |= {sub.sid for sub in subs}
        self._say(*[sub.opening_frame() for sub in subs])
        self._await_pong()
        self._settle(Deadline(SETTLE))
        self._seen.settle(monotonic())

    def _part(self) -> None:
        self._parting = True
        self._old.part([commands.unsub(sid) for sid in self.told], self._on_parted)
        try:
            self._await(lambda: self._parted, FAREWELL, lambda: self._old.progress)
        except Error as exc:
            self._old.exit.fail(exc)  # it was told to send no more: it is of no use now
            raise

    def _unread(self) -> list[Event]:
        return [event for arrived, event in self._held if not self._is_known(event, arrived)]

    # -- inside --------------------------------------------------------------------------

    def _await_pong(self) -> None:
        """Until the next server has said all that it had for us."""
        wanted = self._asked = self._asked + 1
        self._say(commands.PING)
        self._await(lambda: self._pongs >= wanted, PATIENCE, lambda: self._moved)

    def _await(
        self, met: Callable[[], bool], seconds: float, progress: Callable[[], object]
    ) -> None:
        """Until *met*, as long as there is *progress* within *seconds*."""
        deadline, before = Deadline(seconds), progress()
        renewals = RENEWALS
        while not met():
            self._check()
            if deadline.expired:
                now = progress()
                if now == before or not renewals:
                    raise TimeoutError("a server did not answer in time", seconds)
                deadline, before, renewals = Deadline(seconds), now, renewals - 1
            left = deadline.remaining()
            if self._close is not None and left is not None:
                left = min(left, self._close.remaining() or 0.0)
            self._bell.listen(left)
        self._check()

    def _settle(self, deadline: Deadline) -> None:
        while not deadline.expired and len(self._held) < MOST_HELD and self._bytes < MOST_BYTES:
            self._check()
            self._bell.listen(deadline.remaining())

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_over():
            raise Error("the present link ended first")

    def _is_over(self) -> bool:
        """Whether to break off. What was begun with the parting is brought to its end: then a close
        has a link over which to send what is pending."""
        if self._parted:
            return False  # what becomes of the old link is no matter any more
        if self._old.exit.cause is not None:
            return True
        if self._parting:
            if self._is_closing() and self._close is None:
                self._close = Deadline(CLOSE_PATIENCE)
            return self._close is not None and self._close.expired
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
            left = memoryview(b"".join(frames))
            while left:
                left = left[self._opened.transport.send(left) :]
                self._moved += 1

    def _listen(self) -> None:
        """The only one that reads there. What comes is held, if another link may bring it, too."""
        transport, parser = self._opened.transport, self._opened.parser
        since_turn = 0
        while True:
            events, now = parser.feed(transport.recv()), monotonic()
            self._moved += 1
            for event in events:
                self._take(event, now)
            self._bell.ring()
            since_turn += len(events)
            if since_turn > YIELD_EVERY:
                since_turn = 0
                turn()

    def _take(self, event: Event, now: float) -> None:
        if isinstance(event, Ping):
            self._say(commands.PONG)
        elif isinstance(event, Pong):
            self._pongs += 1
        elif isinstance(event, Msg) and event.sid not in self._plain:
            if not self._echoes.take(event):
                self._handed[event.sid] += 1
                self._old.hand_on([event])
        else:
            self._held.append((now, event))
            if isinstance(event, Msg):
                self._bytes += len(event.data)

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
