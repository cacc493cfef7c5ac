"""The witnesses: raw connections, straight to the server, that no fault goes through.

They are not made with gnats, so that they do not err where it errs. When their server goes, they
come back by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import monotonic
from typing import Any, Callable, NamedTuple

import gevent
from gevent import socket
from gevent.lock import RLock

from gnats.testing import wait_until

from .numbering import read_number

_RETRY = 0.005  # seconds between two attempts
TIMEOUT = 10.0

Handler = Callable[[str, str, bytes], None]


class Arrival(NamedTuple):
    number: int
    when: float


class Peer:
    """One raw connection with its subscriptions. ``subscriptions`` maps a subject to a handler,
    which is called with (subject, reply, payload) and must not wait."""

    def __init__(
        self,
        address: tuple[str, int],
        name: str,
        subscriptions: dict[str, Handler] | None = None,
        credentials: dict[str, str] | None = None,
    ) -> None:
        self.address = address
        self.is_ready = False  # the server has confirmed the subscriptions
        self.life = 0  # links so far
        self._connect = {"verbose": False, "name": name, "protocol": 1, **(credentials or {})}
        self._subscriptions = list((subscriptions or {}).items())
        self._sock: socket.socket | None = None
        self._one_at_a_time = RLock()  # a sendall may wait in the middle
        self._pongs = 0  # over the present link
        self._pings = 0
        self._greenlet = gevent.spawn(self._run)

    def publish(self, subject: str, payload: bytes, reply: str = "") -> bool:
        """Send one message; False when there is no link for it. Switches."""
        head = f"PUB {subject} {reply} {len(payload)}\r\n"
        return self._send(head.encode("latin-1") + payload + b"\r\n")

    def sync(self, timeout: float = TIMEOUT) -> None:
        """All that the server had for us is here, all that we have sent is there. Switches."""
        wait_until(lambda: self.is_ready, timeout, "a witness that is connected")
        life, wanted = self.life, self._ping()
        wait_until(
            lambda: self._pongs >= wanted or self.life != life, timeout, "a PONG for a witness"
        )

    def close(self) -> None:
        self._greenlet.kill()
        if self._sock is not None:
            self._sock.close()

    # -- within -------------------------------------------------------------------------------

    def _ping(self) -> int:
        self._pings += 1
        wanted = self._pings
        self._send(b"PING\r\n")
        return wanted

    def _send(self, data: bytes) -> bool:
        if self._sock is None:
            return False
        with self._one_at_a_time:
            try:
                self._sock.sendall(data)
            except (OSError, AttributeError):  # it ended while we waited for our turn
                return False
        return True

    def _run(self) -> None:
        while True:
            try:
                self._live()
            except (OSError, EOFError):
                pass
            self.is_ready = False
            if self._sock is not None:
                self._sock.close()
                self._sock = None
            gevent.sleep(_RETRY)

    def _live(self) -> None:
        self._sock = sock = socket.create_connection(self.address, timeout=1.0)
        lines = _Lines(sock)
        if not lines.read_line().startswith(b"INFO "):
            raise EOFError
        opening = f"CONNECT {json.dumps(self._connect)}\r\n"
        for sid, (subject, _) in enumerate(self._subscriptions):
            opening += f"SUB {subject} {sid}\r\n"
        sock.settimeout(None)
        self._pings, self._pongs = 1, 0
        self.life += 1
        sock.sendall(opening.encode() + b"PING\r\n")
        while True:
            self._on_line(lines.read_line(), lines)

    def _on_line(self, line: bytes, lines: _Lines) -> None:
        if line.startswith(b"MSG "):
            words = line.decode("latin-1").split(" ")  # a subject may have been corrupted
            payload = lines.read_payload(int(words[-1]))
            reply = words[3] if len(words) == 5 else ""
            self._subscriptions[int(words[2])][1](words[1], reply, payload)
        elif line.startswith(b"PING"):
            self._send(b"PONG\r\n")
        elif line.startswith(b"PONG"):
            self._pongs += 1
            self.is_ready = True
        elif line.startswith(b"-ERR"):
            raise EOFError


class _Lines:
    """A socket, read line by line and payload by payload."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = b""
        self._at = 0

    def read_line(self) -> bytes:
        while True:
            end = self._data.find(b"\r\n", self._at)
            if end >= 0:
                line, self._at = self._data[self._at : end], end + 2
                return line
            self._more()

    def read_payload(self, size: int) -> bytes:
        while len(self._data) < self._at + size + 2:
            self._more()
        payload = self._data[self._at : self._at + size]
        self._at += size + 2
        return payload

    def _more(self) -> None:
        chunk = self._sock.recv(65536)
        if not chunk:
            raise EOFError
        self._data = self._data[self._at :] + chunk
        self._at = 0


# -- numbered messages ----------------------------------------------------------------------------


class Journal:
    """What came on one subject, in the order of its coming."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.altered = 0

    def note(self, payload: bytes) -> None:
        number = read_number(payload)
        if number is None:
            self.altered += 1
        else:
            self.arrivals.append(Arrival(number, monotonic()))

    @property
    def doubled(self) -> int:
        return len(self.arrivals) - len({arrival.number for arrival in self.arrivals})

    def late(self, places: dict[int, int] | None = None) -> list[int]:
        """The numbers whose first arrival came behind a later one; *places* says their order."""
        return list(self._late(places))

    def _late(self, places: dict[int, int] | None) -> Iterator[int]:
        seen: set[int] = set()
        last = -1
        for number, _ in self.arrivals:
            place = number if places is None else places.get(number, last)
            if number not in seen and place < last:
                yield number
            seen.add(number)
            last = max(last, place)


class Witnesses:
    """The observer of what the application publishes, and the one who sends to it and answers."""

    def __init__(self, address: tuple[str, int], credentials: dict[str, str] | None = None) -> None:
        self.journal = Journal()
        self._subject = ""
        self._pace = 0.0
        self.observer = Peer(address, "observer", {"numbers.*": self._on_number}, credentials)
        self.feeder = Peer(address, "feeder", {"ask.*": self._on_ask}, credentials)

    def begin(self, subject: str, answer_after: float) -> Journal:
        """A new cell: only what is published to *subject* counts. Requests are answered
        *answer_after* seconds later."""
        self.journal, self._subject, self._pace = Journal(), subject, answer_after
        return self.journal

    def wait_ready(self, timeout: float = TIMEOUT) -> None:
        for peer in (self.observer, self.feeder):
            wait_until(lambda peer=peer: peer.is_ready, timeout, "a witness that is connected")

    def close(self) -> None:
        self.observer.close()
        self.feeder.close()

    def _on_number(self, subject: str, _reply: str, payload: bytes) -> None:
        if subject == self._subject:
            self.journal.note(payload)

    def _on_ask(self, _subject: str, reply: str, payload: bytes) -> None:
        gevent.spawn_later(self._pace, self.feeder.publish, reply, payload)


def filler(address: tuple[str, int]) -> Any:
    """A connection that takes one place at the server; close it."""
    sock = socket.create_connection(address, timeout=2.0)
    sock.recv(65536)
    sock.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
    sock.recv(65536)
    return sock
