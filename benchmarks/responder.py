"""Answers every request with 16 bytes: the same independent third process for every client.

Run by runner.py: ``python -m benchmarks.responder URL SUBJECT``. All requests of one recv are
answered with one send. It ends with its server, or when it is killed.
"""

from __future__ import annotations

import re
import sys

from benchmarks.wire import PAYLOAD, dial, ping

# A whole request with a payload of PAYLOAD's size; group 1 is where the answer goes. Or a PING.
REQUEST = re.compile(
    rb"MSG \S+ \d+ (\S+) %d\r\n.{%d}\r\n|PING\r\n" % (len(PAYLOAD), len(PAYLOAD)), re.DOTALL
)
TAIL = b" %d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD)


def answer(data: bytes) -> tuple[bytes, bytes]:
    """What to send for *data*, and the incomplete rest of it."""
    replies = []
    end = 0
    for match in REQUEST.finditer(data):
        reply = match[1]
        replies.append(b"PUB " + reply + TAIL if reply else b"PONG\r\n")
        end = match.end()
    return b"".join(replies), data[end:]


def main(url: str, subject: str) -> None:
    sock = dial(url)
    sock.sendall(b"SUB %b 1\r\n" % subject.encode())
    ping(sock)
    sock.settimeout(None)  # clients may come late
    print("ready", flush=True)
    rest = b""
    while True:
        data = sock.recv(65536)
        if not data:
            return
        replies, rest = answer(rest + data)
        sock.sendall(replies)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
