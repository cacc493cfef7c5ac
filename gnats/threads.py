"""Other threads: whose a connection is, and how the messages of the others come to its thread.

The only file with locks, and with a watcher that another thread may ring. It decides nothing about
room: the outbox does. Locks and idents are the real ones, whatever has been patched: under a patch
the standard library's tell greenlets apart. Source: DESIGN 4.9.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import ref

from gevent import get_hub
from gevent.monkey import get_original

from .backoff import Deadline
from .errors import ConnectionClosedError, WrongThreadError

_allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")
_new_rlock: Callable[[], Any] = get_original("_thread", "RLock")
#: Something whose attributes each thread has for itself.
new_local: Callable[[], Any] = get_original("_thread", "_local")

# A thread that waits rings again so often (seconds), and looks whether the owner's still lives.
LOOK_EVERY = 0.5
# Seconds after which a thread that has no answer to its ringing gives up: the owner's may wait for
# it, with its loop, as a program does that joins its threads at its end.
STUCK = 10.0


class _Thread:
    """Stands for one thread, as long as it lives: idents are used again for later threads."""

    __slots__ = ("__weakref__",)


_this = new_local()  # ``thread``: the calling one


class Owner:
    """The thread that a connection belongs to: nobody's until it is connected."""

    __slots__ = ("_hub", "_pid", "_thread")

    def __init__(self) -> None:
        self._thread: ref[_Thread] | None = None
        self._pid = 0
        self._hub: Any = None

    def claim(self) -> bool:
        """It is the calling thread's from now on; whether it was another's before. Makes the
        thread's hub, if it has none."""
        thread = getattr(_this, "thread", None)
        if thread is None:
            thread = _this.thread = _Thread()
        self._thread = ref(thread)
        self._pid = os.getpid()
        before, self._hub = self._hub, get_hub()
        return before is not None and before is not self._hub

    def release(self) -> None:
        """It is nobody's again."""
        self._thread = None

    @property
    def is_here(self) -> bool:
        """Whether the calling thread may use it as it likes."""
        return self._thread is None or self._is_claimed_here

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread is None or self._thread() is not None

    @property
    def can_say_farewell(self) -> bool:
        """Whether it is the calling thread's, which still has a loop, and was claimed in this very
        process: a fork that Python did not hear of (by a server written in C) leaves another's
        behind."""
        if self._thread is None or not self._is_claimed_here or self._pid != os.getpid():
            return False
        return self._hub.loop is not None and get_hub() is self._hub

    def check(self, operation: str) -> None:
        """Raise WrongThreadError, before anything is half done, unless it is the caller's."""
        if not self.is_here:
            raise WrongThreadError(operation)

    @property
    def _is_claimed_here(self) -> bool:
        assert self._thread is not None
        thread = self._thread()
        return thread is not None and thread is getattr(_this, "thread", None)


class Handover:
    """What other threads leave for the owner: messages, and calls. Every method may be called from
    any thread, but for those of the owner. Only ``wait`` blocks, natively. The lock is reentrant:
    a signal's handler or a ``__del__`` may strike, and publish, while it is held."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.lock = _new_rlock()  # held for a few instructions
        self.frames: list[bytes] = []
        self.size = 0  # bytes of the frames
        self.payload = 0  # bytes of headers and payloads
        self._calls: list[Callable[[], None]] = []
        self._bell: Any = None  # a watcher of the owner's loop, while it is open
        self._waiting: list[Any] = []  # locks, each held until somebody shall look again
        self._answers = 0  # how often the owner's loop has answered

    # -- the owner -----------------------------------------------------------------------

    def open(self, answer: Callable[[], None]) -> None:
        """Have *answer* called in the hub, soon after somebody has rung."""

        def on_ring() -> None:
            self._answers += 1
            answer()

        watcher = get_hub().loop.async_(ref=False)
        watcher.start(on_ring)
        self._bell = watcher

    def close(self) -> None:
        """Nobody can ring any more; those who wait look again."""
        with self.lock:
            bell, self._bell = self._bell, None
        if bell is not None:
            bell.stop()
            bell.close()
        self.wake_all()

    def answer_calls(self) -> None:
        """Do what other threads have asked for."""
        with self.lock:
            calls, self._calls = self._calls, []
        for run in calls:
            run()

    def disown(self) -> None:
        """In a forked child, where a thread that held the lock does not exist."""
        self.lock = _new_rlock()
        self._waiting, self._calls = [], []
        self.frames, self.size, self.payload = [], 0, 0
        self.close()

    def take(self) -> tuple[list[bytes], int, int]:
        """All messages that are here, in order, their bytes, and those of their payloads. Then
        ``wake_all``."""
        with self.lock:
            frames, self.frames = self.frames, []
            size, self.size = self.size, 0
            payload, self.payload = self.payload, 0
        return frames, size, payload

    # -- the others ----------------------------------------------------------------------

    def put(self, frame: bytes, payload: int, admits: Callable[[int], bool]) -> bool:
        """Leave a message, if ``admits(bytes)`` says so, which is asked under the lock, and may
        raise."""
        with self.lock:
            self._check_owner()
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
        time ran out first, when the owner's loop does not turn, and at once when it would wait for
        itself. Raises ConnectionClosedError when the owner's thread has ended."""
        if self.lock._is_owned():
            return met()  # in the midst of another call of this thread: nobody can make room now
        answers, answered = self._answers, monotonic()
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
                woken = lock.acquire(True, LOOK_EVERY if left is None else min(left, LOOK_EVERY))
            finally:
                self._leave(lock)
            if woken or self._answers != answers:
                answers, answered = self._answers, monotonic()
            elif monotonic() - answered > STUCK:
                return met()
            if not woken:
                self._ring_again()

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
        try:
            self._bell.send()
        except Exception as exc:  # of whatever kind: each loop has its own for "destroyed"
            raise ConnectionClosedError("the loop of the connection is destroyed") from exc

    def _ring_again(self) -> None:
        with self.lock:
            self._check_owner()
            if self._bell is not None:
                self._ring()

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
