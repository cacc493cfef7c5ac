"""A bare blocking socket: no client, prebuilt frames, nothing parsed. The ceiling for Python."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.clients.contract import Job, Stopwatch, job, latencies, say
from benchmarks.wire import dial, frames, payload_of, ping, recv

_BLOCK = 70_000  # bytes per send, about
_INBOX = "bench.inbox"


def publish(task: Job) -> dict[str, Any]:
    sock = dial(task.url)
    each = max(1, _BLOCK // (task.size + 60))
    block = frames(task.subject, each, task.size)
    watch = Stopwatch()
    for _ in range(task.count // each):
        sock.sendall(block)
    sock.sendall(frames(task.subject, task.count % each, task.size))
    ping(sock)
    return watch.result(task.count)


def receive(task: Job) -> dict[str, Any]:
    """Count bytes only: how many there will be is known."""
    sock = dial(task.url)
    names = task.subscribed()
    for first in range(0, len(names), 1000):
        some = enumerate(names[first : first + 1000], first + 1)
        sock.sendall(b"".join(b"SUB %b %d\r\n" % (name.encode(), sid) for sid, name in some))
    ping(sock)
    lengths = [len(_message(name, sid, task.size)) for sid, name in enumerate(names, 1)]
    rounds, rest = divmod(task.count, task.subjects)
    expected = rounds * sum(lengths[: task.subjects]) + sum(lengths[:rest])
    say(ready=True)
    received = len(recv(sock))
    watch = Stopwatch()
    # A server that pings meanwhile makes it a message short at worst.
    while received < expected:
        received += len(recv(sock))
    return watch.result(task.count - 1)


def serial(task: Job) -> dict[str, Any]:
    sock = dial(task.url)
    sock.sendall(b"SUB %b 1\r\n" % _INBOX.encode())
    ping(sock)
    request = b"PUB %b %b %d\r\n%b\r\n" % (
        task.subject.encode(),
        _INBOX.encode(),
        task.size,
        task.payload,
    )
    whole = len(_message(_INBOX, 1, task.size))

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


def connect(task: Job) -> dict[str, Any]:
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        sock = dial(task.url)
        times.append(time.perf_counter() - began)
        sock.close()
    return {"count": task.count, **latencies(times)}


def _message(subject: str, sid: int, size: int) -> bytes:
    return b"MSG %b %d %d\r\n%b\r\n" % (subject.encode(), sid, size, payload_of(size))


WORKS = {"publish": publish, "receive": receive, "serial": serial, "connect": connect}


def main() -> None:
    task = job()
    say(**WORKS[task.work](task))


if __name__ == "__main__":
    main()
