"""``python -m benchmarks.web``: what a flood of messages does to a web request beside it.

One gunicorn gevent worker with a subscription. Turn by turn, a client asks it for a page that has
nothing to do with NATS: while nothing is published, and while the subscription receives messages at
a steady rate. Sender, server and client are processes of their own. Needs gunicorn.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from benchmarks.machine import describe
from gnats.testing import NatsServer, free_port

ASKED = 100  # pages per second
START_TIMEOUT = 20.0  # seconds


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    with NatsServer() as server, _gunicorn(server.url) as port, closing(_Client(port)) as client:
        client.measure(1.0)  # nothing is measured in the first second
        quiet: list[float] = []
        flooded: list[float] = []
        rates: list[float] = []
        for _ in range(options.rounds):
            quiet += client.measure(options.seconds)
            with _flood(server.url, options.rate):
                client.await_messages()
                before, began = client.received(), time.monotonic()
                flooded += client.measure(options.seconds)
                rates.append((client.received() - before) / (time.monotonic() - began))
    for name, value in describe().items():
        print(f"{name}: {value}")
    print(f"received meanwhile: {statistics.median(rates):,.0f} messages a second\n")
    print(f"{'':>20}  {'median':>8}  {'p99':>8}  {'worst':>8}   of {len(quiet)} pages each")
    for what, times in (("nothing published", quiet), ("under the flood", flooded)):
        figures = "  ".join(f"{value * 1000:5.2f} ms" for value in _figures(times))
        print(f"{what:>20}  {figures}")
    ratios = (b / a for a, b in zip(_figures(quiet), _figures(flooded)))
    print(f"{'flood ÷ nothing':>20}  " + "  ".join(f"{ratio:7.2f}×" for ratio in ratios))
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="per turn")
    parser.add_argument("--rate", type=float, default=50_000, help="messages a second")
    return parser.parse_args(argv)


def _figures(times: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile, worst."""
    ordered = sorted(times)
    return statistics.median(ordered), ordered[len(ordered) * 99 // 100], ordered[-1]


class _Client:
    """Asks for pages at a steady pace, over one connection."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT)

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str) -> bytes:
        self._http.request("GET", path)
        return self._http.getresponse().read()

    def received(self) -> int:
        return int(self._get("/received"))

    def await_messages(self) -> None:
        """Until the flood has come: its sender is a process that has to start first."""
        before = self.received()
        deadline = time.monotonic() + START_TIMEOUT
        while self.received() == before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the flood did not come within {START_TIMEOUT} s")
            time.sleep(0.01)

    def measure(self, seconds: float) -> list[float]:
        """Seconds that each page took, from when it was due: a page that was held up by the one
        before it has waited, too."""
        times = []
        began = time.monotonic()
        for number in range(max(1, round(seconds * ASKED))):
            due = began + number / ASKED
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic()) if number == 0 else due
            self._get("/")
            times.append(time.monotonic() - due)
        return times


@contextmanager
def _gunicorn(nats_url: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1"),
            *("-b", f"127.0.0.1:{port}", "--keep-alive", "60", "--log-level", "warning"),
            *("-c", "python:gnats.contrib.gunicorn", "benchmarks.web_app:app"),
        ],
        env={**os.environ, "BENCH_NATS_URL": nats_url},
    )
    try:
        _await_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with closing(_Client(port)) as client:
                client.received()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def _flood(url: str, rate: float) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pacer", url, "bench.web", str(rate)],
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
