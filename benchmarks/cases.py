"""What is measured, how much of it, and what is asked for. A table; nothing runs here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CASES", "CLIENTS", "KEPT", "OURS", "PEER", "Case", "Figure"]

OURS = "gnats"
KEPT = "gnats, kept"  # with replay_unconfirmed: at least once
PEER = "nats-py"
#: Name to the module that is run, in the order of the table's columns.
CLIENTS = {
    OURS: "benchmarks.clients.gnats_client",
    KEPT: "benchmarks.clients.gnats_kept_client",
    PEER: "benchmarks.clients.natspy_client",
    "bare socket": "benchmarks.clients.socket_client",
}


class Figure(NamedTuple):
    """One line of the report, computed from the result of a case."""

    name: str  # "{count}" stands for the count of the case
    unit: str
    field: str  # of a result; "rate" is count / seconds, and "…/count" is per count
    scale: float  # from the field's unit to *unit*
    target: float | None = None  # of the ratio of ``pair``
    lower_is_better: bool = False
    limit: float | None = None  # of ours alone, in *unit*
    pair: tuple[str, str] = (OURS, PEER)  # the ratio is first ÷ second
    plain: str = ""  # the case whose second client it is, where that is not the same case


class Case(NamedTuple):
    """One measurement that every client named here makes in each round."""

    name: str
    count: int
    clients: tuple[str, ...]
    figures: tuple[Figure, ...]
    fed: bool = False  # by the feeder
    answered: bool = False  # by the responder
    over: str = "tcp"  # or "tls", "ws"
    cut: bool = False  # its link runs through the gate, which is shut and opened once


_ALL = (OURS, PEER, "bare socket")
_CPU = "µs/msg"


def _return(name: str, count: int, what: str) -> Case:
    """From the moment at which a server accepts again."""
    return Case(
        name,
        count,
        (OURS, KEPT, PEER),
        (
            Figure(f"return, {what}: first kept message", "ms", "first", 1e3, None, True),
            Figure(f"return, {what}: reconnected_cb", "ms", "back", 1e3, None, True),
            Figure(f"return, {what}: all confirmed", "ms", "confirmed", 1e3, None, True),
        ),
        cut=True,
    )


def _over(over: str) -> tuple[Case, ...]:
    """Publishing and receiving over another kind of link, beside nats-py and beside plain TCP."""

    def figures(what: str) -> tuple[Figure, ...]:
        return (
            Figure(f"{what}, {over}", "msg/s", "rate", 1.0),
            Figure(f"{what}, {over} ÷ tcp", "msg/s", "rate", 1.0, None, False, None, _SELF, what),
        )

    pair = (OURS, PEER)
    return (
        Case(f"publish-{over}", 300_000, pair, figures("publish"), over=over),
        Case(f"receive-{over}", 300_000, pair, figures("receive"), over=over, fed=True),
    )


_SELF = (OURS, OURS)

CASES = (
    Case(
        "publish",
        300_000,
        _ALL,
        (
            Figure("publish", "msg/s", "rate", 1.0, target=3.0),
            Figure("publish, CPU", _CPU, "cpu/count", 1e6, lower_is_better=True),
        ),
    ),
    *_over("tls"),
    *_over("ws"),
    Case(
        "kept",
        300_000,
        (OURS, KEPT),
        (
            Figure("publish, kept ÷ default", "msg/s", "rate", 1.0, 0.85, pair=(KEPT, OURS)),
            Figure(
                "publish, kept ÷ default, CPU",
                _CPU,
                "cpu/count",
                1e6,
                None,
                True,
                None,
                (KEPT, OURS),
            ),
        ),
    ),
    Case(
        "receive",
        300_000,
        _ALL,
        (
            Figure("receive", "msg/s", "rate", 1.0, target=1.8),
            Figure("receive, CPU", _CPU, "cpu/count", 1e6, lower_is_better=True),
        ),
        fed=True,
    ),
    Case(
        "concurrent",
        20_000,
        (OURS, PEER),
        (
            Figure("100 requesters", "req/s", "rate", 1.0, target=2.0),
            Figure("100 requesters, CPU", "µs/req", "cpu/count", 1e6, lower_is_better=True),
        ),
        answered=True,
    ),
    Case(
        "serial",
        5_000,
        _ALL,
        (
            Figure("serial request, median", "µs", "median", 1e6, 0.7, lower_is_better=True),
            Figure("serial request, p99", "µs", "p99", 1e6, lower_is_better=True),
            Figure("serial request, CPU", "µs/req", "cpu/count", 1e6, lower_is_better=True),
        ),
        answered=True,
    ),
    Case(
        "memory",
        20_000,
        (OURS, PEER),
        (
            Figure("idle subscription, RSS", "bytes", "rss", 1.0, None, True, limit=1536),
            Figure("idle subscription, traced", "bytes", "traced", 1.0, None, True, limit=1536),
        ),
    ),
    Case(
        "restore",
        20_000,
        (OURS,),
        (Figure("restore {count:,} subscriptions", "ms", "seconds", 1e3, lower_is_better=True),),
    ),
    _return("return-1", 1, "{count:,} subscriptions"),
    _return("return-1000", 1_000, "{count:,} subscriptions"),
    _return("return-20000", 20_000, "{count:,} subscriptions"),
    _return("return-full", 1, "full 8 MiB buffer"),
)
