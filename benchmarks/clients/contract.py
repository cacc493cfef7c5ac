"""What the runner and a client say to each other: arguments in, lines of JSON out.

A client is run as ``python -m benchmarks.clients.NAME JOB``; JOB is the JSON of a ``Job``. One that
needs to be fed says ``{"ready": true}`` first. The last line is the result: ``seconds`` and
``count`` give the rate, ``latencies`` and ``cpu`` (seconds of this process) come where they mean
something.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.wire import payload_of

# Requests under load may take long on a busy machine; a lost one must not hang the run.
REQUEST_TIMEOUT = 10.0
# Seconds between two attempts, the same for all, so that they differ in what they do then.
RECONNECT_WAIT = 0.01
# Part of the count that goes first and is not measured: caches, the inbox, the specialising
# interpreter.
WARM_UP = 0.05


class Job(NamedTuple):
    """One measurement: what, where, how much."""

    work: str
    url: str
    subject: str
    count: int
    size: int = 16  # bytes of a payload
    headers: bool = False
    subjects: int = 1  # that messages are spread over: subject.0, subject.1, ...
    subscriptions: int = 1
    requesters: int = 1

    @property
    def warm_up(self) -> int:
        return max(self.requesters, 100 if self.size < 10_000 else 1, int(self.count * WARM_UP))

    @property
    def payload(self) -> bytes:
        return payload_of(self.size)

    def subscribed(self) -> list[str]:
        """The subjects to subscribe to: those that messages come for, and idle ones beside."""
        own = [self.subject]
        if self.subjects > 1:
            own = [f"{self.subject}.{number}" for number in range(self.subjects)]
        idle = range(self.subscriptions - len(own))
        return own + [f"{self.subject}.idle.{number}" for number in idle]


def job(argv: Sequence[str] | None = None) -> Job:
    (text,) = sys.argv[1:] if argv is None else argv
    return Job(**json.loads(text))


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class Stopwatch:
    """Wall and CPU time from ``start`` to ``result``."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def result(self, count: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        return {"seconds": seconds, "cpu": time.process_time() - self._cpu, "count": count}


def latencies(times: list[float]) -> dict[str, float]:
    """The median and the 99th percentile of *times*, in seconds."""
    ordered = sorted(times)
    return {
        "median": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }


def resident() -> int:
    """Bytes of memory of this process that are in use now. Linux; 0 elsewhere."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
