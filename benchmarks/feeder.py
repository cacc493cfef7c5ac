"""Publishes prebuilt frames as fast as a socket takes them: the sender of the receive benchmark.

Run by runner.py: ``python -m benchmarks.feeder URL``. Each line on stdin, ``subject count``, is one
flood; the answer is a line when the server has taken all of it.
"""

from __future__ import annotations

import sys

from benchmarks.wire import dial, frames, ping

# Frames per send: about 70 KiB, so that joining them costs nothing and the server is never idle.
BLOCK = 2000


def main(url: str) -> None:
    sock = dial(url)
    print("ready", flush=True)
    for line in sys.stdin:
        subject, count = line.split()
        whole, rest = divmod(int(count), BLOCK)
        block = frames(subject, BLOCK)
        for _ in range(whole):
            sock.sendall(block)
        sock.sendall(frames(subject, rest))
        ping(sock)
        print("sent", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
