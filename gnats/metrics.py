"""What can be measured of a connection, in one table, and who may be told of it. No dependencies.

Numbers are pulled: whoever scrapes them asks (``Connection.observe``), so that a message costs
nothing more than the counter that it moves anyway. Events are pushed, behind the user's callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .health import Health
from .stats import Stats


class Observer(Protocol):
    """Is told of a connection; made by an adapter, or by you. The methods run in the greenlet that
    asked, ``event`` in that of the callbacks."""

    def counter(self, name: str, value: int) -> None:
        """The total *value* of a counter since the connection was made."""

    def gauge(self, name: str, value: float) -> None:
        """The present *value*."""

    def event(self, conn: Any, name: str, facts: Mapping[str, Any]) -> None:
        """What the callback *name* + ``_cb`` tells of: ``connected``, ``disconnected`` (``error``),
        ``reconnected``, ``closed``, ``error`` (``error``), ``discovered_servers``, ``lame_duck``,
        ``status`` (``old``, ``new``). *facts* are in brackets."""


@dataclass(frozen=True)
class Meter:
    """One number: a ``counter`` only grows, a ``gauge`` moves."""

    name: str
    kind: str
    unit: str  #: "messages", "bytes", "seconds", ... ; "1": none
    description: str
    read: Callable[[Stats, Health], float]


def _counter(name: str, unit: str, description: str) -> Meter:
    def read(stats: Stats, _: Health) -> float:
        value: int = getattr(stats, name)
        return value

    return Meter(name, "counter", unit, description, read)


def _gauge(name: str, unit: str, description: str, read: Callable[[Health], float]) -> Meter:
    return Meter(name, "gauge", unit, description, lambda _, health: read(health))


#: Every number there is, in the order in which ``Connection.observe`` tells them. Not ``sent``: it
#: falls when a link dies under messages, which no counter may; it is what the others leave over.
METERS: tuple[Meter, ...] = (
    _counter("accepted", "messages", "Messages that publish took"),
    _counter("uncertain", "messages", "Of those, written to a link that died before a PONG"),
    _counter("dropped", "messages", "Of those, given up"),
    _counter("replayed", "messages", "Messages written late, or again, after an outage"),
    _counter("out_bytes", "bytes", "Headers and payloads of the accepted messages"),
    _counter("in_msgs", "messages", "Messages received"),
    _counter("in_bytes", "bytes", "Headers and payloads of those"),
    _counter("in_dropped", "messages", "Messages received that nobody took"),
    _counter("attempts", "attempts", "Attempts to connect to a server"),
    _counter("connects", "links", "Links that came up"),
    _counter("reconnects", "links", "Of those, after a loss"),
    _counter("disconnects", "links", "Links that were lost"),
    _counter("errors_received", "errors", "-ERR lines of servers"),
    _gauge("ready", "1", "1 while there is a link that takes work", lambda h: float(h.is_ready)),
    _gauge("buffered", "messages", "Messages that wait", lambda h: h.buffered),
    _gauge("buffered_bytes", "bytes", "Bytes of those", lambda h: h.buffered_bytes),
    _gauge("buffer_fill", "ratio", "0 to 1: how full the buffer is", lambda h: h.buffer_fill),
    _gauge("unhandled", "messages", "Messages before a handler, or in one", lambda h: h.unhandled),
    _gauge("outage", "seconds", "Time without a link until now", lambda h: h.outage),
    _gauge("rtt", "seconds", "What the last PING took; 0: none yet", lambda h: h.rtt or 0.0),
)


def tell(observer: Observer, stats: Stats, health: Health) -> None:
    """Every counter and gauge, to *observer*."""
    for meter in METERS:
        value = meter.read(stats, health)
        if meter.kind == "counter":
            observer.counter(meter.name, int(value))
        else:
            observer.gauge(meter.name, value)
