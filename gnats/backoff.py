"""How long to wait: the delay between cycles of the pool, and one deadline for many steps.

Pure: no sleeping here, the clock and the randomness can be handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform

#: Seconds: thirty years, which is for ever; the timers of a loop overflow on much more.
LONGEST = 1e9

Clock = Callable[[], float]


@dataclass(frozen=True)
class Backoff:
    """The wait after each full cycle of the pool, in seconds.

    Flat at ``wait``; with ``max_wait`` set it doubles per cycle up to that. ``jitter`` is the
    top of a uniform random addition to every wait, so that a thousand clients of one dead
    server do not come back in the same instant.
    """

    wait: float
    max_wait: float | None = None
    jitter: float = 0.0

    def delay(self, cycle: int, random: Callable[[float, float], float] = uniform) -> float:
        """The wait after full cycle number *cycle* (the first is 1)."""
        base = self.wait
        if self.max_wait is not None:
            # 2**63 waits are past any max_wait; an unbounded exponent would overflow a float.
            base = min(self.max_wait, base * 2.0 ** min(cycle - 1, 63))
        return base + random(0.0, self.jitter)


class Deadline:
    """One moment that many steps share. ``None`` seconds: never."""

    __slots__ = ("_clock", "at", "seconds")

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self.at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Seconds left, never below zero; None when there is no end."""
        return None if self.at is None else max(0.0, self.at - self._clock())

    @property
    def expired(self) -> bool:
        return self.at is not None and self._clock() >= self.at
