"""docs/faults.md, from what was measured. It says nothing that was not."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import NamedTuple

import gevent

import gnats
from gnats.testing import NatsServer

from . import prose
from .natspy import PATIENCE, Compared
from .table import FAULTS, MODES, MOMENTS, Cell, Expected, Fault, senseless
from .verdict import Outcome

SHORT = {
    "connecting": "connecting",
    "handshake-accept": "accept",
    "handshake-info": "INFO",
    "handshake-connect": "CONNECT",
    "handshake-pong": "PONG",
    "idle": "idle",
    "publishing": "publish",
    "pressing": "press",
    "receiving": "receive",
    "churn": "subscribe",
    "request": "request",
    "flush": "flush",
    "drain": "drain",
    "close": "close",
    "drain-away": "drain, away",
    "close-away": "close, away",
    "restore": "restore",
    "recovering": "again",
}


class Result(NamedTuple):
    cell: Cell
    outcome: Outcome
    complaints: list[str]


Results = dict[tuple[str, str, str], Result]


def write(results: Iterable[Result], compared: Iterable[Compared], seed: str) -> str:
    """The page, as Markdown."""
    by_cell: Results = {
        (one.cell.fault.name, one.cell.moment.name, one.cell.mode): one for one in results
    }
    parts = [
        _opening(by_cell, seed),
        prose.PROMISES,
        _matrix(by_cell),
        _table(by_cell),
        _of_the_server(by_cell),
        _comparison(by_cell, {one.fault: one for one in compared}),
        _unmet(by_cell),
        prose.METHOD.format(reasons="\n".join(_reasons())),
    ]
    return "\n".join(filter(None, parts))


def _opening(results: Results, seed: str) -> str:
    outcomes = [one.outcome for one in results.values()]
    return prose.OPENING.format(
        faults=len(FAULTS),
        moments=len(MOMENTS),
        modes=len(MODES),
        cells=len(results),
        met=sum(not one.complaints for one in results.values()),
        messages=_sum(outcomes, "accepted"),
        audits=_sum(outcomes, "audits"),
        versions=_versions(),
        seed=seed,
    )


def _versions() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    with NatsServer() as server:
        server_version = server.varz()["version"]
    versions = [
        f"gnats {gnats.__version__}",
        f"{python} on {platform.system()}",
        f"gevent {gevent.__version__}",
        f"nats-server {server_version}",
    ]
    with suppress(PackageNotFoundError):
        versions.append(f"nats-py {version('nats-py')}")
    return ", ".join(versions)


def _rows(rows: Iterable[Iterable[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _heading(*columns: str) -> str:
    return f"{_rows([columns])}\n|{'---|' * len(columns)}\n"


# -- the matrix -----------------------------------------------------------------------------------


def _matrix(results: Results) -> str:
    rows = (
        [fault.title, *(_matrix_cell(results, fault, moment) for moment in MOMENTS)]
        for fault in FAULTS.values()
    )
    heading = _heading("fault", *(SHORT[moment] for moment in MOMENTS))
    return f"{prose.MATRIX}\n{heading}{_rows(rows)}\n"


def _matrix_cell(results: Results, fault: Fault, moment: str) -> str:
    both = [results[key] for mode in MODES if (key := (fault.name, moment, mode)) in results]
    if not both:
        return "–" if senseless(fault, MOMENTS[moment]) else ""
    if any(one.complaints for one in both):
        return "✗"
    times = [one.outcome.message_after for one in both if one.outcome.message_after is not None]
    if not times or MOMENTS[moment].ends or fault.expected.ends == "closed":
        return "✓"
    return f"✓ {max(times) * 1000:.0f}"


# -- fault by fault -------------------------------------------------------------------------------


def _table(results: Results) -> str:
    parts = [prose.TABLE]
    heading = _heading(
        "fault",
        "expected beyond the above",
        "default: lost of uncertain, doubled, late",
        "at least once: lost, doubled, late",
        "given up by a close: lost of dropped",
        "losses",
        "recovery, median and worst",
        "left over",
    )
    for group in dict.fromkeys(fault.group for fault in FAULTS.values()):
        rows = (
            _row(fault, [one.outcome for one in results.values() if one.cell.fault is fault])
            for fault in FAULTS.values()
            if fault.group == group
        )
        parts.append(f"### {group}\n\n{heading}{_rows(rows)}\n")
    return "\n".join(parts)


def _row(fault: Fault, outcomes: list[Outcome]) -> list[object]:
    default = [one for one in outcomes if one.mode == "default"]
    kept = [one for one in outcomes if one.mode != "default"]
    return [
        f"**{fault.title}**: {fault.why}",
        _expected(fault.expected),
        f"{_lost(default)} of {_sum(default, 'uncertain')}, {_doubled_and_late(default)}",
        f"{_lost(kept)}, {_doubled_and_late(kept)}",
        f"{_sum(outcomes, 'lost_dropped')} of {_sum(outcomes, 'dropped')}",
        _sum(outcomes, "links_lost"),
        _recovery(fault, outcomes),
        sum(len(one.leftovers) for one in outcomes) or "nothing",
    ]


def _doubled_and_late(outcomes: list[Outcome]) -> str:
    return f"{_sum(outcomes, 'doubled')}, {_sum(outcomes, 'late')}"


def _recovery(fault: Fault, outcomes: list[Outcome]) -> str:
    times = [
        one.message_after
        for one in outcomes
        if one.message_after is not None and not MOMENTS[one.moment].ends
    ]
    if not times or fault.expected.ends == "closed":
        return "–"
    return f"{median(times) * 1000:.0f} ms, {max(times) * 1000:.0f} ms"


def _expected(expected: Expected) -> str:
    words = []
    if expected.ends == "closed":
        words.append("closed, with the reason")
    if expected.server_loses:
        words.append("the server may lose what it confirmed")
    if expected.unnoticed:
        words.append("one message may be changed or led astray")
    if expected.calls:
        words.append(f"`{expected.calls}`")
    if expected.tells:
        words.append(f"`error_cb` hears `{'` or `'.join(expected.tells)}`")
    return "; ".join(words) or "nothing"


def _sum(outcomes: Iterable[Outcome], name: str) -> int:
    return sum(getattr(one, name) for one in outcomes)


def _lost(outcomes: list[Outcome]) -> int:
    return _sum(outcomes, "lost") + _sum(outcomes, "lost_uncertain")


# -- what is not ours -----------------------------------------------------------------------------


def _of_the_server(results: Results) -> str:
    outcomes = [one.outcome for one in results.values()]
    changed = [one for one in outcomes if one.fault.startswith("corrupt")]
    rows = []
    for fault in FAULTS.values():
        of_fault = [one for one in outcomes if one.fault == fault.name]
        if fault.expected.server_loses:
            took, accepted = _sum(of_fault, "lost_by_server"), _sum(of_fault, "accepted")
            rows.append([fault.title, took, f"{accepted:,}"])
    return prose.OF_THE_SERVER.format(
        rows=_rows(rows),
        altered=_sum(changed, "altered") + _sum(changed, "received_altered"),
        astray=sum(max(0, one.lost_by_server - one.altered) for one in changed),
        missed=_sum(outcomes, "missed"),
        sent_to_it=_sum(outcomes, "missed") + _sum(outcomes, "received"),
    )


def _comparison(results: Results, compared: dict[str, Compared]) -> str:
    rows = []
    for fault in FAULTS.values():
        theirs = compared.get(fault.name)
        ours = results.get((fault.name, "publishing", "default"))
        if theirs is not None and ours is not None:
            kept = results.get((fault.name, "publishing", MODES[1]))
            rows.append(
                [
                    *_compared_row(fault, theirs, ours.outcome),
                    "–" if kept is None else _lost([kept.outcome]) + kept.outcome.lost_by_server,
                ]
            )
    if not rows:
        return ""
    heading = _heading(
        "fault",
        "nats-py came back after",
        "lost, untold",
        "doubled",
        "late",
        "gnats came back after",
        "lost, told",
        "doubled",
        "late",
        "at least once: lost",
    )
    return f"{prose.COMPARISON.format(patience=PATIENCE)}\n{heading}{_rows(rows)}\n"


def _compared_row(fault: Fault, theirs: Compared, ours: Outcome) -> list[object]:
    back = _milliseconds(theirs.message_after) if theirs.came_back else "**no**"
    if theirs.closed_itself:
        back += ", it closed"
    if theirs.hung:
        back += f"; `{theirs.hung}` hung"
    lost = f"{ours.lost_uncertain} of {ours.uncertain}"
    if ours.lost_by_server:
        lost += f", and {ours.lost_by_server} by the server"
    return [
        fault.title,
        back,
        f"{theirs.lost} of {theirs.accepted}",
        theirs.doubled,
        theirs.late,
        _milliseconds(ours.message_after),
        lost,
        ours.doubled,
        ours.late,
    ]


def _milliseconds(seconds: float | None) -> str:
    return "**no**" if seconds is None else f"{seconds * 1000:.0f} ms"


# -- the rest -------------------------------------------------------------------------------------


def _unmet(results: Results) -> str:
    unmet = [
        f"- **{one.cell.name}**: {'; '.join(one.complaints)}"
        for one in results.values()
        if one.complaints
    ]
    text = "\n".join(unmet) or "None."
    return f"## Cells that are not met\n\n{text}\n"


def _reasons() -> Iterator[str]:
    reasons: dict[str, Counter[str]] = {}
    for fault in FAULTS.values():
        for moment in MOMENTS.values():
            reason = senseless(fault, moment)
            if reason:
                reasons.setdefault(reason, Counter())[fault.title] += 1
    for reason, faults in reasons.items():
        yield f"- {reason}: {'; '.join(faults)} ({sum(faults.values())} combinations)"
