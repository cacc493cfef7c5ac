"""Park and Line: a wake-up is never lost, never doubled, and nothing is held behind it."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest

from gnats import errors
from gnats.waiting import Line, Park, check_timeout, in_hub, turn

SLACK = 0.7


def test_a_park_is_woken() -> None:
    park = Park()
    gevent.spawn_later(0.01, park.wake)
    assert park.wait(5) is True
    assert park.woken
    assert park.wait(0) is True  # it stays woken
    assert park.wait(None) is True


def test_a_park_without_time_is_woken() -> None:
    park = Park()
    gevent.spawn_later(0.01, park.wake)
    assert park.wait(None) is True


def test_a_wake_that_comes_first_is_not_lost() -> None:
    park = Park()
    park.wake()
    began = monotonic()
    assert park.wait(5) is True
    assert monotonic() - began < SLACK


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_no_time_is_no_switch(timeout: float) -> None:
    others: list[int] = []
    gevent.spawn(others.append, 1)
    assert Park().wait(timeout) is False
    assert others == []


def test_a_park_times_out() -> None:
    park = Park()
    began = monotonic()
    assert park.wait(0.05) is False
    assert 0.047 <= monotonic() - began < 0.05 + SLACK
    assert not park.woken
    park.wake()  # too late: it disturbs nobody
    gevent.sleep(0)
    gevent.sleep(0)
    assert park.woken


def compute(seconds: float) -> None:
    until = monotonic() + seconds
    while monotonic() < until:
        pass


@pytest.mark.parametrize("how", ["park", "line"])
def test_time_spent_computing_is_not_taken_off(how: str) -> None:
    """The loop's clock stands still while a greenlet computes; the wait begins now all the same."""
    gevent.sleep(0.005)  # woken by a timer: the loop looked at its clock before that
    compute(0.1)
    began = monotonic()
    assert (Park() if how == "park" else Line()).wait(0.15) is False
    assert 0.14 < monotonic() - began < 0.15 + SLACK


def test_a_wake_and_a_timeout_in_one_turn() -> None:
    """Whatever comes first, the second must not strike the greenlet in its next wait."""
    for _ in range(50):
        park, next_park = Park(), Park()
        gevent.spawn_later(0.001, park.wake)
        woken = park.wait(0.001)
        assert woken in (True, False)
        began = monotonic()
        assert next_park.wait(0.005) is False
        assert monotonic() - began >= 0.004
        assert gevent.sleep(0) is None


def test_many_wakes_are_one() -> None:
    park = Park()
    for _ in range(3):
        gevent.spawn(park.wake)
    gevent.get_hub().loop.run_callback(park.wake)
    assert park.wait(5) is True
    assert Park().wait(0.01) is False


def test_a_park_is_woken_from_the_hub() -> None:
    park = Park()
    timer = gevent.get_hub().loop.timer(0.01)
    timer.start(park.wake)
    assert park.wait(5) is True
    timer.close()


@pytest.mark.parametrize("timeout", [None, 10])
def test_who_waits_can_be_struck(timeout: Any) -> None:
    park = Park()
    waiter = gevent.spawn(park.wait, timeout)
    gevent.sleep(0)
    waiter.kill(timeout=5)
    assert waiter.dead
    park.wake()
    gevent.sleep(0.002)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        Park().wait(timeout)
    assert Park().wait(0.002) is False


def test_who_was_woken_and_is_struck_in_the_same_turn() -> None:
    park = Park()
    waiter = gevent.spawn(park.wait, 10)
    gevent.sleep(0)
    park.wake()
    waiter.kill(timeout=5)
    assert waiter.dead
    assert park.woken


def test_a_line_wakes_all_who_wait_now() -> None:
    line = Line()
    line.wake_all()  # nobody there: lost, as a hint may be
    waiters = [gevent.spawn(line.wait, 5) for _ in range(10)]
    gevent.sleep(0)
    line.wake_all()
    assert [waiter.get(timeout=5) for waiter in waiters] == [True] * 10
    assert line.wait(0.01) is False


def test_a_line_forgets_who_left() -> None:
    line = Line()
    assert line.wait(0.01) is False
    waiter = gevent.spawn(line.wait, None)
    gevent.sleep(0)
    waiter.kill(timeout=5)
    assert line._parks == set()
    line.wake_all()


def test_who_waits_again_is_not_woken_by_the_old_word() -> None:
    line, words = Line(), []

    def wait_twice() -> None:
        words.append(line.wait(5))
        words.append(line.wait(0.02))

    waiter = gevent.spawn(wait_twice)
    gevent.sleep(0)
    line.wake_all()
    waiter.get(timeout=5)
    assert words == [True, False]


def test_in_hub() -> None:
    assert in_hub() is False
    seen: list[bool] = []
    gevent.get_hub().loop.run_callback(lambda: seen.append(in_hub()))
    gevent.spawn(lambda: seen.append(in_hub()))
    gevent.sleep(0.002)
    assert seen == [True, False]


def test_turn_lets_the_loop_turn() -> None:
    """Also while others yield to each other with sleep(0) all the time."""
    fired: list[float] = []
    timer = gevent.get_hub().loop.timer(0)
    timer.start(lambda: fired.append(monotonic()))
    spinning = [gevent.spawn(_spin) for _ in range(3)]
    turn()
    turn()
    assert fired
    gevent.killall(spinning)
    timer.close()


def _spin() -> None:
    while True:
        gevent.sleep(0)


@pytest.mark.parametrize("timeout", [None, 0, 1, 0.5, 1e9])
def test_times_that_are_times(timeout: Any) -> None:
    assert check_timeout(timeout) == timeout


@pytest.mark.parametrize("timeout", [-1, -0.0001, float("nan"), float("-inf"), "1", b"1", True, []])
def test_times_that_are_none(timeout: Any) -> None:
    with pytest.raises(errors.OptionError, match="stall"):
        check_timeout(timeout, "stall")


def test_an_endless_time_is_refused_or_waited_for() -> None:
    """A loop's timer cannot hold infinity: either it is refused by name, or it never fires."""
    try:
        endless = check_timeout(float("inf"))
    except errors.OptionError:
        return
    park = Park()
    gevent.spawn_later(0.01, park.wake)
    assert park.wait(endless) is True
