"""What becomes of connections that nobody has closed when the process ends: they are closed, within
a bound and without a word. The last resort: who closes by himself decides when, and hears of it.

What was published is still written if the server takes it at once. Connections of other threads,
and those of the process that this one was forked from, are left alone.
"""

from __future__ import annotations

import atexit
from typing import Any, Protocol
from weakref import WeakSet

from gevent import get_hub

from .backoff import Deadline
from .errors import ConnectionClosedError

# Seconds for all of them together: a server that does not answer must not hold up a restart.
PATIENCE = 3.0


class Leaver(Protocol):
    """What can be left open."""

    def _begin_farewell(self) -> bool: ...  # pragma: no cover

    def _end_farewell(self, deadline: Deadline) -> None: ...  # pragma: no cover


_living: WeakSet[Leaver] = WeakSet()


def watch(leaver: Leaver) -> None:
    """Have *leaver* say farewell at the end of the process, as long as it lives: it begins to, and
    tells whether there was anything to do; when all have begun, it waits for its end. Never
    switches."""
    _living.add(leaver)


def _at_exit() -> None:
    leaving = [leaver for leaver in list(_living) if leaver._begin_farewell()]
    if not leaving:
        return
    hub: Any = get_hub()
    # Greenlets that wait for something are told that the connection is closed, which is what all
    # this is about: no stack traces of them.
    hub.NOT_ERROR = (*hub.NOT_ERROR, ConnectionClosedError)
    deadline = Deadline(PATIENCE)
    for leaver in leaving:
        try:
            leaver._end_farewell(deadline)
        except SystemExit:  # of a callback: the process ends already
            pass


atexit.register(_at_exit)
