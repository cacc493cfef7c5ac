"""Measure what this machine and this server do with gnats: publish, receive, or ask.

All clients run in this one process, each over a connection of its own. The message count is the sum
of all publishers; every subscriber gets every message. Exit status 5: some did not arrive.

  gnats bench --msgs 1000000
  gnats bench --pub 4 --sub 0 --size 1024
  gnats bench --request --pub 10 --msgs 20000
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, count, seconds
from gnats.cli.link import Refusals, confirm, connected, patiently
from gnats.cli.notices import plural, say
from gnats.cli.output import Output
from gnats.cli.progress import progress

_QUEUE = "gnats-bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", nargs="?", help="default: one that nobody else uses")
    parser.add_argument("--pub", metavar="N", type=_number, default=1, help="publishers (1)")
    parser.add_argument("--sub", metavar="N", type=_number, default=1, help="subscribers (1)")
    parser.add_argument(
        "-n", "--msgs", metavar="N", type=count, default=100_000, help="messages (100,000)"
    )
    parser.add_argument(
        "--size", metavar="BYTES", type=_number, default=16, help="of a payload (16)"
    )
    parser.add_argument(
        "--request", action="store_true", help="publishers ask, subscribers share the answering"
    )
    parser.add_argument(
        "--at-least-once", action="store_true", help="publish with replay_unconfirmed"
    )
    parser.add_argument(
        "--stall",
        metavar="S",
        type=seconds,
        default=5.0,
        help="give up on messages after so long without one; or on one answer (5)",
    )
    add_output(parser)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.pub:
        raise exits.CommandError("--pub: at least one must publish", exits.USAGE)
    if arguments.request and not arguments.sub:
        raise exits.CommandError("--request needs someone to answer: --sub", exits.USAGE)
    with Output() as output, contextlib.ExitStack() as stack:
        refusals = Refusals()
        link = _link_maker(stack, arguments, refusals)
        trial = (Requests if arguments.request else Stream)(arguments, link)
        try:
            with progress(trial.what, trial.expected, trial.done, arguments.quiet):
                facts = trial.run()
        except exits.Interrupted:
            say(f"interrupted after {plural(trial.done(), 'message')}", "error")
            raise
        facts = {"mode": trial.what, "size": arguments.size, **facts}
        output.write_json(facts) if arguments.json else output.write(_text(facts))
        complete = facts["done"] == facts["expected"]
        return refusals.judge(exits.DONE if complete else exits.INCOMPLETE)


def _link_maker(
    stack: contextlib.ExitStack, arguments: argparse.Namespace, refusals: Refusals
) -> Any:
    """Makes one more connection, closed at the end."""

    def link(**fields: Any) -> gnats.Connection:
        return stack.enter_context(connected(arguments, refusals, **fields))

    return link


def _delivered(stats: gnats.Stats) -> int:
    return stats.accepted - stats.uncertain - stats.dropped


def _shares(total: int, among: int) -> list[int]:
    """*total*, parted as evenly as it goes."""
    return [total // among + (number < total % among) for number in range(among)]


def _side_by_side(jobs: Iterable[Callable[[], None]]) -> None:
    """Run them to their end; the first error of gnats is raised here, at once."""

    def run(job: Callable[[], None]) -> gnats.errors.Error | None:
        try:
            job()
        except gnats.errors.Error as exc:
            return exc
        return None

    greenlets = [gevent.spawn(run, job) for job in jobs]
    try:
        for greenlet in gevent.iwait(greenlets):
            error = greenlet.get()
            if error is not None:
                raise error
    finally:
        gevent.killall(greenlets)


class Stream:
    """Publishers send, each subscriber receives everything."""

    def __init__(self, arguments: argparse.Namespace, link: Any) -> None:
        self._arguments = arguments
        self._payload = b"x" * arguments.size
        self._publishers = [
            link(replay_unconfirmed=arguments.at_least_once) for _ in range(arguments.pub)
        ]
        self._subject = arguments.subject or self._publishers[0].new_inbox()
        self._readers = [Reader(link(), self._subject) for _ in range(arguments.sub)]
        self._last_change = 0.0
        self.what = "publish and receive" if self._readers else "publish"
        self.expected = arguments.msgs * max(1, len(self._readers))

    def done(self) -> int:
        if self._readers:
            return sum(reader.received for reader in self._readers)
        return sum(_delivered(conn.stats) for conn in self._publishers)

    def run(self) -> dict[str, Any]:
        msgs = self._arguments.msgs
        for reader in self._readers:
            reader.begin(msgs)
        began = time.perf_counter()
        _side_by_side(
            functools.partial(self._publish, conn, share)
            for conn, share in zip(self._publishers, _shares(msgs, len(self._publishers)))
        )
        published = time.perf_counter() - began
        self._await_readers()
        facts = {"done": self.done(), "expected": self.expected}
        return {
            **facts,
            "publish": _rate(msgs, published, self._arguments.size),
            **self._received(),
        }

    def _publish(self, conn: gnats.Connection, share: int) -> None:
        publish, subject, payload = conn.publish, self._subject, self._payload
        for _ in range(share):
            try:
                publish(subject, payload)
            except gnats.errors.OutboundBufferLimitError:
                patiently(conn, publish, subject, payload)
        confirm(conn)

    def _await_readers(self) -> None:
        """Until all have all, or nothing comes any more."""
        before = -1
        while not all(reader.finished.is_set() for reader in self._readers):
            if self.done() == before:
                return
            before, self._last_change = self.done(), time.perf_counter()
            gevent.wait(
                [reader.finished for reader in self._readers], timeout=self._arguments.stall
            )

    def _received(self) -> dict[str, Any]:
        if not self._readers:
            return {}
        received = sum(reader.received for reader in self._readers)
        elapsed = max(reader.took(self._last_change) for reader in self._readers)
        return {"receive": _rate(received, elapsed, self._arguments.size)}


class Reader:
    """Counts what comes to one subscription."""

    def __init__(self, conn: gnats.Connection, subject: str) -> None:
        self.received = 0
        self.elapsed = 0.0
        self.finished = Event()
        self._expected = -1
        self._began = 0.0
        conn.subscribe(subject, cb=self._take)
        confirm(conn)

    def begin(self, expected: int) -> None:
        self._expected = expected
        self._began = time.perf_counter()

    def took(self, last_change: float) -> float:
        """Seconds until all had come; else until something was last seen to come."""
        return self.elapsed or max(0.0, last_change - self._began)

    def _take(self, _: gnats.Msg) -> None:
        self.received += 1
        if self.received == self._expected:
            self.elapsed = time.perf_counter() - self._began
            self.finished.set()


class Requests:
    """Each publisher asks, one question after the other; the subscribers share the answering."""

    what = "request"

    def __init__(self, arguments: argparse.Namespace, link: Any) -> None:
        self._arguments = arguments
        self._payload = b"x" * arguments.size
        self._askers: Sequence[gnats.Connection] = [link() for _ in range(arguments.pub)]
        self._subject = arguments.subject or self._askers[0].new_inbox()
        self.expected = arguments.msgs
        self._times: list[float] = []
        for _ in range(arguments.sub):
            conn = link()
            conn.subscribe(self._subject, queue=_QUEUE, cb=lambda msg: msg.respond(msg.data))
            confirm(conn)

    def done(self) -> int:
        return len(self._times)

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        _side_by_side(
            functools.partial(self._ask, conn, share)
            for conn, share in zip(self._askers, _shares(self.expected, len(self._askers)))
        )
        elapsed = time.perf_counter() - began
        times = sorted(self._times)
        return {
            "done": self.done(),
            "expected": self.expected,
            "request": _rate(len(times), elapsed, self._arguments.size),
            "latency": {
                name: times[min(len(times) - 1, int(len(times) * part))] if times else None
                for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }

    def _ask(self, conn: gnats.Connection, share: int) -> None:
        clock, times = time.perf_counter, self._times
        subject, payload, timeout = self._subject, self._payload, self._arguments.stall
        for _ in range(share):
            began = clock()
            try:
                conn.request(subject, payload, timeout)
            except (gnats.errors.TimeoutError, gnats.errors.NoRespondersError):
                continue  # not counted: the sum tells
            times.append(clock() - began)


def _rate(msgs: int, elapsed: float, size: int) -> dict[str, float]:
    """Nothing is claimed for what did not happen."""
    per_second = msgs / elapsed if elapsed else 0.0
    return {
        "msgs": msgs,
        "seconds": round(elapsed, 6),
        "msgs_per_second": round(per_second, 1),
        "bytes_per_second": round(per_second * size, 1),
    }


def _text(facts: dict[str, Any]) -> bytes:
    lines = []
    for name in ("publish", "receive", "request"):
        if name in facts:
            rate = facts[name]
            lines.append(
                f"{name:<8} {rate['msgs_per_second']:>12,.0f} msg/s "
                f"{rate['bytes_per_second'] / 1e6:>10,.1f} MB/s   "
                f"{plural(int(rate['msgs']), 'message')} in {rate['seconds']:.3f} s"
            )
    if facts.get("latency", {}).get("p50") is not None:
        parts = (f"{name} {value * 1e6:,.0f} µs" for name, value in facts["latency"].items())
        lines.append(f"latency  {', '.join(parts)}")
    if facts["done"] != facts["expected"]:
        lines.append(f"MISSING  {facts['expected'] - facts['done']:,} of {facts['expected']:,}")
    return ("\n".join(lines) + "\n").encode()


def _number(text: str) -> int:
    return 0 if text == "0" else count(text)
