"""Results to figures, figures to tables and to JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple, Optional

from benchmarks.cases import OURS, PURE, Case, Figure
from benchmarks.peers import CLIENTS

__all__ = ["Line", "as_json", "lines_of", "ratios", "values"]

Rounds = dict[str, list[Optional[dict[str, Any]]]]


class Line(NamedTuple):
    """One figure of all clients that have it, in the figure's unit, and one ratio."""

    name: str
    figure: Figure
    first: str  # the ratio is first ÷ second
    second: str
    target: float | None  # of the ratio
    rounds: dict[str, list[float]]
    ratios: list[float]  # one per round that both finished

    @property
    def medians(self) -> dict[str, float]:
        return {client: median(values) for client, values in self.rounds.items() if values}

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def asked(self) -> str:
        """What is asked for, in words; "" for a figure that is only shown."""
        sign = "≤" if self.figure.lower_is_better else "≥"
        if self.target is not None:
            return f"{sign} {self.target:g}×"
        if self.figure.limit is not None:
            return f"{sign} {self.figure.limit:,.0f} {self.figure.unit}"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, or without a figure to judge."""
        if self.target is not None:
            value, wanted = self.ratio, self.target
        else:
            value, wanted = self.medians.get(self.first), self.figure.limit
        if value is None or wanted is None:
            return None
        return value <= wanted if self.figure.lower_is_better else value >= wanted


def lines_of(
    cases: Iterable[Case], results: dict[str, Rounds], scale: float, compiled: bool
) -> list[Line]:
    """The figures of *results*, in the order of the table; *compiled*: what OURS was."""
    lines = []
    for case in cases:
        for figure in case.figures:
            rounds = results[case.name]
            beside = results.get(figure.plain or case.name, {})
            name = figure.name.format(count=max(1, int(case.count * scale)))
            target = figure.targets[0 if compiled else 1]
            lines.append(_line(name, figure, figure.first, figure.second, target, rounds, beside))
            if figure.first == OURS and PURE in rounds:
                second = PURE if figure.second == OURS else figure.second
                target = figure.targets[1]
                lines.append(_line(name, figure, PURE, second, target, rounds, beside))
    return lines


def _line(
    name: str,
    figure: Figure,
    first: str,
    second: str,
    target: float | None,
    rounds: Rounds,
    others: Rounds,
) -> Line:
    values, beside = _values(figure, rounds), _values(figure, others)
    pairs = zip(values.get(first, []), beside.get(second, []))
    ratios = [ours / peer for ours, peer in pairs if ours is not None and peer]
    known = {client: [v for v in each if v is not None] for client, each in values.items()}
    return Line(name, figure, first, second, target, known, ratios)


def _values(figure: Figure, rounds: Rounds) -> dict[str, list[float | None]]:
    return {
        client: [_value(figure, result) for result in results] for client, results in rounds.items()
    }


def _value(figure: Figure, result: dict[str, Any] | None) -> float | None:
    if result is None:
        return None
    if figure.field == "rate":
        return float(result["count"] / result["seconds"] * figure.scale)
    field, _, per = figure.field.partition("/")
    if field not in result:
        return None
    value = float(result[field] * figure.scale)
    return value / result[per] if per else value


# -- tables ----------------------------------------------------------------------------------


def ratios(lines: Sequence[Line]) -> str:
    """What is compared, and what is asked for."""
    rows = [["ratio", "(rounds)", "asked", "", "of", "what"]]
    for line in lines:
        if line.ratio is None and line.met is None:
            continue
        rows.append(
            [
                f"{line.ratio:.2f}×" if line.ratio is not None else "–",
                f"{min(line.ratios):.2f}–{max(line.ratios):.2f}" if line.ratios else "",
                line.asked,
                {True: "met", False: "MISSED", None: ""}[line.met],
                f"{line.first} ÷ {line.second}" if line.ratios else line.first,
                line.name,
            ]
        )
    return _table(rows, left={2, 3, 4, 5})


def values(lines: Sequence[Line]) -> str:
    """What each client reached."""
    clients = [name for name in CLIENTS if any(name in line.medians for line in lines)]
    rows = [["what", "unit", *clients]]
    told = set()
    for line in lines:
        key = tuple(line.medians.items())
        if key not in told:
            told.add(key)
            rows.append(
                [
                    line.name.partition(" ÷ ")[0],
                    line.figure.unit,
                    *(_number(line.medians.get(client)) for client in clients),
                ]
            )
    return _table(rows, left={0, 1})


def _table(rows: list[list[str]], left: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The same figures, with every round."""
    return [
        {
            "name": line.name,
            "unit": line.figure.unit,
            "lower_is_better": line.figure.lower_is_better,
            "first": line.first,
            "second": line.second,
            "ratio": line.ratio,
            "ratios": line.ratios,
            "target": line.target,
            "limit": line.figure.limit,
            "met": line.met,
            "medians": line.medians,
            "rounds": line.rounds,
        }
        for line in lines
    ]
