"""Native threads for tests, whatever is patched: under a patch, those of the standard library are
greenlets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.monkey import get_original

from gnats.testing import wait_until

_start_new_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")


class Native:
    """A call in a native thread of its own."""

    def __init__(self, run: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._over = _allocate_lock()
        self._over.acquire()
        _start_new_thread(self._work, (run, args))

    def _work(self, run: Callable[..., Any], args: Any) -> None:
        try:
            self.result = run(*args)
        except BaseException as exc:
            self.error = exc
        finally:
            self._over.release()

    @property
    def is_over(self) -> bool:
        return not self._over.locked()

    def join(self, timeout: float = 20.0) -> Any:
        """Wait in greenlets: the loop turns meanwhile."""
        wait_until(lambda: self.is_over, timeout)
        return self._outcome()

    def join_blocking(self, timeout: float = 20.0) -> Any:
        """Wait as a program without greenlets would: the loop stands still."""
        assert self._over.acquire(True, timeout)
        self._over.release()
        return self._outcome()

    def _outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result
