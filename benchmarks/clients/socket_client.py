"""A bare blocking socket: no client, prebuilt frames, nothing parsed. The ceiling for Python."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.clients.contract import Job, Stopwatch, job, latencies, say
from benchmarks.wire import PAYLOAD, dial, frames, ping, recv

_BLOCK = 2000  # frames per send
_INBOX = "bench.inbox"


def publish(task: Job) -> dict[str, Any]:
    sock = dial(task.url)
    block = frames(task.subject, _BLOCK)
    watch = Stopwatch()
    for _ in range(task.count // _BLOCK):
        sock.sendall(block)
    sock.sendall(frames(task.subject, task.count % _BLOCK))
    ping(sock)
    return watch.result(task.count)


def receive(task: Job) -> dict[str, Any]:
    """Count bytes only: every message has the same length."""
    sock = dial(task.url)
    sock.sendall(b"SUB %b 1\r\n" % task.subject.encode())
    ping(sock)
    size = len(_message(task.subject, 1))
    say(ready=True)
    received = len(recv(sock))
    watch = Stopwatch()
    # A server that pings meanwhile makes it a message short at worst.
    while received < task.count * size:
        received += len(recv(sock))
    return watch.result(task.count - 1)


def serial(task: Job) -> dict[str, Any]:
    sock = dial(task.url)
    sock.sendall(b"SUB %b 1\r\n" % _INBOX.encode())
    ping(sock)
    request = b"PUB %b %b %d\r\n%b\r\n" % (
        task.subject.encode(),
        _INBOX.encode(),
        len(PAYLOAD),
        PAYLOAD,
    )
    whole = len(_message(_INBOX, 1))

    def ask() -> None:
        sock.sendall(request)
        got = 0
        while got < whole:
            got += len(recv(sock).replace(b"PING\r\n", b""))

    clock, times = time.perf_counter, []
    for _ in range(task.warm_up):
        ask()
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        ask()
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


def _message(subject: str, sid: int) -> bytes:
    return b"MSG %b %d %d\r\n%b\r\n" % (subject.encode(), sid, len(PAYLOAD), PAYLOAD)


CASES = {"publish": publish, "receive": receive, "serial": serial}


def main() -> None:
    task = job()
    say(**CASES[task.case](task))


if __name__ == "__main__":
    main()
