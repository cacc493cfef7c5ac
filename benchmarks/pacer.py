"""Publishes prebuilt frames at a steady rate: a flood that leaves the machine some room.

Run by web.py: ``python -m benchmarks.pacer URL subject rate``, messages per second, until its stdin
is closed.
"""

from __future__ import annotations

import select
import sys
import time

from benchmarks.wire import dial, frames

TICK = 0.01  # seconds between two bursts


def main(url: str, subject: str, rate: float) -> None:
    sock = dial(url)
    block = frames(subject, max(1, round(rate * TICK)))
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        if time.monotonic() >= due:
            due += TICK
            sock.sendall(block)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
