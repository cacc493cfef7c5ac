"""``python -m benchmarks``: gnats beside other clients and a bare socket, in one run. README.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gnats
from benchmarks import report
from benchmarks.cases import CASES, chosen
from benchmarks.machine import describe
from benchmarks.peers import present
from benchmarks.runner import run

_ROUNDS = 5
_QUICK_ROUNDS = 3
_QUICK_SCALE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report. 0 however slow it was; 1 when a measurement failed."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.plot and options.plot.suffix not in (".svg", ".png"):
        parser.error("--plot: a file that ends in .svg or .png is needed")
    if options.from_json and not options.plot:
        parser.error("--from-json: --plot FILE says where to draw it")
    if options.from_json:
        _draw(json.loads(options.from_json.read_text("utf-8")), options.plot)
        return 0
    try:
        cases = chosen(options.only)
    except ValueError as exc:
        parser.error(f"--only: {exc}")
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    scale = options.scale or (_QUICK_SCALE if options.quick else 1.0)
    clients, missing = present()
    facts = describe()
    outcome = run(cases, clients, rounds, scale, _progress)
    _progress("")
    facts["nats-server"] = outcome.server_version
    lines = report.lines_of(cases, outcome.results, scale, gnats.compiled)
    _print(facts, missing, rounds, lines, outcome.errors)
    document = {
        "facts": facts,
        "missing": missing,
        "rounds": rounds,
        "scale": scale,
        "figures": report.as_json(lines),
        "errors": outcome.errors,
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.plot:
        _draw(document, options.plot)
    return 1 if outcome.errors else 0


def _print(
    facts: dict[str, str],
    missing: list[str],
    rounds: int,
    lines: list[report.Line],
    errors: list[str],
) -> None:
    for name, value in facts.items():
        print(f"{name}: {value}")
    for line in missing:
        print(f"left out: {line}")
    print(f"rounds: {rounds}; medians of rounds, 16-byte payloads where nothing else is said\n")
    print(report.ratios(lines))
    print()
    print(report.values(lines))
    for error in errors:
        print(f"FAILED: {error}")


def _draw(document: dict[str, Any], file: Path) -> None:
    from benchmarks.plot import draw

    draw(document, file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive(int), help=f"default: {_ROUNDS}")
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_ROUNDS} rounds, a fifth of the messages"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="only this case (may be repeated): " + ", ".join(case.name for case in CASES),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: FILE.svg or FILE.png")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="measure nothing, draw what --json wrote"
    )
    parser.add_argument(
        "--scale", type=_positive(float), help="multiply the number of messages by this"
    )
    return parser


def _positive(kind: type) -> Any:
    def parse(text: str) -> object:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    return parse


def _progress(text: str) -> None:
    """One line that the next one overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
