"""``python -m benchmarks``: gnats beside nats-py and a bare socket, in one run. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import report
from benchmarks.cases import CASES, CLIENTS, PEER
from benchmarks.machine import describe
from benchmarks.runner import run

_ROUNDS = 5
_QUICK_ROUNDS = 3
_QUICK_SCALE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report. 0 however slow it was; 1 when a measurement failed."""
    options = _options(argv)
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    scale = options.scale or (_QUICK_SCALE if options.quick else 1.0)
    cases = [case for case in CASES if not options.only or case.name in options.only]
    clients = dict(CLIENTS)
    if find_spec("nats") is None:
        del clients[PEER]
        print("nats-py is not installed (pip install 'gnats[bench]'): no ratios", file=sys.stderr)

    facts = describe()
    outcome = run(cases, clients, rounds, scale, _progress)
    _progress("")
    facts["nats-server"] = outcome.server_version
    lines = report.lines_of(cases, outcome.results, scale)

    for name, value in facts.items():
        print(f"{name}: {value}")
    print(f"rounds: {rounds}, 16-byte payloads; medians of rounds\n")
    print(report.table(lines))
    for error in outcome.errors:
        print(f"FAILED: {error}")
    if options.json:
        document = {
            "facts": facts,
            "rounds": rounds,
            "scale": scale,
            "figures": report.as_json(lines),
            "errors": outcome.errors,
        }
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if outcome.errors else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive(int), help=f"default: {_ROUNDS}")
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_ROUNDS} rounds, a fifth of the messages"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[case.name for case in CASES],
        metavar="NAME",
        help="only this case (may be repeated): " + ", ".join(case.name for case in CASES),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there too")
    parser.add_argument(
        "--scale", type=_positive(float), help="multiply the number of messages by this"
    )
    return parser.parse_args(argv)


def _positive(kind: type) -> object:
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
