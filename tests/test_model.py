"""Random operations and faults against a real server behind a ChaosProxy; see tests/model.

A failure prints a short list of operations as a program that does it again. Without server kills
everything is still at the server when a link is lost, with them it is not: the two are apart, so
that the first can expect more.
"""

from __future__ import annotations

import logging
import random

import pytest
from model import explore

SHORT = 4.0  # seconds of each of the four
SHORT_RUNS = 12  # and not more runs than that
LONG = 55.0

KEEP = pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
KILLS = pytest.mark.parametrize("kills", [False, True], ids=["one server", "killed servers"])


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "gnats")  # pytest keeps every record


@pytest.mark.once
@pytest.mark.timeout(180)
@KEEP
@KILLS
def test_the_model_for_a_while(rng: random.Random, keep: bool, kills: bool) -> None:
    explore(f"{rng.getrandbits(32):x}", keep, kills, SHORT_RUNS, SHORT, shorten=30.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@KEEP
@KILLS
def test_the_model_for_long(rng: random.Random, keep: bool, kills: bool) -> None:
    driver = explore(f"{rng.getrandbits(32):x}", keep, kills, 10_000, LONG, shorten=120.0)
    print(f"{driver.runs} runs, {driver.counts}")  # noqa: T201
