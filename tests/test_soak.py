"""The soak runs, tells what it should, and overlooks nothing. Long runs: ``tox run -e soak``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from soak import meter
from soak.ledger import Ledger

TESTS = Path(__file__).resolve().parent

# A client that forgets what it should send again, and one that sends again what it should not.
FORGETFUL = "OutboundBuffer._kept = lambda self, whole: []"
STUBBORN = """
last = {}
take, lost = OutboundBuffer.take, OutboundBuffer.lost
def note(self, whole=False):
    data = take(self, whole)
    last[id(self)] = [frame for frame in self._batch if is_message(frame)] or last.get(id(self), [])
    return data
def again(self):
    lost(self)
    if not self.keep:
        self.frames = last.pop(id(self), []) + self.frames
        self.size = sum(map(len, self.frames))
OutboundBuffer.take, OutboundBuffer.lost = note, again
"""
MAIN = """
import sys
from gnats.buffer import OutboundBuffer
from gnats.commands import is_message
from soak.__main__ import main
{}
sys.exit(main(sys.argv[1:]))
"""


def start(*args: str, code: str = "") -> subprocess.Popen[str]:
    program = ["-c", MAIN.format(code)] if code else ["-m", "soak"]
    return subprocess.Popen(
        [sys.executable, *program, *args],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=90)[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.once
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", [(), ("--tls",)], ids=["clear", "TLS"])
def test_a_short_soak_ends_in_a_summary(way: tuple[str, ...]) -> None:
    process = start("--minutes", "0.2", *way)
    said = finish(process)
    assert process.returncode == 0, said
    for word in ("seed", "faults", "kept-1", "plain-2", "requests", "subscribed", "greenlets"):
        assert word in said
    assert said.splitlines()[-1].startswith("PASSED"), said


@pytest.mark.once
@pytest.mark.timeout(120)
def test_ctrl_c_ends_it_with_its_summary() -> None:
    process = start("--minutes", "9")
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()  # the first quiet point is over
    process.send_signal(signal.SIGINT)
    said += finish(process)
    assert process.returncode == 0, said
    assert "interrupted" in said
    assert said.splitlines()[-1].startswith("PASSED"), said


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("code", "words"),
    [(FORGETFUL, "at least once lost"), (STUBBORN, "at most once doubled")],
    ids=["forgetful", "stubborn"],
)
def test_a_client_that_breaks_its_promise_is_found_out(code: str, words: str) -> None:
    process = start("--minutes", "0.5", code=code)
    said = finish(process)
    assert process.returncode == 1, said
    assert words in said
    assert "FAILED" in said.splitlines()[-1]


# -- its parts ------------------------------------------------------------------------------------


def test_a_ledger() -> None:
    ledger = Ledger()
    for number in (1, 2, 5, 4, 4, 1, 7):
        ledger.take(number)
    assert (ledger.newest, ledger.late, ledger.doubled) == (7, 1, 2)
    assert ledger.missing(6) == {3, 6}
    assert ledger.missing(9) == {3, 6, 8, 9}
    ledger.forgive({3, 6, 8, 9})
    assert ledger.missing(9) == set()
    ledger.take(10)
    assert ledger.missing(11) == {11}
    ledger.take(3)
    assert ledger.doubled == 3


def samples(*memory: float) -> list[meter.Sample]:
    return [
        meter.Sample(minute, int(megabytes * 1e6), 0, 0, 0)
        for minute, megabytes in enumerate(memory)
    ]


def test_growth_is_that_of_the_second_half() -> None:
    assert meter.growth(samples(*range(0, 70, 10), *[70] * 7), "memory") == 0
    assert meter.growth(samples(*[30] * 5, 30, 31, 32, 33, 34), "memory") == pytest.approx(4e6)


def test_a_sample_beside_the_line_is_no_growth() -> None:
    assert meter.growth(samples(30, 30, 30, 30, 30, 30, 90, 30, 30, 30), "memory") == 0
    assert meter.growth(samples(30, 30, 30, 30, 30, 30, 30, 30, 30, 90), "memory") == 0


def test_what_grows_is_found() -> None:
    assert meter.findings(samples(*range(30, 60))) == [
        "memory: grew by 14.0 MB over the second half, the limit is 4"
    ]
    assert meter.findings(samples(*range(30, 37))) == []  # too few to tell


def test_a_sample_counts_what_is_there() -> None:
    gevent.sleep(0)  # now there is a hub
    before = meter.take(1.0)
    parked = gevent.spawn(gevent.sleep, 60)
    gevent.sleep(0)
    with open(__file__, "rb"):
        kept = [str(number) for number in range(100_000)]
        after = meter.take(2.0)
    parked.kill()
    assert (before.minute, after.minute) == (1.0, 2.0)
    assert after.greenlets == before.greenlets + 1
    assert after.descriptors == before.descriptors + 1
    # The interpreter itself gives back a block or takes one meanwhile.
    assert 99_900 < after.blocks - before.blocks < 101_000
    assert len(kept) == 100_000
