"""``python -m model``, in the directory of the tests: look for a list of operations that fails."""

from __future__ import annotations

import argparse
import logging
import random
import secrets
import warnings
from time import monotonic

from .driver import Driver, code, make, say


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--keep", choices=["0", "1", "both"], default="both")
    parser.add_argument("--kills", choices=["0", "1", "both"], default="both")
    parser.add_argument("--way", choices=["tcp", "tls", "ws"], default="")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--failures", type=int, default=1, help="go on until so many")
    parser.add_argument("--shorten", type=float, default=60.0, help="seconds for each failure")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "libuv only supports millisecond timer")
    logging.getLogger("gnats").setLevel(logging.CRITICAL)
    say(f"seed {options.seed}")
    began, number, failures = monotonic(), options.first, 0
    with Driver() as driver:
        while monotonic() - began < options.seconds and failures < options.failures:
            rng = random.Random(f"{options.seed}:{number}")
            keep, kills = (
                rng.random() < 0.5 if choice == "both" else choice == "1"
                for choice in (options.keep, options.kills)
            )
            setup, operations = make(rng, keep, kills, options.way)
            error = driver.failure(setup, operations)
            if error is not None:
                failures += 1
                say(f"--- run {number}, {monotonic() - began:.1f} s: {error}")
                say(code(setup, operations))
                shorter = driver.shorten(setup, operations, error, options.shorten)
                say(f"--- shortened: {shorter[2]}\n{code(*shorter[:2])}")
            number += 1
        took = monotonic() - began
        say(f"{driver.runs} runs in {took:.0f} s, {failures} failures; {driver.counts}")
    return 1 if failures else 0


raise SystemExit(main())
