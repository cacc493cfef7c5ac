"""Makes lists of operations from a seed, runs them, and makes one that fails shorter.

Why not hypothesis: what a list does depends on the scheduling of the kernel and of the server,
too. hypothesis calls an example that does not fail again at once flaky and gives up; here each
shorter list gets several chances to fail.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from .known import Setup, Violation
from .machine import Machine
from .world import World

Operation = tuple[str, "dict[str, Any]"]

SIZES = [0, 1, 16, 200, 3_000, 20_000, 65_536]
_COUNTED = ("accepted", "sent", "uncertain", "dropped", "replayed", "disconnects", "in_msgs")
WAYS = ["tcp", "tcp", "tls", "ws"]
RUNS_PER_SERVER = 40  # its log is read from the start of a run, and grows


# -- making a list ----------------------------------------------------------------------------


def _fault(rng: random.Random) -> dict[str, Any]:
    side = rng.choice(["client", "server", "both"])
    way = rng.choice(["up", "down", "both"])
    stage = rng.choice(["accept", "info", "connect", "pong"])
    few = rng.choice([0, 1, 5, rng.randrange(100), rng.randrange(5_000), rng.randrange(200_000)])
    name, *args = rng.choice(
        [
            ("finish", side),
            ("reset", side),
            ("reset", "both"),
            ("reset", "both"),
            ("cut_after", few, rng.choice(["up", "down"]), rng.random() < 0.5),
            ("cut_after", few, "up", False),
            ("blackhole", way),
            ("blackhole", "both"),
            ("swallow", way),
            ("half_open",),
            ("refuse",),
            ("stall_handshake", stage),
            ("cut_handshake", stage, rng.random() < 0.5),
            ("silent",),
            ("throttle", rng.choice([5_000, 100_000, 2_000_000]), way),
            ("delay", rng.choice([0.002, 0.02, 0.1]), way),
            ("heal",),
            ("heal",),
            ("heal",),
        ]
    )
    return {"name": name, "args": tuple(args)} if args else {"name": name}


def _fault_on_new(rng: random.Random) -> dict[str, Any]:
    way = rng.choice(["up", "down"])
    # A handshake is 300 bytes up, twice that down: cut a little behind it.
    few = rng.choice([rng.randrange(600), rng.randrange(5_000), rng.randrange(500_000)])
    name, *args = rng.choice(
        [
            ("cut_after", few, "up", rng.random() < 0.5),
            ("cut_after", few, way, rng.random() < 0.5),
            ("throttle", rng.choice([20_000, 200_000]), way),
            ("delay", rng.choice([0.002, 0.02]), way),
        ]
    )
    return {"name": name, "args": tuple(args)}


def _subscribe(rng: random.Random) -> dict[str, Any]:
    return {
        "kind": rng.choice(["handler", "handler", "concurrent", "next", "loop"]),
        "queue": rng.random() < 0.2,
        "max_msgs": rng.choice([0, 0, 0, 1, 2, 5, 20]),
        "limit": rng.choice([0, 0, 0, 0, 0, 2]),
        "mood": rng.choice(["", "", "", "block", "raise", "ask", "leave"]),
        "join": rng.random() < 0.7,
    }


def _wait(rng: random.Random) -> bool:
    return rng.random() < 0.6


def _short(rng: random.Random) -> float:
    return rng.choice([0.0, 0.001, 0.01, 0.05, 0.1])


MAKERS: dict[str, tuple[int, Callable[[random.Random], dict[str, Any]]]] = {
    "publish": (
        8,
        lambda rng: {
            "size": rng.choice(SIZES),
            "headers": rng.random() < 0.2,
            "reply": rng.random() < 0.2,
        },
    ),
    "hub_publish": (2, lambda rng: {"size": rng.choice(SIZES)}),
    "burst": (
        6,
        lambda rng: {
            "greenlets": rng.choice([1, 2, 5]),
            "count": rng.choice([5, 20, 60]),
            # The last is above the high-water mark.
            "size": rng.choice([1, 100, 1_000, 30_000, 65_536]),
            "pause": rng.random() < 0.5,
            "wait": rng.random() < 0.3,
        },
    ),
    "subscribe": (6, _subscribe),
    "unsubscribe": (
        3,
        lambda rng: {"which": rng.randrange(9), "more": rng.choice([0, 1, 2, 5, -1])},
    ),
    "drain_sub": (
        2,
        lambda rng: {"which": rng.randrange(9), "timeout": _short(rng), "wait": _wait(rng)},
    ),
    "next_msg": (
        3,
        lambda rng: {"which": rng.randrange(9), "timeout": _short(rng), "wait": _wait(rng)},
    ),
    "tell": (
        6,
        lambda rng: {
            "which": rng.randrange(9),
            "count": rng.choice([1, 2, 10, 50]),
            "reply": rng.random() < 0.3,
        },
    ),
    "sure_tell": (8, lambda rng: {"which": rng.randrange(9), "count": rng.choice([1, 3, 20])}),
    "flush": (4, lambda rng: {"timeout": _short(rng), "wait": _wait(rng)}),
    "rtt": (1, lambda rng: {"timeout": _short(rng)}),
    "request": (
        4,
        lambda rng: {
            "kind": rng.choice(["echo", "echo", "slow", "mute", "none"]),
            "timeout": rng.choice([0.0, 0.001, 0.03, 0.1, 0.5]),
            "count": rng.choice([1, 1, 4, 10]),
            "wait": rng.random() < 0.3,
        },
    ),
    "request_many": (
        2,
        lambda rng: {
            "kind": rng.choice(["many", "many", "many", "none"]),
            "timeout": rng.choice([0.001, 0.03, 0.1]),
            "stall": rng.choice([None, 0.01]),
            "max_msgs": rng.choice([0, 1, 3, 5]),
            "wait": rng.random() < 0.3,
        },
    ),
    "wait_for_ever": (2, lambda rng: {"kind": rng.choice(["request", "status", "next", "flush"])}),
    "strike": (
        4,
        lambda rng: {
            "what": rng.choice(
                [
                    "publish",
                    "publish",
                    "request",
                    "request_many",
                    "flush",
                    "rtt",
                    "next_msg",
                    "drain_sub",
                    "status",
                ]
            ),
            "after": rng.choice([0.0, 0.0, 0.001, 0.005, 0.03]),
            "kill": rng.random() < 0.5,
        },
    ),
    "force_reconnect": (2, lambda rng: {}),
    "servers": (
        1,
        lambda rng: {
            "how": rng.choice(["add dead", "add", "one", "two", "dead first", "dead"]),
        },
    ),
    "mood": (
        2,
        lambda rng: {
            "callback": rng.choice(
                ["connected_cb", "disconnected_cb", "reconnected_cb", "error_cb", "status_cb"]
            ),
            "mood": rng.choice(["raise", "block", "call", "ask", "flush"]),
        },
    ),
    "wait": (8, lambda rng: {"seconds": rng.choice([0.0, 0.0, 0.001, 0.005, 0.02, 0.06, 0.25])}),
    "census": (2, lambda rng: {}),
    "fault": (14, _fault),
    "fault_on_new": (4, _fault_on_new),
    "pause": (2, lambda rng: {}),
    "resume": (3, lambda rng: {}),
    "kill": (3, lambda rng: {}),
    "revive": (5, lambda rng: {}),
}

_KILLS = ("kill", "revive")
_ALWAYS = ("fault", "publish", "subscribe", "tell", "wait")


def make(
    rng: random.Random, keep: bool, kills: bool, way: str = ""
) -> tuple[Setup, list[Operation]]:
    """One run, over *way*, or over any. It uses only some of the operations, each run others: some
    only meet, and meet often, where the rest does not come in between."""
    setup = Setup(
        keep=keep,
        kills=kills,
        buf=rng.choice([2_000, 100_000, 2_000_000, 8_000_000]),
        publish_timeout=rng.choice([None, None, 0.05]),
        rcvbuf=rng.choice([None, None, 4096]),
        patient=rng.random() < 0.25,
        late=rng.random() < 0.15,
        ending=rng.choice(["close", "drain", "leave", "fall", "twice", "hurry", "inside"]),
        in_fault=rng.random() < 0.2,
        limits=rng.random() < 0.5,
        storm=tuple(rng.choices([0.0, 0.001, 0.004, 0.02], k=rng.choice([0, 0, 1, 2, 8]))),
        way=way or rng.choice(WAYS),
    )
    names = [
        name
        for name in MAKERS
        if name in _ALWAYS or (rng.random() < 0.6 if name not in _KILLS else kills)
    ]
    weights = [MAKERS[name][0] for name in names]
    # The first publishes need not wait for luck, nor the first subscription.
    operations: list[Operation] = [("subscribe", _subscribe(rng))] if rng.random() < 0.7 else []
    for name in rng.choices(names, weights, k=rng.choice([6, 12, 20, 30])):
        operations.append((name, MAKERS[name][1](rng)))
    return setup, operations


# -- running, shortening ----------------------------------------------------------------------


class Driver:
    """Runs lists, on one server after the other."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._left = 0
        self.runs = 0
        self.counts: dict[str, int] = {}

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def _drop(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            world.__exit__()

    def run(self, setup: Setup, operations: list[Operation]) -> None:
        """Raises Violation, or what else went wrong."""
        if self._world is None or self._left == 0:
            self._drop()
            self._world = World().__enter__()
            self._left = RUNS_PER_SERVER
        self._left -= 1
        self.runs += 1
        machine = Machine(self._world, setup)
        try:
            machine.run(operations)
        except BaseException:
            self._drop()  # nobody knows what is left of it
            raise
        stats = machine.conn.stats
        for name in _COUNTED:
            self.counts[name] = self.counts.get(name, 0) + getattr(stats, name)

    def failure(self, setup: Setup, operations: list[Operation]) -> Exception | None:
        try:
            self.run(setup, operations)
        except Exception as exc:
            return exc
        return None

    def shorten(
        self, setup: Setup, operations: list[Operation], error: Exception, seconds: float
    ) -> tuple[Setup, list[Operation], Exception]:
        """Delta debugging, within *seconds*: drop operations, then what is unusual of the setup."""
        until = monotonic() + seconds
        operations, error = self._shorten(setup, operations, error, until)
        for field in _unusual(setup):
            simpler = dataclasses.replace(setup, **{field.name: field.default})
            found = self._again(simpler, operations, 2, until)
            if found is not None:
                setup, error = simpler, found
        return setup, operations, error

    def _shorten(
        self, setup: Setup, operations: list[Operation], error: Exception, until: float
    ) -> tuple[list[Operation], Exception]:
        """Drop pieces, halves first, as long as it fails."""
        size = max(1, len(operations) // 2)
        while operations and monotonic() < until:
            for start in range(0, len(operations), size):
                shorter = operations[:start] + operations[start + size :]
                found = self._again(setup, shorter, 3, until)
                if found is not None:
                    operations, error = shorter, found
                    break
            else:
                if size == 1:
                    break
                size = max(1, size // 2)
                continue
            size = min(size, max(1, len(operations) // 2))
        return operations, error

    def _again(
        self, setup: Setup, operations: list[Operation], times: int, until: float
    ) -> Exception | None:
        for _ in range(times):
            error = self.failure(setup, operations) if monotonic() < until else None
            if error is not None:
                return error
        return None


def code(setup: Setup, operations: list[Operation]) -> str:
    """A program that does it again."""
    lines = "".join(f"        ({name!r}, {arguments!r}),\n" for name, arguments in operations)
    unusual = ", ".join(f"{one.name}={getattr(setup, one.name)!r}" for one in _unusual(setup))
    listed = f"[\n{lines}    ]" if lines else "[]"
    return (
        "# Again, in the directory tests: python - < this\n"
        "from model import Setup, again\n\n"
        f"again(\n    Setup({unusual}),\n    {listed},\n)\n"
    )


def _unusual(setup: Setup) -> list[dataclasses.Field[Any]]:
    fields = dataclasses.fields(setup)
    return [field for field in fields if getattr(setup, field.name) != field.default]


def again(setup: Setup, operations: list[Operation], times: int = 10) -> None:
    """Run a list up to so often; what it raises passes through."""
    with Driver() as driver:
        for _ in range(times):
            driver.run(setup, operations)


def explore(
    seed: str, keep: bool, kills: bool, runs: int, seconds: float, shorten: float = 60.0
) -> Driver:
    """Up to *runs* runs within *seconds*. Raises Violation with the shortest list that fails."""
    __tracebackhide__ = True
    until = monotonic() + seconds
    with Driver() as driver:
        for number in range(runs):
            if monotonic() > until:
                break
            setup, operations = make(random.Random(f"{seed}:{number}"), keep, kills)
            error = driver.failure(setup, operations)
            if error is not None:
                _fail(driver, f"{seed}:{number}", setup, operations, error, shorten)
    return driver


def _fail(
    driver: Driver,
    seed: str,
    setup: Setup,
    operations: list[Operation],
    error: Exception,
    seconds: float,
) -> None:
    __tracebackhide__ = True
    count = len(operations)
    setup, shorter, last = driver.shorten(setup, operations, error, seconds)
    raise Violation(
        f"run {seed}: {_told(error)}\n\n{count} operations, shortened to {len(shorter)}:\n\n"
        f"{code(setup, shorter)}\n{_told(last)}"
    ) from None


def _told(error: Exception) -> str:
    """What a violation says; of anything else, from where it came, too."""
    if isinstance(error, Violation):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    gevent.sleep(0)
