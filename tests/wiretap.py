"""A relay in front of one server that reads what passes: what had the server confirmed, and when?

It is the witness that owes nothing to the client's own books. A message counts as confirmed when
it passed upwards, whole, before a PING whose PONG was passed down to the client.
"""

from __future__ import annotations

import contextlib
from typing import Callable

import gevent
from gevent import socket

from gnats.testing import FrameParser

_CHUNK = 64 * 1024


class TappedLink:
    """What passed over one connection."""

    def __init__(self, life: int, number_of: Callable[[bytes], int], subject: str) -> None:
        self.life = life  # of the server
        self.numbers: list[int] = []  # of the messages to *subject*, in the order of the wire
        self._number_of = number_of
        self._subject = subject
        self._parser = FrameParser()
        self._pings: list[int] = []  # for each PING: the messages before it
        self._pongs = 0
        self._line = b""  # of the server, not ended yet

    @property
    def confirmed(self) -> list[int]:
        """The numbers that the server has confirmed to the client."""
        return self.numbers[: self._pings[self._pongs - 1]] if self._pongs else []

    def up(self, data: bytes) -> None:
        self._parser.feed(data)
        assert self._parser.broken is None, self._parser.broken
        for frame in self._parser.frames:
            if frame.op == "PING":
                self._pings.append(len(self.numbers))
            elif frame.op in ("PUB", "HPUB") and frame.subject == self._subject:
                self.numbers.append(self._number_of(frame.payload))
        self._parser.frames.clear()

    def down(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\r\n")
        self._pongs += lines.count(b"PONG")


class WireTap:
    """Listens on a port of its own while entered. Payloads must hold no line that is "PONG"."""

    def __init__(
        self, target: tuple[str, int], number_of: Callable[[bytes], int], subject: str
    ) -> None:
        self.links: list[TappedLink] = []
        self.is_open = True  # False: new connections are closed at once, those there are stay
        self.life = 1
        self._target = target
        self._number_of = number_of
        self._subject = subject
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._listener.getsockname()[1]}"

    def confirmed_in(self, life: int) -> list[int]:
        """What the server confirmed in that life, in the order of the numbers."""
        links = (link for link in self.links if link.life == life)
        return sorted({number for link in links for number in link.confirmed})

    def __enter__(self) -> WireTap:
        self._greenlets.append(gevent.spawn(self._accept))
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)
        self._listener.close()
        failed = [one.exception for one in self._greenlets if one.exception is not None]
        assert not failed, failed

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.is_open:
                self._greenlets.append(gevent.spawn(self._serve, client))
            else:
                client.close()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.closing(client):
            try:
                server = socket.create_connection(self._target)
            except OSError:
                return
            with contextlib.closing(server):
                link = TappedLink(self.life, self._number_of, self._subject)
                self.links.append(link)
                other = gevent.spawn(_relay, server, client, None, link.down)
                self._greenlets.append(other)
                _relay(client, server, link.up, None)
                other.join(5)


def _relay(
    source: socket.socket,
    sink: socket.socket,
    before: Callable[[bytes], None] | None,
    after: Callable[[bytes], None] | None,
) -> None:
    """Pass bytes on until one side ends; *before* sees them first, *after* once they are passed."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            if before is not None:
                before(data)
            sink.sendall(data)
            if after is not None:
                after(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
