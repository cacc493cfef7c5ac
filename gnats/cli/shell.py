"""A shell command that answers a request: bounded in time and in what it prints, gone with us."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, NamedTuple

import gevent
from gevent.subprocess import PIPE, Popen, TimeoutExpired

_MOST_COMPLAINT = 4096  # bytes of its standard error that are kept
_CHUNK = 64 * 1024
_DEATH = 1.0  # seconds that we wait for what was killed


class Answer(NamedTuple):
    """What a command said. ``failure`` is None, or its status and why, in words."""

    data: bytes
    failure: tuple[str, str] | None = None


class Shell:
    """Runs commands; knows those under way."""

    def __init__(self) -> None:
        self._running: set[Popen[bytes]] = set()

    def run(self, command: str, data: bytes, timeout: float, most: int, **env: str) -> Answer:
        """*command* with *data* as its standard input. Switches.

        It is killed after *timeout* seconds, and when it prints more than *most* bytes.
        """
        try:
            process: Any = Popen(
                command,
                shell=True,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,  # Ctrl-C is for us: what was begun is finished
                env={**os.environ, **env},
            )
        except (OSError, ValueError) as exc:  # ValueError: what no environment can hold
            return Answer(b"", ("126", f"it cannot be started: {exc}"))
        self._running.add(process)
        complaint = gevent.spawn(_head, process.stderr, _MOST_COMPLAINT)
        helpers = [gevent.spawn(_feed, process.stdin, data), complaint]
        late = gevent.Timeout(timeout)
        is_done = False
        try:
            with late:
                answer = process.stdout.read(most + 1)
                if len(answer) > most:
                    return Answer(b"", ("1", f"it printed more than {most} bytes"))
                complaint.join()
                status = process.wait()
            is_done = True
        except gevent.Timeout as exc:
            if exc is not late:
                raise
            return Answer(b"", ("124", f"it took longer than {timeout:g} s"))
        finally:
            self._end(process, helpers, is_done)
        if status == 0:
            return Answer(answer)
        words = " ".join((complaint.value or b"").decode("utf-8", "replace").split())
        return Answer(answer, (str(status), words or "the command failed"))

    def kill_all(self) -> None:
        """End what still runs."""
        for process in list(self._running):
            _kill(process)

    def _end(self, process: Any, helpers: list[Any], is_done: bool) -> None:
        """Kill what is not done: the shell may have ended, and what it has started lives. Who has
        left its group is not waited for."""
        self._running.discard(process)
        if not is_done:
            _kill(process)
            with contextlib.suppress(TimeoutExpired):
                process.wait(_DEATH)
        gevent.killall(helpers)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError, RuntimeError):
                stream.close()


def _kill(process: Popen[bytes]) -> None:
    """The command, and what it has started, as far as that stayed in its group."""
    with contextlib.suppress(OSError):  # it is gone, or another user's
        os.killpg(process.pid, signal.SIGKILL)


def _feed(stdin: Any, data: bytes) -> None:
    """Who does not read its input is none the worse for it."""
    with contextlib.suppress(OSError):
        stdin.write(data)
        stdin.close()


def _head(stream: Any, most: int) -> bytes:
    """The first *most* bytes of all that comes."""
    head = stream.read(most)
    while stream.read(_CHUNK):
        pass
    return bytes(head)
