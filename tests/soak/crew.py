"""Who lives on the field: publishers, readers, a service and who asks it, and a crowd of
subscriptions. Each keeps its own account, and says at a quiet point what is wrong with it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent

import gnats
from gnats.errors import Error, FlushInterruptedError, OutboundBufferLimitError
from gnats.testing import wait_until

from .ledger import Ledger

PATIENCE = 30.0  # seconds for what should take less than one
PAUSE = 0.06  # seconds at most between two bursts: some 500 messages a second and publisher
SIZES = [0, 50, 500, 3_000, 40_000]  # of payloads, bytes
OFTEN = [8, 8, 8, 3, 1]

OPTIONS: dict[str, Any] = {
    "max_reconnect": -1,
    "reconnect_wait": 0.1,
    "reconnect_jitter": 0.05,
    "ping_interval": 0.5,
    "max_pings_out": 2,
    "write_timeout": 1.0,
    "connect_timeout": 1.0,
}


Connect = Callable[..., gnats.Connection]  # where to, and over what, is settled


class Gate:
    """Open: everyone works. Shut: everyone comes to rest at it."""

    def __init__(self) -> None:
        self.is_open = False
        self._resting = 0

    @property
    def resting(self) -> int:
        return self._resting

    def go_through(self) -> None:
        """Return when it is open. Switches when it is not."""
        self._resting += 1
        try:
            while not self.is_open:
                gevent.sleep(0.01)
        finally:
            self._resting -= 1


class Member:
    """One connection and the greenlets that work with it."""

    def __init__(self, name: str, gate: Gate, connect: Connect, **options: Any) -> None:
        self.name = name
        self.gate = gate
        self.wrong: list[str] = []  # found on the way; a quiet point takes it
        self.errors: Counter[str] = Counter()
        self.longest_outage = 0.0  # seconds
        self._lost_at = monotonic()
        self.conn = connect(
            name=name,
            error_cb=lambda _, error: self.errors.update([type(error).__name__]),
            disconnected_cb=self._lost,
            reconnected_cb=self._back,
            **{**OPTIONS, **options},
        )
        self.greenlets = [gevent.spawn(self._audit)]

    def work(self, *jobs: Callable[[], None]) -> None:
        self.greenlets += [gevent.spawn(job) for job in jobs]

    @property
    def workers(self) -> int:
        """How many greenlets come to rest at the gate."""
        return len(self.greenlets) - 1

    def settle(self) -> None:
        """Wait until it is connected, and the server has taken what it had to say."""
        deadline = monotonic() + PATIENCE
        while True:
            if not self.conn.wait_for_status("connected", PATIENCE):
                raise AssertionError(f"{self.name} did not come back: {self.conn.last_error}")
            try:
                self.conn.flush(PATIENCE)
                return
            except FlushInterruptedError:
                if monotonic() > deadline:
                    raise

    def reckon(self, calm: bool) -> Iterator[str]:
        """What is wrong, at a quiet point. *calm*: since the last one no server was hurt."""
        yield from self.wrong
        self.wrong.clear()

    def close(self) -> Iterator[str]:
        """Drain, and say what is wrong with the books of the whole life."""
        gevent.killall(self.greenlets)
        try:
            self.conn.drain(PATIENCE)
        except Error as error:
            yield f"drain: {error!r}"
            self.conn.close()
        stats = self.conn.stats
        if stats.accepted != stats.sent + stats.uncertain or stats.dropped or stats.buffered:
            yield f"the last books: {stats}"

    def _lost(self, _: gnats.Connection) -> None:
        self._lost_at = monotonic()

    def _back(self, _: gnats.Connection) -> None:
        self.longest_outage = max(self.longest_outage, monotonic() - self._lost_at)

    def _audit(self) -> None:
        while True:
            stats = self.conn.stats
            if stats.accepted != stats.sent + stats.uncertain + stats.dropped + stats.buffered:
                self.wrong.append(f"the books do not close: {stats}")
            gevent.sleep(0.02)


class Publisher(Member):
    """Publishes 1, 2, 3, ..., reads them itself, and lets another read them, too.

    What the server confirms to it, it has been given before, over the same link: so its own
    reading is a strict account, whatever happens to servers. The other reader may miss what a
    server took with it, or what came while it changed servers: in a calm time it may not.
    """

    def __init__(
        self,
        name: str,
        gate: Gate,
        connect: Connect,
        other: gnats.Connection,
        rng: random.Random,
        keep: bool,
    ) -> None:
        super().__init__(name, gate, connect, replay_unconfirmed=keep)
        self.keep = keep
        self.published = self.refused = 0
        self.own, self.others = Ledger(), Ledger()
        self.lost = 0  # of its own reading
        self.lost_beside: Counter[str] = Counter()  # of the other's, in calm and in rough times
        self._rng = rng
        self.sub = self.conn.subscribe(name, cb=lambda msg: self.own.take(number_of(msg.data)))
        other.subscribe(name, cb=lambda msg: self.others.take(number_of(msg.data)))
        self.work(self._publish)

    def _publish(self) -> None:
        while True:
            self.gate.go_through()
            for _ in range(self._rng.randrange(1, 40)):
                self._publish_one()
            gevent.sleep(self._rng.random() * PAUSE)

    def _publish_one(self) -> None:
        size = self._rng.choices(SIZES, OFTEN)[0]
        try:
            self.conn.publish(self.name, b"%d:" % (self.published + 1) + b"x" * size)
        except OutboundBufferLimitError:
            self.refused += 1
            gevent.sleep(0.05)
        else:
            self.published += 1

    def reckon(self, calm: bool) -> Iterator[str]:
        yield from super().reckon(calm)
        missing = self.own.missing(self.published)
        yield from self._reckon_own(missing)
        yield from self._reckon_others(missing, "calm" if calm else "rough")

    @property
    def is_read_by_all(self) -> bool:
        """Whether the other reader has all that we have read."""
        return self.others.missing(self.published) <= self.own.missing(self.published)

    def _reckon_own(self, missing: set[int]) -> Iterator[str]:
        stats = self.conn.stats
        self.own.forgive(missing)
        self.lost += len(missing)
        if stats.accepted != self.published:
            yield f"published {self.published}, accepted {stats.accepted}"
        if stats.buffered or stats.dropped:
            yield f"not empty at a quiet point: {stats}"
        if stats.in_dropped:
            yield f"{stats.in_dropped} messages that came were dropped"
        if self.keep and missing:
            yield f"at least once lost {len(missing)}, the first is {min(missing)}"
        if self.keep and (stats.uncertain or self.own.doubled > stats.replayed):
            yield f"{stats.uncertain} uncertain, {self.own.doubled} doubled: {stats}"
        if not self.keep and self.own.doubled:
            yield f"at most once doubled {self.own.doubled}"
        if not self.keep and self.lost + self.own.late > stats.uncertain:
            yield f"lost {self.lost}, late {self.own.late}, uncertain only {stats.uncertain}"

    def _reckon_others(self, never_came: set[int], times: str) -> Iterator[str]:
        """What has come to us must have come to the other reader as well."""
        missing = self.others.missing(self.published)
        self.others.forgive(missing)
        self.lost_beside[times] += len(missing - never_came)
        if self.lost_beside["calm"]:
            yield f"the reader beside lost {self.lost_beside['calm']} while no server was hurt"
        if not self.keep and self.others.doubled:
            yield f"at most once doubled {self.others.doubled} for the reader beside"


def number_of(payload: bytes) -> int:
    return int(payload.partition(b":")[0])


class Asker(Member):
    """Asks a service that lives on another connection."""

    def __init__(self, name: str, gate: Gate, connect: Connect, rng: random.Random) -> None:
        super().__init__(name, gate, connect)
        self.answered = self.unanswered = self.misled = 0
        self._rng = rng
        self.work(self._ask, self._ask)

    def _ask(self) -> None:
        while True:
            self.gate.go_through()
            self.ask(0.5)
            # Not more: the service keeps the heads of the last 8192 subjects that it answered to,
            # and they are blocks that grow in number, for a while.
            gevent.sleep(self._rng.random())

    def ask(self, timeout: float) -> bool:
        question = b"%d" % self._rng.randrange(1 << 40)
        try:
            answer = self.conn.request("soak.ask", question, timeout=timeout).data
        except Error:  # nobody there, or no answer in time, or too much waits to be sent
            self.unanswered += 1
            return False
        if answer != question:
            self.misled += 1
            self.wrong.append(f"asked {question!r}, the answer was {answer!r}")
        self.answered += 1
        return True

    def reckon(self, calm: bool) -> Iterator[str]:
        yield from super().reckon(calm)
        # Servers tell each other who listens where a moment later.
        try:
            wait_until(lambda: self.ask(1.0), PATIENCE)
        except AssertionError:
            yield "nobody answers at a quiet point"
            return
        if not all(self.ask(PATIENCE) for _ in range(10)):
            yield "not everything is answered at a quiet point"


class Service(Member):
    """Answers, as one of a queue group."""

    def __init__(self, name: str, gate: Gate, connect: Connect) -> None:
        super().__init__(name, gate, connect)
        self.conn.subscribe("soak.ask", queue="service", cb=lambda msg: msg.respond(msg.data))


class Crowd(Member):
    """Some hundred subscriptions, of which always some are given up and others made."""

    def __init__(
        self, name: str, gate: Gate, connect: Connect, rng: random.Random, count: int
    ) -> None:
        super().__init__(name, gate, connect)
        self.changes = 0
        self.roll_calls = 0  # at which each was there, once
        self._rng = rng
        self._heard: Counter[str] = Counter()
        self._subs: list[gnats.Subscription] = []
        self._free = [f"crowd.{number}" for number in range(2 * count)]
        for _ in range(count):
            self._subscribe()
        self.work(self._change)

    def _subscribe(self) -> None:
        subject = self._free.pop(self._rng.randrange(len(self._free)))
        self._subs.append(self.conn.subscribe(subject, cb=self._hear))

    def _unsubscribe(self) -> None:
        sub = self._subs.pop(self._rng.randrange(len(self._subs)))
        self._free.append(sub.subject)
        sub.unsubscribe()

    def _hear(self, msg: gnats.Msg) -> None:
        self._heard[msg.subject] += 1

    def _change(self) -> None:
        while True:
            self.gate.go_through()
            self._unsubscribe()
            self._subscribe()
            self.changes += 1
            gevent.sleep(self._rng.random() * 0.2)

    def reckon(self, calm: bool) -> Iterator[str]:
        """The roll call: a message to every subject there is, or was."""
        yield from super().reckon(calm)
        self._heard.clear()
        for subject in [*self._free, *(sub.subject for sub in self._subs)]:
            self.conn.publish(subject)
        self.settle()
        try:
            wait_until(lambda: not any(sub.pending_msgs for sub in self._subs), PATIENCE)
        except AssertionError:
            yield "the crowd does not read"
        if self._heard == Counter(sub.subject for sub in self._subs):
            self.roll_calls += 1
        else:
            heard = sum(self._heard.values())
            yield f"{len(self._subs)} subscribed, {heard} heard the roll call"
        self._heard.clear()


class Reader(Member):
    """Reads what the publishers publish, straight at the servers: no proxy hurts its link."""
