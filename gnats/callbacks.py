"""The user's connection callbacks: one greenlet, in order, once each, never anywhere else.

The greenlet exists while there is something to call. A callback that raises is logged and
told to ``error_cb``; one that blocks delays the callbacks behind it and nothing else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent import Greenlet, getcurrent

from .errors import Error
from .waiting import Line

logger = logging.getLogger("gnats")

MOST_WAITING = 10_000

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class CallbackQueue:
    """Calls in order. ``post`` never switches and may come from anywhere in the hub's thread."""

    def __init__(self, on_failure: Callable[[Callable[..., Any], BaseException], None]) -> None:
        self._calls: deque[Call] = deque()
        self._greenlet: Greenlet[[], None] | None = None
        self._on_failure = on_failure
        self._idle = Line()
        self._untold = 0  # errors that found the queue full

    def post(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        """Call *callback* after all that were posted before; None is nothing to call."""
        if callback is None:
            return
        self._calls.append((callback, args))
        if self._greenlet is None:
            self._start()

    def post_next(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        """Call *callback* before all that wait: what it tells has happened before them."""
        if callback is not None:
            self._calls.appendleft((callback, args))
            if self._greenlet is None:
                self._start()

    def post_bounded(self, callback: Callable[..., Any] | None, conn: object, *args: Any) -> None:
        """Post what a server can cause without end (errors, discoveries), unless so many calls
        wait already that it is only counted: a server that talks faster than *callback* listens
        must not fill the memory."""
        if len(self._calls) >= MOST_WAITING:
            if not self._untold:
                logger.warning("gnats: callbacks are too slow, calls are only counted: %s", args)
            self._untold += 1
            return
        self.post(callback, conn, *args)

    def post_error(self, callback: Callable[..., Any] | None, conn: object, exc: Exception) -> None:
        """Post ``error_cb``, bounded; it hears how many calls were left out, when there is room."""
        if self._untold and len(self._calls) < MOST_WAITING:
            untold, self._untold = self._untold, 0
            self.post(
                callback, conn, Error(f"{untold} calls came faster than the callbacks took them")
            )
        self.post_bounded(callback, conn, exc)

    def disown(self) -> None:
        """In a forked child: what waits to be called is the parent's. Never switches."""
        self._calls.clear()
        if self._greenlet is not None and not self.is_current:
            self._greenlet.kill(block=False)

    @property
    def is_current(self) -> bool:
        """Whether the caller is itself running in a callback."""
        return self._greenlet is not None and self._greenlet is getcurrent()

    def join(self, timeout: float) -> bool:
        """Wait until nothing is left to call; False when *timeout* seconds ran out first."""
        if self._greenlet is None:
            return True
        return self._idle.wait(timeout)

    def _start(self) -> None:
        self._greenlet = gevent.spawn(self._run)
        # A link, not a finally: a greenlet killed before it ran has no finally.
        self._greenlet.rawlink(self._ended)

    def _run(self) -> None:
        while self._calls:
            callback, args = self._calls.popleft()
            self._call(callback, args)

    def _ended(self, _: object) -> None:
        """In the hub: through with the queue, or killed, of which later calls are no victims."""
        self._greenlet = None
        if self._calls:
            self._start()
        else:
            self._idle.wake_all()

    def _call(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except (Exception, gevent.Timeout) as exc:
            self._on_failure(callback, exc)
