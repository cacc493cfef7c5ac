"""Results to figures, figures to a table and to JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple, Optional

from benchmarks.cases import CLIENTS, OURS, Case, Figure

__all__ = ["Line", "as_json", "lines_of", "table"]

Rounds = dict[str, list[Optional[dict[str, Any]]]]


class Line(NamedTuple):
    """One figure of all clients that have it, in the figure's unit."""

    name: str
    figure: Figure
    rounds: dict[str, list[float]]
    ratios: list[float]  # of the figure's pair, one per round that both finished

    @property
    def medians(self) -> dict[str, float]:
        return {client: median(values) for client, values in self.rounds.items() if values}

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def target(self) -> str:
        """What is asked for, in words; "" for a figure that is only shown."""
        sign = "≤" if self.figure.lower_is_better else "≥"
        if self.figure.target is not None:
            return f"{sign} {self.figure.target:g}×"
        if self.figure.limit is not None:
            return f"{sign} {self.figure.limit:,.0f} {self.figure.unit}"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, or without a figure to judge."""
        if self.figure.target is not None:
            value, wanted = self.ratio, self.figure.target
        else:
            value, wanted = self.medians.get(OURS), self.figure.limit
        if value is None or wanted is None:
            return None
        return value <= wanted if self.figure.lower_is_better else value >= wanted


def lines_of(cases: Iterable[Case], results: dict[str, Rounds], scale: float) -> list[Line]:
    """The figures of *results*, in the order of the table."""
    return [
        _line(
            figure,
            results[case.name],
            results.get(figure.plain or case.name, {}),
            max(1, int(case.count * scale)),
        )
        for case in cases
        for figure in case.figures
    ]


def _line(figure: Figure, rounds: Rounds, others: Rounds, count: int) -> Line:
    values, beside = _values(figure, rounds), _values(figure, others)
    first, second = figure.pair
    pairs = zip(values.get(first, []), beside.get(second, []))
    ratios = [ours / peer for ours, peer in pairs if ours is not None and peer]
    known = {client: [v for v in each if v is not None] for client, each in values.items()}
    return Line(figure.name.format(count=count), figure, known, ratios)


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
    value = float(result[field] * figure.scale)
    return value / result[per] if per else value


def table(lines: Sequence[Line]) -> str:
    """Ratios first, then what each client reached."""
    # The ratio is gnats ÷ nats-py where the line names no other pair.
    rows = [["gnats ÷ nats-py", "(rounds)", "target", "", "what", "unit", *CLIENTS]]
    for line in lines:
        rows.append(
            [
                f"{line.ratio:.2f}×" if line.ratio is not None else "–",
                f"{min(line.ratios):.2f}–{max(line.ratios):.2f}" if line.ratios else "",
                line.target,
                {True: "met", False: "MISSED", None: ""}[line.met],
                line.name,
                line.figure.unit,
                *(_number(line.medians.get(client)) for client in CLIENTS),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = {2, 3, 4, 5}  # words; numbers go to the right
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
            "ratio": line.ratio,
            "ratios": line.ratios,
            "target": line.figure.target,
            "limit": line.figure.limit,
            "met": line.met,
            "medians": line.medians,
            "rounds": line.rounds,
        }
        for line in lines
    ]
