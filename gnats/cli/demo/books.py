"""The closed books of a demonstration: what became of every message, and whether promises were
kept. Pure: a record in, words out."""

from __future__ import annotations

import dataclasses
from typing import Any

from gnats.cli.demo.record import Readers, Record
from gnats.cli.notices import plural


def faults(record: Record, keep: bool) -> list[str]:
    """Every promise that was not kept, in words."""
    stats = record.stats
    if stats is None:
        return ["the application never came to its end"]
    found = []
    if stats.accepted != stats.sent + stats.uncertain + stats.dropped + stats.buffered:
        found.append(f"the books do not close: {stats}")
    if stats.dropped or stats.buffered:
        found.append(f"{stats.dropped} dropped, {stats.buffered} never sent")
    if stats.reconnects < 2:
        found.append("there were not two returns")
    if keep and stats.uncertain:
        found.append(f"{stats.uncertain} uncertain, though at-least-once was asked for")
    for reader in record.readers:
        found += _faults_of(reader, record, stats.uncertain, keep)
    return found


def _faults_of(reader: Readers, record: Record, uncertain: int, keep: bool) -> list[str]:
    found = []
    shadowed = _shadowed(reader, record)
    missing = [number for number in reader.missing(record.published) if number not in shadowed]
    if len(missing) > uncertain:
        found.append(f"{reader.name}: {len(missing)} lost, the first is number {missing[0]}")
    if reader.doubled and not keep:
        found.append(f"{reader.name}: {plural(reader.doubled, 'message')} came twice")
    if not reader.in_order and not reader.is_group:
        found.append(f"{reader.name}: the order was not kept")
    return found


def as_dict(record: Record) -> dict[str, Any]:
    """The books for a script."""
    return {
        "published": record.published,
        "readers": {
            reader.name: {
                "delivered": reader.count,
                "missing": len(reader.missing(record.published)),
                "missing_at_killed_server": len(_shadowed(reader, record)),
                "doubled": reader.doubled,
                "in_order": reader.in_order,
            }
            for reader in record.readers
        },
        "requests": {"asked": record.asked, "answered": record.answered},
        "outages": [round(end - begin, 3) for begin, end in _closed(record)],
        "most_buffered": record.most_buffered,
        "stats": dataclasses.asdict(record.stats) if record.stats is not None else None,
    }


def as_text(record: Record) -> str:
    """The books for a person."""
    lines = ["The books", "---------", _line("published", plural(record.published, "message"))]
    for reader in record.readers:
        lines.append(_line(reader.name, _fate(reader, record.published)))
        if shadowed := len(_shadowed(reader, record)):
            lines.append(
                _line("", f"{shadowed} of these given by the servers to members at a killed one")
            )
    lines.append(_line("requests", f"{record.answered:,} of {record.asked:,} answered"))
    lengths = [f"{(end - begin) * 1000:,.0f} ms" for begin, end in _closed(record)]
    lines.append(_line("outages", f"{len(lengths)}: {', '.join(lengths)} without a server"))
    lines.append(_line("kept", f"{plural(record.most_buffered, 'message')} at most, meanwhile"))
    stats = record.stats
    if stats is not None:
        failed = stats.attempts - stats.connects
        lines.append(
            _line("attempts", f"{stats.attempts}: {stats.connects} came up, {failed} failed")
        )
        parts = ("sent", "uncertain", "dropped", "buffered")
        sums = " + ".join(f"{name} {getattr(stats, name):,}" for name in parts)
        lines.append(_line("accepted", f"{stats.accepted:,} = {sums}"))
        lines.append(_line("", "(the numbers, the requests and their answers)"))
    return "\n".join(lines) + "\n"


def verdict(found: list[str]) -> str:
    """The last lines."""
    if not found:
        return "\nPASSED: the books close; nothing is lost that was not said to be uncertain\n"
    return "".join(f"\nFAILED: {fault}\n" for fault in found)


def _fate(reader: Readers, published: int) -> str:
    shares = " + ".join(f"{len(numbers):,}" for numbers in reader.members)
    order = "order kept" if reader.in_order else "order BROKEN"
    if reader.is_group:
        order = "shared"
    missing = len(reader.missing(published))
    return f"{shares} delivered, {missing} missing, {reader.doubled} doubled, {order}"


def _shadowed(reader: Readers, record: Record) -> list[int]:
    """What a group misses because a server still gave it to members at a server that was dead: as
    the servers do it, and told, not judged (docs/reconnection.md)."""
    if not reader.is_group:
        return []
    return [number for number in reader.missing(record.published) if record.in_shadow(number)]


def _closed(record: Record) -> list[tuple[float, float]]:
    return [(each[0], each[1]) for each in record.outages if len(each) == 2]


def _line(name: str, text: str) -> str:
    return f"{name:<12} {text}"
