"""How the demonstration looks while it runs: a live view by rich, or lines.

It only looks, ten times a second; the play goes on the same without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gevent

from gnats.cli.demo.record import Event, Record
from gnats.cli.demo.stage import BUFFER, Stage
from gnats.cli.notices import say

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH = 0.1  # seconds
_LINE_EVERY = 1.0  # seconds between two lines about the traffic
_EVENTS = 10  # the last ones, in the live view
_BAR = 20  # characters
_STATES = {"running": "green", "killed": "red", "leaving": "yellow"}


@contextlib.contextmanager
def showing(record: Record, stage: Stage, live: bool, quiet: bool) -> Iterator[None]:
    """Show *record* while the block runs."""
    if quiet:
        yield
        return
    show = _live if live and _has_rich() else _lines
    with show(record, stage):
        yield


def _has_rich() -> bool:
    try:
        import rich.live  # noqa: F401
    except ImportError:
        say("pip install 'gnats[cli]' would show this live", "faint")
        return False
    return True


# -- lines -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lines(record: Record, stage: Stage) -> Iterator[None]:
    lines = _Lines(record, stage)
    greenlet = gevent.spawn(lines.run)
    try:
        yield
    finally:
        greenlet.kill()
        lines.write_new()


class _Lines:
    """Each event once, and the traffic now and then."""

    def __init__(self, record: Record, stage: Stage) -> None:
        self._record, self._stage = record, stage
        self._told = 0  # events

    def run(self) -> None:
        record, next_line = self._record, _LINE_EVERY
        while True:
            self.write_new()
            if record.now >= next_line:
                next_line += _LINE_EVERY
                say(f"[{record.now:5.1f} s]     {_traffic(record, self._stage)}", "faint")
            gevent.sleep(_REFRESH)

    def write_new(self) -> None:
        events = self._record.events
        for event in events[self._told :]:
            indent, kind = ("", "back") if event.kind == "act" else ("    ", "")
            say(f"[{event.time:5.1f} s] {indent}{event.text}", kind)
        self._told = len(events)


def _traffic(record: Record, stage: Stage) -> str:
    conn = stage.conn
    kept = f", {conn.stats.buffered:,} kept" if conn is not None and not conn.is_connected else ""
    where = f"at {stage.connected_port()}" if conn is not None and conn.is_connected else "away"
    return f"{record.published:,} published, {record.delivered:,} delivered{kept} ({where})"


# -- live --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _live(record: Record, stage: Stage) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    # Without its own thread: it is drawn in our greenlet.
    console = Console(stderr=True)
    with Live(picture(record, stage), console=console, auto_refresh=False) as live:
        greenlet = gevent.spawn(_refresh, live, record, stage)
        try:
            yield
        finally:
            greenlet.kill()
            live.update(picture(record, stage), refresh=True)


def _refresh(live: Any, record: Record, stage: Stage) -> None:
    while True:
        live.update(picture(record, stage), refresh=True)
        gevent.sleep(_REFRESH)


def picture(record: Record, stage: Stage) -> RenderableType:
    """The whole view at this moment."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble(
        (f"act {record.act_number} of {record.acts}  ", "dim"), (record.act, "bold")
    )
    body = Table.grid(padding=(0, 3, 0, 0))
    body.add_row(_servers(stage, record), _application(record, stage))
    parts = Group(title, Text(""), body, Text(""), _events(record.events))
    return Panel(parts, title="gnats demo", subtitle=f"{record.now:.1f} s", border_style="blue")


def _servers(stage: Stage, record: Record) -> RenderableType:
    """Each server: how it is, its place in the pool, and our attempts to reach it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="servers and pool", title_justify="left", box=None, pad_edge=False, padding=(0, 1)
    )
    for heading, justify in ((" ", "left"), ("port", "right"), ("state", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for heading in ("next", "tried", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    line = [url.port for url in stage.conn.servers] if stage.conn is not None else []
    ours = stage.connected_port()
    for server, state in stage.servers():
        dialled = record.dialled.get(server.port)
        table.add_row(
            Text("▶" if server.port == ours else " ", style="bold green"),
            str(server.port),
            Text(state, style=_STATES[state]),
            str(line.index(server.port) + 1) if server.port in line else "–",
            str(dialled.attempts) if dialled else "0",
            Text(
                str(dialled.failed) if dialled else "0",
                style="red" if dialled and dialled.failed else "",
            ),
        )
    return table


def _application(record: Record, stage: Stage) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="application",
        title_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    conn = stage.conn
    status = str(conn.status) if conn is not None else "–"
    colour = {"connected": "green", "reconnecting": "red"}.get(status, "yellow")
    table.add_row("status", Text(status, style=f"bold {colour}"))
    table.add_row("published", f"{record.published:,}")
    for reader in record.readers:
        table.add_row(reader.name, f"{reader.count:,}")
    table.add_row("answered", f"{record.answered:,} of {record.asked:,} requests")
    if conn is not None:
        # While there is a link what waits a millisecond is no news.
        kept = 0 if conn.is_connected else conn.stats.buffered
        size = 0 if conn.is_connected else conn.stats.buffered_bytes
        table.add_row("buffer", _bar(size / BUFFER))
        table.add_row("", f"{kept:,} kept, {size / 1024:,.0f} KiB")
        table.add_row("uncertain", f"{conn.stats.uncertain:,}")
    return table


def _bar(fill: float) -> RenderableType:
    from rich.text import Text

    full = round(min(1.0, fill) * _BAR)
    return Text.assemble(("█" * full, "yellow"), ("░" * (_BAR - full), "dim"))


def _events(events: list[Event]) -> RenderableType:
    """The last ones, the newest below; always as many lines, so that nothing jumps."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.title = "callbacks, and what was done to the servers"
    table.title_justify = "left"
    table.add_column(style="dim", justify="right", width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    styles = {"act": "bold", "server": "yellow", "callback": ""}
    last = events[-_EVENTS:]
    for event in last:
        table.add_row(f"{event.time:.1f} s", Text(event.text, style=styles[event.kind]))
    for _ in range(_EVENTS - len(last)):
        table.add_row("", "")
    return table
