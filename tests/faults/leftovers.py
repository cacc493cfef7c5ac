"""What is left of gnats when a connection is closed: greenlets, objects, descriptors."""

from __future__ import annotations

import gc
import os
from collections import Counter
from functools import partial
from time import monotonic
from typing import Any

import gevent

import gnats

KINDS = ("Connection", "Session", "Transport", "Reconnector", "Reader", "Flusher", "Keepalive")
PATIENCE = 2.0  # seconds


class Leftovers:
    """What was there before, to be subtracted."""

    def __init__(self) -> None:
        gc.collect()
        self._before = _count()

    def found(self) -> list[str]:
        """What is there now and was not before, in words. Waits a little for it to go."""
        deadline = monotonic() + PATIENCE
        while True:
            gc.collect()
            left = _count() - self._before
            if not left or monotonic() > deadline:
                return [f"{count} {what}" for what, count in sorted(left.items())]
            gevent.sleep(0.01)


def _count() -> Counter[str]:
    count: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        if kind.__name__ in KINDS and _is_of_gnats(kind.__module__):
            count[kind.__name__] += 1
        elif isinstance(one, gevent.Greenlet) and not one.dead and _is_ours(one):
            count["greenlets"] += 1
    count["descriptors"] = len(os.listdir("/proc/self/fd"))
    return count


def _is_ours(greenlet: Any) -> bool:
    run = greenlet._run
    while isinstance(run, partial):
        run = run.func
    return _is_of_gnats(getattr(run, "__module__", None) or "")


def _is_of_gnats(module: str) -> bool:
    inside = f"{module}.".startswith(f"{gnats.__name__}.")
    return inside and not module.startswith(f"{gnats.__name__}.testing")
