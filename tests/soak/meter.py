"""What this process holds, and whether it grows. Counts only; Linux and what looks like it."""

from __future__ import annotations

import gc
import os
import sys
from itertools import combinations
from statistics import median
from typing import NamedTuple

import greenlet

PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """At one quiet point."""

    minute: float
    memory: int  # bytes, resident; 0 where the system does not tell
    blocks: int  # of Python's allocator
    descriptors: int
    greenlets: int


class Limit(NamedTuple):
    """How much a figure may grow over the second half of a run."""

    unit: str
    growth: float
    divisor: float = 1.0
    digits: int = 0


# Memory comes in pages, and an arena more is no leak; caches fill up with as many entries as they
# may have. A leak of 100 bytes for each message would be 50 MB in five minutes, and 500,000
# blocks. The others count things that are there or not.
LIMITS = {
    "memory": Limit("MB", 4_000_000, 1e6, 1),
    "blocks": Limit("blocks", 10_000),
    "descriptors": Limit("descriptors", 1),
    "greenlets": Limit("greenlets", 1),
}
FEWEST = 8  # samples; with fewer there is no trend to speak of


def take(minute: float) -> Sample:
    """Count, after the garbage is gone."""
    for _ in range(3):
        gc.collect()
    greenlets = [one for one in gc.get_objects() if isinstance(one, greenlet.greenlet)]
    alive = sum(1 for one in greenlets if not one.dead)
    return Sample(minute, _resident(), sys.getallocatedblocks(), _descriptors(), alive)


def growth(samples: list[Sample], figure: str) -> float | None:
    """Over the second half: the median of all slopes between two samples, times its length.

    A few samples that lie beside the line do not move it. None: too few samples.
    """
    if len(samples) < FEWEST:
        return None
    second = samples[len(samples) // 2 :]
    slopes = [
        (getattr(late, figure) - getattr(early, figure)) / (late.minute - early.minute)
        for early, late in combinations(second, 2)
    ]
    return median(slopes) * (second[-1].minute - second[0].minute)


def findings(samples: list[Sample]) -> list[str]:
    """What has grown beyond its limit."""
    found = []
    for figure, limit in LIMITS.items():
        more = growth(samples, figure)
        if more is not None and more > limit.growth:
            found.append(
                f"{figure}: grew by {more / limit.divisor:.1f} {limit.unit} over the second half, "
                f"the limit is {limit.growth / limit.divisor:g}"
            )
    return found


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def _descriptors() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0
