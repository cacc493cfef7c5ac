"""The application under test: it uses the public face of gnats, and writes down all that it sees.

It keeps no exception and no object of gnats beyond its end: leftovers are counted then.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Callable

import gevent

import gnats
from gnats.errors import Error

from .numbering import numbered
from .peers import Journal

CALL_TIMEOUT = 1.0  # seconds, of each request and flush
DRAIN_TIMEOUT = 6.0
SUBSCRIPTIONS = 2000  # of the restore
CHURNED = 20  # subjects of those that come and go
# Three dozen messages of that size, and publishers wait for room.
PADDING = b"\n" + b"x" * 32 * 1024

OPTIONS: dict[str, Any] = {
    "ping_interval": 0.1,
    "max_pings_out": 2,
    "connect_timeout": 0.5,
    "write_timeout": 0.5,
    "reconnect_wait": 0.05,
    "reconnect_jitter": 0.02,
    "max_reconnect": -1,
    "drain_timeout": DRAIN_TIMEOUT,
}


@dataclass
class Call:
    """One call that waits: what became of it."""

    name: str
    timeout: float
    began: float = field(default_factory=monotonic)
    outcome: str = "in flight"
    seconds: float = 0.0


@dataclass
class Settlement:
    """The books when a link had died: what of them is final."""

    sent: int
    uncertain: int
    dropped: int


class App:
    """One connection and its work. ``subject`` is what it publishes to."""

    def __init__(
        self, urls: list[str], name: str, mode: str, patient: bool, rng: random.Random
    ) -> None:
        self.name = name
        self.rng = rng
        self.conn: gnats.Connection | None = None
        self.moves: list[tuple[float, str, str]] = []
        self.callbacks: list[tuple[float, str]] = []
        self.errors: list[str] = []
        self.books_open: list[str] = []  # moments at which the books did not close
        self.audits = 0
        self.settlements: list[Settlement] = []
        self.calls: list[Call] = []
        self.published: dict[int, float] = {}  # when each number was accepted
        self.refused: Counter[str] = Counter()  # publishes that were not accepted, by error
        self.order: dict[int, int] = {}  # the place of each number among all that was accepted
        self._numbers = itertools.count()
        self.subscribed: Counter[str] = Counter()  # what the server must know of us in the end
        self.feed = Journal()
        self.wrong: list[str] = []  # what must not happen at all
        self.wrong_answers = 0
        self.strays = 0  # deliveries for subscriptions that had ended
        self.working = True
        self.final: gnats.Stats | None = None
        self._work: list[gevent.Greenlet[..., Any]] = []
        self._options = gnats.ConnectionOptions(
            servers=urls,
            reconnect=gnats.ReconnectOptions(
                max_reconnect=OPTIONS["max_reconnect"],
                reconnect_wait=OPTIONS["reconnect_wait"],
                reconnect_jitter=OPTIONS["reconnect_jitter"],
                replay_unconfirmed=mode != "default",
                retry_on_failed_connect=True,
                ignore_auth_error_abort=patient,
            ),
            callbacks=gnats.Callbacks(
                status_cb=self._on_move,
                error_cb=lambda _conn, error: self.errors.append(type(error).__name__),
                **{name: self._hears(name) for name in _LIFE},
            ),
            **{name: OPTIONS[name] for name in _PLAIN},
        )

    # -- its life -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to connect, in the background, and subscribe."""
        self.conn = gnats.Connection(self._options).connect()
        subject = f"feed.{self.name}"
        self.conn.subscribe(subject, cb=lambda msg: self.feed.note(msg.data))
        self.subscribed[subject] += 1
        self.work(self._audit)

    def wait_connected(self, timeout: float = 10.0) -> None:
        assert self.conn is not None
        self.conn.wait_for_status("connected", timeout)
        self.call("flush", timeout, lambda conn: conn.flush(timeout), count=False)

    def settle(self, timeout: float) -> bool:
        """All that is accepted now is sent, and the server has it; False when time runs out."""
        deadline = monotonic() + timeout
        while monotonic() < deadline and not self.is_closed:
            if self.call("flush", 1.0, lambda conn: conn.flush(1.0), count=False) == "ok":
                return True
        return False

    def rest(self) -> None:
        """No new work; what is under way comes to its end."""
        self.working = False
        gevent.joinall(self._work, timeout=10.0)
        left = [one for one in self._work if not one.dead]
        if left:
            self.wrong.append(f"{len(left)} calls hang")
            gevent.killall(left)
        self._work = []

    def leave(self) -> None:
        """Let go of everything of gnats."""
        if self.conn is not None:
            self.final = self.conn.stats
            self._check_books()
        self.conn = None
        self._options = None  # type: ignore[assignment]

    @property
    def is_connected(self) -> bool:
        return self.conn is not None and self.conn.is_connected

    @property
    def is_closed(self) -> bool:
        return self.conn is None or self.conn.is_closed

    def losses(self) -> int:
        return sum(name == "disconnected_cb" for _, name in self.callbacks)

    # -- work, each in a greenlet of its own --------------------------------------------------

    def work(self, run: Callable[[], None]) -> None:
        self._work.append(gevent.spawn(run))

    def publish_one(self, padding: bytes = b"") -> int | None:
        """Publish the next number, and return it; None when it was refused. It may wait."""
        number, conn = next(self._numbers), self.conn
        if conn is None:
            return None
        try:
            conn.publish(f"numbers.{self.name}", numbered(number) + padding)
        except Error as exc:
            self.refused[type(exc).__name__] += 1
            return None
        # No switch since the message was accepted: it is the last one that was.
        self.published[number] = monotonic()
        self.order[number] = conn.stats.accepted - 1
        return number

    def flood(self) -> None:
        while self.working and not self.is_closed:
            burst = 300 if self.rng.random() < 0.02 else self.rng.randrange(1, 30)
            for _ in range(burst):
                if self.publish_one() is None:
                    break
            gevent.sleep(0.002)

    def press(self) -> None:
        """As much as it takes, so that publishers wait for room."""
        while self.working and not self.is_closed:
            if self.publish_one(PADDING) is None:
                gevent.sleep(0.01)

    def trickle(self) -> None:
        while self.working and not self.is_closed:
            self.publish_one()
            gevent.sleep(0.005)

    def request_on(self) -> None:
        count = 0
        while self.working and not self.is_closed:
            count += 1
            self._request(f"{id(gevent.getcurrent())}-{count}".encode())

    def _request(self, question: bytes) -> None:
        def ask(conn: gnats.Connection) -> None:
            answer = conn.request(f"ask.{self.name}", question, timeout=CALL_TIMEOUT)
            if answer.data != question:
                self.wrong_answers += 1

        if self.call("request", CALL_TIMEOUT, ask) != "ok":
            gevent.sleep(0.005)

    def flush_on(self) -> None:
        while self.working and not self.is_closed:
            for _ in range(self.rng.randrange(20)):
                self.publish_one()
            if self.call("flush", CALL_TIMEOUT, lambda conn: conn.flush(CALL_TIMEOUT)) != "ok":
                gevent.sleep(0.005)

    def churn(self) -> None:
        """Subscriptions come and go; those that have ended may get nothing more."""
        subs: list[gnats.Subscription] = []
        while self.working and not self.is_closed:
            for _ in range(self.rng.randrange(1, 8)):
                if self.is_closed:
                    return
                if subs and self.rng.random() < 0.5:
                    self._end(subs.pop(self.rng.randrange(len(subs))))
                else:
                    subs.append(self._churned(len(subs)))
            self.publish_one()
            gevent.sleep(0.003)

    def _churned(self, count: int) -> gnats.Subscription:
        assert self.conn is not None
        holder: list[gnats.Subscription] = []

        def on_message(_msg: gnats.Msg) -> None:
            if holder[0].is_closed:
                self.strays += 1

        subject = f"churn.{self.name}.{count % CHURNED}"
        sub = self.conn.subscribe(subject, cb=on_message)
        holder.append(sub)
        self.subscribed[subject] += 1
        return sub

    def _end(self, sub: gnats.Subscription) -> None:
        self.subscribed[sub.subject] -= 1
        sub.unsubscribe()

    def subscribe_limited(self) -> None:
        """Subscriptions that end after so many messages, over however many links these come."""
        assert self.conn is not None
        for number in range(CHURNED):
            self._limited(number % 3 + 2, f"churn.{self.name}.{number}")

    def _limited(self, limit: int, subject: str) -> None:
        assert self.conn is not None
        came: list[bytes] = []

        def on_message(msg: gnats.Msg) -> None:
            came.append(msg.data)
            if len(came) == limit:
                self.subscribed[subject] -= 1
            if len(came) == limit + 1:
                self.wrong.append(f"more than {limit} messages for a subscription to so many")

        self.subscribed[subject] += 1
        self.conn.subscribe(subject, cb=on_message, max_msgs=limit)

    def subscribe_many(self) -> None:
        assert self.conn is not None
        for number in range(SUBSCRIPTIONS):
            subject = f"many.{self.name}.{number}"
            self.conn.subscribe(subject, cb=_ignore)
            self.subscribed[subject] += 1

    def call(
        self,
        name: str,
        timeout: float,
        run: Callable[[gnats.Connection], Any],
        count: bool = True,
    ) -> str:
        """Call something that waits, and note what became of it: "ok", or the error's name."""
        entry = Call(name, timeout)
        if count:
            self.calls.append(entry)
        if self.conn is None:
            return "over"
        try:
            run(self.conn)
            entry.outcome = "ok"
        except Error as exc:
            entry.outcome = type(exc).__name__
        entry.seconds = monotonic() - entry.began
        return entry.outcome

    # -- what it sees -------------------------------------------------------------------------

    def _on_move(self, _conn: gnats.Connection, old: Any, new: Any) -> None:
        self.moves.append((monotonic(), str(old), str(new)))

    def _hears(self, name: str) -> Callable[[gnats.Connection], None]:
        def callback(conn: gnats.Connection) -> None:
            self.callbacks.append((monotonic(), name))
            self._check_books()
            if name in ("disconnected_cb", "closed_cb"):
                stats = conn.stats
                self.settlements.append(Settlement(stats.sent, stats.uncertain, stats.dropped))

        return callback

    def _audit(self) -> None:
        while self.working and not self.is_closed:
            self._check_books()
            gevent.sleep(self.rng.random() * 0.02)

    def _check_books(self) -> None:
        if self.conn is None:
            return
        stats = self.conn.stats
        self.audits += 1
        settled = stats.sent + stats.uncertain + stats.dropped + stats.buffered
        parts = (stats.sent, stats.uncertain, stats.dropped, stats.buffered)
        if stats.accepted != settled or min(parts) < 0:
            self.books_open.append(repr(stats))

    # -- the books, read ----------------------------------------------------------------------

    def fates(self) -> Iterator[tuple[int, str]]:
        """Each number, and what the books say became of it: "sent", "uncertain" or "dropped".

        Call it when the connection is closed. Messages are settled in the order of their
        acceptance, so the counts at each loss tell which ones they are.
        """
        words: list[str] = []
        sent = uncertain = dropped = 0
        for one in self.settlements:
            words += ["sent"] * (one.sent - sent)
            words += ["uncertain"] * (one.uncertain - uncertain)
            words += ["dropped"] * (one.dropped - dropped)
            sent, uncertain, dropped = one.sent, one.uncertain, one.dropped
        for number, place in self.order.items():
            yield number, words[place] if place < len(words) else "unsettled"


_LIFE = (
    "connected_cb",
    "disconnected_cb",
    "reconnected_cb",
    "closed_cb",
    "discovered_servers_cb",
    "lame_duck_cb",
)
_PLAIN = ("ping_interval", "max_pings_out", "connect_timeout", "write_timeout", "drain_timeout")


def _ignore(_msg: gnats.Msg) -> None:
    """Idle subscriptions: nothing comes."""
