"""Bounded, cooperative waiting. A test waits for a condition, never for a sleep to be enough."""

from __future__ import annotations

from time import monotonic
from typing import Callable, TypeVar

import gevent

from gnats.testing.ports import free_port

__all__ = ["free_port", "wait_until"]

T = TypeVar("T")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05  # seconds; a condition is noticed at most this late


def wait_until(
    predicate: Callable[[], T],
    timeout: float = 5.0,
    message: str | Callable[[], str] = "",
) -> T:
    """Wait until *predicate()* is true and return its value.

    *timeout* is in seconds; *message* says what was waited for (a callable is asked only on
    failure). Switches greenlets between looks; the first look is taken at once and a last one
    after the deadline. Raises AssertionError, naming what was waited for and the last value, when
    the time is up. What *predicate* raises passes through.
    """
    deadline = monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        late = monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            what = message() if callable(message) else message
            what = what or getattr(predicate, "__qualname__", None) or repr(predicate)
            raise AssertionError(f"waited {timeout:g} s in vain for: {what} (last: {value!r})")
        gevent.sleep(max(0.0, min(pause, deadline - monotonic())))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
