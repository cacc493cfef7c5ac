"""Calls of the system that block, in gevent's thread pool, so that everything else goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """What *function* returns, or its OSError. Switches until then."""
    value, error = gevent.get_hub().threadpool.apply(_outcome, (function, arguments))
    if error is not None:
        raise error
    return value


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """The error as a value: the pool would print it."""
    try:
        return function(*arguments), None
    except OSError as exc:
        return None, exc
