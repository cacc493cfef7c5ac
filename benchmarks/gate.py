"""A door between client and server that can be shut and opened: the outage of the return benchmark.

Run by runner.py: ``python -m benchmarks.gate URL``. The first line it prints is its own address.
``shut`` on stdin resets every link and refuses new ones; ``open`` listens again and prints when.
Then it prints when it accepted the next link, and when the first PUB passed. Times are those of
``time.monotonic()``, which on Linux is one clock for all processes.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds
_PUB = b"\r\nPUB "


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class Gate:
    """One listener, two threads per link."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._links: list[socket.socket] = []
        self._watching = False
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # shut
            accepted = time.monotonic()
            server = socket.create_connection(self._target)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links += [client, server]
            first = self._up_watched if self._watching else self._up
            threading.Thread(target=first, args=(client, server, accepted), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, _: float) -> None:
        self._pass(client, server)

    def _up_watched(self, client: socket.socket, server: socket.socket, accepted: float) -> None:
        tail = b""
        try:
            while data := client.recv(65536):
                if _PUB in tail + data:
                    say(accepted=accepted, first=time.monotonic())
                    server.sendall(data)
                    break
                server.sendall(data)
                tail = data[-len(_PUB) :]
            self._pass(client, server)
        except OSError:
            pass  # shut

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass  # shut
        finally:
            target.close()

    def shut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        links, self._links = self._links, []
        for sock in links:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            except OSError:
                pass  # closed already
        say(shut=True)

    def open(self) -> None:
        self._watching = True
        self._listener = self._listen(self.port)
        say(opened=time.monotonic())


def main(url: str) -> None:
    gate = Gate(url)
    say(url=f"nats://127.0.0.1:{gate.port}")
    for line in sys.stdin:
        getattr(gate, line.strip())()


if __name__ == "__main__":
    main(sys.argv[1])
