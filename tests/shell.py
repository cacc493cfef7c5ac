"""Running ``gnats`` as a shell does: a command to its end, or one that is watched while it runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gevent import os as gevent_os
from gevent.subprocess import PIPE, Popen

from gnats.testing import wait_until

PATIENCE = 30.0  # seconds; a Python with gevent takes long to start on a busy machine
COMMAND = [sys.executable, "-I", "-m", "gnats"]


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: bytes
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def environ(**more: str) -> dict[str, str]:
    """Ours without what NATS tools listen to; what tests coverage and loops stays."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("NATS_")}
    return {**kept, "NO_COLOR": "1", **more}


def _listening() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, and children inherit that."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def gnats(*words: str, stdin: bytes = b"", status: int | None = 0, **env: str) -> Done:
    """Run to its end, within a bound. *status* None: any."""
    process = Popen(
        [*COMMAND, *words],
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=environ(**env),
        preexec_fn=_listening,
    )
    try:
        out, err = process.communicate(stdin, timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    done = Done(process.returncode, out, err.decode())
    assert "Traceback" not in done.err, done.err
    if status is not None:
        assert done.status == status, done
    return done


class Running:
    """A command under way."""

    def __init__(self, process: Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> bytes:
        return self._out.read_bytes()

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8")

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def await_err(self, wanted: str, timeout: float = PATIENCE) -> None:
        """Until it has said *wanted* to people; fails when it ends without."""
        self._await(lambda: wanted in self.err, wanted, timeout)

    def await_out(self, wanted: bytes) -> None:
        self._await(lambda: wanted in self.out, wanted)

    def _await(self, seen: Any, wanted: object, timeout: float = PATIENCE) -> None:
        wait_until(
            lambda: seen() or self.process.poll() is not None,
            timeout,
            lambda: f"{wanted!r} in {self.out!r} {self.err}",
        )
        assert seen(), f"ended with {self.process.returncode}: {self.out!r} {self.err}"

    def signal(self, signum: int = signal.SIGINT) -> None:
        self.process.send_signal(signum)

    def end(self, status: int = 0) -> Running:
        """Wait for its end, by itself."""
        self.process.wait(PATIENCE)
        assert "Traceback" not in self.err, self.err
        assert self.process.returncode == status, (self.process.returncode, self.out, self.err)
        return self


@contextmanager
def running(
    folder: Path,
    *words: str,
    stdin: Any = None,
    stdout: Any = None,
    cwd: Path | None = None,
    **env: str,
) -> Iterator[Running]:
    """A command that goes on while the block runs; killed at its end if it still runs."""
    number = len(list(folder.glob("*.err")))
    out, err = folder / f"{number}.out", folder / f"{number}.err"
    with open(out, "wb") as out_file, open(err, "wb") as err_file:
        process = Popen(
            [*COMMAND, *words],
            stdin=stdin,
            stdout=out_file if stdout is None else stdout,
            stderr=err_file,
            cwd=cwd,
            env=environ(**env),
            preexec_fn=_listening,
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def on_a_terminal(
    words: Sequence[str],
    size: tuple[int, int] = (40, 120),
    command: Sequence[str] = COMMAND,
    **env: str,
) -> Done:
    """Run to its end on a terminal of its own; ``out`` is all that it showed."""
    rows, columns = size
    master, slave = pty.openpty()
    process = Popen(
        [*command, *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
        env=environ(**{"LINES": str(rows), "COLUMNS": str(columns), "TERM": "xterm", **env}),
        preexec_fn=_listening,
    )
    os.close(slave)
    shown = bytearray()
    try:
        gevent_os.make_nonblocking(master)
        while True:
            try:
                chunk = gevent_os.nb_read(master, 65536)
            except OSError:  # the other side has gone
                break
            if not chunk:
                break
            shown += chunk
        status = process.wait(PATIENCE)
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait()
    return Done(status, bytes(shown), shown.decode("utf-8", "replace"))
