"""The protocol by hand, for feeder, responder and bare-socket client.

Blocking sockets and no client library: whoever feeds or answers a client must have nothing in
common with it.
"""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import urlsplit

__all__ = ["CA_FILE", "HEADER", "PAYLOAD", "dial", "frames", "payload_of", "ping", "recv"]

PAYLOAD = b"0123456789abcdef"
#: The one header of messages that have headers.
HEADER = ("Bench-Header", "value of the header")
#: The environment's word for the file of the authority that tls:// servers are checked against.
CA_FILE = "GNATS_BENCH_CA"
_CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"lang":"raw","version":"0"}\r\n'
)
_TIMEOUT = 60.0  # seconds; a process whose peer is stuck ends by itself


def dial(url: str) -> socket.socket:
    """A connected socket behind the handshake."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while not recv(sock).endswith(b"\r\n"):
        pass  # INFO
    if parts.scheme == "tls":
        context = ssl.create_default_context(cafile=os.environ[CA_FILE])
        sock = context.wrap_socket(sock, server_hostname=parts.hostname)
    sock.sendall(_CONNECT)
    ping(sock)
    return sock


def recv(sock: socket.socket) -> bytes:
    """The next bytes. Raises ConnectionError at the end."""
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def ping(sock: socket.socket) -> None:
    """Return once the server has processed all that was sent. For a socket to which no messages
    come meanwhile; a PING of the server itself is answered."""
    sock.sendall(b"PING\r\n")
    received = b""
    while b"PONG\r\n" not in received:
        received += recv(sock)
    for _ in range(received.count(b"PING\r\n")):
        sock.sendall(b"PONG\r\n")


def payload_of(size: int) -> bytes:
    """So many bytes, the same for everyone."""
    return (PAYLOAD * (size // len(PAYLOAD) + 1))[:size]


def frames(
    subject: str, count: int, size: int = len(PAYLOAD), headers: bool = False, subjects: int = 1
) -> bytes:
    """*count* PUB frames, or HPUB with a header; with several *subjects* to each in turn."""
    payload = payload_of(size)
    block = b"NATS/1.0\r\n%b: %b\r\n\r\n" % (HEADER[0].encode(), HEADER[1].encode())
    sizes = b"%d %d" % (len(block), len(block) + size) if headers else b"%d" % size
    verb, body = (b"HPUB", block + payload) if headers else (b"PUB", payload)

    def frame(name: str) -> bytes:
        return b"%b %b %b\r\n%b\r\n" % (verb, name.encode(), sizes, body)

    if subjects == 1:
        return frame(subject) * count
    return b"".join(frame(f"{subject}.{number % subjects}") for number in range(count))
