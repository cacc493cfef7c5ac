"""A proxy that can put words into the server's mouth: an -ERR between two frames, then the end.

For what a real server says only with means that gnats does not have yet, as expired JWTs.
"""

from __future__ import annotations

import contextlib

import gevent
from gevent import socket
from gevent.server import StreamServer


class Relay:
    """Passes bytes on, until `speak`; from then on every link ends with those words."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._words: bytes | None = None
        self._links: set[_Link] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._server.server_port}"

    def speak(self, words: str) -> None:
        """End the live links, and the new ones at their CONNECT, with ``-ERR 'words'``."""
        self._words = f"-ERR '{words}'\r\n".encode()
        for link in list(self._links):
            link.parting = self._words
            link.part_if_between_frames()

    def hush(self) -> None:
        self._words = None

    def close(self) -> None:
        self.hush()
        self._server.stop(timeout=0.1)
        for link in list(self._links):
            link.close()

    def _serve(self, client: socket.socket, _address: object) -> None:
        try:
            server = socket.create_connection(self._target, timeout=2.0)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        link = _Link(client, server)
        self._links.add(link)
        try:
            if self._words is not None:
                link.refuse(self._words)
            else:
                link.run()
        finally:
            self._links.discard(link)
            link.close()


class _Link:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.parting: bytes | None = None
        self._sending = False

    def run(self) -> None:
        up = gevent.spawn(self._pass_up)
        try:
            self._pass_down()
        finally:
            up.kill()

    def refuse(self, words: bytes) -> None:
        """The server's INFO, the client's CONNECT, and the words."""
        with contextlib.suppress(OSError):
            self.client.settimeout(2.0)
            self.client.sendall(self.server.recv(65536))
            self.client.recv(65536)
            self.client.sendall(words)

    def part_if_between_frames(self) -> None:
        if self.parting is not None and not self._sending:
            parting, self.parting = self.parting, None
            self._sending = True
            with contextlib.suppress(OSError):
                self.client.sendall(parting)
            self.close()

    def close(self) -> None:
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _pass_up(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(65536):
                self.server.sendall(data)
            self.server.shutdown(socket.SHUT_WR)

    def _pass_down(self) -> None:
        partial = b""
        with contextlib.suppress(OSError):
            while data := self.server.recv(65536):
                whole, partial = _split(partial + data)  # only whole frames are sent
                self._sending = True
                self.client.sendall(whole)
                self._sending = False
                self.part_if_between_frames()


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The whole frames at its beginning, and the rest."""
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        end += 2
        if data.startswith(b"MSG ", at):
            end += int(data[at:end].split()[-1]) + 2
            if end > len(data):
                break
        at = end
    return data[:at], data[at:]
