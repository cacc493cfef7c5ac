"""How far a long command has come: a bar on a terminal, with rich; else a line now and then.

It looks at a counter ten times a second: what is counted costs nothing more.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import gevent

from gnats.cli.notices import is_dumb, is_terminal, say

_REFRESH = 0.1  # seconds between two looks
_LINE_EVERY = 2.0  # seconds between two lines, where no bar can be drawn
_DELAY = 0.5  # seconds before anything is shown: short work needs no bar


@contextlib.contextmanager
def progress(what: str, total: int | None, count: Callable[[], int], quiet: bool) -> Iterator[None]:
    """Show *count()* of *total* while the block runs, unless *quiet* or there is no terminal."""
    if quiet or not is_terminal(sys.stderr):
        yield
        return
    greenlet = gevent.spawn(_show, what, total, count)
    try:
        yield
    finally:
        greenlet.kill()


def _show(what: str, total: int | None, count: Callable[[], int]) -> None:
    gevent.sleep(_DELAY)
    draw = _lines
    if not is_dumb():
        with contextlib.suppress(ImportError):
            import rich.progress  # noqa: F401

            draw = _bar
    draw(what, total, count)


def _lines(what: str, total: int | None, count: Callable[[], int]) -> None:
    while True:
        done = count()
        say(f"{what}: {done:,}" + (f" of {total:,} ({100 * done / total:.0f} %)" if total else ""))
        gevent.sleep(_LINE_EVERY)


def _bar(what: str, total: int | None, count: Callable[[], int]) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>12}"),
        TimeRemainingColumn(),
    )
    # Without its own thread: the bar is drawn in this greenlet.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    before = count()
    with bar:
        task = bar.add_task(what, total=total, rate="")
        while True:
            done = count()
            rate = (done - before) / _REFRESH
            before = done
            bar.update(task, completed=done, rate=f"{rate:,.0f}/s", refresh=True)
            gevent.sleep(_REFRESH)
