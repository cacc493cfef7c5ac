"""What is measured, how much of it, and what is asked for. Tables; nothing runs here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "CASES",
    "CORE",
    "KEPT",
    "NODE",
    "OURS",
    "PEER",
    "PURE",
    "RUST",
    "SOCKET",
    "SYNC",
    "UVLOOP",
    "Case",
    "Figure",
    "chosen",
]

OURS = "gnats"
PURE = "gnats, pure"  # without its compiled parts; where there are none, OURS is that
KEPT = "gnats, kept"  # with replay_unconfirmed: at least once
PEER = "nats-py"
UVLOOP = "nats-py, uvloop"
CORE = "nats-core"
RUST = "natsrpy"
SYNC = "nats-python"
NODE = "Node"
SOCKET = "bare socket"

_PYTHONS = (OURS, PURE, PEER, UVLOOP, CORE, RUST, SYNC)
_ALL = (*_PYTHONS, NODE, SOCKET)
_FEW = (OURS, PURE, PEER, SOCKET)
_PAIR = (OURS, PURE, PEER)


class Figure(NamedTuple):
    """A quantity of a case, for each client, and a ratio of two of them."""

    name: str  # "{count}" stands for the count of the case
    unit: str
    field: str  # of a result; "rate" is count / seconds, and "…/count" is per count
    scale: float = 1.0  # from the field's unit to *unit*
    # Asked of the ratio of compiled twins, and of the pure ones; None: it is only shown.
    targets: tuple[float | None, float | None] = (None, None)
    lower_is_better: bool = False
    limit: float | None = None  # of ours alone, in *unit*
    first: str = OURS  # the ratio is first ÷ second; PURE takes the place of OURS in another line
    second: str = PEER
    plain: str = ""  # the case whose second client it is, where that is not the same case


class Case(NamedTuple):
    """One measurement that every client named here makes in each round."""

    name: str
    work: str  # what a client's program calls it
    count: int
    clients: tuple[str, ...]
    figures: tuple[Figure, ...]
    size: int = 16  # bytes of a payload
    headers: bool = False
    subjects: int = 1  # that messages are spread over
    subscriptions: int = 1
    requesters: int = 1
    fed: bool = False  # by the feeder
    answered: bool = False  # by the responder
    over: str = "tcp"  # or "tls", "ws"
    cut: bool = False  # its link runs through the gate, which is shut and opened once
    usual: bool = True  # it is run when nobody says what to run


_CPU = "µs/msg"


def _cpu(what: str, unit: str = _CPU) -> Figure:
    return Figure(f"{what}, CPU", unit, "cpu/count", 1e6, lower_is_better=True)


def _payloads(size: int, what: str, count: int) -> tuple[Case, ...]:
    """Larger payloads, in bytes a second, beside the peer and beside the bare socket."""

    def figures(work: str, asked: float | None) -> tuple[Figure, ...]:
        scale = size / 1e6
        return (
            Figure(f"{work} {what}", "MB/s", "rate", scale),
            Figure(
                f"{work} {what} ÷ bare socket", "MB/s", "rate", scale, (asked, asked), second=SOCKET
            ),
        )

    asked = 0.8 if size > 10_000 else None
    return (
        Case(f"publish-{size}", "publish", count, _FEW, figures("publish", None), size),
        Case(f"receive-{size}", "receive", count, _FEW, figures("receive", asked), size, fed=True),
    )


def _over(over: str) -> tuple[Case, ...]:
    """Publishing and receiving over another kind of link, beside nats-py and beside plain TCP."""

    def figures(what: str) -> tuple[Figure, ...]:
        return (
            Figure(f"{what}, {over}", "msg/s", "rate"),
            Figure(f"{what}, {over} ÷ tcp", "msg/s", "rate", second=OURS, plain=what),
        )

    return (
        Case(f"publish-{over}", "publish", 300_000, _PAIR, figures("publish"), over=over),
        Case(f"receive-{over}", "receive", 300_000, _PAIR, figures("receive"), over=over, fed=True),
    )


def _requesters(count: int, requests: int, targets: tuple[float | None, float | None]) -> Case:
    clients = (OURS, PURE, PEER, UVLOOP, CORE, RUST, NODE)
    return Case(
        f"requesters-{count}",
        "concurrent",
        requests,
        clients,
        (
            Figure(f"{count:,} requesters", "req/s", "rate", targets=targets),
            _cpu(f"{count:,} requesters", "µs/req"),
        ),
        requesters=count,
        answered=True,
    )


def _subscriptions(count: int) -> tuple[Case, ...]:
    """Many subscriptions: all messages for one of them, and as many for each."""
    one = Figure(
        f"receive, one of {count:,} subscriptions ÷ one",
        "msg/s",
        "rate",
        targets=(0.8, 0.8),
        second=OURS,
        plain="receive",
    )
    each = Figure(f"receive, each of {count:,} ÷ bare socket", "msg/s", "rate", second=SOCKET)
    ours = (OURS, PURE)
    return (
        Case(f"one-of-{count}", "receive", 300_000, ours, (one,), subscriptions=count, fed=True),
        Case(
            f"each-of-{count}",
            "receive",
            300_000,
            (*ours, SOCKET),
            (each,),
            subjects=count,
            subscriptions=count,
            fed=True,
        ),
    )


def _flat(count: int) -> tuple[Case, ...]:
    """The cost of a message, however many there are."""

    def figure(work: str) -> tuple[Figure, ...]:
        name = f"{work} {count:,} ÷ 10,000, CPU"
        return (
            Figure(
                name,
                _CPU,
                "cpu/count",
                1e6,
                lower_is_better=True,
                second=OURS,
                plain=f"flat-{work}-10000",
            ),
        )

    ours = (OURS, PURE)
    return (
        Case(f"flat-publish-{count}", "publish", count, ours, figure("publish"), usual=False),
        Case(
            f"flat-receive-{count}",
            "receive",
            count,
            ours,
            figure("receive"),
            fed=True,
            usual=False,
        ),
    )


def _return(name: str, count: int, what: str) -> Case:
    """From the moment at which a server accepts again."""
    return Case(
        f"return-{name}",
        "outage-full" if name == "full" else "outage",
        count,
        (OURS, KEPT, PEER),
        (
            Figure(f"return, {what}: first kept message", "ms", "first", 1e3, lower_is_better=True),
            Figure(f"return, {what}: reconnected_cb", "ms", "back", 1e3, lower_is_better=True),
            Figure(f"return, {what}: all confirmed", "ms", "confirmed", 1e3, lower_is_better=True),
        ),
        cut=True,
    )


CASES = (
    Case(
        "publish",
        "publish",
        600_000,
        _ALL,
        (Figure("publish", "msg/s", "rate", targets=(6.0, 3.5)), _cpu("publish")),
    ),
    Case(
        "receive",
        "receive",
        300_000,
        _ALL,
        (
            Figure("receive", "msg/s", "rate", targets=(5.0, 2.0)),
            Figure("receive ÷ bare socket", "msg/s", "rate", targets=(0.8, 0.3), second=SOCKET),
            _cpu("receive"),
        ),
        fed=True,
    ),
    Case(
        "both",
        "both",
        100_000,
        (OURS, PURE, PEER, UVLOOP, CORE, RUST, NODE),
        (
            Figure("publish and receive in one process", "msg/s", "rate"),
            _cpu("publish and receive"),
        ),
    ),
    Case(
        "serial",
        "serial",
        3_000,
        _ALL,
        (
            Figure("serial request", "µs", "median", 1e6, lower_is_better=True),
            Figure(
                "serial request ÷ bare socket",
                "µs",
                "median",
                1e6,
                (1.2, 1.25),
                lower_is_better=True,
                second=SOCKET,
            ),
            Figure("serial request, p99", "µs", "p99", 1e6, lower_is_better=True),
            _cpu("serial request", "µs/req"),
        ),
        answered=True,
    ),
    _requesters(100, 20_000, (3.0, 2.0)),
    _requesters(1_000, 20_000, (None, None)),
    Case(
        "publish-headers",
        "publish",
        100_000,
        _PAIR,
        (Figure("publish with a header", "msg/s", "rate"),),
        headers=True,
    ),
    Case(
        "receive-headers",
        "receive",
        100_000,
        _PAIR,
        (Figure("receive, read a header", "msg/s", "rate"),),
        headers=True,
        fed=True,
    ),
    *_payloads(1024, "1 KiB", 100_000),
    *_payloads(65536, "64 KiB", 15_000),
    *_over("tls"),
    *_over("ws"),
    Case(
        "kept",
        "publish",
        600_000,
        (OURS, KEPT),
        (
            Figure(
                "publish, kept ÷ default",
                "msg/s",
                "rate",
                1.0,
                (0.85, 0.85),
                first=KEPT,
                second=OURS,
            ),
            Figure(
                "publish, kept ÷ default, CPU",
                _CPU,
                "cpu/count",
                1e6,
                lower_is_better=True,
                first=KEPT,
                second=OURS,
            ),
        ),
    ),
    *_subscriptions(1_000),
    *_subscriptions(100_000),
    Case(
        "memory",
        "memory",
        20_000,
        _PAIR,
        (
            Figure("idle subscription, RSS", "bytes", "rss", lower_is_better=True, limit=1024),
            Figure(
                "idle subscription, traced", "bytes", "traced", lower_is_better=True, limit=1024
            ),
        ),
    ),
    Case(
        "connect",
        "connect",
        200,
        (*_PYTHONS, SOCKET),
        (Figure("connect", "ms", "median", 1e3, lower_is_better=True),),
    ),
    Case(
        "import",
        "import",
        15,
        # Not nats-core: beside nats-py it shares the package `nats`, and would import both.
        (OURS, PURE, PEER, RUST, SYNC),
        (Figure("import", "ms", "median", 1e3, lower_is_better=True),),
    ),
    Case(
        "restore",
        "restore",
        20_000,
        (OURS, PURE),
        (Figure("restore {count:,} subscriptions", "ms", "seconds", 1e3, lower_is_better=True),),
    ),
    _return("1", 1, "{count:,} subscriptions"),
    _return("1000", 1_000, "{count:,} subscriptions"),
    _return("20000", 20_000, "{count:,} subscriptions"),
    _return("full", 1, "full 8 MiB buffer"),
    *(case for count in (10**4, 10**5, 10**6, 10**7) for case in _flat(count)),
)


def chosen(names: list[str] | None) -> list[Case]:
    """The cases of those names, or whose name begins with one and a hyphen; without names the
    usual ones. Raises ValueError for a name that is none."""
    if not names:
        return [case for case in CASES if case.usual]
    for name in names:
        if not any(_is_meant(case, name) for case in CASES):
            raise ValueError(f"there is no case {name!r}: {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if any(_is_meant(case, name) for name in names)]


def _is_meant(case: Case, name: str) -> bool:
    return case.name == name or (name in _GROUPS and case.name.startswith(f"{name}-"))


#: Names of several cases.
_GROUPS = ("flat", "requesters", "return", "one-of", "each-of")
