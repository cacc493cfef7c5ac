"""A web server as a child process of a test, such as gunicorn, and the HTTP client that puts it
under load.

Signals go to processes that it started or that its log names as workers, by id.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent import socket
from gevent.subprocess import STDOUT, Popen

from gnats.testing import free_port, wait_until

TESTS = Path(__file__).parent
PATIENCE = 30.0  # seconds; a worker takes long to start on a busy machine

CONF = """
from gnats.contrib import gunicorn

control_socket_disable = True  # it would be one of all gunicorns of this user
post_worker_init = gunicorn.post_worker_init

def worker_exit(server, worker):
    gunicorn.worker_exit(server, worker)
    server.log.info("worker %d has ended well", worker.pid)
"""


class Answer(NamedTuple):
    """A finished response."""

    status: int
    body: str

    @property
    def pid(self) -> int:
        return int(self.body.split()[0])

    @property
    def seconds(self) -> float:
        return float(self.body.split()[1])


def get(port: int, path: str, timeout: float = 20.0) -> Answer | None:
    """The response, or None when none was finished: nothing is promised then."""
    data = b""
    try:
        with gevent.Timeout(timeout), socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
            while chunk := sock.recv(65536):
                data += chunk
    except (OSError, gevent.Timeout):
        return None
    head, separator, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if not separator or length is None or len(body) < int(length[1]):
        return None
    return Answer(int(head.split()[1]), body.decode())


class WebServer:
    """*command* as a child process; ``log`` is all that it has written."""

    #: What its log says of a worker that begins, and of one that has come to the end of its hook.
    BEGUN = ""
    ENDED_WELL = ""

    def __init__(self, folder: Path, port: int, command: list[str], nats_url: str) -> None:
        self.port = port
        self._log = folder / f"log-{port}"
        with open(self._log, "wb") as output:
            self.process = Popen(
                command,
                stdout=output,
                stderr=STDOUT,
                cwd=folder,
                env={**os.environ, "TEST_NATS_URL": nats_url, "NATS_URL": nats_url},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def workers(self) -> list[int]:
        """The pids of all workers, living and dead, oldest first."""
        return [int(pid) for pid in re.findall(self.BEGUN, self.log)]

    @property
    def ended_well(self) -> list[int]:
        """The pids of the workers that have come to the end of their last hook."""
        return [int(pid) for pid in re.findall(self.ENDED_WELL, self.log)]

    @property
    def leaving(self) -> set[int]:
        """The pids of the workers that have had their max_requests, and have not ended yet."""
        told = re.findall(r"\[(\d+)\] \[INFO\] Autorestarting worker", self.log)
        return set(map(int, told)) - set(self.ended_well)

    def get(self, path: str) -> Answer | None:
        return get(self.port, path)

    def await_workers(self, count: int, old: Collection[int] = ()) -> set[int]:
        """Until *count* workers that are not *old* have answered; their pids."""
        seen: set[int] = set()

        def all_have() -> bool:
            answer = self.get("/pid")
            if answer is not None and answer.status == 200 and answer.pid not in old:
                seen.add(answer.pid)
            return len(seen) >= count

        wait_until(all_have, PATIENCE, lambda: f"{count} workers, not {seen}:\n{self.log}")
        return seen

    def signal(self, number: int) -> None:
        """To the process that watches over the workers."""
        os.kill(self.process.pid, number)

    def kill_worker(self, pid: int) -> None:
        assert pid in self.workers
        os.kill(pid, signal.SIGKILL)

    def await_end(self, timeout: float) -> int:
        """The exit status, within *timeout* seconds."""
        wait_until(
            lambda: self.process.poll() is not None, timeout, lambda: f"the end:\n{self.log}"
        )
        assert self.process.returncode is not None
        return self.process.returncode

    def end(self) -> None:
        """Whatever state it is in: gone, and its workers with it."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            with gevent.Timeout(PATIENCE, False):
                self.process.wait()
        if self.process.poll() is None:
            self.process.kill()  # its workers see that their parent has changed, and leave
            self.process.wait()


