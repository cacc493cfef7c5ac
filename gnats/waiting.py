"""How a greenlet waits for one word: a parked switch with a time-out, and nothing held after.

A wake-up is a hint, never a delivery: whoever wakes looks at the state again, because a
time-out or a kill may have struck in the same loop turn. So what is waited for lives in the
waiter's own object, never in the switch.
"""

from __future__ import annotations

from collections.abc import Callable

from gevent import get_hub, getcurrent
from gevent.hub import Waiter

from .backoff import LONGEST
from .errors import Error, OptionError


class Park:
    """A place for one greenlet to wait, once. Made by the greenlet that will wait in it."""

    __slots__ = ("_waiter", "woken")

    def __init__(self) -> None:
        self._waiter: Waiter[object] = Waiter()
        self.woken = False

    def wait(self, timeout: float | None = None) -> bool:
        """Switch away until ``wake`` (True) or until *timeout* seconds are over (False)."""
        if self.woken:
            return True
        if timeout is None or timeout > LONGEST:
            self._waiter.get()
            return self.woken
        if timeout <= 0:
            return False
        # A bare loop timer: gevent.Timeout costs three times as much and there is one of these
        # per request.
        timer = get_hub().loop.timer(timeout)
        # update: a loop's own clock stands still while a greenlet computes.
        timer.start(self._waiter.switch, None, update=True)
        try:
            self._waiter.get()
        finally:
            timer.close()
        return self.woken

    def wake(self) -> None:
        """End the wait in the next loop turn; from any greenlet or hub callback, any number of
        times. Never switches."""
        if not self.woken:
            self.woken = True
            get_hub().loop.run_callback(self._waiter.switch, None)

    def wake_across(self) -> None:
        """``wake``, from any thread."""
        if not self.woken:
            self.woken = True
            self._waiter.hub.loop.run_callback_threadsafe(self._waiter.switch, None)


class Line:
    """Greenlets waiting for the same word. ``wake_all`` ends every wait. Never switches itself."""

    __slots__ = ("_parks",)

    def __init__(self) -> None:
        self._parks: set[Park] = set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next ``wake_all``; False when *timeout* seconds ran out first."""
        park = Park()
        self._parks.add(park)
        try:
            return park.wait(timeout)
        finally:
            self._parks.discard(park)

    def wake_all(self) -> None:
        parks, self._parks = self._parks, set()
        for park in parks:
            park.wake()


class Bell:
    """Rung by anyone, listened to by one greenlet, which then looks what has changed."""

    __slots__ = ("_park", "_rung")

    def __init__(self) -> None:
        self._rung = False
        self._park: Park | None = None

    def ring(self) -> None:
        """Never switches; from any greenlet or hub callback."""
        self._rung = True
        if self._park is not None:
            self._park.wake()

    def listen(self, timeout: float | None = None) -> bool:
        """Wait until it has been rung since the last ``listen``; False when *timeout* seconds
        ran out first."""
        if not self._rung:
            self._park = Park()
            try:
                self._park.wait(timeout)
            finally:
                self._park = None
        rung, self._rung = self._rung, False
        return rung


def turn() -> None:
    """Let the loop turn once: timers run, sockets are polled, others have their say.

    ``gevent.sleep(0)`` is not enough: its callbacks are run fifty at a time before the loop
    looks at anything else, and two greenlets that yield to each other for milliseconds would
    keep everyone else waiting for a fifth of a second.
    """
    hub = get_hub()
    timer = hub.loop.timer(0)
    try:
        hub.wait(timer)
    finally:
        timer.close()


def start_timer(seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
    """Call *callback* in the hub, once, *seconds* from now; returns what calls that off. Never
    switches."""
    # Not below a millisecond, under which libuv warns of its own resolution.
    timer = get_hub().loop.timer(max(0.001, seconds))
    timer.start(callback, update=True)
    close: Callable[[], None] = timer.close
    return close


def in_hub() -> bool:
    """Whether the caller runs in the hub itself, where nothing may wait."""
    return getcurrent() is get_hub()


def refuse_in_hub(operation: str) -> None:
    """For calls that would wait: in a hub callback, raise Error before anything is half done."""
    if in_hub():
        raise Error(f"{operation} may wait, which a hub callback cannot: spawn a greenlet for it")


def check_timeout(timeout: float | None, name: str = "timeout") -> float | None:
    """Refuse a time that is no time. Raises OptionError, which names the argument."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise OptionError(name, f"seconds are needed, not {type(timeout).__name__}")
    if not timeout >= 0:  # NaN too
        raise OptionError(name, f"it must be 0 or more seconds, not {timeout}")
    return None if timeout > LONGEST else timeout
