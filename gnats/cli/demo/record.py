"""What happens during the demonstration, as the application sees it. Facts only; draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

import gnats


class Sample(NamedTuple):
    """One look at the application. Counts since the beginning; seconds."""

    time: float
    published: int
    delivered: int
    buffered: int
    connected: bool


class Event(NamedTuple):
    """Something that was called, or done to the servers."""

    time: float
    kind: str  #: "act", "server", "callback"
    text: str


@dataclass
class Readers:
    """Who got which numbers, in the order of their coming. A group shares the numbers."""

    name: str
    members: list[list[int]]

    @property
    def count(self) -> int:
        return sum(map(len, self.members))

    def missing(self, published: int) -> list[int]:
        return sorted(set(range(published)).difference(*self.members))

    @property
    def doubled(self) -> int:
        return self.count - len(set().union(*self.members))

    @property
    def is_group(self) -> bool:
        """Of a queue group NATS promises no order when a server changes."""
        return len(self.members) > 1

    @property
    def in_order(self) -> bool:
        """Of first arrivals: what comes twice under at-least-once comes late as well."""
        return all(_is_sorted(list(dict.fromkeys(numbers))) for numbers in self.members)


def _is_sorted(numbers: list[int]) -> bool:
    return all(first < second for first, second in zip(numbers, numbers[1:]))


@dataclass
class Dialled:
    """The attempts to reach one server."""

    attempts: int = 0
    failed: int = 0


@dataclass
class Record:
    """All of it."""

    began: float = field(default_factory=monotonic)
    act: str = ""
    act_number: int = 0
    acts: int = 0
    published: int = 0
    asked: int = 0
    answered: int = 0
    most_buffered: int = 0
    readers: list[Readers] = field(
        default_factory=lambda: [
            Readers("callback", [[]]),
            Readers("queue group", [[], []]),
            Readers("next_msg", [[]]),
        ]
    )
    dialled: dict[int, Dialled] = field(default_factory=dict)  #: by port
    events: list[Event] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    outages: list[list[float]] = field(default_factory=list)  #: [beginning, end], end may miss
    #: Numbers that the servers may have given to members of a group at a server that was dead.
    shadows: list[range] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stats: gnats.Stats | None = None

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self.began

    @property
    def delivered(self) -> int:
        """Of all readers together, so that one published message counts once per reader."""
        return sum(reader.count for reader in self.readers) // len(self.readers)

    def note(self, kind: str, text: str) -> None:
        self.events.append(Event(self.now, kind, text))

    def begin_act(self, text: str) -> None:
        self.act = text
        self.act_number += 1
        self.note("act", text)

    def dial(self, port: int) -> Dialled:
        return self.dialled.setdefault(port, Dialled())

    def in_shadow(self, number: int) -> bool:
        return any(number in shadow for shadow in self.shadows)

    def link_lost(self) -> None:
        self.outages.append([self.now])

    def link_found(self) -> None:
        if self.outages and len(self.outages[-1]) == 1:
            self.outages[-1].append(self.now)

    def sample(self, stats: gnats.Stats, connected: bool) -> None:
        self.most_buffered = max(self.most_buffered, 0 if connected else stats.buffered)
        self.samples.append(
            Sample(self.now, self.published, self.delivered, stats.buffered, connected)
        )
