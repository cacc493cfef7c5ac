"""Delays and deadlines, with a clock and a randomness of our own."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats.backoff import Backoff, Deadline

pytestmark = pytest.mark.sansio


def lowest(low: float, high: float) -> float:
    return low


def highest(low: float, high: float) -> float:
    return high


def test_flat() -> None:
    backoff = Backoff(2.0)
    assert [backoff.delay(cycle) for cycle in (1, 2, 3, 100, 10**9)] == [2.0] * 5


def test_doubling_up_to_the_top() -> None:
    backoff = Backoff(0.5, max_wait=5.0)
    assert [backoff.delay(cycle) for cycle in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_top_that_is_the_wait_is_flat() -> None:
    assert [Backoff(2.0, 2.0).delay(cycle) for cycle in (1, 2, 9)] == [2.0] * 3


@pytest.mark.parametrize("cycle", [64, 65, 1025, 10**6, 10**100])
def test_no_cycle_overflows(cycle: int) -> None:
    assert Backoff(0.001, 30.0).delay(cycle) == 30.0
    assert Backoff(0.0, 30.0).delay(cycle) == 0.0


def test_jitter_is_added_to_every_wait_from_zero_to_its_top() -> None:
    asked: list[tuple[float, float]] = []

    def random(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.25

    backoff = Backoff(1.0, 4.0, jitter=0.5)
    assert [backoff.delay(cycle, random) for cycle in (1, 2, 3, 4)] == [1.25, 2.25, 4.25, 4.25]
    assert asked == [(0.0, 0.5)] * 4


@given(
    wait=st.floats(0, 100),
    more=st.one_of(st.none(), st.floats(0, 1000)),
    jitter=st.floats(0, 10),
    cycle=st.integers(1, 10**6),
)
def test_bounds(wait: float, more: float | None, jitter: float, cycle: int) -> None:
    top = None if more is None else wait + more
    backoff = Backoff(wait, top, jitter)
    least, most = backoff.delay(cycle, lowest), backoff.delay(cycle, highest)
    assert wait <= least <= backoff.delay(cycle) <= most
    assert most == least + jitter
    assert least <= (wait if top is None else top)
    assert math.isfinite(most)


def test_real_jitter_spreads() -> None:
    delays = {Backoff(1.0, jitter=1.0).delay(1) for _ in range(100)}
    assert len(delays) > 90
    assert max(delays) - min(delays) > 0.3


def test_backoff_is_a_value() -> None:
    assert Backoff(1.0, 2.0, 0.1) == Backoff(1.0, 2.0, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Backoff(1.0).wait = 2.0  # type: ignore[misc]


# -- deadlines ---------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_deadline_counts_down_and_stops_at_zero() -> None:
    clock = Clock()
    deadline = Deadline(5.0, clock)
    assert deadline.seconds == 5.0
    assert deadline.remaining() == 5.0
    clock.now += 2.0
    assert deadline.remaining() == 3.0
    assert not deadline.expired
    clock.now += 3.0
    assert deadline.remaining() == 0.0
    assert deadline.expired
    clock.now += 1000.0
    assert deadline.remaining() == 0.0
    assert deadline.expired


def test_no_deadline_never_expires() -> None:
    clock = Clock()
    deadline = Deadline(None, clock)
    clock.now += 1e12
    assert deadline.seconds is None
    assert deadline.remaining() is None
    assert not deadline.expired


def test_zero_seconds_are_over_at_once() -> None:
    deadline = Deadline(0.0, Clock())
    assert deadline.expired
    assert deadline.remaining() == 0.0


def test_negative_seconds_are_over_at_once() -> None:
    assert Deadline(-1.0, Clock()).remaining() == 0.0


def test_the_clock_is_monotonic_by_default() -> None:
    before = time.monotonic()
    remaining = Deadline(50.0).remaining()
    assert remaining is not None
    assert 50.0 - (time.monotonic() - before) - 1e-6 <= remaining <= 50.0
