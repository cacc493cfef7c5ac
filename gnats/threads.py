"""Other threads: whose a connection is, and how the messages of the others come to its thread.

The only file with locks, and with a watcher that another thread may ring. It decides nothing about
room: the outbox does. Locks and idents are the real ones, whatever has been patched: under a patch
the standard library's tell greenlets apart. Source: DESIGN 4.9.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from gevent import get_hub
from gevent.monkey import get_original

from .backoff import Deadline
from .errors import ConnectionClosedError, WrongThreadError

get_ident: Callable[[], int] = get_original("_thread", "get_ident")
_allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")
_new_rlock: Callable[[], Any] = get_original("_thread", "RLock")
#: Something whose attributes each thread has for itself.
new_local: Callable[[], Any] = get_original("_thread", "_local")

# A thread that waits looks this often (seconds) whether the one it waits for still lives.
LOOK_EVERY = 0.5


class Owner:
    """The thread that a connection belongs to: nobody's until it is connected."""

    __slots__ = ("_ident", "_pid")

    def __init__(self) -> None:
        self._ident: int | None = None
        self._pid = 0

    def claim(self) -> None:
        """It is the calling thread's from now on."""
        self._ident = get_ident()
        self._pid = os.getpid()

    def release(self) -> None:
        """It is nobody's again."""
        self._ident = None

    @property
    def is_here(self) -> bool:
        """Whether the calling thread may use it as it likes."""
        return self._ident is None or self._ident == get_ident()

    @property
    def is_in_its_process(self) -> bool:
        """Whether it is the calling thread's, and was claimed in this very process: a fork that
        Python did not hear of (by a server written in C) leaves another's behind."""
        return self._ident == get_ident() and self._pid == os.getpid()

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._ident is None or self._ident in sys._current_frames()

    def check(self, operation: str) -> None:
        """Raise WrongThreadError, before anything is half done, unless it is the caller's."""
        if not self.is_here:
            raise WrongThreadError(operation)


class Handover:
    """What other threads leave for the owner: messages, and calls. Every method may be called from
    any thread, but for those of the owner. Only ``wait`` blocks, natively."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        # Held for a few instructions. Reentrant: the collector may run a __del__ that publishes.
        self.lock = _new_rlock()
        self.frames: list[bytes] = []
        self.size = 0  # bytes of the frames
        self.payload = 0  # bytes of headers and payloads
        self._calls: list[Callable[[], None]] = []
        self._bell: Any = None  # a watcher of the owner's loop, while it is open
        self._waiting: list[Any] = []  # locks, each held until somebody shall look again

    # -- the owner -----------------------------------------------------------------------

    def open(self, answer: Callable[[], None]) -> None:
        """Have *answer* called in the hub, soon after somebody has rung."""
        watcher = get_hub().loop.async_(ref=False)
        watcher.start(answer)
        self._bell = watcher

    def close(self) -> None:
        """Nobody can ring any more; those who wait look again."""
        with self.lock:
            bell, self._bell = self._bell, None
        if bell is not None:
            bell.stop()
            bell.close()
        self.wake_all()

    def disown(self) -> None:
        """In a forked child, where a thread that held the lock does not exist."""
        self.lock = _new_rlock()
        self._waiting = []
        self.frames, self.size, self.payload = [], 0, 0
        self.close()

    def take(self) -> tuple[list[bytes], int, int]:
        """All messages that are here, in order, their bytes, and those of their payloads."""
        with self.lock:
            frames, self.frames = self.frames, []
            size, self.size = self.size, 0
            payload, self.payload = self.payload, 0
        self.wake_all()
        return frames, size, payload

    def take_calls(self) -> list[Callable[[], None]]:
        """What is to be called in the owner's thread."""
        with self.lock:
            calls, self._calls = self._calls, []
        return calls

    # -- the others ----------------------------------------------------------------------

    def put(self, frame: bytes, payload: int, admits: Callable[[int], bool]) -> bool:
        """Leave a message, if ``admits(bytes)`` says so, which is asked under the lock, and may
        raise."""
        with self.lock:
            if not admits(len(frame)):
                return False
            if not self.frames:
                self._ring()  # first: when nobody would hear of it, it is not taken
            self.frames.append(frame)
            self.size += len(frame)
            self.payload += payload
            return True

    def call(self, run: Callable[[], None]) -> None:
        """Have *run* called in the owner's hub. Raises ConnectionClosedError."""
        with self.lock:
            self._ring()
            self._calls.append(run)

    def wait(self, met: Callable[[], bool], deadline: Deadline) -> bool:
        """Block this thread until *met*, which is asked whenever something has changed; False when
        time ran out first. Raises ConnectionClosedError when the owner's thread has ended."""
        while True:
            lock = _allocate_lock()
            lock.acquire()
            with self.lock:
                self._waiting.append(lock)
            try:
                if met():
                    return True
                left = deadline.remaining()
                if left is not None and left <= 0:
                    return False
                lock.acquire(True, LOOK_EVERY if left is None else min(left, LOOK_EVERY))
            finally:
                self._leave(lock)
            self._check_owner()

    def wake_all(self) -> None:
        """Something has changed: those who wait look again."""
        if self._waiting:
            with self.lock:
                waiting, self._waiting = self._waiting, []
            for lock in waiting:
                lock.release()

    # -- inside --------------------------------------------------------------------------

    def _ring(self) -> None:
        self._check_owner()
        if self._bell is None:
            raise ConnectionClosedError
        self._bell.send()

    def _check_owner(self) -> None:
        if not self.owner.is_alive:
            raise ConnectionClosedError(
                "the thread that connected has ended, and its loop with it: nobody can send any "
                "more. Close a connection before its thread ends"
            )

    def _leave(self, lock: Any) -> None:
        with self.lock:
            if lock in self._waiting:
                self._waiting.remove(lock)