class Gunicorn(WebServer):
    """``gunicorn -k gevent`` with *arguments*."""

    BEGUN = r"Booting worker with pid: (\d+)"
    ENDED_WELL = r"worker (\d+) has ended well"

    def __init__(self, folder: Path, target: str, arguments: list[str], nats_url: str) -> None:
        port = free_port()
        conf = folder / "conf.py"
        if not conf.exists():
            conf.write_text(CONF, encoding="utf-8")
        command = [
            *(sys.executable, "-m", "gunicorn", "-k", "gevent"),
            *("-c", str(conf), "-b", f"127.0.0.1:{port}"),
            *("--pythonpath", str(TESTS), *arguments, target),
        ]
        super().__init__(folder, port, command, nats_url)


class UWSGI(WebServer):
    """``uwsgi --gevent`` with *arguments*; what is written into its ``fifo`` commands it."""

    BEGUN = r"pawned uWSGI worker \d+ \((?:new )?pid: (\d+)"
    ENDED_WELL = r"goodbye to the gevent Hub on worker \d+ \(pid: (\d+)\)"

    def __init__(self, folder: Path, target: str, arguments: list[str], nats_url: str) -> None:
        port = free_port()
        self._fifo = folder / f"fifo-{port}"
        command = [
            *(sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()"),
            *("--master", "--need-app", "--die-on-term", "--gevent", "100"),
            *("--http-socket", f"127.0.0.1:{port}", "--master-fifo", str(self._fifo)),
            *("--pythonpath", str(TESTS), "--module", target, *arguments),
        ]
        super().__init__(folder, port, command, nats_url)

    def command(self, letter: str) -> None:
        """``w``: new workers, in good order; ``q``: the end, in good order."""
        self._fifo.write_text(letter, encoding="utf-8")


@contextmanager
def gunicorn(
    folder: Path, nats_url: str, *arguments: str, target: str = "web_app:app"
) -> Iterator[Gunicorn]:
    """A gunicorn that runs *target* until the end of the block."""
    running = Gunicorn(folder, target, list(arguments), nats_url)
    try:
        yield running
    finally:
        running.end()


class Load:
    """*clients* greenlets that ask for *path* with a new number each time, until ``stop``. The
    numbers are those above *first*."""

    def __init__(
        self, port: int, path: str, first: int = 0, clients: int = 8, pause: float = 0.005
    ) -> None:
        self._port = port
        self._path = path
        self._pause = pause
        self._going = True
        self._next = first
        self.answers: dict[int, Answer] = {}
        self.unfinished = 0
        self._greenlets = [gevent.spawn(self._run) for _ in range(clients)]

    def _run(self) -> None:
        while self._going:
            self._next += 1
            number = self._next
            answer = get(self._port, f"{self._path}?n={number}")
            if answer is None:
                self.unfinished += 1
            else:
                self.answers[number] = answer
            gevent.sleep(self._pause)

    @property
    def accepted(self) -> set[int]:
        """The numbers that a finished response with status 200 has accepted."""
        return {number for number, answer in self.answers.items() if answer.status == 200}

    def await_accepted(self, more: int) -> None:
        """Until *more* have been accepted."""
        wanted = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= wanted, PATIENCE, lambda: f"{wanted} answers")

    def stop(self) -> None:
        """No more; waits for those under way."""
        self._going = False
        gevent.joinall(self._greenlets, timeout=PATIENCE, raise_error=True)


@contextmanager
def uwsgi(
    folder: Path, nats_url: str, *arguments: str, target: str = "uwsgi_app:app"
) -> Iterator[UWSGI]:
    """A uWSGI that runs *target* until the end of the block."""
    running = UWSGI(folder, target, list(arguments), nats_url)
    try:
        yield running
    finally:
        running.end()
