"""The column of comparison: a fault in the middle of a publish flood, done to nats-py.

The same rigs, strikes and witnesses; the application is ``natspy_app``, in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
from gevent.subprocess import PIPE, Popen, TimeoutExpired

from gnats.testing import wait_until

from .app import OPTIONS
from .hosts import ANSWERS, LIVING, NAME
from .rig import Rig, Rigs
from .table import FAULTS, MOMENTS, Fault

PATIENCE = 10.0  # seconds for it to come back, to answer, to end
NOTICE = 3.0
_SCRIPT = Path(__file__).with_name("natspy_app.py")


@dataclass
class Compared:
    """What nats-py did. Times in seconds."""

    fault: str
    came_back: bool = False
    message_after: float | None = None
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    late: int = 0
    altered: int = 0
    closed_itself: bool = False
    hung: str = ""  # the call that did not end
    events: dict[str, int] = field(default_factory=dict)


class NatspyProcess:
    """The application, and what can be done to its process: see `hosts`."""

    def __init__(self, rig: Rig, fault: Fault) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []
        given = {"subject": f"numbers.{rig.name}", "options": _options(rig, fault)}
        self._process = Popen(
            [sys.executable, str(_SCRIPT), json.dumps(given)], stdin=PIPE, stdout=PIPE
        )
        self._reader = gevent.spawn(self._read)

    def order(self, do: str, **details: Any) -> None:
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died, which the events tell

    def heard(self, event: str) -> list[dict[str, Any]]:
        return [one for _, one in self.events if one["event"] == event]

    def resolve(self, mode: str) -> None:
        self._order_and_wait("resolve", answers=ANSWERS[mode])

    def turn_clock(self, seconds: float) -> None:
        self._order_and_wait("clock", by=seconds)

    def _order_and_wait(self, do: str, **details: Any) -> None:
        known = len(self.heard("obeyed"))
        self.order(do, **details)
        wait_until(lambda: len(self.heard("obeyed")) > known, PATIENCE, f"nats-py to obey: {do}")

    def stand_still(self, seconds: float) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        gevent.sleep(seconds)
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        try:
            self._process.wait(timeout=PATIENCE)
        except TimeoutExpired:
            pass
        self._reader.kill()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.events.append((monotonic(), json.loads(line)))


def compare(rigs: Rigs, fault: Fault, seed: str) -> Compared:
    """Play one fault on nats-py. Switches."""
    rng = random.Random(f"{seed}:nats-py:{fault.name}")
    rigs.tidy(fault.house)
    with rigs.rig(fault.house, rng) as rig:
        rig.reach = {"up": MOMENTS["publishing"].reach_up, "down": MOMENTS["publishing"].reach_down}
        process = rig.host = NatspyProcess(rig, fault)
        try:
            return _play(rig, fault, process)
        finally:
            process.close()


def compare_all(rigs: Rigs, seed: str) -> list[Compared]:
    return [compare(rigs, fault, seed) for fault in FAULTS.values() if fault.compared]


def _play(rig: Rig, fault: Fault, process: NatspyProcess) -> Compared:
    result = Compared(fault.name)
    journal = rig.journal
    wait_until(lambda: len(journal.arrivals) > 200, PATIENCE, "the flood of nats-py")
    struck = monotonic()
    fault.inflict(rig, False)
    _await_notice(rig, fault, process, struck)
    noticed = monotonic()
    fault.cure(rig)
    if rig.proxy is not None:
        rig.proxy.heal()
    at_once = fault.noticed and not fault.lasting
    _await_return(
        rig,
        process,
        struck if at_once else monotonic(),
        noticed if at_once else monotonic(),
        result,
    )
    result.closed_itself = bool(process.heard("closed"))
    process.order("stop")
    for event in ("stopped", "flushed", "left"):
        if not _comes(process, event):
            result.hung = {"stopped": "publish", "flushed": "flush", "left": "close"}[event]
            break
    rig.settle(clients=0)
    stopped = process.heard("stopped") or process.heard("published") or [{}]
    result.accepted = stopped[-1].get("accepted", stopped[-1].get("count", 0))
    arrived = {number for number, _ in journal.arrivals}
    result.lost = len(set(range(result.accepted)) - arrived)
    result.doubled, result.late = journal.doubled, len(journal.late())
    result.altered = journal.altered
    for _, one in process.events:
        if one["event"] != "published":
            result.events[one["event"]] = result.events.get(one["event"], 0) + 1
    return result


def _await_notice(rig: Rig, fault: Fault, process: NatspyProcess, struck: float) -> None:
    deadline = monotonic() + NOTICE
    while fault.noticed and monotonic() < deadline:
        if any(
            when >= struck and event["event"] == "disconnected" for when, event in process.events
        ):
            break
        gevent.sleep(0.005)
    if fault.lasting or not fault.noticed:
        gevent.sleep(rig.rng.random() * fault.dwell)


def _await_return(
    rig: Rig, process: NatspyProcess, since: float, fresh: float, result: Compared
) -> None:
    """A message that was published after *fresh* arrives; the time counts from *since*."""
    first = None
    deadline = since + PATIENCE
    while monotonic() < deadline:
        published = [
            event["count"]
            for when, event in process.events
            if event["event"] == "published" and when < fresh + 0.01
        ]
        first = published[-1] + 100 if published else 0
        come = [when for number, when in rig.journal.arrivals if number >= first and when >= fresh]
        if come:
            result.came_back, result.message_after = True, min(come) - since
            return
        gevent.sleep(0.005)


def _comes(process: NatspyProcess, event: str) -> bool:
    try:
        wait_until(lambda: process.heard(event), 2 * PATIENCE)
    except AssertionError:
        return False
    return True


def _options(rig: Rig, fault: Fault) -> dict[str, Any]:
    """The same as gnats gets, under nats-py's names."""
    urls = rig.house.urls(rig.proxy)
    if fault.named:
        urls = [url.replace(LIVING, NAME) for url in urls]
    return {
        "servers": urls,
        "ping_interval": OPTIONS["ping_interval"],
        "max_outstanding_pings": OPTIONS["max_pings_out"],
        "connect_timeout": OPTIONS["connect_timeout"],
        "reconnect_time_wait": OPTIONS["reconnect_wait"],
        "max_reconnect_attempts": -1,
        "pending_size": 8 * 1024 * 1024,
    }
