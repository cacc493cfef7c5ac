"""Publishes prebuilt frames as fast as a socket takes them: the sender of the receive benchmark.

Run by runner.py: ``python -m benchmarks.feeder URL``. Each line on stdin, the arguments of
``wire.frames`` in JSON, is one flood; the answer is a line when the server has taken all of it.
"""

from __future__ import annotations

import json
import socket
import sys

from benchmarks.wire import dial, frames, ping

# Bytes per send, about: enough that joining them costs nothing and the server is never idle.
BLOCK = 70_000


def main(url: str) -> None:
    sock = dial(url)
    print("ready", flush=True)
    for line in sys.stdin:
        send(sock, **json.loads(line))
        print("sent", flush=True)


def send(
    sock: socket.socket, subject: str, count: int, size: int, headers: bool, subjects: int
) -> None:
    each = max(1, BLOCK // (size + 60)) if subjects == 1 else subjects
    block = frames(subject, each, size, headers, subjects)
    whole, rest = divmod(count, each)
    for _ in range(whole):
        sock.sendall(block)
    sock.sendall(frames(subject, rest, size, headers, subjects) if rest else b"")
    ping(sock)


if __name__ == "__main__":
    main(sys.argv[1])
