"""``python -m tests.faults``: run the table, print it, write the page."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from pathlib import Path

from . import page
from .cell import run
from .natspy import Compared, compare
from .rig import Rigs
from .table import FAULTS, MODES, MOMENTS, Cell, Fault, cells, diagonal
from .verdict import Outcome, judge


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """0 when every cell is met."""
    options = _options(arguments)
    logging.getLogger("gnats").addHandler(logging.NullHandler())
    say(f"seed {options.seed}: repeat with --seed {options.seed}")
    with Rigs() as rigs:
        compared = [_compare(rigs, fault, options.seed) for fault in _compared(options)]
        results = [_play(rigs, cell, options.seed) for cell in _chosen(options)]
    if options.write:
        options.write.write_text(page.write(results, compared, options.seed), encoding="utf-8")
    unmet = [result for result in results if result.complaints]
    say(f"{len(results)} cells, {len(unmet)} not met")
    return 1 if unmet else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--moment", action="append", choices=list(MOMENTS), metavar="MOMENT")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--natspy", action="store_true", help="the column of nats-py, too")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page, docs/faults.md")
    parser.add_argument("--diagonal", action="store_true", help="the cells of every run")
    parser.add_argument("--seed", default=os.environ.get("GNATS_SEED") or secrets.token_hex(4))
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Cell]:
    return [
        cell
        for cell in (diagonal() if options.diagonal else cells())
        if (not options.only or cell.fault.name in options.only)
        and (not options.moment or cell.moment.name in options.moment)
        and (not options.mode or cell.mode == options.mode)
    ]


def _compared(options: argparse.Namespace) -> list[Fault]:
    wanted = options.only or list(FAULTS)
    return [FAULTS[name] for name in wanted if options.natspy and FAULTS[name].compared]


def _play(rigs: Rigs, cell: Cell, seed: str) -> page.Result:
    try:
        outcome = run(rigs, cell, seed)
    except Exception as exc:  # the next cell has a rig of its own
        outcome = Outcome(cell.fault.name, cell.moment.name, cell.mode, wrong=[f"raised {exc!r}"])
    complaints = judge(outcome, cell.fault.expected, cell.moment)
    after = "-" if outcome.message_after is None else f"{outcome.message_after * 1000:.0f} ms"
    say(f"{'FAIL' if complaints else 'ok  '} {cell.name}: {after}, {outcome.seconds:.2f} s")
    for complaint in complaints:
        say(f"     {complaint}")
    if complaints:
        say(f"     {outcome}")
    return page.Result(cell, outcome, complaints)


def _compare(rigs: Rigs, fault: Fault, seed: str) -> Compared:
    try:
        compared = compare(rigs, fault, seed)
    except Exception as exc:
        compared = Compared(fault.name, hung=f"connect: {exc!r}")
    say(f"nats-py: {compared}")
    return compared


if __name__ == "__main__":
    sys.exit(main())
