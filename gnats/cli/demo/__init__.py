"""Watch an outage: servers die and come back, the application goes on, the books close.

It starts three real nats-servers (`pip install 'gnats[server]'`) and one application that publishes
and reads over one connection. On a terminal, and with `pip install 'gnats[cli]'`, a live view shows
the servers, the pool, the buffer and the callbacks; else lines do. The end is a summary; exit
status 1: a promise was not kept.

  gnats demo
  gnats demo --at-least-once --pace 2
  gnats demo --plot outage.svg            (pip install 'gnats[plot]')
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import gnats
from gnats.cli import exits
from gnats.cli.flags import refuse_connection
from gnats.cli.notices import is_terminal, say
from gnats.cli.output import Output

_PLOTS = (".svg", ".png", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at-least-once", action="store_true", help="with replay_unconfirmed: some may come twice"
    )
    parser.add_argument(
        "--rate", metavar="N", type=_rate, default=500, help="messages per second (500)"
    )
    parser.add_argument(
        "--pace", metavar="X", type=_pace, default=1.0, help="1: about 15 seconds; 2: twice that"
    )
    parser.add_argument("--plain", action="store_true", help="lines, also on a terminal")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the summary")


def run(arguments: argparse.Namespace) -> int:
    # Not for every `gnats pub`.
    from gnats.cli.demo import books
    from gnats.cli.demo.record import Record
    from gnats.cli.demo.stage import Stage
    from gnats.cli.demo.view import showing
    from gnats.testing import ServerError

    refuse_connection(arguments, "demo")
    draw = _plotter(arguments.plot)
    record = Record()
    stage = Stage(record, arguments.at_least_once, arguments.rate, arguments.pace)
    live = not arguments.plain and is_terminal(sys.stderr)
    try:
        with showing(record, stage, live, arguments.quiet):
            stage.perform()
    except ServerError as exc:
        raise exits.CommandError(str(exc)) from exc
    except exits.Interrupted:
        say("interrupted", "lost")
        raise
    except (gnats.errors.Error, AssertionError) as exc:  # show how far it came, and fail
        record.failures.append(f"{type(exc).__name__}: {exc}")
    faults = [*record.failures, *books.faults(record, arguments.at_least_once)]
    with Output() as output:
        if arguments.json:
            output.write_json({**books.as_dict(record), "faults": faults})
        else:
            output.write(books.as_text(record).encode())
            output.write(books.verdict(faults).encode())
        output.finish()  # whatever becomes of the picture
    if draw is not None:
        draw(record, arguments.plot)
        if not arguments.quiet:
            say(f"the timeline is in {arguments.plot}", "faint")
    return exits.FAILED if faults else exits.DONE


def _plotter(path: Path | None) -> Any:
    """What draws, or None; an obstacle is told before anything begins."""
    if path is None:
        return None
    if path.suffix not in _PLOTS:
        raise exits.CommandError(
            f"--plot: a file that ends in {', '.join(_PLOTS)} is needed, not {str(path)!r}",
            exits.USAGE,
        )
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as exc:
        raise exits.CommandError(f"--plot {path}: {exc.strerror}") from exc
    try:
        from gnats.cli.demo.plot import draw
    except ImportError as exc:
        raise gnats.errors.MissingExtraError("--plot", "plot") from exc
    return draw


def _rate(text: str) -> int:
    if not text.isdecimal() or not 10 <= int(text) <= 20_000:
        raise argparse.ArgumentTypeError(f"{text!r}: 10 to 20000 messages per second")
    return int(text)


def _pace(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 20:
        raise argparse.ArgumentTypeError(f"{text!r}: 0.1 to 20")
    return value
