"""How a run goes: trouble for a while, then a quiet point; and what was found."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import gevent.event

from gnats.testing import wait_until

from . import meter
from .crew import PATIENCE, Asker, Crowd, Gate, Member, Publisher, Reader, Service
from .field import Field, Undo, hold

CROWD = 300
# Seconds that messages from one server to another may take at a quiet point, in calm times or when
# servers went: then some will never come.
LATE = {True: 10.0, False: 2.0}
WINDOW = 20.0  # seconds between two quiet points, or a sixth of a short run


class Course:
    """One run. `findings` is what is off; nothing in it: the promise is kept."""

    def __init__(
        self, seed: str, minutes: float, say: Callable[[str], None], tls: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.seconds = minutes * 60
        self.say = say
        self.stop = gevent.event.Event()  # set: end now, with all accounts settled
        self.field = Field(self.rng, tls)
        self.gate = Gate()
        self.crew: list[Member] = []
        self.samples: list[meter.Sample] = []
        self.findings: list[str] = []
        self.quiet_points = 0
        self.faults = 0
        self.began = monotonic()

    # -- the whole ----------------------------------------------------------------------------

    def run(self) -> None:
        """From the first connection to the last books."""
        with self.field, _Witness(self.found):
            self.began = monotonic()
            self._assemble()
            self._quiet_point(calm=True)
            self._live()
            self._part()
        for finding in meter.findings(self.samples):
            self.found(finding)

    def found(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)
            self.say(f"{self.passed:7.1f} s  FOUND {finding}")

    @property
    def passed(self) -> float:
        return monotonic() - self.began

    def _assemble(self) -> None:
        field, gate, rng = self.field, self.gate, self.rng
        reader = Reader("reader", gate, field.straight(), ignore_discovered_servers=True)
        self.crew.append(reader)
        for index in range(4):
            keep = index % 2 == 0
            name = f"{'kept' if keep else 'plain'}-{index // 2 + 1}"
            own_rng = random.Random(rng.random())
            way = field.way(index % 3)
            self.crew.append(Publisher(name, gate, way, reader.conn, own_rng, keep))
        self.crew += [
            Service("service-1", gate, field.way(0)),
            Service("service-2", gate, field.way(1)),
            Asker("asker", gate, field.way(2), random.Random(rng.random())),
            Crowd("crowd", gate, field.way(1), random.Random(rng.random()), CROWD),
        ]

    def _live(self) -> None:
        window = min(WINDOW, self.seconds / 6)
        calm = True
        while self.passed + window / 2 < self.seconds and not self.stop.is_set():
            self._trouble(min(window, self.seconds - self.passed), calm)
            self._quiet_point(calm)
            calm = not calm

    def _part(self) -> None:
        # Publishers first: who reads them must be there until the last is read.
        for member in reversed(self.crew):
            self._hear(member, member.close())

    # -- trouble ------------------------------------------------------------------------------

    def _trouble(self, seconds: float, calm: bool) -> None:
        """Work, and faults: of the network only in calm times, else of servers, too."""
        self.gate.is_open = True
        until = monotonic() + seconds
        while monotonic() < until and not self.stop.is_set():
            self.stop.wait(min(self.rng.uniform(0.3, 3.0), until - monotonic()))
            self._hurt(calm)
        self.gate.is_open = False

    def _hurt(self, calm: bool) -> None:
        """One fault, or two at once."""
        undo: list[Undo] = []
        for _ in range(self.rng.choice([1, 1, 2])):
            self.faults += 1
            undo.append(self.field.hurt(with_servers=not calm)[1])
        hold(self.rng.choice([0.1, 1.0, 4.0]) * self.rng.random(), undo)

    # -- peace --------------------------------------------------------------------------------

    def _quiet_point(self, calm: bool) -> None:
        """All healed, all at rest, all settled; then everyone is heard, and counted."""
        self.field.heal()
        for member in self.crew:
            member.settle()
        workers = sum(member.workers for member in self.crew)
        self._wait(lambda: self.gate.resting == workers, "everyone to come to rest")
        self._settle(LATE[calm])
        for member in self.crew:
            self._hear(member, member.reckon(calm))
        self.quiet_points += 1
        self._count(calm)

    def _settle(self, late: float) -> None:
        """Until the last byte of the last dead link has arrived, or never will."""
        for member in self.crew:
            member.settle()
        self._wait(lambda: self.field.connections() == len(self.crew), "the end of old links")
        # First the publishers, then who reads them.
        for member in reversed(self.crew):
            member.settle()
        publishers = [one for one in self.crew if isinstance(one, Publisher)]
        self._wait(lambda: not any(one.sub.pending_msgs for one in publishers), "own reading")
        with gevent.Timeout(late, False):
            while not all(one.is_read_by_all for one in publishers):
                gevent.sleep(0.01)

    def _count(self, calm: bool) -> None:
        self.field.renew_proxies()
        for member in self.crew:
            member.settle()
        sample = meter.take(self.passed / 60)
        self.samples.append(sample)
        published = sum(one.published for one in self.crew if isinstance(one, Publisher))
        self.say(
            f"{self.passed:7.1f} s  quiet after {'calm' if calm else 'rough'} times: {self.faults} "
            f"faults, {published} messages, {sample.memory / 1e6:.1f} MB, {sample.blocks} blocks, "
            f"{sample.descriptors} descriptors, {sample.greenlets} greenlets"
        )

    def _hear(self, member: Member, words: Any) -> None:
        for finding in words:
            self.found(f"{member.name}: {finding}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, PATIENCE, what)
        except AssertionError as error:
            self.found(str(error))


class _Witness(logging.Handler):
    """Hears what nobody is told: internal errors in the log, greenlets that died of one."""

    def __init__(self, found: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._found = found
        self._logger = logging.getLogger("gnats")
        self._hub: Any = gevent.get_hub()

    def emit(self, record: logging.LogRecord) -> None:
        self._found(f"the log: {record.getMessage()}")

    def __enter__(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False
        hub_handles = self._hub.handle_error

        def handle_error(context: object, kind: Any, value: Any, trace: Any) -> None:
            if not issubclass(kind, self._hub.NOT_ERROR):
                self._found(f"a greenlet died: {value!r} in {context!r}")
            hub_handles(context, kind, value, trace)

        self._hub.handle_error = handle_error

    def __exit__(self, *_: object) -> None:
        del self._hub.handle_error
        self._logger.propagate = True
        self._logger.removeHandler(self)
