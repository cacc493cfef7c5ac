"""What the model knows while it runs one list: of each message, subscription and call.

Here is also how a call is watched: none may last longer than its own bound.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent

import gnats
from gnats.errors import ConnectionClosedError

from . import audit
from .world import World

HUNG = 20.0  # seconds behind its own bound, after which a call is said to hang
LATE = 3.0  # seconds behind its own time-out that a call may return, on a busy machine
EARLY = 0.01  # seconds; libuv counts milliseconds
MOST_WRONG = 20  # findings of the auditor that are kept

Link = tuple[int, int]


class Violation(AssertionError):
    """The product, or the model, is wrong."""


class Trouble(Exception):
    """What our callbacks raise."""


@dataclass(frozen=True)
class Setup:
    """How one run is made, besides its operations."""

    keep: bool = False  # replay_unconfirmed
    kills: bool = False  # whether the server may be killed
    buf: int = 2_000_000  # reconnect_buf_size
    publish_timeout: float | None = None
    rcvbuf: int | None = None  # of the proxies
    patient: bool = False  # a silent link is borne for long: no time-out hides behind its loss
    late: bool = False  # retry_on_failed_connect, and the server cannot be reached at first
    # close, drain, leave, fall: the with block left by an error, twice: two drains at once,
    # hurry: a close while it drains, inside: a close in a callback
    ending: str = "close"
    in_fault: bool = False  # end without healing anything
    limits: bool = False  # give limits to subscriptions before the last messages to them
    storm: tuple[float, ...] = ()  # resets while it ends, each so many seconds behind the last
    way: str = "tcp"  # what the frames go over: tcp, tls or ws


class Topic:
    """One subject, what the outsider has told it, and who listens."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.told = 0
        self.seen: set[int] = set()
        self.subs: list[Sub] = []


class Sub:
    """A subscription and what is known of it."""

    def __init__(self, topic: Topic, kind: str, queue: str, max_msgs: int, lossy: bool) -> None:
        self.topic = topic
        self.kind = kind  # handler, concurrent, next, loop
        self.queue = queue
        self.max = max_msgs
        self.lossy = lossy  # with so small a queue that messages may be dropped
        self.leaves = False  # its handler ends it
        self.ended = False  # by us
        self.given_up = False  # and what it still had is nobody's
        self.real: gnats.Subscription
        self.seen: list[int] = []
        self.known_on: Link | None = None  # the link whose server surely knows it
        self.told: list[tuple[int, Link]] = []  # said by the outsider while it was known,
        self.routed: list[tuple[int, Link]] = []  # and surely processed by the server,
        self.required: set[int] = set()  # and confirmed by a flush behind it

    @property
    def is_live(self) -> bool:
        return not self.ended and not (self.max and self.real.received >= self.max)


class Job:
    """A watched call."""

    def __init__(self, name: str, greenlet: gevent.Greenlet[..., None], bound: float) -> None:
        self.name = name
        self.greenlet = greenlet
        self.deadline = monotonic() + bound + HUNG

    def check(self) -> None:
        """Wait for its end, until its bound."""
        self.greenlet.join(max(0.0, self.deadline - monotonic()))
        if not self.greenlet.dead:
            stack = "".join(traceback.format_stack(self.greenlet.gr_frame))
            raise Violation(f"{self.name} hangs:\n{stack}")


class Watch:
    """One connection under test, and all that is known of it."""

    def __init__(self, world: World, setup: Setup) -> None:
        self.world = world
        self.setup = setup
        self.wrong: list[str] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.jobs: list[Job] = []
        self.waiters: list[Job] = []  # calls without a time-out: they end with the connection
        self.topics: list[Topic] = []
        self.subs: list[Sub] = []
        self.changes = 0  # of the subscriptions
        self.moods: dict[str, str] = {}
        self.raised: list[str] = []  # by our callbacks and handlers
        self.numbers = itertools.count(1)
        self.place: dict[str, int] = {}  # accepted messages: subject to order of acceptance
        self.refused: set[str] = set()
        self.flushed: list[tuple[int, int]] = []  # so many accepted; of them, lost so far at most
        self.asked_sure = self.asked_maybe = 0
        self.ending = False
        self.conn: gnats.Connection
        self.books: audit.Books

    # -- looking --------------------------------------------------------------------------

    def _audit_on(self) -> None:
        while True:
            if len(self.wrong) < MOST_WRONG:
                self._audit()
            gevent.sleep(0.002)

    def _audit(self) -> None:
        self.wrong.extend(self.books.audit())
        accepted, known = self.conn.stats.accepted, len(self.place) + self.asked_sure
        if not known <= accepted <= known + self.asked_maybe:
            self.wrong.append(
                f"{accepted} are accepted, and not {known} to {known + self.asked_maybe}"
            )

    def _look(self) -> None:
        self._audit()
        if self.wrong:
            raise Violation("\n".join(dict.fromkeys(self.wrong)))

    def _expect(self, condition: object, what: str) -> None:
        if not condition:
            self.wrong.append(what)

    def link(self) -> Link | None:
        """Which link is up, if one is."""
        stats = self.conn.stats
        up = self.conn.is_connected and stats.connects == stats.disconnects + 1
        return (stats.connects, stats.disconnects) if up else None

    # -- watched calls --------------------------------------------------------------------

    def _go(self, name: str, bound: float, wait: bool, call: Callable[..., Any], *args: Any) -> Job:
        job = Job(name, gevent.spawn(self._guarded, name, call, *args), bound)
        if wait:
            job.check()
        else:
            self.jobs.append(job)
        return job

    def _guarded(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except ConnectionClosedError as exc:
            self._expect(self.ending, f"{name}: {exc!r} before the end")
        except Exception as exc:
            trace = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
            self.wrong.append(f"{name} raised {exc!r}\n{trace}")

    def _within(self, name: str, timeout: float | None, began: float) -> None:
        took = monotonic() - began
        self._expect(
            timeout is None or took <= timeout + LATE, f"{name}({timeout}) took {took:.3f} s"
        )

    def _timed_out(self, name: str, timeout: float | None, began: float) -> None:
        took = monotonic() - began
        on_time = timeout is not None and took >= timeout - EARLY
        self._expect(on_time, f"{name}({timeout}) timed out after {took:.3f} s")
